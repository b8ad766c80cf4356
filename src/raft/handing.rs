//! Leadership handed to another member, and taken back if nobody takes it.
//!
//! A leader that has asked another to lead accepts no more writes in its term, and openraft has no way
//! to call that off. So the other is first asked whether it would. And the wait is bounded: a transfer that
//! is not taken within an election timeout is offered to the next voter, or ended by this member, which grants
//! the next term to whom it had asked, steps down by that, and stands for election in the term after it.
//! Invariant: each step is an ordinary one of Raft (a vote granted, an election), so nothing here can make two
//! leaders of one term.

use super::consensus::Consensus;
use super::link::Link;
use super::network::{Call, Lane, Peer, TransportError};
use super::types::{MemberId, Types, Vote, log_id};
use crate::model::{Failure, Why};
use openraft::Instant;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::VoteRequest;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Before a member that would not lead is asked again.
const ASK_PAUSE: Duration = Duration::from_millis(20);
/// How often one voter is asked to lead.
const OFFERS: u32 = 3;
/// How many voters are asked to lead, one after the other, by a member that wants to end.
const HEIRS_MAX: usize = 2;
/// How many of the longest election timeouts it may take until a leader is known again.
const SETTLE: u32 = 3;

/// What became of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// Another member stands for election by this one's leave, or leads already.
    Taken,
    /// This member leads as before, and accepts no writes.
    NotTaken,
    /// The other cannot be reached, or would not lead: this member leads as before.
    Declined,
}

impl Link {
    /// Voters to hand leadership to, the best first: those that are heard, the furthest of them.
    pub(super) fn heirs(&self) -> Vec<MemberId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(replication) = metrics.replication.as_ref() else { return Vec::new() };
        let heard = |id: &MemberId| {
            let at = metrics.heartbeat.as_ref().and_then(|heard| heard.get(id)?.as_ref());
            at.is_some_and(|at| at.elapsed() <= self.heard.patience)
        };
        let matched = |id: &MemberId| replication.get(id).and_then(|at| at.as_ref().map(|at| at.index));
        let mut heirs: Vec<MemberId> = metrics.membership_config.voter_ids().filter(|id| *id != self.id).collect();
        heirs.sort_by_key(|id| std::cmp::Reverse((heard(id), matched(id))));
        // A leader that has just been elected has heard nobody yet.
        let in_reach = heirs.iter().filter(|id| heard(id)).count();
        heirs.truncate(in_reach.max(1));
        heirs
    }

    /// Asks `heir` to lead if it would, and waits at most `patience` for a sign of it. Asks again meanwhile: the
    /// request is one message, which may be lost, and one that arrives twice is one of a term that has passed.
    pub(super) async fn pass_to(&self, heir: MemberId, patience: Duration) -> Passed {
        let Some(member) = self.server.borrow_watched().membership_config.membership().get_node(&heir).cloned() else {
            return Passed::Declined;
        };
        let (heir_at, mut passed) = (Peer { id: heir, member }, Passed::Declined);
        let mut server = self.raft.server_metrics();
        for _ in 0..OFFERS {
            let mut round = pin!(tokio::time::sleep(patience / OFFERS));
            let willing = tokio::select! {
                willing = self.call(heir_at.clone(), Lane::Control, &Call::WouldLead, patience) => willing,
                () = &mut round => continue,
            };
            match willing {
                Ok(true) => {}
                Ok(false) | Err(TransportError::Unreachable(_)) => return passed,
                Err(TransportError::Failed(_)) => {
                    round.await;
                    continue;
                }
            }
            if self.raft.trigger().transfer_leader(heir).await.is_err() {
                // Raft has ended here: others will lead.
                return Passed::Taken;
            }
            passed = Passed::NotTaken;
            let taken = async {
                while server.borrow_watched().state == ServerState::Leader {
                    if server.changed().await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = taken => return Passed::Taken,
                () = round => {}
            }
        }
        passed
    }

    /// Ends a transfer to `heir` that was not taken: this member stands for election.
    pub(super) async fn take_back(&self, heir: MemberId) {
        let term = {
            let server = self.server.borrow_watched();
            if server.state != ServerState::Leader {
                return;
            }
            server.vote.leader_id.term
        };
        let step_down = VoteRequest::<Types> {
            vote: Vote::new(term + 1, heir),
            last_log_id: self.log.last().map(log_id),
            leadership_transfer: true,
        };
        // If either fails, Raft has ended or another member was faster.
        drop(self.raft.vote(step_down).await);
        drop(self.raft.trigger().elect(false).await);
    }

    fn term(&self) -> u64 {
        self.server.borrow_watched().vote.leader_id.term
    }

    /// Waits until somebody was elected in a later term than that; who it is.
    async fn elected_after(&self, term: u64, within: Duration) -> Option<MemberId> {
        let mut server = self.raft.server_metrics();
        let known = async {
            loop {
                {
                    let server = server.borrow_watched();
                    if let Some(leader) = server.current_leader.filter(|_| server.vote.leader_id.term > term) {
                        return Some(leader);
                    }
                }
                server.changed().await.ok()?;
            }
        };
        tokio::time::timeout(within, known).await.ok().flatten()
    }
}

impl Consensus {
    /// Gives leadership away as `hand_over` does, and takes it no more by another's leave.
    pub async fn leave(&self) {
        self.leaving().store(true, Ordering::SeqCst);
        self.hand_over().await;
    }

    /// Whether this member would lead if it were asked to.
    pub(super) fn would_lead(&self) -> bool {
        !self.leaving().load(Ordering::SeqCst) && self.ensure_able().is_ok()
    }

    fn name_of(&self, id: MemberId) -> String {
        self.member(id).map_or_else(|| format!("{id:x}"), |member| member.name)
    }

    /// Gives leadership to the voter that is furthest, if this member has it and anyone can take it.
    pub async fn hand_over(&self) {
        let (link, options) = (self.link(), self.options());
        let mut asked = None;
        for heir in link.heirs().into_iter().take(HEIRS_MAX) {
            let name = self.name_of(heir);
            match link.pass_to(heir, options.election_max).await {
                Passed::Taken => return,
                Passed::NotTaken => {
                    tracing::warn!(heir = name, "the lead was offered and not taken");
                    asked = Some(heir);
                }
                Passed::Declined => tracing::info!(heir = name, "this voter cannot be reached or would not lead"),
            }
        }
        if let Some(heir) = asked {
            link.take_back(heir).await;
        }
    }

    /// Moves leadership to `to`, or leaves it where it is.
    ///
    /// # Errors
    /// A timeout if it was not taken; then this member, or whoever was elected meanwhile, leads.
    pub(super) async fn lead_to(&self, to: MemberId, timeout: Duration) -> Result<MemberId, Failure> {
        let (link, options, clock) = (self.link(), self.options(), self.clock());
        let (term, began) = (link.term(), clock.monotonic());
        loop {
            match link.pass_to(to, options.election_max).await {
                Passed::Taken => break,
                Passed::NotTaken => {
                    tracing::warn!(to = self.name_of(to), "the lead was offered and not taken: it is taken back");
                    link.take_back(to).await;
                    break;
                }
                Passed::Declined if clock.monotonic().saturating_sub(began) < options.election_max => {
                    tokio::time::sleep(ASK_PAUSE).await;
                }
                Passed::Declined => return Err(Failure::not_proposed(Why::Timeout)),
            }
        }
        match link.elected_after(term, timeout.min(options.election_max * SETTLE)).await {
            Some(leader) if leader == to => Ok(to),
            _ => Err(Failure::not_proposed(Why::Timeout)),
        }
    }
}

//! Changes of the membership: one at a time, decided on the leader, asked for anywhere.
//!
//! Invariants: newcomers are learners first; a name stands for one member and a number is never given
//! twice; no change is made that leaves fewer than a majority of the voters in reach, unless it is
//! forced; a joint configuration that a leader left behind is finished by the next one.

use super::batcher::Route;
use super::consensus::Consensus;
use super::link::millis;
use super::network::{Call, Lane, Peer, TransportError};
use super::types::{Member, MemberId, Types};
use crate::model::{Failure, Fault, Outcome, Rejection, Why};
use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant, RaftMetrics, ServerState};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Before a change is asked for again, because no leader took it.
const ASK_PAUSE: Duration = Duration::from_millis(20);
/// How often a learner that is to be promoted is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A peer that was heard of within this many of the longest election timeouts is in reach.
const IN_REACH: u32 = 2;
/// How often a leader looks for a joint configuration that nobody finishes.
const FINISH_LOOK: Duration = Duration::from_secs(1);

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A member without a data directory yet, under this number.
    Add {
        id: MemberId,
        member: Member,
    },
    /// A member that introduces itself: as the one that was added under its name, or as a new learner.
    TakeIn {
        id: MemberId,
        member: Member,
    },
    Update {
        id: MemberId,
        name: Option<String>,
        peer_url: Option<String>,
        client_url: Option<String>,
    },
    /// A learner that is at most `max_lag` entries behind, or will be within the wait.
    Promote {
        id: MemberId,
        max_lag: u64,
        wait_ms: u64,
    },
    Remove {
        id: MemberId,
        force: bool,
    },
    /// A learner takes a voter's place, in one change.
    Replace {
        old: MemberId,
        new: MemberId,
        max_lag: u64,
        wait_ms: u64,
    },
    /// Leadership goes to this voter, or to the one that is furthest.
    Lead {
        to: Option<MemberId>,
    },
}

/// What the leader knows of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    pub id: MemberId,
    pub member: Member,
    pub voter: bool,
    pub leads: bool,
    /// Up to where its log is known to be the leader's.
    pub matched: Option<u64>,
    /// Entries that it lacks.
    pub lag: u64,
    /// Since it was heard of.
    pub last_contact_ms: Option<u64>,
    pub in_reach: bool,
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub version: String,
    pub leads: bool,
    pub applied: Option<u64>,
    /// Bytes of its data directory.
    pub db_bytes: u64,
}

type Metrics = RaftMetrics<Types>;

fn settled_voters(metrics: &Metrics) -> Result<BTreeSet<MemberId>, Failure> {
    match metrics.membership_config.membership().get_joint_config().as_slice() {
        [voters] => Ok(voters.clone()),
        _ => Err(Rejection::ChangeInProgress.into()),
    }
}

fn behind(lag_entries: u64, reachable: bool) -> Failure {
    Rejection::LearnerBehind { lag_entries, reachable }.into()
}

fn not_found(id: MemberId) -> Failure {
    Rejection::MemberNotFound(format!("{id:x}")).into()
}

impl Consensus {
    /// Has the leader make a change, and waits until it is made. Gives the member it was about.
    ///
    /// # Errors
    /// The leader's refusal; unknown if its answer was lost.
    pub async fn change(&self, change: Change, timeout: Duration) -> Result<MemberId, Failure> {
        let asking = async {
            loop {
                let asked = match self.link().route() {
                    Route::Here { .. } => self.change_here(change.clone(), timeout).await,
                    Route::To(leader) => {
                        let question = Call::Change { change: change.clone(), remaining_ms: millis(timeout) };
                        // With the proposals, none of which may arrive twice.
                        match self.link().call(leader, Lane::Append, &question, timeout).await {
                            Ok(answer) => answer,
                            Err(TransportError::Unreachable(_)) => Err(Failure::not_proposed(Why::NoLeader)),
                            Err(TransportError::Failed(_)) => {
                                Err(Failure::Unavailable { why: Why::NoLeader, outcome: Outcome::Unknown })
                            }
                        }
                    }
                    Route::Nowhere => Err(Failure::not_proposed(Why::NoLeader)),
                };
                match asked {
                    Err(Failure::Unavailable { why: Why::NoLeader, outcome: Outcome::NotProposed }) => {
                        tokio::time::sleep(ASK_PAUSE).await;
                    }
                    settled => return settled,
                }
            }
        };
        let asked = tokio::time::timeout(timeout, asking).await;
        asked.unwrap_or(Err(Failure::Unavailable { why: Why::Timeout, outcome: Outcome::Unknown }))
    }

    /// Takes a newcomer in as a learner; gives the number it has from now on.
    ///
    /// # Errors
    /// As `change`.
    pub async fn take_in(&self, id: MemberId, member: Member, timeout: Duration) -> Result<MemberId, Failure> {
        self.change(Change::TakeIn { id, member }, timeout).await
    }

    /// Makes a change, if this member leads.
    pub(super) async fn change_here(&self, change: Change, timeout: Duration) -> Result<MemberId, Failure> {
        if !self.link().leads() {
            return Err(Failure::not_proposed(Why::NoLeader));
        }
        // Before it is this change's turn: the learner that is waited for may still have to be taken in.
        match change {
            Change::Promote { id, max_lag, wait_ms } => {
                self.caught_up(id, max_lag, Duration::from_millis(wait_ms), false).await?;
            }
            Change::Replace { new, max_lag, wait_ms, .. } => {
                self.caught_up(new, max_lag, Duration::from_millis(wait_ms), true).await?;
            }
            _ => {}
        }
        let Ok(_one_at_a_time) = self.membership_lock().try_lock() else {
            return Err(Rejection::ChangeInProgress.into());
        };
        match change {
            Change::Add { id, member } => self.add(id, member).await,
            Change::TakeIn { id, member } => self.take_in_here(id, member).await,
            Change::Update { id, name, peer_url, client_url } => self.update(id, name, peer_url, client_url).await,
            Change::Promote { id, .. } => {
                self.submit(ChangeMembers::AddVoterIds([id].into())).await?;
                Ok(id)
            }
            Change::Remove { id, force } => self.remove(id, force).await,
            Change::Replace { old, new, .. } => self.replace(old, new).await,
            Change::Lead { to } => self.lead(to, timeout).await,
        }
    }

    async fn add(&self, id: MemberId, member: Member) -> Result<MemberId, Failure> {
        let known = self.members();
        if known.contains_key(&id) || known.values().any(|other| other.name == member.name) {
            return Err(Rejection::MemberExists(member.name).into());
        }
        self.submit(ChangeMembers::AddNodes([(id, member)].into())).await?;
        Ok(id)
    }

    async fn take_in_here(&self, id: MemberId, member: Member) -> Result<MemberId, Failure> {
        let known = self.members();
        let found = known.iter().find(|(known_id, other)| **known_id == id || other.name == member.name);
        let Some((&id, other)) = found else { return self.add(id, member).await };
        // The same data directory again, or the one that was expected under this name.
        if other.incarnation != member.incarnation && (other.incarnation != 0 || other.name != member.name) {
            return Err(Rejection::MemberExists(member.name).into());
        }
        if *other != member {
            self.submit(ChangeMembers::SetNodes([(id, member)].into())).await?;
        }
        Ok(id)
    }

    async fn update(
        &self,
        id: MemberId,
        name: Option<String>,
        peer_url: Option<String>,
        client_url: Option<String>,
    ) -> Result<MemberId, Failure> {
        let known = self.members();
        let old = known.get(&id).ok_or_else(|| not_found(id))?.clone();
        let member = Member {
            name: name.unwrap_or(old.name),
            peer_url: peer_url.unwrap_or(old.peer_url),
            client_url: client_url.unwrap_or(old.client_url),
            incarnation: old.incarnation,
        };
        if known.iter().any(|(other, known)| *other != id && known.name == member.name) {
            return Err(Rejection::MemberExists(member.name).into());
        }
        self.submit(ChangeMembers::SetNodes([(id, member)].into())).await?;
        Ok(id)
    }

    async fn remove(&self, id: MemberId, force: bool) -> Result<MemberId, Failure> {
        let (voters, is_member) = {
            let metrics = self.link().raft.metrics();
            let metrics = metrics.borrow_watched();
            (settled_voters(&metrics)?, metrics.membership_config.membership().get_node(&id).is_some())
        };
        if !is_member {
            return Err(not_found(id));
        }
        if !voters.contains(&id) {
            self.submit(ChangeMembers::RemoveNodes([id].into())).await?;
            return Ok(id);
        }
        let rest: BTreeSet<MemberId> = voters.iter().copied().filter(|voter| *voter != id).collect();
        self.keeps_quorum(&rest, force)?;
        if id == self.link().id {
            // The next leader makes the change: this one could not see it through.
            self.hand_over().await;
            return Err(Failure::not_proposed(Why::NoLeader));
        }
        self.submit(ChangeMembers::RemoveVoters([id].into())).await?;
        Ok(id)
    }

    async fn replace(&self, old: MemberId, new: MemberId) -> Result<MemberId, Failure> {
        let voters = settled_voters(&self.link().raft.metrics().borrow_watched())?;
        if !voters.contains(&old) {
            return Err(Rejection::NotAVoter(format!("{old:x}")).into());
        }
        let rest: BTreeSet<MemberId> = voters.iter().copied().filter(|voter| *voter != old).chain([new]).collect();
        self.keeps_quorum(&rest, false)?;
        if old == self.link().id {
            self.hand_over().await;
            return Err(Failure::not_proposed(Why::NoLeader));
        }
        self.submit(ChangeMembers::ReplaceAllVoters(rest)).await?;
        Ok(new)
    }

    async fn lead(&self, to: Option<MemberId>, timeout: Duration) -> Result<MemberId, Failure> {
        let voters = settled_voters(&self.link().raft.metrics().borrow_watched())?;
        let to = match to {
            Some(to) => to,
            None => {
                let heir = self.link().heirs().first().copied();
                heir.ok_or(Rejection::NotAVoter("another member".to_owned()))?
            }
        };
        if !voters.contains(&to) {
            return Err(Rejection::NotAVoter(format!("{to:x}")).into());
        }
        if to == self.link().id {
            return Ok(to);
        }
        self.lead_to(to, timeout).await
    }

    /// Waits until a learner is at most `max_lag` entries behind, for as long as it is heard. A `newcomer` may
    /// have to be started first.
    async fn caught_up(&self, id: MemberId, max_lag: u64, wait: Duration, newcomer: bool) -> Result<(), Failure> {
        let patience = self.options().election_max * IN_REACH;
        let (clock, mut lag) = (self.clock(), u64::MAX);
        let began = clock.monotonic();
        let waiting = async {
            loop {
                let states = self.member_states_here().ok_or(Failure::not_proposed(Why::NoLeader))?;
                let state = states.iter().find(|state| state.id == id).ok_or_else(|| not_found(id))?;
                lag = state.lag;
                if state.voter {
                    return Ok(());
                }
                if state.matched.is_some() && state.in_reach && lag <= max_lag {
                    // A vote of one that has ended a moment ago could cost the cluster its majority.
                    let peer = Peer { id, member: state.member.clone() };
                    let asked: Result<About, _> = self.link().call(peer, Lane::Control, &Call::About, patience).await;
                    return asked.map(drop).map_err(|_| behind(lag, false));
                }
                // A leader that has just been elected has heard nobody yet.
                let unheard = || clock.monotonic().saturating_sub(began);
                let silence = state.last_contact_ms.map_or_else(unheard, Duration::from_millis);
                let expected = newcomer && state.member.incarnation == 0;
                if silence > patience && !expected {
                    return Err(behind(lag, false));
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let waited = tokio::time::timeout(wait, waiting).await;
        waited.unwrap_or_else(|_| Err(behind(lag, true)))
    }

    fn keeps_quorum(&self, voters: &BTreeSet<MemberId>, force: bool) -> Result<(), Failure> {
        let states = self.member_states_here().ok_or(Failure::not_proposed(Why::NoLeader))?;
        let in_reach = states.iter().filter(|state| voters.contains(&state.id) && state.in_reach).count();
        let needed = voters.len() / 2 + 1;
        if voters.is_empty() || (in_reach < needed && !force) {
            let (voters, in_reach) = (voters.len() as u64, in_reach as u64);
            return Err(Rejection::WouldLoseQuorum { voters, in_reach }.into());
        }
        Ok(())
    }

    async fn submit(&self, change: ChangeMembers<MemberId, Member>) -> Result<(), Failure> {
        let membership = || *self.link().server.borrow_watched().membership_config.log_id();
        let before = membership();
        // A voter that leaves does not stay as a learner.
        let submitted = self.link().raft.change_membership(change, false).await;
        match submitted {
            Ok(_) => Ok(()),
            Err(RaftError::Fatal(_)) => Err(Failure::Unavailable { why: Why::ShuttingDown, outcome: Outcome::Unknown }),
            // Voters change in two steps, and the error does not say which it was: the next leader may finish it.
            Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(_) | ClientWriteError::PreconditionFailed(_),
            )) if membership() != before => Err(Failure::Unavailable { why: Why::NoLeader, outcome: Outcome::Unknown }),
            Err(RaftError::APIError(error)) => Err(refused(error)),
        }
    }

    /// What this member knows of all, if it leads.
    pub(super) fn member_states_here(&self) -> Option<Vec<MemberState>> {
        let metrics = self.link().raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            return None;
        }
        let in_reach = self.options().election_max * IN_REACH;
        let voters: BTreeSet<MemberId> = metrics.membership_config.voter_ids().collect();
        let state = |(&id, member): (&MemberId, &Member)| {
            let own = id == metrics.id;
            let matched = match metrics.replication.as_ref() {
                _ if own => metrics.last_log_index,
                Some(replication) => replication.get(&id).and_then(|at| at.as_ref().map(|at| at.index)),
                None => None,
            };
            let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(&id)?.as_ref().map(|at| at.elapsed()));
            let heard = if own { Some(Duration::ZERO) } else { heard };
            MemberState {
                id,
                member: member.clone(),
                voter: voters.contains(&id),
                leads: own,
                matched,
                lag: metrics.last_log_index.map_or(0, |last| last + 1).saturating_sub(matched.map_or(0, |at| at + 1)),
                last_contact_ms: heard.map(millis),
                in_reach: heard.is_some_and(|heard| heard <= in_reach),
            }
        };
        Some(metrics.membership_config.nodes().map(state).collect())
    }

    /// What the leader knows of all members.
    ///
    /// # Errors
    /// If none could be asked.
    pub async fn member_states(&self, timeout: Duration) -> Result<Vec<MemberState>, Failure> {
        if let Some(states) = self.member_states_here() {
            return Ok(states);
        }
        let no_leader = || Failure::not_proposed(Why::NoLeader);
        let Route::To(leader) = self.link().route() else { return Err(no_leader()) };
        let answer: Option<Vec<MemberState>> =
            self.link().call(leader, Lane::Control, &Call::Members, timeout).await.map_err(|_| no_leader())?;
        answer.ok_or_else(no_leader)
    }

    /// What this member says of itself.
    #[must_use]
    pub fn about(&self) -> About {
        let state = self.state();
        About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leads: state.is_followed(),
            applied: self.link().applier.progress().applied.map(|at| at.index),
            db_bytes: self.db_bytes().load(Ordering::Relaxed),
        }
    }

    /// What all members say of themselves, asked at the same time; who does not answer is missing.
    pub async fn about_members(&self, timeout: Duration) -> BTreeMap<MemberId, About> {
        let asked = self.members().into_iter().map(|(id, member)| async move {
            let about = if id == self.link().id {
                self.about()
            } else {
                self.link().call(Peer { id, member }, Lane::Control, &Call::About, timeout).await.ok()?
            };
            Some((id, about))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Told by whoever measures the data directory.
    pub fn note_db_bytes(&self, bytes: u64) {
        self.db_bytes().store(bytes, Ordering::Relaxed);
    }

    /// Finishes, while this member leads, what an earlier leader left half done. Until Raft ends.
    pub(super) async fn finish_changes(self) {
        let mut seen = None;
        loop {
            tokio::time::sleep(FINISH_LOOK).await;
            let target = {
                let server = self.link().server.borrow_watched();
                let membership = server.membership_config.membership();
                let joint = server.state == ServerState::Leader && membership.get_joint_config().len() > 1;
                joint.then(|| membership.get_joint_config().last().cloned().unwrap_or_default())
            };
            // Seen twice, so that a change that is being made here is left alone.
            if target.is_none() || seen != target {
                seen = target;
                continue;
            }
            let Some(voters) = target else { continue };
            let Ok(_one_at_a_time) = self.membership_lock().try_lock() else { continue };
            tracing::info!("finishing a membership change that an earlier leader began");
            if let Err(failure) = self.submit(ChangeMembers::ReplaceAllVoters(voters)).await {
                tracing::warn!(%failure, "the membership change is not finished yet");
            }
        }
    }

    /// The word of a leader that a quorum follows.
    pub(super) fn has_member(&self, id: MemberId) -> Option<bool> {
        if !self.state().is_followed() {
            return None;
        }
        let server = self.link().server.borrow_watched();
        let known = |nodes: &openraft::alias::StoredMembershipOf<Types>| nodes.get_node(&id).is_some();
        Some(known(&server.membership_config) || known(&server.committed_membership_config))
    }

    /// Waits until a leader says that this member was removed. One that was removed is told nothing
    /// more, so it asks when it hears of no leader.
    pub async fn removed(&self) {
        let own = self.link().id;
        loop {
            tokio::time::sleep(FINISH_LOOK).await;
            let members = self.members();
            if members.len() <= 1 || (self.state().leader.is_some() && members.contains_key(&own)) {
                continue;
            }
            let others = members.into_iter().filter(|(id, _)| *id != own);
            let asked = others.map(|(id, member)| {
                let peer = Peer { id, member };
                async move { self.link().call(peer, Lane::Control, &Call::IsMember(own), FINISH_LOOK).await }
            });
            let told: Vec<Result<Option<bool>, TransportError>> = join_all(asked).await;
            if told.into_iter().any(|told| matches!(told, Ok(Some(false)))) {
                return;
            }
        }
    }

    /// Who votes.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<MemberId> {
        self.link().server.borrow_watched().membership_config.voter_ids().collect()
    }

    /// A member by name or number.
    #[must_use]
    pub fn find_member(&self, id_or_name: &str) -> Option<(MemberId, Member)> {
        let members: BTreeMap<MemberId, Member> = self.members();
        let number = MemberId::from_str_radix(id_or_name, 16).ok();
        let by_name = members.iter().find(|(_, member)| member.name == id_or_name);
        let found = by_name.or_else(|| members.iter().find(|(id, _)| Some(**id) == number));
        found.map(|(id, member)| (*id, member.clone()))
    }
}

fn refused(error: ClientWriteError<Types>) -> Failure {
    match error {
        ClientWriteError::ForwardToLeader(_) => Failure::not_proposed(Why::NoLeader),
        ClientWriteError::ChangeMembershipError(error) => match error {
            ChangeMembershipError::InProgress(_) => Rejection::ChangeInProgress.into(),
            ChangeMembershipError::UncommittedLeaderLog(_) => Failure::not_proposed(Why::NoLeader),
            ChangeMembershipError::LearnerNotFound(missing) => not_found(missing.node_id),
            other => Fault::Invariant(format!("membership change: {other}")).into(),
        },
        ClientWriteError::LogEntryDiscarded(_) => {
            Failure::Unavailable { why: Why::NoLeader, outcome: Outcome::Unknown }
        }
        other => Fault::Invariant(format!("membership change: {other}")).into(),
    }
}

//! Raft and the machine behind it, as the batcher and the barrier see them: here or on the leader.

use super::answer::Answer;
use super::apply::Applier;
use super::barrier::ReadIndex;
use super::batcher::{self, Route};
use super::consensus::Core;
use super::divergence::Agreement;
use super::log_clock::median;
use super::log_store::LogStore;
use super::network::{Call, Forwarded, Lane, Peer, ServerMetrics, Transport, TransportError};
use super::responder::Callback;
use super::stall::HandOver;
use super::types::{LogBatch, Member, MemberId, Types, position};
use crate::env::Clock;
use crate::model::{Failure, LogPosition, Outcome, Why, codec};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::{RaftMetrics, RaftServerMetrics};
use openraft::raft::ClientWriteResult;
use openraft::{Instant, Membership, ServerState};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long the leader may take to confirm a read index for this member.
const READ_INDEX: Duration = Duration::from_secs(2);
/// How long a member may take to tell whether it has heard of a later term; then all are asked again.
const CONFIRM: Duration = Duration::from_millis(500);
/// How long a member may take to tell its wall clock; then all are asked again. The first batch of a term waits for it.
const WALL_CLOCK: Duration = Duration::from_secs(1);

pub(super) struct Link {
    pub(super) id: MemberId,
    pub(super) raft: Core,
    /// Asked with every request: a receiver of one's own each time would be counted by all threads at one place.
    pub(super) server: ServerMetrics,
    pub(super) applier: Arc<Applier>,
    pub(super) log: LogStore,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) heard: Heard,
    /// This member leads, and no quorum has heard it for as long as a leader may be silent.
    pub(super) unheard: AtomicBool,
    pub(super) agreement: Agreement,
}

/// When a leader was last heard here.
pub(super) struct Heard {
    pub(super) clock: Arc<dyn Clock>,
    /// On the monotonic clock, in ms and one more; 0 is never.
    at_ms: AtomicU64,
    /// A leader that is silent for this long is not counted on.
    pub(super) patience: Duration,
}

impl Heard {
    pub(super) fn new(clock: Arc<dyn Clock>, patience: Duration) -> Self {
        Self { clock, at_ms: AtomicU64::new(0), patience }
    }

    pub(super) fn note(&self) {
        self.at_ms.store(millis(self.clock.monotonic()).saturating_add(1), Ordering::Relaxed);
    }

    /// How long ago; `None` if never.
    pub(super) fn age(&self) -> Option<Duration> {
        let at = self.at_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.clock.monotonic().saturating_sub(Duration::from_millis(at)))
    }

    pub(super) fn is_recent(&self) -> bool {
        self.age().is_some_and(|age| age <= self.patience)
    }
}

fn sole_voter(server: &RaftServerMetrics<Types>, id: MemberId) -> bool {
    let mut voters = server.membership_config.voter_ids();
    voters.next() == Some(id) && voters.next().is_none()
}

impl Link {
    /// Nobody else can lead then, so there is no reason to wait for a time-out.
    pub(super) async fn elect_if_alone(&self) {
        let id = self.id;
        let alone = self.raft.with_raft_state(move |state| {
            let mut voters = state.membership_state.effective().voter_ids();
            voters.next() == Some(id) && voters.next().is_none()
        });
        if alone.await.unwrap_or(false) {
            drop(self.raft.trigger().elect(false).await);
        }
    }

    /// Whether nobody else can lead or has led since this member recovered, so that every answered
    /// write was applied here before its answer and a read needs no barrier.
    ///
    /// Raft publishes a membership it appends before it can learn that the entry reached anyone, and
    /// another member can lead only once a joint membership, which this member's vote is part of, was
    /// committed. So a stale "alone" cannot be seen here while another leads.
    pub(super) fn leads_alone(&self) -> bool {
        let server = self.server.borrow_watched();
        server.state == ServerState::Leader && sole_voter(&server, self.id)
    }

    pub(super) fn leads(&self) -> bool {
        self.server.borrow_watched().state == ServerState::Leader
    }

    pub(super) fn route(&self) -> Route {
        let server = self.server.borrow_watched();
        if server.state == ServerState::Leader {
            return Route::Here { term: server.vote.leader_id.term };
        }
        let Some(id) = server.current_leader.filter(|leader| *leader != self.id) else { return Route::Nowhere };
        // One that hangs or is cut off would keep what it is sent, and its fate would be unknown.
        if !self.heard.is_recent() {
            return Route::Nowhere;
        }
        match server.membership_config.membership().get_node(&id) {
            Some(member) => Route::To(Peer { id, member: member.clone() }),
            None => Route::Nowhere,
        }
    }

    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        peer: Peer,
        lane: Lane,
        question: &Call,
        timeout: Duration,
    ) -> Result<T, TransportError> {
        let broken = |fault: crate::model::Fault| TransportError::Failed(fault.to_string());
        let question = codec::encode(question).map_err(broken)?;
        let answer = self.transport.call(peer, lane, question.into(), timeout).await?;
        codec::decode("peer's answer", &answer).map_err(broken)
    }

    pub(super) async fn ask(&self, leader: Peer, question: Bytes, timeout: Duration) -> Result<Bytes, Failure> {
        let question = Call::Ask { question, remaining_ms: millis(timeout) };
        match self.call(leader, Lane::Control, &question, timeout).await {
            Ok(answer) => answer,
            Err(TransportError::Unreachable(_)) => Err(no_leader()),
            Err(TransportError::Failed(_)) => {
                Err(Failure::Unavailable { why: Why::NoLeader, outcome: Outcome::Unknown })
            }
        }
    }

    /// Who leads, as far as anybody can tell here: a leader counts only while it is heard, and this
    /// member only while a quorum hears it.
    pub(super) fn known_leader(
        &self,
        leads: bool,
        leader: Option<MemberId>,
        quorum_age: Option<Duration>,
    ) -> Option<MemberId> {
        let counts =
            if leads { quorum_age.is_some_and(|age| age <= self.heard.patience) } else { self.heard.is_recent() };
        leader.filter(|_| counts)
    }
}

/// How long ago a quorum heard the leader, which this member is.
pub(super) fn quorum_age(metrics: &RaftMetrics<Types>) -> Option<Duration> {
    let alone = metrics.state == ServerState::Leader && metrics.membership_config.voter_ids().count() == 1;
    if alone { Some(Duration::ZERO) } else { metrics.last_quorum_acked.as_ref().map(|at| at.elapsed()) }
}

impl HandOver for Link {
    async fn hand_over(&self) -> bool {
        let Some(heir) = self.heirs().first().copied() else { return false };
        self.raft.trigger().transfer_leader(heir).await.is_ok()
    }
}

impl batcher::Log for Link {
    async fn write(&self, batch: LogBatch, answer: Callback<ClientWriteResult<Types>>) {
        // If Raft has ended, the callback is dropped and its proposals answer for themselves.
        drop(self.raft.client_write_ff(batch, Some(answer)).await);
    }

    fn applied_ms(&self) -> u64 {
        self.applier.progress().now_ms
    }

    async fn agreed_wall_ms(&self, own_ms: u64) -> Option<u64> {
        let others = self.other_voters(self.server.borrow_watched().membership_config.membership());
        let quorum = others.len().div_ceil(2) + 1;
        let asked = others.into_iter().map(|peer| self.call::<u64>(peer, Lane::Control, &Call::WallClock, WALL_CLOCK));
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut walls_ms = vec![own_ms];
        while walls_ms.len() < quorum {
            if let Ok(wall_ms) = asked.next().await? {
                walls_ms.push(wall_ms);
            }
        }
        median(walls_ms)
    }

    fn route(&self) -> Route {
        self.route()
    }

    async fn forward(&self, to: Peer, batch: Vec<Forwarded>, timeout: Duration) -> Result<Vec<Answer>, TransportError> {
        self.call(to, Lane::Append, &Call::Propose(batch), timeout).await
    }
}

impl Link {
    /// The leader's own word that it leads, newer than the call, and up to where was committed at the call.
    /// ReadIndex of Ongaro's dissertation, 6.4.
    ///
    /// openraft's own takes an answer to an append for one to every later append that brought nothing new, so that
    /// an answer that comes late confirms a leader that has been replaced.
    async fn read_index(&self) -> Result<u64, Failure> {
        // Asked of Raft itself: what others are told of next may not be in its metrics yet.
        let state = self.raft.with_raft_state(|state| {
            let leads = state.server_state == ServerState::Leader;
            let (term, committed) = (state.vote_ref().leader_id.term, state.cluster_committed().map(position));
            leads.then(|| (term, committed, state.membership_state.effective().clone()))
        });
        let Ok(state) = state.await else { return Err(Failure::not_proposed(Why::ShuttingDown)) };
        let Some((term, committed, membership)) = state else { return Err(no_leader()) };
        // Before an entry of its term is committed, a leader does not know what those before it have committed; nor
        // does one that has been started again and goes on in its term, before all that its log then held is.
        let recovered = self.log.recovered_in(term);
        let knows_all = |at: &LogPosition| at.term == term && recovered.is_none_or(|last| at.index >= last);
        let Some(committed) = committed.filter(knows_all) else { return Err(no_leader()) };
        match self.is_latest(term, membership.membership()).await {
            true => Ok(committed.index),
            false => Err(no_leader()),
        }
    }

    fn other_voters(&self, membership: &Membership<MemberId, Member>) -> Vec<Peer> {
        let voters = membership.voter_ids().filter(|id| *id != self.id);
        voters.filter_map(|id| Some(Peer { id, member: membership.get_node(&id)?.clone() })).collect()
    }

    /// Whether a quorum, asked now, has heard of no later term: then nobody has led in one before the call.
    async fn is_latest(&self, term: u64, membership: &Membership<MemberId, Member>) -> bool {
        let asked = self.other_voters(membership).into_iter().map(|peer| async move {
            (peer.id, self.call(peer, Lane::Control, &Call::IsLatestTerm(term), CONFIRM).await)
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut agreed = BTreeSet::new();
        if self.log.term() <= term {
            agreed.insert(self.id);
        }
        let majorities = membership.get_joint_config();
        while majorities.iter().any(|voters| voters.intersection(&agreed).count() * 2 <= voters.len()) {
            match asked.next().await {
                Some((id, Ok(true))) => drop(agreed.insert(id)),
                Some((_, Ok(false))) | None => return false,
                Some((_, Err(_))) => {}
            }
        }
        true
    }

    /// The planted bug: openraft's own confirmation.
    #[cfg(feature = "mutants")]
    pub(super) async fn confirm_by_any_answer(&self) -> Result<(), Failure> {
        let confirmed = self.raft.get_read_log_id(openraft::ReadPolicy::ReadIndex).await;
        let (read, _) = confirmed.map_err(|_| no_leader())?;
        self.applied(read.index()).await.map(drop)
    }

    pub(super) async fn applied(&self, index: u64) -> Result<u64, Failure> {
        if self.applier.progress().covers(index) {
            return Ok(index);
        }
        let mut progress = self.applier.watch();
        match progress.wait_for(|progress| progress.covers(index)).await {
            Ok(_) => Ok(index),
            Err(_) => Err(Failure::not_proposed(Why::ShuttingDown)),
        }
    }
}

impl ReadIndex for Link {
    async fn confirm(&self) -> Result<u64, Failure> {
        let index = self.read_index().await?;
        self.applied(index).await
    }

    fn hopeful(&self) -> bool {
        self.leads()
    }
}

/// The read barrier of a member that does not lead.
pub(super) struct Remote(pub(super) Arc<Link>);

impl ReadIndex for Remote {
    async fn confirm(&self) -> Result<u64, Failure> {
        let index = match self.0.route() {
            // It has become the leader since it was asked.
            Route::Here { .. } => self.0.read_index().await?,
            Route::To(leader) => {
                let question = Call::ReadIndex { remaining_ms: millis(READ_INDEX) };
                // A read index that is lost on its way changes nothing: it can be asked for again.
                let answer: Result<u64, Failure> =
                    self.0.call(leader, Lane::Control, &question, READ_INDEX).await.map_err(|_| no_leader())?;
                // Whatever keeps it from answering may be gone, or have passed the lead on, a moment later.
                answer.map_err(|_| no_leader())?
            }
            Route::Nowhere => return Err(no_leader()),
        };
        self.0.applied(index).await
    }

    fn hopeful(&self) -> bool {
        true
    }
}

fn no_leader() -> Failure {
    Failure::not_proposed(Why::NoLeader)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

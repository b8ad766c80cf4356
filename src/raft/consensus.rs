//! The handle on one member's consensus: start, propose, read, and the state it is in.
//!
//! Start restores the machine from the newest snapshot that verifies, checks that log and snapshot
//! fit together *before* Raft sees them (it would silently drop log), and then lets Raft apply the
//! log's committed tail. Invariant: nothing is proposed or read through here before that is done.

use super::apply::{Applier, ApplierOptions, Fatal, Progress, Publisher, StateMachine};
use super::barrier::{Barrier, ReadIndex};
use super::batcher::{self, Batcher};
use super::log_store::LogStore;
use super::network::{Network, Transport};
use super::responder::Callback;
use super::snapshots::{self, Snapshots};
use super::stall::{self, DiskStall, HandOver};
use super::types::{LogBatch, Member, MemberId, Types};
use super::{config, trimmer};
use crate::env::{Clock, TaskSet};
use crate::machine::{self, Machine, Outcome, Reader};
use crate::model::{Failure, Fault, LogPosition, Proposal, Why};
use crate::storage::blocks::BlockStore;
use crate::storage::mutant::Mutant;
use crate::storage::snapshot::SnapshotStore;
use crate::storage::wal::{Recovered, Wal};
use crate::telemetry::metrics::Metrics;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, LinearizableReadError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::raft::ClientWriteResult;
use openraft::{Instant, Raft, ReadPolicy, ServerState};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::watch;

/// How long shutdown waits for another member to take the lead.
const HANDOVER: Duration = Duration::from_secs(1);

/// One member's settings.
#[derive(Debug, Clone)]
pub struct Options {
    pub id: MemberId,
    /// The cluster that snapshots must be of.
    pub cluster_id: u64,
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
    /// A snapshot is taken when the log has grown by this much since the last one, or by half of
    /// the last snapshot's size if that is more.
    pub snapshot_log_bytes: u64,
    /// Tells whether the log's disk hangs; `None`: nobody looks.
    pub disk: Option<DiskStall>,
    /// A planted bug, for the tests that must find it.
    pub mutant: Option<Mutant>,
}

impl Options {
    #[must_use]
    pub fn new(id: MemberId) -> Self {
        Self {
            id,
            cluster_id: 0,
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(600),
            snapshot_log_bytes: 64 << 20,
            disk: None,
            mutant: crate::storage::mutant::active(),
        }
    }
}

/// Makes an empty block store over a fresh engine.
pub type NewStore = Arc<dyn Fn() -> Result<Arc<BlockStore>, Fault> + Send + Sync>;

/// What consensus is built from.
pub struct Parts {
    pub wal: Wal,
    pub recovered: Recovered,
    pub snapshots: SnapshotStore,
    pub new_store: NewStore,
    pub machine: machine::Options,
    pub transport: Arc<dyn Transport>,
    pub publisher: Arc<dyn Publisher>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub tasks: TaskSet,
    pub fatal: Fatal,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Why a member does not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(
        "the snapshot reaches entry {snapshot} but the log ends at {last}: the log has lost entries that were \
         applied. This member must not rejoin under its identity; a member without peers can be brought back \
         with `tenure recover`"
    )]
    AppliedBeyondLog { snapshot: u64, last: u64 },
    #[error(
        "the log begins at entry {first}, but no snapshot that verifies reaches that far (the newest: {snapshot:?}): \
         the entries between are lost on this member"
    )]
    LogBeginsTooLate { first: u64, snapshot: Option<u64> },
}

/// What is known of this member's part in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub id: MemberId,
    pub term: u64,
    pub leader: Option<MemberId>,
    pub leader_member: Option<Member>,
    pub is_leader: bool,
    /// Neither votes nor leads.
    pub is_learner: bool,
    pub last_log: Option<u64>,
    pub committed: Option<u64>,
    pub applied: Option<u64>,
    pub snapshot: Option<u64>,
    pub purged: Option<u64>,
    /// For a leader: since a quorum last confirmed it. The state alone says nothing: an isolated
    /// leader stays one in its own eyes.
    pub millis_since_quorum_ack: Option<u64>,
    /// What this member had durably logged before its start is committed and applied.
    pub recovered: bool,
}

pub(super) type Core = Raft<Types, StateMachine>;

/// A cheap handle.
#[derive(Clone)]
pub struct Consensus(Arc<Inner>);

struct Inner {
    options: Options,
    link: Arc<Link>,
    snapshots: Arc<Snapshots>,
    batcher: Batcher,
    barrier: Barrier,
    recovered: watch::Receiver<bool>,
    leading: watch::Receiver<Option<u64>>,
    /// Raft may end now.
    ending: Arc<AtomicBool>,
    wal: Wal,
    tasks: TaskSet,
}

/// Raft and the machine behind it, as the batcher and the barrier see them.
struct Link {
    id: MemberId,
    raft: Core,
    applier: Arc<Applier>,
}

impl fmt::Debug for Consensus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consensus").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Consensus {
    /// # Errors
    /// If log and snapshots cannot be read or do not fit together.
    pub async fn start(options: Options, parts: Parts) -> Result<Self, StartError> {
        let Parts { wal, recovered, snapshots, new_store, machine, transport, publisher, clock, metrics, tasks, fatal } =
            parts;
        let raft_config = config::build(&options)?;
        let log = LogStore::new(wal.clone(), &recovered)?;
        let snapshots = Snapshots::new(
            &options,
            snapshots,
            snapshots::Restorer { new_store, machine },
            tasks.clone(),
            clock.clone(),
            metrics.clone(),
        );
        let (restored, from_leader) = snapshots.restore_newest().await?;
        check_fit(&log, &restored.machine, from_leader)?;
        let applier = Arc::new(Applier::new(
            restored,
            ApplierOptions {
                flushed: log.flushed().clone(),
                mutant: options.mutant,
                publisher,
                clock: clock.clone(),
                metrics: metrics.clone(),
                fatal: fatal.clone(),
            },
        ));
        let state_machine = StateMachine { applier: applier.clone(), snapshots: snapshots.clone() };
        let raft = Raft::new(options.id, raft_config, Network::new(transport), log, state_machine)
            .await
            .map_err(|error| Fault::Invariant(format!("raft did not start: {error}")))?;
        let link = Arc::new(Link { id: options.id, raft: raft.clone(), applier: applier.clone() });
        link.elect_if_alone().await;
        let batcher = Batcher::start(link.clone(), clock.clone(), metrics.clone(), &tasks);
        let barrier = Barrier::start(link.clone(), 2 * options.election_max, &tasks);
        let recovered = spawn_recovery(&raft, &tasks);
        tasks.spawn_until_stop("trimmer", trimmer::run(applier, clock, tasks.clone()));
        tasks.spawn_until_stop("snapshot keeper", snapshots.clone().keep(raft.clone()));
        if let Some(disk) = options.disk.clone() {
            tasks.spawn_until_stop("stall watch", stall::watch(disk, link.clone(), metrics.clone(), fatal.clone()));
        }
        let ending = Arc::new(AtomicBool::new(false));
        let (lead, leading) = watch::channel(None);
        tasks.spawn_until_stop("raft watch", observe(raft, metrics, lead, ending.clone(), fatal));
        Ok(Self(Arc::new(Inner { options, link, snapshots, batcher, barrier, recovered, leading, ending, wal, tasks })))
    }

    /// Makes this member the first and only one of a new cluster. Once in a cluster's life: by the
    /// node when its data directory is fresh and it was told to, never at a later start.
    ///
    /// # Errors
    /// A fault if there is a log already.
    pub async fn bootstrap(&self, member: Member) -> Result<(), Fault> {
        let members = BTreeMap::from([(self.0.options.id, member)]);
        match self.0.link.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                Err(Fault::Invariant("this member has a log already: it must not begin a new cluster".into()))
            }
            Err(error) => Err(Fault::Invariant(format!("bootstrap: {error}"))),
        }
    }

    /// Waits until this member may serve: all that was in its log is committed and applied.
    pub async fn wait_recovered(&self, timeout: Duration) -> bool {
        let mut recovered = self.0.recovered.clone();
        let wait = recovered.wait_for(|recovered| *recovered);
        tokio::time::timeout(timeout, wait).await.is_ok_and(|result| result.is_ok())
    }

    /// Proposes a command and waits for its outcome, at most `timeout` from now. Dropping the future
    /// does not take back what has been proposed.
    ///
    /// # Errors
    /// `NotProposed` only if Raft has not appended it and never will.
    pub async fn propose(&self, proposal: &Proposal, timeout: Duration) -> Result<Outcome, Failure> {
        self.ensure_able()?;
        self.0.batcher.propose(proposal, timeout).await
    }

    /// After this, `reader` reflects every write that was answered, anywhere, before the call.
    ///
    /// # Errors
    /// If leadership is not confirmed in time.
    pub async fn read_barrier(&self, timeout: Duration) -> Result<(), Failure> {
        self.ensure_able()?;
        if self.0.link.leads_alone() {
            return Ok(());
        }
        self.0.barrier.wait(timeout).await
    }

    /// Recovered, and with a disk that answers: else nothing that needs the log is begun here.
    fn ensure_able(&self) -> Result<(), Failure> {
        if !*self.0.recovered.borrow() {
            return Err(Failure::not_proposed(Why::NotReady));
        }
        match self.disk_stalled() {
            Some(_) => Err(Failure::not_proposed(Why::DiskStalled)),
            None => Ok(()),
        }
    }

    /// For how long the log's disk has not answered, if that is longer than it may.
    #[must_use]
    pub fn disk_stalled(&self) -> Option<Duration> {
        self.0.options.disk.as_ref().and_then(DiskStall::stalled)
    }

    /// Reads what is applied here, now and from now on.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.0.link.applier.reader()
    }

    /// The term in which this member leads, now and from now on; `None` while another does or nobody.
    #[must_use]
    pub fn leading(&self) -> watch::Receiver<Option<u64>> {
        self.0.leading.clone()
    }

    /// How far this member has applied, now and from now on.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Progress> {
        self.0.link.applier.watch()
    }

    /// The term, and who leads in it: the part of `state` that every answer carries.
    #[must_use]
    pub fn leadership(&self) -> (u64, Option<MemberId>) {
        let server = self.0.link.raft.server_metrics();
        let server = server.borrow_watched();
        (server.vote.leader_id.term, server.current_leader)
    }

    #[must_use]
    pub fn state(&self) -> State {
        let metrics = self.0.link.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let alone = metrics.state == ServerState::Leader && membership.voter_ids().count() == 1;
        let quorum_acked = metrics.last_quorum_acked.as_ref().map(|at| at.elapsed());
        State {
            id: metrics.id,
            term: metrics.current_term,
            leader: metrics.current_leader,
            leader_member: metrics.current_leader.and_then(|leader| membership.get_node(&leader).cloned()),
            is_leader: metrics.state == ServerState::Leader,
            is_learner: metrics.state == ServerState::Learner,
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index),
            applied: self.0.link.applier.progress().applied.map(|at| at.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            millis_since_quorum_ack: if alone {
                Some(0)
            } else {
                quorum_acked.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
            },
            recovered: *self.0.recovered.borrow(),
        }
    }

    /// The members, with their ids.
    #[must_use]
    pub fn members(&self) -> BTreeMap<MemberId, Member> {
        let metrics = self.0.link.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.nodes().map(|(id, member)| (*id, member.clone())).collect()
    }

    /// Asks for a snapshot now, besides the schedule, and waits until it is written or `timeout`.
    ///
    /// # Errors
    /// If it is not written in time.
    pub async fn trigger_snapshot(&self, timeout: Duration) -> Result<LogPosition, Failure> {
        self.0.snapshots.now(&self.0.link.raft, &self.0.link.applier, timeout).await
    }

    /// Hands leadership over if anyone is there to take it, then ends Raft and closes the log.
    /// Proposals on their way end as unknown.
    pub async fn shutdown(&self) {
        let link = &self.0.link;
        let mut server = link.raft.server_metrics();
        if link.hand_over().await {
            let handed_over = async {
                while server.borrow_watched().state == ServerState::Leader {
                    if server.changed().await.is_err() {
                        return;
                    }
                }
            };
            drop(tokio::time::timeout(HANDOVER, handed_over).await);
        }
        self.0.ending.store(true, Ordering::SeqCst);
        drop(link.raft.shutdown().await);
        let wal = self.0.wal.clone();
        self.0.tasks.blocking(move || wal.close()).await;
    }

    pub(super) fn raft(&self) -> &Core {
        &self.0.link.raft
    }

    pub(super) fn snapshots(&self) -> &Arc<Snapshots> {
        &self.0.snapshots
    }
}

/// State never runs ahead of the log on disk, so a snapshot beyond the log's end means that the log
/// has lost entries. A snapshot received from a leader is the exception: it replaces a log that was
/// behind it, and a crash may come between the two.
fn check_fit(log: &LogStore, machine: &Machine, from_leader: bool) -> Result<(), StartError> {
    let snapshot = machine.applied().map(|at| at.index);
    let last = log.last().map(|at| at.index);
    if let Some(purged) = log.purged().map(|at| at.index)
        && snapshot.is_none_or(|snapshot| snapshot < purged)
    {
        return Err(StartError::LogBeginsTooLate { first: purged + 1, snapshot });
    }
    if let Some(snapshot) = snapshot
        && last.is_none_or(|last| last < snapshot)
        && !from_leader
    {
        return Err(StartError::AppliedBeyondLog { snapshot, last: last.unwrap_or(0) });
    }
    Ok(())
}

fn spawn_recovery(raft: &Core, tasks: &TaskSet) -> watch::Receiver<bool> {
    let (done, recovered) = watch::channel(false);
    let raft = raft.clone();
    tasks.spawn_until_stop("recovery", async move {
        // An error is the end of Raft: then this member never becomes ready.
        if raft.wait_for_recovery(None).await.is_ok() {
            done.send_replace(true);
        }
        done.closed().await;
    });
    recovered
}

/// Keeps the metrics of leadership, and sees to it that a member whose Raft has ended does not live on.
async fn observe(
    raft: Core,
    metrics: Metrics,
    lead: watch::Sender<Option<u64>>,
    ending: Arc<AtomicBool>,
    fatal: Fatal,
) {
    let mut server = raft.server_metrics();
    let mut known = None;
    loop {
        let (leader, leads, term) = {
            let server = server.borrow_watched();
            (server.current_leader, server.state == ServerState::Leader, server.vote.leader_id().term)
        };
        let term = leads.then_some(term);
        lead.send_if_modified(|leading| std::mem::replace(leading, term) != term);
        metrics.has_leader.set(i64::from(leader.is_some()));
        metrics.is_leader.set(i64::from(leads));
        if leader.is_some() && leader != known {
            metrics.leader_changes.inc();
            known = leader;
        }
        if server.changed().await.is_err() {
            break;
        }
    }
    if !ending.load(Ordering::SeqCst) {
        let why = raft.metrics().borrow_watched().running_state.clone();
        let why = why.map_or_else(|error| error.to_string(), |()| "for no known reason".into());
        fatal(&Fault::Invariant(format!("raft has ended: {why}")));
    }
}

fn sole_voter(server: &RaftServerMetrics<Types>, id: MemberId) -> bool {
    let mut voters = server.membership_config.voter_ids();
    voters.next() == Some(id) && voters.next().is_none()
}

impl Link {
    /// Nobody else can lead then, so there is no reason to wait for a time-out.
    async fn elect_if_alone(&self) {
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
    fn leads_alone(&self) -> bool {
        let server = self.raft.server_metrics();
        let server = server.borrow_watched();
        server.state == ServerState::Leader && sole_voter(&server, self.id)
    }

    /// A voter to hand leadership to, if this member leads.
    fn heir(&self) -> Option<MemberId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref()?;
        let others = metrics.membership_config.voter_ids().filter(|id| *id != self.id);
        others.max_by_key(|id| replication.get(id).and_then(|at| at.as_ref().map(|at| at.index)))
    }
}

impl HandOver for Link {
    async fn hand_over(&self) -> bool {
        let Some(heir) = self.heir() else { return false };
        self.raft.trigger().transfer_leader(heir).await.is_ok()
    }
}

impl batcher::Log for Link {
    async fn write(&self, batch: LogBatch, answer: Callback<ClientWriteResult<Types>>) {
        // If Raft has ended, the callback is dropped and its proposals answer for themselves.
        drop(self.raft.client_write_ff(batch, Some(answer)).await);
    }

    fn term_and_time(&self) -> (u64, u64) {
        let term = self.raft.metrics().borrow_watched().current_term;
        (term, self.applier.progress().now_ms)
    }
}

impl ReadIndex for Link {
    async fn confirm(&self) -> Result<(), Failure> {
        let (read, _) = match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok(found) => found,
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
                return Err(Failure::not_proposed(Why::NoLeader));
            }
            Err(RaftError::APIError(_)) => return Err(Failure::not_proposed(Why::NoLeader)),
            Err(RaftError::Fatal(_)) => return Err(Failure::not_proposed(Why::ShuttingDown)),
        };
        let index = read.index();
        if self.applier.progress().covers(index) {
            return Ok(());
        }
        let mut progress = self.applier.watch();
        match progress.wait_for(|progress| progress.covers(index)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::not_proposed(Why::ShuttingDown)),
        }
    }
}

//! The handle on one member's consensus: start, propose, read, and the state it is in.
//!
//! Start restores the machine from the newest snapshot that verifies, checks that log and snapshot
//! fit together *before* Raft sees them (it would silently drop log), and then lets Raft apply the
//! log's committed tail. Invariant: nothing is proposed or read through here before that is done.

use super::apply::{Applier, ApplierOptions, Fatal, Progress, Publisher, StateMachine};
use super::barrier::Barrier;
use super::batcher::{Batcher, Route};
use super::divergence::Agreement;
use super::link::{Heard, Link, Remote, millis, quorum_age};
use super::log_store::LogStore;
use super::network::{Directory, Network, Transport};
use super::snapshots::{self, Snapshots};
use super::stall::{self, DiskStall};
use super::types::{LogId, Member, MemberId, Types};
use super::{config, trimmer};
use crate::env::{Clock, TaskSet};
use crate::machine::{self, Machine, Outcome, Reader};
use crate::model::{self, Failure, Fault, LogPosition, Proposal, Why};
use crate::storage::blocks::BlockStore;
use crate::storage::mutant::{self, Mutant};
use crate::storage::snapshot::SnapshotStore;
use crate::storage::wal::{Recovered, Wal};
use crate::telemetry::metrics::Metrics;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::{Raft, ServerState};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::watch;

/// How many of the longest election timeouts a read barrier waits for a leader.
const BARRIER_PATIENCE: u32 = 4;
/// How many of the longest election timeouts a leader may be silent before it is not counted on.
const LEADER_SILENCE: u32 = 2;
/// How often in the longest election timeout a member that ends looks whether there is a leader.
const FORSAKEN_LOOKS: u32 = 8;
/// How long tasks that were told to end may take to.
const ENDED: Duration = Duration::from_secs(1);
/// Before a question to the leader is asked again, because none was there.
const ASK_PAUSE: Duration = Duration::from_millis(10);

/// Answers questions of members to their leader, within the time given.
pub type LeaderHandler = Arc<dyn Fn(Bytes, Duration) -> BoxFuture<'static, Result<Bytes, Failure>> + Send + Sync>;

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
    /// Since this member last knew itself up to date: since its leader was heard, or a quorum heard it.
    pub millis_since_leader_heard: Option<u64>,
    /// What this member had durably logged before its start is committed and applied.
    pub recovered: bool,
}

impl State {
    /// It leads, and a quorum hears it.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.leader == Some(self.id)
    }
}

pub(super) type Core = Raft<Types, StateMachine>;

/// A cheap handle.
#[derive(Clone)]
pub struct Consensus(Arc<Inner>);

/// A member by its name in the membership of that entry.
struct NamedLeader {
    id: MemberId,
    membership: Option<LogId>,
    name: Arc<str>,
}

struct Inner {
    options: Options,
    link: Arc<Link>,
    snapshots: Arc<Snapshots>,
    batcher: Batcher,
    /// For when this member leads: also for the readers of others.
    barrier: Barrier,
    /// For when another does.
    remote_barrier: Barrier,
    /// Answers the questions that members ask their leader.
    leader_handler: OnceLock<LeaderHandler>,
    /// Held while this member changes the membership.
    membership: tokio::sync::Mutex<()>,
    db_bytes: AtomicU64,
    recovered: watch::Receiver<bool>,
    leading: watch::Receiver<Option<u64>>,
    /// The name of who led last, as of that membership: answers carry it.
    leader_name: Mutex<Option<NamedLeader>>,
    /// It is not to be asked to lead any more.
    leaving: AtomicBool,
    /// Raft may end now.
    ending: Arc<AtomicBool>,
    wal: Wal,
    metrics: Metrics,
    tasks: TaskSet,
    /// The batcher and the barriers. Requests are answered until the end, so they outlast `tasks`.
    answering: TaskSet,
    #[cfg(feature = "mutants")]
    lease_until_ms: AtomicU64,
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
        let agreement = Agreement::new(snapshots.was_suspect()?);
        check_fit(&log, &restored.machine, from_leader)?;
        let applier = Arc::new(Applier::new(
            restored,
            ApplierOptions {
                flushed: log.flushed().clone(),
                tail: snapshots.tail().clone(),
                mutant: options.mutant,
                publisher,
                clock: clock.clone(),
                metrics: metrics.clone(),
                fatal: fatal.clone(),
            },
        ));
        let state_machine = StateMachine { applier: applier.clone(), snapshots: snapshots.clone() };
        let directory = Directory::default();
        let network = Network::new(transport.clone(), directory.clone(), log.clone());
        let raft = Raft::new(options.id, raft_config, network, log.clone(), state_machine)
            .await
            .map_err(|error| Fault::Invariant(format!("raft did not start: {error}")))?;
        directory.open(raft.server_metrics());
        let heard = Heard::new(clock.clone(), LEADER_SILENCE * options.election_max);
        let (id, applying) = (options.id, applier.clone());
        let (raft_of, server) = (raft.clone(), raft.server_metrics());
        let unheard = AtomicBool::new(false);
        let link =
            Arc::new(Link { id, raft: raft_of, server, applier: applying, log, transport, heard, unheard, agreement });
        link.elect_if_alone().await;
        let answering = TaskSet::new();
        let batcher = Batcher::start(link.clone(), clock.clone(), metrics.clone(), &answering);
        let patience = BARRIER_PATIENCE * options.election_max;
        let barrier = Barrier::start(link.clone(), patience, &answering);
        let remote_barrier = Barrier::start(Arc::new(Remote(link.clone())), patience, &answering);
        let recovered = spawn_recovery(&raft, &tasks);
        tasks.spawn_until_stop("trimmer", trimmer::run(applier, clock, tasks.clone()));
        tasks.spawn_until_stop("snapshot keeper", snapshots.clone().keep(raft.clone()));
        if let Some(disk) = options.disk.clone() {
            tasks.spawn_until_stop("stall watch", stall::watch(disk, link.clone(), metrics.clone(), fatal.clone()));
        }
        let ending = Arc::new(AtomicBool::new(false));
        let (lead, leading) = watch::channel(None);
        tasks.spawn_until_stop(
            "raft watch",
            observe(link.clone(), options.heartbeat, metrics.clone(), lead, ending.clone(), fatal),
        );
        let consensus = Self(Arc::new(Inner {
            options,
            link,
            snapshots,
            batcher,
            barrier,
            remote_barrier,
            leader_handler: OnceLock::new(),
            membership: tokio::sync::Mutex::new(()),
            db_bytes: AtomicU64::new(0),
            recovered,
            leading,
            leader_name: Mutex::new(None),
            leaving: AtomicBool::new(false),
            ending,
            wal,
            metrics,
            tasks,
            answering,
            #[cfg(feature = "mutants")]
            lease_until_ms: AtomicU64::new(0),
        }));
        consensus.0.tasks.spawn_until_stop("membership", consensus.clone().finish_changes());
        consensus.0.tasks.spawn_until_stop("comparison", consensus.clone().compare_states());
        consensus.0.tasks.spawn_until_stop("staged backups", consensus.clone().fetch_staged());
        consensus.0.tasks.spawn_until_stop("repair", consensus.clone().repair());
        Ok(consensus)
    }

    /// Makes these the voters of a new cluster, this member among them. Once in a cluster's life: by
    /// the member that founds it, when its data directory is fresh, never at a later start.
    ///
    /// # Errors
    /// A fault if there is a log already.
    pub async fn bootstrap(&self, members: BTreeMap<MemberId, Member>) -> Result<(), Fault> {
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
        self.ensure_writable()?;
        self.0.batcher.propose(proposal, timeout).await
    }

    /// After this, `reader` reflects every write that was answered, anywhere, before the call.
    ///
    /// # Errors
    /// If leadership is not confirmed in time.
    pub async fn read_barrier(&self, timeout: Duration) -> Result<(), Failure> {
        self.ensure_able()?;
        if self.0.link.leads_alone() || mutant::is_active(Mutant::LocalReads) {
            return Ok(());
        }
        #[cfg(feature = "mutants")]
        if mutant::is_active(Mutant::LeaseReadsOnWallClock) {
            return self.barrier_by_wall_clock(timeout).await;
        }
        #[cfg(feature = "mutants")]
        if mutant::is_active(Mutant::LateAnswersConfirm) && self.0.link.leads() {
            let confirmed = tokio::time::timeout(timeout, self.0.link.confirm_by_any_answer()).await;
            return confirmed.unwrap_or(Err(Failure::not_proposed(Why::Timeout)));
        }
        let barrier = if self.0.link.leads() { &self.0.barrier } else { &self.0.remote_barrier };
        barrier.wait(timeout).await.map(drop)
    }

    /// The planted bug: a lease that the wall clock measures.
    #[cfg(feature = "mutants")]
    async fn barrier_by_wall_clock(&self, timeout: Duration) -> Result<(), Failure> {
        let wall_ms = self.clock().wall_ms();
        let (leads, until_ms) = (self.0.link.leads(), self.0.lease_until_ms.load(Ordering::SeqCst));
        if leads && wall_ms < until_ms {
            return Ok(());
        }
        let barrier = if leads { &self.0.barrier } else { &self.0.remote_barrier };
        barrier.wait(timeout).await?;
        let lease_ms = if leads { millis(self.0.options.election_max) } else { 0 };
        self.0.lease_until_ms.store(wall_ms + lease_ms, Ordering::SeqCst);
        Ok(())
    }

    /// As `read_barrier`, and after it this member has led at some time since the call. It is never
    /// passed on: for what is decided by the leader's own clock.
    ///
    /// # Errors
    /// If this member does not lead.
    pub async fn leader_barrier(&self, timeout: Duration) -> Result<(), Failure> {
        self.read_index(timeout).await.map(drop)
    }

    /// Registers who answers `ask_leader` while this member leads. Once.
    pub fn answer_as_leader(&self, handler: LeaderHandler) {
        self.0.leader_handler.get_or_init(|| handler);
    }

    /// Asks whoever leads a question of a layer above, here or over there, and gives its answer.
    /// Until the question has been sent, another leader is waited for.
    ///
    /// # Errors
    /// The handler's own, or that no leader could be asked; unknown if the answer was lost.
    pub async fn ask_leader(&self, question: Bytes, timeout: Duration) -> Result<Bytes, Failure> {
        let asking = async {
            loop {
                let failure = match self.0.link.route() {
                    Route::Here { .. } => self.answer_question(question.clone(), timeout).await,
                    Route::To(leader) => self.0.link.ask(leader, question.clone(), timeout).await,
                    Route::Nowhere => Err(Failure::not_proposed(Why::NoLeader)),
                };
                match failure {
                    Err(Failure::Unavailable { why: Why::NoLeader, outcome: model::Outcome::NotProposed }) => {
                        tokio::time::sleep(ASK_PAUSE).await;
                    }
                    settled => return settled,
                }
            }
        };
        let asked = tokio::time::timeout(timeout, asking).await;
        asked.unwrap_or(Err(Failure::Unavailable { why: Why::Timeout, outcome: model::Outcome::Unknown }))
    }

    /// Answers a question as the leader; refuses if this member is not.
    pub(super) async fn answer_question(&self, question: Bytes, timeout: Duration) -> Result<Bytes, Failure> {
        self.ensure_able()?;
        match self.0.leader_handler.get() {
            Some(handler) if self.0.link.leads() => handler(question, timeout).await,
            _ => Err(Failure::not_proposed(Why::NoLeader)),
        }
    }

    /// The leader's part of a read barrier for another member.
    pub(super) async fn read_index(&self, timeout: Duration) -> Result<u64, Failure> {
        self.ensure_able()?;
        if !self.0.link.leads() {
            return Err(Failure::not_proposed(Why::NoLeader));
        }
        if self.0.link.leads_alone() {
            // All that was answered is applied here.
            let applied = self.0.link.applier.progress().applied;
            return applied.map(|at| at.index).ok_or(Failure::not_proposed(Why::NotReady));
        }
        self.0.barrier.wait(timeout).await
    }

    /// Its leader has just been heard.
    pub(super) fn note_leader_heard(&self) {
        self.0.link.heard.note();
    }

    pub(super) fn batcher(&self) -> &Batcher {
        &self.0.batcher
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.link.heard.clock
    }

    /// What the membership knows of one member.
    #[must_use]
    pub fn member(&self, id: MemberId) -> Option<Member> {
        let metrics = self.0.link.server.borrow_watched();
        metrics.membership_config.membership().get_node(&id).cloned()
    }

    pub(super) fn tasks(&self) -> &TaskSet {
        &self.0.tasks
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Able, and with a state that nobody doubts.
    pub(super) fn ensure_writable(&self) -> Result<(), Failure> {
        self.ensure_able()?;
        match self.standing().may_write() {
            true => Ok(()),
            false => Err(Failure::not_proposed(Why::Diverged)),
        }
    }

    /// Recovered, and with a disk that answers: else nothing that needs the log is begun here.
    pub(super) fn ensure_able(&self) -> Result<(), Failure> {
        if !*self.0.recovered.borrow() {
            return Err(Failure::not_proposed(Why::NotReady));
        }
        if !self.standing().may_serve() {
            return Err(Failure::not_proposed(Why::Diverged));
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
        let (link, server) = (&self.0.link, self.0.link.server.borrow_watched());
        let counts = |leader: &MemberId| *leader != link.id || !link.unheard.load(Ordering::Relaxed);
        (server.vote.leader_id.term, server.current_leader.filter(counts))
    }

    /// The name of another member that leads, while it is heard.
    #[must_use]
    pub fn leader_name(&self) -> Option<Arc<str>> {
        let server = self.0.link.server.borrow_watched();
        let leader = server.current_leader.filter(|_| self.0.link.heard.is_recent())?;
        let membership = *server.membership_config.log_id();
        let mut known = self.0.leader_name.lock();
        if let Some(known) = &*known
            && (known.id, known.membership) == (leader, membership)
        {
            return Some(Arc::clone(&known.name));
        }
        let name: Arc<str> = server.membership_config.membership().get_node(&leader)?.name.as_str().into();
        *known = Some(NamedLeader { id: leader, membership, name: Arc::clone(&name) });
        Some(name)
    }

    #[must_use]
    pub fn state(&self) -> State {
        let metrics = self.0.link.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let quorum_acked = quorum_age(&metrics);
        let leads = metrics.state == ServerState::Leader;
        let leader = self.0.link.known_leader(leads, metrics.current_leader, quorum_acked);
        State {
            id: metrics.id,
            term: metrics.current_term,
            leader,
            leader_member: leader.and_then(|leader| membership.get_node(&leader).cloned()),
            is_leader: leads,
            is_learner: metrics.state == ServerState::Learner,
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index),
            applied: self.0.link.applier.progress().applied.map(|at| at.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            millis_since_quorum_ack: quorum_acked.map(millis),
            millis_since_leader_heard: if leads { quorum_acked } else { self.0.link.heard.age() }.map(millis),
            recovered: *self.0.recovered.borrow(),
        }
    }

    /// The members, with their ids.
    #[must_use]
    pub fn members(&self) -> BTreeMap<MemberId, Member> {
        let metrics = self.0.link.server.borrow_watched();
        metrics.membership_config.nodes().map(|(id, member)| (*id, member.clone())).collect()
    }

    /// Asks for a snapshot now, besides the schedule, and waits until it is written or `timeout`.
    ///
    /// # Errors
    /// If it is not written in time.
    pub async fn trigger_snapshot(&self, timeout: Duration) -> Result<LogPosition, Failure> {
        self.0.snapshots.now(&self.0.link.raft, &self.0.link.applier, timeout).await
    }

    /// Waits until no leader has been known here for an election timeout: what waits for one may wait for long.
    pub async fn forsaken(&self) {
        let (clock, patience) = (&self.0.link.heard.clock, self.0.options.election_max);
        let mut known = clock.monotonic();
        loop {
            let now = clock.monotonic();
            if self.state().leader.is_some() {
                known = now;
            }
            if now.saturating_sub(known) >= patience {
                return;
            }
            tokio::time::sleep(patience / FORSAKEN_LOOKS).await;
        }
    }

    /// Hands leadership over, lets the proposals on their way come to their end, then ends Raft and closes the log.
    /// What a quorum does not settle within an election timeout ends as unknown.
    pub async fn shutdown(&self) {
        self.leave().await;
        self.0.batcher.drain(self.0.options.election_max).await;
        self.0.ending.store(true, Ordering::SeqCst);
        drop(self.0.link.raft.shutdown().await);
        self.0.answering.stop(ENDED).await;
        let wal = self.0.wal.clone();
        self.0.tasks.blocking(move || wal.close()).await;
    }

    pub(super) fn link(&self) -> &Link {
        &self.0.link
    }

    pub(super) fn options(&self) -> &Options {
        &self.0.options
    }

    /// Raft ends here, or has.
    pub(super) fn is_ending(&self) -> bool {
        self.0.ending.load(Ordering::SeqCst)
    }

    pub(super) fn leaving(&self) -> &AtomicBool {
        &self.0.leaving
    }

    pub(super) fn membership_lock(&self) -> &tokio::sync::Mutex<()> {
        &self.0.membership
    }

    pub(super) fn db_bytes(&self) -> &AtomicU64 {
        &self.0.db_bytes
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
    link: Arc<Link>,
    every: Duration,
    metrics: Metrics,
    lead: watch::Sender<Option<u64>>,
    ending: Arc<AtomicBool>,
    fatal: Fatal,
) {
    let mut server = link.raft.server_metrics();
    let (mut known, mut leads_since) = (None, None);
    let mut looks = tokio::time::interval(every);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (leader, leads, term) = {
            let server = server.borrow_watched();
            (server.current_leader, server.state == ServerState::Leader, server.vote.leader_id().term)
        };
        let term = leads.then_some(term);
        lead.send_if_modified(|leading| std::mem::replace(leading, term) != term);
        let now = link.heard.clock.monotonic();
        leads_since = if leads { leads_since.or(Some(now)) } else { None };
        let heard = match leads_since {
            // One that has just been elected has not been heard yet.
            Some(since) => {
                let age = quorum_age(&link.raft.metrics().borrow_watched());
                age.unwrap_or(now.saturating_sub(since)) <= link.heard.patience
            }
            None => link.heard.is_recent(),
        };
        link.unheard.store(leads && !heard, Ordering::Relaxed);
        metrics.has_leader.set(i64::from(leader.is_some() && heard));
        metrics.is_leader.set(i64::from(leads && heard));
        if leader.is_some() && leader != known {
            metrics.leader_changes.inc();
            known = leader;
        }
        tokio::select! {
            changed = server.changed() => if changed.is_err() { break },
            _ = looks.tick() => {}
        }
    }
    if !ending.load(Ordering::SeqCst) {
        let why = link.raft.metrics().borrow_watched().running_state.clone();
        let why = why.map_or_else(|error| error.to_string(), |()| "for no known reason".into());
        fatal(&Fault::Invariant(format!("raft has ended: {why}")));
    }
}

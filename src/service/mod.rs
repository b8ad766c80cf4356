//! The command core (rank 4): the meaning of every operation, for any client. REST and etcd are
//! translators onto it; it is designed for an ideal client and shaped by neither.
//!
//! It validates, admits by bytes, authorises early (apply decides), proposes with a deadline, and
//! reads behind a barrier. Invariants: every write carries a `Caller` and a deadline; every failure
//! says whether the write may have happened. It must not know HTTP, JSON field names or protobuf.

mod admission;
pub mod auth;
pub mod claims;
mod cluster;
pub mod compactor;
pub mod leader;
mod leases;
pub mod lessor;
mod queues;
mod ratelimits;
mod reads;
mod renewals;
mod restore;
mod snapshot;
#[cfg(test)]
mod tests;
pub mod types;
mod validate;
mod watch;

pub use admission::Admission;
pub use auth::{Admits, AuthStatus, Password, Shown, Token};
pub use leases::{KeyTtl, LeaseGrant, LeaseList, LeasePage, LeaseState};
pub use lessor::Lessor;
pub use queues::{QueueEntry, QueueObserver, QueueRequest};
pub use ratelimits::RateState;
pub use restore::Upload;
pub use types::*;
pub use watch::{WatchGroup, WatchStream};

use crate::env::{Clock, Entropy, TaskSet};
use crate::machine::View;
use crate::model::{
    Command, Failure, Fault, Idempotency, Op, Outcome, Proposal, Rejection, Reply, Revision, Txn, Why, limits,
};
use crate::raft::{Consensus, Standing};
use crate::storage::mutant::{self, Mutant};
use crate::storage::snapshot::SnapshotStore;
use crate::telemetry::Metrics;
use crate::watch::Hub;
use admission::Budget;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Who this member is, as answers tell it.
#[derive(Debug, Clone)]
pub struct Member {
    pub cluster_id: u64,
    pub id: u64,
    pub name: Arc<str>,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub member: Member,
    pub admission_bytes: u64,
    /// How long a token counts after its last use.
    pub token_ttl: Duration,
}

/// What `service` stands on.
#[derive(Debug)]
pub struct Parts {
    pub consensus: Consensus,
    pub snapshots: SnapshotStore,
    pub hub: Hub,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub lessor: Arc<Lessor>,
    pub tasks: TaskSet,
    pub metrics: Metrics,
}

/// A cheap handle on one member's command core.
#[derive(Debug, Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    member: Member,
    admission: Arc<Budget>,
    auth: auth::Auth,
    /// What watch streams have handed over and their readers have not taken, in units of `watch::BUFFER_UNIT_BYTES`.
    watch_buffers: Arc<Semaphore>,
    /// One backup is taken in at a time.
    restoring: Arc<Semaphore>,
    renewals: renewals::Renewals,
    started: Duration,
    disk_low: AtomicBool,
    disk_bytes: AtomicU64,
}

/// A handle that does not keep the service.
#[derive(Debug)]
struct Weak(std::sync::Weak<Inner>);

impl Weak {
    fn upgrade(&self) -> Option<Service> {
        self.0.upgrade().map(|inner| Service { inner })
    }
}

impl Service {
    #[must_use]
    pub fn new(parts: Parts, options: Options) -> Self {
        let started = parts.clock.monotonic();
        let auth = auth::Auth::new(&parts, options.token_ttl);
        let inner = Inner {
            auth,
            parts,
            member: options.member,
            admission: Arc::new(Budget::new(options.admission_bytes)),
            watch_buffers: Arc::new(Semaphore::new(limits::WATCH_BUFFERED_BYTES_MAX / watch::BUFFER_UNIT_BYTES)),
            restoring: Arc::new(Semaphore::new(1)),
            renewals: renewals::Renewals::default(),
            started,
            disk_low: AtomicBool::new(false),
            disk_bytes: AtomicU64::new(0),
        };
        let service = Self { inner: Arc::new(inner) };
        service.answer_as_leader();
        service
    }

    /// Does not keep the service: for what is registered below it.
    fn downgrade(&self) -> Weak {
        Weak(Arc::downgrade(&self.inner))
    }

    /// Waits for nothing: refuses with `Overloaded` when the bytes in flight would pass the budget.
    /// Hold the permit until the answer has been sent.
    pub fn admit(&self, bytes: usize) -> Result<Admission, Failure> {
        self.inner.admission.take(bytes).ok_or_else(|| {
            self.inner.parts.metrics.admission_refused.inc();
            Failure::not_proposed(Why::Overloaded)
        })
    }

    /// Changes the budget of `admit`; what is in flight stays.
    pub fn set_admission(&self, bytes: u64) {
        self.inner.admission.resize(bytes);
    }

    /// Proposes a transaction (a single put, delete, add… is one of one operation).
    pub async fn txn(
        &self,
        context: &Context,
        txn: Txn,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<Reply>, Failure> {
        if validate::grows(&txn) {
            self.ensure_disk_room()?;
        }
        self.propose(context, Command::Txn(txn), idempotency).await
    }

    fn ensure_disk_room(&self) -> Result<(), Rejection> {
        if self.inner.disk_low.load(Ordering::Relaxed) { Err(Rejection::DiskFull) } else { Ok(()) }
    }

    /// One operation, unconditionally: `txn` with only that one in `success`.
    pub async fn operation(
        &self,
        context: &Context,
        op: Op,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<Reply>, Failure> {
        self.txn(context, Txn { success: vec![op], ..Txn::default() }, idempotency).await
    }

    pub async fn compact(&self, context: &Context, target: CompactTarget) -> Result<Answer<Revision>, Failure> {
        let view = self.newest();
        let (current, compacted) = (view.revision(), view.compacted_revision());
        let revision = match target {
            CompactTarget::Revision(revision) => revision,
            CompactTarget::KeepRevisions(keep) => current.saturating_sub(keep),
            CompactTarget::KeepAge(age) => {
                view.revision_at(view.now_ms().saturating_sub(millis(age))).unwrap_or(compacted)
            }
        };
        // Keeping more than there is asks for nothing; only an explicit revision can be wrong.
        if revision <= compacted && !matches!(target, CompactTarget::Revision(_)) {
            return Ok(self.answer(self.header_at(current), compacted, false));
        }
        let answer = self.propose(context, Command::Compact { revision }, None).await?;
        match answer.body {
            Reply::Compact { compacted_revision, .. } => Ok(self.answer(answer.header, compacted_revision, false)),
            other => Err(Failure::Fault(format!("a compaction was answered with {other:?}"))),
        }
    }

    /// Makes the replicated quota the one this member was started with; the leader calls it.
    pub async fn set_quota(&self, context: &Context, bytes: u64) -> Result<(), Failure> {
        if self.newest().stats().quota_bytes == bytes {
            return Ok(());
        }
        self.propose(context, Command::SetQuota { bytes }, None).await.map(|_| ())
    }

    async fn propose(
        &self,
        context: &Context,
        command: Command,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<Reply>, Failure> {
        let command = match context.fences.is_empty() {
            true => command,
            false => Command::Fenced { fences: context.fences.clone(), command: Box::new(command) },
        };
        crate::machine::validate(&command)?;
        let idempotency = idempotency.filter(|_| !mutant::is_active(Mutant::RequestIdForgotten));
        let proposal = Proposal { caller: context.caller.clone(), idempotency, command };
        let outcome = self.inner.parts.consensus.propose(&proposal, context.timeout).await?;
        let reply = outcome.result?;
        let revision = reply_revision(&reply).unwrap_or_else(|| self.newest().revision());
        Ok(self.answer(self.header_at(revision), reply, outcome.replayed))
    }

    /// The header an answer would carry now, without any barrier.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header_at(self.newest().revision())
    }

    /// The cluster, this member and the term: what of a header costs next to nothing.
    #[must_use]
    pub fn origin(&self) -> (u64, u64, u64) {
        let (term, _) = self.inner.parts.consensus.leadership();
        (self.inner.member.cluster_id, self.inner.member.id, term)
    }

    fn header_at(&self, revision: Revision) -> Header {
        let (term, leader) = self.inner.parts.consensus.leadership();
        let leader_name = if leader == Some(self.inner.member.id) {
            Some(Arc::clone(&self.inner.member.name))
        } else {
            self.inner.parts.consensus.leader_name()
        };
        Header {
            cluster_id: self.inner.member.cluster_id,
            member_id: self.inner.member.id,
            member_name: Arc::clone(&self.inner.member.name),
            leader_name,
            term,
            revision,
            staleness_ms: None,
        }
    }

    #[expect(clippy::unused_self, reason = "reads as a method beside the others")]
    fn answer<T>(&self, header: Header, body: T, replayed: bool) -> Answer<T> {
        Answer { header, body, replayed }
    }

    /// This member's facts, without any barrier.
    #[must_use]
    pub fn status(&self) -> Status {
        let parts = &self.inner.parts;
        let (state, view) = (parts.consensus.state(), self.newest());
        let stats = view.stats();
        Status {
            name: Arc::clone(&self.inner.member.name),
            id: self.inner.member.id,
            cluster_id: self.inner.member.cluster_id,
            leader: state.leader.and(self.header().leader_name),
            is_leader: state.is_followed(),
            learner: state.is_learner,
            term: state.term,
            raft_index: state.last_log.unwrap_or_default(),
            applied_index: state.applied.unwrap_or_default(),
            revision: view.revision(),
            compacted_revision: view.compacted_revision(),
            db_bytes: self.inner.disk_bytes.load(Ordering::Relaxed),
            db_bytes_in_use: stats.used_bytes,
            quota_bytes: stats.quota_bytes,
            keys: stats.keys,
            leases: stats.leases,
            watchers: u64::try_from(parts.hub.streams()).unwrap_or(u64::MAX),
            uptime_ms: millis(parts.clock.monotonic().saturating_sub(self.inner.started)),
            alarms: self.alarms(),
        }
    }

    /// Brings the metrics up to date that say what the store holds; for each scrape.
    pub fn note_sizes(&self) {
        let (view, metrics) = (self.newest(), &self.inner.parts.metrics);
        let stats = view.stats();
        let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.revision.set(view.revision());
        metrics.compacted_revision.set(view.compacted_revision());
        metrics.keys.set(gauge(stats.keys));
        metrics.logical_bytes.set(gauge(stats.used_bytes));
    }

    fn alarms(&self) -> Vec<&'static str> {
        let stats = self.newest().stats();
        let full = stats.used_bytes >= stats.quota_bytes;
        let mut alarms = Vec::new();
        if full || self.inner.disk_low.load(Ordering::Relaxed) {
            alarms.push("storage-full");
        }
        if self.inner.parts.consensus.standing() != Standing::Sound {
            alarms.push("corrupt");
        }
        if self.inner.parts.consensus.disk_stalled().is_some() {
            alarms.push("slow-disk");
        }
        alarms
    }

    /// Told by the disk watch: whether growth is to be refused, and what the data directory holds.
    pub fn note_disk(&self, low: bool, used_bytes: u64) {
        let was = self.inner.disk_low.swap(low, Ordering::Relaxed);
        self.inner.disk_bytes.store(used_bytes, Ordering::Relaxed);
        self.inner.parts.consensus.note_db_bytes(used_bytes);
        if low && !was {
            tracing::warn!("the disk is nearly full: writes that grow the store are refused until there is room");
        } else if was && !low {
            tracing::info!("the disk has room again: writes are accepted");
        }
    }

    /// The checks behind `/readyz` and `/health`, in a fixed order.
    pub async fn readiness(&self, timeout: Duration) -> Vec<Check> {
        let state = self.inner.parts.consensus.state();
        let leader = state.leader.map(|_| ()).ok_or_else(|| "no leader is known".to_owned());
        let context = Context::system(timeout);
        let barrier = self.barrier(&context).await.map_err(|failure| failure.to_string());
        let disk = match self.inner.parts.consensus.disk_stalled() {
            Some(stalled) => Err(format!("a write to the log has been outstanding for {} ms", millis(stalled))),
            None => Ok(()),
        };
        let running = if self.stopping().is_cancelled() { Err("shutting down".to_owned()) } else { Ok(()) };
        vec![
            Check { name: "running", result: running },
            Check { name: "leader", result: leader },
            Check { name: "linearizable-read", result: barrier },
            Check { name: "disk", result: disk },
            Check { name: "no-corrupt-alarm", result: corrupt(self.inner.parts.consensus.standing()) },
        ]
    }

    /// What is applied here now. A snapshot install replaces the machine, so each request asks anew.
    fn newest(&self) -> View {
        self.inner.parts.consensus.reader().view()
    }

    /// Cancelled when shutdown begins: streams and waits end on it.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        self.inner.parts.tasks.stopping()
    }

    /// Confirms that what this member has applied is what a linearizable read would see.
    pub async fn confirm(&self, context: &Context) -> Result<(), Failure> {
        self.barrier(context).await
    }

    /// Who leads, as far as this member knows.
    #[must_use]
    pub fn leader_id(&self) -> Option<u64> {
        self.inner.parts.consensus.state().leader
    }

    async fn barrier(&self, context: &Context) -> Result<(), Failure> {
        self.inner.parts.consensus.read_barrier(context.timeout).await
    }
}

fn reply_revision(reply: &Reply) -> Option<Revision> {
    match reply {
        Reply::Txn(txn) => Some(txn.revision),
        Reply::Compact { revision, .. }
        | Reply::LeaseGranted { revision, .. }
        | Reply::LeaseRevoked { revision, .. }
        | Reply::LeasesExpired { revision, .. }
        | Reply::LeaseRenewed { revision, .. }
        | Reply::Ttl { revision, .. }
        | Reply::Restored { revision }
        | Reply::Auth { revision, .. }
        | Reply::Outcome { revision, .. } => Some(*revision),
        Reply::FeatureLevel { .. } | Reply::Quota { .. } | Reply::LeasesCheckpointed { .. } => None,
    }
}

fn corrupt(standing: Standing) -> Result<(), String> {
    let why = match standing {
        Standing::Sound => return Ok(()),
        Standing::Undecided => "members have different states, and none has a majority: writes are refused",
        Standing::Outvoted => "this member's state is not the majority's: it is being rebuilt from a peer's",
        Standing::Rebuilt => "this member's state was rebuilt and is not confirmed yet",
    };
    Err(why.to_owned())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A read that failed: a rejection is the caller's, anything else a fault of this member.
fn fault(fault: &Fault) -> Failure {
    Failure::Fault(fault.to_string())
}

/// A wait that ended with nothing done.
fn timed_out(why: Why) -> Failure {
    Failure::Unavailable { why, outcome: Outcome::NotProposed }
}

/// A wait that ended after a write was done: whoever asked does not learn what became of it.
fn unknown_since(failure: Failure) -> Failure {
    match failure {
        Failure::Unavailable { why, .. } => Failure::Unavailable { why, outcome: Outcome::Unknown },
        other => other,
    }
}

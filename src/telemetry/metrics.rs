//! Every metric of a node, with its name and what it counts.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// Cheap to clone: every metric is a shared handle.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub wal_fsync: Histogram,
    pub wal_bytes: Counter,
    pub wal_stall: Gauge<f64, AtomicU64>,
    pub wal_stalls: Counter,
    pub proposals_committed: Counter,
    pub proposals_failed: Counter,
    pub proposals_pending: Gauge,
    pub batch_proposals: Histogram,
    pub apply_duration: Histogram,
    pub engine_commit: Histogram,
    pub snapshot_build: Histogram,
    pub revision: Gauge,
    pub compacted_revision: Gauge,
    pub keys: Gauge,
    pub logical_bytes: Gauge,
    pub has_leader: Gauge,
    pub is_leader: Gauge,
    pub leader_changes: Counter,
    pub state_comparisons: Counter,
    pub state_agreed_index: Gauge,
    pub corrupt: Gauge,
    pub watchers: Gauge,
    pub watch_events: Counter,
    pub watch_catchups: Counter,
    pub admission_refused: Counter,
    pub leases_expired: Counter,
    pub lease_keepalives: Counter,
    pub claim_waiters: Gauge,
    pub claim_handovers: Counter,
    pub claim_wait: Histogram,
    pub lease_lateness: Histogram,
}

const SECONDS: [f64; 14] = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

impl Metrics {
    /// Makes all metrics and registers them under `tenure_…`.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("tenure");
        let mut counter = |name: &str, help: &str| {
            let metric = Counter::default();
            registry.register(name, help, metric.clone());
            metric
        };
        let proposals_committed = counter("raft_proposals_committed", "Proposals whose outcome was answered");
        let proposals_failed = counter("raft_proposals_failed", "Proposals that ended unavailable");
        let leader_changes = counter("raft_leader_changes", "Leader changes seen");
        let state_comparisons =
            counter("state_comparisons", "Comparisons of the members' states by this member, leading");
        let watch_events = counter("watch_events", "Events delivered to watch streams");
        let watch_catchups = counter("watch_catchups", "Times a watcher fell behind and was served from history");
        let admission_refused = counter("admission_refused", "Requests refused by the byte budget");
        let wal_stalls = counter("wal_stalls", "Times the log's disk did not answer for two election timeouts");
        let leases_expired = counter("leases_expired", "Leases that this member, leading, found run out and ended");
        let claim_handovers = counter("claim_handovers", "Claims that were waited for and came to hold");
        let lease_keepalives = counter("lease_keepalives", "Renewals of leases that were answered");
        let wal_bytes = Counter::default();
        registry.register_with_unit("wal_written", "Bytes written to the log", Unit::Bytes, wal_bytes.clone());
        let mut gauge = |name: &str, help: &str| {
            let metric = Gauge::default();
            registry.register(name, help, metric.clone());
            metric
        };
        let proposals_pending = gauge("raft_proposals_pending", "Proposals waiting for their outcome");
        let revision = gauge("store_revision", "Current revision");
        let compacted_revision = gauge("store_compacted_revision", "Newest compacted revision");
        let keys = gauge("store_keys", "Live keys");
        let has_leader = gauge("raft_has_leader", "1 if a leader is known");
        let is_leader = gauge("raft_is_leader", "1 if this member leads");
        let state_agreed_index = gauge("state_agreed_index", "Newest log entry at which the states were found equal");
        let corrupt = gauge("state_corrupt", "1 if this member's state is, or may be, another than the majority's");
        let claim_waiters = gauge("claim_waiters", "Calls that wait for a lock, semaphore or election");
        let watchers = gauge("watch_streams", "Open watch streams and blocking reads");
        let logical_bytes = Gauge::default();
        registry.register_with_unit(
            "store_logical",
            "Live and retained data as the quota counts it",
            Unit::Bytes,
            logical_bytes.clone(),
        );
        let wal_stall = Gauge::<f64, AtomicU64>::default();
        let help = "How long the log's disk has not answered; 0 below two election timeouts";
        registry.register_with_unit("wal_stall", help, Unit::Seconds, wal_stall.clone());
        let mut seconds = |name: &str, help: &str| {
            let metric = Histogram::new(SECONDS);
            registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
            metric
        };
        let wal_fsync = seconds("wal_fsync_duration", "Time of one fdatasync of the log");
        let apply_duration = seconds("apply_duration", "Time to apply one log entry");
        let engine_commit = seconds("engine_commit_duration", "Time of one engine write");
        let snapshot_build = seconds("snapshot_build_duration", "Time to write one snapshot");
        let claim_wait = seconds("claim_wait", "From queueing a claim to holding it, for calls that waited");
        let lease_lateness = seconds("lease_expiry_lateness", "From a lease's end to the deletion of its keys");
        let batch_proposals = Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]);
        registry.register("raft_batch_proposals", "Proposals in one log entry", batch_proposals.clone());
        Self {
            wal_fsync,
            wal_bytes,
            wal_stall,
            wal_stalls,
            proposals_committed,
            proposals_failed,
            proposals_pending,
            batch_proposals,
            apply_duration,
            engine_commit,
            snapshot_build,
            revision,
            compacted_revision,
            keys,
            logical_bytes,
            has_leader,
            is_leader,
            leader_changes,
            state_comparisons,
            state_agreed_index,
            corrupt,
            watchers,
            watch_events,
            watch_catchups,
            admission_refused,
            leases_expired,
            lease_keepalives,
            claim_waiters,
            claim_handovers,
            claim_wait,
            lease_lateness,
        }
    }
}

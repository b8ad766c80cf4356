//! How openraft is set up, and why.

use super::consensus::Options;
use crate::model::Fault;
use openraft::{Config, SnapshotPolicy};
use std::sync::Arc;
use std::time::Duration;

/// Entries in one message to a follower; bytes are bounded by the log store.
const APPEND_ENTRIES_MAX: u64 = 256;
/// A follower this many entries behind the log's start is sent a snapshot: far above what is kept
/// between two snapshots, so that only what is purged decides.
const LAG_ENTRIES: u64 = 1 << 40;

/// Before a follower is tried again: one that has taken in a snapshot, or is back, waits for that.
const BACKOFF: &str = "50ms 100ms ..200ms";

pub(crate) fn build(options: &Options) -> Result<Arc<Config>, Fault> {
    let election_max_ms = millis(options.election_max);
    let config = Config {
        cluster_name: "tenure".into(),
        heartbeat_interval: millis(options.heartbeat),
        election_timeout_min: millis(options.election_min),
        election_timeout_max: election_max_ms,
        install_snapshot_timeout: 60_000,
        max_payload_entries: APPEND_ENTRIES_MAX,
        replication_lag_threshold: LAG_ENTRIES,
        backoff: BACKOFF.into(),
        // Snapshots are triggered by bytes of log, and the log is purged up to the second-newest
        // verified snapshot: both by `snapshots`, so openraft must do neither by itself.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // A restarted leader must win an election: its lease and what others saw are unknown.
        enable_leader_restore: Some(false),
        quorum_loss_probe_interval: Some(2 * election_max_ms),
        // A member that lost its log must not be fed anew under its old name.
        allow_log_reversion: None,
        ..Config::default()
    };
    let config = config.validate().map_err(|error| Fault::Invariant(format!("raft settings: {error}")))?;
    Ok(Arc::new(config))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        let config = build(&Options::new(1)).unwrap();
        assert_eq!(config.heartbeat_interval, 100);
        assert_eq!(config.enable_pre_vote, Some(true));
    }

    #[test]
    fn an_election_timeout_below_the_heartbeat_is_refused() {
        let options = Options { election_min: Duration::from_millis(50), ..Options::new(1) };
        assert!(build(&options).is_err());
    }
}

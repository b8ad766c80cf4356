//! The names that etcd's stock dashboards and alerts look for, on the same values as ours.

use super::{Metrics, sampled};
use prometheus_client::registry::Registry;

/// What is known only at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sizes {
    pub db_bytes: u64,
    pub db_bytes_in_use: u64,
    pub quota_bytes: u64,
}

/// Registers the names once per registry; `sizes` is asked at each scrape.
pub fn register<F>(registry: &mut Registry, metrics: &Metrics, sizes: F)
where
    F: Fn() -> Sizes + Send + Sync + 'static,
{
    // A registry writes its own metrics before those of sub-registries: these are to come last.
    let registry = registry.sub_registry_with_labels(std::iter::empty());
    registry.register("etcd_server_has_leader", "1 if a leader is known", metrics.has_leader.clone());
    registry.register("etcd_server_is_leader", "1 if this member leads", metrics.is_leader.clone());
    registry.register("etcd_server_leader_changes_seen", "Leader changes seen", metrics.leader_changes.clone());
    registry.register("etcd_server_proposals_committed", "Proposals committed", metrics.proposals_committed.clone());
    // A proposal is answered once it is applied, so both are one number here.
    registry.register("etcd_server_proposals_applied", "Proposals applied", metrics.proposals_committed.clone());
    registry.register("etcd_server_proposals_pending", "Proposals pending", metrics.proposals_pending.clone());
    registry.register("etcd_server_proposals_failed", "Proposals failed", metrics.proposals_failed.clone());
    registry.register(
        "etcd_disk_wal_fsync_duration_seconds",
        "Time of one fdatasync of the log",
        metrics.wal_fsync.clone(),
    );
    registry.register(
        "etcd_disk_backend_commit_duration_seconds",
        "Time of one engine write",
        metrics.engine_commit.clone(),
    );
    registry.register("etcd_debugging_mvcc_keys_total", "Live keys", metrics.keys.clone());
    registry.register("etcd_debugging_mvcc_watcher_total", "Open watch streams", metrics.watchers.clone());
    sampled::register(registry, move || {
        let sizes = sizes();
        [
            ("etcd_mvcc_db_total_size_in_bytes", "Bytes of the data directory's files", sizes.db_bytes),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", "Live and retained logical bytes", sizes.db_bytes_in_use),
            ("etcd_server_quota_backend_bytes", "Quota of logical bytes", sizes.quota_bytes),
            ("tenure_store_files_bytes", "Bytes of the data directory's files", sizes.db_bytes),
            ("tenure_store_quota_bytes", "Quota of logical bytes", sizes.quota_bytes),
        ]
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_names_come_with_our_values_and_after_our_names() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        register(&mut registry, &metrics, || Sizes { db_bytes: 7, db_bytes_in_use: 5, quota_bytes: 9 });
        metrics.proposals_committed.inc();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.starts_with("# HELP tenure_"), "{text}");
        for line in [
            "tenure_store_files_bytes 7",
            "etcd_mvcc_db_total_size_in_bytes 7",
            "etcd_mvcc_db_total_size_in_use_in_bytes 5",
            "etcd_server_quota_backend_bytes 9",
            "etcd_server_has_leader 0",
            "etcd_server_proposals_committed_total 1",
            "etcd_disk_wal_fsync_duration_seconds_count 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}

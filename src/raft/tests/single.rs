//! A cluster of one: what it answered is there after any end.

use super::*;
use crate::model::{Outcome as Known, Why};
use crate::storage::disk::Disk;
use crate::storage::simdisk::Survivors;
use openraft::RaftSnapshotBuilder;
use std::path::Path;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_is_there_after_a_restart() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    let revision_before = node.consensus.applied().borrow().revision;
    for i in 0..20 {
        let outcome = node.put(&format!("k{i}"), &format!("v{i}")).await.unwrap();
        assert_eq!(key_of(&outcome), format!("k{i}"));
    }
    node.consensus.read_barrier(LONG).await.unwrap();
    let revision = node.consensus.applied().borrow().revision;
    assert_eq!(revision, revision_before + 20);
    node.stop().await;

    let node = Node::restart(&disk).await;
    for i in 0..20 {
        assert_eq!(node.get(&format!("k{i}")), Some(format!("v{i}")));
    }
    let state = node.consensus.state();
    assert!(state.is_leader && state.recovered, "{state:?}");
    assert_eq!(state.millis_since_quorum_ack, Some(0));
    assert_eq!(node.consensus.applied().borrow().revision, revision);
    assert_eq!(node.consensus.members(), [(1, member(1))].into());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_proposals_get_their_own_outcomes() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    let keys: Vec<String> = (0..600).map(|i| format!("k{i}")).collect();
    let outcomes = futures_util::future::join_all(keys.iter().map(|key| node.put(key, "v"))).await;
    let mut revisions = std::collections::BTreeSet::new();
    for (key, outcome) in keys.iter().zip(outcomes) {
        let outcome = outcome.unwrap();
        assert_eq!(&key_of(&outcome), key);
        let Ok(Reply::Txn(txn)) = outcome.result else { panic!() };
        revisions.insert(txn.revision);
    }
    assert_eq!(revisions.len(), keys.len());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_before_recovery() {
    let disk = SimDisk::new();
    let node = Node::start(&disk, options()).await.unwrap();
    let refused =
        |result| matches!(result, Err(Failure::Unavailable { why: Why::NotReady, outcome: Known::NotProposed }));
    assert!(refused(node.put("k", "v").await.map(drop)));
    assert!(refused(node.consensus.read_barrier(LONG).await));
    assert!(!node.consensus.state().recovered);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_begins_once() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    assert!(node.consensus.bootstrap([(1, member(1))].into()).await.is_err());
    node.stop().await;
    let node = Node::restart(&disk).await;
    assert!(node.consensus.bootstrap([(1, member(1))].into()).await.is_err());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_refuses_or_leaves_unknown() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    let consensus = node.consensus.clone();
    node.stop().await;
    let answer = consensus.propose(&put("k", "v"), LONG).await;
    assert!(matches!(answer, Err(Failure::Unavailable { why: Why::ShuttingDown, .. })), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_keeps_what_was_answered() {
    for seed in 0..6u64 {
        let disk = SimDisk::new();
        let node = Node::bootstrap(&disk).await;
        disk.cut_after(disk.operations() + 5 + seed * 7);
        let mut answered = Vec::new();
        for i in 0.. {
            let key = format!("k{i}");
            match node.consensus.propose(&put(&key, "v"), Duration::from_secs(2)).await {
                Ok(_) => answered.push(key),
                Err(_) => break,
            }
        }
        assert!(!answered.is_empty(), "the cut came too early to show anything");
        node.abandon().await;
        disk.crash(Survivors::Seeded(seed));
        let node = Node::restart(&disk).await;
        for key in answered {
            assert!(node.get(&key).is_some(), "seed {seed}: {key} was answered and is lost");
        }
        node.put("after", "v").await.unwrap();
        node.stop().await;
    }
}

async fn fill(node: &Node, from: u32, to: u32) {
    let value = "v".repeat(1000);
    for i in from..to {
        node.put(&format!("k{i}"), &value).await.unwrap();
    }
}

async fn snapshot(node: &Node) -> u64 {
    node.consensus.trigger_snapshot(LONG).await.unwrap().index
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_purged_up_to_the_older_of_two_snapshots() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    fill(&node, 0, 50).await;
    let first = snapshot(&node).await;
    fill(&node, 50, 100).await;
    assert_eq!(node.consensus.state().purged, None, "one snapshot alone lets nothing go");
    let second = snapshot(&node).await;
    eventually("the log is purged", || node.consensus.state().purged == Some(first)).await;
    assert_eq!(node.consensus.state().snapshot, Some(second));
    fill(&node, 100, 120).await;
    node.stop().await;

    let node = Node::restart(&disk).await;
    assert_eq!(node.consensus.state().purged, Some(first));
    for i in 0..120 {
        assert!(node.get(&format!("k{i}")).is_some());
    }
    let third = snapshot(&node).await;
    assert!(third > second);
    eventually("the log is purged further", || node.consensus.state().purged == Some(second)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_growing_log_brings_snapshots_by_itself() {
    let disk = SimDisk::new();
    let options = Options { snapshot_log_bytes: 20_000, ..options() };
    let node = Node::start(&disk, options).await.unwrap();
    node.consensus.bootstrap([(1, member(1))].into()).await.unwrap();
    assert!(node.consensus.wait_recovered(LONG).await);
    fill(&node, 0, 200).await;
    eventually("snapshots were taken and log purged", || node.consensus.state().purged.is_some()).await;
    node.stop().await;
}

const SNAPSHOTS: &str = "/data/snapshot";

fn damage_newest(disk: &SimDisk) {
    let dir = Path::new(SNAPSHOTS);
    let name = disk.list(dir).unwrap().into_iter().rfind(|name| name.ends_with(".snap")).unwrap();
    let file = disk.open(&dir.join(name)).unwrap();
    let middle = file.len().unwrap() / 2;
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, middle).unwrap(), 1);
    file.write_at(&[byte[0] ^ 1], middle).unwrap();
    file.sync_data().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_newest_snapshot_falls_back_to_the_older_and_the_log() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    fill(&node, 0, 50).await;
    let first = snapshot(&node).await;
    fill(&node, 50, 100).await;
    snapshot(&node).await;
    eventually("the log is purged", || node.consensus.state().purged == Some(first)).await;
    node.stop().await;
    damage_newest(&disk);

    let node = Node::restart(&disk).await;
    assert_eq!(node.consensus.state().snapshot, Some(first));
    for i in 0..100 {
        assert!(node.get(&format!("k{i}")).is_some());
    }
    // Two good ones again before anything more of the log goes.
    snapshot(&node).await;
    fill(&node, 100, 110).await;
    snapshot(&node).await;
    node.stop().await;
    damage_newest(&disk);
    let node = Node::restart(&disk).await;
    for i in 0..110 {
        assert!(node.get(&format!("k{i}")).is_some());
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_both_snapshots_damaged_it_refuses_to_start() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    fill(&node, 0, 10).await;
    let first = snapshot(&node).await;
    fill(&node, 10, 20).await;
    snapshot(&node).await;
    eventually("the log is purged", || node.consensus.state().purged == Some(first)).await;
    node.stop().await;
    damage_newest(&disk);
    let dir = Path::new(SNAPSHOTS);
    let names = disk.list(dir).unwrap();
    disk.remove(&dir.join(&names[0])).unwrap();
    let refused = Node::start(&disk, options()).await.err().unwrap();
    assert!(matches!(refused, StartError::LogBeginsTooLate { snapshot: None, .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_what_was_applied_is_refused() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    fill(&node, 0, 10).await;
    snapshot(&node).await;
    node.stop().await;
    let wal = Path::new("/data/wal");
    for name in disk.list(wal).unwrap() {
        disk.remove(&wal.join(name)).unwrap();
    }
    let refused = Node::start(&disk, options()).await.err().unwrap();
    assert!(matches!(refused, StartError::AppliedBeyondLog { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_another_cluster_is_refused() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    fill(&node, 0, 10).await;
    snapshot(&node).await;
    node.stop().await;
    let refused = Node::start(&disk, Options { cluster_id: 7, ..options() }).await.err().unwrap();
    assert!(matches!(refused, StartError::Fault(Fault::Corrupt { .. })), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_cannot_be_written_costs_only_a_warning() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    fill(&node, 0, 10).await;
    // Enough for the log, which is preallocated, and for nothing more.
    disk.set_capacity(Some(0));
    let failed = node.consensus.trigger_snapshot(Duration::from_millis(300)).await;
    assert!(failed.is_err());
    fill(&node, 10, 15).await;
    disk.set_capacity(None);
    snapshot(&node).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_does_not_wait_for_a_snapshot() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    fill(&node, 0, 10).await;
    snapshot(&node).await;
    let before = disk.list(Path::new(SNAPSHOTS)).unwrap();
    fill(&node, 10, 20).await;
    node.tasks.stopping().cancel();
    let (snapshots, applier) = (node.consensus.snapshots(), &node.consensus.link().applier);
    let under_way = snapshots.builder(applier).unwrap().build_snapshot().await;
    assert!(under_way.is_ok(), "an error would end Raft: {under_way:?}");
    let asked_for = node.consensus.trigger_snapshot(LONG).await;
    let refused = matches!(asked_for, Err(Failure::Unavailable { why: Why::ShuttingDown, .. }));
    assert!(refused, "{asked_for:?}");
    node.stop().await;
    assert_eq!(disk.list(Path::new(SNAPSHOTS)).unwrap(), before, "nothing more, and nothing half-written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_log_fails_does_not_live_on() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    disk.cut_after(disk.operations());
    let answer = node.consensus.propose(&put("k", "v"), Duration::from_secs(2)).await;
    assert!(matches!(answer, Err(Failure::Unavailable { outcome: Known::Unknown, .. })), "{answer:?}");
    eventually("the log's fault and the end of raft are told", || node.faults.lock().len() >= 2).await;
    node.abandon().await;
}

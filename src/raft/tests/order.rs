//! The order rules: nothing is applied or published ahead of the log on this disk. Each check is run
//! with the bug planted too, and must find it.

use super::*;
use crate::model::{Batch, LogPosition, codec};
use crate::raft::apply::{Applier, ApplierOptions, StateMachine};
use crate::raft::flushed::Flushed;
use crate::raft::snapshots::{Restorer, Snapshots};
use crate::raft::types::{LogBatch, log_id};
use crate::storage::mutant::Mutant;
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, RaftSnapshotBuilder};

struct Bench {
    flushed: Arc<Flushed>,
    machine: StateMachine,
    store: SnapshotStore,
    tasks: TaskSet,
}

impl Bench {
    async fn new(mutant: Option<Mutant>) -> Self {
        let store = SnapshotStore::open(Arc::new(SimDisk::new()), "/data/snapshot").unwrap();
        let (tasks, clock) = (TaskSet::new(), Arc::new(SystemClock::new()));
        let metrics = Metrics::new(&mut Registry::default());
        let restorer = Restorer { new_store: new_store(), machine: machine::Options::default() };
        let snapshots =
            Snapshots::new(&options(), store.clone(), restorer, tasks.clone(), clock.clone(), metrics.clone());
        let (machine, _) = snapshots.restore_newest().await.unwrap();
        let flushed = Arc::new(Flushed::new(0));
        let options = ApplierOptions {
            flushed: flushed.clone(),
            tail: Arc::default(),
            mutant,
            publisher: Arc::new(Unwatched),
            clock,
            metrics,
            fatal: Arc::new(|fault| panic!("{fault}")),
        };
        let machine = StateMachine { applier: Arc::new(Applier::new(machine, options)), snapshots };
        Self { flushed, machine, store, tasks }
    }

    /// Whether the committed entry 0 is applied although this disk holds no entry yet.
    async fn applies_unflushed(&mut self) -> bool {
        let batch = Batch { proposed_at_ms: 1, wall_ms: 1, proposals: vec![put("k", "v")] };
        let bytes = codec::encode(&batch).unwrap().into();
        let log_id = log_id(LogPosition { term: 1, node: 1, index: 0 });
        let entry = openraft::Entry { log_id, payload: EntryPayload::Normal(LogBatch { bytes }) };
        let entries = futures_util::stream::iter([Ok((entry, None))]);
        let applier = self.machine.applier.clone();
        let flushed = self.flushed.clone();
        let apply = self.machine.apply(entries);
        tokio::pin!(apply);
        drop(futures_util::poll!(&mut apply));
        let ahead = applier.progress().covers(0);
        flushed.done(0, 1);
        if !ahead {
            apply.await.unwrap();
        }
        assert!(applier.progress().covers(0));
        ahead
    }

    /// Whether a snapshot of entry 5 is published although this disk holds no entry yet.
    async fn publishes_unflushed(&mut self) -> bool {
        self.machine.applier.machine().note(LogPosition { term: 1, node: 1, index: 5 }, None).unwrap();
        let mut builder = self.machine.get_snapshot_builder().await;
        let build = builder.build_snapshot();
        tokio::pin!(build);
        let early = tokio::time::timeout(Duration::from_millis(200), &mut build).await.is_ok();
        let ahead = !self.store.list().unwrap().is_empty();
        self.flushed.done(0, 6);
        if !early {
            build.await.unwrap();
        }
        assert_eq!(self.store.list().unwrap().len(), 1);
        ahead
    }
}

#[tokio::test]
async fn apply_waits_for_the_log_on_this_disk() {
    let mut bench = Bench::new(None).await;
    assert!(!bench.applies_unflushed().await);
    let mut planted = Bench::new(Some(Mutant::ApplyAheadOfFlush)).await;
    assert!(planted.applies_unflushed().await, "the check does not find the bug it is there for");
}

#[tokio::test]
async fn publication_waits_for_the_log_on_this_disk() {
    let mut bench = Bench::new(None).await;
    assert!(!bench.publishes_unflushed().await);
    let mut planted = Bench::new(Some(Mutant::SnapshotAheadOfFlush)).await;
    assert!(planted.publishes_unflushed().await, "the check does not find the bug it is there for");
    assert!(bench.tasks.stop(LONG).await && planted.tasks.stop(LONG).await);
}

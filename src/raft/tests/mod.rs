//! Whole members in one process, over simulated disks and an in-memory transport.

pub(crate) mod cluster;
mod divergence;
mod order;
mod purged;
mod single;

use super::*;
use crate::env::{SystemClock, TaskSet};
use crate::machine::{self, Outcome};
use crate::model::{
    Caller, Command, Failure, Fault, LeaseChoice, Op, OpReply, Proposal, PutOp, Reply, Revision, RevisionEvents, Txn,
};
use crate::storage::blocks::{BlockOptions, BlockStore};
use crate::storage::memory::MemoryEngine;
use crate::storage::simdisk::SimDisk;
use crate::storage::snapshot::SnapshotStore;
use crate::storage::wal::{Recovered, Threading, Wal, WalOptions};
use crate::telemetry::metrics::Metrics;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const LONG: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Unwatched;

impl Publisher for Unwatched {
    fn leases(&self, _: &[crate::machine::LeaseChange]) {}
    fn publish(&self, _: &[RevisionEvents]) {}
    fn reset(&self, _: Revision) {}
}

fn new_store() -> NewStore {
    Arc::new(|| {
        let fatal: crate::storage::Fatal = Arc::new(|fault: &Fault| panic!("{fault}"));
        Ok(Arc::new(BlockStore::new(Arc::new(MemoryEngine::default()), BlockOptions::new(fatal))?))
    })
}

/// A member over `disk`, which outlives it.
pub(crate) struct Node {
    pub(crate) consensus: Consensus,
    pub(crate) tasks: TaskSet,
    faults: Arc<Mutex<Vec<String>>>,
}

fn member(id: MemberId) -> Member {
    Member { name: format!("m{id}"), ..Member::default() }
}

fn open_wal(disk: &SimDisk, faults: &Arc<Mutex<Vec<String>>>, threading: Threading) -> (Wal, Recovered) {
    let faults = faults.clone();
    let fatal = Arc::new(move |fault: &Fault| faults.lock().push(fault.to_string()));
    let options =
        WalOptions { segment_bytes: 64 << 10, threading, mutant: None, ..WalOptions::new("/data/wal", fatal) };
    Wal::open(Arc::new(disk.clone()), options).unwrap()
}

impl Node {
    async fn start_with(
        disk: &SimDisk,
        options: Options,
        (transport, publisher): (Arc<dyn Transport>, Arc<dyn Publisher>),
        open: impl FnOnce(&SimDisk, &Arc<Mutex<Vec<String>>>) -> (Wal, Recovered),
    ) -> Result<Self, StartError> {
        let faults = Arc::new(Mutex::new(Vec::new()));
        let (wal, recovered) = open(disk, &faults);
        let tasks = TaskSet::new();
        let parts = Parts {
            wal,
            recovered,
            snapshots: SnapshotStore::open(Arc::new(disk.clone()), "/data/snapshot")?,
            new_store: new_store(),
            machine: machine::Options::default(),
            transport,
            publisher,
            clock: Arc::new(SystemClock::new()),
            metrics: Metrics::new(&mut Registry::default()),
            tasks: tasks.clone(),
            fatal: {
                let faults = faults.clone();
                Arc::new(move |fault| faults.lock().push(fault.to_string()))
            },
        };
        Ok(Self { consensus: Consensus::start(options, parts).await?, tasks, faults })
    }

    async fn start(disk: &SimDisk, options: Options) -> Result<Self, StartError> {
        let open = |disk: &SimDisk, faults: &_| open_wal(disk, faults, Threading::Own);
        Self::start_with(disk, options, (Arc::new(NoPeers), Arc::new(Unwatched)), open).await
    }

    /// A new cluster of one, ready to serve.
    async fn bootstrap(disk: &SimDisk) -> Self {
        let node = Self::start(disk, options()).await.unwrap();
        node.consensus.bootstrap([(1, member(1))].into()).await.unwrap();
        assert!(node.consensus.wait_recovered(LONG).await);
        node
    }

    /// A member of one that was there before, ready to serve.
    async fn restart(disk: &SimDisk) -> Self {
        let node = Self::start(disk, options()).await.unwrap();
        assert!(node.consensus.wait_recovered(LONG).await);
        node
    }

    async fn put(&self, key: &str, value: &str) -> Result<Outcome, Failure> {
        self.consensus.propose(&put(key, value), LONG).await
    }

    /// What is committed from now on waits to be applied.
    pub(crate) fn hold_applying(&self) {
        self.consensus.link().applier.hold();
    }

    pub(crate) fn apply_on(&self) {
        self.consensus.link().applier.allow_all();
    }

    fn get(&self, key: &str) -> Option<String> {
        let view = self.consensus.reader().view();
        let found = view.get(&Caller::Anonymous, &Bytes::copy_from_slice(key.as_bytes()), 0).unwrap();
        found.map(|found| String::from_utf8(found.value.to_vec()).unwrap())
    }

    /// Ends it in good order.
    async fn stop(self) {
        self.consensus.shutdown().await;
        assert!(self.tasks.stop(LONG).await);
        assert_eq!(*self.faults.lock(), Vec::<String>::new());
    }

    /// Ends what is left of it after its disk has died under it.
    async fn abandon(self) {
        self.consensus.shutdown().await;
        assert!(self.tasks.stop(LONG).await);
    }
}

fn options() -> Options {
    Options { mutant: None, ..Options::new(1) }
}

fn put(key: &str, value: &str) -> Proposal {
    let op = Op::Put(PutOp {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        content_type: None,
        lease: LeaseChoice::Detach,
        prev_kv: false,
        ignore_value: false,
    });
    let txn = Txn { success: vec![op], ..Txn::default() };
    Proposal { caller: Caller::Anonymous, idempotency: None, command: Command::Txn(txn) }
}

fn key_of(outcome: &Outcome) -> String {
    match &outcome.result {
        Ok(Reply::Txn(txn)) => match txn.results.as_slice() {
            [OpReply::Put { key, .. }] => String::from_utf8(key.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, wait).await.is_ok(), "never: {what}");
}

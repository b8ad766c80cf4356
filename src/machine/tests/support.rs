//! A machine over a memory engine, and short ways to say what is asked of it.

use crate::machine::{Applied, Machine, Options, Outcome, TrimStep};
use crate::model::{
    Batch, Caller, Command, Compare, CompareOp, CompareTarget, Fault, Idempotency, KeyRange, LeaseChoice, LogPosition,
    Op, Proposal, PutOp, RangeOp, Rejection, Reply, Revision, Txn, TxnReply,
};
use crate::storage::blocks::{BlockOptions, BlockStore};
use crate::storage::memory::MemoryEngine;
use crate::storage::simdisk::SimDisk;
use crate::storage::snapshot::{SnapshotMeta, SnapshotReader, SnapshotStore};
use bytes::Bytes;
use std::sync::Arc;

pub(super) fn store() -> Arc<BlockStore> {
    let fatal = Arc::new(|fault: &Fault| panic!("the block store failed: {fault}"));
    Arc::new(BlockStore::new(Arc::new(MemoryEngine::new()), BlockOptions::new(fatal)).unwrap())
}

/// A machine, and the log's next index and time.
pub(super) struct Rig {
    pub(super) machine: Machine,
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) now_ms: u64,
    pub(super) options: Options,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(super) fn with(options: Options) -> Self {
        Self { machine: Machine::new(store(), &options), term: 1, index: 0, now_ms: 1_000_000, options }
    }

    pub(super) fn apply(&mut self, proposals: Vec<Proposal>) -> Applied {
        self.index += 1;
        let at = LogPosition { term: self.term, node: 1, index: self.index };
        let batch = Batch { proposed_at_ms: self.now_ms, wall_ms: 0, proposals };
        self.machine.apply(at, &batch).unwrap()
    }

    pub(super) fn outcome(&mut self, command: Command) -> Outcome {
        self.apply(vec![propose(command)]).outcomes.remove(0)
    }

    pub(super) fn command(&mut self, command: Command) -> Result<Reply, Rejection> {
        self.outcome(command).result
    }

    pub(super) fn txn(&mut self, txn: Txn) -> Result<TxnReply, Rejection> {
        match self.command(Command::Txn(txn))? {
            Reply::Txn(reply) => Ok(reply),
            other => panic!("a transaction was answered {other:?}"),
        }
    }

    pub(super) fn ops(&mut self, ops: Vec<Op>) -> Result<TxnReply, Rejection> {
        self.txn(Txn { success: ops, ..Txn::default() })
    }

    /// Puts, and answers the revision.
    pub(super) fn put(&mut self, key: &str, value: &str) -> Revision {
        self.ops(vec![put(key, value)]).unwrap().revision
    }

    pub(super) fn delete(&mut self, range: KeyRange) -> Revision {
        self.ops(vec![Op::Delete { range, prev_kv: false }]).unwrap().revision
    }

    pub(super) fn trim(&mut self) {
        while self.machine.trim_step(3).unwrap() {}
    }

    pub(super) fn range(&self, op: &RangeOp) -> crate::model::RangeReply {
        self.machine.reader().view().range(&Caller::Anonymous, op).unwrap()
    }

    pub(super) fn blocks(&self) -> Vec<Bytes> {
        blocks(&self.machine)
    }

    pub(super) fn restored(&self) -> Self {
        let machine = restore(&self.options, self.blocks()).unwrap();
        Self { machine, options: self.options.clone(), ..*self }
    }
}

impl Machine {
    /// A whole step of trimming. `true`: there is more to do now.
    pub(super) fn trim_step(&mut self, budget: usize) -> Result<bool, Fault> {
        match self.reader().trim(budget)? {
            TrimStep::Index(compacted) => self.trim_index(&compacted).finish(),
            TrimStep::More => {}
            TrimStep::Rest => return Ok(false),
        }
        Ok(true)
    }

    /// Something is left to remove, perhaps only once readers let go of it.
    pub(super) fn trim_pending(&self) -> bool {
        self.values.trimmed() < self.root.numbers.compacted
    }
}

pub(super) fn blocks(machine: &Machine) -> Vec<Bytes> {
    let mut blocks = Vec::new();
    let mut keep = |block: &[u8]| {
        blocks.push(Bytes::copy_from_slice(block));
        Ok(())
    };
    machine.image().write_to(&|| Ok(()), &mut keep).unwrap();
    blocks
}

/// From blocks in memory, and from those in a file, which must come to the same.
pub(super) fn restore(options: &Options, blocks: Vec<Bytes>) -> Result<Machine, Fault> {
    let file = snapshot_of(&blocks);
    let from_memory = Machine::restore(store(), options, blocks.into_iter().map(Ok));
    let from_file = Machine::restore_over(file.bytes(), store(), options, file);
    let [memory, file] = [&from_memory, &from_file].map(|restored| restored.as_ref().map(Machine::state_hash));
    assert_eq!(format!("{memory:?}"), format!("{file:?}"));
    from_file
}

pub(super) fn snapshot_of(blocks: &[Bytes]) -> SnapshotReader {
    let snapshots = SnapshotStore::open(Arc::new(SimDisk::new()), "/snapshot").unwrap();
    let last = LogPosition { term: 1, node: 1, index: 1 };
    let (membership, extra) = (Bytes::new(), Bytes::new());
    let meta = SnapshotMeta { cluster_id: 1, last, membership, revision: 1, created_wall_ms: 0, extra };
    let mut writer = snapshots.begin(meta).unwrap();
    blocks.iter().for_each(|block| writer.write_block(block).unwrap());
    writer.finish().unwrap();
    snapshots.newest_verified().unwrap().snapshot.unwrap().1
}

pub(super) fn propose(command: Command) -> Proposal {
    Proposal { caller: Caller::Anonymous, idempotency: None, command }
}

pub(super) fn keyed(key: &str, fingerprint: u8, command: Command) -> Proposal {
    let idempotency = Some(Idempotency { key: key.into(), fingerprint: [fingerprint; 16] });
    Proposal { caller: Caller::Anonymous, idempotency, command }
}

pub(super) fn put(key: &str, value: &str) -> Op {
    put_with(key, value, LeaseChoice::Detach)
}

pub(super) fn put_with(key: &str, value: &str, lease: LeaseChoice) -> Op {
    Op::Put(PutOp {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        content_type: None,
        lease,
        prev_kv: true,
        ignore_value: false,
    })
}

pub(super) fn delete(key: &str) -> Op {
    Op::Delete { range: single(key), prev_kv: true }
}

pub(super) fn get(key: &str) -> Op {
    Op::Range(RangeOp::newest(single(key)))
}

pub(super) fn single(key: &str) -> KeyRange {
    KeyRange::key(Bytes::copy_from_slice(key.as_bytes()))
}

pub(super) fn add(key: &str, by: i64) -> Op {
    Op::Add {
        key: Bytes::copy_from_slice(key.as_bytes()),
        by,
        initial: 0,
        min: None,
        max: None,
        clamp: false,
        lease: LeaseChoice::Keep,
    }
}

pub(super) fn compare(key: &str, op: CompareOp, target: CompareTarget) -> Compare {
    Compare { range: single(key), op, target }
}

pub(super) fn txn(compares: Vec<Compare>, success: Vec<Op>, failure: Vec<Op>) -> Txn {
    Txn { compares, success, failure }
}

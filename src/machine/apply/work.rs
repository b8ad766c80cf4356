//! One transaction under way: what it has written so far, and how to take it back.
//!
//! Invariants: until `commit` nothing but the working root's own tables and index has changed, and
//! `abort` restores them exactly; reads in between see the transaction's own writes; all writes have
//! one revision, each its own number in it.

use super::super::Stop;
use super::super::authority::Authorized;
use super::super::hash::Sum;
use super::super::index::{History, KeyRecord, Place};
use super::super::leases::{Attached, Leases};
use super::super::read::{Source, event};
use super::super::root::{Numbers, Root};
use super::super::writer::Machine;
use crate::model::{Event, LeaseChoice, OpReply, Rejection, Revision, RevisionEvents, Txn, TxnReply, limits};
use crate::storage::record::Record;
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;

pub(super) struct Work<'m> {
    pub(super) machine: &'m mut Machine,
    /// The revision of whatever this transaction writes.
    pub(super) main: Revision,
    /// The tables before it; its index is undone key by key, since holding the former index would
    /// cost a copy of every path that is changed.
    before: Tables,
    undo: SmallVec<[(Bytes, Option<Arc<KeyRecord>>); 1]>,
    /// In step with the records that it has added to `machine.pending`.
    pub(super) former: SmallVec<[Former; 1]>,
    first_pending: usize,
    first_change: usize,
    pub(super) superseded_bytes: u64,
    /// Versions that compaction had released, and that went when their keys were written.
    outlived: Vec<Place>,
    /// Something other than a delete was written.
    pub(super) grew: bool,
}

/// The version that a write superseded.
pub(super) struct Former {
    pub(super) place: Option<Place>,
    pub(super) bytes: u64,
}

struct Tables {
    numbers: Numbers,
    sum: Sum,
    leases: Leases,
    lease_bytes: u64,
    lease_starts: u64,
    attached: Attached,
}

impl<'m> Work<'m> {
    pub(super) fn begin(machine: &'m mut Machine) -> Self {
        let Root { numbers, sum, leases, lease_bytes, lease_starts, attached, .. } = &machine.root;
        Self {
            main: numbers.revision + 1,
            before: Tables {
                numbers: *numbers,
                sum: *sum,
                leases: leases.clone(),
                lease_bytes: *lease_bytes,
                lease_starts: *lease_starts,
                attached: attached.clone(),
            },
            first_change: machine.lease_changes.len(),
            undo: SmallVec::new(),
            former: SmallVec::new(),
            first_pending: machine.pending.len(),
            superseded_bytes: 0,
            outlived: Vec::new(),
            grew: false,
            machine,
        }
    }

    pub(super) fn source(&self) -> Source<'_> {
        let root = &self.machine.root;
        let newest = if self.former.is_empty() { root.numbers.revision } else { self.main };
        Source { root, pending: &self.machine.pending, newest }
    }

    /// The number of the next write.
    pub(super) fn sub(&self) -> Result<u32, Stop> {
        u32::try_from(self.former.len()).map_err(|_| Stop::invariant("a transaction of over four billion writes"))
    }

    /// Puts a key's new state into the index.
    pub(super) fn replace(&mut self, key: KeyRecord, record: Record, former: Former) {
        self.put_key(key);
        self.superseded_bytes += former.bytes;
        self.former.push(former);
        self.machine.pending.push(Arc::new(record));
    }

    /// The history of a key's next version. What compaction has released goes now, when it costs
    /// nothing; the trimmer would have to look for the key.
    pub(super) fn continued(&mut self, old: &KeyRecord) -> History {
        let machine = &*self.machine;
        let room = limits::OUTLIVED_MAX.saturating_sub(machine.outlived.len() + self.outlived.len());
        let gone = old.expendable(machine.root.numbers.compacted).min(room);
        if gone == 0 {
            return old.history.pushed(old.head.place());
        }
        self.outlived.extend((0..gone).map(|at| old.history.get(at)));
        old.history.without_oldest(gone).pushed(old.head.place())
    }

    fn put_key(&mut self, key: KeyRecord) {
        let name = key.key.clone();
        self.machine.values.adopt(&key);
        let old = self.machine.root.index.insert(Arc::new(key));
        if let Some(old) = &old {
            self.machine.values.release(old);
        }
        self.undo.push((name, old));
    }

    /// Changes what a key is attached to without writing a version of it.
    pub(super) fn hang(&mut self, key: &Bytes, choice: LeaseChoice) -> Result<(), Stop> {
        let old = self.indexed(key).ok_or_else(|| Rejection::KeyNotFound { key: key.clone() })?;
        let new = old.with_lease(self.attach(&old.key, old.head.lease, choice)?);
        self.put_key(new);
        Ok(())
    }

    /// Evaluates every compare, at every depth, against the state before any write; then runs.
    pub(super) fn txn(&mut self, txn: Authorized<&Txn>) -> Result<TxnReply, Stop> {
        let plan = self.source().plan(txn)?;
        self.foresee(txn, &plan)?;
        let mut reply = self.run(txn, &plan, None)?;
        let root = &self.machine.root;
        let used = root.used_bytes() + self.superseded_bytes;
        if self.grew && used > root.numbers.quota_bytes {
            return Err(Rejection::QuotaExceeded { quota_bytes: root.numbers.quota_bytes }.into());
        }
        let revision = if self.former.is_empty() { root.numbers.revision } else { self.main };
        set_revision(&mut reply, revision);
        Ok(reply)
    }

    /// The events of what was written, if anything was.
    pub(super) fn commit(self) -> Option<RevisionEvents> {
        if self.former.is_empty() {
            return None;
        }
        let machine = self.machine;
        machine.root.numbers.revision = self.main;
        machine.root.timeline.add(self.main, machine.root.numbers.now_ms, self.superseded_bytes);
        machine.outlived.extend(self.outlived);
        let records = &machine.pending[self.first_pending..];
        let events: Arc<[Event]> =
            records.iter().zip(&self.former).map(|(record, former)| event(record, former.place)).collect();
        for (_, old) in self.undo {
            // A former version is told of as it was written, which this one is not any more.
            if let Some(old) = old.filter(|old| old.head.is_live() && !old.slot.is_rehung()) {
                machine.values.keep_former(old);
            }
        }
        Some(RevisionEvents { revision: self.main, events })
    }

    pub(super) fn abort(self) {
        let machine = self.machine;
        machine.pending.truncate(self.first_pending);
        for (key, old) in self.undo.into_iter().rev() {
            let new = match old {
                Some(old) => {
                    machine.values.adopt(&old);
                    machine.root.index.insert(old)
                }
                None => machine.root.index.remove(&key),
            };
            if let Some(new) = new {
                machine.values.release(&new);
            }
        }
        machine.lease_changes.truncate(self.first_change);
        let Tables { numbers, sum, leases, lease_bytes, lease_starts, attached } = self.before;
        machine.root.numbers = numbers;
        machine.root.sum = sum;
        machine.root.leases = leases;
        machine.root.lease_bytes = lease_bytes;
        machine.root.lease_starts = lease_starts;
        machine.root.attached = attached;
    }
}

fn set_revision(reply: &mut TxnReply, revision: Revision) {
    reply.revision = revision;
    for result in &mut reply.results {
        if let OpReply::Txn(inner) = result {
            set_revision(inner, revision);
        }
    }
}

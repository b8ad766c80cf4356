//! Writing one version: put or tombstone, with its attachment, hash and accounting.

use super::super::Stop;
use super::super::hash;
use super::super::index::{Direction, Head, History, KeyRecord, Slot};
use super::super::read::live_in;
use super::super::root::logical_bytes;
use super::work::{Former, Work};
use crate::model::{DeleteReason, KeyRange, KeyValue, LeaseChoice, LeaseId, Rejection};
use crate::storage::record::{Record, RecordKind};
use bytes::Bytes;
use std::sync::Arc;

/// A shared buffer has a header of its own, 32 bytes with the allocator's rounding.
const OWN_BYTES_MAX: usize = 1024;

pub(super) struct Write<'a> {
    pub(super) key: &'a Bytes,
    /// What the index has of this key.
    pub(super) old: Option<&'a KeyRecord>,
    pub(super) value: Bytes,
    pub(super) content_type: Option<Arc<str>>,
    pub(super) lease: LeaseChoice,
}

pub(super) struct Written {
    /// As the index has it.
    pub(super) key: Bytes,
    pub(super) version: i64,
    pub(super) lease: LeaseId,
}

#[derive(Default)]
pub(super) struct Deleted {
    pub(super) deleted: u64,
    pub(super) kvs: Vec<KeyValue>,
}

impl Work<'_> {
    pub(super) fn write(&mut self, write: Write<'_>) -> Result<Written, Stop> {
        let (main, sub) = (self.main, self.sub()?);
        let old = write.old;
        let live = old.map(|old| &old.head).filter(|head| head.is_live());
        let key = old.map_or_else(|| write.key.clone(), |old| old.key.clone());
        let lease = self.attach(&key, live.map_or(0, |head| head.lease), write.lease)?;
        let record = Record {
            main,
            sub,
            kind: RecordKind::Put,
            create_revision: live.map_or(main, |head| head.create),
            version: live.map_or(1, |head| head.version + 1),
            lease,
            content_type: write.content_type,
            key,
            value: write.value,
        };
        let hash = hash::record(&record);
        let head = Head {
            main,
            create: record.create_revision,
            version: record.version,
            lease,
            content_type: record.content_type.clone(),
            hash: hash::split(hash),
            value_size: u32::try_from(record.value.len()).map_err(|_| Stop::invariant("a value above 4 GiB"))?,
            sub,
        };
        self.machine.root.sum.add(hash);
        self.machine.root.numbers.live_bytes +=
            logical_bytes(record.key.len(), record.value.len(), record.content_type.as_deref());
        self.grew = true;
        let written = Written { key: record.key.clone(), version: record.version, lease };
        self.supersede(old, head, record);
        Ok(written)
    }

    /// Makes `head` the newest version of its key; the one before goes into the history.
    fn supersede(&mut self, old: Option<&KeyRecord>, head: Head, record: Record) {
        let history = old.map_or(History::None, |old| self.continued(old));
        let root = &mut self.machine.root;
        let mut former = Former { place: old.map(|old| old.head.place()), bytes: 0 };
        if let Some(old) = old.filter(|old| old.head.is_live()) {
            let bytes = head_bytes(old);
            root.numbers.live_bytes -= bytes;
            root.sum.remove(hash::join(old.head.hash));
            former.bytes = bytes;
        }
        let slot = if head.is_live() { Slot::full(own(&record.value)) } else { Slot::default() };
        let key = old.map_or_else(|| own(&record.key), |old| old.key.clone());
        self.replace(KeyRecord { key, head, history, slot }, record, former);
    }

    pub(super) fn delete_range(
        &mut self,
        range: &KeyRange,
        reason: DeleteReason,
        prev_kv: bool,
    ) -> Result<Deleted, Stop> {
        // Revisions of this transaction are one above the store's until it commits.
        let found: Vec<Arc<KeyRecord>> =
            live_in(&self.machine.root, range, Direction::Forward, self.main, 0).map(|live| live.key.clone()).collect();
        let mut deleted = Deleted::default();
        for key in found {
            if prev_kv {
                deleted.kvs.push(self.source().key_value(&key, key.head.place(), false)?);
            }
            self.delete(&key, reason)?;
            deleted.deleted += 1;
        }
        Ok(deleted)
    }

    fn delete(&mut self, old: &KeyRecord, reason: DeleteReason) -> Result<(), Stop> {
        let (main, sub) = (self.main, self.sub()?);
        self.attach(&old.key, old.head.lease, LeaseChoice::Detach)?;
        let record = Record {
            main,
            sub,
            kind: RecordKind::Tombstone(reason),
            create_revision: 0,
            version: 0,
            lease: 0,
            content_type: None,
            key: old.key.clone(),
            value: Bytes::new(),
        };
        let head = Head { main, create: 0, version: 0, lease: 0, content_type: None, hash: [0; 2], value_size: 0, sub };
        // A tombstone is history from the start. The one revision it outlives its own compaction by is not counted.
        self.superseded_bytes += logical_bytes(old.key.len(), 0, None);
        self.supersede(Some(old), head, record);
        Ok(())
    }

    /// Ends a lease and deletes its keys in key order.
    pub(super) fn revoke(&mut self, id: LeaseId, reason: DeleteReason) -> Result<u64, Stop> {
        let keys: Vec<Bytes> = self.machine.root.attached.keys(id).cloned().collect();
        let mut deleted = 0;
        for key in keys {
            let old = self.indexed(&key).ok_or_else(|| Stop::invariant("a key is attached that does not exist"))?;
            self.delete(&old, reason)?;
            deleted += 1;
        }
        self.machine.end_lease(id);
        Ok(deleted)
    }

    /// Moves a key from the lease that it has to the one that is chosen, which it answers.
    pub(super) fn attach(&mut self, key: &Bytes, current: LeaseId, choice: LeaseChoice) -> Result<LeaseId, Stop> {
        let wanted = match choice {
            LeaseChoice::Detach => 0,
            LeaseChoice::Keep | LeaseChoice::KeepOfExisting => current,
            LeaseChoice::Attach(id) if id == 0 || self.machine.root.leases.contains(id) => id,
            LeaseChoice::Attach(id) => return Err(Rejection::LeaseNotFound(id).into()),
            LeaseChoice::Implicit { id, ttl_ms } => {
                if self.machine.root.leases.contains(id) {
                    return Err(Rejection::LeaseExists(id).into());
                }
                self.machine.start_lease(id, ttl_ms, None, true);
                id
            }
        };
        if wanted == current {
            return Ok(current);
        }
        let root = &mut self.machine.root;
        if current != 0 {
            root.attached.remove(current, key);
            root.sum.remove(hash::attachment(current, key));
            let is_used = root.attached.keys(current).next().is_some();
            if !is_used && root.leases.get(current).is_some_and(|lease| lease.implicit) {
                self.machine.end_lease(current);
            }
        }
        if wanted != 0 {
            let root = &mut self.machine.root;
            root.attached.insert(wanted, key.clone());
            root.sum.add(hash::attachment(wanted, key));
        }
        Ok(wanted)
    }
}

fn head_bytes(key: &KeyRecord) -> u64 {
    let value = usize::try_from(key.head.value_size).unwrap_or(usize::MAX);
    logical_bytes(key.key.len(), value, key.head.content_type.as_deref())
}

/// Bytes of its own where a copy is cheaper than what sharing them would cost for as long as they live.
fn own(value: &Bytes) -> Bytes {
    if value.len() <= OWN_BYTES_MAX { Bytes::copy_from_slice(value) } else { value.clone() }
}

//! Reading a root: ranges, listings, histories, events.
//!
//! Invariants: an answer depends on logical state only, never on what has been trimmed; every range
//! goes through `KeyRange::visible_parts`; only `Authorized` requests get here.

mod events;
mod history;
mod list;
mod range;

pub(crate) use events::event;
pub(crate) use range::live_in;

use super::Stop;
use super::index::{KeyRecord, Place};
use super::root::{Numbers, Root};
use crate::model::{Fault, KeyValue, Rejection, Revision};
use crate::storage::record::Record;
use bytes::Bytes;
use std::sync::Arc;

/// A root, and the records of the batch under way that are not in the block store yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) root: &'a Root,
    /// In rising order of place.
    pub(crate) pending: &'a [Arc<Record>],
    /// What the newest state is: within a transaction that has written, the revision it is making.
    pub(crate) newest: Revision,
}

impl Source<'_> {
    /// The revision to read at: `asked`, or the newest if that is 0. A transaction's own revision
    /// can't be asked for by number.
    pub(crate) fn readable(&self, asked: Revision) -> Result<Revision, Rejection> {
        let Numbers { revision: current, compacted, .. } = self.root.numbers;
        if asked <= 0 {
            Ok(self.newest)
        } else if asked > current {
            Err(Rejection::FutureRevision { requested: asked, current })
        } else if asked < compacted {
            Err(Rejection::Compacted { requested: asked, compacted, current })
        } else {
            Ok(asked)
        }
    }

    /// A key's newest value.
    pub(crate) fn value(&self, key: &KeyRecord) -> Result<Bytes, Fault> {
        if let Some(value) = key.slot.get() {
            return Ok(value);
        }
        let record = self.fetch(key.head.place())?;
        self.root.values.fill(key, &record.value);
        Ok(record.value.clone())
    }

    /// The record at an indexed place. It cannot be missing: what a root indexes is not removed
    /// while the root is held.
    pub(crate) fn fetch(&self, place: Place) -> Result<Arc<Record>, Fault> {
        let Place { main, sub, .. } = place;
        if let Ok(at) = self.pending.binary_search_by_key(&(main, sub), |record| record.place()) {
            return Ok(self.pending[at].clone());
        }
        self.root
            .values
            .store
            .get(main, sub)?
            .ok_or_else(|| Fault::Invariant(format!("the record of revision {main}.{sub} is indexed and not stored")))
    }

    /// The state of a key at one of its versions.
    pub(crate) fn key_value(&self, key: &KeyRecord, place: Place, keys_only: bool) -> Result<KeyValue, Stop> {
        if key.head.place() != place {
            return Ok(key_value(&*self.fetch(place)?, keys_only));
        }
        let value = if keys_only { Bytes::new() } else { self.value(key)? };
        Ok(newest(key, value))
    }
}

/// The newest state of a key, with what it is attached to now.
pub(crate) fn newest(key: &KeyRecord, value: Bytes) -> KeyValue {
    let head = &key.head;
    KeyValue {
        key: key.key.clone(),
        value,
        value_size: u64::from(head.value_size),
        content_type: head.content_type.as_deref().map(str::to_owned),
        create_revision: head.create,
        mod_revision: head.main,
        version: head.version,
        lease: head.lease,
    }
}

/// A record as it was written.
pub(crate) fn key_value(record: &Record, keys_only: bool) -> KeyValue {
    KeyValue {
        key: record.key.clone(),
        value: if keys_only { Bytes::new() } else { record.value.clone() },
        value_size: u64::try_from(record.value.len()).unwrap_or(u64::MAX),
        content_type: record.content_type.as_deref().map(str::to_owned),
        create_revision: record.create_revision,
        mod_revision: record.main,
        version: record.version,
        lease: record.lease,
    }
}

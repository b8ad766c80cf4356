//! Records by place: the cache of current values, in front of the block store.
//!
//! Invariants: the cache holds only what the block store holds or will hold when the batch under way
//! has been appended; losing an entry costs time, never an answer. Records that were superseded stay
//! a while, for watchers that ask for the former value, and are then dropped by name.

use crate::model::{Fault, Revision};
use crate::storage::blocks::BlockStore;
use crate::storage::record::Record;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::collections::VecDeque;
use std::sync::Arc;

/// What a cached record takes beside its key, value and content type.
const RECORD_OVERHEAD_BYTES: u64 = 256;
/// Superseded records kept in the cache, and the bytes they may take.
const FADING_MAX: usize = 16_384;
const FADING_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<(Revision, u32), Arc<Record>> for ByBytes {
    fn weight(&self, _: &(Revision, u32), record: &Arc<Record>) -> u64 {
        cost(record)
    }
}

fn cost(record: &Record) -> u64 {
    RECORD_OVERHEAD_BYTES + u64::try_from(record.weight()).unwrap_or(u64::MAX / 2)
}

#[derive(Debug)]
pub(crate) struct Values {
    pub(crate) store: Arc<BlockStore>,
    cache: Cache<(Revision, u32), Arc<Record>, ByBytes>,
}

impl Values {
    pub(crate) fn new(store: Arc<BlockStore>, cache_bytes: u64) -> Self {
        let records = usize::try_from(cache_bytes / (2 * RECORD_OVERHEAD_BYTES)).unwrap_or(usize::MAX);
        Self { store, cache: Cache::with_weighter(records, cache_bytes, ByBytes) }
    }

    pub(crate) fn keep(&self, record: &Arc<Record>) {
        self.cache.insert(record.place(), record.clone());
    }

    pub(crate) fn forget(&self, main: Revision, sub: u32) {
        self.cache.remove(&(main, sub));
    }

    /// The record at a place; `current` ones are kept for the next reader. `None`: it was trimmed.
    pub(crate) fn get(&self, main: Revision, sub: u32, current: bool) -> Result<Option<Arc<Record>>, Fault> {
        if let Some(record) = self.cache.get(&(main, sub)) {
            return Ok(Some(record));
        }
        let record = self.store.get(main, sub)?;
        if let Some(record) = record.as_ref().filter(|_| current) {
            self.keep(record);
        }
        Ok(record)
    }

    pub(crate) fn cached_bytes(&self) -> u64 {
        self.cache.weight()
    }
}

/// Superseded records that are still cached, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Fading {
    places: VecDeque<(Revision, u32, u64)>,
    bytes: u64,
}

impl Fading {
    pub(crate) fn push(&mut self, values: &Values, main: Revision, sub: u32, bytes: u64) {
        let bytes = bytes + RECORD_OVERHEAD_BYTES;
        self.places.push_back((main, sub, bytes));
        self.bytes += bytes;
        while self.places.len() > FADING_MAX || self.bytes > FADING_BYTES_MAX {
            let Some((main, sub, bytes)) = self.places.pop_front() else { return };
            values.forget(main, sub);
            self.bytes -= bytes;
        }
    }
}

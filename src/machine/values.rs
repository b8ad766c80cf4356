//! Values in memory, in front of the block store: how many bytes, which go, and the former ones.
//!
//! Newest values lie in the index itself (`Slot`), under a byte budget that is kept by a clock hand
//! that sweeps over the keys. Keys that were superseded are kept a while if watchers have lately asked
//! for former values. Invariant: all of this is what the block store holds or will hold when the batch
//! under way has been appended; losing it costs time, never an answer.

use super::index::{Direction, Index, KeyRecord, Place};
use crate::model::{KeyRange, Revision};
use crate::storage::blocks::BlockStore;
use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// What a superseded key in memory takes beside its name and value.
const FORMER_OVERHEAD_BYTES: u64 = 256;
const FORMER_BYTES_MAX: u64 = 16 << 20;
/// Keys that are superseded before former values count as asked for no more.
const FORMER_UNASKED_MAX: u64 = 100_000;
/// Keys that the hand passes after one batch, at most: enough that a batch of the largest size is
/// made up for by values of the smallest.
const SWEEP_KEYS_MAX: usize = 16 << 10;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<(Revision, u32), Arc<KeyRecord>> for ByBytes {
    fn weight(&self, _: &(Revision, u32), key: &Arc<KeyRecord>) -> u64 {
        let name = u64::try_from(key.key.len()).unwrap_or(u64::MAX / 4);
        FORMER_OVERHEAD_BYTES + name + u64::from(key.head.value_size)
    }
}

#[derive(Debug)]
pub(crate) struct Values {
    pub(crate) store: Arc<BlockStore>,
    budget: u64,
    /// What the slots of the newest index hold.
    held: AtomicU64,
    former: Cache<(Revision, u32), Arc<KeyRecord>, ByBytes>,
    /// Keys that were superseded since somebody asked for a former value.
    unasked: AtomicU64,
    /// Revisions up to here have been through the block store's trim.
    trimmed: AtomicI64,
}

impl Values {
    pub(crate) fn new(store: Arc<BlockStore>, budget: u64) -> Self {
        let former = usize::try_from(FORMER_BYTES_MAX / (2 * FORMER_OVERHEAD_BYTES)).unwrap_or(usize::MAX);
        let former = Cache::with_weighter(former, FORMER_BYTES_MAX, ByBytes);
        let unasked = AtomicU64::new(FORMER_UNASKED_MAX);
        Self { store, budget, held: AtomicU64::new(0), former, unasked, trimmed: AtomicI64::new(0) }
    }

    pub(crate) fn trimmed(&self) -> Revision {
        self.trimmed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_trimmed(&self, upto: Revision) {
        self.trimmed.store(upto, Ordering::Relaxed);
    }

    /// The key is in the newest index from now on.
    pub(crate) fn adopt(&self, key: &KeyRecord) {
        self.note(key.slot.count(true));
    }

    /// The key has left the newest index.
    pub(crate) fn release(&self, key: &KeyRecord) {
        self.note(key.slot.count(false));
    }

    /// A value that was read from the store. Its bytes are copied: they must not keep a block alive.
    pub(crate) fn fill(&self, key: &KeyRecord, value: &Bytes) {
        self.note(key.slot.fill(Bytes::copy_from_slice(value)));
    }

    fn note(&self, change: super::index::Change) {
        // Each slot's share is exact, so the sum can't fall below zero for longer than another
        // thread takes between two instructions.
        self.held.fetch_add(change.added.wrapping_sub(change.removed), Ordering::Relaxed);
    }

    /// Keeps a superseded version at hand, if such are asked for.
    pub(crate) fn keep_former(&self, key: Arc<KeyRecord>) {
        match self.unasked.fetch_add(1, Ordering::Relaxed) {
            unasked if unasked < FORMER_UNASKED_MAX => self.former.insert((key.head.main, key.head.sub), key),
            FORMER_UNASKED_MAX => self.former.clear(),
            _ => {}
        }
    }

    pub(crate) fn former(&self, main: Revision, sub: u32) -> Option<Arc<KeyRecord>> {
        self.unasked.store(0, Ordering::Relaxed);
        self.former.get(&(main, sub))
    }

    pub(crate) fn forget_former(&self, place: Place) {
        self.former.remove(&(place.main, place.sub));
    }

    pub(crate) fn has_room(&self) -> bool {
        self.held_bytes() < self.budget
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        let held = self.held.load(Ordering::Relaxed);
        if held > u64::MAX / 2 { 0 } else { held }
    }
}

/// The clock hand: where the next sweep begins.
#[derive(Debug, Default)]
pub(crate) struct Hand(Bytes);

impl Hand {
    /// Evicts values until the budget is kept, or for as many keys as one batch may take.
    pub(crate) fn sweep(&mut self, values: &Values, index: &Index) {
        let mut left = SWEEP_KEYS_MAX;
        while left > 0 && !values.has_room() {
            let rest = KeyRange { start: self.0.clone(), end: None };
            let mut last = None;
            for key in index.iter(&rest, Direction::Forward, 0).take(left) {
                values.note(key.slot.evict());
                left -= 1;
                last = Some(&key.key);
                if values.has_room() {
                    break;
                }
            }
            self.0 = last.filter(|_| values.has_room() || left == 0).map_or_else(Bytes::new, |key| after(key));
            if last.is_none() && index.entries() == 0 {
                return;
            }
        }
    }
}

fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

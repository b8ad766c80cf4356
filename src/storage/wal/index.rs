//! Which entries the log holds, where each stands on disk, and the newest of them in memory.
//!
//! Entries are contiguous; a later entry always stands behind an earlier one on disk. Twelve bytes
//! per entry, plus the cached tail within its byte budget. It must not know files or threads.

use super::record::Checkpoint;
use bytes::Bytes;
use std::collections::VecDeque;

/// A place in the log, ordered as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub segment: u32,
    pub offset: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub at: Position,
    pub len: u32,
}

/// What a cached entry costs beyond its payload.
const ENTRY_OVERHEAD_BYTES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct LogIndex {
    purged: Option<(u64, Bytes)>,
    /// The index the next entry must have; any before the first entry of a log never purged.
    next: Option<u64>,
    /// During recovery: how many live entries, the oldest ones, stand in segments that are gone.
    absent: u64,
    slots: VecDeque<Slot>,
    /// The newest entries, never more than `slots`.
    cache: VecDeque<Bytes>,
    cache_bytes: usize,
}

fn cost(bytes: &Bytes) -> usize {
    bytes.len() + ENTRY_OVERHEAD_BYTES
}

impl LogIndex {
    /// Starts from a checkpoint whose live entries have not been found anywhere.
    pub(super) fn from_checkpoint(checkpoint: &Checkpoint) -> Self {
        Self {
            purged: checkpoint.purged.clone(),
            next: checkpoint.live.map(|(_, next)| next),
            absent: checkpoint.live.map_or(0, |(first, next)| next - first),
            ..Self::default()
        }
    }

    pub(super) fn purged(&self) -> Option<&(u64, Bytes)> {
        self.purged.as_ref()
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.next
    }

    pub(super) fn absent(&self) -> u64 {
        self.absent
    }

    fn first_slot(&self) -> Option<u64> {
        Some(self.next? - self.slots.len() as u64)
    }

    /// The first live index, or where the next entry goes; `None` if any index may come first.
    pub(super) fn first(&self) -> Option<u64> {
        Some(self.first_slot()? - self.absent)
    }

    pub(super) fn last(&self) -> Option<u64> {
        if self.slots.is_empty() && self.absent == 0 { None } else { self.next?.checked_sub(1) }
    }

    pub(super) fn live(&self) -> Option<(u64, u64)> {
        Some((self.first()?, self.next?))
    }

    /// The caller has checked that `index` comes next.
    pub(super) fn push(&mut self, index: u64, slot: Slot, bytes: Bytes) {
        debug_assert!(self.next.is_none_or(|next| next == index));
        self.next = Some(index + 1);
        self.slots.push_back(slot);
        self.cache_bytes += cost(&bytes);
        self.cache.push_back(bytes);
    }

    /// Drops entries from `from` on.
    pub(super) fn truncate(&mut self, from: u64) {
        let (Some(next), Some(first)) = (self.next, self.first()) else { return };
        let from = from.max(first);
        let mut left = next.saturating_sub(from);
        while left > 0 && self.slots.pop_back().is_some() {
            if let Some(bytes) = self.cache.pop_back() {
                self.cache_bytes -= cost(&bytes);
            }
            left -= 1;
        }
        self.absent -= left;
        self.next = Some(from.min(next));
    }

    /// Forgets entries up to and including `upto`, which is below `u64::MAX`.
    pub(super) fn purge(&mut self, upto: u64, position: Bytes) {
        if self.purged.as_ref().is_some_and(|(index, _)| *index >= upto) {
            return;
        }
        self.purged = Some((upto, position));
        match self.next {
            Some(next) if next > upto => {
                let mut left = (upto + 1).saturating_sub(self.first().unwrap_or(next));
                let absent = self.absent.min(left);
                self.absent -= absent;
                left -= absent;
                while left > 0 && self.slots.pop_front().is_some() {
                    if self.cache.len() > self.slots.len() {
                        self.drop_oldest_cached();
                    }
                    left -= 1;
                }
            }
            _ => {
                self.slots.clear();
                self.cache.clear();
                self.cache_bytes = 0;
                self.absent = 0;
                self.next = Some(upto + 1);
            }
        }
    }

    fn drop_oldest_cached(&mut self) {
        if let Some(bytes) = self.cache.pop_front() {
            self.cache_bytes -= cost(&bytes);
        }
    }

    /// Lets go of the oldest cached entries above the budget, if they stand before `written`.
    pub(super) fn evict(&mut self, written: Position, budget: usize) {
        while self.cache_bytes > budget {
            let oldest = self.slots.len() - self.cache.len();
            if self.slots.get(oldest).is_none_or(|slot| slot.at >= written) {
                return;
            }
            self.drop_oldest_cached();
        }
    }

    /// The segment of the oldest entry.
    pub(super) fn oldest_segment(&self) -> Option<u32> {
        self.slots.front().map(|slot| slot.at.segment)
    }

    pub(super) fn slot(&self, index: u64) -> Option<Slot> {
        let at = usize::try_from(index.checked_sub(self.first_slot()?)?).ok()?;
        self.slots.get(at).copied()
    }

    pub(super) fn cached(&self, index: u64) -> Option<&Bytes> {
        let first_cached = self.next? - self.cache.len() as u64;
        self.cache.get(usize::try_from(index.checked_sub(first_cached)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u32) -> Slot {
        Slot { at: Position { segment: 1, offset }, len: 1 }
    }

    fn filled(range: std::ops::Range<u64>) -> LogIndex {
        let mut index = LogIndex::default();
        for i in range {
            index.push(i, at(u32::try_from(i).unwrap() * 10), Bytes::from(vec![b'x'; 36]));
        }
        index
    }

    #[test]
    fn truncate_and_purge_keep_slots_and_cache_in_step() {
        let mut index = filled(5..20);
        index.evict(Position { segment: 1, offset: 100 }, 0);
        assert!(index.cached(9).is_none() && index.cached(10).is_some(), "what is not written stays");
        index.purge(12, Bytes::new());
        assert_eq!((index.first(), index.last()), (Some(13), Some(19)));
        assert_eq!(index.slot(13), Some(at(130)));
        assert!(index.slot(12).is_none() && index.cached(12).is_none());
        index.truncate(15);
        assert_eq!(index.last(), Some(14));
        assert!(index.cached(14).is_some() && index.cached(15).is_none());
        assert_eq!(index.cache_bytes, 200);
        index.truncate(0);
        assert_eq!((index.first(), index.last(), index.cache_bytes), (Some(13), None, 0));
    }

    #[test]
    fn a_purge_beyond_the_end_moves_the_start() {
        let mut index = filled(0..3);
        index.purge(10, Bytes::from_static(b"p"));
        assert_eq!((index.first(), index.last(), index.next()), (Some(11), None, Some(11)));
        index.purge(4, Bytes::new());
        assert_eq!(index.purged(), Some(&(10, Bytes::from_static(b"p"))), "purging never goes back");
    }

    #[test]
    fn absent_entries_go_by_purge_or_truncate() {
        let checkpoint = Checkpoint { live: Some((5, 10)), ..Checkpoint::default() };
        let mut index = LogIndex::from_checkpoint(&checkpoint);
        index.push(10, at(0), Bytes::new());
        assert_eq!((index.first(), index.absent()), (Some(5), 5));
        index.purge(6, Bytes::new());
        assert_eq!((index.first(), index.absent()), (Some(7), 3));
        index.truncate(8);
        assert_eq!((index.first(), index.last(), index.absent()), (Some(7), Some(7), 1));
        index.purge(7, Bytes::new());
        assert_eq!((index.absent(), index.next()), (0, Some(8)));
    }
}

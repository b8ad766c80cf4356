//! When history was written, and how many bytes of it compaction could give back.
//!
//! Invariants: buckets rise by revision and by time; each covers the revisions from its first up to
//! the next bucket's first; `bytes` is the sum of all buckets. All of it is replicated state, since
//! the quota is decided by it: buckets are opened, merged and released by log time and revisions only.

use crate::model::Revision;
use imbl::Vector;
use serde::{Deserialize, Serialize};

/// Buckets kept; at the limit neighbours are merged, which makes ages coarser.
const BUCKETS_MAX: usize = 8192;
const GRAIN_MIN_MS: u64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Bucket {
    first: Revision,
    /// Log time of the first and of the last revision in it.
    first_ms: u64,
    last_ms: u64,
    /// Logical bytes that these revisions superseded, their tombstones included.
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Timeline {
    buckets: Vector<Bucket>,
    bytes: u64,
    grain_ms: u64,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { buckets: Vector::new(), bytes: 0, grain_ms: GRAIN_MIN_MS }
    }
}

impl Timeline {
    /// Superseded bytes that have not been released.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn add(&mut self, revision: Revision, now_ms: u64, bytes: u64) {
        self.bytes += bytes;
        if let Some(last) = self.buckets.back_mut()
            && now_ms < last.first_ms.saturating_add(self.grain_ms)
        {
            last.last_ms = now_ms;
            last.bytes += bytes;
            return;
        }
        self.buckets.push_back(Bucket { first: revision, first_ms: now_ms, last_ms: now_ms, bytes });
        while self.buckets.len() > BUCKETS_MAX {
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        self.grain_ms = self.grain_ms.saturating_mul(2);
        let mut merged: Vec<Bucket> = Vec::with_capacity(BUCKETS_MAX);
        for bucket in &self.buckets {
            match merged.last_mut() {
                Some(last) if bucket.first_ms < last.first_ms.saturating_add(self.grain_ms) => {
                    last.last_ms = bucket.last_ms;
                    last.bytes += bucket.bytes;
                }
                _ => merged.push(*bucket),
            }
        }
        self.buckets = merged.into_iter().collect();
    }

    /// Releases the buckets whose revisions are all at or below `compacted`.
    pub(crate) fn release(&mut self, compacted: Revision, current: Revision) {
        while let Some(front) = self.buckets.front().copied() {
            if self.end_of(0, current) > compacted {
                break;
            }
            self.bytes -= front.bytes;
            self.buckets.pop_front();
        }
        if self.buckets.len() < BUCKETS_MAX / 4 {
            self.grain_ms = (self.grain_ms / 2).max(GRAIN_MIN_MS);
        }
    }

    /// The last revision of a bucket.
    fn end_of(&self, at: usize, current: Revision) -> Revision {
        self.buckets.get(at + 1).map_or(current, |next| next.first - 1)
    }

    /// A revision that was reached at or before that log time, as new as is known.
    pub(crate) fn revision_at(&self, at_ms: u64, current: Revision) -> Option<Revision> {
        let after = match self.buckets.binary_search_by(|bucket| {
            if bucket.first_ms <= at_ms { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater }
        }) {
            Ok(at) | Err(at) => at,
        };
        let at = after.checked_sub(1)?;
        let bucket = self.buckets.get(at)?;
        Some(if bucket.last_ms <= at_ms { self.end_of(at, current) } else { bucket.first })
    }

    /// What a damaged image could violate.
    pub(crate) fn is_sound(&self) -> bool {
        let rising = self.buckets.iter().zip(self.buckets.iter().skip(1));
        let sum = self.buckets.iter().try_fold(0u64, |sum, bucket| sum.checked_add(bucket.bytes));
        sum == Some(self.bytes)
            && self.buckets.len() <= BUCKETS_MAX
            && self.grain_ms >= GRAIN_MIN_MS
            && rising.into_iter().all(|(a, b)| a.first < b.first && a.first_ms < b.first_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_buckets_are_released() {
        let mut timeline = Timeline::default();
        timeline.add(2, 10_000, 5);
        timeline.add(3, 10_500, 7);
        timeline.add(4, 11_000, 11);
        assert_eq!(timeline.bytes(), 23);
        timeline.release(2, 4);
        assert_eq!(timeline.bytes(), 23, "revision 3 lies in the first bucket too");
        timeline.release(3, 4);
        assert_eq!(timeline.bytes(), 11);
        timeline.release(4, 4);
        assert_eq!(timeline.bytes(), 0);
        assert!(timeline.is_sound());
    }

    #[test]
    fn ages_are_answered_by_revisions_not_newer_than_asked() {
        let mut timeline = Timeline::default();
        for revision in 2..100 {
            timeline.add(revision, 400 * revision.cast_unsigned(), 1);
        }
        assert_eq!(timeline.revision_at(799, 99), None);
        for at_ms in 800_u64..50_000 {
            let exact = (at_ms / 400).min(99).cast_signed();
            let found = timeline.revision_at(at_ms, 99).unwrap();
            assert!(found <= exact && found >= exact - 2, "{found} at {at_ms}, not {exact}");
        }
    }

    #[test]
    fn many_buckets_become_coarser_and_keep_the_sum() {
        let mut timeline = Timeline::default();
        for second in 0..40_000_i64 {
            timeline.add(second + 2, 1000 * second.cast_unsigned(), 3);
        }
        assert!(timeline.is_sound());
        assert_eq!(timeline.bytes(), 120_000);
        let found = timeline.revision_at(20_000_500, 40_001).unwrap();
        assert!((19_990..=20_002).contains(&found), "{found}");
        timeline.release(40_001, 40_001);
        assert_eq!(timeline.bytes(), 0);
    }
}

//! One key of the index: its newest version (`Head`) and the places of its older ones.
//!
//! Invariants: immutable once in the tree, but for its `Slot`, which decides no answer; older
//! versions rise strictly by revision and lie below the head; a key has at most one version per
//! revision. It must not know what values mean.

use super::Slot;
use crate::model::{LeaseId, Revision};
use bytes::Bytes;
use imbl::Vector;
use smallvec::SmallVec;
use std::sync::Arc;

/// The newest version of a key, a tombstone included.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) main: Revision,
    pub(crate) create: Revision,
    /// 0 for a tombstone.
    pub(crate) version: i64,
    /// What the key is attached to now; the stored record tells what it was written with.
    pub(crate) lease: LeaseId,
    pub(crate) content_type: Option<Arc<str>>,
    /// Of the record as stored, so that it can leave the state hash without being read.
    pub(crate) hash: [u64; 2],
    pub(crate) value_size: u32,
    pub(crate) sub: u32,
}

impl Head {
    pub(crate) fn is_live(&self) -> bool {
        self.version > 0
    }

    pub(crate) fn place(&self) -> Place {
        Place { main: self.main, sub: self.sub, tombstone: !self.is_live() }
    }
}

/// Where a version is stored, and whether it is a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) main: Revision,
    pub(crate) sub: u32,
    pub(crate) tombstone: bool,
}

#[derive(Debug)]
pub(crate) struct KeyRecord {
    pub(crate) key: Bytes,
    pub(crate) head: Head,
    pub(crate) history: History,
    pub(crate) slot: Slot,
}

impl KeyRecord {
    /// The same key at the same version with another history; the value moves over.
    pub(crate) fn with_history(&self, history: History) -> Self {
        Self { key: self.key.clone(), head: self.head.clone(), history, slot: self.slot.moved() }
    }

    /// The same version, attached to another lease; the value moves over.
    pub(crate) fn with_lease(&self, lease: LeaseId) -> Self {
        let head = Head { lease, ..self.head.clone() };
        let slot = self.slot.moved();
        slot.rehang();
        Self { key: self.key.clone(), head, history: self.history.clone(), slot }
    }

    /// The version that was the newest at `revision`.
    pub(crate) fn at(&self, revision: Revision) -> Option<Place> {
        if self.head.main <= revision { Some(self.head.place()) } else { self.history.floor(revision) }
    }

    pub(crate) fn is_live_at(&self, revision: Revision) -> bool {
        self.at(revision).is_some_and(|place| !place.tombstone)
    }

    /// True if this version is indexed and still told of: it can be read at `compacted` or later, or
    /// it is the delete at `compacted` itself, whose event is kept with the others of that revision.
    pub(crate) fn retains(&self, main: Revision, sub: u32, compacted: Revision) -> bool {
        let head = self.head.place();
        if (head.main, head.sub) == (main, sub) {
            return !head.tombstone || main >= compacted;
        }
        let Some((place, next)) = self.history.find(main) else { return false };
        let superseded_at = next.unwrap_or(self.head.main);
        place.sub == sub && if place.tombstone { main >= compacted } else { superseded_at > compacted }
    }

    /// True if this version is indexed.
    pub(crate) fn has(&self, main: Revision, sub: u32) -> bool {
        (self.head.main, self.head.sub) == (main, sub)
            || self.history.find(main).is_some_and(|(place, _)| place.sub == sub)
    }

    /// The version before the one at `main`.
    pub(crate) fn before(&self, main: Revision) -> Option<Place> {
        self.at(main - 1)
    }

    /// Versions from the newest to the oldest.
    pub(crate) fn versions(&self) -> impl Iterator<Item = Place> + '_ {
        std::iter::once(self.head.place()).chain((0..self.history.len()).rev().map(|at| self.history.get(at)))
    }

    /// How many of the oldest versions in the history `retains` no more.
    pub(crate) fn expendable(&self, compacted: Revision) -> usize {
        // What most writes find, at the cost of one look.
        if self.history.entry(0).is_none_or(|oldest| oldest.main > compacted) {
            return 0;
        }
        // The version current at `compacted` stays if it is a put, or was written there.
        let upto = self.history.count_upto(compacted);
        if self.head.main <= compacted {
            return upto;
        }
        match upto.checked_sub(1).map(|newest| (newest, self.history.get(newest))) {
            Some((newest, place)) if !place.tombstone || place.main == compacted => newest,
            _ => upto,
        }
    }

    /// What compaction takes because of the write at `main`: so many of the oldest versions, and perhaps the
    /// whole key. What was written at `main` may go too, unless that is the compacted revision itself.
    pub(crate) fn losses(&self, main: Revision, compacted: Revision) -> (usize, bool) {
        let upto = compacted.min(main + 1);
        (self.expendable(upto), self.head.main < upto && !self.head.is_live())
    }
}

/// Older versions, oldest first. Most keys have none; a put copies the newest few, and shares the others.
#[derive(Debug, Clone, Default)]
pub(crate) enum History {
    #[default]
    None,
    One(Entry),
    Few(Box<[Entry]>),
    Many(Box<Many>),
}

/// More than `FEW_MAX` versions.
#[derive(Debug, Clone)]
pub(crate) struct Many {
    /// Of `older`; most writes look at it, and it lies far from here.
    oldest: Option<Entry>,
    /// Added to in one go, when there are `FEW_MAX` newest: copying a node of it costs more than copying those.
    older: Arc<Vector<Entry>>,
    /// One to `FEW_MAX`.
    newest: SmallVec<[Entry; FEW_MAX]>,
}

impl Many {
    fn new(older: Vector<Entry>, newest: SmallVec<[Entry; FEW_MAX]>) -> Self {
        Self { oldest: older.front().copied(), older: Arc::new(older), newest }
    }

    /// Of entries of which there is at least one.
    fn of(entries: impl Iterator<Item = Entry>) -> Self {
        let mut older: Vector<Entry> = entries.collect();
        let newest = older.pop_back().into_iter().collect();
        Self::new(older, newest)
    }

    fn len(&self) -> usize {
        self.older.len() + self.newest.len()
    }

    fn get(&self, at: usize) -> Option<Entry> {
        if at == 0 && self.oldest.is_some() {
            return self.oldest;
        }
        match at.checked_sub(self.older.len()) {
            None => self.older.get(at).copied(),
            Some(at) => self.newest.get(at).copied(),
        }
    }

    fn pushed(&self, new: Entry) -> Self {
        if self.newest.len() < FEW_MAX {
            let mut newest = SmallVec::from_slice(&self.newest);
            newest.push(new);
            return Self { oldest: self.oldest, older: self.older.clone(), newest };
        }
        let mut older = Vector::clone(&self.older);
        older.extend(self.newest.iter().copied());
        Self::new(older, SmallVec::from_slice(&[new]))
    }

    /// Without some of the older ones.
    fn without_oldest(&self, count: usize) -> Self {
        Self::new(self.older.skip(count), SmallVec::from_slice(&self.newest))
    }
}

const FEW_MAX: usize = 16;

/// 16 bytes: the lowest bit of `sub_and_kind` marks a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    main: Revision,
    sub_and_kind: u64,
}

impl Entry {
    fn new(place: Place) -> Self {
        Self { main: place.main, sub_and_kind: u64::from(place.sub) << 1 | u64::from(place.tombstone) }
    }

    fn place(self) -> Place {
        let sub = u32::try_from(self.sub_and_kind >> 1).unwrap_or(u32::MAX);
        Place { main: self.main, sub, tombstone: self.sub_and_kind & 1 == 1 }
    }
}

impl History {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    fn entry(&self, at: usize) -> Option<Entry> {
        match self {
            Self::None => None,
            Self::One(one) => (at == 0).then_some(*one),
            Self::Few(few) => few.get(at).copied(),
            Self::Many(many) => many.get(at),
        }
    }

    pub(crate) fn get(&self, at: usize) -> Place {
        self.entry(at).expect("a position below len").place()
    }

    /// How many versions have `main <= revision`.
    pub(crate) fn count_upto(&self, revision: Revision) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.get(middle).main <= revision { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn floor(&self, revision: Revision) -> Option<Place> {
        self.count_upto(revision).checked_sub(1).map(|at| self.get(at))
    }

    /// The version at exactly `main`, and the revision of the one after it in the history.
    fn find(&self, main: Revision) -> Option<(Place, Option<Revision>)> {
        let at = self.count_upto(main).checked_sub(1)?;
        let place = self.get(at);
        (place.main == main).then(|| (place, self.entry(at + 1).map(|next| next.main)))
    }

    pub(crate) fn from_places(places: impl ExactSizeIterator<Item = Place>) -> Self {
        match places.len() {
            0 => Self::None,
            1 => places.map(Entry::new).next().map_or(Self::None, Self::One),
            count if count <= FEW_MAX => Self::Few(places.map(Entry::new).collect()),
            _ => Self::Many(Box::new(Many::of(places.map(Entry::new)))),
        }
    }

    pub(crate) fn pushed(&self, place: Place) -> Self {
        let new = Entry::new(place);
        match self {
            Self::None => Self::One(new),
            Self::One(one) => Self::Few(Box::new([*one, new])),
            Self::Few(few) if few.len() < FEW_MAX => Self::Few(few.iter().copied().chain([new]).collect()),
            Self::Few(few) => Self::Many(Box::new(Many::of(few.iter().copied().chain([new])))),
            Self::Many(many) => Self::Many(Box::new(many.pushed(new))),
        }
    }

    /// Without the oldest `count` versions.
    pub(crate) fn without_oldest(&self, count: usize) -> Self {
        let left = self.len().saturating_sub(count);
        match self {
            Self::Many(many) if left > FEW_MAX => Self::Many(Box::new(many.without_oldest(count))),
            _ => Self::from_places((self.len() - left..self.len()).map(|at| self.get(at))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(main: Revision, tombstone: bool) -> Place {
        Place { main, sub: 7, tombstone }
    }

    #[test]
    fn every_form_of_history_agrees_with_a_vector() {
        let mut history = History::default();
        let mut model: Vec<Place> = Vec::new();
        for step in 0..200_i64 {
            let next = place(step * 3 + 2, step % 5 == 4);
            history = history.pushed(next);
            model.push(next);
            for drop in [0, 1, model.len() / 2, model.len()] {
                let short = history.without_oldest(drop);
                assert_eq!((0..short.len()).map(|at| short.get(at)).collect::<Vec<_>>(), model[drop..]);
            }
            for revision in [0, step, step * 3 + 1, step * 3 + 2, 1000] {
                assert_eq!(history.floor(revision), model.iter().rfind(|p| p.main <= revision).copied());
                assert_eq!(history.find(revision).map(|f| f.0), model.iter().find(|p| p.main == revision).copied());
            }
        }
    }

    #[test]
    fn a_key_stays_small() {
        assert_eq!(size_of::<Entry>(), 16);
        assert!(size_of::<KeyRecord>() <= 176, "{}", size_of::<KeyRecord>());
    }
}

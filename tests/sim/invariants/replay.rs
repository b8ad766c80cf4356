//! The store's history as its members told it, by key: what a read at any revision must have seen.

use crate::ledger::Book;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use tenure::model::{Event, EventKind, KeyRange, KeyValue, Revision};

pub(crate) struct Replay {
    keys: BTreeMap<Bytes, BTreeMap<Revision, Option<KeyValue>>>,
    revisions: Vec<Revision>,
}

impl Replay {
    pub(crate) fn of(book: &Book) -> Self {
        let mut keys: BTreeMap<Bytes, BTreeMap<Revision, Option<KeyValue>>> = BTreeMap::new();
        for (revision, told) in &book.told {
            for event in told.events.events.iter() {
                let now = matches!(event.kind, EventKind::Put).then(|| event.kv.clone());
                keys.entry(event.kv.key.clone()).or_default().insert(*revision, now);
            }
        }
        Self { keys, revisions: book.told.keys().copied().collect() }
    }

    /// Every revision was applied by somebody, so none may be missing.
    pub(crate) fn holes(&self) -> Vec<String> {
        let pairs = self.revisions.windows(2).filter(|pair| pair[1] != pair[0] + 1);
        pairs.map(|pair| format!("revisions: nobody applied what is between {} and {}", pair[0], pair[1])).collect()
    }

    pub(crate) fn newest(&self) -> Revision {
        self.revisions.last().copied().unwrap_or(0)
    }

    pub(crate) fn at(&self, key: &Bytes, revision: Revision) -> Option<&KeyValue> {
        let versions = self.keys.get(key)?;
        versions.range(..=revision).next_back()?.1.as_ref()
    }

    pub(crate) fn range_at(&self, range: &KeyRange, revision: Revision) -> Vec<&KeyValue> {
        let from = Bound::Included(range.start.clone());
        let to = range.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let keys = self.keys.range((from, to)).map(|(key, _)| key);
        keys.filter(|key| range.shows(key)).filter_map(|key| self.at(key, revision)).collect()
    }

    /// When a key was next deleted, from `revision` on.
    pub(crate) fn deleted_after(&self, key: &Bytes, revision: Revision) -> Option<Revision> {
        let versions = self.keys.get(key)?;
        versions.range(revision..).find(|(_, state)| state.is_none()).map(|(at, _)| *at)
    }

    /// The deletions below a prefix of keys that had been created before `created` and were there at it.
    pub(crate) fn deletions_before(&self, range: &KeyRange, created: Revision) -> Vec<Revision> {
        let from = Bound::Included(range.start.clone());
        let to = range.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let there = self
            .keys
            .range((from, to))
            .filter(|(key, _)| self.at(key, created).is_some_and(|kv| kv.create_revision < created));
        there.filter_map(|(key, _)| self.deleted_after(key, created)).collect()
    }
}

/// What an event says, without where its former state lies, which is the member's own affair.
pub(crate) fn same_event(one: &Event, other: &Event) -> bool {
    one.kind == other.kind && one.kv == other.kv
}

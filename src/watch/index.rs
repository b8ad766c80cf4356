//! Who is woken by a key: an exact-key map for single keys and an interval tree for ranges.

use super::intervals::Intervals;
use crate::model::KeyRange;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(super) struct Index<T> {
    exact: BTreeMap<Bytes, BTreeMap<u64, T>>,
    ranges: Intervals<T>,
}

/// The parts of a watcher's targets that can match, each once.
pub(super) type Parts = BTreeSet<KeyRange>;

/// What of `targets` can be seen at all: empty ranges dropped, the hidden prefix cut out.
pub(super) fn parts_of(targets: &[KeyRange]) -> Parts {
    targets.iter().flat_map(KeyRange::visible_parts).collect()
}

impl<T: Clone> Index<T> {
    pub(super) fn new() -> Self {
        Self { exact: BTreeMap::new(), ranges: Intervals::new() }
    }

    pub(super) fn insert(&mut self, parts: &Parts, id: u64, member: &T) {
        for part in parts {
            match part.single_key() {
                Some(key) => {
                    self.exact.entry(key.clone()).or_default().insert(id, member.clone());
                }
                None => self.ranges.insert(part, id, member.clone()),
            }
        }
    }

    pub(super) fn remove(&mut self, parts: &Parts, id: u64) {
        for part in parts {
            let Some(key) = part.single_key() else {
                self.ranges.remove(part, id);
                continue;
            };
            if let Some(members) = self.exact.get_mut(key) {
                members.remove(&id);
                if members.is_empty() {
                    self.exact.remove(key);
                }
            }
        }
    }

    /// Calls `hit` for whoever watches `key`, once per matching part. Returns the cost: tree nodes
    /// visited and members hit, the exact map counting as one node.
    pub(super) fn matching(&self, key: &[u8], mut hit: impl FnMut(&T)) -> usize {
        let mut hits = 0;
        let mut count = |member: &T| {
            hits += 1;
            hit(member);
        };
        if let Some(members) = self.exact.get(key) {
            members.values().for_each(&mut count);
        }
        let visited = self.ranges.containing(key, &mut count);
        1 + visited + hits
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.ranges.is_empty()
    }
}

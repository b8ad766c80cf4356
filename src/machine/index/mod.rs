//! The index: an ordered map from keys to their versions, as a copy-on-write B-tree.
//!
//! Invariants: cloning is O(1) and gives an unchanging snapshot; counts of live keys in any range
//! are O(log n); a change copies at most the path to its leaf, and nothing when the tree is not
//! shared. It must not know values, leases' meaning, or authorisation: callers cut ranges first.

mod iter;
mod key;
mod node;
mod slot;
mod sorted;
#[cfg(test)]
mod tests;

pub(crate) use iter::{Direction, Iter};
pub(crate) use key::{Head, History, KeyRecord, Place};
pub(crate) use slot::{Change, Slot};

use crate::model::{KeyRange, Revision};
use node::{Node, Summary};
use std::sync::Arc;

#[derive(Debug, Clone)]
pub(crate) struct Index {
    root: Arc<Node>,
    sum: Summary,
}

impl Default for Index {
    fn default() -> Self {
        Self::build(Vec::new())
    }
}

impl Index {
    /// From records in strictly rising key order.
    pub(crate) fn build(records: Vec<Arc<KeyRecord>>) -> Self {
        let root = node::build(records);
        let sum = root.sum();
        Self { root, sum }
    }

    /// Keys that exist now.
    pub(crate) fn live(&self) -> u64 {
        self.sum.live
    }

    /// Keys, deleted ones whose history is kept included.
    pub(crate) fn entries(&self) -> u64 {
        self.sum.entries
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<KeyRecord>> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(records) => return records.find(key),
                Node::Inner(inner) => node = &inner.children[inner.child_of(key)].node,
            }
        }
    }

    pub(crate) fn insert(&mut self, record: Arc<KeyRecord>) -> Option<Arc<KeyRecord>> {
        let new = record.clone();
        let node::Inserted { old, split } = node::insert(&mut self.root, record);
        node::grow_root(&mut self.root, split);
        self.sum = self.sum.replaced(old.as_deref(), Some(&new));
        old
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Arc<KeyRecord>> {
        // A key that is not there must not cost copies.
        self.get(key)?;
        let old = node::remove(&mut self.root, key)?;
        node::shrink_root(&mut self.root);
        self.sum = self.sum.replaced(Some(&old), None);
        Some(old)
    }

    /// Entries in the range, deleted keys included. With `newer_than`, only those changed after it;
    /// subtrees without any are skipped whole.
    pub(crate) fn iter<'a>(&'a self, range: &KeyRange, direction: Direction, newer_than: Revision) -> Iter<'a> {
        Iter::new(&self.root, range, direction, newer_than)
    }

    /// Keys in the range that existed at `revision`: O(log n) plus what has changed since.
    pub(crate) fn count(&self, range: &KeyRange, revision: Revision) -> u64 {
        if range.is_empty() {
            return 0;
        }
        count(&self.root, self.sum, Some(&range.start), range.end.as_deref(), revision)
    }
}

/// A bound is `None` where the whole subtree is known to lie inside it.
fn count(node: &Node, sum: Summary, start: Option<&[u8]>, end: Option<&[u8]>, revision: Revision) -> u64 {
    if start.is_none() && end.is_none() && sum.newest <= revision {
        return sum.live;
    }
    match node {
        Node::Leaf(records) => {
            let from = start.map_or(0, |start| records.lower_bound(start));
            let to = end.map_or(records.len(), |end| records.lower_bound(end));
            let inside = records.items().get(from..to).unwrap_or_default();
            let live = inside.iter().filter(|record| record.is_live_at(revision)).count();
            u64::try_from(live).unwrap_or(u64::MAX)
        }
        Node::Inner(inner) => {
            let first = start.map_or(0, |start| inner.child_of(start));
            let last = end.map_or(inner.children.len() - 1, |end| inner.child_of(end));
            (first..=last)
                .map(|at| {
                    let child = &inner.children[at];
                    let start = start.filter(|_| at == first);
                    let end = end.filter(|_| at == last);
                    count(&child.node, child.sum, start, end, revision)
                })
                .sum()
        }
    }
}

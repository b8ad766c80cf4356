//! Ordered iteration over a range of the index, forwards or backwards.

use super::key::KeyRecord;
use super::node::Node;
use crate::model::{KeyRange, Revision};
use bytes::Bytes;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

/// Yields the entries of one range in order. To leave a part out, start another at the new bound:
/// that is one descent.
#[derive(Debug)]
pub(crate) struct Iter<'a> {
    /// From the root down: a node, and which of its children or entries comes next. Going backwards
    /// the position is one above.
    path: Vec<(&'a Node, usize)>,
    direction: Direction,
    /// The bound the iteration runs into.
    limit: Option<Bytes>,
    newer_than: Revision,
}

impl<'a> Iter<'a> {
    pub(super) fn new(root: &'a Arc<Node>, range: &KeyRange, direction: Direction, newer_than: Revision) -> Self {
        let mut iter = Self { path: Vec::new(), direction, limit: None, newer_than };
        if range.is_empty() {
            return iter;
        }
        match direction {
            Direction::Forward => {
                iter.limit.clone_from(&range.end);
                iter.seek(root, Some(&range.start));
            }
            Direction::Backward => {
                iter.limit = Some(range.start.clone());
                iter.seek(root, range.end.as_deref());
            }
        }
        iter
    }

    /// Stands before the first key at or after `key`, or, backwards, after the last key before it.
    fn seek(&mut self, root: &'a Arc<Node>, key: Option<&[u8]>) {
        let mut node: &'a Node = root;
        loop {
            match node {
                Node::Leaf(records) => {
                    let at = key.map_or(records.len(), |key| records.lower_bound(key));
                    self.path.push((node, at));
                    return;
                }
                Node::Inner(inner) => {
                    let at = key.map_or(inner.children.len() - 1, |key| inner.child_of(key));
                    // The position is that of what follows this child.
                    let next = if self.direction == Direction::Forward { at + 1 } else { at };
                    self.path.push((node, next));
                    node = &inner.children[at].node;
                }
            }
        }
    }

    fn within(&self, record: &KeyRecord) -> bool {
        match (self.direction, &self.limit) {
            (_, None) => true,
            (Direction::Forward, Some(end)) => record.key < end,
            (Direction::Backward, Some(start)) => record.key >= start,
        }
    }

    /// The next position of the node on top, or `None` when it is used up.
    fn step(&mut self, size: usize) -> Option<usize> {
        let (_, position) = self.path.last_mut()?;
        match self.direction {
            Direction::Forward if *position < size => {
                *position += 1;
                Some(*position - 1)
            }
            Direction::Backward if *position > 0 => {
                *position -= 1;
                Some(*position)
            }
            Direction::Forward | Direction::Backward => {
                self.path.pop();
                None
            }
        }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<KeyRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (node, _) = *self.path.last()?;
            match node {
                Node::Leaf(records) => {
                    let Some(at) = self.step(records.len()) else { continue };
                    let record = &records.items()[at];
                    if !self.within(record) {
                        self.path.clear();
                        return None;
                    }
                    if record.head.main > self.newer_than {
                        return Some(record);
                    }
                }
                Node::Inner(inner) => {
                    let Some(at) = self.step(inner.children.len()) else { continue };
                    let child = &inner.children[at];
                    if child.sum.newest <= self.newer_than {
                        continue;
                    }
                    let start = match (self.direction, &*child.node) {
                        (Direction::Forward, _) => 0,
                        (Direction::Backward, Node::Leaf(records)) => records.len(),
                        (Direction::Backward, Node::Inner(inner)) => inner.children.len(),
                    };
                    self.path.push((&child.node, start));
                }
            }
        }
    }
}

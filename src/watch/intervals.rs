//! An interval tree: which of many key ranges contain a key, without looking at the others.
//!
//! A treap ordered by `(start, end)`, each node knowing the greatest end below it. Equal ranges share
//! a node, so that ten thousand watchers of one prefix are one node. Priorities come from a counter
//! through a mixing function: callers choose ranges, not priorities, so the depth stays logarithmic.

use crate::model::KeyRange;
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeMap;

#[derive(Debug)]
pub(super) struct Intervals<T> {
    root: Link<T>,
    inserted: u64,
}

type Link<T> = Option<Box<Node<T>>>;

#[derive(Debug)]
struct Node<T> {
    range: KeyRange,
    /// The greatest end in this subtree; `None` is unbounded.
    end_max: Option<Bytes>,
    priority: u64,
    members: BTreeMap<u64, T>,
    left: Link<T>,
    right: Link<T>,
}

impl<T> Intervals<T> {
    pub(super) fn new() -> Self {
        Self { root: None, inserted: 0 }
    }

    pub(super) fn insert(&mut self, range: &KeyRange, id: u64, member: T) {
        if let Some(node) = find(&mut self.root, range) {
            node.members.insert(id, member);
            return;
        }
        self.inserted += 1;
        let node = Node {
            range: range.clone(),
            end_max: range.end.clone(),
            priority: mix(self.inserted),
            members: BTreeMap::from([(id, member)]),
            left: None,
            right: None,
        };
        self.root = insert(self.root.take(), Box::new(node));
    }

    pub(super) fn remove(&mut self, range: &KeyRange, id: u64) {
        let Some(node) = find(&mut self.root, range) else { return };
        node.members.remove(&id);
        if node.members.is_empty() {
            self.root = remove(self.root.take(), range);
        }
    }

    /// Calls `hit` for every member of every range that contains `key`; returns the nodes visited.
    pub(super) fn containing(&self, key: &[u8], hit: &mut impl FnMut(&T)) -> usize {
        stab(&self.root, key, hit)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }
}

impl<T> Node<T> {
    fn refresh(&mut self) {
        let below = [&self.left, &self.right];
        let ends = below.into_iter().flatten().map(|node| &node.end_max);
        self.end_max = ends.fold(self.range.end.clone(), |max, end| match compare_ends(end, &max) {
            Ordering::Greater => end.clone(),
            Ordering::Less | Ordering::Equal => max,
        });
    }
}

fn compare_ends(a: &Option<Bytes>, b: &Option<Bytes>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    }
}

fn compare(a: &KeyRange, b: &KeyRange) -> Ordering {
    a.start.cmp(&b.start).then_with(|| compare_ends(&a.end, &b.end))
}

fn find<'a, T>(mut link: &'a mut Link<T>, range: &KeyRange) -> Option<&'a mut Node<T>> {
    while let Some(node) = link {
        match compare(range, &node.range) {
            Ordering::Less => link = &mut node.left,
            Ordering::Greater => link = &mut node.right,
            Ordering::Equal => return Some(node),
        }
    }
    None
}

fn insert<T>(link: Link<T>, mut new: Box<Node<T>>) -> Link<T> {
    match link {
        None => Some(new),
        Some(mut node) if node.priority >= new.priority => {
            if compare(&new.range, &node.range).is_lt() {
                node.left = insert(node.left.take(), new);
            } else {
                node.right = insert(node.right.take(), new);
            }
            node.refresh();
            Some(node)
        }
        Some(node) => {
            (new.left, new.right) = split(Some(node), &new.range);
            new.refresh();
            Some(new)
        }
    }
}

/// The nodes before `range` and those after it. `range` itself is not in the tree.
fn split<T>(link: Link<T>, range: &KeyRange) -> (Link<T>, Link<T>) {
    let Some(mut node) = link else { return (None, None) };
    if compare(&node.range, range).is_lt() {
        let (left, right) = split(node.right.take(), range);
        node.right = left;
        node.refresh();
        (Some(node), right)
    } else {
        let (left, right) = split(node.left.take(), range);
        node.left = right;
        node.refresh();
        (left, Some(node))
    }
}

fn remove<T>(link: Link<T>, range: &KeyRange) -> Link<T> {
    let mut node = link?;
    match compare(range, &node.range) {
        Ordering::Less => node.left = remove(node.left.take(), range),
        Ordering::Greater => node.right = remove(node.right.take(), range),
        Ordering::Equal => return merge(node.left.take(), node.right.take()),
    }
    node.refresh();
    Some(node)
}

fn merge<T>(left: Link<T>, right: Link<T>) -> Link<T> {
    match (left, right) {
        (None, other) | (other, None) => other,
        (Some(mut left), Some(right)) if left.priority >= right.priority => {
            left.right = merge(left.right.take(), Some(right));
            left.refresh();
            Some(left)
        }
        (left, Some(mut right)) => {
            right.left = merge(left, right.left.take());
            right.refresh();
            Some(right)
        }
    }
}

fn stab<T>(link: &Link<T>, key: &[u8], hit: &mut impl FnMut(&T)) -> usize {
    let Some(node) = link else { return 0 };
    if node.end_max.as_ref().is_some_and(|end| &end[..] <= key) {
        return 1;
    }
    let mut visited = 1 + stab(&node.left, key, hit);
    if &node.range.start[..] <= key {
        if node.range.contains(key) {
            node.members.values().for_each(&mut *hit);
        }
        visited += stab(&node.right, key, hit);
    }
    visited
}

/// SplitMix64's finaliser.
fn mix(counter: u64) -> u64 {
    let mut x = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

//! The nodes of the copy-on-write tree: insertion, removal, bulk building.
//!
//! Invariants: leaves hold keys in rising order; `bounds[i]` is above every key of child `i` and not
//! above any of child `i + 1`; all leaves have one depth; every node but the root holds at least one
//! entry; a child's summary covers exactly what lies below it (`newest` may be too high after a
//! removal, never too low). A shared node is never changed: `Arc::make_mut` copies it.

use super::key::KeyRecord;
use super::sorted::Sorted;
use crate::model::Revision;
use bytes::Bytes;
use std::sync::Arc;

pub(super) const LEAF_MAX: usize = 32;
pub(super) const INNER_MAX: usize = 32;
const LEAF_MIN: usize = LEAF_MAX / 4;
const INNER_MIN: usize = INNER_MAX / 4;
/// How full the nodes of a bulk build are: the first insertions should not split each of them.
const BULK_FILL: usize = 26;

#[derive(Debug, Clone)]
pub(super) enum Node {
    Leaf(Sorted<Arc<KeyRecord>>),
    Inner(Inner),
}

#[derive(Debug, Clone)]
pub(super) struct Inner {
    /// Shared, so that copying an inner node costs one count, not one per bound.
    pub(super) bounds: Arc<Sorted<Bytes>>,
    pub(super) children: Vec<Child>,
}

#[derive(Debug, Clone)]
pub(super) struct Child {
    pub(super) node: Arc<Node>,
    pub(super) sum: Summary,
}

/// What a subtree holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Keys, deleted ones whose history is kept included.
    pub(crate) entries: u64,
    /// Keys that exist now.
    pub(crate) live: u64,
    /// Not below any key's newest revision: a subtree with `newest <= r` looks now as it did at `r`.
    pub(crate) newest: Revision,
}

impl Summary {
    fn of(record: &KeyRecord) -> Self {
        Self { entries: 1, live: u64::from(record.head.is_live()), newest: record.head.main }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            entries: self.entries + other.entries,
            live: self.live + other.live,
            newest: self.newest.max(other.newest),
        }
    }

    pub(super) fn replaced(self, old: Option<&KeyRecord>, new: Option<&KeyRecord>) -> Self {
        let old = old.map(Self::of).unwrap_or_default();
        let new = new.map(Self::of).unwrap_or_default();
        Self {
            entries: self.entries + new.entries - old.entries,
            live: self.live + new.live - old.live,
            newest: self.newest.max(new.newest),
        }
    }
}

impl Node {
    pub(super) fn sum(&self) -> Summary {
        match self {
            Self::Leaf(records) => {
                records.items().iter().map(|record| Summary::of(record)).fold(Summary::default(), Summary::plus)
            }
            Self::Inner(inner) => inner.children.iter().map(|child| child.sum).fold(Summary::default(), Summary::plus),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Leaf(records) => records.len(),
            Self::Inner(inner) => inner.children.len(),
        }
    }

    fn is_small(&self) -> bool {
        match self {
            Self::Leaf(records) => records.len() < LEAF_MIN,
            Self::Inner(inner) => inner.children.len() < INNER_MIN,
        }
    }
}

impl Inner {
    /// The child that holds `key`, if any does.
    pub(super) fn child_of(&self, key: &[u8]) -> usize {
        match self.bounds.search(key) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }

    /// The one child, when merging has left only one.
    fn only_child(&mut self) -> Option<Child> {
        if self.children.len() == 1 { self.children.pop() } else { None }
    }
}

/// What an insertion did to a node: the entry it replaced, and the new right neighbour with the
/// bound between them if it split.
pub(super) struct Inserted {
    pub(super) old: Option<Arc<KeyRecord>>,
    pub(super) split: Option<(Bytes, Child)>,
}

pub(super) fn insert(node: &mut Arc<Node>, record: Arc<KeyRecord>) -> Inserted {
    match Arc::make_mut(node) {
        Node::Leaf(records) => insert_into_leaf(records, record),
        Node::Inner(inner) => {
            let at = inner.child_of(&record.key);
            let child = &mut inner.children[at];
            let new = record.clone();
            let Inserted { old, split } = insert(&mut child.node, record);
            child.sum = match &split {
                None => child.sum.replaced(old.as_deref(), Some(&new)),
                Some(_) => child.node.sum(),
            };
            let split = split.and_then(|(bound, right)| {
                inner.bounds = with_inserted(inner.bounds.items(), at, bound);
                inner.children.insert(at + 1, right);
                split_inner(inner)
            });
            Inserted { old, split }
        }
    }
}

fn insert_into_leaf(records: &mut Sorted<Arc<KeyRecord>>, record: Arc<KeyRecord>) -> Inserted {
    let at = match records.search(&record.key) {
        Ok(at) => return Inserted { old: Some(records.replace(at, record)), split: None },
        Err(at) => at,
    };
    if records.len() < LEAF_MAX {
        records.insert(at, record);
        return Inserted { old: None, split: None };
    }
    // Rising keys leave full leaves behind them.
    let cut = if at == records.len() { at } else { records.len() / 2 };
    let mut right = records.split_off(cut);
    if at >= cut {
        right.insert(at - cut, record);
    } else {
        records.insert(at, record);
    }
    Inserted { old: None, split: Some(leaf(right)) }
}

/// A leaf with the bound below it.
fn leaf(records: Vec<Arc<KeyRecord>>) -> (Bytes, Child) {
    let bound = records.first().map(|record| record.key.clone()).unwrap_or_default();
    let node = Arc::new(Node::Leaf(Sorted::new(records)));
    let sum = node.sum();
    (bound, Child { node, sum })
}

fn bounds(keys: impl Iterator<Item = Bytes>) -> Arc<Sorted<Bytes>> {
    Arc::new(Sorted::new(keys.collect()))
}

fn split_inner(inner: &mut Inner) -> Option<(Bytes, Child)> {
    let count = inner.children.len();
    if count <= INNER_MAX {
        return None;
    }
    let cut = count / 2;
    let children = inner.children.split_off(cut);
    let old = inner.bounds.clone();
    let old = old.items();
    let bound = old[cut - 1].clone();
    let right = bounds(old[cut..].iter().cloned());
    inner.bounds = bounds(old[..cut - 1].iter().cloned());
    let node = Arc::new(Node::Inner(Inner { bounds: right, children }));
    let sum = node.sum();
    Some((bound, Child { node, sum }))
}

fn with_inserted(old: &[Bytes], at: usize, bound: Bytes) -> Arc<Sorted<Bytes>> {
    bounds(old[..at].iter().cloned().chain([bound]).chain(old[at..].iter().cloned()))
}

pub(super) fn remove(node: &mut Arc<Node>, key: &[u8]) -> Option<Arc<KeyRecord>> {
    match Arc::make_mut(node) {
        Node::Leaf(records) => records.search(key).ok().map(|at| records.remove(at)),
        Node::Inner(inner) => {
            let at = inner.child_of(key);
            let child = &mut inner.children[at];
            let old = remove(&mut child.node, key)?;
            child.sum = child.sum.replaced(Some(&old), None);
            if child.node.is_small() {
                refill(inner, at);
            }
            Some(old)
        }
    }
}

/// Joins a small child with a neighbour, and cuts the result again if it is too large for one node.
fn refill(inner: &mut Inner, at: usize) {
    let Some(left) = at.checked_sub(1).or((inner.children.len() > 1).then_some(0)) else { return };
    let right = inner.children.remove(left + 1);
    let old = inner.bounds.clone();
    let old = old.items();
    let child = &mut inner.children[left];
    let rest = join(Arc::make_mut(&mut child.node), &right.node, &old[left]);
    child.sum = child.node.sum();
    let (before, after) = (old[..left].iter().cloned(), old[left + 1..].iter().cloned());
    match rest {
        Some((bound, right)) => {
            inner.bounds = bounds(before.chain([bound]).chain(after));
            inner.children.insert(left + 1, right);
        }
        None => inner.bounds = bounds(before.chain(after)),
    }
}

fn join(left: &mut Node, right: &Node, bound: &Bytes) -> Option<(Bytes, Child)> {
    match (left, right) {
        (Node::Leaf(records), Node::Leaf(more)) => {
            let mut all = std::mem::replace(records, Sorted::new(Vec::new())).into_items();
            all.extend(more.items().iter().cloned());
            let rest = if all.len() > LEAF_MAX { all.split_off(all.len() / 2) } else { Vec::new() };
            *records = Sorted::new(all);
            (!rest.is_empty()).then(|| leaf(rest))
        }
        (Node::Inner(inner), Node::Inner(more)) => {
            let old = inner.bounds.clone();
            inner.bounds = bounds(old.items().iter().chain([bound]).chain(more.bounds.items()).cloned());
            inner.children.extend(more.children.iter().cloned());
            split_inner(inner)
        }
        _ => unreachable!("siblings have one depth"),
    }
}

/// The root after `insert` or `remove` has changed what lies below it.
pub(super) fn grow_root(root: &mut Arc<Node>, split: Option<(Bytes, Child)>) {
    if let Some((bound, right)) = split {
        let sum = root.sum();
        let left = Child { node: root.clone(), sum };
        *root = Arc::new(Node::Inner(Inner { bounds: bounds([bound].into_iter()), children: vec![left, right] }));
    }
}

pub(super) fn shrink_root(root: &mut Arc<Node>) {
    while root.size() == 1 {
        let Node::Inner(inner) = Arc::make_mut(root) else { return };
        let Some(child) = inner.only_child() else { return };
        *root = child.node;
    }
}

/// A tree of records in strictly rising key order.
pub(super) fn build(records: Vec<Arc<KeyRecord>>) -> Arc<Node> {
    let mut level: Vec<(Bytes, Child)> = even_chunks(records, BULK_FILL).map(leaf).collect();
    while level.len() > 1 {
        level = even_chunks(level, BULK_FILL)
            .map(|group| {
                let (mut keys, children): (Vec<Bytes>, Vec<Child>) = group.into_iter().unzip();
                let first = keys.remove(0);
                let node = Arc::new(Node::Inner(Inner { bounds: bounds(keys.into_iter()), children }));
                let sum = node.sum();
                (first, Child { node, sum })
            })
            .collect();
    }
    level.pop().map_or_else(|| leaf(Vec::new()).1.node, |(_, child)| child.node)
}

/// Cuts into the fewest chunks of at most `most`, as equal as can be.
fn even_chunks<T>(items: Vec<T>, most: usize) -> impl Iterator<Item = Vec<T>> {
    let chunks = items.len().div_ceil(most);
    let total = items.len();
    let mut items = items.into_iter();
    (0..chunks).map(move |chunk| {
        let size = total * (chunk + 1) / chunks - total * chunk / chunks;
        let mut out = Vec::with_capacity(size);
        out.extend(items.by_ref().take(size));
        out
    })
}

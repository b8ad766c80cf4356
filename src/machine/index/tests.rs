//! The tree against `BTreeMap`, with old snapshots kept and its shape checked.

use super::node::{INNER_MAX, LEAF_MAX, Node, Summary};
use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A key's newest revision and whether it is live; one older version at revision 1.
type Model = BTreeMap<u16, (Revision, bool)>;

/// Keys that share long and short beginnings, end in zeros and begin each other, in order.
fn name(key: u16) -> Bytes {
    let stems = ["", "a", "a/long/common/beginning/", "a/long/common/beginning/of/ten/more", "b"];
    let stem = (key / 150).min(4);
    let [high, low] = (key - 150 * stem).to_be_bytes();
    let mut name = [stems[usize::from(stem)].as_bytes(), &[high, low / 4]].concat();
    name.extend(std::iter::repeat_n(0, usize::from(low % 4)));
    name.into()
}

#[test]
fn test_keys_rise() {
    assert!((1..6000).all(|key| name(key - 1) < name(key)));
}

fn record(key: u16, main: Revision, live: bool) -> Arc<KeyRecord> {
    let head = Head {
        main,
        create: main,
        version: i64::from(live),
        lease: 0,
        content_type: None,
        hash: [0; 2],
        value_size: 0,
        sub: 0,
    };
    let older = Place { main: 1, sub: 0, tombstone: key.is_multiple_of(2) };
    Arc::new(KeyRecord { key: name(key), head, history: History::default().pushed(older), slot: Slot::default() })
}

fn range(from: u16, to: Option<u16>) -> KeyRange {
    KeyRange { start: name(from), end: to.map(name) }
}

/// Checks order, bounds, sizes, summaries and depth; answers the depth.
fn check(node: &Node, sum: Summary, is_root: bool) -> usize {
    let actual = node.sum();
    assert_eq!((actual.entries, actual.live), (sum.entries, sum.live));
    assert!(actual.newest <= sum.newest);
    match node {
        Node::Leaf(records) => {
            assert!(records.len() <= LEAF_MAX && (is_root || records.len() > 0));
            let records = records.items();
            assert!(records.windows(2).all(|pair| pair[0].key < pair[1].key));
            1
        }
        Node::Inner(inner) => {
            assert!(inner.children.len() <= INNER_MAX && inner.children.len() >= if is_root { 2 } else { 1 });
            assert_eq!(inner.bounds.len() + 1, inner.children.len());
            let depths: Vec<usize> = inner.children.iter().map(|c| check(&c.node, c.sum, false)).collect();
            assert!(depths.windows(2).all(|pair| pair[0] == pair[1]));
            for (at, bound) in inner.bounds.items().iter().enumerate() {
                assert!(last(&inner.children[at].node) < bound && first(&inner.children[at + 1].node) >= bound);
            }
            depths[0] + 1
        }
    }
}

fn first(node: &Node) -> &Bytes {
    match node {
        Node::Leaf(records) => &records.items()[0].key,
        Node::Inner(inner) => first(&inner.children[0].node),
    }
}

fn last(node: &Node) -> &Bytes {
    match node {
        Node::Leaf(records) => &records.items()[records.len() - 1].key,
        Node::Inner(inner) => last(&inner.children[inner.children.len() - 1].node),
    }
}

fn compare(index: &Index, model: &Model, bounds: &[(u16, Option<u16>, Revision)]) {
    assert_eq!(index.entries(), model.len() as u64);
    assert_eq!(index.live(), model.values().filter(|state| state.1).count() as u64);
    for &(from, to, revision) in bounds {
        let range = range(from, to);
        let inside: Vec<(u16, (Revision, bool))> =
            model.iter().filter(|(key, _)| range.contains(&name(**key))).map(|(key, state)| (*key, *state)).collect();
        let alive = |key: u16, (main, live): (Revision, bool)| match revision {
            revision if revision >= main => live,
            revision => revision >= 1 && !key.is_multiple_of(2),
        };
        let count = inside.iter().filter(|(key, state)| alive(*key, *state)).count();
        assert_eq!(index.count(&range, revision), count as u64, "{range:?} at {revision}");
        let newer = |at: Revision| inside.iter().filter(move |(_, state)| state.0 > at).map(|(key, _)| name(*key));
        for newer_than in [0, revision] {
            let forward: Vec<Bytes> =
                index.iter(&range, Direction::Forward, newer_than).map(|record| record.key.clone()).collect();
            assert_eq!(forward, newer(newer_than).collect::<Vec<_>>());
            let backward: Vec<Bytes> =
                index.iter(&range, Direction::Backward, newer_than).map(|record| record.key.clone()).collect();
            assert_eq!(backward, newer(newer_than).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>());
        }
        assert_eq!(index.get(&name(from)).map(|record| record.head.main), model.get(&from).map(|state| state.0));
    }
}

fn bounds() -> impl Strategy<Value = Vec<(u16, Option<u16>, Revision)>> {
    proptest::collection::vec((0..700u16, proptest::option::of(0..700u16), 0..900i64), 6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_map_and_old_snapshots_stay_as_they_were(
        initial in 0..500u16,
        steps in proptest::collection::vec((0..8u8, 0..600u16, any::<bool>()), 0..800),
        snapshot_every in 1..200usize,
        bounds in bounds(),
    ) {
        let mut model: Model = (0..initial).map(|key| (key, (2, true))).collect();
        let mut index = Index::build((0..initial).map(|key| record(key, 2, true)).collect());
        let mut snapshots = vec![(index.clone(), model.clone())];
        for (at, (kind, key, live)) in steps.into_iter().enumerate() {
            let main = 3 + Revision::try_from(at).unwrap();
            // Runs of removals empty whole nodes.
            match kind {
                0..=3 => {
                    let old = index.insert(record(key, main, live));
                    prop_assert_eq!(old.map(|old| old.head.main), model.insert(key, (main, live)).map(|old| old.0));
                }
                4 | 5 => {
                    let old = index.remove(&name(key));
                    prop_assert_eq!(old.map(|old| old.head.main), model.remove(&key).map(|old| old.0));
                }
                _ => {
                    for key in key..key + 12 {
                        index.remove(&name(key));
                        model.remove(&key);
                    }
                }
            }
            if at % snapshot_every == 0 {
                snapshots.push((index.clone(), model.clone()));
            }
        }
        snapshots.push((index, model));
        for (index, model) in &snapshots {
            check(&index.root, index.sum, true);
            compare(index, model, &bounds);
        }
    }
}

#[test]
fn an_unshared_tree_is_changed_in_place_and_a_shared_one_by_path() {
    let mut index = Index::build((0..5000).map(|key| record(key, 2, true)).collect());
    let leaves = |index: &Index| {
        fn gather(node: &Arc<Node>, out: &mut Vec<*const Node>) {
            out.push(Arc::as_ptr(node));
            if let Node::Inner(inner) = &**node {
                inner.children.iter().for_each(|child| gather(&child.node, out));
            }
        }
        let mut out = Vec::new();
        gather(&index.root, &mut out);
        out
    };
    let before = leaves(&index);
    index.insert(record(77, 3, false));
    assert_eq!(leaves(&index), before);
    let shared = index.clone();
    index.insert(record(78, 4, false));
    let copied = leaves(&index).iter().zip(&before).filter(|(a, b)| a != b).count();
    assert!((2..=4).contains(&copied), "{copied} nodes copied");
    assert_eq!(leaves(&shared), before);
    assert_eq!((shared.live(), index.live()), (4999, 4998));
}

#[test]
fn rising_keys_fill_their_leaves() {
    let mut index = Index::default();
    for key in 0..3200 {
        index.insert(record(key, 2, true));
    }
    fn count(node: &Node) -> usize {
        match node {
            Node::Leaf(_) => 1,
            Node::Inner(inner) => inner.children.iter().map(|child| count(&child.node)).sum(),
        }
    }
    assert_eq!(count(&index.root), 100);
    check(&index.root, index.sum, true);
}

//! The index against a plain scan.

use super::super::index::{Index, Parts, parts_of};
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(prop::sample::select(b"ab\xff\0".to_vec()), 0..4),
        Just(b"_tenure/a".to_vec()),
        Just(b"_tenure0".to_vec()),
        Just(b"_t".to_vec()),
    ]
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::key),
        key().prop_map(KeyRange::prefix),
        (key(), proptest::option::of(key()))
            .prop_map(|(start, end)| KeyRange { start: start.into(), end: end.map(Into::into) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn finds_exactly_the_ranges_that_show_a_key(
        watchers in prop::collection::vec(prop::collection::vec(range(), 1..4), 1..40),
        keys in prop::collection::vec(key(), 1..20),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let mut index = Index::new();
        let mut live: BTreeMap<u64, (Parts, Vec<KeyRange>)> = BTreeMap::new();
        for (id, targets) in (0_u64..).zip(watchers) {
            let parts = parts_of(&targets);
            index.insert(&parts, id, &id);
            live.insert(id, (parts, targets));
        }
        let mut removed = removed.into_iter();
        loop {
            for key in &keys {
                let mut found = BTreeSet::new();
                index.matching(key, |id| { found.insert(*id); });
                let wanted = live.iter().filter(|(_, (_, targets))| targets.iter().any(|t| t.shows(key)));
                prop_assert_eq!(found, wanted.map(|(id, _)| *id).collect());
            }
            let Some(pick) = removed.next().filter(|_| !live.is_empty()) else { break };
            let id = *live.keys().nth(pick.index(live.len())).expect("the index is within");
            let (parts, _) = live.remove(&id).expect("it is live");
            index.remove(&parts, id);
        }
        for (id, (parts, _)) in live {
            index.remove(&parts, id);
        }
        prop_assert!(index.is_empty());
    }
}

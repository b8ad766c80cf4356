//! Whether ranges cover a range.
//!
//! Invariant: a range is covered exactly if every key that it shows is shown by one of the ranges; what
//! has no key in it is covered by whoever covers its first key, so that nonsense is no way round.

use crate::model::{KeyRange, Permission, key};
use bytes::Bytes;

/// What the permissions' ranges show, in order, each key once.
pub(super) fn merged<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Vec<KeyRange> {
    let ranges: Vec<KeyRange> = permissions.map(|permission| permission.range.clone()).collect();
    key::union(&ranges)
}

/// Whether the ranges of all these lists together, each as `merged` gives it, cover `range`.
pub(super) fn covered<'a, I>(range: &KeyRange, lists: impl Fn() -> I) -> bool
where
    I: Iterator<Item = &'a [KeyRange]>,
{
    let parts = if range.is_empty() { vec![KeyRange::key(range.start.clone())] } else { range.visible_parts() };
    parts.iter().all(|part| {
        // There is no empty key.
        let mut at: &[u8] = if part.start.is_empty() { b"\0" } else { &part.start };
        loop {
            if part.end.as_ref().is_some_and(|end| at >= &end[..]) {
                return true;
            }
            match furthest(at, lists()) {
                Reach::Nowhere => return false,
                Reach::To(end) => at = end,
                Reach::All => return true,
            }
        }
    })
}

/// How far the ranges that hold a key go on from it; greater is further.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach<'a> {
    Nowhere,
    To(&'a Bytes),
    All,
}

fn furthest<'a>(at: &[u8], lists: impl Iterator<Item = &'a [KeyRange]>) -> Reach<'a> {
    let reach = |ranges: &'a [KeyRange]| {
        let after = ranges.partition_point(|range| &range.start[..] <= at);
        match after.checked_sub(1).map(|last| &ranges[last]).filter(|range| range.contains(at)) {
            None => Reach::Nowhere,
            Some(KeyRange { end: Some(end), .. }) => Reach::To(end),
            Some(KeyRange { end: None, .. }) => Reach::All,
        }
    };
    lists.map(reach).max().unwrap_or(Reach::Nowhere)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Access;
    use proptest::prelude::*;

    /// Every key of up to three bytes of a small alphabet, with the edges of the hidden space among them.
    fn keys() -> Vec<Vec<u8>> {
        let mut keys: Vec<Vec<u8>> = [&b"_"[..], b"_tenure", b"_tenure/", b"_tenure/\0", b"_tenure/a", b"_tenure/b"]
            .into_iter()
            .chain([&b"_tenure0"[..], b"_tenure0\0", b"_tenurf"])
            .map(<[u8]>::to_vec)
            .collect();
        let alphabet = [0, b'a', b'b', 0xff];
        for one in alphabet {
            keys.push(vec![one]);
            for two in alphabet {
                keys.push(vec![one, two]);
                keys.extend(alphabet.map(|three| vec![one, two, three]));
            }
        }
        keys
    }

    fn edge() -> impl Strategy<Value = Bytes> {
        prop::sample::select(keys()).prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        prop_oneof![
            4 => (edge(), edge()).prop_map(|(start, end)| KeyRange { start, end: Some(end) }),
            2 => edge().prop_map(KeyRange::key),
            2 => edge().prop_map(KeyRange::prefix),
            1 => edge().prop_map(|start| KeyRange { start, end: None }),
            1 => Just(KeyRange::all()),
        ]
    }

    /// All keys that could tell two ranges apart whose edges are of `keys`: those, and what comes right after each.
    fn probes() -> Vec<Vec<u8>> {
        let after = |key: &Vec<u8>| [&key[..], b"\0"].concat();
        let mut probes: Vec<Vec<u8>> = keys().iter().flat_map(|key| [key.clone(), after(key)]).collect();
        probes.extend(keys().iter().flat_map(|key| crate::model::key::prefix_end(key)).map(|end| end.to_vec()));
        probes.extend(probes.clone().iter().map(|probe| [&probe[..], b"\0"].concat()));
        probes
    }

    fn naive(range: &KeyRange, permissions: &[KeyRange]) -> bool {
        let allowed = |key: &[u8]| permissions.iter().any(|permission| permission.shows(key));
        if range.is_empty() {
            allowed(&range.start)
        } else {
            probes().iter().all(|key| !range.shows(key) || allowed(key))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn a_range_is_covered_if_each_of_its_keys_is(
            roles in prop::collection::vec(prop::collection::vec(range(), 0..5), 0..4),
            asked in prop::collection::vec(range(), 1..12),
        ) {
            let all: Vec<KeyRange> = roles.iter().flatten().cloned().collect();
            let lists: Vec<Vec<KeyRange>> = roles
                .into_iter()
                .map(|ranges| {
                    let permissions: Vec<_> =
                        ranges.into_iter().map(|range| Permission { range, access: Access::Read }).collect();
                    merged(permissions.iter())
                })
                .collect();
            for range in asked.iter().chain(&all) {
                let found = covered(range, || lists.iter().map(|list| &list[..]));
                prop_assert_eq!(found, naive(range, &all), "{:?} by {:?}", range, all);
            }
        }
    }

    #[test]
    fn who_may_read_one_key_may_not_read_on_from_it() {
        let one = [KeyRange::key("a")];
        let by = |range: KeyRange| covered(&range, || [&one[..]].into_iter());
        assert!(by(KeyRange::key("a")));
        assert!(!by(KeyRange { start: "a".into(), end: None }));
        assert!(!by(KeyRange { start: "a".into(), end: Some("a\0\0".into()) }));
        assert!(!by(KeyRange { start: "b".into(), end: Some("a".into()) }), "inverted");
        assert!(!by(KeyRange::all()));
    }

    #[test]
    fn a_role_for_all_keys_covers_all_that_is_seen_and_nothing_hidden() {
        let all =
            merged([Permission { range: KeyRange { start: "\0".into(), end: None }, access: Access::Read }].iter());
        let by = |range: KeyRange| covered(&range, || [&all[..]].into_iter());
        assert!(by(KeyRange::all()) && by(KeyRange::prefix("_")) && by(KeyRange::key("_tenure")));
        assert!(!by(KeyRange::prefix("_tenure/")) && !by(KeyRange::key("_tenure/locks/a/1")));
        assert!(!by(KeyRange { start: "_tenure/x".into(), end: Some("b".into()) }));
    }
}

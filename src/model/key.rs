//! Keys are bytes; a `KeyRange` is the one interval type for reads, deletes, watches and rights.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Keys of locks, elections, semaphores, rate limits and namespaces live below this prefix.
/// A range sees them only when its start lies below the prefix too (`KeyRange::visible_parts`).
pub const HIDDEN_PREFIX: &[u8] = b"_tenure/";
const HIDDEN_END: &[u8] = b"_tenure0";

/// The half-open interval `[start, end)` of keys in byte order; `end: None` is unbounded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Just `key`.
    #[must_use]
    pub fn key(key: impl Into<Bytes>) -> Self {
        let start: Bytes = key.into();
        let mut end = Vec::with_capacity(start.len() + 1);
        end.extend_from_slice(&start);
        end.push(0);
        Self { start, end: Some(end.into()) }
    }

    /// Every key that begins with `prefix`; the empty prefix is every key.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let end = prefix_end(&start);
        Self { start, end }
    }

    #[must_use]
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// The key itself when the range holds exactly one possible key.
    #[must_use]
    pub fn single_key(&self) -> Option<&Bytes> {
        let end = self.end.as_ref()?;
        let (last, head) = end.split_last()?;
        (*last == 0 && head == &self.start[..]).then_some(&self.start)
    }

    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// True when no key can be inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end[..] <= self.start[..])
    }

    /// What of this range its caller gets to see: a range that starts below `HIDDEN_PREFIX` sees
    /// that key space, any other has it cut out. At most two parts, in key order, none empty.
    #[must_use]
    pub fn visible_parts(&self) -> Vec<KeyRange> {
        if self.is_empty() {
            return Vec::new();
        }
        let covers_hidden = !self.start.starts_with(HIDDEN_PREFIX)
            && &self.start[..] < HIDDEN_END
            && self.end.as_ref().is_none_or(|end| &end[..] > HIDDEN_PREFIX);
        if !covers_hidden {
            return vec![self.clone()];
        }
        let below = KeyRange { start: self.start.clone(), end: Some(Bytes::from_static(HIDDEN_PREFIX)) };
        let above = KeyRange { start: Bytes::from_static(HIDDEN_END), end: self.end.clone() };
        [below, above].into_iter().filter(|part| !part.is_empty()).collect()
    }

    /// True when `key` is in the range and not cut out by the hidden prefix.
    #[must_use]
    pub fn shows(&self, key: &[u8]) -> bool {
        self.contains(key) && (!key.starts_with(HIDDEN_PREFIX) || self.start.starts_with(HIDDEN_PREFIX))
    }
}

/// What the ranges show, each key in exactly one of the answered ones, in key order.
#[must_use]
pub fn union(ranges: &[KeyRange]) -> Vec<KeyRange> {
    let mut parts: Vec<KeyRange> = ranges.iter().flat_map(KeyRange::visible_parts).collect();
    parts.sort();
    let mut union: Vec<KeyRange> = Vec::with_capacity(parts.len());
    for part in parts {
        match union.last_mut() {
            // Ranges that only touch stay apart: joined, one from below would hide what one above shows.
            Some(last) if last.end.as_ref().is_none_or(|end| part.start < *end) => {
                let further = last.end.is_some() && (part.end.is_none() || part.end > last.end);
                if further {
                    last.end = part.end;
                }
            }
            _ => union.push(part),
        }
    }
    union
}

/// The smallest key above every key with this prefix; `None` if there is none.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let keep = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_of_ff_has_no_end() {
        assert_eq!(prefix_end(b""), None);
        assert_eq!(prefix_end(b"\xff\xff"), None);
        assert_eq!(prefix_end(b"a\xff").as_deref(), Some(&b"b"[..]));
    }

    #[test]
    fn single_key_is_recognised() {
        assert_eq!(KeyRange::key("a").single_key().map(|k| &k[..]), Some(&b"a"[..]));
        assert_eq!(KeyRange::prefix("a").single_key(), None);
        assert!(KeyRange::key("a").contains(b"a"));
        assert!(!KeyRange::key("a").contains(b"a\0"));
    }

    #[test]
    fn a_union_shows_what_its_parts_show_once() {
        let range = |start: &'static str, end: &'static str| KeyRange { start: start.into(), end: Some(end.into()) };
        let ranges = [
            KeyRange::all(),
            KeyRange::prefix("a"),
            KeyRange::key("a"),
            range("a", "b"),
            range("b", "c"),
            range("c", "a"),
            KeyRange::prefix("_tenure/"),
            KeyRange::key("_tenure/x"),
            range("_tenure/x", "b"),
            KeyRange::prefix("_"),
        ];
        let keys =
            [&b"\0"[..], b"_", b"_tenure/", b"_tenure/x", b"_tenure/y", b"_tenure0", b"a", b"a1", b"b", b"bz", b"c"];
        for picks in 0..1_u32 << ranges.len() {
            let picked: Vec<KeyRange> = ranges
                .iter()
                .enumerate()
                .filter(|(at, _)| picks >> at & 1 == 1)
                .map(|(_, range)| range.clone())
                .collect();
            let union = union(&picked);
            assert!(union.is_sorted());
            for key in keys {
                let wanted = usize::from(picked.iter().any(|range| range.shows(key)));
                let shown = union.iter().filter(|range| range.shows(key)).count();
                assert_eq!(shown, wanted, "{key:?} in {picked:?}: {union:?}");
            }
        }
    }

    #[test]
    fn hidden_keys_need_a_start_below_their_prefix() {
        let all = KeyRange::all();
        assert!(!all.shows(b"_tenure/locks/a"));
        assert!(all.shows(b"_tenure"));
        assert!(all.shows(b"_tenure0"));
        assert!(KeyRange::prefix("_tenure/").shows(b"_tenure/locks/a"));
        assert!(KeyRange::key("_tenure/x").shows(b"_tenure/x"));
        assert!(!KeyRange::prefix("_").shows(b"_tenure/x"));
        for key in [&b""[..], b"_", b"_tenure", b"_tenure/", b"_tenure/z", b"_tenure0", b"z"] {
            for range in [KeyRange::all(), KeyRange::prefix("_"), KeyRange::prefix("_tenure/a"), KeyRange::key("z")] {
                let by_parts = range.visible_parts().iter().any(|part| part.contains(key));
                assert_eq!(by_parts, range.shows(key), "{key:?} in {range:?}");
            }
        }
    }
}

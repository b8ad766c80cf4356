//! Claims: what locks, semaphores and elections have in common. A claim is a key
//! `_tenure/<kind>/<escaped name>/<lease in hex>`, attached to its lease; its create revision is its
//! fencing token, and the claims of a name queue in the order of their tokens. This is the layout of
//! etcd's concurrency package, so that both exclude each other.
//!
//! Invariant: no name's claims lie below the prefix of another name: `/` is escaped in names.

use super::{HIDDEN_PREFIX, KeyRange, KeyValue, LeaseId, Revision};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ClaimKind {
    Lock,
    Semaphore,
    Election,
}

impl ClaimKind {
    /// As it stands in keys and paths.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Lock => "locks",
            Self::Semaphore => "semaphores",
            Self::Election => "elections",
        }
    }

    #[must_use]
    pub fn singular(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Semaphore => "semaphore",
            Self::Election => "election",
        }
    }

    /// What the keys of all names of this kind begin with.
    #[must_use]
    pub fn root(self) -> Vec<u8> {
        [HIDDEN_PREFIX, self.plural().as_bytes(), b"/"].concat()
    }
}

/// A lock, semaphore or election by kind and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClaimName {
    pub kind: ClaimKind,
    pub name: String,
}

impl fmt::Display for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind.singular(), self.name)
    }
}

impl ClaimName {
    #[must_use]
    pub fn new(kind: ClaimKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }

    /// The key without a claim behind it; a semaphore's limit is stored here.
    #[must_use]
    pub fn base(&self) -> Bytes {
        let mut key = self.kind.root();
        escape(&self.name, &mut key);
        key.into()
    }

    fn prefix(&self) -> Vec<u8> {
        let mut prefix = self.base().to_vec();
        prefix.push(b'/');
        prefix
    }

    /// All claims of this name.
    #[must_use]
    pub fn claims(&self) -> KeyRange {
        KeyRange::prefix(self.prefix())
    }

    /// The claim of one lease. Written as etcd's clients do: hexadecimal without leading zeros.
    #[must_use]
    pub fn claim(&self, lease: LeaseId) -> Bytes {
        let mut key = self.prefix();
        key.extend_from_slice(format!("{lease:x}").as_bytes());
        key.into()
    }

    /// The name that a key below the kind's root belongs to, and what follows its slash: nothing for
    /// `base`. `None` for keys that this layout does not make.
    #[must_use]
    pub fn of_key(kind: ClaimKind, key: &[u8]) -> Option<(Self, Option<&[u8]>)> {
        let rest = key.strip_prefix(&kind.root()[..])?;
        let (name, claim) = match rest.iter().position(|byte| *byte == b'/') {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        Some((Self { kind, name: unescape(name)? }, claim))
    }
}

/// `%` and `/` are escaped, in one way only, so that different names are different keys.
fn escape(name: &str, key: &mut Vec<u8>) {
    for byte in name.bytes() {
        match byte {
            b'/' => key.extend_from_slice(b"%2F"),
            b'%' => key.extend_from_slice(b"%25"),
            other => key.push(other),
        }
    }
}

/// Leniently: what another client wrote with other escapes still has a name.
fn unescape(escaped: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(escaped).ok()?;
    Some(text.replace("%2F", "/").replace("%25", "%"))
}

/// A demand that a claim still holds: checked in the same apply as what it guards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    pub of: ClaimName,
    pub token: Revision,
}

/// How many permits of a semaphore a claim asks for: its value as decimal text; what says nothing
/// sensible, such as a foreign client's empty value, asks for one.
#[must_use]
pub fn permits(value: &[u8]) -> u64 {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.filter(|permits| *permits > 0).unwrap_or(1)
}

/// How many of a name's claims, sorted by token, hold it. Whoever waits is passed by nobody: a claim
/// for many permits is not starved by later ones for few.
#[must_use]
pub fn holders(of: &ClaimName, limit: u64, sorted: &[KeyValue]) -> usize {
    if of.kind != ClaimKind::Semaphore {
        return sorted.len().min(1);
    }
    let mut used = 0_u64;
    sorted
        .iter()
        .take_while(|claim| {
            used = used.saturating_add(permits(&claim.value));
            used <= limit
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> ClaimName {
        ClaimName::new(ClaimKind::Lock, text)
    }

    #[test]
    fn a_lock_does_not_see_the_claims_of_another_whose_name_it_begins() {
        assert_eq!(name("deploy").claim(0x3f9a), "_tenure/locks/deploy/3f9a");
        assert!(!name("a").claims().contains(&name("a/b").claim(1)));
        assert!(!name("a").claims().contains(&name("ab").claim(1)));
        assert!(!name("a").claims().contains(&name("a").base()));
        assert_ne!(name("a/b").base(), name("a%2Fb").base());
    }

    #[test]
    fn a_waiting_claim_for_many_permits_is_not_passed_by() {
        let semaphore = ClaimName::new(ClaimKind::Semaphore, "s");
        let claim = |permits: &'static str| KeyValue {
            key: "k".into(),
            value: permits.into(),
            value_size: 0,
            content_type: None,
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: 1,
        };
        let claims = [claim("2"), claim("3"), claim("1"), claim("")];
        let held = |limit| holders(&semaphore, limit, &claims);
        assert_eq!([held(1), held(2), held(4), held(5), held(6), held(7)], [0, 1, 1, 2, 3, 4]);
        assert_eq!(holders(&name("l"), 7, &claims), 1);
        assert_eq!(holders(&name("l"), 7, &[]), 0);
    }

    proptest! {
        #[test]
        fn any_name_comes_back_from_its_keys(text in "[a-z/%2F5\u{e4}]{1,8}", lease in 1..i64::MAX) {
            let of = name(&text);
            let claim = of.claim(lease);
            let hex = format!("{lease:x}");
            let (found, rest) = ClaimName::of_key(ClaimKind::Lock, &claim).unwrap();
            prop_assert_eq!((&found, rest), (&of, Some(hex.as_bytes())));
            let base = of.base();
            prop_assert_eq!(ClaimName::of_key(ClaimKind::Lock, &base), Some((of, None)));
        }
    }
}

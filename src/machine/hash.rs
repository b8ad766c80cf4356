//! The state hash: an additive 128-bit hash over what is true now, kept as things come and go.
//!
//! Invariants: it depends on logical state only, never on how batches were cut, on what has been
//! trimmed, or on whether the state was restored. Every part is hashed with its kind in front and
//! lengths before what varies, so that no two parts look alike.

use super::auth::{FIRST_REVISION, Token, User};
use super::root::Lease;
use crate::model::{LeaseId, LeaseLabel, PasswordHash, Permission, Revision, TokenHash};
use crate::storage::record::Record;
use twox_hash::XxHash3_128;

const SEED: u64 = 0x7465_6e75_7265_0001;

/// The sum of the hashes of all parts; wraps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum(u128);

impl Sum {
    pub(crate) fn add(&mut self, part: u128) {
        self.0 = self.0.wrapping_add(part);
    }

    pub(crate) fn remove(&mut self, part: u128) {
        self.0 = self.0.wrapping_sub(part);
    }

    /// The hash of the whole: the sum together with the numbers that stand for themselves.
    pub(crate) fn finish(self, numbers: &[u64]) -> u128 {
        let mut part = Part::new(Kind::Whole);
        part.bytes.extend_from_slice(&self.0.to_le_bytes());
        for number in numbers {
            part.bytes.extend_from_slice(&number.to_le_bytes());
        }
        part.finish()
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Whole,
    Record,
    Lease,
    Attachment,
    Idempotency,
    User,
    Role,
    Token,
    AuthSettings,
    Steps,
}

struct Part {
    bytes: Vec<u8>,
}

impl Part {
    fn new(kind: Kind) -> Self {
        Self::with_room(kind, 0)
    }

    fn with_room(kind: Kind, room: usize) -> Self {
        let kind = match kind {
            Kind::Whole => 0,
            Kind::Record => 1,
            Kind::Lease => 2,
            Kind::Attachment => 3,
            Kind::Idempotency => 4,
            Kind::User => 5,
            Kind::Role => 6,
            Kind::Token => 7,
            Kind::AuthSettings => 8,
            Kind::Steps => 9,
        };
        let mut bytes = Vec::with_capacity(1 + room);
        bytes.push(kind);
        Self { bytes }
    }

    fn number(mut self, number: i64) -> Self {
        self.bytes.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn field(mut self, field: &[u8]) -> Self {
        self.bytes.reserve(field.len() + 8);
        self.bytes.extend_from_slice(&u64::try_from(field.len()).unwrap_or(u64::MAX).to_le_bytes());
        self.bytes.extend_from_slice(field);
        self
    }

    fn finish(self) -> u128 {
        XxHash3_128::oneshot_with_seed(SEED, &self.bytes)
    }
}

/// Of a current record as stored.
pub(crate) fn record(record: &Record) -> u128 {
    let content_type = record.content_type.as_deref().unwrap_or_default().as_bytes();
    // Six numbers, and three lengths.
    let room = 72 + content_type.len() + record.key.len() + record.value.len();
    Part::with_room(Kind::Record, room)
        .number(record.main)
        .number(i64::from(record.sub))
        .number(record.create_revision)
        .number(record.version)
        .number(record.lease)
        .number(i64::from(record.content_type.is_some()))
        .field(content_type)
        .field(&record.key)
        .field(&record.value)
        .finish()
}

/// Of how far the clock of idempotency records is behind log time.
pub(crate) fn steps(term: u64, sum_ms: u64) -> u128 {
    Part::new(Kind::Steps).number(term.cast_signed()).number(sum_ms.cast_signed()).finish()
}

pub(crate) fn lease(id: LeaseId, lease: &Lease) -> u128 {
    let Lease { ttl_ms, remaining_ms, generation, label, implicit } = lease;
    let (name, metadata) = match label.as_deref() {
        Some(LeaseLabel { name, metadata }) => (name.as_deref(), metadata.as_deref()),
        None => (None, None),
    };
    Part::new(Kind::Lease)
        .number(id)
        .number(ttl_ms.cast_signed())
        .number(i64::from(*implicit))
        .number(remaining_ms.map_or(-1, u64::cast_signed))
        .number(generation.cast_signed())
        .number(i64::from(name.is_some()))
        .field(name.unwrap_or_default().as_bytes())
        .number(i64::from(metadata.is_some()))
        .field(metadata.unwrap_or_default())
        .finish()
}

pub(crate) fn attachment(id: LeaseId, key: &[u8]) -> u128 {
    Part::new(Kind::Attachment).number(id).field(key).finish()
}

pub(crate) fn idempotency(scope: &[u8], fingerprint: &[u8], revision: Revision, at_ms: u64, outcome: &[u8]) -> u128 {
    Part::new(Kind::Idempotency)
        .field(scope)
        .field(fingerprint)
        .number(revision)
        .number(at_ms.cast_signed())
        .field(outcome)
        .finish()
}

pub(crate) fn user(name: &str, user: &User) -> u128 {
    let User { password, roles, since } = user;
    let part = Part::new(Kind::User)
        .field(name.as_bytes())
        .number(i64::from(password.is_some()))
        .field(password.as_ref().map_or("", PasswordHash::as_str).as_bytes())
        .number(*since);
    roles.iter().fold(part, |part, role| part.field(role.as_bytes())).finish()
}

pub(crate) fn role(name: &str, permissions: &[Permission]) -> u128 {
    let part = Part::new(Kind::Role).field(name.as_bytes());
    let permission = |part: Part, Permission { range, access }: &Permission| {
        part.field(&range.start)
            .number(i64::from(range.end.is_some()))
            .field(range.end.as_deref().unwrap_or_default())
            .number(i64::from(access.reads()) + 2 * i64::from(access.writes()))
    };
    permissions.iter().fold(part, permission).finish()
}

pub(crate) fn token(hash: &TokenHash, token: &Token) -> u128 {
    let Token { user, revision, ttl_ms, ends_ms } = token;
    Part::new(Kind::Token)
        .field(hash.as_bytes())
        .field(user.as_bytes())
        .number(*revision)
        .number(ttl_ms.cast_signed())
        .number(ends_ms.cast_signed())
        .finish()
}

/// Nothing for tables that nobody has changed: their states have the hash that they had before there were users.
pub(crate) fn auth_settings(enabled: bool, revision: i64) -> u128 {
    if !enabled && revision == FIRST_REVISION {
        return 0;
    }
    Part::new(Kind::AuthSettings).number(i64::from(enabled)).number(revision).finish()
}

pub(crate) fn split(hash: u128) -> [u64; 2] {
    let bytes = hash.to_le_bytes();
    let (low, high) = bytes.split_at(8);
    [low, high].map(|half| u64::from_le_bytes(half.try_into().expect("half of 16 bytes")))
}

pub(crate) fn join([low, high]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_loses_nothing() {
        let hash = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;
        assert_eq!(join(split(hash)), hash);
    }

    #[test]
    fn what_is_added_and_removed_leaves_no_trace() {
        let mut sum = Sum::default();
        let one = Lease { ttl_ms: 1000, remaining_ms: None, generation: 1, label: None, implicit: false };
        sum.add(lease(7, &one));
        sum.add(attachment(7, b"a"));
        assert_ne!(sum, Sum::default());
        sum.remove(lease(7, &one));
        sum.remove(attachment(7, b"a"));
        assert_eq!(sum, Sum::default());
    }

    /// The hash is compared between members of different releases: it must never change by accident.
    #[test]
    fn the_hash_is_pinned() {
        assert_eq!(format!("{:032x}", attachment(1, b"key")), PINNED);
    }

    const PINNED: &str = "3241639c88669932c3720205ae834ae6";
}

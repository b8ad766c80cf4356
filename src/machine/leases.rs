//! The tables of leases and of the keys attached to them, packed for a million of each.
//!
//! Invariant: what is packed comes out as it went in. It must not know what the entries mean.

use super::packed::{Packed, Row};
use super::root::Lease;
use crate::model::{LeaseId, LeaseLabel};
use bytes::Bytes;
use std::cmp::Ordering;
use std::sync::Arc;

/// Above every TTL that validation lets pass.
const IMPLICIT: u64 = 1 << 63;
/// Of a lease that was not checkpointed.
const NOTHING_NOTED: u64 = u64::MAX;

/// A lease in 40 bytes.
#[derive(Debug, Clone)]
struct LeaseRow {
    id: LeaseId,
    /// In ms, below the flag.
    ttl: u64,
    remaining_ms: u64,
    generation: u64,
    label: Option<Arc<LeaseLabel>>,
}

impl LeaseRow {
    fn new(id: LeaseId, lease: Lease) -> Self {
        let Lease { ttl_ms, remaining_ms, generation, label, implicit } = lease;
        let ttl = ttl_ms & !IMPLICIT | if implicit { IMPLICIT } else { 0 };
        Self { id, ttl, remaining_ms: remaining_ms.unwrap_or(NOTHING_NOTED), generation, label }
    }

    fn lease(&self) -> Lease {
        Lease {
            ttl_ms: self.ttl & !IMPLICIT,
            remaining_ms: Some(self.remaining_ms).filter(|left_ms| *left_ms != NOTHING_NOTED),
            generation: self.generation,
            label: self.label.clone(),
            implicit: self.ttl & IMPLICIT != 0,
        }
    }
}

impl Row for LeaseRow {
    type Bound = LeaseId;

    fn bound(&self) -> LeaseId {
        self.id
    }

    fn bound_after(&self, _: &Self) -> LeaseId {
        self.id
    }

    fn order(&self, bound: &LeaseId) -> Ordering {
        self.id.cmp(bound)
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Leases(Packed<LeaseRow>);

impl Leases {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn contains(&self, id: LeaseId) -> bool {
        self.0.get(&id).is_some()
    }

    pub(crate) fn get(&self, id: LeaseId) -> Option<Lease> {
        self.0.get(&id).map(LeaseRow::lease)
    }

    pub(crate) fn insert(&mut self, id: LeaseId, lease: Lease) -> Option<Lease> {
        self.0.insert(LeaseRow::new(id, lease)).map(|row| row.lease())
    }

    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        self.0.remove(&id).map(|row| row.lease())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LeaseId, Lease)> {
        self.0.iter().map(|row| (row.id, row.lease()))
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = LeaseId> {
        self.0.iter().map(|row| row.id)
    }

    /// Up to `limit` leases with ids from `from` on.
    pub(crate) fn page(&self, from: LeaseId, limit: usize) -> Vec<(LeaseId, Lease)> {
        self.0.range(from).take(limit).map(|row| (row.id, row.lease())).collect()
    }
}

/// A key on a lease.
#[derive(Debug, Clone)]
struct Attachment(LeaseId, Bytes);

impl Row for Attachment {
    /// Without a key: before all keys of the lease, which most leases have one of.
    type Bound = (LeaseId, Option<Bytes>);

    fn bound(&self) -> Self::Bound {
        (self.0, Some(self.1.clone()))
    }

    fn bound_after(&self, left: &Self) -> Self::Bound {
        (self.0, (self.0 == left.0).then(|| self.1.clone()))
    }

    fn order(&self, bound: &Self::Bound) -> Ordering {
        self.0.cmp(&bound.0).then_with(|| Some(&self.1).cmp(&bound.1.as_ref()))
    }
}

/// Which keys hang on which lease.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attached(Packed<Attachment>);

impl Attached {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn insert(&mut self, id: LeaseId, key: Bytes) {
        self.0.insert(Attachment(id, key));
    }

    pub(crate) fn remove(&mut self, id: LeaseId, key: &Bytes) {
        self.0.remove(&(id, Some(key.clone())));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LeaseId, &Bytes)> {
        self.0.iter().map(|Attachment(id, key)| (*id, key))
    }

    /// The keys of a lease, in order.
    pub(crate) fn keys(&self, id: LeaseId) -> impl Iterator<Item = &Bytes> {
        self.0.range((id, None)).take_while(move |row| row.0 == id).map(|row| &row.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_comes_out_as_it_went_in() {
        let label = Some(Arc::new(LeaseLabel { name: Some("n".to_owned()), metadata: None }));
        let mut leases = Leases::default();
        for (id, remaining_ms, implicit) in [(1, None, false), (2, Some(0), true), (3, Some(5), false)] {
            let lease =
                Lease { ttl_ms: 9_000_000_000_000, remaining_ms, generation: 7, label: label.clone(), implicit };
            assert_eq!(leases.insert(id, lease.clone()), None);
            assert_eq!(leases.get(id), Some(lease));
        }
        assert_eq!(leases.page(2, 1).first().map(|(id, _)| *id), Some(2));
        assert_eq!(leases.remove(2).map(|lease| lease.implicit), Some(true));
        assert_eq!((leases.len(), leases.contains(2)), (2, false));
    }

    #[test]
    fn rows_are_small() {
        assert_eq!((size_of::<LeaseRow>(), size_of::<Attachment>()), (40, 40));
    }

    #[test]
    fn the_keys_of_a_lease_are_its_own() {
        let mut attached = Attached::default();
        for (id, key) in [(2, "b"), (1, "z"), (2, ""), (3, "a")] {
            attached.insert(id, key.into());
        }
        let keys = |attached: &Attached, id| attached.keys(id).cloned().collect::<Vec<_>>();
        assert_eq!(keys(&attached, 2), ["", "b"]);
        assert!(keys(&attached, 4).is_empty());
        attached.remove(2, &Bytes::new());
        assert_eq!((keys(&attached, 2), attached.len()), (vec![Bytes::from("b")], 3));
    }
}

//! Sorted keys of one node, searched mostly without touching them.
//!
//! Each key is represented by its `Digest`: the eight bytes behind what all keys of the node have in
//! common. Invariants: digests are in step with the keys; two keys compare as their digests do,
//! unless these are equal. A search so reads one small array and one or two keys, not a key per step.

use super::key::KeyRecord;
use bytes::Bytes;
use std::sync::Arc;

pub(super) trait Keyed {
    fn key(&self) -> &[u8];
}

impl Keyed for Bytes {
    fn key(&self) -> &[u8] {
        self
    }
}

impl Keyed for Arc<KeyRecord> {
    fn key(&self) -> &[u8] {
        &self.key
    }
}

#[derive(Debug, Clone)]
pub(super) struct Sorted<K> {
    /// How many bytes the keys have in common, at least.
    common: usize,
    digests: Vec<u64>,
    items: Vec<K>,
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Zeros stand in behind the end of the key, so equal digests do not mean equal keys.
fn digest(key: &[u8], common: usize) -> u64 {
    let mut bytes = [0; 8];
    let rest = key.get(common..).unwrap_or_default();
    let length = rest.len().min(8);
    bytes[..length].copy_from_slice(&rest[..length]);
    u64::from_be_bytes(bytes)
}

impl<K: Keyed> Sorted<K> {
    /// From items in rising order.
    pub(super) fn new(items: Vec<K>) -> Self {
        let mut sorted = Self { common: 0, digests: Vec::new(), items };
        sorted.digest_all();
        sorted
    }

    fn digest_all(&mut self) {
        self.common = match (self.items.first(), self.items.last()) {
            (Some(first), Some(last)) => common_prefix(first.key(), last.key()),
            _ => 0,
        };
        self.digests.clear();
        self.digests.reserve_exact(self.items.len());
        self.digests.extend(self.items.iter().map(|item| digest(item.key(), self.common)));
    }

    pub(super) fn items(&self) -> &[K] {
        &self.items
    }

    pub(super) fn into_items(self) -> Vec<K> {
        self.items
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Where `key` is, or where it would be.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let Some(first) = self.items.first() else { return Err(0) };
        let within = key.len().min(self.common);
        match key[..within].cmp(&first.key()[..within]) {
            std::cmp::Ordering::Less => return Err(0),
            std::cmp::Ordering::Greater => return Err(self.items.len()),
            std::cmp::Ordering::Equal if within < self.common => return Err(0),
            std::cmp::Ordering::Equal => {}
        }
        let wanted = digest(key, self.common);
        let from = self.digests.partition_point(|digest| *digest < wanted);
        let like = self.digests[from..].partition_point(|digest| *digest == wanted);
        match self.items[from..from + like].binary_search_by(|item| item.key().cmp(key)) {
            Ok(at) => Ok(from + at),
            Err(at) => Err(from + at),
        }
    }

    /// The first position whose key is at or above `key`.
    pub(super) fn lower_bound(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(at) | Err(at) => at,
        }
    }

    /// Takes the place of an item with the same key.
    pub(super) fn replace(&mut self, at: usize, item: K) -> K {
        std::mem::replace(&mut self.items[at], item)
    }

    pub(super) fn insert(&mut self, at: usize, item: K) {
        let is_inside = at > 0 && at < self.items.len();
        self.digests.insert(at, digest(item.key(), self.common));
        self.items.insert(at, item);
        // Keys between the first and the last begin as both do.
        if !is_inside && self.shares_less() {
            self.digest_all();
        }
    }

    fn shares_less(&self) -> bool {
        let (Some(first), Some(last)) = (self.items.first(), self.items.last()) else { return false };
        common_prefix(first.key(), last.key()) < self.common || self.items.len() == 1
    }

    pub(super) fn remove(&mut self, at: usize) -> K {
        self.digests.remove(at);
        self.items.remove(at)
    }

    /// Cuts off what lies from `at` on.
    pub(super) fn split_off(&mut self, at: usize) -> Vec<K> {
        let right = self.items.split_off(at);
        self.digest_all();
        right
    }
}

//! One immutable state of the machine, and the cell through which readers get the newest.
//!
//! Invariants: cloning a root is O(1), every part of it being shared structure; a published root
//! never changes; roots are published only between batches. A record may be removed from the block
//! store only when no root that indexes it is held by anybody (`Published::oldest_trimmed`).

use super::auth::AuthState;
use super::hash::Sum;
use super::idempotency;
use super::index::Index;
use super::leases::{Attached, Leases};
use super::timeline::Timeline;
use super::values::Values;
use super::writer::Options;
use crate::model::{LeaseLabel, LogPosition, Revision};
use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Weak};

/// The commands and formats of this release.
pub(crate) const FEATURE_LEVEL_MAX: u32 = AUTH_FEATURE_LEVEL;
/// From this level on every member knows users, roles and tokens.
pub const AUTH_FEATURE_LEVEL: u32 = 2;

#[derive(Debug, Clone)]
pub(crate) struct Root {
    pub(crate) index: Index,
    pub(crate) leases: Leases,
    /// Of all leases, what they count for in the quota.
    pub(crate) lease_bytes: u64,
    /// How often a lease has been started in this store: each gets its own generation.
    pub(crate) lease_starts: u64,
    /// Which keys hang on a lease; the other direction is in each key's `Head`.
    pub(crate) attached: Attached,
    pub(crate) idempotency: idempotency::Table,
    pub(crate) timeline: Timeline,
    pub(crate) auth: AuthState,
    pub(crate) numbers: Numbers,
    /// The sum of the hashes of current records, leases, attachments and idempotency records.
    pub(crate) sum: Sum,
    pub(crate) applied: Option<LogPosition>,
    pub(crate) membership: Option<(Option<LogPosition>, Bytes)>,
    /// The index holds nothing that compaction to here made unreadable. Differs between members.
    pub(crate) trimmed: Revision,
    pub(crate) values: Arc<Values>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) ttl_ms: u64,
    /// What was left when it was checkpointed last, if it was not started again since.
    pub(crate) remaining_ms: Option<u64>,
    /// Which start of a lease, of all there were in this store, was its last.
    pub(crate) generation: u64,
    pub(crate) label: Option<Arc<LeaseLabel>>,
    /// Granted for one key by a put with a TTL; it ends with its last attachment.
    pub(crate) implicit: bool,
}

impl Lease {
    /// What it counts for in the quota.
    pub(crate) fn bytes(&self) -> u64 {
        LEASE_BYTES + self.label.as_ref().map_or(0, |label| label_bytes(label))
    }
}

pub(crate) fn label_bytes(label: &LeaseLabel) -> u64 {
    let name = label.name.as_ref().map_or(0, String::len);
    let metadata = label.metadata.as_ref().map_or(0, Bytes::len);
    u64::try_from(name + metadata).unwrap_or(u64::MAX / 256)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Numbers {
    pub(crate) revision: Revision,
    /// 0: never compacted.
    pub(crate) compacted: Revision,
    pub(crate) now_ms: u64,
    pub(crate) feature_level: u32,
    pub(crate) quota_bytes: u64,
    /// Logical bytes of current keys.
    pub(crate) live_bytes: u64,
}

/// What a lease counts for in the quota.
pub(crate) const LEASE_BYTES: u64 = 64;
/// What every version counts for beside its key, value and content type.
const VERSION_OVERHEAD_BYTES: u64 = 64;

pub(crate) fn logical_bytes(key: usize, value: usize, content_type: Option<&str>) -> u64 {
    let bytes = key + value + content_type.map_or(0, str::len);
    VERSION_OVERHEAD_BYTES + u64::try_from(bytes).unwrap_or(u64::MAX / 4)
}

impl Root {
    /// The empty store: revision 1, nothing compacted.
    pub(crate) fn empty(values: Arc<Values>, options: &Options) -> Self {
        Self {
            index: Index::default(),
            leases: Leases::default(),
            lease_bytes: 0,
            lease_starts: 0,
            attached: Attached::default(),
            idempotency: idempotency::Table::new(options.idempotency_records_max),
            timeline: Timeline::default(),
            auth: AuthState::default(),
            numbers: Numbers {
                revision: 1,
                compacted: 0,
                now_ms: 0,
                feature_level: 1,
                quota_bytes: options.quota_bytes,
                live_bytes: 0,
            },
            sum: Sum::default(),
            applied: None,
            membership: None,
            trimmed: 0,
            values,
        }
    }

    /// Logical bytes that count for the quota.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.numbers.live_bytes + self.timeline.bytes() + self.idempotency.bytes() + self.lease_bytes
    }

    pub(crate) fn state_hash(&self) -> u128 {
        let numbers = self.numbers;
        self.sum.finish(&[
            numbers.revision.cast_unsigned(),
            numbers.compacted.cast_unsigned(),
            numbers.now_ms,
            u64::from(numbers.feature_level),
            numbers.quota_bytes,
            self.timeline.bytes(),
            self.lease_starts,
        ])
    }
}

/// Where roots are published. Outlives the machine that publishes: readers keep their handle when
/// the state is replaced by an image.
#[derive(Debug)]
pub(crate) struct Published {
    newest: ArcSwap<Root>,
    /// Former roots that somebody still held when they were replaced.
    lingering: Mutex<Vec<Weak<Root>>>,
}

impl Published {
    pub(crate) fn new(root: Root) -> Self {
        Self { newest: ArcSwap::from_pointee(root), lingering: Mutex::new(Vec::new()) }
    }

    pub(crate) fn newest(&self) -> Arc<Root> {
        self.newest.load_full()
    }

    /// Answers the root that was the newest.
    pub(crate) fn publish(&self, root: Root) -> Arc<Root> {
        let old = self.newest.swap(Arc::new(root));
        let mut lingering = self.lingering.lock();
        lingering.retain(|root| root.strong_count() > 0);
        if Arc::strong_count(&old) > 1 {
            lingering.push(Arc::downgrade(&old));
        }
        old
    }

    /// How far the index of the least trimmed root that can be read from has been trimmed. Roots
    /// that are equally far index the same versions, but for newer ones.
    pub(crate) fn oldest_trimmed(&self, values: &Arc<Values>) -> Revision {
        let mut lingering = self.lingering.lock();
        lingering.retain(|root| root.strong_count() > 0);
        // Roots over another block store, from before an install, are none of this one's readers.
        let held = lingering.iter().filter_map(Weak::upgrade).filter(|root| Arc::ptr_eq(&root.values, values));
        held.map(|root| root.trimmed).min().unwrap_or(Revision::MAX).min(self.newest.load().trimmed)
    }
}

//! What apply answered. Replies are deterministic and may be stored for idempotent replay.

use super::{LeaseId, Revision};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A key with its value and metadata at some revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    pub key: Bytes,
    /// Empty with `keys_only`; `value_size` tells its length then too.
    pub value: Bytes,
    pub value_size: u64,
    pub content_type: Option<String>,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// 1 at creation, one more with every put.
    pub version: i64,
    pub lease: LeaseId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Txn(TxnReply),
    Compact {
        compacted_revision: Revision,
        revision: Revision,
    },
    FeatureLevel {
        level: u32,
    },
    Quota {
        bytes: u64,
    },
    LeaseGranted {
        id: LeaseId,
        ttl_ms: u64,
        revision: Revision,
    },
    LeaseRevoked {
        deleted: u64,
        revision: Revision,
    },
    /// A replay of an idempotent request whose full answer was too large to keep (over 4 KiB).
    Outcome {
        succeeded: bool,
        revision: Revision,
    },
    LeasesExpired {
        leases: u64,
        deleted: u64,
        revision: Revision,
    },
    LeasesCheckpointed {
        leases: u64,
    },
    LeaseRenewed {
        id: LeaseId,
        ttl_ms: u64,
        revision: Revision,
    },
    /// A key's lease after its TTL was changed; 0 if it has none now.
    Ttl {
        lease: LeaseId,
        ttl_ms: u64,
        revision: Revision,
    },
    /// A backup has taken the place of the state.
    Restored {
        revision: Revision,
    },
    /// Users or roles are as was asked, at this revision of theirs.
    Auth {
        auth_revision: i64,
        revision: Revision,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TxnReply {
    /// The compares held, so `success` ran.
    pub succeeded: bool,
    /// Positions of the compares that did not hold.
    pub failed_if: Vec<u32>,
    /// The store's revision after the transaction: its own if it wrote.
    pub revision: Revision,
    pub results: Vec<OpReply>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum OpReply {
    Put { key: Bytes, version: i64, created: bool, lease: LeaseId, prev: Option<KeyValue> },
    Delete { deleted: u64, prev: Vec<KeyValue> },
    Range(RangeReply),
    Add { key: Bytes, value: i64, previous: i64, existed: bool, clamped: bool, version: i64, lease: LeaseId },
    MergePatch { key: Bytes, version: i64, lease: LeaseId, prev: Option<KeyValue> },
    Txn(TxnReply),
    RateTake { allowed: bool, remaining: u64, retry_after_ms: u64, reset_ms: u64 },
    Session { lease: LeaseId },
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RangeReply {
    pub kvs: Vec<KeyValue>,
    /// Keys in the range at that revision, whatever limit and filters say.
    pub count: u64,
    pub more: bool,
}

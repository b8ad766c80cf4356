//! What is asked: commands, the proposal that carries one, and the batch that is one log entry.

use super::{AuthCommand, Caller, Fence, KeyRange, LeaseId, Rate, Revision};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One Raft log entry: many proposals at one log time. Encoded once by the proposer (`codec`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Log time in ms: apply uses `max(last, this)`. Everything that is decided by time is decided by it.
    pub proposed_at_ms: u64,
    /// The leader's wall clock in ms since 1970, for display and audit; decides nothing.
    pub wall_ms: u64,
    pub proposals: Vec<Proposal>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    pub caller: Caller,
    pub idempotency: Option<Idempotency>,
    pub command: Command,
}

/// A client's `Idempotency-Key` and the fingerprint of the request it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    pub key: String,
    pub fingerprint: [u8; 16],
}

/// Variants are only ever appended; an unknown one in the log is a fault, never skipped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    Txn(Txn),
    /// Forget history up to and including what `revision` superseded.
    Compact {
        revision: Revision,
    },
    RaiseFeatureLevel {
        level: u32,
    },
    /// The quota is replicated, because apply decides by it; the leader proposes its own setting.
    SetQuota {
        bytes: u64,
    },
    LeaseGrant {
        id: LeaseId,
        ttl_ms: u64,
    },
    LeaseRevoke {
        id: LeaseId,
        reason: super::DeleteReason,
    },
    /// A grant with what people call the lease and what they note with it.
    LeaseGrantLabelled {
        id: LeaseId,
        ttl_ms: u64,
        label: LeaseLabel,
    },
    /// The leader found these leases run out. Refused unless `term` is the entry's own, so a former
    /// leader ends nothing; a lease that was started again meanwhile is passed over.
    LeaseExpire {
        term: u64,
        leases: Vec<LeaseStart>,
    },
    /// What is left of long leases, for the next leader. Refused and passed over like `LeaseExpire`.
    LeaseCheckpoint {
        term: u64,
        leases: Vec<LeaseRemaining>,
    },
    /// The first renewal after a checkpoint: the next leader must not go by the checkpoint.
    LeaseRenew {
        id: LeaseId,
    },
    /// Gives an existing key a TTL, or starts the one it has again, without a revision. `id` is for a
    /// new implicit lease.
    TtlSet {
        key: Bytes,
        id: LeaseId,
        ttl_ms: u64,
    },
    /// Takes a key off its lease, without a revision.
    TtlClear {
        key: Bytes,
    },
    /// Any other command, only if all these claims still hold. Around the command, so that nothing
    /// nested in it can be reached without the fences.
    Fenced {
        fences: Vec<Fence>,
        command: Box<Command>,
    },
    /// The staged backup of this digest takes the place of the whole state. Alone in its log entry; its
    /// file is not part of the log.
    Restore {
        digest: [u8; 32],
    },
    /// A change of users, roles or tokens.
    Auth(AuthCommand),
}

impl Command {
    /// Whether it concerns no more keys than it names.
    #[must_use]
    pub fn is_brief(&self) -> bool {
        match self {
            Self::Txn(txn) => txn.is_brief(),
            Self::Fenced { command, .. } => command.is_brief(),
            Self::LeaseRevoke { .. } | Self::LeaseExpire { .. } | Self::Restore { .. } | Self::Compact { .. } => false,
            Self::RaiseFeatureLevel { .. }
            | Self::SetQuota { .. }
            | Self::LeaseGrant { .. }
            | Self::LeaseGrantLabelled { .. }
            | Self::LeaseCheckpoint { .. }
            | Self::LeaseRenew { .. }
            | Self::TtlSet { .. }
            | Self::TtlClear { .. }
            | Self::Auth(_) => true,
        }
    }
}

impl Txn {
    fn is_brief(&self) -> bool {
        self.compares.iter().all(|compare| compare.range.single_key().is_some())
            && self.success.iter().chain(&self.failure).all(|op| match op {
                Op::Delete { range, .. } | Op::Range(RangeOp { range, .. }) => range.single_key().is_some(),
                Op::Txn(txn) => txn.is_brief(),
                Op::Put(_) | Op::Add { .. } | Op::MergePatch { .. } | Op::RateTake { .. } | Op::Session { .. } => true,
            })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseLabel {
    pub name: Option<String>,
    /// The text of a JSON object.
    pub metadata: Option<Bytes>,
}

/// A lease as it was started: `generation` is another after each grant, logged renewal or new TTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStart {
    pub id: LeaseId,
    pub generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRemaining {
    pub start: LeaseStart,
    pub remaining_ms: u64,
}

/// Compares are evaluated before any write; then one of the branches runs, atomically, at one revision.
/// A single put or delete is a transaction of one operation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

/// Holds if it holds for every key in the range; a missing key compares as version, revisions and
/// lease 0, and false for a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    pub range: KeyRange,
    pub op: CompareOp,
    pub target: CompareTarget,
}

impl Compare {
    /// That the fence's claim holds.
    #[must_use]
    pub fn holder(fence: Fence) -> Self {
        Self { range: fence.of.claims(), op: CompareOp::Equal, target: CompareTarget::Holder(fence) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CompareTarget {
    Version(i64),
    CreateRevision(Revision),
    ModRevision(Revision),
    Value(Bytes),
    Lease(LeaseId),
    /// Of a name's claims as a whole: the one with this token holds, and its lease lives. The range is
    /// that of the claims, the operator is not looked at.
    Holder(Fence),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Op {
    Put(PutOp),
    Delete {
        range: KeyRange,
        prev_kv: bool,
    },
    Range(RangeOp),
    /// Add to a decimal int64; `initial` is the value before the first add. Bounds fail with
    /// `OutOfRange` and abort the transaction, or clamp.
    Add {
        key: Bytes,
        by: i64,
        initial: i64,
        min: Option<i64>,
        max: Option<i64>,
        clamp: bool,
        lease: LeaseChoice,
    },
    /// RFC 7396 merge patch of a JSON value. The patch was checked to be JSON before it was proposed.
    MergePatch {
        key: Bytes,
        patch: Bytes,
        prev_kv: bool,
        lease: LeaseChoice,
    },
    Txn(Box<Txn>),
    /// Take `cost` permits of a rate limit at the batch's log time; 0 only looks, and writes nothing. What
    /// is stored expires by the implicit lease `lease` once the limit is full again.
    RateTake {
        key: Bytes,
        rate: Rate,
        cost: u64,
        lease: LeaseId,
    },
    /// Grants a lease for a key that a later operation attaches to it; it ends with its last key.
    Session {
        id: LeaseId,
        ttl_ms: u64,
        label: LeaseLabel,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PutOp {
    pub key: Bytes,
    pub value: Bytes,
    /// As declared by the client; `None` is undeclared.
    pub content_type: Option<String>,
    pub lease: LeaseChoice,
    pub prev_kv: bool,
    /// etcd's `ignore_value`: keep the stored value and content type; the key must exist.
    pub ignore_value: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseChoice {
    /// No lease; a former attachment is dropped.
    #[default]
    Detach,
    /// Keep what is attached now.
    Keep,
    /// Attach to this lease, which must exist.
    Attach(LeaseId),
    /// An implicit lease of this one key: granted with `id` and attached in the same command.
    Implicit { id: LeaseId, ttl_ms: u64 },
    /// Keep what is attached now, as etcd's `ignore_lease`: the key must exist.
    KeepOfExisting,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RangeOp {
    pub range: KeyRange,
    /// 0 reads the newest revision; inside a transaction, with the transaction's own writes.
    pub revision: Revision,
    /// 0 is no limit.
    pub limit: u64,
    /// The reply ends once keys and values pass this many bytes, with at least one entry; 0 is no limit.
    pub bytes_max: u64,
    pub sort: RangeSort,
    pub order: SortOrder,
    pub keys_only: bool,
    pub count_only: bool,
    pub min_mod_revision: Revision,
    pub max_mod_revision: Revision,
    pub min_create_revision: Revision,
    pub max_create_revision: Revision,
}

impl RangeOp {
    /// The newest state of `range`, by key, whole.
    #[must_use]
    pub fn newest(range: KeyRange) -> Self {
        Self {
            range,
            revision: 0,
            limit: 0,
            bytes_max: 0,
            sort: RangeSort::Key,
            order: SortOrder::Ascending,
            keys_only: false,
            count_only: false,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangeSort {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SortOrder {
    #[default]
    Ascending,
    Descending,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_concern_any_number_of_keys_is_not_brief() {
        let one = |op| Command::Txn(Txn { success: vec![op], ..Txn::default() });
        let delete = |range| Op::Delete { range, prev_kv: false };
        let nested = |op| Op::Txn(Box::new(Txn { failure: vec![op], ..Txn::default() }));
        assert!(one(nested(delete(KeyRange::key("a")))).is_brief());
        let long = [
            one(delete(KeyRange::prefix("a"))),
            one(nested(delete(KeyRange::prefix("a")))),
            one(Op::Range(RangeOp::newest(KeyRange::all()))),
            Command::LeaseExpire { term: 1, leases: Vec::new() },
        ];
        for command in long {
            let fenced = Command::Fenced { fences: Vec::new(), command: Box::new(command.clone()) };
            assert!(!command.is_brief() && !fenced.is_brief(), "{command:?}");
        }
    }
}

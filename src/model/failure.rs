//! The three kinds of failure: rejected (the caller's doing, decided deterministically),
//! unavailable (try elsewhere or later, with what is known of the write), fault (this member is broken).

use super::{AuthRefusal, ClaimName, LeaseId, Need, Revision};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

#[derive(Debug, Clone, Error, Serialize, Deserialize)]
pub enum Failure {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("{why}")]
    Unavailable { why: Why, outcome: Outcome },
    #[error("internal fault: {0}")]
    Fault(String),
}

impl Failure {
    /// Unavailable, and certain that nothing was proposed.
    #[must_use]
    pub fn not_proposed(why: Why) -> Self {
        Self::Unavailable { why, outcome: Outcome::NotProposed }
    }
}

impl From<AuthRefusal> for Failure {
    fn from(refusal: AuthRefusal) -> Self {
        Self::Rejected(refusal.into())
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault.to_string())
    }
}

/// Whether an unavailable write may have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    NotProposed,
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Why {
    #[error("no leader is known")]
    NoLeader,
    #[error("the deadline passed")]
    Timeout,
    #[error("too many bytes of requests and answers are in flight on this member")]
    Overloaded,
    #[error("this member is shutting down")]
    ShuttingDown,
    #[error("this member is not ready to serve")]
    NotReady,
    #[error("this member has not heard from a leader within the allowed staleness")]
    TooStale,
    #[error("this member has not applied the wanted revision in time")]
    RevisionNotReached,
    #[error("the backup could not be staged on every voter")]
    NotStaged,
    #[error("the members' states differ: this member does not serve this until that is resolved")]
    Diverged,
    #[error("this member's disk does not answer")]
    DiskStalled,
    #[error("as many watch streams and waits are open on this member as it allows")]
    TooManyStreams,
}

/// Deterministic refusals: part of the replicated answer, or of validation before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Rejection {
    #[error("revision {requested} has been compacted, the oldest readable one is {compacted}")]
    Compacted { requested: Revision, compacted: Revision, current: Revision },
    #[error("revision {requested} is in the future, the store is at {current}")]
    FutureRevision { requested: Revision, current: Revision },
    #[error("the key is empty")]
    EmptyKey,
    #[error("the key is {bytes} bytes long, the limit is {limit}")]
    KeyTooLong { bytes: u64, limit: u64 },
    #[error("the request is {bytes} bytes long, the limit is {limit}")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("key not found")]
    KeyNotFound { key: Bytes },
    #[error("key {0:?} is written twice in one transaction")]
    DuplicateKey(Bytes),
    #[error("the transaction has {count} {what}, the limit is {limit}")]
    TooManyOps { what: TooMany, count: u64, limit: u64 },
    #[error("lease {0:x} not found")]
    LeaseNotFound(LeaseId),
    #[error("lease {0:x} exists already")]
    LeaseExists(LeaseId),
    #[error("the value is not a decimal int64")]
    NotACounter { key: Bytes },
    #[error("the sum overflows int64")]
    Overflow { key: Bytes },
    #[error("the result is out of range")]
    OutOfRange { key: Bytes, current: i64, min: Option<i64>, max: Option<i64>, operation: u32 },
    #[error("the stored value is not JSON")]
    NotJson { key: Bytes },
    #[error("the store's quota of {quota_bytes} bytes is used up")]
    QuotaExceeded { quota_bytes: u64 },
    #[error("the disk's reserve is reached")]
    DiskFull,
    #[error("the idempotency key was used for another request")]
    IdempotencyKeyReused,
    #[error("the table of idempotency keys is full")]
    IdempotencyTableFull,
    #[error("permission denied: it takes {0}")]
    PermissionDenied(Need),
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    #[error("the key is attached to lease {lease:x}, which is not its own")]
    SharedLease { key: Bytes, lease: LeaseId },
    #[error("proposed in term {proposed}, applied in term {current}")]
    StaleTerm { proposed: u64, current: u64 },
    #[error("the claim with token {token} does not hold {of}")]
    Fenced { of: ClaimName, token: Revision, holder: Option<Holder> },
    #[error("lease {lease:x} has no claim on {of}")]
    ClaimNotFound { of: ClaimName, lease: LeaseId },
    #[error("the claim does not lead {of}")]
    NotLeader { of: ClaimName },
    #[error("the limit of {of} is {limit}")]
    LimitMismatch { of: ClaimName, limit: u64 },
    #[error("there is no member {0}")]
    MemberNotFound(String),
    #[error("a member called {0} exists already")]
    MemberExists(String),
    #[error("another change of the membership is being made")]
    ChangeInProgress,
    #[error("the learner is {lag_entries} entries behind{}", silence(.reachable))]
    LearnerBehind { lag_entries: u64, reachable: bool },
    #[error("{in_reach} of the {voters} remaining voters are in reach: no majority")]
    WouldLoseQuorum { voters: u64, in_reach: u64 },
    #[error("{0} is not a voter")]
    NotAVoter(String),
    #[error("not a usable snapshot: {0}")]
    BadSnapshot(String),
    #[error(transparent)]
    Auth(#[from] AuthRefusal),
}

fn silence(reachable: &bool) -> &'static str {
    if *reachable { "" } else { " and cannot be reached: is it running, and is its peer URL right?" }
}

/// Who holds instead of a fenced-off claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub token: Revision,
    pub lease: LeaseId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum TooMany {
    #[error("operations")]
    Operations,
    #[error("compares")]
    Compares,
    #[error("levels of nesting")]
    Levels,
}

/// Storage errors, checksum mismatches, violated invariants: logged once, then the process ends.
#[derive(Debug, Clone, Error)]
pub enum Fault {
    #[error("{context}: {message}")]
    Io { context: String, message: String },
    #[error("{what} is damaged: {detail}")]
    Corrupt { what: String, detail: String },
    #[error("{0}")]
    Invariant(String),
}

impl Fault {
    #[must_use]
    pub fn io(context: impl Into<String>, error: &std::io::Error) -> Self {
        Self::Io { context: context.into(), message: error.to_string() }
    }

    #[must_use]
    pub fn corrupt(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into(), detail: detail.into() }
    }
}

//! The vocabulary (rank 0): what is said between the layers. Keys, revisions, events, commands,
//! replies, failures, callers and limits.
//!
//! Invariants: plain data only, no I/O, no async, no clock, no hash-ordered maps. It must not know
//! JSON field names, HTTP, protobuf, Raft's library or the storage engine. What is serialised here
//! goes into the Raft log and into snapshots with `postcard`: fields are never reordered, enum
//! variants are only ever appended, and `codec` puts a version byte in front.

pub mod auth;
pub mod caller;
pub mod claim;
pub mod codec;
pub mod command;
pub mod event;
pub mod failure;
pub mod key;
pub mod limits;
pub mod position;
pub mod rate;
pub mod read;
pub mod reply;

pub use auth::{Access, AuthCommand, AuthRefusal, Need, PasswordHash, Permission, ROOT, TokenHash};
pub use caller::Caller;
pub use claim::{ClaimKind, ClaimName, Fence};
pub use command::{
    Batch, Command, Compare, CompareOp, CompareTarget, Idempotency, LeaseChoice, LeaseLabel, LeaseRemaining,
    LeaseStart, Op, Proposal, PutOp, RangeOp, RangeSort, SortOrder, Txn,
};
pub use event::{DeleteReason, Event, EventKind, EventPage, RevisionEvents};
pub use failure::{Failure, Fault, Outcome, Rejection, Why};
pub use key::{HIDDEN_PREFIX, KeyRange};
pub use position::LogPosition;
pub use rate::Rate;
pub use read::{Delimiter, HistoryItem, HistoryOp, HistoryPage, ListOp, ListPage};
pub use reply::{KeyValue, OpReply, RangeReply, Reply, TxnReply};

/// A store-wide revision. 1 is the empty store, every write transaction adds one, so the first
/// write is revision 2 (as in etcd). Never negative; below 2^53 so that JSON readers keep it exact.
pub type Revision = i64;

/// A lease's id: random, positive, chosen by the proposer. 0 means "no lease".
pub type LeaseId = i64;

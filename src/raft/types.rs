//! The types openraft is instantiated with, and the conversions between its words and the model's.
//!
//! Invariants: an entry's payload is a batch's encoded bytes, never decoded before apply. Nothing
//! here leaves `raft`, except `Member` and `MemberId`.

use super::responder::Callback;
use crate::machine;
use crate::model::LogPosition;
use bytes::Bytes;
use openraft::alias::{LogIdOf, StoredMembershipOf, VoteOf};
use openraft::impls::{BoxedErrorSource, InlineBatch, TokioRuntime, leader_id_adv};
use openraft::{EntryPayload, RaftTypeConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Members are numbered once and a number is never used again.
pub type MemberId = u64;

/// What every member knows of a member: it is part of the replicated membership.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    pub peer_url: String,
    pub client_url: String,
    /// Drawn when the member's data directory was made: a wiped member comes back as another.
    pub incarnation: u128,
}

/// Raft over encoded batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

// By hand, because openraft's macro cannot name a responder of one's own.
impl RaftTypeConfig for Types {
    type D = LogBatch;
    type R = Outcomes;
    type NodeId = MemberId;
    type Node = Member;
    type Term = u64;
    type LeaderId = leader_id_adv::LeaderId<u64, MemberId>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = Payload;
    type Entry = openraft::Entry<Self::LeaderId, Payload>;
    type AsyncRuntime = TokioRuntime;
    type Responder<T>
        = Callback<T>
    where
        T: Send + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub(crate) type Payload = EntryPayload<LogBatch, MemberId, Member>;
pub(crate) type LogId = LogIdOf<Types>;
pub(crate) type Vote = VoteOf<Types>;
pub(crate) type StoredMembership = StoredMembershipOf<Types>;

/// One `model::Batch`, encoded by the proposer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogBatch {
    pub(crate) bytes: Bytes,
}

impl fmt::Debug for LogBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogBatch({} bytes)", self.bytes.len())
    }
}

impl fmt::Display for LogBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What apply answered to each proposal of a batch, in order; empty for other entries.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(pub(crate) Vec<machine::Outcome>);

// openraft asks for serde on the response type because its client-write answer can be sent over a
// wire. Ours never is: outcomes go to the waiters in this process.
impl Serialize for Outcomes {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("outcomes stay in the process"))
    }
}

impl<'de> Deserialize<'de> for Outcomes {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("outcomes stay in the process"))
    }
}

pub(crate) fn position(log_id: &LogId) -> LogPosition {
    LogPosition { term: log_id.leader_id.term, node: log_id.leader_id.node_id, index: log_id.index }
}

pub(crate) fn log_id(position: LogPosition) -> LogId {
    let leader = leader_id_adv::LeaderId { term: position.term, node_id: position.node };
    LogId::new(leader, position.index)
}

//! What `service` takes and gives, besides the model's own types.

use crate::model::{Caller, Failure, Fence, KeyRange, KeyValue, Revision, RevisionEvents};
pub use crate::model::{Delimiter, HistoryItem, HistoryOp, HistoryPage, ListOp, ListPage};
pub use crate::watch::Kinds;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// What every operation carries.
#[derive(Debug, Clone)]
pub struct Context {
    pub caller: Caller,
    /// The server-side deadline, from now.
    pub timeout: Duration,
    /// Claims that must hold where a write is applied; it does nothing otherwise.
    pub fences: Vec<Fence>,
}

impl Context {
    #[must_use]
    pub fn new(caller: Caller, timeout: Duration) -> Self {
        Self { caller, timeout, fences: Vec::new() }
    }

    /// For what the member does on its own.
    #[must_use]
    pub fn system(timeout: Duration) -> Self {
        Self::new(Caller::System, timeout)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Consistency {
    #[default]
    Linearizable,
    /// This member's applied state; older than the bound is answered by the leader.
    Stale { max_staleness: Option<Duration> },
}

#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    pub consistency: Consistency,
    /// Wait, within the timeout, until this member has applied this revision.
    pub min_revision: Option<Revision>,
}

/// Who answered, and what the answer reflects.
#[derive(Debug, Clone)]
pub struct Header {
    pub cluster_id: u64,
    pub member_id: u64,
    pub member_name: Arc<str>,
    pub leader_name: Option<Arc<str>>,
    pub term: u64,
    /// The store's revision that the answer reflects.
    pub revision: Revision,
    /// For stale reads: how long ago this member last knew itself up to date.
    pub staleness_ms: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Answer<T> {
    pub header: Header,
    pub body: T,
    /// The answer of an earlier request with the same idempotency key.
    pub replayed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompactTarget {
    Revision(Revision),
    KeepRevisions(i64),
    KeepAge(Duration),
}

#[derive(Debug, Clone)]
pub struct WaitOp {
    pub key: Bytes,
    pub known: Option<Revision>,
    pub wait: Duration,
}

/// What a watch follows, and how.
#[derive(Debug, Clone)]
pub struct WatchRequest {
    /// 1 to `limits::WATCH_TARGETS_MAX` ranges, which may overlap.
    pub targets: Vec<KeyRange>,
    pub start: WatchStart,
    /// First the state of all targets at one revision, unless `start` names a point to go on from.
    pub initial: bool,
    /// What becomes of a stream whose next events are compacted.
    pub on_compacted: OnCompacted,
    pub kinds: Kinds,
    /// Also give the state before each event, where it is not compacted.
    pub prev: bool,
    /// Leave the values of listed entries out (events always have theirs).
    pub keys_only: bool,
    /// Say how far the stream is, this often.
    pub progress_every: Option<Duration>,
    /// Wait, within the timeout, until this member has applied this revision.
    pub min_revision: Option<Revision>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchStart {
    Now,
    /// For who knows the state at this revision: refused if that is compacted.
    After(Revision),
    /// The events of this revision and later; the compacted revision's own are still there.
    At(Revision),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCompacted {
    Fail,
    /// Say so, give the whole state again, and go on from there.
    Resync,
}

/// What a watch stream says next.
#[derive(Debug, Clone)]
pub enum WatchStep {
    /// A part of the state at one revision, in key order.
    Listed(Vec<KeyValue>),
    /// The state at this revision is complete; what follows are its changes.
    Synced(Revision),
    /// Whole revisions, in order; never empty.
    Changes(Vec<Change>),
    /// Everything up to this revision has been said.
    Progress(Revision),
    /// What was said before is void: the state at this revision follows, up to `Synced`.
    Reset(Revision),
    /// The last step, unless the member is shutting down: `None` then ends the stream.
    Failed(Failure),
}

/// The events of one revision.
#[derive(Debug, Clone)]
pub struct Change {
    pub events: RevisionEvents,
    /// The state before each event, if it was asked for, is there and not compacted.
    pub previous: Vec<Option<KeyValue>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashReply {
    /// 32 lower-case hex digits.
    pub hash: String,
    pub revision: Revision,
    pub compacted_revision: Revision,
    pub applied_index: u64,
}

/// The bytes of a snapshot and what they are an image of.
#[derive(Debug)]
pub struct SnapshotStream {
    pub revision: Revision,
    pub length: u64,
    pub chunks: tokio::sync::mpsc::Receiver<Result<Bytes, crate::model::Fault>>,
}

#[derive(Debug, Clone)]
pub struct Check {
    pub name: &'static str,
    /// `Err` says what is wrong.
    pub result: Result<(), String>,
}

#[derive(Debug, Clone)]
pub struct Status {
    pub name: Arc<str>,
    pub id: u64,
    pub cluster_id: u64,
    pub leader: Option<Arc<str>>,
    pub is_leader: bool,
    pub learner: bool,
    pub term: u64,
    pub raft_index: u64,
    pub applied_index: u64,
    pub revision: Revision,
    pub compacted_revision: Revision,
    /// Bytes of the data directory's files.
    pub db_bytes: u64,
    /// Logical bytes of live and retained data, as the quota counts them.
    pub db_bytes_in_use: u64,
    pub quota_bytes: u64,
    pub keys: u64,
    pub leases: u64,
    pub watchers: u64,
    pub uptime_ms: u64,
    pub alarms: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    Voter,
    Learner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberStanding {
    Leader,
    Follower,
    /// It answers, but nobody leads.
    Candidate,
    Unreachable,
}

/// A member as the cluster sees it; what nobody could say is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMember {
    pub id: u64,
    pub name: String,
    pub role: MemberRole,
    pub standing: MemberStanding,
    pub peer_url: String,
    pub client_url: String,
    pub version: Option<String>,
    pub applied_index: Option<u64>,
    pub match_index: Option<u64>,
    pub lag_entries: Option<u64>,
    pub last_contact_ms: Option<u64>,
    pub db_bytes: Option<u64>,
}

/// A member as the membership has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMember {
    pub id: u64,
    pub name: String,
    pub role: MemberRole,
    pub peer_url: String,
    pub client_url: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterReply {
    pub id: u64,
    pub members: Vec<ClusterMember>,
    /// Voters that are needed for anything to be written.
    pub quorum: u64,
    /// How many more voters may fail before that is lost.
    pub tolerates: u64,
    /// A leader, and every member answers.
    pub healthy: bool,
}

/// A member to be added; it joins as a learner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMember {
    /// Drawn by who asks; never used before.
    pub id: u64,
    pub name: String,
    pub peer_url: String,
    pub client_url: String,
}

/// What is to be changed of a member; `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberPatch {
    pub name: Option<String>,
    pub peer_url: Option<String>,
    pub client_url: Option<String>,
}

//! What watchers are told: one event per key and revision.

use super::{KeyValue, Revision};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeleteReason {
    Deleted,
    Expired,
    LeaseRevoked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// `kv.version == 1` means created.
    Put,
    /// `kv` holds only the key and, as `mod_revision`, the revision of the delete.
    Delete(DeleteReason),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub kv: KeyValue,
    /// The key's former state; `None` if there was none.
    pub prev: Option<PrevRef>,
}

/// Where the former state is found: values are fetched only for watchers that ask for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrevRef {
    pub main: Revision,
    pub sub: u32,
}

/// A stretch of history, of the keys that were asked for.
#[derive(Debug, Clone, Default)]
pub struct EventPage {
    /// Each with all its events of these keys, and none without any.
    pub revisions: Vec<RevisionEvents>,
    /// Everything of these keys up to this revision is told; go on after it.
    pub upto: Revision,
}

/// All events of one revision, in the order of the transaction's operations.
#[derive(Debug, Clone)]
pub struct RevisionEvents {
    pub revision: Revision,
    pub events: Arc<[Event]>,
}

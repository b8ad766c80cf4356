//! The watch hub (rank 3): who wants to hear of which keys, in revision order, in bounded memory.
//!
//! Apply publishes each revision's events once, into a bounded ring (`ring`), and goes on: its cost
//! does not depend on how many watch. The hub's own task (`Hub::run`) matches what was published
//! against the live watchers (`index`: an exact-key map and an interval tree) and only *wakes* those
//! it concerns. Each watcher then reads on from its own position: out of the ring, or, once the ring
//! has moved past it, out of the store's history at its own pace (`watcher`). So a slow watcher holds one
//! position and at most one chunk of events, and nobody waits for it. For watchers that one task polls, and that
//! are up with the hub, a `group` reads once.
//!
//! Invariants: a watcher gets every matching event after its start exactly once, in revision order,
//! all events of a revision together; progress never runs ahead of what was handed out; a gap is
//! only ever an explicit `Compacted`. It must not know protocols, HTTP, JSON or protobuf.

mod group;
mod hub;
mod index;
mod intervals;
mod ring;
mod watcher;

pub use group::{Group, Handed, Tag};
pub use hub::{Hub, HubOptions, Lag};
pub use ring::events_bytes;
pub use watcher::{Closed, KeyWait, Kinds, WatchItem, WatchSpec, Watcher};

use crate::model::{EventPage, Fault, KeyRange, Revision};
use std::fmt::Debug;

/// The store's history, as of now at each call. The hub's publisher makes a revision readable here
/// before it publishes it.
pub trait History: Debug + Send + Sync + 'static {
    /// The newest revision that can be read.
    fn revision(&self) -> Revision;
    /// Events of revisions below this one may be gone; from it on they are whole. 0: nothing is gone.
    fn compacted_revision(&self) -> Revision;
    /// The events that these ranges show from revision `from` on, in order, of each revision all: up to
    /// about `max_records` of them. There may be none in what was looked at, which is at least one
    /// revision if there is one. Blocks on the disk.
    fn events(&self, ranges: &[KeyRange], from: Revision, max_records: usize) -> Result<EventPage, Fault>;
}

#[cfg(test)]
mod tests;

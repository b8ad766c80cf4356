//! The newest events, in memory: what lets a watcher that lags a little catch up without the disk.
//!
//! Invariant: holds every published revision above `floor`, in rising order, within its byte bound.

use crate::model::{Event, Revision, RevisionEvents};
use std::collections::VecDeque;

/// What an event costs besides its key and value.
const EVENT_OVERHEAD_BYTES: usize = 192;

#[derive(Debug)]
pub(super) struct Ring {
    entries: VecDeque<(RevisionEvents, usize)>,
    bytes: usize,
    bytes_max: usize,
    /// Revisions up to this one are not in the ring (any more).
    floor: Revision,
    /// The newest revision published.
    revision: Revision,
}

#[derive(Debug)]
pub(super) enum Taken {
    /// Whole revisions in order; `more` if the ring holds further ones.
    Some { revisions: Vec<RevisionEvents>, more: bool },
    /// Nothing that new was published yet.
    None,
    /// The ring has moved past it.
    Gone,
}

impl Ring {
    pub(super) fn new(revision: Revision, bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max, floor: revision, revision }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn push(&mut self, events: RevisionEvents) {
        assert!(events.revision > self.revision, "revision {} published after {}", events.revision, self.revision);
        if events.revision != self.revision + 1 {
            // What lies between was not published here: history has it.
            self.reset(events.revision - 1);
        }
        self.revision = events.revision;
        let bytes = events_bytes(&events.events);
        self.bytes += bytes;
        self.entries.push_back((events, bytes));
        while self.bytes > self.bytes_max
            && let Some((gone, bytes)) = self.entries.pop_front()
        {
            self.floor = gone.revision;
            self.bytes -= bytes;
        }
    }

    /// Forgets everything: the store now stands at `revision` and what led there was not published.
    pub(super) fn reset(&mut self, revision: Revision) {
        self.entries.clear();
        self.bytes = 0;
        self.floor = revision;
        self.revision = revision;
    }

    /// Revisions from `from` on: at least one, then as many as fit both bounds.
    pub(super) fn take(&self, from: Revision, events_max: usize, bytes_max: usize) -> Taken {
        if from > self.revision {
            return Taken::None;
        }
        if from <= self.floor {
            return Taken::Gone;
        }
        let first = self.entries.partition_point(|(entry, _)| entry.revision < from);
        let (mut revisions, mut events_left, mut bytes_left) = (Vec::new(), events_max, bytes_max);
        for (entry, bytes) in self.entries.range(first..) {
            let fits = entry.events.len() <= events_left && *bytes <= bytes_left;
            if !fits && !revisions.is_empty() {
                return Taken::Some { revisions, more: true };
            }
            events_left = events_left.saturating_sub(entry.events.len());
            bytes_left = bytes_left.saturating_sub(*bytes);
            revisions.push(entry.clone());
        }
        Taken::Some { revisions, more: false }
    }
}

/// What these events hold in memory, roughly.
#[must_use]
pub fn events_bytes(events: &[Event]) -> usize {
    events.iter().map(|event| EVENT_OVERHEAD_BYTES + event.kv.key.len() + event.kv.value.len()).sum()
}

//! One stream's reader: its position, and where it reads on from there.
//!
//! Invariant: everything below `next` that matches has been handed out or is in `ready`. While
//! `behind` is false, nothing between `next` and the slot's hint matches, so the reader skips there.

use super::group::{Group, Tag};
use super::hub::{Registration, Shared};
use super::ring::{Taken, events_bytes};
use crate::model::{Event, EventKind, EventPage, Fault, KeyRange, Revision, RevisionEvents};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Events asked of history at first, and at most; in between it adapts to their size.
const READ_RECORDS_FIRST: usize = 64;
const READ_RECORDS_MAX: usize = 1024;

#[derive(Debug, Clone)]
pub struct WatchSpec {
    /// What to follow: 1 to `limits::WATCH_TARGETS_MAX` ranges, which may overlap.
    pub targets: Vec<KeyRange>,
    /// Events after this revision; `None` is from now on.
    pub after: Option<Revision>,
    pub kinds: Kinds,
}

/// Which kinds of events are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    pub puts: bool,
    pub deletes: bool,
}

impl Kinds {
    pub const ALL: Self = Self { puts: true, deletes: true };
}

#[derive(Debug, Clone)]
pub enum WatchItem {
    /// All wanted events of one revision; never empty.
    Events(RevisionEvents),
    /// Everything wanted up to this revision has been handed out.
    Progress(Revision),
    /// The hub was told to nudge all watchers.
    Nudged,
    /// What comes next is compacted away: the watch ends. `requested` is the first revision missing.
    Compacted { requested: Revision, compacted: Revision, current: Revision },
    /// The watch has ended.
    Closed(Closed),
}

#[derive(Debug, Clone)]
pub enum Closed {
    /// The member is shutting down.
    Stopping,
    /// `Compacted` was said before.
    Compacted,
    /// History could not be read.
    Fault(Fault),
}

/// A watch. Dropping it frees everything it holds.
pub struct Watcher {
    registration: Registration,
    wanted: Wanted,
    /// What the reader of its group knows it by.
    tag: Option<Tag>,
    start: Revision,
    next: Revision,
    behind: bool,
    ready: VecDeque<RevisionEvents>,
    progress_wanted: bool,
    /// A history read under way: kept here so that a dropped `next` does not lose it.
    reading: Option<Reading>,
    read_records: usize,
    in_history: bool,
    closed: Option<Closed>,
}

/// What of a revision is for a watcher.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Shared with reads of history under way.
    pub(super) targets: Arc<[KeyRange]>,
    kinds: Kinds,
}

impl Wanted {
    pub(super) fn of(&self, all: &RevisionEvents) -> Option<RevisionEvents> {
        let wants =
            |event: &Event| self.is_of_kind(event) && self.targets.iter().any(|target| target.shows(&event.kv.key));
        if all.events.iter().all(wants) {
            return (!all.events.is_empty()).then(|| all.clone());
        }
        let events: Arc<[Event]> = all.events.iter().filter(|event| wants(event)).cloned().collect();
        (!events.is_empty()).then_some(RevisionEvents { revision: all.revision, events })
    }

    pub(super) fn is_of_kind(&self, event: &Event) -> bool {
        match event.kind {
            EventKind::Put => self.kinds.puts,
            EventKind::Delete(_) => self.kinds.deletes,
        }
    }
}

type Reading = Pin<Box<dyn Future<Output = Result<HistoryRead, Fault>> + Send>>;

#[derive(Debug)]
struct HistoryRead {
    page: EventPage,
    /// As it stood after the read: had it passed the read's start, the read may have holes.
    compacted: Revision,
}

enum Step {
    /// Something was read; look again.
    Moved,
    Idle,
    Read,
}

impl Watcher {
    pub(super) fn new(registration: Registration, spec: WatchSpec, next: Revision) -> Self {
        Self {
            registration,
            wanted: Wanted { targets: spec.targets.into(), kinds: spec.kinds },
            tag: None,
            start: next.saturating_sub(1),
            next,
            behind: true,
            ready: VecDeque::new(),
            progress_wanted: false,
            reading: None,
            read_records: READ_RECORDS_FIRST,
            in_history: false,
            closed: None,
        }
    }

    /// The revision after which this watch began.
    #[must_use]
    pub fn start(&self) -> Revision {
        self.start
    }

    /// Everything wanted up to this revision has been handed out: a new watch may resume after it.
    /// `None` while the watch waits for a start in the future.
    #[must_use]
    pub fn progress(&self) -> Option<Revision> {
        let shared = &self.registration.shared;
        // In this order: with nothing hinted after `matched` was read, nothing up to it is outstanding.
        let matched = shared.matched();
        let position = match (self.ready.front(), self.registration.slot.peek()) {
            _ if self.registration.is_grouped() => self.group_position().max(self.next) - 1,
            (Some(events), _) => events.revision - 1,
            (None, _) if self.behind => self.next - 1,
            (None, Some(hint)) => self.next.max(hint) - 1,
            (None, None) => matched.max(self.next - 1),
        };
        (position <= shared.published().max(shared.history.revision())).then_some(position)
    }

    /// From now on the group reads for it whenever it has nothing left to hand out. For good: it cannot leave.
    pub fn join(&mut self, group: &Group, tag: Tag) {
        self.registration.group = Some(group.clone());
        self.tag = Some(tag);
    }

    fn group_position(&self) -> Revision {
        self.registration.group.as_ref().map_or(0, Group::position)
    }

    /// Has its group, if it has one, read for it from now on.
    pub(super) fn rest(&mut self) {
        let Some((group, tag)) = self.registration.group.as_ref().zip(self.tag) else { return };
        if !self.registration.is_grouped()
            && let Some(from) = group.take_in(&self.registration, tag, &self.wanted, self.next)
        {
            self.next = from;
        }
    }

    /// Makes this or the next `next` answer with `Progress` once no event is at hand. A watch that
    /// waits for a start in the future stays silent.
    pub fn request_progress(&mut self) {
        self.progress_wanted = true;
    }

    /// The next item. May be dropped and called again: nothing is lost. After `Compacted` or `Closed`
    /// it is `Closed` for ever.
    pub async fn next(&mut self) -> WatchItem {
        loop {
            if self.is_over() {
                return WatchItem::Closed(Closed::Stopping);
            }
            if let Some(closed) = &self.closed {
                return WatchItem::Closed(closed.clone());
            }
            if self.registration.slot.was_nudged() {
                return WatchItem::Nudged;
            }
            if let Some(events) = self.next_ready() {
                return WatchItem::Events(events);
            }
            let step = self.step();
            self.note_position();
            let idle = match step {
                Step::Idle => true,
                Step::Moved => {
                    // Who hands out something comes to a pause when it is written.
                    if self.ready.is_empty() {
                        tokio::task::yield_now().await;
                    }
                    false
                }
                Step::Read => {
                    let slot = Arc::clone(&self.registration.slot);
                    let read = tokio::select! {
                        biased;
                        read = self.read() => read,
                        // A nudge is heard before; a hint waits in the slot until the read is done.
                        () = slot.wake.heard() => None,
                    };
                    if let Some(item) = read {
                        return item;
                    }
                    false
                }
            };
            // After the step, so that asking for progress again and again cannot hold up the reading.
            if self.progress_wanted && self.ready.is_empty() {
                if let Some(revision) = self.progress() {
                    self.progress_wanted = false;
                    return WatchItem::Progress(revision);
                }
                // Its start is still to come, perhaps without an event for it.
                self.registration.wake_at(self.next - 1);
            }
            if idle {
                self.rest();
                self.registration.slot.wake.heard().await;
            }
        }
    }

    /// The member is shutting down.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.registration.shared.is_over()
    }

    /// More of what the last `next` began to give, if it is at hand; never waits.
    pub fn next_ready(&mut self) -> Option<RevisionEvents> {
        let events = self.ready.pop_front()?;
        let count = u64::try_from(events.events.len()).unwrap_or(u64::MAX);
        self.registration.shared.metrics.watch_events.inc_by(count);
        self.note_position();
        Some(events)
    }

    /// Where this reader stands, for whoever measures lag.
    fn note_position(&self) {
        let first = self.ready.front().map(|events| events.revision);
        let behind = first.unwrap_or(if self.behind { self.next } else { 0 });
        self.registration.slot.behind.store(behind, Ordering::Relaxed);
        self.registration.slot.in_history.store(self.in_history, Ordering::Relaxed);
    }

    fn step(&mut self) -> Step {
        if self.reading.is_some() {
            return Step::Read;
        }
        match (self.registration.slot.take(), self.behind) {
            (None, false) => return Step::Idle,
            (Some(hint), false) => self.next = self.next.max(hint),
            (_, true) => {}
        }
        match self.registration.shared.take(self.next) {
            Taken::None => {
                self.behind = false;
                self.in_history = false;
                Step::Idle
            }
            Taken::Some { revisions, more } => {
                self.behind = more;
                self.in_history = false;
                self.accept(revisions);
                Step::Moved
            }
            Taken::Gone => {
                self.behind = true;
                if !self.in_history {
                    self.in_history = true;
                    self.registration.shared.metrics.watch_catchups.inc();
                }
                let targets = Arc::clone(&self.wanted.targets);
                let shared = &self.registration.shared;
                self.reading = Some(start_reading(shared, targets, self.next, self.read_records));
                Step::Read
            }
        }
    }

    /// Waits for the history read under way.
    async fn read(&mut self) -> Option<WatchItem> {
        let reading = self.reading.as_mut()?;
        let stopping = self.registration.shared.tasks.stopping();
        let Some(read) = stopping.run_until_cancelled(reading).await else {
            return Some(WatchItem::Closed(Closed::Stopping));
        };
        self.reading = None;
        match read {
            Ok(read) if self.next < read.compacted => {
                self.closed = Some(Closed::Compacted);
                let (requested, compacted) = (self.next, read.compacted);
                let current = self.registration.shared.history.revision();
                return Some(WatchItem::Compacted { requested, compacted, current });
            }
            Ok(read) if read.page.upto < self.next => {
                let problem = format!("history ends at {} but {} was published", read.page.upto, self.next);
                self.closed = Some(Closed::Fault(Fault::Invariant(problem)));
            }
            Ok(read) => self.accept_history(read.page),
            Err(fault) => self.closed = Some(Closed::Fault(fault)),
        }
        None
    }

    /// Keeps what fits a stream's bound, at least one revision: the rest is read again when it is due.
    fn accept_history(&mut self, page: EventPage) {
        let EventPage { mut revisions, upto } = page;
        let mut left = self.registration.shared.options.queue_bytes;
        let fits = revisions.iter().take_while(|events| {
            let bytes = events_bytes(&events.events);
            let fits = bytes <= left;
            left = left.saturating_sub(bytes);
            fits
        });
        let fits = fits.count();
        let fits_all = fits == revisions.len();
        self.read_records =
            if fits_all { (self.read_records * 2).min(READ_RECORDS_MAX) } else { (self.read_records / 2).max(1) };
        let told = fits_all || fits == 0 && revisions.len() == 1;
        revisions.truncate(fits.max(1));
        self.accept(revisions);
        if told {
            // Nothing wanted lies between the last event and there, which may be far where others write.
            self.next = self.next.max(upto + 1);
        }
    }

    fn accept(&mut self, revisions: Vec<RevisionEvents>) {
        for events in revisions {
            debug_assert!(events.revision >= self.next, "read back to {} at {}", events.revision, self.next);
            self.next = events.revision + 1;
            if let Some(wanted) = self.wanted.of(&events) {
                self.ready.push_back(wanted);
            }
        }
    }
}

fn start_reading(shared: &Arc<Shared>, targets: Arc<[KeyRange]>, from: Revision, max_records: usize) -> Reading {
    let shared = Arc::clone(shared);
    Box::pin(async move {
        let Ok(permit) = Arc::clone(&shared.catch_ups).acquire_owned().await else {
            return Err(Fault::Invariant("the hub's permits are gone".to_owned()));
        };
        let history = Arc::clone(&shared.history);
        let read = move || {
            // Held by the read itself: a dropped watcher must not let another read start beside it.
            let _permit = permit;
            let page = history.events(&targets, from, max_records)?;
            Ok(HistoryRead { page, compacted: history.compacted_revision() })
        };
        let panicked = || Fault::Invariant("reading history panicked".to_owned());
        shared.tasks.blocking(read).await.unwrap_or_else(|| Err(panicked()))
    })
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("wanted", &self.wanted)
            .field("next", &self.next)
            .field("behind", &self.behind)
            .finish_non_exhaustive()
    }
}

/// Waits for one key to change: no position, no events, only the word that there was one.
#[derive(Debug)]
pub struct KeyWait {
    registration: Registration,
}

impl KeyWait {
    pub(super) fn new(registration: Registration) -> Self {
        Self { registration }
    }

    /// Returns true once the key may have changed since the registration or the last call (look again:
    /// it may be what the caller has seen already), and false when the member is shutting down.
    pub async fn changed(&mut self) -> bool {
        loop {
            if self.registration.shared.is_over() {
                return false;
            }
            if self.registration.slot.take().is_some() {
                return true;
            }
            self.registration.slot.wake.heard().await;
        }
    }
}

#[cfg(test)]
impl Watcher {
    pub(super) fn is_unhinted(&self) -> bool {
        self.registration.slot.peek().is_none()
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }
}

//! The hub: takes events from apply, and tells watchers that there is something for them.
//!
//! Publishing touches only the ring. Matching runs in the hub's own task, behind the published
//! revision by a moment; `matched` says how far. A watcher's `Slot` holds the first matching revision
//! that its reader has not taken yet; the reader clears it *before* it looks at the ring, so whatever
//! is matched later sets it again, and nothing falls between.

use super::History;
use super::group::Group;
use super::index::{Index, Parts, parts_of};
use super::ring::{Ring, Taken};
use super::watcher::{KeyWait, WatchSpec, Watcher};
use crate::env::{Signal, TaskSet};
use crate::model::{Failure, KeyRange, Rejection, Revision, RevisionEvents, Why, limits};
use crate::telemetry::Metrics;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use tokio::sync::{Notify, Semaphore};

/// Revisions matched before the hub's task lets others run.
const MATCH_EVENTS_MAX: usize = 512;

#[derive(Debug, Clone)]
pub struct HubOptions {
    pub ring_bytes: usize,
    /// What a stream takes at once; the rest waits in the ring or in history.
    pub queue_events: usize,
    pub queue_bytes: usize,
    pub streams: usize,
    /// History reads running at once.
    pub catch_ups: usize,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            ring_bytes: limits::WATCH_RING_BYTES_MAX,
            queue_events: limits::WATCH_QUEUE_EVENTS_MAX,
            queue_bytes: limits::WATCH_QUEUE_BYTES_MAX,
            streams: limits::WATCH_STREAMS_MAX,
            catch_ups: limits::WATCH_CATCH_UPS_MAX,
        }
    }
}

/// A cheap handle on a member's hub.
#[derive(Debug, Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: HubOptions,
    ring: RwLock<Ring>,
    pub(super) live: Mutex<Live>,
    /// Every revision up to this one has been matched against the live watchers.
    matched: AtomicI64,
    /// Streams registered; read by the publisher to skip waking a hub that has nobody to tell.
    streams: AtomicUsize,
    published: Notify,
    /// The member is shutting down. Not the token of `tasks`: it has one lock, at which all watchers would meet
    /// at every event. Set with `live` held.
    over: AtomicBool,
    pub(super) history: Arc<dyn History>,
    pub(super) catch_ups: Arc<Semaphore>,
    pub(super) tasks: TaskSet,
    pub(super) metrics: Metrics,
}

#[derive(Debug)]
pub(super) struct Live {
    /// Whom to leave word for, by the watcher: its own slot, or that of the group which reads for it.
    pub(super) index: Index<Arc<Slot>>,
    slots: BTreeMap<u64, Arc<Slot>>,
    pub(super) groups: BTreeMap<u64, Arc<Slot>>,
    /// Who is to be woken, whatever it watches, once a revision is matched: by that revision and the watcher.
    due: BTreeMap<(Revision, u64), Arc<Slot>>,
    next_id: u64,
}

/// Where the hub leaves word for one reader.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// The first matching revision since the reader last looked; 0 is none.
    hint: AtomicI64,
    pub(super) wake: Signal,
    /// The reader is to look at what does not come as an event.
    nudged: AtomicBool,
    /// A group reads for it. Set with `live` held.
    pub(super) grouped: AtomicBool,
    /// The first revision that a lagging reader has not handed out; 0 if it does not lag.
    pub(super) behind: AtomicI64,
    pub(super) in_history: AtomicBool,
}

impl Slot {
    pub(super) fn offer(&self, revision: Revision) {
        // The hub comes here for every watcher of a group. Who took a word that is still seen here looks at the
        // ring after it, and so after what is being matched was put there.
        if self.hint.load(Ordering::Relaxed) != 0 {
            return;
        }
        if self.hint.compare_exchange(0, revision, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.wake.give();
        }
    }

    /// The first matching revision since the last call, if any. Call before looking at the ring.
    pub(super) fn take(&self) -> Option<Revision> {
        Some(self.hint.swap(0, Ordering::AcqRel)).filter(|hint| *hint != 0)
    }

    /// Whether the reader was nudged since the last call.
    pub(super) fn was_nudged(&self) -> bool {
        self.nudged.load(Ordering::Relaxed) && self.nudged.swap(false, Ordering::Acquire)
    }

    pub(super) fn peek(&self) -> Option<Revision> {
        Some(self.hint.load(Ordering::Acquire)).filter(|hint| *hint != 0)
    }
}

/// How far the streams are behind what was published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Revisions that the slowest stream has yet to hand out or skip; 0 if none waits for its reader.
    pub slowest_revisions: u64,
    /// Streams that are served from history now.
    pub catching_up: usize,
}

/// A place in the live set, given up when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) shared: Arc<Shared>,
    pub(super) slot: Arc<Slot>,
    pub(super) id: u64,
    pub(super) parts: Arc<Parts>,
    /// Which reads for it, when it can.
    pub(super) group: Option<Group>,
    /// When it is to be woken.
    due: Option<Revision>,
}

impl Hub {
    /// A hub for a store that stands at `history.revision()`. Someone must run `run`.
    #[must_use]
    pub fn new(history: Arc<dyn History>, options: HubOptions, tasks: TaskSet, metrics: Metrics) -> Self {
        let revision = history.revision();
        let shared = Shared {
            ring: RwLock::new(Ring::new(revision, options.ring_bytes)),
            live: Mutex::new(Live::new()),
            matched: AtomicI64::new(revision),
            streams: AtomicUsize::new(0),
            published: Notify::new(),
            over: AtomicBool::new(false),
            history,
            catch_ups: Arc::new(Semaphore::new(options.catch_ups)),
            tasks,
            metrics,
            options,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Called by apply once the revisions are readable, in strictly rising order. Waits for no watcher.
    pub fn publish(&self, revisions: &[RevisionEvents]) {
        if revisions.is_empty() {
            return;
        }
        {
            let mut ring = self.shared.ring.write();
            for events in revisions {
                ring.push(events.clone());
            }
        }
        self.wake();
    }

    /// Called when the store has jumped to `revision` without publishing what led there (a snapshot
    /// was installed) and that revision is readable: every watcher reads on from history.
    pub fn reset(&self, revision: Revision) {
        self.shared.ring.write().reset(revision);
        self.wake();
    }

    /// Has every watcher answer with `Nudged`: something that its caller goes by has changed.
    pub fn nudge(&self) {
        for slot in self.shared.live.lock().slots.values() {
            slot.nudged.store(true, Ordering::Release);
            slot.wake.give();
        }
    }

    fn wake(&self) {
        if self.shared.streams.load(Ordering::Acquire) > 0 {
            self.shared.published.notify_one();
        }
    }

    /// The newest revision published.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.shared.ring.read().revision()
    }

    /// Streams and waits that are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::Acquire)
    }

    /// Looks at every stream: for a scrape of metrics, not for a hot path.
    #[must_use]
    pub fn lag(&self) -> Lag {
        let published = self.revision();
        let slots: Vec<Arc<Slot>> = {
            let live = self.shared.live.lock();
            live.slots.values().chain(live.groups.values()).cloned().collect()
        };
        let waiting = |slot: &Arc<Slot>| [slot.behind.load(Ordering::Relaxed), slot.peek().unwrap_or(0)];
        let first = slots.iter().flat_map(waiting).filter(|revision| *revision != 0).min();
        let slowest = first.map_or(0, |first| published.saturating_add(1).saturating_sub(first));
        Lag {
            slowest_revisions: u64::try_from(slowest).unwrap_or(0),
            catching_up: slots.iter().filter(|slot| slot.in_history.load(Ordering::Relaxed)).count(),
        }
    }

    /// Matches what is published against the live watchers until the node stops; they end with it.
    pub async fn run(self) {
        let _over = Over(&self.shared);
        let stopping = self.shared.tasks.stopping().clone();
        loop {
            while self.shared.match_some() {
                tokio::task::yield_now().await;
            }
            if stopping.run_until_cancelled(self.shared.published.notified()).await.is_none() {
                return;
            }
        }
    }

    /// Starts a watch. `Compacted` if its start is gone already; a start in the future just waits.
    pub fn watch(&self, spec: WatchSpec) -> Result<Watcher, Failure> {
        let count = spec.targets.len();
        if count == 0 || count > limits::WATCH_TARGETS_MAX {
            let problem = format!("{count} given, allowed are 1 to {}", limits::WATCH_TARGETS_MAX);
            return Err(Rejection::Invalid { field: "targets".to_owned(), problem }.into());
        }
        let (registration, current) = self.register(parts_of(&spec.targets))?;
        let next = spec.after.unwrap_or(current).saturating_add(1);
        let compacted = self.shared.history.compacted_revision();
        if next < compacted {
            return Err(Rejection::Compacted { requested: next, compacted, current }.into());
        }
        Ok(Watcher::new(registration, spec, next))
    }

    /// Waits for changes of one key, without their content. Register first, then read the key, then wait.
    pub fn wait_key(&self, key: Bytes) -> Result<KeyWait, Failure> {
        let (registration, _) = self.register(parts_of(&[KeyRange::key(key)]))?;
        Ok(KeyWait::new(registration))
    }

    /// For watchers that one task polls.
    #[must_use]
    pub fn group(&self) -> Group {
        let mut live = self.shared.live.lock();
        live.next_id += 1;
        let (id, slot) = (live.next_id, Arc::new(Slot::default()));
        live.groups.insert(id, Arc::clone(&slot));
        Group::new(Arc::clone(&self.shared), slot, id)
    }

    /// A place in the live set, and the newest revision published by then.
    fn register(&self, parts: Parts) -> Result<(Registration, Revision), Failure> {
        let shared = &self.shared;
        let mut live = shared.live.lock();
        if shared.is_over() || shared.tasks.stopping().is_cancelled() {
            return Err(Failure::not_proposed(Why::ShuttingDown));
        }
        if live.slots.len() >= shared.options.streams {
            return Err(Failure::not_proposed(Why::TooManyStreams));
        }
        if live.slots.is_empty() {
            // Nobody was there to match for.
            shared.matched.fetch_max(shared.ring.read().revision(), Ordering::AcqRel);
        }
        live.next_id += 1;
        let id = live.next_id;
        let slot = Arc::new(Slot::default());
        live.index.insert(&parts, id, &slot);
        live.slots.insert(id, Arc::clone(&slot));
        shared.streams.store(live.slots.len(), Ordering::Release);
        shared.metrics.watchers.inc();
        drop(live);
        // Read only now: whoever publishes after this lock sees the new stream, and what was published
        // before it can be read by the caller.
        let current = shared.ring.read().revision();
        let parts = Arc::new(parts);
        Ok((Registration { shared: Arc::clone(shared), slot, id, parts, group: None, due: None }, current))
    }
}

impl Shared {
    /// Matches a bounded number of revisions. True if there are more.
    pub(super) fn match_some(&self) -> bool {
        let mut live = self.live.lock();
        let from = self.matched.load(Ordering::Acquire).saturating_add(1);
        let (taken, published) = {
            let ring = self.ring.read();
            (ring.take(from, MATCH_EVENTS_MAX, usize::MAX), ring.revision())
        };
        let (matched, more) = match taken {
            Taken::None => return false,
            // Too slow, or the store has jumped: each watcher has to look for itself.
            Taken::Gone => {
                let alone = live.slots.values().filter(|slot| !slot.grouped.load(Ordering::Relaxed));
                alone.chain(live.groups.values()).for_each(|slot| slot.offer(from));
                (published, false)
            }
            Taken::Some { revisions, more } => {
                let mut matched = from;
                for RevisionEvents { revision, events } in &revisions {
                    for event in events.iter() {
                        live.index.matching(&event.kv.key, |slot| slot.offer(*revision));
                    }
                    matched = *revision;
                }
                (matched, more)
            }
        };
        self.matched.store(matched, Ordering::Release);
        while let Some(first) = live.due.first_entry().filter(|first| first.key().0 <= matched) {
            first.remove().wake.give();
        }
        more
    }

    pub(super) fn matched(&self) -> Revision {
        self.matched.load(Ordering::Acquire)
    }

    pub(super) fn take(&self, from: Revision) -> Taken {
        self.ring.read().take(from, self.options.queue_events, self.options.queue_bytes)
    }

    pub(super) fn published(&self) -> Revision {
        self.ring.read().revision()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// Ends all watchers when it is dropped.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let live = self.0.live.lock();
        self.0.over.store(true, Ordering::Release);
        live.slots.values().for_each(|slot| slot.wake.give());
    }
}

impl Live {
    fn new() -> Self {
        Self { index: Index::new(), slots: BTreeMap::new(), groups: BTreeMap::new(), due: BTreeMap::new(), next_id: 0 }
    }
}

impl Registration {
    /// Has it woken once this revision is matched.
    pub(super) fn wake_at(&mut self, revision: Revision) {
        if self.due.is_some() {
            return;
        }
        self.due = Some(revision);
        let mut live = self.shared.live.lock();
        if self.shared.matched() < revision {
            live.due.insert((revision, self.id), Arc::clone(&self.slot));
        } else {
            self.slot.wake.give();
        }
    }

    /// A group reads for it.
    pub(super) fn is_grouped(&self) -> bool {
        self.slot.grouped.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            group.forget(self.id);
        }
        let mut live = self.shared.live.lock();
        live.index.remove(&self.parts, self.id);
        live.slots.remove(&self.id);
        if let Some(due) = self.due {
            live.due.remove(&(due, self.id));
        }
        self.shared.streams.store(live.slots.len(), Ordering::Release);
        self.shared.metrics.watchers.dec();
    }
}

#[cfg(test)]
impl Hub {
    pub(super) fn match_all(&self) {
        while self.shared.match_some() {}
    }

    pub(super) fn is_empty(&self) -> bool {
        let live = self.shared.live.lock();
        live.index.is_empty() && live.slots.is_empty() && live.groups.is_empty() && live.due.is_empty()
    }
}

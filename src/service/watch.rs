//! Watch streams: the state first if it is asked for, then every change, whatever the protocol.
//!
//! Served from this member's applied state; no leader is asked. Invariants: the listing and the
//! changes after it meet without a gap or an overlap; rights are asked for at the start and again with
//! everything that is handed out; a stream holds what it handed out last and nothing else, within the
//! member's budget; nothing is skipped, and what cannot be said any more is said to be missing.

use super::{Answer, AuthStatus, Change, Context, OnCompacted, Service, WatchRequest, WatchStart, WatchStep};
use crate::machine::View;
use crate::model::{
    Caller, Event, Failure, KeyRange, KeyValue, ListOp, RangeSort, Rejection, Revision, RevisionEvents, SortOrder, Why,
    key, limits,
};
use crate::storage::mutant::{self, Mutant};
use crate::telemetry::watch::WatchLag;
use crate::watch::{Closed, Group, Handed, Tag, WatchItem, WatchSpec, Watcher, events_bytes};
use bytes::Bytes;
use std::cell::OnceCell;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior};

/// What watch buffers are counted in; a semaphore counts in `u32`.
pub(super) const BUFFER_UNIT_BYTES: usize = 1024;

/// How long a stream waits for its share of the budget: those whose readers have stalled are cut off.
const BUFFER_WAIT: Duration = Duration::from_secs(10);
/// What an entry or event costs besides its key and value.
const ITEM_OVERHEAD_BYTES: usize = 192;
/// Entries of one page of the listing.
const PAGE_ENTRIES: u64 = 1_000;

/// An open watch. Dropping it frees everything it holds.
#[derive(Debug)]
pub struct WatchStream {
    service: Service,
    caller: Caller,
    request: WatchRequest,
    watcher: Watcher,
    /// Rights are looked at again when they may have changed, also where nothing happens.
    rights: tokio::sync::watch::Receiver<AuthStatus>,
    listing: Option<Box<Listing>>,
    /// Taken from the watcher and not yet handed out: kept here while the budget is waited for.
    taken: Vec<RevisionEvents>,
    ticks: Option<Interval>,
    /// The share of the budget for what was handed out last.
    buffered: Option<OwnedSemaphorePermit>,
    ended: bool,
}

/// The state still to be given, at one revision.
#[derive(Debug)]
struct Listing {
    revision: Revision,
    reset_due: bool,
    ranges: VecDeque<KeyRange>,
    resume: Option<Bytes>,
}

impl Service {
    /// Opens a watch. The answer's revision is its starting point: what is said first is of a later
    /// one, or is the state there. A start ahead of this member waits for it.
    ///
    /// # Errors
    /// `Compacted`, unless the request wants to be resynchronised; missing rights; too many streams.
    pub async fn watch(&self, context: &Context, request: WatchRequest) -> Result<Answer<WatchStream>, Failure> {
        if let Some(revision) = request.min_revision {
            self.reached(revision, context.timeout).await?;
        }
        // Before the first look, so that no change falls between.
        let rights = self.auth_changes();
        let view = self.newest();
        allowed(&view, &context.caller, &request.targets)?;
        let (watcher, listing) = self.begin(&view, &request)?;
        let revision = watcher.start();
        let ticks = request.progress_every.map(|every| {
            let mut ticks = tokio::time::interval(every);
            // The first is due after a period, not at once.
            ticks.reset();
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        let stream = WatchStream {
            service: self.clone(),
            caller: context.caller.clone(),
            request,
            watcher,
            rights,
            listing,
            taken: Vec::new(),
            ticks,
            buffered: None,
            ended: false,
        };
        Ok(self.answer(self.header_at(revision), stream, false))
    }

    /// How far the streams are behind, for a scrape of metrics.
    #[must_use]
    pub fn watch_lag(&self) -> WatchLag {
        let lag = self.inner.parts.hub.lag();
        let free = self.inner.watch_buffers.available_permits() * BUFFER_UNIT_BYTES;
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        WatchLag {
            slowest_revisions: lag.slowest_revisions,
            catching_up: number(lag.catching_up),
            buffered_bytes: number(limits::WATCH_BUFFERED_BYTES_MAX.saturating_sub(free)),
        }
    }

    fn begin(&self, view: &View, request: &WatchRequest) -> Result<(Watcher, Option<Box<Listing>>), Failure> {
        let asked = match request.start {
            WatchStart::Now if request.initial => return self.resync(view, request, false),
            WatchStart::Now => return Ok((self.follow(request, None)?, None)),
            WatchStart::After(revision) | WatchStart::At(revision) => revision,
        };
        let includes = matches!(request.start, WatchStart::At(_)) || mutant::is_active(Mutant::WatchResumesTwice);
        let after = if includes { asked.saturating_sub(1) } else { asked };
        let (compacted, current) = (view.compacted_revision(), view.revision());
        let started = if asked < compacted {
            Err(Rejection::Compacted { requested: asked, compacted, current }.into())
        } else {
            self.follow(request, Some(after))
        };
        match started {
            Err(Failure::Rejected(Rejection::Compacted { .. })) if request.on_compacted == OnCompacted::Resync => {
                self.resync(&self.newest(), request, true)
            }
            started => Ok((started?, None)),
        }
    }

    /// The state at the view's revision, and the changes after it.
    fn resync(
        &self,
        view: &View,
        request: &WatchRequest,
        reset_due: bool,
    ) -> Result<(Watcher, Option<Box<Listing>>), Failure> {
        let revision = view.revision();
        let watcher = self.follow(request, Some(revision))?;
        let ranges = key::union(&request.targets).into();
        Ok((watcher, Some(Box::new(Listing { revision, reset_due, ranges, resume: None }))))
    }

    fn follow(&self, request: &WatchRequest, after: Option<Revision>) -> Result<Watcher, Failure> {
        self.inner.parts.hub.watch(WatchSpec { targets: request.targets.clone(), after, kinds: request.kinds })
    }
}

fn allowed(view: &View, caller: &Caller, targets: &[KeyRange]) -> Result<(), Rejection> {
    targets.iter().try_for_each(|target| view.allows(caller, target))
}

/// Watches of one caller that one task follows: their changes are read together while they are up with the store,
/// and each says all else, and what it has to catch up with, itself.
#[derive(Debug)]
pub struct WatchGroup {
    service: Service,
    caller: Caller,
    group: Group,
}

impl Service {
    #[must_use]
    pub fn watch_group(&self, caller: Caller) -> WatchGroup {
        WatchGroup { service: self.clone(), caller, group: self.inner.parts.hub.group() }
    }
}

impl WatchGroup {
    /// Returns when there may be changes for one of the watches. May be dropped and asked for again.
    pub async fn heard(&self) {
        self.group.heard().await;
    }

    /// Which watches are up with the store now, and up to which revision their changes were handed out.
    #[must_use]
    pub fn standing(&self) -> (Revision, BTreeSet<i64>) {
        self.group.standing()
    }

    /// Hands out the changes at hand, of each watch in turn by its id; never waits. A watch that may not have
    /// them any more, or for which `hand` has no room and says so, takes them from its own stream. True if there
    /// is more, of which it is heard again.
    pub fn read(&self, mut hand: impl FnMut(i64, Vec<Change>) -> bool) -> bool {
        // Of after the changes were published: whose rights ended before is not told of them.
        let view = OnceCell::new();
        self.group.read(|Handed { tag, targets, revisions }| {
            let view = view.get_or_init(|| self.service.newest());
            if self.service.ensure_sound().is_err() || allowed(view, &self.caller, targets).is_err() {
                return false;
            }
            let changes = revisions.into_iter().map(|events| {
                let previous = if tag.prev { previous(view, &events)? } else { Vec::new() };
                Ok(Change { events, previous })
            });
            match changes.collect::<Result<_, Failure>>() {
                Ok(changes) => hand(tag.id, changes),
                Err(_) => false,
            }
        })
    }
}

/// What was there before each of the events, where it is not compacted away.
fn previous(view: &View, events: &RevisionEvents) -> Result<Vec<Option<KeyValue>>, Failure> {
    let read = |event: &Event| match event.prev.map(|prev| view.record(prev)) {
        Some(Ok(kv)) => Ok(Some(kv)),
        Some(Err(Failure::Rejected(Rejection::Compacted { .. }))) | None => Ok(None),
        Some(Err(failure)) => Err(failure),
    };
    events.events.iter().map(read).collect()
}

impl WatchStream {
    /// From now on the group hands out its changes while it is up with the store, under this id.
    pub fn join(&mut self, group: &WatchGroup, id: i64) {
        self.watcher.join(&group.group, Tag { id, prev: self.request.prev });
    }

    /// The revision after which the changes of this stream begin.
    #[must_use]
    pub fn start(&self) -> Revision {
        self.watcher.start()
    }

    /// Everything up to this revision has been handed out; `None` while the start is in the future.
    #[must_use]
    pub fn progress(&self) -> Option<Revision> {
        match self.taken.first() {
            Some(events) => Some(events.revision - 1),
            None => self.watcher.progress(),
        }
    }

    /// Makes `next` answer with `Progress` once no change is at hand.
    pub fn request_progress(&mut self) {
        self.watcher.request_progress();
    }

    /// The next step; `None` once the stream has ended. To ask is to say that the step before has been
    /// taken. May be dropped and called again: nothing is lost.
    pub async fn next(&mut self) -> Option<WatchStep> {
        self.buffered = None;
        if self.ended || self.watcher.is_over() {
            return None;
        }
        let step = self.step().await;
        let step = match step.and_then(|step| self.service.ensure_sound().map(|()| step)) {
            Ok(step) => step,
            Err(Failure::Rejected(Rejection::Compacted { .. })) if self.request.on_compacted == OnCompacted::Resync => {
                self.again()
            }
            Err(Failure::Rejected(Rejection::Compacted { current, .. }))
                if mutant::is_active(Mutant::WatchSkipsCompacted) =>
            {
                self.watcher = self.service.follow(&self.request, Some(current)).ok()?;
                Some(WatchStep::Progress(current))
            }
            Err(failure) => Some(WatchStep::Failed(failure)),
        };
        self.ended = matches!(step, None | Some(WatchStep::Failed(_)));
        step
    }

    fn again(&mut self) -> Option<WatchStep> {
        let view = self.service.newest();
        match self.service.resync(&view, &self.request, false) {
            Ok((watcher, listing)) => {
                self.taken.clear();
                (self.watcher, self.listing) = (watcher, listing);
                Some(WatchStep::Reset(view.revision()))
            }
            Err(failure) => Some(WatchStep::Failed(failure)),
        }
    }

    async fn step(&mut self) -> Result<Option<WatchStep>, Failure> {
        if let Some(listing) = &mut self.listing {
            if std::mem::take(&mut listing.reset_due) {
                return Ok(Some(WatchStep::Reset(listing.revision)));
            }
            // It is not for long, and every stream would have room for it as long as it lives.
            return Box::pin(self.list()).await.map(Some);
        }
        while self.taken.is_empty() {
            self.look_at_rights()?;
            match watched(&self.service, &mut self.watcher, &mut self.ticks).await {
                WatchItem::Events(events) => self.take(events),
                WatchItem::Nudged => {}
                WatchItem::Progress(revision) => return Ok(Some(WatchStep::Progress(revision))),
                WatchItem::Compacted { requested, compacted, current } => {
                    return Err(Rejection::Compacted { requested, compacted, current }.into());
                }
                WatchItem::Closed(Closed::Fault(fault)) => return Err(fault.into()),
                WatchItem::Closed(Closed::Stopping | Closed::Compacted) => return Ok(None),
            }
        }
        self.changes().await.map(Some)
    }

    /// Whoever changes rights nudges the watchers afterwards: of a change that is not seen here they hear.
    fn look_at_rights(&mut self) -> Result<(), Rejection> {
        if !self.rights.has_changed().unwrap_or(false) {
            return Ok(());
        }
        self.rights.mark_unchanged();
        allowed(&self.service.newest(), &self.caller, &self.request.targets)
    }

    /// Gathers what is at hand, up to a stream's bound.
    fn take(&mut self, first: RevisionEvents) {
        let mut bytes = events_bytes(&first.events);
        self.taken.push(first);
        while bytes < limits::WATCH_QUEUE_BYTES_MAX
            && let Some(events) = self.watcher.next_ready()
        {
            bytes += events_bytes(&events.events);
            self.taken.push(events);
        }
    }

    async fn changes(&mut self) -> Result<WatchStep, Failure> {
        let view = self.service.newest();
        allowed(&view, &self.caller, &self.request.targets)?;
        let mut changes = Vec::with_capacity(self.taken.len());
        let mut bytes = 0;
        for events in &self.taken {
            bytes += events_bytes(&events.events);
            let previous = if self.request.prev { previous(&view, events)? } else { Vec::new() };
            bytes += previous.iter().flatten().map(weight).sum::<usize>();
            changes.push(Change { events: events.clone(), previous });
        }
        drop(view);
        #[cfg(feature = "mutants")]
        if mutant::is_active(Mutant::WatchSplitsRevision) {
            changes = changes.into_iter().flat_map(halves).collect();
        }
        self.buffer(bytes).await?;
        self.taken.clear();
        Ok(WatchStep::Changes(changes))
    }

    async fn list(&mut self) -> Result<WatchStep, Failure> {
        let view = self.service.newest();
        while let Some(listing) = &mut self.listing {
            let Some(range) = listing.ranges.front().cloned() else {
                let revision = listing.revision;
                self.listing = None;
                return Ok(WatchStep::Synced(revision));
            };
            let op = page_of(range, listing, self.request.keys_only);
            let page = view.list(&self.caller, &op)?;
            if page.items.is_empty() {
                listing.ranges.pop_front();
                listing.resume = None;
                continue;
            }
            drop(view);
            self.buffer(page.items.iter().map(weight).sum()).await?;
            if let Some(listing) = &mut self.listing {
                match page.next {
                    Some(next) => listing.resume = Some(next),
                    None => {
                        listing.ranges.pop_front();
                        listing.resume = None;
                    }
                }
            }
            return Ok(WatchStep::Listed(page.items));
        }
        Err(Failure::Fault("a watch lost its listing".to_owned()))
    }

    /// Takes a share of the member's budget for what is about to be handed out, to who may still have it then.
    async fn buffer(&mut self, bytes: usize) -> Result<(), Failure> {
        let all = limits::WATCH_BUFFERED_BYTES_MAX / BUFFER_UNIT_BYTES;
        let units = u32::try_from(bytes.div_ceil(BUFFER_UNIT_BYTES).clamp(1, all)).unwrap_or(u32::MAX);
        let buffers = &self.service.inner.watch_buffers;
        if let Ok(share) = Arc::clone(buffers).try_acquire_many_owned(units) {
            self.buffered = Some(share);
            return Ok(());
        }
        let share = Arc::clone(buffers).acquire_many_owned(units);
        let share = self.service.stopping().run_until_cancelled(tokio::time::timeout(BUFFER_WAIT, share));
        match Box::pin(share).await {
            Some(Ok(Ok(share))) => {
                self.buffered = Some(share);
                allowed(&self.service.newest(), &self.caller, &self.request.targets)?;
                Ok(())
            }
            Some(Ok(Err(_)) | Err(_)) => {
                self.service.inner.parts.metrics.admission_refused.inc();
                Err(Failure::not_proposed(Why::Overloaded))
            }
            None => Err(Failure::not_proposed(Why::ShuttingDown)),
        }
    }
}

/// What the watcher says next, with a word on progress when it is due.
async fn watched(service: &Service, watcher: &mut Watcher, ticks: &mut Option<Interval>) -> WatchItem {
    loop {
        let Some(ticks) = ticks else { return watcher.next().await };
        tokio::select! {
            biased;
            item = watcher.next() => return item,
            _ = ticks.tick() => {
                if mutant::is_active(Mutant::BookmarkAhead) {
                    return WatchItem::Progress(service.newest().revision());
                }
                watcher.request_progress();
            }
        }
    }
}

/// The planted bug: one revision in two parts.
#[cfg(feature = "mutants")]
fn halves(change: Change) -> Vec<Change> {
    let Change { events: RevisionEvents { revision, events }, previous } = change;
    let middle = events.len() / 2;
    let part = |from: usize, to: usize| Change {
        events: RevisionEvents { revision, events: events[from..to].into() },
        previous: previous.get(from..to).map(<[_]>::to_vec).unwrap_or_default(),
    };
    let parts = [part(0, middle), part(middle, events.len())];
    parts.into_iter().filter(|change| !change.events.events.is_empty()).collect()
}

fn weight(kv: &KeyValue) -> usize {
    ITEM_OVERHEAD_BYTES + kv.key.len() + kv.value.len()
}

fn page_of(range: KeyRange, listing: &Listing, keys_only: bool) -> ListOp {
    ListOp {
        range,
        resume: listing.resume.clone(),
        revision: listing.revision,
        limit: PAGE_ENTRIES,
        bytes_max: limits::WATCH_PAGE_BYTES_MAX,
        keys_only,
        count: false,
        count_only: false,
        delimiter: None,
        modified_after: None,
        order: SortOrder::Ascending,
        sort: RangeSort::Key,
    }
}

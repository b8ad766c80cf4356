//! Watchers of one reader that are up with the hub, read for together: an event that a hundred of them hear
//! wakes one task and is looked up in the ring once.
//!
//! A watcher joins when it has nothing left to hand out, and from then on sleeps: the hub leaves word for the
//! group in its place. Whatever the group cannot do for it (its reader has no room, the ring has moved on) sends
//! it back on its own way from the revision concerned, with nothing lost or doubled.
//!
//! Invariant: everything below `next` that a member wants was handed out for it, or lies before its `from`.

use super::hub::{Live, Registration, Shared, Slot};
use super::index::{Index, Parts};
use super::ring::Taken;
use super::watcher::Wanted;
use crate::model::{KeyRange, Revision, RevisionEvents};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a reader knows one of its watchers by. It means nothing to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    pub id: i64,
    /// Whether its events are to come with what was there before.
    pub prev: bool,
}

/// What is at hand for one member: whole revisions in order, never none.
#[derive(Debug)]
pub struct Handed<'a> {
    pub tag: Tag,
    pub targets: &'a [KeyRange],
    pub revisions: Vec<RevisionEvents>,
}

/// A cheap handle. For watchers that are all polled by the task that reads the group.
#[derive(Debug, Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    id: u64,
    /// Taken before the hub's lock, never after it.
    members: Mutex<Members>,
}

#[derive(Debug)]
struct Members {
    index: Index<u64>,
    members: BTreeMap<u64, Member>,
    next: Revision,
    /// The ring holds more than was read.
    behind: bool,
}

#[derive(Debug)]
struct Member {
    tag: Tag,
    wanted: Wanted,
    parts: Arc<Parts>,
    /// Its own.
    slot: Arc<Slot>,
    /// The first revision that is the group's to hand out.
    from: Revision,
    /// What the reading under way has found.
    found: Vec<RevisionEvents>,
}

impl Group {
    pub(super) fn new(shared: Arc<Shared>, slot: Arc<Slot>, id: u64) -> Self {
        let members = Members { index: Index::new(), members: BTreeMap::new(), next: 0, behind: false };
        Self { inner: Arc::new(Inner { shared, slot, id, members: Mutex::new(members) }) }
    }

    /// Returns when there may be something for a member. May be dropped and asked for again.
    pub async fn heard(&self) {
        self.inner.slot.wake.heard().await;
    }

    /// Hands out what is at hand, for each member in turn; never waits. A member for which `hand` says no goes
    /// its own way from there. True if there is more, of which it is heard again.
    pub fn read(&self, mut hand: impl FnMut(Handed<'_>) -> bool) -> bool {
        let Inner { shared, slot, members, .. } = &*self.inner;
        let mut members = members.lock();
        match (slot.take(), members.behind) {
            (None, false) => return false,
            (Some(hint), false) => members.next = members.next.max(hint),
            (_, true) => {}
        }
        let (revisions, more) = match shared.take(members.next) {
            Taken::None => (Vec::new(), false),
            Taken::Gone => {
                members.send_all_away(shared);
                (Vec::new(), false)
            }
            Taken::Some { revisions, more } => (revisions, more),
        };
        if more {
            slot.wake.give();
        }
        let mut told = Vec::new();
        for all in revisions {
            members.next = all.revision + 1;
            members.find(&all, &mut told);
        }
        members.behind = more;
        slot.behind.store(if more { members.next } else { 0 }, Ordering::Relaxed);
        let handed = told.into_iter().map(|id| members.hand(shared, id, &mut hand)).sum();
        shared.metrics.watch_events.inc_by(handed);
        more
    }

    /// Reads on for a watcher that has handed out everything before `next`, unless the hub has left word for it
    /// meanwhile, or it is not as far as the group. The first revision that is the group's to hand out, if it is a
    /// member now.
    pub(super) fn take_in(
        &self,
        registration: &Registration,
        tag: Tag,
        wanted: &Wanted,
        next: Revision,
    ) -> Option<Revision> {
        let Inner { shared, slot, .. } = &*self.inner;
        let mut members = self.inner.members.lock();
        let mut live = shared.live.lock();
        if registration.slot.peek().is_some() {
            return None;
        }
        // What was matched before this lock left no word for it; what is matched after it is the group's.
        let unmatched = shared.matched() + 1;
        let from = next.max(unmatched);
        if members.members.is_empty() {
            (members.next, members.behind) = (unmatched, false);
        }
        if from < members.next {
            return None;
        }
        let (id, parts) = (registration.id, Arc::clone(&registration.parts));
        registration.slot.grouped.store(true, Ordering::Relaxed);
        live.index.insert(&parts, id, slot);
        members.index.insert(&parts, id, &id);
        let (slot, wanted) = (Arc::clone(&registration.slot), wanted.clone());
        members.members.insert(id, Member { tag, wanted, parts, slot, from, found: Vec::new() });
        Some(from)
    }

    /// Whom the group reads for now, and up to which revision it has handed out everything for them. Who begins in
    /// the future is among them.
    #[must_use]
    pub fn standing(&self) -> (Revision, BTreeSet<i64>) {
        let ids = self.inner.members.lock().members.values().map(|member| member.tag.id).collect();
        (self.position() - 1, ids)
    }

    /// The watcher ends.
    pub(super) fn forget(&self, id: u64) {
        self.inner.members.lock().remove(id);
    }

    /// Everything below this revision was handed out for its members.
    pub(super) fn position(&self) -> Revision {
        let Inner { shared, slot, members, .. } = &*self.inner;
        let members = members.lock();
        // In this order, as for a watcher.
        let matched = shared.matched();
        match slot.peek() {
            _ if members.behind => members.next,
            Some(hint) => members.next.max(hint),
            None => members.next.max(matched + 1),
        }
    }
}

impl Members {
    /// Who wants something of this revision.
    fn find(&mut self, all: &RevisionEvents, told: &mut Vec<u64>) {
        let mut hit = Vec::new();
        for event in all.events.iter() {
            self.index.matching(&event.kv.key, |id| hit.push(*id));
        }
        // By several events, or by targets that overlap.
        hit.sort_unstable();
        hit.dedup();
        for id in hit {
            let Some(member) = self.members.get_mut(&id).filter(|member| member.from <= all.revision) else { continue };
            let events = match &all.events[..] {
                // That a target shows it, the index has said.
                [event] => member.wanted.is_of_kind(event).then(|| all.clone()),
                _ => member.wanted.of(all),
            };
            let Some(events) = events else { continue };
            if member.found.is_empty() {
                told.push(id);
            }
            member.found.push(events);
        }
    }

    /// How many events were handed out.
    fn hand(&mut self, shared: &Shared, id: u64, hand: &mut impl FnMut(Handed<'_>) -> bool) -> u64 {
        let Some(member) = self.members.get_mut(&id) else { return 0 };
        let revisions = std::mem::take(&mut member.found);
        let Some(first) = revisions.first().map(|events| events.revision) else { return 0 };
        let count = revisions.iter().map(|events| events.events.len()).sum::<usize>();
        if hand(Handed { tag: member.tag, targets: &member.wanted.targets, revisions }) {
            return u64::try_from(count).unwrap_or(u64::MAX);
        }
        if let Some(member) = self.remove(id) {
            member.send_away(&mut shared.live.lock(), id, first);
        }
        0
    }

    /// What they are to hear is no longer in the ring.
    fn send_all_away(&mut self, shared: &Shared) {
        let mut live = shared.live.lock();
        self.index = Index::new();
        for (id, member) in std::mem::take(&mut self.members) {
            let first = self.next.max(member.from);
            member.send_away(&mut live, id, first);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Member> {
        let member = self.members.remove(&id)?;
        self.index.remove(&member.parts, id);
        Some(member)
    }
}

impl Member {
    /// As if the hub had just matched this revision for it, which it reads from.
    fn send_away(self, live: &mut Live, id: u64, first: Revision) {
        live.index.insert(&self.parts, id, &self.slot);
        self.slot.grouped.store(false, Ordering::Relaxed);
        self.slot.offer(first);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.live.lock().groups.remove(&self.id);
    }
}

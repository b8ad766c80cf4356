//! When leases end: deadlines by the leader's monotonic clock. Pure: time is handed in.
//!
//! Invariants: nothing is due before its whole TTL has passed since it was started or renewed, both
//! ends rounded against that; every lease that is not being ended has an item in the queue at or
//! before its deadline, so none is forgotten; a renewal moves only the deadline, and the queue follows
//! when its item comes up. Kept small, for a million leases: 16 bytes each in the table and in the
//! queue, plus the table's and the queue's slack.

use crate::model::LeaseId;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

/// A deadline in ms, above two flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

/// Its end has been proposed, or is about to be.
const ENDING: u64 = 1;
/// The log may hold a checkpoint of it, so that a renewal must be logged.
const CHECKPOINTED: u64 = 2;
const FLAG_BITS: u32 = 2;

impl Entry {
    fn at(deadline_ms: u64) -> Self {
        Self(deadline_ms.min(u64::MAX >> FLAG_BITS) << FLAG_BITS)
    }

    fn deadline_ms(self) -> u64 {
        self.0 >> FLAG_BITS
    }

    fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    fn set(&mut self, flag: u64) {
        self.0 |= flag;
    }

    fn clear(&mut self, flag: u64) {
        self.0 &= !flag;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewal {
    Renewed,
    /// Its end is under way: ask again when that is settled.
    Ending,
    /// Must go through the log, which will start it again.
    MustLog,
    Unknown,
}

/// A lease that has run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) id: LeaseId,
    pub(crate) deadline_ms: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Core {
    entries: HashMap<LeaseId, Entry>,
    queue: BinaryHeap<Reverse<(u64, LeaseId)>>,
}

/// What an item of the queue says of its lease.
enum Item {
    /// The deadline that the lease has by now.
    Current(u64),
    Stale,
}

/// Items of the queue that may be out of date beside those in use, before it is made anew.
const STALE_ITEMS_MIN: usize = 1024;
/// The queue grows by this share of itself, where doubling would cost memory.
const GROWTH_DIVISOR: usize = 8;

/// A moment as late as it can have been.
pub(crate) fn ceil_ms(at: Duration) -> u64 {
    u64::try_from(at.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// A moment as early as it can have been.
pub(crate) fn floor_ms(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

impl Core {
    pub(crate) fn with_capacity(leases: usize) -> Self {
        Self { entries: HashMap::with_capacity(leases), queue: BinaryHeap::with_capacity(leases) }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The lease has `left_ms` from `now` on. `checkpointed`: the log holds less than its TTL.
    pub(crate) fn start(&mut self, id: LeaseId, left_ms: u64, checkpointed: bool, now: Duration) {
        let mut entry = Entry::at(ceil_ms(now).saturating_add(left_ms));
        if checkpointed {
            entry.set(CHECKPOINTED);
        }
        let old = self.entries.insert(id, entry);
        // An item that comes up too early is put back; one that is too late would be late.
        if old.is_none_or(|old| old.has(ENDING) || old.deadline_ms() > entry.deadline_ms()) {
            self.push(entry.deadline_ms(), id);
        }
    }

    pub(crate) fn end(&mut self, id: LeaseId) {
        self.entries.remove(&id);
        self.tidy();
    }

    pub(crate) fn renew(&mut self, id: LeaseId, ttl_ms: u64, now: Duration) -> Renewal {
        let Some(entry) = self.entries.get_mut(&id) else { return Renewal::Unknown };
        if entry.has(ENDING) {
            return Renewal::Ending;
        }
        if entry.has(CHECKPOINTED) {
            return Renewal::MustLog;
        }
        let renewed = Entry::at(ceil_ms(now).saturating_add(ttl_ms));
        // A TTL that was shortened meanwhile must not take back what an earlier answer promised.
        if renewed.deadline_ms() > entry.deadline_ms() {
            *entry = renewed;
        }
        Renewal::Renewed
    }

    /// What is left of a lease; 0 for one that is being ended.
    pub(crate) fn left_ms(&self, id: LeaseId, now: Duration) -> Option<u64> {
        self.entries.get(&id).map(|entry| entry.deadline_ms().saturating_sub(floor_ms(now)))
    }

    /// What is left of a lease, to be put in the log if that says over `worth_ms` more: from here on its
    /// renewals must be logged. `logged_ms` is what the log says.
    pub(crate) fn checkpoint(&mut self, id: LeaseId, logged_ms: u64, worth_ms: u64, now: Duration) -> Option<u64> {
        let entry = self.entries.get_mut(&id).filter(|entry| !entry.has(ENDING))?;
        let left_ms = entry.deadline_ms().saturating_sub(floor_ms(now));
        if left_ms.saturating_add(worth_ms) >= logged_ms {
            return None;
        }
        entry.set(CHECKPOINTED);
        Some(left_ms)
    }

    /// No lease runs out before this, and one does if it has passed.
    pub(crate) fn next_ms(&mut self, now: Duration) -> Option<u64> {
        let now_ms = floor_ms(now);
        loop {
            let Reverse((at, id)) = *self.queue.peek()?;
            if at > now_ms {
                return Some(at);
            }
            match self.item(at, id) {
                Item::Current(deadline_ms) if deadline_ms <= now_ms => return Some(deadline_ms),
                Item::Current(deadline_ms) => {
                    self.queue.pop();
                    self.push(deadline_ms, id);
                }
                Item::Stale => drop(self.queue.pop()),
            }
        }
    }

    /// Up to `limit` leases that have run out, about the longest overdue first. Until `settle` they are
    /// being ended.
    pub(crate) fn take_due(&mut self, now: Duration, limit: usize) -> Vec<Due> {
        let now_ms = floor_ms(now);
        let mut due = Vec::new();
        while due.len() < limit && self.next_ms(now).is_some_and(|next| next <= now_ms) {
            let Some(Reverse((_, id))) = self.queue.pop() else { break };
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.set(ENDING);
                due.push(Due { id, deadline_ms: entry.deadline_ms() });
            }
        }
        due
    }

    fn item(&self, at: u64, id: LeaseId) -> Item {
        match self.entries.get(&id) {
            // An earlier deadline has an item of its own.
            Some(entry) if !entry.has(ENDING) && entry.deadline_ms() >= at => Item::Current(entry.deadline_ms()),
            Some(_) | None => Item::Stale,
        }
    }

    /// What `take_due` gave is no longer being ended. What was not ended is due again.
    pub(crate) fn settle(&mut self, due: &[Due]) {
        for Due { id, .. } in due {
            let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.has(ENDING)) else { continue };
            entry.clear(ENDING);
            let deadline_ms = entry.deadline_ms();
            self.push(deadline_ms, *id);
        }
    }

    fn push(&mut self, at: u64, id: LeaseId) {
        if self.queue.len() == self.queue.capacity() {
            self.queue.reserve_exact((self.queue.len() / GROWTH_DIVISOR).max(64));
        }
        self.queue.push(Reverse((at, id)));
        self.tidy();
    }

    /// Makes the queue anew when most of it is out of date: leases may be granted and revoked long
    /// before their items come up.
    fn tidy(&mut self) {
        if self.queue.len() <= 2 * self.entries.len() + STALE_ITEMS_MIN {
            return;
        }
        let live = self.entries.iter().filter(|(_, entry)| !entry.has(ENDING));
        let items: Vec<_> = live.map(|(id, entry)| Reverse((entry.deadline_ms(), *id))).collect();
        self.queue = items.into();
        self.entries.shrink_to(2 * self.entries.len());
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        // The standard table keeps a power of two of buckets, at most 7/8 full, and a control byte each.
        let buckets = (self.entries.capacity() * 8 / 7).next_power_of_two();
        let bucket = size_of::<(LeaseId, Entry)>() + 1;
        buckets * bucket + self.queue.capacity() * size_of::<Reverse<(u64, LeaseId)>>()
    }
}

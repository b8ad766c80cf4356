//! The lessor: counts the time of leases while this member leads, and ends those that run out.
//!
//! The machine knows which leases there are; the time they have left is known only here, by the
//! leader's monotonic clock. Invariants: a new leader gives every lease its whole TTL (or what a
//! checkpoint says is left of it), never what a former leader counted; what the log does to leases
//! arrives in its order, through `note`, before anyone is answered; a renewal is kept only here, so
//! whoever renews has confirmed leadership first (`Service::lease_keep_alive`). On a follower it sleeps
//! and holds nothing.

mod core;
mod driver;
#[cfg(test)]
mod tests;

pub use driver::run;

pub(super) use self::core::Renewal;
use self::core::{Core, Due};
use crate::env::Clock;
use crate::machine::{LeaseChange, View};
use crate::model::{LeaseId, limits};
use crate::storage::mutant::{self, Mutant};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Leases read from a view at once, so that nothing is held up for long.
const CHUNK: usize = 1024;

#[derive(Default)]
enum State {
    #[default]
    Asleep,
    /// A term has begun: leases are being gathered from a view, and what is applied meanwhile is kept.
    Gathering {
        journal: Vec<LeaseChange>,
        overflowed: bool,
    },
    Leading {
        term: u64,
        core: Core,
    },
}

/// What the lessor can say of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told<T> {
    Known(T),
    /// A term has just begun: ask again after `changed`.
    NotYet,
    /// This member does not lead.
    Asleep,
}

pub struct Lessor {
    state: Mutex<State>,
    /// The earliest deadline may have moved forward.
    wake: Notify,
    /// Counts what those who wait for a lease's fate want to look at.
    settled: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Lessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leases = self.with_core(|core, _| core.len());
        f.debug_struct("Lessor").field("leases", &leases).finish_non_exhaustive()
    }
}

impl Lessor {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), settled: watch::Sender::new(0), clock }
    }

    /// Told by apply, in the log's order, before the proposers are answered.
    pub fn note(&self, changes: &[LeaseChange]) {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        match &mut *state {
            State::Asleep => {}
            State::Gathering { journal, overflowed } => {
                if journal.len() + changes.len() > limits::LEASE_JOURNAL_MAX {
                    *overflowed = true;
                } else {
                    journal.extend_from_slice(changes);
                }
            }
            State::Leading { core, .. } => {
                let before = core.next_ms(now);
                changes.iter().for_each(|change| note(core, *change, now));
                let earlier = core.next_ms(now).is_some_and(|next| before.is_none_or(|before| next < before));
                drop(state);
                if earlier {
                    self.wake.notify_one();
                }
            }
        }
    }

    fn with_core<T>(&self, ask: impl FnOnce(&mut Core, Duration) -> T) -> Told<T> {
        let now = self.clock.monotonic();
        match &mut *self.state.lock() {
            State::Asleep => Told::Asleep,
            State::Gathering { .. } => Told::NotYet,
            State::Leading { core, .. } => Told::Known(ask(core, now)),
        }
    }

    pub(super) fn renew(&self, id: LeaseId, ttl_ms: u64) -> Told<Renewal> {
        self.with_core(|core, now| core.renew(id, ttl_ms, now))
    }

    /// `Known(None)`: there is no such lease.
    pub(super) fn left_ms(&self, id: LeaseId) -> Told<Option<u64>> {
        self.with_core(|core, now| core.left_ms(id, now))
    }

    /// Tells when a lease's end was settled, or leases were gathered.
    pub(super) fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    /// Begins to keep what is applied. Views taken from now on, and what is kept, leave nothing out.
    fn begin_gathering(&self) {
        *self.state.lock() = State::Gathering { journal: Vec::new(), overflowed: false };
    }

    /// Every lease of the view, with all its time, or what a checkpoint left it.
    fn gather(&self, view: &View) -> Core {
        let leases = usize::try_from(view.stats().leases).unwrap_or(0);
        let mut core = Core::with_capacity(leases);
        let mut from = 0;
        loop {
            // Later is safe; each chunk takes its own time.
            let now = self.clock.monotonic();
            let chunk = view.leases(from, CHUNK);
            for lease in &chunk {
                let left_ms = lease.checkpoint_ms.map_or(lease.ttl_ms, |left_ms| left_ms.min(lease.ttl_ms));
                let left_ms = if mutant::is_active(Mutant::NewLeaderCutsLeases) { left_ms / 4 } else { left_ms };
                core.start(lease.id, left_ms, lease.checkpoint_ms.is_some(), now);
            }
            match chunk.last().and_then(|last| last.id.checked_add(1)) {
                Some(next) => from = next,
                None => return core,
            }
        }
    }

    /// False if too much was applied meanwhile: gather again.
    fn finish_gathering(&self, term: u64, mut core: Core) -> bool {
        let now = self.clock.monotonic();
        let mut state = self.state.lock();
        let State::Gathering { journal, overflowed } = std::mem::take(&mut *state) else { return false };
        if overflowed {
            return false;
        }
        journal.into_iter().for_each(|change| note(&mut core, change, now));
        *state = State::Leading { term, core };
        drop(state);
        self.tell();
        true
    }

    fn sleep(&self) {
        // Dropping a million entries takes a moment, and need not hold up apply.
        drop(std::mem::take(&mut *self.state.lock()));
        self.tell();
    }

    fn tell(&self) {
        self.settled.send_modify(|count| *count += 1);
    }

    fn next_ms(&self) -> Option<u64> {
        if let Told::Known(next) = self.with_core(Core::next_ms) { next } else { None }
    }

    fn take_due(&self, term: u64, limit: usize) -> Vec<Due> {
        let now = self.clock.monotonic();
        match &mut *self.state.lock() {
            State::Leading { term: leading, core } if *leading == term => core.take_due(now, limit),
            State::Leading { .. } | State::Gathering { .. } | State::Asleep => Vec::new(),
        }
    }

    fn settle(&self, due: &[Due]) {
        self.with_core(|core, _| core.settle(due));
        self.tell();
    }
}

fn note(core: &mut Core, change: LeaseChange, now: Duration) {
    match change {
        LeaseChange::Started { id, ttl_ms } => core.start(id, ttl_ms, false, now),
        LeaseChange::Ended { id } => core.end(id),
    }
}

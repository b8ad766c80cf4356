//! The write-ahead log: Raft's entries, vote and committed position, durable before they are
//! acknowledged.
//!
//! Segments are preallocated files, each starting with a checkpoint, so that old ones can be deleted
//! whole. One writer makes everything durable in the order of the calls, many records with one write
//! and one fdatasync (`writer`); places on disk are given out when a record is queued (`state`).
//!
//! Invariants: what a callback acknowledged survives any crash; after a crash the log is a prefix of
//! the calls; entries have no holes; a torn end is cut, damage to what was durable is refused
//! (`recover`); the first failed write or sync ends the process. It must not know what the bytes
//! mean, nor any clock.

mod index;
mod record;
mod recover;
mod segment;
mod state;
mod writer;

mod error;
mod open;
mod read;

pub use error::{Damage, Missing, WalError};
pub use recover::fuzz_recover;

use super::disk::Disk;
use super::mutant::Mutant;
use crate::model::{Fault, limits};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use state::{Life, State};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use writer::Writer;

/// One entry; its bytes are opaque to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalEntry {
    pub index: u64,
    pub bytes: Bytes,
}

/// Called once, on the writer's thread, when the call it was given to is durable or can't become so.
/// It must be quick, must not block, and must not wait for the log.
pub type Done = Box<dyn FnOnce(Result<(), Fault>) + Send>;

/// Ends the process. Called once, before any callback gets its error.
pub type Fatal = Arc<dyn Fn(&Fault) + Send + Sync>;

/// Sees each turn of the writer to the disk, for metrics and for a watchdog over a hung disk. One
/// ends before the next begins; one that fails never ends.
pub trait Observer: fmt::Debug + Send + Sync {
    /// A write begins, or the care for segments.
    fn started(&self) {}
    /// The bytes are written, the sync begins.
    fn syncing(&self) {}
    /// `bytes` are durable; none if only segments were made or deleted.
    fn finished(&self, _bytes: usize) {}
}

/// Looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// Who runs the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threading {
    /// A thread of its own.
    Own,
    /// Nobody but `Wal::pump`: for simulation, where groups must not depend on timing.
    Pumped,
}

#[derive(Clone)]
pub struct WalOptions {
    pub dir: PathBuf,
    pub segment_bytes: u64,
    /// Newest entries kept in memory.
    pub cache_bytes: usize,
    /// Bytes queued; above it `append` waits for the disk.
    pub queue_bytes: usize,
    /// After so long without work the end of the log is marked as durable, so that later damage to it
    /// is not taken for a torn write. `None`: only at `close`.
    pub idle_mark: Option<Duration>,
    pub threading: Threading,
    pub observer: Arc<dyn Observer>,
    pub fatal: Fatal,
    /// A planted bug; `mutant::active()` unless a test sets it.
    pub mutant: Option<Mutant>,
}

impl WalOptions {
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, fatal: Fatal) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: limits::WAL_SEGMENT_BYTES,
            cache_bytes: limits::LOG_CACHE_BYTES,
            queue_bytes: limits::WAL_QUEUE_BYTES_MAX,
            idle_mark: Some(Duration::from_millis(limits::WAL_IDLE_MARK_MS)),
            threading: Threading::Own,
            observer: Arc::new(Unobserved),
            fatal,
            mutant: super::mutant::active(),
        }
    }

    /// Offsets in a segment have 32 bits, with room for one record beyond the segment's end.
    fn segment_bytes_clamped(&self) -> u32 {
        u32::try_from(self.segment_bytes.clamp(1 << 10, 1 << 30)).unwrap_or(1 << 30)
    }

    #[cfg(any(test, feature = "mutants"))]
    fn planted(&self) -> Option<Mutant> {
        self.mutant
    }

    #[cfg(not(any(test, feature = "mutants")))]
    #[expect(clippy::unused_self, reason = "the same call in both builds")]
    const fn planted(&self) -> Option<Mutant> {
        None
    }
}

impl fmt::Debug for WalOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalOptions")
            .field("dir", &self.dir)
            .field("segment_bytes", &self.segment_bytes)
            .field("cache_bytes", &self.cache_bytes)
            .finish_non_exhaustive()
    }
}

/// What was found at `open`, all of it durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    /// The newest purge: its index and that index's opaque position.
    pub purged: Option<(u64, Bytes)>,
    /// `None` if the log holds no entry.
    pub first_index: Option<u64>,
    pub last_index: Option<u64>,
    /// Bytes of a torn write that were cut off the end.
    pub torn_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something was queued, or the log closes.
    work: Condvar,
    /// The queue became shorter, or the log has failed.
    room: Condvar,
}

impl Shared {
    /// Ends the log: `fatal` for the first fault, then an error for everyone who waits.
    fn fail(&self, fault: &Fault, fatal: &(dyn Fn(&Fault) + Send + Sync), mut waiting: Vec<Done>) {
        let first = {
            let mut state = self.state.lock();
            let first = !matches!(state.life, Life::Failed(_));
            if first {
                state.life = Life::Failed(fault.clone());
            }
            waiting.extend(std::mem::take(&mut state.pieces).into_iter().flat_map(|piece| piece.done));
            first
        };
        if first {
            fatal(fault);
        }
        self.room.notify_all();
        self.work.notify_all();
        for done in waiting {
            done(Err(fault.clone()));
        }
    }
}

#[derive(Debug)]
enum Runner {
    Thread(Mutex<Option<JoinHandle<()>>>),
    Pumped(Box<Mutex<Writer>>),
}

/// Closes the log when the last handle goes.
struct Owner {
    shared: Arc<Shared>,
    runner: Runner,
    options: WalOptions,
}

/// A cheap handle; clones share the log.
#[derive(Clone)]
pub struct Wal {
    owner: Arc<Owner>,
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal").field("dir", &self.owner.options.dir).finish_non_exhaustive()
    }
}

fn closed() -> Fault {
    Fault::Invariant("the log is closed".into())
}

impl Wal {
    /// Opens or creates the log in `options.dir`, cuts a torn end, and makes what it reports durable.
    ///
    /// # Errors
    /// If the log is damaged, incomplete, of another format, or the disk fails. Nothing is changed then.
    pub fn open(disk: Arc<dyn Disk>, options: WalOptions) -> Result<(Self, Recovered), WalError> {
        open::open(disk, options)
    }

    /// Whether so much is queued that `append` waits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.has_full(&self.owner.shared.state.lock())
    }

    fn has_full(&self, state: &State) -> bool {
        state.queued_bytes >= self.owner.options.queue_bytes
    }

    /// Queues entries, which must follow the last one without a hole. They are readable when this
    /// returns. Waits while too much is queued.
    pub fn append(&self, entries: Vec<WalEntry>, done: Done) {
        let crcs: Vec<u32> = entries.iter().map(|entry| record::payload_crc(&entry.bytes)).collect();
        let mut state = self.owner.shared.state.lock();
        if self.owner.options.threading == Threading::Own {
            while self.has_full(&state) && matches!(state.life, Life::Open) {
                self.owner.shared.room.wait(&mut state);
            }
        }
        drop(state);
        self.queue(done, |state| {
            let mut next = state.index.next();
            for entry in &entries {
                let too_long = entry.bytes.len() > limits::WAL_RECORD_BYTES_MAX;
                if entry.index == u64::MAX || next.is_some_and(|next| next != entry.index) || too_long {
                    let found = (entry.index, entry.bytes.len());
                    return Err(Fault::Invariant(format!("log: entry {found:?} can't follow, next is {next:?}")));
                }
                next = Some(entry.index + 1);
            }
            for (entry, crc) in entries.into_iter().zip(crcs) {
                state.append(entry.index, entry.bytes, crc);
            }
            Ok(())
        });
    }

    pub fn save_vote(&self, vote: Bytes, done: Done) {
        self.queue(done, |state| {
            state.save_vote(vote);
            Ok(())
        });
    }

    /// Goes to disk with the next write; never causes one.
    pub fn save_committed(&self, committed: Bytes) {
        let mut state = self.owner.shared.state.lock();
        state.committed_unsaved |= state.committed.as_ref() != Some(&committed);
        state.committed = Some(committed);
    }

    /// Drops all entries after `last`, or all there are.
    pub fn truncate_after(&self, last: impl Into<Option<u64>>, done: Done) {
        let from = last.into().map_or(0, |last| last.saturating_add(1));
        self.queue(done, |state| {
            state.truncate(from);
            Ok(())
        });
    }

    /// Forgets entries up to and including `index`, even if the log ends before it; the next entry
    /// then has `index + 1`. `position` is kept with it. Purging never goes back.
    pub fn purge(&self, index: u64, position: Bytes, done: Done) {
        self.queue(done, |state| {
            if index == u64::MAX {
                return Err(Fault::Invariant("log: purge of the greatest index".into()));
            }
            state.purge(index, position);
            Ok(())
        });
    }

    /// The entries with `from <= index < to` that the log holds, cut after the first that brings the
    /// sum of bytes to `max_bytes`; at least one if there is any.
    ///
    /// # Errors
    /// If the disk fails or returns something else than was written.
    pub fn read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<WalEntry>, Fault> {
        read::read(&self.owner.shared, from, to, max_bytes)
    }

    /// The newest vote given to `save_vote`.
    #[must_use]
    pub fn vote(&self) -> Option<Bytes> {
        self.owner.shared.state.lock().vote.clone()
    }

    /// The newest position given to `save_committed`.
    #[must_use]
    pub fn committed(&self) -> Option<Bytes> {
        self.owner.shared.state.lock().committed.clone()
    }

    /// The newest purge: its index and position.
    #[must_use]
    pub fn purged(&self) -> Option<(u64, Bytes)> {
        self.owner.shared.state.lock().index.purged().cloned()
    }

    #[must_use]
    pub fn first_index(&self) -> Option<u64> {
        let state = self.owner.shared.state.lock();
        state.index.last().and(state.index.first())
    }

    #[must_use]
    pub fn last_index(&self) -> Option<u64> {
        self.owner.shared.state.lock().index.last()
    }

    /// Bytes that can be logged without taking space from the file system.
    #[must_use]
    pub fn reserve_bytes(&self) -> u64 {
        let state = self.owner.shared.state.lock();
        let left = u64::from(state.tail.limit.saturating_sub(state.tail.offset));
        left + if state.spare_ready { u64::from(state.segment_bytes) } else { 0 }
    }

    /// Bytes of all segments, about, reserved space included.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        let state = self.owner.shared.state.lock();
        (state.files.len() as u64 + u64::from(state.spare_ready)) * u64::from(state.segment_bytes)
    }

    /// Runs the writer on this thread until nothing is queued; only with `Threading::Pumped`.
    pub fn pump(&self) {
        if let Runner::Pumped(writer) = &self.owner.runner {
            writer.lock().pump();
        }
    }

    /// Makes everything queued durable and ends the writer. Later calls fail.
    pub fn close(&self) {
        self.owner.close();
    }

    /// Ends the writer without writing what is queued, as a kill of the process would: for simulation.
    pub fn abandon(&self) {
        let fault = Fault::Invariant("the log was abandoned".into());
        self.owner.shared.fail(&fault, &|_| {}, Vec::new());
        self.owner.close();
    }

    /// Runs `change` and has `done` called when it is durable. A call that breaks the log's rules is
    /// a bug above: it ends the process like a broken disk.
    fn queue(&self, done: Done, change: impl FnOnce(&mut State) -> Result<(), Fault>) {
        let shared = &self.owner.shared;
        let mut state = shared.state.lock();
        let refusal = match &state.life {
            Life::Open => None,
            Life::Closing => Some(closed()),
            Life::Failed(fault) => Some(fault.clone()),
        };
        if let Some(fault) = refusal {
            drop(state);
            done(Err(fault));
            return;
        }
        if let Err(fault) = change(&mut state) {
            drop(state);
            shared.fail(&fault, &*self.owner.options.fatal, vec![done]);
            return;
        }
        state.when_durable(done);
        let wake = state.writer_waits;
        drop(state);
        if wake {
            shared.work.notify_one();
        }
    }
}

impl Owner {
    fn close(&self) {
        {
            let mut state = self.shared.state.lock();
            if matches!(state.life, Life::Open) {
                state.life = Life::Closing;
            }
        }
        self.shared.work.notify_one();
        self.shared.room.notify_all();
        match &self.runner {
            Runner::Pumped(writer) => {
                // Taken already if a callback closes the log.
                if let Some(mut writer) = writer.try_lock() {
                    writer.pump();
                }
            }
            Runner::Thread(thread) => {
                let thread = thread.lock().take();
                // The last handle may go in a callback, on the writer itself.
                if let Some(thread) = thread
                    && thread.thread().id() != std::thread::current().id()
                {
                    drop(thread.join());
                }
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;

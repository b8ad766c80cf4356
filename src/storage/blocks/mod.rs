//! The block store: all records of history, packed into blocks of about 14 KiB in the engine.
//!
//! Writes gather in a tail in memory; a full tail is sealed into a block, and a write-behind thread
//! hands blocks to the newest engine, several per commit. Tail and unwritten blocks are served from
//! memory. A map in memory says where each block lies and how much of it is still needed; a block
//! never changes, and what the map has forgotten goes with its whole engine (`generations`).
//!
//! Invariants: records arrive in rising order and a batch is seen whole or not at all; every record
//! is found at every moment until a trim removed it; only the write-behind thread writes to an engine.
//! Nothing here is durable. It must not know keys, leases, compaction's rules or which engine is below.

mod cache;
mod generations;
mod read;
mod state;
mod trim;
mod writer;

pub use generations::Rotation;
pub use read::{Walked, WalkedBlock, WalkedContent, Wanted, after};
pub use state::EncodedBlock;
pub use trim::TrimProgress;

use super::Fatal;
use super::engine::Engine;
use super::record::Record;
use crate::model::{Fault, Revision, limits};
use cache::BlockCache;
use parking_lot::{Condvar, Mutex};
use state::State;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Runs an engine commit and may time it.
pub type Probe = Arc<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

#[derive(Clone)]
pub struct BlockOptions {
    /// Told of every fault of the engine or of its content; should not return control for long.
    pub fatal: Fatal,
    /// Must call its argument exactly once.
    pub around_commit: Probe,
    /// When to begin the next engine; `None`: never.
    pub rotation: Option<Rotation>,
    /// Bytes sealed and not yet in the engine; `append` waits at it.
    pub pending_bytes_max: usize,
}

impl BlockOptions {
    /// One engine for all, no timing.
    #[must_use]
    pub fn new(fatal: Fatal) -> Self {
        Self {
            fatal,
            around_commit: Arc::new(|commit| commit()),
            rotation: None,
            pending_bytes_max: limits::WRITE_BEHIND_BYTES_MAX,
        }
    }
}

impl Debug for BlockOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockOptions")
            .field("rotation", &self.rotation)
            .field("pending_bytes_max", &self.pending_bytes_max)
            .finish_non_exhaustive()
    }
}

/// Counts of blocks and records. Bytes are those of the records as encoded, without the engine's own overhead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockStats {
    pub blocks: u64,
    /// In sealed blocks, and how much of that is still needed (an estimate between trims).
    pub records: u64,
    pub live_records: u64,
    pub bytes: u64,
    pub live_bytes: u64,
    pub tail_records: u64,
    pub tail_bytes: u64,
    /// Sealed and not yet in the engine.
    pub pending_bytes: u64,
    pub pins: u64,
    /// Engines in use, and begun since the start.
    pub engines: u64,
    pub engines_begun: u64,
}

#[derive(Debug)]
pub struct BlockStore {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// One trim at a time.
    trimming: Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    options: BlockOptions,
    state: Mutex<State>,
    /// Work for the writer: something was queued, or the store is closing.
    work: Condvar,
    /// Blocks reached the engine, or the store failed or closed.
    progress: Condvar,
    cache: BlockCache,
}

impl BlockStore {
    /// Takes an empty engine and starts the write-behind thread.
    ///
    /// # Errors
    /// A fault if the thread cannot be started.
    pub fn new(engine: Arc<dyn Engine>, options: BlockOptions) -> Result<Self, Fault> {
        let shared = Arc::new(Shared {
            options,
            state: Mutex::new(State::new(engine)),
            work: Condvar::new(),
            progress: Condvar::new(),
            cache: BlockCache::default(),
        });
        let of_writer = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("write-behind".into())
            .spawn(move || of_writer.write_behind())
            .map_err(|error| Fault::io("start the write-behind thread", &error))?;
        Ok(Self { shared, writer: Mutex::new(Some(writer)), trimming: Mutex::new(()) })
    }

    /// Adds the records of one applied batch, in rising order and above all before them. They are
    /// readable on return. Waits while too many bytes are on their way to the engine.
    ///
    /// # Errors
    /// A fault if the order is violated, or the store has failed or is closed.
    pub fn append(&self, records: Vec<Arc<Record>>) -> Result<(), Fault> {
        if records.is_empty() { Ok(()) } else { self.add(|state| state.append(records)) }
    }

    /// Takes an engine that has blocks already, of which `append_encoded` is then told. It is only read from.
    ///
    /// # Errors
    /// A fault of the engine, or if this store is not new.
    pub fn adopt(&self, engine: Arc<dyn Engine>) -> Result<(), Fault> {
        let file_bytes = engine.disk_bytes()?;
        self.shared.state.lock().adopt(engine, file_bytes)
    }

    /// As `append`, with whole blocks that an image brought.
    ///
    /// # Errors
    /// As `append`.
    pub fn append_encoded(&self, blocks: Vec<EncodedBlock>) -> Result<(), Fault> {
        if blocks.is_empty() { Ok(()) } else { self.add(|state| state.append_encoded(blocks)) }
    }

    fn add(&self, append: impl FnOnce(&mut State) -> Result<(), Fault>) -> Result<(), Fault> {
        let mut state = self.shared.state.lock();
        while state.pending_bytes >= self.shared.options.pending_bytes_max && state.usable().is_ok() {
            self.shared.progress.wait(&mut state);
        }
        state.usable()?;
        let (idle, before) = (state.queue.is_empty(), state.pending_bytes);
        let appended = append(&mut state);
        let added = state.pending_bytes - before;
        let wake = idle && added > 0 || writer::is_worth_a_commit(before + added) && !writer::is_worth_a_commit(before);
        drop(state);
        if wake {
            self.shared.work.notify_one();
        }
        appended.inspect_err(|fault| self.shared.fail(fault))
    }

    /// Tells that a record is no longer needed by anyone who holds no pin: once per record, after
    /// trims' `keep` began to say so too, and from the thread that trims. A block whose records were
    /// all told dead is dropped unread; a wrong word costs an examination, never a record.
    pub fn note_dead(&self, main: Revision, sub: u32) {
        self.shared.state.lock().note_dead((main, sub));
    }

    /// Holds back every trim of records up to `main` until the pin is dropped.
    #[must_use]
    pub fn pin(&self, main: Revision) -> Pin {
        *self.shared.state.lock().pins.entry(main).or_insert(0) += 1;
        Pin { shared: Arc::clone(&self.shared), main }
    }

    #[must_use]
    pub fn stats(&self) -> BlockStats {
        self.shared.state.lock().stats()
    }

    /// Forgets every record and goes on with an empty `engine`. Pins last.
    pub fn reset(&self, engine: Arc<dyn Engine>) {
        let _no_trim = self.trimming.lock();
        self.shared.state.lock().reset(engine);
        self.shared.cache.clear();
        self.shared.progress.notify_all();
        self.shared.work.notify_one();
    }

    /// Waits until every sealed block is in the engine and nothing is to be copied between engines.
    ///
    /// # Errors
    /// A fault if the store has failed or is closed.
    pub fn settle(&self) -> Result<(), Fault> {
        let mut state = self.shared.state.lock();
        state.settling += 1;
        self.shared.work.notify_one();
        let rotation = self.shared.options.rotation.as_ref();
        while state.usable().is_ok() && (!state.is_settled() || state.is_outgrown(rotation)) {
            self.shared.progress.wait(&mut state);
        }
        state.settling -= 1;
        state.usable()
    }

    /// Ends the write-behind thread and waits for it. Nothing is lost that the log does not have:
    /// blocks on their way to the engine are dropped. Later calls are refused.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_all();
        self.shared.progress.notify_all();
        if let Some(writer) = self.writer.lock().take() {
            // The writer turns its own panics into faults, so joining cannot fail.
            drop(writer.join());
        }
    }
}

impl Drop for BlockStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Ends the store: every later call is refused, and the process is told to end.
    fn fail(&self, fault: &Fault) {
        let first = {
            let mut state = self.state.lock();
            // What goes wrong after the end is its consequence.
            let first = state.usable().is_ok();
            if first {
                state.failed = Some(fault.clone());
            }
            first
        };
        self.progress.notify_all();
        if first {
            (self.options.fatal)(fault);
        }
    }
}

/// Keeps the records up to its revision from being trimmed.
#[derive(Debug)]
pub struct Pin {
    shared: Arc<Shared>,
    main: Revision,
}

impl Pin {
    #[must_use]
    pub fn main(&self) -> Revision {
        self.main
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if let Some(count) = state.pins.get_mut(&self.main) {
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&self.main);
            }
        }
    }
}

/// The engine's key of a block: byte order is the order of the ids.
fn engine_key(id: u64) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&id.to_be_bytes())
}

#[cfg(test)]
mod tests;

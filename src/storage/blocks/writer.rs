//! The write-behind thread: the only one that writes to an engine. It takes queued blocks in order,
//! encodes them and commits several at once; between commits it copies between engines, and has those that
//! were read let go of what they keep: that takes milliseconds, and a reader may hold the machine's lock.

use super::state::{Sealed, SealedContent, State};
use super::{Shared, engine_key};
use crate::model::Fault;
use crate::storage::engine::{Engine, EngineBatch};
use crate::storage::panic_text;
use crate::storage::record::encode_block;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// One commit takes at least one block and stops at this size: readers wait for the engine meanwhile.
const COMMIT_BYTES: usize = 256 << 10;
/// How long a queue that is not worth a commit waits for more: a commit of one block costs the
/// engine's threads about as much as one of many.
const LINGER: Duration = Duration::from_millis(50);
const LINGERS_MAX: u32 = 4;
/// How often an emptied engine is looked at that a reader still holds.
const RETIRED_POLL: Duration = Duration::from_millis(200);

/// Blocks on their way, and the engine they go to.
struct Writing {
    blocks: Vec<Arc<Sealed>>,
    number: u64,
    engine: Arc<dyn Engine>,
}

/// True of a queue that need not wait for more.
pub(super) fn is_worth_a_commit(pending_bytes: usize) -> bool {
    pending_bytes >= COMMIT_BYTES
}

enum Task {
    Write(Writing),
    Copy,
    Empty,
    /// Let go of these.
    Drop(Vec<Arc<dyn Engine>>),
}

impl State {
    fn take_blocks(&mut self) -> Option<Writing> {
        let mut bytes = 0;
        let mut blocks = Vec::new();
        while bytes < COMMIT_BYTES
            && let Some(sealed) = self.queue.pop_front()
        {
            // One that was trimmed before its turn came need not be written at all.
            if self.pending.contains_key(&sealed.id) {
                bytes += sealed.weight;
                blocks.push(sealed);
            }
        }
        if blocks.is_empty() {
            return None;
        }
        self.writing = true;
        let newest = self.generations.newest();
        Some(Writing { blocks, number: newest.number, engine: Arc::clone(&newest.engine) })
    }

    fn take_unused_engines(&mut self) -> Vec<Arc<dyn Engine>> {
        // No reader can get hold of a retired engine any more, so a count of one stays one.
        self.retired.extract_if(.., |engine| Arc::strong_count(engine) == 1).collect()
    }
}

impl Shared {
    /// The thread's body. Panics and faults end the store.
    pub(super) fn write_behind(&self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.write_until_closed())).unwrap_or_else(|panic| {
            Err(Fault::Invariant(format!("the write-behind thread panicked: {}", panic_text(&*panic))))
        });
        if let Err(fault) = outcome {
            self.fail(&fault);
        }
    }

    fn write_until_closed(&self) -> Result<(), Fault> {
        while let Some(task) = self.next_task() {
            match task {
                Task::Write(writing) => {
                    self.write(writing)?;
                    self.rotate()?;
                    // Copying must end under any load.
                    self.copy_step()?;
                }
                Task::Copy => {
                    self.copy_step()?;
                    self.rotate()?;
                }
                Task::Empty => {}
                Task::Drop(engines) => drop(engines),
            }
            self.empty_crowded()?;
            self.progress.notify_all();
        }
        Ok(())
    }

    /// Waits for something to do; `None` when the store is closed or has failed.
    fn next_task(&self) -> Option<Task> {
        let mut state = self.state.lock();
        let mut lingered = 0;
        loop {
            if state.usable().is_err() {
                return None;
            }
            let outgrown = state.is_outgrown(self.options.rotation.as_ref());
            let may_grow = !state.queue.is_empty() && !is_worth_a_commit(state.pending_bytes);
            if may_grow && state.settling == 0 && !outgrown && lingered < LINGERS_MAX {
                let wait = self.work.wait_for(&mut state, LINGER);
                lingered = if wait.timed_out() { LINGERS_MAX } else { lingered + 1 };
                continue;
            }
            let unused = state.take_unused_engines();
            if !unused.is_empty() {
                return Some(Task::Drop(unused));
            }
            if let Some(writing) = state.take_blocks() {
                return Some(Task::Write(writing));
            }
            // The queue is empty, perhaps only because all of it was trimmed.
            self.progress.notify_all();
            if outgrown {
                return Some(Task::Copy);
            }
            if state.generations.crowded().is_some() {
                return Some(Task::Empty);
            }
            if state.retired.is_empty() {
                self.work.wait(&mut state);
            } else {
                self.work.wait_for(&mut state, RETIRED_POLL);
            }
        }
    }

    fn write(&self, writing: Writing) -> Result<(), Fault> {
        let mut batch = EngineBatch::with_capacity(writing.blocks.len());
        for sealed in &writing.blocks {
            let bytes = match &sealed.content {
                SealedContent::Records(records) => encode_block(records)?,
                SealedContent::Encoded(bytes) => bytes.clone(),
            };
            batch.push((engine_key(sealed.id), bytes));
        }
        self.commit(&*writing.engine, batch)?;
        let mut state = self.state.lock();
        state.writing = false;
        state.written(&writing.blocks, writing.number);
        Ok(())
    }

    /// One at a turn, so that writing goes on while much is read.
    fn empty_crowded(&self) -> Result<(), Fault> {
        let crowded = self.state.lock().generations.crowded();
        crowded.map_or(Ok(()), |engine| engine.let_go())
    }

    pub(super) fn commit(&self, engine: &dyn Engine, batch: EngineBatch) -> Result<(), Fault> {
        let mut batch = Some(batch);
        let mut outcome = Ok(());
        (self.options.around_commit)(&mut || {
            if let Some(batch) = batch.take() {
                outcome = engine.commit(batch);
            }
        });
        if batch.is_some() {
            return Err(Fault::Invariant("the commit's probe did not run the commit".into()));
        }
        outcome
    }
}

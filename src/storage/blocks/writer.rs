//! The write-behind thread: the only one that changes the engine. It takes queued jobs in order,
//! encodes their blocks and commits several at once; between commits it replaces a grown engine.

use super::rewrite::Growth;
use super::state::{Home, Job, Sealed, SealedContent, State};
use super::{Shared, engine_key};
use crate::model::Fault;
use crate::storage::panic_text;
use crate::storage::record::{Place, encode_block};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// One commit takes at least one job and stops at this size: readers wait for the engine meanwhile.
const COMMIT_BYTES: usize = 256 << 10;
const COMMIT_REMOVES: usize = 256;
/// How long a queue that is not worth a commit waits for more: a commit of one block costs the
/// engine's threads about as much as one of many.
const LINGER: Duration = Duration::from_millis(50);
const LINGERS_MAX: u32 = 4;
/// How often a replaced engine is looked at that a reader still holds.
const RETIRED_POLL: Duration = Duration::from_millis(200);

/// Jobs on their way, and where to.
struct Writing {
    jobs: Vec<Job>,
    to: Home,
}

/// True of a queue that need not wait for more.
pub(super) fn is_worth_a_commit(pending_bytes: usize) -> bool {
    pending_bytes >= COMMIT_BYTES
}

enum Task {
    Write(Writing),
    Copy,
    /// Let go of these.
    Drop(Vec<Home>),
}

impl State {
    fn take_jobs(&mut self) -> Option<Writing> {
        let (mut bytes, mut removes) = (0, 0);
        let mut jobs = Vec::new();
        while bytes < COMMIT_BYTES
            && removes < COMMIT_REMOVES
            && let Some(mut job) = self.queue.pop_front()
        {
            // A block that was trimmed before its turn came need not be written at all.
            job.puts.retain(|sealed| self.pending.contains_key(&sealed.id));
            bytes += job.puts.iter().map(|sealed| sealed.weight).sum::<usize>();
            removes += job.removes.len();
            jobs.push(job);
        }
        if jobs.is_empty() {
            return None;
        }
        self.writing = true;
        let to = self.rewrite.as_ref().map_or(&self.home, |rewrite| &rewrite.to).clone();
        Some(Writing { jobs, to })
    }

    fn take_unused_engines(&mut self) -> Vec<Home> {
        // No reader can get hold of a retired engine any more, so a count of one stays one.
        self.retired.extract_if(.., |home| Arc::strong_count(&home.engine) == 1).collect()
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
        let mut growth = Growth::default();
        while let Some(task) = self.next_task() {
            match task {
                Task::Write(writing) => {
                    self.write(writing)?;
                    self.check_growth(&mut growth)?;
                    // A rewrite must end under any load.
                    self.copy_step(&mut growth)?;
                }
                Task::Copy => self.copy_step(&mut growth)?,
                Task::Drop(homes) => drop(homes),
            }
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
            let may_grow = !state.queue.is_empty() && !is_worth_a_commit(state.pending_bytes);
            if may_grow && state.settling == 0 && state.rewrite.is_none() && lingered < LINGERS_MAX {
                let wait = self.work.wait_for(&mut state, LINGER);
                lingered = if wait.timed_out() { LINGERS_MAX } else { lingered + 1 };
                continue;
            }
            let unused = state.take_unused_engines();
            if !unused.is_empty() {
                return Some(Task::Drop(unused));
            }
            if let Some(writing) = state.take_jobs() {
                return Some(Task::Write(writing));
            }
            if state.rewrite.is_some() {
                return Some(Task::Copy);
            }
            if state.retired.is_empty() {
                self.work.wait(&mut state);
            } else {
                self.work.wait_for(&mut state, RETIRED_POLL);
            }
        }
    }

    fn write(&self, writing: Writing) -> Result<(), Fault> {
        // A later change of the same key overrides an earlier one.
        let mut changes: BTreeMap<Place, Option<Bytes>> = BTreeMap::new();
        let mut written: Vec<Arc<Sealed>> = Vec::new();
        for job in writing.jobs {
            changes.extend(job.removes.into_iter().map(|first| (first, None)));
            for sealed in job.puts {
                let bytes = match &sealed.content {
                    SealedContent::Records(records) => encode_block(records)?,
                    SealedContent::Encoded(bytes) => bytes.clone(),
                };
                changes.insert(sealed.first, Some(bytes));
                written.push(sealed);
            }
        }
        self.commit(&writing.to, changes)?;
        let mut state = self.state.lock();
        state.writing = false;
        state.written(&written, writing.to.number);
        Ok(())
    }

    pub(super) fn commit(&self, to: &Home, changes: BTreeMap<Place, Option<Bytes>>) -> Result<(), Fault> {
        let mut batch = Some(changes.into_iter().map(|(first, value)| (engine_key(first), value)).collect());
        let mut outcome = Ok(());
        (self.options.around_commit)(&mut || {
            if let Some(batch) = batch.take() {
                outcome = to.engine.commit(batch);
            }
        });
        if batch.is_some() {
            return Err(Fault::Invariant("the commit's probe did not run the commit".into()));
        }
        outcome
    }
}

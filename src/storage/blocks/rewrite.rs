//! Replacing an engine whose file outgrew its content by a fresh one, in the background.
//!
//! From the start of a rewrite all writes go to the new engine, and the blocks of the old one are
//! copied in small chunks between commits. The map says for every block which engine has it, so
//! readers need not know. When none is left the new engine takes over, and the old one is dropped
//! as soon as no reader holds it.

use super::state::{Home, State};
use super::{Shared, engine_key};
use crate::model::Fault;
use crate::storage::engine::Engine;
use crate::storage::record::{Block, Place};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::Arc;

/// One chunk of copying; writes wait for it.
const COPY_BLOCKS: usize = 16;
const COPY_BYTES: u64 = 256 << 10;

/// When to rewrite, and into what.
#[derive(Clone)]
pub struct Rewrite {
    /// Makes an empty engine.
    pub factory: Arc<dyn Fn() -> Result<Arc<dyn Engine>, Fault> + Send + Sync>,
    /// The file may have this many percent of the content's bytes,
    pub factor_percent: u64,
    /// and in any case this many bytes.
    pub min_bytes: u64,
}

impl Rewrite {
    /// At twice the content, above 64 MiB.
    #[must_use]
    pub fn new(factory: Arc<dyn Fn() -> Result<Arc<dyn Engine>, Fault> + Send + Sync>) -> Self {
        Self { factory, factor_percent: 200, min_bytes: 64 << 20 }
    }
}

impl Debug for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rewrite")
            .field("factor_percent", &self.factor_percent)
            .field("min_bytes", &self.min_bytes)
            .finish_non_exhaustive()
    }
}

/// A rewrite under way.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) to: Home,
    /// Every block that begins below is copied, pending or gone.
    cursor: Place,
}

/// What the writer knows of the file's growth.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// What a file just rewritten took, in percent of its content: below this no rewrite helps.
    fresh_percent: u64,
    epoch: u64,
}

impl Rewrite {
    /// A file must have grown by half over what a fresh one takes, and enough must have changed
    /// since the last look that copying everything is paid for.
    fn is_due(&self, growth: &Growth, disk_bytes: u64, content_bytes: u64) -> bool {
        let percent = self.factor_percent.max(growth.fresh_percent + growth.fresh_percent / 2);
        disk_bytes > self.min_bytes && disk_bytes > content_bytes / 100 * percent
    }

    fn worth_a_look(&self, churn_bytes: u64, content_bytes: u64) -> bool {
        churn_bytes >= (content_bytes / 2).max(self.min_bytes / 8)
    }
}

/// A block to copy, as the map had it.
struct ToCopy {
    first: Place,
    id: u64,
}

impl State {
    fn next_to_copy(&self) -> Vec<ToCopy> {
        let Some(rewrite) = &self.rewrite else { return Vec::new() };
        let mut bytes = 0;
        let old = self.blocks.range(rewrite.cursor..).filter(|(_, info)| info.home == Some(self.home.number));
        let chunk = old.take(COPY_BLOCKS).take_while(|(_, info)| {
            let enough = bytes >= COPY_BYTES;
            bytes += info.bytes;
            !enough
        });
        chunk.map(|(first, info)| ToCopy { first: *first, id: info.id }).collect()
    }

    fn copied(&mut self, chunk: &[ToCopy]) {
        // None: a reset has ended it meanwhile, and only this thread begins another.
        let Some(rewrite) = &mut self.rewrite else { return };
        for copy in chunk {
            // A block replaced meanwhile is pending: its own write or removal follows in the queue.
            if let Some(info) = self.blocks.get_mut(&copy.first)
                && info.id == copy.id
            {
                info.home = Some(rewrite.to.number);
            }
            rewrite.cursor = super::read::after(copy.first);
        }
    }

    fn take_over(&mut self) {
        if let Some(rewrite) = self.rewrite.take() {
            let old = std::mem::replace(&mut self.home, rewrite.to);
            self.retired.push(old);
            self.rewrites += 1;
            self.churn_bytes = 0;
        }
    }
}

impl Shared {
    /// Begins a rewrite if the file has outgrown its content.
    pub(super) fn check_growth(&self, growth: &mut Growth) -> Result<(), Fault> {
        let Some(rewrite) = &self.options.rewrite else { return Ok(()) };
        let (engine, content_bytes, epoch) = {
            let mut state = self.state.lock();
            if state.rewrite.is_some() || !rewrite.worth_a_look(state.churn_bytes, state.bytes()) {
                return Ok(());
            }
            state.churn_bytes = 0;
            (Arc::clone(&state.home.engine), state.bytes(), state.epoch)
        };
        if growth.epoch != epoch {
            *growth = Growth { fresh_percent: 0, epoch };
        }
        if !rewrite.is_due(growth, engine.disk_bytes()?, content_bytes) {
            return Ok(());
        }
        let engine = (rewrite.factory)()?;
        let mut state = self.state.lock();
        if state.epoch == epoch {
            let number = state.next_number();
            state.rewrite = Some(Progress { to: Home { number, engine }, cursor: (i64::MIN, 0) });
        }
        Ok(())
    }

    /// Copies one chunk, or ends the rewrite if nothing is left to copy.
    pub(super) fn copy_step(&self, growth: &mut Growth) -> Result<(), Fault> {
        let (chunk, from, to) = {
            let mut state = self.state.lock();
            let Some(rewrite) = &state.rewrite else { return Ok(()) };
            let (to, from) = (rewrite.to.clone(), Arc::clone(&state.home.engine));
            let chunk = state.next_to_copy();
            if chunk.is_empty() {
                state.take_over();
                let content_bytes = state.bytes();
                drop(state);
                growth.fresh_percent = to.engine.disk_bytes()? / (content_bytes / 100).max(1);
                return Ok(());
            }
            (chunk, from, to)
        };
        let mut changes: BTreeMap<Place, Option<Bytes>> = BTreeMap::new();
        for copy in &chunk {
            let missing =
                || Fault::corrupt("the engine", format!("the block of history at {:?} is missing", copy.first));
            // Only this thread removes blocks from the engine, so each of them must be there.
            let bytes = from.get(&engine_key(copy.first))?.ok_or_else(missing)?;
            let block = Block::open(bytes.clone())?;
            if block.first() != copy.first {
                return Err(missing());
            }
            changes.insert(copy.first, Some(bytes));
        }
        self.commit(&to, changes)?;
        self.state.lock().copied(&chunk);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewrite_is_due_only_when_it_would_help() {
        let factory: Arc<dyn Fn() -> Result<Arc<dyn Engine>, Fault> + Send + Sync> =
            Arc::new(|| Err(Fault::Invariant("unused".into())));
        let rewrite = Rewrite::new(factory);
        let mib = |n: u64| n << 20;
        let fresh = Growth::default();
        assert!(!rewrite.is_due(&fresh, mib(64), mib(1)));
        assert!(rewrite.is_due(&fresh, mib(65), mib(1)));
        assert!(!rewrite.is_due(&fresh, mib(199), mib(100)));
        assert!(rewrite.is_due(&fresh, mib(201), mib(100)));
        let roomy = Growth { fresh_percent: 180, epoch: 0 };
        assert!(!rewrite.is_due(&roomy, mib(201), mib(100)));
        assert!(rewrite.is_due(&roomy, mib(271), mib(100)));
        assert!(!rewrite.worth_a_look(mib(7), 0));
        assert!(rewrite.worth_a_look(mib(8), 0));
        assert!(!rewrite.worth_a_look(mib(49), mib(100)));
    }
}

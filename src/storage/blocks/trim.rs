//! Trimming: records that nobody needs any more are removed, and sparse blocks are merged.
//!
//! A step takes blocks of which nothing is needed out of the map unread; examines blocks that no
//! trim has seen and those of which less than half may be needed; and writes what survives of the
//! sparse ones, together with neighbours, as a new block of the usual size in their place.

use super::read::{Located, after};
use super::state::State;
use super::{BlockStore, Shared};
use crate::model::{Fault, Revision, limits};
use crate::storage::record::{Place, Record};
use std::sync::Arc;

/// Empty blocks dropped, and neighbours merged, at one turn.
const EMPTY_BLOCKS_MAX: usize = 64;
const MERGED_BLOCKS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrimProgress {
    /// Records looked at, plus one for every block dropped unread.
    pub examined: usize,
    pub removed: usize,
    /// The budget ended before the work did, or the engine has to catch up first.
    pub more: bool,
    /// A pin holds back what else there is to do.
    pub pinned: bool,
}

/// Tells whether a record is still needed.
type Keep<'a> = &'a dyn Fn(Revision, u32, &Record) -> bool;

/// What may be trimmed: blocks that begin at `from` or later and end at revision `upto` or before.
#[derive(Debug, Clone, Copy)]
struct Scope {
    from: Place,
    upto: Revision,
}

impl Scope {
    fn covers(self, first: Place, last: Place) -> bool {
        first >= self.from && last.0 <= self.upto
    }
}

enum Turn {
    Done { pinned: bool },
    CatchUp,
    Dropped { blocks: usize, records: usize },
    Examine(Place),
}

/// A block that was read, and what of it is still needed.
struct Examined {
    first: Place,
    last: Place,
    id: u64,
    records: usize,
    bytes: usize,
    live: Vec<Record>,
    live_bytes: usize,
}

impl State {
    fn scope(&self, upto: Revision) -> Option<Scope> {
        let from = match self.pinned_up_to() {
            Some(pinned) => (pinned.checked_add(1)?, 0),
            None => (Revision::MIN, 0),
        };
        (from.0 <= upto).then_some(Scope { from, upto })
    }

    fn covered(&self, scope: Scope, first: Place) -> bool {
        self.blocks.get(&first).is_some_and(|info| scope.covers(first, info.last))
    }

    fn take_turn(&mut self, upto: Revision, pending_bytes_max: usize) -> Turn {
        if self.pending_bytes >= pending_bytes_max {
            return Turn::CatchUp;
        }
        let Some(scope) = self.scope(upto) else { return Turn::Done { pinned: self.is_held_back(upto) } };
        let range = scope.from..=(upto, u32::MAX);
        let empty = self.empty.range(range.clone()).copied().filter(|first| self.covered(scope, *first));
        let empty: Vec<Place> = empty.take(EMPTY_BLOCKS_MAX).collect();
        if !empty.is_empty() {
            let records = empty.iter().filter_map(|first| self.blocks.get(first));
            let records = records.map(|info| usize::try_from(info.records).unwrap_or(usize::MAX)).sum();
            for first in &empty {
                self.forget(*first);
            }
            return Turn::Dropped { blocks: empty.len(), records };
        }
        let mut sparse = self.sparse.range(range).copied();
        let sparse = sparse.find(|first| self.covered(scope, *first));
        let unseen = self.blocks.range(self.cursor..).next().map(|(first, _)| *first);
        match sparse.or(unseen.filter(|first| self.covered(scope, *first))) {
            Some(first) => Turn::Examine(first),
            None => Turn::Done { pinned: self.is_held_back(upto) },
        }
    }

    /// Whether there would be more to do up to that revision if nothing were pinned.
    fn is_held_back(&self, upto: Revision) -> bool {
        let Some(pinned) = self.pinned_up_to() else { return false };
        let pinned = ..=(pinned.min(upto), u32::MAX);
        let unseen = self.blocks.range(self.cursor..).next().map(|(first, _)| first);
        let waiting = self.empty.range(pinned).chain(self.sparse.range(pinned)).chain(unseen);
        let is_held =
            |first: &&Place| pinned.contains(*first) && self.blocks.get(first).is_some_and(|info| info.last.0 <= upto);
        waiting.take(EMPTY_BLOCKS_MAX).any(|first| is_held(&first))
    }

    /// The neighbour of a run of blocks, if it may be trimmed and could fit beside `bytes`.
    fn neighbour(&self, scope: Scope, of: Beside, bytes: usize) -> Result<Option<Located>, Fault> {
        let neighbour = match of {
            Beside::Before(first) => self.blocks.range(..first).next_back(),
            Beside::After(last) => self.blocks.range(after(last)..).next(),
        };
        let room = u64::try_from(room_beside(bytes)).unwrap_or(0);
        let fits = neighbour.filter(|(first, info)| scope.covers(**first, info.last) && info.live_bytes_min() <= room);
        fits.map(|(first, info)| self.locate(*first, info)).transpose()
    }

    /// Puts what survives of a run of neighbouring blocks in their place, unless one of them has
    /// changed or been pinned since.
    fn replace(&mut self, upto: Revision, run: &[Examined], survivors: Vec<Arc<Record>>) -> bool {
        let Some(scope) = self.scope(upto) else { return false };
        let unchanged = |block: &Examined| {
            scope.covers(block.first, block.last)
                && self.blocks.get(&block.first).is_some_and(|info| info.id == block.id)
        };
        if !run.iter().all(unchanged) {
            return false;
        }
        self.advance(run);
        for block in run {
            self.forget(block.first);
        }
        if let Some(merged) = self.seal(survivors) {
            self.queue.push_back(merged);
        }
        true
    }

    /// Moves the cursor past an examined run if there is no unseen block before it.
    fn advance(&mut self, run: &[Examined]) {
        let unseen = self.blocks.range(self.cursor..).next().map(|(first, _)| *first);
        if let (Some(unseen), Some(first), Some(last)) = (unseen, run.first(), run.last())
            && first.first <= unseen
        {
            self.cursor = self.cursor.max(after(last.last));
        }
    }

    fn examined(&mut self, block: &Examined) {
        let live_bytes = u64::try_from(block.live_bytes).unwrap_or(u64::MAX);
        self.set_live(block.first, block.id, &block.live, live_bytes);
    }
}

/// How much a neighbour may add to `bytes`: copying one that is more than half full gains nothing.
fn room_beside(bytes: usize) -> usize {
    limits::BLOCK_BYTES_TARGET.saturating_sub(bytes).min(limits::BLOCK_BYTES_TARGET / 2)
}

#[derive(Clone, Copy)]
enum Beside {
    Before(Place),
    After(Place),
}

impl Shared {
    fn examine(&self, located: &Located, keep: Keep<'_>) -> Result<Examined, Fault> {
        let content = self.load(located)?;
        let (mut records, mut bytes, mut live_bytes, mut live) = (0, 0, 0, Vec::new());
        content.for_each(|record| {
            let weight = record.weight();
            records += 1;
            bytes += weight;
            if keep(record.main, record.sub, &record) {
                live_bytes += weight;
                live.push(record);
            }
        })?;
        let (first, last, id) = (located.first, located.last, located.id);
        Ok(Examined { first, last, id, records, bytes, live, live_bytes })
    }

    fn trim(&self, upto: Revision, keep: Keep<'_>, budget: usize) -> Result<TrimProgress, Fault> {
        let mut progress = TrimProgress::default();
        while progress.examined < budget.max(1) {
            let turn = {
                let mut state = self.state.lock();
                state.usable()?;
                state.take_turn(upto, self.options.pending_bytes_max)
            };
            match turn {
                Turn::Done { pinned } => return Ok(TrimProgress { pinned, ..progress }),
                Turn::CatchUp => break,
                Turn::Dropped { blocks, records } => {
                    self.work.notify_one();
                    progress.examined += blocks;
                    progress.removed += records;
                }
                Turn::Examine(first) => self.trim_block(upto, first, keep, budget, &mut progress)?,
            }
        }
        progress.more = true;
        Ok(progress)
    }

    fn trim_block(
        &self,
        upto: Revision,
        first: Place,
        keep: Keep<'_>,
        budget: usize,
        progress: &mut TrimProgress,
    ) -> Result<(), Fault> {
        let located = {
            let state = self.state.lock();
            // Gone: a reset came between.
            let Some(info) = state.blocks.get(&first) else { return Ok(()) };
            state.locate(first, info)?
        };
        let block = self.examine(&located, keep)?;
        progress.examined += block.records;
        if block.live_bytes * 2 >= block.bytes && !block.live.is_empty() {
            let mut state = self.state.lock();
            state.examined(&block);
            state.advance(&[block]);
            return Ok(());
        }
        let run = self.gather(upto, block, keep, budget, progress)?;
        let before: usize = run.iter().map(|block| block.records).sum();
        let survivors = run.iter().flat_map(|block| &block.live).map(|record| Arc::new(record.detached()));
        let survivors: Vec<Arc<Record>> = survivors.collect();
        let after = survivors.len();
        if self.state.lock().replace(upto, &run, survivors) {
            self.work.notify_one();
            progress.removed += before - after;
        }
        Ok(())
    }

    /// The sparse block with those neighbours, left and right, whose survivors fit beside its own.
    fn gather(
        &self,
        upto: Revision,
        block: Examined,
        keep: Keep<'_>,
        budget: usize,
        progress: &mut TrimProgress,
    ) -> Result<Vec<Examined>, Fault> {
        if block.live.is_empty() {
            return Ok(vec![block]);
        }
        let (mut bytes, mut before, mut last) = (block.live_bytes, Beside::Before(block.first), block.last);
        let mut run = vec![block];
        let mut looking_left = true;
        // One look to the left even beyond the budget: small steps would leave small blocks.
        while run.len() < MERGED_BLOCKS_MAX && (progress.examined < budget || run.len() == 1 && looking_left) {
            let side = if looking_left { before } else { Beside::After(last) };
            let located = {
                let state = self.state.lock();
                let Some(scope) = state.scope(upto) else { break };
                state.neighbour(scope, side, bytes)?
            };
            let examined = located.map(|located| self.examine(&located, keep)).transpose()?;
            progress.examined += examined.as_ref().map_or(0, |block| block.records);
            let fits = |block: &Examined| block.live_bytes <= room_beside(bytes);
            match examined {
                Some(block) if fits(&block) => {
                    bytes += block.live_bytes;
                    if looking_left {
                        before = Beside::Before(block.first);
                        run.insert(0, block);
                    } else {
                        last = block.last;
                        run.push(block);
                    }
                }
                unfit => {
                    if let Some(block) = unfit {
                        self.state.lock().examined(&block);
                    }
                    if !looking_left {
                        break;
                    }
                    looking_left = false;
                }
            }
        }
        Ok(run)
    }
}

impl BlockStore {
    /// One step of removing what `keep` does not want, of blocks wholly at or below revision `upto`
    /// and above every pin, after looking at about `budget` records. Readers on other threads get a
    /// removed record or nothing. `keep` is called without a lock held; the newest records, still
    /// in the tail, are left for later steps.
    ///
    /// # Errors
    /// A fault of the engine or of its content, or if the store has failed or is closed.
    pub fn trim(
        &self,
        upto: Revision,
        keep: &dyn Fn(Revision, u32, &Record) -> bool,
        budget: usize,
    ) -> Result<TrimProgress, Fault> {
        let _one = self.trimming.lock();
        self.shared.trim(upto, keep, budget).inspect_err(|fault| self.shared.fail(fault))
    }
}

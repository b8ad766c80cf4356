//! The engines under the block store, one after another in time: an engine that is full is followed
//! by an empty one, is never written again, and goes as a whole.
//!
//! Engines grow with every write and give nothing back, so space is only ever freed by dropping one.
//! One goes when its last block has gone; while all files together are too large for their content,
//! what is left of the sparsest is copied to the newest, in small chunks between commits. An engine that
//! was full from the beginning, a snapshot's file, is one of them. The map
//! says for every block which engine has it, so readers need not know, and one that still reads from
//! a replaced engine keeps it alive.

use super::state::State;
use super::{Shared, engine_key};
use crate::model::Fault;
use crate::storage::engine::{Engine, EngineBatch};
use crate::storage::record::{Block, Place};
use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::sync::Arc;

/// One chunk of copying; writes wait for it.
const COPY_BLOCKS: usize = 16;
const COPY_BYTES: u64 = 256 << 10;
/// Above this share of its file an engine's content is not worth a copy: about half is as dense as a
/// file of sled's gets.
const SPARSE_PERCENT: u64 = 40;

/// When to begin the next engine, and with what.
#[derive(Clone)]
pub struct Rotation {
    /// Makes an empty engine.
    pub factory: Arc<dyn Fn() -> Result<Arc<dyn Engine>, Fault> + Send + Sync>,
    /// An engine is full at this many bytes, or at this share of all engines' bytes if that is more.
    pub full_bytes_min: u64,
    pub full_share: u64,
    /// All files may have this many percent of their content's bytes, and `full_bytes_min` in any case.
    pub factor_percent: u64,
    /// With more engines than that, the one with the least content is copied to the newest.
    pub engines_max: usize,
}

impl Rotation {
    /// Full at 24 MiB or an eighth of the whole; up to 1.8 times the content; up to sixteen engines.
    #[must_use]
    pub fn new(factory: Arc<dyn Fn() -> Result<Arc<dyn Engine>, Fault> + Send + Sync>) -> Self {
        Self { factory, full_bytes_min: 24 << 20, full_share: 8, factor_percent: 180, engines_max: 16 }
    }

    fn is_full(&self, file_bytes: u64, all_file_bytes: u64) -> bool {
        file_bytes >= self.full_bytes_min.max(all_file_bytes / self.full_share.max(1))
    }

    fn is_outgrown(&self, all_file_bytes: u64, content_bytes: u64) -> bool {
        all_file_bytes > self.full_bytes_min.max(content_bytes / 100 * self.factor_percent)
    }
}

impl Debug for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotation")
            .field("full_bytes_min", &self.full_bytes_min)
            .field("full_share", &self.full_share)
            .field("factor_percent", &self.factor_percent)
            .field("engines_max", &self.engines_max)
            .finish_non_exhaustive()
    }
}

/// An engine and what the map says is in it.
#[derive(Debug)]
pub(super) struct Generation {
    /// Never used twice.
    pub(super) number: u64,
    pub(super) engine: Arc<dyn Engine>,
    blocks: BTreeSet<Place>,
    content_bytes: u64,
    /// As last measured.
    file_bytes: u64,
}

/// All engines in use, oldest first. The last one, which is always there, takes the writes.
#[derive(Debug)]
pub(super) struct Generations {
    newest: Generation,
    older: Vec<Generation>,
}

impl Generation {
    fn new(number: u64, engine: Arc<dyn Engine>) -> Self {
        Self { number, engine, blocks: BTreeSet::new(), content_bytes: 0, file_bytes: 0 }
    }

    fn is_sparse(&self) -> bool {
        self.content_bytes < self.file_bytes / 100 * SPARSE_PERCENT
    }
}

impl Generations {
    pub(super) fn new(number: u64, engine: Arc<dyn Engine>) -> Self {
        Self { newest: Generation::new(number, engine), older: Vec::new() }
    }

    pub(super) fn newest(&self) -> &Generation {
        &self.newest
    }

    pub(super) fn count(&self) -> usize {
        self.older.len() + 1
    }

    fn all(&self) -> impl Iterator<Item = &Generation> {
        self.older.iter().chain([&self.newest])
    }

    pub(super) fn engine(&self, number: u64) -> Option<Arc<dyn Engine>> {
        self.all().find(|generation| generation.number == number).map(|generation| Arc::clone(&generation.engine))
    }

    /// One that was read so much that it is to let go of what it keeps.
    pub(super) fn crowded(&self) -> Option<Arc<dyn Engine>> {
        self.all().find(|generation| generation.engine.is_crowded()).map(|generation| Arc::clone(&generation.engine))
    }

    fn of(&mut self, number: u64) -> Option<&mut Generation> {
        self.older.iter_mut().chain([&mut self.newest]).find(|generation| generation.number == number)
    }

    pub(super) fn add(&mut self, number: u64, first: Place, bytes: u64) {
        if let Some(generation) = self.of(number)
            && generation.blocks.insert(first)
        {
            generation.content_bytes += bytes;
        }
    }

    /// An engine that is never written to, and has what is added to it.
    pub(super) fn adopt(&mut self, number: u64, engine: Arc<dyn Engine>) {
        self.older.push(Generation::new(number, engine));
    }

    pub(super) fn add_stored(&mut self, number: u64, first: Place, bytes: u64, file_bytes: u64) {
        self.add(number, first, bytes);
        if let Some(generation) = self.of(number) {
            generation.file_bytes += file_bytes;
        }
    }

    fn remove(&mut self, number: u64, first: Place, bytes: u64) {
        if let Some(generation) = self.of(number)
            && generation.blocks.remove(&first)
        {
            generation.content_bytes = generation.content_bytes.saturating_sub(bytes);
        }
    }

    fn file_bytes(&self) -> u64 {
        self.all().map(|generation| generation.file_bytes).sum()
    }

    /// The engine to copy from: of too many the emptiest, of too large ones the sparsest.
    fn to_empty(&self, rotation: &Rotation, content_bytes: u64) -> Option<&Generation> {
        if self.count() > rotation.engines_max {
            return self.older.iter().min_by_key(|generation| generation.content_bytes);
        }
        if !rotation.is_outgrown(self.file_bytes(), content_bytes) {
            return None;
        }
        // In hundredths of percents: files are far below 2^50 bytes.
        let share = |generation: &Generation| generation.content_bytes * 10_000 / generation.file_bytes.max(1);
        let sparse = self.older.iter().filter(|generation| generation.is_sparse());
        sparse.min_by_key(|generation| share(generation))
    }

    fn begin(&mut self, next: Generation) {
        self.older.push(std::mem::replace(&mut self.newest, next));
    }

    /// Takes out those of which nothing is needed.
    fn take_empty(&mut self) -> impl Iterator<Item = Arc<dyn Engine>> {
        self.older.extract_if(.., |generation| generation.blocks.is_empty()).map(|generation| generation.engine)
    }

    pub(super) fn into_engines(self) -> impl Iterator<Item = Arc<dyn Engine>> {
        self.older.into_iter().chain([self.newest]).map(|generation| generation.engine)
    }
}

/// A block to copy, as the map had it.
struct ToCopy {
    first: Place,
    id: u64,
}

/// A chunk to copy, from one engine to another.
struct Copy {
    blocks: Vec<ToCopy>,
    from: (u64, Arc<dyn Engine>),
    to: (u64, Arc<dyn Engine>),
}

impl State {
    /// Whether there is something to copy.
    pub(super) fn is_outgrown(&self, rotation: Option<&Rotation>) -> bool {
        rotation.is_some_and(|rotation| self.generations.to_empty(rotation, self.bytes()).is_some())
    }

    fn next_to_copy(&self, rotation: &Rotation) -> Option<Copy> {
        let from = self.generations.to_empty(rotation, self.bytes())?;
        let mut bytes = 0;
        let of_map = from.blocks.iter().filter_map(|first| Some((*first, self.blocks.get(first)?)));
        let chunk = of_map.take(COPY_BLOCKS).take_while(|(_, info)| {
            let enough = bytes >= COPY_BYTES;
            bytes += info.bytes;
            !enough
        });
        let blocks = chunk.map(|(first, info)| ToCopy { first, id: info.id }).collect();
        let ends = |generation: &Generation| (generation.number, Arc::clone(&generation.engine));
        Some(Copy { blocks, from: ends(from), to: ends(self.generations.newest()) })
    }

    /// A block has gone from an engine, and the engine too if it was the last.
    pub(super) fn leave(&mut self, number: u64, first: Place, bytes: u64) {
        self.generations.remove(number, first, bytes);
        self.retired.extend(self.generations.take_empty());
    }

    fn copied(&mut self, copy: &Copy) {
        for block in &copy.blocks {
            // One that was trimmed meanwhile is in neither any more.
            if let Some(info) = self.blocks.get_mut(&block.first)
                && info.id == block.id
            {
                info.home = Some(copy.to.0);
                let bytes = info.bytes;
                self.generations.add(copy.to.0, block.first, bytes);
                self.leave(copy.from.0, block.first, bytes);
            }
        }
    }
}

impl Shared {
    /// Measures the newest engine's file, and begins the next engine if it is full.
    pub(super) fn rotate(&self) -> Result<(), Fault> {
        let Some(rotation) = &self.options.rotation else { return Ok(()) };
        let (number, engine) = {
            let state = self.state.lock();
            let newest = state.generations.newest();
            (newest.number, Arc::clone(&newest.engine))
        };
        let file_bytes = engine.disk_bytes()?;
        let is_full = {
            let mut state = self.state.lock();
            if state.generations.newest.number != number {
                // A reset has begun another meanwhile.
                return Ok(());
            }
            state.generations.newest.file_bytes = file_bytes;
            rotation.is_full(file_bytes, state.generations.file_bytes())
        };
        if !is_full {
            return Ok(());
        }
        let next = (rotation.factory)()?;
        {
            let mut state = self.state.lock();
            if state.generations.newest.number == number {
                let number = state.next_engine();
                state.generations.begin(Generation::new(number, next));
                let empty = state.generations.take_empty().collect::<Vec<_>>();
                state.retired.extend(empty);
            }
        }
        engine.let_go()
    }

    /// Copies one chunk, if anything is to be copied.
    pub(super) fn copy_step(&self) -> Result<(), Fault> {
        let Some(rotation) = &self.options.rotation else { return Ok(()) };
        let Some(copy) = self.state.lock().next_to_copy(rotation) else { return Ok(()) };
        let mut batch = EngineBatch::new();
        for block in &copy.blocks {
            let missing =
                || Fault::corrupt("the engine", format!("the block of history at {:?} is missing", block.first));
            let bytes = copy.from.1.get(&engine_key(block.id))?.ok_or_else(missing)?;
            if Block::open(bytes.clone())?.first() != block.first {
                return Err(missing());
            }
            batch.push((engine_key(block.id), bytes));
        }
        self.commit(&*copy.to.1, batch)?;
        self.state.lock().copied(&copy);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryEngine;

    const MIB: u64 = 1 << 20;

    fn rotation() -> Rotation {
        Rotation::new(Arc::new(|| Err(Fault::Invariant("unused".into()))))
    }

    /// Engines with that much of content and file; the last one is the newest.
    fn generations(engines: &[(u64, u64)]) -> Generations {
        let mut all = Generations::new(0, Arc::new(MemoryEngine::new()));
        for (number, (content, file)) in (1..).zip(engines) {
            let mut next = Generation::new(number, Arc::new(MemoryEngine::new()));
            (next.content_bytes, next.file_bytes) = (content * MIB, file * MIB);
            all.begin(next);
        }
        all.older.remove(0);
        all
    }

    fn emptied(engines: &[(u64, u64)]) -> Option<u64> {
        let content = engines.iter().map(|(content, _)| content * MIB).sum();
        generations(engines).to_empty(&rotation(), content).map(|generation| generation.number)
    }

    #[test]
    fn an_engine_is_full_at_a_share_of_the_whole_but_not_when_it_is_small() {
        assert!(!rotation().is_full(23 * MIB, 23 * MIB));
        assert!(rotation().is_full(24 * MIB, 24 * MIB));
        assert!(!rotation().is_full(99 * MIB, 800 * MIB));
        assert!(rotation().is_full(100 * MIB, 800 * MIB));
    }

    #[test]
    fn the_sparsest_is_emptied_only_when_that_would_help() {
        assert_eq!(emptied(&[(1, 14), (9, 10)]), None, "they are small");
        assert_eq!(emptied(&[(1, 99)]), None, "the newest is not sparse but new");
        assert_eq!(emptied(&[(70, 100), (2, 40), (70, 100)]), None, "together they are dense enough");
        assert_eq!(emptied(&[(32, 100), (30, 100), (60, 100)]), Some(2));
        assert_eq!(emptied(&[(42, 100), (41, 100), (1, 100)]), None, "only the newest is sparse");
    }

    #[test]
    fn of_too_many_the_one_with_the_least_content_is_emptied() {
        let mut engines = [(40, 50); 17];
        engines[3].0 = 30;
        assert_eq!(emptied(&engines[..16]), None);
        assert_eq!(emptied(&engines), Some(4));
    }

    #[test]
    fn what_is_removed_from_an_engine_is_no_longer_counted_there() {
        let mut all = generations(&[(0, 9), (0, 9)]);
        all.add(1, (5, 0), 100);
        all.add(1, (5, 0), 100);
        all.add(2, (6, 0), 50);
        assert_eq!((all.older[0].content_bytes, all.newest.content_bytes), (100, 50));
        all.remove(2, (5, 0), 100);
        assert_eq!(all.take_empty().count(), 0);
        all.remove(1, (5, 0), 100);
        assert_eq!((all.take_empty().count(), all.count(), all.newest.content_bytes), (1, 1, 50));
    }
}

//! Reading records: one by its place, or a run of whole revisions. Readers take the state's lock
//! only to look at the map; engine calls are made without it.

use super::state::{BlockInfo, Sealed, SealedContent, State};
use super::{BlockStore, Shared, engine_key};
use crate::model::{Fault, Revision, limits};
use crate::storage::engine::Engine;
use crate::storage::record::{Block, Place, Record};
use std::sync::Arc;

/// Where the block of some records is.
pub(super) enum Source {
    Memory(Arc<Sealed>),
    Engine(Arc<dyn Engine>),
}

/// A block of the map, as it was when looked up.
pub(super) struct Located {
    pub(super) first: Place,
    pub(super) last: Place,
    pub(super) id: u64,
    pub(super) source: Source,
}

/// The content of a block.
pub(super) enum Content {
    /// Of records.
    Memory(Arc<Sealed>),
    Stored(Block),
}

/// A block as a walk over all blocks finds it.
#[derive(Debug)]
pub struct WalkedBlock {
    pub first: Place,
    pub last: Place,
    pub content: WalkedContent,
}

#[derive(Debug)]
pub enum WalkedContent {
    Records(Vec<Arc<Record>>),
    Encoded(Block),
}

impl Content {
    fn find(&self, place: Place) -> Result<Option<Arc<Record>>, Fault> {
        match self {
            Self::Memory(sealed) => Ok(find_in(sealed.records(), place)),
            Self::Stored(block) => Ok(block.find(place)?.map(Arc::new)),
        }
    }

    fn records_from(&self, place: Place) -> Result<Vec<Arc<Record>>, Fault> {
        match self {
            Self::Memory(sealed) => Ok(sealed.records()[start_in(sealed.records(), place)..].to_vec()),
            Self::Stored(block) => block.records_from(place),
        }
    }

    /// Shows the records from `place` on to the walk, until it has enough.
    fn walk(&self, place: Place, walk: &mut Walk<'_>) -> Result<(), Fault> {
        match self {
            Self::Memory(sealed) => {
                walk.extend(&sealed.records()[start_in(sealed.records(), place)..]);
                Ok(())
            }
            Self::Stored(block) => block.visit_from(place, |record| {
                let taken = walk.passes(&record);
                if taken == Passed::Wanted {
                    walk.records.push(Arc::new(block.own(record)));
                }
                taken != Passed::Full
            }),
        }
    }

    /// Shows every record in order; they may share the block's bytes.
    pub(super) fn for_each(&self, mut visit: impl FnMut(Record)) -> Result<(), Fault> {
        match self {
            Self::Memory(sealed) => {
                for record in sealed.records() {
                    visit(Record::clone(record));
                }
                Ok(())
            }
            Self::Stored(block) => block.for_each(visit),
        }
    }
}

impl State {
    /// A block of the map.
    pub(super) fn locate(&self, first: Place, info: &BlockInfo) -> Result<Located, Fault> {
        let source = match info.home {
            None => self.pending.get(&info.id).cloned().map(Source::Memory),
            Some(number) => self.generations.engine(number).map(Source::Engine),
        };
        let source = source.ok_or_else(|| Fault::Invariant(format!("block {first:?} is nowhere")))?;
        Ok(Located { first, last: info.last, id: info.id, source })
    }
}

impl Shared {
    /// The content of a located block, even if it has been trimmed or copied since.
    pub(super) fn load(&self, located: &Located) -> Result<Content, Fault> {
        if let Some(block) = self.cache.get(located.id) {
            return Ok(Content::Stored(block));
        }
        let engine = match &located.source {
            Source::Memory(sealed) => return self.pending(sealed),
            Source::Engine(engine) => engine,
        };
        let bytes = engine.get(&engine_key(located.id))?.ok_or_else(|| {
            Fault::corrupt("the engine", format!("the block of history at {:?} is missing", located.first))
        })?;
        if engine.is_crowded() {
            self.work.notify_one();
        }
        let block = Block::open(bytes)?;
        if block.first() != located.first {
            return Err(Fault::corrupt("the engine", format!("another block is stored at {:?}", located.first)));
        }
        self.cache.insert(located.id, &block);
        Ok(Content::Stored(block))
    }

    fn pending(&self, sealed: &Arc<Sealed>) -> Result<Content, Fault> {
        match &sealed.content {
            SealedContent::Records(_) => Ok(Content::Memory(Arc::clone(sealed))),
            SealedContent::Encoded(bytes) => {
                let block = Block::open(bytes.clone())?;
                self.cache.insert(sealed.id, &block);
                Ok(Content::Stored(block))
            }
        }
    }

    fn get(&self, place: Place) -> Result<Option<Arc<Record>>, Fault> {
        let located = {
            let state = self.state.lock();
            state.usable()?;
            if state.tail.first().is_some_and(|first| first.place() <= place) {
                return Ok(find_in(&state.tail, place));
            }
            let holds = state.blocks.range(..=place).next_back().filter(|(_, info)| info.last >= place);
            let Some((first, info)) = holds else { return Ok(None) };
            state.locate(*first, info)?
        };
        self.load(&located)?.find(place)
    }

    fn walk(&self, from: Revision, max_records: usize, wanted: Wanted<'_>) -> Result<Walked, Fault> {
        let mut walk = Walk::new(max_records, wanted);
        let mut next = (from, 0);
        while !walk.full {
            let located = {
                let state = self.state.lock();
                state.usable()?;
                match block_from(&state, next) {
                    Some((first, info)) => state.locate(first, info)?,
                    None => {
                        walk.extend(&state.tail[start_in(&state.tail, next)..]);
                        return Ok(walk.walked());
                    }
                }
            };
            self.load(&located)?.walk(next, &mut walk)?;
            next = after(located.last);
        }
        Ok(walk.walked())
    }

    fn block_at(&self, from: Place) -> Result<Option<WalkedBlock>, Fault> {
        let located = {
            let state = self.state.lock();
            state.usable()?;
            match block_from(&state, from) {
                Some((first, info)) => state.locate(first, info)?,
                None => return Ok(tail_from(&state, from)),
            }
        };
        let content = match self.load(&located)? {
            Content::Stored(block) if located.first >= from => WalkedContent::Encoded(block),
            content => WalkedContent::Records(content.records_from(from)?),
        };
        Ok(Some(WalkedBlock { first: located.first.max(from), last: located.last, content }))
    }
}

fn tail_from(state: &State, from: Place) -> Option<WalkedBlock> {
    let records = state.tail[start_in(&state.tail, from)..].to_vec();
    let (first, last) = (records.first()?.place(), records.last()?.place());
    Some(WalkedBlock { first, last, content: WalkedContent::Records(records) })
}

/// Whose records are gathered, by their keys.
pub type Wanted<'a> = &'a dyn Fn(&[u8]) -> bool;

/// What a walk has found.
#[derive(Debug)]
pub struct Walked {
    pub records: Vec<Arc<Record>>,
    /// Every record wanted up to this revision is among them; `None`: every one there is.
    pub upto: Option<Revision>,
}

/// Records gathered up to the bounds, the last revision whole.
struct Walk<'a> {
    wanted: Wanted<'a>,
    records: Vec<Arc<Record>>,
    bytes: usize,
    max_records: usize,
    /// Records that were not wanted, and their bytes.
    passed: usize,
    passed_bytes: usize,
    /// The revision of the last record looked at.
    last: Option<Revision>,
    full: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    Wanted,
    Foreign,
    /// Nothing more is looked at.
    Full,
}

impl<'a> Walk<'a> {
    fn new(max_records: usize, wanted: Wanted<'a>) -> Self {
        let max_records = max_records.max(1);
        Self { wanted, records: Vec::new(), bytes: 0, max_records, passed: 0, passed_bytes: 0, last: None, full: false }
    }

    fn extend(&mut self, records: &[Arc<Record>]) {
        for record in records {
            match self.passes(record) {
                Passed::Wanted => self.records.push(Arc::clone(record)),
                Passed::Foreign => {}
                Passed::Full => return,
            }
        }
    }

    /// Counts one more record; who is told that it is wanted keeps it.
    fn passes(&mut self, record: &Record) -> Passed {
        if self.is_enough() && self.last.is_some_and(|last| last != record.main) {
            self.full = true;
            return Passed::Full;
        }
        self.last = Some(record.main);
        if (self.wanted)(&record.key) {
            self.bytes += record.weight();
            return Passed::Wanted;
        }
        self.passed += 1;
        self.passed_bytes += record.weight();
        Passed::Foreign
    }

    fn is_enough(&self) -> bool {
        self.records.len() >= self.max_records
            || self.bytes >= limits::WALK_BYTES_MAX
            || self.passed >= limits::WALK_PASSED_RECORDS_MAX
            || self.passed_bytes >= limits::WALK_PASSED_BYTES_MAX
    }

    fn walked(self) -> Walked {
        Walked { records: self.records, upto: self.last.filter(|_| self.full) }
    }
}

/// The first block that may hold a record at `place` or after it.
fn block_from(state: &State, place: Place) -> Option<(Place, &BlockInfo)> {
    let holds = state.blocks.range(..=place).next_back().filter(|(_, info)| info.last >= place);
    holds.or_else(|| state.blocks.range(place..).next()).map(|(first, info)| (*first, info))
}

/// The place behind one.
#[must_use]
pub fn after(place: Place) -> Place {
    match place.1.checked_add(1) {
        Some(sub) => (place.0, sub),
        None => (place.0.saturating_add(1), 0),
    }
}

fn start_in(records: &[Arc<Record>], place: Place) -> usize {
    records.partition_point(|record| record.place() < place)
}

fn find_in(records: &[Arc<Record>], place: Place) -> Option<Arc<Record>> {
    records.get(start_in(records, place)).filter(|record| record.place() == place).cloned()
}

impl BlockStore {
    /// The record at that place; `None` if there never was one or a trim removed it.
    ///
    /// # Errors
    /// A fault of the engine or of its content, or if the store has failed or is closed.
    pub fn get(&self, main: Revision, sub: u32) -> Result<Option<Arc<Record>>, Fault> {
        self.shared.get((main, sub)).inspect_err(|fault| self.shared.fail(fault))
    }

    /// The first block that reaches `from` or beyond; `None`: there is none. Go on with `after` its last.
    ///
    /// # Errors
    /// As `get`.
    pub fn block_at(&self, from: Place) -> Result<Option<WalkedBlock>, Fault> {
        self.shared.block_at(from).inspect_err(|fault| self.shared.fail(fault))
    }

    /// The records from revision `from` on, in order: about `max_records` of them or 4 MiB, at
    /// least one revision, and the last revision whole. Empty: there are none from there on.
    ///
    /// # Errors
    /// As `get`.
    pub fn walk(&self, from: Revision, max_records: usize) -> Result<Vec<Arc<Record>>, Fault> {
        self.walk_wanted(from, max_records, &|_| true).map(|walked| walked.records)
    }

    /// The records of wanted keys only, which may be none of a stretch: go on after `upto`. Bounded by what was
    /// passed, too.
    ///
    /// # Errors
    /// As `get`.
    pub fn walk_wanted(&self, from: Revision, max_records: usize, wanted: Wanted<'_>) -> Result<Walked, Fault> {
        self.shared.walk(from, max_records, wanted).inspect_err(|fault| self.shared.fail(fault))
    }
}

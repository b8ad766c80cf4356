//! What the block store knows in memory: the map of blocks, the tail, what waits for the engine,
//! and the accounts of what is still needed. Plain data under one lock; no engine call is made here.

use super::BlockStats;
use super::generations::Generations;
use crate::model::{Fault, Revision, limits};
use crate::storage::engine::Engine;
use crate::storage::record::{Place, Record};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

#[derive(Debug, Clone)]
pub(super) struct BlockInfo {
    /// Never used twice: the block's key in the engine, which tells it from another that later begins at the same place.
    pub(super) id: u64,
    pub(super) last: Place,
    pub(super) records: u32,
    pub(super) live_records: u32,
    pub(super) bytes: u64,
    /// Exact when the block was written or last examined.
    pub(super) live_bytes: u64,
    /// Records that died since, of sizes unknown but for this bound.
    pub(super) dead_since: u32,
    pub(super) largest: u64,
    /// Sum of the marks of the records that live: 0 when each of them, and nothing else, was told dead.
    marks: u64,
    /// The number of the engine that has it; `None` while it is pending.
    pub(super) home: Option<u64>,
}

impl BlockInfo {
    /// The least that may still be needed of it.
    pub(super) fn live_bytes_min(&self) -> u64 {
        self.live_bytes.saturating_sub(u64::from(self.dead_since) * self.largest)
    }

    fn is_surely_empty(&self) -> bool {
        self.live_records == 0 && self.marks == 0
    }

    fn may_be_sparse(&self) -> bool {
        self.live_bytes_min() * 2 < self.bytes
    }
}

/// A number that stands for a place in sums (the finaliser of splitmix64).
pub(super) fn mark(place: Place) -> u64 {
    let mut mixed = place.0.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(u64::from(place.1));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The sum of the marks of some records.
pub(super) fn marks<'a>(records: impl IntoIterator<Item = &'a Record>) -> u64 {
    records.into_iter().fold(0, |sum, record| sum.wrapping_add(mark(record.place())))
}

/// What the accounts know of a block's records.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    records: u32,
    bytes: u64,
    largest: u64,
    marks: u64,
}

impl Size {
    fn add(&mut self, record: &Record) {
        let weight = u64::try_from(record.weight()).unwrap_or(u64::MAX / 4);
        self.records += 1;
        self.bytes += weight;
        self.largest = self.largest.max(weight);
        self.marks = self.marks.wrapping_add(mark(record.place()));
    }
}

/// A block that is encoded already, with what its records add up to.
#[derive(Debug)]
pub struct EncodedBlock {
    bytes: Bytes,
    span: Option<(Place, Place)>,
    size: Size,
    /// Where the engine that was adopted has it.
    stored: Option<u64>,
}

impl EncodedBlock {
    /// To be shown all its records, in order, by `note`.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, span: None, size: Size::default(), stored: None }
    }

    /// The adopted engine has it under that number.
    #[must_use]
    pub fn stored(self, number: u64) -> Self {
        Self { stored: Some(number), ..self }
    }

    pub fn note(&mut self, record: &Record) {
        let place = record.place();
        self.span = Some((self.span.map_or(place, |(first, _)| first), place));
        self.size.add(record);
    }

    /// The places of its first and last records; `None` if there are none.
    #[must_use]
    pub fn span(&self) -> Option<(Place, Place)> {
        self.span
    }
}

/// A block on its way to the engine.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) id: u64,
    pub(super) first: Place,
    pub(super) content: SealedContent,
    pub(super) weight: usize,
}

impl Sealed {
    /// Its records, unless it is encoded.
    pub(super) fn records(&self) -> &[Arc<Record>] {
        match &self.content {
            SealedContent::Records(records) => records,
            SealedContent::Encoded(_) => &[],
        }
    }
}

#[derive(Debug)]
pub(super) enum SealedContent {
    Records(Vec<Arc<Record>>),
    Encoded(Bytes),
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) generations: Generations,
    /// Emptied engines that readers may still use; the writer drops them.
    pub(super) retired: Vec<Arc<dyn Engine>>,
    /// The number of the engine begun last.
    engines: u64,
    /// The number of the one that was adopted with its blocks.
    adopted: Option<u64>,
    pub(super) blocks: BTreeMap<Place, BlockInfo>,
    pub(super) pending: BTreeMap<u64, Arc<Sealed>>,
    pub(super) pending_bytes: usize,
    /// Callers that wait for an empty queue.
    pub(super) settling: usize,
    /// On their way to the engine, in order.
    pub(super) queue: VecDeque<Arc<Sealed>>,
    /// The writer has taken some and not finished.
    pub(super) writing: bool,
    pub(super) tail: Vec<Arc<Record>>,
    tail_bytes: usize,
    /// Records of the tail told dead: how many, and the sum of their marks.
    tail_dead: (u32, u64),
    last: Option<Place>,
    pub(super) pins: BTreeMap<Revision, usize>,
    /// Blocks of which nothing is needed; of which less than half may be needed.
    pub(super) empty: BTreeSet<Place>,
    pub(super) sparse: BTreeSet<Place>,
    /// Trims have examined every block that begins below this place.
    pub(super) cursor: Place,
    totals: Totals,
    next_id: u64,
    pub(super) failed: Option<Fault>,
    pub(super) closed: bool,
}

#[derive(Debug, Default)]
struct Totals {
    records: u64,
    live_records: u64,
    bytes: u64,
    live_bytes: u64,
}

impl Totals {
    fn add(&mut self, info: &BlockInfo) {
        self.records += u64::from(info.records);
        self.live_records += u64::from(info.live_records);
        self.bytes += info.bytes;
        self.live_bytes += live_estimate(info);
    }

    fn subtract(&mut self, info: &BlockInfo) {
        self.records -= u64::from(info.records);
        self.live_records -= u64::from(info.live_records);
        self.bytes -= info.bytes;
        self.live_bytes -= live_estimate(info);
    }
}

/// By the share of records that live, for lack of the dead ones' sizes.
fn live_estimate(info: &BlockInfo) -> u64 {
    let then = u64::from(info.live_records) + u64::from(info.dead_since);
    (info.live_bytes * u64::from(info.live_records)).checked_div(then).unwrap_or(0)
}

impl State {
    pub(super) fn new(engine: Arc<dyn Engine>) -> Self {
        Self {
            generations: Generations::new(1, engine),
            retired: Vec::new(),
            engines: 1,
            adopted: None,
            blocks: BTreeMap::new(),
            pending: BTreeMap::new(),
            pending_bytes: 0,
            settling: 0,
            queue: VecDeque::new(),
            writing: false,
            tail: Vec::new(),
            tail_bytes: 0,
            tail_dead: (0, 0),
            last: None,
            pins: BTreeMap::new(),
            empty: BTreeSet::new(),
            sparse: BTreeSet::new(),
            cursor: (Revision::MIN, 0),
            totals: Totals::default(),
            next_id: 1,
            failed: None,
            closed: false,
        }
    }

    pub(super) fn reset(&mut self, engine: Arc<dyn Engine>) {
        let number = self.next_engine();
        let fresh = Self {
            generations: Generations::new(number, Arc::clone(&engine)),
            engines: number,
            pins: std::mem::take(&mut self.pins),
            retired: std::mem::take(&mut self.retired),
            next_id: self.next_id,
            failed: self.failed.take(),
            closed: self.closed,
            settling: self.settling,
            // The writer may be in the middle of blocks of before; it says itself when it is done.
            writing: self.writing,
            ..Self::new(engine)
        };
        let before = std::mem::replace(self, fresh);
        self.retired.extend(before.generations.into_engines());
    }

    pub(super) fn usable(&self) -> Result<(), Fault> {
        match &self.failed {
            Some(fault) => Err(fault.clone()),
            None if self.closed => Err(Fault::Invariant("the block store is closed".into())),
            None => Ok(()),
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.queue.is_empty() && !self.writing
    }

    pub(super) fn append(&mut self, records: Vec<Arc<Record>>) -> Result<(), Fault> {
        let mut last = self.last;
        for record in &records {
            if last.is_some_and(|last| last >= record.place()) {
                return Err(Fault::Invariant(format!("record {:?} appended after {last:?}", record.place())));
            }
            last = Some(record.place());
        }
        self.last = last;
        for record in records {
            let weight = record.weight();
            if self.tail_bytes + weight > limits::BLOCK_BYTES_TARGET {
                self.seal_tail();
            }
            self.tail_bytes += weight;
            self.tail.push(record);
        }
        if self.tail_bytes >= limits::BLOCK_BYTES_TARGET {
            self.seal_tail();
        }
        Ok(())
    }

    fn seal_tail(&mut self) {
        let records = std::mem::take(&mut self.tail);
        let dead = std::mem::take(&mut self.tail_dead);
        self.tail_bytes = 0;
        let Some(sealed) = self.seal(records) else { return };
        let first = sealed.first;
        self.queue.push_back(sealed);
        self.kill(first, dead.0, dead.1);
    }

    pub(super) fn append_encoded(&mut self, blocks: Vec<EncodedBlock>) -> Result<(), Fault> {
        self.seal_tail();
        for block in blocks {
            let EncodedBlock { bytes, span: Some((first, last)), size, stored } = block else { continue };
            if self.last.is_some_and(|last| last >= first) {
                return Err(Fault::Invariant(format!("block {first:?} appended after {:?}", self.last)));
            }
            self.last = Some(last);
            let weight = bytes.len();
            if let (Some(id), Some(number)) = (stored, self.adopted) {
                self.map(id, (first, last), size, Some(number));
                self.generations.add_stored(number, first, size.bytes, u64::try_from(weight).unwrap_or(u64::MAX));
                continue;
            }
            let sealed = self.enter(first, last, size, SealedContent::Encoded(bytes), weight);
            self.queue.push_back(sealed);
        }
        Ok(())
    }

    /// Takes an engine that has blocks already, which are then appended with their numbers there.
    pub(super) fn adopt(&mut self, engine: Arc<dyn Engine>, file_bytes: u64) -> Result<(), Fault> {
        if self.next_id != 1 || self.adopted.is_some() {
            return Err(Fault::Invariant("only a new block store can adopt an engine".into()));
        }
        // Blocks have their numbers from their places in its file; those to come get greater ones.
        self.next_id = file_bytes.saturating_add(1);
        let number = self.next_engine();
        self.generations.adopt(number, engine);
        self.adopted = Some(number);
        Ok(())
    }

    /// Enters a block into the map and among the pending ones; the caller queues it for the engine.
    pub(super) fn seal(&mut self, records: Vec<Arc<Record>>) -> Option<Arc<Sealed>> {
        let (first, last) = (records.first()?.place(), records.last()?.place());
        let mut size = Size::default();
        records.iter().for_each(|record| size.add(record));
        let weight = usize::try_from(size.bytes).unwrap_or(usize::MAX) + records.len() * size_of::<Record>();
        Some(self.enter(first, last, size, SealedContent::Records(records), weight))
    }

    fn enter(&mut self, first: Place, last: Place, size: Size, content: SealedContent, weight: usize) -> Arc<Sealed> {
        let id = self.next_id;
        self.next_id += 1;
        self.map(id, (first, last), size, None);
        let sealed = Arc::new(Sealed { id, first, content, weight });
        self.pending.insert(id, Arc::clone(&sealed));
        self.pending_bytes += weight;
        sealed
    }

    fn map(&mut self, id: u64, (first, last): (Place, Place), size: Size, home: Option<u64>) {
        let info = BlockInfo {
            id,
            last,
            records: size.records,
            live_records: size.records,
            bytes: size.bytes,
            live_bytes: size.bytes,
            dead_since: 0,
            largest: size.largest,
            marks: size.marks,
            home,
        };
        self.totals.add(&info);
        self.blocks.insert(first, info);
    }

    /// Takes a block out of the map. What the engine has of it goes with the engine.
    pub(super) fn forget(&mut self, first: Place) {
        if let Some(info) = self.blocks.remove(&first) {
            self.totals.subtract(&info);
            match info.home {
                Some(number) => self.leave(number, first, info.bytes),
                None => self.no_longer_pending(info.id),
            }
        }
        self.empty.remove(&first);
        self.sparse.remove(&first);
    }

    pub(super) fn note_dead(&mut self, place: Place) {
        if self.tail.first().is_some_and(|first| first.place() <= place) {
            let (count, marks) = self.tail_dead;
            self.tail_dead = (count + 1, marks.wrapping_add(mark(place)));
            return;
        }
        let block = self.blocks.range(..=place).next_back();
        if let Some(first) = block.filter(|(_, info)| info.last >= place).map(|(first, _)| *first) {
            self.kill(first, 1, mark(place));
        }
    }

    fn kill(&mut self, first: Place, count: u32, marks: u64) {
        self.change(first, |info| {
            info.marks = info.marks.wrapping_sub(marks);
            let count = count.min(info.live_records);
            info.live_records -= count;
            info.dead_since += count;
        });
    }

    /// What an examination found still needed in a block.
    pub(super) fn set_live(&mut self, first: Place, id: u64, live: &[Record], live_bytes: u64) {
        if self.blocks.get(&first).is_some_and(|info| info.id == id) {
            let largest = live.iter().map(Record::weight).max().unwrap_or(0);
            self.change(first, |info| {
                info.live_records = u32::try_from(live.len()).unwrap_or(u32::MAX);
                info.live_bytes = live_bytes;
                info.dead_since = 0;
                info.largest = u64::try_from(largest).unwrap_or(u64::MAX);
                info.marks = marks(live);
            });
        }
    }

    fn change(&mut self, first: Place, change: impl FnOnce(&mut BlockInfo)) {
        let Some(info) = self.blocks.get_mut(&first) else { return };
        self.totals.subtract(info);
        change(info);
        self.totals.add(info);
        let (is_empty, is_sparse) = (info.is_surely_empty(), info.may_be_sparse());
        set_member(&mut self.empty, first, is_empty);
        set_member(&mut self.sparse, first, is_sparse && !is_empty);
    }

    fn no_longer_pending(&mut self, id: u64) {
        if let Some(sealed) = self.pending.remove(&id) {
            self.pending_bytes = self.pending_bytes.saturating_sub(sealed.weight);
        }
    }

    /// A commit has put these blocks into the engine of that number; those that are no longer in
    /// the map, by a trim or a reset meanwhile, do not count.
    pub(super) fn written(&mut self, sealed: &[Arc<Sealed>], number: u64) {
        for block in sealed {
            self.no_longer_pending(block.id);
            if let Some(info) = self.blocks.get_mut(&block.first)
                && info.id == block.id
            {
                info.home = Some(number);
                let bytes = info.bytes;
                self.generations.add(number, block.first, bytes);
            }
        }
    }

    /// A number for an engine about to be begun.
    pub(super) fn next_engine(&mut self) -> u64 {
        self.engines += 1;
        self.engines
    }

    pub(super) fn pinned_up_to(&self) -> Option<Revision> {
        self.pins.last_key_value().map(|(main, _)| *main)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.totals.bytes
    }

    pub(super) fn stats(&self) -> BlockStats {
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        BlockStats {
            blocks: count(self.blocks.len()),
            records: self.totals.records,
            live_records: self.totals.live_records,
            bytes: self.totals.bytes,
            live_bytes: self.totals.live_bytes,
            tail_records: count(self.tail.len()),
            tail_bytes: count(self.tail_bytes),
            pending_bytes: count(self.pending_bytes),
            pins: count(self.pins.values().sum()),
            engines: count(self.generations.count()),
            engines_begun: self.engines,
        }
    }
}

fn set_member(set: &mut BTreeSet<Place>, place: Place, member: bool) {
    if member {
        set.insert(place);
    } else {
        set.remove(&place);
    }
}

//! The block store against a naive model, under concurrency, with broken engines, and under load.

mod broken;
mod concurrent;
mod interleaved;
mod model;
mod soak;

use super::*;
use crate::env::{Clock, SystemClock};
use crate::storage::engine::EngineBatch;
use crate::storage::memory::MemoryEngine;
use crate::storage::record::{Block, Place, RecordKind, encode_block};
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn must_not_fail() -> Fatal {
    Arc::new(|fault: &Fault| panic!("{fault}"))
}

fn options() -> BlockOptions {
    BlockOptions::new(must_not_fail())
}

fn memory_store() -> BlockStore {
    BlockStore::new(Arc::new(MemoryEngine::new()), options()).unwrap()
}

/// A record whose every byte follows from its place, so that any reader can check it.
fn record(main: i64, sub: u32, value_bytes: usize) -> Arc<Record> {
    let seed = main.cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(u64::from(sub));
    let byte = seed.to_le_bytes()[3];
    Arc::new(Record {
        main,
        sub,
        kind: RecordKind::Put,
        create_revision: main - 1,
        version: main,
        lease: if byte % 3 == 0 { main } else { 0 },
        content_type: (byte % 5 == 0).then(|| Arc::from("text/plain")),
        key: Bytes::from(format!("key/{main}/{sub}")),
        value: Bytes::from(vec![byte; value_bytes]),
    })
}

/// Trims until there is nothing more to do.
fn trim_all(store: &BlockStore, upto: i64, keep: &dyn Fn(i64, u32, &Record) -> bool) -> TrimProgress {
    let mut total = TrimProgress::default();
    loop {
        let step = store.trim(upto, keep, 100).unwrap();
        total.examined += step.examined;
        total.removed += step.removed;
        if !step.more {
            return TrimProgress { pinned: step.pinned, ..total };
        }
        store.settle().unwrap();
    }
}

/// A memory engine that counts what is asked of it.
#[derive(Debug, Default)]
struct Counting {
    engine: MemoryEngine,
    gets: AtomicU64,
    commits: AtomicU64,
}

impl Engine for Counting {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.engine.get(key)
    }
    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.engine.commit(batch)
    }
    fn disk_bytes(&self) -> Result<u64, Fault> {
        self.engine.disk_bytes()
    }
}

/// Full at that many bytes, and copied as soon as one is sparse or there are more than three.
fn rotation(factory: impl Fn() -> Result<Arc<dyn Engine>, Fault> + Send + Sync + 'static, full: u64) -> Rotation {
    Rotation { full_bytes_min: full, full_share: 2, engines_max: 3, ..Rotation::new(Arc::new(factory)) }
}

#[test]
fn records_are_found_in_the_tail_in_flight_and_in_the_engine() {
    let engine = Arc::new(Counting::default());
    let store = BlockStore::new(Arc::clone(&engine) as Arc<dyn Engine>, options()).unwrap();
    for main in 1..=100 {
        store.append(vec![record(main, 0, 1000), record(main, 1, 0)]).unwrap();
        assert_eq!(store.get(main, 1).unwrap(), Some(record(main, 1, 0)));
    }
    store.settle().unwrap();
    let stats = store.stats();
    assert!(stats.blocks >= 6 && stats.tail_records > 0 && stats.pending_bytes == 0, "{stats:?}");
    assert_eq!(stats.records + stats.tail_records, 200);
    assert_eq!(engine.engine.entries().len(), usize::try_from(stats.blocks).unwrap());
    for main in 1..=100 {
        assert_eq!(store.get(main, 0).unwrap(), Some(record(main, 0, 1000)));
        assert_eq!(store.get(main, 1).unwrap(), Some(record(main, 1, 0)));
        assert_eq!(store.get(main, 2).unwrap(), None);
    }
    assert_eq!(store.get(0, 0).unwrap(), None);
    assert_eq!(store.get(101, 0).unwrap(), None);
    // Each block was fetched once, the cache served the rest.
    assert_eq!(engine.gets.load(Ordering::Relaxed), stats.blocks);
}

/// Crowded after ten reads; notes who has it let go.
#[derive(Debug, Default)]
struct Kept {
    engine: MemoryEngine,
    reads: AtomicU64,
    let_go_by: Mutex<Vec<Option<String>>>,
}

impl Engine for Kept {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.engine.get(key)
    }
    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        self.engine.commit(batch)
    }
    fn disk_bytes(&self) -> Result<u64, Fault> {
        self.engine.disk_bytes()
    }
    fn let_go(&self) -> Result<(), Fault> {
        self.reads.store(0, Ordering::SeqCst);
        self.let_go_by.lock().push(std::thread::current().name().map(str::to_owned));
        Ok(())
    }
    fn is_crowded(&self) -> bool {
        self.reads.load(Ordering::SeqCst) >= 10
    }
}

#[test]
fn what_was_read_is_let_go_of_by_the_writer_and_by_nobody_who_reads() {
    let engine = Arc::new(Kept::default());
    let store = BlockStore::new(Arc::clone(&engine) as Arc<dyn Engine>, options()).unwrap();
    // More blocks than the cache has room for: the reading goes on for as long as the writer takes to wake.
    let mains = 5000;
    for main in 1..=mains {
        store.append(vec![record(main, 0, 1000)]).unwrap();
    }
    store.settle().unwrap();
    assert!(store.stats().blocks > limits::BLOCK_CACHE_BLOCKS + 10);
    assert!(engine.let_go_by.lock().is_empty());
    let (clock, mut main) = (SystemClock::new(), 0);
    let deadline = clock.monotonic() + Duration::from_secs(10);
    while engine.let_go_by.lock().len() < 3 {
        assert!(clock.monotonic() < deadline, "it kept all");
        main = main % mains + 1;
        store.get(main, 0).unwrap();
    }
    assert!(engine.let_go_by.lock().iter().all(|thread| thread.as_deref() == Some("write-behind")));
}

#[test]
fn blocks_have_the_size_aimed_at_and_huge_records_stand_alone() {
    let engine = Arc::new(MemoryEngine::new());
    let store = BlockStore::new(Arc::clone(&engine) as Arc<dyn Engine>, options()).unwrap();
    for main in 1..=500 {
        store.append(vec![record(main, 0, 300), record(main, 1, if main % 50 == 0 { 100_000 } else { 20 })]).unwrap();
    }
    store.settle().unwrap();
    let sizes: Vec<usize> = engine.entries().values().map(Bytes::len).collect();
    assert_eq!(sizes.iter().filter(|size| **size > 100_000).count(), 10);
    for size in &sizes {
        assert!(*size < 16 << 10 || (100_000..100_200).contains(size), "{size}");
    }
    let full = sizes.iter().filter(|size| (12 << 10..16 << 10).contains(*size)).count();
    assert!(full + 22 >= sizes.len(), "few are smaller: {sizes:?}");
}

#[test]
fn only_rising_records_are_taken() {
    let (store, told) = broken::failing_store(Arc::new(MemoryEngine::new()));
    store.append(vec![record(5, 0, 1)]).unwrap();
    assert!(store.append(vec![record(6, 0, 1), record(6, 0, 1)]).is_err());
    assert!(told.recv().unwrap().to_string().contains("appended after"));
    assert!(store.get(5, 0).is_err(), "a store that failed answers nothing");
}

#[test]
fn a_walk_returns_whole_revisions_across_blocks_and_tail() {
    let store = memory_store();
    for main in 1..=200 {
        store.append((0..=u32::try_from(main % 7).unwrap()).map(|sub| record(main, sub, 200)).collect()).unwrap();
    }
    for from in [0, 1, 2, 57, 199, 200, 201] {
        for max in [0, 1, 3, 50, usize::MAX] {
            let records = store.walk(from, max).unwrap();
            assert_eq!(records.is_empty(), from > 200);
            let Some(last) = records.last() else { continue };
            assert_eq!(last.sub, u32::try_from(last.main % 7).unwrap(), "the last revision is whole");
            assert_eq!(records[0].place(), (from.max(1), 0));
            assert!(records.len() < max.saturating_add(7));
            assert!(records.iter().map(|record| record.place()).is_sorted());
            let expected: usize = (from.max(1)..=last.main).map(|main| usize::try_from(main % 7).unwrap() + 1).sum();
            assert_eq!(records.len(), expected);
        }
    }
    store.append((0..100).map(|sub| record(201, sub, 100_000)).collect()).unwrap();
    store.append(vec![record(202, 0, 1)]).unwrap();
    let records = store.walk(201, usize::MAX).unwrap();
    assert_eq!(records.len(), 100, "bounded in bytes too, but never inside a revision");
}

/// Walks of some keys find what a walk of all finds of them, and say how far they have looked.
#[test]
fn a_walk_of_some_keys_passes_the_others_and_says_how_far() {
    let store = memory_store();
    for main in 1..=2000 {
        store.append(vec![record(main, 0, 50), record(main, 1, 20)]).unwrap();
    }
    store.settle().unwrap();
    store.append(vec![record(2001, 0, 50), record(2001, 1, 20)]).unwrap();
    let all = store.walk(1, usize::MAX).unwrap();
    assert_eq!(all.len(), 4002);
    let of = |key: &[u8]| key[key.len() - 3].is_multiple_of(4);
    let expected: Vec<_> = all.iter().filter(|record| of(&record.key)).cloned().collect();
    assert!((1000..1400).contains(&expected.len()), "{}", expected.len());
    for max in [1, 7, 1000, usize::MAX] {
        let (mut found, mut next) = (Vec::new(), 1);
        loop {
            let walked = store.walk_wanted(next, max, &of).unwrap();
            assert!(walked.records.len() <= max.saturating_add(1));
            assert!(walked.records.iter().all(|record| Some(record.main) <= walked.upto.or(Some(2001))));
            found.extend(walked.records);
            let Some(upto) = walked.upto else { break };
            assert!(upto >= next, "it gets on");
            next = upto + 1;
        }
        assert_eq!(found, expected);
    }
    let none = store.walk_wanted(1, 1, &|_| false).unwrap();
    assert_eq!((none.records.len(), none.upto), (0, None), "all of it is within what one walk may pass");
}

#[test]
fn a_walk_passes_no_more_than_its_bound_and_whole_revisions() {
    let store = memory_store();
    let mains = i64::try_from(limits::WALK_PASSED_RECORDS_MAX).unwrap();
    for main in 1..=mains {
        store.append(vec![record(main, 0, 1), record(main, 1, 1)]).unwrap();
    }
    let first = store.walk_wanted(1, usize::MAX, &|_| false).unwrap();
    assert_eq!((first.records.len(), first.upto), (0, Some(mains / 2)));
    let rest = store.walk_wanted(mains / 2 + 1, usize::MAX, &|_| false).unwrap();
    assert_eq!((rest.records.len(), rest.upto), (0, None));
    let large = memory_store();
    for main in 1..=40 {
        large.append(vec![record(main, 0, 1 << 20)]).unwrap();
    }
    let walked = large.walk_wanted(1, usize::MAX, &|_| false).unwrap();
    assert_eq!(walked.upto, Some(16));
}

#[test]
fn a_trim_drops_dead_blocks_unread() {
    let engine = Arc::new(Counting::default());
    let store = BlockStore::new(Arc::clone(&engine) as Arc<dyn Engine>, options()).unwrap();
    for main in 1..=1000 {
        store.append(vec![record(main, 0, 100)]).unwrap();
    }
    store.settle().unwrap();
    let sealed = i64::try_from(store.stats().records).unwrap();
    (1..=sealed).for_each(|main| store.note_dead(main, 0));
    assert_eq!(store.stats().live_records, 0);
    let progress = trim_all(&store, 1000, &|_, _, _| panic!("nothing is to be read"));
    assert_eq!(progress.removed, usize::try_from(sealed).unwrap());
    assert_eq!(engine.gets.load(Ordering::Relaxed), 0);
    let stats = store.stats();
    assert_eq!((stats.blocks, stats.bytes, stats.live_bytes), (0, 0, 0));
    assert_eq!(store.get(1, 0).unwrap(), None);
    assert_eq!(store.walk(0, 10).unwrap().first().map(|record| record.main), Some(sealed + 1));
}

#[test]
fn wrong_words_about_the_dead_cost_no_record() {
    let store = memory_store();
    for main in 1..=1000 {
        store.append(vec![record(main, 0, 100)]).unwrap();
    }
    store.settle().unwrap();
    // As many words as there are records, but one of them twice over, or of none at all.
    (1..=1000).for_each(|_| store.note_dead(1, 0));
    (200..=1000).for_each(|main| store.note_dead(main, 7));
    let sealed = usize::try_from(store.stats().records).unwrap();
    assert_eq!(trim_all(&store, 1000, &|main, _, _| main != 1).removed, 0);
    assert!((1..=1000).all(|main| store.get(main, 0).unwrap().is_some()));
    assert_eq!(store.stats().live_records, u64::try_from(sealed - 1).unwrap());
    assert!(trim_all(&store, 1000, &|_, _, _| false).examined == 0, "and what was examined is right again");
}

#[test]
fn a_trim_merges_what_survives_into_full_blocks() {
    let store = memory_store();
    for main in 1..=5000 {
        store.append(vec![record(main, 0, 100)]).unwrap();
    }
    store.settle().unwrap();
    let before = store.stats();
    let keep = |main: i64, _: u32, _: &Record| main % 10 == 0;
    trim_all(&store, 5000, &keep);
    store.settle().unwrap();
    let after = store.stats();
    assert!(after.blocks <= before.blocks / 5, "{before:?} {after:?}");
    assert_eq!(after.records, after.live_records);
    for main in 1..=5000 {
        let expected = (main % 10 == 0).then(|| record(main, 0, 100));
        if main <= i64::try_from(before.records).unwrap() {
            assert_eq!(store.get(main, 0).unwrap(), expected);
        }
    }
    let again = trim_all(&store, 5000, &keep);
    assert_eq!(again.removed, 0, "and there is nothing left to do");
    assert!(again.examined < 300, "blocks are examined once, not at every trim: {again:?}");
}

#[test]
fn a_trim_goes_by_bytes_and_not_by_the_number_of_records() {
    let store = memory_store();
    // In every block one large record that dies and many small ones that live.
    for main in 1..=3000 {
        store.append(vec![record(main, 0, if main % 20 == 0 { 9000 } else { 10 })]).unwrap();
    }
    store.settle().unwrap();
    let sealed = i64::try_from(store.stats().records).unwrap();
    assert_eq!(trim_all(&store, 3000, &|_, _, _| true).removed, 0, "seen once, while all were needed");
    (1..=sealed).filter(|main| main % 20 == 0).for_each(|main| store.note_dead(main, 0));
    trim_all(&store, 3000, &|main, _, _| main % 20 != 0);
    let stats = store.stats();
    assert!(stats.bytes < 300_000, "{stats:?}");
}

#[test]
fn a_trim_respects_its_budget_and_its_bound() {
    let store = memory_store();
    for main in 1..=2000 {
        store.append(vec![record(main, 0, 100)]).unwrap();
    }
    store.settle().unwrap();
    let seen = RwLock::new(BTreeSet::new());
    let nothing = |main: i64, _: u32, _: &Record| {
        seen.write().insert(main);
        false
    };
    let progress = store.trim(1000, &nothing, 150).unwrap();
    assert!(progress.more && progress.examined < 450, "{progress:?}");
    trim_all(&store, 1000, &nothing);
    assert!(seen.read().iter().all(|main| *main <= 1000));
    assert!((1001..=2000).all(|main| store.get(main, 0).unwrap().is_some()));
    let left = (1..=1000).filter(|main| store.get(*main, 0).unwrap().is_some()).count();
    assert!(left < 130, "only the block across the bound is left: {left}");
}

#[test]
fn a_pin_holds_trims_back_until_it_is_dropped() {
    let store = memory_store();
    for main in 1..=2000 {
        store.append(vec![record(main, 0, 100)]).unwrap();
    }
    let pins = [store.pin(700), store.pin(300), store.pin(700)];
    assert_eq!((store.stats().pins, pins[0].main()), (3, 700));
    let dead = i64::try_from(store.stats().records).unwrap();
    (1..=dead).for_each(|main| store.note_dead(main, 0));
    let progress = trim_all(&store, dead, &|_, _, _| false);
    assert!(progress.removed > 1000 && progress.pinned, "{progress:?}");
    assert!((1..=700).all(|main| store.get(main, 0).unwrap().is_some()));
    let [first, second, third] = pins;
    drop(first);
    assert_eq!(trim_all(&store, dead, &|_, _, _| false).removed, 0);
    drop(third);
    trim_all(&store, dead, &|_, _, _| false);
    assert!((1..=300).all(|main| store.get(main, 0).unwrap().is_some()));
    assert!(store.get(600, 0).unwrap().is_none());
    drop(second);
    assert!(!trim_all(&store, dead, &|_, _, _| false).pinned);
    assert_eq!(store.stats().blocks, 0);
}

#[test]
fn a_reset_begins_anew() {
    let store = memory_store();
    for main in 1..=500 {
        store.append(vec![record(main, 0, 100)]).unwrap();
    }
    let engine = Arc::new(MemoryEngine::new());
    store.reset(Arc::clone(&engine) as Arc<dyn Engine>);
    assert_eq!(store.stats(), BlockStats { engines: 1, engines_begun: 2, ..BlockStats::default() });
    assert_eq!(store.get(1, 0).unwrap(), None);
    for main in 1..=500 {
        store.append(vec![record(main, 0, 50)]).unwrap();
    }
    store.settle().unwrap();
    assert!((1..=500).all(|main| store.get(main, 0).unwrap() == Some(record(main, 0, 50))));
    assert_eq!(engine.entries().len(), usize::try_from(store.stats().blocks).unwrap());
}

#[test]
fn a_closed_store_refuses_and_lets_go_of_its_engine() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let store = BlockStore::new(Arc::clone(&engine), options()).unwrap();
    store.append(vec![record(1, 0, 100)]).unwrap();
    store.close();
    store.close();
    assert!(store.append(vec![record(2, 0, 100)]).is_err());
    assert!(store.get(1, 0).is_err());
    assert!(store.settle().is_err());
    drop(store);
    assert_eq!(Arc::strong_count(&engine), 1);
}

type Made = Arc<RwLock<Vec<std::sync::Weak<dyn Engine>>>>;

/// Makes engines and remembers them.
fn remembered() -> (Made, impl Fn() -> Result<Arc<dyn Engine>, Fault> + Clone) {
    let engines = Made::default();
    let made = Arc::clone(&engines);
    let factory = move || {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        made.write().push(Arc::downgrade(&engine));
        Ok(engine)
    };
    (engines, factory)
}

fn living(engines: &Made) -> Vec<Arc<dyn Engine>> {
    engines.read().iter().filter_map(std::sync::Weak::upgrade).collect()
}

#[test]
fn emptied_engines_go_and_sparse_ones_are_copied() {
    let (engines, factory) = remembered();
    let first = factory().unwrap();
    let rotation = Rotation { full_bytes_min: 40_000, ..Rotation::new(Arc::new(factory)) };
    let options = BlockOptions { rotation: Some(rotation), ..options() };
    let store = BlockStore::new(first, options).unwrap();
    // The newest stay a while, so that blocks are written before most of their records die.
    let keep = |main: i64, _: u32, _: &Record| main % 40 == 0;
    let mut sealed = 0;
    for main in 1..=20_000 {
        store.append(vec![record(main, 0, 100)]).unwrap();
        if main % 500 == 0 {
            store.settle().unwrap();
            sealed = main - i64::try_from(store.stats().tail_records).unwrap();
            trim_all(&store, main, &keep);
            store.settle().unwrap();
            let stats = store.stats();
            let disk: u64 = living(&engines).iter().map(|engine| engine.disk_bytes().unwrap()).sum();
            // Older ones are a third full, the newest has the size of a full one and what one commit adds.
            assert!(disk <= 80_000 + 3 * stats.bytes, "{disk} bytes of files: {stats:?}");
        }
    }
    let stats = store.stats();
    assert!(stats.engines <= 16 && stats.engines_begun > 20, "{stats:?}");
    assert_eq!(u64::try_from(engines.read().len()).unwrap(), stats.engines_begun);
    for main in (1..=sealed).filter(|main| main % 40 == 0) {
        assert_eq!(store.get(main, 0).unwrap(), Some(record(main, 0, 100)));
    }
    // All goes but the engine that is written to.
    (1..=sealed).filter(|main| main % 40 == 0).for_each(|main| store.note_dead(main, 0));
    trim_all(&store, 20_000, &|_, _, _| false);
    store.settle().unwrap();
    assert_eq!(store.stats().engines, 1);
    while living(&engines).len() > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn history_that_stays_lies_in_few_engines() {
    let (engines, factory) = remembered();
    let first = factory().unwrap();
    let options = BlockOptions { rotation: Some(rotation(factory, 40_000)), ..options() };
    let store = BlockStore::new(first, options).unwrap();
    for main in 1..=3000 {
        store.append(vec![record(main, 0, 500)]).unwrap();
        // Not one group, however late the writer wakes: it begins an engine at most once for each.
        if main % 100 == 0 {
            store.settle().unwrap();
        }
    }
    assert!(store.stats().engines <= 3 && engines.read().len() > 4, "{:?}", store.stats());
    assert!((1..=3000).all(|main| store.get(main, 0).unwrap() == Some(record(main, 0, 500))));
}

/// Moves all blocks of a store into another as an image does, and answers what was in them.
fn copy(from: &BlockStore, to: &BlockStore) -> Vec<Arc<Record>> {
    let mut copied = Vec::new();
    let mut next = (0, 0);
    while let Some(WalkedBlock { first, last, content }) = from.block_at(next).unwrap() {
        let bytes = match content {
            WalkedContent::Encoded(block) => block.bytes().clone(),
            WalkedContent::Records(records) => encode_block(&records).unwrap(),
        };
        let records = Block::open(bytes.clone()).unwrap().records_from((0, 0)).unwrap();
        assert_eq!((records[0].place(), records.last().unwrap().place()), (first, last));
        let mut encoded = EncodedBlock::new(bytes);
        records.iter().for_each(|record| encoded.note(record));
        assert_eq!(encoded.span(), Some((first, last)));
        to.append_encoded(vec![encoded]).unwrap();
        copied.extend(records);
        next = after(last);
    }
    copied
}

#[test]
fn encoded_blocks_are_read_walked_counted_and_trimmed_like_appended_ones() {
    let (of, copy_of) = (memory_store(), memory_store());
    // Some blocks in the engine, some perhaps on their way, and a tail.
    for main in 1..=300 {
        of.append(vec![record(main, 0, 200), record(main, 7, 10)]).unwrap();
        if main == 150 {
            of.settle().unwrap();
        }
    }
    let all: Vec<Arc<Record>> = (1..=300).flat_map(|main| [record(main, 0, 200), record(main, 7, 10)]).collect();
    assert_eq!(copy(&of, &copy_of), all);
    for main in 1..=300 {
        assert_eq!(copy_of.get(main, 7).unwrap(), Some(record(main, 7, 10)), "on its way or in the engine");
    }
    copy_of.settle().unwrap();
    assert_eq!(copy_of.walk(100, 3).unwrap(), all[198..202]);
    let stats = copy_of.stats();
    assert_eq!((stats.records, stats.tail_records, stats.live_bytes), (600, 0, stats.bytes));
    copy_of.append(vec![record(301, 0, 5)]).unwrap();
    assert!(trim_all(&copy_of, 200, &|main, _, _| main % 8 == 0).removed > 0);
    assert_eq!(copy_of.get(101, 0).unwrap(), None);
    assert_eq!(copy_of.get(104, 7).unwrap(), Some(record(104, 7, 10)));
    assert_eq!(copy_of.get(301, 0).unwrap(), Some(record(301, 0, 5)));
}

#[test]
fn encoded_blocks_out_of_order_end_the_store() {
    let faults = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&faults);
    let fatal: Fatal = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let store = BlockStore::new(Arc::new(MemoryEngine::new()), BlockOptions::new(fatal)).unwrap();
    store.append(vec![record(5, 0, 9)]).unwrap();
    let mut late = EncodedBlock::new(encode_block(&[record(5, 0, 9)]).unwrap());
    late.note(&record(5, 0, 9));
    assert!(store.append_encoded(vec![late]).is_err());
    assert_eq!(faults.load(Ordering::Relaxed), 1);
    assert!(store.get(5, 0).is_err());
}

/// An engine with a block for each of so many records, which are of 1000 bytes, and the blocks.
fn filled(records: i64) -> (Arc<Counting>, Vec<EncodedBlock>) {
    let engine = Arc::new(Counting::default());
    let block = |main: i64| {
        let bytes = encode_block(&[record(main, 0, 1000)]).unwrap();
        let number = main.unsigned_abs();
        engine.engine.commit(vec![(engine_key(number), bytes.clone())]).unwrap();
        let mut encoded = EncodedBlock::new(bytes).stored(number);
        encoded.note(&record(main, 0, 1000));
        encoded
    };
    let blocks = (1..=records).map(block).collect();
    (engine, blocks)
}

/// The store lets go of the engine, and with it of its file.
fn goes(engine: Arc<Counting>) {
    let left = Arc::downgrade(&engine);
    drop(engine);
    let clock = SystemClock::new();
    let deadline = clock.monotonic() + Duration::from_secs(10);
    while left.strong_count() > 0 {
        assert!(clock.monotonic() < deadline, "an engine of which nothing is needed is kept");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn adopted_blocks_are_read_where_they_are_and_those_that_follow_are_written() {
    let (adopted, blocks) = filled(100);
    let engine = Arc::new(Counting::default());
    let store = BlockStore::new(Arc::clone(&engine) as Arc<dyn Engine>, options()).unwrap();
    store.adopt(Arc::clone(&adopted) as Arc<dyn Engine>).unwrap();
    store.append_encoded(blocks).unwrap();
    for main in 101..=200 {
        store.append(vec![record(main, 0, 1000)]).unwrap();
    }
    store.settle().unwrap();
    assert_eq!((adopted.commits.load(Ordering::Relaxed), store.stats().pending_bytes), (0, 0));
    assert_eq!(engine.engine.entries().len() as u64 + 100, store.stats().blocks, "only what followed is written");
    for main in 1..=200 {
        assert_eq!(store.get(main, 0).unwrap(), Some(record(main, 0, 1000)));
    }
    assert_eq!(store.walk(99, 4).unwrap(), [99, 100, 101, 102].map(|main| record(main, 0, 1000)));
    assert_eq!(adopted.gets.load(Ordering::Relaxed), 100);
    assert_eq!((store.stats().engines, store.stats().records + store.stats().tail_records), (2, 200));
    // Once nothing of it is needed it goes, and with it the file.
    assert!(trim_all(&store, 150, &|main, _, _| main > 100).removed >= 100);
    goes(adopted);
    assert_eq!((store.stats().engines, store.get(100, 0).unwrap()), (1, None));
    assert_eq!(store.get(101, 0).unwrap(), Some(record(101, 0, 1000)));
}

#[test]
fn what_is_left_of_an_adopted_engine_is_copied_once_it_is_sparse() {
    let (adopted, blocks) = filled(200);
    let rotation = Some(rotation(|| Ok(Arc::new(MemoryEngine::new())), 20_000));
    let store = BlockStore::new(Arc::new(MemoryEngine::new()), BlockOptions { rotation, ..options() }).unwrap();
    store.adopt(Arc::clone(&adopted) as Arc<dyn Engine>).unwrap();
    for block in blocks {
        store.append_encoded(vec![block]).unwrap();
        assert_eq!(store.stats().engines, 2, "it is dense while it is taken in");
    }
    store.settle().unwrap();
    assert_eq!(store.stats().engines, 2);
    assert!(trim_all(&store, 200, &|main, _, _| main % 5 == 0).removed > 0);
    store.settle().unwrap();
    goes(adopted);
    for main in 1..=200 {
        assert_eq!(store.get(main, 0).unwrap(), (main % 5 == 0).then(|| record(main, 0, 1000)));
    }
}

#[test]
fn only_a_new_store_adopts_and_only_one() {
    let (adopted, _) = filled(1);
    let store = memory_store();
    store.append(vec![record(1, 0, 100_000)]).unwrap();
    assert!(store.adopt(Arc::clone(&adopted) as Arc<dyn Engine>).is_err());
    let store = memory_store();
    store.adopt(Arc::clone(&adopted) as Arc<dyn Engine>).unwrap();
    assert!(store.adopt(adopted).is_err());
}

//! Changes made at the very moment between two steps of a reader or of the writer.

use super::*;
use std::collections::VecDeque;

type Hook = Box<dyn FnOnce() + Send>;

/// What to do just before the next calls of an engine, one per call.
#[derive(Default)]
struct Hooks {
    before_get: Mutex<VecDeque<Hook>>,
    before_commit: Mutex<VecDeque<Hook>>,
}

fn run_next(hooks: &Mutex<VecDeque<Hook>>) {
    let hook = hooks.lock().pop_front();
    if let Some(hook) = hook {
        hook();
    }
}

struct Hooked {
    engine: MemoryEngine,
    hooks: Arc<Hooks>,
}

impl Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl Engine for Hooked {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        run_next(&self.hooks.before_get);
        self.engine.get(key)
    }
    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        run_next(&self.hooks.before_commit);
        self.engine.commit(batch)
    }
    fn disk_bytes(&self) -> Result<u64, Fault> {
        self.engine.disk_bytes()
    }
}

fn hooked_store(full: Option<u64>) -> (Arc<BlockStore>, Arc<Hooks>) {
    let hooks = Arc::new(Hooks::default());
    let of_factory = Arc::clone(&hooks);
    let make = move || {
        let engine = Hooked { engine: MemoryEngine::new(), hooks: Arc::clone(&of_factory) };
        Ok(Arc::new(engine) as Arc<dyn Engine>)
    };
    let first = make().unwrap();
    let rotation = full.map(|full| rotation(make, full));
    (Arc::new(BlockStore::new(first, BlockOptions { rotation, ..options() }).unwrap()), hooks)
}

fn fill(store: &BlockStore, mains: i64) {
    for main in 1..=mains {
        store.append(vec![record(main, 0, 1000)]).unwrap();
    }
}

fn is_kept(main: i64, _: u32, _: &Record) -> bool {
    main % 9 == 1
}

/// Merges the first blocks into one that begins where the first began.
fn trim(store: &BlockStore) {
    (1..=60).filter(|main| main % 9 != 1).for_each(|main| store.note_dead(main, 0));
    let progress = store.trim(60, &is_kept, usize::MAX).unwrap();
    assert!(progress.removed > 40, "{progress:?}");
}

#[test]
fn a_block_replaced_between_look_up_and_read_is_still_there() {
    for main in [1, 10, 19, 46] {
        let (store, hooks) = hooked_store(None);
        fill(&store, 100);
        store.settle().unwrap();
        let of_hook = Arc::clone(&store);
        hooks.before_get.lock().push_back(Box::new(move || {
            trim(&of_hook);
            of_hook.settle().unwrap();
        }));
        assert_eq!(store.get(main, 0).unwrap(), Some(record(main, 0, 1000)));
        assert!(hooks.before_get.lock().is_empty(), "the block was replaced meanwhile");
    }
}

#[test]
fn a_walk_over_blocks_replaced_meanwhile_misses_nothing() {
    let (store, hooks) = hooked_store(None);
    fill(&store, 100);
    store.settle().unwrap();
    let of_hook = Arc::clone(&store);
    hooks.before_get.lock().push_back(Box::new(|| ()));
    hooks.before_get.lock().push_back(Box::new(move || {
        trim(&of_hook);
        of_hook.settle().unwrap();
    }));
    let walked: BTreeSet<i64> = store.walk(1, usize::MAX).unwrap().iter().map(|record| record.main).collect();
    assert!(hooks.before_get.lock().is_empty());
    assert!((1..=60).filter(|main| main % 9 == 1).chain(61..=100).all(|main| walked.contains(&main)), "{walked:?}");
}

#[test]
fn a_reset_between_look_up_and_read_is_not_a_lost_block() {
    let (store, hooks) = hooked_store(None);
    fill(&store, 100);
    store.settle().unwrap();
    let of_hook = Arc::clone(&store);
    hooks.before_get.lock().push_back(Box::new(move || of_hook.reset(Arc::new(MemoryEngine::new()))));
    assert_eq!(store.get(1, 0).unwrap(), Some(record(1, 0, 1000)));
    assert_eq!(store.get(1, 0).unwrap(), None);
}

#[test]
fn a_block_replaced_while_it_is_copied_to_a_new_engine_stays_readable() {
    let (store, hooks) = hooked_store(Some(50_000));
    let (of_copy, of_write) = (Arc::clone(&store), Arc::clone(&store));
    let of_copy_hooks = Arc::clone(&hooks);
    // Nobody but the copying reads: the first read is of the first block to be copied.
    hooks.before_get.lock().push_back(Box::new(move || {
        trim(&of_copy);
        let mut before_commit = of_copy_hooks.before_commit.lock();
        // The next commit is the copy's, the one after that the merged block's.
        before_commit.push_back(Box::new(|| ()));
        before_commit.push_back(Box::new(move || {
            for main in (1..=60).filter(|main| main % 9 == 1) {
                assert_eq!(of_write.get(main, 0).unwrap(), Some(record(main, 0, 1000)));
            }
        }));
    }));
    for main in 1..=500 {
        store.append(vec![record(main, 0, 1000)]).unwrap();
        if main % 50 == 0 {
            // One commit takes more than an engine here.
            store.settle().unwrap();
        }
    }
    assert_eq!((hooks.before_get.lock().len(), hooks.before_commit.lock().len()), (0, 0), "{:?}", store.stats());
    assert!(store.stats().engines_begun > store.stats().engines);
    for main in (1..=60).filter(|main| main % 9 == 1).chain(61..=500) {
        assert_eq!(store.get(main, 0).unwrap(), Some(record(main, 0, 1000)));
    }
}

#[test]
fn a_block_replaced_while_it_is_written_stays_readable() {
    let (store, hooks) = hooked_store(None);
    let (filled, wait) = std::sync::mpsc::sync_channel(1);
    let (of_first, of_second) = (Arc::clone(&store), Arc::clone(&store));
    hooks.before_commit.lock().push_back(Box::new(move || {
        wait.recv().unwrap();
        trim(&of_first);
    }));
    hooks.before_commit.lock().push_back(Box::new(move || {
        for main in (1..=60).filter(|main| main % 9 == 1).chain(61..=100) {
            assert_eq!(of_second.get(main, 0).unwrap(), Some(record(main, 0, 1000)));
        }
    }));
    fill(&store, 100);
    filled.send(()).unwrap();
    store.settle().unwrap();
    assert!(hooks.before_commit.lock().is_empty());
    for main in (1..=60).filter(|main| main % 9 == 1).chain(61..=100) {
        assert_eq!(store.get(main, 0).unwrap(), Some(record(main, 0, 1000)));
    }
}

#[test]
fn a_reset_while_blocks_are_copied_ends_it() {
    let (store, hooks) = hooked_store(Some(50_000));
    let of_hook = Arc::clone(&store);
    let fresh = Arc::new(MemoryEngine::new());
    let of_reset: Arc<dyn Engine> = Arc::clone(&fresh) as Arc<dyn Engine>;
    hooks.before_get.lock().push_back(Box::new(move || of_hook.reset(of_reset)));
    // At most the first commits are of the old epoch.
    let mut main = 0;
    while !hooks.before_get.lock().is_empty() {
        main += 1;
        store.append(vec![record(main, 0, 1000)]).unwrap();
    }
    store.settle().unwrap();
    let begun = main + 1;
    for main in begun..begun + 40 {
        store.append(vec![record(main, 0, 1000)]).unwrap();
    }
    store.settle().unwrap();
    assert!((begun..begun + 40).all(|main| store.get(main, 0).unwrap() == Some(record(main, 0, 1000))));
    let stats = store.stats();
    assert_eq!((fresh.entries().len(), stats.engines), (usize::try_from(stats.blocks).unwrap(), 1), "{stats:?}");
}

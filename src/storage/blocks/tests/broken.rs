//! Engines that fail, lose or damage blocks, or stand still.

use super::*;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// A store whose faults are sent on instead of ending the process.
pub(super) fn failing_store(engine: Arc<dyn Engine>) -> (BlockStore, Receiver<Fault>) {
    let (tell, told) = sync_channel(99);
    let fatal: Fatal = Arc::new(move |fault: &Fault| tell.send(fault.clone()).unwrap());
    let options = BlockOptions { pending_bytes_max: 100_000, ..BlockOptions::new(fatal) };
    (BlockStore::new(engine, options).unwrap(), told)
}

#[derive(Debug, Clone, Copy)]
enum Break {
    Refuse,
    Panic,
}

/// Commits so many times, then breaks.
#[derive(Debug)]
struct Breaking {
    engine: MemoryEngine,
    commits_left: AtomicU64,
    how: Break,
}

impl Engine for Breaking {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.engine.get(key)
    }
    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        let left = self.commits_left.load(Ordering::Relaxed);
        if left == 0 {
            match self.how {
                Break::Refuse => return Err(Fault::io("commit", &std::io::Error::other("EIO"))),
                Break::Panic => panic!("a bug in the engine"),
            }
        }
        self.commits_left.store(left - 1, Ordering::Relaxed);
        self.engine.commit(batch)
    }
    fn disk_bytes(&self) -> Result<u64, Fault> {
        self.engine.disk_bytes()
    }
}

#[test]
fn a_failed_commit_ends_the_store_and_wakes_who_waits_for_it() {
    for how in [Break::Refuse, Break::Panic] {
        let engine = Breaking { engine: MemoryEngine::new(), commits_left: AtomicU64::new(3), how };
        let (store, told) = failing_store(Arc::new(engine));
        // Far more than may be pending: the last appends can only return because the store failed.
        let refused = (1..=5000).find_map(|main| store.append(vec![record(main, 0, 1000)]).err()).unwrap();
        let fault = told.recv().unwrap();
        assert_eq!(refused.to_string(), fault.to_string());
        assert!(store.settle().is_err() && store.get(1, 0).is_err() && store.walk(1, 1).is_err());
        assert!(store.trim(9, &|_, _, _| true, 9).is_err());
        store.close();
        assert!(told.try_recv().is_err(), "told once");
    }
}

fn stored(main_max: i64) -> (Arc<MemoryEngine>, BlockStore, Receiver<Fault>) {
    let engine = Arc::new(MemoryEngine::new());
    let (store, told) = failing_store(Arc::clone(&engine) as Arc<dyn Engine>);
    for main in 1..=main_max {
        store.append(vec![record(main, 0, 1000)]).unwrap();
    }
    store.settle().unwrap();
    (engine, store, told)
}

#[test]
fn a_lost_block_is_a_fault_and_not_a_missing_record() {
    let (engine, store, told) = stored(100);
    engine.lose(&engine_key(1));
    assert!(store.get(1, 0).unwrap_err().to_string().contains("missing"));
    told.recv().unwrap();
}

#[test]
fn a_damaged_or_misplaced_block_is_a_fault() {
    let (engine, store, told) = stored(100);
    let key = engine_key(1);
    let mut damaged = engine.get(&key).unwrap().unwrap().to_vec();
    damaged[5000] ^= 4;
    engine.commit(vec![(key, damaged.into())]).unwrap();
    assert!(store.walk(1, 100).unwrap_err().to_string().contains("checksum"));
    told.recv().unwrap();

    let (engine, store, told) = stored(100);
    engine.commit(vec![(engine_key(1), engine.get(&engine_key(2)).unwrap().unwrap())]).unwrap();
    assert!(store.trim(100, &|_, _, _| false, 1000).unwrap_err().to_string().contains("another block"));
    told.recv().unwrap();
}

/// Every commit waits for a token.
#[derive(Debug)]
struct Gated {
    engine: MemoryEngine,
    tokens: Mutex<Receiver<()>>,
}

impl Engine for Gated {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.engine.get(key)
    }
    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        // No sender is left: the gate stands open.
        self.tokens.lock().recv().ok();
        self.engine.commit(batch)
    }
    fn disk_bytes(&self) -> Result<u64, Fault> {
        self.engine.disk_bytes()
    }
}

fn gated() -> (BlockStore, SyncSender<()>) {
    let (open, tokens) = sync_channel(1000);
    let engine = Gated { engine: MemoryEngine::new(), tokens: Mutex::new(tokens) };
    let options = BlockOptions { pending_bytes_max: 200_000, ..options() };
    (BlockStore::new(Arc::new(engine), options).unwrap(), open)
}

#[test]
fn appends_wait_for_a_slow_engine_and_memory_stays_bounded() {
    let (store, open) = gated();
    let worst = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let appends = scope.spawn(|| {
            for main in 1..=3000 {
                store.append(vec![record(main, 0, 1000)]).unwrap();
                worst.fetch_max(store.stats().pending_bytes, Ordering::Relaxed);
            }
        });
        // 3 MB in commits of at most about 270 KB need at least these tokens.
        for _ in 0..9 {
            open.send(()).unwrap();
        }
        drop(open);
        appends.join().unwrap();
    });
    store.settle().unwrap();
    let worst = worst.load(Ordering::Relaxed);
    assert!((100_000..220_000).contains(&worst), "{worst}");
    assert!((1..=3000).all(|main| store.get(main, 0).unwrap() == Some(record(main, 0, 1000))));
}

#[test]
fn a_standing_engine_holds_up_neither_reads_nor_trims_of_what_is_pending() {
    let (store, open) = gated();
    for main in 1..=150 {
        store.append(vec![record(main, 0, 1000)]).unwrap();
    }
    assert_eq!(store.get(1, 0).unwrap(), Some(record(1, 0, 1000)));
    assert_eq!(store.walk(1, usize::MAX).unwrap().len(), 150);
    let progress = store.trim(100, &|main, _, _| main % 9 == 0, usize::MAX).unwrap();
    assert!(progress.removed > 70, "{progress:?}");
    assert_eq!(store.get(9, 0).unwrap(), Some(record(9, 0, 1000)));
    assert_eq!(store.get(10, 0).unwrap(), None);
    drop(open);
    store.settle().unwrap();
    assert_eq!(store.get(9, 0).unwrap(), Some(record(9, 0, 1000)));
    assert_eq!(store.get(10, 0).unwrap(), None);
}

#[test]
fn a_full_queue_postpones_a_trim() {
    let (store, open) = gated();
    for main in 1..=250 {
        if store.stats().pending_bytes < 200_000 {
            store.append(vec![record(main, 0, 1000)]).unwrap();
        }
    }
    let progress = store.trim(100, &|_, _, _| false, usize::MAX).unwrap();
    assert_eq!(progress, TrimProgress { more: true, ..TrimProgress::default() });
    drop(open);
}

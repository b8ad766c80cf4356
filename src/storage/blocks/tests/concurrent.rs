//! Readers on other threads while one thread appends and trims and engines are replaced.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicI64};

const MAINS: i64 = 12_000;

/// Every third revision is needed for ever.
fn is_needed(main: i64) -> bool {
    main % 3 == 0
}

fn value_bytes(main: i64) -> usize {
    usize::try_from(main * 37 % 400).unwrap()
}

struct World {
    store: BlockStore,
    /// Appended so far, and no longer needed up to here.
    newest: AtomicI64,
    compacted: AtomicI64,
    done: AtomicBool,
}

impl World {
    fn check(&self, place: Place, found: Option<&Arc<Record>>) {
        let (main, sub) = place;
        match found {
            Some(found) => assert_eq!(**found, *record(main, sub, value_bytes(main))),
            // Read after the look: what was not compacted even now must have been there.
            None => {
                assert!(!is_needed(main) && main <= self.compacted.load(Ordering::SeqCst), "{place:?} was not found")
            }
        }
    }

    fn write(&self) {
        for main in 1..=MAINS {
            self.store.append((0..2).map(|sub| record(main, sub, value_bytes(main))).collect()).unwrap();
            self.newest.store(main, Ordering::SeqCst);
            if main % 50 == 0 {
                let from = self.compacted.load(Ordering::SeqCst);
                let upto = main - 1000;
                self.compacted.store(upto.max(from), Ordering::SeqCst);
                for dead in (from + 1..=upto).filter(|main| !is_needed(*main) && main % 2 == 0) {
                    (0..2).for_each(|sub| self.store.note_dead(dead, sub));
                }
                self.store.trim(upto, &|main, _, _| is_needed(main), 300).unwrap();
            }
            if main % 1000 == 900 {
                // So that blocks reach the engine before they are trimmed, however slow its thread.
                self.store.settle().unwrap();
            }
        }
    }

    fn read_points(&self, mut seed: u64) {
        while !self.done.load(Ordering::SeqCst) {
            let newest = self.newest.load(Ordering::SeqCst);
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let main = i64::try_from((seed >> 33) % newest.max(1).cast_unsigned()).unwrap() + 1;
            let place = (main, u32::from(seed & 1 == 1));
            if main <= newest {
                let found = self.store.get(place.0, place.1).unwrap();
                self.check(place, found.as_ref());
            }
        }
    }

    fn read_runs(&self) {
        let mut next = 1;
        let mut rounds = 0;
        while !self.done.load(Ordering::SeqCst) || rounds == 0 {
            let newest = self.newest.load(Ordering::SeqCst);
            let run = self.store.walk(next, 100).unwrap();
            for record in &run {
                self.check(record.place(), Some(record));
            }
            let last = run.last().map_or(newest, |record| record.main);
            assert!(run.last().is_none_or(|record| record.sub == 1), "the last revision is whole");
            let seen: BTreeSet<Place> = run.iter().map(|record| record.place()).collect();
            for place in (next..=last.min(newest)).flat_map(|main| [(main, 0), (main, 1)]) {
                if !seen.contains(&place) {
                    self.check(place, None);
                }
            }
            next = if run.is_empty() { 1 } else { last + 1 };
            rounds += i32::from(run.is_empty());
        }
    }
}

#[test]
fn readers_never_see_a_wrong_or_missing_record() {
    let factory = || Ok(Arc::new(MemoryEngine::new()) as Arc<dyn Engine>);
    let rotation = Some(rotation(factory, 100_000));
    let store = BlockStore::new(factory().unwrap(), BlockOptions { rotation, ..options() }).unwrap();
    let world = World { store, newest: AtomicI64::new(0), compacted: AtomicI64::new(0), done: AtomicBool::new(false) };
    std::thread::scope(|scope| {
        let world = &world;
        let readers = [
            scope.spawn(|| world.read_points(1)),
            scope.spawn(|| world.read_points(2)),
            scope.spawn(|| world.read_runs()),
        ];
        let writer = scope.spawn(|| world.write());
        let wrote = writer.join();
        world.done.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
        wrote.unwrap();
    });
    world.store.settle().unwrap();
    let stats = world.store.stats();
    assert!(stats.engines_begun > stats.engines, "engines went meanwhile: {stats:?}");
    for main in (1..=MAINS).filter(|main| is_needed(*main)) {
        world.check((main, 1), world.store.get(main, 1).unwrap().as_ref());
    }
}

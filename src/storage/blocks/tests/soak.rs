//! A flood of batches of all sizes into sled, with overwrites, trims and reads: nothing may stall.

use super::*;
use crate::env::{Clock, SystemClock};
use crate::storage::sled::SledFactory;
use crate::storage::watched::Watched;
use std::collections::VecDeque;
use std::time::Duration;

const STALL_MAX: Duration = Duration::from_secs(1);
const SIZES: [u32; 10] = [1, 2, 3, 8, 16, 32, 64, 128, 256, 512];

struct Flood {
    store: BlockStore,
    clock: Arc<SystemClock>,
    main: i64,
    /// Revisions not yet dead, and how many records each has.
    recent: VecDeque<(i64, u32)>,
    slowest: (Duration, String),
    slowest_commit: Arc<Mutex<Duration>>,
    _dir: tempfile::TempDir,
}

impl Flood {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let factory = SledFactory::new(dir.path().join("state")).unwrap();
        let make = move || Ok(Arc::new(Watched::new(factory.make()?, must_not_fail())?) as Arc<dyn Engine>);
        let first = make().unwrap();
        let clock = Arc::new(SystemClock::new());
        let slowest_commit = Arc::new(Mutex::new(Duration::ZERO));
        let (timer, slowest) = (Arc::clone(&clock), Arc::clone(&slowest_commit));
        let around_commit: Probe = Arc::new(move |commit| {
            let begun = timer.monotonic();
            commit();
            let took = timer.monotonic() - begun;
            let mut slowest = slowest.lock();
            *slowest = took.max(*slowest);
        });
        let rotation = Some(Rotation::new(Arc::new(make)));
        let store = BlockStore::new(first, BlockOptions { rotation, around_commit, ..options() }).unwrap();
        Self { store, clock, main: 0, recent: VecDeque::new(), slowest: Default::default(), slowest_commit, _dir: dir }
    }

    fn timed<T>(&mut self, what: &str, work: impl FnOnce(&BlockStore) -> T) -> T {
        let begun = self.clock.monotonic();
        let done = work(&self.store);
        let took = self.clock.monotonic() - begun;
        assert!(took < STALL_MAX, "{what} at revision {} took {took:?}", self.main);
        if took > self.slowest.0 {
            self.slowest = (took, format!("{what} at {}", self.main));
        }
        done
    }

    /// One batch in which the newest hundred revisions stay needed, and every 64th for ever.
    fn step(&mut self, batch: u32) {
        self.main += 1;
        let main = self.main;
        let records: Vec<_> =
            (0..batch).map(|sub| record(main, sub, 32 + usize::try_from(sub % 200).unwrap())).collect();
        self.timed("append", |store| store.append(records)).unwrap();
        let upto = main - 100;
        let is_needed = move |main: i64, sub: u32| main > upto || (main + i64::from(sub)) % 64 == 0;
        self.recent.push_back((main, batch));
        while let Some((main, batch)) = self.recent.pop_front_if(|(main, _)| *main <= upto) {
            (0..batch).filter(|sub| !is_needed(main, *sub)).for_each(|sub| self.store.note_dead(main, sub));
        }
        let keep = move |main: i64, sub: u32, _: &Record| is_needed(main, sub);
        self.timed("trim", |store| store.trim(upto, &keep, usize::try_from(batch).unwrap() * 2 + 50)).unwrap();
        let found = self.timed("get", |store| store.get(main - main % 64 / 2, 0)).unwrap();
        assert!(found.is_some() || main < 64);
    }

    #[expect(clippy::print_stdout, reason = "the figures of an explicit run")]
    fn run(mut self, seconds: u64) {
        let mut turn = 0;
        while self.clock.monotonic() < Duration::from_secs(seconds) {
            let batch = SIZES[turn % SIZES.len()];
            turn += 1;
            for _ in 0..(512 / batch).min(64) {
                self.step(batch);
            }
        }
        self.store.settle().unwrap();
        let commit = *self.slowest_commit.lock();
        assert!(commit < STALL_MAX, "a commit took {commit:?}");
        let stats = self.store.stats();
        assert!(stats.records > 1000, "{stats:?}");
        println!("revision {}, slowest call {:?}, slowest commit {commit:?}, {stats:?}", self.main, self.slowest);
    }
}

#[test]
fn a_short_flood_does_not_stall() {
    Flood::new().run(2);
}

#[test]
#[ignore = "takes 30 s"]
fn a_long_flood_does_not_stall() {
    Flood::new().run(30);
}

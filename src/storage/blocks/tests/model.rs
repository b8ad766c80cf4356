//! Random histories against a map of records.

use super::*;
use crate::storage::sled::SledFactory;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Step {
    /// Revisions of one batch; each is the sizes of its records' values.
    Append(Vec<Vec<usize>>),
    /// Every n-th record at or below a share of history is no longer needed; told of or found by trims.
    Die {
        every: usize,
        offset: usize,
        percent: i64,
        told: bool,
    },
    Trim {
        percent: i64,
        budget: usize,
    },
    Pin(i64),
    Unpin,
    Settle,
    Reset,
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0usize..200, 3 => 200usize..3000, 1 => 3000usize..40_000]
}

fn steps() -> impl Strategy<Value = Step> {
    let batch = prop::collection::vec(prop::collection::vec(sizes(), 1..6), 1..12);
    prop_oneof![
        8 => batch.prop_map(Step::Append),
        4 => (1usize..6, 0usize..6, 0i64..=100, any::<bool>())
            .prop_map(|(every, offset, percent, told)| Step::Die { every, offset, percent, told }),
        6 => (0i64..=100, 1usize..400).prop_map(|(percent, budget)| Step::Trim { percent, budget }),
        1 => (0i64..=100).prop_map(Step::Pin),
        1 => Just(Step::Unpin),
        2 => Just(Step::Settle),
        1 => prop::bool::weighted(0.1).prop_map(|reset| if reset { Step::Reset } else { Step::Settle }),
    ]
}

type Make = Arc<dyn Fn() -> Result<Arc<dyn Engine>, Fault> + Send + Sync>;

struct World {
    store: BlockStore,
    make: Make,
    records: BTreeMap<Place, Arc<Record>>,
    dead: BTreeSet<Place>,
    untold: Vec<Place>,
    /// Pins, each with what was dead already when it was taken.
    pins: Vec<(Pin, BTreeSet<Place>)>,
    main: i64,
}

impl World {
    fn new(make: Make) -> Self {
        let of_store = Arc::clone(&make);
        let rotation = Some(rotation(move || of_store(), 15_000));
        let store = BlockStore::new(make().unwrap(), BlockOptions { rotation, ..options() }).unwrap();
        Self {
            store,
            make,
            records: BTreeMap::new(),
            dead: BTreeSet::new(),
            untold: Vec::new(),
            pins: Vec::new(),
            main: 0,
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Append(revisions) => {
                let mut batch = Vec::new();
                for revision in revisions {
                    self.main += 1;
                    batch.extend((0u32..).zip(revision).map(|(sub, bytes)| record(self.main, sub * 2, *bytes)));
                }
                self.records.extend(batch.iter().map(|record| (record.place(), Arc::clone(record))));
                self.store.append(batch).unwrap();
            }
            Step::Die { every, offset, percent, told } => {
                let upto = self.main * percent / 100;
                let old = self.records.keys().copied().filter(|place| place.0 <= upto && !self.dead.contains(place));
                let dying: Vec<_> = old.skip(*offset).step_by(*every).collect();
                for (main, sub) in dying {
                    self.dead.insert((main, sub));
                    if *told {
                        self.store.note_dead(main, sub);
                    } else {
                        self.untold.push((main, sub));
                    }
                }
            }
            Step::Trim { percent, budget } => {
                let dead = &self.dead;
                let keep = |main, sub, _: &Record| !dead.contains(&(main, sub));
                self.store.trim(self.main * percent / 100, &keep, *budget).unwrap();
            }
            Step::Pin(percent) => {
                let pin = self.store.pin(self.main * percent / 100);
                self.pins.push((pin, self.dead.clone()));
            }
            Step::Unpin => drop(self.pins.pop()),
            Step::Settle => self.store.settle().unwrap(),
            Step::Reset => {
                self.store.reset((self.make)().unwrap());
                self.pins.clear();
                self.records.clear();
                self.dead.clear();
                self.untold.clear();
            }
        }
    }

    fn is_needed(&self, place: Place) -> bool {
        let pinned = |(pin, dead): &(Pin, BTreeSet<Place>)| place.0 <= pin.main() && !dead.contains(&place);
        !self.dead.contains(&place) || self.pins.iter().any(pinned)
    }

    fn check(&self) {
        for (place, record) in &self.records {
            let found = self.store.get(place.0, place.1).unwrap();
            assert!(found.as_ref().is_none_or(|found| found == record), "{place:?}");
            assert!(found.is_some() || !self.is_needed(*place), "{place:?} was lost");
            assert_eq!(self.store.get(place.0, place.1 + 1).unwrap(), None);
        }
        for from in [0, self.main / 3, self.main] {
            let mut walked = BTreeMap::new();
            let mut next = from;
            loop {
                let part = self.store.walk(next, 7).unwrap();
                let Some(last) = part.last() else { break };
                next = last.main + 1;
                for record in part {
                    assert!(walked.last_key_value().is_none_or(|(last, _)| *last < record.place()));
                    walked.insert(record.place(), record);
                }
            }
            for (place, record) in &walked {
                assert_eq!(self.records.get(place), Some(record));
            }
            for place in self.records.range((from, 0)..).map(|(place, _)| place) {
                assert!(walked.contains_key(place) || !self.is_needed(*place), "{place:?} was skipped");
            }
        }
    }

    /// With nothing pinned and everything trimmed, space is bounded by what is needed.
    fn check_space(&mut self) {
        self.pins.clear();
        // Late: trims may have found some of them themselves.
        for (main, sub) in self.untold.drain(..) {
            self.store.note_dead(main, sub);
        }
        let dead = &self.dead;
        trim_all(&self.store, self.main, &|main, sub, _| !dead.contains(&(main, sub)));
        self.store.settle().unwrap();
        let stats = self.store.stats();
        let needed = self.records.iter().filter(|(place, _)| !dead.contains(*place));
        let needed: usize = needed.map(|(_, record)| record.weight()).sum();
        let bound = 2 * needed + limits::BLOCK_BYTES_TARGET;
        assert!(usize::try_from(stats.bytes).unwrap() <= bound, "{stats:?}, {needed} needed");
        assert!(stats.live_bytes <= stats.bytes && stats.live_records <= stats.records, "{stats:?}");
        self.check();
    }
}

fn play(make: Make, steps: &[Step]) {
    let mut world = World::new(make);
    for (number, step) in steps.iter().enumerate() {
        world.run(step);
        if number % 5 == 0 {
            world.check();
        }
    }
    world.check();
    world.check_space();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn in_memory(steps in prop::collection::vec(steps(), 1..60)) {
        play(Arc::new(|| Ok(Arc::new(MemoryEngine::new()) as Arc<dyn Engine>)), &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn in_sled(steps in prop::collection::vec(steps(), 20..60)) {
        let dir = tempfile::tempdir().unwrap();
        let factory = SledFactory::new(dir.path().join("state")).unwrap();
        play(Arc::new(move || Ok(Arc::new(factory.make()?) as Arc<dyn Engine>)), &steps);
    }
}

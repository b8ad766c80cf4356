//! Clients that write, compare, delete, count and read through REST until told to stop, and journal
//! what they were told.

use super::act::{Manner, perform};
use super::http::Client;
use super::op::{Action, Answer, Key, Op, Version};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Operations on one key before it is retired: what the search for a linear order can bear.
const KEY_OPS_MAX: u32 = 120;
const KEYS: usize = 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The keys in use, and the source of unique values. Lives through all restarts.
#[derive(Debug)]
pub(crate) struct Pool {
    slots: Mutex<Vec<(Key, u32)>>,
    next: AtomicU64,
    origin: Instant,
}

impl Pool {
    pub(crate) fn new() -> Arc<Self> {
        let pool = Self { slots: Mutex::default(), next: AtomicU64::new(1), origin: Instant::now() };
        for slot in 0..KEYS {
            let name = pool.name(slot);
            pool.slots.lock().unwrap().push((name, 0));
        }
        Arc::new(pool)
    }

    fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Slot 0 and 1 hold counters.
    fn name(&self, slot: usize) -> Key {
        let kind = if slot < 2 { "counter" } else { "key" };
        format!("{kind}/{slot}/{}", self.unique())
    }

    fn take(&self, slot: usize) -> Key {
        let mut slots = self.slots.lock().unwrap();
        slots[slot].1 += 1;
        if slots[slot].1 > KEY_OPS_MAX {
            slots[slot] = (self.name(slot), 1);
        }
        slots[slot].0.clone()
    }

    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap()
    }
}

/// Clients at work. `stop` ends them and hands over their journals.
pub(crate) struct Workload {
    stopping: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Vec<Op>>>,
}

impl Workload {
    pub(crate) fn start(pool: &Arc<Pool>, address: SocketAddr, clients: usize, seed: u64) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let threads = (0..clients as u64)
            .map(|client| {
                let mut worker = Worker {
                    pool: Arc::clone(pool),
                    client: Client::new(address, REQUEST_TIMEOUT),
                    rng: StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(client)),
                    known: BTreeMap::new(),
                };
                let (stopping, answered) = (Arc::clone(&stopping), Arc::clone(&answered));
                std::thread::spawn(move || worker.run(&stopping, &answered))
            })
            .collect();
        Self { stopping, answered, threads }
    }

    /// Operations answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(self) -> Vec<Op> {
        self.stopping.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("a client failed")).collect()
    }
}

struct Worker {
    pool: Arc<Pool>,
    client: Client,
    rng: StdRng,
    /// The newest version of each key that this client saw: what its conditions expect.
    known: BTreeMap<Key, Option<Version>>,
}

impl Worker {
    fn run(&mut self, stopping: &AtomicBool, answered: &AtomicU64) -> Vec<Op> {
        let mut ops = Vec::new();
        while !stopping.load(Ordering::Relaxed) {
            let action = self.choose();
            let call = self.pool.now();
            let answer = perform(&mut self.client, &action, &Manner::default());
            let ended = self.pool.now();
            self.learn(&action, &answer);
            let idle = matches!(answer, Answer::No | Answer::Unknown);
            if !idle {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            let returned = if answer == Answer::Unknown { u64::MAX } else { ended };
            let pointless = matches!((&action, &answer), (Action::Read { .. }, Answer::No | Answer::Unknown));
            if !pointless {
                ops.push(Op { call, returned, action, answer });
            }
            if idle {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        ops
    }

    fn choose(&mut self) -> Action {
        let slot = self.rng.random_range(0..KEYS);
        let key = self.pool.take(slot);
        if slot < 2 {
            return match self.rng.random_range(0..4) {
                0 => Action::Read { key },
                _ => Action::Add { key, by: i64::try_from(self.pool.unique()).unwrap() },
            };
        }
        let value = self.value();
        match self.rng.random_range(0..20) {
            0..6 => Action::Put { key, value },
            6..10 => Action::Cas { expected: self.expected(&key), key, value },
            10..12 => Action::Delete { key },
            12..15 => {
                let other = self.pool.take(2 + (slot + 1) % (KEYS - 2));
                let mut puts = BTreeMap::from([(other, self.value())]);
                puts.insert(key.clone(), value);
                Action::Txn { expected: self.expected(&key), key, puts }
            }
            _ => Action::Read { key },
        }
    }

    /// Unique, and now and then long enough to reach over a page of the log.
    fn value(&mut self) -> String {
        let padding = if self.rng.random_ratio(1, 20) { self.rng.random_range(1..6_000) } else { 0 };
        format!("v{}{}", self.pool.unique(), "-".repeat(padding))
    }

    fn expected(&self, key: &Key) -> Option<Version> {
        self.known.get(key).cloned().flatten()
    }

    fn learn(&mut self, action: &Action, answer: &Answer) {
        match (action, answer) {
            (Action::Read { key }, Answer::Value { version, .. }) => {
                self.known.insert(key.clone(), version.clone());
            }
            (Action::Delete { key }, Answer::Deleted { .. }) => {
                self.known.insert(key.clone(), None);
            }
            (action, Answer::Written { revision }) => {
                for (key, value) in action.puts() {
                    self.known.insert(key.clone(), Some((*revision, value.clone())));
                }
            }
            _ => {}
        }
    }
}

//! Clients of all members at once: puts, comparisons, transactions, deletes, counters, strong and
//! stale reads. Two of three stay with one member and send everything once; the others wander, and
//! repeat what was not answered, with an idempotency key, until they know what became of it.

use super::act::{Manner, answer, interpret};
use super::fleet::View;
use super::http::{Client, Lost};
use super::op::{Action, Answer, Key, Op, Version};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Operations on one key before it is retired: what the search for a linear order can bear.
const KEY_OPS_MAX: u32 = 200;
const SLOTS: usize = 40;
/// The first ones hold counters.
const COUNTERS: usize = 4;
const SERVER_TIMEOUT: &str = "2s";
const CLIENT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a wandering client goes on repeating.
const REPEAT_FOR: Duration = Duration::from_secs(15);

/// What a read through a member said of it: for what holds of one process by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight {
    pub(crate) life: u64,
    pub(crate) call: u64,
    pub(crate) returned: u64,
    pub(crate) revision: i64,
}

#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) ops: Vec<Op>,
    pub(crate) sights: Vec<Sight>,
    /// Repetitions that a wandering client needed.
    pub(crate) repeats: u64,
}

#[derive(Debug)]
struct Board {
    slots: Mutex<Vec<(Key, u32)>>,
    next: AtomicU64,
    origin: Instant,
    stopping: AtomicBool,
    answered: AtomicU64,
    written: AtomicU64,
    /// Microseconds per operation of each client that it should take at least.
    pace: Duration,
}

impl Board {
    fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn name(&self, slot: usize) -> Key {
        let kind = if slot < COUNTERS { "counter" } else { "key" };
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

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap()
    }
}

/// Clients at work; `stop` hands over what they noted.
#[derive(Debug)]
pub(crate) struct Load {
    board: Arc<Board>,
    threads: Vec<std::thread::JoinHandle<Journal>>,
}

impl Load {
    pub(crate) fn start(view: &Arc<View>, clients: usize, pace: Duration, seed: u64) -> Self {
        let board = Board {
            slots: Mutex::default(),
            next: AtomicU64::new(1),
            origin: Instant::now(),
            stopping: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            written: AtomicU64::new(0),
            pace,
        };
        for slot in 0..SLOTS {
            let name = board.name(slot);
            board.slots.lock().unwrap().push((name, 0));
        }
        let board = Arc::new(board);
        let threads = (0..clients).map(|client| {
            let pinned = (client % 3 != 2).then_some(client % view.len());
            let seed = seed.wrapping_mul(1_000).wrapping_add(client as u64);
            let worker = Worker {
                board: Arc::clone(&board),
                view: Arc::clone(view),
                pinned,
                connections: BTreeMap::new(),
                rng: StdRng::seed_from_u64(seed),
                known: BTreeMap::new(),
                journal: Journal::default(),
            };
            std::thread::spawn(move || worker.run())
        });
        let threads = threads.collect();
        Self { board, threads }
    }

    /// Operations answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.board.answered.load(Ordering::Relaxed)
    }

    /// Writes acknowledged so far.
    pub(crate) fn written(&self) -> u64 {
        self.board.written.load(Ordering::Relaxed)
    }

    /// On the clock of the journals, in nanoseconds.
    pub(crate) fn now(&self) -> u64 {
        self.board.now()
    }

    /// Whether a client has given up, by a panic.
    pub(crate) fn has_failed(&self) -> bool {
        self.threads.iter().any(std::thread::JoinHandle::is_finished)
    }

    pub(crate) fn stop(self) -> Journal {
        self.board.stopping.store(true, Ordering::Relaxed);
        let mut whole = Journal::default();
        for thread in self.threads {
            let journal = thread.join().expect("a client met an answer that breaks the contract");
            whole.ops.extend(journal.ops);
            whole.sights.extend(journal.sights);
            whole.repeats += journal.repeats;
        }
        whole
    }
}

struct Worker {
    board: Arc<Board>,
    view: Arc<View>,
    pinned: Option<usize>,
    connections: BTreeMap<usize, (SocketAddr, Client)>,
    rng: StdRng,
    known: BTreeMap<Key, Option<Version>>,
    journal: Journal,
}

impl Worker {
    fn run(mut self) -> Journal {
        while !self.board.stopping.load(Ordering::Relaxed) {
            let action = self.choose();
            let call = self.board.now();
            let answer = self.perform(&action);
            let ended = self.board.now();
            self.learn(&action, &answer);
            let idle = matches!(answer, Answer::No | Answer::Unknown);
            if !idle {
                self.board.answered.fetch_add(1, Ordering::Relaxed);
                if !action.is_read() && !matches!(answer, Answer::Refused { .. }) {
                    self.board.written.fetch_add(1, Ordering::Relaxed);
                }
            }
            let returned = if answer == Answer::Unknown { u64::MAX } else { ended };
            if !(idle && action.is_read()) {
                self.journal.ops.push(Op { call, returned, action, answer });
            }
            let took = Duration::from_nanos(ended - call);
            let least = if idle { self.board.pace.max(Duration::from_millis(5)) } else { self.board.pace };
            std::thread::sleep(least.saturating_sub(took));
        }
        self.journal
    }

    fn choose(&mut self) -> Action {
        let slot = self.rng.random_range(0..SLOTS);
        let key = self.board.take(slot);
        if slot < COUNTERS {
            return match self.rng.random_range(0..4) {
                0 => Action::Read { key },
                _ => Action::Add { key, by: i64::try_from(self.board.unique()).unwrap() },
            };
        }
        let value = self.value();
        match self.rng.random_range(0..24) {
            0..7 => Action::Put { key, value },
            7..11 => Action::Cas { expected: self.expected(&key), key, value },
            11..13 => Action::Delete { key },
            13..16 => {
                let mut puts = BTreeMap::from([(self.another(slot), self.value()), (self.another(slot), self.value())]);
                puts.insert(key.clone(), value);
                Action::Txn { expected: self.expected(&key), key, puts }
            }
            16..18 => Action::ReadMany { keys: BTreeSet::from([self.another(slot), key]) },
            18..21 => Action::StaleRead { key },
            _ => Action::Read { key },
        }
    }

    /// A key of another slot.
    fn another(&mut self, slot: usize) -> Key {
        let slots = SLOTS - COUNTERS;
        let step = self.rng.random_range(1..slots);
        self.board.take(COUNTERS + (slot - COUNTERS + step) % slots)
    }

    /// Unique, and now and then long enough to reach over a page of the log.
    fn value(&mut self) -> String {
        let padding = if self.rng.random_ratio(1, 25) { self.rng.random_range(1..6_000) } else { 0 };
        format!("v{}{}", self.board.unique(), "-".repeat(padding))
    }

    fn expected(&self, key: &Key) -> Option<Version> {
        self.known.get(key).cloned().flatten()
    }

    fn learn(&mut self, action: &Action, answer: &Answer) {
        // Retired keys are not asked for again.
        if self.known.len() > 4 * SLOTS {
            self.known.clear();
        }
        match (action, answer) {
            (Action::Read { key }, Answer::Value { version, .. }) => {
                self.known.insert(key.clone(), version.clone());
            }
            (Action::ReadMany { .. }, Answer::Values { versions, .. }) => self.known.extend(versions.clone()),
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

    fn perform(&mut self, action: &Action) -> Answer {
        let manner = Manner { timeout: Some(SERVER_TIMEOUT.to_owned()), idempotency_key: None };
        if let Some(slot) = self.pinned {
            return self.send(slot, action, &manner);
        }
        let key = (!action.is_read()).then(|| format!("k{}", self.board.unique()));
        let manner = Manner { idempotency_key: key, ..manner };
        let begun = Instant::now();
        let mut sent = false;
        loop {
            let slot = self.rng.random_range(0..self.view.len());
            let answer = self.send(slot, action, &manner);
            sent |= answer == Answer::Unknown;
            let over = self.board.stopping.load(Ordering::Relaxed) || begun.elapsed() > REPEAT_FOR;
            match answer {
                Answer::No | Answer::Unknown if !over && !action.is_read() => {
                    self.journal.repeats += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                // One attempt that may have been made decides.
                Answer::No if sent => return Answer::Unknown,
                answer => return answer,
            }
        }
    }

    fn send(&mut self, slot: usize, action: &Action, manner: &Manner) -> Answer {
        let address = self.view.address(slot);
        let connection =
            self.connections.entry(slot).or_insert_with(|| (address, Client::new(address, CLIENT_TIMEOUT)));
        if connection.0 != address {
            *connection = (address, Client::new(address, CLIENT_TIMEOUT));
        }
        let (life, call) = (self.view.life(slot), self.board.now());
        match answer(&mut connection.1, action, manner) {
            Ok(response) => {
                let answer = interpret(action, &response);
                // Of writes, the leader tells; the member asked may come to their revision a little later.
                let own = matches!(action, Action::Read { .. } | Action::StaleRead { .. });
                if let Some(revision) = answer.revision()
                    && own
                    && self.view.life(slot) == life
                {
                    self.journal.sights.push(Sight { life, call, returned: self.board.now(), revision });
                }
                answer
            }
            Err(Lost::NotSent(_)) => Answer::No,
            Err(Lost::Unknown(_)) => Answer::Unknown,
        }
    }
}

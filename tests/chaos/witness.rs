//! Those who look on: one that writes down what every revision changed, wherever it can be heard; one
//! for each member that stays with it and notes what that member tells; one that notes who led in
//! which term; and one that compacts history behind them all.

use super::fleet::View;
use super::http::{Client, Response};
use super::op::Log;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WAIT: &str = "1s";
const PATIENCE: Duration = Duration::from_secs(4);
/// Revisions that stay readable behind the one that writes everything down.
const KEPT: i64 = 500;
const COMPACT_EVERY: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(60);

/// What one answer of one member's watch told: everything in `after + 1 ..= upto`.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) slot: usize,
    pub(crate) after: i64,
    pub(crate) upto: i64,
    pub(crate) digest: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Testimony {
    pub(crate) log: Log,
    pub(crate) heard: Vec<Heard>,
    pub(crate) leaders: Leaders,
    pub(crate) compactions: u64,
    /// What already contradicts itself.
    pub(crate) violations: Vec<String>,
}

/// Who was seen to lead, by its own account, in which term. Raft here orders leaders by term and member: two may stand
/// up in one term, of which only one can commit anything; they count as one.
pub(crate) type Leaders = BTreeMap<u64, BTreeSet<String>>;

#[derive(Debug)]
struct Shared {
    view: Arc<View>,
    stopping: AtomicBool,
    /// Up to where everything is written down.
    position: AtomicI64,
    leaders: Mutex<Leaders>,
    violations: Mutex<Vec<String>>,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn accuse(&self, what: String) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < 20 {
            violations.push(what);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Witness {
    shared: Arc<Shared>,
    recorder: std::thread::JoinHandle<Log>,
    listeners: Vec<std::thread::JoinHandle<Vec<Heard>>>,
    onlooker: std::thread::JoinHandle<()>,
    compactor: std::thread::JoinHandle<u64>,
}

impl Witness {
    pub(crate) fn start(view: &Arc<View>) -> Self {
        let shared = Arc::new(Shared {
            view: Arc::clone(view),
            stopping: AtomicBool::new(false),
            position: AtomicI64::new(1),
            leaders: Mutex::default(),
            violations: Mutex::default(),
        });
        let listeners = (0..view.len()).map(|slot| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || listen(&shared, slot))
        });
        let listeners = listeners.collect();
        let (one, two, three) = (Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared));
        let recorder = std::thread::spawn(move || record(&one));
        let onlooker = std::thread::spawn(move || look_on(&two));
        let compactor = std::thread::spawn(move || compact(&three));
        Self { shared, recorder, listeners, onlooker, compactor }
    }

    /// How many leaders there have been.
    pub(crate) fn leaders(&self) -> usize {
        self.shared.leaders.lock().unwrap().len()
    }

    pub(crate) fn position(&self) -> i64 {
        self.shared.position.load(Ordering::Relaxed)
    }

    pub(crate) fn end(self) -> Testimony {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let log = self.recorder.join().expect("the recorder ended");
        let heard = self.listeners.into_iter().flat_map(|listener| listener.join().expect("a listener ended"));
        let heard = heard.collect();
        self.onlooker.join().expect("the onlooker ended");
        let compactions = self.compactor.join().expect("the compactor ended");
        let leaders = std::mem::take(&mut *self.shared.leaders.lock().unwrap());
        let violations = std::mem::take(&mut *self.shared.violations.lock().unwrap());
        Testimony { log, heard, leaders, compactions, violations }
    }
}

/// The next events after a revision: `Ok` with them and up to where they are whole.
fn next(client: &mut Client, after: i64) -> Option<Result<(i64, Log), Response>> {
    let target = format!("/v1/watch?prefix=&after={after}&wait={WAIT}&limit=1000");
    let answer = client.get(&target).ok()?;
    if answer.status != 200 {
        return Some(Err(answer));
    }
    let body = answer.json();
    let mut log = Log::new();
    for event in body["events"].as_array().expect("events") {
        let revision = event["revision"].as_i64().expect("a revision");
        let key = event["key"].as_str().expect("a text key").to_owned();
        let value = (event["type"] == "put").then(|| event["value"].as_str().expect("a text value").to_owned());
        log.entry(revision).or_default().insert(key, value);
    }
    Some(Ok((body["revision"].as_i64().expect("a revision"), log)))
}

fn record(shared: &Shared) -> Log {
    let mut whole = Log::new();
    let (mut slot, mut after) = (0, 1);
    let mut client = None;
    while !shared.is_over() {
        let address = shared.view.address(slot);
        let connection: &mut Client = client.get_or_insert_with(|| Client::new(address, PATIENCE));
        match next(connection, after) {
            Some(Ok((upto, log))) => {
                let ordered = upto >= after && log.keys().all(|revision| *revision > after && *revision <= upto);
                if !ordered {
                    shared.accuse(format!("a watch after {after} answered {:?} up to {upto}", log.keys()));
                }
                after = after.max(upto);
                whole.extend(log);
                shared.position.store(after, Ordering::Relaxed);
            }
            other => {
                if let Some(Err(answer)) = &other
                    && answer.status == 410
                {
                    // Nothing is compacted beyond what is written down here.
                    shared.accuse(format!("a watch after {after} was refused: {}", text(answer)));
                    return whole;
                }
                (slot, client) = ((slot + 1) % shared.view.len(), None);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    whole
}

fn text(answer: &Response) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

fn listen(shared: &Shared, slot: usize) -> Vec<Heard> {
    let mut heard = Vec::new();
    let mut after = 1;
    let mut address = shared.view.address(slot);
    let mut client = Client::new(address, PATIENCE);
    while !shared.is_over() {
        if address != shared.view.address(slot) {
            address = shared.view.address(slot);
            client = Client::new(address, PATIENCE);
        }
        match next(&mut client, after) {
            Some(Ok((upto, log))) => {
                if upto < after {
                    shared.accuse(format!("slot {slot}: a watch after {after} went back to {upto}"));
                }
                heard.push(Heard { slot, after, upto, digest: digest(log.iter()) });
                after = after.max(upto);
            }
            Some(Err(answer)) if answer.status == 410 => {
                let compacted = answer.json()["compacted_revision"].as_i64();
                let Some(compacted) = compacted else {
                    shared.accuse(format!("slot {slot}: no compacted_revision in {}", text(&answer)));
                    return heard;
                };
                if compacted <= after {
                    shared.accuse(format!("slot {slot}: after {after} refused for {compacted}: {}", text(&answer)));
                }
                after = compacted;
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    heard
}

pub(crate) fn digest<'a>(log: impl Iterator<Item = (&'a i64, &'a BTreeMap<String, Option<String>>)>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for entry in log {
        entry.hash(&mut hasher);
    }
    hasher.finish()
}

fn look_on(shared: &Shared) {
    let mut terms: BTreeMap<u64, u64> = BTreeMap::new();
    while !shared.is_over() {
        for slot in 0..shared.view.len() {
            let life = shared.view.life(slot);
            let mut client = Client::new(shared.view.address(slot), Duration::from_millis(150));
            let Some(status) = client.get("/v1/status").ok().filter(|answer| answer.status == 200) else { continue };
            let status: Value = status.json();
            let term = status["term"].as_u64().unwrap_or(0);
            if life != shared.view.life(slot) {
                continue;
            }
            let newest = terms.entry(life).or_insert(term);
            if term < *newest {
                shared.accuse(format!("{} went back from term {newest} to {term}", status["name"]));
            }
            *newest = term.max(*newest);
            if status["is_leader"] == true {
                let name = status["name"].as_str().unwrap_or_default().to_owned();
                shared.leaders.lock().unwrap().entry(term).or_default().insert(name);
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn compact(shared: &Shared) -> u64 {
    let (mut done, mut turn, mut last) = (0, 0, 0);
    while !shared.is_over() {
        std::thread::sleep(COMPACT_EVERY);
        let upto = shared.position.load(Ordering::Relaxed) - KEPT;
        if upto <= last {
            continue;
        }
        turn += 1;
        let mut client = Client::new(shared.view.address(turn % shared.view.len()), PATIENCE);
        let answer = client.request("POST", &format!("/v1/compact?revision={upto}"), &[], b"");
        if answer.is_ok_and(|answer| answer.status == 200) {
            (done, last) = (done + 1, upto);
        }
    }
    done
}

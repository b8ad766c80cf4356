//! One member under load through many faults: after each, what it says of itself is held against
//! everything the clients were told.

use super::check::{Violation, check};
use super::http::Client;
use super::linear;
use super::op::{Answer, Key, Log, Op, State};
use super::server::{Server, Setup};
use super::workload::{Pool, Workload};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const CLIENTS: usize = 8;

#[derive(Debug)]
pub(crate) struct Campaign {
    pub(crate) setup: Setup,
    pool: Arc<Pool>,
    /// The store after the last fault, as verified.
    state: State,
    log: Log,
    ops: Vec<Op>,
    seed: u64,
    faults: u64,
}

impl Campaign {
    pub(crate) fn new(setup: Setup, seed: u64) -> Self {
        let (state, log) = (State::empty(), Log::new());
        Self { setup, pool: Pool::new(), state, log, ops: Vec::new(), seed, faults: 0 }
    }

    /// Load on `server` until `fault` has ended it; then the clients' journals are taken in.
    /// `fault` is given the server and a count of the operations answered so far.
    pub(crate) fn fault(&mut self, server: Server, fault: impl FnOnce(Server, &dyn Fn() -> u64)) -> Vec<Op> {
        self.faults += 1;
        let seed = self.seed.wrapping_add(self.faults);
        let load = Workload::start(&self.pool, self.setup.address, CLIENTS, seed);
        fault(server, &|| load.answered());
        load.stop()
    }

    /// Holds the journals of one window against the restarted member.
    pub(crate) fn verify(&mut self, mut ops: Vec<Op>) {
        let restarted = self.pool.now();
        for op in ops.iter_mut().filter(|op| op.answer == Answer::Unknown) {
            op.returned = restarted;
        }
        let mut client = self.setup.client();
        let log = read_log(&mut client, self.state.revision, &keys_of(&ops));
        if let Err(Violation { kind, detail }) = check(&self.state, &ops, &log) {
            panic!("VIOLATION after fault {} (seed {}): {kind:?}: {detail}", self.faults, self.seed);
        }
        self.state.replay(&log);
        self.log.extend(log);
        self.ops.extend(ops);
    }

    /// The last word: the whole history again, the listing, a graceful restart, and every key's
    /// linearizability. Prints what the run consisted of.
    pub(crate) fn conclude(&mut self, server: Server, name: &str) {
        let seed = self.seed;
        let mut client = self.setup.client();
        assert!(
            read_log(&mut client, 1, &keys_of(&self.ops)) == self.log,
            "VIOLATION (seed {seed}): history changed after it was read"
        );
        let listed = read_state(&mut client);
        assert!(listed == self.state, "VIOLATION (seed {seed}): the listing is not what history leads to");
        let hash = read_hash(&mut client);
        server.stop();
        let server = self.setup.start();
        let mut client = self.setup.client();
        assert!(read_state(&mut client) == self.state, "VIOLATION (seed {seed}): a graceful restart changed the store");
        assert_eq!(read_hash(&mut client), hash, "VIOLATION (seed {seed}): a graceful restart changed the hash");
        server.stop();
        let keys = match linear::check(&self.ops) {
            Ok(keys) => keys,
            Err((key, verdict)) => panic!("VIOLATION (seed {seed}): key {key} is {verdict:?}"),
        };
        let count = |wanted: fn(&Answer) -> bool| self.ops.iter().filter(|op| wanted(&op.answer)).count();
        let unknown = count(|answer| *answer == Answer::Unknown);
        let refused = count(|answer| *answer == Answer::No);
        let answered = self.ops.len() - unknown - refused;
        eprintln!(
            "{name}: {} faults, {answered} operations answered, {unknown} unknown, {refused} not applied, \
             {} revisions, {keys} keys linearizable",
            self.faults,
            self.log.len()
        );
        // A run in which little happened proves little.
        let faults = usize::try_from(self.faults).expect("a count");
        assert!(answered >= 20 * faults, "only {answered} operations through {faults} faults: the run is void");
        assert!(unknown >= faults / 2, "only {unknown} operations were hit by {faults} faults: the run is void");
    }
}

/// What happened after a revision, by the store's own account: the histories of these keys and of
/// all that are there. A change to a key that is neither leaves a gap in the revisions.
pub(crate) fn read_log(client: &mut Client, after: i64, keys: &BTreeSet<Key>) -> Log {
    let mut keys = keys.clone();
    let listed = read_state(client).keys.into_iter().filter(|(_, (revision, _))| *revision > after);
    keys.extend(listed.map(|(key, _)| key));
    let mut log = Log::new();
    for key in keys {
        for (revision, value) in read_history(client, &key, after) {
            let twice = log.entry(revision).or_default().insert(key.clone(), value);
            assert!(twice.is_none(), "VIOLATION: {key} twice in revision {revision}");
        }
    }
    log
}

/// Versions of one key after a revision, newest first.
fn read_history(client: &mut Client, key: &Key, after: i64) -> Vec<(i64, Option<String>)> {
    let mut versions = Vec::new();
    let mut before = String::new();
    loop {
        let answer = client.get(&format!("/v1/history/{key}?limit=1000{before}")).expect("the member answers");
        if answer.status == 404 {
            return versions;
        }
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        let page = answer.json();
        for item in page["items"].as_array().expect("items") {
            let revision = item["revision"].as_i64().expect("a revision");
            if revision <= after {
                return versions;
            }
            let value = (item["type"] == "put").then(|| item["value"].as_str().expect("a text value").to_owned());
            versions.push((revision, value));
        }
        match page["next_before"].as_i64() {
            Some(next) => before = format!("&before={next}"),
            None => return versions,
        }
    }
}

/// Every key that these operations named.
fn keys_of(ops: &[Op]) -> BTreeSet<Key> {
    ops.iter().flat_map(|op| op.action.keys()).cloned().collect()
}

fn read_state(client: &mut Client) -> State {
    let mut state = State::default();
    let mut cursor = String::new();
    loop {
        let answer = client.get(&format!("/v1/kv?prefix=&limit=1000{cursor}")).expect("the member answers");
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        let page = answer.json();
        state.revision = page["revision"].as_i64().expect("a revision");
        for item in page["items"].as_array().expect("items") {
            let key = item["key"].as_str().expect("a text key").to_owned();
            let value = item["value"].as_str().expect("a text value").to_owned();
            state.keys.insert(key, (item["mod_revision"].as_i64().expect("a revision"), value));
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return state,
        }
    }
}

pub(crate) fn read_hash(client: &mut Client) -> String {
    let answer = super::eventually("the hash", Duration::from_secs(10), || client.get("/v1/hash").ok());
    answer.json()["hash"].as_str().expect("a hash").to_owned()
}

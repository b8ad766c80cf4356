//! The loop of one connection, and a phase of all of them.

use super::keys::{Keyspace, Rng};
use super::request::{self, Requests};
use super::wire::{self, Wire};
use crate::cli::args::{BenchLoad, KeyOrder};
use crate::cli::exit::{CliError, UNAVAILABLE};
use crate::cli::session::note;
use crate::client::{Client, Endpoint};
use crate::env::{Clock, SystemClock, TaskSet};
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longer than any deadline of the server.
const LATENCY_US_MAX: u64 = 120_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
const RECONNECT_AFTER: Duration = Duration::from_millis(50);
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
const LINE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mix {
    Put,
    /// Each request writes this many keys at once.
    Txn {
        keys: u64,
    },
    Reads {
        percent: u64,
        stale: bool,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    Elapsed(Duration),
    /// Operations, each of one key.
    Count(u64),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    pub(super) mix: Mix,
    pub(super) until: Until,
    pub(super) rate: Option<u64>,
    pub(super) order: KeyOrder,
}

impl Phase {
    /// Writes every key of the key space once.
    pub(super) fn fill(key_space: u64, txn_keys: u64) -> Self {
        Self {
            mix: Mix::Txn { keys: txn_keys },
            until: Until::Count(key_space),
            rate: None,
            order: KeyOrder::Sequential,
        }
    }
}

/// What holds for all phases of a run.
#[derive(Debug)]
pub(super) struct Plan {
    endpoints: Vec<Endpoint>,
    connections: u64,
    keys: Arc<Keyspace>,
    value: Arc<str>,
    /// The words of etcd's gateway.
    etcd: bool,
    authorization: String,
    seed: u64,
}

/// What came out of a phase.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) operations: u64,
    pub(super) elapsed: Duration,
    /// Of whole requests that succeeded, in microseconds.
    pub(super) latency_us: Histogram<u64>,
    pub(super) errors: BTreeMap<String, u64>,
}

impl Tally {
    pub(super) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    pub(super) fn expect_some(&self) -> Result<(), CliError> {
        match (self.requests, self.errors.keys().next()) {
            (0, Some(error)) => Err(failed(format!("no request succeeded: {error}"))),
            _ => Ok(()),
        }
    }

    pub(super) fn expect_clean(&self, what: &str) -> Result<(), CliError> {
        match self.errors.iter().next() {
            Some((error, count)) => Err(failed(format!("{what} failed {count} times: {error}"))),
            None => Ok(()),
        }
    }
}

fn failed(message: String) -> CliError {
    CliError::Failed { message, hint: None, code: UNAVAILABLE }
}

/// What the connections of a phase share.
#[derive(Debug)]
struct Shared {
    clock: SystemClock,
    deadline: Duration,
    /// Operations not yet handed out.
    left: AtomicU64,
    done: AtomicU64,
    tally: Mutex<Tally>,
}

impl Plan {
    pub(super) fn new(load: &BenchLoad, client: &Client, seed: u64) -> Result<Self, CliError> {
        let mut rng = Rng::new(seed);
        let size = usize::try_from(load.value_size).unwrap_or(0);
        // Letters only: the same bytes are fine in a body and in JSON.
        let letter = |number: u64| char::from(b'a' + u8::try_from(number % 26).unwrap_or(0));
        let value: String = (0..size).map(|_| letter(rng.next())).collect();
        Ok(Self {
            endpoints: client.endpoints().to_vec(),
            connections: load.connections,
            keys: Arc::new(Keyspace::new(&load.key_prefix, load.key_size, load.key_space)?),
            value: request::value(load.etcd, value),
            etcd: load.etcd,
            authorization: wire::authorization(client.credentials()),
            seed,
        })
    }

    fn requests(&self, endpoint: &Endpoint) -> Requests {
        let lines = format!("host: {}\r\n{}", endpoint.authority(), self.authorization);
        Requests::new(self.etcd, self.keys.clone(), self.value.clone(), lines)
    }

    pub(super) async fn run(&self, phase: &Phase, label: &'static str) -> Result<Tally, CliError> {
        self.keys.rewind();
        let (deadline, left) = match phase.until {
            Until::Elapsed(duration) => (duration, u64::MAX),
            Until::Count(count) => (Duration::MAX, count),
        };
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, SIGNIFICANT_DIGITS)
            .map_err(|error| CliError::other(format!("histogram: {error}")))?;
        let lanes = || (0..self.connections).zip(self.endpoints.iter().cycle());
        // What is measured are requests, not the handshakes of a burst of new connections. One that
        // fails is tried again, and counted, by its lane.
        let wires = join_all(lanes().map(|(_, endpoint)| Wire::open(endpoint))).await;
        let shared = Arc::new(Shared {
            clock: SystemClock::new(),
            deadline,
            left: AtomicU64::new(left),
            done: AtomicU64::new(0),
            tally: Mutex::new(Tally {
                requests: 0,
                operations: 0,
                elapsed: Duration::ZERO,
                latency_us: histogram,
                errors: BTreeMap::new(),
            }),
        });
        let tasks = TaskSet::new();
        for ((index, endpoint), wire) in lanes().zip(wires) {
            let lane = Lane {
                wire: wire.ok(),
                endpoint: endpoint.clone(),
                keys: Arc::clone(&self.keys),
                requests: self.requests(endpoint),
                rng: Rng::new(self.seed ^ index.wrapping_mul(0xa076_1d64_78bd_642f)),
                phase: *phase,
                index,
                lanes: self.connections,
                in_txn: Vec::new(),
                shared: Arc::clone(&shared),
            };
            tasks.spawn("bench connection", lane.run());
        }
        watch(&shared, &tasks, label, phase.until).await;
        let shared = Arc::into_inner(shared).ok_or_else(|| CliError::other("a connection did not end"))?;
        let mut tally = shared.tally.into_inner();
        tally.elapsed = shared.clock.monotonic();
        Ok(tally)
    }
}

/// Shows how far the phase is until its last connection has ended.
async fn watch(shared: &Shared, tasks: &TaskSet, label: &'static str, until: Until) {
    let bar = std::io::stderr().is_terminal().then(|| match until {
        Until::Elapsed(_) => ProgressBar::new_spinner(),
        Until::Count(count) => ProgressBar::new(count),
    });
    let mut last_line = Duration::ZERO;
    // `stop` only asks and waits: the connections end by themselves.
    while !tasks.stop(PROGRESS_EVERY).await {
        let (now, done) = (shared.clock.monotonic(), shared.done.load(Ordering::Relaxed));
        let text = format!("{label}: {done} operations, {:.0}/s", per_second(done, now));
        match &bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(text);
            }
            None if now.saturating_sub(last_line) >= LINE_EVERY => {
                last_line = now;
                note(&text);
            }
            None => {}
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
pub(super) fn per_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(1e-9)
}

/// One connection.
struct Lane {
    wire: Option<Wire>,
    endpoint: Endpoint,
    keys: Arc<Keyspace>,
    requests: Requests,
    rng: Rng,
    phase: Phase,
    index: u64,
    lanes: u64,
    /// Keys of the transaction that is being built.
    in_txn: Vec<u64>,
    shared: Arc<Shared>,
}

impl Lane {
    async fn run(mut self) {
        let mut wire = self.wire.take();
        let mut request = Vec::with_capacity(64 << 10);
        let mut turn: u64 = 0;
        while self.shared.clock.monotonic() < self.shared.deadline {
            let keys = self.take();
            if keys == 0 {
                return;
            }
            // With a rate, latency counts from when the request was due: a stall is not hidden.
            let due = self.due(turn);
            turn += 1;
            if let Some(due) = due {
                if due >= self.shared.deadline {
                    return;
                }
                tokio::time::sleep(due.saturating_sub(self.shared.clock.monotonic())).await;
            }
            let keys = self.build(&mut request, keys);
            let start = due.unwrap_or_else(|| self.shared.clock.monotonic());
            let outcome = self.exchange(&mut wire, &request).await;
            let took = self.shared.clock.monotonic().saturating_sub(start);
            let failed = outcome.is_err();
            self.record(outcome, keys, took);
            if failed {
                wire = None;
                tokio::time::sleep(RECONNECT_AFTER).await;
            }
        }
    }

    /// Operations for the next request; 0 when all are handed out.
    fn take(&self) -> u64 {
        let wanted = match self.phase.mix {
            Mix::Txn { keys } => keys,
            Mix::Put | Mix::Reads { .. } => 1,
        };
        let rest = |left: u64| Some(if left == u64::MAX { left } else { left.saturating_sub(wanted) });
        let before = self.shared.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        before.unwrap_or(0).min(wanted)
    }

    /// When this connection's request number `turn` should start, if there is a rate.
    fn due(&self, turn: u64) -> Option<Duration> {
        let rate = u128::from(self.phase.rate?);
        let position = u128::from(turn) * u128::from(self.lanes) + u128::from(self.index);
        Some(Duration::from_nanos(u64::try_from(position * 1_000_000_000 / rate).unwrap_or(u64::MAX)))
    }

    fn next_key(&mut self) -> u64 {
        match self.phase.order {
            KeyOrder::Sequential => self.keys.sequential(),
            KeyOrder::Random => self.keys.random(&mut self.rng),
        }
    }

    /// Writes the next request for up to `keys` operations; answers how many it has.
    fn build(&mut self, request: &mut Vec<u8>, keys: u64) -> u64 {
        match self.phase.mix {
            Mix::Reads { percent, stale } if self.rng.next() % 100 < percent => {
                let key = self.next_key();
                self.requests.get(request, key, stale);
                1
            }
            Mix::Put | Mix::Reads { .. } => {
                let key = self.next_key();
                self.requests.put(request, key);
                1
            }
            Mix::Txn { .. } => {
                // A key may be written once in a transaction.
                self.in_txn.clear();
                for _ in 0..keys {
                    let key = self.next_key();
                    if !self.in_txn.contains(&key) {
                        self.in_txn.push(key);
                    }
                }
                self.requests.txn(request, &self.in_txn);
                self.in_txn.len() as u64
            }
        }
    }

    async fn exchange(&self, wire: &mut Option<Wire>, request: &[u8]) -> std::io::Result<u16> {
        let connection = match wire {
            Some(connection) => connection,
            None => wire.insert(Wire::open(&self.endpoint).await?),
        };
        let (status, reusable) = connection.exchange(request).await?;
        if !reusable {
            *wire = None;
        }
        Ok(status)
    }

    fn record(&self, outcome: std::io::Result<u16>, keys: u64, took: Duration) {
        let mut tally = self.shared.tally.lock();
        match outcome {
            Ok(200..=299) => {
                tally.requests += 1;
                tally.operations += keys;
                let micros = u64::try_from(took.as_micros()).unwrap_or(LATENCY_US_MAX);
                tally.latency_us.saturating_record(micros.clamp(1, LATENCY_US_MAX));
                self.shared.done.fetch_add(keys, Ordering::Relaxed);
            }
            Ok(status) => *tally.errors.entry(format!("status {status}")).or_default() += 1,
            Err(error) => *tally.errors.entry(error.to_string()).or_default() += 1,
        }
    }
}

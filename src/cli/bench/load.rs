//! The loop of one client, and a phase of all of them.

use super::door::{self, Ask, Door, Link, Missed, Reach};
use super::keys::{Keyspace, Rng};
use super::request::{self, Requests};
use super::wire::{self, Wire};
use crate::cli::args::{BenchLoad, KeyOrder};
use crate::cli::exit::{CliError, UNAVAILABLE};
use crate::cli::session::note;
use crate::client::etcd::Etcd;
use crate::client::{Client, Credentials, Endpoint};
use crate::env::{Clock, SystemClock, TaskSet};
use bytes::Bytes;
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
    /// Each request reads so many keys that lie side by side.
    Range {
        keys: u64,
        stale: bool,
    },
    /// Each request counts the whole key space.
    Count {
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
    credentials: Credentials,
    reach: Reach,
    keys: Arc<Keyspace>,
    value: Arc<str>,
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
        let reach = Reach::of(load, client.endpoints().len());
        let mut rng = Rng::new(seed);
        let size = usize::try_from(load.value_size).unwrap_or(0);
        // Letters only: the same bytes are fine in a body and in JSON.
        let letter = |number: u64| char::from(b'a' + u8::try_from(number % 26).unwrap_or(0));
        let value: String = (0..size).map(|_| letter(rng.next())).collect();
        Ok(Self {
            endpoints: client.endpoints().to_vec(),
            credentials: client.credentials().clone(),
            reach,
            keys: Arc::new(Keyspace::new(&load.key_prefix, load.key_size, load.key_space)?),
            value: request::value(reach.door == Door::Gateway, value),
            seed,
        })
    }

    /// One for each client. What is measured are requests, not the handshakes of a burst of new connections.
    async fn links(&self) -> Result<Vec<Link>, CliError> {
        let clients = self.reach.clients;
        if self.reach.door == Door::Grpc {
            let dialled =
                door::dial(&self.endpoints, &self.credentials, self.reach.connections).await.map_err(failed)?;
            let value = Bytes::copy_from_slice(self.value.as_bytes());
            let link = |etcd: &Etcd| Link::Grpc {
                etcd: Box::new(etcd.clone()),
                keys: Arc::clone(&self.keys),
                value: value.clone(),
            };
            return Ok((0..clients).zip(dialled.iter().cycle()).map(|(_, etcd)| link(etcd)).collect());
        }
        let lanes = || (0..clients).zip(self.endpoints.iter().cycle()).map(|(_, endpoint)| endpoint);
        // One that fails is tried again, and counted, by its lane.
        let wires = join_all(lanes().map(Wire::open)).await;
        let link = |(endpoint, wire): (&Endpoint, std::io::Result<Wire>)| {
            let authorization = wire::authorization(&self.credentials);
            let lines = format!("host: {}\r\n{authorization}", endpoint.authority());
            let gateway = self.reach.door == Door::Gateway;
            let requests = Requests::new(gateway, Arc::clone(&self.keys), Arc::clone(&self.value), lines);
            Link::http(endpoint.clone(), requests, wire.ok())
        };
        Ok(lanes().zip(wires).map(link).collect())
    }

    pub(super) async fn run(&self, phase: &Phase, label: &'static str) -> Result<Tally, CliError> {
        self.keys.rewind();
        let (deadline, left) = match phase.until {
            Until::Elapsed(duration) => (duration, u64::MAX),
            Until::Count(count) => (Duration::MAX, count),
        };
        let histogram = Histogram::new_with_bounds(1, LATENCY_US_MAX, SIGNIFICANT_DIGITS)
            .map_err(|error| CliError::other(format!("histogram: {error}")))?;
        let links = self.links().await?;
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
        for (link, index) in links.into_iter().zip(0_u64..) {
            let lane = Lane {
                keys: Arc::clone(&self.keys),
                rng: Rng::new(self.seed ^ index.wrapping_mul(0xa076_1d64_78bd_642f)),
                phase: *phase,
                index,
                lanes: self.reach.clients,
                in_txn: Vec::new(),
                shared: Arc::clone(&shared),
            };
            tasks.spawn("bench client", lane.run(link));
        }
        watch(&shared, &tasks, label, phase.until).await;
        let shared = Arc::into_inner(shared).ok_or_else(|| CliError::other("a client did not end"))?;
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

/// What a client asks next; a transaction's keys are with the client.
enum Next {
    One(Ask<'static>),
    Txn,
}

/// One client.
struct Lane {
    keys: Arc<Keyspace>,
    rng: Rng,
    phase: Phase,
    index: u64,
    lanes: u64,
    /// Keys of the transaction that is being built.
    in_txn: Vec<u64>,
    shared: Arc<Shared>,
}

impl Lane {
    async fn run(mut self, mut link: Link) {
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
            let ask = self.next_ask(keys);
            let start = due.unwrap_or_else(|| self.shared.clock.monotonic());
            let (outcome, keys) = match ask {
                Next::One(ask) => (link.exchange(ask).await, 1),
                Next::Txn => (
                    link.exchange(Ask::Txn { keys: &self.in_txn }).await,
                    u64::try_from(self.in_txn.len()).unwrap_or(0),
                ),
            };
            let took = self.shared.clock.monotonic().saturating_sub(start);
            let lost = outcome.as_ref().is_err_and(|missed| missed.lost);
            self.record(outcome, keys, took);
            if lost {
                tokio::time::sleep(RECONNECT_AFTER).await;
            }
        }
    }

    /// Operations for the next request; 0 when all are handed out.
    fn take(&self) -> u64 {
        let wanted = match self.phase.mix {
            Mix::Txn { keys } => keys,
            Mix::Put | Mix::Reads { .. } | Mix::Range { .. } | Mix::Count { .. } => 1,
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

    /// The next request, for up to `keys` operations.
    fn next_ask(&mut self, keys: u64) -> Next {
        match self.phase.mix {
            Mix::Reads { percent, stale } if self.rng.next() % 100 < percent => {
                Next::One(Ask::Get { key: self.next_key(), stale })
            }
            Mix::Put | Mix::Reads { .. } => Next::One(Ask::Put { key: self.next_key() }),
            Mix::Range { keys, stale } => {
                // All of it lies within the key space.
                let from = self.next_key() % self.keys.count().saturating_sub(keys).max(1);
                Next::One(Ask::Range { from, limit: keys, stale })
            }
            Mix::Count { stale } => Next::One(Ask::Count { stale }),
            Mix::Txn { .. } => {
                // A key may be written once in a transaction.
                self.in_txn.clear();
                for _ in 0..keys {
                    let key = self.next_key();
                    if !self.in_txn.contains(&key) {
                        self.in_txn.push(key);
                    }
                }
                Next::Txn
            }
        }
    }

    fn record(&self, outcome: Result<(), Missed>, keys: u64, took: Duration) {
        let mut tally = self.shared.tally.lock();
        match outcome {
            Ok(()) => {
                tally.requests += 1;
                tally.operations += keys;
                let micros = u64::try_from(took.as_micros()).unwrap_or(LATENCY_US_MAX);
                tally.latency_us.saturating_record(micros.clamp(1, LATENCY_US_MAX));
                self.shared.done.fetch_add(keys, Ordering::Relaxed);
            }
            Err(missed) => *tally.errors.entry(missed.why).or_default() += 1,
        }
    }
}

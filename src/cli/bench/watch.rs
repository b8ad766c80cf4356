//! `bench watch`: many watches, one writer at a fixed rate, and how long each change takes from the
//! moment it is sent to the member until a watch has it.
//!
//! Every value begins with the time at which it was sent, by the clock that the streams read too. Over REST
//! one connection for each stream, as browsers and scripts have them; over etcd's gRPC many watches on each of
//! a few streams, as its clients have them.

use super::cost::{self, Sample};
use super::door;
use super::keys::Keyspace;
use super::load::per_second;
use super::wire::{self, Wire};
use crate::cli::args::BenchWatch;
use crate::cli::exit::{CliError, UNAVAILABLE};
use crate::cli::output::{Mode, Out};
use crate::cli::session::{Session, note};
use crate::client::Endpoint;
use crate::client::etcd::{Etcd, Login};
use crate::env::{Clock as _, SystemClock, TaskSet};
use bytes::Bytes;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

const LATENCY_US_MAX: u64 = 120_000_000;
/// Digits of the time at the beginning of a value.
const STAMP_DIGITS: usize = 16;
/// Streams, if nothing else is said; and over gRPC, with so many watches each.
const STREAMS: u64 = 1000;
const GRPC_STREAMS: u64 = 10;
const WATCHES_EACH: u64 = 100;
/// Connections being opened at once.
const OPENING_MAX: usize = 64;
/// After the last write, how long nothing may arrive before the rest counts as missing.
const QUIET_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Shared {
    clock: SystemClock,
    latency_us: Mutex<Histogram<u64>>,
    open: AtomicU64,
    broken: AtomicU64,
    delivered: AtomicU64,
    /// A line of each request's head.
    authorization: String,
}

/// Who watches.
#[derive(Debug, Clone, Copy)]
struct Crowd {
    streams: u64,
    each: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    streams: u64,
    watches: u64,
    broken: u64,
    keys: u64,
    writes: u64,
    writes_per_s: f64,
    expected: u64,
    delivered: u64,
    delivered_per_s: f64,
    latency_us: Latency,
    server_cpu_s: Option<f64>,
    server_cpu_us_per_event: Option<f64>,
    server_rss_bytes: Option<f64>,
    server_rss_bytes_per_stream: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: u64,
    p99: u64,
    max: u64,
}

pub(super) async fn measure(args: &BenchWatch, session: &mut Session) -> Result<(), CliError> {
    let keys = Arc::new(Keyspace::new(&args.key_prefix, args.key_size, args.key_space)?);
    let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
        .map_err(|error| CliError::other(format!("histogram: {error}")))?;
    let shared = Arc::new(Shared {
        clock: SystemClock::new(),
        latency_us: Mutex::new(latency_us),
        open: AtomicU64::new(0),
        broken: AtomicU64::new(0),
        delivered: AtomicU64::new(0),
        authorization: wire::authorization(session.client.credentials()),
    });
    let crowd = Crowd {
        streams: args.streams.unwrap_or(if args.grpc { GRPC_STREAMS } else { STREAMS }),
        each: if args.grpc { args.watches_per_stream.unwrap_or(WATCHES_EACH) } else { 1 },
    };
    let endpoints = session.client.endpoints();
    let dialled = match args.grpc {
        true => door::connections(args.connections, endpoints.len()).min(crowd.streams),
        false => 0,
    };
    let dialled = door::dial(endpoints, session.client.credentials(), dialled).await.map_err(failed)?;
    let idle = cost::sample(&session.client).await;
    let tasks = TaskSet::new();
    let opening = Arc::new(Semaphore::new(OPENING_MAX));
    for (index, endpoint) in (0..crowd.streams).zip(endpoints.iter().cycle()) {
        let turn = usize::try_from(index).unwrap_or(0).checked_rem(dialled.len());
        let (opening, shared) = (Arc::clone(&opening), Arc::clone(&shared));
        match turn.and_then(|turn| dialled.get(turn)) {
            Some(etcd) => {
                let watches = index * crowd.each..(index + 1) * crowd.each;
                let watched = watches.map(|watch| keys.bytes(watch % args.key_space)).collect();
                tasks.spawn_until_stop("bench stream", follow_watches(etcd.clone(), watched, opening, shared));
            }
            None => {
                let key = name(&keys, index % args.key_space);
                tasks.spawn_until_stop("bench stream", follow(endpoint.clone(), key, opening, shared));
            }
        }
    }
    while shared.open.load(Ordering::Relaxed) + shared.broken.load(Ordering::Relaxed) < crowd.streams {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let open = shared.open.load(Ordering::Relaxed);
    note(&format!("{open} streams are open"));
    let before = cost::sample(&session.client).await;
    let began = shared.clock.monotonic();
    let (writes, expected) = write(args, session, &keys, crowd.streams * crowd.each, &shared).await?;
    let took = shared.clock.monotonic().saturating_sub(began);
    settle(&shared, expected).await;
    let after = cost::sample(&session.client).await;
    let broken = shared.broken.load(Ordering::Relaxed);
    tasks.stop(Duration::from_secs(5)).await;
    let counts = Counts { crowd, keys: args.key_space, writes, expected, broken };
    let report = Report::new(counts, &shared, took, [&idle, &before, &after]);
    match session.mode {
        Mode::Human => report.table(&mut session.out)?,
        _ => session.out.json(&report)?,
    }
    // Numbers of a run in which events are missing are no numbers.
    let complete = broken == 0 && report.delivered == expected;
    let message = format!("{} of {expected} events arrived, {broken} streams broke", report.delivered);
    if complete { Ok(()) } else { Err(failed(message)) }
}

fn failed(message: String) -> CliError {
    CliError::Failed { message, hint: None, code: UNAVAILABLE }
}

fn name(keys: &Keyspace, number: u64) -> String {
    let mut name = Vec::new();
    keys.write(number, &mut name);
    String::from_utf8_lossy(&name).into_owned()
}

/// Writes at the asked rate; answers how many writes there were and how many events they make.
async fn write(
    args: &BenchWatch,
    session: &Session,
    keys: &Keyspace,
    watches: u64,
    shared: &Shared,
) -> Result<(u64, u64), CliError> {
    let mut writer = Writer::open(session, args.grpc).await?;
    let size = usize::try_from(args.value_size).unwrap_or(0).max(STAMP_DIGITS);
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(args.rate).unwrap_or(u32::MAX));
    let began = shared.clock.monotonic();
    let (mut writes, mut expected) = (0, 0);
    while shared.clock.monotonic().saturating_sub(began) < args.duration {
        ticks.tick().await;
        let number = writes % args.key_space;
        let mut value = Vec::with_capacity(size);
        let sent_us = shared.clock.monotonic().as_micros();
        // Writing to a Vec cannot fail.
        write!(value, "{sent_us:0STAMP_DIGITS$}").ok();
        value.resize(size, b'x');
        writer.put(keys, number, value).await?;
        writes += 1;
        // Watches are dealt to keys in turn.
        expected += watches / args.key_space + u64::from(number < watches % args.key_space);
    }
    Ok((writes, expected))
}

enum Writer {
    Rest { wire: Wire, authorization: String },
    Grpc(Box<Etcd>),
}

impl Writer {
    async fn open(session: &Session, grpc: bool) -> Result<Self, CliError> {
        let (endpoint, credentials) = (&session.client.endpoints()[0], session.client.credentials());
        let lost = |error: &dyn std::fmt::Display| failed(format!("the writer's connection: {error}"));
        if grpc {
            let (etcd, _) = Etcd::connect(vec![endpoint.clone()], Login::Shown(credentials.clone()))
                .await
                .map_err(|error| lost(&error))?;
            return Ok(Self::Grpc(Box::new(etcd)));
        }
        let wire = Wire::open(endpoint).await.map_err(|error| lost(&error))?;
        Ok(Self::Rest { wire, authorization: wire::authorization(credentials) })
    }

    async fn put(&mut self, keys: &Keyspace, number: u64, value: Vec<u8>) -> Result<(), CliError> {
        match self {
            Self::Rest { wire, authorization } => {
                let (key, size) = (name(keys, number), value.len());
                let head = format!("PUT /v1/kv/{key} HTTP/1.1\r\nHost: localhost\r\n{authorization}");
                let mut request = format!("{head}Content-Length: {size}\r\n\r\n").into_bytes();
                request.extend_from_slice(&value);
                match wire.exchange(&request).await {
                    Ok((200..=299, _)) => Ok(()),
                    Ok((status, _)) => Err(failed(format!("a write was answered {status}"))),
                    Err(error) => Err(failed(format!("the writer's connection: {error}"))),
                }
            }
            Self::Grpc(etcd) => {
                etcd.put(keys.bytes(number), value.into()).await.map_err(|error| failed(format!("a write: {error}")))
            }
        }
    }
}

/// Waits until everything has arrived, or nothing does any more.
async fn settle(shared: &Shared, expected: u64) {
    let (mut seen, mut at) = (0, shared.clock.monotonic());
    loop {
        let delivered = shared.delivered.load(Ordering::Relaxed);
        let now = shared.clock.monotonic();
        if delivered != seen {
            (seen, at) = (delivered, now);
        }
        if delivered >= expected || now.saturating_sub(at) > QUIET_MAX {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One stream, until it breaks or is stopped.
async fn follow(endpoint: Endpoint, key: String, opening: Arc<Semaphore>, shared: Arc<Shared>) {
    if read(&endpoint, &key, &opening, &shared).await.is_err() {
        shared.broken.fetch_add(1, Ordering::Relaxed);
    }
}

/// Watches on one stream, until it breaks or is stopped.
async fn follow_watches(etcd: Etcd, keys: Vec<Bytes>, opening: Arc<Semaphore>, shared: Arc<Shared>) {
    // Whoever stops the streams drops this; otherwise it ends with what broke it.
    if read_watches(&etcd, keys, &opening, &shared).await.is_none() {
        shared.broken.fetch_add(1, Ordering::Relaxed);
    }
}

async fn read_watches(etcd: &Etcd, keys: Vec<Bytes>, opening: &Semaphore, shared: &Shared) -> Option<()> {
    let turn = opening.acquire().await.ok()?;
    let mut watches = etcd.watches(keys, 0).await.ok()?;
    drop(turn);
    shared.open.fetch_add(1, Ordering::Relaxed);
    loop {
        let events = watches.next().await.ok()?;
        let now_us = u64::try_from(shared.clock.monotonic().as_micros()).unwrap_or(u64::MAX);
        for event in &events {
            let sent_us = event.kv.as_ref().and_then(|kv| number(kv.value.get(..STAMP_DIGITS)?));
            if let Some(sent_us) = sent_us {
                shared.delivered.fetch_add(1, Ordering::Relaxed);
                shared.latency_us.lock().saturating_record(now_us.saturating_sub(sent_us));
            }
        }
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

async fn read(endpoint: &Endpoint, key: &str, opening: &Semaphore, shared: &Shared) -> std::io::Result<()> {
    let broken = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let turn = opening.acquire().await.map_err(|_| broken())?;
    let mut stream = TcpStream::connect(endpoint.authority()).await?;
    let request = format!("GET /v1/watch?key={key} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", shared.authorization);
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = Vec::with_capacity(1 << 10);
    while !buffer.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(broken());
        }
    }
    if !buffer.starts_with(b"HTTP/1.1 200") {
        return Err(broken());
    }
    drop(turn);
    shared.open.fetch_add(1, Ordering::Relaxed);
    loop {
        let now_us = u64::try_from(shared.clock.monotonic().as_micros()).unwrap_or(u64::MAX);
        let mut rest = &buffer[..];
        // Whole lines; the frames of chunks between them are no lines of JSON.
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            if let Some(sent_us) = stamp(&rest[..end]) {
                shared.delivered.fetch_add(1, Ordering::Relaxed);
                // A latency beyond the histogram's range counts as its end.
                shared.latency_us.lock().saturating_record(now_us.saturating_sub(sent_us));
            }
            rest = &rest[end + 1..];
        }
        let used = buffer.len() - rest.len();
        buffer.drain(..used);
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(broken());
        }
    }
}

/// The time at the beginning of a line's value.
fn stamp(line: &[u8]) -> Option<u64> {
    const BEFORE: &[u8] = b"\"value\":\"";
    let at = line.windows(BEFORE.len()).position(|window| window == BEFORE)? + BEFORE.len();
    number(line.get(at..at + STAMP_DIGITS)?)
}

/// What a run was, and what came of it.
#[derive(Debug, Clone, Copy)]
struct Counts {
    crowd: Crowd,
    keys: u64,
    writes: u64,
    expected: u64,
    broken: u64,
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "means for people")]
    fn new(counts: Counts, shared: &Shared, took: Duration, [idle, before, after]: [&Sample; 3]) -> Self {
        let Counts { crowd, keys, writes, expected, broken } = counts;
        let latency = shared.latency_us.lock();
        let delivered = shared.delivered.load(Ordering::Relaxed);
        let cpu = after.server_cpu_s.zip(before.server_cpu_s).map(|(after, before)| after - before);
        let grown = before.server_rss_bytes.zip(idle.server_rss_bytes).map(|(open, idle)| open - idle);
        Self {
            streams: crowd.streams,
            watches: crowd.streams * crowd.each,
            broken,
            keys,
            writes,
            writes_per_s: per_second(writes, took),
            expected,
            delivered,
            delivered_per_s: per_second(delivered, took),
            latency_us: Latency {
                mean: latency.mean(),
                p50: latency.value_at_quantile(0.5),
                p99: latency.value_at_quantile(0.99),
                max: latency.max(),
            },
            server_cpu_s: cpu,
            server_cpu_us_per_event: cpu.filter(|_| delivered > 0).map(|cpu| cpu * 1e6 / delivered as f64),
            server_rss_bytes: after.server_rss_bytes,
            server_rss_bytes_per_stream: grown.map(|grown| grown / crowd.streams as f64),
        }
    }

    fn table(&self, out: &mut Out) -> Result<(), CliError> {
        let known = |value: Option<f64>, scale: f64, unit: &str| {
            value.map_or("unknown".to_owned(), |value| format!("{:.1} {unit}", value / scale))
        };
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let micros = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
        let header = [
            "STREAMS",
            "WATCHES",
            "KEYS",
            "WRITES/S",
            "EVENTS",
            "EVENTS/S",
            "P50",
            "P99",
            "MAX",
            "SERVER CPU/EVENT",
            "SERVER RSS",
            "RSS/STREAM",
        ];
        let row = vec![
            self.streams.to_string(),
            self.watches.to_string(),
            self.keys.to_string(),
            format!("{:.0}", self.writes_per_s),
            self.delivered.to_string(),
            format!("{:.0}", self.delivered_per_s),
            micros(self.latency_us.p50),
            micros(self.latency_us.p99),
            micros(self.latency_us.max),
            known(self.server_cpu_us_per_event, 1.0, "µs"),
            known(self.server_rss_bytes, 1_048_576.0, "MiB"),
            known(self.server_rss_bytes_per_stream, 1024.0, "KiB"),
        ];
        out.table(&header, vec![row])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_found_in_a_line() {
        let line = br#"{"type":"put","revision":42,"key":"b/1","value":"0000000000123456xxx","version":2}"#;
        assert_eq!(stamp(line), Some(123_456));
        for other in [&br#"{"type":"bookmark","revision":42}"#[..], b"1f\r", br#""value":"12"#] {
            assert_eq!(stamp(other), None);
        }
    }
}

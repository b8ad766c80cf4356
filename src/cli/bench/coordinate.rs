//! `bench lock`, `bench lease` and `bench replay`: what coordination costs. Contenders for one lock, each with its
//! own lease, who hand it on at once; keep-alives; leases that all run out in the same moment while others go on
//! writing; and one reader of what is long written.

use super::cost::{self, Sample};
use super::grpc;
use super::load::per_second;
use super::wire::{self, Wire};
use crate::cli::args::{BenchLease, BenchLock, BenchReplay};
use crate::cli::exit::{CliError, UNAVAILABLE};
use crate::cli::output::Mode;
use crate::cli::session::{Session, note};
use crate::client::{Client, Credentials, Endpoint};
use crate::env::{Clock as _, Entropy as _, SystemClock, SystemEntropy};
use futures_util::future::{join_all, try_join_all};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const LATENCY_US_MAX: u64 = 120_000_000;
/// Puts of one transaction that prepares a run.
const FILL_TXN_KEYS: u64 = 128;
/// How often it is looked whether the leases are gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The bystanders write this often each.
const BYSTANDER_EVERY: Duration = Duration::from_millis(10);
const GONE_MAX: Duration = Duration::from_secs(120);
/// Keys that a history to be replayed is of.
pub(super) const REPLAY_KEYS: u64 = 1000;

/// One figure of a report, in the order of the columns.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    operation: &'static str,
    operations: u64,
    ops_per_s: f64,
    /// Of an operation; of a lock, from the moment its release is sent until the next holder knows; of an expiry,
    /// what bystanders wait for their writes.
    latency_us: Latency,
    server_cpu_us_per_op: Option<f64>,
    server_rss_bytes: Option<f64>,
    /// From the moment the TTLs were over until every key was gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    gone_after_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: u64,
    p99: u64,
    max: u64,
}

/// What a run counts.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) clock: SystemClock,
    latency_us: Mutex<Histogram<u64>>,
    pub(super) operations: AtomicU64,
}

impl Tally {
    pub(super) fn new() -> Result<Self, CliError> {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
            .map_err(|error| CliError::other(format!("histogram: {error}")))?;
        Ok(Self { clock: SystemClock::new(), latency_us: Mutex::new(latency_us), operations: AtomicU64::new(0) })
    }

    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn note(&self, latency_us: u64) {
        self.operations.fetch_add(1, Ordering::Relaxed);
        // A latency beyond the histogram's range counts as its end.
        self.latency_us.lock().saturating_record(latency_us);
    }

    #[expect(clippy::cast_precision_loss, reason = "means for people")]
    pub(super) fn report(&self, operation: &'static str, took: Duration, [before, after]: [&Sample; 2]) -> Report {
        let operations = self.operations.load(Ordering::Relaxed);
        let latency = self.latency_us.lock();
        let cpu = after.server_cpu_s.zip(before.server_cpu_s).map(|(after, before)| after - before);
        Report {
            operation,
            operations,
            ops_per_s: per_second(operations, took),
            latency_us: Latency {
                mean: latency.mean(),
                p50: latency.value_at_quantile(0.5),
                p99: latency.value_at_quantile(0.99),
                max: latency.max(),
            },
            server_cpu_us_per_op: cpu.filter(|_| operations > 0).map(|cpu| cpu * 1e6 / operations as f64),
            server_rss_bytes: after.server_rss_bytes,
            gone_after_s: None,
        }
    }
}

impl Report {
    pub(super) fn tell(&self, session: &mut Session) -> Result<(), CliError> {
        if session.mode != Mode::Human {
            return session.out.json(self);
        }
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let micros = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
        let known = |value: Option<f64>, scale: f64, unit: &str| {
            value.map_or("unknown".to_owned(), |value| format!("{:.1} {unit}", value / scale))
        };
        let mut header = vec!["OP", "OPS", "OPS/S", "P50", "P99", "MAX", "SERVER CPU/OP", "SERVER RSS"];
        let mut row = vec![
            self.operation.to_owned(),
            self.operations.to_string(),
            format!("{:.0}", self.ops_per_s),
            micros(self.latency_us.p50),
            micros(self.latency_us.p99),
            micros(self.latency_us.max),
            known(self.server_cpu_us_per_op, 1.0, "µs"),
            known(self.server_rss_bytes, 1_048_576.0, "MiB"),
        ];
        if let Some(gone) = self.gone_after_s {
            header.push("GONE AFTER");
            row.push(format!("{gone:.2} s"));
        }
        session.out.table(&header, vec![row])
    }
}

pub(super) fn lost(error: &io::Error) -> CliError {
    CliError::Failed { message: format!("a connection: {error}"), hint: None, code: UNAVAILABLE }
}

/// A connection, and who asks on it.
#[derive(Debug)]
struct Line {
    wire: Wire,
    authorization: String,
}

impl Line {
    async fn open(endpoint: &Endpoint, credentials: &Credentials) -> io::Result<Self> {
        Ok(Self { wire: Wire::open(endpoint).await?, authorization: wire::authorization(credentials) })
    }
}

fn request(method: &str, target: &str, authorization: &str, body: &str) -> Vec<u8> {
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{authorization}{kind}");
    format!("{head}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

async fn must(line: &mut Line, method: &str, target: &str, body: &str) -> io::Result<Vec<u8>> {
    let (status, told) = line.wire.ask(&request(method, target, &line.authorization, body)).await?;
    if (200..300).contains(&status) {
        return Ok(told);
    }
    let told = String::from_utf8_lossy(&told).into_owned();
    Err(io::Error::other(format!("{method} {target} was answered {status}: {}", told.trim_end())))
}

/// Endpoints in turn.
fn endpoints(session: &Session, count: u64) -> Vec<Endpoint> {
    let all = session.client.endpoints();
    (0..count).zip(all.iter().cycle()).map(|(_, endpoint)| endpoint.clone()).collect()
}

pub(super) async fn lock(args: &BenchLock, session: &mut Session) -> Result<(), CliError> {
    if args.grpc {
        return grpc::lock(args, session).await;
    }
    let tally = Tally::new()?;
    let released_us = AtomicU64::new(0);
    let first = SystemEntropy.next_u64() >> 2;
    let credentials = session.client.credentials();
    let before = cost::sample(&session.client).await;
    let began = tally.clock.monotonic();
    let contenders = endpoints(session, args.contenders).into_iter().zip(first..).map(|(endpoint, lease)| {
        let (tally, released_us) = (&tally, &released_us);
        async move {
            let mut wire = Line::open(&endpoint, credentials).await?;
            must(&mut wire, "POST", &format!("/v1/leases?ttl=10m&id={lease:x}"), "").await?;
            while tally.clock.monotonic().saturating_sub(began) < args.duration {
                must(&mut wire, "POST", &format!("/v1/locks/{}?wait=60s&lease={lease:x}", args.name), "").await?;
                // Nobody else holds: what is read was written by the holder before.
                let released = released_us.load(Ordering::SeqCst);
                if released > 0 {
                    tally.note(tally.now_us().saturating_sub(released));
                }
                released_us.store(tally.now_us(), Ordering::SeqCst);
                must(&mut wire, "DELETE", &format!("/v1/locks/{}/claims/{lease:016x}", args.name), "").await?;
            }
            must(&mut wire, "DELETE", &format!("/v1/leases/{lease:x}"), "").await.map(drop)
        }
    });
    try_join_all(contenders).await.map_err(|error: io::Error| lost(&error))?;
    let took = tally.clock.monotonic().saturating_sub(began);
    let after = cost::sample(&session.client).await;
    tally.report("lock hand-over", took, [&before, &after]).tell(session)
}

pub(super) async fn lease(args: &BenchLease, session: &mut Session) -> Result<(), CliError> {
    match args.expire {
        Some(within) => expire(args, within, session).await,
        None if args.grpc => grpc::keep_alive(args, session).await,
        None => keep_alive(args, session).await,
    }
}

async fn keep_alive(args: &BenchLease, session: &mut Session) -> Result<(), CliError> {
    let tally = Tally::new()?;
    let first = SystemEntropy.next_u64() >> 2;
    let each = args.leases.div_ceil(args.connections);
    let credentials = session.client.credentials();
    let mut wires = Vec::new();
    for endpoint in endpoints(session, args.connections) {
        wires.push(Line::open(&endpoint, credentials).await.map_err(|error| lost(&error))?);
    }
    let of = |at: u64| first + at * each..first + (at + 1) * each;
    let grants = wires.iter_mut().zip(0..).map(|(wire, at)| async move {
        for lease in of(at) {
            must(wire, "POST", &format!("/v1/leases?ttl=10m&id={lease:x}"), "").await?;
        }
        Ok::<_, io::Error>(())
    });
    try_join_all(grants).await.map_err(|error| lost(&error))?;
    let before = cost::sample(&session.client).await;
    let began = tally.clock.monotonic();
    let tally = &tally;
    let renewals = wires.iter_mut().zip(0..).map(|(wire, at)| async move {
        for lease in of(at).cycle() {
            let sent = tally.now_us();
            if Duration::from_micros(sent).saturating_sub(began) >= args.duration {
                break;
            }
            must(wire, "POST", &format!("/v1/leases/{lease:x}/keepalive"), "").await?;
            tally.note(tally.now_us().saturating_sub(sent));
        }
        Ok::<_, io::Error>(())
    });
    try_join_all(renewals).await.map_err(|error| lost(&error))?;
    let took = tally.clock.monotonic().saturating_sub(began);
    let after = cost::sample(&session.client).await;
    let revokes = wires.iter_mut().zip(0..).map(|(wire, at)| async move {
        for lease in of(at) {
            must(wire, "DELETE", &format!("/v1/leases/{lease:x}"), "").await?;
        }
        Ok::<_, io::Error>(())
    });
    try_join_all(revokes).await.map_err(|error| lost(&error))?;
    tally.report("keep-alive", took, [&before, &after]).tell(session)
}

/// Keys whose TTLs all end at one moment, and writers who must not notice.
async fn expire(args: &BenchLease, within: Duration, session: &mut Session) -> Result<(), CliError> {
    let tally = Tally::new()?;
    let prefix = "bench-expire/";
    let began = tally.clock.monotonic();
    let at_ms = || u64::try_from(tally.clock.monotonic().saturating_sub(began).as_millis()).unwrap_or(u64::MAX);
    let end_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    let next = AtomicU64::new(0);
    let credentials = session.client.credentials();
    let writers = endpoints(session, args.connections).into_iter().map(|endpoint| {
        let next = &next;
        async move {
            let mut wire = Line::open(&endpoint, credentials).await?;
            loop {
                let from = next.fetch_add(FILL_TXN_KEYS, Ordering::Relaxed);
                if from >= args.leases {
                    return Ok(());
                }
                let left = end_ms.checked_sub(at_ms()).filter(|left| *left >= 1000);
                let left =
                    left.ok_or_else(|| io::Error::other("the leases take longer to write than they are to live"))?;
                let puts = (from..args.leases.min(from + FILL_TXN_KEYS))
                    .map(|at| format!(r#"{{"put":{{"key":"{prefix}{at}","value":"","ttl":"{left}ms"}}}}"#));
                let body = format!(r#"{{"then":[{}]}}"#, puts.collect::<Vec<_>>().join(","));
                must(&mut wire, "POST", "/v1/txn", &body).await?;
            }
        }
    });
    try_join_all(writers).await.map_err(|error: io::Error| lost(&error))?;
    let left = Duration::from_millis(end_ms.saturating_sub(at_ms()));
    note(&format!("{} leases were granted, they end in {left:.1?}", args.leases));
    tokio::time::sleep(left.saturating_sub(Duration::from_secs(1))).await;
    let before = cost::sample(&session.client).await;
    let gone = AtomicU64::new(0);
    let bystanders = endpoints(session, args.bystanders).into_iter().enumerate().map(|(at, endpoint)| {
        let (gone, tally) = (&gone, &tally);
        async move {
            let mut wire = Line::open(&endpoint, credentials).await?;
            let mut ticks = tokio::time::interval(BYSTANDER_EVERY);
            while gone.load(Ordering::SeqCst) == 0 {
                ticks.tick().await;
                let sent = tally.now_us();
                must(&mut wire, "PUT", &format!("/v1/kv/bench-bystander/{at}"), "{}").await?;
                tally.note(tally.now_us().saturating_sub(sent));
            }
            Ok::<_, io::Error>(())
        }
    });
    let looking = async {
        let looked = look(session, prefix, &tally.clock, began + GONE_MAX + within).await;
        gone.store(at_ms().max(1), Ordering::SeqCst);
        looked
    };
    let (looked, wrote) = tokio::join!(looking, join_all(bystanders));
    looked.map_err(|error| lost(&error))?;
    wrote.into_iter().collect::<io::Result<()>>().map_err(|error| lost(&error))?;
    let gone_ms = gone.load(Ordering::SeqCst);
    let after = cost::sample(&session.client).await;
    let took = Duration::from_millis(gone_ms.saturating_sub(end_ms) + 1000);
    let mut report = tally.report("put beside an expiry", took, [&before, &after]);
    report.gone_after_s = Some(Duration::from_millis(gone_ms.saturating_sub(end_ms)).as_secs_f64());
    report.tell(session)
}

/// Returns once no key begins so.
async fn look(session: &Session, prefix: &str, clock: &SystemClock, until: Duration) -> io::Result<()> {
    let mut wire = Line::open(&session.client.endpoints()[0], session.client.credentials()).await?;
    let target = format!("/v1/kv?prefix={prefix}&count_only");
    while clock.monotonic() < until {
        let told = must(&mut wire, "GET", &target, "").await?;
        if String::from_utf8_lossy(&told).contains("\"count\":0") {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(io::Error::other("the leases did not end"))
}

/// Writes so many revisions, and reads them on one stream.
pub(super) async fn replay(args: &BenchReplay, session: &mut Session) -> Result<(), CliError> {
    if args.grpc {
        return grpc::replay(args, session).await;
    }
    let tally = Tally::new()?;
    let value = "x".repeat(usize::try_from(args.value_size).unwrap_or(0));
    let prefix = format!("bench-replay/{:x}/", SystemEntropy.next_u64());
    // What was written before is not part of it, and may be compacted.
    let stood = newest(&session.client).await.map_err(|error| lost(&error))?;
    let next = AtomicU64::new(0);
    let credentials = session.client.credentials();
    let writers = endpoints(session, args.connections).into_iter().map(|endpoint| {
        let (next, prefix, value) = (&next, &prefix, &value);
        async move {
            let mut wire = Line::open(&endpoint, credentials).await?;
            while next.fetch_add(1, Ordering::Relaxed) < args.revisions {
                let at = next.load(Ordering::Relaxed) % REPLAY_KEYS;
                must(&mut wire, "PUT", &format!("/v1/kv/{prefix}{at}"), value).await?;
            }
            Ok::<_, io::Error>(())
        }
    });
    try_join_all(writers).await.map_err(|error| lost(&error))?;
    let before = cost::sample(&session.client).await;
    let began = tally.clock.monotonic();
    read(&session.client, &prefix, stood, args.revisions).await.map_err(|error| lost(&error))?;
    let took = tally.clock.monotonic().saturating_sub(began);
    tally.note(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    tally.operations.store(args.revisions, Ordering::Relaxed);
    let after = cost::sample(&session.client).await;
    tally.report("replayed event", took, [&before, &after]).tell(session)
}

/// The newest revision of the store.
async fn newest(client: &Client) -> io::Result<u64> {
    let mut line = Line::open(&client.endpoints()[0], client.credentials()).await?;
    let told = must(&mut line, "GET", "/v1/kv?prefix=bench-replay/&count_only", "").await?;
    let told: serde_json::Value = serde_json::from_slice(&told)?;
    told["revision"].as_u64().ok_or_else(|| io::Error::other("a listing without its revision"))
}

async fn read(client: &Client, prefix: &str, after: u64, events: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect(client.endpoints()[0].authority()).await?;
    let target = format!("/v1/watch?prefix={prefix}&after={after}&bookmarks=off");
    stream.write_all(&request("GET", &target, &wire::authorization(client.credentials()), "")).await?;
    let mut buffer = vec![0; 256 << 10];
    let mut seen = 0;
    // A line ends with a brace; neither heads nor the frames of chunks do.
    let mut last = 0;
    while seen < events {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for byte in &buffer[..count] {
            seen += u64::from(last == b'}' && *byte == b'\n');
            last = *byte;
        }
    }
    Ok(())
}

//! The proof of watches on three real processes: a thousand streams of every form are held against one record of
//! all changes while members are killed, told to stop, stand still and are cut off, history is taken away, and
//! some readers stall. Nothing may be lost, doubled, out of order or in pieces, and memory stays bounded.
//!
//! It goes on for `TENURE_PROOF_SECONDS`, and longer (three times that at most) until `TENURE_PROOF_EVENTS` were
//! delivered. `TENURE_PROOF_STREAMS` and `TENURE_PROOF_WRITERS` ask for more than the short form, and
//! `TENURE_PROOF_SEED` for the choices of an earlier run.

mod oracle;
mod reader;
mod stream;
mod traffic;

use crate::support::eventually;
use crate::support::members::Cluster;
use oracle::{ALL_KEYS, GROUPS, KEYS, Record, key_name};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reader::{Reader, Shared};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const MEMBERS: usize = 3;
const LONG: Duration = Duration::from_secs(90);
/// How much of history a compaction leaves.
const KEPT: i64 = 60;
/// What a member may hold in memory in the debug build, whatever its readers do: 1,000 streams, the ring, the
/// member's budget for streams, caches, and the log's tail.
const RSS_MAX: u64 = 700 << 20;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Which keys a stream follows, and how that is asked for.
fn targets(rng: &mut StdRng) -> (Vec<bool>, String) {
    let mut wanted = vec![false; ALL_KEYS];
    let mut query = String::new();
    let mut want = |keys: std::ops::Range<usize>| wanted[keys].fill(true);
    match rng.random_range(0..100) {
        0..2 => {
            want(0..ALL_KEYS);
            query += "&prefix=g";
        }
        2..20 => {
            let (from, to) = (rng.random_range(0..GROUPS - 3), rng.random_range(1..3));
            want(from * KEYS..(from + to) * KEYS);
            query += &format!("&start=g{from:02}/&end=g{:02}/", from + to);
        }
        _ => {
            for _ in 0..rng.random_range(1..4) {
                if rng.random_bool(0.5) {
                    let key = rng.random_range(0..ALL_KEYS);
                    want(key..key + 1);
                    query += &format!("&key={}", key_name(key));
                } else {
                    let group = rng.random_range(0..GROUPS);
                    want(group * KEYS..(group + 1) * KEYS);
                    query += &format!("&prefix=g{group:02}/");
                }
            }
        }
    }
    (wanted, query)
}

fn readers(streams: usize, seed: u64, shared: &Arc<Shared>) -> JoinSet<Result<Reader, String>> {
    let mut set = JoinSet::new();
    for member in 0..MEMBERS {
        set.spawn(Reader::recorder(member, Arc::clone(shared), seed).run());
    }
    for at in 0..streams {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(1000 + u64::try_from(at).unwrap()));
        let (wanted, query) = targets(&mut rng);
        set.spawn(Reader::new(at, (wanted, query), Arc::clone(shared), rng).run());
    }
    set
}

/// What is done to members, one after the other, until the time is over.
#[derive(Debug, Default)]
struct Nemesis {
    kills: usize,
    stops: usize,
    pauses: usize,
    cuts: usize,
}

impl Nemesis {
    async fn run(&mut self, cluster: &mut Cluster, rng: &mut StdRng, enough: impl Fn() -> bool) {
        while !enough() {
            tokio::time::sleep(Duration::from_millis(rng.random_range(1000..3000))).await;
            let leads = rng.random_bool(0.5);
            let member = if leads { cluster.leader().await } else { rng.random_range(0..MEMBERS) };
            let lasting = Duration::from_millis(rng.random_range(300..2500));
            match rng.random_range(0..10) {
                0..3 => {
                    self.kills += 1;
                    cluster.kill(member);
                    tokio::time::sleep(lasting / 3).await;
                    cluster.restart(member).await;
                }
                3 => {
                    self.stops += 1;
                    cluster.terminate(member).await;
                    cluster.restart(member).await;
                }
                4..7 => {
                    self.pauses += 1;
                    cluster.pause(member);
                    tokio::time::sleep(lasting).await;
                    cluster.resume(member);
                }
                way => {
                    self.cuts += 1;
                    match way {
                        7 => cluster.links().cut(member, (member + 1) % MEMBERS),
                        _ => cluster.links().isolate(member, MEMBERS),
                    }
                    tokio::time::sleep(lasting).await;
                    cluster.links().heal();
                }
            }
            cluster.ready(&[0, 1, 2]).await;
        }
    }
}

/// Takes history away behind the record.
async fn compact(shared: Arc<Shared>, stop: Arc<AtomicBool>, mut rng: StdRng) -> usize {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
    let mut done = 0;
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let upto = {
            let mut record = shared.record.lock().unwrap();
            let upto = record.last() - KEPT;
            if upto <= record.compacted {
                continue;
            }
            record.compacted = upto;
            upto
        };
        let member = &shared.addresses[rng.random_range(0..MEMBERS)];
        let answer = http.post(format!("http://{member}/v1/compact?revision={upto}")).send().await;
        done += usize::from(answer.is_ok_and(|answer| answer.status().is_success()));
    }
    done
}

/// The most memory that any member was seen to use.
async fn most_memory(pids: Arc<std::sync::Mutex<Vec<Option<u32>>>>, stop: Arc<AtomicBool>) -> u64 {
    let mut most = 0;
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let pids: Vec<u32> = pids.lock().unwrap().iter().flatten().copied().collect();
        most = pids.into_iter().filter_map(crate::support::resident_bytes).fold(most, u64::max);
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stream_tells_everything_once_and_in_order_whatever_happens_to_members() {
    let seconds = setting("TENURE_PROOF_SECONDS", 20);
    let streams = usize::try_from(setting("TENURE_PROOF_STREAMS", 1000)).unwrap();
    let writers = usize::try_from(setting("TENURE_PROOF_WRITERS", 6)).unwrap();
    let wanted = setting("TENURE_PROOF_EVENTS", 30_000);
    let seed = setting("TENURE_PROOF_SEED", u64::from(std::process::id()));
    println!("TENURE_PROOF_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::linked(MEMBERS, &["--auto-compact", "off", "--snapshot-bytes", "1MiB"]).await;
    let after = cluster.status(0).await["revision"].as_i64().unwrap();
    let addresses: Vec<String> = (0..MEMBERS).map(|member| cluster.client_address(member)).collect();
    let urls: Vec<String> = addresses.iter().map(|address| format!("http://{address}")).collect();
    let shared = Arc::new(Shared::new(Record::after(after), addresses));
    let stop = Arc::new(AtomicBool::new(false));
    let mut set = readers(streams, seed, &shared);
    let traffic: Vec<_> = (0..writers)
        .map(|at| tokio::spawn(traffic::writer(at, urls.clone(), rng.random(), Arc::clone(&stop))))
        .collect();
    let compactor = tokio::spawn(compact(Arc::clone(&shared), Arc::clone(&stop), StdRng::seed_from_u64(rng.random())));
    let memory = tokio::spawn(most_memory(cluster.links().pids(), Arc::clone(&stop)));
    let mut nemesis = Nemesis::default();
    let begun = Instant::now();
    let enough = || {
        let spent = begun.elapsed() / u32::try_from(seconds).unwrap().max(1);
        spent >= Duration::from_secs(if shared.delivered() < wanted { 3 } else { 1 })
    };
    let failed = async {
        match set.join_next().await {
            Some(Ok(Err(wrong))) => wrong,
            other => format!("a reader ended: {other:?}"),
        }
    };
    tokio::select! {
        () = nemesis.run(&mut cluster, &mut rng, enough) => {}
        wrong = failed => panic!("{wrong}"),
    }
    stop.store(true, Ordering::SeqCst);
    let mut writes = Vec::new();
    for writer in traffic {
        writes.extend(writer.await.unwrap());
    }
    let (compactions, most) = (compactor.await.unwrap(), memory.await.unwrap());
    // Whatever is still to expire does so before the end is looked for.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let end = cluster.status(cluster.leader().await).await["revision"].as_i64().unwrap();
    eventually("the record is complete", LONG, async || shared.record.lock().unwrap().last() >= end).await;
    shared.finish(end);
    let (mut events, mut bookmarks, mut gaps, mut opened) = (0, 0, 0, 0);
    let ended = tokio::time::timeout(LONG, async {
        while let Some(reader) = set.join_next().await {
            let reader = reader.unwrap().unwrap_or_else(|wrong| panic!("{wrong}"));
            events += reader.follower.events;
            bookmarks += reader.follower.bookmarks;
            gaps += reader.follower.gaps;
            opened += reader.opened;
        }
    });
    assert!(ended.await.is_ok(), "{} streams did not come to the end, {end}", set.len());
    let record = shared.record.lock().unwrap();
    traffic::judge(&record, after, &writes);
    println!(
        "{events} events, {bookmarks} bookmarks and {gaps} told gaps on {streams} streams opened {opened} times, of {} \
         revisions by {} writes; {nemesis:?}, {compactions} compactions; at most {} MiB in a member",
        record.last() - after,
        writes.len(),
        most >> 20
    );
    assert!(events > 5_000 && opened > u64::try_from(streams).unwrap() && compactions > 0, "too little happened");
    assert!(nemesis.kills + nemesis.pauses + nemesis.cuts + nemesis.stops >= 3, "too little was done: {nemesis:?}");
    assert!(most < RSS_MAX, "a member used {most} bytes");
}

//! Many watches of every form on a few gRPC streams of one member, held against one record of all that was
//! written: while readers stall, values fill the queues, watches come and go, and clients ask how far they are.
//! `TENURE_WATCHES_SEED` repeats the choices of an earlier run.

use crate::support::Node;
use crate::support::grpc::{Etcd, delete_op, etcd, mvccpb, prefix, put_op, revision};
use bytes::Bytes;
use etcd::watch_create_request::FilterType;
use etcd::watch_request::RequestUnion;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const STREAMS: u64 = 8;
const WATCHES: usize = 40;
const WRITERS: usize = 4;
/// Of each writer; nobody else writes them.
const KEYS: usize = 6;
const WRITES: usize = 500;

/// What a revision changed, in the order of its operations: the keys, and the value that was put.
type Changes = Vec<(Bytes, Option<String>)>;

#[derive(Debug, Default)]
struct Record(Mutex<BTreeMap<i64, Changes>>);

/// A value as it is kept here: its number, and its size.
fn brief(value: &[u8]) -> String {
    let number = value.split(|byte| *byte == b'/').next().unwrap_or_default();
    format!("{}/{}", String::from_utf8_lossy(number), value.len())
}

impl Record {
    /// What a watch is told after `from` and up to `upto`.
    fn told(&self, watch: &Watched, upto: i64) -> Vec<Told> {
        let record = self.0.lock().unwrap();
        let mut state = BTreeMap::new();
        let mut told = Vec::new();
        for (revision, changes) in record.range(..=upto) {
            for (key, value) in changes {
                let former = match value {
                    Some(value) => state.insert(key.clone(), value.clone()),
                    None => state.remove(key),
                };
                let wanted = if value.is_some() { watch.puts } else { watch.deletes };
                if *revision >= watch.from && wanted && watch.shows(key) {
                    let (value, former) = (value.clone(), former.filter(|_| watch.prev));
                    told.push(Told { revision: *revision, key: key.clone(), value, former });
                }
            }
        }
        told
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    revision: i64,
    key: Bytes,
    value: Option<String>,
    former: Option<String>,
}

#[derive(Debug)]
struct Watched {
    start: Bytes,
    end: Bytes,
    puts: bool,
    deletes: bool,
    prev: bool,
    /// The first revision that it is told of.
    from: i64,
    told: Vec<Told>,
    /// The last answer told a part of what there was.
    fragment: bool,
    /// Everything up to here was told, the member said.
    progress: i64,
}

impl Watched {
    fn shows(&self, key: &Bytes) -> bool {
        if self.end.is_empty() { *key == self.start } else { self.start <= *key && *key < self.end }
    }

    fn last(&self) -> i64 {
        self.told.last().map_or(0, |told| told.revision)
    }

    fn hears(&mut self, answer: etcd::WatchResponse) {
        let (at, before) = (revision(&answer.header), self.last());
        if answer.events.is_empty() {
            assert!(at >= before && at + 1 >= self.from, "progress to {at} after {before}");
            self.progress = at;
        }
        for event in answer.events {
            let deleted = event.r#type == i32::from(mvccpb::event::EventType::Delete);
            let kv = event.kv.unwrap();
            let value = (!deleted).then(|| brief(&kv.value));
            let former = event.prev_kv.map(|kv| brief(&kv.value));
            assert!(kv.mod_revision > self.progress, "{} after progress to {}", kv.mod_revision, self.progress);
            let is_next = kv.mod_revision > before || self.fragment && kv.mod_revision == before;
            assert!(is_next, "{} after {before}", kv.mod_revision);
            self.told.push(Told { revision: kv.mod_revision, key: kv.key, value, former });
        }
        self.fragment = answer.fragment;
    }

    /// What it was told is what it is to be told, up to this revision.
    fn judge(&self, record: &Record, upto: i64) {
        let due = record.told(self, upto);
        let wrong = self.told.iter().zip(&due).find(|(told, due)| told != due);
        assert!(wrong.is_none(), "told and due: {wrong:?}");
        assert_eq!(self.told.len(), due.len(), "up to {upto}");
    }
}

fn key(writer: usize, key: usize) -> String {
    format!("w{writer}/{key}")
}

/// Writes keys of its own, so that it knows what each of its writes changes.
async fn writer(etcd: Etcd, at: usize, mut rng: StdRng, shared: Arc<Shared>) {
    let mut there = [false; KEYS];
    for number in 0..WRITES {
        let (mut changes, mut ops) = (Changes::new(), Vec::new());
        let count = if rng.random_bool(0.2) { rng.random_range(2..=KEYS) } else { 1 };
        let first = rng.random_range(0..KEYS);
        for at_key in (0..count).map(|more| (first + more) % KEYS) {
            let name = key(at, at_key);
            let delete = there[at_key] && rng.random_bool(0.3);
            there[at_key] = !delete;
            // Some fill a stream's queue.
            let size = if rng.random_bool(0.03) { rng.random_range(1..40_000) } else { 10 };
            let value = format!("{number}/{}", "v".repeat(size));
            ops.push(if delete { delete_op(&name) } else { put_op(&name, &value, 0) });
            changes.push((name.into(), (!delete).then(|| brief(value.as_bytes()))));
        }
        let request = etcd::TxnRequest { success: ops, ..Default::default() };
        let at_revision = revision(&etcd.txn(request).await.unwrap().header);
        shared.record.0.lock().unwrap().insert(at_revision, changes);
        shared.newest.fetch_max(at_revision, Ordering::SeqCst);
        if number % 50 == 0 {
            // Time to catch up for those who did not stall.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn chosen(rng: &mut StdRng, watch_id: i64, newest: i64) -> etcd::WatchCreateRequest {
    let (writer, at) = (rng.random_range(0..WRITERS), rng.random_range(0..KEYS));
    let (key, range_end) = match rng.random_range(0..10) {
        0 => prefix("w"),
        1..4 => prefix(&format!("w{writer}/")),
        _ => (key(writer, at).into(), Bytes::new()),
    };
    let filters = match rng.random_range(0..10) {
        0 => vec![FilterType::Noput.into()],
        1 => vec![FilterType::Nodelete.into()],
        _ => Vec::new(),
    };
    etcd::WatchCreateRequest {
        key,
        range_end,
        // From the beginning, from a little ahead, or from now on.
        start_revision: match rng.random_range(0..5) {
            0 => 1,
            1 => newest + rng.random_range(1..50),
            _ => 0,
        },
        progress_notify: rng.random_bool(0.1),
        prev_kv: rng.random_bool(0.5),
        fragment: rng.random_bool(0.1),
        filters,
        watch_id,
    }
}

/// What readers and writers share.
#[derive(Debug, Default)]
struct Shared {
    record: Record,
    newest: AtomicI64,
    over: AtomicBool,
}

/// Opens and ends watches on one stream, and stalls now and then. Answers how many events it was
/// told, and how often where all its watches are.
async fn reader(etcd: Etcd, mut rng: StdRng, shared: Arc<Shared>) -> (usize, usize) {
    let mut stream = etcd.watch().await;
    let mut asked: BTreeMap<i64, etcd::WatchCreateRequest> = BTreeMap::new();
    let mut open: BTreeMap<i64, Watched> = BTreeMap::new();
    let mut canceled: Vec<Watched> = Vec::new();
    let (mut next_id, mut progress) = (1, 0);
    while !shared.over.load(Ordering::SeqCst) {
        let newest = shared.newest.load(Ordering::SeqCst);
        if open.len() + asked.len() < WATCHES {
            let create = chosen(&mut rng, next_id, newest);
            asked.insert(next_id, create.clone());
            stream.create(create).await;
            next_id += 1;
        } else if rng.random_bool(0.005) && !open.is_empty() {
            let watch_id = *open.keys().nth(rng.random_range(0..open.len())).unwrap();
            stream.ask(cancel(watch_id)).await;
        } else if rng.random_bool(0.02) {
            stream.ask_progress().await;
        }
        if rng.random_bool(0.001) {
            tokio::time::sleep(Duration::from_millis(rng.random_range(1..1000))).await;
        }
        // All may have been told.
        let Ok(answer) = tokio::time::timeout(Duration::from_millis(200), stream.next()).await else { continue };
        hear(answer.unwrap(), &mut asked, &mut open, &mut canceled, &mut progress);
    }
    while !asked.is_empty() {
        hear(stream.next().await.unwrap(), &mut asked, &mut open, &mut canceled, &mut progress);
    }
    let end = shared.newest.load(Ordering::SeqCst);
    let due: BTreeMap<i64, usize> =
        open.iter().map(|(id, watch)| (*id, shared.record.told(watch, end).len())).collect();
    // One may still end that was canceled before.
    while open.iter().any(|(id, watch)| watch.told.len() < due[id]) {
        hear(stream.next().await.unwrap(), &mut asked, &mut open, &mut canceled, &mut progress);
    }
    // Without those that wait for their start, all are at the end.
    let waiting: Vec<i64> = open.iter().filter(|(_, watch)| watch.from > end).map(|(id, _)| *id).collect();
    for watch_id in waiting {
        stream.ask(cancel(watch_id)).await;
    }
    stream.ask_progress().await;
    let before = progress;
    while progress == before {
        hear(stream.next().await.unwrap(), &mut asked, &mut open, &mut canceled, &mut progress);
    }
    canceled.iter().for_each(|watch| watch.judge(&shared.record, watch.last()));
    open.values().for_each(|watch| watch.judge(&shared.record, end));
    (canceled.iter().chain(open.values()).map(|watch| watch.told.len()).sum(), progress)
}

fn cancel(watch_id: i64) -> RequestUnion {
    RequestUnion::CancelRequest(etcd::WatchCancelRequest { watch_id })
}

fn hear(
    answer: etcd::WatchResponse,
    asked: &mut BTreeMap<i64, etcd::WatchCreateRequest>,
    open: &mut BTreeMap<i64, Watched>,
    canceled: &mut Vec<Watched>,
    progress: &mut usize,
) {
    let (at, id) = (revision(&answer.header), answer.watch_id);
    if answer.created {
        assert!(!answer.canceled, "{answer:?}");
        let create = asked.remove(&id).expect("one that was asked for");
        let without = |filter: FilterType| !create.filters.contains(&filter.into());
        let from = if create.start_revision > 0 { create.start_revision } else { at + 1 };
        let (puts, deletes) = (without(FilterType::Noput), without(FilterType::Nodelete));
        let (start, end, prev) = (create.key, create.range_end, create.prev_kv);
        let told = Vec::new();
        open.insert(id, Watched { start, end, puts, deletes, prev, from, told, fragment: false, progress: 0 });
    } else if id == -1 {
        *progress += 1;
        open.values_mut().for_each(|watch| {
            assert!(at >= watch.last(), "progress to {at} after {}", watch.last());
            watch.progress = at;
        });
    } else if answer.canceled {
        canceled.extend(open.remove(&id));
    } else {
        open.get_mut(&id).expect("a watch that is open").hears(answer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watch_on_a_stream_is_told_its_own_history() {
    let seed = std::env::var("TENURE_WATCHES_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("TENURE_WATCHES_SEED={seed}");
    let node = Node::start().await;
    let shared = Arc::new(Shared { newest: AtomicI64::new(1), ..Shared::default() });
    let mut readers = Vec::new();
    for at in 0..STREAMS {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(at));
        readers.push(tokio::spawn(reader(Etcd::at(node.address()).await, rng, Arc::clone(&shared))));
    }
    let mut writers = Vec::new();
    for at in 0..WRITERS {
        let rng = StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(u64::try_from(at).unwrap()));
        writers.push(tokio::spawn(writer(Etcd::at(node.address()).await, at, rng, Arc::clone(&shared))));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    shared.over.store(true, Ordering::SeqCst);
    let (mut events, mut progress) = (0, 0);
    for reader in readers {
        let told = reader.await.unwrap();
        (events, progress) = (events + told.0, progress + told.1);
    }
    let newest = shared.newest.load(Ordering::SeqCst);
    println!("{events} events up to revision {newest}, {progress} answers to how far all watches of a stream are");
    assert!(events > 20_000, "{events} events prove little");
}

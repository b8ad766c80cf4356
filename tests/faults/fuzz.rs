//! Every decoder over random and mutated bytes for a bounded time: no panic, no allocation out of
//! proportion, and what was encoded reads back. The bodies are plain functions of bytes.
//!
//! `TENURE_FUZZ_S` is the time each of the two tests takes.

use super::server::Setup;
use super::{env_number, seed};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng, seq::IndexedRandom};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tenure::machine::{Machine, Options};
use tenure::model::{
    Batch, Caller, Command as Asked, Compare, CompareOp, CompareTarget, Fault, Idempotency, KeyRange, LeaseChoice,
    LogPosition, Op, Proposal, PutOp, Txn, codec,
};
use tenure::storage::blocks::{BlockOptions, BlockStore};
use tenure::storage::memory::MemoryEngine;
use tenure::storage::record::{Block, Record, RecordKind, encode_block};
use tenure::storage::simdisk::SimDisk;
use tenure::storage::snapshot::{SnapshotMeta, SnapshotStore, verify_file};
use tenure::storage::wal::{self, Wal, WalEntry, WalOptions};

const SECONDS: u64 = 12;
const CORPUS: usize = 12;
/// What a run may add to the process's address space, inputs being at most some 100 KiB.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// Up to and with the length of the body.
const BLOCK_HEADER_BYTES: usize = 21;

struct Target {
    name: &'static str,
    valid: fn(&mut StdRng) -> Vec<u8>,
    /// Panics if a promise is broken.
    feed: fn(&[u8]),
}

const TARGETS: &[Target] = &[
    Target { name: "batch", valid: a_batch, feed: feed_batch },
    Target { name: "record block", valid: a_block, feed: feed_block },
    Target { name: "log", valid: a_log, feed: wal::fuzz_recover },
    Target { name: "snapshot file", valid: a_snapshot, feed: feed_snapshot },
    Target { name: "machine image", valid: an_image, feed: feed_image },
];

fn bytes(rng: &mut StdRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=most)];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn op(rng: &mut StdRng, depth: u32) -> Op {
    let key = Bytes::from(bytes(rng, 20));
    match rng.random_range(0..if depth > 2 { 3 } else { 4 }) {
        0 => Op::Put(PutOp {
            key,
            value: bytes(rng, 200).into(),
            content_type: rng.random::<bool>().then(|| "text/plain".to_owned()),
            lease: LeaseChoice::Implicit { id: rng.random(), ttl_ms: rng.random() },
            prev_kv: rng.random(),
            ignore_value: rng.random(),
        }),
        1 => Op::Delete { range: KeyRange::prefix(key), prev_kv: rng.random() },
        2 => Op::MergePatch { key, patch: bytes(rng, 50).into(), prev_kv: rng.random(), lease: LeaseChoice::Keep },
        _ => Op::Txn(Box::new(Txn { success: vec![op(rng, depth + 1)], ..txn(rng) })),
    }
}

fn txn(rng: &mut StdRng) -> Txn {
    let compare = Compare {
        range: KeyRange::key(bytes(rng, 9)),
        op: CompareOp::Less,
        target: CompareTarget::Value(bytes(rng, 9).into()),
    };
    Txn { compares: vec![compare], success: Vec::new(), failure: Vec::new() }
}

fn batch(rng: &mut StdRng) -> Batch {
    let proposals = (0..rng.random_range(0..5))
        .map(|_| Proposal {
            caller: Caller::User { name: "ann".to_owned(), auth_revision: rng.random() },
            idempotency: Some(Idempotency { key: "again".to_owned(), fingerprint: rng.random() }),
            command: Asked::Txn(Txn { success: vec![op(rng, 0)], ..txn(rng) }),
        })
        .collect();
    Batch { proposed_at_ms: rng.random(), wall_ms: rng.random(), proposals }
}

fn a_batch(rng: &mut StdRng) -> Vec<u8> {
    codec::encode(&batch(rng)).expect("plain data can be encoded")
}

fn feed_batch(bytes: &[u8]) {
    if let Ok(batch) = codec::decode::<Batch>("fuzz", bytes) {
        let again = codec::encode(&batch).expect("plain data can be encoded");
        assert_eq!(codec::decode::<Batch>("fuzz", &again).expect("what was encoded reads back"), batch);
    }
}

fn a_block(rng: &mut StdRng) -> Vec<u8> {
    let records: Vec<Arc<Record>> = (0..rng.random_range(1..30))
        .map(|number| {
            Arc::new(Record {
                main: 2 + number / 3,
                sub: u32::try_from(number % 3).expect("small"),
                kind: RecordKind::Put,
                create_revision: 2,
                version: number + 1,
                lease: if rng.random() { rng.random::<i64>().saturating_abs() } else { 0 },
                content_type: rng.random::<bool>().then(|| "text/plain".into()),
                key: bytes(rng, 30).into(),
                value: bytes(rng, 300).into(),
            })
        })
        .collect();
    let encoded = encode_block(&records).expect("a block of sound records");
    let block = Block::open(encoded.clone()).expect("what was encoded reads back");
    assert_eq!(block.records_from((0, 0)).expect("sound records"), records);
    encoded.to_vec()
}

/// As found, and forged so that the header's length and the checksum hold: else nothing behind them
/// would ever be reached.
fn feed_block(bytes: &[u8]) {
    read_block(bytes);
    let mut forged = bytes.to_vec();
    if let Some(body) = bytes.len().checked_sub(BLOCK_HEADER_BYTES + 4) {
        let body = u32::try_from(body).expect("a small block");
        forged[BLOCK_HEADER_BYTES - 4..BLOCK_HEADER_BYTES].copy_from_slice(&body.to_le_bytes());
        forged.truncate(bytes.len() - 4);
        forged.extend_from_slice(&crc32c::crc32c(&forged).to_le_bytes());
        read_block(&forged);
    }
}

fn read_block(bytes: &[u8]) {
    let Ok(block) = Block::open(Bytes::copy_from_slice(bytes)) else { return };
    drop(block.for_each(drop));
    drop(block.records_from((3, 1)));
    for place in [(i64::MIN, 0), (2, 0), (3, 1), (i64::MAX, u32::MAX), block.first()] {
        drop(block.find(place));
    }
}

fn a_log(rng: &mut StdRng) -> Vec<u8> {
    let disk = SimDisk::new();
    let options =
        WalOptions { segment_bytes: 16 << 10, ..WalOptions::new("/wal", Arc::new(|fault| panic!("{fault}"))) };
    let (log, _) = Wal::open(Arc::new(disk.clone()), options).expect("an empty log opens");
    let done = || -> wal::Done { Box::new(|done| done.expect("the disk is sound")) };
    let count = rng.random_range(1..40);
    for index in 1..=count {
        log.append(vec![WalEntry { index, bytes: bytes(rng, 900).into() }], done());
        match rng.random_range(0..12) {
            0 => log.save_vote(bytes(rng, 20).into(), done()),
            1 => log.save_committed(bytes(rng, 20).into()),
            2 if index > 3 => log.purge(index - 2, bytes(rng, 20).into(), done()),
            _ => {}
        }
    }
    log.close();
    let segments = (1..20).filter_map(|number| disk.contents(Path::new(&format!("/wal/{number:010}.wal"))));
    segments.flatten().collect()
}

fn meta() -> SnapshotMeta {
    SnapshotMeta {
        cluster_id: 1,
        last: LogPosition { term: 1, node: 1, index: 9 },
        membership: Bytes::from_static(b"members"),
        revision: 9,
        created_wall_ms: 1,
        extra: Bytes::new(),
    }
}

fn a_snapshot(rng: &mut StdRng) -> Vec<u8> {
    let disk = SimDisk::new();
    let store = SnapshotStore::open(Arc::new(disk.clone()), "/snapshot").expect("an empty directory opens");
    let mut writer = store.begin(meta()).expect("the disk is sound");
    for _ in 0..rng.random_range(0..5) {
        let mut block = bytes(rng, 2_000);
        block.push(0);
        writer.write_block(&block).expect("the disk is sound");
    }
    writer.finish().expect("the disk is sound");
    let file = store.list().expect("the disk is sound").pop().expect("the file just written");
    disk.contents(&file.path).expect("the file just written")
}

fn feed_snapshot(bytes: &[u8]) {
    let disk = SimDisk::new();
    let path = Path::new("/snapshot/fuzz.snap");
    disk.plant(path, bytes);
    drop(verify_file(&disk, path));
}

fn block_store() -> Arc<BlockStore> {
    let options = BlockOptions::new(Arc::new(|_: &Fault| {}));
    Arc::new(BlockStore::new(Arc::new(MemoryEngine::new()), options).expect("an empty engine"))
}

/// An image's blocks, each behind its length.
fn an_image(rng: &mut StdRng) -> Vec<u8> {
    let mut machine = Machine::new(block_store(), &Options::default());
    for index in 1..6 {
        // Most of these are refused, which is as good; some put.
        let put = Op::Put(PutOp {
            key: bytes(rng, 10).into(),
            value: bytes(rng, 100).into(),
            content_type: None,
            lease: LeaseChoice::Detach,
            prev_kv: false,
            ignore_value: false,
        });
        let mut batch = batch(rng);
        batch.proposals.push(Proposal {
            caller: Caller::Anonymous,
            idempotency: None,
            command: Asked::Txn(Txn { success: vec![put], ..Txn::default() }),
        });
        machine.apply(LogPosition { term: 1, node: 1, index }, &batch).expect("a sound batch");
    }
    let mut out = Vec::new();
    let mut emit = |block: &[u8]| {
        out.extend_from_slice(&u32::try_from(block.len()).expect("a small block").to_le_bytes());
        out.extend_from_slice(block);
        Ok(())
    };
    machine.image().write_to(&|| Ok(()), &mut emit).expect("a sound machine");
    assert!(Machine::restore(block_store(), &Options::default(), blocks(&out).into_iter().map(Ok)).is_ok());
    out
}

fn blocks(mut bytes: &[u8]) -> Vec<Bytes> {
    let mut blocks = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX).min(rest.len());
        let (block, rest) = rest.split_at(length);
        blocks.push(Bytes::copy_from_slice(block));
        bytes = rest;
    }
    blocks
}

fn feed_image(bytes: &[u8]) {
    drop(Machine::restore(block_store(), &Options::default(), blocks(bytes).into_iter().map(Ok)));
}

/// One or a few changes of the kinds that decoders trip over.
fn mutate(rng: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..rng.random_range(1..4) {
        if input.is_empty() {
            input.push(rng.random());
            continue;
        }
        let at = rng.random_range(0..input.len());
        match rng.random_range(0..8) {
            0 => input[at] ^= 1 << rng.random_range(0..8),
            1 => input[at] = *[0, 1, 0x7f, 0x80, 0xff].choose(rng).expect("not empty"),
            2 => input.truncate(at),
            3 => input.insert(at, rng.random()),
            4 => drop(input.remove(at)),
            5 => {
                let end = (at + rng.random_range(1..9)).min(input.len());
                input[at..end].fill(0xff);
            }
            6 => {
                let from = rng.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = (at + rng.random_range(1..64)).min(input.len());
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
        }
    }
}

fn address_space_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).expect("VmPeak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn for_seconds(share: u64) -> Duration {
    Duration::from_millis(env_number("TENURE_FUZZ_S").unwrap_or(SECONDS) * 1000 / share)
}

fn fuzz(target: &Target, rng: &mut StdRng) {
    let corpus: Vec<Vec<u8>> = (0..CORPUS).map(|_| (target.valid)(rng)).collect();
    corpus.iter().for_each(|valid| (target.feed)(valid));
    let before = address_space_peak();
    let deadline = Instant::now() + for_seconds(TARGETS.len() as u64);
    let mut runs = 0;
    while Instant::now() < deadline {
        let mut input = match rng.random_range(0..10) {
            0 => bytes(rng, 4_000),
            _ => corpus.choose(rng).expect("not empty").clone(),
        };
        let other = corpus.choose(rng).expect("not empty");
        mutate(rng, &mut input, other);
        let outcome = std::panic::catch_unwind(|| (target.feed)(&input));
        let hex = || input.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(outcome.is_ok(), "{} panicked on {}", target.name, hex());
        let grown = address_space_peak().saturating_sub(before);
        assert!(grown < GROWTH_BYTES_MAX, "{} took {grown} bytes for {}", target.name, hex());
        runs += 1;
    }
    eprintln!("fuzz: {}: {runs} inputs", target.name);
    assert!(runs > 50, "{}: only {runs} inputs: the run is void", target.name);
}

/// In a process of its own: other tests must not count towards its memory.
#[test]
#[ignore = "run by decoders_take_anything"]
fn decoders_in_this_process() {
    let mut rng = StdRng::seed_from_u64(seed("fuzz"));
    TARGETS.iter().for_each(|target| fuzz(target, &mut rng));
}

#[test]
fn decoders_take_anything() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "--test-threads=1", "fuzz::decoders_in_this_process"])
        .status()
        .expect("this binary runs itself");
    assert!(status.success(), "see above");
}

/// Requests as they should be; what is sent is these with changes.
const REQUESTS: &[(&str, &str, &str)] = &[
    ("GET", "/v1/kv/a/b?revision=2&format=json", ""),
    ("GET", "/v1/kv?prefix=a&limit=2&delimiter=/&count&order=desc&modified_after=1", ""),
    ("GET", "/v1/kv?start=a&end=z&sort=mod&keys_only&consistency=stale&max_staleness=5s", ""),
    ("GET", "/v1/kv?prefix=&limit=1&cursor=CURSOR", ""),
    ("GET", "/v1/history/a/b?limit=3&before=9", ""),
    ("PUT", "/v1/kv/a/b?cas=0&prev", "value"),
    ("PUT", "/v1/kv/YS9i?key_encoding=base64url&ttl=30s", "value"),
    ("PATCH", "/v1/kv/json", r#"{"a":{"b":null},"c":[1,2.5e3,"\u00e9"]}"#),
    ("DELETE", "/v1/kv?prefix=zz&dry_run", ""),
    ("POST", "/v1/counters/n?add=-3&min=0&on_limit=clamp", ""),
    ("POST", "/v1/counters/n", r#"{"add":2,"initial":7,"max":100}"#),
    (
        "POST",
        "/v1/import?on_conflict=skip",
        "{\"key\":\"i\",\"value\":\"1\"}\n{\"key_base64\":\"/w==\",\"value_base64\":\"AA==\"}\n",
    ),
    (
        "POST",
        "/v1/txn?strict",
        r#"{"if":[{"key":"a","version":{"gte":3}},{"prefix":"x/","exists":false},{"key":"b","value":"y"}],
            "then":[{"put":{"key":"a","value_json":{"n":[1]},"ttl":"24h"}},{"add":{"key":"n","by":1,"max":9}},
                    {"delete":{"prefix":"q/"}},{"get":{"key":"a"}}],"else":[{"list":{"prefix":"a","limit":10}}]}"#,
    ),
];

/// Writes one request and reads what comes back; the status, if it is HTTP.
fn send_raw(setup: &Setup, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(setup.address).expect("the member accepts connections");
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // It may well have answered and closed before all was sent.
    let _refused_early = stream.write_all(request);
    let _refused_early = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        answer.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

/// Mutated bytes where a client's own would stand; in a target they are escaped as clients do, or not.
fn malformed(rng: &mut StdRng, cursor: &str) -> Vec<u8> {
    let (method, target, body) = REQUESTS.choose(rng).expect("not empty");
    let (_, other, other_body) = REQUESTS.choose(rng).expect("not empty");
    let (mut target, mut body) = (target.replace("CURSOR", cursor).into_bytes(), body.as_bytes().to_vec());
    match rng.random_range(0..4) {
        0 | 1 => {
            let keep = target.drain(..4).collect::<Vec<u8>>();
            mutate(rng, &mut target, other.as_bytes());
            let escape = |byte: &u8| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'?' | b'=' | b'&' | b'_' | b'-' | b'%' => {
                    vec![*byte]
                }
                byte => format!("%{byte:02X}").into_bytes(),
            };
            target = keep.into_iter().chain(target.iter().flat_map(escape)).collect();
        }
        2 => mutate(rng, &mut body, other_body.as_bytes()),
        _ => {}
    }
    let mut request = format!("{method} ").into_bytes();
    request.extend_from_slice(&target);
    let head = format!(" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    request.extend_from_slice(head.as_bytes());
    let kind = if *method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    request.extend_from_slice(format!("content-type: {kind}\r\n\r\n").as_bytes());
    request.extend_from_slice(&body);
    if rng.random_ratio(1, 6) {
        mutate(rng, &mut request, b"transfer-encoding: chunked\r\n\r\nffffffff\r\n");
    }
    request
}

#[test]
fn requests_of_any_shape_are_answered() {
    let mut rng = StdRng::seed_from_u64(seed("fuzz requests"));
    let scratch = tempfile::tempdir().unwrap();
    let setup = Setup::new(&scratch.path().join("data"), scratch.path(), &[]);
    let mut server = setup.start();
    let mut client = setup.client();
    for key in ["a/a", "a/b", "n", "json"] {
        client.request("PUT", &format!("/v1/kv/{key}"), &[], b"1").expect("an answer");
    }
    let page = client.get("/v1/kv?prefix=&limit=1").expect("an answer").json();
    let cursor = page["next"].as_str().expect("a cursor").to_owned();
    let deadline = Instant::now() + for_seconds(1);
    let (mut sent, mut fine) = (0, 0);
    while Instant::now() < deadline {
        let request = malformed(&mut rng, &cursor);
        let status = send_raw(&setup, &request);
        let shown = || String::from_utf8_lossy(&request).into_owned();
        assert!(status.is_none_or(|status| status < 500 || matches!(status, 503 | 504)), "{status:?} to {}", shown());
        assert!(server.is_running(), "it ended on {}:\n{}", shown(), setup.output());
        sent += 1;
        fine += usize::from(status.is_some_and(|status| status < 300));
    }
    eprintln!("fuzz requests: {sent} sent, {fine} of them done");
    let output = setup.output();
    assert!(!output.contains("panicked"), "a handler panicked:\n{output}");
    let answer = client.request("PUT", "/v1/kv/after", &[], b"x").expect("an answer");
    assert!(answer.status < 300 && sent > 200, "only {sent} requests were sent: the run is void");
    assert!(fine * 50 > sent, "too few requests were sound enough to reach anything");
    server.stop();
}

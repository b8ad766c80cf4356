//! What things cost; run by hand with optimisation:
//! `cargo test --release --lib machine::tests::cost -- --ignored --nocapture`.
//!
//! Times are those that this thread spent on a CPU, so that a busy machine does not spoil them.
#![expect(clippy::print_stdout, reason = "tells what it measured")]

use super::generate::Dice;
use super::support::{blocks, get, propose};
use crate::machine::{Machine, Options};
use crate::model::{Batch, Caller, Command, Fault, KeyRange, LeaseChoice, LogPosition, Op, PutOp, RangeOp, Txn, codec};
use crate::storage::blocks::{BlockOptions, BlockStore};
use crate::storage::sled::SledEngine;
use bytes::Bytes;
use std::sync::Arc;

const KEYS: u64 = 1_000_000;
const BATCH: u64 = 64;
/// As many as a busy server's batches have.
const SMALL_BATCH: u64 = 12;
const FEW_KEYS: u64 = 10_000;

fn store(dir: &std::path::Path) -> Arc<BlockStore> {
    let fatal = Arc::new(|fault: &Fault| panic!("the block store failed: {fault}"));
    Arc::new(BlockStore::new(Arc::new(SledEngine::fresh(dir).unwrap()), BlockOptions::new(fatal)).unwrap())
}

/// Nanoseconds that this thread has been on a CPU.
fn cpu_ns() -> u64 {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    statistics.split_whitespace().next().unwrap().parse().unwrap()
}

struct Instant(u64);

impl Instant {
    fn now() -> Self {
        Self(cpu_ns())
    }

    fn elapsed(&self) -> std::time::Duration {
        std::time::Duration::from_nanos(cpu_ns() - self.0)
    }
}

fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn key(n: u64) -> Bytes {
    // Scattered over the key space.
    format!("app/{:028x}", u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).into_bytes().into()
}

/// Encoded, as they come from the log.
fn batches(keys: impl Iterator<Item = u64>, fill: u8) -> impl Iterator<Item = Vec<u8>> {
    batches_of(BATCH, keys, fill)
}

fn batches_of(size: u64, keys: impl Iterator<Item = u64>, fill: u8) -> impl Iterator<Item = Vec<u8>> {
    let mut keys = keys.peekable();
    std::iter::from_fn(move || {
        keys.peek()?;
        let proposals = keys
            .by_ref()
            .take(size as usize)
            .map(|n| {
                let put = Op::Put(PutOp {
                    key: key(n),
                    value: vec![fill; 256].into(),
                    content_type: None,
                    lease: LeaseChoice::Detach,
                    prev_kv: false,
                    ignore_value: false,
                });
                propose(Command::Txn(Txn { success: vec![put], ..Txn::default() }))
            })
            .collect();
        Some(codec::encode(&Batch { proposed_at_ms: 1, wall_ms: 1, proposals }).unwrap())
    })
}

struct Loader {
    index: u64,
    apply_ns: u128,
    puts: u128,
}

impl Loader {
    fn run(&mut self, machine: &mut Machine, batches: impl Iterator<Item = Vec<u8>>, what: &str) {
        (self.apply_ns, self.puts) = (0, 0);
        for bytes in batches {
            self.index += 1;
            let batch: Batch = codec::decode("batch", &bytes).unwrap();
            self.puts += batch.proposals.len() as u128;
            let start = Instant::now();
            machine.apply(LogPosition { term: 1, node: 1, index: self.index }, &batch).unwrap();
            self.apply_ns += start.elapsed().as_nanos();
        }
        println!("{what}: {} ns per put", self.apply_ns / self.puts);
    }
}

fn options() -> Options {
    Options { quota_bytes: u64::MAX / 4, ..Options::default() }
}

fn empty(dir: &std::path::Path) -> (Machine, Loader) {
    (Machine::new(store(&dir.join("a")), &options()), Loader { index: 0, apply_ns: 0, puts: 0 })
}

#[test]
#[ignore = "measures; takes a minute"]
fn of_a_million_keys() {
    let dir = tempfile::tempdir().unwrap();
    let before = rss_bytes();
    let (mut machine, mut loader) = empty(dir.path());
    loader.run(&mut machine, batches(0..KEYS, b'a'), "new keys");
    println!("RSS per key: {} bytes", (rss_bytes() - before) / KEYS);
    let mut dice = Dice(1);
    let scattered: Vec<u64> = (0..200_000).map(|_| dice.below(KEYS)).collect();
    loader.run(&mut machine, batches(scattered.into_iter(), b'b'), "scattered overwrites");
    loader.run(&mut machine, batches((0..200_000).map(|_| 7), b'c'), "one hot key");
    let view = machine.reader().view();
    let anybody = Caller::Anonymous;
    let start = Instant::now();
    for _ in 0..100_000 {
        let Op::Range(op) = get(std::str::from_utf8(&key(dice.below(KEYS))).unwrap()) else { unreachable!() };
        assert_eq!(view.range(&anybody, &op).unwrap().kvs.len(), 1);
    }
    println!("point read: {} ns", start.elapsed().as_nanos() / 100_000);
    let start = Instant::now();
    for _ in 0..100 {
        let op = RangeOp { limit: 1000, ..RangeOp::newest(KeyRange { start: key(dice.below(KEYS)), end: None }) };
        view.range(&anybody, &op).unwrap();
    }
    println!("range of 1000: {} us", start.elapsed().as_micros() / 100);
    drop(view);
    let start = Instant::now();
    let revision = machine.reader().view().revision();
    let batch = Batch { proposed_at_ms: 2, wall_ms: 2, proposals: vec![propose(Command::Compact { revision })] };
    machine.apply(LogPosition { term: 1, node: 1, index: loader.index + 1 }, &batch).unwrap();
    let (mut steps, mut longest) = (0, 0);
    loop {
        let step = Instant::now();
        let more = machine.trim_step(1000).unwrap();
        longest = longest.max(step.elapsed().as_micros());
        steps += 1;
        if !more {
            break;
        }
    }
    println!("compaction: {} ms in {steps} steps, the longest {longest} us", start.elapsed().as_millis());
    image(&machine, &dir.path().join("b"));
}

/// Overwrites of few keys, with a reader that looks at each state.
#[test]
#[ignore = "measures; takes a minute"]
fn of_few_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, mut loader) = empty(dir.path());
    loader.run(&mut machine, batches(0..FEW_KEYS, b'a'), "new keys");
    let mut dice = Dice(1);
    for round in 1..=5 {
        let keys: Vec<u64> = (0..100_000).map(|_| dice.below(FEW_KEYS)).collect();
        loader.run(&mut machine, batches_of(SMALL_BATCH, keys.into_iter(), b'b'), &format!("overwrites {round}"));
    }
}

/// Beside their keys, which are there before. The leader's lessor counts 64 bytes more.
#[test]
#[ignore = "measures; takes a minute"]
fn of_a_million_leases() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, mut loader) = empty(dir.path());
    loader.run(&mut machine, batches(0..KEYS, b'a'), "new keys");
    let before = rss_bytes();
    let id = |n: u64| i64::try_from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1).unwrap() | 1;
    let mut ns = 0;
    for first in (0..KEYS).step_by(BATCH as usize) {
        let set = |n| propose(Command::TtlSet { key: key(n), id: id(n), ttl_ms: 60_000 });
        let proposals = (first..first + BATCH).map(set).collect();
        loader.index += 1;
        let start = Instant::now();
        let batch = Batch { proposed_at_ms: 1, wall_ms: 1, proposals };
        let applied = machine.apply(LogPosition { term: 1, node: 1, index: loader.index }, &batch).unwrap();
        ns += start.elapsed().as_nanos();
        assert!(applied.outcomes.iter().all(|outcome| outcome.result.is_ok()));
    }
    assert_eq!(machine.reader().view().stats().leases, KEYS);
    println!("{} ns per lease; RSS per lease: {} bytes", ns / u128::from(KEYS), (rss_bytes() - before) / KEYS);
}

fn image(machine: &Machine, dir: &std::path::Path) {
    let start = Instant::now();
    let blocks = blocks(machine);
    let bytes: usize = blocks.iter().map(Bytes::len).sum();
    println!("image: {} ms, {bytes} bytes", start.elapsed().as_millis());
    let before = rss_bytes();
    let start = Instant::now();
    let restored = Machine::restore(store(dir), &options(), blocks.into_iter().map(Ok)).unwrap();
    println!("restore: {} ms", start.elapsed().as_millis());
    println!("RSS of the restored per key: {} bytes", (rss_bytes().saturating_sub(before)) / KEYS);
    assert_eq!(restored.reader().view().state_hash(), machine.reader().view().state_hash());
}

//! Not a check: prints what the log does on the disk below the temporary directory.

use super::harness::payload;
use crate::storage::disk::Disk;
use crate::storage::realdisk::RealDisk;
use crate::storage::wal::{Wal, WalEntry, WalOptions};
use std::sync::{Arc, mpsc};

fn run(wal: &Wal, from: u64, count: u64, in_flight: u64, len: usize) {
    let (acks, acked) = mpsc::channel();
    let mut outstanding = 0;
    for index in from..from + count {
        let acks = acks.clone();
        let done = Box::new(move |outcome: Result<(), _>| acks.send(outcome.is_ok()).unwrap());
        wal.append(vec![WalEntry { index, bytes: payload(index, len) }], done);
        outstanding += 1;
        while outstanding >= in_flight {
            assert!(acked.recv().unwrap());
            outstanding -= 1;
        }
    }
    (0..outstanding).for_each(|_| assert!(acked.recv().unwrap()));
}

#[test]
#[ignore = "a measurement"]
#[expect(clippy::disallowed_methods, clippy::print_stderr, reason = "it measures and prints")]
fn appends_per_second() {
    let temp = tempfile::tempdir().unwrap();
    let options = WalOptions::new(temp.path().join("wal"), Arc::new(|fault| panic!("{fault}")));
    let (wal, _) = Wal::open(Arc::new(RealDisk), options).unwrap();
    let raw = RealDisk.create(&temp.path().join("raw")).unwrap();
    raw.allocate(64 << 20).unwrap();
    raw.sync_data().unwrap();
    let start = std::time::Instant::now();
    for at in 0..2000 {
        raw.write_at(&[7; 600], at * 600).unwrap();
        raw.sync_data().unwrap();
    }
    eprintln!("a bare file: {:>9.0} writes and syncs/s", 2000.0 / start.elapsed().as_secs_f64());
    let mut from = 0;
    for (in_flight, count, len) in
        [(1, 2000, 600), (2, 4000, 600), (64, 60_000, 600), (1024, 100_000, 600), (2, 400, 512 << 10)]
    {
        let start = std::time::Instant::now();
        run(&wal, from, count, in_flight, len);
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{in_flight:>5} in flight, {len:>6} bytes: {:>9.0} appends/s", count as f64 / seconds);
        from += count;
    }
}

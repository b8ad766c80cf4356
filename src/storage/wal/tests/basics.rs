//! What the log does when nothing goes wrong.

use super::harness::*;
use crate::storage::disk::Disk;
use crate::storage::realdisk::RealDisk;
use crate::storage::simdisk::{Operation, SimDisk, Survivors};
use crate::storage::wal::{Done, Threading, Wal, WalEntry, WalOptions};
use bytes::Bytes;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

fn nothing() -> Done {
    Box::new(|outcome| outcome.unwrap())
}

fn driver(segment_bytes: u64) -> Driver {
    Driver::open(&SimDisk::new(), segment_bytes, None).unwrap()
}

fn reopen(driver: &Driver, segment_bytes: u64) -> Driver {
    driver.wal.close();
    Driver::open(&driver.disk, segment_bytes, None).unwrap()
}

#[test]
fn a_new_log_is_empty() {
    let driver = driver(2048);
    assert!(driver.newest().same_as(&Model::default()));
    assert_eq!(driver.wal.first_index(), None);
    assert_eq!(driver.wal.read(0, 10, 100).unwrap(), []);
    let again = reopen(&driver, 2048);
    assert!(again.newest().same_as(&Model::default()));
}

#[test]
fn entries_are_readable_before_they_are_durable() {
    let mut driver = driver(2048);
    driver.call(&Call::Append(vec![5, 6]));
    assert_eq!(driver.told.lock().acked, 0);
    assert!(observe(&driver.wal).same_as(driver.newest()));
    driver.call(&Call::Truncate(1));
    assert!(observe(&driver.wal).same_as(driver.newest()));
    driver.wal.pump();
    assert_eq!(driver.told.lock().acked, 3);
}

#[test]
fn many_calls_share_one_write_and_one_sync() {
    let mut driver = driver(1 << 16);
    let before = driver.disk.operations();
    driver.run(&[Call::Vote, Call::Append(vec![100; 20]), Call::Append(vec![100]), Call::Committed, Call::Truncate(3)]);
    let operations = driver.disk.operations() - before;
    assert_eq!(operations, 2, "{:?}", driver.disk.trace());
    assert_eq!(driver.told.lock().acked, 23);
}

#[test]
fn a_committed_position_alone_writes_nothing() {
    let mut driver = driver(1 << 16);
    let before = driver.disk.operations();
    driver.call(&Call::Committed);
    driver.wal.pump();
    assert_eq!(driver.disk.operations(), before);
    let committed = driver.wal.committed();
    let again = reopen(&driver, 1 << 16);
    assert_eq!(again.wal.committed(), committed, "close writes it");
}

#[test]
fn everything_survives_a_clean_restart() {
    let mut driver = driver(2048);
    driver.run(&mixed_calls());
    let committed = driver.wal.committed();
    let again = reopen(&driver, 2048);
    assert!(again.newest().same_as(driver.newest()));
    assert_eq!(again.wal.committed(), committed);
    driver.wal.close();
    let before = again.disk.operations();
    let third = reopen(&again, 2048);
    let writes = third.disk.trace().split_off(usize::try_from(before).unwrap());
    assert!(writes.iter().all(|(operation, _)| *operation != Operation::Write), "an end that is marked is left alone");
}

#[test]
fn a_restart_with_another_segment_size_works() {
    let mut driver = driver(2048);
    driver.run(&mixed_calls());
    for segment_bytes in [1024, 8192, 2048] {
        let newest = driver.newest().clone();
        driver = reopen(&driver, segment_bytes);
        assert!(driver.newest().same_as(&newest));
        driver.run(&[Call::Append(vec![600; 8])]);
    }
}

#[test]
fn cold_entries_are_read_from_disk_and_agree() {
    let mut driver = driver(4096);
    for _ in 0..40 {
        driver.run(&[Call::Append(vec![150, 20])]);
    }
    assert!(driver.disk.list(Path::new(DIR)).unwrap().len() > 3);
    assert!(observe(&driver.wal).same_as(driver.newest()));
    assert_eq!(driver.wal.read(3, 70, 400).unwrap().len(), 6, "ends with the entry that reaches the limit");
    driver.disk.fail_reads(true);
    assert!(driver.wal.read(0, 1, 0).is_err(), "old entries are on disk only");
    assert_eq!(driver.wal.read(79, 80, 0).unwrap().len(), 1, "new ones in memory");
}

#[test]
fn a_cold_entry_that_changed_on_disk_is_not_returned() {
    let mut driver = driver(1 << 16);
    for _ in 0..20 {
        driver.run(&[Call::Append(vec![200])]);
    }
    let path = Path::new(DIR).join(&segment_files(&driver.disk)[0]);
    let file = driver.disk.open(&path).unwrap();
    let at =
        u64::try_from(driver.disk.contents(&path).unwrap().windows(8).position(|w| w == 3_u64.to_le_bytes()).unwrap());
    file.write_at(b"X", at.unwrap() + 20).unwrap();
    let outcomes: Vec<bool> = (0..20).map(|index| driver.wal.read(index, index + 1, 0).is_ok()).collect();
    assert!(outcomes.contains(&false), "the damaged entry is refused");
    assert!(outcomes.contains(&true), "the others are not");
}

#[test]
fn purge_deletes_whole_segments_and_keeps_the_vote() {
    let mut driver = driver(2048);
    driver.run(&[Call::Vote]);
    for _ in 0..20 {
        driver.run(&[Call::Append(vec![400])]);
    }
    let before = segment_files(&driver.disk).len();
    assert!(before >= 5);
    driver.run(&[Call::Purge(9)]);
    let names = segment_files(&driver.disk);
    assert!(names.len() < before && names[0] != "0000000001.wal", "{names:?}");
    assert_eq!(names_of(&driver.disk, ".dropped"), [""; 0], "their space is freed");
    let steps = driver.disk.trace().iter().filter(|(kind, _)| *kind == Operation::SetLen).count();
    assert!(steps >= 7 * (before - names.len()), "a part at a time: {steps}");
    assert!(observe(&driver.wal).same_as(driver.newest()));
    driver.disk.crash(Survivors::Nothing);
    driver.wal.abandon();
    let again = Driver::open(&driver.disk, 2048, None).unwrap();
    assert!(again.newest().vote.is_some());
    assert!(again.newest().same_as(driver.newest()));
}

#[test]
fn a_dropped_segment_is_whole_as_long_as_it_is_read() {
    let mut driver = driver(2048);
    driver.run(&vec![Call::Append(vec![400]); 20]);
    let path = Path::new(DIR).join("0000000001.wal");
    let whole = driver.disk.contents(&path).unwrap();
    let read = driver.wal.owner.shared.state.lock().files[&1].clone();
    driver.run(&[Call::Purge(9)]);
    assert_eq!(names_of(&driver.disk, ".dropped"), ["0000000001.wal.dropped"]);
    let mut found = vec![0; whole.len()];
    assert_eq!(read.file.read_at(&mut found, 0).unwrap(), whole.len());
    assert_eq!(found, whole);
    drop(read);
    driver.run(&[Call::Vote]);
    assert_eq!(names_of(&driver.disk, ".dropped"), [""; 0]);
}

#[test]
fn what_was_being_freed_goes_at_the_next_start() {
    let mut driver = driver(2048);
    driver.run(&vec![Call::Append(vec![400]); 20]);
    let read = driver.wal.owner.shared.state.lock().files[&1].clone();
    driver.run(&[Call::Purge(9)]);
    drop(read);
    let again = reopen(&driver, 2048);
    assert_eq!(names_of(&again.disk, ".dropped"), [""; 0]);
    assert!(again.newest().same_as(driver.newest()));
}

#[test]
fn a_purge_beyond_the_end_starts_anew_there() {
    let mut driver = driver(2048);
    driver.run(&[Call::Append(vec![100; 3]), Call::Purge(1000), Call::Append(vec![5])]);
    assert_eq!(driver.wal.first_index(), Some(1001));
    let again = reopen(&driver, 2048);
    assert!(again.newest().same_as(driver.newest()));
    assert_eq!(again.wal.first_index(), Some(1001));
}

#[test]
fn the_next_segment_is_reserved_and_survives_a_full_disk() {
    let mut driver = driver(4096);
    driver.disk.set_capacity(Some(2 * 4096));
    assert!(driver.wal.reserve_bytes() > 4096);
    driver.run(&[Call::Append(vec![2000]), Call::Append(vec![2000]), Call::Append(vec![500])]);
    assert_eq!(driver.told.lock().acked, 3, "the reserve was used");
    assert!(driver.wal.reserve_bytes() < 4096, "and could not be made anew");
    driver.run(&[Call::Purge(1), Call::Append(vec![100])]);
    assert_eq!(driver.told.lock().acked, 5);
    assert_eq!(driver.told.lock().fatal, 0);
    assert!(driver.wal.reserve_bytes() > 4096, "the deleted segment's space is reserved again");
    driver.run(&[Call::Append(vec![1000; 20])]);
    assert_eq!(driver.told.lock().fatal, 1, "beyond the reserve a full disk is final");
}

#[test]
fn an_append_with_a_hole_is_fatal() {
    let driver = driver(2048);
    let outcome = Arc::new(Mutex::new(None));
    let seen = outcome.clone();
    let entry = |index| WalEntry { index, bytes: Bytes::new() };
    driver.wal.append(vec![entry(0), entry(2)], Box::new(move |result| *seen.lock() = Some(result)));
    assert!(matches!(*outcome.lock(), Some(Err(_))));
    assert_eq!(driver.told.lock().fatal, 1);
}

#[test]
fn calls_after_close_are_refused_without_a_fault() {
    let mut driver = driver(2048);
    driver.wal.close();
    driver.call(&Call::Vote);
    let told = driver.told.lock();
    assert_eq!((told.acked, told.refused, told.fatal), (0, 1, 0));
}

#[test]
fn an_empty_append_is_acknowledged_in_order() {
    let mut driver = driver(2048);
    driver.call(&Call::Append(vec![5]));
    driver.call(&Call::Append(vec![]));
    driver.wal.pump();
    driver.call(&Call::Append(vec![]));
    driver.wal.pump();
    assert_eq!(driver.told.lock().acked, 3);
}

fn real_options(dir: &Path) -> WalOptions {
    let mut options = WalOptions::new(dir.join("wal"), Arc::new(|fault| panic!("{fault}")));
    options.segment_bytes = 1 << 16;
    options.cache_bytes = 4096;
    options.queue_bytes = 10_000;
    options
}

#[test]
fn threads_share_a_real_log() {
    let temp = tempfile::tempdir().unwrap();
    let (wal, _) = Wal::open(Arc::new(RealDisk), real_options(temp.path())).unwrap();
    let (acks, acked) = mpsc::channel();
    for index in 0..300_u64 {
        let acks = acks.clone();
        let entry = WalEntry { index, bytes: payload(index, 400) };
        wal.append(vec![entry], Box::new(move |outcome| acks.send((index, outcome.is_ok())).unwrap()));
    }
    let reader = wal.clone();
    let read = std::thread::spawn(move || reader.read(0, 300, usize::MAX).unwrap());
    let order: Vec<(u64, bool)> = acked.iter().take(300).collect();
    assert_eq!(order, (0..300).map(|index| (index, true)).collect::<Vec<_>>());
    wal.save_vote(Bytes::from_static(b"v"), nothing());
    wal.close();
    let entries = read.join().unwrap();
    assert!(entries.iter().all(|entry| entry.bytes == payload(entry.index, 400)));
    let (wal, recovered) = Wal::open(Arc::new(RealDisk), real_options(temp.path())).unwrap();
    assert_eq!((recovered.last_index, recovered.torn_bytes), (Some(299), 0));
    assert_eq!(recovered.vote, Some(Bytes::from_static(b"v")));
    assert_eq!(read_all(&wal).unwrap().len(), 300);
}

#[test]
fn an_idle_log_marks_its_end() {
    let disk = SimDisk::new();
    let mut options = sim_options(1 << 14, None, Arc::new(|fault| panic!("{fault}")));
    options.threading = Threading::Own;
    options.idle_mark = Some(Duration::from_millis(1));
    let (wal, _) = Wal::open(Arc::new(disk.clone()), options).unwrap();
    let (acks, acked) = mpsc::channel();
    wal.append(vec![WalEntry { index: 0, bytes: payload(1, 50) }], Box::new(move |_| acks.send(()).unwrap()));
    acked.recv().unwrap();
    let writes = |disk: &SimDisk| disk.trace().iter().filter(|(operation, _)| *operation == Operation::Write).count();
    let acknowledged = writes(&disk);
    while writes(&disk) == acknowledged {
        std::thread::yield_now();
    }
    wal.abandon();
    // The entry was acknowledged and then damaged: with the mark behind it that is no torn write.
    let path = Path::new(DIR).join(&segment_files(&disk)[0]);
    let mut bytes = disk.contents(&path).unwrap();
    let at = bytes.windows(8).rposition(|window| window == 1_u64.to_le_bytes()).unwrap();
    bytes[at] ^= 1;
    disk.remove(&path).unwrap();
    disk.plant(&path, &bytes);
    let error = Driver::open(&disk, 1 << 14, None).err().expect("damage is refused").to_string();
    assert!(error.contains("0000000001.wal") && error.contains("tenure recover"), "{error}");
}

#[test]
fn a_panicking_callback_ends_the_log_for_all() {
    let told = Arc::new(Mutex::new(Told::default()));
    let mut options = sim_options(1 << 14, None, told_fatal(&told));
    options.threading = Threading::Own;
    let (wal, _) = Wal::open(Arc::new(SimDisk::new()), options).unwrap();
    wal.save_vote(Bytes::from_static(b"a"), Box::new(|_| panic!("planted by a test")));
    let (acks, acked) = mpsc::channel();
    wal.save_vote(Bytes::from_static(b"b"), Box::new(move |outcome| acks.send(outcome.is_ok()).unwrap()));
    assert!(!acked.recv().unwrap_or(false));
    wal.close();
    assert_eq!(told.lock().fatal, 1);
}

#[test]
fn the_last_handle_may_go_in_a_callback() {
    let mut options = sim_options(1 << 14, None, Arc::new(|fault| panic!("{fault}")));
    options.threading = Threading::Own;
    let (wal, _) = Wal::open(Arc::new(SimDisk::new()), options).unwrap();
    let handle = wal.clone();
    let (acks, acked) = mpsc::channel();
    wal.save_vote(
        Bytes::new(),
        Box::new(move |_| {
            drop(handle);
            acks.send(()).unwrap();
        }),
    );
    drop(wal);
    acked.recv().unwrap();
}

//! Power loss after every single disk operation, with random subsets of what was not synced.

use super::harness::*;
use crate::storage::mutant::Mutant;
use crate::storage::simdisk::{Operation, SimDisk, Survivors};
use crate::storage::wal::Threading;

const SEGMENT: u64 = 2048;

/// Runs the calls with the power cut after `operations`, then recovers from several outcomes.
fn crash_after(operations: u64, calls: &[Call], seeds: u64, page: usize, mutant: Option<Mutant>) -> Result<(), String> {
    let disk = SimDisk::with_page_bytes(page);
    disk.cut_after(operations);
    let Ok(mut driver) = Driver::open(&disk, SEGMENT, mutant) else {
        // Nothing was acknowledged: whatever is left must open as a new log.
        for seed in 0..seeds {
            let copy = disk.fork();
            copy.crash(Survivors::Seeded(seed));
            let fresh = Driver::open(&copy, SEGMENT, mutant).map_err(|error| error.to_string())?;
            assert!(fresh.newest().same_as(&Model::default()));
            fresh.wal.abandon();
        }
        return Ok(());
    };
    driver.run(calls);
    driver.wal.abandon();
    let outcomes = [Survivors::Nothing, Survivors::Everything];
    for survivors in outcomes.into_iter().chain((0..seeds).map(Survivors::Seeded)) {
        let copy = disk.fork();
        copy.crash(survivors);
        check(&driver, &copy, SEGMENT, mutant).map_err(|problem| format!("{operations} {survivors:?}: {problem}"))?;
        check_after_recovery(&driver, &copy, survivors, mutant)?;
    }
    Ok(())
}

/// What recovery reported must be durable: it survives another crash that forgets all else, and the
/// log goes on from there.
fn check_after_recovery(
    driver: &Driver,
    disk: &SimDisk,
    survivors: Survivors,
    mutant: Option<Mutant>,
) -> Result<(), String> {
    let mut again = Driver::open(disk, SEGMENT, mutant).map_err(|error| error.to_string())?;
    driver.check_recovered(&again.wal)?;
    disk.crash(survivors);
    again.wal.abandon();
    check(&again, disk, SEGMENT, mutant)?;
    again = Driver::open(disk, SEGMENT, mutant).map_err(|error| error.to_string())?;
    again.serial = 1 << 40;
    again.run(&[Call::Append(vec![30, 700]), Call::Vote]);
    disk.crash(Survivors::Nothing);
    again.wal.abandon();
    check(&again, disk, SEGMENT, mutant)
}

fn operations_of(calls: &[Call]) -> u64 {
    let disk = SimDisk::new();
    let mut driver = Driver::open(&disk, SEGMENT, None).unwrap();
    driver.run(calls);
    assert_eq!(driver.told.lock().acked, driver.history.len() - 1, "without faults everything is acknowledged");
    disk.operations()
}

pub(super) fn crash_everywhere(calls: &[Call], seeds: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let total = operations_of(calls);
    for operations in 0..=total {
        for page in [512, 4096] {
            crash_after(operations, calls, seeds, page, mutant)?;
        }
    }
    Ok(())
}

#[test]
fn after_every_operation() {
    crash_everywhere(&mixed_calls(), 12, None).unwrap();
}

#[test]
fn with_everything_in_one_group() {
    let calls: Vec<Call> = mixed_calls().into_iter().filter(|call| *call != Call::Pump).collect();
    crash_everywhere(&calls, 40, None).unwrap();
}

#[test]
fn truncated_and_overwritten_entries_never_come_back() {
    let mut calls = vec![Call::Append(vec![300; 6]), Call::Pump];
    for kept in [4, 3, 5, 0, 1] {
        calls.extend([Call::Truncate(kept), Call::Append(vec![250; 3]), Call::Pump, Call::Vote, Call::Pump]);
    }
    crash_everywhere(&calls, 12, None).unwrap();
}

#[test]
fn zeros_go_ahead_of_the_log_now_and_then_and_may_be_lost_at_any_time() {
    const SEGMENT: u64 = 1 << 20;
    const APPENDS: usize = 20;
    let run = |operations| {
        let disk = SimDisk::new();
        let mut driver = Driver::open(&disk, SEGMENT, None).unwrap();
        let opened = disk.trace().len();
        disk.cut_after(operations);
        for _ in 0..APPENDS {
            driver.run(&[Call::Append(vec![30_000])]);
        }
        driver.wal.abandon();
        (driver, disk.trace().split_off(opened))
    };
    let (driver, trace) = run(u64::MAX);
    let count = |wanted| trace.iter().filter(|(operation, _)| *operation == wanted).count();
    assert_eq!(count(Operation::SyncData), APPENDS);
    assert_eq!(count(Operation::Write), APPENDS + 2, "zeros once for each 256 KiB, the first when the segment began");
    for operations in 0..=driver.disk.operations() {
        let (driver, _) = run(operations);
        for seed in 0..6 {
            let copy = driver.disk.fork();
            copy.crash(Survivors::Seeded(seed));
            check(&driver, &copy, SEGMENT, None).unwrap();
        }
    }
}

#[test]
fn a_killed_process_does_not_pass_off_unsynced_data_as_durable() {
    let total = operations_of(&mixed_calls());
    for operations in 0..=total {
        let disk = SimDisk::with_page_bytes(512);
        disk.cut_after(operations);
        let Ok(mut driver) = Driver::open(&disk, SEGMENT, None) else { continue };
        driver.run(&mixed_calls());
        driver.wal.abandon();
        disk.restart_process();
        let second = Driver::open(&disk, SEGMENT, None).unwrap();
        driver.check_recovered(&second.wal).unwrap();
        disk.crash(Survivors::Nothing);
        second.wal.abandon();
        check(&second, &disk, SEGMENT, None).unwrap();
    }
}

#[test]
fn a_thread_of_its_own_obeys_the_same_rule() {
    let total = operations_of(&mixed_calls());
    for operations in 0..=total + 2 {
        let disk = SimDisk::with_page_bytes(512);
        disk.cut_after(operations);
        let Ok(mut driver) = Driver::open_threaded(&disk, SEGMENT, None, Threading::Own) else { continue };
        driver.run(&mixed_calls());
        driver.wal.close();
        assert!(!driver.told.lock().acked_after_fatal);
        for survivors in [Survivors::Nothing, Survivors::Seeded(operations)] {
            let copy = disk.fork();
            copy.crash(survivors);
            match Driver::open(&copy, SEGMENT, None) {
                Ok(again) => driver.check_recovered(&again.wal).map(|_| again.wal.abandon()).unwrap(),
                Err(error) => panic!("{operations} {survivors:?}: {error}"),
            }
        }
    }
}

#[test]
fn a_crash_during_recovery_harms_nothing() {
    let total = operations_of(&mixed_calls());
    for operations in (0..=total).step_by(3) {
        for seed in 0..3 {
            let disk = SimDisk::with_page_bytes(512);
            disk.cut_after(operations);
            let Ok(mut driver) = Driver::open(&disk, SEGMENT, None) else { continue };
            driver.run(&mixed_calls());
            driver.wal.abandon();
            disk.crash(Survivors::Seeded(seed));
            for cut in 0..12 {
                let copy = disk.fork();
                copy.cut_after(copy.operations() + cut);
                if let Ok(recovering) = Driver::open(&copy, SEGMENT, None) {
                    recovering.wal.abandon();
                }
                copy.crash(Survivors::Seeded(seed * 100 + cut));
                check(&driver, &copy, SEGMENT, None).unwrap();
            }
        }
    }
}

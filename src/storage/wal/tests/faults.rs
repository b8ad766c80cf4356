//! Disk errors: every operation fails once, in every way.

use super::harness::*;
use crate::storage::mutant::Mutant;
use crate::storage::simdisk::{Injected, Operation, SimDisk, Survivors};
use crate::storage::wal::segment::SPARE_NAME;

const SEGMENT: u64 = 2048;

fn operations() -> u64 {
    let disk = SimDisk::new();
    let mut driver = Driver::open(&disk, SEGMENT, None).unwrap();
    driver.run(&mixed_calls());
    disk.operations()
}

/// A full disk is not fatal while only the next segment's space is being reserved.
fn tolerable(disk: &SimDisk, operation: u64, injected: Injected) -> bool {
    let trace = disk.trace();
    let Some((kind, path)) = usize::try_from(operation).ok().and_then(|at| trace.get(at)) else { return false };
    let reserving = matches!(kind, Operation::Create | Operation::Allocate) && path.ends_with(SPARE_NAME);
    injected == Injected::Enospc && reserving
}

/// Fails one operation, then loses power: nothing acknowledged may be lost, nor anything
/// acknowledged after the failure.
fn fail_one(operation: u64, injected: Injected, mutant: Option<Mutant>) -> Result<(), String> {
    let disk = SimDisk::with_page_bytes(512);
    disk.inject(operation, injected);
    let Ok(mut driver) = Driver::open(&disk, SEGMENT, mutant) else {
        disk.crash(Survivors::Seeded(operation));
        Driver::open(&disk, SEGMENT, mutant).map_err(|error| error.to_string())?.wal.abandon();
        return Ok(());
    };
    driver.run(&mixed_calls());
    let calls = driver.history.len() - 1;
    {
        let told = driver.told.lock();
        if told.acked_after_fatal {
            return Err(format!("operation {operation}, {injected:?}: acknowledged after the fault"));
        }
        let complete = told.acked == calls && told.refused == 0;
        let went_on = complete && (tolerable(&disk, operation, injected) || operation >= disk.operations());
        if told.fatal != 1 && !(went_on && told.fatal == 0) {
            return Err(format!("operation {operation}, {injected:?}: fatal was called {} times", told.fatal));
        }
    }
    driver.wal.abandon();
    for survivors in [Survivors::Nothing, Survivors::Everything, Survivors::Seeded(operation)] {
        let copy = disk.fork();
        copy.crash(survivors);
        let what = format!("operation {operation}, {injected:?}, {survivors:?}");
        check(&driver, &copy, SEGMENT, mutant).map_err(|problem| format!("{what}: {problem}"))?;
        // The process alone restarts, then the power goes: what was recovered must be durable.
        let copy = disk.fork();
        copy.restart_process();
        let second = Driver::open(&copy, SEGMENT, mutant).map_err(|error| format!("{what}: {error}"))?;
        driver.check_recovered(&second.wal).map_err(|problem| format!("{what}: {problem}"))?;
        copy.crash(Survivors::Nothing);
        second.wal.abandon();
        check(&second, &copy, SEGMENT, mutant).map_err(|problem| format!("{what}, restarted: {problem}"))?;
    }
    Ok(())
}

pub(super) fn fail_everywhere(mutant: Option<Mutant>) -> Result<(), String> {
    for operation in 0..operations() {
        for injected in [Injected::Eio, Injected::Enospc, Injected::ShortWrite(0), Injected::ShortWrite(77)] {
            fail_one(operation, injected, mutant)?;
        }
    }
    Ok(())
}

#[test]
fn every_operation_fails_once() {
    fail_everywhere(None).unwrap();
}

#[test]
fn a_failed_sync_is_never_retried() {
    let disk = SimDisk::new();
    let mut driver = Driver::open(&disk, SEGMENT, None).unwrap();
    disk.inject(disk.operations() + 1, Injected::Eio);
    driver.run(&[Call::Append(vec![50])]);
    let after_fault = disk.operations();
    assert_eq!(disk.trace().last().unwrap().0, Operation::SyncData);
    driver.run(&[Call::Append(vec![50]), Call::Vote, Call::Purge(0)]);
    driver.wal.close();
    assert_eq!(disk.operations(), after_fault, "nothing is written after a fault");
    let told = driver.told.lock();
    assert_eq!((told.acked, told.refused, told.fatal), (0, 4, 1));
}

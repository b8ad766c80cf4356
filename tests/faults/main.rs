//! The promises under faults, with the real binary: kills, power cuts, failing and full disks,
//! damaged files. And the checkers that judge the runs, each with a test that it can fail.
//!
//! Seeds are printed; `TENURE_SEED=…` repeats one (the operations, not the threads' timing). What
//! cannot run here (no root, no loop device, no strace) prints `SKIPPED` and why;
//! `TENURE_FAULTS_REQUIRED=1` makes that a failure.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test harness: it reports to the terminal, fails by panics and reads the real clock"
)]

#[path = "../support/act.rs"]
mod act;
mod campaign;
#[path = "../support/check.rs"]
mod check;
mod crash;
mod damage;
mod disk;
mod fuzz;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/linear.rs"]
mod linear;
#[path = "../support/mount.rs"]
mod mount;
#[path = "../support/op.rs"]
mod op;
mod powercut;
mod refusal;
mod self_test;
mod server;
mod stall;
mod strace;
mod workload;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The run's seed: `TENURE_SEED`, else from the clock. Printed, so that a failure can be repeated.
fn seed(test: &str) -> u64 {
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| u64::from(now.subsec_nanos()));
    let seed = env_number("TENURE_SEED").unwrap_or_else(fresh);
    eprintln!("{test}: TENURE_SEED={seed}");
    seed
}

fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Says that a test did not run; a failure where faults are required to run.
fn skipped(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    assert!(std::env::var_os("TENURE_FAULTS_REQUIRED").is_none(), "SKIPPED {test}, which is required here: {why}");
}

/// Waits until `done` gives a value; panics after `within`.
fn eventually<T>(what: &str, within: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! The promises of a cluster under faults, with real processes: kills, pauses, partitions, power cuts,
//! stuck and full disks, changes of the membership; histories judged by two independent checkers.
//!
//! `campaign` is the run of a few minutes that belongs to every change; `scripts/chaos.sh` makes the
//! long one of it. What cannot run here prints `SKIPPED` and why; `TENURE_FAULTS_REQUIRED=1` makes that
//! a failure. `TENURE_SEED=…` repeats the choices, not the timing. Tests here run one after the other:
//! each has the machine to itself.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test harness: it reports to the terminal, fails by panics and reads the real clock"
)]

#[path = "../support/act.rs"]
#[allow(dead_code, reason = "another test program uses the rest")]
mod act;
mod campaign;
#[path = "../support/check.rs"]
mod check;
mod etcd_issues;
mod failover;
mod fleet;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/linear.rs"]
mod linear;
mod load;
mod lost_disk;
#[path = "../support/mount.rs"]
#[allow(dead_code, reason = "another test program uses the rest")]
mod mount;
mod nemesis;
#[path = "../support/op.rs"]
mod op;
mod proxy;
#[path = "../support/sockets.rs"]
mod sockets;
mod verdict;
mod witness;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine, for one test at a time.
fn machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

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

/// Says what does not run; a failure where faults are required to run.
fn skipped(what: &str, why: &str) {
    eprintln!("SKIPPED {what}: {why}");
    assert!(std::env::var_os("TENURE_FAULTS_REQUIRED").is_none(), "SKIPPED {what}, which is required here: {why}");
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

//! The watchdog over the log's disk. Heartbeats do not touch the disk, so a leader whose disk hangs
//! would lead on without ever committing again.
//!
//! `DiskStall` knows since when the oldest unfinished write or flush of the log is outstanding; whoever
//! serves asks it, so that a stalled member refuses at once. `watch` does what takes longer: it says
//! so, hands leadership over, and in the end gives up. Invariants: nothing here waits for the disk;
//! a stall is over as soon as the write is; what was proposed before it keeps its own deadline.

use super::apply::Fatal;
use crate::env::Clock;
use crate::model::Fault;
use crate::telemetry::metrics::Metrics;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Looks within the time that makes a stall.
const LOOKS: u32 = 8;
/// More often than this there is nothing to see.
const TICK_MIN: Duration = Duration::from_millis(10);

/// A cheap handle, shared with the observer of the log's writes.
#[derive(Debug, Clone)]
pub struct DiskStall(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Arc<dyn Clock>,
    /// When the outstanding write began, in nanoseconds and never 0; 0 if there is none.
    begun: AtomicU64,
    after: Duration,
    /// In milliseconds; 0 means never.
    abort_after_ms: AtomicU64,
}

impl DiskStall {
    /// A write outstanding for `after` is a stall; `abort_after`, if any, ends the process.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, after: Duration, abort_after: Option<Duration>) -> Self {
        let stall = Self(Arc::new(Inner { clock, begun: AtomicU64::new(0), after, abort_after_ms: AtomicU64::new(0) }));
        stall.set_abort_after(abort_after);
        stall
    }

    /// Takes effect also on a stall that is going on.
    pub fn set_abort_after(&self, abort_after: Option<Duration>) {
        let millis = abort_after.map_or(0, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1));
        self.0.abort_after_ms.store(millis, Ordering::Relaxed);
    }

    fn abort_after(&self) -> Option<Duration> {
        match self.0.abort_after_ms.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    /// The log's writer turns to the disk. Writes come one after another, never two at once.
    pub fn write_began(&self) {
        let now = u64::try_from(self.0.clock.monotonic().as_nanos()).unwrap_or(u64::MAX);
        self.0.begun.store(now.max(1), Ordering::Relaxed);
    }

    /// The disk has answered.
    pub fn write_ended(&self) {
        self.0.begun.store(0, Ordering::Relaxed);
    }

    /// For how long a write has been outstanding, if that is a stall.
    #[must_use]
    pub fn stalled(&self) -> Option<Duration> {
        match self.0.begun.load(Ordering::Relaxed) {
            0 => None,
            begun => {
                let outstanding = self.0.clock.monotonic().saturating_sub(Duration::from_nanos(begun));
                (outstanding >= self.0.after).then_some(outstanding)
            }
        }
    }
}

/// What the watch needs of Raft.
pub(crate) trait HandOver: Send + Sync + 'static {
    /// Asks another voter to lead; `false` if this member does not lead or there is no other.
    fn hand_over(&self) -> impl Future<Output = bool> + Send;
}

/// What is to be done after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    Begins,
    /// It goes on, and leadership should have gone by now.
    Urge,
    Ends(Duration),
    Abort(Duration),
}

/// The course of one stall.
#[derive(Debug, Default)]
struct Course {
    /// How long the present stall had lasted at the last look.
    lasted: Option<Duration>,
    /// How long it had lasted when the lead was last given away.
    urged: Duration,
}

impl Course {
    fn step(&mut self, stalled: Option<Duration>, again: Duration, abort_after: Option<Duration>) -> Step {
        let before = std::mem::replace(&mut self.lasted, stalled);
        match (before, stalled) {
            (None, None) => Step::Nothing,
            (Some(lasted), None) => Step::Ends(lasted),
            (_, Some(lasted)) if abort_after.is_some_and(|limit| lasted >= limit) => Step::Abort(lasted),
            (None, Some(lasted)) => {
                self.urged = lasted;
                Step::Begins
            }
            (Some(_), Some(lasted)) if lasted >= self.urged.saturating_add(again) => {
                self.urged = lasted;
                Step::Urge
            }
            (Some(_), Some(_)) => Step::Nothing,
        }
    }
}

/// Runs until stopped.
pub(super) async fn watch(stall: DiskStall, raft: Arc<impl HandOver>, metrics: Metrics, fatal: Fatal) {
    let after = stall.0.after;
    let mut ticks = tokio::time::interval((after / LOOKS).max(TICK_MIN));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut course = Course::default();
    loop {
        ticks.tick().await;
        let stalled = stall.stalled();
        metrics.wal_stall.set(stalled.unwrap_or_default().as_secs_f64());
        let step = course.step(stalled, after, stall.abort_after());
        match step {
            Step::Nothing => {}
            Step::Begins => {
                metrics.wal_stalls.inc();
                tracing::warn!(
                    outstanding_ms = millis(stalled.unwrap_or_default()),
                    "the log's disk is stalled: reads that must be current and writes are refused until it answers"
                );
            }
            Step::Urge => {}
            Step::Ends(lasted) => {
                tracing::warn!(lasted_ms = millis(lasted), "the log's disk answers again: this member serves again");
            }
            Step::Abort(lasted) => {
                let message = format!("the disk has not answered for {} s (disk-stall-abort)", lasted.as_secs());
                fatal(&Fault::Io { context: "log".into(), message });
            }
        }
        if matches!(step, Step::Begins | Step::Urge) {
            // Raft itself may be waiting for the disk: the watch goes on without it.
            let handed_over = tokio::time::timeout(after, raft.hand_over()).await;
            if handed_over == Ok(true) {
                tracing::warn!("another member has been asked to lead");
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{ManualClock, TaskSet};
    use parking_lot::Mutex;
    use prometheus_client::registry::Registry;
    use std::sync::atomic::AtomicUsize;

    const AFTER: Duration = Duration::from_millis(1200);
    const LIMIT: Duration = Duration::from_secs(60);

    fn manual(abort_after: Option<Duration>) -> (Arc<ManualClock>, DiskStall) {
        let clock = Arc::new(ManualClock::new(0));
        (clock.clone(), DiskStall::new(clock, AFTER, abort_after))
    }

    #[test]
    fn only_a_write_that_is_still_outstanding_is_a_stall() {
        let (clock, stall) = manual(None);
        clock.advance(LIMIT);
        assert_eq!(stall.stalled(), None, "nothing is being written");
        stall.write_began();
        clock.advance(AFTER - Duration::from_millis(1));
        assert_eq!(stall.stalled(), None);
        clock.advance(Duration::from_millis(1));
        assert_eq!(stall.stalled(), Some(AFTER));
        stall.write_ended();
        assert_eq!(stall.stalled(), None);
        stall.write_began();
        assert_eq!(stall.stalled(), None, "another write is not the old one");
    }

    #[test]
    fn a_write_at_the_clock_s_very_start_counts() {
        let (clock, stall) = manual(None);
        stall.write_began();
        clock.advance(AFTER * 2);
        assert!(stall.stalled().is_some());
    }

    #[test]
    fn a_stall_begins_urges_and_ends_once_each() {
        let mut course = Course::default();
        let mut step = |millis: Option<u64>| course.step(millis.map(Duration::from_millis), AFTER, Some(LIMIT));
        assert_eq!(step(None), Step::Nothing);
        assert_eq!(step(Some(1200)), Step::Begins);
        assert_eq!(step(Some(1350)), Step::Nothing);
        assert_eq!(step(Some(2400)), Step::Urge);
        assert_eq!(step(Some(3500)), Step::Nothing);
        assert_eq!(step(Some(3600)), Step::Urge);
        assert_eq!(step(None), Step::Ends(Duration::from_millis(3600)));
        assert_eq!(step(None), Step::Nothing);
        assert_eq!(step(Some(1200)), Step::Begins, "the next one is told again");
    }

    #[test]
    fn it_aborts_at_its_limit_and_never_without_one() {
        let long = Some(LIMIT);
        assert_eq!(Course::default().step(long, AFTER, Some(LIMIT)), Step::Abort(LIMIT));
        assert_eq!(Course::default().step(long, AFTER, None), Step::Begins);
        let (clock, stall) = manual(Some(LIMIT));
        stall.write_began();
        clock.advance(LIMIT);
        assert_eq!(stall.abort_after(), Some(LIMIT));
        stall.set_abort_after(None);
        assert_eq!(stall.abort_after(), None);
        stall.set_abort_after(Some(Duration::ZERO));
        assert!(stall.abort_after().is_some(), "a limit of nothing is still a limit");
    }

    #[derive(Debug, Default)]
    struct Heirs(AtomicUsize);

    impl HandOver for Heirs {
        async fn hand_over(&self) -> bool {
            self.0.fetch_add(1, Ordering::SeqCst);
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_hands_over_counts_and_gives_up() {
        let (clock, stall) = manual(Some(LIMIT));
        let (raft, metrics) = (Arc::new(Heirs::default()), Metrics::new(&mut Registry::default()));
        let (tasks, faults) = (TaskSet::new(), Arc::new(Mutex::new(Vec::new())));
        let seen = faults.clone();
        let fatal: Fatal = Arc::new(move |fault: &Fault| seen.lock().push(fault.to_string()));
        tasks.spawn_until_stop("stall watch", watch(stall.clone(), raft.clone(), metrics.clone(), fatal));
        let pass = async |time: Duration| {
            clock.advance(time);
            tokio::time::sleep(AFTER).await;
        };
        pass(LIMIT).await;
        assert_eq!(raft.0.load(Ordering::SeqCst), 0);
        stall.write_began();
        pass(AFTER).await;
        assert_eq!((raft.0.load(Ordering::SeqCst), metrics.wal_stalls.get()), (1, 1));
        pass(AFTER).await;
        assert_eq!((raft.0.load(Ordering::SeqCst), metrics.wal_stalls.get()), (2, 1), "urged again, counted once");
        assert!(metrics.wal_stall.get() >= AFTER.as_secs_f64());
        stall.write_ended();
        pass(AFTER).await;
        assert!(metrics.wal_stall.get().abs() < f64::EPSILON);
        assert_eq!(*faults.lock(), Vec::<String>::new());
        stall.write_began();
        pass(LIMIT).await;
        assert!(faults.lock()[0].contains("disk-stall-abort"), "{faults:?}");
        assert!(tasks.stop(LIMIT).await);
    }
}

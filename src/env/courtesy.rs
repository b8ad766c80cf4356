//! How background work leaves the processor and the disk, and long work its worker, to what somebody waits for.
//!
//! A thread of a low priority that has the processor keeps it for a slice of some milliseconds even so, and a request
//! that passes several members meets such a slice more than once.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Beside a thread of the usual priority that never waits, this leaves one a tenth of a processor.
#[cfg(target_os = "linux")]
pub(super) const BACKGROUND_NICE: i32 = 10;

/// Of the time, others get at most this many parts for each one of a thread that gives way: as much as by its
/// priority. A machine without an idle moment must not keep it from its end.
const PARTS: u32 = 9;

/// A disk is left alone for this many times as long as it was busy. In turn of 0, 1, 3 and 9, at syncs of 1 MiB of
/// some 1.5 ms: 3 and 9 took the p99 of writes while a member joined from 9 to 7 ms, for a second more.
const DISK_PARTS: u32 = 3;
/// A slow disk must not keep a large file from its end.
const DISK_PAUSE_MAX: Duration = Duration::from_millis(20);

thread_local! {
    /// When this thread gives way again; `None`: it never does.
    static NEXT: Cell<Option<Instant>> = Cell::new(is_background().then(now));
}

/// Runs work of a task. If it may take long, the other tasks of this worker, which may be the only one, are given to
/// another thread first; always would cost a thread switch each.
pub fn unhurried<T>(is_long: bool, work: impl FnOnce() -> T) -> T {
    let has_workers = || Handle::try_current().is_ok_and(|on| on.runtime_flavor() == RuntimeFlavor::MultiThread);
    if is_long && has_workers() { tokio::task::block_in_place(work) } else { work() }
}

#[expect(clippy::disallowed_methods, reason = "how long others had the processor; nobody is told")]
fn now() -> Instant {
    Instant::now()
}

/// Gives this thread, and those that it starts, a low priority. Where it may not be changed, and where it is that of
/// the whole process, it stays as it is.
pub(super) fn lower_priority() {
    #[cfg(target_os = "linux")]
    if !is_background() {
        rustix::process::setpriority_process(None, BACKGROUND_NICE).ok();
    }
}

#[cfg(target_os = "linux")]
fn is_background() -> bool {
    rustix::process::getpriority_process(None).is_ok_and(|nice| nice >= BACKGROUND_NICE)
}

#[cfg(not(target_os = "linux"))]
const fn is_background() -> bool {
    false
}

/// To be called often, by work that may be in the background: a thread of a low priority lets others have the
/// processor that it is on, if they wait for it. On any other thread it does nothing.
pub fn give_way() {
    NEXT.with(|next| {
        let Some(due) = next.get() else { return };
        let begun = now();
        if begun >= due {
            std::thread::yield_now();
            let back = now();
            next.set(Some(back + own_part(back - begun)));
        }
    });
}

/// How long to work on after others had the processor for that long.
fn own_part(others: Duration) -> Duration {
    others / PARTS
}

/// Has a part of a large file synced, and then leaves the disk to others for a while. Blocks the thread.
///
/// # Errors
/// Those of `sync`.
pub fn take_turns(sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    let begun = now();
    let synced = sync();
    std::thread::sleep(disk_pause(now() - begun));
    synced
}

fn disk_pause(busy: Duration) -> Duration {
    (busy * DISK_PARTS).min(DISK_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::super::TaskSet;
    use super::*;

    #[test]
    fn only_a_thread_of_a_low_priority_gives_way() {
        let next = || NEXT.with(Cell::get);
        give_way();
        assert_eq!(next(), None);
        let low = move || {
            lower_priority();
            let before = next();
            give_way();
            (before, std::thread::spawn(next).join().unwrap(), next())
        };
        let (before, started, after) = std::thread::spawn(low).join().unwrap();
        assert_eq!((before.is_some(), started.is_some()), (is_background_known(), is_background_known()));
        assert!(!is_background_known() || after > before);
    }

    const fn is_background_known() -> bool {
        cfg!(target_os = "linux")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn other_tasks_of_the_only_worker_run_beside_long_work() {
        let tasks = TaskSet::new();
        let (other_ran, ran) = std::sync::mpsc::channel();
        let (finished, result) = tokio::sync::oneshot::channel();
        let others = tasks.clone();
        tasks.spawn("long work", async move {
            others.spawn("another", async move { other_ran.send(()).unwrap() });
            finished.send(unhurried(true, || ran.recv_timeout(Duration::from_secs(10)).is_ok())).unwrap();
        });
        assert!(result.await.unwrap());
        assert_eq!(unhurried(false, || std::thread::current().id()), std::thread::current().id());
    }

    #[test]
    fn others_get_nine_tenths_of_the_time() {
        assert_eq!(own_part(Duration::from_millis(27)), Duration::from_millis(3));
    }

    #[test]
    fn others_get_three_quarters_of_the_disk_and_of_a_slow_one_less() {
        let pause = |millis| disk_pause(Duration::from_millis(millis)).as_millis();
        assert_eq!([0, 2, 500].map(pause), [0, 6, 20]);
        let begun = now();
        let slow = || {
            std::thread::sleep(Duration::from_millis(2));
            Err(io::ErrorKind::StorageFull.into())
        };
        assert!(take_turns(&slow).is_err());
        assert!(begun.elapsed() >= Duration::from_millis(8));
    }
}

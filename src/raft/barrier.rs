//! The read barrier (ReadIndex): after it, this member's applied state reflects every write that was
//! answered anywhere before the barrier was asked for.
//!
//! One round is outstanding at a time; whoever comes meanwhile shares the next, so any number of
//! readers costs one question to a majority, or elsewhere than on the leader one to the leader. A round that would
//! be smaller than the one before lets other tasks run first, a few times: those just answered often ask again.
//! Invariants: a round's leadership check begins after each of its waiters arrived; a waiter returns
//! only once what the round found committed is applied.

use crate::env::TaskSet;
use crate::model::{Failure, Why};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;

/// Pauses before a round is tried again, because a leader is being elected.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// How often. In turn of 0, 4, 16, 64 and 256, 16 took the least processor time for a read under load: a tenth less
/// than 0. Where nothing else runs, it is over in some ten microseconds.
const GATHER_TURNS: usize = 16;

/// What a barrier needs of Raft.
pub(crate) trait ReadIndex: Send + Sync + 'static {
    /// Confirms leadership by a quorum's answer that is newer than the call, and waits until all
    /// that was committed at the call is applied here. Answers up to where that is.
    fn confirm(&self) -> impl Future<Output = Result<u64, Failure>> + Send;
    /// Whether a round that found no leader may find one soon.
    fn hopeful(&self) -> bool;
}

#[derive(Debug, Default)]
struct Round {
    result: OnceLock<Result<u64, Failure>>,
    done: Notify,
}

impl Round {
    fn settle(&self, result: Result<u64, Failure>) {
        // Only who makes the rounds does this, once each.
        drop(self.result.set(result));
        self.done.notify_waiters();
    }

    async fn wait(&self) -> Result<u64, Failure> {
        let done = self.done.notified();
        tokio::pin!(done);
        // Registered before the result is looked at, so that its arrival in between wakes this.
        done.as_mut().enable();
        if let Some(result) = self.result.get() {
            return result.clone();
        }
        done.await;
        self.result.get().cloned().unwrap_or(Err(shutting_down()))
    }
}

/// A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Barrier(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    next: Mutex<Next>,
    wanted: Notify,
}

/// The round that has not begun: new waiters join it.
#[derive(Debug, Default)]
struct Next {
    round: Option<Arc<Round>>,
    waiters: usize,
    /// There are no more rounds.
    ended: bool,
}

impl Barrier {
    /// `patience` bounds how long one round is retried while no leader is confirmed.
    pub(crate) fn start(raft: Arc<impl ReadIndex>, patience: Duration, tasks: &TaskSet) -> Self {
        let shared = Arc::new(Shared { next: Mutex::default(), wanted: Notify::new() });
        let rounds = Rounds { shared: shared.clone(), current: None };
        tasks.spawn_until_stop("read barrier", rounds.run(raft, patience));
        Self(shared)
    }

    pub(crate) async fn wait(&self, timeout: Duration) -> Result<u64, Failure> {
        let round = {
            let mut next = self.0.next.lock();
            if next.ended {
                return Err(shutting_down());
            }
            next.waiters += 1;
            next.round.get_or_insert_default().clone()
        };
        self.0.wanted.notify_one();
        match tokio::time::timeout(timeout, round.wait()).await {
            Ok(result) => result,
            Err(_) => Err(Failure::not_proposed(Why::Timeout)),
        }
    }
}

fn shutting_down() -> Failure {
    Failure::not_proposed(Why::ShuttingDown)
}

/// Who makes the rounds. Whoever waits when it goes is told.
struct Rounds {
    shared: Arc<Shared>,
    current: Option<Arc<Round>>,
}

impl Rounds {
    async fn run(mut self, raft: Arc<impl ReadIndex>, patience: Duration) {
        let mut last = 0;
        loop {
            self.shared.wanted.notified().await;
            for _ in 0..GATHER_TURNS {
                if self.shared.next.lock().waiters >= last {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let next = std::mem::take(&mut *self.shared.next.lock());
            let Some(round) = next.round else { continue };
            last = next.waiters;
            self.current = Some(round);
            let result = confirm(&*raft, patience).await;
            if let Some(round) = self.current.take() {
                round.settle(result);
            }
        }
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        let next = std::mem::replace(&mut *self.shared.next.lock(), Next { ended: true, ..Next::default() });
        for round in self.current.take().into_iter().chain(next.round) {
            round.settle(Err(shutting_down()));
        }
    }
}

async fn confirm(raft: &impl ReadIndex, patience: Duration) -> Result<u64, Failure> {
    let retries = async {
        loop {
            match raft.confirm().await {
                Err(Failure::Unavailable { why: Why::NoLeader, .. }) if raft.hopeful() => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                settled => return settled,
            }
        }
    };
    match tokio::time::timeout(patience, retries).await {
        Ok(result) => result,
        Err(_) => Err(Failure::not_proposed(Why::NoLeader)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    struct Gate {
        begun: AtomicUsize,
        open: Semaphore,
        refuse: AtomicUsize,
    }

    impl Gate {
        fn new(refuse: usize) -> Arc<Self> {
            Arc::new(Self { begun: AtomicUsize::new(0), open: Semaphore::new(0), refuse: AtomicUsize::new(refuse) })
        }
    }

    impl ReadIndex for Gate {
        async fn confirm(&self) -> Result<u64, Failure> {
            self.begun.fetch_add(1, Ordering::SeqCst);
            self.open.acquire().await.unwrap().forget();
            if self.refuse.load(Ordering::SeqCst) > 0 {
                self.refuse.fetch_sub(1, Ordering::SeqCst);
                return Err(Failure::not_proposed(Why::NoLeader));
            }
            Ok(7)
        }

        fn hopeful(&self) -> bool {
            true
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn those_who_come_during_a_round_share_the_next() {
        let (gate, tasks) = (Gate::new(0), TaskSet::new());
        let barrier = Barrier::start(gate.clone(), LONG, &tasks);
        let first = barrier.wait(LONG);
        tokio::pin!(first);
        assert!(futures_util::poll!(&mut first).is_pending());
        while gate.begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let late: Vec<_> = (0..50).map(|_| Box::pin(barrier.wait(LONG))).collect();
        let late = futures_util::future::join_all(late);
        tokio::pin!(late);
        assert!(futures_util::poll!(&mut late).is_pending());
        gate.open.add_permits(1);
        assert!(first.await.is_ok());
        assert!(futures_util::poll!(&mut late).is_pending(), "they came after the first round began");
        gate.open.add_permits(1);
        assert!(late.await.iter().all(Result::is_ok));
        assert_eq!(gate.begun.load(Ordering::SeqCst), 2);
        assert!(tasks.stop(LONG).await);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_ask_again_a_moment_later_share_a_round() {
        const TIMES: usize = 5;
        let (gate, tasks) = (Gate::new(0), TaskSet::new());
        gate.open.add_permits(100);
        let barrier = Barrier::start(gate.clone(), LONG, &tasks);
        let readers = (0..20).map(|at| {
            let barrier = &barrier;
            async move {
                for _ in 0..TIMES {
                    barrier.wait(LONG).await.unwrap();
                    for _ in 0..at % 5 {
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
        futures_util::future::join_all(readers).await;
        assert_eq!(gate.begun.load(Ordering::SeqCst), TIMES);
        // And who comes alone after many is not kept waiting for them.
        assert!(barrier.wait(LONG).await.is_ok());
        assert!(tasks.stop(LONG).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_survives_an_election_within_its_patience() {
        let (gate, tasks) = (Gate::new(3), TaskSet::new());
        gate.open.add_permits(100);
        let barrier = Barrier::start(gate.clone(), LONG, &tasks);
        assert!(barrier.wait(LONG).await.is_ok());
        assert_eq!(gate.begun.load(Ordering::SeqCst), 4);
        assert!(tasks.stop(LONG).await);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_at_the_end_or_comes_later_is_told() {
        let (gate, tasks) = (Gate::new(0), TaskSet::new());
        let barrier = Barrier::start(gate.clone(), LONG, &tasks);
        let told = |answer| matches!(answer, Err(Failure::Unavailable { why: Why::ShuttingDown, .. }));
        let (first, second) = (barrier.wait(LONG), barrier.wait(LONG));
        tokio::pin!(first, second);
        assert!(futures_util::poll!(&mut first).is_pending());
        while gate.begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(futures_util::poll!(&mut second).is_pending(), "its round has not begun");
        assert!(tasks.stop(LONG).await);
        for waiting in [first, second] {
            assert!(waiting.now_or_never().is_some_and(told));
        }
        assert!(barrier.wait(LONG).now_or_never().is_some_and(told));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_round_ends_each_waiter_by_its_own_deadline() {
        let (gate, tasks) = (Gate::new(0), TaskSet::new());
        let barrier = Barrier::start(gate, LONG, &tasks);
        let result = barrier.wait(Duration::from_millis(10)).await;
        assert!(matches!(result, Err(Failure::Unavailable { why: Why::Timeout, .. })));
        assert!(tasks.stop(LONG).await);
    }
}

//! The one spawner. Every background task is named, owned here, and ends when the set is stopped.

use super::courtesy::lower_priority;
use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A cheap handle on the tasks of one node. `stop` ends them all.
#[derive(Debug, Clone, Default)]
pub struct TaskSet {
    tracker: TaskTracker,
    stopping: CancellationToken,
}

impl TaskSet {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when shutdown begins: streams, waits and loops select on it.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Runs `task` to its own end; it must watch `stopping` if it can last.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(async move {
            task.await;
            tracing::trace!(task = name, "task ended");
        });
    }

    /// Runs `task` until it ends or the set is stopped, whichever is first.
    pub fn spawn_until_stop<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stopping = self.stopping.clone();
        self.spawn(name, async move {
            stopping.run_until_cancelled(task).await;
        });
    }

    /// Runs blocking work on the blocking pool and waits for it; `None` if it panicked.
    pub async fn blocking<T, F>(&self, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.tracker.spawn_blocking(work).await.ok()
    }

    /// As `blocking`, on a thread of its own and of a low priority, which threads that it starts have for as long as
    /// they live. It should call `give_way` often.
    pub async fn background<T, F>(&self, name: &'static str, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        // Waited for on the pool: time that is simulated stands still meanwhile, as it does for all that blocks.
        let outcome = self.blocking(move || {
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                lower_priority();
                work()
            });
            match thread {
                Ok(thread) => thread.join().ok(),
                Err(error) => {
                    tracing::warn!(%error, name, "no thread could be started");
                    None
                }
            }
        });
        outcome.await.flatten()
    }

    /// Signals every task and waits for them, at most `within`. True if all have ended.
    pub async fn stop(&self, within: Duration) -> bool {
        self.stopping.cancel();
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    use super::super::courtesy::BACKGROUND_NICE;
    use super::*;

    #[tokio::test]
    async fn background_work_gives_way_and_is_waited_for() {
        let tasks = TaskSet::new();
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let within = tasks.background("low", nice).await;
        #[cfg(target_os = "linux")]
        assert_eq!(within, Some(before.max(BACKGROUND_NICE)));
        assert_eq!((nice(), within.is_some()), (before, true), "nobody else does");
        assert_eq!(tasks.background("panics", || panic!("for the test")).await, None::<()>);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let given_up = tokio::time::timeout(Duration::from_millis(20), tasks.background("slow", move || wait.recv()));
        assert!(given_up.await.is_err());
        assert!(!tasks.stop(Duration::from_millis(50)).await, "it is still at work");
        go.send(()).unwrap();
        assert!(tasks.stop(Duration::from_secs(10)).await);
    }
}

//! The one spawner. Every background task is named, owned here, and ends when the set is stopped.

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

    /// Signals every task and waits for them, at most `within`. True if all have ended.
    pub async fn stop(&self, within: Duration) -> bool {
        self.stopping.cancel();
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait()).await.is_ok()
    }
}

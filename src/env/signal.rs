//! A word left for one waiter, without a lock: every event of every watch passes here. It must not know what
//! the word is about.
//!
//! Invariant: who hears it sees all that any of its givers did before, also of those whose word was not the last.

use futures_util::task::AtomicWaker;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

/// Given before anyone waits, it is kept; given several times, it is heard once. For one waiter at a time:
/// a second would take the first one's place.
#[derive(Debug, Default)]
pub struct Signal {
    given: AtomicBool,
    waiter: AtomicWaker,
}

impl Signal {
    pub fn give(&self) {
        // Not a store: that would hide from the waiter what an earlier giver did.
        self.given.swap(true, Ordering::Release);
        self.waiter.wake();
    }

    /// May be dropped and asked for again: nothing is lost.
    pub async fn heard(&self) {
        poll_fn(|cx| {
            if self.take() {
                return Poll::Ready(());
            }
            self.waiter.register(cx.waker());
            // It may have been given before the waiter was known.
            if self.take() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn take(&self) -> bool {
        self.given.load(Ordering::Relaxed) && self.given.swap(false, Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::sync::Arc;

    #[tokio::test]
    async fn what_was_given_before_is_heard_once() {
        let signal = Signal::default();
        assert_eq!(signal.heard().now_or_never(), None);
        signal.give();
        signal.give();
        assert_eq!(signal.heard().now_or_never(), Some(()));
        assert_eq!(signal.heard().now_or_never(), None);
    }

    #[test]
    fn no_signal_is_lost_between_threads() {
        let (signal, back) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
        let wait = |signal: &Signal| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                tokio::time::timeout(std::time::Duration::from_secs(10), signal.heard()).await.unwrap();
            });
        };
        let (theirs, ours) = (signal.clone(), back.clone());
        let other = std::thread::spawn(move || {
            for _ in 0..20_000 {
                wait(&theirs);
                ours.give();
            }
        });
        for _ in 0..20_000 {
            signal.give();
            wait(&back);
        }
        other.join().unwrap();
    }
}

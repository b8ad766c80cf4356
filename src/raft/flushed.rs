//! How far the local log is durable, and waiting for it.
//!
//! openraft applies what is committed once it is *submitted* locally: with a quorum elsewhere, state
//! would run ahead of the log on this disk. So apply, snapshot publication and snapshot install wait
//! here. Invariant: the mark never covers an entry that this disk does not hold, also when entries
//! are cut off and others take their indexes while the earlier ones are still being written.

use parking_lot::Mutex;
use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct Flushed {
    written: Mutex<Written>,
    /// The first index that is not known to be durable.
    next: watch::Sender<u64>,
}

#[derive(Debug)]
struct Written {
    /// Which log the writes in flight belong to: cutting the tail off begins another.
    generation: u64,
    /// The first index that was not given to the log.
    next: u64,
}

impl Flushed {
    pub(crate) fn new(next: u64) -> Self {
        Self { written: Mutex::new(Written { generation: 0, next }), next: watch::Sender::new(next) }
    }

    /// Entries before index `next` are given to the log. Returns what `done` wants to know.
    pub(crate) fn begin(&self, next: u64) -> u64 {
        let mut written = self.written.lock();
        written.next = next.max(written.next);
        written.generation
    }

    /// A write of `generation` that ended before index `next` is durable, and all before it.
    pub(crate) fn done(&self, generation: u64, next: u64) {
        let written = self.written.lock();
        if written.generation == generation {
            self.next.send_if_modified(|mark| {
                let higher = next > *mark;
                *mark = next.max(*mark);
                higher
            });
        }
    }

    /// The entries from `next` on are about to be cut off. Returns the generation of what follows.
    pub(crate) fn cut(&self, next: u64) -> u64 {
        let mut written = self.written.lock();
        written.generation += 1;
        written.next = next.min(written.next);
        self.next.send_if_modified(|mark| {
            let lower = next < *mark;
            *mark = next.min(*mark);
            lower
        });
        written.generation
    }

    /// Waits until all that was appended before the call is durable.
    pub(crate) async fn settled(&self) {
        let next = self.written.lock().next;
        if let Some(last) = next.checked_sub(1) {
            self.covers(last).await;
        }
    }

    /// The first index that is not known to be durable.
    pub(crate) fn next(&self) -> u64 {
        *self.next.borrow()
    }

    /// Waits until the entry at `index` and all before it are durable.
    pub(crate) async fn covers(&self, index: u64) {
        if self.next() > index {
            return;
        }
        let mut mark = self.next.subscribe();
        // The sender lives in `self`, so the only error, that it is gone, cannot happen.
        drop(mark.wait_for(|next| *next > index).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_from_before_a_cut_says_nothing_about_what_follows() {
        let flushed = Flushed::new(5);
        let old = flushed.begin(10);
        let new = flushed.cut(3);
        assert_eq!(flushed.next(), 3);
        flushed.done(old, 10);
        assert_eq!(flushed.next(), 3, "index 9 now belongs to an entry still in memory");
        flushed.done(new, 7);
        assert_eq!(flushed.next(), 7);
    }

    #[test]
    fn the_mark_only_rises_without_a_cut() {
        let flushed = Flushed::new(0);
        let generation = flushed.begin(4);
        flushed.done(generation, 4);
        flushed.done(generation, 2);
        assert_eq!(flushed.next(), 4);
    }

    #[tokio::test]
    async fn waiters_wake_at_their_index() {
        let flushed = Flushed::new(0);
        flushed.done(0, 3);
        flushed.covers(2).await;
        let wait = flushed.covers(3);
        tokio::pin!(wait);
        assert!(futures_util::poll!(&mut wait).is_pending());
        flushed.done(0, 4);
        wait.await;
    }
}

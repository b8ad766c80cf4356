//! Where proposals wait for the batcher, and when the next batch goes.
//!
//! With nothing in flight the first proposal goes at once. While a batch is in flight a second goes
//! as soon as it has grown as large as the one before it: so batches are not cut into smaller and
//! smaller ones by callers that come back one by one, and the log on disk, which takes one batch
//! after another anyway, is kept busy. A batch that would be smaller than those before lets other tasks
//! run first, a few times: those just answered often come again. Only a push that makes a batch ready
//! wakes the batcher.
//! Invariants: bounded; at most two batches in flight; what is left at the end answers for itself.

use super::answer::Ticket;
use crate::model::{Why, limits};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// How often others are let run first. In turn of 0, 8, 16, 32 and 64, 16 and more took a sixth less processor time
/// for a put of three members than 0, at 64 clients. Where nothing else runs, it is over in some ten microseconds.
const GATHER_TURNS: usize = 16;

#[derive(Debug)]
pub(crate) struct Queued {
    /// `codec::encode` of the proposal.
    pub(crate) encoded: Bytes,
    /// On the monotonic clock.
    pub(crate) deadline: Duration,
    pub(crate) ticket: Ticket,
    /// It came from another member, so it is proposed here or not at all.
    pub(crate) forwarded: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    ready: Notify,
    /// Nothing is in flight any more.
    landed: Notify,
    /// The last batch was refused, for want of a leader.
    refused: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Queued>,
    closed: bool,
    batches_in_flight: usize,
    proposals_in_flight: usize,
    /// Of the last two batches, since two are in flight in turn.
    sizes: [usize; 2],
}

impl State {
    fn is_ready(&self) -> bool {
        match self.batches_in_flight {
            0 => !self.waiting.is_empty(),
            batches if batches < limits::BATCHES_IN_FLIGHT_MAX => {
                self.waiting.len() >= self.proposals_in_flight.min(limits::BATCH_PROPOSALS_MAX)
                    && !self.waiting.is_empty()
            }
            _ => false,
        }
    }

    /// Whether there would be less in it than in one of the last two.
    fn is_small(&self) -> bool {
        self.waiting.len() < self.sizes[0].max(self.sizes[1])
    }

    /// The longest run of waiting proposals that fits one entry; at least one.
    fn cut(&mut self) -> Vec<Queued> {
        let mut bytes = 0;
        let fits = |item: &&Queued| {
            let first = bytes == 0;
            bytes += item.encoded.len();
            first || bytes <= limits::BATCH_BYTES_MAX
        };
        let count = self.waiting.iter().take(limits::BATCH_PROPOSALS_MAX).take_while(fits).count();
        self.sizes = [self.sizes[1], count];
        self.waiting.drain(..count).collect()
    }
}

impl Queue {
    pub(crate) fn push(&self, item: Queued) -> Result<(), Why> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Why::ShuttingDown);
        }
        if state.waiting.len() >= limits::PROPOSAL_QUEUE_MAX {
            return Err(Why::Overloaded);
        }
        state.waiting.push_back(item);
        let ready = state.is_ready();
        drop(state);
        if ready {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Waits for the next batch. Nothing is lost if the wait is given up.
    pub(crate) async fn next(self: &Arc<Self>) -> (Vec<Queued>, Flight) {
        let mut turns = 0;
        loop {
            let is_ready = {
                let mut state = self.state.lock();
                let is_ready = state.is_ready();
                if is_ready && (turns >= GATHER_TURNS || !state.is_small()) {
                    let items = state.cut();
                    state.batches_in_flight += 1;
                    state.proposals_in_flight += items.len();
                    let flight = Flight { queue: self.clone(), proposals: items.len() };
                    return (items, flight);
                }
                is_ready
            };
            if is_ready {
                turns += 1;
                tokio::task::yield_now().await;
            } else {
                self.ready.notified().await;
            }
        }
    }

    /// What came from other members and waits, in order.
    pub(crate) fn take_forwarded(&self) -> Vec<Queued> {
        let mut state = self.state.lock();
        let waiting = std::mem::take(&mut state.waiting);
        let (forwarded, own): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|item| item.forwarded);
        state.waiting = own.into();
        forwarded
    }

    /// Notes whether the last batch found a leader.
    pub(crate) fn note_refused(&self, refused: bool) {
        self.refused.store(refused, Ordering::Relaxed);
    }

    /// What a deadline that passes in the queue is to be blamed on.
    pub(crate) fn blame(&self) -> Why {
        if self.refused.load(Ordering::Relaxed) { Why::NoLeader } else { Why::Timeout }
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn landed(&self) {
        loop {
            let landed = self.landed.notified();
            if self.state.lock().batches_in_flight == 0 {
                return;
            }
            landed.await;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Refuses all that comes and drops all that waits.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
    }
}

/// A batch on its way; makes room for the next when dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    queue: Arc<Queue>,
    proposals: usize,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.batches_in_flight -= 1;
        state.proposals_in_flight -= self.proposals;
        let (ready, landed) = (state.is_ready(), state.batches_in_flight == 0);
        drop(state);
        if ready {
            self.queue.ready.notify_one();
        }
        if landed {
            self.queue.landed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::{Waiting, slot};
    use super::*;
    use crate::model::{Failure, Outcome};
    use futures_util::FutureExt;
    use std::pin::pin;

    fn push(queue: &Queue, bytes: usize) -> Waiting {
        let (ticket, waiting) = slot();
        queue
            .push(Queued { encoded: vec![0; bytes].into(), deadline: Duration::MAX, ticket, forwarded: false })
            .unwrap();
        waiting
    }

    /// What goes now, or as soon as others have run.
    fn next(queue: &Arc<Queue>) -> Option<(Vec<Queued>, Flight)> {
        let mut next = pin!(queue.next());
        (0..=GATHER_TURNS).find_map(|_| next.as_mut().now_or_never())
    }

    #[test]
    fn a_second_batch_goes_when_it_is_as_large_as_the_first() {
        let queue = Arc::new(Queue::default());
        let _first = [push(&queue, 10), push(&queue, 10), push(&queue, 10)];
        let (items, one) = next(&queue).unwrap();
        assert_eq!(items.len(), 3);
        let _second = [push(&queue, 10), push(&queue, 10)];
        assert!(next(&queue).is_none(), "two are fewer than the three in flight");
        let _third = push(&queue, 10);
        let (items, two) = next(&queue).unwrap();
        assert_eq!(items.len(), 3);
        let _more: Vec<_> = (0..300).map(|_| push(&queue, 10)).collect();
        assert!(next(&queue).is_none(), "two are in flight");
        drop(one);
        let (items, three) = next(&queue).unwrap();
        assert_eq!(items.len(), limits::BATCH_PROPOSALS_MAX);
        assert!(next(&queue).is_none());
        drop((two, three));
        assert_eq!(next(&queue).unwrap().0.len(), 300 - limits::BATCH_PROPOSALS_MAX);
    }

    #[test]
    fn a_batch_that_is_smaller_than_those_before_lets_others_run_first() {
        let queue = Arc::new(Queue::default());
        let _many = [push(&queue, 10), push(&queue, 10), push(&queue, 10)];
        drop(queue.next().now_or_never().expect("nothing was before"));
        let _one = push(&queue, 10);
        let mut small = Box::pin(queue.next());
        assert!(small.as_mut().now_or_never().is_none());
        let _others = [push(&queue, 10), push(&queue, 10)];
        let (items, flight) = small.now_or_never().expect("it is as large as the one before");
        assert_eq!(items.len(), 3);
        drop(flight);
        for turns in [GATHER_TURNS, GATHER_TURNS, 0] {
            let _lone = push(&queue, 10);
            let mut lone = Box::pin(queue.next());
            for _ in 0..turns {
                assert!(lone.as_mut().now_or_never().is_none());
            }
            let (items, _flight) = lone.now_or_never().expect("nobody has come, or nobody came before");
            assert_eq!(items.len(), 1);
        }
    }

    #[test]
    fn a_landing_releases_what_has_gathered() {
        let queue = Arc::new(Queue::default());
        let _first = [push(&queue, 10), push(&queue, 10)];
        let (_, one) = next(&queue).unwrap();
        let _late = push(&queue, 10);
        assert!(next(&queue).is_none());
        drop(one);
        assert_eq!(next(&queue).unwrap().0.len(), 1);
    }

    #[test]
    fn a_batch_is_bounded_by_bytes_but_never_empty() {
        let queue = Arc::new(Queue::default());
        let half = limits::BATCH_BYTES_MAX / 2;
        let _waiting = [push(&queue, half * 3), push(&queue, half), push(&queue, half), push(&queue, half)];
        let (items, one) = next(&queue).unwrap();
        assert_eq!(items.len(), 1, "larger than the bound, alone");
        let (items, _two) = next(&queue).unwrap();
        assert_eq!(items.len(), 2);
        drop(one);
        assert!(next(&queue).is_none());
    }

    #[test]
    fn it_refuses_above_its_bound_and_after_its_end() {
        let queue = Arc::new(Queue::default());
        let waiting: Vec<_> = (0..limits::PROPOSAL_QUEUE_MAX).map(|_| push(&queue, 1)).collect();
        let full =
            queue.push(Queued { encoded: Bytes::new(), deadline: Duration::MAX, ticket: slot().0, forwarded: false });
        assert_eq!(full, Err(Why::Overloaded));
        queue.close();
        let closed =
            queue.push(Queued { encoded: Bytes::new(), deadline: Duration::MAX, ticket: slot().0, forwarded: false });
        assert_eq!(closed, Err(Why::ShuttingDown));
        for waiting in waiting {
            let answer = waiting.now_or_never().unwrap();
            let not_proposed =
                matches!(answer, Err(Failure::Unavailable { why: Why::ShuttingDown, outcome: Outcome::NotProposed }));
            assert!(not_proposed, "{answer:?}");
        }
    }
}

//! One proposal's answer, between its caller and the batcher.
//!
//! The two halves agree, under one lock, on whether the proposal has been handed to Raft. So a
//! deadline that passes in the queue is certainly "not proposed", and one that passes later is
//! certainly not called that. Invariants: an answer is given exactly once; a half that goes away
//! leaves the other with an answer; a caller that goes away cancels nothing.

use crate::machine;
use crate::model::{Failure, Outcome, Why};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub(crate) type Answer = Result<machine::Outcome, Failure>;

#[derive(Debug)]
enum State {
    /// In the queue, or refused by Raft before it was appended.
    Queued(Option<Waker>),
    /// Handed to Raft: what becomes of it is Raft's to say.
    Proposed(Option<Waker>),
    Answered(Box<Answer>),
    /// The caller has its answer; if it gave up in the queue, nothing is to be proposed.
    Ended,
}

/// The batcher's half.
#[derive(Debug)]
pub(crate) struct Ticket(Option<Arc<Mutex<State>>>);

/// The caller's half.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Mutex<State>>);

pub(crate) fn slot() -> (Ticket, Waiting) {
    let state = Arc::new(Mutex::new(State::Queued(None)));
    (Ticket(Some(state.clone())), Waiting(state))
}

impl Ticket {
    /// Marks the proposal as handed to Raft. False if its caller gave up before.
    pub(crate) fn claim(&self) -> bool {
        let Some(state) = &self.0 else { return false };
        let mut state = state.lock();
        match &mut *state {
            State::Queued(waker) => {
                *state = State::Proposed(waker.take());
                true
            }
            State::Proposed(_) => true,
            State::Answered(_) | State::Ended => false,
        }
    }

    /// Raft refused it before appending it: it is as good as still queued.
    pub(crate) fn unclaim(&self) {
        let Some(state) = &self.0 else { return };
        let mut state = state.lock();
        if let State::Proposed(waker) = &mut *state {
            *state = State::Queued(waker.take());
        }
    }

    pub(crate) fn answer(mut self, answer: Answer) {
        self.settle(|_| answer);
    }

    fn settle(&mut self, answer: impl FnOnce(Outcome) -> Answer) {
        let Some(shared) = self.0.take() else { return };
        let mut state = shared.lock();
        let (waker, outcome) = match &mut *state {
            State::Queued(waker) => (waker.take(), Outcome::NotProposed),
            State::Proposed(waker) => (waker.take(), Outcome::Unknown),
            State::Answered(_) | State::Ended => return,
        };
        *state = State::Answered(Box::new(answer(outcome)));
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.settle(|outcome| Err(Failure::Unavailable { why: Why::ShuttingDown, outcome }));
    }
}

impl Waiting {
    /// Ends the wait now: with the answer if there is one, else with what is known of the proposal.
    pub(crate) fn give_up(self, why: Why) -> Answer {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Ended) {
            State::Answered(answer) => *answer,
            State::Queued(_) | State::Ended => Err(Failure::not_proposed(why)),
            State::Proposed(_) => Err(Failure::Unavailable { why, outcome: Outcome::Unknown }),
        }
    }
}

impl Future for Waiting {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let mut state = self.0.lock();
        match &mut *state {
            State::Queued(waker) | State::Proposed(waker) => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
                Poll::Pending
            }
            State::Answered(_) | State::Ended => match std::mem::replace(&mut *state, State::Ended) {
                State::Answered(answer) => Poll::Ready(*answer),
                // Polled again after it was ready: there is nothing more to say.
                _ => Poll::Ready(Err(Failure::not_proposed(Why::ShuttingDown))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome_of(answer: Answer) -> (Why, Outcome) {
        match answer {
            Err(Failure::Unavailable { why, outcome }) => (why, outcome),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn giving_up_in_the_queue_is_final() {
        let (ticket, waiting) = slot();
        assert_eq!(outcome_of(waiting.give_up(Why::Timeout)), (Why::Timeout, Outcome::NotProposed));
        assert!(!ticket.claim(), "it must not be proposed any more");
    }

    #[test]
    fn giving_up_after_the_claim_leaves_it_unknown() {
        let (ticket, waiting) = slot();
        assert!(ticket.claim());
        assert_eq!(outcome_of(waiting.give_up(Why::Timeout)), (Why::Timeout, Outcome::Unknown));
    }

    #[test]
    fn a_refusal_makes_it_queued_again() {
        let (ticket, waiting) = slot();
        assert!(ticket.claim());
        ticket.unclaim();
        assert_eq!(outcome_of(waiting.give_up(Why::Timeout)), (Why::Timeout, Outcome::NotProposed));
    }

    #[tokio::test]
    async fn a_lost_ticket_answers_by_what_had_become_of_it() {
        let (ticket, waiting) = slot();
        drop(ticket);
        assert_eq!(outcome_of(waiting.await), (Why::ShuttingDown, Outcome::NotProposed));
        let (ticket, waiting) = slot();
        assert!(ticket.claim());
        drop(ticket);
        assert_eq!(outcome_of(waiting.await), (Why::ShuttingDown, Outcome::Unknown));
    }

    #[tokio::test]
    async fn the_waiter_is_woken_in_either_state() {
        for claim in [false, true] {
            let (ticket, waiting) = slot();
            tokio::pin!(waiting);
            assert!(futures_util::poll!(&mut waiting).is_pending());
            if claim {
                assert!(ticket.claim());
            }
            ticket.answer(Err(Failure::not_proposed(Why::NoLeader)));
            assert_eq!(outcome_of(waiting.await), (Why::NoLeader, Outcome::NotProposed));
        }
    }

    #[test]
    fn a_late_give_up_still_gets_the_answer() {
        let (ticket, waiting) = slot();
        assert!(ticket.claim());
        ticket.answer(Err(Failure::not_proposed(Why::Overloaded)));
        assert_eq!(outcome_of(waiting.give_up(Why::Timeout)), (Why::Overloaded, Outcome::NotProposed));
    }
}

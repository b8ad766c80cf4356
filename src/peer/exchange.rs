//! Many calls over one stream of a connection. A request of HTTP/2 for each would cost several times as much: headers
//! and trailers both ways, and a task at the other end.
//!
//! Invariants: an answer finds its call by its number, in whatever order they come; what was not sent of a call that
//! is given up never is, and what was occupies the other end no longer than the call was given; when the stream ends
//! every call still open is told so, and told apart whether it was sent.

use super::codec::{Answer, Call};
use crate::model::limits;
use crate::raft::TransportError;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

const ENDED: &str = "the connection has ended";

type Outcome = Result<Bytes, TransportError>;

#[derive(Debug)]
struct Open {
    /// Until it is sent.
    call: Option<Call>,
    outcome: oneshot::Sender<Outcome>,
}

#[derive(Debug, Default)]
struct Calls {
    last: u64,
    open: BTreeMap<u64, Open>,
    ended: bool,
}

impl Calls {
    fn take(&mut self, number: u64) -> Option<Call> {
        self.open.get_mut(&number)?.call.take()
    }

    fn answered(&mut self, Answer { number, outcome }: Answer) {
        // One that has been given up is not there any more, and neither is who waits for it.
        if let Some(open) = self.open.remove(&number) {
            drop(open.outcome.send(outcome.map_err(TransportError::Failed)));
        }
    }

    fn end(&mut self, why: &str) {
        self.ended = true;
        for open in std::mem::take(&mut self.open).into_values() {
            let error = match open.call {
                Some(_) => TransportError::Unreachable(why.to_owned()),
                None => TransportError::Failed(why.to_owned()),
            };
            drop(open.outcome.send(Err(error)));
        }
    }
}

/// The calling side of a stream. Dropped, it ends the stream.
#[derive(Debug)]
pub(super) struct Exchange {
    calls: Arc<Mutex<Calls>>,
    /// Whose turn it is to be sent. What is sent stays with the call until then, and goes with it.
    turns: mpsc::Sender<u64>,
    _open: DropGuard,
}

/// A stream that is being opened: what it is to carry, and what takes its answers.
pub(super) struct Opening {
    calls: Arc<Mutex<Calls>>,
    turns: mpsc::Receiver<u64>,
    closed: CancellationToken,
}

/// Whoever drops it has ended the stream.
pub(super) struct Reading {
    calls: Arc<Mutex<Calls>>,
    closed: CancellationToken,
}

impl Exchange {
    /// Ends when `stopping` does.
    pub(super) fn new(stopping: &CancellationToken) -> (Self, Opening) {
        let calls = Arc::<Mutex<Calls>>::default();
        let (turns, taken) = mpsc::channel(limits::PEER_CALLS_MAX);
        let closed = stopping.child_token();
        let exchange = Self { calls: Arc::clone(&calls), turns, _open: closed.clone().drop_guard() };
        (exchange, Opening { calls, turns: taken, closed })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.calls.lock().ended
    }

    /// Waits for the answer; given up when dropped.
    ///
    /// # Errors
    /// If the stream ends first, or the other end has no answer.
    pub(super) async fn call(&self, request: Bytes, within: Duration) -> Outcome {
        let (outcome, told) = oneshot::channel();
        let asked = {
            let mut calls = self.calls.lock();
            if calls.ended {
                return Err(TransportError::Unreachable(ENDED.to_owned()));
            }
            calls.last += 1;
            let number = calls.last;
            calls.open.insert(number, Open { call: Some(Call { number, within, request }), outcome });
            Asked { calls: &self.calls, number }
        };
        // If nobody takes turns any more the stream is at its end, and the call is told with all others.
        self.turns.send(asked.number).await.ok();
        told.await.unwrap_or_else(|_| Err(TransportError::Failed(ENDED.to_owned())))
    }
}

/// A call that somebody waits for.
struct Asked<'a> {
    calls: &'a Mutex<Calls>,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.calls.lock().open.remove(&self.number);
    }
}

impl Opening {
    pub(super) fn split(self) -> (impl Stream<Item = Call> + Send + 'static, Reading) {
        let Self { calls, turns, closed } = self;
        let reading = Reading { calls: Arc::clone(&calls), closed };
        let sent = stream::unfold((turns, calls), |(mut turns, calls)| async move {
            loop {
                let number = turns.recv().await?;
                let call = calls.lock().take(number);
                if let Some(call) = call {
                    return Some((call, (turns, calls)));
                }
            }
        });
        (sent, reading)
    }
}

impl Reading {
    /// Hands each answer to who waits for it.
    pub(super) async fn read(
        self,
        answers: impl Stream<Item = Result<Answer, Status>>,
        why: impl Fn(&Status) -> String,
    ) {
        let mut answers = pin!(answers.take_until(self.closed.cancelled()));
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => self.calls.lock().answered(answer),
                Err(status) => return self.calls.lock().end(&why(&status)),
            }
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.calls.lock().end(ENDED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::future::Future;
    use std::pin::Pin;

    type Sent = Pin<Box<dyn Stream<Item = Call> + Send>>;
    type Answers = mpsc::Sender<Result<Answer, Status>>;

    /// An exchange whose other end the test plays.
    fn exchange() -> (Exchange, Sent, Answers, impl Future<Output = ()>) {
        let (exchange, opening) = Exchange::new(&CancellationToken::new());
        let (sent, reading) = opening.split();
        let (answers, told) = mpsc::channel(8);
        let told = stream::unfold(told, |mut told| async move { Some((told.recv().await?, told)) });
        (exchange, Box::pin(sent), answers, reading.read(told, |status| status.message().to_owned()))
    }

    fn bytes(number: u64) -> Bytes {
        number.to_string().into()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn answers_in_any_order_find_their_calls() {
        let (exchange, mut sent, answers, reading) = exchange();
        let asking = async {
            let calls = (1..=5).map(|number| exchange.call(bytes(number), LONG));
            let outcomes = futures_util::future::join_all(calls).await;
            drop(exchange);
            outcomes
        };
        let answering = async move {
            let calls: Vec<Call> = sent.by_ref().take(5).collect().await;
            for call in calls.into_iter().rev() {
                let outcome = if call.number == 3 { Err("no".to_owned()) } else { Ok(call.request) };
                answers.send(Ok(Answer { number: call.number, outcome })).await.unwrap();
            }
            // It ends with the exchange.
            assert!(sent.next().await.is_none());
        };
        let (outcomes, (), ()) = tokio::join!(asking, answering, reading);
        for (number, outcome) in (1..).zip(outcomes) {
            match outcome {
                Ok(answer) => assert_eq!(answer, bytes(number)),
                Err(error) => assert_eq!((number, error.to_string()), (3, "no".to_owned())),
            }
        }
    }

    #[tokio::test]
    async fn what_is_given_up_is_not_sent_and_leaves_nothing() {
        let (exchange, mut sent, answers, reading) = exchange();
        let mut reading = pin!(reading);
        let mut given_up = Box::pin(exchange.call(bytes(1), LONG));
        assert!(poll!(&mut given_up).is_pending());
        drop(given_up);
        let mut kept = Box::pin(exchange.call(bytes(2), LONG));
        assert!(poll!(&mut kept).is_pending());
        let call = sent.next().await.unwrap();
        assert_eq!((call.number, call.within), (2, LONG));
        // Answers to what nobody asked or asks any more.
        for number in [1, 7, 2] {
            answers.send(Ok(Answer { number, outcome: Ok(bytes(number)) })).await.unwrap();
        }
        assert!(poll!(&mut reading).is_pending());
        assert_eq!(kept.await.unwrap(), "2");
        assert!(exchange.calls.lock().open.is_empty());
    }

    #[tokio::test]
    async fn the_end_tells_what_was_sent_from_what_was_not() {
        let (exchange, mut sent, answers, reading) = exchange();
        let (mut first, mut second) = (pin!(exchange.call(bytes(1), LONG)), pin!(exchange.call(bytes(2), LONG)));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        assert_eq!(sent.next().await.unwrap().number, 1);
        answers.send(Err(Status::unavailable("broken pipe"))).await.unwrap();
        reading.await;
        assert!(exchange.has_ended());
        assert!(matches!(first.await, Err(TransportError::Failed(why)) if why == "broken pipe"));
        assert!(matches!(second.await, Err(TransportError::Unreachable(why)) if why == "broken pipe"));
        assert!(matches!(exchange.call(bytes(3), LONG).await, Err(TransportError::Unreachable(_))));
    }

    #[tokio::test]
    async fn whoever_stops_reading_ends_it() {
        let (exchange, _sent, _answers, reading) = exchange();
        let mut call = pin!(exchange.call(bytes(1), LONG));
        assert!(poll!(&mut call).is_pending());
        drop(reading);
        assert!(call.await.is_err() && exchange.has_ended());
    }
}

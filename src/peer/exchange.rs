//! Many calls over one stream of a connection. A request of HTTP/2 for each would cost several times as much: headers
//! and trailers both ways, and a task at the other end.
//!
//! Invariants: an answer finds its call by its number, in whatever order they come; nobody who calls holds anything
//! that another waits for, polled or not; what was not sent of a call that is given up never is, and one that is told
//! to be unreachable was not; what was sent occupies the other end no longer than the call was given, and may be
//! carried out there although it was given up here.

use super::codec::{Answer, Call};
use crate::raft::TransportError;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

const ENDED: &str = "the connection has ended";

type Outcome = Result<Bytes, TransportError>;

#[derive(Debug)]
struct Pending {
    /// Until it is sent.
    call: Option<Call>,
    outcome: oneshot::Sender<Outcome>,
}

#[derive(Debug, Default)]
struct Calls {
    /// The number of the newest.
    last: u64,
    /// None up to this one is still to be sent.
    sent: u64,
    pending: BTreeMap<u64, Pending>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    calls: Mutex<Calls>,
    /// There is something to send, or will never be again.
    wanted: Notify,
}

impl Calls {
    fn add(&mut self, request: Bytes, within: Duration, outcome: oneshot::Sender<Outcome>) -> Option<u64> {
        if self.ended {
            return None;
        }
        self.last += 1;
        let call = Call { number: self.last, within, request };
        self.pending.insert(self.last, Pending { call: Some(call), outcome });
        Some(self.last)
    }

    fn next_to_send(&mut self) -> Option<Call> {
        let (number, pending) = self.pending.range_mut(self.sent + 1..).next()?;
        self.sent = *number;
        pending.call.take()
    }

    fn answered(&mut self, Answer { number, outcome }: Answer) {
        // One that has been given up is not there any more, and neither is who waits for it.
        if let Some(pending) = self.pending.remove(&number) {
            drop(pending.outcome.send(outcome.map_err(TransportError::Failed)));
        }
    }
}

impl Pending {
    fn fails(&self, why: String) -> TransportError {
        match self.call {
            Some(_) => TransportError::Unreachable(why),
            None => TransportError::Failed(why),
        }
    }
}

impl Shared {
    fn end(&self, why: &str) {
        let pending = {
            let mut calls = self.calls.lock();
            calls.ended = true;
            std::mem::take(&mut calls.pending)
        };
        for pending in pending.into_values() {
            let error = pending.fails(why.to_owned());
            drop(pending.outcome.send(Err(error)));
        }
        self.wanted.notify_one();
    }
}

/// The calling side of a stream. Dropped, it ends the stream.
#[derive(Debug)]
pub(super) struct Exchange {
    shared: Arc<Shared>,
    _until_dropped: DropGuard,
}

/// What takes the answers of the stream. Whoever drops it has ended the stream.
pub(super) struct Reading {
    shared: Arc<Shared>,
    closed: CancellationToken,
}

impl Exchange {
    /// With what the stream is to carry; that begins with `opened`. Ends when `stopping` does.
    pub(super) fn new(
        stopping: &CancellationToken,
        opened: oneshot::Receiver<()>,
    ) -> (Self, impl Stream<Item = Call> + Send + 'static, Reading) {
        let (shared, closed) = (Arc::<Shared>::default(), stopping.child_token());
        let calls = stream::unfold((Arc::clone(&shared), Some(opened)), |(shared, mut opened)| async move {
            if let Some(opened) = opened.take() {
                opened.await.ok()?;
            }
            loop {
                {
                    let mut calls = shared.calls.lock();
                    if calls.ended {
                        return None;
                    }
                    if let Some(call) = calls.next_to_send() {
                        drop(calls);
                        return Some((call, (shared, None)));
                    }
                }
                shared.wanted.notified().await;
            }
        });
        let exchange = Self { shared: Arc::clone(&shared), _until_dropped: closed.clone().drop_guard() };
        (exchange, calls, Reading { shared, closed })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.shared.calls.lock().ended
    }

    /// Waits for the answer; given up when dropped.
    ///
    /// # Errors
    /// If there is none in time, the stream ends first, or the other end has none.
    pub(super) async fn call(&self, request: Bytes, within: Duration) -> Outcome {
        let (outcome, told) = oneshot::channel();
        let Some(number) = self.shared.calls.lock().add(request, within, outcome) else {
            return Err(TransportError::Unreachable(ENDED.to_owned()));
        };
        let _given_up = GivenUp { calls: &self.shared.calls, number };
        self.shared.wanted.notify_one();
        match tokio::time::timeout(within, told).await {
            Ok(told) => told.unwrap_or_else(|_| Err(TransportError::Failed(ENDED.to_owned()))),
            Err(_) => {
                let why = format!("no answer within {} ms", within.as_millis());
                let pending = self.shared.calls.lock().pending.remove(&number);
                Err(pending.map_or_else(|| TransportError::Failed(why.clone()), |pending| pending.fails(why.clone())))
            }
        }
    }
}

/// When dropped.
struct GivenUp<'a> {
    calls: &'a Mutex<Calls>,
    number: u64,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.calls.lock().pending.remove(&self.number);
    }
}

impl Reading {
    /// `None` if nobody has the exchange any more.
    pub(super) async fn while_wanted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.closed.run_until_cancelled(work).await
    }

    /// Hands each answer to who waits for it, until the stream ends.
    pub(super) async fn read(
        self,
        answers: impl Stream<Item = Result<Answer, Status>>,
        why: impl Fn(&Status) -> String,
    ) {
        let mut answers = pin!(answers.take_until(self.closed.cancelled()));
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => self.shared.calls.lock().answered(answer),
                Err(status) => return self.end(&why(&status)),
            }
        }
    }

    pub(super) fn end(&self, why: &str) {
        self.shared.end(why);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.shared.end(ENDED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::pin::Pin;
    use tokio::sync::mpsc;

    type Sent = Pin<Box<dyn Stream<Item = Call> + Send>>;
    type Answers = mpsc::Sender<Result<Answer, Status>>;

    /// An exchange whose other end the test plays.
    fn exchange() -> (Exchange, Sent, Answers, impl Future<Output = ()>) {
        let (open, opened) = oneshot::channel();
        let (exchange, sent, reading) = Exchange::new(&CancellationToken::new(), opened);
        open.send(()).unwrap();
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
        assert!(exchange.shared.calls.lock().pending.is_empty());
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

    #[tokio::test(start_paused = true)]
    async fn what_was_late_and_not_sent_is_told_apart() {
        let (open, opened) = oneshot::channel();
        let (exchange, sent, _reading) = Exchange::new(&CancellationToken::new(), opened);
        let mut sent = pin!(sent);
        assert!(poll!(sent.next()).is_pending());
        let late = exchange.call(bytes(1), Duration::from_millis(5)).await;
        assert!(matches!(late, Err(TransportError::Unreachable(why)) if why == "no answer within 5 ms"));
        let mut second = pin!(exchange.call(bytes(2), Duration::from_millis(5)));
        assert!(poll!(&mut second).is_pending());
        open.send(()).unwrap();
        assert_eq!(sent.next().await.unwrap().number, 2);
        assert!(matches!(second.await, Err(TransportError::Failed(_))));
    }

    #[tokio::test]
    async fn an_opening_that_fails_was_nobody_s_call() {
        let (open, opened) = oneshot::channel();
        let (exchange, sent, reading) = Exchange::new(&CancellationToken::new(), opened);
        let mut call = pin!(exchange.call(bytes(1), LONG));
        assert!(poll!(&mut call).is_pending());
        drop((open, sent));
        reading.end("refused");
        assert!(matches!(call.await, Err(TransportError::Unreachable(why)) if why == "refused"));
    }
}

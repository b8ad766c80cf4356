//! What a watch stream has still to say: bounded in answers and in bytes, in the order in which it was put in.
//!
//! Whoever takes out first lets those who are about to put in do so: a change that many watches of a stream tell
//! travels in a few frames then, instead of one, and a system call, for each.

use super::super::Answers;
use super::super::pb::etcdserverpb as pb;
use super::super::pb::mvccpb::KeyValue;
use crate::model::limits::{WATCH_ANSWERS_AHEAD, WATCH_ANSWERS_AHEAD_BYTES};
use futures_util::{StreamExt, stream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// A semaphore counts in `u32`.
const UNIT_BYTES: usize = 1024;
const UNITS: usize = WATCH_ANSWERS_AHEAD_BYTES / UNIT_BYTES;

/// An answer, with its share of the room until it is taken.
type Said = (Result<pb::WatchResponse, Status>, Option<OwnedSemaphorePermit>);

#[derive(Debug, Clone)]
pub(super) struct Out {
    said: mpsc::Sender<Said>,
    room: Arc<Semaphore>,
    /// Who waits for room: nobody overtakes them.
    waiting: Arc<AtomicUsize>,
    stopping: CancellationToken,
}

/// One more that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A queue, and what comes out of it. Nobody waits for room from the end of the member on.
pub(super) fn queue(stopping: CancellationToken) -> (Out, Answers<pb::WatchResponse>) {
    let (said, taken) = mpsc::channel(WATCH_ANSWERS_AHEAD);
    let gathered = stream::unfold(taken, |mut taken: mpsc::Receiver<Said>| async move {
        let first = taken.recv().await?;
        // Behind those who were woken by the same change.
        tokio::task::yield_now().await;
        let mut answers = vec![first];
        while let Ok(said) = taken.try_recv() {
            answers.push(said);
        }
        Some((stream::iter(answers).map(|(answer, _share)| answer), taken))
    });
    let out = Out { said, room: Arc::new(Semaphore::new(UNITS)), waiting: Arc::default(), stopping };
    (out, gathered.flatten().boxed())
}

impl Out {
    /// Waits for room; false if the client, or the member, has gone.
    pub(super) async fn send(&self, answer: pb::WatchResponse) -> bool {
        // As a rule there is room.
        let Some(answer) = self.send_now(answer) else { return true };
        let _waiting = Waiting::new(&self.waiting);
        let waiting = async {
            // What is not taken any more is dropped, with its share: nobody waits for a client that has gone.
            let share = Arc::clone(&self.room).acquire_many_owned(units(&answer)).await.ok()?;
            self.said.send((Ok(answer), Some(share))).await.ok()
        };
        self.stopping.run_until_cancelled(waiting).await.flatten().is_some()
    }

    /// The answer back if there is no room, or others wait for it.
    pub(super) fn send_now(&self, answer: pb::WatchResponse) -> Option<pb::WatchResponse> {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            return Some(answer);
        }
        let share = Arc::clone(&self.room).try_acquire_many_owned(units(&answer));
        let Some((share, place)) = share.ok().zip(self.said.try_reserve().ok()) else { return Some(answer) };
        place.send((Ok(answer), Some(share)));
        None
    }

    /// A last word; a client that takes nothing is not waited for.
    pub(super) fn say_last(&self, status: Status) {
        self.said.try_send((Err(status), None)).ok();
    }

    /// The client has gone.
    pub(super) async fn closed(&self) {
        self.said.closed().await;
    }
}

fn units(answer: &pb::WatchResponse) -> u32 {
    let weight = |kv: &KeyValue| kv.key.len() + kv.value.len();
    let told = answer.events.iter().flat_map(|event| [&event.kv, &event.prev_kv]).flatten();
    let units = (told.map(weight).sum::<usize>() / UNIT_BYTES + 1).min(UNITS);
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::super::pb::mvccpb;
    use super::*;

    fn answer(id: i64, bytes: usize) -> pb::WatchResponse {
        let kv = KeyValue { value: vec![b'x'; bytes].into(), ..Default::default() };
        let event = mvccpb::Event { kv: Some(kv), ..Default::default() };
        pb::WatchResponse { watch_id: id, events: vec![event], ..Default::default() }
    }

    /// Polls once.
    fn goes_through<T>(call: impl Future<Output = T>) -> Option<T> {
        futures_util::FutureExt::now_or_never(call)
    }

    #[tokio::test]
    async fn answers_come_in_order_and_wait_for_room() {
        let (out, mut answers) = queue(CancellationToken::new());
        for id in 0..4 {
            assert!(out.send(answer(id, WATCH_ANSWERS_AHEAD_BYTES / 4 - 2 * UNIT_BYTES)).await);
        }
        assert_eq!(goes_through(out.send(answer(4, WATCH_ANSWERS_AHEAD_BYTES / 4))), None, "there is no room");
        assert!(out.send(answer(5, 10)).await, "a little is left");
        out.say_last(Status::unavailable("over"));
        for id in [0, 1, 2, 3, 5] {
            assert_eq!(answers.next().await.unwrap().unwrap().watch_id, id);
        }
        assert_eq!(answers.next().await.unwrap().unwrap_err().message(), "over");
        assert!(out.send(answer(6, 10 * WATCH_ANSWERS_AHEAD_BYTES)).await, "more than all of it goes alone");
        assert_eq!(goes_through(out.send(answer(7, 1))), None);
        assert_eq!(answers.next().await.unwrap().unwrap().watch_id, 6);
        drop(out);
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn who_waits_for_room_is_not_overtaken() {
        let (out, mut answers) = queue(CancellationToken::new());
        assert!(out.send(answer(0, WATCH_ANSWERS_AHEAD_BYTES - 4 * UNIT_BYTES)).await);
        let large = out.send(answer(1, 8 * UNIT_BYTES));
        let small = out.send(answer(2, 1));
        tokio::pin!(large, small);
        assert_eq!(goes_through(large.as_mut()), None);
        assert_eq!(goes_through(small.as_mut()), None);
        assert!(out.send_now(answer(3, 1)).is_some(), "there is room, and who was there before");
        assert_eq!(answers.next().await.unwrap().unwrap().watch_id, 0);
        assert!(large.await && small.await);
        assert!(out.send_now(answer(3, 1)).is_none());
        for id in 1..4 {
            assert_eq!(answers.next().await.unwrap().unwrap().watch_id, id);
        }
    }

    #[tokio::test]
    async fn no_more_answers_than_the_bound_and_none_for_who_has_gone() {
        let (out, answers) = queue(CancellationToken::new());
        for id in 0..WATCH_ANSWERS_AHEAD {
            assert!(out.send(answer(id.try_into().unwrap(), 1)).await);
        }
        let waiting = out.clone();
        let waiting = async move { waiting.send(answer(0, 1)).await };
        tokio::pin!(waiting);
        assert_eq!(goes_through(waiting.as_mut()), None);
        drop(answers);
        assert!(!waiting.await);
        out.closed().await;
    }

    /// Those who speak at the same moment are heard together.
    #[tokio::test]
    async fn what_is_said_at_one_moment_comes_out_together() {
        let (out, mut answers) = queue(CancellationToken::new());
        let listening = async {
            let mut at_once = 0;
            assert!(answers.next().await.is_some());
            while goes_through(answers.next()).is_some() {
                at_once += 1;
            }
            at_once
        };
        let speaking = futures_util::future::join_all((0..100).map(|id| out.send(answer(id, 300))));
        let (at_once, _) = tokio::join!(listening, speaking);
        assert_eq!(at_once, 99);
    }
}

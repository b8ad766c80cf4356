//! The batcher, over a consensus that answers as it is told.

use super::*;
use crate::env::ManualClock;
use crate::machine::Outcome as Applied;
use crate::model::LogPosition;
use crate::model::{Batch, Caller, Command, Reply};
use crate::raft::types::{Outcomes, log_id};
use openraft::errors::{ForwardReason, ForwardToLeader};
use openraft::raft::ClientWriteResponse;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{Notify, oneshot, watch};

const LONG: Duration = Duration::from_secs(60);

type Write = (Batch, Callback<ClientWriteResult<Types>>);

type Forward = (Vec<Forwarded>, oneshot::Sender<Result<Vec<Answer>, TransportError>>);

/// A log that keeps what it is given until the test answers it.
#[derive(Default)]
struct Held {
    writes: Mutex<VecDeque<Write>>,
    came: Notify,
    elsewhere: Mutex<Option<Route>>,
    /// The other members do not tell their wall clocks.
    silent: AtomicBool,
    /// How often a quorum of them cannot be asked.
    unheard: AtomicU64,
    forwards: Mutex<VecDeque<Forward>>,
}

impl Log for Held {
    async fn write(&self, batch: LogBatch, answer: Callback<ClientWriteResult<Types>>) {
        self.writes.lock().push_back((codec::decode("batch", &batch.bytes).unwrap(), answer));
        self.came.notify_one();
    }

    fn applied_ms(&self) -> u64 {
        0
    }

    async fn agreed_wall_ms(&self, own_ms: u64) -> Option<u64> {
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let unheard = self.unheard.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        unheard.is_err().then_some(own_ms)
    }

    fn route(&self) -> Route {
        self.elsewhere.lock().clone().unwrap_or(Route::Here { term: 1 })
    }

    async fn forward(&self, _: Peer, batch: Vec<Forwarded>, _: Duration) -> Result<Vec<Answer>, TransportError> {
        let (send, answer) = oneshot::channel();
        self.forwards.lock().push_back((batch, send));
        self.came.notify_one();
        answer.await.unwrap()
    }
}

impl Held {
    async fn next(&self) -> Write {
        loop {
            if let Some(write) = self.writes.lock().pop_front() {
                return write;
            }
            self.came.notified().await;
        }
    }

    async fn next_forward(&self) -> Forward {
        loop {
            if let Some(forward) = self.forwards.lock().pop_front() {
                return forward;
            }
            self.came.notified().await;
        }
    }

    fn set_route(&self, route: Option<Route>) {
        *self.elsewhere.lock() = route;
    }
}

fn over_there() -> Route {
    Route::To(Peer { id: 2, member: crate::raft::Member::default() })
}

struct Bench {
    log: Arc<Held>,
    clock: Arc<ManualClock>,
    batcher: Batcher,
    tasks: TaskSet,
}

impl Bench {
    fn new() -> Self {
        let (log, clock, tasks) = (Arc::new(Held::default()), Arc::new(ManualClock::new(1_000)), TaskSet::new());
        let metrics = Metrics::new(&mut Registry::default());
        let batcher = Batcher::start(log.clone(), clock.clone(), metrics, &tasks);
        Self { log, clock, batcher, tasks }
    }

    fn propose(&self, bytes: u64, timeout: Duration) -> oneshot::Receiver<Answer> {
        let (send, receive) = oneshot::channel();
        let batcher = self.batcher.clone();
        self.tasks.spawn("proposer", async move {
            let answer = batcher.propose(&quota(bytes), timeout).await;
            drop(send.send(answer));
        });
        receive
    }
}

/// Has all tasks go as far as they can.
async fn others_run() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

fn quota(bytes: u64) -> Proposal {
    Proposal { caller: Caller::default(), idempotency: None, command: Command::SetQuota { bytes } }
}

fn outcomes(batch: &Batch) -> Outcomes {
    let outcome = |proposal: &Proposal| match proposal.command {
        Command::SetQuota { bytes } => Applied { result: Ok(Reply::Quota { bytes }), replayed: false },
        _ => panic!("{proposal:?}"),
    };
    Outcomes(batch.proposals.iter().map(outcome).collect())
}

fn accept((batch, answer): Write) {
    let log_id = log_id(LogPosition { term: 1, node: 1, index: 1 });
    let data = outcomes(&batch);
    openraft::raft::responder::Responder::on_complete(
        answer,
        Ok(ClientWriteResponse { log_id, data, membership: None }),
    );
}

fn refuse((_, answer): Write, leader_id: Option<u64>) {
    let reason = ForwardReason::LeaseExpired;
    let forward = ForwardToLeader { leader_id, leader_node: None, reason };
    openraft::raft::responder::Responder::on_complete(answer, Err(ClientWriteError::ForwardToLeader(forward)));
}

fn quota_of(answer: &Answer) -> u64 {
    match answer {
        Ok(Applied { result: Ok(Reply::Quota { bytes }), .. }) => *bytes,
        other => panic!("{other:?}"),
    }
}

fn unavailable(answer: Answer) -> (Why, Outcome) {
    match answer {
        Err(Failure::Unavailable { why, outcome }) => (why, outcome),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn each_proposal_gets_its_own_outcome_and_batches_grow_under_load() {
    let bench = Bench::new();
    let first = bench.propose(1, LONG);
    let first_write = bench.log.next().await;
    let second = bench.propose(2, LONG);
    let second_write = bench.log.next().await;
    assert_eq!((first_write.0.proposals.len(), second_write.0.proposals.len()), (1, 1), "a lone writer does not wait");
    let rest: Vec<_> = (3..300).map(|bytes| bench.propose(bytes, LONG)).collect();
    others_run().await;
    assert!(bench.log.writes.lock().is_empty(), "two are in flight");
    accept(second_write);
    let third_write = bench.log.next().await;
    assert_eq!(third_write.0.proposals.len(), limits::BATCH_PROPOSALS_MAX);
    accept(first_write);
    accept(third_write);
    accept(bench.log.next().await);
    assert_eq!(quota_of(&first.await.unwrap()), 1);
    assert_eq!(quota_of(&second.await.unwrap()), 2);
    for (bytes, answer) in (3..300).zip(rest) {
        assert_eq!(quota_of(&answer.await.unwrap()), bytes);
    }
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_in_the_queue_is_not_proposed() {
    let bench = Bench::new();
    let _one = bench.propose(1, LONG);
    let held = bench.log.next().await;
    let _two = bench.propose(2, LONG);
    let held_too = bench.log.next().await;
    let late = bench.propose(4, Duration::from_millis(50));
    let answer = late.await.unwrap();
    assert_eq!(unavailable(answer), (Why::Timeout, Outcome::NotProposed));
    accept(held);
    accept(held_too);
    let after = bench.propose(5, LONG);
    let write = bench.log.next().await;
    assert!(write.0.proposals.iter().all(|proposal| *proposal != quota(4)), "the late one was proposed after all");
    accept(write);
    assert_eq!(quota_of(&after.await.unwrap()), 5);
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_after_the_proposal_is_unknown() {
    let bench = Bench::new();
    let answer = bench.propose(1, Duration::from_millis(50));
    let write = bench.log.next().await;
    assert_eq!(unavailable(answer.await.unwrap()), (Why::Timeout, Outcome::Unknown));
    accept(write);
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_retried_until_it_is_accepted() {
    let bench = Bench::new();
    let answer = bench.propose(1, LONG);
    for _ in 0..12 {
        refuse(bench.log.next().await, None);
    }
    accept(bench.log.next().await);
    assert_eq!(quota_of(&answer.await.unwrap()), 1);
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_refused_proposal_whose_deadline_passes_is_not_proposed() {
    let bench = Bench::new();
    let answer = bench.propose(1, Duration::from_secs(1));
    let write = bench.log.next().await;
    bench.clock.advance(Duration::from_secs(2));
    refuse(write, None);
    assert_eq!(unavailable(answer.await.unwrap()), (Why::NoLeader, Outcome::NotProposed));
    assert!(bench.log.writes.lock().is_empty());
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_to_another_leader_as_one_message() {
    let bench = Bench::new();
    bench.log.set_route(Some(over_there()));
    let first = bench.propose(1, LONG);
    let (batch, answer) = bench.log.next_forward().await;
    assert_eq!(batch[0].remaining_ms, 60_000);
    answer.send(Ok(vec![Ok(Applied { result: Ok(Reply::Quota { bytes: 1 }), replayed: true })])).unwrap();
    assert_eq!(quota_of(&first.await.unwrap()), 1);
    let one = bench.propose(1, LONG);
    let held = bench.log.next_forward().await;
    let two = bench.propose(2, LONG);
    let held_too = bench.log.next_forward().await;
    let rest: Vec<_> = (3..6).map(|bytes| bench.propose(bytes, LONG)).collect();
    others_run().await;
    held.1.send(Err(TransportError::Failed("gone".into()))).unwrap();
    held_too.1.send(Err(TransportError::Failed("gone".into()))).unwrap();
    assert_eq!(unavailable(one.await.unwrap()), (Why::NoLeader, Outcome::Unknown), "it was sent");
    assert_eq!(unavailable(two.await.unwrap()), (Why::NoLeader, Outcome::Unknown), "it was sent");
    let (batch, _) = bench.log.next_forward().await;
    assert_eq!(batch.len(), rest.len());
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_or_not_taken_is_tried_again() {
    let bench = Bench::new();
    bench.log.set_route(Some(over_there()));
    let answer = bench.propose(1, LONG);
    let unreachable = Err(TransportError::Unreachable("nobody there".into()));
    bench.log.next_forward().await.1.send(unreachable).unwrap();
    for why in [Why::NoLeader, Why::ShuttingDown] {
        let refused = Err(Failure::not_proposed(why));
        bench.log.next_forward().await.1.send(Ok(vec![refused])).unwrap();
    }
    let (_, forward) = bench.log.next_forward().await;
    bench.log.set_route(None);
    forward.send(Ok(vec![Err(Failure::not_proposed(Why::NoLeader))])).unwrap();
    accept(bench.log.next().await);
    assert_eq!(quota_of(&answer.await.unwrap()), 1);
    assert!(bench.tasks.stop(LONG).await);
}

/// Two members that exchange the lead with both their places for batches taken by what each has forwarded to the
/// other: neither may wait for the other.
#[tokio::test(start_paused = true)]
async fn members_that_exchange_the_lead_do_not_wait_for_each_other() {
    let (old, new) = (Bench::new(), Bench::new());
    // The new leader's batches are at the old one, which has its own places taken by batches for the new one.
    old.log.set_route(Some(over_there()));
    new.log.set_route(Some(over_there()));
    let mut forwards = Vec::new();
    let mut waiting = Vec::new();
    for bench in [&old, &new] {
        for bytes in 1..=2 {
            waiting.push(bench.propose(bytes, LONG));
            forwards.push(bench.log.next_forward().await);
        }
    }
    let mut from_new = forwards.split_off(2);
    let (lead, leading) = watch::channel(Some(1));
    let carried: Vec<_> = from_new.iter_mut().map(|(batch, _)| std::mem::take(batch)).collect();
    let answers = carried.into_iter().map(|batch| old.batcher.propose_while_leading(batch, leading.clone()));
    let answers = join_all(answers);
    tokio::pin!(answers);
    assert!(futures_util::poll!(&mut answers).is_pending(), "they wait behind what the old leader has under way");
    lead.send_replace(None);
    for (answers, (_, forward)) in answers.await.into_iter().zip(from_new) {
        let refused = (Why::NoLeader, Outcome::NotProposed);
        assert!(answers.iter().all(|answer| unavailable(answer.clone()) == refused), "{answers:?}");
        new.log.set_route(None);
        forward.send(Ok(answers)).unwrap();
        accept(new.log.next().await);
    }
    for proposed in waiting.split_off(2) {
        assert!(proposed.await.unwrap().is_ok());
    }
    drop((waiting, forwards));
    assert!(old.tasks.stop(LONG).await && new.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_proposal_goes_no_further() {
    let bench = Bench::new();
    let forwarded = || vec![Forwarded { remaining_ms: 1_000, encoded: codec::encode(&quota(1)).unwrap().into() }];
    bench.log.set_route(Some(over_there()));
    let answers = bench.batcher.propose_forwarded(forwarded()).await;
    assert_eq!(unavailable(answers.into_iter().next().unwrap()), (Why::NoLeader, Outcome::NotProposed));
    bench.log.set_route(Some(Route::Nowhere));
    let answers = bench.batcher.propose_forwarded(forwarded()).await;
    assert_eq!(unavailable(answers.into_iter().next().unwrap()), (Why::NoLeader, Outcome::NotProposed));
    assert!(bench.log.forwards.lock().is_empty());
    bench.log.set_route(None);
    let batcher = bench.batcher.clone();
    let (answers, ()) = tokio::join!(batcher.propose_forwarded(forwarded()), async {
        accept(bench.log.next().await);
    });
    assert_eq!(quota_of(&answers[0]), 1);
    let garbage = vec![Forwarded { remaining_ms: 1_000, encoded: Bytes::from_static(&[1, 255, 255]) }];
    let answers = bench.batcher.propose_forwarded(garbage).await;
    assert!(matches!(answers[0], Err(Failure::Fault(_))), "unreadable bytes must not reach the log: {answers:?}");
    assert!(bench.log.writes.lock().is_empty());
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_without_a_leader_is_blamed_on_that() {
    let bench = Bench::new();
    bench.log.set_route(Some(Route::Nowhere));
    let answer = bench.propose(1, Duration::from_millis(300));
    assert_eq!(unavailable(answer.await.unwrap()), (Why::NoLeader, Outcome::NotProposed));
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn what_raft_discards_or_loses_is_unknown() {
    let bench = Bench::new();
    let discarded = bench.propose(1, LONG);
    let (_, answer) = bench.log.next().await;
    let forward = ForwardToLeader { leader_id: None, leader_node: None, reason: ForwardReason::NotLeader };
    openraft::raft::responder::Responder::on_complete(answer, Err(ClientWriteError::LogEntryDiscarded(forward)));
    assert_eq!(unavailable(discarded.await.unwrap()).1, Outcome::Unknown);
    let lost = bench.propose(2, LONG);
    drop(bench.log.next().await);
    assert_eq!(unavailable(lost.await.unwrap()).1, Outcome::Unknown);
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_cancels_nothing() {
    let bench = Bench::new();
    {
        let proposal = quota(1);
        let proposing = bench.batcher.propose(&proposal, LONG);
        tokio::pin!(proposing);
        assert!(futures_util::poll!(&mut proposing).is_pending());
    }
    let write = bench.log.next().await;
    assert_eq!(write.0.proposals, [quota(1)]);
    accept(write);
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_what_is_queued_as_not_proposed() {
    let bench = Bench::new();
    let _one = bench.propose(1, LONG);
    let _held = bench.log.next().await;
    let _two = bench.propose(2, LONG);
    let _held_too = bench.log.next().await;
    let queued = bench.propose(4, LONG);
    others_run().await;
    bench.tasks.stopping().cancel();
    assert_eq!(unavailable(queued.await.unwrap()), (Why::ShuttingDown, Outcome::NotProposed));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_what_is_under_way_and_refuses_the_rest() {
    let bench = Bench::new();
    let (one, two) = (bench.propose(1, LONG), bench.propose(2, LONG));
    let held = bench.log.next().await;
    let queued = bench.propose(4, LONG);
    let batcher = bench.batcher.clone();
    let drained = batcher.drain(LONG);
    tokio::pin!(drained);
    assert!(futures_util::poll!(&mut drained).is_pending());
    let refused = (Why::ShuttingDown, Outcome::NotProposed);
    assert_eq!(unavailable(queued.await.unwrap()), refused);
    assert_eq!(unavailable(bench.propose(5, LONG).await.unwrap()), refused);
    assert!(futures_util::poll!(&mut drained).is_pending());
    accept(held);
    drained.await;
    assert_eq!(quota_of(&one.await.unwrap()), 1);
    assert_eq!(quota_of(&two.await.unwrap()), 2);
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_drain_tries_nothing_again() {
    let bench = Bench::new();
    let one = bench.propose(1, LONG);
    let held = bench.log.next().await;
    let drained = bench.batcher.drain(LONG);
    tokio::pin!(drained);
    assert!(futures_util::poll!(&mut drained).is_pending());
    refuse(held, None);
    drained.await;
    assert_eq!(unavailable(one.await.unwrap()), (Why::ShuttingDown, Outcome::NotProposed));
    assert!(bench.log.writes.lock().is_empty());
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_leader() {
    let bench = Bench::new();
    bench.log.set_route(Some(Route::Nowhere));
    let one = bench.propose(1, LONG);
    others_run().await;
    let begun = tokio::time::Instant::now();
    bench.batcher.drain(LONG).await;
    assert!(begun.elapsed() <= BACKOFF_MAX);
    assert_eq!(unavailable(one.await.unwrap()), (Why::ShuttingDown, Outcome::NotProposed));
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_bounded() {
    let bench = Bench::new();
    let _one = bench.propose(1, LONG);
    let _held = bench.log.next().await;
    let begun = tokio::time::Instant::now();
    bench.batcher.drain(Duration::from_secs(3)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    assert!(bench.tasks.stop(LONG).await);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_wall_clocks_is_not_proposed_yet() {
    let bench = Bench::new();
    bench.log.silent.store(true, Ordering::Relaxed);
    let answer = bench.propose(1, Duration::from_millis(50));
    assert_eq!(unavailable(answer.await.unwrap()), (Why::Timeout, Outcome::NotProposed));
    let (late, _later) = (bench.propose(2, LONG), bench.propose(3, LONG));
    others_run().await;
    bench.tasks.stopping().cancel();
    assert_eq!(unavailable(late.await.unwrap()), (Why::ShuttingDown, Outcome::NotProposed));
    assert!(bench.log.writes.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_term_does_not_begin_before_a_quorum_has_told_the_time() {
    let bench = Bench::new();
    bench.log.unheard.store(u64::MAX, Ordering::Relaxed);
    let answer = bench.propose(1, Duration::from_millis(50));
    let refused = unavailable(answer.await.unwrap());
    assert_eq!(refused, (Why::NoLeader, Outcome::NotProposed), "VIOLATION: a term began, and nobody had told the time");
    bench.log.unheard.store(3, Ordering::Relaxed);
    let late = bench.propose(2, LONG);
    let write = bench.log.next().await;
    assert_eq!((write.0.proposed_at_ms, write.0.proposals.len()), (bench.clock.wall_ms(), 1));
    accept(write);
    assert_eq!(quota_of(&late.await.unwrap()), 2);
    assert!(bench.tasks.stop(LONG).await);
}

proptest! {
    /// The batch is put together from proposals encoded one by one; it must be what the codec makes.
    #[test]
    fn a_batch_is_encoded_as_the_codec_does(at: u64, wall: u64, quotas in proptest::collection::vec(any::<u64>(), 1..300)) {
        let proposals: Vec<_> = quotas.into_iter().map(quota).collect();
        let queued: Vec<_> = proposals
            .iter()
            .map(|proposal| Queued { encoded: codec::encode(proposal).unwrap().into(), deadline: Duration::ZERO, ticket: slot().0, forwarded: false })
            .collect();
        let batch = Batch { proposed_at_ms: at, wall_ms: wall, proposals };
        prop_assert_eq!(encode_batch(at, wall, &queued).unwrap(), codec::encode(&batch).unwrap());
    }
}

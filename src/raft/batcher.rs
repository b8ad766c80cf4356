//! The batcher: many proposals become one log entry, or one message to the leader.
//!
//! Callers encode their own proposal and queue it (`queue` decides when a batch goes). On the leader
//! one task puts a log time in front of what has gathered and hands it to Raft, and apply's answers go
//! straight to the callers; elsewhere the batch is forwarded, once. Invariants: only what Raft refused
//! before appending, or what was never sent, is called not proposed, and only that is tried again; a
//! queued proposal whose deadline has passed is dropped, not proposed; a caller that goes away cancels
//! nothing it has proposed.

use super::answer::{Answer, Waiting, slot};
use super::log_clock::LogClock;
use super::network::{Forwarded, Peer, TransportError};
use super::queue::{Flight, Queue, Queued};
use super::responder::Callback;
use super::types::{LogBatch, Types};
use crate::env::{Clock, TaskSet};
use crate::model::{Failure, Fault, Outcome, Proposal, Why, codec, limits};
use crate::storage::mutant::{self, Mutant};
use crate::telemetry::metrics::Metrics;
use bytes::Bytes;
use futures_util::future::join_all;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Waits after the first refusal, doubled at each further one up to the maximum. What is pending waits this
/// much longer than it must while the lead changes hands, so the maximum is short: the next try only asks
/// this member who leads.
const BACKOFF_MIN: Duration = Duration::from_millis(1);
const BACKOFF_MAX: Duration = Duration::from_millis(8);

/// What the batcher needs of Raft and the machine.
pub(crate) trait Log: Send + Sync + 'static {
    /// Hands a batch over; `answer` is called once, or dropped if Raft ends.
    fn write(&self, batch: LogBatch, answer: Callback<ClientWriteResult<Types>>) -> impl Future<Output = ()> + Send;
    /// The log time of the newest applied entry.
    fn applied_ms(&self) -> u64;
    /// What the wall clocks of a quorum agree on, this member's being `own_ms`.
    fn agreed_wall_ms(&self, own_ms: u64) -> impl Future<Output = Option<u64>> + Send;
    /// Where a batch is to go now.
    fn route(&self) -> Route;
    /// Sends a batch to the leader; answers one by one, or not at all.
    fn forward(
        &self,
        to: Peer,
        batch: Vec<Forwarded>,
        timeout: Duration,
    ) -> impl Future<Output = Result<Vec<Answer>, TransportError>> + Send;
}

/// Who may append, as far as this member knows.
#[derive(Debug, Clone)]
pub(crate) enum Route {
    /// This member leads in `term`.
    Here {
        term: u64,
    },
    To(Peer),
    Nowhere,
}

/// A batch that was certainly not appended, on its way back.
struct Refused {
    items: Vec<Queued>,
    attempt: u32,
    flight: Flight,
}

/// The callers' side: cheap to clone.
#[derive(Clone)]
pub(crate) struct Batcher {
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

impl fmt::Debug for Batcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").finish_non_exhaustive()
    }
}

impl Batcher {
    pub(crate) fn start(log: Arc<impl Log>, clock: Arc<dyn Clock>, metrics: Metrics, tasks: &TaskSet) -> Self {
        let queue = Arc::new(Queue::default());
        let (refuse, refused) = mpsc::channel(limits::BATCHES_IN_FLIGHT_MAX);
        let worker = Worker {
            log,
            clock: clock.clone(),
            metrics: metrics.clone(),
            log_clock: LogClock::default(),
            queue: queue.clone(),
            refuse,
            refused,
            tasks: tasks.clone(),
        };
        tasks.spawn_until_stop("batcher", worker.run());
        Self { queue, clock, metrics }
    }

    /// Refuses what comes from now on and what waits, and lets what is under way come to its end, at most `within`.
    pub(crate) async fn drain(&self, within: Duration) {
        self.queue.close();
        // What is late is answered by who ends Raft.
        drop(tokio::time::timeout(within, self.queue.landed()).await);
    }

    /// Proposes, and waits for the outcome at most `timeout` from now.
    pub(crate) async fn propose(&self, proposal: &Proposal, timeout: Duration) -> Answer {
        let mut waiting = self.queue_up(codec::encode(proposal)?.into(), timeout, false)?;
        let pending = Pending::new(&self.metrics);
        let answer = match tokio::time::timeout(timeout, &mut waiting).await {
            Ok(answer) => answer,
            Err(_) => waiting.give_up(self.queue.blame()),
        };
        drop(pending);
        match answer {
            Ok(_) => self.metrics.proposals_committed.inc(),
            Err(_) => self.metrics.proposals_failed.inc(),
        };
        answer
    }
}

impl Batcher {
    fn queue_up(&self, encoded: Bytes, timeout: Duration, forwarded: bool) -> Result<Waiting, Failure> {
        let deadline = self.clock.monotonic().saturating_add(timeout);
        let (ticket, waiting) = slot();
        self.queue.push(Queued { encoded, deadline, ticket, forwarded }).map_err(Failure::not_proposed)?;
        Ok(waiting)
    }

    /// Proposes what another member forwarded, here or not at all. It keeps the deadlines; so this
    /// waits for as long as it asks.
    pub(crate) async fn propose_forwarded(&self, batch: Vec<Forwarded>) -> Vec<Answer> {
        let queued = batch.into_iter().map(|item| {
            // Foreign bytes must not reach the log unread: there, what cannot be applied is a fault.
            codec::decode::<Proposal>("forwarded proposal", &item.encoded)?;
            self.queue_up(item.encoded, Duration::from_millis(item.remaining_ms), true)
        });
        let queued: Vec<Result<Waiting, Failure>> = queued.collect();
        join_all(queued.into_iter().map(|queued| async move { queued?.await })).await
    }
}

impl Batcher {
    /// As `propose_forwarded`, and what still waits when this member leads no more goes back at once. It must not
    /// wait for its turn: two members that have just exchanged the lead may each have forwarded to the other as
    /// many batches as may be under way, and each would wait for the other's answer.
    pub(crate) async fn propose_while_leading(
        &self,
        batch: Vec<Forwarded>,
        mut leading: watch::Receiver<Option<u64>>,
    ) -> Vec<Answer> {
        let answers = self.propose_forwarded(batch);
        tokio::pin!(answers);
        tokio::select! {
            biased;
            answers = &mut answers => return answers,
            // Closed at the end, when the queue is closed too.
            _ = leading.wait_for(Option::is_none) => {}
        }
        for item in self.queue.take_forwarded() {
            item.ticket.answer(Err(Failure::not_proposed(Why::NoLeader)));
        }
        answers.await
    }
}

/// Counts a waiting proposal, also when its caller goes away.
struct Pending<'a>(&'a Metrics);

impl<'a> Pending<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.proposals_pending.inc();
        Self(metrics)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.proposals_pending.dec();
    }
}

struct Worker<L> {
    log: Arc<L>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    log_clock: LogClock,
    queue: Arc<Queue>,
    refuse: mpsc::Sender<Refused>,
    refused: mpsc::Receiver<Refused>,
    tasks: TaskSet,
}

impl<L> Drop for Worker<L> {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl<L: Log> Worker<L> {
    async fn run(mut self) {
        loop {
            tokio::select! {
                biased;
                Some(refused) = self.refused.recv() => self.retry(refused).await,
                (items, flight) = self.queue.next() => self.propose(items, flight, 0).await,
            }
        }
    }

    async fn propose(&mut self, items: Vec<Queued>, flight: Flight, attempt: u32) {
        let now = self.clock.monotonic();
        let route = self.log.route();
        let mut live = Vec::with_capacity(items.len());
        for item in items {
            if item.deadline <= now {
                item.ticket.answer(Err(Failure::not_proposed(self.queue.blame())));
            } else if item.forwarded && !matches!(route, Route::Here { .. }) {
                item.ticket.answer(Err(Failure::not_proposed(Why::NoLeader)));
            } else {
                live.push(item);
            }
        }
        match route {
            Route::Here { term } => self.append(live, flight, attempt, now, term).await,
            Route::To(leader) => self.forward(live, flight, attempt, now, leader),
            Route::Nowhere => put_back(live, flight, attempt, &self.refuse),
        }
    }

    async fn append(&mut self, mut live: Vec<Queued>, flight: Flight, attempt: u32, now: Duration, term: u64) {
        let (applied_ms, wall_ms) = (self.log.applied_ms(), self.clock.wall_ms());
        let target_ms = if self.log_clock.begins(term) {
            // Without a quorum's word nothing could be committed either. A term must not begin without: the next
            // would step over the time it went by, and history and tokens would be as much older at once.
            match self.log.agreed_wall_ms(wall_ms).await {
                Some(agreed_ms) => agreed_ms,
                None if mutant::is_active(Mutant::TermBeginsUnasked) => applied_ms,
                None => return put_back(live, flight, attempt, &self.refuse),
            }
        } else {
            wall_ms
        };
        if !claim(&mut live) {
            return;
        }
        let at = self.log_clock.stamp(term, applied_ms, now, target_ms);
        let bytes = match encode_batch(at, wall_ms, &live) {
            Ok(bytes) => bytes,
            Err(fault) => return fail(live, &Failure::from(fault)),
        };
        // Exact: at most 256.
        self.metrics.batch_proposals.observe(f64::from(u16::try_from(live.len()).unwrap_or(u16::MAX)));
        let (refuse, queue) = (self.refuse.clone(), self.queue.clone());
        let answer = Callback::new(move |result| settle(result, live, flight, attempt, &refuse, &queue));
        self.log.write(LogBatch { bytes: bytes.into() }, answer).await;
    }

    fn forward(&self, mut live: Vec<Queued>, flight: Flight, attempt: u32, now: Duration, leader: Peer) {
        if !claim(&mut live) {
            return;
        }
        let longest = live.iter().map(|item| item.deadline.saturating_sub(now)).max().unwrap_or_default();
        let batch = live.iter().map(|item| Forwarded {
            remaining_ms: u64::try_from(item.deadline.saturating_sub(now).as_millis()).unwrap_or(u64::MAX),
            encoded: item.encoded.clone(),
        });
        let batch = batch.collect();
        let (log, refuse, queue) = (self.log.clone(), self.refuse.clone(), self.queue.clone());
        self.tasks.spawn_until_stop("forwarded batch", async move {
            match log.forward(leader, batch, longest).await {
                Ok(answers) if answers.len() == live.len() => {
                    queue.note_refused(false);
                    deliver(live, answers, flight, attempt, &refuse);
                }
                Ok(answers) => {
                    let why = format!("{} answers for {} forwarded proposals", answers.len(), live.len());
                    fail(live, &Failure::from(Fault::Invariant(why)));
                }
                Err(TransportError::Unreachable(_)) => put_back(live, flight, attempt, &refuse),
                Err(TransportError::Failed(why)) => {
                    tracing::debug!(proposals = live.len(), "the answer to forwarded proposals was lost: {why}");
                    let lost = Failure::Unavailable { why: Why::NoLeader, outcome: Outcome::Unknown };
                    fail(live, &lost);
                }
            }
        });
    }

    /// Proposes a batch that came back again, after a pause. At the end nothing is tried again: what is dropped is
    /// answered as not proposed.
    async fn retry(&mut self, refused: Refused) {
        if self.queue.is_closed() {
            return;
        }
        let Refused { items, attempt, flight } = refused;
        self.queue.note_refused(true);
        let pause = BACKOFF_MIN.saturating_mul(1 << attempt.min(8)).min(BACKOFF_MAX);
        tokio::time::sleep(pause).await;
        self.propose(items, flight, attempt + 1).await;
    }
}

/// Marks what is handed to Raft next, or sent: from here on it may happen. False if nobody waits any more.
fn claim(items: &mut Vec<Queued>) -> bool {
    items.retain(|item| item.ticket.claim());
    !items.is_empty()
}

/// Returns a batch that was certainly not appended.
fn put_back(items: Vec<Queued>, flight: Flight, attempt: u32, refuse: &mpsc::Sender<Refused>) {
    if items.is_empty() {
        return;
    }
    for item in &items {
        item.ticket.unclaim();
    }
    // There is a place for every batch in flight; it can only be closed, and then the tickets answer.
    drop(refuse.try_send(Refused { items, attempt, flight }));
}

/// Hands out what the leader answered, and puts back what it refused because it leads no more.
fn deliver(items: Vec<Queued>, answers: Vec<Answer>, flight: Flight, attempt: u32, refuse: &mpsc::Sender<Refused>) {
    let mut back = Vec::new();
    for (item, answer) in items.into_iter().zip(answers) {
        match answer {
            Err(Failure::Unavailable {
                why: Why::NoLeader | Why::ShuttingDown | Why::NotReady | Why::DiskStalled,
                outcome: Outcome::NotProposed,
            }) => back.push(item),
            answer => item.ticket.answer(answer),
        }
    }
    put_back(back, flight, attempt, refuse);
}

/// Exactly the bytes that `codec::encode` gives for a `Batch` of these proposals: in postcard a
/// struct is its fields and a sequence is its length and its elements, one after another.
fn encode_batch(proposed_at_ms: u64, wall_ms: u64, items: &[Queued]) -> Result<Vec<u8>, Fault> {
    let mut bytes = codec::encode(&(proposed_at_ms, wall_ms, items.len()))?;
    bytes.reserve_exact(items.iter().map(|item| item.encoded.len()).sum());
    for item in items {
        // The first byte is the version, which the batch has once.
        bytes.extend_from_slice(item.encoded.get(1..).unwrap_or_default());
    }
    Ok(bytes)
}

fn settle(
    result: ClientWriteResult<Types>,
    items: Vec<Queued>,
    flight: Flight,
    attempt: u32,
    refuse: &mpsc::Sender<Refused>,
    queue: &Queue,
) {
    match result {
        Ok(response) => {
            queue.note_refused(false);
            let outcomes = response.data.0;
            if outcomes.len() != items.len() {
                let why = format!("{} outcomes for {} proposals", outcomes.len(), items.len());
                return fail(items, &Failure::from(Fault::Invariant(why)));
            }
            // The next batch may go while the callers are woken.
            drop(flight);
            for (item, outcome) in items.into_iter().zip(outcomes) {
                item.ticket.answer(Ok(outcome));
            }
        }
        Err(ClientWriteError::ForwardToLeader(_)) => put_back(items, flight, attempt, refuse),
        Err(_) => fail(items, &Failure::Unavailable { why: Why::NoLeader, outcome: Outcome::Unknown }),
    }
}

fn fail(items: Vec<Queued>, failure: &Failure) {
    for item in items {
        item.ticket.answer(Err(failure.clone()));
    }
}

#[cfg(test)]
mod tests;

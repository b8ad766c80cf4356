//! The batcher: many proposals become one log entry.
//!
//! Callers encode their own proposal and queue it (`queue` decides when a batch goes); one task puts a
//! log time in front of what has gathered and hands it to Raft. Apply's answers go straight to the
//! callers. Invariants: only what Raft refused before appending
//! is called not proposed; a queued proposal whose deadline has passed is dropped, not proposed; a
//! caller that goes away cancels nothing it has proposed.

use super::answer::{Answer, slot};
use super::log_clock::LogClock;
use super::queue::{Flight, Queue, Queued};
use super::responder::Callback;
use super::types::{LogBatch, Types};
use crate::env::{Clock, TaskSet};
use crate::model::{Failure, Fault, Outcome, Proposal, Why, codec, limits};
use crate::telemetry::metrics::Metrics;
use openraft::errors::{ClientWriteError, ForwardToLeader};
use openraft::raft::ClientWriteResult;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Waits after the first refusal, doubled at each further one up to the maximum.
const BACKOFF_MIN: Duration = Duration::from_millis(2);
const BACKOFF_MAX: Duration = Duration::from_millis(50);

/// What the batcher needs of Raft and the machine.
pub(crate) trait Log: Send + Sync + 'static {
    /// Hands a batch over; `answer` is called once, or dropped if Raft ends.
    fn write(&self, batch: LogBatch, answer: Callback<ClientWriteResult<Types>>) -> impl Future<Output = ()> + Send;
    /// The current term and the log time of the newest applied entry.
    fn term_and_time(&self) -> (u64, u64);
}

/// A batch that Raft refused before appending it, on its way back.
struct Refused {
    items: Vec<Queued>,
    attempt: u32,
    another_leads: bool,
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
        };
        tasks.spawn_until_stop("batcher", worker.run());
        Self { queue, clock, metrics }
    }

    /// Proposes, and waits for the outcome at most `timeout` from now.
    pub(crate) async fn propose(&self, proposal: &Proposal, timeout: Duration) -> Answer {
        let encoded = codec::encode(proposal)?;
        let deadline = self.clock.monotonic().saturating_add(timeout);
        let (ticket, mut waiting) = slot();
        self.queue.push(Queued { encoded, deadline, ticket }).map_err(Failure::not_proposed)?;
        let pending = Pending::new(&self.metrics);
        let answer = match tokio::time::timeout(timeout, &mut waiting).await {
            Ok(answer) => answer,
            Err(_) => waiting.give_up(Why::Timeout),
        };
        drop(pending);
        match answer {
            Ok(_) => self.metrics.proposals_committed.inc(),
            Err(_) => self.metrics.proposals_failed.inc(),
        };
        answer
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
        let mut live = Vec::with_capacity(items.len());
        for item in items {
            if item.deadline <= now {
                item.ticket.answer(Err(Failure::not_proposed(Why::Timeout)));
            } else if item.ticket.claim() {
                live.push(item);
            }
        }
        if live.is_empty() {
            return;
        }
        let (term, applied_ms) = self.log.term_and_time();
        let wall_ms = self.clock.wall_ms();
        let at = self.log_clock.stamp(term, applied_ms, now, wall_ms);
        let bytes = match encode_batch(at, wall_ms, &live) {
            Ok(bytes) => bytes,
            Err(fault) => return fail(live, &Failure::from(fault)),
        };
        // Exact: at most 256.
        self.metrics.batch_proposals.observe(f64::from(u16::try_from(live.len()).unwrap_or(u16::MAX)));
        let refuse = self.refuse.clone();
        let answer = Callback::new(move |result| settle(result, live, flight, attempt, &refuse));
        self.log.write(LogBatch { bytes: bytes.into() }, answer).await;
    }

    /// Proposes a refused batch again after a pause; unless another member leads, which has to be
    /// asked instead.
    async fn retry(&mut self, refused: Refused) {
        let Refused { items, attempt, another_leads, flight } = refused;
        if another_leads {
            return fail(items, &Failure::not_proposed(Why::NoLeader));
        }
        let pause = BACKOFF_MIN.saturating_mul(1 << attempt.min(8)).min(BACKOFF_MAX);
        tokio::time::sleep(pause).await;
        self.propose(items, flight, attempt + 1).await;
    }
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
) {
    match result {
        Ok(response) => {
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
        Err(ClientWriteError::ForwardToLeader(ForwardToLeader { leader_id, .. })) => {
            for item in &items {
                item.ticket.unclaim();
            }
            let refused = Refused { items, attempt, another_leads: leader_id.is_some(), flight };
            // There is a place for every batch in flight; it can only be closed, and then the tickets answer.
            drop(refuse.try_send(refused));
        }
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

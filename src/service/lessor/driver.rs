//! The one task of the lessor: wakes at the earliest deadline, ends what has run out, and checkpoints
//! long leases.
//!
//! Invariants: leadership is confirmed by a round that began after the deadlines passed, before an end is
//! proposed, so a member that stood still verifies itself anew first; what is proposed carries the term,
//! and each lease's generation from a view whose changes have all been noted, so apply passes over
//! what was started again; one proposal at a time, of bounded size, so a storm of expiries holds up
//! nobody.

use super::core::{Due, floor_ms};
use super::{CHUNK, Lessor, Told};
use crate::machine::{Outcome, View};
use crate::model::{
    Caller, Command, Failure, LeaseId, LeaseRemaining, LeaseStart, Outcome as Fate, Proposal, Rejection, Reply, Why,
    limits,
};
use crate::raft::Consensus;
use crate::storage::mutant::{self, Mutant};
use crate::telemetry::Metrics;
use std::sync::Arc;
use std::time::Duration;

/// TTLs above this are checkpointed: so much more than was left may a lease live on after a leader
/// change, with the time between two sweeps and what is worth a checkpoint within it.
const CHECKPOINT_TTL_MS: u64 = 60_000;
const SWEEP: Duration = Duration::from_secs(20);
const WORTH_MS: u64 = 30_000;
/// How long a proposal or a round may take before it is tried again.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Without leases to wait for.
const IDLE: Duration = Duration::from_secs(3600);

/// Runs until stopped.
pub async fn run(lessor: Arc<Lessor>, consensus: Consensus, metrics: Metrics) {
    let mut leading = consensus.leading();
    let driver = Driver { lessor, consensus, metrics };
    loop {
        let Some(term) = *leading.borrow_and_update() else {
            driver.lessor.sleep();
            if leading.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            () = driver.lead(term) => {}
            changed = leading.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

struct Driver {
    lessor: Arc<Lessor>,
    consensus: Consensus,
    metrics: Metrics,
}

impl Driver {
    /// Never ends by itself.
    async fn lead(&self, term: u64) {
        loop {
            self.lessor.begin_gathering();
            let core = self.lessor.gather(&self.consensus.reader().view());
            tracing::debug!(term, leases = core.len(), "counting the time of leases");
            if self.lessor.finish_gathering(term, core) {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut sweep_at = self.now() + SWEEP;
        let mut pause = PAUSE_MIN;
        loop {
            self.sleep_until(sweep_at).await;
            let ended = match self.end_due(term).await {
                Ok(()) if self.now() >= sweep_at => {
                    sweep_at = self.now() + SWEEP;
                    self.sweep(term).await
                }
                ended => ended,
            };
            match ended {
                Ok(()) => pause = PAUSE_MIN,
                Err(failure) => {
                    tracing::debug!(%failure, "leases were not ended or checkpointed, this will be tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.lessor.clock.monotonic()
    }

    async fn sleep_until(&self, sweep_at: Duration) {
        loop {
            let now = self.now();
            let next = self.lessor.next_ms().map_or(now + IDLE, Duration::from_millis).min(sweep_at);
            let Some(left) = next.checked_sub(now).filter(|left| !left.is_zero()) else { return };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = self.lessor.wake.notified() => {}
            }
        }
    }

    /// A view of which the lessor has noted everything.
    async fn noted_view(&self) -> Result<View, Failure> {
        if !mutant::is_active(Mutant::FormerLeaderExpires) {
            self.consensus.leader_barrier(PATIENCE).await?;
        }
        let view = self.consensus.reader().view();
        let index = view.applied().map_or(0, |at| at.index);
        let mut applied = self.consensus.applied();
        match tokio::time::timeout(PATIENCE, applied.wait_for(|applied| applied.covers(index))).await {
            Ok(Ok(_)) => Ok(view),
            Ok(Err(_)) => Err(Failure::not_proposed(Why::ShuttingDown)),
            Err(_) => Err(Failure::not_proposed(Why::Timeout)),
        }
    }

    async fn end_due(&self, term: u64) -> Result<(), Failure> {
        while self.lessor.next_ms().is_some_and(|next| next <= floor_ms(self.now())) {
            let view = self.noted_view().await?;
            let mut due = self.lessor.take_due(term, limits::LEASE_BATCH_MAX);
            // Those beyond the bound come up again at once.
            let later = due.split_off(within_keys(&view, &due));
            self.lessor.settle(&later);
            if !due.is_empty() {
                self.end(term, &view, &due).await?;
            }
        }
        Ok(())
    }

    /// A proposal that may be in the log stays one until another that comes after it is answered: until
    /// then these leases must not be renewed, also if this task ends here because leadership did.
    async fn end(&self, term: u64, view: &View, due: &[Due]) -> Result<(), Failure> {
        let leases: Vec<LeaseStart> = due.iter().filter_map(|due| start_of(view, due.id)).collect();
        let command = Command::LeaseExpire { term, leases };
        let mut pause = PAUSE_MIN;
        let mut in_log = false;
        loop {
            match self.propose(command.clone()).await {
                Ok(outcome) => {
                    self.lessor.settle(due);
                    self.count(&outcome, due);
                    return Ok(());
                }
                Err(failure @ Failure::Unavailable { outcome: Fate::NotProposed, .. }) if !in_log => {
                    self.lessor.settle(due);
                    return Err(failure);
                }
                Err(failure) => {
                    in_log = true;
                    tracing::debug!(%failure, "it is not known whether leases were ended, this will be tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    fn count(&self, outcome: &Outcome, due: &[Due]) {
        let Ok(Reply::LeasesExpired { leases, .. }) = outcome.result else { return };
        self.metrics.leases_expired.inc_by(leases);
        let now = self.now();
        for due in due {
            let late = now.saturating_sub(Duration::from_millis(due.deadline_ms));
            self.metrics.lease_lateness.observe(late.as_secs_f64());
        }
    }

    /// Checkpoints what is left of long leases, where the log says far more.
    async fn sweep(&self, term: u64) -> Result<(), Failure> {
        let mut from: LeaseId = 0;
        loop {
            let view = self.noted_view().await?;
            let chunk = view.leases(from, CHUNK.min(limits::LEASE_BATCH_MAX));
            let Some(next) = chunk.last().and_then(|last| last.id.checked_add(1)) else { return Ok(()) };
            from = next;
            let told = self.lessor.with_core(|core, now| {
                let long = chunk.iter().filter(|lease| lease.ttl_ms > CHECKPOINT_TTL_MS);
                let checkpoints = long.filter_map(|lease| {
                    let logged_ms = lease.checkpoint_ms.unwrap_or(lease.ttl_ms);
                    let remaining_ms = core.checkpoint(lease.id, logged_ms, WORTH_MS, now)?;
                    let start = LeaseStart { id: lease.id, generation: lease.generation };
                    Some(LeaseRemaining { start, remaining_ms })
                });
                checkpoints.collect::<Vec<_>>()
            });
            let Told::Known(leases) = told else { return Ok(()) };
            if !leases.is_empty() {
                self.propose(Command::LeaseCheckpoint { term, leases }).await?;
            }
        }
    }

    /// A refusal for the term means that another leads: leadership's watch will tell.
    async fn propose(&self, command: Command) -> Result<Outcome, Failure> {
        let proposal = Proposal { caller: Caller::System, idempotency: None, command };
        let outcome = self.consensus.propose(&proposal, PATIENCE).await?;
        match outcome.result {
            Err(Rejection::StaleTerm { .. }) => Err(Failure::not_proposed(Why::NoLeader)),
            _ => Ok(outcome),
        }
    }
}

fn start_of(view: &View, id: LeaseId) -> Option<LeaseStart> {
    view.lease(id).map(|lease| LeaseStart { id, generation: lease.generation })
}

/// How many of these, from the first on, have a bounded number of keys together; at least one.
fn within_keys(view: &View, due: &[Due]) -> usize {
    let mut left = limits::LEASE_BATCH_KEYS_MAX;
    for (count, due) in due.iter().enumerate() {
        let keys = view.attached_count(due.id, left + 1);
        if keys > left {
            return count.max(1);
        }
        left -= keys;
    }
    due.len()
}

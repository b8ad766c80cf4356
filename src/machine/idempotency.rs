//! What became of requests that carried an idempotency key.
//!
//! They age by log time, but for what it steps over where a term begins. That may be the error of one wrong clock,
//! which had the term before begin in the past, as well as time without a leader; and a record that goes early is
//! a request done twice.
//! Invariants: `order` lists exactly the records, oldest first; their clock never goes back, so the
//! oldest are at the front. Records are removed at a fixed rate per proposal, never per batch, so
//! that members agree however batches were cut.

use super::hash::{self, Sum};
use crate::model::{Caller, Fault, Idempotency, Rejection, Reply, Revision, codec, limits};
use crate::storage::mutant::{self, Mutant};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Expired records removed per proposal: more than one, so that the table shrinks under load.
const EXPIRED_PER_PROPOSAL: usize = 8;
/// What a record counts for in the quota beside its scope and outcome.
const RECORD_OVERHEAD_BYTES: u64 = 128;

/// A key within its caller's scope.
type Scope = Arc<[u8]>;

#[derive(Debug, Clone)]
pub(crate) struct Table {
    records: OrdMap<Scope, Kept>,
    order: OrdMap<u64, Scope>,
    next: u64,
    bytes: u64,
    max: usize,
    steps: Steps,
}

/// How far the records' clock is behind log time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Steps {
    /// Of the newest batch; 0 if none has been applied.
    term: u64,
    sum_ms: u64,
}

impl Steps {
    pub(crate) fn hash(self) -> u128 {
        hash::steps(self.term, self.sum_ms)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    sequence: u64,
    fingerprint: [u8; 16],
    revision: Revision,
    /// By the records' clock.
    at_ms: u64,
    /// An encoded `Result<Reply, Rejection>`.
    outcome: Arc<[u8]>,
}

/// A record as an image carries it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Portable {
    scope: Scope,
    kept: Kept,
}

impl Portable {
    pub(crate) fn size(&self) -> usize {
        self.scope.len() + self.kept.outcome.len()
    }

    #[cfg(test)]
    pub(crate) fn hash(&self) -> u128 {
        hash_of(&self.scope, &self.kept)
    }
}

pub(crate) enum Found {
    Nothing,
    /// What the first request was answered.
    Outcome(Result<Reply, Rejection>),
    OtherRequest,
}

impl Table {
    pub(crate) fn new(max: usize) -> Self {
        Self { records: OrdMap::new(), order: OrdMap::new(), next: 0, bytes: 0, max, steps: Steps::default() }
    }

    /// Scopes, and bytes as the quota counts them.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.next
    }

    pub(crate) fn is_full(&self) -> bool {
        self.records.len() >= self.max
    }

    /// Of every batch, before its proposals: its term, and by how much it moves log time.
    pub(crate) fn pass(&mut self, term: u64, passed_ms: u64, sum: &mut Sum) {
        if term != self.steps.term {
            let step_ms = if mutant::is_active(Mutant::StepsAgeRequests) { 0 } else { passed_ms };
            self.set_steps(Steps { term, sum_ms: self.steps.sum_ms.saturating_add(step_ms) }, sum);
        }
    }

    /// None before the first batch, and of a build that let records age by log time.
    pub(crate) fn steps(&self) -> Option<Steps> {
        Some(self.steps).filter(|steps| *steps != Steps::default())
    }

    fn set_steps(&mut self, steps: Steps, sum: &mut Sum) {
        if let Some(former) = self.steps() {
            sum.remove(former.hash());
        }
        self.steps = steps;
        sum.add(steps.hash());
    }

    /// The records' clock at a log time.
    fn clock_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.steps.sum_ms)
    }

    pub(crate) fn clear(&mut self, sum: &mut Sum) {
        while let Some((_, scope)) = self.order.get_min() {
            let scope = scope.clone();
            self.remove(&scope, sum);
        }
    }

    /// Removes a few of the records that are too old, if there are any.
    pub(crate) fn expire(&mut self, now_ms: u64, sum: &mut Sum) {
        let clock_ms = self.clock_ms(now_ms);
        for _ in 0..EXPIRED_PER_PROPOSAL {
            let Some((_, scope)) = self.order.get_min() else { return };
            let scope = scope.clone();
            if self.records.get(&scope).is_some_and(|kept| !is_expired(kept, clock_ms)) {
                return;
            }
            self.remove(&scope, sum);
        }
    }

    pub(crate) fn find(&self, caller: &Caller, asked: &Idempotency, now_ms: u64) -> Result<Found, Fault> {
        let clock_ms = self.clock_ms(now_ms);
        match self.records.get(&scope(caller, &asked.key)).filter(|kept| !is_expired(kept, clock_ms)) {
            None => Ok(Found::Nothing),
            Some(kept) if kept.fingerprint != asked.fingerprint => Ok(Found::OtherRequest),
            Some(kept) => codec::decode("an idempotency record", &kept.outcome).map(Found::Outcome),
        }
    }

    /// Keeps the outcome of a request, in a shorter form if it is large. Outcomes that a retry may
    /// change (no room) are not kept, and neither is a rejection too large to keep: it had no effect.
    pub(crate) fn record(
        &mut self,
        caller: &Caller,
        asked: &Idempotency,
        outcome: &Result<Reply, Rejection>,
        (revision, now_ms): (Revision, u64),
        sum: &mut Sum,
    ) -> Result<(), Fault> {
        if let Err(Rejection::QuotaExceeded { .. } | Rejection::DiskFull) = outcome {
            return Ok(());
        }
        let mut bytes = codec::encode(outcome)?;
        if bytes.len() > limits::IDEMPOTENCY_REPLY_BYTES_MAX {
            let Ok(reply) = outcome else { return Ok(()) };
            let succeeded = !matches!(reply, Reply::Txn(txn) if !txn.succeeded);
            bytes = codec::encode(&Ok::<Reply, Rejection>(Reply::Outcome { succeeded, revision }))?;
        }
        let scope = scope(caller, &asked.key);
        self.remove(&scope, sum);
        let kept = Kept {
            sequence: self.next,
            fingerprint: asked.fingerprint,
            revision,
            at_ms: self.clock_ms(now_ms),
            outcome: bytes.into(),
        };
        self.next += 1;
        self.insert(scope, kept, sum);
        Ok(())
    }

    fn insert(&mut self, scope: Scope, kept: Kept, sum: &mut Sum) {
        sum.add(hash_of(&scope, &kept));
        self.bytes += bytes_of(&scope, &kept);
        self.order.insert(kept.sequence, scope.clone());
        self.records.insert(scope, kept);
    }

    fn remove(&mut self, scope: &Scope, sum: &mut Sum) {
        if let Some(kept) = self.records.remove(scope) {
            self.order.remove(&kept.sequence);
            self.bytes -= bytes_of(scope, &kept);
            sum.remove(hash_of(scope, &kept));
        }
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Portable> + '_ {
        self.order.values().filter_map(|scope| {
            self.records.get(scope).map(|kept| Portable { scope: scope.clone(), kept: kept.clone() })
        })
    }

    /// Takes a record from an image; they come oldest first.
    pub(crate) fn restore(&mut self, Portable { scope, kept }: Portable, sum: &mut Sum) -> Result<(), Fault> {
        if kept.sequence < self.next || self.records.contains_key(&scope) {
            return Err(Fault::corrupt("the image", "idempotency records out of order"));
        }
        self.next = kept.sequence + 1;
        self.insert(scope, kept, sum);
        Ok(())
    }

    pub(crate) fn restore_steps(&mut self, steps: Steps, sum: &mut Sum) -> Result<(), Fault> {
        if self.steps().is_some() {
            return Err(Fault::corrupt("the image", "steps of time twice"));
        }
        self.set_steps(steps, sum);
        Ok(())
    }

    pub(crate) fn restore_sequence(&mut self, next: u64) {
        self.next = self.next.max(next);
    }
}

fn is_expired(kept: &Kept, clock_ms: u64) -> bool {
    clock_ms.saturating_sub(kept.at_ms) > limits::IDEMPOTENCY_KEPT_MS
}

fn hash_of(scope: &[u8], kept: &Kept) -> u128 {
    hash::idempotency(scope, &kept.fingerprint, kept.revision, kept.at_ms, &kept.outcome)
}

fn bytes_of(scope: &[u8], kept: &Kept) -> u64 {
    RECORD_OVERHEAD_BYTES + u64::try_from(scope.len() + kept.outcome.len()).unwrap_or(u64::MAX / 2)
}

fn scope(caller: &Caller, key: &str) -> Scope {
    let (kind, name) = match caller {
        Caller::Anonymous => (0, ""),
        Caller::System => (1, ""),
        Caller::User { name, .. } => (2, name.as_str()),
    };
    let mut scope = vec![kind];
    scope.extend_from_slice(&u64::try_from(name.len()).unwrap_or(u64::MAX).to_le_bytes());
    scope.extend_from_slice(name.as_bytes());
    scope.extend_from_slice(key.as_bytes());
    scope.into()
}

//! Applying one proposal: authorise, replay or refuse by idempotency key, execute, record.
//!
//! Invariants: a rejected command changes nothing but the idempotency table; what a command decides
//! depends on the state before it and on log time only.

mod auth;
mod compare;
mod fence;
mod foresee;
mod lease;
mod ops;
mod rate;
mod work;
mod write;

use super::Stop;
use super::authority::{Authorized, authorize};
use super::idempotency::Found;
use super::read::Source;
use super::root::FEATURE_LEVEL_MAX;
use super::validate::validate;
use super::writer::Machine;
use crate::model::{Command, Fault, LeaseId, Proposal, Rejection, Reply, Revision, RevisionEvents};
use serde::{Deserialize, Serialize};
use work::Work;

/// What became of a batch.
#[derive(Debug)]
pub struct Applied {
    /// One per proposal, in order.
    pub outcomes: Vec<Outcome>,
    /// Of the revisions that the batch made, rising.
    pub events: Vec<RevisionEvents>,
    /// What became of leases, in order.
    pub leases: Vec<LeaseChange>,
    /// The store's revision after the batch.
    pub revision: Revision,
}

/// What whoever counts a lease's time must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// Granted, renewed through the log, or given a TTL: it has the whole of it from now on.
    Started {
        id: LeaseId,
        ttl_ms: u64,
    },
    Ended {
        id: LeaseId,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub result: Result<Reply, Rejection>,
    /// The outcome of an earlier request with the same idempotency key.
    pub replayed: bool,
}

impl Machine {
    pub(super) fn apply_proposal(
        &mut self,
        proposal: &Proposal,
        events: &mut Vec<RevisionEvents>,
    ) -> Result<Outcome, Fault> {
        let now_ms = self.root.numbers.now_ms;
        self.root.idempotency.expire(now_ms, &mut self.root.sum);
        let fresh = |result| Outcome { result, replayed: false };
        let command = match authorize(&self.root, &proposal.caller, &proposal.command) {
            Ok(command) => command,
            Err(rejection) => return Ok(fresh(Err(rejection))),
        };
        if let Some(asked) = &proposal.idempotency {
            match self.root.idempotency.find(&proposal.caller, asked, now_ms)? {
                Found::Outcome(result) => return Ok(Outcome { result, replayed: true }),
                Found::OtherRequest => return Ok(fresh(Err(Rejection::IdempotencyKeyReused))),
                Found::Nothing if self.root.idempotency.is_full() => {
                    return Ok(fresh(Err(Rejection::IdempotencyTableFull)));
                }
                Found::Nothing => {}
            }
        }
        let result = match self.execute(command, events) {
            Ok(reply) => Ok(reply),
            Err(Stop::Rejected(rejection)) => Err(rejection),
            Err(Stop::Fault(fault)) => return Err(fault),
        };
        if let Some(asked) = &proposal.idempotency {
            let root = &mut self.root;
            let when = (root.numbers.revision, now_ms);
            root.idempotency.record(&proposal.caller, asked, &result, when, &mut root.sum)?;
        }
        Ok(fresh(result))
    }

    fn execute(&mut self, command: Authorized<&Command>, events: &mut Vec<RevisionEvents>) -> Result<Reply, Stop> {
        validate(command.get())?;
        self.execute_valid(command, events)
    }

    fn execute_valid(
        &mut self,
        command: Authorized<&Command>,
        events: &mut Vec<RevisionEvents>,
    ) -> Result<Reply, Stop> {
        if let Some((fences, inner)) = command.fenced() {
            let newest = self.root.numbers.revision;
            Source { root: &self.root, pending: &self.pending, newest }.check(fences)?;
            return self.execute_valid(inner, events);
        }
        if let Some(txn) = command.txn() {
            let mut work = Work::begin(self);
            return match work.txn(txn) {
                Ok(reply) => {
                    events.extend(work.commit());
                    Ok(Reply::Txn(reply))
                }
                Err(stop) => {
                    work.abort();
                    Err(stop)
                }
            };
        }
        match command.get() {
            Command::Txn(_) | Command::Fenced { .. } => Err(Stop::invariant("not a command of its own")),
            Command::Restore { .. } => Err(Stop::invariant("a restore stands alone in its entry")),
            Command::LeaseRevoke { id, reason } => self.revoke(*id, *reason, events),
            Command::LeaseGrant { id, ttl_ms } => self.grant(*id, *ttl_ms, None),
            Command::LeaseGrantLabelled { id, ttl_ms, label } => self.grant(*id, *ttl_ms, Some(label)),
            Command::LeaseExpire { term, leases } => self.expire(*term, leases, events),
            Command::LeaseCheckpoint { term, leases } => self.checkpoint(*term, leases),
            Command::LeaseRenew { id } => self.renew_lease(*id),
            Command::TtlSet { key, id, ttl_ms } => self.set_ttl(key, *id, *ttl_ms),
            Command::TtlClear { key } => self.clear_ttl(key),
            Command::Auth(command) => self.change_auth(command),
            Command::Compact { revision } => self.compact(*revision),
            Command::RaiseFeatureLevel { level } => self.raise_feature_level(*level),
            Command::SetQuota { bytes } => {
                self.root.numbers.quota_bytes = *bytes;
                Ok(Reply::Quota { bytes: *bytes })
            }
        }
    }

    /// Reads below fail at once; what they would have read is removed step by step later.
    fn compact(&mut self, revision: Revision) -> Result<Reply, Stop> {
        let numbers = &mut self.root.numbers;
        let current = numbers.revision;
        if revision <= numbers.compacted {
            return Err(Rejection::Compacted { requested: revision, compacted: numbers.compacted, current }.into());
        }
        if revision > current {
            return Err(Rejection::FutureRevision { requested: revision, current }.into());
        }
        numbers.compacted = revision;
        self.root.timeline.release(revision, current);
        Ok(Reply::Compact { compacted_revision: revision, revision: current })
    }

    /// The level never falls. One above this release means that this member can't follow the log.
    fn raise_feature_level(&mut self, level: u32) -> Result<Reply, Stop> {
        if level > FEATURE_LEVEL_MAX {
            return Err(Fault::Invariant(format!(
                "the log asks for feature level {level}, this release knows {FEATURE_LEVEL_MAX}"
            ))
            .into());
        }
        let numbers = &mut self.root.numbers;
        numbers.feature_level = numbers.feature_level.max(level);
        Ok(Reply::FeatureLevel { level: numbers.feature_level })
    }
}

//! Applying one proposal: authorise, replay or refuse by idempotency key, execute, record.
//!
//! Invariants: a rejected command changes nothing but the idempotency table; what a command decides
//! depends on the state before it and on log time only.

mod compare;
mod ops;
mod work;
mod write;

use super::Stop;
use super::authority::{Authorized, authorize};
use super::hash;
use super::idempotency::Found;
use super::root::{FEATURE_LEVEL_MAX, LEASE_BYTES, Lease};
use super::validate::validate;
use super::writer::Machine;
use crate::model::{Command, DeleteReason, Fault, LeaseId, Proposal, Rejection, Reply, Revision, RevisionEvents};
use serde::{Deserialize, Serialize};
use work::Work;

/// What became of a batch.
#[derive(Debug)]
pub struct Applied {
    /// One per proposal, in order.
    pub outcomes: Vec<Outcome>,
    /// Of the revisions that the batch made, rising.
    pub events: Vec<RevisionEvents>,
    /// The store's revision after the batch.
    pub revision: Revision,
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
        let command = match authorize(&self.root.auth, &proposal.caller, &proposal.command) {
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
            Command::Txn(_) => Err(Stop::invariant("a transaction is no other command")),
            Command::LeaseRevoke { id, reason } => self.revoke(*id, *reason, events),
            Command::LeaseGrant { id, ttl_ms } => self.grant(*id, *ttl_ms),
            Command::Compact { revision } => self.compact(*revision),
            Command::RaiseFeatureLevel { level } => self.raise_feature_level(*level),
            Command::SetQuota { bytes } => {
                self.root.numbers.quota_bytes = *bytes;
                Ok(Reply::Quota { bytes: *bytes })
            }
        }
    }

    fn grant(&mut self, id: LeaseId, ttl_ms: u64) -> Result<Reply, Stop> {
        let root = &mut self.root;
        if root.leases.contains_key(&id) {
            return Err(Rejection::LeaseExists(id).into());
        }
        if root.used_bytes() + LEASE_BYTES > root.numbers.quota_bytes {
            return Err(Rejection::QuotaExceeded { quota_bytes: root.numbers.quota_bytes }.into());
        }
        root.leases.insert(id, Lease { ttl_ms, implicit: false });
        root.sum.add(hash::lease(id, ttl_ms, false));
        Ok(Reply::LeaseGranted { id, ttl_ms, revision: root.numbers.revision })
    }

    fn revoke(&mut self, id: LeaseId, reason: DeleteReason, events: &mut Vec<RevisionEvents>) -> Result<Reply, Stop> {
        if !self.root.leases.contains_key(&id) {
            return Err(Rejection::LeaseNotFound(id).into());
        }
        let mut work = Work::begin(self);
        let deleted = match work.revoke(id, reason) {
            Ok(deleted) => deleted,
            Err(stop) => {
                work.abort();
                return Err(stop);
            }
        };
        events.extend(work.commit());
        Ok(Reply::LeaseRevoked { deleted, revision: self.root.numbers.revision })
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

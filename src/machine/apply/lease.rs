//! Leases in the replicated state: granted, started again, checkpointed, ended.
//!
//! Invariants: every change of a lease goes through `start_lease`, `end_lease` or `checkpoint`, which
//! keep the table, its hash, its size and the batch's list of changes together; each start has a
//! generation of its own, so what was decided about a former start never hits a later one; no time is
//! counted here.

use super::super::Stop;
use super::super::hash;
use super::super::root::{LEASE_BYTES, Lease, label_bytes};
use super::super::writer::Machine;
use super::LeaseChange;
use super::work::Work;
use crate::model::{
    DeleteReason, LeaseChoice, LeaseId, LeaseLabel, LeaseRemaining, LeaseStart, OpReply, Rejection, Reply,
    RevisionEvents,
};
use crate::storage::mutant::{self, Mutant};
use bytes::Bytes;
use std::sync::Arc;

impl Work<'_> {
    /// Within a transaction: the quota is looked at when it ends.
    pub(super) fn session(&mut self, id: LeaseId, ttl_ms: u64, label: &LeaseLabel) -> Result<OpReply, Stop> {
        if self.machine.root.leases.contains(id) {
            return Err(Rejection::LeaseExists(id).into());
        }
        let label = Some(label).filter(|label| **label != LeaseLabel::default()).cloned().map(Arc::new);
        self.machine.start_lease(id, ttl_ms, label, true);
        self.grew = true;
        Ok(OpReply::Session { lease: id })
    }
}

impl Machine {
    pub(super) fn grant(&mut self, id: LeaseId, ttl_ms: u64, label: Option<&LeaseLabel>) -> Result<Reply, Stop> {
        if self.root.leases.contains(id) {
            return Err(Rejection::LeaseExists(id).into());
        }
        self.ensure_room(LEASE_BYTES + label.map_or(0, label_bytes))?;
        let label = label.filter(|label| **label != LeaseLabel::default()).cloned().map(Arc::new);
        self.start_lease(id, ttl_ms, label, false);
        Ok(Reply::LeaseGranted { id, ttl_ms, revision: self.root.numbers.revision })
    }

    fn ensure_room(&self, bytes: u64) -> Result<(), Rejection> {
        let quota_bytes = self.root.numbers.quota_bytes;
        if self.root.used_bytes() + bytes > quota_bytes {
            Err(Rejection::QuotaExceeded { quota_bytes })
        } else {
            Ok(())
        }
    }

    /// Puts a lease into the table, or in place of the one with its id.
    pub(super) fn start_lease(&mut self, id: LeaseId, ttl_ms: u64, label: Option<Arc<LeaseLabel>>, implicit: bool) {
        self.root.lease_starts += 1;
        let generation = self.root.lease_starts;
        self.put_lease(id, Lease { ttl_ms, remaining_ms: None, generation, label, implicit });
        self.lease_changes.push(LeaseChange::Started { id, ttl_ms });
    }

    fn put_lease(&mut self, id: LeaseId, lease: Lease) {
        let root = &mut self.root;
        root.sum.add(hash::lease(id, &lease));
        root.lease_bytes += lease.bytes();
        if let Some(old) = root.leases.insert(id, lease) {
            root.sum.remove(hash::lease(id, &old));
            root.lease_bytes -= old.bytes();
        }
    }

    pub(super) fn end_lease(&mut self, id: LeaseId) {
        let root = &mut self.root;
        if let Some(old) = root.leases.remove(id) {
            root.sum.remove(hash::lease(id, &old));
            root.lease_bytes -= old.bytes();
            self.lease_changes.push(LeaseChange::Ended { id });
        }
    }

    pub(super) fn renew_lease(&mut self, id: LeaseId) -> Result<Reply, Stop> {
        let Some(Lease { ttl_ms, label, implicit, .. }) = self.root.leases.get(id) else {
            return Err(Rejection::LeaseNotFound(id).into());
        };
        self.start_lease(id, ttl_ms, label, implicit);
        Ok(Reply::LeaseRenewed { id, ttl_ms, revision: self.root.numbers.revision })
    }

    pub(super) fn revoke(
        &mut self,
        id: LeaseId,
        reason: DeleteReason,
        events: &mut Vec<RevisionEvents>,
    ) -> Result<Reply, Stop> {
        if !self.root.leases.contains(id) {
            return Err(Rejection::LeaseNotFound(id).into());
        }
        let deleted = self.end_with_keys(id, reason, events)?;
        Ok(Reply::LeaseRevoked { deleted, revision: self.root.numbers.revision })
    }

    fn end_with_keys(
        &mut self,
        id: LeaseId,
        reason: DeleteReason,
        events: &mut Vec<RevisionEvents>,
    ) -> Result<u64, Stop> {
        let mut work = Work::begin(self);
        match work.revoke(id, reason) {
            Ok(deleted) => {
                events.extend(work.commit());
                Ok(deleted)
            }
            Err(stop) => {
                work.abort();
                Err(stop)
            }
        }
    }

    /// Only the leader of the entry's own term counted these leases' time.
    fn ensure_term(&self, proposed: u64) -> Result<(), Rejection> {
        let current = self.term;
        if proposed == current || mutant::is_active(Mutant::FormerLeaderExpires) {
            Ok(())
        } else {
            Err(Rejection::StaleTerm { proposed, current })
        }
    }

    fn is_started_as(&self, start: LeaseStart) -> bool {
        self.root.leases.get(start.id).is_some_and(|lease| lease.generation == start.generation)
    }

    /// Each lease's keys go at a revision of their own.
    pub(super) fn expire(
        &mut self,
        term: u64,
        leases: &[LeaseStart],
        events: &mut Vec<RevisionEvents>,
    ) -> Result<Reply, Stop> {
        self.ensure_term(term)?;
        let (mut ended, mut deleted) = (0, 0);
        for start in leases {
            if self.is_started_as(*start) {
                deleted += self.end_with_keys(start.id, DeleteReason::Expired, events)?;
                ended += 1;
            }
        }
        Ok(Reply::LeasesExpired { leases: ended, deleted, revision: self.root.numbers.revision })
    }

    pub(super) fn checkpoint(&mut self, term: u64, leases: &[LeaseRemaining]) -> Result<Reply, Stop> {
        self.ensure_term(term)?;
        let mut noted = 0;
        for LeaseRemaining { start, remaining_ms } in leases {
            if !self.is_started_as(*start) {
                continue;
            }
            if let Some(lease) = self.root.leases.get(start.id) {
                self.put_lease(start.id, Lease { remaining_ms: Some(*remaining_ms), ..lease });
                noted += 1;
            }
        }
        Ok(Reply::LeasesCheckpointed { leases: noted })
    }

    pub(super) fn set_ttl(&mut self, key: &Bytes, id: LeaseId, ttl_ms: u64) -> Result<Reply, Stop> {
        let revision = self.root.numbers.revision;
        let current = self.lease_of(key)?;
        match self.root.leases.get(current) {
            Some(lease) if lease.implicit => {
                self.start_lease(current, ttl_ms, None, true);
                Ok(Reply::Ttl { lease: current, ttl_ms, revision })
            }
            Some(_) => Err(Rejection::SharedLease { key: key.clone(), lease: current }.into()),
            None => {
                self.ensure_room(LEASE_BYTES)?;
                self.hang(key, LeaseChoice::Implicit { id, ttl_ms })?;
                Ok(Reply::Ttl { lease: id, ttl_ms, revision })
            }
        }
    }

    pub(super) fn clear_ttl(&mut self, key: &Bytes) -> Result<Reply, Stop> {
        self.lease_of(key)?;
        self.hang(key, LeaseChoice::Detach)?;
        Ok(Reply::Ttl { lease: 0, ttl_ms: 0, revision: self.root.numbers.revision })
    }

    /// 0 if it has none.
    fn lease_of(&self, key: &Bytes) -> Result<LeaseId, Rejection> {
        let live = self.root.index.get(key).filter(|key| key.head.is_live());
        live.map(|key| key.head.lease).ok_or_else(|| Rejection::KeyNotFound { key: key.clone() })
    }

    fn hang(&mut self, key: &Bytes, choice: LeaseChoice) -> Result<(), Stop> {
        let mut work = Work::begin(self);
        match work.hang(key, choice) {
            Ok(()) => {
                work.commit();
                Ok(())
            }
            Err(stop) => {
                work.abort();
                Err(stop)
            }
        }
    }
}

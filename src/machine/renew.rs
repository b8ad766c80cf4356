//! A restored state as the beginning of another history.
//!
//! Invariants: the revision rises past everything the former history can have reached, and all below
//! counts as compacted, so that whoever remembers one of its revisions is refused instead of waiting
//! in it; leases go with their keys, and idempotency records and tokens go, since nobody may own by a backup;
//! every other key keeps its value, revisions and version.

use super::apply::{Applied, LeaseChange, Outcome};
use super::writer::Machine;
use crate::model::{Batch, Caller, Command, DeleteReason, Fault, LogPosition, Proposal, Reply, Revision, limits};
use bytes::Bytes;

impl Machine {
    /// Ends what must not outlive its history, then stands at `at` in a log of `membership`, with a
    /// revision raised by `bump`, which it answers. Before anything was applied to this machine.
    ///
    /// # Errors
    /// A fault of the block store, or if the revision would not fit.
    pub fn renew(&mut self, bump: Revision, at: LogPosition, membership: Bytes) -> Result<Revision, Fault> {
        self.end_leases()?;
        let root = &mut self.root;
        root.idempotency.clear(&mut root.sum);
        root.auth.drop_tokens(&mut root.sum);
        let revision = root.numbers.revision.checked_add(bump).filter(|revision| *revision <= limits::REVISION_MAX);
        let revision = revision.ok_or_else(|| Fault::Invariant("the revision cannot be raised any further".into()))?;
        root.numbers.revision = revision;
        root.numbers.compacted = revision;
        root.timeline.release(revision, revision);
        root.applied = Some(at);
        root.membership = Some((Some(at), membership));
        self.publish();
        Ok(revision)
    }

    /// Goes on with the state of a backup, at a revision above both histories. The quota, log time, the
    /// feature level and the membership stay; users and roles are the backup's; leases, with their keys, tokens and
    /// idempotency records are dropped.
    ///
    /// # Errors
    /// As `renew`.
    pub fn succeed(&mut self, mut backup: Self, at: LogPosition, batch: &Batch) -> Result<Applied, Fault> {
        let former = &self.root;
        let (now_ms, quota_bytes) = (former.numbers.now_ms.max(batch.proposed_at_ms), former.numbers.quota_bytes);
        let (feature_level, lease_starts) = (former.numbers.feature_level, former.lease_starts);
        let auth_revision = former.auth.revision();
        let membership = former.membership.clone();
        let leases = former.leases.ids().map(|id| LeaseChange::Ended { id }).collect();
        let above = former.numbers.revision.max(backup.root.numbers.revision) + 1;
        let revision = backup.renew(above - backup.root.numbers.revision, at, Bytes::new())?;
        let root = &mut backup.root;
        root.membership = membership;
        root.auth.succeed(auth_revision, &mut root.sum);
        root.lease_starts = root.lease_starts.max(lease_starts);
        root.numbers.now_ms = root.numbers.now_ms.max(now_ms);
        root.numbers.quota_bytes = quota_bytes;
        root.numbers.feature_level = root.numbers.feature_level.max(feature_level);
        self.install(backup);
        let outcome = Outcome { result: Ok(Reply::Restored { revision }), replayed: false };
        Ok(Applied { outcomes: vec![outcome], events: Vec::new(), leases, revision })
    }

    fn end_leases(&mut self) -> Result<(), Fault> {
        let ids: Vec<_> = self.root.leases.ids().collect();
        for ids in ids.chunks(limits::BATCH_PROPOSALS_MAX) {
            let revoke = |id: &i64| Proposal {
                caller: Caller::System,
                idempotency: None,
                command: Command::LeaseRevoke { id: *id, reason: DeleteReason::LeaseRevoked },
            };
            let proposals = ids.iter().map(revoke).collect();
            let next = self.root.applied.map_or(1, |applied| applied.index + 1);
            let at = LogPosition { index: next, ..self.root.applied.unwrap_or_default() };
            self.apply(at, &Batch { proposed_at_ms: 0, wall_ms: 0, proposals })?;
        }
        Ok(())
    }
}

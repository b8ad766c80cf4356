//! The source's leases, held here under the same ids for as long as they live there.
//!
//! A copied lease begins with the whole TTL that it was granted, since that is what its owner renews it to.
//! Until the cut-over its owner renews it there, and so this does here; from then on the owner has a whole
//! TTL to come over.

use super::{Halt, Run, of_source, of_target, patiently};
use crate::client::etcd::Write;
use crate::env::Clock;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between looks at which leases are due.
const ROUND: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Leases {
    /// The TTL in seconds of each, and when it is to be renewed.
    held: BTreeMap<i64, (i64, Duration)>,
    next: Duration,
}

impl Leases {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn forget(&mut self, id: i64) {
        self.held.remove(&id);
    }

    fn hold(&mut self, id: i64, ttl: i64, now: Duration) {
        self.held.insert(id, (ttl, now + third(ttl)));
    }

    fn due(&self, now: Duration) -> bool {
        self.held.values().any(|(_, due)| *due <= now)
    }
}

fn third(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0)) / 3
}

impl Run {
    /// All leases that there are, also those that no key hangs on yet.
    pub(super) async fn take_leases(&mut self) -> Result<(), Halt> {
        for id in self.living().await? {
            self.take_lease(id).await?;
            self.renew_leases().await?;
        }
        Ok(())
    }

    async fn living(&mut self) -> Result<BTreeSet<i64>, Halt> {
        let living = patiently!(self.clock, self.source, of_source, self.source.leases())?;
        Ok(living.map_err(of_source)?.into_iter().collect())
    }

    /// Has a lease here as it is there; false if it has ended there.
    pub(super) async fn take_lease(&mut self, id: i64) -> Result<bool, Halt> {
        if self.leases.held.contains_key(&id) {
            return Ok(true);
        }
        let granted = patiently!(self.clock, self.source, of_source, self.source.granted(id))?;
        let Some(ttl) = granted.map_err(of_source)? else { return Ok(false) };
        patiently!(self.clock, self.target, of_target, self.target.grant(id, ttl))?.map_err(of_target)?;
        self.leases.hold(id, ttl, self.clock.monotonic());
        Ok(true)
    }

    /// Renews what is due and lives there; ends what has ended there.
    pub(super) async fn renew_leases(&mut self) -> Result<(), Halt> {
        let now = self.clock.monotonic();
        if now < self.leases.next || !self.leases.due(now) {
            return Ok(());
        }
        self.leases.next = now + ROUND;
        let living = self.living().await?;
        let ended: Vec<i64> = self.leases.held.keys().copied().filter(|id| !living.contains(id)).collect();
        for id in ended {
            patiently!(self.clock, self.target, of_target, self.target.revoke(id))?.map_err(of_target)?;
            self.leases.forget(id);
        }
        let due = self.leases.held.iter().filter(|(_, (_, due))| *due <= now).map(|(id, _)| *id).collect();
        self.renew(due).await
    }

    /// Gives every lease its whole TTL, for its owner to come over.
    pub(super) async fn renew_all_leases(&mut self) -> Result<(), Halt> {
        let living = self.living().await?;
        for id in &living {
            self.take_lease(*id).await?;
        }
        self.renew(living.into_iter().filter(|id| self.leases.held.contains_key(id)).collect()).await
    }

    /// After one of the leases of these writes was not known here: it has ended there, too, or another pass
    /// is needed, since keys went with it.
    pub(super) async fn drop_leases(&mut self, writes: &[Write]) -> Result<(), Halt> {
        for write in writes {
            let Write::Put { lease, .. } = write else { continue };
            if *lease != 0 && self.leases.held.remove(lease).is_some() && self.take_lease(*lease).await? {
                return Err(Halt::Again(format!("lease {lease:x} ended here before it was renewed")));
            }
        }
        Ok(())
    }

    async fn renew(&mut self, ids: Vec<i64>) -> Result<(), Halt> {
        if ids.is_empty() {
            return Ok(());
        }
        let renewed = patiently!(self.clock, self.target, of_target, self.target.keep_alive(ids.clone()))?;
        let ended = renewed.map_err(of_target)?;
        let now = self.clock.monotonic();
        for id in ids {
            if let Some((ttl, due)) = self.leases.held.get_mut(&id) {
                *due = now + third(*ttl);
            }
        }
        match ended.first() {
            // Its keys are gone with it.
            Some(id) => Err(Halt::Again(format!("lease {id:x} ended here before it was renewed"))),
            None => Ok(()),
        }
    }
}

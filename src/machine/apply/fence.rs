//! Fences: whether a claim holds, decided at the moment of the write that it guards.
//!
//! Invariant: a claim holds only while it exists, nobody of an earlier token is before it, and the
//! lease that it is attached to lives.

use super::super::Stop;
use super::super::index::Direction;
use super::super::read::{Live, Source, live_in};
use crate::model::claim::holders;
use crate::model::failure::Holder;
use crate::model::{ClaimKind, ClaimName, Fence, KeyValue, Rejection};

impl Source<'_> {
    /// # Errors
    /// `Fenced`, with who holds instead, for the first fence that does not hold.
    pub(super) fn check(&self, fences: &[Fence]) -> Result<(), Stop> {
        for fence in fences {
            let holding = self.holding(&fence.of)?;
            if !holding.iter().any(|claim| self.is(claim, fence)) {
                let holder = holding.first();
                return Err(Rejection::Fenced {
                    of: fence.of.clone(),
                    token: fence.token,
                    holder: holder.map(|claim| Holder { token: claim.create_revision, lease: claim.lease }),
                }
                .into());
            }
        }
        Ok(())
    }

    pub(super) fn fence_holds(&self, fence: &Fence) -> Result<bool, Stop> {
        Ok(self.holding(&fence.of)?.iter().any(|claim| self.is(claim, fence)))
    }

    fn is(&self, claim: &KeyValue, fence: &Fence) -> bool {
        claim.create_revision == fence.token && self.root.leases.contains(claim.lease)
    }

    /// The claims that hold, in the order of their tokens.
    fn holding(&self, of: &ClaimName) -> Result<Vec<KeyValue>, Stop> {
        let claims = live_in(self.root, &of.claims(), Direction::Forward, self.root.numbers.revision, 0);
        let key_value = |live: Live<'_>| self.key_value(live.key, live.place, of.kind != ClaimKind::Semaphore);
        if of.kind != ClaimKind::Semaphore {
            let first = claims.min_by_key(|live| live.key.head.create);
            return Ok(first.map(key_value).transpose()?.into_iter().collect());
        }
        let mut sorted = claims.map(key_value).collect::<Result<Vec<_>, Stop>>()?;
        sorted.sort_by_key(|claim| claim.create_revision);
        sorted.truncate(holders(of, self.limit(of)?, &sorted));
        Ok(sorted)
    }

    /// A semaphore's limit: the decimal text under its own key; without it nobody holds.
    fn limit(&self, of: &ClaimName) -> Result<u64, Stop> {
        let key = self.root.index.get(&of.base()).filter(|key| key.head.is_live());
        let Some(key) = key else { return Ok(0) };
        let stored = self.value(key)?;
        Ok(std::str::from_utf8(&stored).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
    }
}

//! Giving claims up, taking them away, and looking at one.

use super::place::Place;
use super::{Claim, txns};
use crate::model::{ClaimKind, ClaimName, Failure, Idempotency, LeaseId, Rejection};
use crate::service::{Answer, Context, ReadOptions, Service};
use std::time::Duration;

/// How often taking a claim away is tried while its holders change.
const BREAKS: u32 = 5;

impl Service {
    /// A lease's claim; one that waits is answered when it holds, or after `wait`.
    pub async fn claim_get(
        &self,
        context: &Context,
        read: ReadOptions,
        (of, lease): (&ClaimName, LeaseId),
        wait: Duration,
    ) -> Result<Answer<Claim>, Failure> {
        let (header, view) = self.view(context, read).await?;
        let queue = self.queue_in(&view, &context.caller, of)?;
        let claim = queue.claims.into_iter().find(|claim| claim.lease == lease);
        let claim = claim.ok_or_else(|| not_found(of, lease))?;
        if claim.held || wait.is_zero() {
            return Ok(self.answer(header, claim, false));
        }
        let place = Place {
            service: self.clone(),
            caller: context.caller.clone(),
            of: of.clone(),
            key: claim.key,
            token: claim.token,
            lease,
            own_ttl_ms: None,
            leaves: false,
        };
        let confirmed = match tokio::time::timeout(wait, place.alive(place.confirmed_turn())).await {
            Ok(confirmed) => confirmed?,
            Err(_) => place.waits()?,
        };
        Ok(self.answer(confirmed.0, confirmed.1, false))
    }

    /// Deletes a lease's claim, be it held or waiting, and ends the lease if it was made for the claim.
    pub async fn claim_release(
        &self,
        context: &Context,
        (of, lease): (&ClaimName, LeaseId),
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<()>, Failure> {
        // What this member knows already is tried first: the transaction sees whether it is still so, and whoever
        // waits for the claim need not wait for a barrier. A repetition's outcome is kept, so it has one try.
        let mut confirmed = idempotency.is_some();
        if confirmed {
            self.barrier(context).await?;
        }
        let (answer, ends) = loop {
            let (claim, ends) = {
                let view = self.newest();
                let ends = view.lease(lease).is_some_and(|lease| lease.implicit);
                (view.get(&context.caller, &of.claim(lease), 0)?, ends)
            };
            let token = match (claim, &idempotency) {
                (Some(kv), _) => kv.create_revision,
                (None, _) if !confirmed => {
                    confirmed = true;
                    self.barrier(context).await?;
                    continue;
                }
                // A repetition finds nothing and is answered what the first was.
                (None, Some(_)) => 0,
                (None, None) => return Err(not_found(of, lease)),
            };
            let txn = txns::remove(&[(of.claim(lease), token)]);
            let (answer, _) = self.claim_txn(context, txn, idempotency.clone()).await?;
            if answer.body && (token != 0 || answer.replayed) {
                break (answer, ends);
            }
            if confirmed {
                return Err(not_found(of, lease));
            }
            confirmed = true;
            self.barrier(context).await?;
        };
        // It ended with its last key; only if more was attached to it, it is still there.
        if ends && self.newest().lease(lease).is_some() {
            match self.lease_revoke(context, lease, None).await {
                Ok(_) | Err(Failure::Rejected(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(self.answer(answer.header, (), answer.replayed))
    }

    /// Takes their claims from those who hold, and answers whose they were. A semaphore that nobody
    /// claims then forgets its limit.
    pub async fn claim_break(&self, context: &Context, of: &ClaimName) -> Result<Answer<Vec<Claim>>, Failure> {
        for _ in 0..BREAKS {
            self.barrier(context).await?;
            let queue = self.queue_in(&self.newest(), &context.caller, of)?;
            let holders: Vec<Claim> = queue.holders().cloned().collect();
            if holders.is_empty() && queue.limit.is_none() {
                return Err(not_found(of, 0));
            }
            let keys: Vec<_> = holders.iter().map(|claim| (claim.key.clone(), claim.token)).collect();
            if !self.claim_txn(context, txns::remove(&keys), None).await?.0.body {
                continue;
            }
            if of.kind == ClaimKind::Semaphore {
                self.claim_txn(context, txns::forget_limit(of), None).await?;
            }
            return Ok(self.answer(self.header(), holders, false));
        }
        Err(Failure::not_proposed(crate::model::Why::Timeout))
    }
}

fn not_found(of: &ClaimName, lease: LeaseId) -> Failure {
    Rejection::ClaimNotFound { of: of.clone(), lease }.into()
}

//! What only elections have: the leader's word, and following who leads.

use super::{Claim, ClaimQueue, txns};
use crate::model::{ClaimKind, ClaimName, Failure, Idempotency, LeaseId, Rejection, Revision, Why};
use crate::service::{Answer, Context, ReadOptions, Service, timed_out};
use crate::watch::{Closed, Kinds, WatchItem, WatchSpec, Watcher};
use bytes::Bytes;
use std::time::Duration;

/// Who leads, and the revision at which that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    pub claim: Option<Claim>,
    pub revision: Revision,
}

impl Leader {
    /// Remaining time changes by itself; what counts is who leads and what it says.
    fn says_the_same(&self, other: &Self) -> bool {
        let word = |leader: &Self| leader.claim.as_ref().map(|claim| (claim.token, claim.value.clone()));
        word(self) == word(other)
    }
}

/// Follows an election: first who leads now, then every change that is there when it looks. A leader
/// that came and went in between may be passed over; the last state never is.
#[derive(Debug)]
pub struct Observer {
    service: Service,
    context: Context,
    of: ClaimName,
    watcher: Watcher,
    told: Option<Leader>,
}

impl Service {
    /// The leader publishes another value, as etcd's `Proclaim`.
    ///
    /// # Errors
    /// `NotLeader` if the claim waits, or stopped leading meanwhile.
    pub async fn election_proclaim(
        &self,
        context: &Context,
        (of, lease): (&ClaimName, LeaseId),
        value: Bytes,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<Claim>, Failure> {
        self.barrier(context).await?;
        let queue = self.queue_in(&self.newest(), &context.caller, of)?;
        let claim = queue.find(lease);
        let refused = || match claim {
            None => Failure::from(Rejection::ClaimNotFound { of: of.clone(), lease }),
            Some(_) => Rejection::NotLeader { of: of.clone() }.into(),
        };
        let token = match claim.filter(|claim| claim.held) {
            Some(claim) => claim.token,
            // A repetition is answered what the first request was, whoever leads now.
            None if idempotency.is_some() => 0,
            None => return Err(refused()),
        };
        let txn = txns::proclaim(of, (lease, token), value.clone());
        let (answer, _) = self.claim_txn(context, txn, idempotency).await?;
        let claim = claim.filter(|_| answer.body).ok_or_else(refused)?;
        Ok(self.answer(answer.header, Claim { value, ..claim.clone() }, answer.replayed))
    }

    /// The candidates; while the leader's token is `known`, only after it changed or after `wait`.
    pub async fn election_wait(
        &self,
        context: &Context,
        read: ReadOptions,
        (of, known): (&ClaimName, Option<Revision>),
        wait: Duration,
    ) -> Result<Answer<ClaimQueue>, Failure> {
        let mut watcher = self.follow_claims(of)?;
        let (mut header, mut view) = self.view(context, read).await?;
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        loop {
            let queue = self.queue_in(&view, &context.caller, of)?;
            let leader = queue.holders().next().map(|claim| claim.token);
            if leader != known || over.is_elapsed() {
                return Ok(self.answer(header, queue, false));
            }
            drop(view);
            tokio::select! {
                item = watcher.next() => ended(&item)?,
                () = &mut over => {}
            }
            view = self.newest();
            header = self.header_at(view.revision());
        }
    }

    pub async fn election_observe(
        &self,
        context: &Context,
        read: ReadOptions,
        of: &ClaimName,
    ) -> Result<Answer<Observer>, Failure> {
        let watcher = self.follow_claims(of)?;
        let (header, view) = self.view(context, read).await?;
        self.queue_in(&view, &context.caller, of)?;
        let (service, context, of) = (self.clone(), context.clone(), of.clone());
        Ok(self.answer(header, Observer { service, context, of, watcher, told: None }, false))
    }

    fn follow_claims(&self, of: &ClaimName) -> Result<Watcher, Failure> {
        debug_assert!(of.kind == ClaimKind::Election, "only elections are followed");
        let spec = WatchSpec { targets: vec![of.claims()], after: None, kinds: Kinds::ALL };
        self.inner.parts.hub.watch(spec)
    }
}

fn ended(item: &WatchItem) -> Result<(), Failure> {
    match item {
        WatchItem::Closed(Closed::Fault(fault)) => Err(fault.clone().into()),
        WatchItem::Closed(Closed::Stopping | Closed::Compacted) => Err(timed_out(Why::ShuttingDown)),
        WatchItem::Events(_) | WatchItem::Progress(_) | WatchItem::Nudged | WatchItem::Compacted { .. } => Ok(()),
    }
}

impl Observer {
    /// Who leads now, if that was not said yet; otherwise once it has changed. May be dropped and called
    /// again.
    pub async fn next(&mut self) -> Result<Leader, Failure> {
        loop {
            let view = self.service.newest();
            let queue = self.service.queue_in(&view, &self.context.caller, &self.of)?;
            let leader = Leader { claim: queue.holders().next().cloned(), revision: view.revision() };
            if self.told.as_ref().is_none_or(|told| !told.says_the_same(&leader)) {
                self.told = Some(leader.clone());
                return Ok(leader);
            }
            drop(view);
            ended(&self.watcher.next().await)?;
        }
    }

    /// For a bookmark: the newest revision that this member has applied.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.service.newest().revision()
    }
}

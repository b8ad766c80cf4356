//! Asking for a claim: at once or not at all, waiting for it, or only queueing.
//!
//! Invariant: what is proposed for a client that goes away meanwhile is taken back: the proposal runs in
//! a task of its own, and its result, unclaimed, leaves the queue.

use super::place::{Hold, Place};
use super::queue::gone;
use super::{Claim, ClaimRequest, Session, txns};
use crate::machine::View;
use crate::model::{ClaimKind, Failure, Idempotency, LeaseId, Outcome, Rejection, Reply, Revision, Txn, TxnReply};
use crate::service::{Answer, Context, Header, Service, millis, unknown_since};
use crate::telemetry::Metrics;
use std::future::Future;
use std::time::Duration;
use tokio::sync::oneshot;

/// What became of asking.
#[derive(Debug, Clone)]
pub enum Acquired {
    Held(Claim),
    Waiting(Claim),
    Refused { holder: Option<Claim>, waiting: u64, waited_ms: u64 },
}

/// A request's transaction, done.
struct Done {
    place: Place,
    /// As the transaction left it; none if a try found another's.
    claim: Option<Claim>,
    header: Header,
    replayed: bool,
}

/// Counts a waiter as long as it lives.
struct Counted(Metrics);

impl Counted {
    fn new(metrics: &Metrics) -> Self {
        metrics.claim_waiters.inc();
        Self(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.claim_waiters.dec();
    }
}

impl Service {
    /// Claims, waiting for it at most `wait`; with `wait` zero, only what can be had at once.
    ///
    /// # Errors
    /// Those of a write; `LeaseNotFound` and `ClaimNotFound` if the claim went while it waited.
    pub async fn claim_acquire(
        &self,
        context: &Context,
        request: ClaimRequest,
        wait: Duration,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<Acquired>, Failure> {
        let tries = wait.is_zero() && request.of.kind != ClaimKind::Semaphore;
        let mut done = self.ask_claim(context, request, (tries, idempotency)).await?;
        let place = &mut done.place;
        if let Some(claim) = done.claim.take_if(|claim| claim.held) {
            place.keep();
            return Ok(self.answer(done.header, Acquired::Held(claim), done.replayed));
        }
        if tries {
            let (holder, waiting) = place.others()?;
            place.keep();
            let refused = Acquired::Refused { holder, waiting, waited_ms: 0 };
            return Ok(self.answer(done.header, refused, done.replayed));
        }
        self.wait_for_turn(done, wait).await.map_err(unknown_since)
    }

    async fn wait_for_turn(&self, done: Done, wait: Duration) -> Result<Answer<Acquired>, Failure> {
        let Done { mut place, replayed, .. } = done;
        let parts = &self.inner.parts;
        let (began, _counted) = (parts.clock.monotonic(), Counted::new(&parts.metrics));
        let turn = tokio::time::timeout(wait, place.alive(place.confirmed_turn())).await;
        let waited = parts.clock.monotonic().saturating_sub(began);
        match turn {
            Ok(confirmed) => {
                let (header, claim) = confirmed?;
                place.keep();
                parts.metrics.claim_handovers.inc();
                parts.metrics.claim_wait.observe(waited.as_secs_f64());
                Ok(self.answer(header, Acquired::Held(claim), replayed))
            }
            Err(_) => {
                place.leave().await?;
                let (holder, waiting) = place.others()?;
                place.keep();
                let refused = Acquired::Refused { holder, waiting, waited_ms: millis(waited) };
                Ok(self.answer(self.header(), refused, replayed))
            }
        }
    }

    /// Queues and answers at once; the client keeps the lease alive itself.
    pub async fn claim_enqueue(
        &self,
        context: &Context,
        request: ClaimRequest,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<Acquired>, Failure> {
        let Done { mut place, claim, header, replayed } =
            self.ask_claim(context, request, (false, idempotency)).await?;
        let claim = claim.ok_or_else(not_queued)?;
        place.keep();
        let acquired = if claim.held { Acquired::Held(claim) } else { Acquired::Waiting(claim) };
        Ok(self.answer(header, acquired, replayed))
    }

    /// Claims for as long as the `Hold` is read. `wait` bounds the waiting; without it there is no bound.
    pub async fn claim_hold(
        &self,
        context: &Context,
        request: ClaimRequest,
        wait: Option<Duration>,
    ) -> Result<Answer<Result<Hold, Acquired>>, Failure> {
        let Done { mut place, claim, header, .. } = self.ask_claim(context, request, (false, None)).await?;
        let claim = claim.ok_or_else(not_queued)?;
        if !claim.held && wait.is_some_and(|wait| wait.is_zero()) {
            place.leave().await.map_err(unknown_since)?;
            let (holder, waiting) = place.others()?;
            place.keep();
            let refused = Acquired::Refused { holder, waiting, waited_ms: 0 };
            return Ok(self.answer(header, Err(refused), false));
        }
        let until = wait.map(|wait| self.inner.parts.clock.monotonic().saturating_add(wait));
        Ok(self.answer(header, Ok(Hold::new(place, claim, until)), false))
    }

    /// Proposes the request's transaction; `tries` claims only what nobody else does.
    async fn ask_claim(
        &self,
        context: &Context,
        request: ClaimRequest,
        (tries, idempotency): (bool, Option<Idempotency>),
    ) -> Result<Done, Failure> {
        if let Some(limit) = request.limit.filter(|limit| request.permits > *limit) {
            return Err(too_many_permits(limit));
        }
        let (service, context) = (self.clone(), context.clone());
        self.detached(async move { service.ask_now(&context, &request, (tries, idempotency)).await }).await
    }

    async fn ask_now(
        &self,
        context: &Context,
        request: &ClaimRequest,
        (tries, idempotency): (bool, Option<Idempotency>),
    ) -> Result<Done, Failure> {
        let (lease, own_ttl_ms) = match &request.session {
            Session::New { ttl_ms, .. } => (self.new_lease_id(), Some(*ttl_ms)),
            Session::Lease(lease) => (*lease, None),
        };
        let txn = if tries { txns::claim_if_free(request, lease) } else { txns::enqueue(request, lease) };
        let (answer, header, view) = match self.ask_and_look(context, txn, idempotency).await {
            Ok(answered) => answered,
            Err(failure) => {
                if own_ttl_ms.is_some() && matches!(failure, Failure::Unavailable { outcome: Outcome::Unknown, .. }) {
                    self.end_lease_later(context, lease);
                }
                return Err(failure);
            }
        };
        let Reply::Txn(reply) = &answer.body else {
            return Err(Failure::Fault("the answer to a claim was not kept for its repetition".to_owned()));
        };
        if request.of.kind == ClaimKind::Semaphore
            && let Some(stored) = txns::other_limit(reply)
        {
            return Err(other_limit(request, stored));
        }
        let lease = txns::lease_put(reply).unwrap_or(lease);
        let (place, claim, limit) =
            self.place(context, request, (lease, own_ttl_ms), (tries, reply), (&view, header.revision))?;
        drop(view);
        if let Some(limit) = limit.filter(|limit| request.permits > *limit) {
            place.leave().await.map_err(unknown_since)?;
            return Err(too_many_permits(limit));
        }
        Ok(Done { place, claim, header, replayed: answer.replayed })
    }

    /// The transaction's answer, and a view with the header of a revision that it can be asked for. That is
    /// the transaction's own: what this member has learned since then, of claims that have gone, nobody has
    /// confirmed, and it may be as old as the answer was on its way.
    async fn ask_and_look(
        &self,
        context: &Context,
        txn: Txn,
        idempotency: Option<Idempotency>,
    ) -> Result<(Answer<Reply>, Header, View), Failure> {
        let answer = self.txn(context, txn, idempotency).await?;
        let header = answer.header.clone();
        self.reached(header.revision, context.timeout).await.map_err(unknown_since)?;
        if !answer.replayed {
            let view = self.newest();
            if view.compacted_revision() <= header.revision {
                return Ok((answer, header, view));
            }
        }
        // What was answered once may have ended long ago.
        self.barrier(context).await.map_err(unknown_since)?;
        let view = self.newest();
        Ok((answer, self.header_at(view.revision()), view))
    }

    /// The place that a transaction was answered with, its claim at that revision, and a semaphore's limit;
    /// token 0 if a try found another's claim.
    fn place(
        &self,
        context: &Context,
        request: &ClaimRequest,
        (lease, own_ttl_ms): (LeaseId, Option<u64>),
        (tries, reply): (bool, &TxnReply),
        (view, revision): (&View, Revision),
    ) -> Result<(Place, Option<Claim>, Option<u64>), Failure> {
        let of = request.of.clone();
        let key = of.claim(lease);
        let queue = self.queue_at(view, &context.caller, &of, revision)?;
        let claim = queue.claims.into_iter().find(|claim| claim.key == key);
        let token = claim.as_ref().map_or(0, |claim| claim.token);
        // It may have gone since, as far as this member knows.
        let is_there = view.get(&context.caller, &key, 0)?.is_some_and(|kv| kv.create_revision == token);
        let refused = tries && !reply.succeeded && claim.is_none();
        if !is_there && !refused {
            return Err(gone(view, &of, lease));
        }
        let leaves = txns::made(reply, &key);
        let (service, caller) = (self.clone(), context.caller.clone());
        Ok((Place { service, caller, of, key, token, lease, own_ttl_ms, leaves }, claim, queue.limit))
    }

    /// It is not known whether this lease was granted: if it was, nobody will use it.
    fn end_lease_later(&self, context: &Context, lease: LeaseId) {
        let (service, context) = (self.clone(), context.clone());
        self.inner.parts.tasks.spawn("end a lease that nobody knows of", async move {
            if let Err(failure) = service.lease_revoke(&context, lease, None).await {
                tracing::debug!(%failure, "a lease that may have been granted was not ended; its TTL will");
            }
        });
    }

    /// Runs to its end even if whoever asked goes away.
    pub(in crate::service) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let (give, take) = oneshot::channel();
        self.inner.parts.tasks.spawn("queue a claim", async move {
            // Nobody takes it: it is dropped here, and leaves the queue.
            give.send(work.await).ok();
        });
        take.await.unwrap_or_else(|_| Err(Failure::Fault("a claim's task ended without a word".to_owned())))
    }

    pub(super) async fn claim_txn(
        &self,
        context: &Context,
        txn: Txn,
        idempotency: Option<Idempotency>,
    ) -> Result<(Answer<bool>, Revision), Failure> {
        let Answer { header, body, replayed } = self.txn(context, txn, idempotency).await?;
        let (succeeded, revision) = match body {
            Reply::Txn(TxnReply { succeeded, revision, .. }) | Reply::Outcome { succeeded, revision } => {
                (succeeded, revision)
            }
            other => return Err(Failure::Fault(format!("a transaction was answered with {other:?}"))),
        };
        self.reached(revision, context.timeout).await.map_err(unknown_since)?;
        Ok((self.answer(header, succeeded, replayed), revision))
    }
}

fn not_queued() -> Failure {
    Failure::Fault("a claim was queued and is not there".to_owned())
}

fn too_many_permits(limit: u64) -> Failure {
    let problem = format!("more than the semaphore's limit of {limit} can never be had");
    Rejection::Invalid { field: "permits".to_owned(), problem }.into()
}

fn other_limit(request: &ClaimRequest, stored: Option<u64>) -> Failure {
    match stored {
        Some(limit) => Rejection::LimitMismatch { of: request.of.clone(), limit }.into(),
        None => {
            let problem = "nobody has set this semaphore's limit yet: give one".to_owned();
            Rejection::Invalid { field: "limit".to_owned(), problem }.into()
        }
    }
}

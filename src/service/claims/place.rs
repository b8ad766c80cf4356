//! A place in a queue: waiting for one's turn, and leaving when nobody waits any more.
//!
//! Invariants: whoever drops a `Place` that it did not `keep` leaves the queue; a wait looks at the state
//! only after it has registered for the change that it waits for, so that no change falls between; the
//! lease of a claim that was made for a waiting call is kept alive by the member that serves it.

use super::queue::{Standing, gone, standing};
use super::{Claim, txns};
use crate::machine::View;
use crate::model::{Caller, ClaimName, Failure, KeyRange, LeaseId, Rejection, Revision, Why, limits};
use crate::service::{Context, Header, Service, timed_out, unknown_since};
use crate::storage::mutant::{self, Mutant};
use crate::watch::{Hub, KeyWait, Kinds, WatchItem, WatchSpec, Watcher};
use bytes::Bytes;
use std::future::Future;
use std::time::Duration;

/// Attempts to leave the queue for a client that has gone; after that the lease's TTL does it.
const WITHDRAWALS: u32 = 5;
const WITHDRAWAL_TIMEOUT: Duration = Duration::from_secs(5);
/// After an attempt to confirm a claim that found no leader.
const CONFIRM_AGAIN: Duration = Duration::from_millis(50);
const RENEW_AGAIN: Duration = Duration::from_millis(200);
/// How often a holder or waiter on a stream is told where it stands.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// A claim in its queue, on behalf of a call.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) service: Service,
    pub(super) caller: Caller,
    pub(super) of: ClaimName,
    pub(super) key: Bytes,
    pub(super) token: Revision,
    pub(super) lease: LeaseId,
    /// The TTL of a lease that was made for this claim: to be kept alive.
    pub(super) own_ttl_ms: Option<u64>,
    /// This call made the claim, so it goes with the call.
    pub(super) leaves: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.leaves {
            let (service, context) = (self.service.clone(), self.context(WITHDRAWAL_TIMEOUT));
            let (key, token) = (self.key.clone(), self.token);
            let tasks = self.service.inner.parts.tasks.clone();
            tasks.spawn("leave a queue", async move { service.withdraw(&context, &key, token).await });
        }
    }
}

impl Place {
    /// The claim outlives this call.
    pub(super) fn keep(&mut self) {
        self.leaves = false;
    }

    fn context(&self, timeout: Duration) -> Context {
        Context::new(self.caller.clone(), timeout)
    }

    /// Ends when the claim holds, or at least did when this member last looked.
    pub(super) async fn turn(&self) -> Result<(), Failure> {
        let hub = &self.service.inner.parts.hub;
        let mut own = hub.wait_key(self.key.clone())?;
        let mut before: Option<Before> = None;
        loop {
            let view = self.service.newest();
            match standing(&view, &self.caller, &self.of, (&self.key, self.token))? {
                Standing::Holds => return Ok(()),
                Standing::Gone => return Err(gone(&view, &self.of, self.lease)),
                Standing::Behind(keys) => {
                    if before.as_ref().is_none_or(|before| before.keys != keys) {
                        before = Some(Before::register(hub, &self.of, keys)?);
                        continue;
                    }
                }
            }
            drop(view);
            let running = tokio::select! {
                running = own.changed() => running,
                running = changed(&mut before) => running,
            };
            if !running {
                return Err(timed_out(Why::ShuttingDown));
            }
        }
    }

    /// Keeps the claim's own lease alive until that is refused. Never ends for another's lease.
    async fn renewals(&self) -> Failure {
        let Some(ttl_ms) = self.own_ttl_ms else { return std::future::pending().await };
        let (period, again) = (Duration::from_millis(ttl_ms / 3), Duration::from_millis(ttl_ms / 10));
        let mut pause = period;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.service.lease_keep_alive(&self.context(period), self.lease).await {
                Ok(_) => period,
                Err(refused @ Failure::Rejected(_)) => return refused,
                Err(_) => again,
            };
        }
    }

    /// Runs `wait` while the claim's own lease is kept alive.
    pub(super) async fn alive<T>(&self, wait: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            done = wait => done,
            lost = self.renewals() => Err(lost),
            () = self.service.stopping().cancelled() => Err(timed_out(Why::ShuttingDown)),
        }
    }

    /// Waits for the turn until it is confirmed: at a linearizable view the claim holds and its lease
    /// lives. That view is also what the answer is given from.
    pub(super) async fn confirmed_turn(&self) -> Result<(Header, Claim), Failure> {
        loop {
            self.turn().await?;
            match self.confirm().await {
                Ok(Some(confirmed)) => return Ok(confirmed),
                Ok(None) => {}
                // Without a leader nothing is lost yet: whoever waits has said how long.
                Err(Failure::Unavailable { .. }) if !self.service.stopping().is_cancelled() => {
                    tokio::time::sleep(CONFIRM_AGAIN).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn confirm(&self) -> Result<Option<(Header, Claim)>, Failure> {
        let context = self.context(WITHDRAWAL_TIMEOUT);
        match self.own_ttl_ms {
            _ if mutant::is_active(Mutant::ClaimNotConfirmed) => {}
            // A renewal is a barrier too, once this member has caught up with it, and gives the holder its whole TTL.
            Some(_) => {
                let kept = self.service.lease_keep_alive(&context, self.lease).await?;
                self.service.reached(kept.header.revision, WITHDRAWAL_TIMEOUT).await?;
            }
            None => self.service.barrier(&context).await?,
        }
        let view = self.service.newest();
        if view.lease(self.lease).is_none() {
            return Err(Rejection::LeaseNotFound(self.lease).into());
        }
        let (header, claim) = self.look_at(&view)?;
        Ok(claim.held.then_some((header, claim)))
    }

    /// The claim as it stands here now.
    fn look(&self) -> Result<(Header, Claim), Failure> {
        self.look_at(&self.service.newest())
    }

    /// As it stands here now; it is not said to hold, since nobody has confirmed that.
    pub(super) fn waits(&self) -> Result<(Header, Claim), Failure> {
        self.look().map(|(header, claim)| (header, Claim { held: false, ..claim }))
    }

    fn look_at(&self, view: &View) -> Result<(Header, Claim), Failure> {
        let queue = self.service.queue_in(view, &self.caller, &self.of)?;
        let claim = queue.claims.into_iter().find(|claim| claim.token == self.token);
        let claim = claim.ok_or_else(|| gone(view, &self.of, self.lease))?;
        Ok((self.service.header_at(view.revision()), claim))
    }
}

impl Place {
    /// Leaves the queue now.
    pub(super) async fn leave(&self) -> Result<(), Failure> {
        if self.leaves {
            let txn = txns::remove(&[(self.key.clone(), self.token)]);
            let answer = self.service.txn(&self.context(WITHDRAWAL_TIMEOUT), txn, None).await?;
            self.service.reached(answer.header.revision, WITHDRAWAL_TIMEOUT).await.map_err(unknown_since)?;
        }
        Ok(())
    }

    /// Who holds, and how many others wait.
    pub(super) fn others(&self) -> Result<(Option<Claim>, u64), Failure> {
        let queue = self.service.queue_in(&self.service.newest(), &self.caller, &self.of)?;
        let waiting = queue.waiters().filter(|claim| claim.token != self.token).count();
        Ok((queue.holders().next().cloned(), u64::try_from(waiting).unwrap_or(u64::MAX)))
    }
}

/// The claims before a waiter that are in its way, and the wait for one of them to be deleted.
struct Before {
    keys: Vec<Bytes>,
    wait: Wait,
}

enum Wait {
    /// Whoever is behind many others is not woken for each.
    One(KeyWait),
    Some(Box<Watcher>),
}

impl Before {
    fn register(hub: &Hub, of: &ClaimName, keys: Vec<Bytes>) -> Result<Self, Failure> {
        let wait = match &keys[..] {
            [key] => Wait::One(hub.wait_key(key.clone())?),
            keys => {
                // More than a watch follows: any deletion in the queue is looked at then.
                let some = !keys.is_empty() && keys.len() <= limits::WATCH_TARGETS_MAX;
                let targets = if some { keys.iter().cloned().map(KeyRange::key).collect() } else { vec![of.claims()] };
                let kinds = Kinds { puts: false, deletes: true };
                Wait::Some(Box::new(hub.watch(WatchSpec { targets, after: None, kinds })?))
            }
        };
        Ok(Self { keys, wait })
    }
}

/// False when the member is shutting down.
async fn changed(before: &mut Option<Before>) -> bool {
    match before.as_mut().map(|before| &mut before.wait) {
        None => std::future::pending().await,
        Some(Wait::One(wait)) => wait.changed().await,
        Some(Wait::Some(watcher)) => !matches!(watcher.next().await, WatchItem::Closed(_)),
    }
}

impl Service {
    /// Deletes a claim of a client that has gone, if it is still that claim.
    async fn withdraw(&self, context: &Context, key: &Bytes, token: Revision) {
        let mut pause = Duration::from_millis(50);
        for _ in 0..WITHDRAWALS {
            match self.txn(context, txns::remove(&[(key.clone(), token)]), None).await {
                Ok(_) | Err(Failure::Rejected(_)) => return,
                Err(failure) => tracing::debug!(%failure, "a claim could not be withdrawn yet"),
            }
            tokio::time::sleep(pause).await;
            pause *= 3;
        }
    }
}

/// A claim that lasts as long as somebody reads its steps.
#[derive(Debug)]
pub struct Hold {
    place: Place,
    /// When waiting is over, on the monotonic clock.
    until: Option<Duration>,
    held: bool,
    /// As it was made, to be said first.
    first: Option<Claim>,
    /// The last renewal found no leader: the TTL bounds how long that can go on.
    renew_soon: bool,
}

/// Where a held claim stands.
#[derive(Debug, Clone)]
pub enum HoldStep {
    Stands(Claim),
    /// The wait is over, and another holds.
    Refused {
        holder: Option<Claim>,
        waiting: u64,
    },
    /// The claim is lost, or the member is ending.
    Lost(Failure),
}

impl Hold {
    pub(super) fn new(place: Place, claim: Claim, until: Option<Duration>) -> Self {
        Self { place, until, held: claim.held, first: Some(claim), renew_soon: false }
    }

    /// The next thing to say: at once where it stands, then each change, and every few seconds the same
    /// again. Nothing follows `Refused` and `Lost`. While nobody asks, the lease is not kept alive.
    pub async fn next(&mut self) -> HoldStep {
        if let Some(claim) = self.first.take() {
            return HoldStep::Stands(claim);
        }
        let step = if self.held { self.holding().await } else { self.waiting().await };
        step.unwrap_or_else(HoldStep::Lost)
    }

    /// How long until the next word, and until the next renewal of the claim's own lease: what a holder
    /// is told is true when it is told.
    fn pause(&self) -> Duration {
        if self.renew_soon {
            return RENEW_AGAIN;
        }
        let ttl_ms = self.place.own_ttl_ms.unwrap_or(u64::MAX);
        Duration::from_millis(ttl_ms / 3).min(TOLD_EVERY)
    }

    async fn renew(&mut self) -> Result<(), Failure> {
        let Some(ttl_ms) = self.place.own_ttl_ms else { return Ok(()) };
        let within = Duration::from_millis(ttl_ms).saturating_sub(self.pause());
        let renewed = self.place.service.lease_keep_alive(&self.place.context(within), self.place.lease).await;
        self.renew_soon = matches!(renewed, Err(Failure::Unavailable { .. }));
        match renewed {
            Ok(_) | Err(Failure::Unavailable { .. }) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn holding(&mut self) -> Result<HoldStep, Failure> {
        let place = &self.place;
        let mut own = place.service.inner.parts.hub.wait_key(place.key.clone())?;
        place.look()?;
        tokio::select! {
            running = own.changed() => if !running {
                return Err(timed_out(Why::ShuttingDown));
            },
            () = tokio::time::sleep(self.pause()) => {}
            () = place.service.stopping().cancelled() => return Err(timed_out(Why::ShuttingDown)),
        }
        self.renew().await?;
        self.place.look().map(|(_, claim)| HoldStep::Stands(claim))
    }

    async fn waiting(&mut self) -> Result<HoldStep, Failure> {
        let place = &self.place;
        let now = place.service.inner.parts.clock.monotonic();
        let left = self.until.map_or(Duration::MAX, |until| until.saturating_sub(now));
        let pause = self.pause();
        tokio::select! {
            confirmed = place.confirmed_turn() => {
                let (_, claim) = confirmed?;
                self.held = true;
                place.service.inner.parts.metrics.claim_handovers.inc();
                Ok(HoldStep::Stands(claim))
            }
            () = tokio::time::sleep(pause.min(left)) => {
                if left > pause {
                    self.renew().await?;
                    return self.place.waits().map(|(_, claim)| HoldStep::Stands(claim));
                }
                place.leave().await?;
                let (holder, waiting) = place.others()?;
                Ok(HoldStep::Refused { holder, waiting })
            }
            () = place.service.stopping().cancelled() => Err(timed_out(Why::ShuttingDown)),
        }
    }
}

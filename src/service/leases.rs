//! Leases and TTLs of keys, as clients ask for them.
//!
//! Invariants: a renewal is answered only after leadership was confirmed by a round that began after the
//! request came, the lease was there in the state that round reaches, and that confirmation is younger
//! than the lease's TTL, so that the answer is true when it is given; what is left of a lease is known to
//! the leader alone.

use super::lessor::{Renewal, Told};
use super::renewals::Together;
use super::{Answer, Context, Header, ReadOptions, Service};
use crate::machine::{LeaseInfo, View};
use crate::model::{
    Caller, Command, Failure, Idempotency, KeyRange, LeaseId, LeaseLabel, Outcome, RangeOp, Rejection, Reply, Why,
    limits,
};
use crate::storage::mutant::{self, Mutant};
use bytes::Bytes;
use std::time::Duration;

#[derive(Debug, Clone, Default)]
pub struct LeaseGrant {
    /// `None` chooses a random one.
    pub id: Option<LeaseId>,
    pub ttl_ms: u64,
    pub label: LeaseLabel,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseState {
    pub id: LeaseId,
    pub ttl_ms: u64,
    pub remaining_ms: u64,
    /// Of one key, by a put with a TTL.
    pub implicit: bool,
    pub label: LeaseLabel,
    /// If they were asked for: those that the caller may read, up to the limit.
    pub keys: Option<Vec<Bytes>>,
}

#[derive(Debug, Clone, Default)]
pub struct LeaseList {
    /// Only leases whose name begins so.
    pub name_prefix: String,
    /// Also those that puts with a TTL made.
    pub implicit: bool,
    /// From this id on.
    pub from: LeaseId,
    pub limit: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeasePage {
    pub items: Vec<LeaseState>,
    /// Where the next page begins. A page may hold less than its limit and still have a next.
    pub next: Option<LeaseId>,
}

/// A key's lease and time; `lease` is 0 if it has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyTtl {
    pub lease: LeaseId,
    pub ttl_ms: u64,
    pub remaining_ms: u64,
}

fn odd<T>(reply: &Reply) -> Result<T, Failure> {
    Err(Failure::Fault(format!("a command about leases was answered with {reply:?}")))
}

impl Service {
    /// An id for a lease that does not exist, almost certainly; apply refuses one that does.
    #[must_use]
    pub fn new_lease_id(&self) -> LeaseId {
        self.inner.parts.entropy.positive_id()
    }

    pub async fn lease_grant(
        &self,
        context: &Context,
        grant: LeaseGrant,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<LeaseState>, Failure> {
        let LeaseGrant { id, ttl_ms, label } = grant;
        let id = id.unwrap_or_else(|| self.new_lease_id());
        let command = if label == LeaseLabel::default() {
            Command::LeaseGrant { id, ttl_ms }
        } else {
            Command::LeaseGrantLabelled { id, ttl_ms, label: label.clone() }
        };
        self.ensure_disk_room()?;
        let Answer { header, body, replayed } = self.propose(context, command, idempotency).await?;
        // A replay answers with the id of the first request.
        let Reply::LeaseGranted { id, ttl_ms, .. } = body else { return odd(&body) };
        let body = LeaseState { id, ttl_ms, remaining_ms: ttl_ms, implicit: false, label, keys: None };
        Ok(self.answer(header, body, replayed))
    }

    /// Ends a lease and deletes its keys; answers how many.
    pub async fn lease_revoke(
        &self,
        context: &Context,
        id: LeaseId,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<u64>, Failure> {
        let command = Command::LeaseRevoke { id, reason: crate::model::DeleteReason::LeaseRevoked };
        let Answer { header, body, replayed } = self.propose(context, command, idempotency).await?;
        match body {
            Reply::LeaseRevoked { deleted, .. } => Ok(self.answer(header, deleted, replayed)),
            other => odd(&other),
        }
    }

    /// Gives a lease its whole TTL again, which it answers, counted from some moment after the call.
    ///
    /// # Errors
    /// `LeaseNotFound`: it has ended, and with it its keys.
    pub async fn lease_keep_alive(&self, context: &Context, id: LeaseId) -> Result<Answer<u64>, Failure> {
        if self.inner.parts.consensus.leading().borrow().is_none() {
            return self.keep_alive_elsewhere(context, id).await;
        }
        match self.keep_alive_here(context, id).await {
            // It has lost the lead meanwhile.
            Err(Failure::Unavailable { why: Why::NoLeader, outcome: Outcome::NotProposed }) => {
                self.keep_alive_elsewhere(context, id).await
            }
            settled => settled,
        }
    }

    /// As the leader.
    pub(super) async fn keep_alive_here(&self, context: &Context, id: LeaseId) -> Result<Answer<u64>, Failure> {
        let clock = &self.inner.parts.clock;
        let until = clock.monotonic().saturating_add(context.timeout);
        // Only who has to wait pays for being told.
        let mut settled = None;
        loop {
            let begun = clock.monotonic();
            let context = Context { timeout: until.saturating_sub(begun), ..context.clone() };
            if context.timeout.is_zero() {
                return Err(Failure::not_proposed(Why::Timeout));
            }
            if let Some(settled) = &mut settled {
                tokio::sync::watch::Receiver::mark_unchanged(settled);
            }
            let renewal = self.renew(&context, id).await?;
            match renewal {
                Kept::Until { ttl_ms, header } => {
                    let confirmed = clock.monotonic().saturating_sub(begun);
                    if is_in_time(confirmed, ttl_ms) {
                        self.inner.parts.metrics.lease_keepalives.inc();
                        return Ok(self.answer(header, ttl_ms, false));
                    }
                }
                Kept::Again => {}
                Kept::NotYet => match &mut settled {
                    Some(settled) => self.until_settled(settled, context.timeout).await?,
                    // What is settled from here on is told; what was before shows when it is asked again.
                    None => settled = Some(self.inner.parts.lessor.settled()),
                },
            }
        }
    }

    async fn until_settled(
        &self,
        settled: &mut tokio::sync::watch::Receiver<u64>,
        within: Duration,
    ) -> Result<(), Failure> {
        tokio::select! {
            waited = tokio::time::timeout(within, settled.changed()) => match waited {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(Failure::not_proposed(Why::ShuttingDown)),
                Err(_) => Err(Failure::not_proposed(Why::Timeout)),
            },
            () = self.stopping().cancelled() => Err(Failure::not_proposed(Why::ShuttingDown)),
        }
    }

    /// As the leader, for those who asked another member.
    pub(super) async fn keep_alive_together(
        &self,
        asked: &[(Caller, LeaseId)],
        timeout: Duration,
    ) -> Result<Together, Failure> {
        let parts = &self.inner.parts;
        let begun = parts.clock.monotonic();
        self.confirm_lead(timeout).await?;
        let view = self.newest();
        let renew = |(caller, id): &(Caller, LeaseId)| {
            let lease = view.lease(*id)?;
            view.allows(caller, &Command::LeaseRenew { id: *id }).ok()?;
            let renewed = parts.lessor.renew(*id, lease.ttl_ms);
            matches!(renewed, Told::Known(Renewal::Renewed)).then_some(lease.ttl_ms)
        };
        let renewed: Vec<Option<u64>> = asked.iter().map(renew).collect();
        let confirmed = parts.clock.monotonic().saturating_sub(begun);
        let counts = renewed.into_iter().map(|ttl_ms| ttl_ms.filter(|ttl_ms| is_in_time(confirmed, *ttl_ms)));
        let counts: Vec<Option<u64>> = counts.collect();
        let count = counts.iter().flatten().count();
        parts.metrics.lease_keepalives.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
        Ok((counts, view.revision()))
    }

    async fn confirm_lead(&self, timeout: Duration) -> Result<(), Failure> {
        if mutant::is_active(Mutant::KeepAliveWithoutQuorum) {
            return Ok(());
        }
        self.inner.parts.consensus.leader_barrier(timeout).await
    }

    async fn renew(&self, context: &Context, id: LeaseId) -> Result<Kept, Failure> {
        self.confirm_lead(context.timeout).await?;
        let view = self.newest();
        let Some(lease) = view.lease(id) else { return Err(Rejection::LeaseNotFound(id).into()) };
        view.allows(&context.caller, &Command::LeaseRenew { id })?;
        match self.inner.parts.lessor.renew(id, lease.ttl_ms) {
            Told::Known(Renewal::Renewed) => {
                Ok(Kept::Until { ttl_ms: lease.ttl_ms, header: self.header_at(view.revision()) })
            }
            Told::Known(Renewal::MustLog) => {
                let answer = self.propose(context, Command::LeaseRenew { id }, None).await?;
                let Reply::LeaseRenewed { ttl_ms, .. } = answer.body else { return odd(&answer.body) };
                Ok(Kept::Until { ttl_ms, header: answer.header })
            }
            // In the view and unknown: its end, or its grant, is being told to the lessor right now.
            Told::Known(Renewal::Unknown) => {
                tokio::task::yield_now().await;
                Ok(Kept::Again)
            }
            Told::Known(Renewal::Ending) | Told::NotYet => Ok(Kept::NotYet),
            // Elected just now, and the lessor is about to be told.
            Told::Asleep if self.leads() => Ok(Kept::NotYet),
            Told::Asleep => Err(elsewhere()),
        }
    }

    /// A lease with what is left of it, and, if they are asked for, at most so many of its keys.
    pub async fn lease_info(
        &self,
        context: &Context,
        read: ReadOptions,
        id: LeaseId,
        keys: Option<usize>,
    ) -> Result<Answer<LeaseState>, Failure> {
        let (header, view) = self.view(context, read).await?;
        let Some(lease) = view.lease(id) else { return Err(Rejection::LeaseNotFound(id).into()) };
        let mut body = Self::lease_state(lease);
        self.fill_left(context, [(id, &mut body.remaining_ms)]).await?;
        if let Some(limit) = keys {
            body.keys = Some(view.lease_keys(&context.caller, id, limit));
        }
        Ok(self.answer(header, body, false))
    }

    pub async fn leases(
        &self,
        context: &Context,
        read: ReadOptions,
        list: LeaseList,
    ) -> Result<Answer<LeasePage>, Failure> {
        let (header, view) = self.view(context, read).await?;
        let scan = usize::try_from(limits::LIST_PAGE_MAX).unwrap_or(usize::MAX);
        let mut found = view.leases(list.from, scan + 1).into_iter();
        let mut page = LeasePage::default();
        for (scanned, lease) in found.by_ref().enumerate() {
            if scanned == scan || page.items.len() == list.limit {
                page.next = Some(lease.id);
                break;
            }
            if list.shows(&lease) {
                page.items.push(Self::lease_state(lease));
            }
        }
        self.fill_left(context, page.items.iter_mut().map(|item| (item.id, &mut item.remaining_ms))).await?;
        Ok(self.answer(header, page, false))
    }

    /// With all of its TTL left, until the time is filled in.
    fn lease_state(lease: LeaseInfo) -> LeaseState {
        let LeaseInfo { id, ttl_ms, implicit, label, .. } = lease;
        let label = label.as_deref().cloned().unwrap_or_default();
        LeaseState { id, ttl_ms, remaining_ms: ttl_ms, implicit, label, keys: None }
    }

    /// Replaces the TTLs of leases by what is left of them; elsewhere than on the leader it is asked.
    async fn fill_left(
        &self,
        context: &Context,
        leases: impl IntoIterator<Item = (LeaseId, &mut u64)>,
    ) -> Result<(), Failure> {
        let mut unknown = Vec::new();
        for (id, left) in leases {
            match self.left_ms(id, *left) {
                Some(known) => *left = known,
                None => unknown.push((id, left)),
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let told = self.left_elsewhere(context, unknown.iter().map(|(id, _)| *id).collect()).await?;
        for ((_, left), told) in unknown.into_iter().zip(told) {
            *left = told.unwrap_or(0).min(*left);
        }
        Ok(())
    }

    /// What is left of a lease with this TTL: right after a change of leaders all of it. `None` if
    /// another member counts it.
    fn left_ms(&self, id: LeaseId, ttl_ms: u64) -> Option<u64> {
        match self.inner.parts.lessor.left_ms(id) {
            Told::Known(left_ms) => Some(left_ms.unwrap_or(0).min(ttl_ms)),
            Told::NotYet => Some(ttl_ms),
            Told::Asleep if self.leads() => Some(ttl_ms),
            Told::Asleep => None,
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.inner.parts.consensus.state().is_leader
    }

    /// The TTL of a lease as it is here, without any barrier; for showing it with a key.
    #[must_use]
    pub fn lease_ttl_ms(&self, id: LeaseId) -> Option<u64> {
        if id == 0 { None } else { self.newest().lease(id).map(|lease| lease.ttl_ms) }
    }

    /// Whether a client granted this lease and it is there, as far as this member knows: without any barrier.
    #[must_use]
    pub fn lease_is_shared(&self, id: LeaseId) -> bool {
        id != 0 && self.newest().lease(id).is_some_and(|lease| !lease.implicit)
    }

    /// What is left of a lease as far as this member knows; for showing it with a key.
    #[must_use]
    pub fn lease_left_ms(&self, id: LeaseId) -> Option<u64> {
        let ttl_ms = self.lease_ttl_ms(id)?;
        self.left_ms(id, ttl_ms)
    }

    pub async fn ttl(&self, context: &Context, read: ReadOptions, key: Bytes) -> Result<Answer<KeyTtl>, Failure> {
        let (header, view) = self.view(context, read).await?;
        let range = RangeOp { keys_only: true, ..RangeOp::newest(KeyRange::key(key.clone())) };
        let found = view.range(&context.caller, &range)?;
        let Some(kv) = found.kvs.first() else { return Err(Rejection::KeyNotFound { key }.into()) };
        let mut body = Self::key_ttl(&view, kv.lease);
        if body.ttl_ms > 0 {
            self.fill_left(context, [(body.lease, &mut body.remaining_ms)]).await?;
        }
        Ok(self.answer(header, body, false))
    }

    fn key_ttl(view: &View, lease: LeaseId) -> KeyTtl {
        match view.lease(lease) {
            Some(LeaseInfo { id, ttl_ms, .. }) => KeyTtl { lease: id, ttl_ms, remaining_ms: ttl_ms },
            None => KeyTtl::default(),
        }
    }

    /// Sets or starts again the TTL of a key that exists: no revision, no event.
    ///
    /// # Errors
    /// `SharedLease` if the key is on a lease that was granted by itself.
    pub async fn ttl_set(
        &self,
        context: &Context,
        key: Bytes,
        ttl_ms: u64,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<KeyTtl>, Failure> {
        let command = Command::TtlSet { key, id: self.new_lease_id(), ttl_ms };
        self.ensure_disk_room()?;
        self.change_ttl(context, command, idempotency).await
    }

    /// The key stays, whatever becomes of the lease it was on.
    pub async fn ttl_clear(
        &self,
        context: &Context,
        key: Bytes,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<KeyTtl>, Failure> {
        self.change_ttl(context, Command::TtlClear { key }, idempotency).await
    }

    async fn change_ttl(
        &self,
        context: &Context,
        command: Command,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<KeyTtl>, Failure> {
        let Answer { header, body, replayed } = self.propose(context, command, idempotency).await?;
        let Reply::Ttl { lease, ttl_ms, .. } = body else { return odd(&body) };
        Ok(self.answer(header, KeyTtl { lease, ttl_ms, remaining_ms: ttl_ms }, replayed))
    }
}

/// What became of a renewal.
enum Kept {
    Until {
        ttl_ms: u64,
        header: Header,
    },
    /// The lease's end, or who counts its time, is being settled.
    NotYet,
    Again,
}

/// Whether a lead that was confirmed after so long still tells of the lease: after a standstill another member may
/// lead, and the lease may have ended there.
fn is_in_time(confirmed: Duration, ttl_ms: u64) -> bool {
    confirmed < Duration::from_millis(ttl_ms) / 3
}

/// Only the leader counts time.
fn elsewhere() -> Failure {
    Failure::not_proposed(Why::NoLeader)
}

impl LeaseList {
    fn shows(&self, lease: &LeaseInfo) -> bool {
        let name = lease.label.as_ref().and_then(|label| label.name.as_deref()).unwrap_or_default();
        (self.implicit || !lease.implicit) && name.starts_with(&self.name_prefix)
    }
}

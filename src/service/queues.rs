//! Queues of keys on leases below any name, as etcd's lock and election services make them:
//! `<name>/<lease in hex>`, in the order of their create revisions, the first one holding.
//!
//! Claims are such queues, too, so that whoever locks `_tenure/locks/deploy` here and whoever asks
//! `claims` for the lock `deploy` exclude each other. Invariants: nobody is told that it is first unless it was when
//! its own write was applied, or that was confirmed later at a linearizable view, lease included; an entry that a
//! call made for itself goes when the call does.

use super::{Answer, Context, Header, LeaseGrant, Service, timed_out, unknown_since};
use crate::model::{
    Compare, CompareOp, CompareTarget, Failure, KeyRange, KeyValue, LeaseChoice, LeaseId, Op, OpReply, PutOp, RangeOp,
    RangeSort, Rejection, Reply, Revision, SortOrder, Txn, Why,
};
use crate::watch::{Closed, Kinds, WatchItem, WatchSpec, Watcher};
use bytes::Bytes;
use std::time::Duration;

/// For taking back what a call that went away has queued; after that the lease's TTL does it.
const WITHDRAWAL: Duration = Duration::from_secs(5);
/// A lease is renewed this often while its entry waits, or more often if its TTL asks for it.
const RENEW_AT_MOST: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub struct QueueRequest {
    pub name: Bytes,
    /// Whose the entry is; `None` has one granted.
    pub lease: Option<LeaseId>,
    /// Of a lease that is granted.
    pub ttl_ms: u64,
    /// What an entry is to hold, also one that is there already; `None` holds nothing and changes nothing.
    pub value: Option<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueEntry {
    pub key: Bytes,
    /// The revision that the entry was created at.
    pub token: Revision,
    pub lease: LeaseId,
}

/// Follows who is first.
#[derive(Debug)]
pub struct QueueObserver {
    service: Service,
    context: Context,
    range: KeyRange,
    watcher: Watcher,
    told: Option<(Bytes, Revision)>,
}

/// Takes the entry back unless the call ends well.
struct Withdrawal {
    service: Service,
    context: Context,
    entry: Option<QueueEntry>,
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else { return };
        let (service, context) = (self.service.clone(), self.context.clone());
        self.service.inner.parts.tasks.spawn("leave a queue", async move {
            if let Err(failure) = service.queue_leave(&context, &entry).await {
                tracing::debug!(%failure, "an entry of a call that went away was not taken back; its lease's end will");
            }
        });
    }
}

/// What is below a name.
fn below(name: &Bytes) -> KeyRange {
    let mut start = name.to_vec();
    start.push(b'/');
    KeyRange::prefix(start)
}

/// The first or the last of a queue, created at most at some revision.
fn end_of(range: KeyRange, order: SortOrder, created_at_most: Revision) -> RangeOp {
    let max_create_revision = created_at_most;
    RangeOp { sort: RangeSort::Create, order, limit: 1, max_create_revision, ..RangeOp::newest(range) }
}

fn created(key: &Bytes, revision: Revision) -> Compare {
    Compare { range: KeyRange::key(key.clone()), op: CompareOp::Equal, target: CompareTarget::CreateRevision(revision) }
}

fn put(key: &Bytes, value: Bytes, lease: LeaseChoice) -> Op {
    Op::Put(PutOp { key: key.clone(), value, content_type: None, lease, prev_kv: false, ignore_value: false })
}

impl Service {
    /// Queues if the lease has no entry yet, and answers once it is the first. There is no bound on the
    /// waiting: whoever drops the call leaves the queue.
    ///
    /// # Errors
    /// Those of a write; `LeaseNotFound` and `KeyNotFound` if the entry went while it waited.
    pub async fn queue_enter(&self, context: &Context, request: QueueRequest) -> Result<Answer<QueueEntry>, Failure> {
        let range = below(&request.name);
        let (service, own) = (self.clone(), context.clone());
        // In a task of its own: what is queued for a call that went away meanwhile is taken back.
        let (entry, mut guard, at) = self.detached(async move { service.queue_up(&own, request).await }).await?;
        let header = tokio::select! {
            turn = self.turn(context, &range, (&entry, at)) => turn.map_err(unknown_since)?,
            failure = self.renewing(context, entry.lease) => return Err(failure),
        };
        guard.entry = None;
        Ok(self.answer(header, entry, false))
    }

    /// The entry, who takes it back, and the revision at which this was answered.
    async fn queue_up(
        &self,
        context: &Context,
        request: QueueRequest,
    ) -> Result<(QueueEntry, Withdrawal, Revision), Failure> {
        let lease = match request.lease {
            Some(lease) => lease,
            None => {
                let grant = LeaseGrant { ttl_ms: request.ttl_ms, ..LeaseGrant::default() };
                self.lease_grant(context, grant, None).await?.body.id
            }
        };
        let key = Bytes::from([&below(&request.name).start[..], format!("{lease:x}").as_bytes()].concat());
        let value = request.value.clone().unwrap_or_default();
        let txn = Txn {
            compares: vec![created(&key, 0)],
            success: vec![put(&key, value.clone(), LeaseChoice::Attach(lease))],
            failure: vec![Op::Range(RangeOp::newest(KeyRange::key(key.clone())))],
        };
        let Reply::Txn(reply) = self.txn(context, txn, None).await?.body else { return Err(odd()) };
        let withdrawal = Context::new(context.caller.clone(), WITHDRAWAL);
        let mut guard = Withdrawal { service: self.clone(), context: withdrawal, entry: None };
        if reply.succeeded {
            let entry = QueueEntry { key, token: reply.revision, lease };
            guard.entry = Some(entry.clone());
            self.reached(reply.revision, context.timeout).await.map_err(unknown_since)?;
            return Ok((entry, guard, reply.revision));
        }
        self.reached(reply.revision, context.timeout).await?;
        // It was queued by another call, which it belongs to.
        let Some(OpReply::Range(found)) = reply.results.first() else { return Err(odd()) };
        let kv = found.kvs.first().ok_or_else(odd)?;
        let entry = QueueEntry { key, token: kv.create_revision, lease };
        let rewrites = request.value.is_some() && kv.value != value;
        if rewrites && !self.queue_rewrite(context, &entry, value).await?.body {
            return Err(gone(&entry));
        }
        Ok((entry, guard, reply.revision))
    }

    /// `at` is the revision of an answer about the entry, which is applied here.
    async fn turn(
        &self,
        context: &Context,
        range: &KeyRange,
        (entry, at): (&QueueEntry, Revision),
    ) -> Result<Header, Failure> {
        let hub = &self.inner.parts.hub;
        let mut own = hub.wait_key(entry.key.clone())?;
        let mut before = None;
        let earlier = end_of(range.clone(), SortOrder::Descending, entry.token - 1);
        // The answer is as good as a barrier for what was so at its revision. What this member has learned since then,
        // of entries that have gone, nobody has confirmed, and it may be as old as the answer was on its way.
        let mut confirmed = {
            let view = self.newest();
            let then = RangeOp { revision: at, ..earlier.clone() };
            view.compacted_revision() <= at && view.range(&context.caller, &then)?.kvs.is_empty()
        };
        loop {
            let view = self.newest();
            let there = view.get(&context.caller, &entry.key, 0)?;
            if there.is_none_or(|kv| kv.create_revision != entry.token) {
                return Err(gone(entry));
            }
            let Some(earlier) = view.range(&context.caller, &earlier)?.kvs.into_iter().next() else {
                if !confirmed {
                    drop(view);
                    self.barrier(context).await?;
                    confirmed = true;
                    continue;
                }
                return match view.lease(entry.lease) {
                    Some(_) => Ok(self.header_at(view.revision())),
                    None => Err(Rejection::LeaseNotFound(entry.lease).into()),
                };
            };
            drop(view);
            let waited = match &mut before {
                Some((key, waited)) if *key == earlier.key => waited,
                // Registered first, then looked again: no change falls between.
                _ => {
                    before = Some((earlier.key.clone(), hub.wait_key(earlier.key)?));
                    continue;
                }
            };
            let running = tokio::select! {
                running = waited.changed() => running,
                running = own.changed() => running,
            };
            if !running {
                return Err(timed_out(Why::ShuttingDown));
            }
            confirmed = false;
        }
    }

    /// Keeps a waiting entry's lease alive until that is refused.
    async fn renewing(&self, context: &Context, lease: LeaseId) -> Failure {
        loop {
            let ttl = Duration::from_millis(self.lease_ttl_ms(lease).unwrap_or_default());
            tokio::time::sleep((ttl / 3).min(RENEW_AT_MOST)).await;
            // Otherwise nobody leads just now: the lease does not run out meanwhile.
            if let Err(refused @ Failure::Rejected(_)) = self.lease_keep_alive(context, lease).await {
                return refused;
            }
        }
    }

    /// Writes another value into an entry; false if it is not there any more.
    pub async fn queue_rewrite(
        &self,
        context: &Context,
        entry: &QueueEntry,
        value: Bytes,
    ) -> Result<Answer<bool>, Failure> {
        let lease = if entry.lease == 0 { LeaseChoice::Keep } else { LeaseChoice::Attach(entry.lease) };
        let success = vec![put(&entry.key, value, lease)];
        self.queue_txn(context, Txn { compares: vec![created(&entry.key, entry.token)], success, failure: Vec::new() })
            .await
    }

    /// Deletes an entry if it is still that one.
    pub async fn queue_leave(&self, context: &Context, entry: &QueueEntry) -> Result<Answer<bool>, Failure> {
        let compares = vec![created(&entry.key, entry.token)];
        let success = vec![Op::Delete { range: KeyRange::key(entry.key.clone()), prev_kv: false }];
        self.queue_txn(context, Txn { compares, success, failure: Vec::new() }).await
    }

    async fn queue_txn(&self, context: &Context, txn: Txn) -> Result<Answer<bool>, Failure> {
        let Answer { header, body, replayed } = self.txn(context, txn, None).await?;
        let Reply::Txn(reply) = body else { return Err(odd()) };
        Ok(self.answer(header, reply.succeeded, replayed))
    }

    /// The first entry of a queue.
    pub async fn queue_first(&self, context: &Context, name: Bytes) -> Result<Answer<Option<KeyValue>>, Failure> {
        self.barrier(context).await?;
        let view = self.newest();
        let first = view.range(&context.caller, &end_of(below(&name), SortOrder::Ascending, 0))?.kvs.into_iter().next();
        Ok(self.answer(self.header_at(view.revision()), first, false))
    }

    /// Follows who is first. Who came and went between two looks may be passed over; the last state never is.
    pub fn queue_observe(&self, context: &Context, name: Bytes) -> Result<QueueObserver, Failure> {
        let range = below(&name);
        self.newest().allows(&context.caller, &range)?;
        let spec = WatchSpec { targets: vec![range.clone()], after: None, kinds: Kinds::ALL };
        let watcher = self.inner.parts.hub.watch(spec)?;
        Ok(QueueObserver { service: self.clone(), context: context.clone(), range, watcher, told: None })
    }
}

impl QueueObserver {
    /// The first entry, if that was not said yet; otherwise once there is another, or it says something else.
    ///
    /// # Errors
    /// At the end of this member, or if it cannot read.
    pub async fn next(&mut self) -> Result<(Header, KeyValue), Failure> {
        loop {
            let view = self.service.newest();
            let op = end_of(self.range.clone(), SortOrder::Ascending, 0);
            let first = view.range(&self.context.caller, &op)?.kvs.into_iter().next();
            let revision = view.revision();
            drop(view);
            if let Some(kv) = first {
                let at = (kv.key.clone(), kv.mod_revision);
                if self.told.as_ref() != Some(&at) {
                    self.told = Some(at);
                    return Ok((self.service.header_at(revision), kv));
                }
            }
            match self.watcher.next().await {
                WatchItem::Closed(Closed::Fault(fault)) => return Err(fault.into()),
                WatchItem::Closed(Closed::Stopping | Closed::Compacted) => return Err(timed_out(Why::ShuttingDown)),
                WatchItem::Events(_) | WatchItem::Progress(_) | WatchItem::Nudged | WatchItem::Compacted { .. } => {}
            }
        }
    }
}

fn gone(entry: &QueueEntry) -> Failure {
    Rejection::KeyNotFound { key: entry.key.clone() }.into()
}

fn odd() -> Failure {
    Failure::Fault("a queue's transaction was answered with something else".to_owned())
}

//! What all clients have in common: whom they ask, how they record it, and the operations they make.

use super::ledger::{Branch, Fate, Ledger, Read, Write};
use super::net::{Home, Net, Reach};
use super::rng::Rng;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tenure::model::{
    Caller, Compare, CompareOp, CompareTarget, Failure, Idempotency, KeyRange, KeyValue, LeaseChoice, Op, Outcome,
    PutOp, RangeOp, Reply, Revision, Txn,
};
use tenure::raft::MemberId;
use tenure::service::{Answer, Consistency, Context, ReadOptions};

/// Above every timeout that a request is sent with.
const PATIENCE: Duration = Duration::from_secs(9);

pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) net: Net,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) rng: Rng,
    pub(crate) ending: Arc<AtomicBool>,
    asked: u64,
}

/// What became of a request.
pub(crate) enum Settled<T> {
    Answer(Answer<T>),
    Refused,
    No,
    Unknown,
}

impl Client {
    pub(crate) fn new(name: String, (net, ledger): (&Net, &Arc<Ledger>), rng: Rng, ending: &Arc<AtomicBool>) -> Self {
        Self { name, net: net.clone(), ledger: ledger.clone(), rng, ending: ending.clone(), asked: 0 }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ending.load(Ordering::Relaxed) || self.ledger.failed()
    }

    pub(crate) async fn think(&mut self, low_ms: u64, high_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.rng.between(low_ms, high_ms))).await;
    }

    /// A name that is used once.
    pub(crate) fn fresh(&mut self, what: &str) -> String {
        self.asked += 1;
        format!("{what} {}-{}", self.name, self.asked)
    }

    pub(crate) fn anyone(&mut self) -> Option<MemberId> {
        let running = self.net.running();
        self.rng.pick(&running).copied()
    }

    pub(crate) fn context(&mut self) -> Context {
        Context::new(Caller::Anonymous, Duration::from_millis(self.rng.between(300, 2_500)))
    }

    /// Asks a member, and notes what an answer proves of the store's revision.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        to: MemberId,
        ask: impl FnOnce(Home) -> BoxFuture<'static, Result<Answer<T>, Failure>> + Send + 'static,
    ) -> Settled<T> {
        match self.net.ask(to, PATIENCE, ask).await {
            Reach::Got(Ok(answer)) => Settled::Answer(answer),
            Reach::Got(Err(Failure::Rejected(_))) => Settled::Refused,
            Reach::Got(Err(Failure::Unavailable { outcome: Outcome::NotProposed, .. })) | Reach::NotSent => Settled::No,
            Reach::Got(Err(Failure::Unavailable { outcome: Outcome::Unknown, .. })) | Reach::Lost => Settled::Unknown,
            Reach::Got(Err(Failure::Fault(fault))) => {
                self.ledger.violate(format!("{}: member {to} answered with a fault: {fault}", self.name));
                Settled::Unknown
            }
        }
    }

    /// Proposes a transaction at a member. The reply is there if the answer was.
    pub(crate) async fn txn(
        &mut self,
        to: MemberId,
        txn: Txn,
        idempotency: Option<Idempotency>,
    ) -> (Fate, Option<Reply>) {
        let context = self.context();
        let asked =
            self.ask(to, move |home| Box::pin(async move { home.service.txn(&context, txn, idempotency).await }));
        match asked.await {
            Settled::Answer(answer) => {
                self.ledger.acked(answer.header.revision);
                let (succeeded, revision) = match &answer.body {
                    Reply::Txn(reply) => (reply.succeeded, reply.revision),
                    Reply::Outcome { succeeded, revision } => (*succeeded, *revision),
                    other => {
                        self.ledger.violate(format!("{}: a transaction was answered with {other:?}", self.name));
                        (false, 0)
                    }
                };
                (Fate::Acked { revision, succeeded }, Some(answer.body))
            }
            Settled::Refused | Settled::No => (Fate::No, None),
            Settled::Unknown => (Fate::Unknown, None),
        }
    }

    /// One recorded write; with an idempotency key it is repeated elsewhere until it is settled.
    pub(crate) async fn write(&mut self, write: Write, txn: Txn) -> (Fate, Option<Reply>) {
        let floor = self.ledger.floor();
        let idempotency = write.repeated.then(|| idempotency(&write.who));
        let (mut fate, mut reply) = (Fate::No, None);
        let mut unknown = false;
        for _ in 0..if write.repeated { 12 } else { 1 } {
            let Some(to) = self.anyone() else {
                self.think(50, 200).await;
                continue;
            };
            (fate, reply) = self.txn(to, txn.clone(), idempotency.clone()).await;
            unknown |= fate == Fate::Unknown;
            if matches!(fate, Fate::Acked { .. }) {
                break;
            }
            if write.repeated {
                self.think(20, 400).await;
            }
        }
        // That one attempt did not happen says nothing of an earlier one.
        if unknown && fate == Fate::No {
            fate = Fate::Unknown;
        }
        let write = Write { floor, fate, ..write };
        self.ledger.book().writes.push(write);
        (fate, reply)
    }

    /// One recorded read, anywhere; what was seen.
    pub(crate) async fn read(&mut self, range: KeyRange, linearizable: bool, at: Revision) -> Option<Vec<KeyValue>> {
        let to = self.anyone()?;
        self.read_from(to, range, linearizable, at).await
    }

    pub(crate) async fn read_from(
        &mut self,
        to: MemberId,
        range: KeyRange,
        linearizable: bool,
        at: Revision,
    ) -> Option<Vec<KeyValue>> {
        let who = self.fresh("read");
        let (context, floor) = (self.context(), self.ledger.floor());
        let consistency =
            if linearizable { Consistency::Linearizable } else { Consistency::Stale { max_staleness: None } };
        let read = ReadOptions { consistency, min_revision: None };
        let op = RangeOp { revision: at, ..RangeOp::newest(range.clone()) };
        let asked = self.ask(to, move |home| Box::pin(async move { home.service.range(&context, read, op).await }));
        let Settled::Answer(answer) = asked.await else { return None };
        let revision = answer.header.revision;
        if linearizable {
            self.ledger.acked(revision);
        }
        let seen = answer.body.kvs;
        let at = if at == 0 { revision } else { at };
        let who = format!("{who} (member {to}, linearizable: {linearizable})");
        self.ledger.book().reads.push(Read { who, linearizable, floor, revision, at, range, seen: seen.clone() });
        Some(seen)
    }
}

pub(crate) fn idempotency(name: &str) -> Idempotency {
    Idempotency { key: name.to_owned(), fingerprint: [7; 16] }
}

pub(crate) fn put(key: &Bytes, value: &Bytes, lease: LeaseChoice) -> Op {
    Op::Put(PutOp {
        key: key.clone(),
        value: value.clone(),
        content_type: None,
        lease,
        prev_kv: false,
        ignore_value: false,
    })
}

pub(crate) fn modified_at(key: &Bytes, revision: Revision) -> Compare {
    Compare { range: KeyRange::key(key.clone()), op: CompareOp::Equal, target: CompareTarget::ModRevision(revision) }
}

pub(crate) fn one(op: Op) -> Txn {
    Txn { success: vec![op], ..Txn::default() }
}

/// A write whose fate is still to be found out.
pub(crate) fn write(who: String, success: Branch) -> Write {
    Write { who, success, failure: Branch::default(), expected: Vec::new(), floor: 0, repeated: false, fate: Fate::No }
}

//! The transactions that claims are made of: pure, one per question.

use super::{ClaimRequest, Session};
use crate::model::{
    ClaimKind, ClaimName, Compare, CompareOp, CompareTarget, Fence, KeyRange, LeaseChoice, LeaseId, Op, OpReply, PutOp,
    RangeOp, Revision, Txn, TxnReply,
};
use bytes::Bytes;

fn compare(key: &Bytes, op: CompareOp, target: CompareTarget) -> Compare {
    Compare { range: KeyRange::key(key.clone()), op, target }
}

fn put(key: &Bytes, value: Bytes, lease: LeaseChoice) -> Op {
    Op::Put(PutOp { key: key.clone(), value, content_type: None, lease, prev_kv: false, ignore_value: false })
}

/// What a claim's key holds: nothing for a lock, as with etcd's mutex; the permits of a semaphore; the
/// candidate's own value.
fn value(request: &ClaimRequest) -> Bytes {
    match request.of.kind {
        ClaimKind::Lock => Bytes::new(),
        ClaimKind::Semaphore => request.permits.to_string().into(),
        ClaimKind::Election => request.value.clone(),
    }
}

fn put_claim(request: &ClaimRequest, lease: LeaseId) -> Vec<Op> {
    let mut ops = Vec::with_capacity(2);
    if let Session::New { ttl_ms, label } = &request.session {
        ops.push(Op::Session { id: lease, ttl_ms: *ttl_ms, label: label.clone() });
    }
    ops.push(put(&request.of.claim(lease), value(request), LeaseChoice::Attach(lease)));
    ops
}

/// Queues the claim if the lease has none. A candidate that is known already says its value anew, as
/// with etcd's `Campaign`.
pub(super) fn enqueue(request: &ClaimRequest, lease: LeaseId) -> Txn {
    let key = request.of.claim(lease);
    let mut txn = Txn {
        compares: vec![compare(&key, CompareOp::Equal, CompareTarget::CreateRevision(0))],
        success: put_claim(request, lease),
        failure: Vec::new(),
    };
    if request.of.kind == ClaimKind::Election {
        let value = value(request);
        txn.failure.push(Op::Txn(Box::new(Txn {
            compares: vec![compare(&key, CompareOp::NotEqual, CompareTarget::Value(value.clone()))],
            success: vec![put(&key, value, LeaseChoice::Keep)],
            failure: Vec::new(),
        })));
    }
    if request.of.kind == ClaimKind::Semaphore { limited(request, txn) } else { txn }
}

/// `queue` if the limit is as asked; the first caller sets it.
fn limited(request: &ClaimRequest, queue: Txn) -> Txn {
    let base = request.of.base();
    let Some(limit) = request.limit else {
        let exists = compare(&base, CompareOp::Greater, CompareTarget::Version(0));
        return Txn { compares: vec![exists], success: vec![Op::Txn(Box::new(queue))], failure: Vec::new() };
    };
    let limit = Bytes::from(limit.to_string());
    let first = Txn {
        compares: vec![compare(&base, CompareOp::Equal, CompareTarget::Version(0))],
        success: vec![put(&base, limit.clone(), LeaseChoice::Detach), Op::Txn(Box::new(queue.clone()))],
        failure: vec![Op::Range(RangeOp::newest(KeyRange::key(base.clone())))],
    };
    Txn {
        compares: vec![compare(&base, CompareOp::Equal, CompareTarget::Value(limit))],
        success: vec![Op::Txn(Box::new(queue))],
        failure: vec![Op::Txn(Box::new(first))],
    }
}

/// Claims what nobody claims; otherwise changes nothing.
pub(super) fn claim_if_free(request: &ClaimRequest, lease: LeaseId) -> Txn {
    let nobody = Compare { range: request.of.claims(), op: CompareOp::Equal, target: CompareTarget::CreateRevision(0) };
    Txn { compares: vec![nobody], success: put_claim(request, lease), failure: Vec::new() }
}

/// Deletes the claims if they are still those.
pub(super) fn remove(keys: &[(Bytes, Revision)]) -> Txn {
    let compares =
        keys.iter().map(|(key, token)| compare(key, CompareOp::Equal, CompareTarget::CreateRevision(*token)));
    let deletes = keys.iter().map(|(key, _)| Op::Delete { range: KeyRange::key(key.clone()), prev_kv: false });
    Txn { compares: compares.collect(), success: deletes.collect(), failure: Vec::new() }
}

/// Forgets a semaphore's limit if nobody claims it.
pub(super) fn forget_limit(of: &ClaimName) -> Txn {
    let nobody = Compare { range: of.claims(), op: CompareOp::Equal, target: CompareTarget::CreateRevision(0) };
    let delete = Op::Delete { range: KeyRange::key(of.base()), prev_kv: false };
    Txn { compares: vec![nobody], success: vec![delete], failure: Vec::new() }
}

/// The leader says something else.
pub(super) fn proclaim(of: &ClaimName, (lease, token): (LeaseId, Revision), value: Bytes) -> Txn {
    let fence = Fence { of: of.clone(), token };
    let put = put(&of.claim(lease), value, LeaseChoice::Keep);
    Txn { compares: vec![Compare::holder(fence)], success: vec![put], failure: Vec::new() }
}

/// Whether this transaction made the claim: a lease that asks again must not lose it by giving up.
pub(super) fn made(reply: &TxnReply, key: &Bytes) -> bool {
    reply.results.iter().any(|result| match result {
        OpReply::Put { key: put, created, .. } => *created && put == key,
        OpReply::Txn(inner) => made(inner, key),
        _ => false,
    })
}

/// The lease of the claim that a transaction put; after a replay that of the first request.
pub(super) fn lease_put(reply: &TxnReply) -> Option<LeaseId> {
    reply.results.iter().find_map(|result| match result {
        OpReply::Session { lease } => Some(*lease),
        OpReply::Put { lease, .. } if *lease != 0 => Some(*lease),
        OpReply::Txn(inner) => lease_put(inner),
        _ => None,
    })
}

/// A semaphore refused by its limit: `Some(None)` if it has none and none was given.
pub(super) fn other_limit(reply: &TxnReply) -> Option<Option<u64>> {
    if reply.succeeded {
        return None;
    }
    match reply.results.first() {
        None => Some(None),
        Some(OpReply::Txn(first)) if !first.succeeded => match first.results.first() {
            Some(OpReply::Range(range)) => {
                let stored = range.kvs.first().and_then(|kv| std::str::from_utf8(&kv.value).ok()?.parse().ok());
                Some(stored)
            }
            _ => Some(None),
        },
        Some(_) => None,
    }
}

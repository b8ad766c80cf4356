//! The one set of conversions between etcd's messages and the model, for gRPC and the gateway alike.
//!
//! Invariant: enumerations, ranges and options are checked here, whatever a client sends; nothing is
//! decided that depends on the state of the store.

use super::errors::{
    EMPTY_KEY, INVALID_COMPARE, INVALID_SORT, KEY_NOT_FOUND, LEASE_PROVIDED, TOO_MANY_OPS, VALUE_PROVIDED, known,
};
use super::pb::etcdserverpb as pb;
use super::pb::mvccpb;
use crate::model;
use crate::model::{
    CompareOp, CompareTarget, KeyRange, KeyValue, LeaseChoice, Op, OpReply, PutOp, RangeOp, RangeReply, RangeSort,
    Revision, SortOrder, Txn, TxnReply,
};
use crate::service::Header;
use bytes::Bytes;
use tonic::Status;

/// How clients write "to the end of all keys".
const TO_THE_END: &[u8] = b"\0";

pub(super) fn header(header: &Header) -> pb::ResponseHeader {
    pb::ResponseHeader {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision,
        raft_term: header.term,
    }
}

/// In an operation of a transaction only the revision is told.
fn inner_header(revision: Revision) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() })
}

pub(super) fn range_of(key: Bytes, range_end: Bytes) -> KeyRange {
    match &range_end[..] {
        [] => KeyRange::key(key),
        TO_THE_END => KeyRange { start: key, end: None },
        _ => KeyRange { start: key, end: Some(range_end) },
    }
}

fn keyed(key: &Bytes) -> Result<(), Status> {
    if key.is_empty() { Err(known(EMPTY_KEY)) } else { Ok(()) }
}

/// For counts and sizes, which never come near the limit.
pub(super) fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn range(request: pb::RangeRequest) -> Result<RangeOp, Status> {
    use pb::range_request::{SortOrder as Order, SortTarget as Target};
    keyed(&request.key)?;
    let invalid = |_| known(INVALID_SORT);
    let order = match Order::try_from(request.sort_order).map_err(invalid)? {
        Order::None | Order::Ascend => SortOrder::Ascending,
        Order::Descend => SortOrder::Descending,
    };
    let sort = match Target::try_from(request.sort_target).map_err(invalid)? {
        Target::Key => RangeSort::Key,
        Target::Version => RangeSort::Version,
        Target::Create => RangeSort::Create,
        Target::Mod => RangeSort::Mod,
        Target::Value => RangeSort::Value,
    };
    Ok(RangeOp {
        range: range_of(request.key, request.range_end),
        revision: request.revision.max(0),
        limit: u64::try_from(request.limit).unwrap_or(0),
        bytes_max: 0,
        sort,
        order,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    })
}

pub(super) fn put(request: pb::PutRequest) -> Result<Op, Status> {
    keyed(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(known(VALUE_PROVIDED));
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(known(LEASE_PROVIDED));
    }
    let lease = match request.lease {
        _ if request.ignore_lease => LeaseChoice::KeepOfExisting,
        0 => LeaseChoice::Detach,
        id => LeaseChoice::Attach(id),
    };
    Ok(Op::Put(PutOp {
        key: request.key,
        value: request.value,
        content_type: None,
        lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
    }))
}

pub(super) fn delete(request: pb::DeleteRangeRequest) -> Result<Op, Status> {
    keyed(&request.key)?;
    Ok(Op::Delete { range: range_of(request.key, request.range_end), prev_kv: request.prev_kv })
}

/// A transaction, whose nested ones may use what it leaves of the limit.
pub(super) fn txn(request: pb::TxnRequest, left: usize) -> Result<Txn, Status> {
    let most = request.compare.len().max(request.success.len()).max(request.failure.len());
    if most > left {
        return Err(known(TOO_MANY_OPS));
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(known(EMPTY_KEY));
    }
    let ops = |ops: Vec<pb::RequestOp>| ops.into_iter().map(|one| op(one, left - most)).collect::<Result<_, _>>();
    Ok(Txn {
        compares: request.compare.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: ops(request.success)?,
        failure: ops(request.failure)?,
    })
}

fn op(op: pb::RequestOp, left: usize) -> Result<Op, Status> {
    use pb::request_op::Request;
    match op.request {
        Some(Request::RequestRange(request)) => Ok(Op::Range(range(request)?)),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete(request),
        Some(Request::RequestTxn(request)) => Ok(Op::Txn(Box::new(txn(request, left)?))),
        // Said so by etcd, too.
        None => Err(known(KEY_NOT_FOUND)),
    }
}

fn compare(compare: pb::Compare) -> Result<model::Compare, Status> {
    use pb::compare::{CompareResult, CompareTarget as Target, TargetUnion as Union};
    let invalid = |_| known(INVALID_COMPARE);
    let op = match CompareResult::try_from(compare.result).map_err(invalid)? {
        CompareResult::Equal => CompareOp::Equal,
        CompareResult::Greater => CompareOp::Greater,
        CompareResult::Less => CompareOp::Less,
        CompareResult::NotEqual => CompareOp::NotEqual,
    };
    // What does not fit the target counts as not given.
    let given = compare.target_union;
    let target = match (Target::try_from(compare.target).map_err(invalid)?, given) {
        (Target::Version, Some(Union::Version(version))) => CompareTarget::Version(version),
        (Target::Version, _) => CompareTarget::Version(0),
        (Target::Create, Some(Union::CreateRevision(revision))) => CompareTarget::CreateRevision(revision),
        (Target::Create, _) => CompareTarget::CreateRevision(0),
        (Target::Mod, Some(Union::ModRevision(revision))) => CompareTarget::ModRevision(revision),
        (Target::Mod, _) => CompareTarget::ModRevision(0),
        (Target::Value, Some(Union::Value(value))) => CompareTarget::Value(value),
        (Target::Value, _) => CompareTarget::Value(Bytes::new()),
        (Target::Lease, Some(Union::Lease(lease))) => CompareTarget::Lease(lease),
        (Target::Lease, _) => CompareTarget::Lease(0),
    };
    Ok(model::Compare { range: range_of(compare.key, compare.range_end), op, target })
}

pub(super) fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// The same of one that others hold too.
pub(super) fn key_value_of(kv: &KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value.clone(),
        lease: kv.lease,
    }
}

pub(super) fn range_reply(header: Option<pb::ResponseHeader>, reply: RangeReply) -> pb::RangeResponse {
    pb::RangeResponse {
        header,
        kvs: reply.kvs.into_iter().map(key_value).collect(),
        more: reply.more,
        count: int(reply.count),
    }
}

pub(super) fn delete_reply(
    header: Option<pb::ResponseHeader>,
    deleted: u64,
    prev: Vec<KeyValue>,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse { header, deleted: int(deleted), prev_kvs: prev.into_iter().map(key_value).collect() }
}

/// An answer to a transaction. Its operations tell the revision as it was after each.
pub(super) fn txn_reply(header: pb::ResponseHeader, reply: TxnReply) -> Result<pb::TxnResponse, Status> {
    let mut walk = Walk { made: reply.revision, wrote: false, writes: writes(&reply) };
    walk.txn(Some(header), reply)
}

fn writes(reply: &TxnReply) -> bool {
    reply.results.iter().any(|result| match result {
        OpReply::Delete { deleted, .. } => *deleted > 0,
        OpReply::Range(_) => false,
        OpReply::Txn(inner) => writes(inner),
        OpReply::Put { .. }
        | OpReply::Add { .. }
        | OpReply::MergePatch { .. }
        | OpReply::RateTake { .. }
        | OpReply::Session { .. } => true,
    })
}

/// Through the operations in their order, to tell what each saw.
struct Walk {
    /// The revision after the transaction.
    made: Revision,
    wrote: bool,
    /// Whether the transaction has one of its own at all.
    writes: bool,
}

impl Walk {
    fn revision(&self) -> Revision {
        if self.writes && !self.wrote { self.made - 1 } else { self.made }
    }

    fn txn(&mut self, header: Option<pb::ResponseHeader>, reply: TxnReply) -> Result<pb::TxnResponse, Status> {
        let succeeded = reply.succeeded;
        let responses = reply.results.into_iter().map(|result| self.result(result)).collect::<Result<_, _>>()?;
        Ok(pb::TxnResponse { header, succeeded, responses })
    }

    fn result(&mut self, result: OpReply) -> Result<pb::ResponseOp, Status> {
        use pb::response_op::Response;
        let response = match result {
            OpReply::Range(reply) => Response::ResponseRange(range_reply(inner_header(self.revision()), reply)),
            OpReply::Put { prev, .. } => {
                self.wrote = true;
                let header = inner_header(self.revision());
                Response::ResponsePut(pb::PutResponse { header, prev_kv: prev.map(key_value) })
            }
            OpReply::Delete { deleted, prev } => {
                self.wrote |= deleted > 0;
                Response::ResponseDeleteRange(delete_reply(inner_header(self.revision()), deleted, prev))
            }
            OpReply::Txn(inner) => Response::ResponseTxn(self.txn(Some(pb::ResponseHeader::default()), inner)?),
            OpReply::Add { .. } | OpReply::MergePatch { .. } | OpReply::RateTake { .. } | OpReply::Session { .. } => {
                return Err(Status::internal("etcdserver: an answer that no request of etcd's has"));
            }
        };
        Ok(pb::ResponseOp { response: Some(response) })
    }
}

/// The range of a watch; `None` if it can hold no key. An empty key stands for the smallest one.
pub(super) fn watched(key: Bytes, range_end: Bytes) -> Option<KeyRange> {
    let key = if key.is_empty() { Bytes::from_static(b"\0") } else { key };
    Some(range_of(key, range_end)).filter(|range| !range.is_empty())
}

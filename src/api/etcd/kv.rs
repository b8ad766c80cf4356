//! etcd's `KV`: ranges, writes, transactions and compaction.

use super::convert::{self, header};
use super::errors::{TOO_LARGE, known};
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::kv_server::Kv;
use super::{Answers, Door, held};
use crate::model::limits::TXN_OPS_MAX;
use crate::model::{Op, OpReply, RangeOp, Reply, Revision, TxnReply};
use crate::service::{Answer, CompactTarget, Consistency, Context, ReadOptions};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use prost::Message;
use tonic::{Request, Response, Status};

/// A stream's first chunk holds so many keys, and each further one four times as many, within the bytes.
const CHUNK_KEYS_FIRST: u64 = 10;
const CHUNK_BYTES: u64 = 3 << 19;

#[tonic::async_trait]
impl Kv for Door {
    type RangeStreamStream = Answers<pb::RangeStreamResponse>;

    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let context = self.context(&request)?;
        let request = request.into_inner();
        let read = consistency(request.serializable);
        let op = convert::range(request)?;
        let answer = self.service().range(&context, read, op).await.map_err(|failure| self.failed(&failure))?;
        let reply = convert::range_reply(Some(header(&answer.header)), answer.body);
        let admission = self.admit(reply.encoded_len())?;
        Ok(held(reply, admission))
    }

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let context = self.context(&request)?;
        let request = request.into_inner();
        if request.sort_order != 0 || request.sort_target != 0 {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        let filters = [request.min_mod_revision, request.max_mod_revision];
        if filters.into_iter().chain([request.min_create_revision, request.max_create_revision]).any(|at| at != 0) {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        let read = consistency(request.serializable);
        let rest = Rest { door: self.clone(), context, read, op: convert::range(request)?, told: None, chunk: 0 };
        let chunks = stream::try_unfold(Some(rest), async |rest| match rest {
            Some(rest) => rest.next().await,
            None => Ok(None),
        });
        Ok(Response::new(chunks.boxed()))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let context = self.context(&request)?;
        let request = request.into_inner();
        let _admission = self.admit(self.within_limit(&request)?)?;
        let (header, result) = self.write(&context, convert::put(request)?).await?;
        let OpReply::Put { prev, .. } = result else { return Err(odd()) };
        Ok(Response::new(pb::PutResponse { header: Some(header), prev_kv: prev.map(convert::key_value) }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let context = self.context(&request)?;
        let request = request.into_inner();
        let _admission = self.admit(self.within_limit(&request)?)?;
        let (header, result) = self.write(&context, convert::delete(request)?).await?;
        let OpReply::Delete { deleted, prev } = result else { return Err(odd()) };
        Ok(Response::new(convert::delete_reply(Some(header), deleted, prev)))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let context = self.context(&request)?;
        let request = request.into_inner();
        let admission = self.admit(self.within_limit(&request)?)?;
        let txn = convert::txn(request, TXN_OPS_MAX)?;
        let answer = self.service().txn(&context, txn, None).await.map_err(|failure| self.failed(&failure))?;
        let Reply::Txn(reply) = answer.body else { return Err(odd()) };
        Ok(held(convert::txn_reply(header(&answer.header), reply)?, admission))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let context = self.context(&request)?;
        // Nothing is read below the revision from here on; space is given back in the background either way.
        let target = CompactTarget::Revision(request.into_inner().revision);
        let answer = self.service().compact(&context, target).await.map_err(|failure| self.failed(&failure))?;
        Ok(Response::new(pb::CompactionResponse { header: Some(header(&answer.header)) }))
    }
}

fn consistency(serializable: bool) -> ReadOptions {
    let consistency = if serializable { Consistency::Stale { max_staleness: None } } else { Consistency::Linearizable };
    ReadOptions { consistency, min_revision: None }
}

fn odd() -> Status {
    Status::internal("etcdserver: a write was answered with something else")
}

impl Door {
    /// The size of a request that may be written.
    fn within_limit(&self, request: &impl Message) -> Result<usize, Status> {
        let bytes = request.encoded_len();
        if bytes > self.state.options.request_bytes_max { Err(known(TOO_LARGE)) } else { Ok(bytes) }
    }

    async fn write(&self, context: &Context, op: Op) -> Result<(pb::ResponseHeader, OpReply), Status> {
        let answer = self.service().operation(context, op, None).await.map_err(|failure| self.failed(&failure))?;
        let Answer { header: at, body: Reply::Txn(TxnReply { mut results, .. }), .. } = answer else {
            return Err(odd());
        };
        Ok((header(&at), results.pop().ok_or_else(odd)?))
    }
}

/// What of a streamed range has not been sent yet.
struct Rest {
    door: Door,
    context: Context,
    read: ReadOptions,
    op: RangeOp,
    /// From the first page: the header and count that the last chunk tells, and the keys still to come.
    told: Option<(pb::ResponseHeader, u64, u64)>,
    chunk: u64,
}

type Chunk = Option<(pb::RangeStreamResponse, Option<Rest>)>;

impl Rest {
    async fn next(mut self) -> Result<Chunk, Status> {
        self.chunk = if self.chunk == 0 { CHUNK_KEYS_FIRST } else { self.chunk.saturating_mul(4) };
        let left = match self.told {
            Some((_, _, left)) => left,
            None if self.op.limit == 0 => u64::MAX,
            None => self.op.limit,
        };
        let page = RangeOp { limit: self.chunk.min(left), bytes_max: CHUNK_BYTES, ..self.op.clone() };
        let answer = self.door.service().range(&self.context, self.read, page).await;
        let answer = answer.map_err(|failure| self.door.failed(&failure))?;
        let page = answer.body;
        let sent = u64::try_from(page.kvs.len()).unwrap_or(u64::MAX);
        let (at, count, _) = *self.told.get_or_insert_with(|| (header(&answer.header), page.count, left));
        let left = left.saturating_sub(sent);
        self.told = Some((at, count, left));
        let last_key = page.kvs.last().map(|kv| kv.key.clone());
        let (more, kvs) = (page.more, page.kvs.into_iter().map(convert::key_value).collect());
        let ended = !more || left == 0;
        let chunk = match last_key {
            Some(last_key) if !ended => {
                self.go_on(&last_key, at.revision);
                pb::RangeResponse { kvs, ..pb::RangeResponse::default() }
            }
            _ => {
                return Ok(Some((
                    wrapped(pb::RangeResponse { header: Some(at), kvs, more, count: convert::int(count) }),
                    None,
                )));
            }
        };
        Ok(Some((wrapped(chunk), Some(self))))
    }

    /// From behind this key, at the revision of the first page.
    fn go_on(&mut self, last_key: &Bytes, newest: Revision) {
        let mut start = last_key.to_vec();
        start.push(0);
        self.op.range.start = start.into();
        if self.op.revision == 0 {
            self.op.revision = newest;
        }
        self.read = consistency(true);
    }
}

fn wrapped(chunk: pb::RangeResponse) -> pb::RangeStreamResponse {
    pb::RangeStreamResponse { range_response: Some(chunk) }
}

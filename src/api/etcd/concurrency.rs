//! etcd's `Lock` and `Election` services: queues of keys `<name>/<lease in hex>`, as its concurrency
//! package makes them on any name. REST's locks are those below `_tenure/locks/`.
//!
//! In etcd these services are clients of the store themselves, so what fails below them comes out as
//! `Unknown` with the text of the failure; and so it does here.

use super::convert::{header, key_value};
use super::pb::etcdserverpb as pb;
use super::pb::v3electionpb as election;
use super::pb::v3electionpb::election_server::Election;
use super::pb::v3lockpb as lock;
use super::pb::v3lockpb::lock_server::Lock;
use super::{Answers, Door, deadline};
use crate::model::{Failure, LeaseId};
use crate::service::{Context, QueueEntry, QueueRequest};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::time::Duration;
use tonic::{Code, Request, Response, Status};

const NO_LEADER: &str = "election: no leader";
const NOT_LEADER: &str = "election: not leader";
const LEADER_FIELD: &str = "\"leader\" field must be provided";
const OVER: &str = "context deadline exceeded";
/// A session that is made for a call without a lease.
const SESSION_TTL_MS: u64 = 60_000;

fn unknown(text: impl Into<String>) -> Status {
    Status::new(Code::Unknown, text)
}

#[tonic::async_trait]
impl Lock for Door {
    async fn lock(&self, request: Request<lock::LockRequest>) -> Result<Response<lock::LockResponse>, Status> {
        let (context, wait) = (self.context(&request)?, deadline(request.metadata()));
        let lock::LockRequest { name, lease } = request.into_inner();
        let (at, entry) = self.enter(&context, (name, lease, None), wait).await?;
        Ok(Response::new(lock::LockResponse { header: Some(at), key: entry.key }))
    }

    async fn unlock(&self, request: Request<lock::UnlockRequest>) -> Result<Response<lock::UnlockResponse>, Status> {
        let context = self.context(&request)?;
        let op = super::convert::delete(pb::DeleteRangeRequest {
            key: request.into_inner().key,
            ..pb::DeleteRangeRequest::default()
        });
        let op = op.map_err(|status| unknown(status.message()))?;
        let answer = self.service().operation(&context, op, None).await.map_err(|failure| self.passed_on(&failure))?;
        Ok(Response::new(lock::UnlockResponse { header: Some(header(&answer.header)) }))
    }
}

#[tonic::async_trait]
impl Election for Door {
    type ObserveStream = Answers<election::LeaderResponse>;

    async fn campaign(
        &self,
        request: Request<election::CampaignRequest>,
    ) -> Result<Response<election::CampaignResponse>, Status> {
        let (context, wait) = (self.context(&request)?, deadline(request.metadata()));
        let election::CampaignRequest { name, lease, value } = request.into_inner();
        let (at, entry) = self.enter(&context, (name.clone(), lease, Some(value)), wait).await?;
        let leader = election::LeaderKey { name, key: entry.key, rev: entry.token, lease: entry.lease };
        Ok(Response::new(election::CampaignResponse { header: Some(at), leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<election::ProclaimRequest>,
    ) -> Result<Response<election::ProclaimResponse>, Status> {
        let context = self.context(&request)?;
        let election::ProclaimRequest { leader, value } = request.into_inner();
        let entry = entry_of(leader)?;
        let answer = self.service().queue_rewrite(&context, &entry, value).await;
        let answer = answer.map_err(|failure| self.passed_on(&failure))?;
        if !answer.body {
            return Err(unknown(NOT_LEADER));
        }
        Ok(Response::new(election::ProclaimResponse { header: Some(header(&answer.header)) }))
    }

    async fn leader(
        &self,
        request: Request<election::LeaderRequest>,
    ) -> Result<Response<election::LeaderResponse>, Status> {
        let context = self.context(&request)?;
        let answer = self.service().queue_first(&context, request.into_inner().name).await;
        let answer = answer.map_err(|failure| self.passed_on(&failure))?;
        let kv = answer.body.ok_or_else(|| unknown(NO_LEADER))?;
        Ok(Response::new(election::LeaderResponse { header: Some(header(&answer.header)), kv: Some(key_value(kv)) }))
    }

    async fn observe(
        &self,
        request: Request<election::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let context = self.stream_context(&request)?;
        let name = request.into_inner().name;
        let observer = self.service().queue_observe(&context, name).map_err(|failure| self.passed_on(&failure))?;
        let door = self.clone();
        let leaders = stream::unfold(Some(observer), move |observer| {
            let door = door.clone();
            async move {
                let mut observer = observer?;
                match observer.next().await {
                    Ok((at, kv)) => {
                        let leader = election::LeaderResponse { header: Some(header(&at)), kv: Some(key_value(kv)) };
                        Some((Ok(leader), Some(observer)))
                    }
                    Err(failure) => Some((Err(door.failed(&failure)), None)),
                }
            }
        });
        Ok(Response::new(leaders.boxed()))
    }

    async fn resign(
        &self,
        request: Request<election::ResignRequest>,
    ) -> Result<Response<election::ResignResponse>, Status> {
        let context = self.context(&request)?;
        let entry = entry_of(request.into_inner().leader)?;
        let answer = self.service().queue_leave(&context, &entry).await.map_err(|failure| self.passed_on(&failure))?;
        Ok(Response::new(election::ResignResponse { header: Some(header(&answer.header)) }))
    }
}

fn entry_of(leader: Option<election::LeaderKey>) -> Result<QueueEntry, Status> {
    let election::LeaderKey { key, rev, lease, .. } = leader.ok_or_else(|| unknown(LEADER_FIELD))?;
    Ok(QueueEntry { key, token: rev, lease })
}

impl Door {
    fn passed_on(&self, failure: &Failure) -> Status {
        unknown(self.failed(failure).message())
    }

    /// Queues, and answers when it is its turn; a call that goes away leaves the queue.
    async fn enter(
        &self,
        context: &Context,
        (name, lease, value): (Bytes, LeaseId, Option<Bytes>),
        wait: Option<Duration>,
    ) -> Result<(pb::ResponseHeader, QueueEntry), Status> {
        let request = QueueRequest { name, lease: Some(lease).filter(|id| *id != 0), ttl_ms: SESSION_TTL_MS, value };
        let entered = self.service().queue_enter(context, request);
        let entered = match wait {
            Some(wait) => tokio::time::timeout(wait, entered).await.map_err(|_| unknown(OVER))?,
            None => entered.await,
        };
        let answer = entered.map_err(|failure| self.passed_on(&failure))?;
        Ok((header(&answer.header), answer.body))
    }
}

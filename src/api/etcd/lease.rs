//! etcd's `Lease`. Times are whole seconds here and milliseconds below.

use super::convert::header;
use super::errors::{LEASE_TTL_TOO_LARGE, NO_LEADER, STOPPED, known};
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::lease_server::Lease;
use super::{Answers, Door};
use crate::model::{Failure, Need, Rejection};
use crate::service::{Context, LeaseGrant, LeaseList, ReadOptions};
use futures_util::{StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

/// etcd's minimum with its default election timeout, and its maximum.
const TTL_MIN_S: i64 = 2;
const TTL_MAX_S: i64 = 9_000_000_000;
/// Renewals of one stream that run at the same time; further ones wait.
const KEEP_ALIVES_AT_ONCE: usize = 16;
const PAGE: usize = 10_000;

#[tonic::async_trait]
impl Lease for Door {
    type LeaseKeepAliveStream = Answers<pb::LeaseKeepAliveResponse>;

    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let context = self.context(&request)?;
        let request = request.into_inner();
        if request.ttl > TTL_MAX_S {
            return Err(known(LEASE_TTL_TOO_LARGE));
        }
        let ttl_ms = seconds_ms(request.ttl.max(TTL_MIN_S));
        let id = Some(request.id).filter(|id| *id != 0);
        let grant = LeaseGrant { id, ttl_ms, ..LeaseGrant::default() };
        let answer =
            self.service().lease_grant(&context, grant, None).await.map_err(|failure| self.failed(&failure))?;
        Ok(Response::new(pb::LeaseGrantResponse {
            header: Some(header(&answer.header)),
            id: answer.body.id,
            ttl: seconds(answer.body.ttl_ms),
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let context = self.context(&request)?;
        let id = request.into_inner().id;
        let answer = self.service().lease_revoke(&context, id, None).await.map_err(|failure| self.failed(&failure))?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: Some(header(&answer.header)) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let context = self.stream_context(&request)?;
        let needs_leader = self.needs_leader(request.metadata());
        let (door, stopping) = (self.clone(), self.service().stopping().clone());
        let requests = request.into_inner();
        let answers = requests.map(move |request| {
            let (door, context) = (door.clone(), context.clone());
            async move { door.keep_alive(&context, request?.id, needs_leader).await }
        });
        // The first failure is the stream's last word.
        let answers = answers.buffered(KEEP_ALIVES_AT_ONCE).scan(false, |failed, answer| {
            let over = std::mem::replace(failed, answer.is_err());
            std::future::ready((!over).then_some(answer))
        });
        let stopped = stream::once(async { Err(known(STOPPED)) });
        let answers = answers.take_until(async move { stopping.cancelled().await });
        let stopping = self.service().stopping().clone();
        let stopped = stopped.filter(move |_| std::future::ready(stopping.is_cancelled()));
        Ok(Response::new(answers.chain(stopped).boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let context = self.context(&request)?;
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        if keys {
            // Some of them would look like all of them.
            let allowed = self.service().may(&context, &Need::LeaseKeys(id));
            allowed.map_err(|failure| self.failed(&failure))?;
        }
        let keys = keys.then_some(usize::MAX);
        match self.service().lease_info(&context, ReadOptions::default(), id, keys).await {
            Ok(answer) => Ok(Response::new(pb::LeaseTimeToLiveResponse {
                header: Some(header(&answer.header)),
                id,
                ttl: seconds(answer.body.remaining_ms),
                granted_ttl: seconds(answer.body.ttl_ms),
                keys: answer.body.keys.unwrap_or_default(),
            })),
            Err(Failure::Rejected(Rejection::LeaseNotFound(_))) => {
                let header = Some(header(&self.service().header()));
                Ok(Response::new(pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() }))
            }
            Err(failure) => Err(self.failed(&failure)),
        }
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let context = self.context(&request)?;
        let mut leases = Vec::new();
        let mut list = LeaseList { implicit: true, limit: PAGE, ..LeaseList::default() };
        loop {
            let page = self.service().leases(&context, ReadOptions::default(), list.clone()).await;
            let page = page.map_err(|failure| self.failed(&failure))?;
            leases.extend(page.body.items.iter().map(|lease| pb::LeaseStatus { id: lease.id }));
            match page.body.next {
                Some(next) => list.from = next,
                None => {
                    let header = Some(header(&page.header));
                    return Ok(Response::new(pb::LeaseLeasesResponse { header, leases }));
                }
            }
        }
    }
}

impl Door {
    async fn keep_alive(
        &self,
        context: &Context,
        id: i64,
        needs_leader: bool,
    ) -> Result<pb::LeaseKeepAliveResponse, Status> {
        if needs_leader && !self.has_leader() {
            return Err(known(NO_LEADER));
        }
        match self.service().lease_keep_alive(context, id).await {
            Ok(answer) => {
                Ok(pb::LeaseKeepAliveResponse { header: Some(header(&answer.header)), id, ttl: seconds(answer.body) })
            }
            // It has ended: said so by a TTL of nothing, and the stream goes on.
            Err(Failure::Rejected(Rejection::LeaseNotFound(_))) => {
                Ok(pb::LeaseKeepAliveResponse { header: Some(header(&self.service().header())), id, ttl: 0 })
            }
            Err(failure) => Err(self.failed(&failure)),
        }
    }
}

fn seconds_ms(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or_default().saturating_mul(1000)
}

fn seconds(ms: u64) -> i64 {
    i64::try_from(ms / 1000).unwrap_or(i64::MAX)
}

//! etcd's `Maintenance`. What has no meaning here is answered honestly and does no harm: there is nothing
//! to defragment, and no older version to go back to.

use super::convert::header;
use super::errors::{BAD_TRANSFEREE, DOWNGRADE_FORMAT, DOWNGRADE_TARGET, NO_DOWNGRADE, known};
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::maintenance_server::Maintenance;
use super::{Answers, Door};
use crate::api::ETCD_VERSION;
use crate::model::{KeyRange, Need, RangeOp, Revision};
use crate::service::{Consistency, Context, ReadOptions};
use futures_util::{StreamExt, stream};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Of the state's format, as etcd numbers its own.
const STORAGE_VERSION: &str = "3.6.0";
const HASH_PAGE_KEYS: u64 = 1_000;
const HASH_PAGE_BYTES: u64 = 4 << 20;
/// The newest state is written to disk before it is streamed.
const SNAPSHOT: Duration = Duration::from_secs(60);

#[tonic::async_trait]
impl Maintenance for Door {
    type SnapshotStream = Answers<pb::SnapshotResponse>;

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction;
        let context = self.context(&request)?;
        let request = request.into_inner();
        let wanted = pb::AlarmType::try_from(request.alarm).map_err(|_| Status::invalid_argument("unknown alarm"))?;
        match AlarmAction::try_from(request.action).map_err(|_| Status::invalid_argument("unknown alarm action"))? {
            AlarmAction::Get => {
                let alarms = self.alarms().into_iter().filter(|alarm| {
                    (wanted == pb::AlarmType::None || alarm.alarm == request.alarm)
                        && (request.member_id == 0 || alarm.member_id == request.member_id)
                });
                Ok(Response::new(pb::AlarmResponse { header: Some(self.now()), alarms: alarms.collect() }))
            }
            // An alarm here is a fact about the store: it goes when its cause does, and not before.
            AlarmAction::Deactivate => {
                let allowed = self.service().may(&context, &Need::Administer);
                allowed.map_err(|failure| self.failed(&failure))?;
                Ok(Response::new(pb::AlarmResponse { header: Some(self.now()), alarms: Vec::new() }))
            }
            AlarmAction::Activate => Err(Status::unimplemented("etcdserver: alarms are raised by their causes only")),
        }
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.context(&request)?;
        let (status, leader) = (self.service().status(), self.service().leader_id());
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut errors: Vec<String> =
            self.alarms().iter().map(|alarm| format!("memberID:{} alarm:NOSPACE ", alarm.member_id)).collect();
        if leader.is_none() {
            errors.push("etcdserver: no leader".to_owned());
        }
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.now()),
            version: ETCD_VERSION.to_owned(),
            db_size: size(status.db_bytes),
            leader: leader.unwrap_or_default(),
            raft_index: status.raft_index,
            raft_term: status.term,
            raft_applied_index: status.applied_index,
            errors,
            db_size_in_use: size(status.db_bytes_in_use),
            is_learner: status.learner,
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: size(status.quota_bytes),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.context(&request)?;
        Ok(Response::new(pb::DefragmentResponse { header: Some(self.now()) }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let context = self.context(&request)?;
        let answer = self.service().hash(&context, None).await.map_err(|failure| self.failed(&failure))?;
        // The first 32 of its bits.
        let hash = answer.body.hash.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let hash = hash.ok_or_else(|| Status::internal("etcdserver: the hash is none"))?;
        Ok(Response::new(pb::HashResponse { header: Some(header(&answer.header)), hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let context = self.context(&request)?;
        let revision = request.into_inner().revision.max(0);
        let status = self.service().status();
        let hash_revision = if revision == 0 { status.revision } else { revision };
        let hash = self.hash_at(&context, hash_revision).await?;
        let compact_revision = status.compacted_revision;
        Ok(Response::new(pb::HashKvResponse { header: Some(self.now()), hash, compact_revision, hash_revision }))
    }

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let context = Context { timeout: SNAPSHOT, ..self.context(&request)? };
        let answer = self.service().snapshot(&context).await.map_err(|failure| self.failed(&failure))?;
        let (at, image) = (header(&answer.header), answer.body);
        // It ends with the SHA-256 of all that stands before.
        let chunks = stream::unfold((image.chunks, image.length), move |(mut chunks, left)| async move {
            let blob = match chunks.recv().await? {
                Ok(blob) => blob,
                Err(fault) => {
                    tracing::error!(%fault, "a snapshot could not be read");
                    return Some((Err(Status::data_loss("etcdserver: the snapshot could not be read")), (chunks, 0)));
                }
            };
            let remaining_bytes = left.saturating_sub(u64::try_from(blob.len()).unwrap_or(u64::MAX));
            let version = STORAGE_VERSION.to_owned();
            let chunk = pb::SnapshotResponse { header: Some(at), remaining_bytes, blob, version };
            Some((Ok(chunk), (chunks, remaining_bytes)))
        });
        Ok(Response::new(chunks.boxed()))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let context = self.context(&request)?;
        let target = request.into_inner().target_id;
        if !self.service().members().iter().any(|member| member.id == target) {
            return Err(known(BAD_TRANSFEREE));
        }
        let moved = self.service().move_leader(&context, Some(&format!("{target:x}"))).await;
        let moved = moved.map_err(|failure| self.failed(&failure))?;
        Ok(Response::new(pb::MoveLeaderResponse { header: Some(header(&moved.header)) }))
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        use pb::downgrade_request::DowngradeAction;
        self.context(&request)?;
        let request = request.into_inner();
        let action = DowngradeAction::try_from(request.action);
        match action.map_err(|_| Status::invalid_argument("etcdserver: unknown downgrade action"))? {
            DowngradeAction::Cancel => Err(known(NO_DOWNGRADE)),
            DowngradeAction::Validate | DowngradeAction::Enable => {
                let parts: Vec<&str> = request.version.trim_start_matches('v').split('.').collect();
                let is_version = (2..=3).contains(&parts.len()) && parts.iter().all(|part| part.parse::<u32>().is_ok());
                Err(known(if is_version { DOWNGRADE_TARGET } else { DOWNGRADE_FORMAT }))
            }
        }
    }
}

impl Door {
    fn alarms(&self) -> Vec<pb::AlarmMember> {
        let status = self.service().status();
        let full = status.alarms.contains(&"storage-full");
        let alarm = pb::AlarmMember { member_id: status.id, alarm: i32::from(pb::AlarmType::Nospace) };
        if full { vec![alarm] } else { Vec::new() }
    }

    /// Over the keys as they were at a revision, which is the same on every member that has reached it.
    async fn hash_at(&self, context: &Context, revision: Revision) -> Result<u32, Status> {
        let read = ReadOptions { consistency: Consistency::Stale { max_staleness: None }, min_revision: None };
        let mut hash = 0;
        let mut op =
            RangeOp { revision, limit: HASH_PAGE_KEYS, bytes_max: HASH_PAGE_BYTES, ..RangeOp::newest(KeyRange::all()) };
        loop {
            let page = self.service().range(context, read, op.clone()).await;
            let page = page.map_err(|failure| self.failed(&failure))?.body;
            for kv in &page.kvs {
                let length = u64::try_from(kv.key.len()).unwrap_or(u64::MAX);
                hash = crc32c::crc32c_append(hash, &length.to_le_bytes());
                hash = crc32c::crc32c_append(hash, &kv.key);
                for number in [kv.create_revision, kv.mod_revision, kv.version] {
                    hash = crc32c::crc32c_append(hash, &number.to_le_bytes());
                }
                hash = crc32c::crc32c_append(hash, &kv.value);
            }
            let Some(last) = page.kvs.last().filter(|_| page.more) else { return Ok(hash) };
            let mut start = last.key.to_vec();
            start.push(0);
            op.range.start = start.into();
        }
    }
}

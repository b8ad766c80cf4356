//! etcd's services over gRPC, as its clients call them.

use std::time::Duration;
use tenure::client::etcd::pb;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

pub(crate) use pb::etcdserverpb as etcd;
pub(crate) use pb::mvccpb;

const WAIT: Duration = Duration::from_secs(10);

pub(crate) async fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.expect("the member is there")
}

/// A client of one member.
#[derive(Debug, Clone)]
pub(crate) struct Etcd(pub(crate) Channel);

impl Etcd {
    pub(crate) async fn at(address: &str) -> Self {
        Self(channel(address).await)
    }

    pub(crate) fn kv(&self) -> etcd::kv_client::KvClient<Channel> {
        etcd::kv_client::KvClient::new(self.0.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(crate) fn lease(&self) -> etcd::lease_client::LeaseClient<Channel> {
        etcd::lease_client::LeaseClient::new(self.0.clone())
    }

    pub(crate) fn maintenance(&self) -> etcd::maintenance_client::MaintenanceClient<Channel> {
        etcd::maintenance_client::MaintenanceClient::new(self.0.clone())
    }

    pub(crate) async fn range(&self, request: etcd::RangeRequest) -> Result<etcd::RangeResponse, Status> {
        Ok(self.kv().range(request).await?.into_inner())
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> i64 {
        let request = etcd::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() };
        revision(&self.kv().put(request).await.unwrap().into_inner().header)
    }

    pub(crate) async fn txn(&self, request: etcd::TxnRequest) -> Result<etcd::TxnResponse, Status> {
        Ok(self.kv().txn(request).await?.into_inner())
    }

    pub(crate) async fn compact(&self, revision: i64) -> Result<(), Status> {
        self.kv().compact(etcd::CompactionRequest { revision, physical: false }).await.map(drop)
    }

    pub(crate) async fn grant(&self, ttl: i64) -> i64 {
        self.lease().lease_grant(etcd::LeaseGrantRequest { ttl, id: 0 }).await.unwrap().into_inner().id
    }

    /// A stream of watches, with the metadata that Kubernetes sends.
    pub(crate) async fn watch(&self) -> Watch {
        let (questions, mut asked) = mpsc::channel(64);
        let stream = futures_util::stream::poll_fn(move |cx| asked.poll_recv(cx));
        let mut request = Request::new(stream);
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let mut client = etcd::watch_client::WatchClient::new(self.0.clone()).max_decoding_message_size(usize::MAX);
        let answers = client.watch(request).await.expect("a stream").into_inner();
        Watch { questions, answers }
    }
}

pub(crate) struct Watch {
    questions: mpsc::Sender<etcd::WatchRequest>,
    answers: Streaming<etcd::WatchResponse>,
}

impl Watch {
    pub(crate) async fn ask(&self, union: etcd::watch_request::RequestUnion) {
        self.questions.send(etcd::WatchRequest { request_union: Some(union) }).await.expect("the stream is open");
    }

    pub(crate) async fn create(&self, create: etcd::WatchCreateRequest) {
        self.ask(etcd::watch_request::RequestUnion::CreateRequest(create)).await;
    }

    pub(crate) async fn ask_progress(&self) {
        self.ask(etcd::watch_request::RequestUnion::ProgressRequest(etcd::WatchProgressRequest {})).await;
    }

    /// The next message, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<etcd::WatchResponse, Status> {
        let answer = tokio::time::timeout(WAIT, self.answers.message()).await.expect("something is said");
        answer.map(|answer| answer.expect("the stream goes on"))
    }

    /// Whether nothing is said for so long.
    pub(crate) async fn is_silent(&mut self, within: Duration) -> bool {
        tokio::time::timeout(within, self.answers.message()).await.is_err()
    }

    /// Nothing more is asked; what was asked for goes on.
    pub(crate) fn half_close(self) -> Streaming<etcd::WatchResponse> {
        self.answers
    }
}

pub(crate) fn bytes(text: &str) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

/// The keys that begin with this.
pub(crate) fn prefix(text: &str) -> (bytes::Bytes, bytes::Bytes) {
    let mut end = text.as_bytes().to_vec();
    *end.last_mut().expect("a prefix") += 1;
    (bytes(text), end.into())
}

pub(crate) fn listing(text: &str) -> etcd::RangeRequest {
    let (key, range_end) = prefix(text);
    etcd::RangeRequest { key, range_end, ..Default::default() }
}

pub(crate) fn watching(text: &str, start_revision: i64) -> etcd::WatchCreateRequest {
    let (key, range_end) = prefix(text);
    etcd::WatchCreateRequest { key, range_end, start_revision, prev_kv: true, ..Default::default() }
}

pub(crate) fn revision(header: &Option<etcd::ResponseHeader>) -> i64 {
    header.as_ref().expect("a header").revision
}

/// Code and text, by which clients tell errors apart.
pub(crate) fn said<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.expect_err("a refusal");
    (status.code(), status.message().to_owned())
}

pub(crate) fn op(request: etcd::request_op::Request) -> etcd::RequestOp {
    etcd::RequestOp { request: Some(request) }
}

pub(crate) fn put_op(key: &str, value: &str, lease: i64) -> etcd::RequestOp {
    let put = etcd::PutRequest { key: bytes(key), value: bytes(value), lease, ..Default::default() };
    op(etcd::request_op::Request::RequestPut(put))
}

pub(crate) fn get_op(key: &str) -> etcd::RequestOp {
    op(etcd::request_op::Request::RequestRange(etcd::RangeRequest { key: bytes(key), ..Default::default() }))
}

pub(crate) fn delete_op(key: &str) -> etcd::RequestOp {
    op(etcd::request_op::Request::RequestDeleteRange(etcd::DeleteRangeRequest {
        key: bytes(key),
        ..Default::default()
    }))
}

/// As an apiserver writes: only if the key has this revision.
pub(crate) fn guarded(
    key: &str,
    revision: i64,
    then: etcd::RequestOp,
    other: Option<etcd::RequestOp>,
) -> etcd::TxnRequest {
    use etcd::compare::{CompareResult, CompareTarget, TargetUnion};
    let compare = etcd::Compare {
        result: i32::from(CompareResult::Equal),
        target: i32::from(CompareTarget::Mod),
        key: bytes(key),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    etcd::TxnRequest { compare: vec![compare], success: vec![then], failure: other.into_iter().collect() }
}

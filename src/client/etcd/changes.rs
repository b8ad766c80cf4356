//! A watch of every key of an etcd: whole revisions, in order.

use super::pb::etcdserverpb as etcd;
use super::pb::mvccpb::Event;
use super::{ALL, Etcd, EtcdError, login};
use bytes::Bytes;
use etcd::watch_request::RequestUnion;
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::Streaming;

/// Questions that the connection has not taken yet.
const ASKED_MAX: usize = 4;
const DENIED: &str = "permission denied";

#[derive(Debug)]
pub struct Changes {
    etcd: Etcd,
    questions: mpsc::Sender<etcd::WatchRequest>,
    answers: Streaming<etcd::WatchResponse>,
}

#[derive(Debug)]
pub enum Change {
    /// Of one or more revisions, each whole.
    Events(Vec<Event>),
    /// Everything up to this revision has been said.
    Progress(i64),
}

fn request(union: RequestUnion) -> etcd::WatchRequest {
    etcd::WatchRequest { request_union: Some(union) }
}

impl Changes {
    pub(super) async fn open(etcd: &Etcd, from: i64) -> Result<Self, EtcdError> {
        let (questions, mut asked) = mpsc::channel(ASKED_MAX);
        let create = etcd::WatchCreateRequest {
            key: Bytes::from_static(ALL),
            range_end: Bytes::from_static(ALL),
            start_revision: from,
            ..Default::default()
        };
        questions.try_send(request(RequestUnion::CreateRequest(create))).ok();
        let mut client =
            etcd::watch_client::WatchClient::new(etcd.signed_channel()).max_decoding_message_size(usize::MAX);
        let answers = etcd.answered(client.watch(stream::poll_fn(move |cx| asked.poll_recv(cx)))).await?;
        Ok(Self { etcd: etcd.clone(), questions, answers })
    }

    /// Asks how far the watch is; the answer is one of the next changes. May be called at any time.
    pub fn ask_progress(&self) {
        // While a question is still on its way, another says nothing new.
        self.questions.try_send(request(RequestUnion::ProgressRequest(etcd::WatchProgressRequest {}))).ok();
    }

    /// What is said next. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Change, EtcdError> {
        let ended = |message: &str| EtcdError::Unavailable { endpoint: self.etcd.name(), message: message.to_owned() };
        loop {
            let answer = self.answers.message().await.map_err(|status| self.etcd.failed(&status))?;
            let answer = answer.ok_or_else(|| ended("the watch ended"))?;
            if answer.compact_revision > 0 {
                return Err(EtcdError::Compacted { endpoint: self.etcd.name() });
            }
            if answer.canceled {
                // What an etcd says there for a token that has run out.
                let denied = login::has_ended(&answer.cancel_reason) || answer.cancel_reason.contains(DENIED);
                if denied && self.etcd.login.is_password() {
                    return Err(EtcdError::LoggedOut { endpoint: self.etcd.name(), message: answer.cancel_reason });
                }
                return Err(ended(&answer.cancel_reason));
            }
            if !answer.events.is_empty() {
                return Ok(Change::Events(answer.events));
            }
            if !answer.created
                && let Some(header) = answer.header
            {
                return Ok(Change::Progress(header.revision));
            }
        }
    }
}

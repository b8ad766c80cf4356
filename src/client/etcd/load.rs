//! The calls of who measures a server: one at a time or many at once on one connection, each with as little
//! around it as there can be.

use super::pb::etcdserverpb as etcd;
use super::pb::mvccpb::Event;
use super::pb::v3lockpb;
use super::{Etcd, EtcdError};
use bytes::Bytes;
use etcd::watch_request::RequestUnion;
use futures_util::{StreamExt as _, stream};
use std::collections::VecDeque;
use tokio::sync::mpsc;
use tonic::Streaming;

/// Renewals that the connection has not taken yet.
const ASKED_MAX: usize = 4;

/// A range to read.
#[derive(Debug, Clone, Default)]
pub struct Span {
    pub key: Bytes,
    /// Empty: the one key.
    pub end: Bytes,
    /// 0: no limit.
    pub limit: i64,
    pub serializable: bool,
    pub count_only: bool,
}

/// How much was answered, and at which revision.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    pub kvs: usize,
    pub count: u64,
    pub revision: i64,
}

impl Etcd {
    pub async fn put(&self, key: Bytes, value: Bytes) -> Result<(), EtcdError> {
        let request = etcd::PutRequest { key, value, ..Default::default() };
        self.answered(client!(self, kv_client::KvClient).put(request)).await.map(drop)
    }

    pub async fn read(&self, span: Span) -> Result<Counted, EtcdError> {
        let Span { key, end, limit, serializable, count_only } = span;
        let request = etcd::RangeRequest { key, range_end: end, limit, serializable, count_only, ..Default::default() };
        let answer = self.answered(client!(self, kv_client::KvClient).range(request)).await?;
        Ok(Counted {
            kvs: answer.kvs.len(),
            count: u64::try_from(answer.count).unwrap_or_default(),
            revision: answer.header.map_or(0, |header| header.revision),
        })
    }

    /// Waits for the lock however long that takes; answers the key that is held.
    pub async fn lock(&self, name: Bytes, lease: i64) -> Result<Bytes, EtcdError> {
        let mut client = v3lockpb::lock_client::LockClient::new(self.signed_channel());
        let answer = client.lock(v3lockpb::LockRequest { name, lease }).await;
        Ok(answer.map_err(|status| self.failed(&status))?.into_inner().key)
    }

    pub async fn unlock(&self, key: Bytes) -> Result<(), EtcdError> {
        let mut client = v3lockpb::lock_client::LockClient::new(self.signed_channel());
        self.answered(client.unlock(v3lockpb::UnlockRequest { key })).await.map(drop)
    }

    /// A stream of renewals, of which this is the first.
    pub async fn renewals(&self, first: i64) -> Result<Renewals, EtcdError> {
        Renewals::open(self, first).await
    }

    /// One stream of watches of single keys, from this revision on, or from now on if it is 0.
    pub async fn watches(&self, keys: Vec<Bytes>, from: i64) -> Result<Watches, EtcdError> {
        Watches::open(self, keys.into_iter().map(|key| (key, Bytes::new())).collect(), from).await
    }

    /// The same of one range.
    pub async fn watch_range(&self, (key, end): (Bytes, Bytes), from: i64) -> Result<Watches, EtcdError> {
        Watches::open(self, vec![(key, end)], from).await
    }
}

/// Renews leases, one after the other on one stream.
#[derive(Debug)]
pub struct Renewals {
    etcd: Etcd,
    questions: mpsc::Sender<etcd::LeaseKeepAliveRequest>,
    answers: Streaming<etcd::LeaseKeepAliveResponse>,
}

impl Renewals {
    async fn open(etcd: &Etcd, first: i64) -> Result<Self, EtcdError> {
        let (questions, mut asked) = mpsc::channel(ASKED_MAX);
        // An etcd's stream begins with its first answer.
        questions.try_send(etcd::LeaseKeepAliveRequest { id: first }).ok();
        let mut client = client!(etcd, lease_client::LeaseClient);
        let answers = etcd.answered(client.lease_keep_alive(stream::poll_fn(move |cx| asked.poll_recv(cx)))).await?;
        let mut this = Self { etcd: etcd.clone(), questions, answers };
        this.answer().await?;
        Ok(this)
    }

    pub async fn renew(&mut self, id: i64) -> Result<(), EtcdError> {
        if self.questions.send(etcd::LeaseKeepAliveRequest { id }).await.is_err() {
            return Err(self.ended());
        }
        self.answer().await
    }

    async fn answer(&mut self) -> Result<(), EtcdError> {
        let answer = self.answers.message().await.map_err(|status| self.etcd.failed(&status))?;
        let answer = answer.ok_or_else(|| self.ended())?;
        if answer.ttl > 0 {
            return Ok(());
        }
        Err(EtcdError::LeaseNotFound { endpoint: self.etcd.name(), id: answer.id })
    }

    fn ended(&self) -> EtcdError {
        EtcdError::Unavailable { endpoint: self.etcd.name(), message: "the stream ended".to_owned() }
    }
}

/// Watches that share a stream.
#[derive(Debug)]
pub struct Watches {
    etcd: Etcd,
    answers: Streaming<etcd::WatchResponse>,
    /// What came before the last watch was made.
    early: VecDeque<Vec<Event>>,
}

impl Watches {
    /// Answers once all of them have been made.
    async fn open(etcd: &Etcd, ranges: Vec<(Bytes, Bytes)>, from: i64) -> Result<Self, EtcdError> {
        let count = ranges.len();
        let create = move |(key, range_end)| {
            let create = etcd::WatchCreateRequest { key, range_end, start_revision: from, ..Default::default() };
            etcd::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
        };
        let asked = stream::iter(ranges).map(create).chain(stream::pending());
        let mut client =
            etcd::watch_client::WatchClient::new(etcd.signed_channel()).max_decoding_message_size(usize::MAX);
        let answers = etcd.answered(client.watch(asked)).await?;
        let mut this = Self { etcd: etcd.clone(), answers, early: VecDeque::new() };
        let mut made = 0;
        while made < count {
            let answer = this.answer().await?;
            made += usize::from(answer.created);
            if !answer.events.is_empty() {
                this.early.push_back(answer.events);
            }
        }
        Ok(this)
    }

    /// What one of them says next. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Vec<Event>, EtcdError> {
        if let Some(events) = self.early.pop_front() {
            return Ok(events);
        }
        loop {
            let answer = self.answer().await?;
            if !answer.events.is_empty() {
                return Ok(answer.events);
            }
        }
    }

    async fn answer(&mut self) -> Result<etcd::WatchResponse, EtcdError> {
        let answer = self.answers.message().await.map_err(|status| self.etcd.failed(&status))?;
        let ended = |message: &str| EtcdError::Unavailable { endpoint: self.etcd.name(), message: message.to_owned() };
        let answer = answer.ok_or_else(|| ended("the watch ended"))?;
        if answer.compact_revision > 0 {
            return Err(EtcdError::Compacted { endpoint: self.etcd.name() });
        }
        if answer.canceled { Err(ended(&answer.cancel_reason)) } else { Ok(answer) }
    }
}

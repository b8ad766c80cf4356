//! A client of etcd's gRPC API, as far as copying one store into another needs it, and measuring one: of an
//! etcd, and of a Tenure member, which speaks the same.
//!
//! Invariants: every call has its time; everything that writes may be repeated, since it says what shall be
//! and not what shall change; a failure tells whether trying again may help.

/// A client of one of the services. Above the modules that use it.
macro_rules! client {
    ($self:ident, $module:ident :: $client:ident) => {
        etcd::$module::$client::new($self.signed_channel())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    };
}

mod accounts;
mod changes;
mod load;
mod login;
pub mod pb;

pub use changes::{Change, Changes};
pub use load::{Counted, Renewals, Span, Watches};
pub use login::Login;

use super::Endpoint;
use crate::net::root_cause;
use bytes::Bytes;
use futures_util::stream;
use login::Signed;
use pb::etcdserverpb as etcd;
use pb::mvccpb::KeyValue;
use std::future::Future;
use std::time::Duration;
use thiserror::Error;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

const CONNECT: Duration = Duration::from_secs(5);
/// A page of large values over a slow line takes its time.
const CALL: Duration = Duration::from_secs(30);
/// What a stream, and all of a connection together, may send ahead of who reads it.
const STREAM_WINDOW: u32 = 1 << 20;
const WINDOW: u32 = 8 << 20;
/// The whole range of keys, as etcd's clients write it.
const ALL: &[u8] = b"\0";

/// A range's end as it is written there, where an empty one means a single key.
#[must_use]
pub fn range_end(end: Option<Bytes>) -> Bytes {
    end.unwrap_or(Bytes::from_static(ALL))
}

#[derive(Debug, Clone, Error)]
pub enum EtcdError {
    #[error("{0}")]
    Usage(String),
    #[error("cannot reach {endpoint}: {message}")]
    Unavailable { endpoint: String, message: String },
    #[error("{endpoint} does not answer as an etcd does: {message}")]
    NotEtcd { endpoint: String, message: String },
    #[error("{endpoint} has compacted what was to be read")]
    Compacted { endpoint: String },
    #[error("{endpoint} does not know lease {id:x}")]
    LeaseNotFound { endpoint: String, id: i64 },
    #[error("{endpoint} does not let us: {message}")]
    Denied { endpoint: String, message: String },
    /// Logging in again mends it, unless the password has changed.
    #[error("{endpoint} has ended our login: {message}")]
    LoggedOut { endpoint: String, message: String },
    #[error("{endpoint} refuses: {message}")]
    Refused { endpoint: String, message: String },
}

/// One of the endpoints of a cluster; another one when that is gone.
#[derive(Debug, Clone)]
pub struct Etcd {
    endpoints: Vec<Endpoint>,
    current: usize,
    channel: Channel,
    login: Login,
    signed: Signed,
}

/// What `Status` and the header of its answer say.
#[derive(Debug, Clone)]
pub struct About {
    pub cluster_id: u64,
    pub version: String,
}

#[derive(Debug, Clone)]
pub struct Page {
    pub kvs: Vec<KeyValue>,
    /// Keys in the range, whatever the limit.
    pub count: u64,
    pub more: bool,
    /// Of the store, when this was read.
    pub revision: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put { key: Bytes, value: Bytes, lease: i64 },
    Delete { key: Bytes },
}

impl EtcdError {
    /// Whether it may answer later, or elsewhere, or once it is logged in again.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::LoggedOut { .. })
    }
}

impl Write {
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

impl Etcd {
    /// Connects to the first of the endpoints that answers.
    ///
    /// # Errors
    /// None does, what stands there is no etcd, or the login is refused.
    pub async fn connect(endpoints: Vec<Endpoint>, login: Login) -> Result<(Self, About), EtcdError> {
        let mut failure = EtcdError::Usage("there is no endpoint to talk to".to_owned());
        for current in 0..endpoints.len() {
            match Self::dial(&endpoints[current]).await {
                Ok(channel) => {
                    let signed = login.shown();
                    let mut this = Self { endpoints, current, channel, login, signed };
                    this.log_in().await?;
                    let about = this.about().await?;
                    return Ok((this, about));
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn dial(endpoint: &Endpoint) -> Result<Channel, EtcdError> {
        let unavailable = |error: tonic::transport::Error| EtcdError::Unavailable {
            endpoint: endpoint.to_string(),
            message: root_cause(&error),
        };
        let dialled = tonic::transport::Endpoint::from_shared(endpoint.base().to_owned()).map_err(unavailable)?;
        // Many large answers may be under way at once: none of them shall wait for another's window.
        let dialled = dialled.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(WINDOW);
        dialled.connect_timeout(CONNECT).connect().await.map_err(unavailable)
    }

    /// Goes on with the next endpoint that can be reached, this one included, and logs in there.
    pub async fn look_elsewhere(&mut self) {
        for step in 1..=self.endpoints.len() {
            let next = (self.current + step) % self.endpoints.len();
            if let Ok(channel) = Self::dial(&self.endpoints[next]).await {
                self.current = next;
                self.channel = channel;
                if self.log_in().await.is_ok() {
                    return;
                }
            }
        }
    }

    /// The channel, for calls that this client has no method for.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn signed_channel(&self) -> InterceptedService<Channel, Signed> {
        InterceptedService::new(self.channel(), self.signed.clone())
    }

    fn name(&self) -> String {
        self.endpoints[self.current].to_string()
    }

    async fn answered<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, EtcdError> {
        match tokio::time::timeout(CALL, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => Err(EtcdError::Unavailable { endpoint: self.name(), message: "timed out".to_owned() }),
        }
    }

    fn failed(&self, status: &Status) -> EtcdError {
        let (endpoint, message) = (self.name(), status.message().to_owned());
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Internal | Code::Unknown => {
                EtcdError::Unavailable { endpoint, message }
            }
            Code::ResourceExhausted if message.contains("too many requests") => {
                EtcdError::Unavailable { endpoint, message }
            }
            Code::OutOfRange if message.contains("compacted") => EtcdError::Compacted { endpoint },
            Code::NotFound if message.contains("lease") => EtcdError::LeaseNotFound { endpoint, id: 0 },
            _ if self.login.is_password() && login::has_ended(&message) => EtcdError::LoggedOut { endpoint, message },
            Code::PermissionDenied | Code::Unauthenticated => EtcdError::Denied { endpoint, message },
            Code::InvalidArgument if login::is_refused(&message) => EtcdError::Denied { endpoint, message },
            Code::Unimplemented => EtcdError::NotEtcd { endpoint, message },
            _ => EtcdError::Refused { endpoint, message },
        }
    }

    async fn about(&self) -> Result<About, EtcdError> {
        let status = client!(self, maintenance_client::MaintenanceClient).status(etcd::StatusRequest {}).await;
        let status = status.map_err(|status| match self.failed(&status) {
            // It was connected to: what answers there is something else.
            EtcdError::Unavailable { endpoint, message } if status.code() != Code::Unavailable => {
                EtcdError::NotEtcd { endpoint, message }
            }
            error => error,
        })?;
        let status = status.into_inner();
        let cluster_id = status.header.map_or(0, |header| header.cluster_id);
        Ok(About { cluster_id, version: status.version })
    }

    /// From this key to the end of all keys, or to `end`.
    pub async fn page(
        &self,
        (start, end): (Bytes, Option<Bytes>),
        revision: i64,
        limit: i64,
        keys_only: bool,
    ) -> Result<Page, EtcdError> {
        let request = etcd::RangeRequest {
            key: start,
            range_end: range_end(end),
            limit,
            revision,
            keys_only,
            ..Default::default()
        };
        let answer = self.answered(client!(self, kv_client::KvClient).range(request)).await?;
        Ok(Page {
            kvs: answer.kvs,
            count: u64::try_from(answer.count).unwrap_or_default(),
            more: answer.more,
            revision: answer.header.map_or(0, |header| header.revision),
        })
    }

    /// How many keys there are, and the revision of that.
    pub async fn count(&self) -> Result<(u64, i64), EtcdError> {
        let page = self.page((Bytes::from_static(ALL), None), 0, 1, true).await?;
        Ok((page.count, page.revision))
    }

    /// All in one transaction: at most as many as that may have, and no key twice.
    pub async fn write(&self, writes: Vec<Write>) -> Result<i64, EtcdError> {
        use etcd::request_op::Request;
        let first_lease = writes.iter().find_map(|write| match write {
            Write::Put { lease, .. } if *lease != 0 => Some(*lease),
            _ => None,
        });
        let op = |write| {
            let request = match write {
                Write::Put { key, value, lease } => {
                    Request::RequestPut(etcd::PutRequest { key, value, lease, ..Default::default() })
                }
                Write::Delete { key } => {
                    Request::RequestDeleteRange(etcd::DeleteRangeRequest { key, ..Default::default() })
                }
            };
            etcd::RequestOp { request: Some(request) }
        };
        let request = etcd::TxnRequest { success: writes.into_iter().map(op).collect(), ..Default::default() };
        let answer = self.answered(client!(self, kv_client::KvClient).txn(request)).await;
        let answer = answer.map_err(|error| match error {
            EtcdError::LeaseNotFound { endpoint, .. } => {
                EtcdError::LeaseNotFound { endpoint, id: first_lease.unwrap_or_default() }
            }
            error => error,
        })?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    pub async fn leases(&self) -> Result<Vec<i64>, EtcdError> {
        let mut client = client!(self, lease_client::LeaseClient);
        let answer = self.answered(client.lease_leases(etcd::LeaseLeasesRequest {})).await?;
        Ok(answer.leases.into_iter().map(|lease| lease.id).collect())
    }

    /// The TTL in seconds that a lease was granted; `None` if it has ended.
    pub async fn granted(&self, id: i64) -> Result<Option<i64>, EtcdError> {
        let request = etcd::LeaseTimeToLiveRequest { id, keys: false };
        let answer = self.answered(client!(self, lease_client::LeaseClient).lease_time_to_live(request)).await?;
        Ok(Some(answer.granted_ttl).filter(|_| answer.ttl > 0))
    }

    /// Grants a lease of this id, unless there is one already.
    pub async fn grant(&self, id: i64, ttl: i64) -> Result<(), EtcdError> {
        let request = etcd::LeaseGrantRequest { ttl, id };
        match self.answered(client!(self, lease_client::LeaseClient).lease_grant(request)).await {
            Err(EtcdError::Refused { message, .. }) if message.contains("lease already exists") => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Ends a lease, unless it has ended already.
    pub async fn revoke(&self, id: i64) -> Result<(), EtcdError> {
        let request = etcd::LeaseRevokeRequest { id };
        match self.answered(client!(self, lease_client::LeaseClient).lease_revoke(request)).await {
            Err(EtcdError::LeaseNotFound { .. }) => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Renews leases, and answers which of them there are not any more.
    pub async fn keep_alive(&self, ids: Vec<i64>) -> Result<Vec<i64>, EtcdError> {
        let mut left = ids.len();
        let requests = stream::iter(ids.into_iter().map(|id| etcd::LeaseKeepAliveRequest { id }));
        let mut client = client!(self, lease_client::LeaseClient);
        let renewed = async {
            let mut answers = client.lease_keep_alive(requests).await?.into_inner();
            let mut ended = Vec::new();
            while left > 0 {
                let Some(answer) = answers.message().await? else {
                    return Err(Status::unavailable("the stream ended before its answers"));
                };
                left -= 1;
                if answer.ttl <= 0 {
                    ended.push(answer.id);
                }
            }
            Ok(Response::new(ended))
        };
        self.answered(renewed).await
    }

    /// The changes of all keys from this revision on.
    pub async fn watch(&self, from: i64) -> Result<Changes, EtcdError> {
        Changes::open(self, from).await
    }
}

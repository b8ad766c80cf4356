//! The etcd v3 door: gRPC on the client port, and the JSON gateway, which is a codec in front of it.
//!
//! Invariants: one set of conversions and one table of errors serve both; what a call means is decided in
//! `service`. Every stream ends at shutdown, and holds a bounded part of what it has still to say. It must
//! not know REST's names, nor anything below `service`.

mod auth;
mod cluster;
mod concurrency;
mod convert;
mod errors;
mod gateway;
mod health;
mod json;
mod kv;
mod lease;
mod maintenance;
mod pb;
mod watch;

use super::State;
use super::access::{Credentials, method_admits};
use crate::model::limits::{TIMEOUT_ETCD_MS, TIMEOUT_MAX_MS};
use crate::model::{Caller, Failure};
use crate::service::{Admission, Admits, Context, Service};
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use errors::{NO_LEADER, known, status};
use futures_util::stream::BoxStream;
use hyper::header::CONTENT_TYPE;
use hyper::{StatusCode, Version, http};
use pb::etcdserverpb as etcd;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tower::util::BoxCloneSyncService;

/// The stream of a call's answers.
type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// What a request may be longer than a write: a message around it, and ranges of long keys.
const MESSAGE_OVERHEAD_BYTES: usize = 512 << 10;
/// What a request or answer costs besides its message.
const CALL_BYTES: usize = 512;

/// Whose refusals are answers on the stream, as etcd gives them.
const WATCH: &str = "/etcdserverpb.Watch/Watch";

const PANICKED: &str = "etcdserver: this request failed inside";

/// Every service's code hangs on this: a cheap handle.
#[derive(Debug, Clone)]
pub(super) struct Door {
    state: Arc<State>,
}

/// The services, made once.
#[derive(Clone)]
pub(super) struct Etcd {
    door: Door,
    kv: etcd::kv_server::KvServer<Door>,
    watch: etcd::watch_server::WatchServer<Door>,
    lease: etcd::lease_server::LeaseServer<Door>,
    cluster: etcd::cluster_server::ClusterServer<Door>,
    maintenance: etcd::maintenance_server::MaintenanceServer<Door>,
    auth: etcd::auth_server::AuthServer<Door>,
    lock: pb::v3lockpb::lock_server::LockServer<Door>,
    election: pb::v3electionpb::election_server::ElectionServer<Door>,
    health: pb::grpc::health::v1::health_server::HealthServer<Door>,
    reflection: Option<Reflection>,
    gateway: gateway::Gateway,
}

type Reflecting = BoxCloneSyncService<Request, http::Response<tonic::body::Body>, Infallible>;

#[derive(Clone)]
struct Reflection {
    v1: Reflecting,
    v1alpha: Reflecting,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").finish_non_exhaustive()
    }
}

/// Bounds every service's requests; answers are as large as they must be.
macro_rules! sized {
    ($server:expr, $bytes:expr) => {
        $server.max_decoding_message_size($bytes).max_encoding_message_size(usize::MAX)
    };
}

impl Etcd {
    pub(super) fn new(state: Arc<State>) -> Self {
        let bytes = state.options.request_bytes_max.saturating_add(MESSAGE_OVERHEAD_BYTES);
        let door = Door { state };
        Self {
            kv: sized!(etcd::kv_server::KvServer::new(door.clone()), bytes),
            watch: sized!(etcd::watch_server::WatchServer::new(door.clone()), bytes),
            lease: sized!(etcd::lease_server::LeaseServer::new(door.clone()), bytes),
            cluster: sized!(etcd::cluster_server::ClusterServer::new(door.clone()), bytes),
            maintenance: sized!(etcd::maintenance_server::MaintenanceServer::new(door.clone()), bytes),
            auth: sized!(etcd::auth_server::AuthServer::new(door.clone()), bytes),
            lock: sized!(pb::v3lockpb::lock_server::LockServer::new(door.clone()), bytes),
            election: sized!(pb::v3electionpb::election_server::ElectionServer::new(door.clone()), bytes),
            health: sized!(pb::grpc::health::v1::health_server::HealthServer::new(door.clone()), bytes),
            reflection: reflection(),
            gateway: gateway::Gateway::new(),
            door,
        }
    }

    /// Answers a gRPC call, whichever service it is for.
    pub(super) async fn grpc(&self, request: Request) -> Response {
        // Whoever speaks HTTP/1.1 is no gRPC client; a page in a browser could be.
        if request.version() != Version::HTTP_2 {
            return plain(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "gRPC needs HTTP/2\n");
        }
        self.call(request).await
    }

    /// Answers a request for one of the paths of etcd's JSON gateway.
    pub(super) async fn gateway(&self, request: Request) -> Response {
        self.gateway.answer(self, request).await
    }

    /// What a client is told of a call whose code panicked.
    pub(super) fn grpc_panicked() -> Response {
        Status::internal(PANICKED).into_http::<tonic::body::Body>().map(Body::new)
    }

    pub(super) fn gateway_panicked() -> Response {
        gateway::refused(&Status::internal(PANICKED))
    }

    /// Who asks, or why nobody may; a watch tells it on its stream.
    async fn identify(&self, request: &mut Request) -> Result<(), Failure> {
        let path = request.uri().path();
        let admits = method_admits(path);
        if admits == Admits::Anybody {
            return Ok(());
        }
        let is_watch = path == WATCH;
        let identified = self.door.caller(request.headers(), admits).await;
        let identity = match identified {
            Ok(caller) => Identity(Ok(caller)),
            Err(failure) if is_watch => Identity(Err(failure)),
            Err(failure) => return Err(failure),
        };
        request.extensions_mut().insert(identity);
        Ok(())
    }

    async fn call(&self, mut request: Request) -> Response {
        use tonic::codegen::Service as _;
        if let Err(failure) = self.identify(&mut request).await {
            return status(&failure).into_http::<tonic::body::Body>().map(Body::new);
        }
        let path = request.uri().path();
        let service = path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service);
        let answered = match service {
            "etcdserverpb.KV" => self.kv.clone().call(request).await,
            "etcdserverpb.Watch" => self.watch.clone().call(request).await,
            "etcdserverpb.Lease" => self.lease.clone().call(request).await,
            "etcdserverpb.Cluster" => self.cluster.clone().call(request).await,
            "etcdserverpb.Maintenance" => self.maintenance.clone().call(request).await,
            "etcdserverpb.Auth" => self.auth.clone().call(request).await,
            "v3lockpb.Lock" => self.lock.clone().call(request).await,
            "v3electionpb.Election" => self.election.clone().call(request).await,
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            "grpc.reflection.v1.ServerReflection" if let Some(reflection) = &self.reflection => {
                reflection.v1.clone().call(request).await
            }
            "grpc.reflection.v1alpha.ServerReflection" if let Some(reflection) = &self.reflection => {
                reflection.v1alpha.clone().call(request).await
            }
            unknown => Ok(Status::unimplemented(format!("unknown service {unknown}")).into_http()),
        };
        let answered: http::Response<tonic::body::Body> = answered.unwrap_or_else(|never| match never {});
        let (mut parts, body) = answered.into_parts();
        let body = match parts.extensions.remove::<Held>() {
            None => Body::new(body),
            Some(held) => Body::new(held::HeldBody { body, _held: held }),
        };
        Response::from_parts(parts, body)
    }
}

/// Whether this request is for the etcd door, and for which side of it.
pub(super) fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

pub(super) fn is_gateway(path: &str) -> bool {
    path.starts_with("/v3/") || path.starts_with("/v3beta/")
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn reflection() -> Option<Reflection> {
    let builder =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(pb::DESCRIPTORS);
    // Made from what the build has checked; without it everything else still serves.
    Some(Reflection {
        v1: BoxCloneSyncService::new(builder().build_v1().ok()?),
        v1alpha: BoxCloneSyncService::new(builder().build_v1alpha().ok()?),
    })
}

/// A share of the member's budget that an answer keeps until it has been sent.
#[derive(Debug, Clone)]
struct Held(#[expect(dead_code, reason = "given back when it is dropped")] Arc<Admission>);

mod held {
    //! An answer's body that keeps its share of the budget.

    use super::Held;
    use hyper::body::{Body, Frame, SizeHint};
    use std::pin::Pin;
    use std::task::{Context, Poll};

    pub(super) struct HeldBody {
        pub(super) body: tonic::body::Body,
        pub(super) _held: Held,
    }

    impl Body for HeldBody {
        type Data = bytes::Bytes;
        type Error = tonic::Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
            Pin::new(&mut self.body).poll_frame(cx)
        }

        fn is_end_stream(&self) -> bool {
            self.body.is_end_stream()
        }

        fn size_hint(&self) -> SizeHint {
            self.body.size_hint()
        }
    }
}

fn held<T>(answer: T, admission: Admission) -> tonic::Response<T> {
    let mut response = tonic::Response::new(answer);
    response.extensions_mut().insert(Held(Arc::new(admission)));
    response
}

/// Who a call is from.
#[derive(Debug, Clone)]
struct Identity(Result<Caller, Failure>);

impl Identity {
    fn of<T>(request: &tonic::Request<T>) -> Result<Caller, Failure> {
        let identity = request.extensions().get::<Self>();
        identity.map_or(Ok(Caller::Anonymous), |Self(identity)| identity.clone())
    }
}

impl Door {
    async fn caller(&self, headers: &http::HeaderMap, admits: Admits) -> Result<Caller, Failure> {
        let credentials = Credentials::of_grpc(headers)?;
        let caller = self.service().caller(credentials.shown()).await?;
        self.service().admit_caller(&caller, admits, Duration::from_millis(TIMEOUT_ETCD_MS)).await?;
        Ok(caller)
    }

    fn service(&self) -> &Service {
        &self.state.service
    }

    fn failed(&self, failure: &Failure) -> Status {
        status(failure)
    }

    fn admit(&self, bytes: usize) -> Result<Admission, Status> {
        self.service().admit(bytes.saturating_add(CALL_BYTES)).map_err(|failure| self.failed(&failure))
    }

    fn has_leader(&self) -> bool {
        self.service().leader_id().is_some()
    }

    /// The client asks to be refused, or cut off, while nobody leads.
    fn needs_leader(&self, metadata: &MetadataMap) -> bool {
        metadata.get("hasleader").is_some_and(|wanted| wanted == "true")
    }

    /// For a call with one answer: until when the client waits, and whether it goes on without a leader.
    fn context<T>(&self, request: &tonic::Request<T>) -> Result<Context, Status> {
        if self.needs_leader(request.metadata()) && !self.has_leader() {
            return Err(known(NO_LEADER));
        }
        let most = Duration::from_millis(TIMEOUT_MAX_MS);
        let timeout = deadline(request.metadata()).unwrap_or(Duration::from_millis(TIMEOUT_ETCD_MS)).min(most);
        let caller = Identity::of(request).map_err(|failure| self.failed(&failure))?;
        Ok(Context::new(caller, timeout))
    }

    /// For a stream, each of whose steps has its own time.
    fn stream_context<T>(&self, request: &tonic::Request<T>) -> Result<Context, Status> {
        if self.needs_leader(request.metadata()) && !self.has_leader() {
            return Err(known(NO_LEADER));
        }
        let caller = Identity::of(request).map_err(|failure| self.failed(&failure))?;
        Ok(Context::new(caller, Duration::from_millis(TIMEOUT_ETCD_MS)))
    }
}

/// How long the client waits for the whole call: `grpc-timeout`, a number of at most eight digits and a unit.
fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A method without a row in the table of who may call it does not pass, and neither does a row without a method.
    #[test]
    fn every_method_says_who_may_call_it() {
        use crate::api::access::METHODS;
        use std::collections::BTreeSet;
        let pool = prost_reflect::DescriptorPool::decode(pb::DESCRIPTORS).unwrap();
        let served: BTreeSet<String> = pool
            .services()
            .flat_map(|service| service.methods().map(|method| method.full_name().to_owned()).collect::<Vec<_>>())
            .collect();
        let reflects = |name: &String| !name.starts_with("grpc.reflection.");
        let named: Vec<String> = METHODS
            .iter()
            .flat_map(|(service, methods, _)| methods.iter().map(move |method| format!("{service}.{method}")))
            .filter(reflects)
            .collect();
        let rows: BTreeSet<String> = named.iter().cloned().collect();
        assert_eq!(rows, served);
        assert_eq!(rows.len(), named.len(), "a method with two rows");
    }

    #[test]
    fn deadlines_are_read_and_nonsense_is_no_deadline() {
        let read = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", tonic::metadata::MetadataValue::from_static(text));
            deadline(&metadata)
        };
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        for text in ["", "S", "5", "5x", "-5S", "123456789S"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}

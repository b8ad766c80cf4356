//! etcd's JSON gateway: each path is one method of the gRPC services, called in process with the same
//! bytes that a gRPC client would send.
//!
//! Invariants: no semantics, no conversion and no text of an error is here, only framing; a request's body
//! is bounded in bytes and time, and a stream's is read as it comes.

use super::json::{to_json, to_message};
use super::{Etcd, pb, plain};
use crate::env::Clock;
use crate::model::limits::{BODY_GRACE_S, BODY_RATE_BYTES_PER_S};
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Version, http};
use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Status};

/// Below `/v3` and `/v3beta`.
const PATHS: &[(&str, &str)] = &[
    ("/kv/range", "etcdserverpb.KV.Range"),
    ("/kv/put", "etcdserverpb.KV.Put"),
    ("/kv/deleterange", "etcdserverpb.KV.DeleteRange"),
    ("/kv/txn", "etcdserverpb.KV.Txn"),
    ("/kv/compaction", "etcdserverpb.KV.Compact"),
    ("/watch", "etcdserverpb.Watch.Watch"),
    ("/lease/grant", "etcdserverpb.Lease.LeaseGrant"),
    ("/lease/revoke", "etcdserverpb.Lease.LeaseRevoke"),
    ("/kv/lease/revoke", "etcdserverpb.Lease.LeaseRevoke"),
    ("/lease/keepalive", "etcdserverpb.Lease.LeaseKeepAlive"),
    ("/lease/timetolive", "etcdserverpb.Lease.LeaseTimeToLive"),
    ("/kv/lease/timetolive", "etcdserverpb.Lease.LeaseTimeToLive"),
    ("/lease/leases", "etcdserverpb.Lease.LeaseLeases"),
    ("/kv/lease/leases", "etcdserverpb.Lease.LeaseLeases"),
    ("/cluster/member/add", "etcdserverpb.Cluster.MemberAdd"),
    ("/cluster/member/remove", "etcdserverpb.Cluster.MemberRemove"),
    ("/cluster/member/update", "etcdserverpb.Cluster.MemberUpdate"),
    ("/cluster/member/list", "etcdserverpb.Cluster.MemberList"),
    ("/cluster/member/promote", "etcdserverpb.Cluster.MemberPromote"),
    ("/maintenance/alarm", "etcdserverpb.Maintenance.Alarm"),
    ("/maintenance/status", "etcdserverpb.Maintenance.Status"),
    ("/maintenance/defragment", "etcdserverpb.Maintenance.Defragment"),
    ("/maintenance/hash", "etcdserverpb.Maintenance.Hash"),
    ("/maintenance/hashkv", "etcdserverpb.Maintenance.HashKV"),
    ("/maintenance/snapshot", "etcdserverpb.Maintenance.Snapshot"),
    ("/maintenance/transfer-leadership", "etcdserverpb.Maintenance.MoveLeader"),
    ("/maintenance/downgrade", "etcdserverpb.Maintenance.Downgrade"),
    ("/auth/enable", "etcdserverpb.Auth.AuthEnable"),
    ("/auth/disable", "etcdserverpb.Auth.AuthDisable"),
    ("/auth/status", "etcdserverpb.Auth.AuthStatus"),
    ("/auth/authenticate", "etcdserverpb.Auth.Authenticate"),
    ("/auth/user/add", "etcdserverpb.Auth.UserAdd"),
    ("/auth/user/get", "etcdserverpb.Auth.UserGet"),
    ("/auth/user/list", "etcdserverpb.Auth.UserList"),
    ("/auth/user/delete", "etcdserverpb.Auth.UserDelete"),
    ("/auth/user/changepw", "etcdserverpb.Auth.UserChangePassword"),
    ("/auth/user/grant", "etcdserverpb.Auth.UserGrantRole"),
    ("/auth/user/revoke", "etcdserverpb.Auth.UserRevokeRole"),
    ("/auth/role/add", "etcdserverpb.Auth.RoleAdd"),
    ("/auth/role/get", "etcdserverpb.Auth.RoleGet"),
    ("/auth/role/list", "etcdserverpb.Auth.RoleList"),
    ("/auth/role/delete", "etcdserverpb.Auth.RoleDelete"),
    ("/auth/role/grant", "etcdserverpb.Auth.RoleGrantPermission"),
    ("/auth/role/revoke", "etcdserverpb.Auth.RoleRevokePermission"),
    ("/lock/lock", "v3lockpb.Lock.Lock"),
    ("/lock/unlock", "v3lockpb.Lock.Unlock"),
    ("/election/campaign", "v3electionpb.Election.Campaign"),
    ("/election/proclaim", "v3electionpb.Election.Proclaim"),
    ("/election/leader", "v3electionpb.Election.Leader"),
    ("/election/observe", "v3electionpb.Election.Observe"),
    ("/election/resign", "v3electionpb.Election.Resign"),
];

/// JSON may be this much longer than the message that it stands for: base64, names, blanks.
const JSON_FACTOR: usize = 2;
/// A gRPC message's frame: a flag and the length.
const FRAME_HEAD: usize = 5;
/// What clients send on as metadata.
const METADATA_PREFIX: &str = "grpc-metadata-";
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

#[derive(Debug, Clone)]
pub(super) struct Gateway {
    methods: Arc<BTreeMap<&'static str, MethodDescriptor>>,
}

impl Gateway {
    pub(super) fn new() -> Self {
        let pool = DescriptorPool::decode(pb::DESCRIPTORS).unwrap_or_default();
        let methods = PATHS.iter().filter_map(|(path, name)| {
            let (service, method) = name.rsplit_once('.')?;
            let service = pool.get_service_by_name(service)?;
            let method = service.methods().find(|known| known.name() == method)?;
            Some((*path, method))
        });
        Self { methods: Arc::new(methods.collect()) }
    }

    pub(super) async fn answer(&self, etcd: &Etcd, request: Request) -> Response {
        let path = request.uri().path();
        let path = path.strip_prefix("/v3beta").or_else(|| path.strip_prefix("/v3")).unwrap_or(path);
        let Some(method) = self.methods.get(path) else { return refused(&Status::not_found("Not Found")) };
        if request.method() != Method::POST {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let (parts, body) = request.into_parts();
        let reader = Reader::new(body, etcd);
        let (_admission, body) = if method.is_client_streaming() {
            let frames = messages(reader, method.input());
            (None, Body::from_stream(frames))
        } else {
            let announced = parts.headers.get(hyper::header::CONTENT_LENGTH);
            let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
            let admitted = etcd.door.admit(announced.unwrap_or(reader.most).min(reader.most));
            let read = match admitted {
                Ok(admission) => reader.whole(&method.input()).await.map(|frame| (admission, frame)),
                Err(status) => Err(status),
            };
            match read {
                Ok((admission, frame)) => (Some(admission), Body::from(frame)),
                Err(status) => return refused(&status),
            }
        };
        let Ok(call) = call_of(method, &parts.headers, body) else {
            return refused(&Status::invalid_argument("a header cannot be passed on"));
        };
        let answer = etcd.call(call).await;
        if method.is_server_streaming() { streamed(answer, method).await } else { unary(answer, method).await }
    }
}

/// The call that a gRPC client would make.
fn call_of(method: &MethodDescriptor, given: &HeaderMap, body: Body) -> Result<Request, http::Error> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut call = http::Request::post(path).version(Version::HTTP_2).body(body)?;
    let headers = call.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(hyper::header::TE, HeaderValue::from_static("trailers"));
    for (name, value) in given {
        let name = match name.as_str().strip_prefix(METADATA_PREFIX) {
            Some(rest) if !rest.starts_with("grpc-") => HeaderName::try_from(rest)?,
            Some(_) => continue,
            None if name == AUTHORIZATION || name == GRPC_TIMEOUT => name.clone(),
            None => continue,
        };
        headers.insert(name, value.clone());
    }
    Ok(call)
}

/// A request's body, at no less than the minimal rate and no longer than the limit.
struct Reader {
    body: Body,
    most: usize,
    received: usize,
    clock: Arc<dyn Clock>,
    since: Duration,
}

impl Reader {
    fn new(body: Body, etcd: &Etcd) -> Self {
        let most = etcd.door.state.options.request_bytes_max.saturating_mul(JSON_FACTOR);
        let clock = Arc::clone(&etcd.door.state.clock);
        let since = clock.monotonic();
        Self { body, most, received: 0, clock, since }
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self, patient: bool) -> Result<Option<Bytes>, Status> {
        loop {
            let frame = if patient {
                self.body.frame().await
            } else {
                let earned = u64::try_from(self.received).unwrap_or(u64::MAX) / BODY_RATE_BYTES_PER_S;
                let allowed = Duration::from_secs(BODY_GRACE_S.saturating_add(earned));
                let left = allowed.saturating_sub(self.clock.monotonic().saturating_sub(self.since));
                let slow = |_| Status::deadline_exceeded("the body came too slowly");
                tokio::time::timeout(left, self.body.frame()).await.map_err(slow)?
            };
            match frame {
                None => return Ok(None),
                Some(Err(_)) => return Err(Status::invalid_argument("the body broke off")),
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    self.received = self.received.saturating_add(bytes.len());
                    return Ok(Some(bytes));
                }
            }
        }
    }

    /// The one message of a call, framed. What follows it is not looked at.
    async fn whole(mut self, descriptor: &MessageDescriptor) -> Result<Bytes, Status> {
        let mut all = BytesMut::new();
        while let Some(bytes) = self.next(false).await? {
            if all.len() + bytes.len() > self.most {
                return Err(super::known(super::errors::TOO_LARGE));
            }
            all.extend_from_slice(&bytes);
        }
        match serde_json::Deserializer::from_slice(&all).into_iter::<Value>().next() {
            None => Err(Status::invalid_argument("EOF")),
            Some(Err(error)) => Err(Status::invalid_argument(error.to_string())),
            Some(Ok(value)) => frame_of(descriptor, value),
        }
    }
}

fn frame_of(descriptor: &MessageDescriptor, value: Value) -> Result<Bytes, Status> {
    let message = to_message(descriptor, value).map_err(Status::invalid_argument)?;
    let length = u32::try_from(message.len()).map_err(|_| super::known(super::errors::TOO_LARGE))?;
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + message.len());
    frame.put_u8(0);
    frame.put_u32(length);
    frame.put(message);
    Ok(frame.freeze())
}

/// The messages of a stream, each as soon as it is there.
fn messages(reader: Reader, descriptor: MessageDescriptor) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let start = Some((reader, BytesMut::new(), descriptor));
    stream::unfold(start, async |state| {
        let (mut reader, mut buffer, descriptor) = state?;
        loop {
            let mut values = serde_json::Deserializer::from_slice(&buffer).into_iter::<Value>();
            let parsed = values.next();
            let taken = values.byte_offset();
            match parsed {
                Some(Ok(value)) => {
                    buffer.advance(taken);
                    return match frame_of(&descriptor, value) {
                        Ok(frame) => Some((Ok(frame), Some((reader, buffer, descriptor)))),
                        Err(status) => Some((Err(broken(&status)), None)),
                    };
                }
                Some(Err(error)) if !error.is_eof() => {
                    return Some((Err(broken(&Status::invalid_argument(error.to_string()))), None));
                }
                // Not all of it is there yet.
                Some(Err(_)) | None => match reader.next(true).await {
                    Ok(Some(bytes)) if buffer.len() + bytes.len() <= reader.most => buffer.extend_from_slice(&bytes),
                    Ok(Some(_)) => return Some((Err(broken(&super::known(super::errors::TOO_LARGE))), None)),
                    Ok(None) => return None,
                    Err(status) => return Some((Err(broken(&status)), None)),
                },
            }
        }
    })
}

fn broken(status: &Status) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, status.message().to_owned())
}

/// Cuts an answer's body into its messages; what it ended with comes last.
struct Frames {
    body: Body,
    buffer: BytesMut,
    ended: Option<Status>,
}

impl Frames {
    fn new(answer: Response) -> Self {
        let (parts, body) = answer.into_parts();
        // A call that failed at once says so in its head.
        let ended = Status::from_header_map(&parts.headers);
        Self { body, buffer: BytesMut::new(), ended }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(mut head) = self.buffer.get(..FRAME_HEAD) {
                head.advance(1);
                let length = usize::try_from(head.get_u32()).unwrap_or(usize::MAX);
                if self.buffer.len() - FRAME_HEAD >= length {
                    self.buffer.advance(FRAME_HEAD);
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.buffer.extend_from_slice(&bytes),
                    Err(frame) => {
                        self.ended = frame.trailers_ref().and_then(Status::from_header_map).or(self.ended.take());
                    }
                },
                Some(Err(_)) => return Err(Status::internal("the answer broke off")),
                None => {
                    return match self.ended.take() {
                        Some(status) if status.code() != Code::Ok => Err(status),
                        _ => Ok(None),
                    };
                }
            }
        }
    }
}

async fn unary(answer: Response, method: &MethodDescriptor) -> Response {
    let mut frames = Frames::new(answer);
    let mut json = BytesMut::new();
    let message = match frames.next().await {
        Ok(Some(message)) => message,
        Ok(None) => return refused(&Status::internal("the call was not answered")),
        Err(status) => return refused(&status),
    };
    match to_json(&method.output(), message, &mut json) {
        Ok(()) => answered(StatusCode::OK, Body::from(json.freeze())),
        Err(problem) => refused(&Status::internal(problem)),
    }
}

/// One line for each message. The head waits for the first of them, since that may be a failure.
async fn streamed(answer: Response, method: &MethodDescriptor) -> Response {
    let mut frames = Frames::new(answer);
    let waits = method.is_client_streaming();
    let first = match waits {
        // What comes first depends on what the client says next.
        true => None,
        false => match frames.next().await {
            Err(status) => return stream_refused(&status),
            Ok(first) => Some(first),
        },
    };
    let output = method.output();
    let lines = stream::unfold(Some((frames, first)), move |state| {
        let output = output.clone();
        async move {
            let (mut frames, first) = state?;
            let message = match first {
                Some(first) => Ok(first),
                None => frames.next().await,
            };
            match message.and_then(|message| message.map(|message| line(&output, message)).transpose()) {
                Ok(None) => None,
                Ok(Some(line)) => Some((Ok::<_, io::Error>(line), Some((frames, None)))),
                Err(status) => Some((Ok(stream_error(&status)), None)),
            }
        }
    });
    answered(StatusCode::OK, Body::from_stream(lines.boxed()))
}

fn line(output: &MessageDescriptor, message: Bytes) -> Result<Bytes, Status> {
    let mut json = BytesMut::from(&br#"{"result":"#[..]);
    to_json(output, message, &mut json).map_err(Status::internal)?;
    json.extend_from_slice(b"}\n");
    Ok(json.freeze())
}

fn answered(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(hyper::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(super) fn refused(status: &Status) -> Response {
    let (code, message) = (i32::from(status.code()), status.message());
    let body = json!({"error": message, "code": code, "message": message});
    answered(http_status(status.code()), Body::from(body.to_string()))
}

fn stream_error(status: &Status) -> Bytes {
    let http = http_status(status.code());
    let error = json!({"error": {
        "grpc_code": i32::from(status.code()),
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": http.canonical_reason().unwrap_or_default(),
    }});
    format!("{error}\n").into()
}

fn stream_refused(status: &Status) -> Response {
    answered(http_status(status.code()), Body::from(stream_error(status)))
}

/// As every gateway for gRPC has it.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_its_method_and_every_method_its_path() {
        let gateway = Gateway::new();
        assert_eq!(gateway.methods.len(), PATHS.len(), "a path names a method that is not there");
        let pool = DescriptorPool::decode(pb::DESCRIPTORS).unwrap();
        let known: Vec<String> = pool
            .services()
            .filter(|service| service.package_name() != "grpc.health.v1")
            .flat_map(|service| service.methods().map(|method| method.full_name().to_owned()).collect::<Vec<_>>())
            // etcd's gateway has no path for it.
            .filter(|name| name != "etcdserverpb.KV.RangeStream")
            .collect();
        for name in known {
            assert!(PATHS.iter().any(|(_, method)| *method == name), "{name} has no path");
        }
    }
}

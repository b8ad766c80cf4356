//! From a request to its answer: guard, route, handler, and what every answer carries.

use super::access::Credentials;
use super::body::Body;
use super::call::{Call, Outcome, Reply};
use super::etcd::{self, Etcd};
use super::problem::{Around, Problem};
use super::routes::{Found, Operation, ROUTES};
use super::status::Code;
use super::{State, browser, ops, rest};
use crate::env::Entropy;
use crate::model::limits::TIMEOUT_DEFAULT_MS;
use crate::model::{Caller, ClaimKind, Failure};
use crate::service::{Admits, Header};
use axum::extract::Request;
use axum::response::Response;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use percent_encoding::{CONTROLS, utf8_percent_encode};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use sync_wrapper::SyncWrapper;
use tower::ServiceExt;

pub(crate) const TENURE_REVISION: HeaderName = HeaderName::from_static("tenure-revision");
const TENURE_SERVED_BY: HeaderName = HeaderName::from_static("tenure-served-by");
const TENURE_LEADER: HeaderName = HeaderName::from_static("tenure-leader");
const TENURE_TERM: HeaderName = HeaderName::from_static("tenure-term");
const TENURE_STALENESS_MS: HeaderName = HeaderName::from_static("tenure-staleness-ms");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The label values of `HttpMetrics`: one per route, then one for what no route took.
#[must_use]
pub fn operation_ids() -> Vec<&'static str> {
    ROUTES.iter().map(|route| route.operation_id).chain(["none", ETCD_GRPC, ETCD_GATEWAY]).collect()
}

const ETCD_GRPC: &str = "etcdGrpc";
const ETCD_GATEWAY: &str = "etcdGateway";

/// What the listener calls with each request: the router of everything this member serves over HTTP.
pub fn handler<B>(
    state: Arc<State>,
) -> impl Fn(hyper::Request<B>) -> BoxFuture<'static, Response> + Clone + Send + Sync + 'static
where
    B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let door = Arc::new(Etcd::new(Arc::clone(&state)));
    let router = super::routes::router(handle).with_state(Arc::clone(&state));
    move |request| {
        let request = request.map(axum::body::Body::new);
        if etcd::is_grpc(request.headers()) {
            return Box::pin(etcd_grpc(Arc::clone(&state), Arc::clone(&door), request));
        }
        if etcd::is_gateway(request.uri().path()) {
            return Box::pin(etcd_gateway(Arc::clone(&state), Arc::clone(&door), request));
        }
        let answer = router.clone().oneshot(request);
        Box::pin(answer.map(|answer| answer.unwrap_or_else(|never| match never {})))
    }
}

async fn etcd_grpc(state: Arc<State>, door: Arc<Etcd>, request: Request) -> Response {
    let started = state.clock.monotonic();
    let answer = AssertUnwindSafe(door.grpc(request)).catch_unwind().await;
    let answer = answer.unwrap_or_else(|_| panicked(&state, ETCD_GRPC, Etcd::grpc_panicked()));
    state.http.observe(ROUTES.len() + 1, answer.status().as_u16(), state.clock.monotonic().saturating_sub(started));
    answer
}

async fn etcd_gateway(state: Arc<State>, door: Arc<Etcd>, request: Request) -> Response {
    let started = state.clock.monotonic();
    let (parts, body) = request.into_parts();
    let origin = parts.headers.clone();
    let mut answer = if let Err(problem) = browser::guard(&parts, &state.options) {
        let request_id = request_id(&parts.headers, &state);
        fail(&state, problem, &request_id, true, false).map(axum::body::Body::new)
    } else if let Some(preflight) = browser::preflight(&parts, &state.options) {
        preflight.map(axum::body::Body::new)
    } else {
        let answer = AssertUnwindSafe(door.gateway(Request::from_parts(parts, body))).catch_unwind().await;
        answer.unwrap_or_else(|_| panicked(&state, ETCD_GATEWAY, Etcd::gateway_panicked()))
    };
    browser::share(&origin, &state.options, answer.headers_mut());
    state.http.observe(ROUTES.len() + 2, answer.status().as_u16(), state.clock.monotonic().saturating_sub(started));
    answer
}

fn panicked(state: &State, operation: &str, answer: Response) -> Response {
    state.http.panicked();
    tracing::error!(operation, "a handler panicked");
    answer
}

/// Answers one request; never fails, and a handler's panic is a 500.
async fn handle(state: Arc<State>, found: Found, request: Request) -> Response {
    let started = state.clock.monotonic();
    let (parts, body) = request.into_parts();
    let head = parts.method == Method::HEAD;
    let request_id = request_id(&parts.headers, &state);
    // The answer's headers depend on the request's Origin only when somebody listed origins.
    let origin = (!state.options.cors_origins.is_empty()).then(|| parts.headers.clone());
    let routed = match route(&parts, found, &state) {
        Ok(Routed::Operation(operation, rest)) => match caller(&parts, operation, &state).await {
            Ok(caller) => Ok(Routed::Operation(operation, (rest, caller))),
            Err(failure) => Err((operation.index(), failure.into())),
        },
        Ok(Routed::Preflight(response)) => Ok(Routed::Preflight(response)),
        Err(problem) => Err(problem),
    };
    let (index, response) = match routed {
        Ok(Routed::Operation(operation, (rest, caller))) => {
            let call = Call {
                caller,
                state: Arc::clone(&state),
                parts,
                body: Some(SyncWrapper::new(body)),
                operation,
                rest,
                request_id: request_id.clone(),
                admission: None,
                pretty: false,
            };
            (operation.index(), run(call).await)
        }
        Ok(Routed::Preflight(response)) => (ROUTES.len(), response),
        Err((index, problem)) => {
            let mutates = Operation::at(index).is_some_and(Operation::mutates);
            (index, fail(&state, problem, &request_id, mutates, false))
        }
    };
    let mut response = response;
    if let Ok(id) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    if let Some(request) = origin {
        browser::share(&request, &state.options, response.headers_mut());
    }
    if head {
        response = without_body(response);
    }
    let took = state.clock.monotonic().saturating_sub(started);
    state.http.observe(index, response.status().as_u16(), took);
    response.map(axum::body::Body::new)
}

enum Routed<T> {
    Operation(Operation, T),
    Preflight(hyper::Response<Body>),
}

/// Who asks, if such an operation may be asked for at all. What is open to anybody does not look.
async fn caller(parts: &Parts, operation: Operation, state: &State) -> Result<Caller, Failure> {
    let admits = operation.admits();
    if admits == Admits::Anybody {
        return Ok(Caller::Anonymous);
    }
    let credentials = Credentials::of(&parts.headers)?;
    let caller = state.service.caller(credentials.shown()).await?;
    state.service.admit_caller(&caller, admits, Duration::from_millis(TIMEOUT_DEFAULT_MS)).await?;
    Ok(caller)
}

/// What is asked for, or why not, with the index of the metrics it counts to.
fn route(parts: &Parts, found: Found, state: &State) -> Result<Routed<usize>, (usize, Problem)> {
    let index = match &found {
        Found::Operation { operation, .. } => operation.index(),
        Found::OtherMethods(_) | Found::Nothing => ROUTES.len(),
    };
    browser::guard(parts, &state.options).map_err(|problem| (index, problem))?;
    if let Some(response) = browser::preflight(parts, &state.options) {
        return Ok(Routed::Preflight(response));
    }
    let path = parts.uri.path();
    match found {
        Found::Operation { operation, rest } => Ok(Routed::Operation(operation, rest)),
        Found::OtherMethods(methods) => Err((index, other_method(&parts.method, path, &methods))),
        Found::Nothing => Err((index, Problem::new(Code::NoSuchRoute, format!("there is nothing at {path}")))),
    }
}

fn other_method(method: &Method, path: &str, methods: &[&'static str]) -> Problem {
    // The usual slip is POST for PUT, or the other way round.
    let meant = match method.as_str() {
        "POST" if methods.contains(&"PUT") => "PUT".to_owned(),
        "PUT" | "PATCH" if methods.contains(&"POST") => "POST".to_owned(),
        _ => methods.join(", "),
    };
    Problem::new(Code::MethodNotAllowed, format!("{method} is not possible at {path}"))
        .hint(format!("use {meant}"))
        .allow(methods)
}

async fn run(mut call: Call) -> hyper::Response<Body> {
    let state = Arc::clone(&call.state);
    let (operation, request_id) = (call.operation, call.request_id.clone());
    let outcome = match AssertUnwindSafe(perform(&mut call)).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(_) => {
            state.http.panicked();
            tracing::error!(operation = ROUTES[operation.index()].operation_id, "a handler panicked");
            Err(Problem::new(Code::Internal, "this request failed inside").applied(super::status::Applied::Unknown))
        }
    };
    match outcome {
        Ok(Reply { header, mut response }) => {
            let header = header.unwrap_or_else(|| state.service.header());
            stamp(response.headers_mut(), &header);
            response
        }
        Err(problem) => fail(&state, problem, &request_id, operation.mutates(), call.pretty),
    }
}

fn fail(state: &State, mut problem: Problem, request_id: &str, mutates: bool, pretty: bool) -> hyper::Response<Body> {
    let header = problem.take_header().unwrap_or_else(|| state.service.header());
    let around = Around { mutates, revision: Some(header.revision), request_id, pretty };
    if problem.code() == Code::Internal {
        tracing::error!(request_id, "a request failed inside");
    }
    let mut response = problem.into_response(around);
    stamp(response.headers_mut(), &header);
    response
}

/// The hot operations are inlined, warm ones have a box of their own size, and the others share one: so
/// none makes every request's future as large as the largest.
async fn perform(call: &mut Call) -> Outcome {
    match call.operation {
        Operation::KvGet | Operation::KvHead => rest::kv::get(call).await,
        Operation::KvPut => rest::kv::put(call).await,
        Operation::LeaseKeepalive => Box::pin(rest::leases::keep_alive(call)).await,
        Operation::LockAcquire => Box::pin(rest::claims::acquire(call, ClaimKind::Lock)).await,
        Operation::LockRelease => Box::pin(rest::claims::release(call, ClaimKind::Lock)).await,
        Operation::Txn => Box::pin(rest::txn::post(call)).await,
        _ => Box::pin(perform_other(call)).await,
    }
}

async fn perform_other(call: &mut Call) -> Outcome {
    match call.operation {
        Operation::KvGet | Operation::KvHead => rest::kv::get(call).await,
        Operation::KvPut => rest::kv::put(call).await,
        Operation::KvPatch => rest::kv::patch(call).await,
        Operation::KvDelete => rest::kv::delete(call).await,
        Operation::KvList => rest::list::get(call).await,
        Operation::KvDeleteRange => rest::list::delete(call).await,
        Operation::Txn => rest::txn::post(call).await,
        Operation::WatchGet => rest::watch::get(call).await,
        Operation::HistoryGet => rest::history::get(call).await,
        Operation::CounterGet => rest::counters::get(call).await,
        Operation::CounterAdd => rest::counters::add(call).await,
        Operation::TtlGet => rest::ttl::get(call).await,
        Operation::TtlPut => rest::ttl::put(call).await,
        Operation::TtlDelete => rest::ttl::delete(call).await,
        Operation::LeaseGrant => rest::leases::grant(call).await,
        Operation::LeaseList => rest::leases::list(call).await,
        Operation::LeaseGet => rest::leases::get(call).await,
        Operation::LeaseRevoke => rest::leases::revoke(call).await,
        Operation::LeaseKeepalive => rest::leases::keep_alive(call).await,
        Operation::LeaseHold => rest::hold::post(call).await,
        Operation::RateGet => rest::ratelimits::get(call).await,
        Operation::RateTake => rest::ratelimits::take(call).await,
        Operation::RateReset => rest::ratelimits::reset(call).await,
        Operation::KvImport => rest::import::post(call).await,
        Operation::Compact => rest::maintenance::compact(call).await,
        Operation::Restore => rest::maintenance::restore(call).await,
        Operation::ClusterGet => rest::cluster::get(call).await,
        Operation::MemberList => rest::cluster::members(call).await,
        Operation::MemberAdd => rest::cluster::add(call).await,
        Operation::MemberGet => rest::cluster::member(call).await,
        Operation::MemberPatch => rest::cluster::patch(call).await,
        Operation::MemberRemove => rest::cluster::remove(call).await,
        Operation::MemberPromote => rest::cluster::promote(call).await,
        Operation::MemberReplace => rest::cluster::replace(call).await,
        Operation::LeaderMove => rest::cluster::leader(call).await,
        Operation::StatusGet => rest::maintenance::status(call),
        Operation::HashGet => rest::maintenance::hash(call).await,
        Operation::ConfigGet => rest::maintenance::config(call),
        Operation::LogLevelPut => rest::maintenance::log_level(call).await,
        Operation::SnapshotGet => rest::maintenance::snapshot(call).await,
        Operation::Livez => ops::health::livez(call),
        Operation::Readyz => ops::health::readyz(call).await,
        Operation::Health => ops::health::health(call).await,
        Operation::Version => ops::version(call),
        Operation::Metrics => ops::metrics(call),
        Operation::OpenapiYaml => ops::openapi::yaml(call),
        Operation::OpenapiJson => ops::openapi::json(call),
        Operation::Root => ops::root(call),
        Operation::LockList => rest::claims::list(call, ClaimKind::Lock).await,
        Operation::LockGet => rest::claims::get(call, ClaimKind::Lock).await,
        Operation::LockAcquire => rest::claims::acquire(call, ClaimKind::Lock).await,
        Operation::LockBreak => rest::claims::break_claims(call, ClaimKind::Lock).await,
        Operation::LockHold => rest::claims::hold(call, ClaimKind::Lock).await,
        Operation::LockClaimGet => rest::claims::claim_get(call, ClaimKind::Lock).await,
        Operation::LockRelease => rest::claims::release(call, ClaimKind::Lock).await,
        Operation::SemaphoreList => rest::claims::list(call, ClaimKind::Semaphore).await,
        Operation::SemaphoreGet => rest::claims::get(call, ClaimKind::Semaphore).await,
        Operation::SemaphoreAcquire => rest::claims::acquire(call, ClaimKind::Semaphore).await,
        Operation::SemaphoreBreak => rest::claims::break_claims(call, ClaimKind::Semaphore).await,
        Operation::SemaphoreHold => rest::claims::hold(call, ClaimKind::Semaphore).await,
        Operation::SemaphoreClaimGet => rest::claims::claim_get(call, ClaimKind::Semaphore).await,
        Operation::SemaphoreRelease => rest::claims::release(call, ClaimKind::Semaphore).await,
        Operation::ElectionList => rest::claims::list(call, ClaimKind::Election).await,
        Operation::ElectionGet => rest::claims::watch_leader(call).await,
        Operation::ElectionCampaign => rest::claims::acquire(call, ClaimKind::Election).await,
        Operation::ElectionHold => rest::claims::hold(call, ClaimKind::Election).await,
        Operation::ElectionObserve => rest::claims::observe(call).await,
        Operation::ElectionClaimGet => rest::claims::claim_get(call, ClaimKind::Election).await,
        Operation::ElectionProclaim => rest::claims::proclaim(call).await,
        Operation::ElectionResign => rest::claims::release(call, ClaimKind::Election).await,
    }
}

/// Who answered, and what the answer reflects.
fn stamp(headers: &mut HeaderMap, header: &Header) {
    headers.reserve(6);
    headers.insert(TENURE_REVISION, header.revision.into());
    headers.insert(TENURE_SERVED_BY, name_value(&header.member_name));
    if let Some(leader) = &header.leader_name {
        headers.insert(TENURE_LEADER, name_value(leader));
    }
    headers.insert(TENURE_TERM, header.term.into());
    if let Some(staleness_ms) = header.staleness_ms {
        headers.insert(TENURE_STALENESS_MS, staleness_ms.into());
    }
}

/// A member's name: percent-encoded where a header cannot hold it.
fn name_value(name: &str) -> HeaderValue {
    HeaderValue::try_from(name).unwrap_or_else(|_| {
        let encoded = utf8_percent_encode(name, CONTROLS).to_string();
        HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static("unnamed"))
    })
}

/// The client's own id if it is short and harmless in a log line, else a new one.
fn request_id(headers: &HeaderMap, state: &State) -> String {
    let given = headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
    let sane =
        |id: &&str| (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    match given.filter(sane) {
        Some(id) => id.to_owned(),
        None => fresh_id(state.clock.wall_ms(), &*state.entropy),
    }
}

fn fresh_id(wall_ms: u64, entropy: &dyn Entropy) -> String {
    let random = u128::from(entropy.next_u64()) << 64 | u128::from(entropy.next_u64());
    let mut text = [0; ulid::ULID_LEN];
    ulid::Ulid::from_parts(wall_ms, random).array_to_str(&mut text).to_owned()
}

/// HEAD: the same head, with the length of the body that is not sent.
fn without_body(response: hyper::Response<Body>) -> hyper::Response<Body> {
    let (mut parts, body) = response.into_parts();
    let bodiless = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if let Some(length) = body.len().filter(|_| !bodiless) {
        parts.headers.insert(CONTENT_LENGTH, length.into());
    }
    hyper::Response::from_parts(parts, Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SeededEntropy;

    #[test]
    fn fresh_ids_sort_by_time() {
        let entropy = SeededEntropy::new(7);
        let (older, newer) = (fresh_id(1_700_000_000_000, &entropy), fresh_id(1_700_000_000_001, &entropy));
        assert_eq!(older.len(), 26);
        assert!(older < newer);
    }

    #[test]
    fn the_wrong_method_gets_the_right_hint() {
        let problem = other_method(&Method::POST, "/v1/kv/a", &["GET", "HEAD", "PUT", "PATCH", "DELETE"]);
        let around = Around { mutates: false, revision: None, request_id: "", pretty: false };
        let text = String::from_utf8(problem.to_json(around)).unwrap();
        assert!(text.contains(r#""hint":"use PUT""#), "{text}");
    }

    #[test]
    fn a_name_that_no_header_can_hold_is_encoded() {
        assert_eq!(name_value("n1"), "n1");
        assert_eq!(name_value("knöt\n"), "knöt\n".replace('ö', "%C3%B6").replace('\n', "%0A"));
    }
}

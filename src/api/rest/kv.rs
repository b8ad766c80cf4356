//! One key: `/v1/kv/{key}`.

use super::conditions::{Conditions, Tags, etag, if_none_match};
use super::keys::KEY_ENCODING;
use super::media::{EXPECTED, is_media_type};
use super::query::{Names, Query};
use super::ttl::{CHOICE, choice_by_query, key_expires_at};
use super::{dto, idempotency};
use crate::api::body::Body;
use crate::api::call::{ALWAYS, Call, Outcome, READ, Reply as Answered, read_options};
use crate::api::json::{Writer, parse};
use crate::api::problem::Problem;
use crate::api::receive;
use crate::api::status::Code;
use crate::model::limits::WAIT_MAX_MS;
use crate::model::{
    Failure, Fault, KeyRange, KeyValue, Op, OpReply, PutOp, RangeOp, Reply, Revision, Txn, TxnReply, Why,
};
use crate::service::{Answer, Context, Header, ReadOptions, WaitOp};
use bytes::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use std::time::Duration;

const TENURE_CREATE_REVISION: HeaderName = HeaderName::from_static("tenure-create-revision");
const TENURE_VERSION: HeaderName = HeaderName::from_static("tenure-version");
const TENURE_LEASE: HeaderName = HeaderName::from_static("tenure-lease");
pub(super) const TENURE_WAIT_MS: HeaderName = HeaderName::from_static("tenure-wait-ms");
const TENURE_TTL_MS: HeaderName = HeaderName::from_static("tenure-ttl-ms");
const TENURE_FENCE: &str = "tenure-fence";

const GET: Names = Names { allowed: &[&["revision", "format", "wait"], READ, KEY_ENCODING, ALWAYS], later: &["ns"] };
const HEAD: Names = Names { allowed: &[&["revision", "format"], READ, KEY_ENCODING, ALWAYS], later: &["ns"] };
const PUT: Names = Names { allowed: &[&["cas", "prev"], CHOICE, KEY_ENCODING, ALWAYS], later: &["ns"] };
const DELETE: Names = Names { allowed: &[&["cas", "prev"], KEY_ENCODING, ALWAYS], later: &["ns"] };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Json,
}

pub(crate) async fn get(call: &mut Call) -> Outcome {
    let is_head = call.parts.method == hyper::Method::HEAD;
    let query = call.query(if is_head { &HEAD } else { &GET })?;
    let key = call.key(&query)?;
    let context = call.context(&query)?;
    let read = read_options(&query)?;
    let format = query.choice("format", &[("raw", Format::Raw), ("json", Format::Json)])?.unwrap_or(Format::Raw);
    let revision = query.revision("revision")?.unwrap_or(0);
    let none_match = if_none_match(call)?;
    let wait = query.duration("wait")?.map(|wait| wait.min(Duration::from_millis(WAIT_MAX_MS)));
    let answer = match wait {
        None => {
            let range = RangeOp { revision, ..RangeOp::newest(KeyRange::key(key.clone())) };
            call.state.service.range(&context, read, range).await?
        }
        Some(_) if revision != 0 => {
            return Err(Problem::parameter("wait", "`wait` watches the newest state: leave `revision` out"));
        }
        Some(wait) => wait_for_change(call, context, read, key.clone(), none_match.as_ref(), wait).await?,
    };
    let header = answer.header;
    let Some(kv) = answer.body.kvs.into_iter().next() else {
        return Err(not_found(&key).header(header));
    };
    let unchanged = none_match.is_some_and(|tags| tags.match_weakly(Some(&kv)));
    let ttl_ms = call.state.service.lease_ttl_ms(kv.lease);
    let mut answered = match (unchanged, format) {
        (true, _) => not_modified(header),
        (false, Format::Raw) => raw(call, header, &kv)?,
        (false, Format::Json) => {
            let mut json = Writer::with_capacity(kv.value.len() + kv.key.len() + 160);
            dto::entry_with_ttl(&mut json, &kv, dto::Values::Shown, ttl_ms);
            call.json(StatusCode::OK, Some(header), json)?
        }
    };
    let headers = answered.response.headers_mut();
    describe(headers, &kv);
    if let Some(ttl_ms) = ttl_ms {
        headers.insert(TENURE_TTL_MS, ttl_ms.into());
    }
    if let Some(wait) = wait {
        headers.insert(TENURE_WAIT_MS, u64::try_from(wait.as_millis()).unwrap_or(WAIT_MAX_MS).into());
    }
    Ok(answered)
}

pub(super) fn not_found(key: &Bytes) -> Problem {
    Problem::new(Code::KeyNotFound, format!("{} does not exist", String::from_utf8_lossy(key))).key(key)
}

async fn wait_for_change(
    call: &Call,
    mut context: Context,
    read: ReadOptions,
    key: Bytes,
    none_match: Option<&Tags>,
    wait: Duration,
) -> Result<Answer<crate::model::RangeReply>, Problem> {
    let known = match none_match {
        None => None,
        Some(Tags::Of(tags)) if tags.len() <= 1 => tags.first().map(|tag| tag.revision),
        Some(_) => return Err(Problem::parameter("if-none-match", "with `wait`, give the one ETag that is known")),
    };
    context.timeout += wait;
    let waited = call.state.service.wait_key(&context, read, WaitOp { key, known, wait });
    match call.state.service.stopping().run_until_cancelled(waited).await {
        Some(answer) => Ok(answer?),
        None => Err(Failure::not_proposed(Why::ShuttingDown).into()),
    }
}

/// The stored bytes, as the stored type: a stored page must not run as one of this origin.
fn raw(call: &Call, header: Header, kv: &KeyValue) -> Outcome {
    let admission = call.admit_answer(kv.value.len())?;
    let mut response = Response::new(Body::full(kv.value.clone()).admitted(Some(admission)));
    let headers = response.headers_mut();
    headers.reserve(16);
    let declared = kv.content_type.as_deref().and_then(|declared| HeaderValue::try_from(declared).ok());
    let undeclared = || match std::str::from_utf8(&kv.value) {
        Ok(_) => HeaderValue::from_static("text/plain; charset=utf-8"),
        Err(_) => HeaderValue::from_static("application/octet-stream"),
    };
    headers.insert(CONTENT_TYPE, declared.unwrap_or_else(undeclared));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(Answered { header: Some(header), response })
}

fn not_modified(header: Header) -> Answered {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Answered { header: Some(header), response }
}

fn describe(headers: &mut HeaderMap, kv: &KeyValue) {
    headers.insert(ETAG, etag(kv.mod_revision));
    headers.insert(TENURE_CREATE_REVISION, kv.create_revision.into());
    headers.insert(TENURE_VERSION, kv.version.into());
    if kv.lease != 0
        && let Ok(lease) = HeaderValue::try_from(format!("{:016x}", kv.lease))
    {
        headers.insert(TENURE_LEASE, lease);
    }
}

/// Fences need locks, which this version does not have; a fence that is not checked would be a lie.
pub(super) fn refuse_fence(call: &Call) -> Result<(), Problem> {
    if call.parts.headers.contains_key(TENURE_FENCE) { Err(Problem::not_yet("Tenure-Fence")) } else { Ok(()) }
}

/// The declared type: what curl sends by itself with `-d` is no declaration.
fn declared_type(call: &Call) -> Result<Option<String>, Problem> {
    match call.header_text(CONTENT_TYPE.as_str())? {
        None | Some("" | "application/x-www-form-urlencoded") => Ok(None),
        Some(declared) if is_media_type(declared) => Ok(Some(declared.to_owned())),
        Some(_) => Err(Problem::parameter("content-type", format!("`Content-Type` is not {EXPECTED}"))),
    }
}

pub(crate) async fn put(call: &mut Call) -> Outcome {
    let query = call.query(&PUT)?;
    let key = call.key(&query)?;
    let content_type = declared_type(call)?;
    let write = Write::prepare(call, &query, key.clone())?;
    let value = receive::whole(call).await?;
    let idempotency = idempotency::of(call, &query, &value, &write.context.caller)?;
    let lease = choice_by_query(call, &query)?;
    let op = Op::Put(PutOp { key, value, content_type, lease, prev_kv: write.prev_kv, ignore_value: false });
    write.run(call, op, idempotency).await
}

pub(crate) async fn patch(call: &mut Call) -> Outcome {
    let query = call.query(&PUT)?;
    let key = call.key(&query)?;
    let given = call.header_text(CONTENT_TYPE.as_str())?.unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/merge-patch+json") {
        return Err(Problem::new(Code::UnsupportedMediaType, format!("a patch of type `{given}` is not known"))
            .hint("send an RFC 7396 patch as Content-Type: application/merge-patch+json"));
    }
    let write = Write::prepare(call, &query, key.clone())?;
    let patch = receive::whole(call).await?;
    parse(&patch).map_err(|error| Problem::body(format!("the patch is not acceptable JSON: {error}")))?;
    let idempotency = idempotency::of(call, &query, &patch, &write.context.caller)?;
    let op = Op::MergePatch { key, patch, prev_kv: write.prev_kv, lease: choice_by_query(call, &query)? };
    write.run(call, op, idempotency).await
}

pub(crate) async fn delete(call: &mut Call) -> Outcome {
    let query = call.query(&DELETE)?;
    let key = call.key(&query)?;
    let write = Write::prepare(call, &query, key.clone())?;
    let idempotency = idempotency::of(call, &query, b"", &write.context.caller)?;
    let op = Op::Delete { range: KeyRange::key(key), prev_kv: write.prev_kv };
    write.run(call, op, idempotency).await
}

/// A conditional write of one key.
struct Write {
    key: Bytes,
    prev_kv: bool,
    context: Context,
    conditions: Conditions,
}

impl Write {
    /// Everything that can be refused before the body is read.
    fn prepare(call: &Call, query: &Query, key: Bytes) -> Result<Self, Problem> {
        refuse_fence(call)?;
        let conditions = Conditions::of_write(call, query.revision("cas")?, &key)?;
        Ok(Self { context: call.context(query)?, prev_kv: query.flag("prev")?, conditions, key })
    }

    async fn run(mut self, call: &mut Call, op: Op, idempotency: Option<crate::model::Idempotency>) -> Outcome {
        let compares = std::mem::take(&mut self.conditions.compares);
        // When the condition fails, the answer carries what is there instead.
        let failure = match compares.is_empty() {
            true => Vec::new(),
            false => vec![Op::Range(RangeOp::newest(KeyRange::key(self.key.clone())))],
        };
        let txn = Txn { compares, success: vec![op], failure };
        let answer = call.state.service.txn(&self.context, txn, idempotency).await?;
        let Answer { header, body, replayed } = answer;
        let mut answered = match body {
            Reply::Txn(TxnReply { succeeded: true, revision, results, .. }) => {
                let result = results.into_iter().next().ok_or_else(|| foreign("an empty transaction"))?;
                self.done(call, header, revision, result)?
            }
            Reply::Txn(TxnReply { results, failed_if, .. }) => {
                return Err(self.refused(results, &failed_if).header(header));
            }
            Reply::Outcome { succeeded: true, revision } => {
                let mut json = Writer::default();
                dto::outcome_only(&mut json, Some(&self.key), revision);
                call.json(StatusCode::OK, Some(header), json)?
            }
            Reply::Outcome { .. } => {
                return Err(self.refused(Vec::new(), &[]).header(header));
            }
            _ => return Err(foreign("another command's reply")),
        };
        idempotency::mark(answered.response.headers_mut(), replayed);
        Ok(answered)
    }

    fn done(&self, call: &mut Call, header: Header, revision: Revision, result: OpReply) -> Outcome {
        let (version, created, lease, prev) = match result {
            OpReply::Put { version, created, lease, prev, .. } => (version, created, lease, prev),
            OpReply::MergePatch { version, lease, prev, .. } => (version, false, lease, prev),
            OpReply::Delete { deleted, prev } => {
                let mut json = Writer::with_capacity(64);
                dto::deleted(&mut json, deleted, revision, self.prev_kv.then_some(&prev));
                return call.json(StatusCode::OK, Some(header), json);
            }
            _ => return Err(foreign("another operation's reply")),
        };
        let mut json = Writer::with_capacity(96 + self.key.len());
        let (previous, expires_at) = (prev.as_ref(), key_expires_at(&call.state, lease));
        let expires_at = expires_at.as_deref();
        dto::put(&mut json, &dto::Put { key: &self.key, revision, version, created, lease, expires_at, previous });
        let status = if created { StatusCode::CREATED } else { StatusCode::OK };
        let mut answered = call.json(status, Some(header), json)?;
        let headers = answered.response.headers_mut();
        headers.insert(ETAG, etag(revision));
        if let Some(location) = HeaderValue::try_from(call.parts.uri.path()).ok().filter(|_| created) {
            headers.insert(LOCATION, location);
        }
        Ok(answered)
    }

    fn refused(&self, results: Vec<OpReply>, failed_if: &[u32]) -> Problem {
        let current = match results.into_iter().next() {
            Some(OpReply::Range(range)) => range.kvs.into_iter().next(),
            _ => None,
        };
        let detail = self.conditions.why_not(&self.key, current.as_ref(), failed_if);
        let problem = Problem::new(Code::PreconditionFailed, detail);
        match current {
            Some(kv) => problem.raw("current", &dto::entry_bytes(&kv)),
            None => problem,
        }
    }
}

/// The machine answered something else than it was asked: a fault of ours, after the write.
pub(super) fn foreign(what: &str) -> Problem {
    tracing::error!(what, "the machine answered another question");
    Failure::from(Fault::Invariant(format!("{what} was answered"))).into()
}

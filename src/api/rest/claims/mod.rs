//! Locks, semaphores and elections: `/v1/locks`, `/v1/semaphores`, `/v1/elections`. One set of handlers,
//! told which kind by the route.

mod election;
mod encode;
mod hold;

pub(crate) use election::{observe, proclaim, watch_leader};
pub(crate) use hold::post as hold;

use super::cursor::{Cursor, filter_hash};
use super::fence::checked_name;
use super::fields::Scalars;
use super::idempotency;
use super::leases::metadata;
use super::list::link_next;
use super::query::{Names, Query, percent_decode};
use super::ttl::{lease_id, ttl_ms};
use crate::api::call::{ALWAYS, Call, Outcome, READ, read_options};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::receive;
use crate::api::status::Code;
use crate::model::limits::{
    CLAIM_WAIT_MAX_MS, ELECTION_VALUE_BYTES_MAX, LEASE_NAME_BYTES_MAX, LIST_PAGE_DEFAULT, LIST_PAGE_MAX, WAIT_MAX_MS,
};
use crate::model::{ClaimKind, ClaimName, LeaseId, LeaseLabel};
use crate::service::claims::{Acquired, Claim, ClaimList, ClaimRequest, Session};
use bytes::Bytes;
use hyper::StatusCode;
use std::time::Duration;

const LIST: Names = Names { allowed: &[&["prefix", "limit", "cursor"], READ, ALWAYS], later: &["ns"] };
const GET: Names = Names { allowed: &[READ, ALWAYS], later: &["ns"] };
const CLAIM: Names = Names { allowed: &[&["wait"], READ, ALWAYS], later: &["ns"] };
const PLAIN: Names = Names { allowed: &[ALWAYS], later: &["ns"] };
const ASK: &[&str] = &["ttl", "wait", "owner", "lease", "enqueue"];
const LOCK: Names = Names { allowed: &[ASK, ALWAYS], later: &["ns"] };
const SEMAPHORE: Names = Names { allowed: &[ASK, &["limit", "permits"], ALWAYS], later: &["ns"] };
const CAMPAIGN: Names = Names { allowed: &[ASK, &["value"], ALWAYS], later: &["ns"] };

const CLAIM_TTL: Duration = Duration::from_secs(30);
const ELECTION_TTL: Duration = Duration::from_secs(15);

/// The name in the path, one segment of it.
fn name(call: &Call, kind: ClaimKind) -> Result<ClaimName, Problem> {
    let segment = call.raw_key().split('/').next().unwrap_or_default();
    let decoded = percent_decode(segment).and_then(|bytes| String::from_utf8(bytes).ok());
    let name = decoded.ok_or_else(|| Problem::parameter("name", "the name is not percent-encoded UTF-8"))?;
    Ok(ClaimName::new(kind, checked_name("name", name)?))
}

/// The name and the lease of `…/{name}/claims/{lease}`.
fn name_and_lease(call: &Call, kind: ClaimKind) -> Result<(ClaimName, LeaseId), Problem> {
    let lease = call.raw_key().rsplit('/').next().unwrap_or_default();
    Ok((name(call, kind)?, lease_id("lease", lease)?))
}

pub(crate) async fn list(call: &mut Call, kind: ClaimKind) -> Outcome {
    let query = call.query(&LIST)?;
    call.accepts(&["application/json"])?;
    let context = call.context(&query)?;
    let name_prefix = query.text("prefix")?.unwrap_or_default().to_owned();
    let limit = query.count("limit")?.unwrap_or(LIST_PAGE_DEFAULT).min(LIST_PAGE_MAX);
    let filter = filter_hash([kind.plural().as_bytes(), name_prefix.as_bytes()]);
    let resume = query.text("cursor")?.map(|text| Cursor::decode(text, filter)).transpose()?;
    let resume = resume.map(|cursor| cursor.resume);
    let list = ClaimList { kind, name_prefix, limit, resume };
    let answer = call.state.service.claim_queues(&context, read_options(&query)?, list).await?;
    let mut json = Writer::with_capacity(64 + answer.body.items.len() * 256);
    json.open();
    json.name("items");
    json.open_list();
    answer.body.items.iter().for_each(|queue| encode::queue(&mut json, queue));
    json.close_list();
    json.bool("more", answer.body.next.is_some());
    let revision = answer.header.revision;
    let next = answer.body.next.map(|resume| Cursor { revision, filter, resume }.encode());
    if let Some(next) = &next {
        json.text("next", next);
    }
    json.close();
    let mut answered = call.json(StatusCode::OK, Some(answer.header), json)?;
    link_next(call, next.as_deref(), &mut answered);
    Ok(answered)
}

pub(crate) async fn get(call: &mut Call, kind: ClaimKind) -> Outcome {
    let query = call.query(&GET)?;
    let of = name(call, kind)?;
    call.accepts(&["application/json"])?;
    let context = call.context(&query)?;
    let answer = call.state.service.claim_queue(&context, read_options(&query)?, &of).await?;
    let mut json = Writer::with_capacity(256);
    encode::queue(&mut json, &answer.body);
    call.json(StatusCode::OK, Some(answer.header), json)
}

/// What is asked for, and how.
struct Asked {
    request: ClaimRequest,
    wait: Option<Duration>,
    enqueue: bool,
}

fn asked(query: &Query, body: &[u8], of: ClaimName) -> Result<Asked, Problem> {
    let mut scalars = Scalars::new(query, body)?;
    let ttl = scalars.duration("ttl")?;
    let lease = scalars.text("lease")?.map(|text| lease_id("lease", &text)).transpose()?;
    let owner = scalars.text("owner")?;
    let (wait, enqueue) = (scalars.duration("wait")?, scalars.flag("enqueue")?);
    let (limit, permits) = match of.kind {
        ClaimKind::Semaphore => (positive(&mut scalars, "limit")?, positive(&mut scalars, "permits")?.unwrap_or(1)),
        ClaimKind::Lock | ClaimKind::Election => (None, 1),
    };
    let value = match of.kind {
        ClaimKind::Election => {
            scalars.skip("value_base64");
            election::value(&mut scalars, body)?
        }
        ClaimKind::Lock | ClaimKind::Semaphore => Bytes::new(),
    };
    let label = LeaseLabel { name: owner, metadata: metadata(body)? };
    scalars.skip("metadata");
    scalars.finish()?;
    if wait.is_some_and(|wait| wait > Duration::from_millis(CLAIM_WAIT_MAX_MS)) {
        return Err(
            Problem::parameter("wait", "`wait` is at most 10m").hint("wait longer with `enqueue`, or with `hold`")
        );
    }
    if enqueue && wait.is_some_and(|wait| !wait.is_zero()) {
        return Err(Problem::parameter("enqueue", "`enqueue` answers at once: leave `wait` out"));
    }
    let session = session(&of, lease, ttl, label)?;
    Ok(Asked { request: ClaimRequest { of, session, value, permits, limit }, wait, enqueue })
}

fn positive(scalars: &mut Scalars<'_, '_>, name: &'static str) -> Result<Option<u64>, Problem> {
    let Some(value) = scalars.int(name)? else { return Ok(None) };
    let value = u64::try_from(value).ok().filter(|value| *value > 0);
    value.map(Some).ok_or_else(|| Problem::parameter(name, format!("`{name}` is at least 1")))
}

/// The owner and metadata of a claim are those of its lease: only a new lease can be given some.
fn session(
    of: &ClaimName,
    lease: Option<LeaseId>,
    ttl: Option<Duration>,
    label: LeaseLabel,
) -> Result<Session, Problem> {
    let owner = label.name.as_deref();
    if owner.is_some_and(|owner| {
        owner.is_empty() || owner.len() > LEASE_NAME_BYTES_MAX || owner.chars().any(char::is_control)
    }) {
        let rule = format!("`owner` has 1 to {LEASE_NAME_BYTES_MAX} bytes and no control characters");
        return Err(Problem::parameter("owner", rule));
    }
    let Some(lease) = lease else {
        let default = if of.kind == ClaimKind::Election { ELECTION_TTL } else { CLAIM_TTL };
        return Ok(Session::New { ttl_ms: ttl_ms("ttl", ttl.unwrap_or(default))?, label });
    };
    let also = [("ttl", ttl.is_some()), ("owner", label.name.is_some()), ("metadata", label.metadata.is_some())];
    match also.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Problem::parameter(name, format!("with `lease`, `{name}` is that of the lease"))),
        None => Ok(Session::Lease(lease)),
    }
}

fn names(kind: ClaimKind) -> &'static Names {
    match kind {
        ClaimKind::Lock => &LOCK,
        ClaimKind::Semaphore => &SEMAPHORE,
        ClaimKind::Election => &CAMPAIGN,
    }
}

pub(crate) async fn acquire(call: &mut Call, kind: ClaimKind) -> Outcome {
    let query = call.query(names(kind))?;
    let of = name(call, kind)?;
    call.body_is(&["application/json"])?;
    let mut context = call.context(&query)?;
    let body = receive::whole(call).await?;
    let Asked { request, wait, enqueue } = asked(&query, &body, of)?;
    let wait = wait.unwrap_or_default();
    let idempotency = idempotency::of(call, &query, &body, &context.caller)?;
    if idempotency.is_some() && !wait.is_zero() {
        return Err(Problem::parameter("idempotency-key", "a call that waits takes no `Idempotency-Key`")
            .hint("grant a lease and name it: the same lease asking again gets the same claim"));
    }
    let service = call.state.service.clone();
    let answer = if enqueue {
        service.claim_enqueue(&context, request, idempotency).await?
    } else {
        context.timeout += wait;
        service.claim_acquire(&context, request, wait, idempotency).await?
    };
    let (status, claim) = match answer.body {
        Acquired::Held(claim) => (StatusCode::OK, claim),
        Acquired::Waiting(claim) => (StatusCode::ACCEPTED, claim),
        Acquired::Refused { holder, waiting, waited_ms } => {
            return Err(refused(kind, holder.as_ref(), (waiting, waited_ms)).header(answer.header));
        }
    };
    let mut json = Writer::with_capacity(256);
    encode::claim(&mut json, &claim);
    idempotency::written(call, status, answer.header, answer.replayed, json)
}

/// Held by another: who, and how many wait.
fn refused(kind: ClaimKind, holder: Option<&Claim>, (waiting, waited_ms): (u64, u64)) -> Problem {
    let code = if kind == ClaimKind::Election { Code::LeaderExists } else { Code::LockHeld };
    let detail = match holder {
        Some(holder) => {
            let owner = holder.label.name.clone().unwrap_or_else(|| format!("lease {:016x}", holder.lease));
            let left = holder.remaining_ms.map(|left_ms| format!(", {} s left", left_ms / 1000)).unwrap_or_default();
            let of = format!("{} '{}'", holder.of.kind.singular(), holder.of.name);
            format!("{of} is held by {owner} (token {}{left}); {waiting} waiting", holder.token)
        }
        None => format!("not held in time; {waiting} waiting"),
    };
    let mut members = Writer::default();
    members.name("holder");
    match holder {
        Some(holder) => encode::claim(&mut members, holder),
        None => members.item_raw(b"null"),
    }
    members.count("waiting", waiting);
    members.count("waited_ms", waited_ms);
    Problem::new(code, detail).members(&members)
}

pub(crate) async fn claim_get(call: &mut Call, kind: ClaimKind) -> Outcome {
    let query = call.query(&CLAIM)?;
    let (of, lease) = name_and_lease(call, kind)?;
    call.accepts(&["application/json"])?;
    let mut context = call.context(&query)?;
    let wait = query.duration("wait")?.unwrap_or_default().min(Duration::from_millis(WAIT_MAX_MS));
    context.timeout += wait;
    let answer = call.state.service.claim_get(&context, read_options(&query)?, (&of, lease), wait).await?;
    let mut json = Writer::with_capacity(256);
    encode::claim(&mut json, &answer.body);
    call.json(StatusCode::OK, Some(answer.header), json)
}

pub(crate) async fn release(call: &mut Call, kind: ClaimKind) -> Outcome {
    let query = call.query(&PLAIN)?;
    let (of, lease) = name_and_lease(call, kind)?;
    let context = call.context(&query)?;
    let idempotency = idempotency::of(call, &query, b"", &context.caller)?;
    let answer = call.state.service.claim_release(&context, (&of, lease), idempotency).await?;
    let mut json = Writer::default();
    json.open();
    json.bool("released", true);
    json.int("revision", answer.header.revision);
    json.close();
    idempotency::written(call, StatusCode::OK, answer.header, answer.replayed, json)
}

pub(crate) async fn break_claims(call: &mut Call, kind: ClaimKind) -> Outcome {
    let query = call.query(&PLAIN)?;
    let of = name(call, kind)?;
    let context = call.context(&query)?;
    idempotency::refuse(call)?;
    let answer = call.state.service.claim_break(&context, &of).await?;
    let mut json = Writer::with_capacity(256);
    json.open();
    json.name("broken");
    json.open_list();
    answer.body.iter().for_each(|claim| encode::claim(&mut json, claim));
    json.close_list();
    json.int("revision", answer.header.revision);
    json.close();
    call.json(StatusCode::OK, Some(answer.header), json)
}

fn checked_value(value: Bytes) -> Result<Bytes, Problem> {
    if value.len() > ELECTION_VALUE_BYTES_MAX {
        let limit = ELECTION_VALUE_BYTES_MAX;
        let problem = format!("`value` is {} bytes, the limit is {limit}", value.len());
        return Err(Problem::new(Code::TooLarge, problem).count("limit_bytes", limit as u64));
    }
    Ok(value)
}

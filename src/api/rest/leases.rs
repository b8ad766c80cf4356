//! Leases, which are sessions: `/v1/leases`. `hold` is in a file of its own.

use super::fields::{Fields, Scalars, parse_body};
use super::list::link_next;
use super::query::Names;
use super::ttl::{lease_id, ttl_ms};
use super::{dto, idempotency};
use crate::api::call::{ALWAYS, Call, Outcome, READ, read_options};
use crate::api::json::{Value, Writer};
use crate::api::problem::Problem;
use crate::api::receive;
use crate::api::status::Code;
use crate::model::limits::{LEASE_METADATA_BYTES_MAX, LEASE_NAME_BYTES_MAX, LIST_PAGE_DEFAULT, LIST_PAGE_MAX};
use crate::model::{LeaseId, LeaseLabel};
use crate::service::{LeaseGrant, LeaseList, LeaseState};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{HeaderValue, LOCATION};

const GRANT: Names = Names { allowed: &[&["ttl", "name", "id"], ALWAYS], later: &["ns"] };
const LIST: Names = Names { allowed: &[&["prefix", "limit", "cursor"], READ, ALWAYS], later: &["ns"] };
const GET: Names = Names { allowed: &[&["keys"], READ, ALWAYS], later: &["ns"] };
const PLAIN: Names = Names { allowed: &[ALWAYS], later: &["ns"] };

/// The id in the path: what stands between the route's fixed part and the next slash.
pub(super) fn id_in_path(call: &Call) -> Result<LeaseId, Problem> {
    let text = call.raw_key().split('/').next().unwrap_or_default();
    lease_id("id", text)
}

/// Everything a client can say of a new lease.
fn grant_of(scalars: &mut Scalars<'_, '_>, body: &[u8]) -> Result<LeaseGrant, Problem> {
    let ttl = scalars.duration("ttl")?.ok_or_else(|| {
        Problem::parameter("ttl", "`ttl` is missing").hint("for example curl -X POST '…/v1/leases?ttl=15s'")
    })?;
    let id = scalars.text("id")?.map(|text| lease_id("id", &text)).transpose()?;
    let name = scalars.text("name")?;
    if name
        .as_ref()
        .is_some_and(|name| name.is_empty() || name.len() > LEASE_NAME_BYTES_MAX || name.chars().any(char::is_control))
    {
        let problem = format!("`name` has 1 to {LEASE_NAME_BYTES_MAX} bytes and no control characters");
        return Err(Problem::parameter("name", problem));
    }
    let metadata = metadata(body)?;
    Ok(LeaseGrant { id, ttl_ms: ttl_ms("ttl", ttl)?, label: LeaseLabel { name, metadata } })
}

/// The object `metadata` of the body, as it is written there.
pub(super) fn metadata(body: &[u8]) -> Result<Option<Bytes>, Problem> {
    if body.is_empty() {
        return Ok(None);
    }
    let mut fields = Fields::of(parse_body(body)?, "")?;
    let Some(node) = fields.take("metadata") else { return Ok(None) };
    if !matches!(node.value, Value::Object(_)) {
        return Err(fields.wrong("metadata", "an object"));
    }
    if node.raw.len() > LEASE_METADATA_BYTES_MAX {
        let limit = LEASE_METADATA_BYTES_MAX;
        let problem = format!("`metadata` is {} bytes of JSON, the limit is {limit}", node.raw.len());
        return Err(Problem::new(Code::TooLarge, problem).count("limit_bytes", limit as u64));
    }
    Ok(Some(Bytes::copy_from_slice(node.raw)))
}

pub(crate) async fn grant(call: &mut Call) -> Outcome {
    let query = call.query(&GRANT)?;
    call.body_is(&["application/json"])?;
    let context = call.context(&query)?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let grant = grant_of(&mut scalars, &body)?;
    scalars.skip("metadata");
    scalars.finish()?;
    let idempotency = idempotency::of(call, &query, &body, &context.caller)?;
    let answer = call.state.service.lease_grant(&context, grant, idempotency).await?;
    let mut json = Writer::with_capacity(160);
    write(&mut json, &answer.body);
    let location = format!("/v1/leases/{:016x}", answer.body.id);
    let mut answered = call.json(StatusCode::CREATED, Some(answer.header), json)?;
    let headers = answered.response.headers_mut();
    if let Ok(location) = HeaderValue::try_from(location) {
        headers.insert(LOCATION, location);
    }
    idempotency::mark(headers, answer.replayed);
    Ok(answered)
}

pub(crate) async fn list(call: &mut Call) -> Outcome {
    let query = call.query(&LIST)?;
    call.accepts(&["application/json"])?;
    let context = call.context(&query)?;
    let limit = query.count("limit")?.unwrap_or(LIST_PAGE_DEFAULT).min(LIST_PAGE_MAX);
    let bad_cursor = || Problem::new(Code::BadCursor, "this is no cursor of a list of leases");
    let from = match query.text("cursor")? {
        None => 0,
        Some(cursor) => lease_id("cursor", cursor).map_err(|_| bad_cursor())?,
    };
    let list = LeaseList {
        name_prefix: query.text("prefix")?.unwrap_or_default().to_owned(),
        implicit: false,
        from,
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let answer = call.state.service.leases(&context, read_options(&query)?, list).await?;
    let mut json = Writer::with_capacity(64 + answer.body.items.len() * 128);
    json.open();
    json.name("items");
    json.open_list();
    answer.body.items.iter().for_each(|lease| write(&mut json, lease));
    json.close_list();
    json.bool("more", answer.body.next.is_some());
    let next = answer.body.next.map(|next| format!("{next:016x}"));
    if let Some(next) = &next {
        json.text("next", next);
    }
    json.close();
    let mut answered = call.json(StatusCode::OK, Some(answer.header), json)?;
    link_next(call, next.as_deref(), &mut answered);
    Ok(answered)
}

pub(crate) async fn get(call: &mut Call) -> Outcome {
    let query = call.query(&GET)?;
    let id = id_in_path(call)?;
    call.accepts(&["application/json"])?;
    let context = call.context(&query)?;
    let most = usize::try_from(LIST_PAGE_MAX).unwrap_or(usize::MAX);
    let keys = query.flag("keys")?.then_some(most);
    let answer = call.state.service.lease_info(&context, read_options(&query)?, id, keys).await?;
    let mut json = Writer::with_capacity(160);
    write(&mut json, &answer.body);
    call.json(StatusCode::OK, Some(answer.header), json)
}

pub(crate) async fn keep_alive(call: &mut Call) -> Outcome {
    let query = call.query(&PLAIN)?;
    let id = id_in_path(call)?;
    let context = call.context(&query)?;
    let answer = call.state.service.lease_keep_alive(&context, id).await?;
    let mut json = Writer::with_capacity(64);
    json.open();
    json.text("id", &format!("{id:016x}"));
    json.count("ttl_ms", answer.body);
    json.close();
    call.json(StatusCode::OK, Some(answer.header), json)
}

pub(crate) async fn revoke(call: &mut Call) -> Outcome {
    let query = call.query(&PLAIN)?;
    let id = id_in_path(call)?;
    let context = call.context(&query)?;
    let idempotency = idempotency::of(call, &query, b"", &context.caller)?;
    let answer = call.state.service.lease_revoke(&context, id, idempotency).await?;
    let mut json = Writer::with_capacity(48);
    dto::deleted(&mut json, answer.body, answer.header.revision, None);
    idempotency::written(call, StatusCode::OK, answer.header, answer.replayed, json)
}

fn write(json: &mut Writer, lease: &LeaseState) {
    let LeaseState { id, ttl_ms, remaining_ms, implicit: _, label, keys } = lease;
    json.open();
    json.text("id", &format!("{id:016x}"));
    if let Some(name) = &label.name {
        json.text("name", name);
    }
    if let Some(metadata) = &label.metadata {
        json.raw("metadata", metadata);
    }
    json.count("ttl_ms", *ttl_ms);
    json.count("remaining_ms", *remaining_ms);
    if let Some(keys) = keys {
        json.name("keys");
        json.open_list();
        for key in keys {
            json.open();
            json.key(key);
            json.close();
        }
        json.close_list();
    }
    json.close();
}

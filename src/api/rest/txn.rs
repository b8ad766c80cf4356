//! `POST /v1/txn`: compares and operations of the JSON form, and their results.

use super::dto::{self, Values};
use super::fence::{checked_name, is_token};
use super::fields::{Fields, parse_body};
use super::idempotency;
use super::kv::foreign;
use super::media::{EXPECTED, is_media_type};
use super::query::{Names, unknown};
use super::ttl::{NewId, choice_by_fields, key_expires_at, lease_id};
use crate::api::call::{ALWAYS, Call, Outcome};
use crate::api::json::{Node, Value, Writer};
use crate::api::problem::Problem;
use crate::api::receive;
use crate::api::status::Code;
use crate::model::limits::{LIST_PAGE_BYTES_MAX, LIST_PAGE_DEFAULT, LIST_PAGE_MAX, TXN_OPS_MAX};
use crate::model::{
    ClaimKind, ClaimName, Compare, CompareOp, CompareTarget, Fence, KeyRange, KeyValue, LeaseChoice, LeaseId, Op,
    OpReply, PutOp, RangeOp, RangeSort, Reply, Revision, SortOrder, Txn, TxnReply,
};
use bytes::Bytes;
use hyper::StatusCode;
use std::sync::Arc;

const NAMES: Names = Names { allowed: &[&["strict"], ALWAYS], later: &["ns"] };
const OPERATIONS: [&str; 5] = ["put", "delete", "get", "list", "add"];

pub(crate) async fn post(call: &mut Call) -> Outcome {
    let query = call.query(&NAMES)?;
    call.body_is(&["application/json"])?;
    let strict = query.flag("strict")?;
    let context = call.context(&query)?;
    let body = receive::whole(call).await?;
    let request = decode(&body, &|| call.state.service.new_lease_id())?;
    let idempotency = idempotency::of(call, &query, &body, &context.caller)?;
    let answer = call.state.service.txn(&context, request.txn, idempotency).await?;
    let (reply, outcome_only) = match answer.body {
        Reply::Txn(reply) => (reply, false),
        Reply::Outcome { succeeded, revision } => {
            (TxnReply { succeeded, failed_if: Vec::new(), revision, results: Vec::new() }, true)
        }
        _ => return Err(foreign("another command's reply")),
    };
    let shapes = if reply.succeeded { &request.success } else { &request.failure };
    let mut members = Writer::with_capacity(256);
    let refused = strict && !reply.succeeded;
    members.bool("succeeded", reply.succeeded);
    let state = Arc::clone(&call.state);
    let times = Times {
        ttl_ms: &|lease| state.service.lease_ttl_ms(lease),
        expires_at: &|lease| key_expires_at(&state, lease),
    };
    encode(&mut members, &reply, shapes, Extent { revision: !refused, outcome_only, times })?;
    if refused {
        let failed: Vec<String> = reply.failed_if.iter().map(u32::to_string).collect();
        let detail = format!("these compares do not hold: {}", failed.join(", "));
        return Err(Problem::new(Code::TxnNotSucceeded, detail).members(&members).header(answer.header));
    }
    let mut json = Writer::with_capacity(members.len() + 64);
    json.open();
    json.members(&members);
    json.close();
    idempotency::written(call, StatusCode::OK, answer.header, answer.replayed, json)
}

/// A transaction, and how the results of its branches are to be written.
#[derive(Debug)]
struct Request {
    txn: Txn,
    success: Vec<Shape>,
    failure: Vec<Shape>,
}

/// What of an operation is needed to write its result.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    Put,
    Delete { prev: bool },
    Get,
    List { values: Values, count_only: bool },
    Add,
}

fn decode(body: &[u8], new_id: NewId<'_>) -> Result<Request, Problem> {
    let mut fields = Fields::of(parse_body(body)?, "")?;
    let compares = fields.list("if")?;
    let success = fields.list("then")?;
    let failure = fields.list("else")?;
    fields.finish()?;
    for (name, items) in [("if", &compares), ("then", &success), ("else", &failure)] {
        if items.len() > TXN_OPS_MAX {
            return Err(Problem::body(format!("`{name}` has {} entries, the limit is {TXN_OPS_MAX}", items.len())));
        }
    }
    let compares = each(compares, "if", compare)?;
    let success = each(success, "then", |fields| operation(fields, new_id))?;
    let failure = each(failure, "else", |fields| operation(fields, new_id))?;
    let (mut success, success_shapes): (Vec<_>, Vec<_>) = success.into_iter().unzip();
    let (mut failure, failure_shapes): (Vec<_>, Vec<_>) = failure.into_iter().unzip();
    share_page(&mut success, &success_shapes);
    share_page(&mut failure, &failure_shapes);
    Ok(Request { txn: Txn { compares, success, failure }, success: success_shapes, failure: failure_shapes })
}

/// The listings of a branch hold together what one page may.
fn share_page(branch: &mut [Op], shapes: &[Shape]) {
    let listings = shapes.iter().filter(|shape| matches!(shape, Shape::List { .. })).count();
    let share = u64::try_from(LIST_PAGE_BYTES_MAX / listings.max(1)).unwrap_or(u64::MAX);
    for op in branch {
        if let Op::Range(range) = op {
            range.bytes_max = share;
        }
    }
}

fn each<'a, T>(
    nodes: Vec<Node<'a>>,
    list: &str,
    read: impl Fn(Fields<'a>) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    nodes.into_iter().enumerate().map(|(at, node)| read(Fields::of(node, format!("{list}[{at}]"))?)).collect()
}

/// `prefix`, or `start` and `end`; each also as `…_base64`.
fn range(fields: &mut Fields<'_>) -> Result<Option<KeyRange>, Problem> {
    let prefix = fields.bytes("prefix", "prefix_base64")?;
    let start = fields.bytes("start", "start_base64")?;
    let end = fields.bytes("end", "end_base64")?;
    match (prefix, start, end) {
        (None, None, None) => Ok(None),
        (Some(prefix), None, None) => Ok(Some(KeyRange::prefix(prefix))),
        (None, Some(start), Some(end)) if !end.is_empty() => Ok(Some(KeyRange { start, end: Some(end) })),
        _ => Err(fields.wrong("prefix", "given as either `prefix`, or both `start` and `end`")),
    }
}

fn key_or_range(fields: &mut Fields<'_>) -> Result<KeyRange, Problem> {
    match (fields.key()?, range(fields)?) {
        (Some(key), None) => Ok(KeyRange::key(key)),
        (None, Some(range)) => Ok(range),
        (None, None) => Err(fields.wrong("key", "there, nor `prefix`, nor `start` and `end`")),
        (Some(_), Some(_)) => Err(fields.wrong("key", "possible together with a range")),
    }
}

fn compare(mut fields: Fields<'_>) -> Result<Compare, Problem> {
    if let Some(fence) = holder(&mut fields)? {
        fields.finish()?;
        return Ok(Compare::holder(fence));
    }
    let range = key_or_range(&mut fields)?;
    let targets = ["exists", "value", "value_base64", "revision", "create_revision", "version", "lease"];
    let mut found = None;
    for target in targets {
        if let Some(node) = fields.take(target) {
            if found.is_some() {
                return Err(fields.wrong(target, "possible here: an entry of `if` compares one thing"));
            }
            found = Some((target, node));
        }
    }
    let (target, node) = found.ok_or_else(|| fields.wrong("exists", "there, nor anything else to compare with"))?;
    let (op, target) = condition(&fields, target, node)?;
    fields.finish()?;
    Ok(Compare { range, op, target })
}

/// `{"lock": name, "token": n}`, or of a `semaphore` or an `election`.
fn holder(fields: &mut Fields<'_>) -> Result<Option<Fence>, Problem> {
    let kinds = [("lock", ClaimKind::Lock), ("semaphore", ClaimKind::Semaphore), ("election", ClaimKind::Election)];
    for (member, kind) in kinds {
        if let Some(name) = fields.text(member)? {
            let name = checked_name(&fields.path(member), name.into_owned())?;
            let token = fields.int("token")?.filter(|token| is_token(*token));
            let token = token.ok_or_else(|| fields.wrong("token", "there as a fencing token"))?;
            return Ok(Some(Fence { of: ClaimName::new(kind, name), token }));
        }
    }
    Ok(None)
}

fn condition(fields: &Fields<'_>, target: &'static str, node: Node<'_>) -> Result<(CompareOp, CompareTarget), Problem> {
    if target == "exists" {
        return match node.value {
            Value::Bool(true) => Ok((CompareOp::Greater, CompareTarget::Version(0))),
            Value::Bool(false) => Ok((CompareOp::Equal, CompareTarget::Version(0))),
            _ => Err(fields.wrong(target, "a boolean")),
        };
    }
    let (op, operand) = match node.value {
        Value::Object(members) => comparison(fields, target, members)?,
        scalar => (CompareOp::Equal, scalar),
    };
    let target = match (target, operand) {
        ("value", Value::String(text)) => CompareTarget::Value(Bytes::copy_from_slice(text.as_bytes())),
        ("value_base64", Value::String(text)) => {
            let bytes = super::keys::from_base64(&text).ok_or_else(|| fields.wrong(target, "base64"))?;
            CompareTarget::Value(bytes.into())
        }
        ("value" | "value_base64", _) => {
            return Err(fields.wrong(target, "a string, or an object with one comparison"));
        }
        ("lease", Value::String(text)) => CompareTarget::Lease(if text == "0" { 0 } else { lease_id(target, &text)? }),
        ("lease", _) => return Err(fields.wrong(target, "a lease's id as text, or `\"0\"` for none")),
        (_, operand) => number(fields, target, &operand)?,
    };
    Ok((op, target))
}

fn number(fields: &Fields<'_>, target: &'static str, operand: &Value<'_>) -> Result<CompareTarget, Problem> {
    let Value::Number(text) = operand else {
        return Err(fields.wrong(target, "an integer, or an object with one comparison"));
    };
    let value = text.parse().map_err(|_| fields.wrong(target, "a 64-bit integer"))?;
    Ok(match target {
        "revision" => CompareTarget::ModRevision(value),
        "create_revision" => CompareTarget::CreateRevision(value),
        _ => CompareTarget::Version(value),
    })
}

fn comparison<'a>(
    fields: &Fields<'_>,
    target: &'static str,
    members: Vec<(std::borrow::Cow<'a, str>, Node<'a>)>,
) -> Result<(CompareOp, Value<'a>), Problem> {
    const OPS: [(&str, CompareOp); 6] = [
        ("eq", CompareOp::Equal),
        ("ne", CompareOp::NotEqual),
        ("lt", CompareOp::Less),
        ("lte", CompareOp::LessOrEqual),
        ("gt", CompareOp::Greater),
        ("gte", CompareOp::GreaterOrEqual),
    ];
    let mut members = members.into_iter();
    let (Some((name, node)), None) = (members.next(), members.next()) else {
        return Err(fields.wrong(target, "an object with exactly one of eq, ne, lt, lte, gt, gte"));
    };
    match OPS.iter().find(|(op, _)| *op == name) {
        Some((_, op)) => Ok((*op, node.value)),
        None => Err(unknown(&name, OPS.iter().map(|(op, _)| *op)).text("place", &fields.path(target))),
    }
}

fn operation(mut fields: Fields<'_>, new_id: NewId<'_>) -> Result<(Op, Shape), Problem> {
    let names: Vec<String> = fields.names().map(str::to_owned).collect();
    let [name] = &names[..] else {
        return Err(Problem::body(format!(
            "`{}` holds exactly one operation: {}",
            fields.path("").trim_end_matches('.'),
            OPERATIONS.join(", ")
        )));
    };
    if name == "txn" {
        return Err(Problem::body("transactions do not nest"));
    }
    let Some(known) = OPERATIONS.into_iter().find(|known| known == name) else {
        return Err(unknown(name, OPERATIONS.into_iter()));
    };
    let place = fields.path(known);
    let node = fields.take(known).ok_or_else(|| Problem::body("an operation is missing"))?;
    let mut inner = Fields::of(node, place)?;
    let read = match known {
        "put" => put(&mut inner, new_id)?,
        "delete" => delete(&mut inner)?,
        "get" => (Op::Range(RangeOp::newest(KeyRange::key(inner.require_key()?))), Shape::Get),
        "list" => list(&mut inner)?,
        _ => add(&mut inner, new_id)?,
    };
    inner.finish()?;
    Ok(read)
}

/// The declared `content_type`; a `value_json` is JSON unless it says otherwise.
pub(super) fn stored_type(fields: &mut Fields<'_>, is_json: bool) -> Result<Option<String>, Problem> {
    let declared = fields.text("content_type")?;
    match declared {
        None => Ok(is_json.then(|| "application/json".to_owned())),
        Some(declared) if is_media_type(&declared) => Ok(Some(declared.into_owned())),
        Some(_) => Err(fields.wrong("content_type", EXPECTED)),
    }
}

fn put(fields: &mut Fields<'_>, new_id: NewId<'_>) -> Result<(Op, Shape), Problem> {
    let key = fields.require_key()?;
    let lease = choice_by_fields(new_id, fields, LeaseChoice::Detach)?;
    let value = fields.value()?;
    let (value, is_json) = value.ok_or_else(|| fields.wrong("value", "there, nor `value_base64`, nor `value_json`"))?;
    let content_type = stored_type(fields, is_json)?;
    let prev_kv = fields.bool("prev")?.unwrap_or(false);
    let op = PutOp { key, value, content_type, lease, prev_kv, ignore_value: false };
    Ok((Op::Put(op), Shape::Put))
}

fn delete(fields: &mut Fields<'_>) -> Result<(Op, Shape), Problem> {
    let range = key_or_range(fields)?;
    if range.start.is_empty() && range.end.is_none() {
        return Err(Problem::new(Code::RangeRequired, format!("`{}` is empty", fields.path("prefix"))));
    }
    let prev = fields.bool("prev")?.unwrap_or(false);
    Ok((Op::Delete { range, prev_kv: prev }, Shape::Delete { prev }))
}

fn list(fields: &mut Fields<'_>) -> Result<(Op, Shape), Problem> {
    let range = range(fields)?.unwrap_or_else(KeyRange::all);
    let limit = match fields.int("limit")? {
        None => LIST_PAGE_DEFAULT,
        Some(limit) => {
            let limit = u64::try_from(limit).ok().filter(|limit| *limit > 0);
            limit.ok_or_else(|| fields.wrong("limit", "at least 1"))?.min(LIST_PAGE_MAX)
        }
    };
    let keys_only = fields.bool("keys_only")?.unwrap_or(false);
    let count_only = fields.bool("count_only")?.unwrap_or(false);
    let order = match fields.text("order")?.as_deref() {
        None | Some("asc") => SortOrder::Ascending,
        Some("desc") => SortOrder::Descending,
        Some(_) => return Err(fields.wrong("order", "`asc` or `desc`")),
    };
    let sort = match fields.text("sort")?.as_deref() {
        None | Some("key") => RangeSort::Key,
        Some("create") => RangeSort::Create,
        Some("mod") => RangeSort::Mod,
        Some("version") => RangeSort::Version,
        Some(_) => return Err(fields.wrong("sort", "`key`, `create`, `mod` or `version`")),
    };
    let op = RangeOp { limit, keys_only, count_only, order, sort, ..RangeOp::newest(range) };
    Ok((Op::Range(op), Shape::List { values: Values::unless(keys_only), count_only }))
}

fn add(fields: &mut Fields<'_>, new_id: NewId<'_>) -> Result<(Op, Shape), Problem> {
    let key = fields.require_key()?;
    let lease = choice_by_fields(new_id, fields, LeaseChoice::Keep)?;
    let by = fields.int("by")?.unwrap_or(1);
    let initial = fields.int("initial")?.unwrap_or(0);
    let (min, max) = (fields.int("min")?, fields.int("max")?);
    if min.zip(max).is_some_and(|(min, max)| min > max) {
        return Err(fields.wrong("min", "at most `max`"));
    }
    let clamp = match fields.text("on_limit")?.as_deref() {
        None | Some("fail") => false,
        Some("clamp") => true,
        Some(_) => return Err(fields.wrong("on_limit", "`fail` or `clamp`")),
    };
    Ok((Op::Add { key, by, initial, min, max, clamp, lease }, Shape::Add))
}

/// What is known here, now, of the leases that results name.
#[derive(Clone, Copy)]
struct Times<'a> {
    ttl_ms: &'a dyn Fn(LeaseId) -> Option<u64>,
    expires_at: &'a dyn Fn(LeaseId) -> Option<String>,
}

/// Which members an answer has.
#[derive(Clone, Copy)]
struct Extent<'a> {
    /// A problem has its own.
    revision: bool,
    /// The results were too large to be kept for this replay.
    outcome_only: bool,
    times: Times<'a>,
}

/// The members behind `succeeded`.
fn encode(json: &mut Writer, reply: &TxnReply, shapes: &[Shape], extent: Extent<'_>) -> Result<(), Problem> {
    if !reply.succeeded {
        json.name("failed_if");
        json.open_list();
        reply.failed_if.iter().for_each(|at| json.item_raw(at.to_string().as_bytes()));
        json.close_list();
    }
    if extent.revision {
        json.int("revision", reply.revision);
    }
    json.name("results");
    json.open_list();
    if !extent.outcome_only && reply.results.len() != shapes.len() {
        return Err(foreign("another number of results"));
    }
    for (result, shape) in reply.results.iter().zip(shapes) {
        json.open();
        encode_result(json, result, shape, (reply.revision, extent.times))?;
        json.close();
    }
    json.close_list();
    if extent.outcome_only {
        json.bool("outcome_only", true);
    }
    Ok(())
}

fn encode_result(
    json: &mut Writer,
    result: &OpReply,
    shape: &Shape,
    (revision, times): (Revision, Times<'_>),
) -> Result<(), Problem> {
    let entry =
        |json: &mut Writer, kv: &KeyValue, values| dto::entry_with_ttl(json, kv, values, (times.ttl_ms)(kv.lease));
    match (shape, result) {
        (Shape::Put, OpReply::Put { key, version, created, lease, prev }) => {
            json.name("put");
            let (version, created, lease, previous) = (*version, *created, *lease, prev.as_ref());
            let expires_at = (times.expires_at)(lease);
            let expires_at = expires_at.as_deref();
            dto::put(json, &dto::Put { key, revision, version, created, lease, expires_at, previous });
        }
        (Shape::Delete { prev: wanted }, OpReply::Delete { deleted, prev }) => {
            json.name("delete");
            dto::deleted(json, *deleted, revision, wanted.then_some(prev));
        }
        (Shape::Get, OpReply::Range(range)) => match range.kvs.first() {
            None => json.raw("get", b"null"),
            Some(kv) => {
                json.name("get");
                entry(json, kv, Values::Shown);
            }
        },
        (Shape::List { values, count_only }, OpReply::Range(range)) => {
            json.name("list");
            json.open();
            json.int("revision", revision);
            if !count_only {
                json.name("items");
                json.open_list();
                range.kvs.iter().for_each(|kv| entry(json, kv, *values));
                json.close_list();
            }
            json.count("count", range.count);
            json.bool("more", range.more);
            json.close();
        }
        (Shape::Add, OpReply::Add { key, value, previous, clamped, .. }) => {
            json.name("add");
            let (value, previous, clamped) = (*value, *previous, *clamped);
            dto::counter(json, &dto::Counter { key, value, previous, revision, clamped });
        }
        _ => return Err(foreign("another operation's reply")),
    }
    Ok(())
}

#[cfg(test)]
mod tests;

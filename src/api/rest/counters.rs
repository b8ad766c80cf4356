//! Counters: `/v1/counters/{key}`. A counter is an ordinary key that holds a decimal int64 as text.

use super::fields::Scalars;
use super::keys::KEY_ENCODING;
use super::kv::foreign;
use super::query::Names;
use super::ttl::ttl_ms;
use super::{dto, idempotency};
use crate::api::call::{ALWAYS, Call, Outcome, READ, read_options};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::receive;
use crate::model::{KeyRange, KeyValue, LeaseChoice, Op, OpReply, RangeOp, Rejection, Reply, TxnReply};
use hyper::StatusCode;

const GET: Names = Names { allowed: &[READ, KEY_ENCODING, ALWAYS], later: &["ns"] };
const ADD: Names =
    Names { allowed: &[&["add", "initial", "min", "max", "on_limit", "ttl"], KEY_ENCODING, ALWAYS], later: &["ns"] };

pub(crate) async fn get(call: &mut Call) -> Outcome {
    let query = call.query(&GET)?;
    let key = call.key(&query)?;
    call.accepts(&["application/json"])?;
    let context = call.context(&query)?;
    let range = RangeOp::newest(KeyRange::key(key.clone()));
    let answer = call.state.service.range(&context, read_options(&query)?, range).await?;
    let kv = answer.body.kvs.first();
    let value = match kv.map(|kv| (kv, parse(kv))) {
        None => 0,
        Some((_, Some(value))) => value,
        Some((kv, None)) => {
            return Err(Problem::from(Rejection::NotACounter { key: kv.key.clone() }).header(answer.header));
        }
    };
    let mut json = Writer::with_capacity(96 + key.len());
    json.open();
    json.key(&key);
    json.int("value", value);
    json.bool("exists", kv.is_some());
    json.int("revision", kv.map_or(answer.header.revision, |kv| kv.mod_revision));
    json.close();
    call.json(StatusCode::OK, Some(answer.header), json)
}

/// As the machine reads it: decimal int64, nothing around it.
fn parse(kv: &KeyValue) -> Option<i64> {
    let text = std::str::from_utf8(&kv.value).ok()?;
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

pub(crate) async fn add(call: &mut Call) -> Outcome {
    let query = call.query(&ADD)?;
    let key = call.key(&query)?;
    let context = call.context(&query)?;
    call.body_is(&["application/json"])?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let ttl_ms = scalars.duration("ttl")?.map(|ttl| ttl_ms("ttl", ttl)).transpose()?;
    let lease = match ttl_ms {
        None => LeaseChoice::Keep,
        Some(ttl_ms) => LeaseChoice::Implicit { id: call.state.service.new_lease_id(), ttl_ms },
    };
    let (min, max) = (scalars.int("min")?, scalars.int("max")?);
    let op = Op::Add {
        key: key.clone(),
        by: scalars.int("add")?.unwrap_or(1),
        initial: scalars.int("initial")?.unwrap_or(0),
        min,
        max,
        clamp: scalars.choice("on_limit", &[("fail", false), ("clamp", true)])?.unwrap_or(false),
        lease,
    };
    scalars.finish()?;
    if min.zip(max).is_some_and(|(min, max)| min > max) {
        return Err(Problem::parameter("min", "`min` is greater than `max`"));
    }
    let idempotency = idempotency::of(call, &query, &body, &context.caller)?;
    let answer = call.state.service.operation(&context, op, idempotency).await?;
    let mut json = Writer::with_capacity(96 + key.len());
    match answer.body {
        Reply::Txn(TxnReply { revision, results, .. }) => match results.first() {
            Some(&OpReply::Add { value, previous, clamped, .. }) => {
                dto::counter(&mut json, &dto::Counter { key: &key, value, previous, revision, clamped });
            }
            _ => return Err(foreign("another operation's reply")),
        },
        Reply::Outcome { revision, .. } => dto::outcome_only(&mut json, Some(&key), revision),
        _ => return Err(foreign("another command's reply")),
    }
    idempotency::written(call, StatusCode::OK, answer.header, answer.replayed, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_decimal_int64_is_a_counter() {
        let kv = |value: &'static str| KeyValue {
            key: "a".into(),
            value: value.into(),
            value_size: 0,
            content_type: None,
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: 0,
        };
        assert_eq!(parse(&kv("-42")), Some(-42));
        for other in ["", "+1", " 1", "1\n", "1.0", "9223372036854775808", "0x1"] {
            assert_eq!(parse(&kv(other)), None, "{other:?}");
        }
    }
}

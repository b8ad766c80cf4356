//! Time to live: `/v1/ttl/{key}`, and the `ttl`, `lease` and `keep_ttl` of writes.

use super::fields::Fields;
use super::keys::KEY_ENCODING;
use super::query::{Names, Query};
use super::{dto, idempotency};
use crate::api::State;
use crate::api::call::{ALWAYS, Call, Outcome, READ, read_options};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::receive;
use crate::api::rest::fields::Scalars;
use crate::api::status::Code;
use crate::model::limits::{LEASE_TTL_MAX_MS, LEASE_TTL_MIN_MS};
use crate::model::{LeaseChoice, LeaseId};
use crate::service::{Answer, KeyTtl};
use hyper::StatusCode;
use std::time::{Duration, SystemTime};

const READS: Names = Names { allowed: &[READ, KEY_ENCODING, ALWAYS], later: &["ns"] };
const SETS: Names = Names { allowed: &[&["ttl"], KEY_ENCODING, ALWAYS], later: &["ns"] };
const CLEARS: Names = Names { allowed: &[KEY_ENCODING, ALWAYS], later: &["ns"] };

/// Names by which a write says what becomes of its key's lease.
pub(crate) const CHOICE: &[&str] = &["ttl", "lease", "keep_ttl"];

/// Ids for the leases that writes with a TTL make.
pub(crate) type NewId<'a> = &'a dyn Fn() -> LeaseId;

/// TTLs are counted in these steps, upwards.
const GRANULARITY_MS: u64 = 100;

pub(crate) fn ttl_ms(name: &str, ttl: Duration) -> Result<u64, Problem> {
    let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    if !(LEASE_TTL_MIN_MS..=LEASE_TTL_MAX_MS).contains(&ms) {
        return Err(Problem::new(Code::BadTtl, format!("`{name}` is {ms} ms")).text("parameter", name));
    }
    Ok(ms.div_ceil(GRANULARITY_MS) * GRANULARITY_MS)
}

/// Hexadecimal, as answers show it.
pub(crate) fn lease_id(name: &str, text: &str) -> Result<LeaseId, Problem> {
    let id = LeaseId::from_str_radix(text, 16).ok().filter(|id| *id > 0 && !text.starts_with('+'));
    let wrong = || Problem::parameter(name, format!("`{name}` is a lease's id: 1 to 16 hexadecimal digits, not all 0"));
    id.filter(|_| text.len() <= 16).ok_or_else(wrong)
}

/// What a write says of its key's lease; `unsaid` if nothing.
struct Said {
    ttl: Option<u64>,
    lease: Option<LeaseId>,
    keep: Option<bool>,
}

impl Said {
    fn choice(self, new_id: NewId<'_>, unsaid: LeaseChoice) -> Result<LeaseChoice, Problem> {
        match (self.ttl, self.lease, self.keep.unwrap_or(false)) {
            (Some(ttl_ms), None, false) => Ok(LeaseChoice::Implicit { id: new_id(), ttl_ms }),
            (None, Some(lease), false) => Ok(LeaseChoice::Attach(lease)),
            (None, None, true) => Ok(LeaseChoice::Keep),
            (None, None, false) if self.keep.is_some() => Ok(LeaseChoice::Detach),
            (None, None, false) => Ok(unsaid),
            _ => Err(Problem::parameter("ttl", "give one of `ttl`, `lease` and `keep_ttl`")),
        }
    }
}

pub(crate) fn choice_by_query(call: &Call, query: &Query) -> Result<LeaseChoice, Problem> {
    let said = Said {
        ttl: query.duration("ttl")?.map(|ttl| ttl_ms("ttl", ttl)).transpose()?,
        lease: query.text("lease")?.map(|text| lease_id("lease", text)).transpose()?,
        keep: query.maybe_flag("keep_ttl")?,
    };
    said.choice(&|| call.state.service.new_lease_id(), LeaseChoice::Detach)
}

pub(crate) fn choice_by_fields(
    new_id: NewId<'_>,
    fields: &mut Fields<'_>,
    unsaid: LeaseChoice,
) -> Result<LeaseChoice, Problem> {
    let said = Said {
        ttl: fields.duration("ttl")?.map(|ttl| ttl_ms("ttl", ttl)).transpose()?,
        lease: fields.text("lease")?.map(|text| lease_id("lease", &text)).transpose()?,
        keep: fields.bool("keep_ttl")?,
    };
    said.choice(new_id, unsaid)
}

/// When what is left has passed, by this member's wall clock: for people, nothing is decided by it.
pub(crate) fn expires_at(state: &State, left_ms: u64) -> String {
    let at = Duration::from_millis(state.clock.wall_ms().saturating_add(left_ms));
    match SystemTime::UNIX_EPOCH.checked_add(at) {
        Some(at) => humantime::format_rfc3339_millis(at).to_string(),
        None => "9999-12-31T23:59:59.999Z".to_owned(),
    }
}

/// When a key written just now will go, if that is known here.
pub(crate) fn key_expires_at(state: &State, lease: LeaseId) -> Option<String> {
    state.service.lease_left_ms(lease).map(|left_ms| expires_at(state, left_ms))
}

pub(crate) async fn get(call: &mut Call) -> Outcome {
    let query = call.query(&READS)?;
    let key = call.key(&query)?;
    call.accepts(&["application/json"])?;
    let context = call.context(&query)?;
    let answer = call.state.service.ttl(&context, read_options(&query)?, key.clone()).await?;
    answered(call, &key, answer)
}

pub(crate) async fn put(call: &mut Call) -> Outcome {
    let query = call.query(&SETS)?;
    let key = call.key(&query)?;
    call.body_is(&["application/json"])?;
    let context = call.context(&query)?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let ttl = scalars.duration("ttl")?;
    scalars.finish()?;
    let ttl = ttl.ok_or_else(|| Problem::parameter("ttl", "`ttl` is missing").hint("for example ?ttl=30s"))?;
    let idempotency = idempotency::of(call, &query, &body, &context.caller)?;
    let ttl_ms = ttl_ms("ttl", ttl)?;
    let answer = call.state.service.ttl_set(&context, key.clone(), ttl_ms, idempotency).await?;
    answered(call, &key, answer)
}

pub(crate) async fn delete(call: &mut Call) -> Outcome {
    let query = call.query(&CLEARS)?;
    let key = call.key(&query)?;
    let context = call.context(&query)?;
    let idempotency = idempotency::of(call, &query, b"", &context.caller)?;
    let answer = call.state.service.ttl_clear(&context, key.clone(), idempotency).await?;
    answered(call, &key, answer)
}

fn answered(call: &mut Call, key: &[u8], answer: Answer<KeyTtl>) -> Outcome {
    let KeyTtl { lease, ttl_ms, remaining_ms } = answer.body;
    let mut json = Writer::with_capacity(160 + key.len());
    json.open();
    json.key(key);
    if lease == 0 {
        json.raw("ttl_ms", b"null");
    } else {
        json.count("ttl_ms", ttl_ms);
        json.count("remaining_ms", remaining_ms);
        json.text("expires_at", &expires_at(&call.state, remaining_ms));
        dto::lease(&mut json, lease);
    }
    json.close();
    idempotency::written(call, StatusCode::OK, answer.header, answer.replayed, json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::rest::query::parse_duration;

    #[test]
    fn ttls_are_bounded_and_rounded_up_to_the_granularity() {
        let ms = |text: &str| ttl_ms("ttl", parse_duration(text).unwrap()).map_err(|problem| problem.code());
        assert_eq!(ms("1s"), Ok(1000));
        assert_eq!(ms("1001ms"), Ok(1100));
        assert_eq!(ms("365d"), Ok(365 * 86_400_000));
        assert_eq!(ms("999ms"), Err(Code::BadTtl));
        assert_eq!(ms("8760h1ms"), Err(Code::BadTtl));
    }

    #[test]
    fn lease_ids_are_hexadecimal_and_positive() {
        for (text, id) in [("1", 1), ("0000000000003f9a", 0x3f9a), ("7fffffffffffffff", i64::MAX), ("FF", 255)] {
            assert_eq!(lease_id("lease", text).map_err(|problem| problem.code()), Ok(id));
        }
        for text in ["", "0", "-1", "+1", "8000000000000000", "00000000000000001", "xyz", "0x1"] {
            assert!(lease_id("lease", text).is_err(), "{text:?}");
        }
    }
}

//! Rate limits: `/v1/ratelimits/{key}`. The policy travels with the request; the store keeps when the
//! limit is full again.

use super::fields::Scalars;
use super::keys::KEY_ENCODING;
use super::kv::foreign;
use super::query::{Names, Query};
use super::{dto, idempotency};
use crate::api::call::{ALWAYS, Call, Outcome};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::receive;
use crate::api::status::Code;
use crate::model::limits::LEASE_TTL_MAX_MS;
use crate::model::{OpReply, Rate, Reply, TxnReply};
use crate::service::RateState;
use hyper::StatusCode;
use std::time::Duration;

const POLICY: &[&str] = &["limit", "per", "burst"];
const GET: Names = Names { allowed: &[POLICY, KEY_ENCODING, ALWAYS], later: &["ns"] };
const TAKE: Names = Names { allowed: &[POLICY, &["cost", "strict"], KEY_ENCODING, ALWAYS], later: &["ns"] };
const RESET: Names = Names { allowed: &[KEY_ENCODING, ALWAYS], later: &["ns"] };

/// The shortest time between two permits that the store's arithmetic keeps to a tenth of a percent.
const INTERVAL_NS_MIN: u128 = 1_000;

struct Policy {
    limit: u64,
    rate: Rate,
}

fn policy(limit: Option<i64>, per: Option<Duration>, burst: Option<i64>) -> Result<Policy, Problem> {
    let positive = |name: &str, value: i64| {
        let number = u64::try_from(value).ok().filter(|number| *number > 0);
        number.ok_or_else(|| Problem::parameter(name, format!("`{name}` is at least 1")))
    };
    let missing = |name: &str| Problem::parameter(name, format!("`{name}` is missing: as in limit=100&per=1m"));
    let limit = positive("limit", limit.ok_or_else(|| missing("limit"))?)?;
    let per = per.filter(|per| !per.is_zero()).ok_or_else(|| missing("per"))?;
    if per > Duration::from_millis(LEASE_TTL_MAX_MS) {
        return Err(Problem::parameter("per", "`per` is at most 365 days"));
    }
    let burst = burst.map_or(Ok(limit), |burst| positive("burst", burst))?;
    // Rounded up, so that never more than the limit is allowed.
    let interval_ns = per.as_nanos().div_ceil(u128::from(limit));
    if interval_ns < INTERVAL_NS_MIN {
        return Err(Problem::parameter("limit", "`limit` is more than one permit per microsecond"));
    }
    let rate = Rate { interval_ns: u64::try_from(interval_ns).unwrap_or(u64::MAX), burst };
    match rate.refill_ns().filter(|ns| ns / 1_000_000 <= LEASE_TTL_MAX_MS) {
        Some(_) => Ok(Policy { limit, rate }),
        None => Err(Problem::parameter("burst", "`burst` takes more than 365 days to refill")),
    }
}

fn write(limit: u64, state: &RateState) -> Writer {
    let mut json = Writer::with_capacity(128);
    json.open();
    members(&mut json, limit, state);
    json.close();
    json
}

fn members(json: &mut Writer, limit: u64, state: &RateState) {
    json.bool("allowed", state.allowed);
    json.count("limit", limit);
    json.count("remaining", state.remaining);
    json.count("retry_after_ms", state.retry_after_ms);
    json.count("reset_ms", state.reset_ms);
}

pub(crate) async fn get(call: &mut Call) -> Outcome {
    let query: Query = call.query(&GET)?;
    let key = call.key(&query)?;
    call.accepts(&["application/json"])?;
    let Policy { limit, rate } = policy(query.int("limit")?, query.duration("per")?, query.int("burst")?)?;
    let context = call.context(&query)?;
    let answer = call.state.service.rate_take(&context, &key, (rate, 0), None).await?;
    call.json(StatusCode::OK, Some(answer.header), write(limit, &answer.body))
}

pub(crate) async fn take(call: &mut Call) -> Outcome {
    let query = call.query(&TAKE)?;
    let key = call.key(&query)?;
    let context = call.context(&query)?;
    call.body_is(&["application/json"])?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let policy = policy(scalars.int("limit")?, scalars.duration("per")?, scalars.int("burst")?);
    let cost = scalars.int("cost")?.unwrap_or(1);
    let strict = scalars.flag("strict")?;
    scalars.finish()?;
    let Policy { limit, rate } = policy?;
    let cost = u64::try_from(cost).ok().filter(|cost| *cost > 0);
    let cost = cost.ok_or_else(|| Problem::parameter("cost", "`cost` is at least 1"))?;
    if cost > rate.burst {
        let detail = format!("`cost` is {cost}, but at most {} permits can be had at once", rate.burst);
        return Err(Problem::new(Code::CostOverBurst, detail).text("parameter", "cost"));
    }
    let idempotency = idempotency::of(call, &query, &body, &context.caller)?;
    let answer = call.state.service.rate_take(&context, &key, (rate, cost), idempotency).await?;
    if strict && !answer.body.allowed {
        let mut refusal = Writer::default();
        members(&mut refusal, limit, &answer.body);
        let wait = Duration::from_millis(answer.body.retry_after_ms);
        let detail = format!("{} of {cost} permits are left, try again in {wait:?}", answer.body.remaining);
        let problem = Problem::new(Code::RateLimited, detail).members(&refusal);
        return Err(problem.retry_after(answer.body.retry_after_ms.div_ceil(1000)).header(answer.header));
    }
    idempotency::written(call, StatusCode::OK, answer.header, answer.replayed, write(limit, &answer.body))
}

pub(crate) async fn reset(call: &mut Call) -> Outcome {
    let query = call.query(&RESET)?;
    let key = call.key(&query)?;
    let context = call.context(&query)?;
    let idempotency = idempotency::of(call, &query, b"", &context.caller)?;
    let answer = call.state.service.rate_reset(&context, &key, idempotency).await?;
    let mut json = Writer::with_capacity(64);
    match answer.body {
        Reply::Txn(TxnReply { revision, results, .. }) => match results.first() {
            Some(OpReply::Delete { deleted, .. }) => dto::deleted(&mut json, *deleted, revision, None),
            _ => return Err(foreign("another operation's reply")),
        },
        _ => return Err(foreign("another command's reply")),
    }
    idempotency::written(call, StatusCode::OK, answer.header, answer.replayed, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_exact_or_stricter_and_bounded() {
        let minute = Some(Duration::from_secs(60));
        let hundred = policy(Some(100), minute, None).unwrap();
        assert_eq!(hundred.rate, Rate { interval_ns: 600_000_000, burst: 100 });
        assert_eq!(policy(Some(7), minute, Some(2)).unwrap().rate, Rate { interval_ns: 8_571_428_572, burst: 2 });
        for (limit, per, burst) in [
            (None, minute, None),
            (Some(1), None, None),
            (Some(0), minute, None),
            (Some(1), Some(Duration::ZERO), None),
            (Some(1), minute, Some(0)),
            (Some(1), Some(Duration::from_secs(366 * 86_400)), None),
            (Some(1), minute, Some(i64::MAX)),
            (Some(i64::MAX), minute, None),
        ] {
            assert!(policy(limit, per, burst).is_err(), "{limit:?} {per:?} {burst:?}");
        }
    }
}

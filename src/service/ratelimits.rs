//! Rate limits: one stored timestamp per key, below the hidden prefix; the policy comes with the request.
//! Only apply knows the time that counts, so a look goes through the log as a take does.

use super::{Answer, Context, Service};
use crate::model::{Failure, HIDDEN_PREFIX, Idempotency, KeyRange, Op, OpReply, Rate, Reply, TxnReply};
use bytes::Bytes;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateState {
    pub allowed: bool,
    pub remaining: u64,
    pub retry_after_ms: u64,
    pub reset_ms: u64,
}

/// Where a rate limit's timestamp is stored.
fn stored_at(key: &[u8]) -> Bytes {
    [HIDDEN_PREFIX, b"ratelimits/", key].concat().into()
}

impl Service {
    /// Takes `cost` permits if they are there; 0 only looks.
    pub async fn rate_take(
        &self,
        context: &Context,
        key: &[u8],
        (rate, cost): (Rate, u64),
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<RateState>, Failure> {
        let lease = self.inner.parts.entropy.positive_id();
        let op = Op::RateTake { key: stored_at(key), rate, cost, lease };
        let answer = self.operation(context, op, idempotency).await?;
        match &answer.body {
            Reply::Txn(TxnReply { results, .. }) => match results.first() {
                Some(&OpReply::RateTake { allowed, remaining, retry_after_ms, reset_ms }) => {
                    let state = RateState { allowed, remaining, retry_after_ms, reset_ms };
                    Ok(self.answer(answer.header, state, answer.replayed))
                }
                other => Err(Failure::Fault(format!("a rate limit was answered with {other:?}"))),
            },
            other => Err(Failure::Fault(format!("a rate limit was answered with {other:?}"))),
        }
    }

    /// Makes a rate limit full again.
    pub async fn rate_reset(
        &self,
        context: &Context,
        key: &[u8],
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<Reply>, Failure> {
        let range = KeyRange::key(stored_at(key));
        self.operation(context, Op::Delete { range, prev_kv: false }, idempotency).await
    }
}

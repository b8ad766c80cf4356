//! Rate limits: GCRA in integers, on log time. What is stored is when the limit will be full again, in
//! nanoseconds; what is not stored is full.
//!
//! Invariants: within any span of time no more is allowed than the burst and one permit per interval;
//! a refusal and a look write nothing; the decision depends on log time only, never on when a stored
//! timestamp's lease is ended.

use super::super::Stop;
use super::work::Work;
use super::write::Write;
use crate::model::{LeaseChoice, LeaseId, OpReply, Rate, limits};
use bytes::Bytes;

const NS_PER_MS: u64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    /// When the limit is full again after this take: to be stored if it was allowed.
    full_at_ns: u64,
    allowed: bool,
    remaining: u64,
    retry_after_ns: u64,
    reset_ns: u64,
}

/// `full_at_ns` is what is stored; nothing stored is any time in the past.
fn take(full_at_ns: u64, now_ns: u64, rate: Rate, cost: u64) -> Verdict {
    let refill_ns = rate.refill_ns().unwrap_or(u64::MAX);
    // A stricter policy must not inherit a debt that it could never have run up.
    let debt_ns = full_at_ns.saturating_sub(now_ns).min(refill_ns);
    let free_ns = refill_ns - debt_ns;
    let cost_ns = rate.interval_ns.saturating_mul(cost.max(1));
    let allowed = cost_ns <= free_ns;
    let taken_ns = if allowed && cost > 0 { cost_ns } else { 0 };
    Verdict {
        full_at_ns: now_ns.saturating_add(debt_ns + taken_ns),
        allowed,
        remaining: (free_ns - taken_ns) / rate.interval_ns.max(1),
        retry_after_ns: cost_ns.saturating_sub(free_ns),
        reset_ns: debt_ns + taken_ns,
    }
}

impl Work<'_> {
    pub(super) fn rate_take(&mut self, key: &Bytes, rate: Rate, cost: u64, lease: LeaseId) -> Result<OpReply, Stop> {
        let indexed = self.indexed(key);
        let live = indexed.as_deref().filter(|key| key.head.is_live());
        let stored = match live {
            None => 0,
            Some(key) => {
                let stored = self.source().value(key)?;
                // Whatever else somebody wrote there is taken for full.
                std::str::from_utf8(&stored).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
            }
        };
        let now_ns = self.machine.root.numbers.now_ms.saturating_mul(NS_PER_MS);
        let verdict = take(stored, now_ns, rate, cost);
        if verdict.allowed && cost > 0 {
            let ttl_ms = verdict.reset_ns.div_ceil(NS_PER_MS).max(limits::LEASE_TTL_MIN_MS);
            self.write(Write {
                key,
                old: indexed.as_deref(),
                value: verdict.full_at_ns.to_string().into(),
                content_type: None,
                lease: LeaseChoice::Implicit { id: lease, ttl_ms },
            })?;
        }
        Ok(OpReply::RateTake {
            allowed: verdict.allowed,
            remaining: verdict.remaining,
            retry_after_ms: verdict.retry_after_ns.div_ceil(NS_PER_MS),
            reset_ms: verdict.reset_ns.div_ceil(NS_PER_MS),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bucket that drips: `level_ns` is what is in it, in nanoseconds of refill.
    struct Bucket {
        level_ns: u128,
        at_ns: u128,
    }

    impl Bucket {
        fn take(&mut self, now_ns: u64, rate: Rate, cost: u64) -> bool {
            let full = u128::from(rate.interval_ns) * u128::from(rate.burst);
            self.level_ns = (self.level_ns + u128::from(now_ns) - self.at_ns).min(full);
            self.at_ns = u128::from(now_ns);
            let cost_ns = u128::from(cost) * u128::from(rate.interval_ns);
            let allowed = self.level_ns >= cost_ns;
            if allowed {
                self.level_ns -= cost_ns;
            }
            allowed
        }
    }

    proptest! {
        #[test]
        fn it_decides_as_a_dripping_bucket_does(
            interval_ns in 1_u64..5_000_000_000,
            burst in 1_u64..20,
            steps in prop::collection::vec((0_u64..8_000, 1_u64..20), 1..60),
        ) {
            let rate = Rate { interval_ns, burst };
            let (mut now_ns, mut stored) = (1_700_000_000_000 * NS_PER_MS, 0);
            let mut bucket = Bucket { level_ns: u128::from(interval_ns) * u128::from(burst), at_ns: u128::from(now_ns) };
            for (pause_ms, cost) in steps {
                let cost = cost.min(burst);
                now_ns += pause_ms * NS_PER_MS;
                let looked = take(stored, now_ns, rate, 0);
                prop_assert_eq!(looked.full_at_ns.max(now_ns), stored.max(now_ns));
                let verdict = take(stored, now_ns, rate, cost);
                prop_assert_eq!(verdict.allowed, bucket.take(now_ns, rate, cost));
                prop_assert_eq!(u128::from(verdict.remaining), bucket.level_ns / u128::from(interval_ns));
                if verdict.allowed {
                    stored = verdict.full_at_ns;
                    prop_assert_eq!(verdict.retry_after_ns, 0);
                } else {
                    // What it promises is exact: not one nanosecond earlier, but then.
                    let then = now_ns + verdict.retry_after_ns;
                    prop_assert!(take(stored, then, rate, cost).allowed);
                    prop_assert!(!take(stored, then - 1, rate, cost).allowed);
                }
                // Nothing stored is the same as what has been refilled.
                let later = now_ns + verdict.reset_ns;
                prop_assert_eq!(take(stored, later, rate, cost), take(0, later, rate, cost));
            }
        }
    }

    #[test]
    fn a_stricter_policy_does_not_inherit_an_impossible_debt() {
        let hourly = Rate { interval_ns: 3_600_000_000_000, burst: 10 };
        let stored = take(0, 0, hourly, 10).full_at_ns;
        let strict = Rate { interval_ns: 1_000_000_000, burst: 1 };
        let verdict = take(stored, 0, strict, 1);
        assert_eq!((verdict.allowed, verdict.retry_after_ns), (false, 1_000_000_000));
    }
}

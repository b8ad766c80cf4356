//! Log time: the one clock that replicated decisions are made by.
//!
//! It advances with the leader's monotonic clock and is slewed towards wall time by at most 10 %,
//! never stepped, so a wall clock that is wrong ages nothing at once. Only when a term starts may it
//! step, forward, to the wall clock given, which is the median of a quorum's: so time spent without a
//! leader counts, and one member's wrong clock does not, but where two tell: the one that is behind is
//! gone by, and the next term may step. So requests do not age by steps (`machine::idempotency`). A term
//! has no stamp before a quorum's clocks are known: history and tokens stamped behind them would age by
//! the whole of the next one's step.
//! Invariants: within and across terms it never goes back; between two stamps of one term it moves
//! by 90 to 110 % of the time passed.

use std::time::Duration;

/// Differences below the wall clock's own resolution are not corrected.
const DEAD_BAND_US: i128 = 1_000;
const SLEW_DIVISOR: i128 = 10;

#[derive(Debug, Default)]
pub(crate) struct LogClock {
    term: Option<u64>,
    /// The newest log time, in microseconds so that many small steps round nothing away.
    now_us: i128,
    read_at: Duration,
}

impl LogClock {
    /// Whether the next stamp of this term is its first.
    pub(crate) fn begins(&self, term: u64) -> bool {
        self.term != Some(term)
    }

    /// Log time in ms for an entry of `term`, read at `monotonic` and `wall_ms`; never below
    /// `applied_ms`, the time of the newest applied entry.
    pub(crate) fn stamp(&mut self, term: u64, applied_ms: u64, monotonic: Duration, wall_ms: u64) -> u64 {
        let wall_us = i128::from(wall_ms) * 1_000;
        let applied_us = i128::from(applied_ms) * 1_000;
        if self.term == Some(term) {
            let passed = micros(monotonic.saturating_sub(self.read_at));
            let behind = wall_us - (self.now_us + passed);
            let slew_max = passed / SLEW_DIVISOR;
            let slew = if behind.abs() < DEAD_BAND_US { 0 } else { behind.clamp(-slew_max, slew_max) };
            self.now_us += passed + slew;
        } else {
            self.term = Some(term);
            self.now_us = self.now_us.max(wall_us);
        }
        self.read_at = self.read_at.max(monotonic);
        // An entry of an earlier leader, applied since, may be ahead of what this clock has seen.
        self.now_us = self.now_us.max(applied_us);
        u64::try_from(self.now_us / 1_000).unwrap_or(u64::MAX)
    }
}

/// What a quorum's wall clocks agree on: of an even number the lower of the two in the middle, because
/// time that is missing is made up for and time that was given is not taken back.
pub(crate) fn median(mut walls_ms: Vec<u64>) -> Option<u64> {
    walls_ms.sort_unstable();
    walls_ms.get(walls_ms.len().checked_sub(1)? / 2).copied()
}

fn micros(duration: Duration) -> i128 {
    i128::try_from(duration.as_micros()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{Clock, ManualClock};
    use proptest::prelude::*;

    fn stamp(log: &mut LogClock, clock: &ManualClock, term: u64, applied_ms: u64) -> u64 {
        log.stamp(term, applied_ms, clock.monotonic(), clock.wall_ms())
    }

    #[test]
    fn a_term_starts_at_the_wall_clock_but_never_before_the_applied_time() {
        let clock = ManualClock::new(1_000_000);
        let mut log = LogClock::default();
        assert_eq!(stamp(&mut log, &clock, 1, 5_000), 1_000_000);
        let mut log = LogClock::default();
        assert_eq!(stamp(&mut log, &clock, 1, 9_000_000), 9_000_000);
    }

    #[test]
    fn one_wrong_clock_of_three_does_not_count() {
        assert_eq!(median(vec![3_600_000, 1_000, 1_002]), Some(1_002));
        assert_eq!(median(vec![1_001, 3_600_000]), Some(1_001));
        assert_eq!(median(vec![5]), Some(5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn a_stepped_wall_clock_is_followed_at_a_tenth() {
        let clock = ManualClock::new(1_000_000);
        let mut log = LogClock::default();
        stamp(&mut log, &clock, 1, 0);
        clock.step_wall(4_600_000);
        clock.advance(Duration::from_secs(10));
        assert_eq!(stamp(&mut log, &clock, 1, 0), 1_011_000);
        clock.step_wall(500_000);
        clock.advance(Duration::from_secs(10));
        assert_eq!(stamp(&mut log, &clock, 1, 0), 1_020_000);
    }

    #[test]
    fn a_new_term_steps_forward_and_not_back() {
        let clock = ManualClock::new(1_000_000);
        let mut log = LogClock::default();
        stamp(&mut log, &clock, 1, 0);
        clock.step_wall(7_000_000);
        assert_eq!(stamp(&mut log, &clock, 2, 0), 7_000_000);
        clock.step_wall(1_000);
        assert_eq!(stamp(&mut log, &clock, 3, 0), 7_000_000);
    }

    #[test]
    fn many_small_steps_round_nothing_away() {
        let clock = ManualClock::new(1_000_000);
        let mut log = LogClock::default();
        stamp(&mut log, &clock, 1, 0);
        clock.step_wall(1_001_500);
        for _ in 0..100_000 {
            clock.advance(Duration::from_micros(300));
        }
        // ManualClock's wall clock moves in whole ms, so 300 us steps leave it standing: what is
        // checked is that the log clock slows down by a tenth and no more.
        let before = stamp(&mut log, &clock, 1, 0);
        for _ in 0..10_000 {
            clock.advance(Duration::from_micros(300));
            stamp(&mut log, &clock, 1, 0);
        }
        let passed = stamp(&mut log, &clock, 1, 0) - before;
        assert!((2_699..=3_001).contains(&passed), "{passed} ms in 3000");
    }

    proptest! {
        #[test]
        fn it_never_goes_back_and_slews_by_a_tenth_at_most(
            steps in proptest::collection::vec((0u64..5_000_000, any::<u32>(), 0u64..3, 0u64..100_000), 1..200)
        ) {
            let mut log = LogClock::default();
            let (mut monotonic, mut term, mut last) = (Duration::ZERO, 1, 0);
            for (passed_us, wall_ms, new_term, applied) in steps {
                monotonic += Duration::from_micros(passed_us);
                let same_term = new_term > 0 && last > 0;
                if new_term == 0 {
                    term += 1;
                }
                let now = log.stamp(term, applied, monotonic, u64::from(wall_ms));
                prop_assert!(now >= last);
                prop_assert!(now >= applied);
                if same_term && now > applied {
                    let moved = now - last;
                    prop_assert!(moved <= passed_us * 11 / 10_000 + 1, "{} ms in {} us", moved, passed_us);
                    prop_assert!(moved + 1 >= passed_us * 9 / 10_000, "{} ms in {} us", moved, passed_us);
                }
                last = now;
            }
        }
    }
}

//! Removes compacted history in the background, in steps so short that no request waits for one, while that
//! keeps up.
//!
//! Of a step only the change of the index holds the machine's lock, and the budget follows the time that
//! takes, above a least one that grows with how long it has been behind. It must not decide what is compacted:
//! that is a log entry.

use super::apply::Applier;
use crate::env::{Clock, TaskSet};
use crate::machine::TrimStep;
use std::sync::Arc;
use std::time::Duration;

/// Records of a step; fewer would be read with the same blocks again and again.
const BUDGET_MIN: usize = 512;
const BUDGET_MAX: usize = 8192;
/// After so many steps without a rest the least budget doubles: under a load that makes every step wait for the
/// lock, small ones would fall behind without end.
const BEHIND_STEPS: u32 = 16;
const HELD_LONG: Duration = Duration::from_millis(4);
const HELD_SHORT: Duration = Duration::from_millis(1);
/// Between steps that took no lock: the engine may have to catch up.
const PAUSE: Duration = Duration::from_millis(1);
/// Between looks when there was nothing to do.
const IDLE: Duration = Duration::from_millis(500);

pub(crate) async fn run(applier: Arc<Applier>, clock: Arc<dyn Clock>, tasks: TaskSet) {
    let (mut budget, mut behind) = (BUDGET_MIN, 0u32);
    loop {
        let step = {
            let (applier, clock) = (applier.clone(), clock.clone());
            move || {
                let step = applier.reader().trim(budget).map_err(|fault| applier.fail(fault))?;
                let mut held = Duration::ZERO;
                if let TrimStep::Index(compacted) = &step {
                    let mut machine = applier.machine();
                    let begun = clock.monotonic();
                    let trimmed = machine.trim_index(compacted);
                    drop(machine);
                    held = clock.monotonic().saturating_sub(begun);
                    trimmed.finish();
                }
                Ok::<_, std::io::Error>((step, held))
            }
        };
        // A fault has ended the process through its handler; a panic has its own. Nothing to trim then.
        let Some(Ok((step, held))) = tasks.blocking(step).await else { return };
        let pause = match step {
            TrimStep::Index(_) => {
                behind = behind.saturating_add(1);
                budget = next_budget(budget, held, behind);
                // As long again is left to those who apply, and reading took its time too.
                held
            }
            TrimStep::More => PAUSE,
            TrimStep::Rest => {
                behind = 0;
                IDLE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn next_budget(budget: usize, held: Duration, behind: u32) -> usize {
    let least = BUDGET_MIN.saturating_mul(1 << (behind / BEHIND_STEPS).min(8)).min(BUDGET_MAX);
    let next = if held > HELD_LONG {
        budget / 2
    } else if held < HELD_SHORT {
        budget * 2
    } else {
        budget
    };
    next.clamp(least, BUDGET_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_follows_the_time_the_lock_was_held_within_bounds() {
        assert_eq!(next_budget(2048, Duration::from_millis(9), 1), 1024);
        assert_eq!(next_budget(BUDGET_MIN, Duration::from_millis(9), 1), BUDGET_MIN);
        assert_eq!(next_budget(1024, Duration::from_micros(10), 1), 2048);
        assert_eq!(next_budget(BUDGET_MAX, Duration::from_micros(10), 1), BUDGET_MAX);
        assert_eq!(next_budget(1024, Duration::from_millis(2), 1), 1024);
    }

    #[test]
    fn who_falls_behind_takes_larger_steps_however_long_they_take() {
        let long = Duration::from_millis(50);
        assert_eq!(next_budget(BUDGET_MIN, long, BEHIND_STEPS - 1), BUDGET_MIN);
        assert_eq!(next_budget(BUDGET_MIN, long, BEHIND_STEPS), 2 * BUDGET_MIN);
        assert_eq!(next_budget(BUDGET_MIN, long, 4 * BEHIND_STEPS), BUDGET_MAX);
        assert_eq!(next_budget(BUDGET_MIN, long, u32::MAX), BUDGET_MAX);
    }
}

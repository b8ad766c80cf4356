//! Removes compacted history in the background, in steps so short that no request waits for one.
//!
//! A step runs under the machine's lock, so the budget follows the time steps take. It must not
//! decide what is compacted: that is a log entry.

use super::apply::Applier;
use crate::env::{Clock, TaskSet};
use std::sync::Arc;
use std::time::Duration;

const BUDGET_MIN: usize = 32;
const BUDGET_MAX: usize = 4096;
const STEP_LONG: Duration = Duration::from_millis(4);
const STEP_SHORT: Duration = Duration::from_millis(1);
/// Between steps, so that applies get the lock most of the time.
const PAUSE: Duration = Duration::from_millis(5);
/// Between looks when there was nothing to do.
const IDLE: Duration = Duration::from_millis(500);

pub(crate) async fn run(applier: Arc<Applier>, clock: Arc<dyn Clock>, tasks: TaskSet) {
    let mut budget = BUDGET_MIN;
    loop {
        let step = {
            let (applier, clock) = (applier.clone(), clock.clone());
            move || {
                let mut machine = applier.machine();
                let begun = clock.monotonic();
                let more = machine.trim_step(budget);
                drop(machine);
                let took = clock.monotonic().saturating_sub(begun);
                more.map(|more| (more, took)).map_err(|fault| applier.fail(fault))
            }
        };
        // A fault has ended the process through its handler; a panic has its own. Nothing to trim then.
        let Some(Ok((more, took))) = tasks.blocking(step).await else { return };
        budget = next_budget(budget, took);
        tokio::time::sleep(if more { PAUSE } else { IDLE }).await;
    }
}

fn next_budget(budget: usize, took: Duration) -> usize {
    if took > STEP_LONG {
        (budget / 2).max(BUDGET_MIN)
    } else if took < STEP_SHORT {
        (budget * 2).min(BUDGET_MAX)
    } else {
        budget
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_follows_the_time_a_step_took_within_bounds() {
        assert_eq!(next_budget(1024, Duration::from_millis(9)), 512);
        assert_eq!(next_budget(BUDGET_MIN, Duration::from_millis(9)), BUDGET_MIN);
        assert_eq!(next_budget(1024, Duration::from_micros(10)), 2048);
        assert_eq!(next_budget(BUDGET_MAX, Duration::from_micros(10)), BUDGET_MAX);
        assert_eq!(next_budget(1024, Duration::from_millis(2)), 1024);
    }
}

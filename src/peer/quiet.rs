//! What the log says of those who do not belong here: each thing once, and again only after a while, however
//! often and in however many shapes they come.
//!
//! Invariants: bounded memory; at most one line a second in all.

use crate::env::Clock;
use crate::model::limits;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Before the same is said again.
const AGAIN: Duration = Duration::from_secs(300);
/// Between any two lines.
const BETWEEN: Duration = Duration::from_secs(1);

pub(super) struct Quiet {
    clock: Arc<dyn Clock>,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    last: Option<Duration>,
    when: BTreeMap<String, Duration>,
}

impl fmt::Debug for Quiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quiet").field("said", &self.said).finish_non_exhaustive()
    }
}

impl Quiet {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, said: Mutex::default() }
    }

    /// Whether `what` is to be said now.
    pub(super) fn may_say(&self, what: &str) -> bool {
        let now = self.clock.monotonic();
        let mut said = self.said.lock();
        said.when.retain(|_, at| now.saturating_sub(*at) < AGAIN);
        let at_once = said.last.is_some_and(|last| now.saturating_sub(last) < BETWEEN);
        // Who comes in ever new shapes is known by now.
        if at_once || said.when.contains_key(what) || said.when.len() >= limits::PEER_REFUSALS_REMEMBERED {
            return false;
        }
        said.last = Some(now);
        said.when.insert(what.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::ManualClock;

    #[test]
    fn each_thing_is_said_once_in_a_while() {
        let clock = Arc::new(ManualClock::new(0));
        let quiet = Quiet::new(clock.clone());
        assert!(quiet.may_say("a"));
        assert!(!quiet.may_say("b"), "one line a second");
        clock.advance(BETWEEN);
        assert!(!quiet.may_say("a"));
        assert!(quiet.may_say("b"), "what was not said is said at the next try");
        clock.advance(AGAIN);
        assert!(quiet.may_say("a"), "it goes on");
    }

    #[test]
    fn ever_new_shapes_are_soon_said_no_more() {
        let clock = Arc::new(ManualClock::new(0));
        let quiet = Quiet::new(clock.clone());
        let mut said = 0;
        for shape in 0..200 {
            said += usize::from(quiet.may_say(&shape.to_string()));
            clock.advance(BETWEEN);
        }
        assert_eq!(said, limits::PEER_REFUSALS_REMEMBERED);
    }
}

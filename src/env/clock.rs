//! Two clocks: monotonic for durations, wall for stamps that people read.

use parking_lot::Mutex;
use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub trait Clock: Debug + Send + Sync + 'static {
    /// Time since some fixed point; never goes back.
    fn monotonic(&self) -> Duration;
    /// Milliseconds since 1970 by the host's clock, which may be stepped at any time.
    fn wall_ms(&self) -> u64;
}

#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one home of the real clock")]
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "the one home of the real clock")]
    fn wall_ms(&self) -> u64 {
        // A host clock before 1970 reads as 0: log time only ever slews, so this decides nothing.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<(Duration, u64)>,
}

impl ManualClock {
    #[must_use]
    pub fn new(wall_ms: u64) -> Self {
        Self { now: Mutex::new((Duration::ZERO, wall_ms)) }
    }

    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock();
        now.0 += by;
        now.1 += u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    }

    pub fn step_wall(&self, wall_ms: u64) {
        self.now.lock().1 = wall_ms;
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        self.now.lock().0
    }

    fn wall_ms(&self) -> u64 {
        self.now.lock().1
    }
}

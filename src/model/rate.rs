//! What a rate limit is made of. The policy travels with each request; the store keeps one timestamp.

use serde::{Deserialize, Serialize};

/// One permit every `interval_ns`, and at most `burst` of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    pub interval_ns: u64,
    pub burst: u64,
}

impl Rate {
    /// From empty to full. `None` if it does not fit.
    #[must_use]
    pub fn refill_ns(self) -> Option<u64> {
        self.interval_ns.checked_mul(self.burst)
    }
}

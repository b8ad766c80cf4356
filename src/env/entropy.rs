//! Random numbers, from the system or from a seed.

use parking_lot::Mutex;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::fmt::Debug;

pub trait Entropy: Debug + Send + Sync + 'static {
    fn next_u64(&self) -> u64;

    /// A positive id below 2^63, never 0.
    fn positive_id(&self) -> i64 {
        loop {
            let id = i64::try_from(self.next_u64() >> 1).unwrap_or(0);
            if id != 0 {
                return id;
            }
        }
    }
}

#[derive(Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "the one home of real randomness")]
    fn next_u64(&self) -> u64 {
        rand::rng().next_u64()
    }
}

#[derive(Debug)]
pub struct SeededEntropy {
    rng: Mutex<StdRng>,
}

impl SeededEntropy {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: Mutex::new(StdRng::seed_from_u64(seed)) }
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        self.rng.lock().next_u64()
    }
}

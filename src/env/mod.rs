//! Clocks, randomness and tasks (rank 0): the only place that reads a real clock or random
//! generator and the only one that spawns. Everything else is handed a `Clock`, an `Entropy` or a
//! `TaskSet`, so that simulation can hand it others. It must not know anything else of ours.

pub mod clock;
pub mod entropy;
pub mod tasks;

pub use clock::{Clock, ManualClock, SystemClock};
pub use entropy::{Entropy, SeededEntropy, SystemEntropy};
pub use tasks::TaskSet;

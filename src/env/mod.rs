//! Clocks, randomness, tasks and their signals (rank 0): the only place that reads a real clock or random
//! generator and the only one that spawns. Everything else is handed a `Clock`, an `Entropy` or a
//! `TaskSet`, so that simulation can hand it others. It must not know anything else of ours.

pub mod clock;
pub mod courtesy;
pub mod entropy;
pub mod signal;
pub mod tasks;

pub use clock::{Clock, ManualClock, SystemClock};
pub use courtesy::{give_way, take_turns, unhurried};
pub use entropy::{Entropy, SeededEntropy, SystemEntropy};
pub use signal::Signal;
pub use tasks::TaskSet;

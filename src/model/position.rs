//! Where an entry stands in the Raft log, without Raft's library.

use serde::{Deserialize, Serialize};

/// A log id: the term and node of the leader that proposed the entry, and its index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    pub term: u64,
    pub node: u64,
    pub index: u64,
}

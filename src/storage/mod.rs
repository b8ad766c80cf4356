//! Bytes on disk (rank 1): the write-ahead log, the snapshot files, the ordered-KV engine and the
//! block store of history records on top of it.
//!
//! Invariants: the log and the snapshots are the truth; the engine's files are a cache that is
//! built anew at every start. All log and snapshot I/O goes through `disk::Disk`. It must not know
//! Raft, what a transaction means, async, or any clock.

pub mod blocks;
pub mod disk;
pub mod engine;
#[cfg(test)]
mod engine_suite;
pub mod memory;
pub mod mutant;
pub mod realdisk;
pub mod record;
pub mod simdisk;
pub mod sled;
pub mod snapshot;
pub mod wal;
pub mod watched;

use crate::model::Fault;
use std::any::Any;
use std::sync::Arc;

/// What is called with a fault that this process must not survive.
pub type Fatal = Arc<dyn Fn(&Fault) + Send + Sync>;

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

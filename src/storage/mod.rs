//! Bytes on disk (rank 1): the write-ahead log, the snapshot files, the ordered-KV engine and the
//! block store of history records on top of it.
//!
//! Invariants: the log and the snapshots are the truth; the engine's files are a cache that is
//! built anew at every start. All log and snapshot I/O goes through `disk::Disk`. It must not know
//! Raft, what a transaction means, async, or any clock.

pub mod disk;
pub mod engine;
pub mod mutant;
pub mod realdisk;
pub mod simdisk;
pub mod wal;

//! The engine under the history: one trait, two implementations here (`sled`, `memory`); another, which is only
//! read from, belongs to those who know what an image looks like. It only ever takes in; space comes back by
//! dropping the whole of it. Nothing here is durable across a crash, and nothing needs to be.

use crate::model::Fault;
use bytes::Bytes;
use std::fmt::Debug;

/// Entries that are put in atomically.
pub type EngineBatch = Vec<(Bytes, Bytes)>;

pub trait Engine: Debug + Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault>;
    fn commit(&self, batch: EngineBatch) -> Result<(), Fault>;
    /// Bytes of the engine's files.
    fn disk_bytes(&self) -> Result<u64, Fault>;
    /// Frees what it keeps in memory, as far as it can. It may take a while: not for who must not wait.
    fn let_go(&self) -> Result<(), Fault> {
        Ok(())
    }
    /// Whether so much was read since that this is due.
    fn is_crowded(&self) -> bool {
        false
    }
}

//! The ordered-KV engine under the history: one trait, two implementations (`sled`, `memory`).
//! Nothing here is durable across a crash, and nothing needs to be.

use crate::model::Fault;
use bytes::Bytes;
use std::fmt::Debug;

/// Writes applied atomically. `None` removes.
pub type EngineBatch = Vec<(Bytes, Option<Bytes>)>;

pub trait Engine: Debug + Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault>;
    /// The entry with the greatest key `<= key`.
    fn floor(&self, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, Fault>;
    /// Up to `limit` entries with `from <= key < to`, in key order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, Fault>;
    fn commit(&self, batch: EngineBatch) -> Result<(), Fault>;
    /// Bytes of the engine's files.
    fn disk_bytes(&self) -> Result<u64, Fault>;
}

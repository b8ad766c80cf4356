//! The engine's twin in memory: the same contract, for tests and simulation.
//!
//! Like the engine's file it only ever grows: `disk_bytes` counts what was ever written. It must not
//! know what the entries mean.

use super::engine::{Engine, EngineBatch};
use crate::model::Fault;
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct MemoryEngine {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Bytes, Bytes>,
    written_bytes: u64,
}

impl MemoryEngine {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(crate) fn entries(&self) -> BTreeMap<Bytes, Bytes> {
        self.state.read().entries.clone()
    }

    /// As an engine that lost an entry.
    #[cfg(test)]
    pub(crate) fn lose(&self, key: &[u8]) {
        self.state.write().entries.remove(key);
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        Ok(self.state.read().entries.get(key).cloned())
    }

    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        let mut state = self.state.write();
        for (key, value) in batch {
            state.written_bytes += u64::try_from(key.len() + value.len()).unwrap_or(u64::MAX);
            state.entries.insert(key, value);
        }
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, Fault> {
        Ok(self.state.read().written_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::engine_suite as suite;

    #[test]
    fn it_keeps_the_contract_of_an_engine() {
        suite::run(&MemoryEngine::new());
    }
}

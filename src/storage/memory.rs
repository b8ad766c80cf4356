//! The engine's twin in memory: the same contract, for tests and simulation.
//!
//! Like the engine's file it only ever grows: `disk_bytes` counts what was ever written, so that
//! the rewrite of a grown file can be tested with it. It must not know what the entries mean.

use super::engine::{Engine, EngineBatch};
use crate::model::Fault;
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Bound;

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
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        Ok(self.state.read().entries.get(key).cloned())
    }

    fn floor(&self, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, Fault> {
        let state = self.state.read();
        let found = state.entries.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        Ok(found.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, Fault> {
        if from >= to {
            return Ok(Vec::new());
        }
        let state = self.state.read();
        let range = state.entries.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        let mut state = self.state.write();
        for (key, value) in batch {
            let bytes = key.len() + value.as_ref().map_or(0, Bytes::len);
            state.written_bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
            match value {
                Some(value) => state.entries.insert(key, value),
                None => state.entries.remove(&key),
            };
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

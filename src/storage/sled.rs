//! sled 0.34.7 as the engine under the history: the only file that names it.
//!
//! Invariants: a database is always new and empty, its directory goes when it is dropped, and
//! nothing relies on what sled leaves on disk. It must not know what the entries mean.

use super::engine::{Engine, EngineBatch};
use crate::model::{Fault, limits};
use bytes::Bytes;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file fills up in steps of a segment, and keeps segments that are at least half full: with this size it
/// takes about 1.8 times its content from 24 MiB on (with 8 MiB, three times at first). A quarter of it is
/// the size above which a node of the tree gets a file of its own.
const SEGMENT_BYTES: usize = 1 << 20;

/// Tells apart the databases of one process: sled may remove a dropped one's directory late.
static OPENED: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub struct SledEngine {
    db: ::sled::Db,
    /// Dropped after `db`.
    _files: Files,
}

/// The directory of a database, removed with it.
#[derive(Debug)]
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        // Best effort: what is left is wiped at the next start, and costs only space until then.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

impl SledEngine {
    /// Wipes `dir` and opens an empty database below it, which removes its files when it is dropped.
    ///
    /// # Errors
    /// A fault if the directory cannot be wiped or sled cannot open.
    pub fn fresh(dir: &Path) -> Result<Self, Fault> {
        wipe(dir)?;
        Self::open_below(dir)
    }

    fn open_below(dir: &Path) -> Result<Self, Fault> {
        let path = dir.join(OPENED.fetch_add(1, Ordering::Relaxed).to_string());
        // `temporary` spares the fsync of the whole file when it is dropped.
        let db = ::sled::Config::new()
            .path(&path)
            .temporary(true)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(limits::ENGINE_CACHE_BYTES)
            .flush_every_ms(None)
            .open()
            .map_err(|error| fault("open the engine", &error))?;
        Ok(Self { db, _files: Files(path) })
    }
}

fn wipe(dir: &Path) -> Result<(), Fault> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Fault::io("wipe the engine's directory", &error)),
        _ => Ok(()),
    }
}

fn fault(context: &str, error: &::sled::Error) -> Fault {
    match error {
        ::sled::Error::Corruption { .. } => Fault::corrupt("the engine's file", error.to_string()),
        _ => Fault::Io { context: context.into(), message: error.to_string() },
    }
}

/// sled's value without a copy of its bytes.
fn bytes(value: ::sled::IVec) -> Bytes {
    Bytes::from_owner(value)
}

impl Engine for SledEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let found = self.db.get(key).map_err(|error| fault("read from the engine", &error))?;
        Ok(found.map(bytes))
    }

    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        let mut writes = ::sled::Batch::default();
        for (key, value) in batch {
            writes.insert(&key[..], &value[..]);
        }
        self.db.apply_batch(writes).map_err(|error| fault("write to the engine", &error))?;
        // Not for durability, which a temporary database has none of: writing out each batch bounds the
        // buffers on their way. sled hands them to a pool that stays at seven threads, and deadlocks
        // when all of them wait for the lock under which an eighth task is waited for.
        self.db.flush().map(drop).map_err(|error| fault("flush the engine", &error))
    }

    fn disk_bytes(&self) -> Result<u64, Fault> {
        self.db.size_on_disk().map_err(|error| fault("measure the engine's file", &error))
    }
}

/// Makes one database after another below `state/`, each in a directory of its own.
#[derive(Debug)]
pub struct SledFactory {
    dir: PathBuf,
}

impl SledFactory {
    /// Wipes `dir`: what earlier runs left there is worth nothing.
    ///
    /// # Errors
    /// A fault if the directory cannot be wiped or made.
    pub fn new(dir: impl Into<PathBuf>) -> Result<Self, Fault> {
        let dir = dir.into();
        wipe(&dir)?;
        std::fs::create_dir_all(&dir).map_err(|error| Fault::io("make the engine's directory", &error))?;
        Ok(Self { dir })
    }

    /// # Errors
    /// A fault if the database cannot be opened.
    pub fn make(&self) -> Result<SledEngine, Fault> {
        SledEngine::open_below(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::engine_suite as suite;

    #[test]
    fn it_keeps_the_contract_of_an_engine() {
        let dir = tempfile::tempdir().unwrap();
        suite::run(&SledEngine::fresh(&dir.path().join("db")).unwrap());
    }

    #[test]
    fn a_fresh_engine_is_empty_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("db"), b"not a database").unwrap();
        let engine = SledEngine::fresh(&path).unwrap();
        engine.commit(vec![(Bytes::from_static(b"k"), Bytes::from_static(b"v"))]).unwrap();
        drop(engine);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "the files go with the engine");
        let engine = SledEngine::fresh(&path).unwrap();
        assert_eq!(engine.get(b"k").unwrap(), None);
    }

    #[test]
    fn a_factory_wipes_once_and_gives_each_engine_its_own_directory() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir_all(state.join("old")).unwrap();
        let factory = SledFactory::new(&state).unwrap();
        assert!(!state.join("old").exists());
        let first = factory.make().unwrap();
        first.commit(vec![(Bytes::from_static(b"k"), Bytes::from_static(b"v"))]).unwrap();
        let second = factory.make().unwrap();
        assert_eq!(second.get(b"k").unwrap(), None);
        assert!(first.get(b"k").unwrap().is_some());
        drop(first);
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1);
    }
}

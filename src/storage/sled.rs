//! sled 0.34.7 as the engine under the history: the only file that names it.
//!
//! Invariants: a database is always new and empty, its directory goes when it is dropped, and
//! nothing relies on what sled leaves on disk. It must not know what the entries mean.

use super::disk::{PART_BYTES, remove_by_parts};
use super::engine::{Engine, EngineBatch};
use super::realdisk::RealDisk;
use crate::model::{Fault, limits};
use bytes::Bytes;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file fills up in steps of a segment, and keeps segments that are at least half full: with this size it
/// takes about 1.8 times its content from 24 MiB on (with 8 MiB, three times at first). A quarter of it is
/// the size above which a node of the tree gets a file of its own.
const SEGMENT_BYTES: usize = 1 << 20;

/// Tells apart the databases of one process: sled may remove a dropped one's directory late.
static OPENED: AtomicU64 = AtomicU64::new(1);

/// sled takes note of 64 accesses to pages of one of its 256 cache shards before it evicts any, and never
/// evicts the last. A leaf of our entries takes some 100 KiB and is accessed a few times: so it would stay.
/// What drives such pages out are others that are small and accessed often, some in every shard: pages get
/// their shards in turn, and ascending keys leave leaves of eight behind.
const DECOY_KEYS: u16 = 8 * 288;
const DECOY_STEP: usize = 8;
const DECOY_ROUNDS: usize = 64;
/// Who reads lets go himself once so many times the cache was read: the writer's thread is far behind.
const CACHES_READ_MAX: u64 = 4;
/// The database's own name for it.
const FILE: &str = "db";
const WRITE_OUT_BYTES: u64 = 2 * PART_BYTES;

#[derive(Debug)]
pub struct SledEngine {
    db: ::sled::Db,
    decoys: OnceLock<::sled::Tree>,
    /// Bytes read since it was last let go.
    read: AtomicU64,
    /// Bytes committed since the file was last written out.
    dirty: AtomicU64,
    file: File,
    /// Dropped after `db`.
    _files: Files,
}

/// The directory of a database, removed with it.
#[derive(Debug)]
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        // Best effort: what is left is wiped at the next start, and costs only space until then.
        drop(remove_by_parts(&RealDisk, &self.0.join(FILE)));
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
        let file = File::open(path.join(FILE)).map_err(|error| Fault::io("open the engine's file", &error))?;
        let (read, dirty) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { db, decoys: OnceLock::new(), read, dirty, file, _files: Files(path) })
    }
}

impl SledEngine {
    fn decoys(&self) -> ::sled::Result<&::sled::Tree> {
        if let Some(decoys) = self.decoys.get() {
            return Ok(decoys);
        }
        let decoys = self.db.open_tree("decoys")?;
        for key in 0..DECOY_KEYS {
            decoys.insert(key.to_be_bytes(), &[])?;
        }
        Ok(self.decoys.get_or_init(|| decoys))
    }

    fn drive_out(&self) -> ::sled::Result<()> {
        let decoys = self.decoys()?;
        for _ in 0..DECOY_ROUNDS {
            for key in (0..DECOY_KEYS).step_by(DECOY_STEP) {
                decoys.get(key.to_be_bytes())?;
            }
        }
        Ok(())
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
        let length = found.as_ref().map_or(0, |value| value.len() as u64);
        if self.read.fetch_add(length, Ordering::Relaxed) + length > CACHES_READ_MAX * limits::ENGINE_CACHE_BYTES {
            self.let_go()?;
        }
        Ok(found.map(bytes))
    }

    fn commit(&self, batch: EngineBatch) -> Result<(), Fault> {
        let mut writes = ::sled::Batch::default();
        let mut length = 0;
        for (key, value) in batch {
            length += (key.len() + value.len()) as u64;
            writes.insert(&key[..], &value[..]);
        }
        self.db.apply_batch(writes).map_err(|error| fault("write to the engine", &error))?;
        // Not for durability, which a temporary database has none of: writing out each batch bounds the
        // buffers on their way. sled hands them to a pool that stays at seven threads, and deadlocks
        // when all of them wait for the lock under which an eighth task is waited for.
        self.db.flush().map_err(|error| fault("flush the engine", &error))?;
        // Nor is this: left to itself the system writes out hundreds of megabytes at once, for which the
        // syncs of the log wait.
        if self.dirty.fetch_add(length, Ordering::Relaxed) + length >= WRITE_OUT_BYTES {
            self.dirty.store(0, Ordering::Relaxed);
            self.file.sync_data().map_err(|error| Fault::io("write out the engine's file", &error))?;
        }
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, Fault> {
        self.db.size_on_disk().map_err(|error| fault("measure the engine's file", &error))
    }

    fn let_go(&self) -> Result<(), Fault> {
        self.read.store(0, Ordering::Relaxed);
        self.drive_out().map_err(|error| fault("empty the engine's cache", &error))
    }

    fn is_crowded(&self) -> bool {
        self.read.load(Ordering::Relaxed) > limits::ENGINE_CACHE_BYTES
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

    fn resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    }

    /// In a process of its own, whose allocator gives back at once what is freed.
    #[cfg(target_env = "gnu")]
    #[test]
    fn what_was_let_go_is_not_in_memory() {
        let done = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "storage::sled::tests::alone_what_was_let_go_is_not_in_memory"])
            .env("MALLOC_MMAP_THRESHOLD_", "8192")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "started by another test"]
    fn alone_what_was_let_go_is_not_in_memory() {
        const BATCHES: u64 = 200;
        const EACH: u64 = 16;
        let key = |id: u64| Bytes::copy_from_slice(&id.to_be_bytes());
        let value = |id: u64| Bytes::from(vec![u8::try_from(id % 251).unwrap(); limits::BLOCK_BYTES_TARGET]);
        let dir = tempfile::tempdir().unwrap();
        let engine = SledEngine::fresh(&dir.path().join("db")).unwrap();
        let before = resident_bytes();
        for batch in 0..BATCHES {
            engine.commit((batch * EACH..(batch + 1) * EACH).map(|id| (key(id), value(id))).collect()).unwrap();
        }
        let content = BATCHES * EACH * u64::try_from(limits::BLOCK_BYTES_TARGET).unwrap();
        assert!(resident_bytes() - before > content / 2, "sled kept it: otherwise this test shows nothing");
        engine.let_go().unwrap();
        assert!(resident_bytes() - before < content / 3, "after it was let go");
        for id in 0..BATCHES * EACH {
            assert_eq!(engine.get(&key(id)).unwrap(), Some(value(id)));
            if engine.is_crowded() {
                engine.let_go().unwrap();
            }
        }
        assert!(resident_bytes() - before < content * 3 / 4, "after all of it was read");
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

//! Snapshot files: full images of the machine at one log position, the newest two of them.
//!
//! A file is written under a temporary name, flushed, renamed, its directory flushed, and read back
//! before it counts. Invariants: a file that `newest_verified` hands out or `second_newest` counts
//! has a right digest; damage is never passed over in silence; the newest two good files are kept
//! and nothing older. It must not know what is in the blocks, or Raft's library.

mod format;
mod reader;
mod writer;

use reader::verify;
pub use reader::{RawSnapshot, ReadAhead, SnapshotBytes, SnapshotReader, SnapshotSummary, read_file, verify_file};
pub use writer::{SnapshotImport, SnapshotWriter, VerifiedImport};

use super::disk::{Disk, DiskFile, remove_by_parts};
use crate::model::{Fault, LogPosition, Revision};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

const SUFFIX: &str = ".snap";
const TEMPORARY_SUFFIX: &str = ".tmp";
/// A backup that is kept for a log entry that names it.
const STAGED_SUFFIX: &str = ".staged";
/// Its being there says that the state of this member was found to be wrong.
const SUSPECT: &str = "SUSPECT";
/// How many good files are kept: the log is purged up to the older one.
const KEPT: usize = 2;

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    pub cluster_id: u64,
    /// The last log entry whose effects are included.
    pub last: LogPosition,
    pub membership: Bytes,
    pub revision: Revision,
    /// For display; decides nothing.
    pub created_wall_ms: u64,
    /// Whatever else the layer above wants back.
    pub extra: Bytes,
}

/// Files sort by index, then term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    pub index: u64,
    pub term: u64,
}

impl SnapshotId {
    #[must_use]
    pub fn of(meta: &SnapshotMeta) -> Self {
        Self { index: meta.last.index, term: meta.last.term }
    }

    #[must_use]
    pub fn file_name(self) -> String {
        format!("{:020}-{:020}{SUFFIX}", self.index, self.term)
    }

    fn parse(name: &str) -> Option<Self> {
        let (index, term) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        let id = Self { index: index.parse().ok()?, term: term.parse().ok()? };
        (id.file_name() == name).then_some(id)
    }
}

/// A published file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    pub id: SnapshotId,
    pub path: PathBuf,
    pub bytes: u64,
    /// What this process found when it verified the file; `None`: not done yet.
    pub good: Option<bool>,
}

/// A file that cannot be used, and why. To be told to the operator.
#[derive(Debug, Clone)]
pub struct Damaged {
    pub path: PathBuf,
    pub fault: Fault,
}

/// The file that was looked for, and the damaged ones passed over on the way.
#[derive(Debug)]
pub struct Found<T> {
    pub snapshot: Option<T>,
    pub damaged: Vec<Damaged>,
}

/// A cheap handle on the directory of snapshots.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    courtesy: Courtesy,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    checked: BTreeMap<SnapshotId, Checked>,
    temporary_files: u64,
    /// Files that were opened for reading, and may still be read from, by their present names.
    opened: Vec<(PathBuf, Weak<dyn DiskFile>)>,
    /// Removed ones that were read from then.
    doomed: Vec<PathBuf>,
}

impl State {
    fn note_opened(&mut self, path: &Path, file: &Arc<dyn DiskFile>) {
        self.opened.retain(|(_, file)| file.strong_count() > 0);
        self.opened.push((path.to_owned(), Arc::downgrade(file)));
    }

    fn rename_opened(&mut self, from: &Path, to: &Path) {
        for (path, _) in self.opened.iter_mut().filter(|(path, _)| path == from) {
            to.clone_into(path);
        }
    }
}

#[derive(Debug, Clone)]
enum Checked {
    Good(SnapshotSummary),
    Damaged(Fault),
}

/// How large files leave the machine to what somebody waits for.
#[derive(Debug, Clone, Copy)]
pub struct Courtesy {
    /// Called between blocks that are read.
    pub give_way: fn(),
    /// Has a part of a file synced.
    pub take_turns: fn(&dyn Fn() -> io::Result<()>) -> io::Result<()>,
}

impl SnapshotStore {
    /// Makes the directory if need be and removes what a crash left half-written.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn open(disk: Arc<dyn Disk>, dir: impl Into<PathBuf>) -> Result<Self, Fault> {
        Self::giving_way(disk, dir, Courtesy { give_way: || {}, take_turns: |sync| sync() })
    }

    /// As `open`, with courtesy.
    ///
    /// # Errors
    /// As `open`.
    pub fn giving_way(disk: Arc<dyn Disk>, dir: impl Into<PathBuf>, courtesy: Courtesy) -> Result<Self, Fault> {
        let dir = dir.into();
        disk.create_dir_all(&dir).map_err(|error| Fault::io("make the snapshot directory", &error))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            disk.sync_dir(parent).map_err(|error| Fault::io("flush the data directory", &error))?;
        }
        let inner = Inner { disk, dir, courtesy, state: Mutex::default() };
        for name in inner.names()? {
            if name.ends_with(TEMPORARY_SUFFIX) {
                inner.remove(&inner.dir.join(name))?;
            }
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Begins a snapshot. Dropping the writer instead of finishing it leaves nothing behind.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn begin(&self, meta: SnapshotMeta) -> Result<SnapshotWriter, Fault> {
        SnapshotWriter::begin(Arc::clone(&self.inner), meta)
    }

    /// Begins to take in the bytes of a snapshot file made elsewhere.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn import(&self) -> Result<SnapshotImport, Fault> {
        SnapshotImport::begin(Arc::clone(&self.inner))
    }

    /// The published files, newest first.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn list(&self) -> Result<Vec<SnapshotFile>, Fault> {
        let mut files = Vec::new();
        for id in self.inner.ids()? {
            let path = self.inner.path(id);
            let file = self.inner.open_file(&path)?;
            let bytes = file.len().map_err(|error| Fault::io("measure a snapshot", &error))?;
            let good = self.inner.state.lock().checked.get(&id).map(|checked| matches!(checked, Checked::Good(_)));
            files.push(SnapshotFile { id, path, bytes, good });
        }
        Ok(files)
    }

    /// The newest file whose digest is right, ready to be read. If there are damaged ones and no
    /// snapshot, the log alone must reach back to the beginning, or this member must not start.
    ///
    /// # Errors
    /// A fault of the disk other than in the files themselves.
    pub fn newest_verified(&self) -> Result<Found<(SnapshotSummary, SnapshotReader)>, Fault> {
        let found = self.inner.find_good(1)?;
        let snapshot = match found.snapshot {
            None => None,
            Some(summary) => {
                let reader = self.read(SnapshotId::of(&summary.meta))?;
                Some((summary, reader))
            }
        };
        Ok(Found { snapshot, damaged: found.damaged })
    }

    /// The older of the newest two good files: the log may be purged up to its position, no further.
    ///
    /// # Errors
    /// A fault of the disk other than in the files themselves.
    pub fn second_newest(&self) -> Result<Found<SnapshotSummary>, Fault> {
        self.inner.find_good(KEPT)
    }

    /// Removes the files that are not wanted any more.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn discard(&self, unwanted: impl Fn(SnapshotId) -> bool) -> Result<(), Fault> {
        for id in self.inner.ids()?.into_iter().filter(|id| unwanted(*id)) {
            self.inner.remove_large(&self.inner.path(id))?;
            self.inner.state.lock().checked.remove(&id);
        }
        self.inner.sync_dir()
    }

    /// Streams the blocks of a staged backup, if it is here.
    ///
    /// # Errors
    /// A fault of the disk, or a damaged header.
    pub fn read_staged(&self, digest: &[u8; 32]) -> Result<Option<SnapshotReader>, Fault> {
        let Some(path) = self.inner.staged(digest)? else { return Ok(None) };
        SnapshotReader::new(&self.inner.open_file(&path)?, path.display().to_string(), self.inner.courtesy.give_way)
            .map(Some)
    }

    /// The bytes of a staged backup, if it is here.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn raw_staged(&self, digest: &[u8; 32]) -> Result<Option<RawSnapshot>, Fault> {
        let Some(path) = self.inner.staged(digest)? else { return Ok(None) };
        RawSnapshot::open(self.inner.open_file(&path)?).map(Some)
    }

    /// Removes staged backups that are not wanted any more.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn unstage(&self, unwanted: impl Fn(&[u8; 32]) -> bool) -> Result<(), Fault> {
        for name in self.inner.names()? {
            if staged_digest(&name).is_some_and(|digest| unwanted(&digest)) {
                self.inner.remove_large(&self.inner.dir.join(name))?;
            }
        }
        self.inner.sync_dir()
    }

    /// Whether what was noted last by `set_suspect` is that the state is in doubt.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn is_suspect(&self) -> Result<bool, Fault> {
        Ok(self.inner.names()?.iter().any(|name| name == SUSPECT))
    }

    /// Notes, durably, that the state that these files are of is in doubt, or no longer.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn set_suspect(&self, suspect: bool) -> Result<(), Fault> {
        let path = self.inner.dir.join(SUSPECT);
        match (suspect, self.is_suspect()?) {
            (true, false) => {
                self.inner.disk.create(&path).map_err(|error| Fault::io("note a suspicion", &error))?;
            }
            (false, true) => self.inner.remove(&path)?,
            _ => return Ok(()),
        }
        self.inner.sync_dir()
    }

    /// Streams the blocks of one file; its digest is checked at the end of the stream.
    ///
    /// # Errors
    /// A fault of the disk, or a damaged header.
    pub fn read(&self, id: SnapshotId) -> Result<SnapshotReader, Fault> {
        let path = self.inner.path(id);
        SnapshotReader::new(&self.inner.open_file(&path)?, path.display().to_string(), self.inner.courtesy.give_way)
    }

    /// The bytes of one file as they are, for download.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn raw(&self, id: SnapshotId) -> Result<RawSnapshot, Fault> {
        RawSnapshot::open(self.inner.open_file(&self.inner.path(id))?)
    }
}

impl Inner {
    fn path(&self, id: SnapshotId) -> PathBuf {
        self.dir.join(id.file_name())
    }

    fn names(&self) -> Result<Vec<String>, Fault> {
        self.disk.list(&self.dir).map_err(|error| Fault::io("list the snapshot directory", &error))
    }

    fn ids(&self) -> Result<Vec<SnapshotId>, Fault> {
        let mut ids: Vec<_> = self.names()?.iter().filter_map(|name| SnapshotId::parse(name)).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids)
    }

    fn open_file(&self, path: &Path) -> Result<Arc<dyn DiskFile>, Fault> {
        let mut state = self.state.lock();
        let opened = self.disk.open_read(path);
        let file = opened.map_err(|error| Fault::io(format!("open {}", path.display()), &error))?;
        state.note_opened(path, &file);
        Ok(file)
    }

    fn remove(&self, path: &Path) -> Result<(), Fault> {
        self.disk.remove(path).map_err(|error| Fault::io(format!("remove {}", path.display()), &error))
    }

    /// Removes a file that may be large. As long as somebody reads from it, it is there under another name.
    fn remove_large(&self, path: &Path) -> Result<(), Fault> {
        let doomed = self.temporary_path();
        {
            let mut state = self.state.lock();
            let renamed = self.disk.rename(path, &doomed);
            renamed.map_err(|error| Fault::io(format!("remove {}", path.display()), &error))?;
            state.rename_opened(path, &doomed);
            state.doomed.push(doomed);
        }
        // A name that comes back after a crash must be that of a whole file.
        self.sync_dir()?;
        self.free_doomed()
    }

    /// Frees the space of removed files that nobody reads from any more.
    fn free_doomed(&self) -> Result<(), Fault> {
        let free: Vec<PathBuf> = {
            let mut state = self.state.lock();
            let State { opened, doomed, .. } = &mut *state;
            opened.retain(|(_, file)| file.strong_count() > 0);
            doomed.extract_if(.., |path| opened.iter().all(|(opened, _)| opened != path)).collect()
        };
        for path in free {
            let removed = remove_by_parts(&*self.disk, &path);
            removed.map_err(|error| Fault::io(format!("remove {}", path.display()), &error))?;
        }
        Ok(())
    }

    /// Gives a temporary file, which may be read from, its name.
    fn name(&self, temporary: &Path, path: &Path, file: &Arc<dyn DiskFile>) -> std::io::Result<()> {
        let mut state = self.state.lock();
        self.disk.rename(temporary, path)?;
        state.note_opened(path, file);
        Ok(())
    }

    fn temporary_path(&self) -> PathBuf {
        let mut state = self.state.lock();
        state.temporary_files += 1;
        self.dir.join(format!("{}{SUFFIX}{TEMPORARY_SUFFIX}", state.temporary_files))
    }

    fn staged(&self, digest: &[u8; 32]) -> Result<Option<PathBuf>, Fault> {
        let name = staged_name(digest);
        Ok(self.names()?.contains(&name).then(|| self.dir.join(name)))
    }

    /// Keeps a flushed temporary file under its digest, beside the snapshots.
    fn stage(&self, (temporary, file): (&Path, &Arc<dyn DiskFile>), digest: &[u8; 32]) -> Result<(), Fault> {
        let path = self.dir.join(staged_name(digest));
        self.name(temporary, &path, file).map_err(|error| Fault::io("stage a backup", &error))?;
        self.sync_dir()
    }

    /// The n-th newest good file, verifying those not yet verified.
    fn find_good(&self, n: usize) -> Result<Found<SnapshotSummary>, Fault> {
        let mut damaged = Vec::new();
        let mut good = 0;
        for id in self.ids()? {
            match self.check(id) {
                Checked::Good(summary) => {
                    good += 1;
                    if good == n {
                        return Ok(Found { snapshot: Some(summary), damaged });
                    }
                }
                Checked::Damaged(fault) => damaged.push(Damaged { path: self.path(id), fault }),
            }
        }
        Ok(Found { snapshot: None, damaged })
    }

    fn check(&self, id: SnapshotId) -> Checked {
        if let Some(checked) = self.state.lock().checked.get(&id) {
            return checked.clone();
        }
        // A sector that cannot be read is damage like any other here: the older file may be whole.
        let checked = match self.verify(id) {
            Ok(summary) => Checked::Good(summary),
            Err(fault) => Checked::Damaged(fault),
        };
        self.state.lock().checked.insert(id, checked.clone());
        checked
    }

    fn verify(&self, id: SnapshotId) -> Result<SnapshotSummary, Fault> {
        let path = self.path(id);
        let summary = verify(&self.open_file(&path)?, path.display().to_string(), self.courtesy.give_way)?;
        if SnapshotId::of(&summary.meta) != id {
            return Err(Fault::corrupt(path.display().to_string(), "it is of another log position than its name says"));
        }
        Ok(summary)
    }

    /// Gives a flushed temporary file its name, reads it back, and lets go of what is too old.
    fn publish(
        &self,
        (temporary, file): (&Path, &Arc<dyn DiskFile>),
        meta: &SnapshotMeta,
    ) -> Result<SnapshotSummary, Fault> {
        let id = SnapshotId::of(meta);
        let newest = self.ids()?.into_iter().find(|id| !self.is_known_damaged(*id));
        if let Some(newest) = newest.filter(|newest| *newest > id) {
            return Err(Fault::Invariant(format!("snapshot {id:?} is older than {newest:?}")));
        }
        let path = self.path(id);
        self.state.lock().checked.remove(&id);
        self.name(temporary, &path, file).map_err(|error| Fault::io("publish a snapshot", &error))?;
        self.sync_dir()?;
        let summary = self.verify(id)?;
        self.state.lock().checked.insert(id, Checked::Good(summary.clone()));
        self.let_go()?;
        Ok(summary)
    }

    fn is_known_damaged(&self, id: SnapshotId) -> bool {
        matches!(self.state.lock().checked.get(&id), Some(Checked::Damaged(_)))
    }

    fn sync_dir(&self) -> Result<(), Fault> {
        self.disk.sync_dir(&self.dir).map_err(|error| Fault::io("flush the snapshot directory", &error))
    }

    /// Removes all but the newest two files that are not known to be damaged.
    fn let_go(&self) -> Result<(), Fault> {
        self.free_doomed()?;
        let ids = self.ids()?;
        let mut kept = 0;
        for id in ids {
            if !self.is_known_damaged(id) && kept < KEPT {
                kept += 1;
                continue;
            }
            self.remove_large(&self.path(id))?;
            self.state.lock().checked.remove(&id);
        }
        self.sync_dir()
    }
}

fn staged_name(digest: &[u8; 32]) -> String {
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex + STAGED_SUFFIX
}

fn staged_digest(name: &str) -> Option<[u8; 32]> {
    let hex = name.strip_suffix(STAGED_SUFFIX).filter(|hex| hex.len() == 64)?;
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests;

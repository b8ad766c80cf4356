//! Who this data directory belongs to: the IDENTITY file and the lock against a second process.
//!
//! The identity stands twice, in the data root and beside the log, both fsynced. A member that
//! lost one of them has lost a part of its disk: it is refused, because a voter that comes back
//! without its log under its old name can elect a leader that lacks acknowledged writes.

use crate::env::Entropy;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

const FILE: &str = "IDENTITY";
const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    pub format: u32,
    /// 0 until the member belongs to one.
    pub cluster_id: u64,
    pub node_id: u64,
    /// Made anew whenever a data directory is made: the same node id on another disk differs here.
    pub incarnation: u64,
    /// The first log entry is durable. From then on an empty log means a lost log.
    pub bootstrapped: bool,
    /// This member is to initialise the cluster, if that has not been done.
    #[serde(default)]
    pub founder: bool,
}

impl Identity {
    /// A new random identity of a member without a cluster.
    #[must_use]
    pub fn fresh(entropy: &dyn Entropy) -> Self {
        let id = || u64::try_from(entropy.positive_id()).unwrap_or(1);
        let (node_id, incarnation) = (id() >> 10 | 1, id());
        Self { format: FORMAT, cluster_id: 0, node_id, incarnation, bootstrapped: false, founder: false }
    }

    /// The same member as the founder of a new cluster.
    #[must_use]
    pub fn founding(self, entropy: &dyn Entropy) -> Self {
        let cluster_id = u64::try_from(entropy.positive_id()).unwrap_or(1);
        Self { cluster_id, founder: true, ..self }
    }
}

#[derive(Debug, Error)]
pub enum IdentityError {
    #[error(
        "another process is using the data directory {0} (its LOCK file is held)\nhint: stop that process, or give this one another --data-dir"
    )]
    InUse(PathBuf),
    #[error(
        "{missing} is missing while {present} is there: part of this member's disk is lost\nhint: do not copy the file back by hand; restore the whole data directory, or move it away and start from a backup with `tenure snapshot restore`"
    )]
    HalfMissing { missing: PathBuf, present: PathBuf },
    #[error(
        "{0} and {1} differ: the log and the data root come from different members\nhint: put back the matching directories, or start from a backup with `tenure snapshot restore`"
    )]
    Differ(PathBuf, PathBuf),
    #[error(
        "{0} is damaged: {1}\nhint: restore the whole data directory, or start from a backup with `tenure snapshot restore`"
    )]
    Damaged(PathBuf, String),
    #[error(
        "{0} holds a log or snapshots but no IDENTITY file\nhint: give an empty --data-dir, or restore the whole directory"
    )]
    Unnamed(PathBuf),
    #[error("{context}: {source}")]
    Io { context: String, source: io::Error },
}

fn io_error(context: String) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::Io { context, source }
}

/// Holds the data directory for this process until dropped.
#[derive(Debug)]
pub struct DataDir {
    pub root: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory (0700) if it is not there and locks it.
    pub fn open(root: &Path) -> Result<Self, IdentityError> {
        for dir in [root.to_path_buf(), root.join("wal"), root.join("snapshot"), root.join("state")] {
            make_dir(&dir)?;
        }
        let path = root.join("LOCK");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error(format!("open {}", path.display())))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root: root.to_path_buf(), _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(IdentityError::InUse(root.to_path_buf())),
            Err(std::fs::TryLockError::Error(error)) => Err(io_error(format!("lock {}", path.display()))(error)),
        }
    }

    #[must_use]
    pub fn wal(&self) -> PathBuf {
        self.root.join("wal")
    }

    #[must_use]
    pub fn snapshot(&self) -> PathBuf {
        self.root.join("snapshot")
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The directory's identity, or a fresh one where nothing was ever written.
    pub fn identity(&self, entropy: &dyn Entropy) -> Result<Identity, IdentityError> {
        let (root_path, wal_path) = (self.root.join(FILE), self.wal().join(FILE));
        match (read(&root_path)?, read(&wal_path)?) {
            (Some(root), Some(wal)) => {
                // The flag is set in the log's copy first; a crash between the two leaves it there only.
                let same = Identity { bootstrapped: wal.bootstrapped, ..root.clone() } == wal;
                if same { Ok(wal) } else { Err(IdentityError::Differ(root_path, wal_path)) }
            }
            (None, None) if self.is_empty()? => {
                let identity = Identity::fresh(entropy);
                self.save(&identity)?;
                Ok(identity)
            }
            (None, None) => Err(IdentityError::Unnamed(self.root.clone())),
            // Creation was cut off between the two files, before anything else was written.
            (None, Some(wal)) if !wal.bootstrapped && self.is_empty()? => {
                self.save(&wal)?;
                Ok(wal)
            }
            (None, Some(_)) => Err(IdentityError::HalfMissing { missing: root_path, present: wal_path }),
            (Some(_), None) => Err(IdentityError::HalfMissing { missing: wal_path, present: root_path }),
        }
    }

    /// Writes both copies, the log's first, each durable before the next step.
    pub fn save(&self, identity: &Identity) -> Result<(), IdentityError> {
        write(&self.wal(), identity)?;
        write(&self.root, identity)
    }

    fn is_empty(&self) -> Result<bool, IdentityError> {
        for dir in [self.wal(), self.snapshot()] {
            let entries = std::fs::read_dir(&dir).map_err(io_error(format!("list {}", dir.display())))?;
            for entry in entries {
                let entry = entry.map_err(io_error(format!("list {}", dir.display())))?;
                if !entry.file_name().to_string_lossy().starts_with(FILE) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn make_dir(dir: &Path) -> Result<(), IdentityError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(io_error(format!("create {}", dir.display())))
}

fn read(path: &Path) -> Result<Option<Identity>, IdentityError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(format!("read {}", path.display()))(error)),
    };
    let identity: Identity =
        serde_json::from_str(&text).map_err(|error| IdentityError::Damaged(path.to_path_buf(), error.to_string()))?;
    if identity.format != FORMAT {
        let problem = format!("format {} is unknown to this release", identity.format);
        return Err(IdentityError::Damaged(path.to_path_buf(), problem));
    }
    Ok(Some(identity))
}

fn write(dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    use std::os::unix::fs::OpenOptionsExt;
    let (temporary, path) = (dir.join(format!("{FILE}.tmp")), dir.join(FILE));
    let text =
        serde_json::to_string(identity).map_err(|error| IdentityError::Damaged(path.clone(), error.to_string()))?;
    let written = (|| {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    })();
    written.map_err(io_error(format!("write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SeededEntropy;

    fn opened() -> (tempfile::TempDir, DataDir, Identity) {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let identity = dir.identity(&SeededEntropy::new(1)).unwrap();
        (temp, dir, identity)
    }

    #[test]
    fn an_identity_is_made_once() {
        let (_temp, dir, first) = opened();
        assert_eq!(dir.identity(&SeededEntropy::new(2)).unwrap(), first);
    }

    #[test]
    fn a_second_lock_is_refused() {
        let (temp, _dir, _) = opened();
        assert!(matches!(DataDir::open(temp.path()), Err(IdentityError::InUse(_))));
    }

    #[test]
    fn either_copy_missing_is_refused_once_bootstrapped() {
        for lost in ["IDENTITY", "wal/IDENTITY"] {
            let (temp, dir, identity) = opened();
            dir.save(&Identity { bootstrapped: true, ..identity }).unwrap();
            std::fs::remove_file(temp.path().join(lost)).unwrap();
            let refused = dir.identity(&SeededEntropy::new(2));
            assert!(matches!(refused, Err(IdentityError::HalfMissing { .. })), "{lost}: {refused:?}");
        }
    }

    #[test]
    fn a_creation_cut_off_between_the_copies_is_finished() {
        let (temp, dir, identity) = opened();
        std::fs::remove_file(temp.path().join("IDENTITY")).unwrap();
        assert_eq!(dir.identity(&SeededEntropy::new(2)).unwrap(), identity);
        assert!(temp.path().join("IDENTITY").exists());
    }

    #[test]
    fn data_without_a_name_and_foreign_copies_are_refused() {
        let (temp, dir, identity) = opened();
        std::fs::write(temp.path().join("wal/IDENTITY"), "{}").unwrap();
        assert!(matches!(dir.identity(&SeededEntropy::new(2)), Err(IdentityError::Damaged(..))));
        write(&dir.wal(), &Identity { incarnation: identity.incarnation + 1, ..identity }).unwrap();
        assert!(matches!(dir.identity(&SeededEntropy::new(2)), Err(IdentityError::Differ(..))));
        std::fs::remove_file(temp.path().join("IDENTITY")).unwrap();
        std::fs::remove_file(temp.path().join("wal/IDENTITY")).unwrap();
        std::fs::write(temp.path().join("wal/1.seg"), "x").unwrap();
        assert!(matches!(dir.identity(&SeededEntropy::new(2)), Err(IdentityError::Unnamed(_))));
    }
}

//! Turns a snapshot file into a fresh data directory that `serve` boots from.
//!
//! The revision rises by `REVISION_BUMP` and everything older counts as compacted, so that whoever
//! remembers a revision of the lost history is told so instead of waiting in it; leases, with their
//! keys, claims and idempotency records, are dropped: nobody may own by a backup.

use crate::model::Revision;
use std::path::Path;
use thiserror::Error;

/// What an offline restore adds to the snapshot's revision.
pub const REVISION_BUMP: Revision = 1_000_000_000;

#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The name of the member that will boot from the directory.
    pub name: String,
}

#[derive(Debug, Clone)]
pub struct RestoreReport {
    /// The revision of the snapshot, and of the restored store.
    pub snapshot_revision: Revision,
    pub revision: Revision,
    pub keys: u64,
    pub bytes: u64,
}

/// What a snapshot file says about itself, after all of its checks have passed.
#[derive(Debug, Clone)]
pub struct SnapshotReport {
    pub revision: Revision,
    pub compacted_revision: Revision,
    pub cluster_id: u64,
    pub applied_index: u64,
    pub applied_term: u64,
    pub keys: u64,
    pub bytes: u64,
    /// 64 lower-case hex digits.
    pub sha256: String,
}

#[derive(Debug, Error)]
pub enum RestoreError {
    #[error("{path} is not empty; restore writes only a fresh data directory")]
    NotEmpty { path: String },
    #[error("not a usable snapshot: {0}")]
    BadSnapshot(String),
    #[error("{0}")]
    Io(String),
    #[error("{0} is not part of this build")]
    Unsupported(&'static str),
}

/// Checks every block and the digest of `file` and says what it holds.
pub fn inspect(file: &Path) -> Result<SnapshotReport, RestoreError> {
    std::fs::metadata(file).map_err(|error| RestoreError::Io(format!("{}: {error}", file.display())))?;
    Err(RestoreError::Unsupported("snapshot inspection"))
}

/// Writes a data directory that a single member boots from.
pub fn restore_offline(file: &Path, data_dir: &Path, options: &RestoreOptions) -> Result<RestoreReport, RestoreError> {
    refuse_non_empty(data_dir)?;
    std::fs::metadata(file).map_err(|error| RestoreError::Io(format!("{}: {error}", file.display())))?;
    Err(RestoreError::Unsupported("restoring a snapshot"))
        .inspect_err(|_| tracing::debug!(member = options.name, "restore is not assembled"))
}

/// A directory that is missing or empty may be written; anything else is somebody's data.
fn refuse_non_empty(data_dir: &Path) -> Result<(), RestoreError> {
    match std::fs::read_dir(data_dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(RestoreError::NotEmpty { path: data_dir.display().to_string() }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(RestoreError::Io(format!("{}: {error}", data_dir.display()))),
    }
}

//! Turns a snapshot file into a fresh data directory that `serve` boots from.
//!
//! The revision rises by `REVISION_BUMP` and everything older counts as compacted, so that whoever
//! remembers a revision of the lost history is told so instead of waiting in it; leases, with their
//! keys and claims, and idempotency records are dropped: nobody may own by a backup. The restored
//! store is another cluster, with identities of its own: members of the old one cannot talk to it.
//! Invariant: the identity is written last. A directory that was only half restored has none, and
//! `serve` refuses it.

use super::identity::{DataDir, Identity, IdentityError};
use crate::env::{Clock as _, SystemClock, SystemEntropy};
use crate::machine::{self, Machine};
use crate::model::{Fault, Revision};
use crate::raft::{Member, Seed, plant};
use crate::storage::blocks::{BlockOptions, BlockStore};
use crate::storage::engine::Engine;
use crate::storage::memory::MemoryEngine;
use crate::storage::realdisk::RealDisk;
use crate::storage::sled::SledEngine;
use crate::storage::snapshot::{SnapshotStore, SnapshotSummary, read_file, verify_file};
use crate::storage::wal::{Wal, WalOptions};
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;

/// What an offline restore adds to the snapshot's revision.
pub const REVISION_BUMP: Revision = 1_000_000_000;
/// Values need not be at hand while an image is copied.
pub(super) const VALUE_CACHE_BYTES: u64 = 16 << 20;
/// What `mkfs` leaves in the root of a volume is nobody's data.
const LOST_AND_FOUND: &str = "lost+found";

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
    /// Of the file that was read.
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
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{0}")]
    Io(String),
}

impl RestoreError {
    /// Of the file that is read.
    pub(super) fn reading(fault: Fault) -> Self {
        match fault {
            Fault::Corrupt { what, detail } => Self::BadSnapshot(format!("{what}: {detail}")),
            Fault::Io { .. } | Fault::Invariant(_) => Self::Io(fault.to_string()),
        }
    }

    /// Of the directory that is written.
    pub(super) fn writing(fault: &Fault) -> Self {
        Self::Io(fault.to_string())
    }
}

/// Checks every block and the digest of `file`, rebuilds its state in memory, and says what it holds.
///
/// # Errors
/// If the file cannot be read or is damaged anywhere.
pub fn inspect(file: &Path) -> Result<SnapshotReport, RestoreError> {
    let summary = verify_file(&RealDisk, file).map_err(RestoreError::reading)?;
    let machine = load(file, Arc::new(MemoryEngine::new()))?;
    let view = machine.reader().view();
    Ok(SnapshotReport {
        revision: summary.meta.revision,
        compacted_revision: view.compacted_revision(),
        cluster_id: summary.meta.cluster_id,
        applied_index: summary.meta.last.index,
        applied_term: summary.meta.last.term,
        keys: view.stats().keys,
        bytes: summary.file_bytes,
        sha256: summary.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// Writes a data directory that a single member boots from.
///
/// # Errors
/// If the file is not a whole snapshot, or the directory is not empty or cannot be written.
pub fn restore_offline(file: &Path, data_dir: &Path, options: &RestoreOptions) -> Result<RestoreReport, RestoreError> {
    refuse_non_empty(data_dir)?;
    // All of it is verified before anything is written.
    let summary = verify_file(&RealDisk, file).map_err(RestoreError::reading)?;
    let data = DataDir::open(data_dir)?;
    let identity = Identity { bootstrapped: true, ..Identity::fresh(&SystemEntropy).founding(&SystemEntropy) };
    let engine = SledEngine::fresh(&data.state().join("restore")).map_err(|fault| RestoreError::writing(&fault))?;
    let mut machine = load(file, Arc::new(engine))?;
    let planted = write(&data, &identity, options, &mut machine).map_err(|fault| RestoreError::writing(&fault))?;
    let keys = machine.reader().view().stats().keys;
    data.save(&identity)?;
    Ok(RestoreReport {
        snapshot_revision: summary.meta.revision,
        revision: planted.meta.revision,
        keys,
        bytes: summary.file_bytes,
    })
}

fn load(file: &Path, engine: Arc<dyn Engine>) -> Result<Machine, RestoreError> {
    // Every fault is also answered to us, who are about to end anyway.
    let told = Arc::new(|fault: &Fault| tracing::debug!(%fault, "while a snapshot is read"));
    let store = BlockStore::new(engine, BlockOptions::new(told)).map_err(|fault| RestoreError::writing(&fault))?;
    let options = machine::Options { value_cache_bytes: VALUE_CACHE_BYTES, ..machine::Options::default() };
    let blocks = read_file(&RealDisk, file).map_err(RestoreError::reading)?;
    Machine::restore(Arc::new(store), &options, blocks).map_err(RestoreError::reading)
}

pub(super) fn write(
    data: &DataDir,
    identity: &Identity,
    options: &RestoreOptions,
    machine: &mut Machine,
) -> Result<SnapshotSummary, Fault> {
    let disk = Arc::new(RealDisk);
    let told = Arc::new(|fault: &Fault| tracing::debug!(%fault, "while a log is begun"));
    let (wal, _) = Wal::open(disk.clone(), WalOptions::new(data.wal(), told))
        .map_err(|error| Fault::Invariant(error.to_string()))?;
    let snapshots = SnapshotStore::open(disk, data.snapshot())?;
    let seed = Seed {
        cluster_id: identity.cluster_id,
        id: identity.node_id,
        member: Member {
            name: options.name.clone(),
            peer_url: String::new(),
            client_url: String::new(),
            incarnation: u128::from(identity.incarnation),
        },
        created_wall_ms: SystemClock::new().wall_ms(),
        revision_bump: REVISION_BUMP,
    };
    let planted = plant(seed, machine, &wal, &snapshots);
    wal.close();
    planted
}

/// A directory that is missing or empty may be written; anything else is somebody's data.
pub(super) fn refuse_non_empty(data_dir: &Path) -> Result<(), RestoreError> {
    let failed = |error: std::io::Error| RestoreError::Io(format!("{}: {error}", data_dir.display()));
    let entries = match std::fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        if entry.map_err(failed)?.file_name() != LOST_AND_FOUND {
            return Err(RestoreError::NotEmpty { path: data_dir.display().to_string() });
        }
    }
    Ok(())
}

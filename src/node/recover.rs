//! What is left of a cluster that lost its quorum, as the beginning of a new one.
//!
//! A surviving member's newest good snapshot and all of its log, committed or not, become a fresh data
//! directory of a sole voter. Invariants: the old directory keeps what it holds; what the lost members
//! had acknowledged and this one had not received is gone, so the revision rises as with a backup, and
//! nobody owns anything any more. The new cluster has identities of its own: members of the old one that
//! come back cannot talk to it.

use super::identity::{DataDir, Identity};
use super::restore::{self, RestoreError, RestoreOptions};
use crate::env::SystemEntropy;
use crate::machine::{Machine, Options};
use crate::model::{Fault, Revision};
use crate::raft::replay;
use crate::storage::blocks::{BlockOptions, BlockStore};
use crate::storage::realdisk::RealDisk;
use crate::storage::sled::SledEngine;
use crate::storage::snapshot::SnapshotStore;
use crate::storage::wal::{Wal, WalOptions};
use std::path::Path;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub struct RecoverReport {
    /// Of the cluster that is left.
    pub cluster_id: u64,
    /// The newest log entry that was found.
    pub last_index: u64,
    pub last_term: u64,
    /// What the old member held, and the new cluster's revision.
    pub found_revision: Revision,
    pub revision: Revision,
    pub keys: u64,
}

/// Makes the data directory `into` of a new cluster of one from that of a member which has ended.
///
/// # Errors
/// If the old directory is in use, has no identity or is damaged, or the new one is not empty.
pub fn recover_offline(from: &Path, into: &Path, name: &str) -> Result<RecoverReport, RestoreError> {
    restore::refuse_non_empty(into)?;
    if !from.join("IDENTITY").exists() {
        return Err(RestoreError::Io(format!("{} is no member's data directory: it has no IDENTITY", from.display())));
    }
    let old = DataDir::open(from)?;
    let old_identity = old.identity(&SystemEntropy)?;
    let data = DataDir::open(into)?;
    let identity = Identity { bootstrapped: true, ..Identity::fresh(&SystemEntropy).founding(&SystemEntropy) };
    let engine = SledEngine::fresh(&data.state().join("restore")).map_err(|fault| RestoreError::writing(&fault))?;
    let told = Arc::new(|fault: &Fault| tracing::debug!(%fault, "while a member is recovered"));
    let store =
        BlockStore::new(Arc::new(engine), BlockOptions::new(told)).map_err(|fault| RestoreError::writing(&fault))?;
    let mut machine = rebuilt(&old, Arc::new(store)).map_err(RestoreError::reading)?;
    let Some(last) = machine.applied() else {
        return Err(RestoreError::Io(format!("{} holds no log and no snapshot", from.display())));
    };
    let found_revision = machine.reader().view().revision();
    let options = RestoreOptions { name: name.to_owned() };
    let planted = restore::write(&data, &identity, &options, &mut machine);
    let planted = planted.map_err(|fault| RestoreError::writing(&fault))?;
    let keys = machine.reader().view().stats().keys;
    data.save(&identity)?;
    Ok(RecoverReport {
        cluster_id: old_identity.cluster_id,
        last_index: last.index,
        last_term: last.term,
        found_revision,
        revision: planted.meta.revision,
        keys,
    })
}

/// The state at the end of the member's log.
fn rebuilt(old: &DataDir, store: Arc<BlockStore>) -> Result<Machine, Fault> {
    let disk = Arc::new(RealDisk);
    let told = Arc::new(|fault: &Fault| tracing::debug!(%fault, "while a log is read"));
    let opened = Wal::open(disk.clone(), WalOptions::new(old.wal(), told));
    let (wal, _) = opened.map_err(|error| Fault::corrupt("the log", error.to_string()))?;
    let snapshots = SnapshotStore::open(disk, old.snapshot())?;
    let machine_options = Options { value_cache_bytes: restore::VALUE_CACHE_BYTES, ..Options::default() };
    let found = snapshots.newest_verified()?;
    for damaged in &found.damaged {
        tracing::warn!(path = %damaged.path.display(), fault = %damaged.fault, "snapshot damaged, passed over");
    }
    let machine = match found.snapshot {
        Some((_, reader)) => Machine::restore(store, &machine_options, reader),
        None => Ok(Machine::new(store, &machine_options)),
    };
    let result = machine.and_then(|mut machine| replay(&wal, &mut machine).map(|()| machine));
    wal.close();
    result
}

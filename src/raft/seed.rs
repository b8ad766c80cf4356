//! The log and the snapshot of a sole member whose cluster begins with a state instead of nothing; and
//! the state that a former member's log comes to.
//!
//! What is written is what bootstrap would have left behind, had the state been its first entry's
//! doing and had that entry been purged behind a snapshot: a member started on it elects itself.

use super::entry;
use super::snapshots::BuiltBy;
use super::types::{Member, MemberId, position};
use crate::machine::Machine;
use crate::model::{Batch, Fault, LogPosition, Revision, codec, limits};
use crate::storage::snapshot::{SnapshotMeta, SnapshotStore, SnapshotSummary};
use crate::storage::wal::Wal;
use openraft::{EntryPayload, Membership};
use std::collections::BTreeMap;
use std::sync::mpsc;

/// Who begins.
#[derive(Debug, Clone)]
pub struct Seed {
    pub cluster_id: u64,
    pub id: MemberId,
    pub member: Member,
    pub created_wall_ms: u64,
    /// What is added to the state's revision.
    pub revision_bump: Revision,
}

/// Renews `machine` and writes it as the beginning of a new cluster into an empty log and an empty
/// directory of snapshots. All of it is durable on return.
///
/// # Errors
/// A fault of either, or of the machine's store.
pub fn plant(
    seed: Seed,
    machine: &mut Machine,
    wal: &Wal,
    snapshots: &SnapshotStore,
) -> Result<SnapshotSummary, Fault> {
    // Where bootstrap puts its first entry.
    let at = LogPosition { term: 0, node: seed.id, index: 0 };
    let members: Membership<MemberId, Member> = BTreeMap::from([(seed.id, seed.member)]).into();
    let membership = codec::encode(&members)?;
    let revision = machine.renew(seed.revision_bump, at, membership.clone().into())?;
    let mut writer = snapshots.begin(SnapshotMeta {
        cluster_id: seed.cluster_id,
        last: at,
        membership: membership.into(),
        revision,
        created_wall_ms: seed.created_wall_ms,
        extra: codec::encode(&BuiltBy(seed.id))?.into(),
    })?;
    machine.image().write_to(&|| Ok(()), &mut |bytes| writer.write_block(bytes))?;
    let summary = writer.finish()?;
    let (send, durable) = mpsc::sync_channel(1);
    let done = Box::new(move |result| {
        // The receiver waits below for as long as the log can call this.
        drop(send.send(result));
    });
    wal.purge(at.index, codec::encode(&at)?.into(), done);
    durable.recv().unwrap_or_else(|_| Err(Fault::Invariant("the log was closed".into())))?;
    Ok(summary)
}

/// Applies all of a log that `machine` lacks, committed or not.
///
/// # Errors
/// If entries between the machine's state and the log are missing, or cannot be read or applied.
pub fn replay(wal: &Wal, machine: &mut Machine) -> Result<(), Fault> {
    let mut next = machine.applied().map_or(0, |at| at.index + 1);
    let (Some(first), Some(last)) = (wal.first_index(), wal.last_index()) else { return Ok(()) };
    if next < first {
        let detail = format!("it begins at entry {first}, and what comes before reaches only to entry {next}");
        return Err(Fault::corrupt("the log", detail));
    }
    while next <= last {
        let entries = wal.read(next, last + 1, limits::LOG_CACHE_BYTES)?;
        if entries.is_empty() {
            return Err(Fault::corrupt("the log", format!("entry {next} cannot be read")));
        }
        for logged in entries {
            let entry = entry::decode(&logged.bytes)?;
            let at = position(&entry.log_id);
            match entry.payload {
                EntryPayload::Blank => machine.note(at, None)?,
                EntryPayload::Membership(members) => machine.note(at, Some(codec::encode(&members)?.into()))?,
                EntryPayload::Normal(batch) => {
                    let batch: Batch = codec::decode("batch", &batch.bytes)?;
                    if super::restore::restores(&batch).is_some() {
                        let detail =
                            format!("entry {} put a backup in the place of the state: start from that", at.index);
                        return Err(Fault::Invariant(detail));
                    }
                    machine.apply(at, &batch).map(drop)?;
                }
            }
            next = at.index + 1;
        }
    }
    Ok(())
}

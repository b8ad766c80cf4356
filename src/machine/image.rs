//! An image: one state of the machine as a stream of blocks, for snapshots.
//!
//! A header, the small tables in bounded blocks, every readable version in revision order, and an
//! end with counts and the state hash. Invariants: taking an image is O(1) and does not hold up
//! applies; what it needs stays in the block store until it is dropped; which records it holds
//! depends on logical state only, not on what has been trimmed (how they are packed does).

use super::auth::PortableAuth;
#[cfg(feature = "mutants")]
use super::hash;
use super::root::{Lease, Numbers, Root, label_bytes};
use super::timeline::Timeline;
use super::writer::Machine;
use crate::model::{Fault, LeaseId, LeaseLabel, LogPosition, Revision, codec, limits};
use crate::storage::blocks::{Pin, WalkedBlock, WalkedContent, after};
#[cfg(feature = "mutants")]
use crate::storage::mutant::{self, Mutant};
use crate::storage::record::{Block, Record, encode_block};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// What a block holds; its first byte.
pub(super) const HEADER: u8 = 1;
pub(super) const ATTACHMENTS: u8 = 3;
pub(super) const IDEMPOTENCY: u8 = 4;
pub(super) const END: u8 = 6;
/// Blocks of the block store, each behind its length.
pub(super) const RECORDS: u8 = 7;
pub(super) const BLOCK_LENGTH_BYTES: usize = 4;
/// 2 were leases before they had generations, in no release.
pub(super) const LEASES: u8 = 8;
/// Only where there are any: images without users are those of releases without them.
pub(super) const AUTH: u8 = 9;
/// Of the idempotency records' clock. Images of builds that let them age by log time have none.
pub(super) const STEPS: u8 = 10;

/// Blocks aim at this many bytes; one huge record may take a block of its own.
const BLOCK_BYTES: usize = 256 << 10;
const ENTRY_OVERHEAD_BYTES: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) numbers: Numbers,
    pub(super) applied: Option<LogPosition>,
    pub(super) membership: Option<(Option<LogPosition>, Bytes)>,
    pub(super) timeline: Timeline,
    pub(super) idempotency_next: u64,
    pub(super) lease_starts: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PortableLease {
    pub(super) id: LeaseId,
    pub(super) ttl_ms: u64,
    pub(super) remaining_ms: Option<u64>,
    pub(super) generation: u64,
    pub(super) label: Option<LeaseLabel>,
    pub(super) implicit: bool,
}

impl PortableLease {
    fn of((id, lease): (LeaseId, Lease)) -> Self {
        let Lease { ttl_ms, remaining_ms, generation, label, implicit } = lease;
        Self { id, ttl_ms, remaining_ms, generation, label: label.as_deref().cloned(), implicit }
    }

    fn size(&self) -> usize {
        self.label.as_ref().map_or(0, |label| usize::try_from(label_bytes(label)).unwrap_or(0))
    }
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) leases: u64,
    pub(super) attachments: u64,
    pub(super) idempotency: u64,
    pub(super) records: u64,
    pub(super) state_hash: u128,
}

/// A state, held until it has been written.
pub struct Image {
    root: Arc<Root>,
    _pin: Pin,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("numbers", &self.root.numbers).finish_non_exhaustive()
    }
}

impl Machine {
    /// The state after the last applied entry.
    #[must_use]
    pub fn image(&self) -> Image {
        let root = self.published.newest();
        Image { _pin: self.values.store.pin(root.numbers.revision), root }
    }
}

impl Image {
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.root.numbers.revision
    }

    #[must_use]
    pub fn applied(&self) -> Option<LogPosition> {
        self.root.applied
    }

    #[must_use]
    pub fn membership(&self) -> Option<(Option<LogPosition>, Bytes)> {
        self.root.membership.clone()
    }

    /// About how many bytes `write_to` will emit.
    #[must_use]
    pub fn size_hint(&self) -> u64 {
        self.root.used_bytes()
    }

    /// Emits the blocks, in order. `go_on` is asked for every block that is looked at: of many, one after the
    /// other, nothing may be left to emit.
    ///
    /// # Errors
    /// Of the block store, or of `go_on` or `emit`, which ends the stream.
    pub fn write_to(
        &self,
        go_on: &dyn Fn() -> Result<(), Fault>,
        emit: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        #[cfg(feature = "mutants")]
        let forgetful = forgetful(&self.root);
        #[cfg(feature = "mutants")]
        let root = &forgetful;
        #[cfg(not(feature = "mutants"))]
        let root = &*self.root;
        let header = Header {
            numbers: root.numbers,
            applied: root.applied,
            membership: root.membership.clone(),
            timeline: root.timeline.clone(),
            idempotency_next: root.idempotency.next_sequence(),
            lease_starts: root.lease_starts,
        };
        emit(&block(HEADER, &header)?)?;
        let leases = root.leases.iter().map(PortableLease::of);
        let attachments = root.attached.iter().map(|(id, key)| (id, key.clone()));
        // The end's hash speaks for them.
        if let Some(steps) = root.idempotency.steps() {
            emit(&block(STEPS, &steps)?)?;
        }
        table(AUTH, root.auth.portable(), PortableAuth::size, emit)?;
        let end = End {
            leases: table(LEASES, leases, PortableLease::size, emit)?,
            attachments: table(ATTACHMENTS, attachments, |(_, key): &(LeaseId, Bytes)| key.len(), emit)?,
            idempotency: table(IDEMPOTENCY, root.idempotency.iter(), super::idempotency::Portable::size, emit)?,
            records: self.write_records(go_on, emit)?,
            state_hash: root.state_hash(),
        };
        emit(&block(END, &end)?)
    }

    /// The block store's blocks go into the image as they are, but for those at or below the
    /// compacted revision, whose unreadable records are left out.
    fn write_records(
        &self,
        go_on: &dyn Fn() -> Result<(), Fault>,
        emit: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<u64, Fault> {
        let Numbers { revision, compacted, .. } = self.root.numbers;
        let mut out = Packer { block: vec![RECORDS], readable: Vec::new(), readable_bytes: 0, count: 0, emit };
        let mut next = (0, 0);
        while let Some(WalkedBlock { first, last, content }) = self.root.values.store.block_at(next)? {
            if first.0 > revision {
                break;
            }
            go_on()?;
            next = after(last);
            match content {
                // All that was written after the compacted revision can still be read.
                WalkedContent::Encoded(block) if first.0 > compacted && last.0 <= revision => out.whole(&block)?,
                WalkedContent::Encoded(block) => out.some(self, &block.records_from(first)?)?,
                WalkedContent::Records(records) => out.some(self, &records)?,
            }
        }
        out.finish()
    }

    fn is_readable(&self, record: &Record) -> bool {
        let Numbers { revision, compacted, .. } = self.root.numbers;
        let key = || self.root.index.get(&record.key);
        record.main <= revision
            && (record.main > compacted || key().is_some_and(|key| key.retains(record.main, record.sub, compacted)))
    }
}

/// Gathers blocks of records into larger ones of the image.
struct Packer<'a> {
    block: Vec<u8>,
    readable: Vec<Arc<Record>>,
    readable_bytes: usize,
    count: u64,
    emit: &'a mut dyn FnMut(&[u8]) -> Result<(), Fault>,
}

impl Packer<'_> {
    fn whole(&mut self, block: &Block) -> Result<(), Fault> {
        self.encode()?;
        self.count += u64::from(block.count());
        self.push(block.bytes())
    }

    fn some(&mut self, image: &Image, records: &[Arc<Record>]) -> Result<(), Fault> {
        for record in records.iter().filter(|record| image.is_readable(record)) {
            self.readable_bytes += record.weight();
            self.count += 1;
            self.readable.push(record.clone());
            if self.readable_bytes >= limits::BLOCK_BYTES_TARGET {
                self.encode()?;
            }
        }
        Ok(())
    }

    fn encode(&mut self) -> Result<(), Fault> {
        if self.readable.is_empty() {
            return Ok(());
        }
        let block = encode_block(&self.readable)?;
        self.readable.clear();
        self.readable_bytes = 0;
        self.push(&block)
    }

    fn push(&mut self, block: &[u8]) -> Result<(), Fault> {
        let length = u32::try_from(block.len()).map_err(|_| Fault::Invariant("a block above 4 GiB".into()))?;
        self.block.extend_from_slice(&length.to_le_bytes());
        self.block.extend_from_slice(block);
        if self.block.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Fault> {
        (self.emit)(&self.block)?;
        self.block.truncate(1);
        Ok(())
    }

    fn finish(mut self) -> Result<u64, Fault> {
        self.encode()?;
        if self.block.len() > 1 {
            self.flush()?;
        }
        Ok(self.count)
    }
}

/// The planted bugs: a state that has lost a part of itself, and does not know.
#[cfg(feature = "mutants")]
fn forgetful(root: &Root) -> Root {
    let mut root = root.clone();
    if mutant::is_active(Mutant::SnapshotForgetsRequests) {
        root.idempotency.clear(&mut root.sum);
    }
    if mutant::is_active(Mutant::SnapshotForgetsLeases) {
        let leases = std::mem::take(&mut root.leases);
        leases.iter().for_each(|(id, lease)| root.sum.remove(hash::lease(id, &lease)));
        let attached = std::mem::take(&mut root.attached);
        attached.iter().for_each(|(id, key)| root.sum.remove(hash::attachment(id, key)));
    }
    root
}

fn block<T: Serialize>(kind: u8, content: &T) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![kind];
    bytes.extend(codec::encode(content)?);
    Ok(bytes)
}

/// Emits a table in bounded blocks and answers how many entries it has.
fn table<T: Serialize>(
    kind: u8,
    entries: impl Iterator<Item = T>,
    size: impl Fn(&T) -> usize,
    emit: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<u64, Fault> {
    let mut gathered: Vec<T> = Vec::new();
    let mut bytes = 0;
    let mut count = 0;
    for entry in entries {
        bytes += ENTRY_OVERHEAD_BYTES + size(&entry);
        count += 1;
        gathered.push(entry);
        if bytes >= BLOCK_BYTES {
            emit(&block(kind, &gathered)?)?;
            gathered.clear();
            bytes = 0;
        }
    }
    if !gathered.is_empty() {
        emit(&block(kind, &gathered)?)?;
    }
    Ok(count)
}

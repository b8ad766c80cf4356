//! Blocks of history that are read from where they lie, in the file of the image that a machine was restored
//! from: they need not be written once more.
//!
//! A block's number is the place of its length in that file. Nothing is put in. It must not know what a block
//! holds, or what becomes of the file's name.

use super::image::BLOCK_LENGTH_BYTES;
use crate::model::{Fault, limits};
use crate::storage::engine::{Engine, EngineBatch};
use crate::storage::snapshot::SnapshotBytes;
use bytes::Bytes;
use std::sync::Arc;

/// What one read fetches: most blocks are whole in it.
const READ_BYTES: usize = limits::BLOCK_BYTES_TARGET + (4 << 10);

#[derive(Debug)]
struct ImageFile(SnapshotBytes);

/// The place of the next block of the image.
#[derive(Debug)]
pub(super) struct Places {
    next: u64,
    between: u64,
}

impl Places {
    /// At the first block, and the engine that has them all.
    pub(super) fn begin(file: SnapshotBytes) -> (Self, Arc<dyn Engine>) {
        let places = Self { next: file.first_block(), between: file.between_blocks() };
        (places, Arc::new(ImageFile(file)))
    }

    /// Where the block's bytes are; on to the next.
    pub(super) fn pass(&mut self, block: &[u8]) -> u64 {
        let at = self.next;
        let length = u64::try_from(block.len()).unwrap_or(u64::MAX);
        self.next = at.saturating_add(length).saturating_add(self.between);
        at
    }
}

impl ImageFile {
    fn corrupt(&self, place: u64) -> Fault {
        Fault::corrupt(self.0.what(), format!("there is no block of history at byte {place}"))
    }
}

impl Engine for ImageFile {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let place = u64::from_be_bytes(key.try_into().map_err(|_| self.corrupt(u64::MAX))?);
        let left = usize::try_from(self.0.bytes().saturating_sub(place)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; READ_BYTES.min(left)];
        self.0.read(&mut bytes, place)?;
        let length = bytes.first_chunk().map(|length: &[u8; BLOCK_LENGTH_BYTES]| u32::from_le_bytes(*length));
        let length = length.and_then(|length| usize::try_from(length).ok()).ok_or_else(|| self.corrupt(place))?;
        let end = BLOCK_LENGTH_BYTES + length;
        if end > left.min(limits::SNAPSHOT_BLOCK_BYTES_MAX) {
            return Err(self.corrupt(place));
        }
        let fetched = bytes.len().min(end);
        bytes.resize(end, 0);
        if let Some(rest) = bytes.get_mut(fetched..).filter(|rest| !rest.is_empty()) {
            self.0.read(rest, place.saturating_add(u64::try_from(fetched).unwrap_or(u64::MAX)))?;
        }
        Ok(Some(Bytes::from(bytes).slice(BLOCK_LENGTH_BYTES..)))
    }

    fn commit(&self, _: EngineBatch) -> Result<(), Fault> {
        Err(Fault::Invariant("an image takes nothing in".into()))
    }

    fn disk_bytes(&self) -> Result<u64, Fault> {
        Ok(self.0.bytes())
    }
}

//! A few verified blocks in memory, so that reads of one neighbourhood do not fetch and check the
//! same block again and again. Bounded by its slots and by the largest block it takes.

use crate::model::limits;
use crate::storage::record::Block;
use parking_lot::Mutex;

/// Direct-mapped by the block's id, which is never used twice.
#[derive(Debug)]
pub(super) struct BlockCache {
    slots: Vec<Mutex<Option<(u64, Block)>>>,
}

impl Default for BlockCache {
    fn default() -> Self {
        Self { slots: (0..limits::BLOCK_CACHE_BLOCKS).map(|_| Mutex::new(None)).collect() }
    }
}

impl BlockCache {
    fn slot(&self, id: u64) -> Option<&Mutex<Option<(u64, Block)>>> {
        self.slots.get(usize::try_from(id % limits::BLOCK_CACHE_BLOCKS).ok()?)
    }

    pub(super) fn get(&self, id: u64) -> Option<Block> {
        let slot = self.slot(id)?.lock();
        slot.as_ref().filter(|(cached, _)| *cached == id).map(|(_, block)| block.clone())
    }

    pub(super) fn insert(&self, id: u64, block: &Block) {
        // Larger ones hold one large value and are not worth a slot.
        if block.size() <= limits::BLOCK_CACHE_BLOCK_BYTES_MAX
            && let Some(slot) = self.slot(id)
        {
            *slot.lock() = Some((id, block.clone()));
        }
    }

    pub(super) fn clear(&self) {
        for slot in &self.slots {
            *slot.lock() = None;
        }
    }
}

//! Removing what compaction made unreadable, in bounded steps between batches.
//!
//! First the index: the stored records above the last step and up to the compacted revision name
//! the keys that changed, and each loses the versions that can't be read any more; deletes at the
//! compacted revision itself stay until the next compaction, since its events are still told. Then, once no
//! reader holds a root from before that, the block store.
//! Invariants: no answer and no hash depends on how far this has come.

use super::writer::Machine;
use crate::model::{Fault, Revision};
use crate::storage::record::Record;
use std::sync::Arc;

impl Machine {
    /// One step, after looking at about `budget` records. `true`: there is more to do now. When a
    /// reader or an image still holds what would be removed, it answers `false` and goes on with a
    /// later call, so call it after later batches too (`trim_pending`).
    ///
    /// # Errors
    /// A fault of the block store.
    pub fn trim_step(&mut self, budget: usize) -> Result<bool, Fault> {
        if self.root.trimmed < self.root.numbers.compacted {
            self.trim_index(budget.max(1))?;
            return Ok(true);
        }
        let upto = self.root.trimmed;
        if self.store_trimmed >= upto || self.published.oldest_trimmed(&self.values) < upto {
            return Ok(false);
        }
        let index = &self.root.index;
        let needed = |main, sub, record: &Record| index.get(&record.key).is_some_and(|key| key.has(main, sub));
        let progress = self.values.store.trim(upto, &needed, budget.max(1))?;
        if !progress.more && !progress.pinned {
            self.store_trimmed = upto;
        }
        Ok(progress.more)
    }

    /// Something is left to remove, perhaps only once readers let go of it.
    #[must_use]
    pub fn trim_pending(&self) -> bool {
        self.store_trimmed < self.root.numbers.compacted
    }

    fn trim_index(&mut self, budget: usize) -> Result<(), Fault> {
        let compacted = self.root.numbers.compacted;
        // The deletes at the revision of the compaction before were kept for its events.
        let before = self.root.trimmed;
        for record in self.values.store.walk(before, 1)?.iter().filter(|record| record.main == before) {
            self.trim_key(&record.key, record.main);
        }
        let records = self.values.store.walk(before + 1, budget)?;
        let within = records.partition_point(|record| record.main <= compacted);
        for record in &records[..within] {
            self.trim_key(&record.key, record.main);
        }
        let reached = if within < records.len() { None } else { records.last().map(|record| record.main) };
        self.root.trimmed = reached.unwrap_or(compacted);
        self.publish();
        Ok(())
    }

    /// Removes what a key's write at `main` made unreadable once that is compacted: as a rule the one
    /// version before it, so that a step over a hot key's records is not longer than others.
    fn trim_key(&mut self, key: &[u8], main: Revision) {
        // What was written at `main` may go too, unless that is the compacted revision itself.
        let upto = self.root.numbers.compacted.min(main + 1);
        let index = &mut self.root.index;
        let Some(record) = index.get(key).cloned() else { return };
        let gone = record.expendable(upto);
        let whole = record.head.main < upto && !record.head.is_live();
        for at in 0..gone {
            let place = record.history.get(at);
            self.values.store.note_dead(place.main, place.sub);
            self.values.forget_former(place);
        }
        if whole {
            self.values.store.note_dead(record.head.main, record.head.sub);
            index.remove(key);
        } else if gone > 0 {
            let trimmed = Arc::new(record.with_history(record.history.without_oldest(gone)));
            self.values.adopt(&trimmed);
            index.insert(trimmed);
            self.values.release(&record);
        }
    }
}

//! Removing what compaction made unreadable, in bounded steps between batches.
//!
//! First the index: the stored records above the last step and up to the compacted revision name
//! the keys that changed, and each loses the versions that can't be read any more; deletes at the
//! compacted revision itself stay until the next compaction, since its events are still told. Then, once no
//! reader holds a root from before that, the block store. Only the change of the index needs the machine:
//! records are read, and blocks trimmed, beside the batches.
//! Invariants: no answer and no hash depends on how far this has come; one step at a time.

use super::index::Place;
use super::root::Root;
use super::values::Values;
use super::view::Reader;
use super::writer::Machine;
use crate::model::{Fault, Revision};
use crate::storage::record::Record;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// What is left of a step.
#[derive(Debug)]
pub enum TrimStep {
    /// For `Machine::trim_index`.
    Index(Compacted),
    /// There is more to do now.
    More,
    /// There is nothing to do, or somebody still holds what would be removed.
    Rest,
}

/// Keys written above one revision and up to another, which is not above the compacted one, and may lose versions.
pub struct Compacted {
    values: Arc<Values>,
    above: Revision,
    upto: Revision,
    keys: Vec<(Bytes, Revision)>,
}

impl fmt::Debug for Compacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compacted").field("above", &self.above).field("upto", &self.upto).finish_non_exhaustive()
    }
}

/// What a change of the index leaves to do without the machine.
#[must_use]
#[derive(Debug)]
pub struct Trimmed {
    values: Arc<Values>,
    /// No versions of the new index: those that it lost now, and those that writes took out before.
    dead: [Vec<Place>; 2],
    /// Held to the end: what only it had is freed with it.
    _former: Option<Arc<Root>>,
}

impl Trimmed {
    /// Tells the block store what is needed no more.
    pub fn finish(self) {
        for place in self.dead.iter().flatten() {
            self.values.store.note_dead(place.main, place.sub);
            self.values.forget_former(*place);
        }
    }
}

impl Reader {
    /// The part of a step that needs no machine, after looking at about `budget` records. When a reader or an
    /// image still holds what would be removed, it goes on with a later call, so call it after a rest too.
    ///
    /// # Errors
    /// A fault of the block store.
    pub fn trim(&self, budget: usize) -> Result<TrimStep, Fault> {
        let root = self.published.newest();
        if root.trimmed < root.numbers.compacted {
            return root.compacted(budget.max(1)).map(TrimStep::Index);
        }
        let upto = root.trimmed;
        if root.values.trimmed() >= upto || self.published.oldest_trimmed(&root.values) < upto {
            return Ok(TrimStep::Rest);
        }
        // What this root does not need of those revisions, no later one does.
        let needed = |main, sub, record: &Record| root.index.get(&record.key).is_some_and(|key| key.has(main, sub));
        let progress = root.values.store.trim(upto, &needed, budget.max(1))?;
        if !progress.more && !progress.pinned {
            root.values.set_trimmed(upto);
        }
        Ok(if progress.more { TrimStep::More } else { TrimStep::Rest })
    }
}

impl Root {
    fn compacted(&self, budget: usize) -> Result<Compacted, Fault> {
        let (above, compacted) = (self.trimmed, self.numbers.compacted);
        let store = &self.values.store;
        // The deletes at the revision of the compaction before were kept for its events.
        let before = store.walk(above, 1)?.into_iter().filter(|record| record.main == above);
        let records = store.walk(above + 1, budget)?;
        let within = records.partition_point(|record| record.main <= compacted);
        let reached = if within < records.len() { None } else { records.last().map(|record| record.main) };
        // To have looked for them once makes the machine's look a short one.
        let loses = |record: &Arc<Record>| {
            let key = self.index.get(&record.key);
            key.is_some_and(|key| key.losses(record.main, compacted) != (0, false))
        };
        let losing = before.chain(records.into_iter().take(within)).filter(loses);
        let keys = losing.map(|record| (record.key.clone(), record.main)).collect();
        Ok(Compacted { values: Arc::clone(&self.values), above, upto: reached.unwrap_or(compacted), keys })
    }
}

impl Machine {
    /// Takes out of the index what can't be read any more.
    pub fn trim_index(&mut self, compacted: &Compacted) -> Trimmed {
        let mut dead = Vec::with_capacity(compacted.keys.len());
        let (mut outlived, mut former) = (Vec::new(), None);
        // Otherwise an image was installed since.
        if Arc::ptr_eq(&self.values, &compacted.values) && self.root.trimmed == compacted.above {
            for (key, main) in &compacted.keys {
                self.trim_key(key, *main, &mut dead);
            }
            self.root.trimmed = compacted.upto;
            if self.root.trimmed == self.root.numbers.compacted {
                // Not earlier: a root that was trimmed up to the compaction before may still be read from.
                outlived = std::mem::take(&mut self.outlived);
            }
            former = Some(self.published.publish(self.root.clone()));
        }
        Trimmed { values: Arc::clone(&compacted.values), dead: [dead, outlived], _former: former }
    }

    /// Removes what a key's write at `main` made unreadable once that is compacted: as a rule the one
    /// version before it, so that a step over a hot key's records is not longer than others.
    fn trim_key(&mut self, key: &[u8], main: Revision, dead: &mut Vec<Place>) {
        let compacted = self.root.numbers.compacted;
        let index = &mut self.root.index;
        let Some(record) = index.get(key).cloned() else { return };
        let (gone, whole) = record.losses(main, compacted);
        dead.extend((0..gone).map(|at| record.history.get(at)));
        if whole {
            dead.push(record.head.place());
            index.remove(key);
        } else if gone > 0 {
            let trimmed = Arc::new(record.with_history(record.history.without_oldest(gone)));
            self.values.adopt(&trimmed);
            index.insert(trimmed);
            self.values.release(&record);
        }
    }
}

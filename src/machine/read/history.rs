//! A key's versions, newest first.

use super::{Source, Stop};
use crate::machine::authority::Authorized;
use crate::model::{HistoryItem, HistoryOp, HistoryPage};
use crate::storage::record::RecordKind;

impl Source<'_> {
    /// `None` if the key was never seen since compaction.
    pub(crate) fn history(&self, op: Authorized<&HistoryOp>) -> Result<Option<HistoryPage>, Stop> {
        let op = op.get();
        let compacted = self.root.numbers.compacted;
        let Some(key) = self.root.index.get(&op.key) else { return Ok(None) };
        let mut readable = key.versions().filter(|place| key.retains(place.main, place.sub, compacted)).peekable();
        if readable.peek().is_none() {
            return Ok(None);
        }
        let mut page = HistoryPage { compacted_revision: compacted, ..HistoryPage::default() };
        let limit = usize::try_from(op.limit.max(1)).unwrap_or(usize::MAX);
        for place in readable.filter(|place| op.before.is_none_or(|before| place.main < before)) {
            if page.items.len() == limit {
                page.more = true;
                break;
            }
            let item = if place.tombstone {
                let record = self.fetch(place)?;
                let RecordKind::Tombstone(reason) = record.kind else {
                    return Err(Stop::invariant("a tombstone is stored as a put"));
                };
                HistoryItem::Delete { revision: place.main, reason }
            } else {
                HistoryItem::Put(self.key_value(key, place, op.keys_only)?)
            };
            page.items.push(item);
        }
        Ok(Some(page))
    }
}

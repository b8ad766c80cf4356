//! Events of past revisions, made again from the stored records.

use super::{Source, Stop, key_value};
use crate::machine::index::Place;
use crate::model::event::PrevRef;
use crate::model::{Event, EventKind, EventPage, KeyValue, Rejection, Revision, RevisionEvents};
use crate::storage::record::{Record, RecordKind};
use bytes::Bytes;
use std::sync::Arc;

impl Source<'_> {
    /// The events of wanted keys from `from` on, of each revision all: about `max_records` of them. Others are
    /// passed before anything is made of them. Everything from the compacted revision on is still stored,
    /// superseded or not.
    pub(crate) fn events(
        &self,
        from: Revision,
        max_records: usize,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> Result<EventPage, Stop> {
        let numbers = self.root.numbers;
        if from < numbers.compacted {
            return Err(Rejection::Compacted {
                requested: from,
                compacted: numbers.compacted,
                current: numbers.revision,
            }
            .into());
        }
        if from > numbers.revision {
            return Ok(EventPage { revisions: Vec::new(), upto: numbers.revision });
        }
        let walked = self.root.values.store.walk_wanted(from, max_records.max(1), wanted)?;
        // The store may be ahead of this root.
        let upto = walked.upto.map_or(numbers.revision, |upto| upto.min(numbers.revision));
        let mut records = walked.records;
        records.truncate(records.partition_point(|record| record.main <= numbers.revision));
        let revisions = records.chunk_by(|a, b| a.main == b.main);
        let revisions = revisions.map(|records| self.revision_events(records)).collect::<Result<_, _>>()?;
        Ok(EventPage { revisions, upto })
    }

    fn revision_events(&self, records: &[Arc<Record>]) -> Result<RevisionEvents, Stop> {
        let revision = records.first().map_or(0, |record| record.main);
        let events = records
            .iter()
            .map(|record| {
                let key = self.root.index.get(&record.key);
                let key = key.ok_or_else(|| Stop::invariant("a record that was not compacted is not indexed"))?;
                // The state before the compacted revision may be there still or not: it is not told.
                let before = Some(key).filter(|_| revision > self.root.numbers.compacted);
                Ok(event(record, before.and_then(|key| key.before(record.main))))
            })
            .collect::<Result<Arc<[Event]>, Stop>>()?;
        Ok(RevisionEvents { revision, events })
    }
}

/// What watchers are told of a record, given the version before it.
pub(crate) fn event(record: &Record, before: Option<Place>) -> Event {
    let prev = before.filter(|place| !place.tombstone).map(|place| PrevRef { main: place.main, sub: place.sub });
    match record.kind {
        RecordKind::Put => Event { kind: EventKind::Put, kv: key_value(record, false), prev },
        RecordKind::Tombstone(reason) => {
            let kv = KeyValue {
                key: record.key.clone(),
                value: Bytes::new(),
                value_size: 0,
                content_type: None,
                create_revision: 0,
                mod_revision: record.main,
                version: 0,
                lease: 0,
            };
            Event { kind: EventKind::Delete(reason), kv, prev }
        }
    }
}

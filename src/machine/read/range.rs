//! Ranges as etcd knows them: limit, filters, sorting, counts, at any readable revision.

use super::{Source, Stop};
use crate::machine::authority::Authorized;
use crate::machine::index::{Direction, KeyRecord, Place};
use crate::machine::root::Root;
use crate::model::{KeyRange, KeyValue, RangeOp, RangeReply, RangeSort, Revision, SortOrder};
use bytes::Bytes;
use std::cmp::Ordering;
use std::sync::Arc;

/// Bytes an entry counts for beside its key and value.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 64;

/// A key that exists at the revision read, with its version of then.
#[derive(Clone, Copy)]
pub(crate) struct Live<'a> {
    pub(crate) key: &'a Arc<KeyRecord>,
    pub(crate) place: Place,
}

/// The keys of a range that exist at `revision`, in key order or against it.
pub(crate) fn live_in<'a>(
    root: &'a Root,
    range: &KeyRange,
    direction: Direction,
    revision: Revision,
    newer_than: Revision,
) -> impl Iterator<Item = Live<'a>> + use<'a> {
    let mut parts = range.visible_parts();
    if direction == Direction::Backward {
        parts.reverse();
    }
    parts
        .into_iter()
        .flat_map(move |part| root.index.iter(&part, direction, newer_than))
        .filter_map(move |key| live_at(key, revision).filter(|live| live.place.main > newer_than))
}

fn live_at(key: &Arc<KeyRecord>, revision: Revision) -> Option<Live<'_>> {
    let place = key.at(revision).filter(|place| !place.tombstone)?;
    Some(Live { key, place })
}

pub(crate) fn count(root: &Root, range: &KeyRange, revision: Revision) -> u64 {
    range.visible_parts().iter().map(|part| root.index.count(part, revision)).sum()
}

impl Source<'_> {
    pub(crate) fn range(&self, op: Authorized<&RangeOp>) -> Result<RangeReply, Stop> {
        let op = op.get();
        let revision = self.readable(op.revision)?;
        if let Some(key) = op.range.single_key() {
            return self.single(key, op, revision);
        }
        let count = count(self.root, &op.range, revision);
        if op.count_only {
            return Ok(RangeReply { kvs: Vec::new(), count, more: false });
        }
        let limit = if op.limit == 0 { usize::MAX } else { usize::try_from(op.limit).unwrap_or(usize::MAX) };
        let direction = match (op.sort, op.order) {
            (RangeSort::Key, SortOrder::Descending) => Direction::Backward,
            _ => Direction::Forward,
        };
        let mut found = Vec::new();
        for live in live_in(self.root, &op.range, direction, revision, 0) {
            let candidate = self.candidate(live, op.sort, needs_create(op))?;
            if !passes(op, &candidate) {
                continue;
            }
            // One more than asked for tells that there is more.
            if op.sort == RangeSort::Key && found.len() == limit {
                let (kvs, _) = self.finish(&found, op)?;
                return Ok(RangeReply { kvs, count, more: true });
            }
            found.push(candidate);
        }
        sort(&mut found, op.sort, op.order);
        let more = found.len() > limit;
        found.truncate(limit);
        let (kvs, cut) = self.finish(&found, op)?;
        Ok(RangeReply { kvs, count, more: more || cut })
    }

    /// As the range of this key alone, with one look at the index: what most reads are.
    fn single(&self, key: &[u8], op: &RangeOp, revision: Revision) -> Result<RangeReply, Stop> {
        let live = self.root.index.get(key).and_then(|key| live_at(key, revision));
        let mut reply = RangeReply { kvs: Vec::new(), count: u64::from(live.is_some()), more: false };
        let Some(live) = live.filter(|_| !op.count_only) else { return Ok(reply) };
        let candidate = self.candidate(live, RangeSort::Key, needs_create(op))?;
        if passes(op, &candidate) {
            reply.kvs.push(self.key_value(live.key, live.place, op.keys_only)?);
        }
        Ok(reply)
    }

    /// Reads what was found; true if it was cut by its size.
    fn finish(&self, found: &[Candidate<'_>], op: &RangeOp) -> Result<(Vec<KeyValue>, bool), Stop> {
        let bytes_max =
            if op.bytes_max == 0 { usize::MAX } else { usize::try_from(op.bytes_max).unwrap_or(usize::MAX) };
        let (mut kvs, mut bytes) = (Vec::new(), 0_usize);
        for candidate in found {
            if bytes >= bytes_max {
                return Ok((kvs, true));
            }
            let kv = self.key_value(candidate.live.key, candidate.live.place, op.keys_only)?;
            bytes = bytes.saturating_add(ENTRY_OVERHEAD_BYTES + kv.key.len() + kv.value.len());
            kvs.push(kv);
        }
        Ok((kvs, false))
    }

    /// What sorting and filtering need to know, read from the record only where the index can't tell.
    pub(super) fn candidate<'a>(
        &self,
        live: Live<'a>,
        sort: RangeSort,
        needs_create: bool,
    ) -> Result<Candidate<'a>, Stop> {
        let head = &live.key.head;
        let mut candidate = Candidate { live, create: head.create, rank: 0, value: Bytes::new() };
        let is_head = head.place() == live.place;
        let from_record = sort == RangeSort::Value
            || !is_head && (needs_create || matches!(sort, RangeSort::Create | RangeSort::Version));
        let mut version = head.version;
        if from_record && is_head {
            candidate.value = self.value(live.key)?;
        } else if from_record {
            let record = self.fetch(live.place)?;
            candidate.create = record.create_revision;
            version = record.version;
            if sort == RangeSort::Value {
                candidate.value = record.value.clone();
            }
        }
        candidate.rank = match sort {
            RangeSort::Key | RangeSort::Value => 0,
            RangeSort::Version => version,
            RangeSort::Create => candidate.create,
            RangeSort::Mod => live.place.main,
        };
        Ok(candidate)
    }
}

pub(super) struct Candidate<'a> {
    pub(super) live: Live<'a>,
    create: Revision,
    rank: i64,
    value: Bytes,
}

fn needs_create(op: &RangeOp) -> bool {
    op.min_create_revision != 0 || op.max_create_revision != 0
}

fn passes(op: &RangeOp, candidate: &Candidate<'_>) -> bool {
    let within = |at: Revision, min: Revision, max: Revision| (min == 0 || at >= min) && (max == 0 || at <= max);
    within(candidate.live.place.main, op.min_mod_revision, op.max_mod_revision)
        && within(candidate.create, op.min_create_revision, op.max_create_revision)
}

/// Stable in both orders: ties stay in key order, as in etcd.
pub(super) fn sort(found: &mut [Candidate<'_>], by: RangeSort, order: SortOrder) {
    if by == RangeSort::Key {
        return;
    }
    let rising =
        |a: &Candidate<'_>, b: &Candidate<'_>| -> Ordering { a.rank.cmp(&b.rank).then_with(|| a.value.cmp(&b.value)) };
    match order {
        SortOrder::Ascending => found.sort_by(rising),
        SortOrder::Descending => found.sort_by(|a, b| rising(b, a)),
    }
}

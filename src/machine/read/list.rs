//! Listings: pages by count and bytes, one level of a hierarchy, either direction.
//!
//! A group of keys below a delimiter is answered as one prefix and then skipped by seeking past it,
//! however many keys it holds.

use super::range::{ENTRY_OVERHEAD_BYTES, Live, count, live_in, sort};
use super::{Source, Stop};
use crate::machine::authority::Authorized;
use crate::machine::index::Direction;
use crate::model::key::prefix_end;
use crate::model::{Delimiter, KeyRange, ListOp, ListPage, RangeSort, Revision, SortOrder};
use bytes::Bytes;

impl Source<'_> {
    pub(crate) fn list(&self, op: Authorized<&ListOp>) -> Result<ListPage, Stop> {
        let op = op.get();
        let revision = self.readable(op.revision)?;
        let mut page = ListPage { revision, ..ListPage::default() };
        if op.count || op.count_only {
            page.count = Some(count(self.root, &op.range, revision));
        }
        if op.count_only {
            return Ok(page);
        }
        let mut filling = Filling { page, bytes: 0, op };
        if op.sort == RangeSort::Key {
            self.by_key(&mut filling, revision)?;
        } else {
            self.sorted(&mut filling, revision)?;
        }
        Ok(filling.page)
    }

    fn by_key(&self, filling: &mut Filling<'_>, revision: Revision) -> Result<(), Stop> {
        let op = filling.op;
        let direction = match op.order {
            SortOrder::Ascending => Direction::Forward,
            SortOrder::Descending => Direction::Backward,
        };
        let newer_than = op.modified_after.unwrap_or(0);
        let mut rest = Rest::new(op);
        'seek: loop {
            let range = rest.range.clone();
            let visible = live_in(self.root, &range, direction, revision, newer_than);
            // Whether a key is hidden is decided by the range asked for, not by where a page resumes.
            for live in visible.filter(|live| op.range.shows(&live.key.key)) {
                if filling.is_full() {
                    filling.page.next = Some(rest.resume(direction));
                    filling.page.more = true;
                    return Ok(());
                }
                if let Some(group) = op.delimiter.as_ref().and_then(|delimiter| group(delimiter, &live.key.key)) {
                    rest.pass_group(&group, direction);
                    filling.push_group(group);
                    continue 'seek;
                }
                rest.passed = Some(live.key.key.clone());
                self.push(filling, live)?;
            }
            return Ok(());
        }
    }

    /// Other orders give one page, with whatever of the range comes first in them.
    fn sorted(&self, filling: &mut Filling<'_>, revision: Revision) -> Result<(), Stop> {
        let op = filling.op;
        let mut found = Vec::new();
        for live in live_in(self.root, &op.range, Direction::Forward, revision, op.modified_after.unwrap_or(0)) {
            found.push(self.candidate(live, op.sort, false)?);
        }
        sort(&mut found, op.sort, op.order);
        for candidate in found {
            if filling.is_full() {
                filling.page.more = true;
                return Ok(());
            }
            self.push(filling, candidate.live)?;
        }
        Ok(())
    }

    fn push(&self, filling: &mut Filling<'_>, live: Live<'_>) -> Result<(), Stop> {
        let kv = self.key_value(live.key, live.place, filling.op.keys_only)?;
        filling.bytes += ENTRY_OVERHEAD_BYTES + kv.key.len() + kv.value.len();
        filling.page.items.push(kv);
        Ok(())
    }
}

struct Filling<'a> {
    page: ListPage,
    bytes: usize,
    op: &'a ListOp,
}

impl Filling<'_> {
    fn is_full(&self) -> bool {
        let entries = self.page.items.len() + self.page.prefixes.len();
        let limit = usize::try_from(self.op.limit.max(1)).unwrap_or(usize::MAX);
        entries >= limit || entries > 0 && self.bytes >= self.op.bytes_max
    }

    fn push_group(&mut self, group: Bytes) {
        self.bytes += ENTRY_OVERHEAD_BYTES + group.len();
        self.page.prefixes.push(group);
    }
}

/// The part of the range that has not been looked at.
struct Rest {
    range: KeyRange,
    /// A key of the range that was passed since.
    passed: Option<Bytes>,
}

impl Rest {
    fn new(op: &ListOp) -> Self {
        let mut range = op.range.clone();
        if let Some(resume) = &op.resume {
            match op.order {
                SortOrder::Ascending if *resume > range.start => range.start = resume.clone(),
                SortOrder::Descending if range.end.as_ref().is_none_or(|end| resume < end) => {
                    range.end = Some(resume.clone());
                }
                SortOrder::Ascending | SortOrder::Descending => {}
            }
        }
        Self { range, passed: None }
    }

    fn pass_group(&mut self, group: &Bytes, direction: Direction) {
        self.passed = None;
        match (direction, prefix_end(group)) {
            (Direction::Forward, Some(end)) => self.range.start = end,
            // Nothing can come after such a group.
            (Direction::Forward, None) => self.range.end = Some(self.range.start.clone()),
            (Direction::Backward, _) => self.range.end = Some(group.clone()),
        }
    }

    fn resume(&self, direction: Direction) -> Bytes {
        match (direction, &self.passed) {
            (Direction::Forward, None) => self.range.start.clone(),
            (Direction::Forward, Some(key)) => key.iter().copied().chain([0]).collect(),
            (Direction::Backward, None) => self.range.end.clone().unwrap_or_default(),
            (Direction::Backward, Some(key)) => key.clone(),
        }
    }
}

/// The part of a key up to and with the first delimiter behind the listing's prefix.
fn group(delimiter: &Delimiter, key: &Bytes) -> Option<Bytes> {
    if delimiter.bytes.is_empty() {
        return None;
    }
    let behind = key.get(delimiter.prefix_len..)?;
    let at = behind.windows(delimiter.bytes.len()).position(|window| window == &delimiter.bytes[..])?;
    Some(key.slice(..delimiter.prefix_len + at + delimiter.bytes.len()))
}

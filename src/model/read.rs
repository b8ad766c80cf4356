//! Reads that page through the store: listings and a key's history.

use super::{DeleteReason, KeyRange, KeyValue, RangeSort, Revision, SortOrder};
use bytes::Bytes;

#[derive(Debug, Clone)]
pub struct ListOp {
    /// The whole range asked for: `count` speaks of it.
    pub range: KeyRange,
    /// Where this page starts (from a cursor): the first key at or after it; for a descending
    /// listing the first key strictly before it.
    pub resume: Option<Bytes>,
    /// 0 is the newest.
    pub revision: Revision,
    pub limit: u64,
    /// The page ends once keys and values pass this many bytes (at least one entry is given).
    pub bytes_max: usize,
    pub keys_only: bool,
    /// Also count the whole range.
    pub count: bool,
    /// Only count.
    pub count_only: bool,
    /// Group keys by the part up to the first delimiter after `prefix_len` bytes.
    pub delimiter: Option<Delimiter>,
    pub modified_after: Option<Revision>,
    pub order: SortOrder,
    /// Other than `Key` cannot resume.
    pub sort: RangeSort,
}

#[derive(Debug, Clone)]
pub struct Delimiter {
    pub bytes: Bytes,
    /// Length of the listing's prefix: the delimiter is looked for behind it.
    pub prefix_len: usize,
}

#[derive(Debug, Clone, Default)]
pub struct ListPage {
    pub items: Vec<KeyValue>,
    /// Common prefixes, when a delimiter was given. They count towards `limit`.
    pub prefixes: Vec<Bytes>,
    pub count: Option<u64>,
    /// Where the next page resumes; `None` at the end.
    pub next: Option<Bytes>,
    /// There is more than this page holds (with `next`, unless the order cannot resume).
    pub more: bool,
    /// The revision the page was read at.
    pub revision: Revision,
}

#[derive(Debug, Clone)]
pub struct HistoryOp {
    pub key: Bytes,
    pub limit: u64,
    /// Only versions strictly before this revision.
    pub before: Option<Revision>,
    pub keys_only: bool,
}

#[derive(Debug, Clone, Default)]
pub struct HistoryPage {
    pub compacted_revision: Revision,
    pub items: Vec<HistoryItem>,
    pub more: bool,
}

#[derive(Debug, Clone)]
pub enum HistoryItem {
    Put(KeyValue),
    Delete { revision: Revision, reason: DeleteReason },
}

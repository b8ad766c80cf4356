//! Compares, and the branches they choose, for a whole tree of transactions before any write.

use super::super::Stop;
use super::super::authority::{Authorized, Opened};
use super::super::index::{Direction, KeyRecord};
use super::super::read::{Source, live_in};
use crate::model::{Compare, CompareOp, CompareTarget, Txn};
use std::cmp::Ordering;

/// Which branch a transaction takes, and what its nested transactions do in it.
pub(super) struct Plan {
    /// Positions of the compares that do not hold; with none, the success branch runs.
    pub(super) failed_if: Vec<u32>,
    /// One per nested transaction of the branch, in order.
    pub(super) nested: Vec<Plan>,
}

impl Source<'_> {
    pub(super) fn plan(&self, txn: Authorized<&Txn>) -> Result<Plan, Stop> {
        let mut failed_if = Vec::new();
        for (position, compare) in (0u32..).zip(txn.compares()) {
            if !self.holds(compare)? {
                failed_if.push(position);
            }
        }
        let nested = txn
            .branch(failed_if.is_empty())
            .filter_map(|op| if let Opened::Txn(inner) = op.opened() { Some(self.plan(inner)) } else { None })
            .collect::<Result<_, Stop>>()?;
        Ok(Plan { failed_if, nested })
    }

    /// Holds for every key of the range; a range without keys is compared as one missing key.
    fn holds(&self, compare: Authorized<&Compare>) -> Result<bool, Stop> {
        let compare = compare.get();
        if let Some(key) = compare.range.single_key() {
            let key = self.root.index.get(key).filter(|key| key.head.is_live());
            return self.holds_for(compare, key.map(|key| &**key));
        }
        let mut keys = live_in(self.root, &compare.range, Direction::Forward, self.root.numbers.revision, 0).peekable();
        if keys.peek().is_none() {
            return self.holds_for(compare, None);
        }
        for live in keys {
            if !self.holds_for(compare, Some(live.key))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn holds_for(&self, compare: &Compare, key: Option<&KeyRecord>) -> Result<bool, Stop> {
        let head = key.map(|key| &key.head);
        let number = |actual: Option<i64>, wanted: i64| actual.unwrap_or(0).cmp(&wanted);
        let ordering = match &compare.target {
            CompareTarget::Version(wanted) => number(head.map(|head| head.version), *wanted),
            CompareTarget::CreateRevision(wanted) => number(head.map(|head| head.create), *wanted),
            CompareTarget::ModRevision(wanted) => number(head.map(|head| head.main), *wanted),
            CompareTarget::Lease(wanted) => number(head.map(|head| head.lease), *wanted),
            CompareTarget::Value(wanted) => match key {
                None => return Ok(false),
                // Sizes decide most comparisons for equality without reading the value.
                Some(key) if compare.op == CompareOp::Equal && !has_size(key.head.value_size, wanted.len()) => {
                    return Ok(false);
                }
                Some(key) => self.value(key)?.cmp(wanted),
            },
        };
        Ok(match compare.op {
            CompareOp::Equal => ordering == Ordering::Equal,
            CompareOp::NotEqual => ordering != Ordering::Equal,
            CompareOp::Less => ordering == Ordering::Less,
            CompareOp::LessOrEqual => ordering != Ordering::Greater,
            CompareOp::Greater => ordering == Ordering::Greater,
            CompareOp::GreaterOrEqual => ordering != Ordering::Less,
        })
    }
}

fn has_size(stored: u32, wanted: usize) -> bool {
    usize::try_from(stored).is_ok_and(|stored| stored == wanted)
}

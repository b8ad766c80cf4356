//! The operations of a transaction, one after the other.

use super::super::Stop;
use super::super::authority::{Authorized, Opened};
use super::super::index::KeyRecord;
use super::super::patch::{self, PatchError};
use super::compare::Plan;
use super::work::Work;
use super::write::Write;
use crate::model::{DeleteReason, KeyValue, LeaseChoice, Op, OpReply, PutOp, Rejection, Txn, TxnReply};
use bytes::Bytes;
use std::sync::Arc;

const JSON: &str = "application/json";

impl Work<'_> {
    /// `top` is the position, in the outermost transaction, of the operation that this is part of.
    pub(super) fn run(&mut self, txn: Authorized<&Txn>, plan: &Plan, top: Option<u32>) -> Result<TxnReply, Stop> {
        let succeeded = plan.failed_if.is_empty();
        let mut nested = plan.nested.iter();
        let mut results = Vec::with_capacity(txn.branch(succeeded).len());
        for (position, op) in (0u32..).zip(txn.branch(succeeded)) {
            let operation = top.unwrap_or(position);
            results.push(match op.opened() {
                Opened::Txn(inner) => {
                    let plan = nested.next().ok_or_else(|| Stop::invariant("a nested transaction without a plan"))?;
                    OpReply::Txn(self.run(inner, plan, Some(operation))?)
                }
                Opened::Range(range) => OpReply::Range(self.source().range(range)?),
                Opened::Write(op) => self.write_op(op, operation)?,
            });
        }
        // The revision is known when the whole tree has run.
        Ok(TxnReply { succeeded, failed_if: plan.failed_if.clone(), revision: 0, results })
    }

    fn write_op(&mut self, op: Authorized<&Op>, operation: u32) -> Result<OpReply, Stop> {
        match op.get() {
            Op::Put(put) => self.put(put),
            Op::Delete { range, prev_kv } => {
                let prev = self.delete_range(range, DeleteReason::Deleted, *prev_kv)?;
                Ok(OpReply::Delete { deleted: prev.deleted, prev: prev.kvs })
            }
            Op::MergePatch { key, patch, prev_kv, lease } => self.merge_patch(key, patch, *prev_kv, *lease),
            Op::Add { key, by, initial, min, max, clamp, lease } => {
                let bounds = Bounds { min: *min, max: *max, clamp: *clamp };
                self.add(key, *by, *initial, &bounds, *lease, operation)
            }
            Op::RateTake { key, rate, cost, lease } => self.rate_take(key, *rate, *cost, *lease),
            Op::Session { id, ttl_ms, label } => self.session(*id, *ttl_ms, label),
            Op::Txn(_) | Op::Range(_) => Err(Stop::invariant("not a write")),
        }
    }

    /// What is known of a key, be it deleted.
    pub(super) fn indexed(&self, key: &[u8]) -> Option<Arc<KeyRecord>> {
        self.machine.root.index.get(key).cloned()
    }

    fn former(&self, old: Option<&KeyRecord>, wanted: bool) -> Result<Option<KeyValue>, Stop> {
        let old = old.filter(|_| wanted);
        old.map(|old| self.source().key_value(old, old.head.place(), false)).transpose()
    }

    fn put(&mut self, put: &PutOp) -> Result<OpReply, Stop> {
        let indexed = self.indexed(&put.key);
        let old = live(indexed.as_ref());
        if put.lease == LeaseChoice::KeepOfExisting && old.is_none() {
            return Err(Rejection::KeyNotFound { key: put.key.clone() }.into());
        }
        let prev = self.former(old, put.prev_kv)?;
        let (value, content_type) = if put.ignore_value {
            let old = old.ok_or_else(|| Rejection::KeyNotFound { key: put.key.clone() })?;
            (self.source().value(old)?, old.head.content_type.clone())
        } else {
            let declared = put.content_type.as_deref().map(|declared| self.machine.content_types.shared(declared));
            (put.value.clone(), declared)
        };
        let written =
            self.write(Write { key: &put.key, old: indexed.as_deref(), value, content_type, lease: put.lease })?;
        Ok(OpReply::Put {
            key: written.key,
            version: written.version,
            created: written.version == 1,
            lease: written.lease,
            prev,
        })
    }

    fn add(
        &mut self,
        key: &Bytes,
        by: i64,
        initial: i64,
        bounds: &Bounds,
        lease: LeaseChoice,
        operation: u32,
    ) -> Result<OpReply, Stop> {
        let indexed = self.indexed(key);
        let old = live(indexed.as_ref());
        let (previous, content_type) = match old {
            None => (initial, None),
            Some(old) => {
                let stored = self.source().value(old)?;
                let previous = counter(&stored).ok_or_else(|| Rejection::NotACounter { key: key.clone() })?;
                (previous, old.head.content_type.clone())
            }
        };
        let (value, clamped) = bounds.apply(previous, by).map_err(|error| match error {
            AddError::Overflow => Rejection::Overflow { key: key.clone() },
            AddError::OutOfRange => Rejection::OutOfRange {
                key: key.clone(),
                current: previous,
                min: bounds.min,
                max: bounds.max,
                operation,
            },
        })?;
        let written =
            self.write(Write { key, old: indexed.as_deref(), value: value.to_string().into(), content_type, lease })?;
        Ok(OpReply::Add {
            key: written.key,
            value,
            previous,
            existed: old.is_some(),
            clamped,
            version: written.version,
            lease: written.lease,
        })
    }

    fn merge_patch(&mut self, key: &Bytes, patch: &Bytes, prev_kv: bool, lease: LeaseChoice) -> Result<OpReply, Stop> {
        let indexed = self.indexed(key);
        let old = live(indexed.as_ref()).ok_or_else(|| Rejection::KeyNotFound { key: key.clone() })?;
        let prev = self.former(Some(old), prev_kv)?;
        let stored = self.source().value(old)?;
        let value = patch::merge(&stored, patch).map_err(|error| match error {
            PatchError::Target => Rejection::NotJson { key: key.clone() },
            PatchError::Patch => {
                Rejection::Invalid { field: "patch".into(), problem: "not JSON, or nested too deep".into() }
            }
        })?;
        let content_type = old.head.content_type.clone().unwrap_or_else(|| self.machine.content_types.shared(JSON));
        let written = self.write(Write {
            key,
            old: indexed.as_deref(),
            value: value.into(),
            content_type: Some(content_type),
            lease,
        })?;
        Ok(OpReply::MergePatch { key: written.key, version: written.version, lease: written.lease, prev })
    }
}

/// The key, if it exists.
fn live(indexed: Option<&Arc<KeyRecord>>) -> Option<&KeyRecord> {
    indexed.map(|key| &**key).filter(|key| key.head.is_live())
}

/// A counter's text: an optional minus and digits, within int64.
fn counter(value: &[u8]) -> Option<i64> {
    if value.starts_with(b"+") {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[derive(Debug)]
struct Bounds {
    min: Option<i64>,
    max: Option<i64>,
    clamp: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum AddError {
    Overflow,
    OutOfRange,
}

impl Bounds {
    /// The sum, and whether it was clamped. With clamping a bound also catches what would overflow.
    fn apply(&self, previous: i64, by: i64) -> Result<(i64, bool), AddError> {
        let sum = i128::from(previous) + i128::from(by);
        let above_min = self.min.map_or(sum, |min| sum.max(min.into()));
        let within = self.max.map_or(above_min, |max| above_min.min(max.into()));
        if within != sum && !self.clamp {
            return Err(AddError::OutOfRange);
        }
        i64::try_from(within).map(|value| (value, within != sum)).map_err(|_| AddError::Overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_overflow_clamp_or_fail() {
        let free = Bounds { min: None, max: None, clamp: false };
        assert_eq!(free.apply(i64::MAX, 1), Err(AddError::Overflow));
        assert_eq!(free.apply(i64::MIN, -1), Err(AddError::Overflow));
        assert_eq!(free.apply(-3, 5), Ok((2, false)));
        let bounded = |clamp| Bounds { min: Some(0), max: Some(10), clamp };
        assert_eq!(bounded(false).apply(9, 2), Err(AddError::OutOfRange));
        assert_eq!(bounded(false).apply(1, -2), Err(AddError::OutOfRange));
        assert_eq!(bounded(false).apply(9, 1), Ok((10, false)));
        assert_eq!(bounded(true).apply(9, 2), Ok((10, true)));
        assert_eq!(bounded(true).apply(1, -2), Ok((0, true)));
        assert_eq!(bounded(true).apply(i64::MAX, i64::MAX), Ok((10, true)));
        let only_max = Bounds { min: None, max: Some(0), clamp: true };
        assert_eq!(only_max.apply(i64::MIN, -1), Err(AddError::Overflow));
    }

    #[test]
    fn a_counter_is_plain_decimal_text() {
        for (text, value) in [("0", 0), ("-7", -7), ("9223372036854775807", i64::MAX), ("007", 7)] {
            assert_eq!(counter(text.as_bytes()), Some(value));
        }
        for text in ["", "+1", " 1", "1 ", "1.0", "1e3", "9223372036854775808", "\u{661}"] {
            assert_eq!(counter(text.as_bytes()), None, "{text:?}");
        }
    }
}

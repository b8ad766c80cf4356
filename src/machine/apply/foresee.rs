//! What cannot work out of a transaction, told before anything of it runs: first of the puts that it comes to,
//! in their order and however deep they are nested, then of the reads. etcd does so, and its clients see which
//! of several errors comes first.
//!
//! Invariant: it refuses nothing that would have run.

use super::super::authority::{Authorized, Opened};
use super::compare::Plan;
use super::work::Work;
use crate::model::{LeaseChoice, LeaseId, Op, PutOp, Rejection, Txn};
use std::collections::BTreeSet;

impl Work<'_> {
    pub(super) fn foresee(&self, txn: Authorized<&Txn>, plan: &Plan) -> Result<(), Rejection> {
        let mut granted = BTreeSet::new();
        along(txn, plan, &mut |opened| match opened {
            Opened::Write(op) => {
                if let Op::Put(put) = op.get() {
                    self.foresee_put(put, &granted)?;
                }
                granted.extend(may_grant(op.get()));
                Ok(())
            }
            Opened::Range(_) | Opened::Txn(_) => Ok(()),
        })?;
        let source = self.source();
        along(txn, plan, &mut |opened| match opened {
            Opened::Range(range) => source.readable(range.get().revision).map(drop),
            Opened::Write(_) | Opened::Txn(_) => Ok(()),
        })
    }

    fn foresee_put(&self, put: &PutOp, granted: &BTreeSet<LeaseId>) -> Result<(), Rejection> {
        if put.ignore_value || put.lease == LeaseChoice::KeepOfExisting {
            let exists = self.machine.root.index.get(&put.key).is_some_and(|key| key.head.is_live());
            if !exists {
                return Err(Rejection::KeyNotFound { key: put.key.clone() });
            }
        }
        match put.lease {
            LeaseChoice::Attach(id) if id != 0 && !granted.contains(&id) && !self.machine.root.leases.contains(id) => {
                Err(Rejection::LeaseNotFound(id))
            }
            _ => Ok(()),
        }
    }
}

/// The lease that an operation grants by itself, should it come to that.
fn may_grant(op: &Op) -> Option<LeaseId> {
    match op {
        Op::Put(PutOp { lease: LeaseChoice::Implicit { id, .. }, .. })
        | Op::Add { lease: LeaseChoice::Implicit { id, .. }, .. }
        | Op::MergePatch { lease: LeaseChoice::Implicit { id, .. }, .. }
        | Op::RateTake { lease: id, .. }
        | Op::Session { id, .. } => Some(*id),
        Op::Put(_) | Op::Add { .. } | Op::MergePatch { .. } | Op::Delete { .. } | Op::Range(_) | Op::Txn(_) => None,
    }
}

/// The operations that run, in their order.
fn along<'a>(
    txn: Authorized<&'a Txn>,
    plan: &Plan,
    visit: &mut dyn FnMut(Opened<'a>) -> Result<(), Rejection>,
) -> Result<(), Rejection> {
    let mut nested = plan.nested.iter();
    for op in txn.branch(plan.failed_if.is_empty()) {
        match op.opened() {
            Opened::Txn(inner) => match nested.next() {
                Some(plan) => along(inner, plan, visit)?,
                None => return Ok(()),
            },
            opened => visit(opened)?,
        }
    }
    Ok(())
}

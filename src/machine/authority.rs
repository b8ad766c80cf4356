//! Rights, decided once per request for its whole tree of operations.
//!
//! Invariants: `Authorized` can only be made here, and everything that touches keys, values or
//! leases takes one, so no door can forget a nested transaction, a `prev_kv`, a compare or a lease.
//! A request lists the rights it needs as a whole; whether its caller has them is decided by the tables as
//! they are then, so no right outlives its revocation.

use super::root::Root;
use crate::model::{
    AuthCommand, AuthRefusal, Caller, Command, Compare, CompareTarget, Fence, KeyRange, LeaseChoice, Need, Op, RangeOp,
    Rejection, Txn,
};

/// Something that a caller was allowed to do.
#[derive(Debug, Clone, Copy)]
pub struct Authorized<T>(T);

impl<T: Copy> Authorized<T> {
    pub(crate) fn get(self) -> T {
        self.0
    }
}

/// The parts of what was allowed as a whole are allowed.
impl<'a> Authorized<&'a Command> {
    /// The fences around a command, and the command.
    pub(crate) fn fenced(self) -> Option<(&'a [Fence], Authorized<&'a Command>)> {
        if let Command::Fenced { fences, command } = self.0 { Some((fences, Authorized(command))) } else { None }
    }

    pub(crate) fn txn(self) -> Option<Authorized<&'a Txn>> {
        if let Command::Txn(txn) = self.0 { Some(Authorized(txn)) } else { None }
    }
}

impl<'a> Authorized<&'a Txn> {
    pub(crate) fn compares(self) -> impl Iterator<Item = Authorized<&'a Compare>> {
        self.0.compares.iter().map(Authorized)
    }

    pub(crate) fn branch(self, succeeded: bool) -> impl ExactSizeIterator<Item = Authorized<&'a Op>> {
        let branch = if succeeded { &self.0.success } else { &self.0.failure };
        branch.iter().map(Authorized)
    }
}

impl<'a> Authorized<&'a Op> {
    pub(crate) fn opened(self) -> Opened<'a> {
        match self.0 {
            Op::Txn(txn) => Opened::Txn(Authorized(txn)),
            Op::Range(range) => Opened::Range(Authorized(range)),
            Op::Put(_)
            | Op::Delete { .. }
            | Op::Add { .. }
            | Op::MergePatch { .. }
            | Op::RateTake { .. }
            | Op::Session { .. } => Opened::Write(self),
        }
    }
}

/// An allowed operation by how it is carried out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Opened<'a> {
    Txn(Authorized<&'a Txn>),
    Range(Authorized<&'a RangeOp>),
    Write(Authorized<&'a Op>),
}

/// Whatever can be asked for: it knows all the rights it needs.
pub trait Request {
    fn needs(&self, need: &mut dyn FnMut(Need));
}

/// Grants `request` if its caller is who it says and has every right it needs.
///
/// # Errors
/// `Auth` if nobody is named, or somebody who is void by now; `PermissionDenied` with the first right that is missing.
pub(crate) fn authorize<'a, T: Request + ?Sized>(
    root: &Root,
    caller: &Caller,
    request: &'a T,
) -> Result<Authorized<&'a T>, Rejection> {
    let auth = &root.auth;
    if !auth.enabled() {
        return Ok(Authorized(request));
    }
    let (name, user) = match caller {
        Caller::System => return Ok(Authorized(request)),
        Caller::Anonymous => return Err(AuthRefusal::NobodyGiven.into()),
        Caller::User { name, auth_revision } => {
            let user = auth.user(name).ok_or(AuthRefusal::InvalidToken)?;
            if *auth_revision < user.since {
                return Err(AuthRefusal::OldRevision.into());
            }
            (name, user)
        }
    };
    if user.is_root() {
        return Ok(Authorized(request));
    }
    let mut missing = None;
    request.needs(&mut |need| {
        if missing.is_none() && !auth.has((name, user), &need, &root.attached) {
            missing = Some(need);
        }
    });
    match missing {
        Some(need) => Err(Rejection::PermissionDenied(need)),
        None => Ok(Authorized(request)),
    }
}

impl Request for Command {
    fn needs(&self, need: &mut dyn FnMut(Need)) {
        match self {
            Self::Txn(txn) => txn.needs(need),
            Self::Compact { .. } | Self::RaiseFeatureLevel { .. } | Self::SetQuota { .. } => need(Need::Administer),
            Self::Restore { .. } => need(Need::Administer),
            Self::Auth(command) => command.needs(need),
            Self::LeaseExpire { .. } | Self::LeaseCheckpoint { .. } => need(Need::Administer),
            Self::LeaseGrant { .. } | Self::LeaseGrantLabelled { .. } => need(Need::Grant),
            Self::LeaseRenew { id } => need(Need::Lease(*id)),
            Self::TtlSet { key, id, ttl_ms } => {
                write(KeyRange::key(key.clone()), false, LeaseChoice::Implicit { id: *id, ttl_ms: *ttl_ms }, need);
            }
            Self::TtlClear { key } => write(KeyRange::key(key.clone()), false, LeaseChoice::Detach, need),
            Self::LeaseRevoke { id, .. } => need(Need::Lease(*id)),
            // A refusal tells who holds.
            Self::Fenced { fences, command } => {
                fences.iter().for_each(|fence| need(Need::Read(fence.of.claims())));
                command.needs(need);
            }
        }
    }
}

impl Request for Txn {
    fn needs(&self, need: &mut dyn FnMut(Need)) {
        for Compare { range, target, .. } in &self.compares {
            need(Need::Read(match target {
                CompareTarget::Holder(fence) => fence.of.claims(),
                _ => range.clone(),
            }));
        }
        for op in self.success.iter().chain(&self.failure) {
            op.needs(need);
        }
    }
}

impl Request for Op {
    fn needs(&self, need: &mut dyn FnMut(Need)) {
        match self {
            Self::Put(put) => write(KeyRange::key(put.key.clone()), put.prev_kv, put.lease, need),
            Self::Delete { range, prev_kv } => write(range.clone(), *prev_kv, LeaseChoice::Detach, need),
            Self::Range(range) => range.needs(need),
            // The answer tells the former value, or part of it.
            Self::Add { key, lease, .. } => write(KeyRange::key(key.clone()), true, *lease, need),
            Self::MergePatch { key, prev_kv, lease, .. } => write(KeyRange::key(key.clone()), *prev_kv, *lease, need),
            Self::Session { .. } => need(Need::Grant),
            // The answer tells what is left.
            Self::RateTake { key, lease, .. } => {
                let lease = LeaseChoice::Implicit { id: *lease, ttl_ms: 0 };
                write(KeyRange::key(key.clone()), true, lease, need);
            }
            Self::Txn(txn) => txn.needs(need),
        }
    }
}

impl Request for RangeOp {
    fn needs(&self, need: &mut dyn FnMut(Need)) {
        need(Need::Read(self.range.clone()));
    }
}

/// Tokens are issued and renewed by members, on behalf of who has shown a password or a token.
impl Request for AuthCommand {
    fn needs(&self, need: &mut dyn FnMut(Need)) {
        need(Need::Administer);
    }
}

/// What is not an operation on keys says what it needs itself.
impl Request for Need {
    fn needs(&self, need: &mut dyn FnMut(Need)) {
        need(self.clone());
    }
}

/// Reading is all that is asked of a range by itself.
impl Request for KeyRange {
    fn needs(&self, need: &mut dyn FnMut(Need)) {
        need(Need::Read(self.clone()));
    }
}

impl Request for crate::model::ListOp {
    fn needs(&self, need: &mut dyn FnMut(Need)) {
        need(Need::Read(self.range.clone()));
    }
}

impl Request for crate::model::HistoryOp {
    fn needs(&self, need: &mut dyn FnMut(Need)) {
        need(Need::Read(KeyRange::key(self.key.clone())));
    }
}

fn write(range: KeyRange, reads: bool, lease: LeaseChoice, need: &mut dyn FnMut(Need)) {
    if reads {
        need(Need::Read(range.clone()));
    }
    need(Need::Write(range));
    match lease {
        LeaseChoice::Attach(id) => need(Need::Lease(id)),
        LeaseChoice::Implicit { .. } => need(Need::Grant),
        LeaseChoice::Detach | LeaseChoice::Keep | LeaseChoice::KeepOfExisting => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CompareOp, CompareTarget, PutOp};

    fn put(key: &'static str, prev_kv: bool, lease: LeaseChoice) -> Op {
        Op::Put(PutOp { key: key.into(), value: "v".into(), content_type: None, lease, prev_kv, ignore_value: false })
    }

    #[test]
    fn the_whole_tree_is_asked_for() {
        let compare = |key: &'static str| Compare {
            range: KeyRange::key(key),
            op: CompareOp::Equal,
            target: CompareTarget::Version(0),
        };
        let inner = Txn {
            compares: vec![compare("inner-if")],
            success: vec![put("inner-then", true, LeaseChoice::Attach(7))],
            failure: vec![Op::Range(RangeOp::newest(KeyRange::prefix("inner-else")))],
        };
        let outer = Txn {
            compares: vec![compare("if")],
            success: vec![Op::Delete { range: KeyRange::prefix("then"), prev_kv: true }],
            failure: vec![Op::Txn(Box::new(inner))],
        };
        let mut needs = Vec::new();
        Command::Txn(outer).needs(&mut |need| needs.push(need));
        let read = |range| Need::Read(range);
        assert_eq!(
            needs,
            [
                read(KeyRange::key("if")),
                read(KeyRange::prefix("then")),
                Need::Write(KeyRange::prefix("then")),
                read(KeyRange::key("inner-if")),
                read(KeyRange::key("inner-then")),
                Need::Write(KeyRange::key("inner-then")),
                Need::Lease(7),
                read(KeyRange::prefix("inner-else")),
            ]
        );
    }
}

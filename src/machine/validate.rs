//! What is wrong with a command whatever the state: decided before it is proposed, and again in apply.

use super::auth::is_grantable;
use crate::model::failure::TooMany;
use crate::model::{
    AuthCommand, AuthRefusal, Command, Fence, KeyRange, LeaseChoice, LeaseId, LeaseLabel, Op, Rejection, Txn, limits,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// The longest TTL in ms, as etcd's: 9,000,000,000 seconds.
const LEASE_TTL_CEILING_MS: u64 = 9_000_000_000_000;

/// Refuses what can never be applied: empty keys, too many operations, a key written twice.
///
/// # Errors
/// The rejection that apply would give.
pub fn validate(command: &Command) -> Result<(), Rejection> {
    match command {
        Command::Txn(txn) => {
            limit(txn, limits::TXN_OPS_MAX, 1)?;
            for branch in [&txn.success, &txn.failure] {
                branch.iter().try_for_each(operation)?;
                // What is written twice is written by two operations, or by a nested transaction.
                if !matches!(branch.as_slice(), [] | [Op::Put(_)]) {
                    Written::by(branch)?;
                }
            }
            Ok(())
        }
        Command::LeaseGrant { id, ttl_ms } => lease(*id, *ttl_ms),
        Command::LeaseGrantLabelled { id, ttl_ms, label } => {
            lease(*id, *ttl_ms)?;
            labelled(label)
        }
        Command::LeaseExpire { leases, .. } => lease_count(leases.len()),
        Command::LeaseCheckpoint { leases, .. } => lease_count(leases.len()),
        Command::TtlSet { key, id, ttl_ms } => {
            written_key(key)?;
            lease(*id, *ttl_ms)
        }
        Command::TtlClear { key } => written_key(key),
        Command::Fenced { fences, command } => fenced(fences, command),
        Command::Auth(command) => auth(command),
        Command::LeaseRevoke { .. }
        | Command::LeaseRenew { .. }
        | Command::Compact { .. }
        | Command::RaiseFeatureLevel { .. }
        | Command::Restore { .. }
        | Command::SetQuota { .. } => Ok(()),
    }
}

fn auth(command: &AuthCommand) -> Result<(), Rejection> {
    let user = |name: &str| named("name", name, AuthRefusal::UserNameEmpty);
    let role = |name: &str| named("role", name, AuthRefusal::RoleNameEmpty);
    match command {
        AuthCommand::UserAdd { name, .. }
        | AuthCommand::UserDelete { name }
        | AuthCommand::UserPassword { name, .. } => user(name),
        AuthCommand::UserGrant { user: name, role: granted }
        | AuthCommand::UserRevoke { user: name, role: granted } => {
            user(name)?;
            role(granted)
        }
        AuthCommand::RoleAdd { name } | AuthCommand::RoleDelete { name } => role(name),
        AuthCommand::RoleGrant { role: name, permission } => {
            role(name)?;
            if is_grantable(&permission.range) { Ok(()) } else { Err(AuthRefusal::BadPermission.into()) }
        }
        AuthCommand::RoleRevoke { role: name, .. } => role(name),
        AuthCommand::TokenIssue { user: name, ttl_ms, .. } => {
            user(name)?;
            let seconds = limits::AUTH_TOKEN_TTL_MIN_S..=limits::AUTH_TOKEN_TTL_MAX_S;
            if seconds.contains(&(ttl_ms / 1000)) {
                Ok(())
            } else {
                Err(invalid("ttl", "a token's TTL is up to 30 days"))
            }
        }
        AuthCommand::TokensRenew { hashes } if hashes.len() > limits::AUTH_RENEWALS_MAX => {
            Err(invalid("hashes", format!("more than {}", limits::AUTH_RENEWALS_MAX)))
        }
        AuthCommand::TokensRenew { .. } | AuthCommand::Enable | AuthCommand::Disable | AuthCommand::TokensExpire => {
            Ok(())
        }
    }
}

fn named(field: &str, name: &str, empty: AuthRefusal) -> Result<(), Rejection> {
    if name.is_empty() {
        return Err(empty.into());
    }
    if name.len() > limits::AUTH_NAME_BYTES_MAX {
        return Err(invalid(field, format!("a name has at most {} bytes", limits::AUTH_NAME_BYTES_MAX)));
    }
    Ok(())
}

fn fenced(fences: &[Fence], command: &Command) -> Result<(), Rejection> {
    if fences.len() > limits::FENCES_MAX {
        return Err(invalid("fence", format!("{} fences, the limit is {}", fences.len(), limits::FENCES_MAX)));
    }
    // All fences stand in one place, so that recursion ends here.
    if matches!(command, Command::Fenced { .. } | Command::Restore { .. }) {
        return Err(invalid("fence", "fences do not nest, and a restore has none"));
    }
    validate(command)
}

/// As in etcd, a nested transaction may use what its parents have left of the limit.
fn limit(txn: &Txn, left: usize, level: usize) -> Result<(), Rejection> {
    if level > limits::TXN_DEPTH_MAX {
        return Err(too_many(TooMany::Levels, level, limits::TXN_DEPTH_MAX));
    }
    if txn.compares.len() > left {
        return Err(too_many(TooMany::Compares, txn.compares.len(), left));
    }
    let operations = txn.success.len().max(txn.failure.len());
    if operations > left {
        return Err(too_many(TooMany::Operations, operations, left));
    }
    let left = left - operations.max(txn.compares.len());
    for op in txn.success.iter().chain(&txn.failure) {
        if let Op::Txn(inner) = op {
            limit(inner, left, level + 1)?;
        }
    }
    Ok(())
}

fn too_many(what: TooMany, count: usize, limit: usize) -> Rejection {
    let number = |count| u64::try_from(count).unwrap_or(u64::MAX);
    Rejection::TooManyOps { what, count: number(count), limit: number(limit) }
}

fn invalid(field: &str, problem: impl Into<String>) -> Rejection {
    Rejection::Invalid { field: field.into(), problem: problem.into() }
}

fn operation(op: &Op) -> Result<(), Rejection> {
    match op {
        Op::Put(put) => {
            if put.content_type.as_ref().is_some_and(|declared| declared.len() > limits::CONTENT_TYPE_BYTES_MAX) {
                return Err(invalid("content_type", "too long"));
            }
            written_key(&put.key)?;
            choice(put.lease)
        }
        Op::Add { key, min, max, lease, .. } => {
            if let (Some(min), Some(max)) = (min, max)
                && min > max
            {
                return Err(invalid("min", "min is above max"));
            }
            written_key(key)?;
            choice(*lease)
        }
        Op::MergePatch { key, lease, .. } => {
            written_key(key)?;
            choice(*lease)
        }
        Op::Session { id, ttl_ms, label } => {
            lease(*id, *ttl_ms)?;
            labelled(label)
        }
        Op::RateTake { key, rate, cost, lease: id } => {
            written_key(key)?;
            let refill_ms = rate.refill_ns().map_or(u64::MAX, |ns| ns / 1_000_000);
            if rate.interval_ns == 0 || rate.burst == 0 || refill_ms > limits::LEASE_TTL_MAX_MS {
                return Err(invalid("burst", "it refills in more than 365 days, or never"));
            }
            if *cost > rate.burst {
                return Err(invalid("cost", format!("{cost} is more than the burst of {}", rate.burst)));
            }
            lease(*id, limits::LEASE_TTL_MIN_MS)
        }
        Op::Delete { .. } | Op::Range(_) => Ok(()),
        Op::Txn(txn) => txn.success.iter().chain(&txn.failure).try_for_each(operation),
    }
}

fn written_key(key: &Bytes) -> Result<(), Rejection> {
    if key.is_empty() { Err(Rejection::EmptyKey) } else { Ok(()) }
}

fn choice(choice: LeaseChoice) -> Result<(), Rejection> {
    match choice {
        LeaseChoice::Implicit { id, ttl_ms } => lease(id, ttl_ms),
        LeaseChoice::Detach | LeaseChoice::Keep | LeaseChoice::KeepOfExisting | LeaseChoice::Attach(_) => Ok(()),
    }
}

fn labelled(label: &LeaseLabel) -> Result<(), Rejection> {
    if let Some(name) = &label.name
        && (name.is_empty() || name.len() > limits::LEASE_NAME_BYTES_MAX || name.chars().any(char::is_control))
    {
        let limit = limits::LEASE_NAME_BYTES_MAX;
        return Err(invalid("name", format!("a name has 1 to {limit} bytes and no control characters")));
    }
    let metadata = label.metadata.as_ref().map_or(0, Bytes::len);
    if metadata > limits::LEASE_METADATA_BYTES_MAX {
        let number = |count| u64::try_from(count).unwrap_or(u64::MAX);
        return Err(Rejection::TooLarge { bytes: number(metadata), limit: number(limits::LEASE_METADATA_BYTES_MAX) });
    }
    Ok(())
}

fn lease_count(count: usize) -> Result<(), Rejection> {
    let limit = limits::LEASE_BATCH_MAX;
    if count > limit { Err(invalid("leases", format!("more than {limit}"))) } else { Ok(()) }
}

fn lease(id: LeaseId, ttl_ms: u64) -> Result<(), Rejection> {
    if id <= 0 {
        return Err(invalid("lease", "a lease's id is positive"));
    }
    if !(limits::LEASE_TTL_MIN_MS..=LEASE_TTL_CEILING_MS).contains(&ttl_ms) {
        return Err(invalid(
            "ttl",
            format!("{ttl_ms} ms is not between {} and {LEASE_TTL_CEILING_MS}", limits::LEASE_TTL_MIN_MS),
        ));
    }
    Ok(())
}

/// The keys put and ranges deleted by a list of operations and all that is nested in them.
#[derive(Default)]
struct Written<'a> {
    puts: BTreeSet<&'a Bytes>,
    /// Starts and ends of ranges that do not overlap.
    deleted: BTreeMap<Bytes, Option<Bytes>>,
}

impl<'a> Written<'a> {
    /// Refuses a key that may be written twice: put twice, or put and deleted; deletes may overlap. Of a
    /// nested transaction only one branch runs: what is in both counts against the operations beside it, and
    /// not against the other branch. As in etcd, whose check does not notice a delete that has no end, nor one
    /// that is nested behind the put.
    fn by(ops: &'a [Op]) -> Result<Self, Rejection> {
        let mut all = Self::default();
        for op in ops {
            match op {
                Op::Put(put) => all.put(&put.key)?,
                Op::Add { key, .. } | Op::MergePatch { key, .. } | Op::RateTake { key, .. } => all.put(key)?,
                Op::Delete { range, .. } => range.visible_parts().into_iter().try_for_each(|part| all.delete(part))?,
                Op::Range(_) | Op::Session { .. } => {}
                Op::Txn(txn) => {
                    let mut either = Self::by(&txn.success)?;
                    either.join(Self::by(&txn.failure)?);
                    all.then(either)?;
                }
            }
        }
        Ok(all)
    }

    fn put(&mut self, key: &'a Bytes) -> Result<(), Rejection> {
        if self.deletes(key) || !self.puts.insert(key) { Err(Rejection::DuplicateKey(key.clone())) } else { Ok(()) }
    }

    fn delete(&mut self, part: KeyRange) -> Result<(), Rejection> {
        self.unput(&part.start, part.end.as_ref())?;
        self.cover(part);
        Ok(())
    }

    fn then(&mut self, next: Self) -> Result<(), Rejection> {
        if let Some(key) = next.puts.iter().find(|key| self.puts.contains(*key) || self.deletes(key)) {
            return Err(Rejection::DuplicateKey((*key).clone()));
        }
        next.deleted.iter().try_for_each(|(start, end)| self.unput(start, end.as_ref()))?;
        self.join(next);
        Ok(())
    }

    fn join(&mut self, other: Self) {
        self.puts.extend(other.puts);
        for (start, end) in other.deleted {
            self.cover(KeyRange { start, end });
        }
    }

    fn deletes(&self, key: &Bytes) -> bool {
        let before = self.deleted.range::<Bytes, _>((Bound::Unbounded, Bound::Included(key))).next_back();
        before.is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end))
    }

    fn unput(&self, start: &Bytes, end: Option<&Bytes>) -> Result<(), Rejection> {
        let upto = end.map_or(Bound::Unbounded, Bound::Excluded);
        match self.puts.range::<Bytes, _>((Bound::Included(start), upto)).next() {
            Some(key) => Err(Rejection::DuplicateKey((*key).clone())),
            None => Ok(()),
        }
    }

    /// Joined with what it meets, so that a key is looked up in one step however many deletes there are.
    fn cover(&mut self, part: KeyRange) {
        let KeyRange { mut start, mut end } = part;
        let before = self.deleted.range::<Bytes, _>((Bound::Unbounded, Bound::Included(&start))).next_back();
        if let Some((known, _)) = before.filter(|(_, upto)| upto.as_ref().is_none_or(|upto| start < *upto)) {
            start = known.clone();
        }
        loop {
            let upto = end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let met = self.deleted.range::<Bytes, _>((Bound::Included(&start), upto)).next();
            let Some(known) = met.map(|(known, _)| known.clone()) else { break };
            let further = self.deleted.remove(&known).flatten();
            end = end.zip(further).map(|(end, further)| end.max(further));
        }
        self.deleted.insert(start, end);
    }
}

//! What readers hold: a `Reader` gives `View`s, and a view is one immutable state.
//!
//! Invariants: a view never changes and never blocks apply; while it is held nothing it can read is
//! removed from the store, so hold it for one answer, not for a stream. Every read of keys is
//! authorised here.

use super::auth::User;
use super::authority::{Authorized, Request, authorize};
use super::read::{self, Source};
use super::root::{Lease, Published, Root};
use crate::model::event::PrevRef;
use crate::model::{
    AuthRefusal, Caller, EventPage, Failure, HistoryOp, HistoryPage, KeyRange, KeyValue, LeaseId, LeaseLabel, ListOp,
    ListPage, LogPosition, Need, PasswordHash, Permission, ROOT, RangeOp, RangeReply, Rejection, Revision, TokenHash,
};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Gives the newest state, also after the machine behind it was replaced by an image.
#[derive(Clone)]
pub struct Reader {
    pub(crate) published: Arc<Published>,
}

impl Reader {
    #[must_use]
    pub fn view(&self) -> View {
        View { root: self.published.newest() }
    }
}

/// One state of the store, between two batches.
#[derive(Clone)]
pub struct View {
    root: Arc<Root>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("numbers", &self.root.numbers).finish_non_exhaustive()
    }
}

/// Sizes of a state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub keys: u64,
    /// Deleted keys whose history is kept included.
    pub indexed_keys: u64,
    pub leases: u64,
    pub idempotency_records: u64,
    /// Logical bytes: of current keys; of superseded versions that compaction has not released; of
    /// all that counts for the quota; and the quota.
    pub live_bytes: u64,
    pub retained_bytes: u64,
    pub used_bytes: u64,
    pub quota_bytes: u64,
    pub cached_value_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo {
    pub id: LeaseId,
    pub ttl_ms: u64,
    /// Granted by a put with a TTL, for its key.
    pub implicit: bool,
    /// What was left at the last checkpoint, if it was not started again since.
    pub checkpoint_ms: Option<u64>,
    /// Another after each grant, logged renewal or new TTL.
    pub generation: u64,
    pub label: Option<Arc<LeaseLabel>>,
}

/// A token that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    pub caller: Caller,
    pub ttl_ms: u64,
    /// In log time.
    pub ends_ms: u64,
}

/// What a user's password is compared with, and since which revision of users and roles it is that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `None`: nobody can authenticate as this user by one.
    pub password: Option<PasswordHash>,
    pub since: i64,
}

impl LeaseInfo {
    fn of(id: LeaseId, lease: Lease) -> Self {
        let Lease { ttl_ms, remaining_ms, generation, label, implicit } = lease;
        Self { id, ttl_ms, implicit, checkpoint_ms: remaining_ms, generation, label }
    }
}

impl View {
    fn source(&self) -> Source<'_> {
        Source { root: &self.root, pending: &[], newest: self.revision() }
    }

    fn authorized<'a, T: Request>(&self, caller: &Caller, request: &'a T) -> Result<Authorized<&'a T>, Rejection> {
        authorize(&self.root, caller, request)
    }

    #[must_use]
    pub fn revision(&self) -> Revision {
        self.root.numbers.revision
    }

    /// Reads below it are refused; 0 if there was no compaction.
    #[must_use]
    pub fn compacted_revision(&self) -> Revision {
        self.root.numbers.compacted
    }

    /// Log time of the last applied batch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.root.numbers.now_ms
    }

    #[must_use]
    pub fn applied(&self) -> Option<LogPosition> {
        self.root.applied
    }

    #[must_use]
    pub fn membership(&self) -> Option<(Option<LogPosition>, Bytes)> {
        self.root.membership.clone()
    }

    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.root.numbers.feature_level
    }

    /// Members that have applied the same log to the same position have the same hash.
    #[must_use]
    pub fn state_hash(&self) -> u128 {
        self.root.state_hash()
    }

    /// Whether `caller` may do this; watches ask it for their ranges, and writes before they are proposed.
    ///
    /// # Errors
    /// `PermissionDenied`, or `Auth` if the caller is nobody.
    pub fn allows(&self, caller: &Caller, request: &dyn Request) -> Result<(), Rejection> {
        authorize(&self.root, caller, request).map(|_| ())
    }

    /// # Errors
    /// Compacted or future revisions and missing rights are rejected; a broken store is a fault.
    pub fn range(&self, caller: &Caller, op: &RangeOp) -> Result<RangeReply, Failure> {
        Ok(self.source().range(self.authorized(caller, op)?)?)
    }

    /// # Errors
    /// As `range`.
    pub fn list(&self, caller: &Caller, op: &ListOp) -> Result<ListPage, Failure> {
        Ok(self.source().list(self.authorized(caller, op)?)?)
    }

    /// `None` if the key was never seen since compaction.
    ///
    /// # Errors
    /// As `range`.
    pub fn history(&self, caller: &Caller, op: &HistoryOp) -> Result<Option<HistoryPage>, Failure> {
        Ok(self.source().history(self.authorized(caller, op)?)?)
    }

    /// One key, now (`revision` 0) or as it was.
    ///
    /// # Errors
    /// As `range`.
    pub fn get(&self, caller: &Caller, key: &Bytes, revision: Revision) -> Result<Option<KeyValue>, Failure> {
        let range = KeyRange::key(key.clone());
        self.authorized(caller, &range)?;
        let revision = self.source().readable(revision)?;
        let Some(record) = self.root.index.get(key) else { return Ok(None) };
        let Some(place) = record.at(revision).filter(|place| !place.tombstone) else { return Ok(None) };
        Ok(Some(self.source().key_value(record, place, false)?))
    }

    /// The events of whole revisions from `from` on, about `max_records` of them, at least one revision
    /// if there is one. Empty: `from` is above the newest revision.
    ///
    /// # Errors
    /// As `events_of`.
    #[cfg(test)]
    pub fn events(&self, from: Revision, max_records: usize) -> Result<Vec<crate::model::RevisionEvents>, Failure> {
        Ok(self.source().events(from, max_records, &|_| true)?.revisions)
    }

    /// The events that these ranges show, for the watch hub, which asks for its watchers' rights. There may be
    /// none in a stretch of history; the page says how far it has looked, which is at least at one revision if
    /// there is one.
    ///
    /// # Errors
    /// `Compacted` if `from` is below the compacted revision; a broken store is a fault.
    pub fn events_of(&self, ranges: &[KeyRange], from: Revision, max_records: usize) -> Result<EventPage, Failure> {
        let wanted = |key: &[u8]| ranges.iter().any(|range| range.shows(key));
        Ok(self.source().events(from, max_records, &wanted)?)
    }

    /// The former state that an event refers to, for the watch hub.
    ///
    /// # Errors
    /// `Compacted` if the version was removed meanwhile.
    pub fn record(&self, prev: PrevRef) -> Result<KeyValue, Failure> {
        if let Some(key) = self.root.values.former(prev.main, prev.sub)
            && let Some(value) = key.slot.get()
        {
            return Ok(read::newest(&key, value));
        }
        if let Some(record) = self.root.values.store.get(prev.main, prev.sub)? {
            return Ok(read::key_value(&record, false));
        }
        let numbers = self.root.numbers;
        Err(Rejection::Compacted { requested: prev.main, compacted: numbers.compacted, current: numbers.revision }
            .into())
    }

    /// The newest revision that was surely reached `age_ms` of log time ago; `None` if history does
    /// not go back that far.
    #[must_use]
    pub fn revision_at(&self, at_ms: u64) -> Option<Revision> {
        self.root.timeline.revision_at(at_ms, self.revision())
    }

    #[must_use]
    pub fn lease(&self, id: LeaseId) -> Option<LeaseInfo> {
        self.root.leases.get(id).map(|lease| LeaseInfo::of(id, lease))
    }

    /// Leases with ids from `from` on.
    #[must_use]
    pub fn leases(&self, from: LeaseId, limit: usize) -> Vec<LeaseInfo> {
        let leases = self.root.leases.page(from, limit).into_iter();
        leases.map(|(id, lease)| LeaseInfo::of(id, lease)).collect()
    }

    /// How many keys are attached to a lease, counted up to `limit`.
    #[must_use]
    pub fn attached_count(&self, id: LeaseId, limit: usize) -> usize {
        self.root.attached.keys(id).take(limit).count()
    }

    /// Keys attached to a lease, in order, those that the caller may read.
    #[must_use]
    pub fn lease_keys(&self, caller: &Caller, id: LeaseId, limit: usize) -> Vec<Bytes> {
        let keys = self.root.attached.keys(id);
        keys.filter(|key| self.allows(caller, &KeyRange::key((*key).clone())).is_ok()).take(limit).cloned().collect()
    }

    /// Whether authentication is on, and the revision of users and roles.
    #[must_use]
    pub fn auth(&self) -> (bool, i64) {
        (self.root.auth.enabled(), self.root.auth.revision())
    }

    /// Whose token this is, if it has not run out.
    #[must_use]
    pub fn token(&self, hash: &TokenHash) -> Option<TokenInfo> {
        let now_ms = self.now_ms();
        self.root.auth.token(hash, now_ms).map(|token| TokenInfo {
            caller: Caller::User { name: token.user.to_string(), auth_revision: token.revision },
            ttl_ms: token.ttl_ms,
            ends_ms: token.ends_ms,
        })
    }

    /// When the next token runs out, in log time.
    #[must_use]
    pub fn next_token_end_ms(&self) -> Option<u64> {
        self.root.auth.next_end_ms()
    }

    /// What a password is compared with; `None` if there is no such user.
    #[must_use]
    pub fn credentials(&self, name: &str) -> Option<Credentials> {
        let User { password, since, .. } = self.root.auth.user(name)?;
        Some(Credentials { password: password.clone(), since: *since })
    }

    /// A user's roles.
    ///
    /// # Errors
    /// As `allows`; `UserNotFound`.
    pub fn user(&self, caller: &Caller, name: &str) -> Result<Vec<String>, Rejection> {
        self.allows(caller, &Need::User(name.to_owned()))?;
        let user = self.root.auth.user(name).ok_or_else(|| AuthRefusal::UserNotFound(name.to_owned()))?;
        Ok(user.roles.iter().map(|role| role.to_string()).collect())
    }

    /// # Errors
    /// As `allows`.
    pub fn users(&self, caller: &Caller) -> Result<Vec<String>, Rejection> {
        self.allows(caller, &Need::Administer)?;
        Ok(self.root.auth.users().map(|name| name.to_string()).collect())
    }

    /// A role's permissions; `None` for `root`, which has all.
    ///
    /// # Errors
    /// As `allows`; `RoleNotFound`.
    pub fn role(&self, caller: &Caller, name: &str) -> Result<Option<Vec<Permission>>, Rejection> {
        self.allows(caller, &Need::Role(name.to_owned()))?;
        let role = self.root.auth.role(name).ok_or_else(|| AuthRefusal::RoleNotFound(name.to_owned()))?;
        Ok((name != ROOT).then(|| role.permissions.clone()))
    }

    /// # Errors
    /// As `allows`.
    pub fn roles(&self, caller: &Caller) -> Result<Vec<String>, Rejection> {
        self.allows(caller, &Need::Administer)?;
        Ok(self.root.auth.roles().map(|name| name.to_string()).collect())
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        let root = &self.root;
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Stats {
            keys: root.index.live(),
            indexed_keys: root.index.entries(),
            leases: number(root.leases.len()),
            idempotency_records: number(root.idempotency.len()),
            live_bytes: root.numbers.live_bytes,
            retained_bytes: root.timeline.bytes(),
            used_bytes: root.used_bytes(),
            quota_bytes: root.numbers.quota_bytes,
            cached_value_bytes: root.values.held_bytes(),
        }
    }
}

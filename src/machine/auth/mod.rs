//! The auth tables: users, roles and tokens, and how commands change them.
//!
//! Invariants: every change keeps the tables, the indexes over them and the state hash together; a
//! refused change changes nothing; a user's `since` rises with every change of its password and is
//! above all that any former user of that name had, so what was authenticated before is void; roles
//! named by users exist, but for `root`, which needs no record; all sizes are bounded.

mod image;
mod ranges;

pub(super) use image::PortableAuth;

use super::hash::{self, Sum};
use super::leases::Attached;
use crate::model::{AuthCommand, AuthRefusal, KeyRange, Need, PasswordHash, Permission, ROOT, TokenHash, limits};
use bytes::Bytes;
use imbl::{OrdMap, OrdSet};
use ranges::{covered, merged};
use std::sync::Arc;

/// The revision of the tables before anything was changed.
pub(super) const FIRST_REVISION: i64 = 1;
/// Tokens that have run out and that one issue removes: more than one, so that the table shrinks.
const EXPIRED_PER_ISSUE: usize = 16;

#[derive(Debug, Clone)]
pub(crate) struct AuthState {
    enabled: bool,
    revision: i64,
    users: OrdMap<Arc<str>, Arc<User>>,
    roles: OrdMap<Arc<str>, Arc<Role>>,
    tokens: OrdMap<TokenHash, Arc<Token>>,
    /// By when they run out.
    ends: OrdSet<(u64, TokenHash)>,
    /// By their user, and when they run out.
    of_users: OrdSet<(Arc<str>, u64, TokenHash)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) password: Option<PasswordHash>,
    /// In order, each once.
    pub(crate) roles: Vec<Arc<str>>,
    pub(crate) since: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Role {
    /// In order, each range once.
    pub(crate) permissions: Vec<Permission>,
    /// What they come to.
    reads: Vec<KeyRange>,
    writes: Vec<KeyRange>,
}

impl Role {
    fn new(permissions: Vec<Permission>) -> Self {
        let reads = merged(permissions.iter().filter(|one| one.access.reads()));
        let writes = merged(permissions.iter().filter(|one| one.access.writes()));
        Self { permissions, reads, writes }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) user: Arc<str>,
    /// Of the tables, when it was issued.
    pub(crate) revision: i64,
    pub(crate) ttl_ms: u64,
    pub(crate) ends_ms: u64,
}

impl Default for AuthState {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: FIRST_REVISION,
            users: OrdMap::new(),
            roles: OrdMap::new(),
            tokens: OrdMap::new(),
            ends: OrdSet::new(),
            of_users: OrdSet::new(),
        }
    }
}

/// What there is.
impl AuthState {
    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    pub(crate) fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(|user| &**user)
    }

    pub(crate) fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name).map(|role| &**role)
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = &Arc<str>> {
        self.users.keys()
    }

    pub(crate) fn roles(&self) -> impl Iterator<Item = &Arc<str>> {
        self.roles.keys()
    }

    /// One that has not run out.
    pub(crate) fn token(&self, hash: &TokenHash, now_ms: u64) -> Option<&Token> {
        self.tokens.get(hash).map(|token| &**token).filter(|token| token.ends_ms > now_ms)
    }

    pub(crate) fn next_end_ms(&self) -> Option<u64> {
        self.ends.get_min().map(|(end_ms, _)| *end_ms)
    }

    /// Whether this user, who is not root, has a right.
    pub(super) fn has(&self, (name, user): (&str, &User), need: &Need, attached: &Attached) -> bool {
        let roles = || user.roles.iter().filter_map(|role| self.role(role));
        let reads = |range: &KeyRange| covered(range, || roles().map(|role| &role.reads[..]));
        let writes = |range: &KeyRange| covered(range, || roles().map(|role| &role.writes[..]));
        match need {
            Need::Read(range) => reads(range),
            Need::Write(range) => writes(range),
            Need::Lease(id) => attached.keys(*id).all(|key| writes(&KeyRange::key(key.clone()))),
            Need::LeaseKeys(id) => attached.keys(*id).all(|key| reads(&KeyRange::key(key.clone()))),
            Need::Grant => true,
            Need::Administer => false,
            Need::User(asked) => asked == name,
            Need::Role(asked) => user.roles.iter().any(|role| **role == **asked),
        }
    }
}

impl User {
    pub(crate) fn is_root(&self) -> bool {
        self.roles.iter().any(|role| **role == *ROOT)
    }

    fn position(&self, role: &str) -> Result<usize, usize> {
        self.roles.binary_search_by(|had| (**had).cmp(role))
    }
}

fn too_many(what: impl Into<String>, of: &str, limit: usize) -> AuthRefusal {
    AuthRefusal::TooMany { what: what.into(), of: of.into(), limit: u64::try_from(limit).unwrap_or(u64::MAX) }
}

/// Changes, of commands that are valid in themselves.
impl AuthState {
    pub(crate) fn change(&mut self, command: &AuthCommand, now_ms: u64, sum: &mut Sum) -> Result<(), AuthRefusal> {
        match command {
            AuthCommand::Enable => self.enable(sum),
            AuthCommand::Disable => {
                self.disable(sum);
                Ok(())
            }
            AuthCommand::UserAdd { name, password } => self.add_user(name, password.as_ref(), sum),
            AuthCommand::UserDelete { name } => self.delete_user(name, sum),
            AuthCommand::UserPassword { name, password } => self.change_password(name, password, sum),
            AuthCommand::UserGrant { user, role } => self.grant_role(user, role, sum),
            AuthCommand::UserRevoke { user, role } => self.revoke_role(user, role, sum),
            AuthCommand::RoleAdd { name } => self.add_role(name, sum),
            AuthCommand::RoleDelete { name } => self.delete_role(name, sum),
            AuthCommand::RoleGrant { role, permission } => self.grant_permission(role, permission, sum),
            AuthCommand::RoleRevoke { role, range } => self.revoke_permission(role, range, sum),
            AuthCommand::TokenIssue { hash, user, since, ttl_ms } => {
                self.issue((*hash, *ttl_ms), (user, *since), now_ms, sum)
            }
            AuthCommand::TokensRenew { hashes } => {
                hashes.iter().for_each(|hash| self.renew(hash, now_ms, sum));
                Ok(())
            }
            AuthCommand::TokensExpire => {
                self.expire(now_ms, limits::AUTH_TOKENS_MAX, sum);
                Ok(())
            }
        }
    }

    fn settle(&mut self, enabled: bool, revision: i64, sum: &mut Sum) {
        sum.remove(hash::auth_settings(self.enabled, self.revision));
        (self.enabled, self.revision) = (enabled, revision);
        sum.add(hash::auth_settings(self.enabled, self.revision));
    }

    fn advance(&mut self, sum: &mut Sum) {
        self.settle(self.enabled, self.revision + 1, sum);
    }

    fn enable(&mut self, sum: &mut Sum) -> Result<(), AuthRefusal> {
        if self.enabled {
            return Ok(());
        }
        let root = self.user(ROOT).ok_or(AuthRefusal::RootUserMissing)?;
        if !root.is_root() {
            return Err(AuthRefusal::RootRoleMissing);
        }
        self.settle(true, self.revision, sum);
        Ok(())
    }

    fn disable(&mut self, sum: &mut Sum) {
        if self.enabled {
            self.settle(false, self.revision + 1, sum);
            self.drop_tokens(sum);
        }
    }

    fn add_user(&mut self, name: &str, password: Option<&PasswordHash>, sum: &mut Sum) -> Result<(), AuthRefusal> {
        if self.users.contains_key(name) {
            return Err(AuthRefusal::UserExists(name.into()));
        }
        if self.users.len() >= limits::AUTH_USERS_MAX {
            return Err(too_many("the cluster", "users", limits::AUTH_USERS_MAX));
        }
        self.advance(sum);
        self.put_user(name.into(), User { password: password.cloned(), roles: Vec::new(), since: self.revision }, sum);
        Ok(())
    }

    fn known(&self, name: &str) -> Result<User, AuthRefusal> {
        self.user(name).cloned().ok_or_else(|| AuthRefusal::UserNotFound(name.into()))
    }

    fn known_role(&self, name: &str) -> Result<&Role, AuthRefusal> {
        self.role(name).ok_or_else(|| AuthRefusal::RoleNotFound(name.into()))
    }

    fn delete_user(&mut self, name: &str, sum: &mut Sum) -> Result<(), AuthRefusal> {
        if self.enabled && name == ROOT {
            return Err(AuthRefusal::RootIsNeeded);
        }
        self.known(name)?;
        self.advance(sum);
        self.drop_tokens_of(name, sum);
        if let Some(old) = self.users.remove(name) {
            sum.remove(hash::user(name, &old));
        }
        Ok(())
    }

    fn change_password(&mut self, name: &str, password: &PasswordHash, sum: &mut Sum) -> Result<(), AuthRefusal> {
        let user = self.known(name)?;
        self.advance(sum);
        self.drop_tokens_of(name, sum);
        // A user without a password stays one.
        let password = user.password.as_ref().map(|_| password.clone());
        self.put_user(name.into(), User { password, since: self.revision, ..user }, sum);
        Ok(())
    }

    fn grant_role(&mut self, name: &str, role: &str, sum: &mut Sum) -> Result<(), AuthRefusal> {
        let mut user = self.known(name)?;
        if role != ROOT {
            self.known_role(role)?;
        }
        let Err(at) = user.position(role) else { return Ok(()) };
        if user.roles.len() >= limits::AUTH_USER_ROLES_MAX {
            return Err(too_many(name, "roles", limits::AUTH_USER_ROLES_MAX));
        }
        user.roles.insert(at, role.into());
        self.advance(sum);
        self.put_user(name.into(), user, sum);
        Ok(())
    }

    fn revoke_role(&mut self, name: &str, role: &str, sum: &mut Sum) -> Result<(), AuthRefusal> {
        if self.enabled && name == ROOT && role == ROOT {
            return Err(AuthRefusal::RootIsNeeded);
        }
        let mut user = self.known(name)?;
        let at = user.position(role).map_err(|_| AuthRefusal::RoleNotGranted)?;
        user.roles.remove(at);
        self.advance(sum);
        self.put_user(name.into(), user, sum);
        Ok(())
    }

    fn add_role(&mut self, name: &str, sum: &mut Sum) -> Result<(), AuthRefusal> {
        if self.roles.contains_key(name) {
            return Err(AuthRefusal::RoleExists(name.into()));
        }
        if self.roles.len() >= limits::AUTH_ROLES_MAX {
            return Err(too_many("the cluster", "roles", limits::AUTH_ROLES_MAX));
        }
        self.advance(sum);
        self.put_role(name.into(), Vec::new(), sum);
        Ok(())
    }

    fn delete_role(&mut self, name: &str, sum: &mut Sum) -> Result<(), AuthRefusal> {
        if self.enabled && name == ROOT {
            return Err(AuthRefusal::RootIsNeeded);
        }
        self.known_role(name)?;
        self.advance(sum);
        if let Some(old) = self.roles.remove(name) {
            sum.remove(hash::role(name, &old.permissions));
        }
        let holders = self.users.iter().filter(|(_, user)| user.position(name).is_ok());
        let holders: Vec<_> = holders.map(|(holder, user)| (holder.clone(), User::clone(user))).collect();
        for (holder, mut user) in holders {
            user.roles.retain(|role| **role != *name);
            self.put_user(holder, user, sum);
        }
        Ok(())
    }

    fn grant_permission(&mut self, role: &str, permission: &Permission, sum: &mut Sum) -> Result<(), AuthRefusal> {
        let mut permissions = self.known_role(role)?.permissions.clone();
        match permissions.binary_search_by(|had| had.range.cmp(&permission.range)) {
            Ok(at) => permissions[at].access = permission.access,
            Err(at) => permissions.insert(at, permission.clone()),
        }
        if permissions.len() > limits::AUTH_ROLE_PERMISSIONS_MAX {
            return Err(too_many(role, "permissions", limits::AUTH_ROLE_PERMISSIONS_MAX));
        }
        if permissions.iter().map(permission_bytes).sum::<usize>() > limits::AUTH_ROLE_BYTES_MAX {
            return Err(too_many(role, "bytes of keys in its permissions", limits::AUTH_ROLE_BYTES_MAX));
        }
        self.advance(sum);
        self.put_role(role.into(), permissions, sum);
        Ok(())
    }

    fn revoke_permission(&mut self, role: &str, range: &KeyRange, sum: &mut Sum) -> Result<(), AuthRefusal> {
        let mut permissions = self.known_role(role)?.permissions.clone();
        let at = permissions.binary_search_by(|had| had.range.cmp(range));
        permissions.remove(at.map_err(|_| AuthRefusal::PermissionNotGranted)?);
        self.advance(sum);
        self.put_role(role.into(), permissions, sum);
        Ok(())
    }

    fn put_user(&mut self, name: Arc<str>, user: User, sum: &mut Sum) {
        sum.add(hash::user(&name, &user));
        if let Some(old) = self.users.insert(name.clone(), Arc::new(user)) {
            sum.remove(hash::user(&name, &old));
        }
    }

    fn put_role(&mut self, name: Arc<str>, permissions: Vec<Permission>, sum: &mut Sum) {
        sum.add(hash::role(&name, &permissions));
        if let Some(old) = self.roles.insert(name.clone(), Arc::new(Role::new(permissions))) {
            sum.remove(hash::role(&name, &old.permissions));
        }
    }
}

fn permission_bytes(permission: &Permission) -> usize {
    permission.range.start.len() + permission.range.end.as_ref().map_or(0, Bytes::len)
}

/// Tokens.
impl AuthState {
    fn issue(
        &mut self,
        (hash, ttl_ms): (TokenHash, u64),
        (name, since): (&str, i64),
        now_ms: u64,
        sum: &mut Sum,
    ) -> Result<(), AuthRefusal> {
        if !self.enabled {
            return Err(AuthRefusal::NotEnabled);
        }
        let user = self.user(name).filter(|user| user.since == since).ok_or(AuthRefusal::OldRevision)?;
        if user.password.is_none() {
            return Err(AuthRefusal::Failed);
        }
        self.expire(now_ms, EXPIRED_PER_ISSUE, sum);
        let name: Arc<str> = name.into();
        let mut had = self.of_user(&name);
        let first = had.next().copied();
        if let Some(first) = first.filter(|_| had.count() + 1 >= limits::AUTH_USER_TOKENS_MAX) {
            self.drop_token(&first, sum);
        }
        if self.tokens.len() >= limits::AUTH_TOKENS_MAX {
            return Err(too_many("the cluster", "tokens", limits::AUTH_TOKENS_MAX));
        }
        let ends_ms = now_ms.saturating_add(ttl_ms);
        self.put_token(hash, Token { user: name, revision: self.revision, ttl_ms, ends_ms }, sum);
        Ok(())
    }

    /// Those that run out first in front.
    fn of_user(&self, name: &Arc<str>) -> impl Iterator<Item = &TokenHash> {
        let first = (name.clone(), 0, TokenHash::new([0; 32]));
        let name = name.clone();
        self.of_users.range(first..).take_while(move |(user, _, _)| *user == name).map(|(_, _, hash)| hash)
    }

    fn renew(&mut self, hash: &TokenHash, now_ms: u64, sum: &mut Sum) {
        if let Some(token) = self.token(hash, now_ms).cloned() {
            self.put_token(*hash, Token { ends_ms: now_ms.saturating_add(token.ttl_ms), ..token }, sum);
        }
    }

    fn expire(&mut self, now_ms: u64, most: usize, sum: &mut Sum) {
        let over: Vec<_> = self.ends.iter().take_while(|(ends_ms, _)| *ends_ms <= now_ms).take(most).copied().collect();
        over.iter().for_each(|(_, hash)| self.drop_token(hash, sum));
    }

    fn put_token(&mut self, hash: TokenHash, token: Token, sum: &mut Sum) {
        self.drop_token(&hash, sum);
        sum.add(hash::token(&hash, &token));
        self.ends.insert((token.ends_ms, hash));
        self.of_users.insert((token.user.clone(), token.ends_ms, hash));
        self.tokens.insert(hash, Arc::new(token));
    }

    fn drop_token(&mut self, hash: &TokenHash, sum: &mut Sum) {
        if let Some(token) = self.tokens.remove(hash) {
            sum.remove(hash::token(hash, &token));
            self.ends.remove(&(token.ends_ms, *hash));
            self.of_users.remove(&(token.user.clone(), token.ends_ms, *hash));
        }
    }

    fn drop_tokens_of(&mut self, name: &str, sum: &mut Sum) {
        let name: Arc<str> = name.into();
        let tokens: Vec<_> = self.of_user(&name).copied().collect();
        tokens.iter().for_each(|hash| self.drop_token(hash, sum));
    }

    /// Nobody goes on being somebody.
    pub(crate) fn drop_tokens(&mut self, sum: &mut Sum) {
        let tokens: Vec<_> = self.tokens.keys().copied().collect();
        tokens.iter().for_each(|hash| self.drop_token(hash, sum));
    }

    /// Stands in the place of tables at this revision: whatever was authenticated by those is void.
    pub(crate) fn succeed(&mut self, former: i64, sum: &mut Sum) {
        if self.users.is_empty() && self.roles.is_empty() && former == FIRST_REVISION && self.revision == former {
            return;
        }
        self.drop_tokens(sum);
        self.settle(self.enabled, self.revision.max(former) + 1, sum);
        let users: Vec<_> = self.users.iter().map(|(name, user)| (name.clone(), User::clone(user))).collect();
        for (name, user) in users {
            self.put_user(name, User { since: self.revision, ..user }, sum);
        }
    }
}

/// Whether a permission's range can be granted.
pub(crate) fn is_grantable(range: &KeyRange) -> bool {
    !range.start.is_empty() && !range.is_empty()
}

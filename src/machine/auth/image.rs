//! The auth tables as an image carries them: one entry after another, in blocks of their own.
//!
//! Invariants: tables that nobody has changed have no entries, so that their images are those of releases
//! without users; nothing is trusted on the way back.

use super::{AuthState, FIRST_REVISION, Token, User, permission_bytes};
#[cfg(test)]
use crate::machine::hash;
use crate::machine::hash::Sum;
use crate::model::{PasswordHash, Permission, ROOT, TokenHash};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Variants are only ever appended.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::machine) enum PortableAuth {
    Settings { enabled: bool, revision: i64 },
    Role { name: Arc<str>, permissions: Vec<Permission> },
    User { name: Arc<str>, password: Option<PasswordHash>, roles: Vec<Arc<str>>, since: i64 },
    Token { hash: TokenHash, user: Arc<str>, revision: i64, ttl_ms: u64, ends_ms: u64 },
}

impl PortableAuth {
    pub(in crate::machine) fn size(&self) -> usize {
        match self {
            Self::Settings { .. } => 0,
            Self::Role { name, permissions } => name.len() + permissions.iter().map(permission_bytes).sum::<usize>(),
            Self::User { name, roles, .. } => name.len() + roles.iter().map(|role| role.len()).sum::<usize>(),
            Self::Token { user, .. } => user.len(),
        }
    }
}

impl AuthState {
    /// Roles come before the users that have them, and users before their tokens.
    pub(in crate::machine) fn portable(&self) -> impl Iterator<Item = PortableAuth> + '_ {
        let changed = self.enabled || self.revision != FIRST_REVISION;
        let settings = changed.then_some(PortableAuth::Settings { enabled: self.enabled, revision: self.revision });
        let roles = self
            .roles
            .iter()
            .map(|(name, role)| PortableAuth::Role { name: name.clone(), permissions: role.permissions.clone() });
        let users = self.users.iter().map(|(name, user)| {
            let User { password, roles, since } = User::clone(user);
            PortableAuth::User { name: name.clone(), password, roles, since }
        });
        let tokens = self.tokens.iter().map(|(hash, token)| {
            let Token { user, revision, ttl_ms, ends_ms } = Token::clone(token);
            PortableAuth::Token { hash: *hash, user, revision, ttl_ms, ends_ms }
        });
        settings.into_iter().chain(roles).chain(users).chain(tokens)
    }

    /// Takes an entry of an image; `Err` says what does not fit.
    pub(in crate::machine) fn restore(&mut self, entry: PortableAuth, sum: &mut Sum) -> Result<(), &'static str> {
        match entry {
            PortableAuth::Settings { enabled, revision } => {
                if self.enabled || self.revision != FIRST_REVISION || revision < FIRST_REVISION {
                    return Err("settings of authentication that contradict others");
                }
                self.settle(enabled, revision, sum);
            }
            PortableAuth::Role { name, permissions } => {
                let rising = permissions.windows(2).all(|two| two[0].range < two[1].range);
                if self.roles.contains_key(&name) || !rising {
                    return Err("a role twice, or a permission");
                }
                self.put_role(name, permissions, sum);
            }
            PortableAuth::User { name, password, roles, since } => {
                let known = roles.iter().all(|role| **role == *ROOT || self.roles.contains_key(role));
                if self.users.contains_key(&name) || !known || !roles.is_sorted() || since > self.revision {
                    return Err("a user twice, of the future, or with a role that does not exist");
                }
                self.put_user(name, User { password, roles, since }, sum);
            }
            PortableAuth::Token { hash, user, revision, ttl_ms, ends_ms } => {
                if self.tokens.contains_key(&hash) || !self.users.contains_key(&user) {
                    return Err("a token twice, or of no user");
                }
                self.put_token(hash, Token { user, revision, ttl_ms, ends_ms }, sum);
            }
        }
        Ok(())
    }

    /// The hash of the tables from nothing, for tests of the sum that is kept.
    #[cfg(test)]
    pub(in crate::machine) fn hashed(&self) -> Sum {
        let mut sum = Sum::default();
        sum.add(hash::auth_settings(self.enabled, self.revision));
        self.roles.iter().for_each(|(name, role)| sum.add(hash::role(name, &role.permissions)));
        self.users.iter().for_each(|(name, user)| sum.add(hash::user(name, user)));
        self.tokens.iter().for_each(|(hash, token)| sum.add(hash::token(hash, token)));
        sum
    }
}

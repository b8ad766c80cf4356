//! Users, roles, permissions and tokens, as commands change them and refusals speak of them.
//!
//! Invariants: no secret is here: a password is its salted hash, a token the hash of what its client
//! holds, and not even those are shown by `Debug`; one range type serves keys and permissions.

use super::{KeyRange, LeaseId};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// The role that may do everything, and the user that must have it while authentication is on.
pub const ROOT: &str = "root";

/// A salted hash, as text that names its method and cost.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasswordHash(String);

impl PasswordHash {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

/// The SHA-256 of what a client shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    #[must_use]
    pub fn new(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

impl Access {
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// What a role allows on one range of keys. Like any range, it reaches hidden keys only from below their prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Permission {
    pub range: KeyRange,
    pub access: Access,
}

/// Variants are only ever appended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuthCommand {
    Enable,
    Disable,
    /// Without a password nobody can authenticate as this user by one.
    UserAdd {
        name: String,
        password: Option<PasswordHash>,
    },
    UserDelete {
        name: String,
    },
    UserPassword {
        name: String,
        password: PasswordHash,
    },
    UserGrant {
        user: String,
        role: String,
    },
    UserRevoke {
        user: String,
        role: String,
    },
    RoleAdd {
        name: String,
    },
    RoleDelete {
        name: String,
    },
    RoleGrant {
        role: String,
        permission: Permission,
    },
    RoleRevoke {
        role: String,
        range: KeyRange,
    },
    /// The member that proposes this has checked the password that the user had since `since`.
    TokenIssue {
        hash: TokenHash,
        user: String,
        since: i64,
        ttl_ms: u64,
    },
    /// These tokens have been used: each has its whole TTL from now on.
    TokensRenew {
        hashes: Vec<TokenHash>,
    },
    /// Log time goes on where nothing else is written, and what has run out is removed.
    TokensExpire,
}

/// One right that a request needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Need {
    Read(KeyRange),
    Write(KeyRange),
    /// To attach keys to this lease, to renew or to end it: for what is attached to it goes with it.
    Lease(LeaseId),
    /// To grant a lease, and whatever else anybody may who is somebody.
    Grant,
    /// To change the store as a whole.
    Administer,
    /// To see all keys attached to this lease.
    LeaseKeys(LeaseId),
    /// To see this user.
    User(String),
    /// To see this role.
    Role(String),
}

impl Need {
    /// The word for it, as problems name it.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::Read(_) | Self::LeaseKeys(_) | Self::User(_) | Self::Role(_) => "read",
            Self::Write(_) | Self::Lease(_) | Self::Grant => "write",
            Self::Administer => "admin",
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |f: &mut fmt::Formatter<'_>, range: &KeyRange| match (range.single_key(), &range.end) {
            (Some(key), _) => write!(f, "{key:?}"),
            (None, Some(end)) => write!(f, "the keys from {:?} to before {end:?}", range.start),
            (None, None) => write!(f, "the keys from {:?} on", range.start),
        };
        match self {
            Self::Read(keys) => {
                f.write_str("to read ")?;
                range(f, keys)
            }
            Self::Write(keys) => {
                f.write_str("to write ")?;
                range(f, keys)
            }
            Self::Lease(id) => write!(f, "to write every key that is attached to lease {id:x}"),
            Self::LeaseKeys(id) => write!(f, "to read every key that is attached to lease {id:x}"),
            Self::Grant => f.write_str("to be a user"),
            Self::Administer => f.write_str("the role root"),
            Self::User(name) => write!(f, "the role root, or to be user {name}"),
            Self::Role(name) => write!(f, "the role root, or the role {name}"),
        }
    }
}

/// Why authentication or a change of users and roles was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum AuthRefusal {
    #[error("this needs a user: authenticate")]
    NobodyGiven,
    #[error("the token is unknown or has run out")]
    InvalidToken,
    #[error("the user's password, or the user, was changed after this request was authenticated")]
    OldRevision,
    #[error("authentication failed: there is no such user and password")]
    Failed,
    #[error("authentication is not enabled")]
    NotEnabled,
    #[error("there is no user root")]
    RootUserMissing,
    #[error("user root does not have the role root")]
    RootRoleMissing,
    #[error("while authentication is enabled there must be a user root with the role root")]
    RootIsNeeded,
    #[error("the user's name is empty")]
    UserNameEmpty,
    #[error("the role's name is empty")]
    RoleNameEmpty,
    #[error("user {0} exists already")]
    UserExists(String),
    #[error("there is no user {0}")]
    UserNotFound(String),
    #[error("role {0} exists already")]
    RoleExists(String),
    #[error("there is no role {0}")]
    RoleNotFound(String),
    #[error("the user does not have this role")]
    RoleNotGranted,
    #[error("the role does not have this permission")]
    PermissionNotGranted,
    #[error("a permission's range holds at least one key, and its first key is not empty")]
    BadPermission,
    #[error("{what} has more than {limit} {of}")]
    TooMany { what: String, of: String, limit: u64 },
}

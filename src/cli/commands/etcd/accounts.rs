//! The source's users and roles.
//!
//! No etcd gives out a password, or its hash: a user that is made here gets one that nobody knows, to be set by root;
//! only whom the import itself logs in as is known. Invariants: who and what was here before stays as it was; what
//! was made here is what is there at the cut-over, so that a right taken away there meanwhile is gone here, too.

use super::{Halt, Run, of_source, of_target, patiently};
use crate::cli::exit::CliError;
use crate::cli::output::Out;
use crate::cli::session::note;
use crate::client::etcd::pb::authpb::Permission;
use crate::client::etcd::{EtcdError, Login};
use crate::env::Entropy as _;
use crate::env::SystemEntropy;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

const ROOT: &str = "root";

#[derive(Debug, Default)]
pub(super) struct Accounts {
    /// Made here by this import.
    users: BTreeSet<String>,
    roles: BTreeSet<String>,
    /// Not wanted.
    without: bool,
    /// As whom the import has logged in there.
    login: Login,
    pub(super) told: Told,
}

/// What became of whom.
#[derive(Debug, Default, Serialize)]
pub(super) struct Told {
    pub(super) users: Vec<UserTold>,
    pub(super) roles: Vec<RoleTold>,
}

#[derive(Debug, Serialize)]
pub(super) struct UserTold {
    pub(super) name: String,
    pub(super) roles: Vec<String>,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Serialize)]
pub(super) struct RoleTold {
    pub(super) name: String,
    pub(super) permissions: usize,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    Copied,
    /// Copied, but for its password.
    NeedsPassword,
    /// It was here before, and is as there.
    Kept,
    /// It was here before, and has other rights than there.
    Differs,
}

impl Outcome {
    fn text(self, name: &str) -> String {
        match self {
            Self::Copied => "copied".to_owned(),
            Self::NeedsPassword => format!("needs a password: etcdctl user passwd {name}"),
            Self::Kept => "was here already, the same".to_owned(),
            Self::Differs => "was here already, with other rights: left as it was".to_owned(),
        }
    }
}

impl Accounts {
    /// A password counts as known only if it was taken there.
    pub(super) fn new(without: bool, login: Login, logged_in: bool) -> Self {
        let login = if logged_in { login } else { Login::Nobody };
        Self { without, login, ..Self::default() }
    }

    fn known_password(&self, user: &str) -> Option<String> {
        match &self.login {
            Login::Password { name, password } if name == user => Some(password.clone()),
            _ => None,
        }
    }

    /// Everybody, and who needs a password.
    pub(super) fn tell(self, out: &mut Out) -> Result<(), CliError> {
        let unset = self.told.needing_passwords();
        let rows = self.told.rows();
        if rows.is_empty() {
            return Ok(());
        }
        out.table(&["WHAT", "NAME", "HAS", "OUTCOME"], rows)?;
        if unset > 0 {
            note(&format!(
                "{unset} users have a password that nobody knows: set them, root's before authentication is turned on"
            ));
        }
        Ok(())
    }
}

impl Told {
    fn needing_passwords(&self) -> usize {
        self.users.iter().filter(|user| user.outcome == Outcome::NeedsPassword).count()
    }

    fn rows(self) -> Vec<Vec<String>> {
        let users = self.users.into_iter().map(|user| {
            let outcome = user.outcome.text(&user.name);
            vec!["user".to_owned(), user.name, user.roles.join(","), outcome]
        });
        let roles = self.roles.into_iter().map(|role| {
            let outcome = role.outcome.text(&role.name);
            vec!["role".to_owned(), role.name, format!("{} permissions", role.permissions), outcome]
        });
        users.chain(roles).collect()
    }
}

type Permissions = BTreeMap<(Vec<u8>, Vec<u8>), i32>;

fn sorted(permissions: &[Permission]) -> Permissions {
    permissions.iter().map(|one| ((one.key.to_vec(), one.range_end.to_vec()), one.perm_type)).collect()
}

fn permission(((key, range_end), perm_type): (&(Vec<u8>, Vec<u8>), &i32)) -> Permission {
    Permission { perm_type: *perm_type, key: key.clone().into(), range_end: range_end.clone().into() }
}

/// 256 bits that are told to nobody.
fn unknown() -> String {
    (0..4).map(|_| format!("{:016x}", SystemEntropy.next_u64())).collect()
}

macro_rules! there {
    ($self:ident . $($call:tt)+) => {
        patiently!($self.clock, $self.source, of_source, $self.source.$($call)+)
    };
}
macro_rules! here {
    ($self:ident . $($call:tt)+) => {
        patiently!($self.clock, $self.target, of_target, $self.target.$($call)+)?.map_err(of_target)
    };
}

impl Run {
    /// Makes here what is there; called again, it follows what has changed there since.
    pub(super) async fn copy_accounts(&mut self) -> Result<(), Halt> {
        if self.accounts.without {
            return Ok(());
        }
        let (users, roles) = match (there!(self.users())?, there!(self.roles())?) {
            (Ok(users), Ok(roles)) => (users, roles),
            (Err(EtcdError::Denied { .. }), _) | (_, Err(EtcdError::Denied { .. })) => {
                note("users and roles are not copied: reading them there takes the role root");
                self.accounts.told = Told::default();
                return Ok(());
            }
            (Err(error), _) | (_, Err(error)) => return Err(of_source(error).into()),
        };
        let mut told = Told::default();
        for name in &roles {
            if let Some(role) = self.copy_role(name).await? {
                told.roles.push(role);
            }
        }
        for name in &users {
            if let Some(user) = self.copy_user(name).await? {
                told.users.push(user);
            }
        }
        for gone in self.accounts.users.clone().iter().filter(|name| !users.contains(name)) {
            here!(self.delete_user(gone))?;
            self.accounts.users.remove(gone);
        }
        for gone in self.accounts.roles.clone().iter().filter(|name| !roles.contains(name)) {
            here!(self.delete_role(gone))?;
            self.accounts.roles.remove(gone);
        }
        self.accounts.told = told;
        Ok(())
    }

    async fn copy_role(&mut self, name: &str) -> Result<Option<RoleTold>, Halt> {
        let Some(wanted) = there!(self.permissions(name))?.map_err(of_source)? else { return Ok(None) };
        if here!(self.add_role(name))? {
            self.accounts.roles.insert(name.to_owned());
        }
        // `root` may do everything, whatever is granted to it.
        let wanted = if name == ROOT { Permissions::new() } else { sorted(&wanted) };
        let had = if name == ROOT { Vec::new() } else { here!(self.permissions(name))?.unwrap_or_default() };
        let had = sorted(&had);
        let told = |outcome| Ok(Some(RoleTold { name: name.to_owned(), permissions: wanted.len(), outcome }));
        if !self.accounts.roles.contains(name) {
            return told(if had == wanted { Outcome::Kept } else { Outcome::Differs });
        }
        for gone in had.iter().filter(|(range, _)| !wanted.contains_key(*range)) {
            here!(self.forbid(name, permission(gone)))?;
        }
        for given in wanted.iter().filter(|(range, access)| had.get(*range) != Some(*access)) {
            here!(self.permit(name, permission(given)))?;
        }
        told(Outcome::Copied)
    }

    async fn copy_user(&mut self, name: &str) -> Result<Option<UserTold>, Halt> {
        let Some(wanted) = there!(self.roles_of(name))?.map_err(of_source)? else { return Ok(None) };
        let password = self.accounts.known_password(name);
        let outcome = if password.is_some() { Outcome::Copied } else { Outcome::NeedsPassword };
        let password = password.unwrap_or_else(unknown);
        if here!(self.add_user(name, password.clone()))? {
            self.accounts.users.insert(name.to_owned());
        }
        let had = here!(self.roles_of(name))?.unwrap_or_default();
        let told = |outcome, roles| Ok(Some(UserTold { name: name.to_owned(), roles, outcome }));
        if !self.accounts.users.contains(name) {
            let same = had.iter().collect::<BTreeSet<_>>() == wanted.iter().collect::<BTreeSet<_>>();
            return told(if same { Outcome::Kept } else { Outcome::Differs }, had);
        }
        for gone in had.iter().filter(|role| !wanted.contains(role)) {
            here!(self.take_role(name, gone))?;
        }
        for given in wanted.iter().filter(|role| !had.contains(role)) {
            here!(self.give_role(name, given))?;
        }
        told(outcome, wanted)
    }
}

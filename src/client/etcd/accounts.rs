//! Users and roles of an etcd, or of a Tenure member.

use super::pb::authpb::{Permission, UserAddOptions};
use super::pb::etcdserverpb as etcd;
use super::{Etcd, EtcdError};

/// Whether it was made, or was there before.
fn made<T>(answer: Result<T, EtcdError>) -> Result<bool, EtcdError> {
    match answer {
        Err(EtcdError::Refused { message, .. }) if message.contains("already exists") => Ok(false),
        answer => answer.map(|_| true),
    }
}

/// Done, also if there was nothing to do.
fn done<T>(answer: Result<T, EtcdError>, nothing: &str) -> Result<(), EtcdError> {
    match answer {
        Err(EtcdError::Refused { message, .. }) if message.contains(nothing) => Ok(()),
        answer => answer.map(drop),
    }
}

macro_rules! ask {
    ($self:ident . $method:ident($request:expr)) => {
        $self.answered(client!($self, auth_client::AuthClient).$method($request)).await
    };
}

impl Etcd {
    pub async fn users(&self) -> Result<Vec<String>, EtcdError> {
        Ok(ask!(self.user_list(etcd::AuthUserListRequest {}))?.users)
    }

    pub async fn roles(&self) -> Result<Vec<String>, EtcdError> {
        Ok(ask!(self.role_list(etcd::AuthRoleListRequest {}))?.roles)
    }

    /// `None` if there is no such user (any more).
    pub async fn roles_of(&self, user: &str) -> Result<Option<Vec<String>>, EtcdError> {
        match ask!(self.user_get(etcd::AuthUserGetRequest { name: user.to_owned() })) {
            Err(EtcdError::Refused { message, .. }) if message.contains("user name not found") => Ok(None),
            answer => answer.map(|user| Some(user.roles)),
        }
    }

    /// `None` if there is no such role (any more).
    pub async fn permissions(&self, role: &str) -> Result<Option<Vec<Permission>>, EtcdError> {
        match ask!(self.role_get(etcd::AuthRoleGetRequest { role: role.to_owned() })) {
            Err(EtcdError::Refused { message, .. }) if message.contains("role name not found") => Ok(None),
            answer => answer.map(|role| Some(role.perm)),
        }
    }

    /// False if there was one of this name.
    pub async fn add_user(&self, name: &str, password: String) -> Result<bool, EtcdError> {
        let options = Some(UserAddOptions { no_password: false });
        let request = etcd::AuthUserAddRequest { name: name.to_owned(), password, options, ..Default::default() };
        made(ask!(self.user_add(request)))
    }

    pub async fn delete_user(&self, name: &str) -> Result<(), EtcdError> {
        let request = etcd::AuthUserDeleteRequest { name: name.to_owned() };
        done(ask!(self.user_delete(request)), "user name not found")
    }

    pub async fn give_role(&self, user: &str, role: &str) -> Result<(), EtcdError> {
        let request = etcd::AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
        ask!(self.user_grant_role(request)).map(drop)
    }

    pub async fn take_role(&self, user: &str, role: &str) -> Result<(), EtcdError> {
        let request = etcd::AuthUserRevokeRoleRequest { name: user.to_owned(), role: role.to_owned() };
        done(ask!(self.user_revoke_role(request)), "role is not granted")
    }

    /// False if there was one of this name.
    pub async fn add_role(&self, name: &str) -> Result<bool, EtcdError> {
        made(ask!(self.role_add(etcd::AuthRoleAddRequest { name: name.to_owned() })))
    }

    pub async fn delete_role(&self, name: &str) -> Result<(), EtcdError> {
        let request = etcd::AuthRoleDeleteRequest { role: name.to_owned() };
        done(ask!(self.role_delete(request)), "role name not found")
    }

    pub async fn permit(&self, role: &str, permission: Permission) -> Result<(), EtcdError> {
        let request = etcd::AuthRoleGrantPermissionRequest { name: role.to_owned(), perm: Some(permission) };
        ask!(self.role_grant_permission(request)).map(drop)
    }

    pub async fn forbid(&self, role: &str, permission: Permission) -> Result<(), EtcdError> {
        let Permission { key, range_end, .. } = permission;
        let request = etcd::AuthRoleRevokePermissionRequest { role: role.to_owned(), key, range_end };
        done(ask!(self.role_revoke_permission(request)), "permission is not granted")
    }
}

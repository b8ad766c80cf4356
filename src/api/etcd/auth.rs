//! etcd's `Auth`: users, roles, their permissions, and tokens.
//!
//! Invariant: what is checked here is only whether a request makes sense; who may do what is decided
//! below. A password goes from the request into `service` and nowhere else.

use super::Door;
use super::convert::{header, range_of};
use super::errors::{INVALID_AUTH_MGMT, PERMISSION_NOT_GIVEN, known};
use super::pb::authpb;
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::auth_server::Auth;
use crate::model::{Access, KeyRange, Permission};
use crate::service::Password;
use authpb::permission::Type;
use bytes::Bytes;
use tonic::{Request, Response, Status};

/// A call that is one method of the service's, and answers with no more than a header.
macro_rules! changes {
    (others { $($other:tt)* }
     $($method:ident $request:ident $response:ident |$service:ident, $context:ident, $asked:ident| $call:expr;)+) => {
        #[tonic::async_trait]
        impl Auth for Door {
            $(async fn $method(&self, request: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                let $context = &self.context(&request)?;
                let ($service, $asked) = (self.service(), request.into_inner());
                let answer = $call.await.map_err(|failure| self.failed(&failure))?;
                Ok(Response::new(pb::$response { header: Some(header(&answer.header)) }))
            })+

            $($other)*
        }
    };
}

changes! {
    others {
        async fn auth_status(
            &self,
            request: Request<pb::AuthStatusRequest>,
        ) -> Result<Response<pb::AuthStatusResponse>, Status> {
            let context = self.context(&request)?;
            let answer = self.service().auth_status(&context).await.map_err(|failure| self.failed(&failure))?;
            Ok(Response::new(pb::AuthStatusResponse {
                header: Some(header(&answer.header)),
                enabled: answer.body.enabled,
                auth_revision: answer.body.auth_revision.unsigned_abs(),
            }))
        }

        async fn authenticate(
            &self,
            request: Request<pb::AuthenticateRequest>,
        ) -> Result<Response<pb::AuthenticateResponse>, Status> {
            let context = self.context(&request)?;
            let pb::AuthenticateRequest { name, password } = request.into_inner();
            let answer = self.service().authenticate(&context, name, Password::new(password)).await;
            let answer = answer.map_err(|failure| self.failed(&failure))?;
            let header = Some(header(&answer.header));
            Ok(Response::new(pb::AuthenticateResponse { header, token: answer.body.into_text() }))
        }

        async fn user_get(
            &self,
            request: Request<pb::AuthUserGetRequest>,
        ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
            let context = self.context(&request)?;
            let name = request.into_inner().name;
            let answer = self.service().user(&context, &name).await.map_err(|failure| self.failed(&failure))?;
            Ok(Response::new(pb::AuthUserGetResponse { header: Some(header(&answer.header)), roles: answer.body }))
        }

        async fn user_list(
            &self,
            request: Request<pb::AuthUserListRequest>,
        ) -> Result<Response<pb::AuthUserListResponse>, Status> {
            let context = self.context(&request)?;
            let answer = self.service().users(&context).await.map_err(|failure| self.failed(&failure))?;
            Ok(Response::new(pb::AuthUserListResponse { header: Some(header(&answer.header)), users: answer.body }))
        }

        async fn role_get(
            &self,
            request: Request<pb::AuthRoleGetRequest>,
        ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
            let context = self.context(&request)?;
            let role = request.into_inner().role;
            let answer = self.service().role(&context, &role).await.map_err(|failure| self.failed(&failure))?;
            // As etcd shows root: everything from the empty key on.
            let everything = || vec![Permission { range: KeyRange::all(), access: Access::ReadWrite }];
            let permissions = answer.body.unwrap_or_else(everything);
            let perm = permissions.into_iter().map(permission).collect();
            Ok(Response::new(pb::AuthRoleGetResponse { header: Some(header(&answer.header)), perm }))
        }

        async fn role_list(
            &self,
            request: Request<pb::AuthRoleListRequest>,
        ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
            let context = self.context(&request)?;
            let answer = self.service().roles(&context).await.map_err(|failure| self.failed(&failure))?;
            Ok(Response::new(pb::AuthRoleListResponse { header: Some(header(&answer.header)), roles: answer.body }))
        }
    }
    auth_enable AuthEnableRequest AuthEnableResponse |service, context, _asked| service.auth_enable(context);
    auth_disable AuthDisableRequest AuthDisableResponse |service, context, _asked| service.auth_disable(context);
    user_add AuthUserAddRequest AuthUserAddResponse |service, context, asked| {
        let has_none = asked.options.is_some_and(|options| options.no_password);
        service.user_add(context, asked.name, (!has_none).then(|| Password::new(asked.password)))
    };
    user_delete AuthUserDeleteRequest AuthUserDeleteResponse |service, context, asked|
        service.user_delete(context, asked.name);
    user_change_password AuthUserChangePasswordRequest AuthUserChangePasswordResponse |service, context, asked|
        service.user_password(context, asked.name, Password::new(asked.password));
    user_grant_role AuthUserGrantRoleRequest AuthUserGrantRoleResponse |service, context, asked|
        service.user_grant(context, asked.user, asked.role);
    user_revoke_role AuthUserRevokeRoleRequest AuthUserRevokeRoleResponse |service, context, asked|
        service.user_revoke(context, asked.name, asked.role);
    role_add AuthRoleAddRequest AuthRoleAddResponse |service, context, asked| service.role_add(context, asked.name);
    role_delete AuthRoleDeleteRequest AuthRoleDeleteResponse |service, context, asked|
        service.role_delete(context, asked.role);
    role_grant_permission AuthRoleGrantPermissionRequest AuthRoleGrantPermissionResponse |service, context, asked|
        service.role_grant(context, asked.name, permission_of(asked.perm)?);
    role_revoke_permission AuthRoleRevokePermissionRequest AuthRoleRevokePermissionResponse |service, context, asked|
        service.role_revoke(context, asked.role, range_of(asked.key, asked.range_end));
}

fn permission_of(given: Option<authpb::Permission>) -> Result<Permission, Status> {
    let authpb::Permission { perm_type, key, range_end } = given.ok_or_else(|| known(PERMISSION_NOT_GIVEN))?;
    let access = match Type::try_from(perm_type).map_err(|_| known(INVALID_AUTH_MGMT))? {
        Type::Read => Access::Read,
        Type::Write => Access::Write,
        Type::Readwrite => Access::ReadWrite,
    };
    Ok(Permission { range: range_of(key, range_end), access })
}

fn permission(Permission { range, access }: Permission) -> authpb::Permission {
    let perm_type = i32::from(match access {
        Access::Read => Type::Read,
        Access::Write => Type::Write,
        Access::ReadWrite => Type::Readwrite,
    });
    let range_end = match (range.single_key().is_some(), range.end) {
        (true, _) => Bytes::new(),
        (false, Some(end)) => end,
        (false, None) => Bytes::from_static(b"\0"),
    };
    authpb::Permission { perm_type, key: range.start, range_end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_come_back_as_they_were_given() {
        for (key, range_end) in [("a", ""), ("a", "b"), ("a", "\0"), ("\0", "\0")] {
            let given = authpb::Permission { perm_type: 2, key: key.into(), range_end: range_end.into() };
            assert_eq!(permission(permission_of(Some(given.clone())).unwrap()), given);
        }
        assert_eq!(permission_of(None).unwrap_err().message(), "etcdserver: permission not given");
        let odd = authpb::Permission { perm_type: 9, ..Default::default() };
        assert_eq!(permission_of(Some(odd)).unwrap_err().message(), "etcdserver: invalid auth management");
    }
}

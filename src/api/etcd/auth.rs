//! etcd's `Auth`, as far as it goes: there are no users yet, and every call says so in etcd's words.
//!
//! Invariant: nobody is told that something was protected which is not.

use super::Door;
use super::convert::header;
use super::errors::{AUTH_NOT_ENABLED, ROOT_USER_MISSING, known};
use super::pb::etcdserverpb as pb;
use super::pb::etcdserverpb::auth_server::Auth;
use tonic::{Request, Response, Status};

const NO_USERS: &str = "etcdserver: this release has no users and roles";

macro_rules! refused {
    ($($method:ident $request:ident $response:ident $status:expr),+ $(,)?) => {
        #[tonic::async_trait]
        impl Auth for Door {
            async fn auth_status(
                &self,
                request: Request<pb::AuthStatusRequest>,
            ) -> Result<Response<pb::AuthStatusResponse>, Status> {
                self.context(&request)?;
                let header = Some(header(&self.service().header()));
                Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
            }

            async fn auth_disable(
                &self,
                request: Request<pb::AuthDisableRequest>,
            ) -> Result<Response<pb::AuthDisableResponse>, Status> {
                // It is off.
                self.context(&request)?;
                Ok(Response::new(pb::AuthDisableResponse { header: Some(header(&self.service().header())) }))
            }

            async fn user_list(
                &self,
                request: Request<pb::AuthUserListRequest>,
            ) -> Result<Response<pb::AuthUserListResponse>, Status> {
                self.context(&request)?;
                let header = Some(header(&self.service().header()));
                Ok(Response::new(pb::AuthUserListResponse { header, users: Vec::new() }))
            }

            async fn role_list(
                &self,
                request: Request<pb::AuthRoleListRequest>,
            ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
                self.context(&request)?;
                let header = Some(header(&self.service().header()));
                Ok(Response::new(pb::AuthRoleListResponse { header, roles: Vec::new() }))
            }

            $(async fn $method(&self, request: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                self.context(&request)?;
                Err($status)
            })+
        }
    };
}

refused! {
    auth_enable AuthEnableRequest AuthEnableResponse known(ROOT_USER_MISSING),
    authenticate AuthenticateRequest AuthenticateResponse known(AUTH_NOT_ENABLED),
    user_add AuthUserAddRequest AuthUserAddResponse Status::unimplemented(NO_USERS),
    user_get AuthUserGetRequest AuthUserGetResponse known(super::errors::USER_NOT_FOUND),
    user_delete AuthUserDeleteRequest AuthUserDeleteResponse known(super::errors::USER_NOT_FOUND),
    user_change_password AuthUserChangePasswordRequest AuthUserChangePasswordResponse
        known(super::errors::USER_NOT_FOUND),
    user_grant_role AuthUserGrantRoleRequest AuthUserGrantRoleResponse known(super::errors::USER_NOT_FOUND),
    user_revoke_role AuthUserRevokeRoleRequest AuthUserRevokeRoleResponse known(super::errors::USER_NOT_FOUND),
    role_add AuthRoleAddRequest AuthRoleAddResponse Status::unimplemented(NO_USERS),
    role_get AuthRoleGetRequest AuthRoleGetResponse known(super::errors::ROLE_NOT_FOUND),
    role_delete AuthRoleDeleteRequest AuthRoleDeleteResponse known(super::errors::ROLE_NOT_FOUND),
    role_grant_permission AuthRoleGrantPermissionRequest AuthRoleGrantPermissionResponse
        known(super::errors::ROLE_NOT_FOUND),
    role_revoke_permission AuthRoleRevokePermissionRequest AuthRoleRevokePermissionResponse
        known(super::errors::ROLE_NOT_FOUND),
}

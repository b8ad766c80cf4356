//! How a client says who it is: with what a Tenure member takes with each request, or as an etcd has it, by
//! exchanging name and password for a token first.
//!
//! Invariant: neither passwords nor tokens are shown, by `Debug` or in errors.

use super::pb::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient};
use super::{Etcd, EtcdError};
use crate::client::Credentials;
use std::fmt;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

#[derive(Clone, Default)]
pub enum Login {
    #[default]
    Nobody,
    /// With each request; only a Tenure member understands it.
    Shown(Credentials),
    Password {
        name: String,
        password: String,
    },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Shown(_) => "Shown(…)",
            Self::Password { .. } => "Password(…)",
        })
    }
}

/// Puts what says who asks into each request.
#[derive(Debug, Clone, Default)]
pub(super) struct Signed(Option<MetadataValue<Ascii>>);

impl Signed {
    fn with(text: &str) -> Self {
        // What came as a header fits one.
        Self(text.parse::<MetadataValue<Ascii>>().ok().map(|mut value| {
            value.set_sensitive(true);
            value
        }))
    }
}

impl Interceptor for Signed {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl Login {
    pub(super) fn is_password(&self) -> bool {
        matches!(self, Self::Password { .. })
    }

    /// What is said before anybody has logged in.
    pub(super) fn shown(&self) -> Signed {
        match self {
            Self::Shown(credentials) => credentials.authorization().map_or_else(Signed::default, Signed::with),
            Self::Nobody | Self::Password { .. } => Signed::default(),
        }
    }
}

/// Of a token that counted before.
pub(super) fn has_ended(message: &str) -> bool {
    message.contains("invalid auth token") || message.contains("revision of auth store is old")
}

pub(super) fn is_refused(message: &str) -> bool {
    message.contains("user name is empty") || message.contains("authentication failed")
}

impl Etcd {
    /// Whether a name and password were exchanged for a token.
    #[must_use]
    pub fn is_logged_in(&self) -> bool {
        self.login.is_password() && self.signed.0.is_some()
    }

    /// Gets a token for the name and password, where these are asked for.
    pub(super) async fn log_in(&mut self) -> Result<(), EtcdError> {
        let Login::Password { name, password } = &self.login else { return Ok(()) };
        let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let mut client = AuthClient::new(self.channel());
        self.signed = match self.answered(client.authenticate(request)).await {
            Ok(answer) => Signed::with(&answer.token),
            // Whoever comes may do everything there.
            Err(EtcdError::Refused { message, .. }) if message.contains("authentication is not enabled") => {
                Signed::default()
            }
            Err(error) => return Err(error),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let login = Login::Password { name: "root".into(), password: "canary".into() };
        let shown = Login::Shown(Credentials::token("canary").unwrap());
        assert!(!format!("{login:?} {shown:?} {:?}", Signed::with("canary")).contains("canary"));
        assert!(Signed::with("canary").call(Request::new(())).unwrap().metadata().contains_key("authorization"));
        assert!(Signed::default().call(Request::new(())).unwrap().metadata().is_empty());
    }
}

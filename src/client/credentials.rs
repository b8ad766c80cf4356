//! Who a request says it is from.
//!
//! Invariant: what is secret leaves only with a request: `Debug` does not show it, and a printed `curl` line asks
//! for it or names the variable that holds it.

use super::{Error, quote};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::HeaderValue;
use std::fmt;

#[derive(Clone, Default)]
pub struct Credentials {
    user: Option<String>,
    header: Option<HeaderValue>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (&self.user, &self.header) {
            (None, None) => "Nobody",
            (None, Some(_)) => "Token(…)",
            (Some(_), _) => "Password(…)",
        })
    }
}

impl Credentials {
    /// A user by name only: enough to print a request, not to send it.
    #[must_use]
    pub fn named(user: impl Into<String>) -> Self {
        Self { user: Some(user.into()), header: None }
    }

    /// # Errors
    /// HTTP has no way to say such a name.
    pub fn password(user: &str, password: &str) -> Result<Self, Error> {
        if user.is_empty() || user.contains(':') {
            return Err(Error::Usage("a user's name is not empty and has no colon".to_owned()));
        }
        let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
        let header = secret(&format!("Basic {encoded}"), "a password")?;
        Ok(Self { user: Some(user.to_owned()), header: Some(header) })
    }

    /// # Errors
    /// What is no token.
    pub fn token(token: &str) -> Result<Self, Error> {
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Usage("a token is not empty and has only visible ASCII characters".to_owned()));
        }
        Ok(Self { user: None, header: Some(secret(&format!("Bearer {token}"), "a token")?) })
    }

    pub(super) fn header(&self) -> Option<&HeaderValue> {
        self.header.as_ref()
    }

    /// As it stands after `Authorization:`, for those who write their own requests.
    #[must_use]
    pub fn authorization(&self) -> Option<&str> {
        self.header.as_ref().and_then(|header| header.to_str().ok())
    }

    /// Words of a `curl` line.
    pub(super) fn curl_words(&self) -> String {
        match (&self.user, &self.header) {
            // curl asks for the password.
            (Some(user), _) => format!(" -u {}", quote(user.as_bytes())),
            (None, Some(_)) => " -H \"Authorization: Bearer $TENURE_TOKEN\"".to_owned(),
            (None, None) => String::new(),
        }
    }
}

fn secret(text: &str, what: &str) -> Result<HeaderValue, Error> {
    // The error of the header's own would show its text.
    let mut header = HeaderValue::from_str(text).map_err(|_| Error::Usage(format!("{what} that cannot be sent")))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_and_what_is_shown() {
        let ann = Credentials::password("ann", "p:w").unwrap();
        assert_eq!(ann.authorization(), Some("Basic YW5uOnA6dw=="));
        assert_eq!((format!("{ann:?}").as_str(), ann.curl_words().as_str()), ("Password(…)", " -u ann"));
        let token = Credentials::token("abc.1").unwrap();
        assert_eq!(token.authorization(), Some("Bearer abc.1"));
        assert!(!format!("{token:?}{:?}{}", token.header(), token.curl_words()).contains("abc"));
        let nobody = Credentials::default();
        assert_eq!((nobody.authorization(), nobody.curl_words().as_str()), (None, ""));
        assert_eq!(Credentials::named("a b").curl_words(), " -u 'a b'");
        assert_eq!(Credentials::named("a b").authorization(), None);
    }

    #[test]
    fn what_cannot_be_said_is_refused_without_showing_it() {
        for wrong in [Credentials::password("", "canary"), Credentials::password("a:b", "canary")] {
            assert!(!wrong.unwrap_err().to_string().contains("canary"));
        }
        for wrong in ["", "canary token", "canary\n", "canäry"] {
            assert!(!Credentials::token(wrong).unwrap_err().to_string().contains("can"));
        }
        assert!(Credentials::password("ann", "ü\n\0").is_ok());
    }
}

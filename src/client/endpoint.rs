//! Where a member is: `HOST[:PORT]` or `http://HOST[:PORT]`.

use super::Error;
use std::fmt::{self, Display};

const DEFAULT_PORT: u16 = 2379;

/// A normalised base URL, without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    base: String,
    authority: String,
}

impl Endpoint {
    pub fn parse(text: &str) -> Result<Self, Error> {
        // What stands before an @ may be a password.
        let shown = text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("…@{host}"));
        let wrong = |why: &str| Error::Usage(format!("endpoint {shown:?}: {why}"));
        if text.starts_with("https://") {
            return Err(wrong("this build does not speak TLS; use http://"));
        }
        if text.contains('@') {
            return Err(wrong("a user is not named in an endpoint, but by --user"));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        if rest.is_empty() || rest.contains(['/', '?', '#']) || rest.contains(char::is_whitespace) {
            return Err(wrong("expected HOST:PORT or http://HOST:PORT"));
        }
        let url = reqwest::Url::parse(&format!("http://{rest}")).map_err(|error| wrong(&error.to_string()))?;
        let host = url.host_str().ok_or_else(|| wrong("there is no host"))?;
        // The URL parser drops `:80` as the scheme's default, so ask the text whether a port was given.
        let named_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = if named_port { url.port_or_known_default().unwrap_or(DEFAULT_PORT) } else { DEFAULT_PORT };
        let authority = format!("{host}:{port}");
        Ok(Self { base: format!("http://{authority}"), authority })
    }

    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, base) in [
            ("127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("localhost", "http://localhost:2379"),
            ("http://db1:80/", "http://db1:80"),
            ("[::1]:2479", "http://[::1]:2479"),
            ("[::1]", "http://[::1]:2379"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().base(), base);
        }
        for text in ["", "https://x", "http://u@h", "h/path", "h:99999", "a b"] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
        let wrong = Endpoint::parse("http://ann:canary@h:1").unwrap_err().to_string();
        assert!(wrong.contains("--user") && !wrong.contains("canary"), "{wrong}");
    }
}

//! A request as data: it can be sent, sent again, or printed.

use super::key::{encode_key_path, encode_query_value};
use bytes::Bytes;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
}

impl Method {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// What is sent, and where it came from: a printed line names the source instead of the content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Body {
    #[default]
    None,
    Inline(Bytes),
    /// Read when the request is sent.
    File(PathBuf),
    Stdin,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    /// Percent-encoded, from the slash on.
    pub path: String,
    /// Names are plain, values are encoded.
    query: Vec<(&'static str, Option<String>)>,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
    /// A POST that only asks.
    pub read_only: bool,
    /// Blocks on the server at most this long, on top of the timeout.
    pub wait: Duration,
    /// Lasts as long as there is data: no deadline for the whole, only for silence.
    pub streams: bool,
    /// A printed line stores the answer here.
    pub save_as: Option<PathBuf>,
}

impl Request {
    #[must_use]
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Body::None,
            read_only: method == Method::Get,
            wait: Duration::ZERO,
            streams: false,
            save_as: None,
        }
    }

    /// `root` and the key below it, such as `/v1/kv/` and `app/db`.
    #[must_use]
    pub fn on_key(method: Method, root: &str, key: &[u8]) -> Self {
        let (rest, base64url) = encode_key_path(key);
        let request = Self::new(method, format!("{root}{rest}"));
        if base64url { request.with("key_encoding", "base64url") } else { request }
    }

    #[must_use]
    pub fn with(self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        let value = encode_query_value(value.as_ref());
        self.push(name, Some(value))
    }

    /// As `with`, beside values of the same name.
    #[must_use]
    pub fn also(mut self, name: &'static str, value: impl AsRef<[u8]>) -> Self {
        self.query.push((name, Some(encode_query_value(value.as_ref()))));
        self
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.query.iter().any(|(known, _)| *known == name)
    }

    /// Adds the parameter only if there is a value.
    #[must_use]
    pub fn maybe(self, name: &'static str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.with(name, value.to_string()),
            None => self,
        }
    }

    /// A bare parameter: true.
    #[must_use]
    pub fn flag(self, name: &'static str, on: bool) -> Self {
        if on { self.push(name, None) } else { self }
    }

    fn push(mut self, name: &'static str, value: Option<String>) -> Self {
        self.query.retain(|(known, _)| *known != name);
        self.query.push((name, value));
        self
    }

    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    #[must_use]
    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    #[must_use]
    pub fn waiting(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    #[must_use]
    pub fn streaming(mut self) -> Self {
        self.streams = true;
        self
    }

    /// Path and query.
    #[must_use]
    pub fn target(&self) -> String {
        let mut target = self.path.clone();
        for (index, (name, value)) in self.query.iter().enumerate() {
            target.push(if index == 0 { '?' } else { '&' });
            target.push_str(name);
            if let Some(value) = value {
                target.push('=');
                target.push_str(value);
            }
        }
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let list =
            Request::new(Method::Get, "/v1/kv").with("prefix", "app/ü&").flag("keys_only", true).flag("x", false);
        assert_eq!(list.target(), "/v1/kv?prefix=app/%C3%BC%26&keys_only");
        let key = Request::on_key(Method::Put, "/v1/kv/", b"a/../b").maybe("cas", Some(3)).maybe("ttl", None::<u8>);
        assert_eq!(key.target(), "/v1/kv/YS8uLi9i?key_encoding=base64url&cas=3");
        assert!(!key.read_only && list.read_only);
    }

    #[test]
    fn a_parameter_given_again_replaces_the_first() {
        let page = Request::new(Method::Get, "/v1/kv").with("cursor", "a").with("cursor", "b");
        assert_eq!(page.target(), "/v1/kv?cursor=b");
    }
}

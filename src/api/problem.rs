//! RFC 9457 problem documents.

use super::body::Body;
use super::json::{Writer, pretty};
use super::status::{Applied, Code, verdict};
use crate::model::{Failure, Rejection, Revision};
use crate::service::Header;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use std::borrow::Cow;

/// Why a request failed, in the words of the API. Boxed: failures are rare and answers are not.
#[derive(Debug)]
pub(crate) struct Problem(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: Code,
    detail: Option<String>,
    hint: Option<Cow<'static, str>>,
    applied: Option<Applied>,
    members: Writer,
    header: Option<Header>,
    allow: Option<String>,
    retry_after_s: Option<u64>,
}

/// What the dispatcher adds to every problem.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Around<'a> {
    pub(crate) mutates: bool,
    pub(crate) revision: Option<Revision>,
    pub(crate) request_id: &'a str,
    pub(crate) pretty: bool,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        let detail = Some(detail.into());
        let inner = Inner {
            code,
            detail,
            hint: None,
            applied: None,
            members: Writer::default(),
            header: None,
            allow: None,
            retry_after_s: None,
        };
        Self(Box::new(inner))
    }

    /// Names the parameter (query, header or JSON member) that is at fault.
    pub(crate) fn parameter(name: &str, detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidParameter, detail).text("parameter", name)
    }

    pub(crate) fn body(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidBody, detail)
    }

    /// A parameter of the contract that this version refuses rather than ignores.
    pub(crate) fn not_yet(name: &str) -> Self {
        Self::parameter(name, format!("`{name}` is not available in this version yet"))
    }

    pub(crate) fn text(mut self, name: &str, value: &str) -> Self {
        self.0.members.text(name, value);
        self
    }

    pub(crate) fn count(mut self, name: &str, value: u64) -> Self {
        self.0.members.count(name, value);
        self
    }

    /// A member whose value is JSON already.
    pub(crate) fn raw(mut self, name: &str, json: &[u8]) -> Self {
        self.0.members.raw(name, json);
        self
    }

    pub(crate) fn members(mut self, members: &Writer) -> Self {
        self.0.members.members(members);
        self
    }

    pub(crate) fn key(mut self, key: &[u8]) -> Self {
        self.0.members.key(key);
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    pub(crate) fn applied(mut self, applied: Applied) -> Self {
        self.0.applied = Some(applied);
        self
    }

    pub(crate) fn header(mut self, header: Header) -> Self {
        self.0.header = Some(header);
        self
    }

    pub(crate) fn allow(mut self, methods: &[&'static str]) -> Self {
        self.0.allow = Some(methods.join(", "));
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_s = Some(seconds);
        self
    }

    pub(crate) fn code(&self) -> Code {
        self.0.code
    }

    /// Who answered, if the failure came after an answer of the service.
    pub(crate) fn take_header(&mut self) -> Option<Header> {
        self.0.header.take()
    }

    /// The document, without a final newline.
    pub(crate) fn to_json(&self, around: Around<'_>) -> Vec<u8> {
        let inner = &*self.0;
        let facts = inner.code.facts();
        let mut json = Writer::with_capacity(256);
        json.open();
        json.text("type", &format!("urn:tenure:problem:{}", facts.slug));
        json.text("code", facts.slug);
        json.text("title", facts.title);
        json.int("status", i64::from(facts.status));
        if let Some(detail) = &inner.detail {
            json.text("detail", detail);
        }
        if let Some(hint) = inner.hint.as_deref().or(facts.hint) {
            json.text("hint", hint);
        }
        if around.mutates {
            let applied = match inner.applied {
                Some(Applied::Unknown) => "unknown",
                Some(Applied::No) | None => "no",
            };
            json.text("applied", applied);
        }
        json.bool("retryable", facts.retryable);
        if let Some(revision) = around.revision {
            json.int("revision", revision);
        }
        if !around.request_id.is_empty() {
            json.text("request_id", around.request_id);
        }
        if inner.members.len() > 0 {
            json.members(&inner.members);
        }
        json.close();
        if around.pretty { pretty(&json.into_bytes()) } else { json.into_bytes() }
    }

    /// The members by which a line of a stream tells it, for a surrounding object.
    pub(crate) fn write_summary(&self, json: &mut Writer) {
        let inner = &*self.0;
        let facts = inner.code.facts();
        json.text("code", facts.slug);
        json.int("status", i64::from(facts.status));
        json.text("detail", inner.detail.as_deref().unwrap_or(facts.title));
        json.bool("retryable", facts.retryable);
        if inner.members.len() > 0 {
            json.members(&inner.members);
        }
    }

    pub(crate) fn into_response(self, around: Around<'_>) -> Response<Body> {
        let mut text = self.to_json(around);
        text.push(b'\n');
        let facts = self.0.code.facts();
        let mut response = Response::new(Body::full(text));
        *response.status_mut() = StatusCode::from_u16(facts.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // A write that was not proposed in time may be sent again at once.
        if facts.retryable && !(around.mutates && self.0.code == Code::Timeout) {
            headers.insert(RETRY_AFTER, self.0.retry_after_s.unwrap_or(1).into());
        }
        if self.0.code == Code::Unauthenticated {
            // Not Basic, which would make browsers ask for a password.
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = self.0.allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
            headers.insert(ALLOW, allow);
        }
        response
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let verdict = verdict(&failure);
        let detail = match &failure {
            // What is wrong inside is for the log, not for whoever sent the request.
            Failure::Fault(_) => "this member has failed".to_owned(),
            Failure::Rejected(_) | Failure::Unavailable { .. } => failure.to_string(),
        };
        let mut problem = Self::new(verdict.code, detail).applied(verdict.applied);
        problem.0.members = verdict.members;
        problem
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        Failure::from(rejection).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(problem: &Problem, mutates: bool) -> String {
        let around = Around { mutates, revision: Some(57), request_id: "01K", pretty: false };
        String::from_utf8(problem.to_json(around)).unwrap()
    }

    #[test]
    fn a_problem_reads_as_documented() {
        let problem = Problem::new(Code::PreconditionFailed, "a is at revision 42, If-Match asked for 12")
            .raw("current", br#"{"key":"a"}"#);
        let expected = concat!(
            r#"{"type":"urn:tenure:problem:precondition-failed","code":"precondition-failed","#,
            r#""title":"Precondition failed","status":412,"detail":"a is at revision 42, If-Match asked for 12","#,
            r#""hint":"read the key again and retry with the new ETag","applied":"no","retryable":false,"#,
            r#""revision":57,"request_id":"01K","current":{"key":"a"}}"#
        );
        assert_eq!(json(&problem, true), expected);
    }

    #[test]
    fn reads_do_not_say_whether_they_were_applied() {
        let problem = Problem::from(Failure::from(Rejection::Compacted { requested: 3, compacted: 9, current: 57 }));
        let text = json(&problem, false);
        assert!(!text.contains("applied"), "{text}");
        assert!(text.contains(r#""compacted_revision":9"#), "{text}");
    }

    #[test]
    fn a_fault_does_not_tell_its_inside() {
        let text = json(&Failure::Fault("/var/lib/x: EIO".into()).into(), true);
        assert!(!text.contains("EIO") && text.contains(r#""applied":"unknown""#), "{text}");
    }
}

//! What can go wrong, sorted by what the caller can conclude from it.

use crate::net::root_cause;
use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

/// Whether a refused or lost write happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Applied {
    No,
    Unknown,
}

/// An RFC 9457 document with the API's own members.
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub title: String,
    #[serde(default)]
    pub status: u16,
    #[serde(default)]
    pub detail: Option<String>,
    #[serde(default)]
    pub hint: Option<String>,
    #[serde(default)]
    pub applied: Option<Applied>,
    #[serde(default)]
    pub retryable: bool,
    #[serde(default)]
    pub revision: Option<i64>,
    #[serde(default)]
    pub request_id: Option<String>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
    /// The document as it came.
    #[serde(skip)]
    pub document: String,
}

/// What a script would want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NotFound,
    /// CAS, transaction, fence, or an import that must not overwrite.
    ConditionFailed,
    /// Held by another, out of range, rate limited.
    Held,
    Denied,
    /// Nothing happened; later or elsewhere it may.
    Unavailable,
    /// The write may have happened.
    OutcomeUnknown,
    Compacted,
    Usage,
    Other,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("{}", .0.summary())]
    Refused(Box<Problem>),
    /// No byte was sent.
    #[error("cannot reach {endpoint}: {message}")]
    Unreachable { endpoint: String, message: String },
    /// A read whose answer did not come.
    #[error("no answer from {endpoint}: {message}")]
    NoAnswer { endpoint: String, message: String },
    /// A write was sent and its answer did not come.
    #[error("no answer from {endpoint}: {message}; the write may have happened")]
    Lost { endpoint: String, message: String },
    #[error("{endpoint} does not answer as a tenure member: {message}")]
    NotTenure { endpoint: String, message: String },
    #[error("{context}: {message}")]
    Local { context: String, message: String },
    #[error("{0}")]
    Usage(String),
}

impl Error {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Refused(problem) => problem.kind(),
            Self::Unreachable { .. } | Self::NoAnswer { .. } => Kind::Unavailable,
            Self::Lost { .. } => Kind::OutcomeUnknown,
            Self::NotTenure { .. } | Self::Local { .. } => Kind::Other,
            Self::Usage(_) => Kind::Usage,
        }
    }

    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    /// Whether another endpoint may be asked the same.
    pub(super) fn may_go_elsewhere(&self, read_only: bool) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } => true,
            Self::Refused(problem) => problem.retryable && (read_only || problem.applied == Some(Applied::No)),
            Self::Lost { .. } | Self::NotTenure { .. } | Self::Local { .. } | Self::Usage(_) => false,
        }
    }

    pub(super) fn local(context: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::Local { context: context.into(), message: root_cause(error) }
    }
}

impl Problem {
    /// Decodes an answer; one that is no problem document still tells its status and text.
    pub(super) fn decode(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body).trim().to_owned();
        let decoded = serde_json::from_slice::<Problem>(body).ok().filter(|problem| !problem.code.is_empty());
        let mut problem = decoded.unwrap_or_else(|| Self {
            code: String::new(),
            title: format!("HTTP status {status}"),
            status,
            detail: (!text.is_empty()).then(|| text.clone()),
            hint: None,
            // Without the document nothing is known of a write that some proxy answered for.
            applied: (status >= 500).then_some(Applied::Unknown),
            retryable: false,
            revision: None,
            request_id: None,
            more: Map::new(),
            document: String::new(),
        });
        problem.status = status;
        problem.document = text;
        problem
    }

    /// The problem that a stream ends with once its head is sent.
    pub(super) fn from_line(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            r#type: String,
            problem: Option<Value>,
        }
        // Lines are many: only what looks like a problem is parsed.
        if !line.windows(9).any(|window| window == b"\"problem\"") {
            return None;
        }
        let parsed: Line = serde_json::from_slice(line).ok()?;
        if parsed.r#type != "problem" {
            return None;
        }
        let document = parsed.problem.map_or_else(|| line.to_vec(), |problem| problem.to_string().into_bytes());
        let status = serde_json::from_slice::<Value>(&document).ok().and_then(|value| value.get("status")?.as_u64());
        Some(Self::decode(status.and_then(|status| u16::try_from(status).ok()).unwrap_or(500), &document))
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        // A refusal is certain even where parts of the request were carried out before it.
        if self.applied == Some(Applied::Unknown) && self.status >= 500 {
            return Kind::OutcomeUnknown;
        }
        match (self.code.as_str(), self.status) {
            ("no-such-route", _) => Kind::Other,
            ("key-exists", _) | (_, 412) => Kind::ConditionFailed,
            ("lock-held" | "leader-exists" | "not-leader" | "limit-mismatch", _) => Kind::Held,
            ("out-of-range" | "overflow" | "rate-limited", _) => Kind::Held,
            (_, 401 | 403) => Kind::Denied,
            (_, 404) => Kind::NotFound,
            (_, 410) => Kind::Compacted,
            (_, 429 | 502 | 503 | 504) => Kind::Unavailable,
            _ => Kind::Other,
        }
    }

    #[must_use]
    pub fn summary(&self) -> String {
        self.detail.clone().unwrap_or_else(|| self.title.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str) -> Kind {
        Problem::decode(status, body.as_bytes()).kind()
    }

    #[test]
    fn problems_are_sorted_by_what_follows_from_them() {
        let cases = [
            (404, r#"{"code":"key-not-found"}"#, Kind::NotFound),
            (404, r#"{"code":"no-such-route"}"#, Kind::Other),
            (412, r#"{"code":"precondition-failed","applied":"no"}"#, Kind::ConditionFailed),
            (412, r#"{"code":"txn-not-succeeded"}"#, Kind::ConditionFailed),
            (412, r#"{"code":"fenced"}"#, Kind::ConditionFailed),
            (409, r#"{"code":"key-exists"}"#, Kind::ConditionFailed),
            (409, r#"{"code":"key-exists","applied":"unknown"}"#, Kind::ConditionFailed),
            (409, r#"{"code":"out-of-range"}"#, Kind::Held),
            (409, r#"{"code":"lock-held"}"#, Kind::Held),
            (409, r#"{"code":"not-a-counter"}"#, Kind::Other),
            (429, r#"{"code":"rate-limited"}"#, Kind::Held),
            (429, r#"{"code":"throttled","applied":"no"}"#, Kind::Unavailable),
            (401, r#"{"code":"unauthenticated"}"#, Kind::Denied),
            (403, r#"{"code":"forbidden"}"#, Kind::Denied),
            (410, r#"{"code":"compacted"}"#, Kind::Compacted),
            (503, r#"{"code":"no-leader","applied":"no","retryable":true}"#, Kind::Unavailable),
            (504, r#"{"code":"timeout","applied":"no"}"#, Kind::Unavailable),
            (504, r#"{"code":"outcome-unknown","applied":"unknown"}"#, Kind::OutcomeUnknown),
            (507, r#"{"code":"storage-full","applied":"no"}"#, Kind::Other),
            (400, r#"{"code":"invalid-parameter"}"#, Kind::Other),
            (502, "<html>bad gateway</html>", Kind::OutcomeUnknown),
            (404, "not here", Kind::NotFound),
        ];
        for (status, body, wanted) in cases {
            assert_eq!(kind(status, body), wanted, "{status} {body}");
        }
    }

    #[test]
    fn only_a_certain_refusal_goes_elsewhere() {
        let refused = |body: &str| Error::Refused(Box::new(Problem::decode(503, body.as_bytes())));
        let no = refused(r#"{"code":"no-leader","applied":"no","retryable":true}"#);
        assert!(no.may_go_elsewhere(false) && no.may_go_elsewhere(true));
        let final_no = refused(r#"{"code":"precondition-failed","applied":"no","retryable":false}"#);
        assert!(!final_no.may_go_elsewhere(false) && !final_no.may_go_elsewhere(true));
        let unknown = refused(r#"{"code":"outcome-unknown","applied":"unknown","retryable":true}"#);
        assert!(!unknown.may_go_elsewhere(false));
        let silent = refused(r#"{"code":"not-ready","retryable":true}"#);
        assert!(!silent.may_go_elsewhere(false) && silent.may_go_elsewhere(true));
        let lost = Error::Lost { endpoint: String::new(), message: String::new() };
        assert!(!lost.may_go_elsewhere(false));
    }

    #[test]
    fn the_last_line_of_a_stream_may_be_a_problem() {
        let line = br#"{"type":"problem","problem":{"code":"compacted","status":410,"detail":"revision 3 is gone"}}"#;
        let problem = Problem::from_line(line).unwrap();
        assert_eq!((problem.kind(), problem.summary().as_str()), (Kind::Compacted, "revision 3 is gone"));
        assert!(Problem::from_line(br#"{"key":"problem","value":"\"type\":\"problem\""}"#).is_none());
        assert!(Problem::from_line(br#"{"type":"put","key":"k","value":"problem"}"#).is_none());
    }

    #[test]
    fn the_document_is_kept() {
        let body = r#"{"code":"precondition-failed","title":"t","detail":"d","hint":"h","current":{"mod_revision":42},"request_id":"01K"}"#;
        let problem = Problem::decode(412, body.as_bytes());
        assert_eq!((problem.summary().as_str(), problem.hint.as_deref()), ("d", Some("h")));
        assert_eq!(problem.more["current"]["mod_revision"], 42);
        assert_eq!(problem.document, body);
    }
}

//! Conditional requests: ETags are mod revisions in quotes; a condition on a write is a compare of the
//! transaction that makes it, so that it holds at the moment of the write.

use crate::api::call::Call;
use crate::api::problem::Problem;
use crate::model::{Compare, CompareOp, CompareTarget, KeyRange, KeyValue, Revision};
use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};

/// `If-Match` or `If-None-Match`, as far as it can match anything here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tags {
    Any,
    /// Those tags of the list that are revisions; weak ones are marked.
    Of(Vec<Tag>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) revision: Revision,
    pub(crate) weak: bool,
}

impl Tags {
    /// For reads: a weak tag matches as well (RFC 9110 §13.1.2).
    pub(crate) fn match_weakly(&self, kv: Option<&KeyValue>) -> bool {
        let Some(kv) = kv else { return false };
        match self {
            Self::Any => true,
            Self::Of(tags) => tags.iter().any(|tag| tag.revision == kv.mod_revision),
        }
    }
}

pub(crate) fn etag(revision: Revision) -> HeaderValue {
    let text = format!("\"{revision}\"");
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Reads leniently: what is no tag of ours (curl first sends `""`) matches nothing.
fn tags(text: &str) -> Tags {
    if text.trim() == "*" {
        return Tags::Any;
    }
    let tag = |part: &str| {
        let part = part.trim();
        let (weak, part) = match part.strip_prefix("W/") {
            Some(rest) => (true, rest),
            None => (false, part),
        };
        let digits = part.strip_prefix('"')?.strip_suffix('"')?;
        let revision = digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        Some(Tag { revision, weak })
    };
    Tags::Of(text.split(',').filter_map(tag).collect())
}

pub(crate) fn if_none_match(call: &Call) -> Result<Option<Tags>, Problem> {
    Ok(call.header_text(IF_NONE_MATCH.as_str())?.map(tags))
}

/// What a write demands, and how to say so when it does not hold.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) compares: Vec<Compare>,
    asked: Vec<String>,
}

impl Conditions {
    /// From `If-Match`, `If-None-Match` and `cas`; all that are given must hold.
    pub(crate) fn of_write(call: &Call, cas: Option<Revision>, key: &Bytes) -> Result<Self, Problem> {
        let mut conditions = Self::default();
        if let Some(text) = call.header_text(IF_MATCH.as_str())? {
            conditions.push(key, one(&IF_MATCH, text)?.map(|revision| (CompareOp::Equal, revision)), "If-Match", text);
        }
        if let Some(text) = call.header_text(IF_NONE_MATCH.as_str())? {
            let wanted = one(&IF_NONE_MATCH, text)?;
            let text = format!("If-None-Match: {text}");
            match wanted {
                None => conditions.missing(key, text),
                Some(revision) => {
                    conditions.compare(key, CompareOp::NotEqual, CompareTarget::ModRevision(revision), text);
                }
            }
        }
        match cas {
            None => {}
            Some(0) => conditions.missing(key, "cas=0".to_owned()),
            Some(revision) => {
                let target = CompareTarget::ModRevision(revision);
                conditions.compare(key, CompareOp::Equal, target, format!("cas={revision}"));
            }
        }
        Ok(conditions)
    }

    fn push(&mut self, key: &Bytes, wanted: Option<(CompareOp, Revision)>, name: &str, text: &str) {
        let asked = format!("{name}: {text}");
        match wanted {
            None => self.compare(key, CompareOp::Greater, CompareTarget::Version(0), asked),
            Some((op, revision)) => self.compare(key, op, CompareTarget::ModRevision(revision), asked),
        }
    }

    fn missing(&mut self, key: &Bytes, asked: String) {
        self.compare(key, CompareOp::Equal, CompareTarget::Version(0), asked);
    }

    fn compare(&mut self, key: &Bytes, op: CompareOp, target: CompareTarget, asked: String) {
        self.compares.push(Compare { range: KeyRange::key(key.clone()), op, target });
        self.asked.push(asked);
    }

    /// `app/db is at revision 42, asked was If-Match: "12"`.
    pub(crate) fn why_not(&self, key: &[u8], current: Option<&KeyValue>, failed_if: &[u32]) -> String {
        let key = String::from_utf8_lossy(key);
        let failed = failed_if.iter().filter_map(|at| self.asked.get(usize::try_from(*at).ok()?));
        let asked: Vec<&str> = failed.map(String::as_str).collect();
        let asked = if asked.is_empty() { self.asked.join(", ") } else { asked.join(", ") };
        match current {
            Some(kv) => format!("{key} is at revision {}, asked was {asked}", kv.mod_revision),
            None => format!("{key} does not exist, asked was {asked}"),
        }
    }
}

/// On writes a condition must be one the store can decide: `*` (`None`) or one strong tag of ours.
fn one(name: &HeaderName, text: &str) -> Result<Option<Revision>, Problem> {
    match tags(text) {
        Tags::Any => Ok(None),
        Tags::Of(tags) => match tags[..] {
            [Tag { revision, weak: false }] if !text.contains(',') => Ok(Some(revision)),
            _ => Err(Problem::parameter(
                name.as_str(),
                format!(
                    "on a write, `{name}` is `*` or one strong ETag of this store: a revision in quotes, like \"42\""
                ),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(revision: Revision) -> Tag {
        Tag { revision, weak: false }
    }

    #[test]
    fn tags_are_read_leniently() {
        assert_eq!(tags("*"), Tags::Any);
        assert_eq!(tags("\"12\""), Tags::Of(vec![tag(12)]));
        assert_eq!(tags("W/\"12\" , \"13\""), Tags::Of(vec![Tag { revision: 12, weak: true }, tag(13)]));
        for nothing in ["", "\"\"", "12", "\"abc\"", "\"+1\"", "\"-1\"", "\"99999999999999999999\"", "\"1", "w/\"1\""] {
            assert_eq!(tags(nothing), Tags::Of(vec![]), "{nothing}");
        }
    }

    #[test]
    fn on_writes_a_condition_must_be_decidable() {
        assert_eq!(one(&IF_MATCH, "*").unwrap(), None);
        assert_eq!(one(&IF_MATCH, "\"12\"").unwrap(), Some(12));
        for refused in ["", "12", "\"\"", "W/\"12\"", "\"1\", \"2\"", "\"1\", junk", "\"abc\""] {
            assert!(one(&IF_MATCH, refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn the_reason_names_what_was_asked_and_what_is() {
        let mut conditions = Conditions::default();
        conditions.push(&"a".into(), Some((CompareOp::Equal, 12)), "If-Match", "\"12\"");
        conditions.missing(&"a".into(), "cas=0".into());
        assert_eq!(conditions.why_not(b"a", None, &[0]), "a does not exist, asked was If-Match: \"12\"");
        assert_eq!(conditions.compares[1].target, CompareTarget::Version(0));
        assert_eq!(etag(42), "\"42\"");
    }
}

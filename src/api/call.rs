//! One request on its way through a handler, and what the handler gives back.

use super::State;
use super::body::Body;
use super::json::{Writer, pretty};
use super::problem::Problem;
use super::rest::query::{Names, Query};
use super::routes::Operation;
use super::status::Code;
use crate::model::Caller;
use crate::model::limits::{TIMEOUT_DEFAULT_MS, TIMEOUT_MAX_MS};
use crate::service::{Admission, Consistency, Context, Header, ReadOptions};
use bytes::Bytes;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use sync_wrapper::SyncWrapper;

/// Room for a small answer's own bytes in the budget, whatever its body.
const ANSWER_BYTES: usize = 512;

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) state: Arc<State>,
    pub(crate) parts: Parts,
    /// axum's body is not `Sync`, and handlers hold a `&Call` while they wait.
    pub(crate) body: Option<SyncWrapper<axum::body::Body>>,
    pub(crate) operation: Operation,
    pub(crate) caller: Caller,
    /// Where `{key}` or `{id}` begins in the path.
    pub(crate) rest: usize,
    pub(crate) request_id: String,
    /// Of the request's body; handed on to the answer's.
    pub(crate) admission: Option<Admission>,
    pub(crate) pretty: bool,
}

/// A successful answer: who gave it, and its response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) header: Option<Header>,
    pub(crate) response: Response<Body>,
}

pub(crate) type Outcome = Result<Reply, Problem>;

/// Parameters that every operation understands, and those that reads do.
pub(crate) const ALWAYS: &[&str] = &["timeout", "pretty"];
pub(crate) const READ: &[&str] = &["consistency", "max_staleness", "min_revision"];

impl Call {
    /// Parses the query against the operation's names. `pretty` is known from here on.
    pub(crate) fn query(&mut self, names: &Names) -> Result<Query, Problem> {
        self.parsed(Query::parse(self.parts.uri.query(), names)?)
    }

    pub(crate) fn query_repeating(&mut self, names: &Names, repeatable: &[&str]) -> Result<Query, Problem> {
        self.parsed(Query::parse_repeating(self.parts.uri.query(), names, repeatable)?)
    }

    fn parsed(&mut self, query: Query) -> Result<Query, Problem> {
        self.pretty = query.flag("pretty")?;
        Ok(query)
    }

    /// The raw path behind the route's fixed part.
    pub(crate) fn raw_key(&self) -> &str {
        self.parts.uri.path().get(self.rest..).unwrap_or_default()
    }

    pub(crate) fn key(&self, query: &Query) -> Result<Bytes, Problem> {
        super::rest::keys::from_path(self.raw_key(), query)
    }

    pub(crate) fn context(&self, query: &Query) -> Result<Context, Problem> {
        let default = Duration::from_millis(TIMEOUT_DEFAULT_MS);
        let timeout = query.duration("timeout")?.unwrap_or(default);
        let max = Duration::from_millis(TIMEOUT_MAX_MS);
        if timeout > max || timeout.is_zero() {
            return Err(Problem::parameter("timeout", format!("`timeout` is between 1ms and {}s", max.as_secs())));
        }
        Ok(Context { caller: self.caller.clone(), timeout, fences: super::rest::fence::of(self)? })
    }

    /// A header's value as text; one that is not visible ASCII is refused, not skipped.
    pub(crate) fn header_text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.parts.headers.get_all(name).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Problem::parameter(name, format!("`{name}` is given more than once")));
        }
        let text = value.to_str().map_err(|_| Problem::parameter(name, format!("`{name}` is not visible ASCII")))?;
        Ok(Some(text))
    }

    /// Takes part of the member's byte budget for an answer of this size.
    pub(crate) fn admit_answer(&self, bytes: usize) -> Result<Admission, Problem> {
        Ok(self.state.service.admit(bytes.saturating_add(ANSWER_BYTES))?)
    }

    /// A JSON answer. Reads admit it; a write that happened is answered whatever the budget says.
    pub(crate) fn json(&mut self, status: StatusCode, header: Option<Header>, json: Writer) -> Outcome {
        let mut text = json.into_bytes();
        if self.pretty {
            text = pretty(&text);
        }
        text.push(b'\n');
        let admission = match self.admission.take() {
            Some(admission) => Some(admission),
            None if self.operation.mutates() => None,
            None => Some(self.admit_answer(text.len())?),
        };
        let mut response = Response::new(Body::full(text).admitted(admission));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(Reply { header, response })
    }

    /// Refuses a body that says it is something else. What curl sends by itself with `-d` says nothing.
    pub(crate) fn body_is(&self, types: &[&str]) -> Result<(), Problem> {
        let given = self.header_text(CONTENT_TYPE.as_str())?.unwrap_or_default();
        let essence = given.split(';').next().unwrap_or_default().trim();
        let silent = essence.is_empty() || essence.eq_ignore_ascii_case("application/x-www-form-urlencoded");
        if silent || types.iter().any(|known| essence.eq_ignore_ascii_case(known)) {
            return Ok(());
        }
        let problem = Problem::new(Code::UnsupportedMediaType, format!("a body of type `{given}` is not taken here"));
        Err(problem.hint(format!("send it as Content-Type: {}", types.first().unwrap_or(&"application/json"))))
    }

    /// Refuses a client that says it understands none of these types.
    pub(crate) fn accepts(&self, types: &[&str]) -> Result<(), Problem> {
        let Some(accept) = self.header_text(ACCEPT.as_str())? else { return Ok(()) };
        let ranges = accept.split(',').map(|range| range.split(';').next().unwrap_or_default().trim());
        let fits = |range: &str| {
            range == "*/*"
                || types.iter().any(|have| range.eq_ignore_ascii_case(have))
                || range.strip_suffix("/*").is_some_and(|kind| {
                    types.iter().any(|have| have.split('/').next().is_some_and(|have| have.eq_ignore_ascii_case(kind)))
                })
        };
        if accept.trim().is_empty() || ranges.into_iter().any(fits) {
            return Ok(());
        }
        Err(Problem::new(Code::NotAcceptable, format!("this answer comes as {}", types.join(" or "))))
    }
}

/// The consistency set of a read.
pub(crate) fn read_options(query: &Query) -> Result<ReadOptions, Problem> {
    let stale = query
        .choice("consistency", &[("linearizable", false), ("stale", true), ("serializable", true)])?
        .unwrap_or(false);
    let max_staleness = query.duration("max_staleness")?;
    if max_staleness.is_some() && !stale {
        return Err(Problem::parameter("max_staleness", "`max_staleness` needs `consistency=stale`"));
    }
    let consistency = if stale { Consistency::Stale { max_staleness } } else { Consistency::Linearizable };
    Ok(ReadOptions { consistency, min_revision: query.revision("min_revision")? })
}

//! What only elections have: a candidate's value, the leader's word, waiting for another leader, and the
//! stream of leaders.

use super::hold::{problem_line, stream};
use super::{checked_value, encode, idempotency, name, name_and_lease};
use crate::api::body::Body;
use crate::api::call::{ALWAYS, Call, Outcome, READ, read_options};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::receive;
use crate::api::rest::conditions::{Tags, etag, if_none_match};
use crate::api::rest::fields::{Fields, Scalars, parse_body};
use crate::api::rest::query::Names;
use crate::api::rest::watch::{SSE_RETRY, seen_last};
use crate::model::ClaimKind;
use crate::model::limits::WAIT_MAX_MS;
use crate::service::Consistency;
use crate::service::claims::{Leader, Observer};
use bytes::Bytes;
use futures_util::stream::unfold;
use hyper::StatusCode;
use hyper::header::{ACCEPT, ETAG};
use std::io;
use std::time::Duration;

const WATCH: Names = Names { allowed: &[&["wait"], READ, ALWAYS], later: &["ns"] };
const OBSERVE: Names = Names { allowed: &[&["bookmarks", "format"], READ, ALWAYS], later: &["ns"] };
const PROCLAIM: Names = Names { allowed: &[ALWAYS], later: &["ns"] };

const NDJSON: &str = "application/x-ndjson";
const SSE: &str = "text/event-stream";
const BOOKMARKS: Duration = Duration::from_secs(5);

/// `value` by query or body, or `value_base64` in the body.
pub(super) fn value(scalars: &mut Scalars<'_, '_>, body: &[u8]) -> Result<Bytes, Problem> {
    if let Some(value) = scalars.text("value")? {
        return checked_value(Bytes::from(value.into_bytes()));
    }
    let encoded = match body {
        [] => None,
        body => Fields::of(parse_body(body)?, "")?.bytes("value", "value_base64")?,
    };
    checked_value(encoded.unwrap_or_default())
}

/// `GET /v1/elections/{name}`: the ETag is the leader's token.
pub(crate) async fn watch_leader(call: &mut Call) -> Outcome {
    let query = call.query(&WATCH)?;
    let of = name(call, ClaimKind::Election)?;
    call.accepts(&["application/json"])?;
    let known = match if_none_match(call)? {
        None => None,
        Some(Tags::Of(tags)) if tags.len() <= 1 => tags.first().map(|tag| tag.revision),
        Some(_) => return Err(Problem::parameter("if-none-match", "give the one ETag that is known")),
    };
    let given = call.parts.headers.contains_key(hyper::header::IF_NONE_MATCH);
    let mut context = call.context(&query)?;
    let wait = query.duration("wait")?.unwrap_or_default().min(Duration::from_millis(WAIT_MAX_MS));
    context.timeout += wait;
    let service = call.state.service.clone();
    let answer = service.election_wait(&context, read_options(&query)?, (&of, known), wait).await?;
    let leader = answer.body.holders().next().map(|leader| leader.token);
    let unchanged = given && leader.is_some() && leader == known;
    let mut answered = if unchanged {
        super::super::kv::not_modified(answer.header)
    } else {
        let mut json = Writer::with_capacity(256);
        encode::queue(&mut json, &answer.body);
        call.json(StatusCode::OK, Some(answer.header), json)?
    };
    if let Some(token) = leader {
        answered.response.headers_mut().insert(ETAG, etag(token));
    }
    Ok(answered)
}

/// `PUT …/claims/{lease}`: the value as it is, or as a member of a JSON body.
pub(crate) async fn proclaim(call: &mut Call) -> Outcome {
    let query = call.query(&PROCLAIM)?;
    let (of, lease) = name_and_lease(call, ClaimKind::Election)?;
    let context = call.context(&query)?;
    let given = call.header_text("content-type")?.unwrap_or_default();
    let is_json =
        given.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"));
    let body = receive::whole(call).await?;
    let idempotency = idempotency::of(call, &query, &body, &context.caller)?;
    let value = if is_json {
        let mut fields = Fields::of(parse_body(&body)?, "")?;
        let value = fields.bytes("value", "value_base64")?.ok_or_else(|| fields.wrong("value", "there"))?;
        fields.finish()?;
        value
    } else {
        body
    };
    let value = checked_value(value)?;
    let answer = call.state.service.election_proclaim(&context, (&of, lease), value, idempotency).await?;
    let mut json = Writer::with_capacity(256);
    encode::claim(&mut json, &answer.body);
    idempotency::written(call, StatusCode::OK, answer.header, answer.replayed, json)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Lines,
    Events,
}

/// `GET …/{name}/observe`.
pub(crate) async fn observe(call: &mut Call) -> Outcome {
    let query = call.query(&OBSERVE)?;
    let of = name(call, ClaimKind::Election)?;
    let accept = call.header_text(ACCEPT.as_str())?.unwrap_or_default();
    let accepted = if accept.contains(SSE) { Form::Events } else { Form::Lines };
    let form = query.choice("format", &[("ndjson", Form::Lines), ("sse", Form::Events)])?.unwrap_or(accepted);
    call.accepts(&[NDJSON, SSE])?;
    let bookmarks = match query.text("bookmarks")? {
        Some("off") => None,
        _ => Some(query.duration("bookmarks")?.unwrap_or(BOOKMARKS)),
    };
    let bounds = Duration::from_secs(1)..=Duration::from_secs(300);
    if bookmarks.is_some_and(|every| !bounds.contains(&every)) {
        return Err(Problem::parameter("bookmarks", "`bookmarks` is `off`, or 1s to 5m"));
    }
    let context = call.context(&query)?;
    let mut read = read_options(&query)?;
    let seen = seen_last(call)?;
    // Who comes back is not told of a leader before the one that it has seen.
    if read.consistency != Consistency::Linearizable {
        read.min_revision = read.min_revision.max(seen);
    }
    let admission = call.admit_answer(0)?;
    let answer = call.state.service.election_observe(&context, read, &of).await?;
    let (observer, request_id) = (Some(answer.body), call.request_id.clone());
    let telling = Telling { observer, begun: false, form, bookmarks, request_id };
    let lines = unfold(telling, |mut telling| async move {
        let line = telling.next().await?;
        Some((Ok::<_, io::Error>(line), telling))
    });
    let content_type = if form == Form::Events { SSE } else { NDJSON };
    Ok(stream(answer.header, Body::stream(lines).admitted(Some(admission)), content_type))
}

struct Telling {
    /// `None` after the last line.
    observer: Option<Observer>,
    begun: bool,
    form: Form,
    bookmarks: Option<Duration>,
    request_id: String,
}

impl Telling {
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.begun, true) && self.form == Form::Events {
            return Some(Bytes::from_static(SSE_RETRY));
        }
        let observer = self.observer.as_mut()?;
        let pause = self.bookmarks.unwrap_or(Duration::MAX);
        let told = match tokio::time::timeout(pause, observer.next()).await {
            Ok(told) => told,
            Err(_) => {
                let revision = observer.revision();
                return Some(self.line("bookmark", Some(revision), |json| json.int("revision", revision)));
            }
        };
        match told {
            Ok(Leader { claim: None, revision }) => {
                Some(self.line("vacant", Some(revision), |json| json.int("revision", revision)))
            }
            Ok(Leader { claim: Some(leader), revision }) => Some(self.line("leader", Some(revision), |json| {
                json.int("revision", revision);
                json.int("token", leader.token);
                json.bytes("value", "value_base64", &leader.value);
                if let Some(owner) = &leader.label.name {
                    json.text("owner", owner);
                }
                json.text("lease", &format!("{:016x}", leader.lease));
            })),
            Err(failure) => {
                self.observer = None;
                let mut json = Writer::default();
                problem_line(&mut json, &Problem::from(failure), &self.request_id);
                Some(self.framed("problem", None, json))
            }
        }
    }

    fn line(&self, kind: &str, id: Option<i64>, write: impl FnOnce(&mut Writer)) -> Bytes {
        let mut json = Writer::with_capacity(128);
        json.open();
        json.text("type", kind);
        write(&mut json);
        json.close();
        self.framed(kind, id, json)
    }

    fn framed(&self, kind: &str, id: Option<i64>, json: Writer) -> Bytes {
        let data = json.into_bytes();
        if self.form == Form::Lines {
            return [&data[..], b"\n"].concat().into();
        }
        let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
        [format!("event: {kind}\n{id}data: ").as_bytes(), &data, b"\n\n"].concat().into()
    }
}

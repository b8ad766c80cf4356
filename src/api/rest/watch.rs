//! `GET /v1/watch`: changes as they happen, as server-sent events, as NDJSON, or by long-poll.
//!
//! Here the request is read; `encode` writes what is said in one shape for all three formats, `stream`
//! keeps a stream going, `poll` gives one answer.

mod encode;
mod poll;
mod stream;

use super::keys;
use super::list::{NDJSON, span};
use super::query::{Names, Query, choose};
use crate::api::call::{ALWAYS, Call, Outcome};
use crate::api::problem::Problem;
use crate::model::limits::{
    BOOKMARK_DEFAULT_MS, BOOKMARK_MAX_MS, BOOKMARK_MIN_MS, REVISION_MAX, TIMEOUT_DEFAULT_MS, WAIT_MAX_MS,
    WATCH_POLL_EVENTS_DEFAULT, WATCH_POLL_EVENTS_MAX, WATCH_TARGETS_MAX,
};
use crate::model::{KeyRange, Revision};
use crate::service::{Context, Kinds, OnCompacted, WatchRequest, WatchStart};
use bytes::Bytes;
use encode::{Format, Shape};
use hyper::header::ACCEPT;
use std::time::Duration;

const SSE: &str = "text/event-stream";
/// How soon a browser comes back after a stream has ended.
pub(super) const SSE_RETRY: &[u8] = b"retry: 1000\n\n";
const LAST_EVENT_ID: &str = "last-event-id";
const REPEATABLE: &[&str] = &["key", "prefix"];

const GET: Names = Names {
    allowed: &[
        &["key", "prefix", "start", "end", "after", "initial", "types", "values", "prev", "bookmarks"],
        &["wait", "limit", "on_compacted", "format", "min_revision"],
        ALWAYS,
    ],
    later: &["ns"],
};

pub(crate) async fn get(call: &mut Call) -> Outcome {
    let query = call.query_repeating(&GET, REPEATABLE)?;
    let (request, shape) = read(call, &query)?;
    let timeout = query.duration("timeout")?;
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(Problem::parameter("timeout", "`timeout` is at least 1ms"));
    }
    super::fence::refuse(call)?;
    let context = Context::new(call.caller.clone(), Duration::from_millis(TIMEOUT_DEFAULT_MS));
    match query.duration("wait")? {
        Some(wait) => {
            call.accepts(&["application/json"])?;
            let wait = wait.min(Duration::from_millis(WAIT_MAX_MS));
            let limit = query.count("limit")?.unwrap_or(WATCH_POLL_EVENTS_DEFAULT).min(WATCH_POLL_EVENTS_MAX);
            poll::answer(call, &context, request, shape, poll::Bounds { wait, limit }).await
        }
        None => {
            let format = format(call, &query)?;
            stream::open(call, &context, request, stream::Manner { format, shape, timeout }).await
        }
    }
}

fn read(call: &Call, query: &Query) -> Result<(WatchRequest, Shape), Problem> {
    let initial = query.flag("initial")?;
    let polls = query.has("wait");
    if polls {
        only_streams(query)?;
    } else if query.has("limit") {
        return Err(Problem::parameter("limit", "`limit` is for long-polls: give `wait` too"));
    }
    let fallback = if initial { OnCompacted::Resync } else { OnCompacted::Fail };
    let choices = [("fail", OnCompacted::Fail), ("resync", OnCompacted::Resync)];
    let shape = Shape { values: query.maybe_flag("values")?.unwrap_or(true), prev: query.flag("prev")? };
    let request = WatchRequest {
        targets: targets(query)?,
        start: start(call, query)?,
        initial,
        on_compacted: query.choice("on_compacted", &choices)?.unwrap_or(fallback),
        kinds: kinds(query)?,
        prev: shape.prev,
        keys_only: !shape.values,
        progress_every: if polls { None } else { bookmarks(query)? },
        min_revision: query.revision("min_revision")?,
    };
    Ok((request, shape))
}

/// One answer has no room for a whole state, and nothing to keep alive.
fn only_streams(query: &Query) -> Result<(), Problem> {
    for name in ["initial", "on_compacted", "bookmarks", "format"] {
        if query.has(name) {
            let problem = Problem::parameter(name, format!("`{name}` is for streams: leave it or `wait` out"));
            return Err(problem.hint("read the state with GET /v1/kv, then poll after its revision"));
        }
    }
    Ok(())
}

/// Keys, prefixes and one span; none of them is everything.
fn targets(query: &Query) -> Result<Vec<KeyRange>, Problem> {
    let mut targets = Vec::new();
    for key in query.all("key") {
        targets.push(KeyRange::key(keys::checked(Bytes::copy_from_slice(key))?));
    }
    targets.extend(query.all("prefix").map(|prefix| KeyRange::prefix(Bytes::copy_from_slice(prefix))));
    targets.extend(span(query)?);
    if targets.is_empty() {
        targets.push(KeyRange::all());
    }
    if targets.len() > WATCH_TARGETS_MAX {
        let name = if query.has("prefix") { "prefix" } else { "key" };
        let detail =
            format!("{} keys, prefixes and ranges are given; one watch follows {WATCH_TARGETS_MAX}", targets.len());
        return Err(Problem::parameter(name, detail).hint("watch a common prefix, or open several streams"));
    }
    Ok(targets)
}

fn start(call: &Call, query: &Query) -> Result<WatchStart, Problem> {
    let after = query.revision("after")?;
    let last = seen_last(call)?;
    // A browser repeats its first URL for ever: what it saw last says more.
    Ok(last.or(after).map_or(WatchStart::Now, WatchStart::After))
}

/// What a client that comes back has seen.
pub(super) fn seen_last(call: &Call) -> Result<Option<Revision>, Problem> {
    match call.header_text(LAST_EVENT_ID)?.map(str::trim) {
        None | Some("") => Ok(None),
        Some(id) => last_event_id(id).map(Some),
    }
}

fn last_event_id(id: &str) -> Result<Revision, Problem> {
    let revision = id.parse().ok().filter(|revision| (0..=REVISION_MAX).contains(revision) && !id.starts_with('+'));
    revision.ok_or_else(|| Problem::parameter(LAST_EVENT_ID, "`Last-Event-ID` is not a revision that a watch gave"))
}

fn kinds(query: &Query) -> Result<Kinds, Problem> {
    let Some(text) = query.text("types")? else { return Ok(Kinds::ALL) };
    let mut kinds = Kinds { puts: false, deletes: false };
    for kind in text.split(',') {
        if choose("types", kind, &[("put", true), ("delete", false)])? {
            kinds.puts = true;
        } else {
            kinds.deletes = true;
        }
    }
    Ok(kinds)
}

fn bookmarks(query: &Query) -> Result<Option<Duration>, Problem> {
    if query.bytes("bookmarks") == Some(b"off") {
        return Ok(None);
    }
    let every = query.duration("bookmarks").map_err(|_| bad_bookmarks())?;
    let every = every.unwrap_or(Duration::from_millis(BOOKMARK_DEFAULT_MS));
    let allowed = Duration::from_millis(BOOKMARK_MIN_MS)..=Duration::from_millis(BOOKMARK_MAX_MS);
    if allowed.contains(&every) { Ok(Some(every)) } else { Err(bad_bookmarks()) }
}

fn bad_bookmarks() -> Problem {
    Problem::parameter("bookmarks", "`bookmarks` is `off`, or a duration between 1s and 5m")
}

fn format(call: &Call, query: &Query) -> Result<Format, Problem> {
    if let Some(format) = query.choice("format", &[("sse", Format::Sse), ("ndjson", Format::Ndjson)])? {
        return Ok(format);
    }
    call.accepts(&[NDJSON, SSE])?;
    let accept = call.header_text(ACCEPT.as_str())?.unwrap_or_default();
    let wants =
        |kind: &str| accept.split(',').any(|range| range.split(';').next().is_some_and(|range| range.trim() == kind));
    Ok(if wants(SSE) { Format::Sse } else { Format::Ndjson })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::Code;

    fn query(raw: &str) -> Query {
        Query::parse_repeating(Some(raw), &GET, REPEATABLE).unwrap()
    }

    #[test]
    fn up_to_64_targets_of_all_kinds() {
        let found = targets(&query("key=a&prefix=b/&key=c&start=x&end=y")).unwrap();
        let span = KeyRange { start: "x".into(), end: Some("y".into()) };
        assert_eq!(found, [KeyRange::key("a"), KeyRange::key("c"), KeyRange::prefix("b/"), span]);
        assert_eq!(targets(&query("")).unwrap(), [KeyRange::all()]);
        assert_eq!(targets(&query("prefix=")).unwrap(), [KeyRange::all()]);
        let keys = |count: usize| (0..count).map(|at| format!("key={at}")).collect::<Vec<_>>().join("&");
        assert_eq!(targets(&query(&keys(64))).unwrap().len(), 64);
        for bad in [keys(65), "key=".to_owned(), "start=a".to_owned(), format!("key={}", "k".repeat(4097))] {
            assert!(targets(&query(&bad)).is_err(), "{bad:.20}");
        }
    }

    #[test]
    fn kinds_and_bookmarks() {
        assert_eq!(kinds(&query("")).unwrap(), Kinds::ALL);
        assert_eq!(kinds(&query("types=delete,put")).unwrap(), Kinds::ALL);
        assert_eq!(kinds(&query("types=delete")).unwrap(), Kinds { puts: false, deletes: true });
        for bad in ["types=", "types=PUT", "types=put,", "types=put delete"] {
            assert_eq!(kinds(&query(bad)).unwrap_err().code(), Code::InvalidParameter, "{bad}");
        }
        assert_eq!(bookmarks(&query("")).unwrap(), Some(Duration::from_secs(5)));
        assert_eq!(bookmarks(&query("bookmarks=off")).unwrap(), None);
        assert_eq!(bookmarks(&query("bookmarks=300")).unwrap(), Some(Duration::from_secs(300)));
        for bad in ["bookmarks", "bookmarks=999ms", "bookmarks=301s", "bookmarks=on"] {
            assert!(bookmarks(&query(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_event_id_is_a_revision() {
        assert_eq!(last_event_id("42").unwrap(), 42);
        for bad in ["-1", "+1", "x", "9007199254740992", "1.0"] {
            assert!(last_event_id(bad).is_err(), "{bad}");
        }
    }
}

//! Many keys: `/v1/kv`, by page as JSON or whole as NDJSON, and range deletes.

use super::cursor::{Cursor, FilterHash, filter_hash};
use super::dto::{self, Values};
use super::idempotency;
use super::kv::foreign;
use super::query::{Names, Query};
use crate::api::body::Body;
use crate::api::call::{ALWAYS, Call, Outcome, READ, Reply as Answered, read_options};
use crate::api::json::Writer;
use crate::api::problem::{Around, Problem};
use crate::api::status::Code;
use crate::model::limits::{LIST_PAGE_BYTES_MAX, LIST_PAGE_DEFAULT, LIST_PAGE_MAX};
use crate::model::{
    Delimiter, Failure, KeyRange, ListOp, ListPage, Op, OpReply, RangeSort, Reply, Revision, SortOrder, TxnReply, Why,
};
use crate::service::{Context, ReadOptions, Service};
use bytes::Bytes;
use futures_util::Stream;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, LINK};
use hyper::{Response, StatusCode};
use std::io;

pub(super) const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
pub(super) const NDJSON: &str = "application/x-ndjson";
/// Entries per page of a stream: enough to be cheap, few enough to be answered soon.
const STREAM_PAGE: u64 = 1000;

const GET: Names = Names {
    allowed: &[
        &["prefix", "start", "end", "limit", "cursor", "keys_only", "count_only", "count", "delimiter"],
        &["revision", "modified_after", "order", "sort"],
        READ,
        ALWAYS,
    ],
    later: &["ns"],
};
const DELETE: Names =
    Names { allowed: &[&["prefix", "start", "end", "all", "dry_run", "prev"], ALWAYS], later: &["ns"] };

/// `start` and `end`, both or neither.
pub(super) fn span(query: &Query) -> Result<Option<KeyRange>, Problem> {
    match (query.bytes("start"), query.bytes("end")) {
        (None, None) => Ok(None),
        (Some(start), Some(end)) if !end.is_empty() => {
            Ok(Some(KeyRange { start: Bytes::copy_from_slice(start), end: Some(Bytes::copy_from_slice(end)) }))
        }
        (Some(_), Some(_)) => Err(Problem::parameter("end", "`end` is empty: use `prefix` for an open range")),
        (Some(_), None) => Err(Problem::parameter("end", "`start` needs `end`")),
        (None, Some(_)) => Err(Problem::parameter("start", "`end` needs `start`")),
    }
}

fn list_range(query: &Query) -> Result<KeyRange, Problem> {
    match (query.bytes("prefix"), span(query)?) {
        (Some(_), Some(_)) => Err(Problem::parameter("prefix", "give either `prefix`, or `start` and `end`")),
        (None, Some(range)) => Ok(range),
        (prefix, None) => Ok(KeyRange::prefix(prefix.unwrap_or_default().to_vec())),
    }
}

/// A listing as asked for, and the digest of what its cursors belong to.
struct Listing {
    op: ListOp,
    filter: FilterHash,
    limit: Option<u64>,
    ndjson: bool,
}

impl Listing {
    fn of(query: &Query, ndjson: bool) -> Result<Self, Problem> {
        let range = list_range(query)?;
        let sort = query
            .choice(
                "sort",
                &[
                    ("key", RangeSort::Key),
                    ("create", RangeSort::Create),
                    ("mod", RangeSort::Mod),
                    ("version", RangeSort::Version),
                ],
            )?
            .unwrap_or_default();
        let order = query.choice("order", &[("asc", SortOrder::Ascending), ("desc", SortOrder::Descending)])?;
        let prefix_len = query.bytes("prefix").map_or(0, <[u8]>::len);
        let delimiter = match query.bytes("delimiter") {
            Some([]) => return Err(Problem::parameter("delimiter", "`delimiter` is empty")),
            delimiter => delimiter.map(|bytes| Delimiter { bytes: Bytes::copy_from_slice(bytes), prefix_len }),
        };
        let limit = query.count("limit")?;
        let op = ListOp {
            range,
            resume: None,
            revision: query.revision("revision")?.unwrap_or(0),
            limit: limit.unwrap_or(LIST_PAGE_DEFAULT).min(LIST_PAGE_MAX),
            bytes_max: LIST_PAGE_BYTES_MAX,
            keys_only: query.flag("keys_only")?,
            count: query.flag("count")?,
            count_only: query.flag("count_only")?,
            delimiter,
            modified_after: query.revision("modified_after")?,
            order: order.unwrap_or_default(),
            sort,
        };
        let mut listing = Self { filter: filter(query), op, limit, ndjson };
        listing.check(query)?;
        listing.resume(query)?;
        Ok(listing)
    }

    fn check(&self, query: &Query) -> Result<(), Problem> {
        let refuse = |name: &str, why: &str| Err(Problem::parameter(name, format!("`{name}` {why}")));
        let sorted = self.op.sort != RangeSort::Key;
        if sorted && query.has("cursor") {
            return refuse("cursor", "cannot be used with `sort`: only listings by key have pages");
        }
        if sorted && self.op.delimiter.is_some() {
            return refuse("delimiter", "cannot be used with `sort`");
        }
        if self.ndjson && (sorted || self.op.delimiter.is_some() || self.op.count || self.op.count_only) {
            let name = ["sort", "delimiter", "count_only", "count"].into_iter().find(|name| query.has(name));
            return refuse(name.unwrap_or("sort"), "cannot be used with NDJSON, which is one entry per line by key");
        }
        Ok(())
    }

    fn resume(&mut self, query: &Query) -> Result<(), Problem> {
        let Some(text) = query.text("cursor")? else { return Ok(()) };
        let cursor = Cursor::decode(text, self.filter)?;
        if self.op.revision != 0 && self.op.revision != cursor.revision {
            return Err(Problem::new(Code::BadCursor, "the cursor belongs to another `revision`"));
        }
        self.op.revision = cursor.revision;
        self.op.resume = Some(cursor.resume);
        Ok(())
    }

    fn next_cursor(&self, page: &ListPage) -> Option<String> {
        if self.op.sort != RangeSort::Key {
            return None;
        }
        let resume = page.next.clone()?;
        Some(Cursor { revision: page.revision, filter: self.filter, resume }.encode())
    }
}

/// What must not change between pages; how much a page holds may.
fn filter(query: &Query) -> FilterHash {
    let kept = ["prefix", "start", "end", "delimiter", "modified_after", "order"];
    let parts = kept.iter().flat_map(|name| {
        let value = query.bytes(name);
        // Absent and empty are told apart.
        [if value.is_some() { name.as_bytes() } else { b"" }, value.unwrap_or_default()]
    });
    filter_hash(parts)
}

pub(crate) async fn get(call: &mut Call) -> Outcome {
    let query = call.query(&GET)?;
    call.accepts(&["application/json", NDJSON])?;
    let accept = call.header_text(ACCEPT.as_str())?.unwrap_or_default();
    let ndjson = accept.split(',').any(|range| range.split(';').next().is_some_and(|range| range.trim() == NDJSON));
    let listing = Listing::of(&query, ndjson)?;
    let context = call.context(&query)?;
    let read = read_options(&query)?;
    if ndjson {
        return stream(call, context, read, listing).await;
    }
    let answer = call.state.service.list(&context, read, listing.op.clone()).await?;
    let page = answer.body;
    let next = listing.next_cursor(&page);
    let mut json = Writer::with_capacity(1024);
    write(&mut json, &listing.op, &page, next.as_deref(), &call.state.service);
    let mut answered = call.json(StatusCode::OK, Some(answer.header), json)?;
    link_next(call, next.as_deref(), &mut answered);
    Ok(answered)
}

fn write(json: &mut Writer, op: &ListOp, page: &ListPage, next: Option<&str>, service: &Service) {
    json.open();
    json.int("revision", page.revision);
    if !op.count_only {
        json.name("items");
        json.open_list();
        for kv in &page.items {
            dto::entry_with_ttl(json, kv, Values::unless(op.keys_only), service.lease_ttl_ms(kv.lease));
        }
        json.close_list();
        if op.delimiter.is_some() {
            json.name("prefixes");
            json.open_list();
            // A prefix that is no text cannot be a string; its keys are found by listing without delimiter.
            page.prefixes.iter().for_each(|prefix| json.item_text(&String::from_utf8_lossy(prefix)));
            json.close_list();
        }
    }
    if let Some(count) = page.count {
        json.count("count", count);
    }
    if !op.count_only {
        json.bool("more", page.next.is_some());
        if let Some(next) = next {
            json.text("next", next);
        }
    }
    json.close();
}

/// Says in an answer's head where its next page is, if there is one.
pub(super) fn link_next(call: &Call, next: Option<&str>, answered: &mut Answered) {
    if let Some(link) = next.and_then(|next| HeaderValue::try_from(link(call, next)).ok()) {
        answered.response.headers_mut().insert(LINK, link);
    }
}

/// The same query with the next page's cursor.
fn link(call: &Call, cursor: &str) -> String {
    let mut link = format!("<{}?", call.parts.uri.path());
    for part in call.parts.uri.query().unwrap_or_default().split('&') {
        if !part.is_empty() && part != "cursor" && !part.starts_with("cursor=") {
            link.push_str(part);
            link.push('&');
        }
    }
    link + "cursor=" + cursor + ">; rel=\"next\""
}

/// The whole range at one revision, a page at a time, as fast as the client takes it.
async fn stream(call: &mut Call, context: Context, read: ReadOptions, listing: Listing) -> Outcome {
    let mut op = listing.op;
    op.limit = STREAM_PAGE.min(listing.limit.unwrap_or(u64::MAX));
    let answer = call.state.service.list(&context, read, op.clone()).await?;
    let header = answer.header.clone();
    op.revision = answer.body.revision;
    let first = lines(&call.state.service, &answer.body, op.keys_only);
    // The first page's bytes stand for every later one: only one page is held at a time.
    let admission = call.admit_answer(first.len())?;
    let left = listing.limit.map(|limit| limit.saturating_sub(answer.body.items.len() as u64));
    let pages = Pages {
        service: call.state.service.clone(),
        context,
        read,
        op,
        left,
        resume: answer.body.next,
        first: Some(first),
        request_id: call.request_id.clone(),
    };
    let mut response = Response::new(Body::stream(pages.into_stream()).admitted(Some(admission)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(Answered { header: Some(header), response })
}

fn lines(service: &Service, page: &ListPage, keys_only: bool) -> Bytes {
    let mut json = Writer::with_capacity(page.items.len() * 128);
    for kv in &page.items {
        dto::entry_with_ttl(&mut json, kv, Values::unless(keys_only), service.lease_ttl_ms(kv.lease));
        json.newline();
    }
    json.into_bytes().into()
}

/// The rest of a streamed listing.
struct Pages {
    service: Service,
    context: Context,
    read: ReadOptions,
    op: ListOp,
    /// Entries still wanted.
    left: Option<u64>,
    resume: Option<Bytes>,
    first: Option<Bytes>,
    request_id: String,
}

impl Pages {
    fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        futures_util::stream::unfold(self, |mut pages| async move {
            let chunk = pages.next_chunk().await?;
            Some((Ok(chunk), pages))
        })
    }

    async fn next_chunk(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Some(first);
        }
        let resume = self.resume.take()?;
        if self.left == Some(0) {
            return None;
        }
        self.op.resume = Some(resume);
        self.op.limit = STREAM_PAGE.min(self.left.unwrap_or(u64::MAX));
        let page = self.service.list(&self.context, self.read, self.op.clone());
        let stopping = self.service.stopping();
        let page = match stopping.run_until_cancelled(page).await {
            Some(page) => page.map(|answer| answer.body),
            None => Err(Failure::not_proposed(Why::ShuttingDown)),
        };
        match page {
            Ok(page) => {
                self.left = self.left.map(|left| left.saturating_sub(page.items.len() as u64));
                self.resume = page.next.clone();
                Some(lines(&self.service, &page, self.op.keys_only))
            }
            Err(failure) => Some(self.problem_line(failure)),
        }
    }

    /// The head is long sent: a problem is the last line instead, and no page follows it.
    fn problem_line(&self, failure: Failure) -> Bytes {
        let revision = Some(self.service.header().revision);
        let around = Around { mutates: false, revision, request_id: &self.request_id, pretty: false };
        let mut line = br#"{"type":"problem","problem":"#.to_vec();
        line.extend_from_slice(&Problem::from(failure).to_json(around));
        line.extend_from_slice(b"}\n");
        line.into()
    }
}

pub(crate) async fn delete(call: &mut Call) -> Outcome {
    let query = call.query(&DELETE)?;
    let range = delete_range(&query)?;
    let context = call.context(&query)?;
    let prev_kv = query.flag("prev")?;
    if query.flag("dry_run")? {
        return dry_run(call, &context, range).await;
    }
    let idempotency = idempotency::of(call, &query, b"", &context.caller)?;
    let op = Op::Delete { range, prev_kv };
    let answer = call.state.service.operation(&context, op, idempotency).await?;
    let mut json = Writer::with_capacity(64);
    match answer.body {
        Reply::Txn(TxnReply { revision, results, .. }) => match results.first() {
            Some(OpReply::Delete { deleted, prev }) => {
                dto::deleted(&mut json, *deleted, revision, prev_kv.then_some(prev));
            }
            _ => return Err(foreign("another operation's reply")),
        },
        Reply::Outcome { revision, .. } => dto::outcome_only(&mut json, None, revision),
        _ => return Err(foreign("another command's reply")),
    }
    idempotency::written(call, StatusCode::OK, answer.header, answer.replayed, json)
}

/// Exactly one way to say what is deleted, and none by which nothing said means everything.
fn delete_range(query: &Query) -> Result<KeyRange, Problem> {
    let prefix = query.bytes("prefix");
    let span = span(query)?;
    let all = query.flag("all")?;
    match (prefix, span, all) {
        (Some(prefix), None, false) if !prefix.is_empty() => Ok(KeyRange::prefix(prefix.to_vec())),
        (None, Some(range), false) => Ok(range),
        (None, None, true) => Ok(KeyRange::all()),
        (Some([]), None, false) => Err(Problem::new(Code::RangeRequired, "the prefix is empty")),
        (None, None, false) => Err(Problem::new(Code::RangeRequired, "it is not said what to delete")),
        _ => Err(Problem::new(Code::RangeRequired, "what to delete is said in more than one way")),
    }
}

async fn dry_run(call: &mut Call, context: &Context, range: KeyRange) -> Outcome {
    let op = ListOp {
        range,
        resume: None,
        revision: 0,
        limit: 1,
        bytes_max: LIST_PAGE_BYTES_MAX,
        keys_only: true,
        count: false,
        count_only: true,
        delimiter: None,
        modified_after: None,
        order: SortOrder::Ascending,
        sort: RangeSort::Key,
    };
    let answer = call.state.service.list(context, ReadOptions::default(), op).await?;
    let revision: Revision = answer.body.revision;
    let mut json = Writer::with_capacity(64);
    json.open();
    json.count("deleted", answer.body.count.unwrap_or(0));
    json.int("revision", revision);
    json.bool("dry_run", true);
    json.close();
    call.json(StatusCode::OK, Some(answer.header), json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(raw: &str, names: &Names) -> Query {
        Query::parse(Some(raw), names).unwrap()
    }

    #[test]
    fn a_range_delete_says_what_in_exactly_one_way() {
        let range = |raw: &str| delete_range(&query(raw, &DELETE)).map_err(|problem| problem.code());
        assert_eq!(range("prefix=a"), Ok(KeyRange::prefix("a")));
        assert_eq!(range("all"), Ok(KeyRange::all()));
        assert_eq!(range("start=a&end=b"), Ok(KeyRange { start: "a".into(), end: Some("b".into()) }));
        for ambiguous in
            ["", "prefix=", "prefix", "all=false", "prefix=a&all", "prefix=a&start=a&end=b", "all&start=a&end=b"]
        {
            assert_eq!(range(ambiguous), Err(Code::RangeRequired), "{ambiguous:?}");
        }
        for half in ["start=a", "end=b", "start=a&end="] {
            assert_eq!(range(half), Err(Code::InvalidParameter), "{half}");
        }
    }

    #[test]
    fn a_cursor_continues_its_own_query_only() {
        let first = Listing::of(&query("prefix=a/&limit=2", &GET), false).unwrap();
        let page = ListPage { next: Some("a/2".into()), revision: 9, ..ListPage::default() };
        let cursor = first.next_cursor(&page).unwrap();
        let next = |raw: &str| Listing::of(&query(&format!("{raw}&cursor={cursor}"), &GET), false);
        let second = next("prefix=a/&limit=500").unwrap();
        assert_eq!((second.op.revision, second.op.resume.as_deref()), (9, Some(&b"a/2"[..])));
        for other in ["prefix=a", "prefix=a/&order=desc", "prefix=a/&delimiter=/", "prefix=a/&revision=8"] {
            assert_eq!(next(other).err().map(|problem| problem.code()), Some(Code::BadCursor), "{other}");
        }
        assert_eq!(next("prefix=a/&sort=mod").err().map(|problem| problem.code()), Some(Code::InvalidParameter));
    }

    #[test]
    fn limits_are_clamped_and_senseless_mixtures_refused() {
        let limit = |raw: &str| Listing::of(&query(raw, &GET), false).map(|listing| listing.op.limit).ok();
        assert_eq!(limit(""), Some(1000));
        assert_eq!(limit("limit=20000"), Some(10_000));
        assert_eq!(limit("limit=0"), None);
        for (raw, ndjson) in [
            ("delimiter=", false),
            ("sort=mod&delimiter=/", false),
            ("sort=mod", true),
            ("count", true),
            ("prefix=a&start=a&end=b", false),
        ] {
            assert!(Listing::of(&query(raw, &GET), ndjson).is_err(), "{raw}");
        }
    }
}

//! `put`, `del` and `incr`.

use super::{Chosen, chosen};
use crate::cli::args::{Del, Incr, Put};
use crate::cli::exit::{self, CliError};
use crate::cli::output::{Mode, shown};
use crate::cli::session::{Session, duration_text, note, repeatable};
use crate::client::{Answer, Body, Method, Request};
use serde::Deserialize;
use std::ffi::OsStr;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;

pub(super) const WRITE_MODES: &[Mode] = &[Mode::Human, Mode::Json, Mode::Ndjson, Mode::Value];

#[derive(Debug, Deserialize)]
struct PutResult {
    revision: i64,
    version: i64,
    created: bool,
}

#[derive(Debug, Deserialize)]
struct DeleteResult {
    deleted: u64,
    revision: i64,
}

#[derive(Debug, Deserialize)]
struct Counter {
    value: i64,
}

pub(in crate::cli) async fn put(session: &mut Session, args: &Put) -> Result<(), CliError> {
    let mode = session.mode.among(WRITE_MODES)?;
    let body = match args.value.as_ref().map(|value| value.0.as_slice()) {
        None | Some(b"-") => Body::Stdin,
        Some([b'@', path @ ..]) if !path.is_empty() => Body::File(OsStr::from_bytes(path).into()),
        Some(value) => Body::Inline(value.to_vec().into()),
    };
    let mut request = Request::on_key(Method::Put, "/v1/kv/", &args.key.0).maybe("cas", args.cas).body(body);
    request = request.maybe("ttl", args.ttl.map(duration_text)).maybe("lease", args.lease.as_ref());
    request = request.flag("keep_ttl", args.keep_ttl);
    if args.create {
        request = request.header("If-None-Match", "*");
    }
    if let Some(content_type) = &args.content_type {
        request = request.header("Content-Type", content_type.clone());
    }
    let request = repeatable(request, &args.retry);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    written(session, mode, &answer, |put: PutResult| match put.created {
        true => (format!("created, revision {}", put.revision), put.revision.to_string()),
        false => (format!("updated, revision {}, version {}", put.revision, put.version), put.revision.to_string()),
    })
}

pub(in crate::cli) async fn del(session: &mut Session, args: &Del) -> Result<(), CliError> {
    let mode = session.mode.among(WRITE_MODES)?;
    let range = Request::new(Method::Delete, "/v1/kv");
    let (request, question) = if args.all {
        (range.flag("all", true), Some("every key".to_owned()))
    } else {
        match chosen(args.target.key.as_ref(), args.target.prefix.as_ref())? {
            Chosen::Key(_) if args.dry_run => {
                return Err(CliError::Usage("--dry-run goes with --prefix or --all".to_owned()));
            }
            Chosen::Key(key) => (Request::on_key(Method::Delete, "/v1/kv/", key).maybe("cas", args.cas), None),
            Chosen::Prefix(b"") => {
                return Err(CliError::Usage("an empty prefix is every key; say --all if you mean it".to_owned()));
            }
            Chosen::Prefix(_) if args.cas.is_some() => {
                return Err(CliError::Usage("--cas goes with a single key".to_owned()));
            }
            Chosen::Prefix(prefix) => {
                (range.with("prefix", prefix), Some(format!("every key that begins with {}", shown(prefix))))
            }
        }
    };
    let request = repeatable(request, &args.retry);
    let final_request = request.clone().flag("dry_run", args.dry_run);
    if session.prints_curl(&final_request)? {
        return Ok(());
    }
    if let Some(question) = question.filter(|_| !args.yes && !args.dry_run && can_ask()) {
        let mut trial = request.flag("dry_run", true);
        trial.headers.clear();
        let found: DeleteResult = session.send(&trial).await?.json()?;
        if !confirmed(&format!("delete {} keys, {question}?", found.deleted))? {
            note("nothing was deleted");
            return Err(CliError::Told(exit::OTHER));
        }
    }
    let answer = session.send(&final_request).await?;
    let verb = if args.dry_run { "would delete" } else { "deleted" };
    written(session, mode, &answer, |done: DeleteResult| {
        (format!("{verb} {}, revision {}", done.deleted, done.revision), done.deleted.to_string())
    })
}

/// Only a person at a terminal is asked.
fn can_ask() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

pub(super) fn confirmed(question: &str) -> Result<bool, CliError> {
    let mut stderr = std::io::stderr();
    write!(stderr, "{question} [y/N] ")
        .and_then(|()| stderr.flush())
        .map_err(|error| CliError::io("stderr", &error))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| CliError::io("standard input", &error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(in crate::cli) async fn incr(session: &mut Session, args: &Incr) -> Result<(), CliError> {
    let mode = session.mode.among(WRITE_MODES)?;
    let mut request = Request::on_key(Method::Post, "/v1/counters/", &args.key.0)
        .maybe("add", (args.by != 1).then_some(args.by))
        .maybe("initial", args.initial)
        .maybe("min", args.min)
        .maybe("max", args.max)
        .maybe("ttl", args.ttl.map(duration_text));
    if args.clamp {
        request = request.with("on_limit", "clamp");
    }
    let request = repeatable(request, &args.retry);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    written(session, mode, &answer, |counter: Counter| (counter.value.to_string(), counter.value.to_string()))
}

/// `say` gives the sentence for people and the bare value.
pub(super) fn written<T: for<'de> Deserialize<'de>>(
    session: &mut Session,
    mode: Mode,
    answer: &Answer,
    say: impl Fn(T) -> (String, String),
) -> Result<(), CliError> {
    match mode {
        Mode::Json => session.out.json_as_sent(&answer.body),
        Mode::Ndjson => session.out.bytes(answer.body.trim_ascii_end()).and_then(|()| session.out.bytes(b"\n")),
        Mode::Value => session.out.line(say(answer.json()?).1),
        _ => session.out.line(say(answer.json()?).0),
    }
}

//! `tenure ratelimit`: takes permits, looks, or resets; a refusal is exit code 5, like a lock that is held.

use super::super::args::Ratelimit;
use super::super::exit::CliError;
use super::super::output::Mode;
use super::super::session::{Session, duration_text, repeatable};
use super::write::written;
use crate::client::{Method, Request};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct State {
    remaining: u64,
    retry_after_ms: u64,
    allowed: bool,
}

#[derive(Debug, Deserialize)]
struct Reset {
    deleted: u64,
}

const MODES: &[Mode] = &[Mode::Human, Mode::Json, Mode::Ndjson, Mode::Value];

pub(in crate::cli) async fn ratelimit(session: &mut Session, args: &Ratelimit) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let method = match (args.peek, args.reset) {
        (true, _) => Method::Get,
        (_, true) => Method::Delete,
        _ => Method::Post,
    };
    let takes = method == Method::Post;
    let request = Request::on_key(method, "/v1/ratelimits/", &args.key.0)
        .maybe("limit", args.limit)
        .maybe("per", args.per.map(duration_text))
        .maybe("burst", args.burst)
        .maybe("cost", (takes && args.cost != 1).then_some(args.cost))
        .flag("strict", takes);
    let request = repeatable(request, &args.retry);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    if args.reset {
        let say = |reset: Reset| if reset.deleted == 0 { "was full" } else { "is full again" }.to_owned();
        return written(session, mode, &answer, |reset: Reset| (say(reset), String::new()));
    }
    written(session, mode, &answer, |state: State| {
        let verdict = if state.allowed { "allowed" } else { "not allowed" };
        let wait = if state.allowed { String::new() } else { format!(", again in {} ms", state.retry_after_ms) };
        (format!("{verdict}, {} left{wait}", state.remaining), state.remaining.to_string())
    })
}

//! `status`, `health`, `hash` and `compact`: what concerns members rather than keys.

use crate::cli::args::{Compact, Hash, Status};
use crate::cli::exit::{self, CliError};
use crate::cli::output::Mode;
use crate::cli::session::{Session, duration_text, note};
use crate::client::{Answer, Endpoint, Error, Method, Request};
use indicatif::HumanBytes;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

const MODES: &[Mode] = &[Mode::Human, Mode::Json, Mode::Ndjson];
/// Clears a terminal and goes to its top.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Facts {
    name: String,
    version: String,
    leader: Option<String>,
    is_leader: bool,
    learner: bool,
    term: u64,
    applied_index: u64,
    revision: i64,
    db_bytes: u64,
    db_bytes_in_use: u64,
    quota_bytes: u64,
    keys: u64,
    uptime_ms: u64,
    alarms: Vec<String>,
}

/// Asks every endpoint the same; each answers for itself.
async fn ask_each(session: &Session, request: &Request) -> Vec<(Endpoint, Result<Answer, Error>)> {
    let mut answers = Vec::new();
    for endpoint in session.client.endpoints() {
        answers.push((endpoint.clone(), session.client.send_to(endpoint, request).await));
    }
    answers
}

/// The first failure is the command's, after everything that could be told was told.
fn first_failure(answers: Vec<(Endpoint, Result<Answer, Error>)>) -> Result<(), CliError> {
    let failed = answers.into_iter().find_map(|(_, answer)| answer.err());
    failed.map_or(Ok(()), |error| Err(error.into()))
}

pub(in crate::cli) async fn status(session: &mut Session, args: &Status) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = Request::new(Method::Get, "/v1/status");
    if session.prints_curl(&request)? {
        return Ok(());
    }
    loop {
        let answers = ask_each(session, &request).await;
        if args.watch.is_some() && session.out.is_terminal() {
            session.out.bytes(CLEAR)?;
        }
        match mode {
            Mode::Human => status_table(session, &answers)?,
            _ => documents(session, mode, &answers)?,
        }
        match args.watch {
            None => return first_failure(answers),
            Some(every) => {
                session.out.flush()?;
                tokio::time::sleep(every.max(Duration::from_millis(100))).await;
            }
        }
    }
}

fn status_table(session: &mut Session, answers: &[(Endpoint, Result<Answer, Error>)]) -> Result<(), CliError> {
    let mut rows = Vec::new();
    for (endpoint, answer) in answers {
        let Ok(answer) = answer else { continue };
        let facts: Facts = answer.json()?;
        let role = match (facts.is_leader, facts.learner) {
            (true, _) => "leader",
            (false, true) => "learner",
            (false, false) => "follower",
        };
        rows.push(vec![
            endpoint.authority().to_owned(),
            facts.name,
            facts.version,
            role.to_owned(),
            facts.leader.unwrap_or_else(|| "none".to_owned()),
            facts.term.to_string(),
            facts.revision.to_string(),
            facts.applied_index.to_string(),
            facts.keys.to_string(),
            format!("{} of {}", HumanBytes(facts.db_bytes_in_use), HumanBytes(facts.quota_bytes)),
            HumanBytes(facts.db_bytes).to_string(),
            humantime::format_duration(Duration::from_secs(facts.uptime_ms / 1000)).to_string(),
            if facts.alarms.is_empty() { "-".to_owned() } else { facts.alarms.join(", ") },
        ]);
    }
    if !rows.is_empty() {
        let header = [
            "ENDPOINT", "NAME", "VERSION", "ROLE", "LEADER", "TERM", "REVISION", "APPLIED", "KEYS", "DATA", "DISK",
            "UP", "ALARMS",
        ];
        session.out.table(&header, rows)?;
    }
    // A single failure is told as the command's error.
    for (_, answer) in answers.iter().filter(|_| answers.len() > 1) {
        if let Err(error) = answer {
            note(&error.to_string());
        }
    }
    Ok(())
}

/// One document for a single endpoint, a list for several; NDJSON has a line for each.
fn documents(session: &mut Session, mode: Mode, answers: &[(Endpoint, Result<Answer, Error>)]) -> Result<(), CliError> {
    if let ([(_, Ok(answer))], Mode::Json) = (answers, mode) {
        return session.out.json_as_sent(&answer.body);
    }
    let mut documents = Vec::new();
    for (endpoint, answer) in answers {
        match answer {
            Ok(answer) => {
                let mut document: Value = answer.json()?;
                document["endpoint"] = endpoint.base().into();
                documents.push(document);
            }
            Err(error) if answers.len() > 1 => {
                documents.push(json!({ "endpoint": endpoint.base(), "error": error.to_string() }));
            }
            Err(_) => {}
        }
    }
    match mode {
        Mode::Ndjson => documents.iter().try_for_each(|document| session.out.json_line(document)),
        _ if documents.is_empty() => Ok(()),
        _ => session.out.json(&documents),
    }
}

pub(in crate::cli) async fn health(session: &mut Session) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = Request::new(Method::Get, "/readyz").flag("verbose", true);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answers = ask_each(session, &request).await;
    let verdicts: Vec<(&Endpoint, Option<String>)> =
        answers.iter().map(|(endpoint, answer)| (endpoint, answer.as_ref().err().map(reason))).collect();
    match mode {
        Mode::Human => {
            for (endpoint, reason) in &verdicts {
                match reason {
                    None => session.out.line(format!("{endpoint} is healthy"))?,
                    Some(reason) => session.out.line(format!("{endpoint} is unhealthy: {reason}"))?,
                }
            }
        }
        _ => {
            for (endpoint, reason) in &verdicts {
                let healthy = reason.is_none();
                let document = json!({ "endpoint": endpoint.base(), "healthy": healthy, "reason": reason });
                session.out.json_line(&document)?;
            }
        }
    }
    if verdicts.iter().any(|(_, reason)| reason.is_some()) { Err(CliError::Told(exit::UNHEALTHY)) } else { Ok(()) }
}

/// The checks that failed, if the member listed them.
fn reason(error: &Error) -> String {
    let Some(problem) = error.problem() else { return error.to_string() };
    let failed: Vec<&str> = problem.document.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
    if failed.is_empty() { problem.summary() } else { failed.join(", ") }
}

pub(in crate::cli) async fn compact(session: &mut Session, args: &Compact) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = Request::new(Method::Post, "/v1/compact")
        .maybe("revision", args.revision)
        .maybe("keep_revisions", args.keep_revisions)
        .maybe("keep", args.keep.map(duration_text));
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    if mode != Mode::Human {
        return session.out.json_as_sent(&answer.body);
    }
    let compacted: Value = answer.json()?;
    session.out.line(format!("history is kept after revision {}", compacted["compacted_revision"]))
}

pub(in crate::cli) async fn hash(session: &mut Session, args: &Hash) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = Request::new(Method::Get, "/v1/hash").maybe("revision", args.rev);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answers = ask_each(session, &request).await;
    if mode == Mode::Human {
        let mut rows = Vec::new();
        for (endpoint, answer) in &answers {
            let Ok(answer) = answer else { continue };
            let hash: Value = answer.json()?;
            let digits = hash["hash"].as_str().unwrap_or_default().to_owned();
            let numbers = ["revision", "compacted_revision", "applied_index"].map(|name| hash[name].to_string());
            rows.push([vec![endpoint.authority().to_owned(), digits], numbers.to_vec()].concat());
        }
        if !rows.is_empty() {
            session.out.table(&["ENDPOINT", "HASH", "REVISION", "COMPACTED", "APPLIED"], rows)?;
        }
    } else {
        documents(session, mode, &answers)?;
    }
    first_failure(answers)
}

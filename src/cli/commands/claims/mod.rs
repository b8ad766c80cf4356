//! `lock`, `sem` and `elect`: looking at claims, giving them up, and holding one (`holder`) while a command
//! runs (`child`).

mod child;
mod holder;

use super::super::claim_args::{ClaimCommand, ClaimLeased, ClaimLs, Elect, ElectCommand, Lock, Sem};
use super::super::exit::{CliError, NOT_FOUND};
use super::super::output::Mode;
use super::super::session::Session;
use super::write::written;
use crate::client::{Body, Lines, Method, Request, encode_component};
use holder::{Asking, Kind};
use serde::Deserialize;
use serde_json::Value;

const MODES: &[Mode] = &[Mode::Human, Mode::Json, Mode::Ndjson, Mode::Value];

fn on_name(method: Method, kind: Kind, name: &str, rest: &str) -> Request {
    Request::new(method, format!("/v1/{}/{}{rest}", kind.plural(), encode_component(name.as_bytes())))
}

fn on_claim(method: Method, kind: Kind, claim: &ClaimLeased) -> Request {
    on_name(method, kind, &claim.name, &format!("/claims/{}", claim.lease))
}

pub(in crate::cli) async fn lock(session: &mut Session, args: Lock) -> Result<(), CliError> {
    match args.command {
        Some(command) => claim_command(session, Kind::Lock, &command).await,
        None => holder::hold(session, Asking { kind: Kind::Lock, query: Vec::new(), again: false }, args.hold).await,
    }
}

pub(in crate::cli) async fn sem(session: &mut Session, args: Sem) -> Result<(), CliError> {
    if let Some(command) = args.command {
        return claim_command(session, Kind::Semaphore, &command).await;
    }
    let mut query = vec![("permits", args.permits.to_string())];
    query.extend(args.limit.map(|limit| ("limit", limit.to_string())));
    holder::hold(session, Asking { kind: Kind::Semaphore, query, again: false }, args.hold).await
}

pub(in crate::cli) async fn elect(session: &mut Session, args: Elect) -> Result<(), CliError> {
    let kind = Kind::Election;
    match args.command {
        Some(ElectCommand::Ls(ls)) => return list(session, kind, &ls).await,
        Some(ElectCommand::Status(named)) => return show(session, kind, &named.name).await,
        Some(ElectCommand::Resign(claim)) => return release(session, kind, &claim).await,
        Some(ElectCommand::Proclaim(say)) => {
            let body = Body::Inline(say.value.into_bytes().into());
            let request = on_claim(Method::Put, kind, &say.claim).body(body);
            return simple(session, request, "published").await;
        }
        None => {}
    }
    let name = args.hold.name.clone().unwrap_or_default();
    if args.observe {
        return observe(session, &name).await;
    }
    if args.leader {
        return leader(session, &name).await;
    }
    let query = vec![("value", args.value)];
    holder::hold(session, Asking { kind, query, again: !args.once }, args.hold).await
}

async fn claim_command(session: &mut Session, kind: Kind, command: &ClaimCommand) -> Result<(), CliError> {
    match command {
        ClaimCommand::Ls(ls) => list(session, kind, ls).await,
        ClaimCommand::Status(named) => show(session, kind, &named.name).await,
        ClaimCommand::Release(claim) => release(session, kind, claim).await,
        ClaimCommand::Break(named) => {
            simple(session, on_name(Method::Delete, kind, &named.name, ""), "taken away").await
        }
    }
}

async fn release(session: &mut Session, kind: Kind, claim: &ClaimLeased) -> Result<(), CliError> {
    simple(session, on_claim(Method::Delete, kind, claim), "given up").await
}

async fn simple(session: &mut Session, request: Request, done: &str) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    written(session, mode, &answer, |_: Value| (done.to_owned(), String::new()))
}

#[derive(Debug, Deserialize)]
struct Claim {
    token: i64,
    lease: String,
    owner: Option<String>,
    value: Option<String>,
    permits: Option<u64>,
    remaining_ms: Option<u64>,
}

/// A lock, semaphore or election, by whichever members it has.
#[derive(Debug, Deserialize)]
struct Queue {
    name: String,
    holder: Option<Claim>,
    leader: Option<Claim>,
    #[serde(default)]
    holders: Vec<Claim>,
    #[serde(default)]
    waiters: Vec<Claim>,
    #[serde(default)]
    candidates: Vec<Claim>,
}

impl Queue {
    fn holding(&self) -> impl Iterator<Item = &Claim> {
        self.holder.iter().chain(&self.leader).chain(&self.holders)
    }

    fn waiting(&self) -> impl Iterator<Item = &Claim> {
        self.waiters.iter().chain(&self.candidates)
    }
}

#[derive(Debug, Deserialize)]
struct Page {
    items: Vec<Queue>,
    next: Option<String>,
}

fn row(state: &str, claim: &Claim) -> Vec<String> {
    let left = claim.remaining_ms.map(|ms| format!("{} s", ms / 1000)).unwrap_or_default();
    let what = claim.value.clone().or_else(|| claim.permits.map(|permits| permits.to_string())).unwrap_or_default();
    let owner = claim.owner.clone().unwrap_or_default();
    vec![state.to_owned(), owner, claim.token.to_string(), left, claim.lease.clone(), what]
}

async fn list(session: &mut Session, kind: Kind, args: &ClaimLs) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let mut request =
        Request::new(Method::Get, format!("/v1/{}", kind.plural())).maybe("prefix", args.prefix.as_deref());
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let mut rows = Vec::new();
    loop {
        let answer = session.send(&request).await?;
        let page: Page = answer.json()?;
        match mode {
            Mode::Json => session.out.json_as_sent(&answer.body)?,
            Mode::Ndjson => {
                let raw: Value = answer.json()?;
                for item in raw["items"].as_array().into_iter().flatten() {
                    session.out.json_line(item)?;
                }
            }
            Mode::Value => page.items.iter().try_for_each(|queue| session.out.line(&queue.name))?,
            _ => rows.extend(page.items.iter().map(|queue| {
                let by: Vec<&str> =
                    queue.holding().map(|claim| claim.owner.as_deref().unwrap_or(&claim.lease)).collect();
                vec![queue.name.clone(), by.join(", "), queue.waiting().count().to_string()]
            })),
        }
        match page.next {
            Some(next) => request = request.with("cursor", next),
            None => break,
        }
    }
    if mode == Mode::Human { session.out.table(&["NAME", "HELD BY", "WAITING"], rows) } else { Ok(()) }
}

async fn show(session: &mut Session, kind: Kind, name: &str) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = on_name(Method::Get, kind, name, "");
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    if mode == Mode::Human {
        let queue: Queue = answer.json()?;
        let rows = queue.holding().map(|claim| row("held", claim));
        let rows = rows.chain(queue.waiting().map(|claim| row("waiting", claim))).collect();
        return session.out.table(&["STATE", "OWNER", "TOKEN", "LEFT", "LEASE", ""], rows);
    }
    written(session, mode, &answer, |queue: Queue| {
        let holders: Vec<String> = queue.holding().map(|claim| claim.lease.clone()).collect();
        (String::new(), holders.join("\n"))
    })
}

async fn leader(session: &mut Session, name: &str) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = on_name(Method::Get, Kind::Election, name, "");
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    let queue: Queue = answer.json()?;
    let Some(leader) = queue.leader else {
        let message = format!("nobody leads election '{name}'");
        return Err(CliError::Failed { message, hint: None, code: NOT_FOUND });
    };
    match mode {
        Mode::Json | Mode::Ndjson => session.out.json_as_sent(&answer.body),
        _ => session.out.line(leader.value.unwrap_or_default()),
    }
}

/// Until the stream ends, which is an error: a follower must know that it follows nobody.
async fn observe(session: &mut Session, name: &str) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = on_name(Method::Get, Kind::Election, name, "/observe").streaming();
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let mut lines = Lines::new(session.open_stream(&request).await?);
    while let Some(line) = lines.next().await? {
        let said: Value = serde_json::from_slice(&line).map_err(|error| CliError::other(error.to_string()))?;
        let kind = said["type"].as_str().unwrap_or_default();
        match mode {
            _ if kind == "bookmark" => continue,
            Mode::Json | Mode::Ndjson => session.out.json_line(&said)?,
            Mode::Value => session.out.line(said["value"].as_str().unwrap_or_default())?,
            _ if kind == "vacant" => session.out.line("vacant")?,
            _ => {
                let value = said["value"].as_str().unwrap_or_default();
                session.out.line(format!("leader {value} (token {})", said["token"]))?;
            }
        }
        session.out.flush()?;
    }
    Err(CliError::other("the member ended the stream"))
}

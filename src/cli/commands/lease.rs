//! `ttl` and `lease`.

use super::write::{WRITE_MODES, written};
use crate::cli::args::{LeaseCommand, LeaseGet, LeaseGrant, LeaseHold, LeaseId, LeaseLs, Ttl};
use crate::cli::exit::{self, CliError};
use crate::cli::output::{Mode, shown};
use crate::cli::session::{Session, duration_text, repeatable};
use crate::client::{Body, BytesForm, Lines, Method, Request};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

const LEASES: &str = "/v1/leases";

#[derive(Debug, Deserialize)]
struct KeyTtl {
    ttl_ms: Option<u64>,
    remaining_ms: Option<u64>,
    lease: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Lease {
    id: String,
    name: Option<String>,
    metadata: Option<Value>,
    ttl_ms: u64,
    remaining_ms: u64,
    keys: Option<Vec<KeyName>>,
}

#[derive(Debug, Deserialize)]
struct KeyName {
    key: Option<String>,
    key_base64: Option<String>,
}

impl KeyName {
    fn shown(&self) -> String {
        shown(&BytesForm { text: self.key.as_deref(), base64: self.key_base64.as_deref() }.bytes())
    }
}

#[derive(Debug, Deserialize)]
struct Kept {
    ttl_ms: u64,
}

#[derive(Debug, Deserialize)]
struct Revoked {
    deleted: u64,
    revision: i64,
}

/// One line of a held lease.
#[derive(Debug, Deserialize)]
struct Held {
    r#type: String,
    ttl_ms: Option<u64>,
    code: Option<String>,
}

fn time(ms: u64) -> String {
    duration_text(Duration::from_millis(ms))
}

pub(in crate::cli) async fn ttl(session: &mut Session, args: &Ttl) -> Result<(), CliError> {
    let mode = session.mode.among(WRITE_MODES)?;
    let on_key = |method| Request::on_key(method, "/v1/ttl/", &args.key.0);
    let request = match args.set {
        Some(ttl) => on_key(Method::Put).with("ttl", duration_text(ttl)),
        None if args.clear => on_key(Method::Delete),
        None => on_key(Method::Get),
    };
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    // As Redis says it, a script reads -1 for a key that stays.
    written(session, mode, &answer, |ttl: KeyTtl| match (ttl.ttl_ms, ttl.remaining_ms) {
        (Some(ttl_ms), Some(left_ms)) => {
            let lease = ttl.lease.map(|lease| format!(", lease {lease}")).unwrap_or_default();
            (format!("{} left of {}{lease}", time(left_ms), time(ttl_ms)), left_ms.to_string())
        }
        _ => ("no TTL: it stays".to_owned(), "-1".to_owned()),
    })
}

pub(in crate::cli) async fn lease(session: &mut Session, command: &LeaseCommand) -> Result<(), CliError> {
    match command {
        LeaseCommand::Grant(grant) => self::grant(session, grant).await,
        LeaseCommand::Ls(ls) => self::ls(session, ls).await,
        LeaseCommand::Get(get) => self::get(session, get).await,
        LeaseCommand::Keepalive(lease) => keep_alive(session, lease).await,
        LeaseCommand::Hold(hold) => self::hold(session, hold).await,
        LeaseCommand::Revoke(lease) => revoke(session, lease).await,
    }
}

/// The path of a lease, for ids that are hexadecimal: another is refused here, not sent somewhere else.
fn path_of(lease: &LeaseId, action: &str) -> Result<String, CliError> {
    let id = &lease.id;
    if id.is_empty() || id.len() > 16 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(CliError::Usage(format!(
            "{} is no lease: an id has 1 to 16 hexadecimal digits",
            shown(id.as_bytes())
        )));
    }
    Ok(format!("{LEASES}/{id}{action}"))
}

async fn grant(session: &mut Session, args: &LeaseGrant) -> Result<(), CliError> {
    let mode = session.mode.among(WRITE_MODES)?;
    let mut request = Request::new(Method::Post, LEASES)
        .with("ttl", duration_text(args.ttl))
        .maybe("name", args.name.as_ref())
        .maybe("id", args.id.as_ref());
    if let Some(metadata) = &args.metadata {
        let metadata: Value = serde_json::from_str(metadata)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| CliError::Usage("--metadata is not a JSON object".to_owned()))?;
        let body = json!({ "metadata": metadata }).to_string();
        request = request.header("Content-Type", "application/json").body(Body::Inline(body.into()));
    }
    let request = repeatable(request, &args.retry);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    // For people too just the id: it is what the next command wants.
    written(session, mode, &answer, |lease: Lease| (lease.id.clone(), lease.id))
}

async fn ls(session: &mut Session, args: &LeaseLs) -> Result<(), CliError> {
    let mode = session.mode.among(&[Mode::Human, Mode::Json, Mode::Ndjson, Mode::Value])?;
    let mut request = Request::new(Method::Get, LEASES).maybe("prefix", args.prefix.as_ref());
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let mut items: Vec<Value> = Vec::new();
    loop {
        let mut page: Value = session.send(&request).await?.json()?;
        if let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) {
            items.extend(more);
        }
        match page.get("next").and_then(Value::as_str) {
            Some(next) => request = request.with("cursor", next),
            None => break,
        }
    }
    match mode {
        Mode::Json => return session.out.json(&json!({ "items": items, "more": false })),
        Mode::Ndjson => return items.iter().try_for_each(|item| session.out.json_line(item)),
        _ => {}
    }
    let parse = |item| serde_json::from_value(item).map_err(|error| CliError::other(format!("lease ls: {error}")));
    let leases = items.into_iter().map(parse).collect::<Result<Vec<Lease>, _>>()?;
    if mode == Mode::Value {
        return leases.iter().try_for_each(|lease| session.out.line(&lease.id));
    }
    let row = |lease: &Lease| {
        let name = lease.name.as_ref().map_or("-".to_owned(), |name| shown(name.as_bytes()));
        vec![lease.id.clone(), time(lease.ttl_ms), time(lease.remaining_ms), name]
    };
    session.out.table(&["ID", "TTL", "LEFT", "NAME"], leases.iter().map(row).collect())
}

async fn get(session: &mut Session, args: &LeaseGet) -> Result<(), CliError> {
    let mode = session.mode.among(WRITE_MODES)?;
    let request = Request::new(Method::Get, path_of(&args.lease, "")?).flag("keys", args.keys);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    written(session, mode, &answer, |lease: Lease| {
        let mut text = format!("{} left of {}", time(lease.remaining_ms), time(lease.ttl_ms));
        if let Some(name) = &lease.name {
            text += &format!("\nname {}", shown(name.as_bytes()));
        }
        if let Some(metadata) = &lease.metadata {
            text += &format!("\nmetadata {}", shown(metadata.to_string().as_bytes()));
        }
        for key in lease.keys.iter().flatten() {
            text += &format!("\nkey {}", key.shown());
        }
        (text, lease.remaining_ms.to_string())
    })
}

async fn keep_alive(session: &mut Session, args: &LeaseId) -> Result<(), CliError> {
    let mode = session.mode.among(WRITE_MODES)?;
    let request = Request::new(Method::Post, path_of(args, "/keepalive")?);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    written(session, mode, &answer, |kept: Kept| (format!("{} left", time(kept.ttl_ms)), kept.ttl_ms.to_string()))
}

async fn revoke(session: &mut Session, args: &LeaseId) -> Result<(), CliError> {
    let mode = session.mode.among(WRITE_MODES)?;
    let request = Request::new(Method::Delete, path_of(args, "")?);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    written(session, mode, &answer, |done: Revoked| {
        (format!("revoked, deleted {}, revision {}", done.deleted, done.revision), done.deleted.to_string())
    })
}

/// Ends with the stream. When this process ends first, its connection does, and the server revokes.
async fn hold(session: &mut Session, args: &LeaseHold) -> Result<(), CliError> {
    let mode = session.mode.among(&[Mode::Human, Mode::Ndjson])?;
    let mut request = Request::new(Method::Post, path_of(&args.lease, "/hold")?)
        .maybe("every", args.every.map(duration_text))
        .streaming();
    if args.keep {
        request = request.with("revoke_on_disconnect", "false");
    }
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let mut lines = Lines::new(session.open_stream(&request).await?);
    let id = &args.lease.id;
    let ended = |why: &str, code| {
        Err(CliError::Failed { message: format!("lease {id} is no longer held: {why}"), hint: None, code })
    };
    while let Some(line) = lines.next().await? {
        let held: Held = serde_json::from_slice(&line).map_err(|error| CliError::other(format!("hold: {error}")))?;
        match (mode, held.ttl_ms) {
            (Mode::Ndjson, _) => session.out.bytes(&line).and_then(|()| session.out.bytes(b"\n"))?,
            (_, Some(ttl_ms)) => session.out.line(format!("{} {id}, {} left", held.r#type, time(ttl_ms)))?,
            (_, None) => {}
        }
        session.out.flush()?;
        match held.code.as_deref() {
            Some("shutting-down") => return ended("the member shuts down, hold it elsewhere", exit::UNAVAILABLE),
            Some("lease-not-found") => return ended("it has ended", exit::NOT_FOUND),
            Some(code) => return ended(code, exit::OTHER),
            None => {}
        }
    }
    ended("the stream ended", exit::UNAVAILABLE)
}

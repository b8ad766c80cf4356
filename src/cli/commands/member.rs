//! `member` and `leader`: who the members are, and changes of them.

use crate::cli::args::{LeaderCommand, MemberAdd, MemberCommand, MemberReplace};
use crate::cli::exit::CliError;
use crate::cli::output::Mode;
use crate::cli::session::{Session, duration_text, note};
use crate::client::{Method, Request, encode_component};
use serde_json::Value;
use std::time::Duration;

const MODES: &[Mode] = &[Mode::Human, Mode::Json, Mode::Ndjson];
const MEMBERS: &str = "/v1/cluster/members";
/// What the change itself may take, besides the wait for the learner.
const CHANGE: Duration = Duration::from_secs(10);

fn path(member: &str, action: &str) -> String {
    format!("{MEMBERS}/{}{action}", encode_component(member.as_bytes()))
}

pub(in crate::cli) async fn member(session: &mut Session, command: &MemberCommand) -> Result<(), CliError> {
    match command {
        MemberCommand::List => list(session).await,
        MemberCommand::Add(MemberAdd { name, peer_url, client_url }) => {
            let request = Request::new(Method::Post, MEMBERS)
                .with("name", name)
                .with("peer_url", peer_url)
                .maybe("client_url", client_url.as_ref());
            let Some(added) = changed(session, request).await? else { return Ok(()) };
            session.out.line(format!("added {name} as a learner; on its host run"))?;
            session.out.line(format!("  {}", text(&added, "join")))?;
            note(&format!("once it has caught up: tenure member promote {name}"));
            Ok(())
        }
        MemberCommand::Promote(promote) => {
            let request = Request::new(Method::Post, path(&promote.member, "/promote"))
                .with("wait", duration_text(promote.wait))
                .maybe("max_lag", promote.max_lag)
                .waiting(promote.wait + CHANGE);
            if changed(session, request).await?.is_some() {
                session.out.line(format!("{} votes", promote.member))?;
            }
            Ok(())
        }
        MemberCommand::Remove(remove) => {
            let request = Request::new(Method::Delete, path(&remove.member, "")).flag("force", remove.force);
            if changed(session, request).await?.is_some() {
                session.out.line(format!("{} is no member any more", remove.member))?;
            }
            Ok(())
        }
        MemberCommand::Replace(MemberReplace { old, name, peer_url, wait }) => {
            let request = Request::new(Method::Post, path(old, "/replace"))
                .with("name", name)
                .with("peer_url", peer_url)
                .with("wait", duration_text(*wait))
                .waiting(*wait + CHANGE);
            if changed(session, request).await?.is_some() {
                session.out.line(format!("{name} votes in the place of {old}"))?;
            }
            Ok(())
        }
    }
}

pub(in crate::cli) async fn leader(session: &mut Session, command: Option<&LeaderCommand>) -> Result<(), CliError> {
    if let Some(LeaderCommand::Move { to }) = command {
        let request = Request::new(Method::Post, "/v1/cluster/leader").maybe("to", to.as_ref());
        let Some(moved) = changed(session, request).await? else { return Ok(()) };
        return session.out.line(format!("{} leads", text(&moved, "leader")));
    }
    let mode = session.mode.among(MODES)?;
    let request = Request::new(Method::Get, "/v1/cluster");
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    let cluster: Value = answer.json()?;
    let leader = cluster["leader"].as_str();
    match (mode, leader) {
        (Mode::Human, Some(leader)) => session.out.line(leader),
        (Mode::Human, None) => Err(CliError::other("no leader is known")),
        _ => session.out.json(&serde_json::json!({ "leader": leader, "term": cluster["term"] })),
    }
}

async fn list(session: &mut Session) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = Request::new(Method::Get, MEMBERS);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    if mode == Mode::Json {
        return session.out.json_as_sent(&answer.body);
    }
    let found: Value = answer.json()?;
    let members = found["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    if mode == Mode::Ndjson {
        return members.iter().try_for_each(|member| session.out.json_line(member));
    }
    let columns = ["name", "id", "role", "state", "lag_entries", "peer_url", "client_url"];
    let rows = members.iter().map(|member| columns.map(|name| text(member, name)).to_vec()).collect();
    session.out.table(&["NAME", "ID", "ROLE", "STATE", "LAG", "PEER", "CLIENT"], rows)
}

/// Sends a change. Its answer, if there is more to say than the document, which was written then.
async fn changed(session: &mut Session, request: Request) -> Result<Option<Value>, CliError> {
    let mode = session.mode.among(MODES)?;
    if session.prints_curl(&request)? {
        return Ok(None);
    }
    let answer = session.send(&request).await?;
    if mode != Mode::Human {
        session.out.json_as_sent(&answer.body)?;
        return Ok(None);
    }
    Ok(Some(answer.json()?))
}

fn text(value: &Value, name: &str) -> String {
    match &value[name] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

//! `get` and `ls`.

use super::pages::{Page, Pager};
use super::watch::event_line;
use super::{Chosen, chosen};
use crate::cli::args::{Get, Ls, ReadFrom};
use crate::cli::exit::CliError;
use crate::cli::output::{Mode, shown};
use crate::cli::render::{self, Pair};
use crate::cli::session::{Session, duration_text, reading};
use crate::client::{Entry, Follow, Followed, Method, Request};
use owo_colors::Style;
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// A whole listing, in the shape of one page.
#[derive(Debug, Serialize)]
struct Document<'a> {
    revision: i64,
    items: &'a [Entry],
    #[serde(skip_serializing_if = "Option::is_none")]
    prefixes: Option<Vec<String>>,
    more: bool,
}

const KV: &str = "/v1/kv/";
const RANGE: &str = "/v1/kv";
/// Clears a terminal and goes to its top.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";
const REDRAW_AFTER: Duration = Duration::from_millis(200);

pub(in crate::cli) async fn get(session: &mut Session, args: &Get) -> Result<(), CliError> {
    match chosen(args.target.key.as_ref(), args.target.prefix.as_ref())? {
        Chosen::Key(key) => get_key(session, args, key).await,
        Chosen::Prefix(prefix) => get_prefix(session, &args.read, prefix).await,
    }
}

async fn get_key(session: &mut Session, args: &Get, key: &[u8]) -> Result<(), CliError> {
    let mut request = reading(Request::on_key(Method::Get, KV, key), &args.read);
    if let Some(wait) = args.wait {
        request = request.with("wait", duration_text(wait)).waiting(wait);
    }
    let raw = matches!(session.mode, Mode::Human | Mode::Value) && !args.meta;
    if !raw {
        request = request.with("format", "json");
    }
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    if raw {
        session.out.bytes(&answer.body)?;
        // So that the prompt starts on its own line; a script gets the bytes and nothing else.
        let newline = session.mode == Mode::Human && session.out.is_terminal() && !answer.body.ends_with(b"\n");
        return if newline { session.out.bytes(b"\n") } else { Ok(()) };
    }
    match session.mode {
        Mode::Json => session.out.json_as_sent(&answer.body),
        Mode::Ndjson => session.out.json_line(&answer.json::<Entry>()?),
        Mode::Human | Mode::Value => meta(session, &answer.json()?),
        Mode::Env | Mode::Yaml | Mode::Properties => {
            let entry: Entry = answer.json()?;
            rendered(session, &[(entry.key_bytes(), entry.value_bytes())], b"")
        }
    }
}

fn meta(session: &mut Session, entry: &Entry) -> Result<(), CliError> {
    let mut rows = vec![
        ("key", shown(&entry.key_bytes())),
        ("mod_revision", entry.mod_revision.to_string()),
        ("create_revision", entry.create_revision.to_string()),
        ("version", entry.version.to_string()),
    ];
    rows.extend(entry.content_type.clone().map(|content_type| ("content_type", content_type)));
    rows.extend(entry.lease.clone().map(|lease| ("lease", lease)));
    let ttl = entry.ttl_ms.map(|ttl_ms| duration_text(Duration::from_millis(ttl_ms)));
    rows.extend(ttl.map(|ttl| ("ttl", ttl)));
    rows.push(("size", entry.value_len().to_string()));
    rows.push(("value", shown(&entry.value_bytes())));
    for (name, value) in rows {
        let name = session.out.paint(&format!("{name:<15}"), Style::new().bold());
        session.out.line(format!("{name} {value}"))?;
    }
    Ok(())
}

async fn get_prefix(session: &mut Session, read: &ReadFrom, prefix: &[u8]) -> Result<(), CliError> {
    let request = reading(Request::new(Method::Get, RANGE).with("prefix", prefix), read);
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let mut pager = Pager::new(request);
    let mut gathered: Vec<Entry> = Vec::new();
    let mut revision = 0;
    while let Some(page) = pager.next(session).await? {
        revision = page.revision;
        match session.mode {
            Mode::Ndjson => page.items.iter().try_for_each(|entry| session.out.json_line(entry))?,
            Mode::Value => {
                for entry in &page.items {
                    session.out.bytes(&entry.value_bytes())?;
                    session.out.bytes(b"\n")?;
                }
            }
            Mode::Human | Mode::Json | Mode::Env | Mode::Yaml | Mode::Properties => gathered.extend(page.items),
        }
    }
    match session.mode {
        Mode::Ndjson | Mode::Value => Ok(()),
        Mode::Json => session.out.json(&Document { revision, items: &gathered, prefixes: None, more: false }),
        Mode::Human => {
            let row = |entry: &Entry| vec![shown(&entry.key_bytes()), shown(&entry.value_bytes())];
            session.out.table(&["KEY", "VALUE"], gathered.iter().map(row).collect())
        }
        Mode::Env | Mode::Yaml | Mode::Properties => {
            let pairs: Vec<Pair> = gathered.iter().map(|entry| (entry.key_bytes(), entry.value_bytes())).collect();
            rendered(session, &pairs, prefix)
        }
    }
}

fn rendered(session: &mut Session, pairs: &[Pair], prefix: &[u8]) -> Result<(), CliError> {
    let text = match session.mode {
        Mode::Env => render::env(pairs, prefix)?,
        Mode::Properties => render::properties(pairs, prefix)?,
        Mode::Yaml | Mode::Human | Mode::Json | Mode::Ndjson | Mode::Value => render::yaml(pairs, prefix)?,
    };
    session.out.bytes(text.as_bytes())
}

pub(in crate::cli) async fn ls(session: &mut Session, args: &Ls) -> Result<(), CliError> {
    let mode = session.mode.among(&[Mode::Human, Mode::Json, Mode::Ndjson, Mode::Value])?;
    let prefix = args.prefix.as_ref().map_or(&b""[..], |prefix| &prefix.0);
    let wants_values = matches!(mode, Mode::Json | Mode::Ndjson) && !args.keys;
    let mut request = reading(Request::new(Method::Get, RANGE).with("prefix", prefix), &args.read)
        .flag("count_only", args.count)
        .flag("keys_only", !args.count && !wants_values);
    if !args.recursive && !args.count {
        request = request.with("delimiter", "/");
    }
    if session.prints_curl(&request)? {
        return Ok(());
    }
    if args.count {
        return count(session, &request, mode).await;
    }
    if !args.watch {
        return listed(session, args, mode, request).await.map(drop);
    }
    loop {
        let redraws = session.out.is_terminal();
        if redraws {
            session.out.bytes(CLEAR)?;
        }
        let revision = listed(session, args, mode, request.clone()).await?;
        session.out.flush()?;
        // Returns only where there is a screen to draw anew.
        changes(session, mode, prefix, revision, redraws).await?;
    }
}

/// Waits for a change of what is listed, or goes on writing each as a line.
async fn changes(
    session: &mut Session,
    mode: Mode,
    prefix: &[u8],
    revision: i64,
    redraws: bool,
) -> Result<(), CliError> {
    let request = Request::new(Method::Get, "/v1/watch").with("prefix", prefix).with("values", "false");
    let mut follow = Follow::new(&session.client, request, Some(revision));
    loop {
        let events = match follow.next().await? {
            Followed::Events(events) => events,
            Followed::Synced(_) | Followed::Bookmark(_) | Followed::Reset(_) => continue,
        };
        if redraws {
            // What is written at once is drawn at once.
            tokio::time::sleep(REDRAW_AFTER).await;
            return Ok(());
        }
        for event in &events {
            match mode {
                Mode::Json | Mode::Ndjson => session.out.bytes(&event.line)?,
                Mode::Value => session.out.bytes(&event.key)?,
                _ => {
                    let line = event_line(&session.out, event);
                    session.out.bytes(line.as_bytes())?;
                }
            }
            session.out.bytes(b"\n")?;
        }
        session.out.flush()?;
    }
}

/// One listing, and the revision that it shows.
async fn listed(session: &mut Session, args: &Ls, mode: Mode, request: Request) -> Result<i64, CliError> {
    let mut pager = Pager::new(request);
    let mut listing = Listing { long: args.long, header_due: args.long, ..Listing::default() };
    while let Some(page) = pager.next(session).await? {
        listing.take(session, mode, page)?;
    }
    let revision = listing.revision;
    if mode == Mode::Json {
        let Listing { entries, groups, .. } = listing;
        let groups = groups.iter().map(|group| String::from_utf8_lossy(group).into_owned()).collect();
        let prefixes = (!args.recursive).then_some(groups);
        let document = Document { revision, items: &entries, prefixes, more: false };
        session.out.json(&document)?;
    }
    Ok(revision)
}

async fn count(session: &mut Session, request: &Request, mode: Mode) -> Result<(), CliError> {
    let answer = session.send(request).await?;
    match mode {
        Mode::Json | Mode::Ndjson => session.out.json_as_sent(&answer.body),
        _ => {
            let page: Page = answer.json()?;
            session.out.line(page.count.unwrap_or(0).to_string())
        }
    }
}

/// Writes what can be written at once, and keeps what one JSON document needs.
#[derive(Debug, Default)]
struct Listing {
    long: bool,
    header_due: bool,
    revision: i64,
    entries: Vec<Entry>,
    groups: Vec<Vec<u8>>,
}

impl Listing {
    fn take(&mut self, session: &mut Session, mode: Mode, page: Page) -> Result<(), CliError> {
        self.revision = page.revision;
        let groups: Vec<Vec<u8>> = page.groups().collect();
        match mode {
            Mode::Json => {
                self.entries.extend(page.items);
                self.groups.extend(groups);
                Ok(())
            }
            Mode::Ndjson => {
                page.items.iter().try_for_each(|entry| session.out.json_line(entry))?;
                let group =
                    |group: &Vec<u8>| session.out.json_line(&json!({ "prefix": String::from_utf8_lossy(group) }));
                groups.iter().try_for_each(group)
            }
            _ => self.lines(session, mode, &page.items, groups),
        }
    }

    /// Keys and groups in one order, as a directory listing has them.
    fn lines(
        &mut self,
        session: &mut Session,
        mode: Mode,
        items: &[Entry],
        groups: Vec<Vec<u8>>,
    ) -> Result<(), CliError> {
        let mut rows: Vec<(Vec<u8>, Option<&Entry>)> =
            items.iter().map(|item| (item.key_bytes(), Some(item))).collect();
        rows.extend(groups.into_iter().map(|group| (group, None)));
        rows.sort_by(|left, right| left.0.cmp(&right.0));
        if std::mem::take(&mut self.header_due) {
            let header = long_line("REVISION", "VERSION", "SIZE", "TYPE", "KEY");
            let header = session.out.paint(&header, Style::new().bold());
            session.out.line(header)?;
        }
        for (key, entry) in rows {
            if mode == Mode::Value {
                session.out.bytes(&key)?;
                session.out.bytes(b"\n")?;
                continue;
            }
            let name = match entry {
                Some(_) => shown(&key),
                None => session.out.paint(&shown(&key), Style::new().blue().bold()),
            };
            let line = match (self.long, entry) {
                (false, _) => name,
                (true, None) => long_line("-", "-", "-", "-", &name),
                (true, Some(entry)) => long_line(
                    &entry.mod_revision.to_string(),
                    &entry.version.to_string(),
                    &entry.value_len().to_string(),
                    entry.content_type.as_deref().unwrap_or("-"),
                    &name,
                ),
            };
            session.out.line(line)?;
        }
        Ok(())
    }
}

/// The name comes last, so that no width needs to be known before all pages are.
fn long_line(revision: &str, version: &str, size: &str, content_type: &str, name: &str) -> String {
    format!("{revision:>12} {version:>8} {size:>9}  {content_type:<24} {name}")
}

//! `history`: former versions of a key, and what each changed.

use crate::cli::args::History;
use crate::cli::exit::CliError;
use crate::cli::output::{Mode, Out, shown};
use crate::cli::session::Session;
use crate::client::{BytesForm, Method, Request};
use owo_colors::Style;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use similar::{ChangeTag, TextDiff};

const PAGE_MAX: u64 = 1000;

#[derive(Debug, Deserialize)]
struct HistoryPage {
    revision: i64,
    #[serde(default)]
    compacted_before: i64,
    items: Vec<Value>,
    #[serde(default)]
    more: bool,
    next_before: Option<i64>,
}

/// As many versions as were asked for, in the shape of one page.
#[derive(Debug, Serialize)]
struct Document {
    revision: i64,
    compacted_before: i64,
    items: Vec<Value>,
    more: bool,
}

#[derive(Debug, Deserialize)]
struct Item {
    r#type: String,
    revision: i64,
    version: Option<i64>,
    value: Option<String>,
    value_base64: Option<String>,
    reason: Option<String>,
}

impl Item {
    fn bytes(&self) -> Vec<u8> {
        BytesForm { text: self.value.as_deref(), base64: self.value_base64.as_deref() }.bytes()
    }

    fn is_put(&self) -> bool {
        self.r#type == "put"
    }

    /// Of a put; a delete has none.
    fn put_version(&self) -> Option<i64> {
        self.version.filter(|_| self.is_put())
    }

    fn what(&self) -> String {
        match &self.reason {
            Some(reason) if !self.is_put() => format!("{} ({reason})", self.r#type),
            _ => self.r#type.clone(),
        }
    }
}

pub(in crate::cli) async fn history(session: &mut Session, args: &History) -> Result<(), CliError> {
    let mode = session.mode.among(&[Mode::Human, Mode::Json, Mode::Ndjson])?;
    let base = Request::on_key(Method::Get, "/v1/history/", &args.key.0);
    // One more than shown tells what the last one changed.
    let wanted = if args.diff { args.limit.saturating_add(1) } else { args.limit };
    let request = base.with("limit", wanted.min(PAGE_MAX).to_string());
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let mut page: HistoryPage = session.send(&request).await?.json()?;
    let mut items = std::mem::take(&mut page.items);
    while let Some(before) = page.next_before.filter(|_| page.more && count(&items) < wanted) {
        let rest = wanted - count(&items);
        let request = request.clone().with("limit", rest.min(PAGE_MAX).to_string()).with("before", before.to_string());
        page = session.send(&request).await?.json()?;
        items.append(&mut page.items);
    }
    if mode == Mode::Human {
        let parse = |item| serde_json::from_value(item).map_err(|error| CliError::other(format!("history: {error}")));
        let items = items.into_iter().map(parse).collect::<Result<Vec<Item>, _>>()?;
        return if args.diff { diffs(session, &items, args.limit, page.more) } else { table(session, &items) };
    }
    items.truncate(usize::try_from(args.limit).unwrap_or(usize::MAX));
    match mode {
        Mode::Ndjson => items.iter().try_for_each(|item| session.out.json_line(item)),
        _ => session.out.json(&Document {
            revision: page.revision,
            compacted_before: page.compacted_before,
            items,
            more: page.more,
        }),
    }
}

fn count(items: &[Value]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}

fn table(session: &mut Session, items: &[Item]) -> Result<(), CliError> {
    let row = |item: &Item| {
        let version = item.put_version().map_or("-".to_owned(), |version| version.to_string());
        vec![item.revision.to_string(), version, item.what(), shown(&item.bytes())]
    };
    session.out.table(&["REVISION", "VERSION", "CHANGE", "VALUE"], items.iter().map(row).collect())
}

/// Newest first, each against the one below it; the oldest has nothing below if it created the key.
fn diffs(session: &mut Session, items: &[Item], limit: u64, more: bool) -> Result<(), CliError> {
    let shown_items = usize::try_from(limit).unwrap_or(usize::MAX).min(items.len());
    for (index, item) in items.iter().take(shown_items).enumerate() {
        let version = item.put_version().map_or(String::new(), |version| format!("  version {version}"));
        let head = format!("revision {}{version}  {}", item.revision, item.what());
        let head = session.out.paint(&head, Style::new().yellow());
        session.out.line(head)?;
        let older = items.get(index + 1);
        if older.is_none() && (more || item.put_version().is_some_and(|version| version > 1)) {
            session.out.line("  (the version before it is not known any more)")?;
            continue;
        }
        let before = older.map(Item::bytes).unwrap_or_default();
        diff(&mut session.out, &before, &item.bytes())?;
    }
    Ok(())
}

/// A unified diff of two values, if both are text.
pub(super) fn diff(out: &mut Out, before: &[u8], after: &[u8]) -> Result<(), CliError> {
    for line in diff_lines(before, after) {
        let style = match line.as_bytes().first() {
            Some(b'+') => Style::new().green(),
            Some(b'-') => Style::new().red(),
            _ => Style::new(),
        };
        let line = out.paint(&line, style);
        out.line(line)?;
    }
    Ok(())
}

fn diff_lines(before: &[u8], after: &[u8]) -> Vec<String> {
    let (Ok(before_text), Ok(after_text)) = (std::str::from_utf8(before), std::str::from_utf8(after)) else {
        return vec![format!("  binary, {} bytes before and {} after", before.len(), after.len())];
    };
    let diff = TextDiff::from_lines(before_text, after_text);
    let mut lines = Vec::new();
    for group in diff.grouped_ops(3) {
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            let text = change.value();
            let whole = text.strip_suffix('\n');
            lines.push(format!("{sign}{}", shown(whole.unwrap_or(text).as_bytes())));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diffs_name_what_changed() {
        assert_eq!(diff_lines(b"a\nb\nc\n", b"a\nB\nc\n"), [" a", "-b", "+B", " c"]);
        assert_eq!(diff_lines(b"", b"new"), ["+new"]);
        assert_eq!(diff_lines(b"same", b"same"), Vec::<String>::new());
        assert_eq!(diff_lines(b"\xff", b"text"), ["  binary, 1 bytes before and 4 after"]);
        assert_eq!(diff_lines(b"", b"\x1b[2J\n"), ["+\\u{1b}[2J"]);
    }
}

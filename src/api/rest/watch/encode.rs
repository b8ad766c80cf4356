//! What a watch says, as JSON lines or server-sent events: the same objects in both.
//!
//! Invariant: a line that is not the last of its revision says `partial`, and only a line after which
//! a stream may be resumed has an event id.

use super::super::dto::{self, Values};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::model::{Event, EventKind, KeyValue, Revision};
use crate::service::Change;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Sse,
    Ndjson,
}

/// What of an event is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) values: bool,
    pub(super) prev: bool,
}

/// Writes lines of one format.
#[derive(Debug)]
pub(super) struct Lines {
    json: Writer,
    format: Format,
}

impl Lines {
    pub(super) fn new(format: Format, bytes: usize) -> Self {
        Self { json: Writer::with_capacity(bytes), format }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.json.into_bytes()
    }

    fn line(&mut self, kind: &str, id: Option<Revision>, write: impl FnOnce(&mut Writer)) {
        let json = &mut self.json;
        if self.format == Format::Sse {
            json.plain(b"event: ");
            json.plain(kind.as_bytes());
            if let Some(id) = id {
                json.plain(b"\nid: ");
                json.plain(id.to_string().as_bytes());
            }
            json.plain(b"\ndata: ");
        }
        json.open();
        json.text("type", kind);
        write(json);
        json.close();
        json.newline();
        if self.format == Format::Sse {
            json.plain(b"\n");
        }
    }

    /// `bookmark` and `synced` are points to resume at; `reset` is not, until its listing is complete.
    pub(super) fn mark(&mut self, kind: &str, revision: Revision) {
        let id = (kind != "reset").then_some(revision);
        self.line(kind, id, |json| json.int("revision", revision));
    }

    pub(super) fn listed(&mut self, kv: &KeyValue, shape: Shape) {
        self.line("put", None, |json| {
            put_members(json, kv, shape);
            json.bool("initial", true);
        });
    }

    pub(super) fn change(&mut self, change: &Change, shape: Shape) {
        let revision = change.events.revision;
        let count = change.events.events.len();
        for (at, event) in change.events.events.iter().enumerate() {
            let partial = at + 1 < count;
            let previous = change.previous.get(at).and_then(Option::as_ref);
            self.line(kind(event), (!partial).then_some(revision), |json| {
                event_members(json, revision, event, previous, shape);
                if partial {
                    json.bool("partial", true);
                }
            });
        }
    }

    pub(super) fn problem(&mut self, problem: &Problem, revision: Revision, request_id: &str) {
        self.line("problem", None, |json| {
            problem.write_summary(json);
            json.int("revision", revision);
            json.text("request_id", request_id);
        });
    }
}

/// The events of one revision, as items of a list.
pub(super) fn items(json: &mut Writer, change: &Change, shape: Shape) {
    let count = change.events.events.len();
    for (at, event) in change.events.events.iter().enumerate() {
        json.open();
        json.text("type", kind(event));
        event_members(json, change.events.revision, event, change.previous.get(at).and_then(Option::as_ref), shape);
        if at + 1 < count {
            json.bool("partial", true);
        }
        json.close();
    }
}

fn kind(event: &Event) -> &'static str {
    match event.kind {
        EventKind::Put => "put",
        EventKind::Delete(_) => "delete",
    }
}

fn event_members(json: &mut Writer, revision: Revision, event: &Event, previous: Option<&KeyValue>, shape: Shape) {
    match event.kind {
        EventKind::Put => put_members(json, &event.kv, shape),
        EventKind::Delete(reason) => {
            json.int("revision", revision);
            json.key(&event.kv.key);
            json.text("reason", dto::reason(reason));
        }
    }
    if let Some(previous) = previous.filter(|_| shape.prev) {
        json.name("previous");
        dto::entry(json, previous, Values::unless(!shape.values));
    }
}

fn put_members(json: &mut Writer, kv: &KeyValue, shape: Shape) {
    json.int("revision", kv.mod_revision);
    json.key(&kv.key);
    if shape.values {
        json.bytes("value", "value_base64", &kv.value);
    } else {
        json.count("size", kv.value_size);
    }
    if let Some(content_type) = &kv.content_type {
        json.text("content_type", content_type);
    }
    json.int("version", kv.version);
    json.int("create_revision", kv.create_revision);
    json.bool("created", kv.version == 1);
    dto::lease(json, kv.lease);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeleteReason, Failure, Rejection, RevisionEvents};

    const ALL: Shape = Shape { values: true, prev: true };

    fn kv(key: &'static str, value: &'static [u8], revision: Revision, version: i64) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: value.into(),
            value_size: value.len() as u64,
            content_type: None,
            create_revision: 7,
            mod_revision: revision,
            version,
            lease: 0,
        }
    }

    fn change() -> Change {
        let put = Event { kind: EventKind::Put, kv: kv("a", b"\xff", 44, 2), prev: None };
        let delete = Event { kind: EventKind::Delete(DeleteReason::LeaseRevoked), kv: kv("b", b"", 44, 0), prev: None };
        Change {
            events: RevisionEvents { revision: 44, events: [put, delete].into() },
            previous: vec![Some(kv("a", b"1", 7, 1)), None],
        }
    }

    fn text(format: Format, write: impl FnOnce(&mut Lines)) -> String {
        let mut lines = Lines::new(format, 0);
        write(&mut lines);
        String::from_utf8(lines.into_bytes()).unwrap()
    }

    #[test]
    fn lines_read_as_documented() {
        assert_eq!(
            text(Format::Ndjson, |lines| lines.change(&change(), ALL)),
            concat!(
                r#"{"type":"put","revision":44,"key":"a","value_base64":"/w==","version":2,"create_revision":7,"#,
                r#""created":false,"previous":{"key":"a","value":"1","create_revision":7,"mod_revision":7,"version":1},"#,
                r#""partial":true}"#,
                "\n",
                r#"{"type":"delete","revision":44,"key":"b","reason":"lease_revoked"}"#,
                "\n"
            )
        );
        let shape = Shape { values: false, prev: false };
        assert_eq!(
            text(Format::Ndjson, |lines| lines.listed(&kv("a", b"123", 9, 1), shape)),
            concat!(
                r#"{"type":"put","revision":9,"key":"a","size":3,"version":1,"create_revision":7,"created":true,"#,
                r#""initial":true}"#,
                "\n"
            )
        );
    }

    #[test]
    fn only_lines_to_resume_after_have_an_id() {
        let ids = |text: String| text.matches("\nid: ").count();
        let sse = text(Format::Sse, |lines| lines.change(&change(), ALL));
        assert!(sse.starts_with("event: put\ndata: {"), "{sse}");
        assert!(sse.contains("}\n\nevent: delete\nid: 44\ndata: {"), "{sse}");
        assert!(sse.ends_with("}\n\n") && ids(sse.clone()) == 1, "{sse}");
        assert_eq!(ids(text(Format::Sse, |lines| lines.listed(&kv("a", b"", 9, 1), ALL))), 0);
        assert_eq!(ids(text(Format::Sse, |lines| lines.mark("reset", 9))), 0);
        assert_eq!(
            text(Format::Sse, |lines| lines.mark("synced", 9)),
            "event: synced\nid: 9\ndata: {\"type\":\"synced\",\"revision\":9}\n\n"
        );
    }

    #[test]
    fn a_problem_is_a_flat_line() {
        let compacted = Rejection::Compacted { requested: 3, compacted: 88, current: 90 };
        let problem = Problem::from(Failure::from(compacted));
        let line = text(Format::Ndjson, |lines| lines.problem(&problem, 90, "01K"));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["type"], &line["code"]), (&"problem".into(), &"compacted".into()));
        assert_eq!((&line["compacted_revision"], &line["revision"]), (&88.into(), &90.into()));
    }
}

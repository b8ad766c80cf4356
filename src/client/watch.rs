//! Following a watch for as long as it takes: whole revisions, in order, over any number of connections.
//!
//! Invariants: a revision is handed over once and whole, however often the connection breaks; what is
//! compacted meanwhile is an error or an explicit `Reset`, never a silent gap.

use super::{BytesForm, Client, Entry, Error, Kind, Lines, Request};
use bytes::Bytes;
use serde::Deserialize;
use std::time::Duration;

/// A stream says something every five seconds: when it is silent for longer it is given up.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// For the head of an answer.
const OPEN_MAX: Duration = Duration::from_secs(10);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A change, or an entry of the state that a watch begins with.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// As it was sent, without the end of its line.
    pub line: Bytes,
    pub is_put: bool,
    pub revision: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// Why it was deleted.
    pub reason: Option<String>,
    pub previous: Option<Entry>,
    pub initial: bool,
}

/// What a followed watch says next.
#[derive(Debug, Clone)]
pub enum Followed {
    /// All events of one revision, or one entry of the state that is listed.
    Events(Vec<WatchEvent>),
    /// The state at this revision is complete.
    Synced(i64),
    /// Everything up to this revision has been said.
    Bookmark(i64),
    /// What was said before is void: the state follows.
    Reset(i64),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    r#type: String,
    revision: i64,
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    reason: Option<String>,
    previous: Option<Entry>,
    initial: bool,
    partial: bool,
}

impl Line {
    fn into_event(self, line: Bytes) -> WatchEvent {
        WatchEvent {
            line,
            is_put: self.r#type == "put",
            revision: self.revision,
            key: BytesForm { text: self.key.as_deref(), base64: self.key_base64.as_deref() }.bytes(),
            value: BytesForm { text: self.value.as_deref(), base64: self.value_base64.as_deref() }.bytes(),
            reason: self.reason,
            previous: self.previous,
            initial: self.initial,
        }
    }
}

/// A watch that comes back after every break.
#[derive(Debug)]
pub struct Follow<'a> {
    client: &'a Client,
    /// `GET /v1/watch` without `after`.
    request: Request,
    /// Everything up to here has been handed over.
    after: Option<i64>,
    lines: Option<Lines>,
    /// Events of a revision of which more is to come.
    partial: Vec<WatchEvent>,
    pause: Duration,
    /// It has worked once: from then on it is tried again for ever.
    was_open: bool,
    broken: Option<Error>,
}

impl<'a> Follow<'a> {
    /// `after`: a point to resume at, if there is one.
    #[must_use]
    pub fn new(client: &'a Client, request: Request, after: Option<i64>) -> Self {
        Self {
            client,
            request: request.streaming(),
            after,
            lines: None,
            partial: Vec::new(),
            pause: PAUSE_FIRST,
            was_open: false,
            broken: None,
        }
    }

    /// The request as it is sent next.
    #[must_use]
    pub fn request(&self) -> Request {
        self.request.clone().maybe("after", self.after)
    }

    /// Where a new watch may resume.
    #[must_use]
    pub fn position(&self) -> Option<i64> {
        self.after
    }

    /// Why the connection was lost, once for each time.
    pub fn take_broken(&mut self) -> Option<Error> {
        self.broken.take()
    }

    /// What is said next, after as many new connections as it takes. May be dropped and called again:
    /// nothing is lost.
    ///
    /// # Errors
    /// If the first connection fails, or the watch is refused in a way that time does not heal.
    pub async fn next(&mut self) -> Result<Followed, Error> {
        loop {
            let Some(lines) = &mut self.lines else {
                self.open().await?;
                continue;
            };
            let line = match tokio::time::timeout(SILENCE_MAX, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                // A member that shuts down ends its streams: others go on.
                Ok(Ok(None)) => {
                    self.lost();
                    continue;
                }
                Ok(Err(error)) => {
                    self.failed(error)?;
                    continue;
                }
                Err(_) => {
                    self.lost();
                    self.client.prefer_next();
                    continue;
                }
            };
            self.pause = PAUSE_FIRST;
            if let Some(followed) = self.read(line)? {
                return Ok(followed);
            }
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        if self.was_open {
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        let request = self.request();
        match tokio::time::timeout(OPEN_MAX, self.client.open(&request)).await {
            Ok(Ok(stream)) => {
                let start = stream.header("tenure-revision").and_then(|revision| revision.parse().ok());
                // Without a state to begin with, the watch begins where the first stream did, even if
                // that breaks before it has said anything.
                if !self.request.has("initial") {
                    self.after = self.after.or(start);
                }
                self.lines = Some(Lines::new(stream));
                self.was_open = true;
            }
            Ok(Err(error)) if !self.was_open => return Err(error),
            Ok(Err(error)) => self.failed(error)?,
            Err(_) => self.client.prefer_next(),
        }
        Ok(())
    }

    fn lost(&mut self) {
        self.lines = None;
        self.partial.clear();
    }

    fn failed(&mut self, error: Error) -> Result<(), Error> {
        self.lost();
        let passing = match (&error, error.kind()) {
            (Error::Refused(problem), _) if problem.retryable => true,
            (_, kind) => kind == Kind::Unavailable,
        };
        if !passing {
            return Err(error);
        }
        self.broken = Some(error);
        Ok(())
    }

    fn read(&mut self, text: Bytes) -> Result<Option<Followed>, Error> {
        let line: Line = serde_json::from_slice(&text).map_err(|error| Error::NotTenure {
            endpoint: "the watched member".to_owned(),
            message: format!("a line is not the expected JSON: {error}"),
        })?;
        let revision = line.revision;
        Ok(match line.r#type.as_str() {
            "put" | "delete" if line.initial => Some(Followed::Events(vec![line.into_event(text)])),
            "put" | "delete" => {
                let whole = !line.partial;
                self.partial.push(line.into_event(text));
                whole.then(|| {
                    self.after = Some(revision);
                    Followed::Events(std::mem::take(&mut self.partial))
                })
            }
            "synced" => {
                self.after = Some(revision);
                Some(Followed::Synced(revision))
            }
            "bookmark" => {
                self.after = Some(revision);
                Some(Followed::Bookmark(revision))
            }
            "reset" => {
                // Until the state is complete there is nothing to resume at.
                self.after = None;
                self.request = self.request.clone().flag("initial", true);
                Some(Followed::Reset(revision))
            }
            // What a later version says besides.
            _ => None,
        })
    }
}

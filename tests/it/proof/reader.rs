//! A reader of one stream: it comes back wherever it can, and now and then stalls or goes away by itself.

use super::oracle::{ALL_KEYS, Follower, Line, Record};
use super::stream::{Answer, Stream};
use rand::Rng;
use rand::rngs::StdRng;
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Nothing for so long, not even a bookmark: the connection is given up.
const SILENCE: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) record: Mutex<Record>,
    pub(super) addresses: Vec<String>,
    /// How far the record goes.
    grown: watch::Sender<i64>,
    /// Where readers are done.
    end: AtomicI64,
    delivered: AtomicU64,
}

impl Shared {
    pub(super) fn new(record: Record, addresses: Vec<String>) -> Self {
        let grown = watch::Sender::new(record.last());
        Self {
            record: Mutex::new(record),
            addresses,
            grown,
            end: AtomicI64::new(i64::MAX),
            delivered: AtomicU64::new(0),
        }
    }

    pub(super) fn finish(&self, end: i64) {
        self.end.store(end, Ordering::SeqCst);
        self.grown.send_modify(|_| {});
    }

    /// Events of all streams, as far as they were judged.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    fn end(&self) -> i64 {
        self.end.load(Ordering::SeqCst)
    }

    async fn reaches(&self, revision: i64) {
        let mut grown = self.grown.subscribe();
        // The sender lives as long as this.
        grown.wait_for(|last| *last >= revision).await.ok();
    }

    async fn ending(&self) {
        let mut grown = self.grown.subscribe();
        grown.wait_for(|_| self.end() < i64::MAX).await.ok();
    }
}

#[derive(Debug)]
pub(super) struct Reader {
    pub(super) follower: Follower,
    pub(super) opened: u64,
    name: String,
    shared: Arc<Shared>,
    rng: StdRng,
    query: String,
    sse: bool,
    initial: bool,
    /// Its position is where its first stream says that it begins.
    from_now: bool,
    stalls: bool,
    leaves: bool,
    /// The member that it asks first; whose every line becomes part of the record.
    recorder: Option<usize>,
    gathered: Vec<Line>,
}

/// Why a stream is left.
enum Left {
    Done,
    Again,
    Wrong(String),
}

impl Reader {
    pub(super) fn recorder(member: usize, shared: Arc<Shared>, seed: u64) -> Self {
        let rng = rand::SeedableRng::seed_from_u64(seed ^ u64::try_from(member).unwrap());
        let query = (vec![true; ALL_KEYS], "&prev".to_owned());
        let mut reader = Self::new(member, query, shared, rng);
        (reader.sse, reader.initial, reader.from_now, reader.stalls, reader.leaves) =
            (false, false, false, false, false);
        (reader.follower.prev, reader.follower.puts, reader.follower.deletes) = (true, true, true);
        (reader.name, reader.recorder) = (format!("the recorder of n{}", member + 1), Some(member));
        reader.query = "&prev".to_owned();
        reader.follower.position = reader.shared.record.lock().unwrap().last();
        reader
    }

    pub(super) fn new(
        at: usize,
        (wanted, mut query): (Vec<bool>, String),
        shared: Arc<Shared>,
        mut rng: StdRng,
    ) -> Self {
        let position = shared.record.lock().unwrap().last();
        let mut follower = Follower::new(wanted, position);
        let (sse, initial, stalls, leaves) =
            (rng.random_bool(0.25), rng.random_bool(0.06), rng.random_bool(0.05), rng.random_bool(0.1));
        if rng.random_bool(0.15) {
            follower.prev = true;
            query += "&prev";
        }
        if !initial && rng.random_bool(0.1) {
            (follower.puts, follower.deletes) = if rng.random_bool(0.5) { (true, false) } else { (false, true) };
            query += if follower.puts { "&types=put" } else { "&types=delete" };
        }
        let from_now = !initial && rng.random_bool(0.3);
        if !initial && !from_now && rng.random_bool(0.2) {
            // Some begin in the future.
            follower.position += rng.random_range(0..100);
        }
        let name = format!("stream {at} ({query})");
        let (gathered, recorder, opened) = (Vec::new(), None, 0);
        Self { follower, opened, name, shared, rng, query, sse, initial, from_now, stalls, leaves, recorder, gathered }
    }

    fn done(&self) -> bool {
        self.follower.position >= self.shared.end()
    }

    /// Reads until everything up to the end was told.
    pub(super) async fn run(mut self) -> Result<Self, String> {
        let mut member = self.recorder.unwrap_or_else(|| self.rng.random_range(0..self.shared.addresses.len()));
        while !self.done() {
            match self.follow(member).await {
                Left::Done => {}
                Left::Again => tokio::time::sleep(AGAIN.mul_f64(self.rng.random_range(0.1..1.0))).await,
                Left::Wrong(wrong) => return Err(format!("{} on n{}: {wrong}", self.name, member + 1)),
            }
            member = (member + 1) % self.shared.addresses.len();
        }
        Ok(self)
    }

    /// What to ask for, and with which headers.
    fn request(&mut self) -> (String, String) {
        let position = self.follower.position;
        let mut target = format!("/v1/watch?bookmarks=2s{}", self.query);
        let mut headers = String::new();
        if self.initial {
            // The state anew each time, or where it was left.
            if self.opened > 0 && self.rng.random_bool(0.5) {
                target += &format!("&initial&after={position}");
                self.follower.connected(false);
            } else {
                target += &format!("&initial&min_revision={position}");
                self.follower.connected(true);
            }
        } else {
            self.follower.connected(false);
            if self.from_now {
            } else if self.sse && self.opened > 0 {
                headers = format!("Last-Event-ID: {position}\r\n");
            } else {
                target += &format!("&after={position}");
            }
        }
        (target, headers)
    }

    async fn follow(&mut self, member: usize) -> Left {
        let (target, headers) = self.request();
        let shared = Arc::clone(&self.shared);
        self.gathered.clear();
        let mut stream = match Stream::open(&shared.addresses[member], &target, self.sse, &headers).await {
            Err(error) => return self.after(&error),
            Ok(Answer::Opened(stream)) => stream,
            Ok(Answer::Refused(410, problem)) => return self.compacted(&problem),
            Ok(Answer::Refused(503 | 504 | 429, _)) => return Left::Again,
            Ok(Answer::Refused(status, problem)) => return Left::Wrong(format!("{target}: {status} {problem}")),
        };
        self.opened += 1;
        if std::mem::take(&mut self.from_now) {
            self.follower.position = stream.starts_after;
        }
        let leaves_after = if self.leaves { self.rng.random_range(1..200) } else { usize::MAX };
        for lines in 1.. {
            if self.done() {
                return Left::Done;
            }
            let next = tokio::time::timeout(SILENCE, stream.line()).await;
            let line = match next {
                Err(_) => return Left::Again,
                Ok(Err(error)) => return self.after(&error),
                // A clean end: the member is stopping, or said why just before.
                Ok(Ok(None)) => return Left::Again,
                Ok(Ok(Some(line))) => line,
            };
            let problem = line.kind == "problem";
            if problem && line.code != "compacted" {
                return if matches!(line.code.as_str(), "throttled" | "shutting-down" | "not-ready") {
                    Left::Again
                } else {
                    Left::Wrong(format!("{line:?}"))
                };
            }
            if let Err(wrong) = self.take(line).await {
                return Left::Wrong(wrong);
            }
            if problem || lines >= leaves_after {
                return Left::Again;
            }
            if self.stalls && self.rng.random_bool(0.02) {
                let pause = Duration::from_millis(self.rng.random_range(1_000..20_000));
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shared.ending() => {}
                }
            }
        }
        Left::Again
    }

    /// Connections break; lines that are none do not come from that.
    fn after(&self, error: &io::Error) -> Left {
        if error.kind() == io::ErrorKind::InvalidData { Left::Wrong(error.to_string()) } else { Left::Again }
    }

    fn compacted(&mut self, problem: &str) -> Left {
        let problem: Line = serde_json::from_str(problem).unwrap_or_default();
        let record = self.shared.record.lock().unwrap();
        match self.follower.compacted(&record, problem.compacted_revision) {
            Ok(()) => Left::Again,
            Err(wrong) => Left::Wrong(wrong),
        }
    }

    async fn take(&mut self, line: Line) -> Result<(), String> {
        if self.recorder.is_some() && matches!(line.kind.as_str(), "put" | "delete") {
            let more = line.partial;
            self.gathered.push(line);
            if more {
                return Ok(());
            }
            let lines = std::mem::take(&mut self.gathered);
            let mut record = self.shared.record.lock().unwrap();
            record.append(&lines)?;
            lines.into_iter().try_for_each(|line| self.follower.told(&record, line))?;
            let last = record.last();
            drop(record);
            self.shared.delivered.fetch_add(1, Ordering::Relaxed);
            self.shared.grown.send_if_modified(|grown| std::mem::replace(grown, last) != last);
            return Ok(());
        }
        // The record may be behind this member for a moment.
        if tokio::time::timeout(SILENCE * 3, self.shared.reaches(line.revision)).await.is_err() {
            return Err(format!("nobody else tells of {}", line.revision));
        }
        let is_event = matches!(line.kind.as_str(), "put" | "delete");
        let record = self.shared.record.lock().unwrap();
        self.follower.told(&record, line)?;
        self.shared.delivered.fetch_add(is_event.into(), Ordering::Relaxed);
        Ok(())
    }
}

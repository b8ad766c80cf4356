//! Raft's log, vote and committed mark over the write-ahead log.
//!
//! Invariants: every write goes through the log's one queue, in the order openraft gives them; an
//! append returns at once and reports when it is durable; a vote is durable before it is answered;
//! the committed mark is never synced for itself. It must not know what a batch means.

use super::entry::{self, Entry};
use super::flushed::Flushed;
use super::types::{LogId, Types, Vote, log_id, position};
use crate::env::unhurried;
use crate::model::{Fault, LogPosition, codec};
use crate::storage::wal::{Done, Recovered, Wal, WalEntry};
use openraft::alias::EntryOf;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Bytes of one read from the log while entries are collected.
const READ_BYTES: usize = 8 << 20;
/// Bytes of entries in one message to a follower.
const REPLICATE_BYTES: usize = 1 << 20;

#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    wal: Wal,
    flushed: Arc<Flushed>,
    state: Arc<Mutex<State>>,
    /// The last entry that was there at the start.
    recovered: Option<LogId>,
}

#[derive(Debug, Default)]
struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
}

impl LogStore {
    /// # Errors
    /// A fault if what was recovered cannot be read, or contradicts itself.
    pub(crate) fn new(wal: Wal, recovered: &Recovered) -> Result<Self, Fault> {
        let vote = match &recovered.vote {
            Some(bytes) => Some(codec::decode("vote", bytes)?),
            None => None,
        };
        let committed = decode_position(recovered.committed.as_deref())?;
        let purged = decode_position(recovered.purged.as_ref().map(|(_, position)| &**position))?;
        let last = match recovered.last_index {
            Some(index) => Some(read_log_id(&wal, index)?),
            None => purged,
        };
        if committed.map(|id| id.index) > last.map(|id| id.index) {
            return Err(Fault::corrupt(
                "log",
                format!("entries up to {committed:?} were committed, but the log ends at {last:?}"),
            ));
        }
        let flushed = Arc::new(Flushed::new(next_index(last)));
        let state = Arc::new(Mutex::new(State { vote, committed, purged, last }));
        Ok(Self { wal, flushed, state, recovered: last })
    }

    pub(crate) fn flushed(&self) -> &Arc<Flushed> {
        &self.flushed
    }

    /// Of the vote on disk: whoever has voted in a later term, or taken entries of one, has it there before
    /// anybody is answered so.
    pub(crate) fn term(&self) -> u64 {
        self.state.lock().vote.map_or(0, |vote| vote.leader_id.term)
    }

    pub(crate) fn last(&self) -> Option<LogPosition> {
        self.state.lock().last.as_ref().map(position)
    }

    /// The last entry that was there at the start, if it is of that term: whoever leads in it may have led, and
    /// have answered up to there, before that.
    pub(crate) fn recovered_in(&self, term: u64) -> Option<u64> {
        self.recovered.filter(|last| last.leader_id.term == term).map(|last| last.index)
    }

    pub(crate) fn purged(&self) -> Option<LogPosition> {
        self.state.lock().purged.as_ref().map(position)
    }

    /// True if the entry behind that one is no longer in the log.
    pub(crate) fn is_purged_behind(&self, id: Option<LogId>) -> bool {
        next_index(id) < next_index(self.state.lock().purged)
    }

    fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let entries = self.wal.read(from, to, max_bytes).map_err(io_error)?;
        entries.iter().map(|logged| entry::decode(&logged.bytes).map_err(io_error)).collect()
    }
}

fn read_log_id(wal: &Wal, index: u64) -> Result<LogId, Fault> {
    let entries = wal.read(index, index + 1, 1)?;
    let [only] = entries.as_slice() else {
        return Err(Fault::corrupt("log", format!("entry {index} cannot be read")));
    };
    let id = entry::decode_log_id(&only.bytes)?;
    if id.index == index {
        Ok(id)
    } else {
        Err(Fault::corrupt("log", format!("entry {index} says it is {}", id.index)))
    }
}

fn decode_position(bytes: Option<&[u8]>) -> Result<Option<LogId>, Fault> {
    match bytes {
        Some(bytes) => Ok(Some(log_id(codec::decode::<LogPosition>("log position", bytes)?))),
        None => Ok(None),
    }
}

fn next_index(last: Option<LogId>) -> u64 {
    last.map_or(0, |id| id.index + 1)
}

pub(crate) fn io_error(fault: Fault) -> io::Error {
    io::Error::other(fault)
}

fn durable() -> (Done, impl Future<Output = io::Result<()>>) {
    let (send, receive) = oneshot::channel();
    let done: Done = Box::new(move |result| drop(send.send(result)));
    let wait = async move {
        match receive.await {
            Ok(result) => result.map_err(io_error),
            Err(_) => Err(io::Error::other("the log was closed")),
        }
    };
    (done, wait)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<EntryOf<Types>>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (first, end) = {
            let state = self.state.lock();
            (next_index(state.purged), next_index(state.last))
        };
        let mut from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        }
        .max(first);
        let to = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        }
        .min(end);
        let mut found = Vec::new();
        while from < to {
            let more = self.read(from, to, READ_BYTES)?;
            let Some(last) = more.last() else {
                return Err(io::Error::other(format!("entry {from} is not in the log")));
            };
            from = last.log_id.index + 1;
            found.extend(more);
        }
        Ok(found)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<EntryOf<Types>>, io::Error> {
        if start >= end {
            return Ok(Vec::new());
        }
        let mut found = self.read(start, end, REPLICATE_BYTES)?;
        // Purged while replication still meant to send it: none rather than such as begin later. The
        // network then ends the stream (`is_purged_behind`), and the leader turns to a snapshot.
        if found.first().is_some_and(|entry| entry.log_id.index != start) {
            found.clear();
        }
        Ok(found)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.state.lock().vote)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = self.state.lock();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = codec::encode(vote).map_err(io_error)?;
        let (done, wait) = durable();
        self.wal.save_vote(bytes.into(), done);
        wait.await?;
        self.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            let bytes = codec::encode(&position(&committed)).map_err(io_error)?;
            self.wal.save_committed(bytes.into());
            self.state.lock().committed = Some(committed);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.state.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + Send,
        I::IntoIter: Send,
    {
        let mut last = None;
        let mut logged = Vec::new();
        for entry in entries {
            logged.push(WalEntry { index: entry.log_id.index, bytes: entry::encode(&entry).map_err(io_error)? });
            last = Some(entry.log_id);
        }
        if last.is_some() {
            self.state.lock().last = last;
        }
        let next = next_index(last);
        let flushed = self.flushed.clone();
        let generation = flushed.begin(next);
        let done = Box::new(move |result: Result<(), Fault>| {
            if result.is_ok() {
                flushed.done(generation, next);
            }
            callback.io_completed(result.map_err(io_error));
        });
        unhurried(self.wal.is_full(), || self.wal.append(logged, done));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        // A first entry that differs was written by another `initialize`: another cluster's log.
        let Some(keep) = last_log_id else {
            return Err(io::Error::other("the log's first entry contradicts the leader's: it is of another cluster"));
        };
        let generation = self.flushed.cut(keep.index + 1);
        self.state.lock().last = Some(keep);
        let flushed = self.flushed.clone();
        let (done, wait) = durable();
        self.wal.truncate_after(keep.index, done);
        wait.await?;
        flushed.done(generation, keep.index + 1);
        Ok(())
    }

    /// Not waited for: what it removes is in a verified snapshot, whether or not it is removed yet.
    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let bytes = codec::encode(&position(&log_id)).map_err(io_error)?;
        let beyond = {
            let mut state = self.state.lock();
            state.purged = Some(log_id);
            let beyond = state.last.is_none_or(|last| last.index <= log_id.index);
            if beyond {
                state.last = Some(log_id);
            }
            beyond
        };
        let flushed = self.flushed.clone();
        let generation = flushed.begin(if beyond { log_id.index + 1 } else { 0 });
        let done = Box::new(move |result: Result<(), Fault>| {
            if result.is_ok() && beyond {
                flushed.done(generation, log_id.index + 1);
            }
        });
        self.wal.purge(log_id.index, bytes.into(), done);
        Ok(())
    }
}

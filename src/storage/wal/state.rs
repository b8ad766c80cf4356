//! What the callers and the writer share: the log as its callers see it, and the encoded records
//! that still have to be written.
//!
//! A record gets its place on disk when it is queued, under the lock, so the order of calls is the
//! order on disk. Records queued between two writes form a group: one piece of bytes per segment it
//! touches. A group is written only after the one before it is durable, hence a piece's start is the
//! `group` of its records.

use super::index::{LogIndex, Position, Slot};
use super::record::{self, Checkpoint, Kind};
use super::{Done, segment};
use crate::model::Fault;
use crate::storage::disk::DiskFile;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the next record goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tail {
    pub segment: u32,
    pub offset: u32,
    /// The segment's allocated length: only a record too long for any segment reaches beyond it.
    pub limit: u32,
    pub seed: u32,
    pub last_crc: u32,
}

/// The consecutive bytes that a group puts into one segment.
pub(super) struct Piece {
    pub segment: u32,
    pub seed: u32,
    pub start: u32,
    pub bytes: Vec<u8>,
    pub entries: bool,
    pub vote: bool,
    /// Once this piece is durable, segments below are not needed.
    pub delete_before: u32,
    pub done: Vec<Done>,
}

impl Piece {
    pub(super) fn end(&self) -> Position {
        Position { segment: self.segment, offset: self.start + u32_len(self.bytes.len()) }
    }

    /// A piece that begins a segment starts with the segment's header.
    pub(super) fn begins_segment(&self) -> bool {
        self.start == 0 && !self.bytes.is_empty()
    }
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({}@{}, {} bytes)", self.segment, self.start, self.bytes.len())
    }
}

#[derive(Debug, Clone)]
pub(super) struct OpenSegment {
    pub file: Arc<dyn DiskFile>,
    pub seed: u32,
}

#[derive(Debug)]
pub(super) enum Life {
    Open,
    Closing,
    Failed(Fault),
}

#[derive(Debug)]
pub(super) struct State {
    pub index: LogIndex,
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub committed_unsaved: bool,
    pub tail: Tail,
    pub segment_bytes: u32,
    pub pieces: Vec<Piece>,
    /// Bytes queued or being written.
    pub queued_bytes: usize,
    /// Everything before this place is durable.
    pub written: Position,
    /// Nothing was written since the last mark.
    pub marked: bool,
    pub spare_ready: bool,
    pub files: BTreeMap<u32, OpenSegment>,
    pub life: Life,
    /// The writer sleeps and wants to be woken.
    pub writer_waits: bool,
    /// A buffer to use again.
    pub recycled: Vec<u8>,
}

/// Sizes within a segment: `WalOptions` and `WAL_RECORD_BYTES_MAX` keep them far below 4 GiB.
pub(super) fn u32_len(len: usize) -> u32 {
    u32::try_from(len).expect("segments and records are bounded below 4 GiB")
}

impl State {
    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            vote: self.vote.clone(),
            committed: self.committed.clone(),
            purged: self.index.purged().cloned(),
            live: self.index.live(),
        }
    }

    /// The oldest segment that is needed to recover what is queued so far.
    fn oldest_needed(&self) -> u32 {
        self.index.oldest_segment().unwrap_or(self.tail.segment)
    }

    /// The piece that takes the next record, or a callback without one.
    fn piece(&mut self) -> &mut Piece {
        let Tail { segment, offset, seed, .. } = self.tail;
        if self.pieces.last().is_none_or(|piece| piece.segment != segment) {
            let bytes = std::mem::take(&mut self.recycled);
            let piece = Piece {
                segment,
                seed,
                start: offset,
                bytes,
                entries: false,
                vote: false,
                delete_before: 0,
                done: Vec::new(),
            };
            self.pieces.push(piece);
        }
        self.pieces.last_mut().expect("one was pushed if there was none")
    }

    /// Starts the next segment with a checkpoint of the state so far.
    pub(super) fn begin_segment(&mut self) {
        let checkpoint = self.checkpoint().encode();
        let previous = self.tail;
        let header = segment::Header {
            segment: previous.segment + 1,
            allocated: self.segment_bytes,
            previous_end: previous.offset,
            previous_crc: previous.last_crc,
        };
        let (bytes, seed) = header.encode();
        self.tail = Tail { segment: header.segment, offset: 0, limit: header.allocated, seed, last_crc: seed };
        self.piece().bytes.extend_from_slice(&bytes);
        self.tail.offset = segment::FIRST_RECORD;
        self.queued_bytes += bytes.len();
        self.place(Kind::Checkpoint, 0, &checkpoint, record::payload_crc(&checkpoint));
        let oldest_needed = self.oldest_needed();
        self.piece().delete_before = oldest_needed;
    }

    /// Queues a record, in a new segment if this one is full. Returns its place.
    pub(super) fn record(&mut self, kind: Kind, index: u64, payload: &[u8], payload_crc: u32) -> Slot {
        let footprint = record::footprint(payload.len()) as u64;
        let full = u64::from(self.tail.offset) + footprint > u64::from(self.tail.limit);
        if full {
            self.begin_segment();
        }
        self.place(kind, index, payload, payload_crc)
    }

    fn place(&mut self, kind: Kind, index: u64, payload: &[u8], payload_crc: u32) -> Slot {
        let Tail { segment, offset, seed, .. } = self.tail;
        let piece = self.piece();
        let group = piece.start.max(segment::FIRST_RECORD);
        let header = record::Header { kind, len: u32_len(payload.len()), index, group, payload_crc, crc: 0 };
        let crc = record::push(&mut piece.bytes, seed, offset, &header, payload);
        piece.entries |= kind == Kind::Entry;
        piece.vote |= kind == Kind::Vote;
        let footprint = record::footprint(payload.len());
        self.tail.offset += u32_len(footprint);
        self.tail.last_crc = crc;
        self.queued_bytes += footprint;
        self.marked = false;
        Slot { at: Position { segment, offset }, len: header.len }
    }

    /// Has `done` called when everything queued so far is durable.
    pub(super) fn when_durable(&mut self, done: Done) {
        self.piece().done.push(done);
    }

    pub(super) fn append(&mut self, index: u64, bytes: Bytes, payload_crc: u32) {
        let slot = self.record(Kind::Entry, index, &bytes, payload_crc);
        self.index.push(index, slot, bytes);
    }

    pub(super) fn save_vote(&mut self, vote: Bytes) {
        self.record(Kind::Vote, 0, &vote, record::payload_crc(&vote));
        self.vote = Some(vote);
    }

    pub(super) fn truncate(&mut self, from: u64) {
        self.record(Kind::Truncate, from, &[], record::payload_crc(&[]));
        self.index.truncate(from);
    }

    pub(super) fn purge(&mut self, upto: u64, position: Bytes) {
        self.record(Kind::Purge, upto, &position, record::payload_crc(&position));
        self.index.purge(upto, position);
        let oldest_needed = self.oldest_needed();
        self.piece().delete_before = oldest_needed;
    }

    /// Everything queued, as one group, with the committed position that came by on the way.
    pub(super) fn take_group(&mut self) -> Vec<Piece> {
        if self.committed_unsaved
            && let Some(committed) = self.committed.clone()
        {
            self.record(Kind::Committed, 0, &committed, record::payload_crc(&committed));
            self.committed_unsaved = false;
        }
        std::mem::take(&mut self.pieces)
    }

    /// A group that only says that all before it is durable.
    pub(super) fn take_mark(&mut self) -> Vec<Piece> {
        self.record(Kind::Mark, 0, &[], record::payload_crc(&[]));
        let group = self.take_group();
        self.marked = true;
        group
    }
}

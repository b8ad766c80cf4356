//! Reading the log back: pure functions from the bytes of segments to the state they tell.
//!
//! A bad record at the end of the last segment is a torn write, and is cut, unless a later record
//! says that the bad one had been durable before. Everything else that does not fit is refused. No
//! allocation is larger than the input by more than the index of its entries. It must not write.

use super::index::{LogIndex, Position, Slot};
use super::record::{self, Checkpoint, Kind};
use super::segment::{self, HeaderProblem};
use super::{Damage, Missing, WalError};
use bytes::Bytes;

/// What one segment's bytes turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentEnd {
    /// Where the next record goes.
    pub offset: u32,
    pub allocated: u32,
    pub seed: u32,
    pub last_crc: u32,
    /// Start of the last record's group: not proven durable from here on.
    pub group: u32,
    /// The last record is a mark: all before it is proven durable.
    pub marked: bool,
    /// End of the garbage behind `offset`; equal to it if there is none.
    pub torn_end: u32,
}

#[derive(Debug)]
pub(super) struct Replay {
    pub index: LogIndex,
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    begun: bool,
    cache_bytes: usize,
    cut_damage: bool,
}

const ANYWHERE: Position = Position { segment: u32::MAX, offset: u32::MAX };

/// Where the zeros at the end of `bytes` begin, at or behind `from`.
fn data_end(bytes: &[u8], from: usize) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = bytes.len();
    while end > from {
        let start = end.saturating_sub(ZEROS.len()).max(from);
        let chunk = &bytes[start..end];
        if chunk != &ZEROS[..chunk.len()] {
            return start + chunk.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        }
        end = start;
    }
    from
}

fn offset_of(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// A record behind the bad one at `bad` that was written when `bad` was durable already.
fn proof_of_damage(bytes: &[u8], seed: u32, bad: usize, end: usize) -> Option<u32> {
    let candidates = (bad..end).step_by(record::ALIGNMENT).skip(1);
    candidates.map(|at| (offset_of(at), bytes.get(at..))).find_map(|(offset, rest)| {
        let header = record::decode(rest?, seed, offset)?;
        (header.group > offset_of(bad)).then_some(offset)
    })
}

impl Replay {
    /// `cut_damage` plants a bug: damage in the middle is cut like a torn tail.
    pub(super) fn new(cache_bytes: usize, cut_damage: bool) -> Self {
        Self { index: LogIndex::default(), vote: None, committed: None, begun: false, cache_bytes, cut_damage }
    }

    /// Replays one segment after those before it. `sealed` is the next segment's header, if there is one.
    pub(super) fn segment(
        &mut self,
        number: u32,
        bytes: &[u8],
        sealed: Option<&segment::Header>,
    ) -> Result<SegmentEnd, WalError> {
        let (header, seed) = decode_header(number, bytes)?;
        if bytes.len() > u32::MAX as usize || bytes.len() < header.allocated as usize {
            let expected = u64::from(header.allocated);
            return Err(WalError::Truncated { segment: number, expected, actual: bytes.len() as u64 });
        }
        let records = match sealed {
            Some(next) => bytes.get(..next.previous_end as usize).unwrap_or(bytes),
            None => bytes,
        };
        let mut end = SegmentEnd {
            offset: segment::FIRST_RECORD,
            allocated: header.allocated,
            seed,
            last_crc: seed,
            group: segment::FIRST_RECORD,
            marked: false,
            torn_end: 0,
        };
        while let Some((header, payload)) =
            records.get(end.offset as usize..).and_then(|rest| record::decode_whole(rest, seed, end.offset))
        {
            let at = Position { segment: number, offset: end.offset };
            self.record(at, &header, payload)?;
            let footprint = u32::try_from(record::footprint(payload.len())).unwrap_or(u32::MAX);
            end.offset = end.offset.saturating_add(footprint);
            end.last_crc = header.crc;
            end.group = header.group;
            end.marked = header.kind == Kind::Mark && header.group == at.offset;
        }
        self.check_end(number, records, &mut end, sealed)?;
        Ok(end)
    }

    fn check_end(
        &self,
        number: u32,
        bytes: &[u8],
        end: &mut SegmentEnd,
        sealed: Option<&segment::Header>,
    ) -> Result<(), WalError> {
        let damaged = |later| WalError::DamagedMiddle { segment: number, offset: end.offset, later };
        if let Some(next) = sealed {
            let whole = end.offset == next.previous_end && end.last_crc == next.previous_crc;
            return if whole { Ok(()) } else { Err(damaged(Damage::NextSegment)) };
        }
        let bad = end.offset as usize;
        if end.offset == segment::FIRST_RECORD {
            // The header came to its name only after its checkpoint was durable.
            return Err(damaged(Damage::Checkpoint));
        }
        let data_end = data_end(bytes, bad.min(bytes.len()));
        if let Some(later) = proof_of_damage(bytes, end.seed, bad, data_end)
            && !self.cut_damage
        {
            return Err(damaged(Damage::Record(later)));
        }
        end.torn_end = offset_of(data_end).max(end.offset);
        Ok(())
    }

    fn record(&mut self, at: Position, header: &record::Header, payload: &[u8]) -> Result<(), WalError> {
        let inconsistent = |detail| WalError::Inconsistent { segment: at.segment, offset: at.offset, detail };
        let first_in_segment = at.offset == segment::FIRST_RECORD;
        if first_in_segment != (header.kind == Kind::Checkpoint) {
            return Err(inconsistent("a checkpoint must be the first record, and only the first"));
        }
        match header.kind {
            Kind::Entry => self.entry(at, header, payload)?,
            Kind::Vote => self.vote = Some(Bytes::copy_from_slice(payload)),
            Kind::Committed => self.committed = Some(Bytes::copy_from_slice(payload)),
            Kind::Truncate => self.index.truncate(header.index),
            Kind::Purge if header.index == u64::MAX => return Err(inconsistent("a purge of the greatest index")),
            Kind::Purge => self.index.purge(header.index, Bytes::copy_from_slice(payload)),
            Kind::Checkpoint => {
                let checkpoint = Checkpoint::decode(payload).ok_or_else(|| inconsistent("an unreadable checkpoint"))?;
                self.checkpoint(checkpoint).map_err(inconsistent)?;
            }
            Kind::Mark => {}
        }
        Ok(())
    }

    fn entry(&mut self, at: Position, header: &record::Header, payload: &[u8]) -> Result<(), WalError> {
        let expected = self.index.next().unwrap_or(header.index);
        if header.index != expected || header.index == u64::MAX {
            let found = header.index;
            return Err(WalError::Gap { segment: at.segment, offset: at.offset, expected, found });
        }
        self.index.push(header.index, Slot { at, len: header.len }, Bytes::copy_from_slice(payload));
        self.index.evict(ANYWHERE, self.cache_bytes);
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), &'static str> {
        if !self.begun {
            self.begun = true;
            self.index = LogIndex::from_checkpoint(&checkpoint);
            (self.vote, self.committed) = (checkpoint.vote, checkpoint.committed);
            return Ok(());
        }
        if checkpoint.vote != self.vote {
            return Err("the checkpoint's vote is not the one of the segments before");
        }
        if checkpoint.purged.as_ref() != self.index.purged() || checkpoint.live != self.index.live() {
            return Err("the checkpoint's range of entries is not the one of the segments before");
        }
        self.committed = checkpoint.committed;
        Ok(())
    }

    /// After the last segment: every live entry must have been found. `oldest` is the first segment there is.
    pub(super) fn finish(&self, oldest: u32) -> Result<(), WalError> {
        match self.index.first() {
            Some(first) if self.index.absent() > 0 => {
                Err(WalError::MissingSegment { before: oldest, missing: Missing::Entries { from: first } })
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn decode_header(number: u32, bytes: &[u8]) -> Result<(segment::Header, u32), WalError> {
    let (header, seed) = segment::Header::decode(bytes).map_err(|problem| match problem {
        HeaderProblem::Damaged => WalError::DamagedHeader { segment: number },
        HeaderProblem::ForeignVersion(version) => WalError::ForeignVersion { segment: number, version },
    })?;
    if header.segment != number {
        return Err(WalError::Misnamed { segment: number, header: header.segment });
    }
    Ok((header, seed))
}

/// Recovers from arbitrary bytes, taken as the segments of one log, each as long as its header says;
/// the outcome does not matter, that there is one does.
pub fn fuzz_recover(bytes: &[u8]) {
    drop(replay_bytes(bytes));
}

pub(super) fn replay_bytes(bytes: &[u8]) -> Result<Replay, WalError> {
    let mut replay = Replay::new(1 << 16, false);
    let oldest = segment::Header::decode(bytes).map_or(1, |(header, _)| header.segment);
    let (mut number, mut rest) = (oldest, bytes);
    loop {
        let (header, _) = decode_header(number, rest)?;
        let (this, later) = rest.split_at((header.allocated as usize).min(rest.len()));
        let next = number.checked_add(1).and_then(|next| decode_header(next, later).ok());
        replay.segment(number, this, next.as_ref().map(|(header, _)| header))?;
        match next {
            Some((header, _)) => (number, rest) = (header.segment, later),
            None => break,
        }
    }
    replay.finish(oldest)?;
    Ok(replay)
}

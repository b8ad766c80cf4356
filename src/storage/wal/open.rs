//! Opening: finds the segments, replays them, makes the end safe to append to, starts the writer.
//!
//! Nothing is written before the whole log has been read and found good.

use super::index::{LogIndex, Position};
use super::recover::{Replay, SegmentEnd, decode_header};
use super::state::{Life, OpenSegment, State, Tail};
use super::writer::Writer;
use super::{Missing, Owner, Recovered, Runner, Shared, Threading, Wal, WalError, WalOptions, segment};
use crate::model::Fault;
use crate::storage::disk::{Disk, DiskFile, read_fully};
use crate::storage::mutant::Mutant;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

pub(super) fn open(disk: Arc<dyn Disk>, options: WalOptions) -> Result<(Wal, Recovered), WalError> {
    let io = |what: &str, error: &io::Error| Fault::io(format!("log: {what} {}", options.dir.display()), error);
    disk.create_dir_all(&options.dir).map_err(|error| io("create", &error))?;
    if let Some(parent) = options.dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent).map_err(|error| io("sync the directory of", &error))?;
    }
    let names = disk.list(&options.dir).map_err(|error| io("list", &error))?;
    let found: Vec<u32> = names.iter().filter_map(|name| segment::segment_of(name)).collect();
    let log = Found::read(&*disk, &options, &found)?;
    for name in names.iter().filter(|name| *name == segment::SPARE_NAME || name.ends_with(segment::DROPPED_SUFFIX)) {
        disk.remove(&options.dir.join(name)).map_err(|error| io("remove what is left of segments of", &error))?;
    }
    log.start(disk, options, &found)
}

/// A log that was read and found good; nothing of it was changed.
struct Found {
    replay: Replay,
    files: BTreeMap<u32, OpenSegment>,
    /// The last segment and its bytes, `None` for a new log.
    last: Option<(u32, SegmentEnd, Vec<u8>)>,
}

fn read_file(file: &dyn DiskFile, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    let filled = read_fully(file, &mut bytes, 0)?;
    bytes.truncate(filled);
    Ok(bytes)
}

/// The segments that count: the newest ones without a gap. Older ones behind a gap are leftovers of
/// an interrupted purge, if what is left turns out to be complete.
fn newest_run(found: &[u32]) -> &[u32] {
    let start = (1..found.len()).rev().find(|at| found[*at] != found[at - 1].wrapping_add(1)).unwrap_or(0);
    &found[start..]
}

impl Found {
    fn read(disk: &dyn Disk, options: &WalOptions, found: &[u32]) -> Result<Self, WalError> {
        let cut_damage = options.planted() == Some(Mutant::DamagedMiddleCut);
        let mut log = Self { replay: Replay::new(options.cache_bytes, cut_damage), files: BTreeMap::new(), last: None };
        let run = newest_run(found);
        let Some(oldest) = run.first().copied() else { return Ok(log) };
        let mut headers = Vec::with_capacity(run.len());
        for number in run {
            let (header, open) = open_segment(disk, options, *number)?;
            headers.push(header);
            log.files.insert(*number, open);
        }
        for (at, number) in run.iter().enumerate() {
            // One segment's bytes in memory at a time.
            log.last = None;
            let bytes = log.read_segment(*number)?;
            let end = log.replay.segment(*number, &bytes, headers.get(at + 1))?;
            log.last = Some((*number, end, bytes));
        }
        match log.replay.finish(oldest) {
            Err(WalError::MissingSegment { before, .. }) if run.len() < found.len() => {
                Err(WalError::MissingSegment { before, missing: Missing::Between })
            }
            other => other.map(|()| log),
        }
    }

    fn read_segment(&self, number: u32) -> Result<Vec<u8>, WalError> {
        let fault = |error: &io::Error| Fault::io(format!("log: read {}", segment::file_name(number)), error);
        let open = self.files.get(&number).ok_or_else(|| Fault::Invariant("log: segment not open".into()))?;
        let len = open.file.len().map_err(|error| fault(&error))?;
        if len > u64::from(u32::MAX) {
            return Err(WalError::Inconsistent { segment: number, offset: 0, detail: "a file beyond 4 GiB" });
        }
        Ok(read_file(&*open.file, len).map_err(|error| fault(&error))?)
    }

    fn start(self, disk: Arc<dyn Disk>, options: WalOptions, found: &[u32]) -> Result<(Wal, Recovered), WalError> {
        let index = self.replay.index;
        let mut recovered = Recovered {
            vote: self.replay.vote.clone(),
            committed: self.replay.committed.clone(),
            purged: index.purged().cloned(),
            first_index: index.last().and(index.first()),
            last_index: index.last(),
            torn_bytes: 0,
        };
        let mut tail = Tail::default();
        let mut active = None;
        let mut marked = false;
        if let Some((number, end, bytes)) = &self.last
            && let Some(open) = self.files.get(number)
        {
            recovered.torn_bytes = u64::from(end.torn_end - end.offset);
            marked = end.marked && recovered.torn_bytes == 0;
            if !marked {
                secure_end(&*disk, &options, &*open.file, end, bytes)?;
            }
            let SegmentEnd { offset, allocated: limit, seed, last_crc, .. } = *end;
            tail = Tail { segment: *number, offset, limit, seed, last_crc };
            active = Some((*number, open.file.clone()));
        }
        let mut state = new_state(index, tail, &options, self.files);
        (state.vote, state.committed) = (self.replay.vote, self.replay.committed);
        if active.is_none() {
            state.begin_segment();
        }
        let first_group = if marked { Vec::new() } else { state.take_mark() };
        state.marked = true;
        let needed = state.index.oldest_segment().unwrap_or(state.tail.segment);
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), room: Condvar::new() });
        let mut writer = Writer::new(shared.clone(), disk.clone(), options.clone(), active);
        finish_open(&mut writer, &shared, first_group)?;
        remove_leftovers(&*disk, &options, newest_run(found), found)?;
        writer.delete_before(needed)?;
        let runner = start_writer(writer, options.threading)?;
        Ok((Wal { owner: Arc::new(Owner { shared, runner, options }) }, recovered))
    }
}

fn new_state(index: LogIndex, tail: Tail, options: &WalOptions, files: BTreeMap<u32, OpenSegment>) -> State {
    State {
        index,
        vote: None,
        committed: None,
        committed_unsaved: false,
        tail,
        segment_bytes: options.segment_bytes_clamped(),
        pieces: Vec::new(),
        queued_bytes: 0,
        written: Position { segment: tail.segment, offset: tail.offset },
        marked: false,
        spare_ready: false,
        files,
        life: Life::Open,
        writer_waits: false,
        recycled: Vec::new(),
    }
}

fn open_segment(
    disk: &dyn Disk,
    options: &WalOptions,
    number: u32,
) -> Result<(segment::Header, OpenSegment), WalError> {
    let name = segment::file_name(number);
    let fault = |error: &io::Error| Fault::io(format!("log: open {name}"), error);
    let file = disk.open(&options.dir.join(&name)).map_err(|error| fault(&error))?;
    let head = read_file(&*file, segment::HEADER_BYTES as u64).map_err(|error| fault(&error))?;
    let (header, seed) = decode_header(number, &head)?;
    Ok((header, OpenSegment { file, seed }))
}

/// Makes the end of the log durable and what is behind it zero.
///
/// The bytes that are not proven durable are written again: after a sync that failed in an earlier
/// process they may be in the page cache only, clean, and a sync alone would not write them.
fn secure_end(
    disk: &dyn Disk,
    options: &WalOptions,
    file: &dyn DiskFile,
    end: &SegmentEnd,
    bytes: &[u8],
) -> Result<(), Fault> {
    let fault = |error: &io::Error| Fault::io("log: secure the end".to_owned(), error);
    let unproven = bytes.get(end.group as usize..end.offset as usize).unwrap_or_default();
    let mut rewritten = unproven.to_vec();
    rewritten.resize(rewritten.len() + (end.torn_end - end.offset) as usize, 0);
    file.write_at(&rewritten, u64::from(end.group)).map_err(|error| fault(&error))?;
    file.sync_data().map_err(|error| fault(&error))?;
    disk.sync_dir(&options.dir).map_err(|error| fault(&error))
}

/// The first group goes out before anyone can call: its failure is the failure of `open`.
fn finish_open(writer: &mut Writer, shared: &Shared, group: Vec<super::state::Piece>) -> Result<(), Fault> {
    if !writer.write_group(group) {
        let state = shared.state.lock();
        return Err(match &state.life {
            Life::Failed(fault) => fault.clone(),
            Life::Open | Life::Closing => super::closed(),
        });
    }
    writer.prepare_spare()
}

fn remove_leftovers(disk: &dyn Disk, options: &WalOptions, run: &[u32], found: &[u32]) -> Result<(), Fault> {
    for number in found.iter().filter(|number| !run.contains(number)) {
        let path = options.dir.join(segment::file_name(*number));
        disk.remove(&path).map_err(|error| Fault::io(format!("log: remove {}", path.display()), &error))?;
    }
    Ok(())
}

fn start_writer(writer: Writer, threading: Threading) -> Result<Runner, Fault> {
    match threading {
        Threading::Pumped => Ok(Runner::Pumped(Box::new(Mutex::new(writer)))),
        Threading::Own => {
            let thread = std::thread::Builder::new().name("wal-writer".into()).spawn(|| writer.run());
            let thread = thread.map_err(|error| Fault::io("log: start the writer", &error))?;
            Ok(Runner::Thread(Mutex::new(Some(thread))))
        }
    }
}

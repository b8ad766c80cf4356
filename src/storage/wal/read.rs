//! Reads entries: from the cache if they are there, else from the segments, verified.

use super::index::Slot;
use super::state::OpenSegment;
use super::{Shared, WalEntry, record, segment};
use crate::model::Fault;
use crate::storage::disk::read_fully;
use bytes::Bytes;

/// One read from disk covers at most this many bytes, or one record.
const RUN_BYTES_MAX: u32 = 1 << 20;

/// Neighbouring records to be read at once.
struct Run {
    first_index: u64,
    segment: u32,
    open: OpenSegment,
    slots: Vec<Slot>,
}

fn end_of(slot: &Slot) -> u32 {
    slot.at.offset.saturating_add(u32::try_from(record::footprint(slot.len as usize)).unwrap_or(u32::MAX))
}

pub(super) fn read(shared: &Shared, from: u64, to: u64, max_bytes: usize) -> Result<Vec<WalEntry>, Fault> {
    let (runs, cached) = plan(shared, from, to, max_bytes)?;
    let mut entries = Vec::with_capacity(runs.iter().map(|run| run.slots.len()).sum::<usize>() + cached.len());
    for run in runs {
        read_run(&run, &mut entries)?;
    }
    entries.extend(cached);
    Ok(entries)
}

/// Decides under the lock what to return, so that later changes can't make a hole in it.
fn plan(shared: &Shared, from: u64, to: u64, max_bytes: usize) -> Result<(Vec<Run>, Vec<WalEntry>), Fault> {
    let state = shared.state.lock();
    let Some((first, next)) = state.index.live() else { return Ok((Vec::new(), Vec::new())) };
    let mut runs: Vec<Run> = Vec::new();
    let mut cached = Vec::new();
    let mut bytes = 0_usize;
    for index in from.max(first)..to.min(next) {
        if let Some(found) = state.index.cached(index) {
            bytes += found.len();
            cached.push(WalEntry { index, bytes: found.clone() });
        } else {
            let slot = state.index.slot(index).ok_or_else(|| Fault::Invariant(format!("log: no slot {index}")))?;
            bytes += slot.len as usize;
            match runs.last_mut() {
                Some(run) if run.takes(&slot) => run.slots.push(slot),
                _ => {
                    let segment = slot.at.segment;
                    let open = state.files.get(&segment).cloned();
                    let open = open.ok_or_else(|| Fault::Invariant(format!("log: segment {segment} is not open")))?;
                    runs.push(Run { first_index: index, segment, open, slots: vec![slot] });
                }
            }
        }
        if bytes >= max_bytes {
            break;
        }
    }
    Ok((runs, cached))
}

impl Run {
    fn takes(&self, slot: &Slot) -> bool {
        let start = self.slots.first().map_or(0, |first| first.at.offset);
        slot.at.segment == self.segment && end_of(slot).saturating_sub(start) <= RUN_BYTES_MAX
    }
}

fn read_run(run: &Run, entries: &mut Vec<WalEntry>) -> Result<(), Fault> {
    let (Some(first), Some(last)) = (run.slots.first(), run.slots.last()) else { return Ok(()) };
    let start = first.at.offset;
    let mut buffer = vec![0; (end_of(last) - start) as usize];
    let name = segment::file_name(run.segment);
    let filled = read_fully(&*run.open.file, &mut buffer, u64::from(start));
    let filled = filled.map_err(|error| Fault::io(format!("log: read {name}"), &error))?;
    if filled < buffer.len() {
        let at = u64::from(start) + filled as u64;
        return Err(Fault::corrupt(format!("log file {name}"), format!("it ends at byte {at}")));
    }
    let buffer = Bytes::from(buffer);
    for (index, slot) in (run.first_index..).zip(&run.slots) {
        let within = (slot.at.offset - start) as usize;
        let found = record::decode_whole(&buffer[within..], run.open.seed, slot.at.offset);
        let found = found.filter(|(header, _)| header.kind == record::Kind::Entry && header.index == index);
        let (_, payload) = found.ok_or_else(|| {
            Fault::corrupt(format!("log file {name}"), format!("entry {index} at byte {}", slot.at.offset))
        })?;
        entries.push(WalEntry { index, bytes: buffer.slice_ref(payload) });
    }
    Ok(())
}

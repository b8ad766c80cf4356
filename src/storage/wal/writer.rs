//! The one writer: takes a group, writes it, syncs it, then calls back.
//!
//! The first failed write or sync is final. It calls the fatal handler, then fails every waiting
//! callback, and nothing is written or acknowledged after it.

use super::state::{Life, OpenSegment, Piece};
use super::{Done, Fatal, Shared, WalOptions, segment};
use crate::model::Fault;
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::mutant::Mutant;
use std::io;
use std::sync::Arc;

/// A buffer larger than this is not kept for the next group.
const RECYCLED_BYTES_MAX: usize = 4 << 20;
/// A dropped segment is freed in so many steps: one at once was seen to take 20 ms.
const FREED_IN: u64 = 8;
/// Zeros are written this far ahead of the log's end. Of space that is only reserved, the file system notes with
/// each sync which blocks are in use now, by another write: on ext4 that was a fifth to two fifths of a sync's time.
const AHEAD_BYTES: usize = 256 << 10;
static ZEROS: [u8; AHEAD_BYTES] = [0; AHEAD_BYTES];

pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    options: WalOptions,
    active: Option<(u32, Arc<dyn DiskFile>)>,
    /// As far as something was written to the active segment, be it zeros.
    written_to: u64,
    spare: Option<Arc<dyn DiskFile>>,
    /// Segments that are dropped, whose space is freed a part after each group: to free much at once would keep
    /// the next group waiting.
    dropped: Vec<(u32, Arc<dyn DiskFile>)>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("active", &self.active).field("spare", &self.spare).finish_non_exhaustive()
    }
}

/// Fails the log if the writer's thread ends by a panic, so that nobody waits for it.
struct PanicGuard {
    shared: Arc<Shared>,
    fatal: Fatal,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let fault = Fault::Invariant("the log's writer, or a callback on it, panicked".into());
            self.shared.fail(&fault, &*self.fatal, Vec::new());
        }
    }
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        disk: Arc<dyn Disk>,
        options: WalOptions,
        active: Option<(u32, Arc<dyn DiskFile>)>,
    ) -> Self {
        Self { shared, disk, options, active, written_to: 0, spare: None, dropped: Vec::new() }
    }

    /// Runs until the log is closed or has failed.
    pub(super) fn run(mut self) {
        let _guard = PanicGuard { shared: self.shared.clone(), fatal: self.options.fatal.clone() };
        while let Some(group) = self.next_group(true) {
            if !self.write_group(group) {
                return;
            }
        }
    }

    /// Writes what is queued now. False if the log has failed.
    pub(super) fn pump(&mut self) -> bool {
        while let Some(group) = self.next_group(false) {
            if !self.write_group(group) {
                return false;
            }
        }
        true
    }

    /// The next group, or `None`: at the end, and without `wait` also when nothing is queued.
    fn next_group(&self, wait: bool) -> Option<Vec<Piece>> {
        let idle_mark = if wait { self.options.idle_mark } else { None };
        let mut state = self.shared.state.lock();
        loop {
            if matches!(state.life, Life::Failed(_)) {
                return None;
            }
            if !state.pieces.is_empty() {
                return Some(state.take_group());
            }
            if matches!(state.life, Life::Closing) {
                let done = state.marked && !state.committed_unsaved;
                return if done { None } else { Some(state.take_mark()) };
            }
            if self.freeable().is_some() {
                return Some(Vec::new());
            }
            if !wait {
                return None;
            }
            state.writer_waits = true;
            let idle = match idle_mark {
                Some(idle) if !state.marked => self.shared.work.wait_for(&mut state, idle).timed_out(),
                _ => {
                    self.shared.work.wait(&mut state);
                    false
                }
            };
            state.writer_waits = false;
            if idle && state.pieces.is_empty() && matches!(state.life, Life::Open) {
                return Some(state.take_mark());
            }
        }
    }

    /// Makes a group durable and calls back, piece by piece. False after a failure.
    pub(super) fn write_group(&mut self, group: Vec<Piece>) -> bool {
        let mut rotated = false;
        let mut pieces = group.into_iter();
        while let Some(mut piece) = pieces.next() {
            rotated |= piece.begins_segment();
            let result = self.write_piece(&piece);
            let done = std::mem::take(&mut piece.done);
            if let Err(fault) = result {
                self.fail(fault, done.into_iter().chain(pieces.flat_map(|piece| piece.done)).collect());
                return false;
            }
            let delete_before = piece.delete_before;
            self.note_written(piece);
            for done in done {
                done(Ok(()));
            }
            if let Err(fault) = self.delete_before(delete_before) {
                self.fail(fault, pieces.flat_map(|piece| piece.done).collect());
                return false;
            }
        }
        if rotated && let Err(fault) = self.prepare_spare() {
            self.fail(fault, Vec::new());
            return false;
        }
        if let Err(fault) = self.free_some() {
            self.fail(fault, Vec::new());
            return false;
        }
        true
    }

    fn write_piece(&mut self, piece: &Piece) -> Result<(), Fault> {
        if piece.bytes.is_empty() {
            return Ok(());
        }
        self.options.observer.started();
        if piece.begins_segment() {
            self.begin_segment(piece)?;
        } else {
            let (_, file) = self
                .active
                .as_ref()
                .filter(|(segment, _)| *segment == piece.segment)
                .ok_or_else(|| Fault::Invariant(format!("segment {} is not being written", piece.segment)))?;
            file.write_at(&piece.bytes, u64::from(piece.start)).map_err(|e| self.fault("write", piece.segment, &e))?;
            self.written_to = self.zeroed_ahead(&**file, piece)?;
            self.options.observer.syncing();
            if self.must_sync(piece) {
                self.check_sync(file.sync_data(), piece.segment)?;
            }
        }
        self.options.observer.finished(piece.bytes.len());
        Ok(())
    }

    fn fault(&self, what: &str, segment: u32, error: &io::Error) -> Fault {
        let path = self.options.dir.join(segment::file_name(segment));
        Fault::io(format!("log: {what} {}", path.display()), error)
    }

    fn must_sync(&self, piece: &Piece) -> bool {
        match self.options.planted() {
            Some(Mutant::NoFsyncOnAppend) => piece.vote,
            Some(Mutant::NoFsyncOnVote) => piece.entries || !piece.vote,
            _ => true,
        }
    }

    fn check_sync(&self, outcome: io::Result<()>, segment: u32) -> Result<(), Fault> {
        match outcome {
            Err(_) if self.options.planted() == Some(Mutant::FsyncErrorIgnored) => Ok(()),
            other => other.map_err(|error| self.fault("sync", segment, &error)),
        }
    }

    /// The segment gets its name only when its header and first records are durable: a named segment
    /// without a sound header is damaged, not torn.
    fn begin_segment(&mut self, piece: &Piece) -> Result<(), Fault> {
        let reserved = self.spare.take();
        self.written_to = 0;
        let fault = |what: &str, error: &io::Error| self.fault(what, piece.segment, error);
        let file = match reserved {
            Some(file) => file,
            None => self.make_spare().map_err(|error| fault("allocate", &error))?,
        };
        let dir = &self.options.dir;
        file.write_at(&piece.bytes, 0).map_err(|error| fault("write", &error))?;
        let written_to = self.zeroed_ahead(&*file, piece)?;
        self.options.observer.syncing();
        self.check_sync(file.sync_data(), piece.segment)?;
        let path = dir.join(segment::file_name(piece.segment));
        self.disk.rename(&dir.join(segment::SPARE_NAME), &path).map_err(|error| fault("name", &error))?;
        self.check_sync(self.disk.sync_dir(dir), piece.segment)?;
        self.active = Some((piece.segment, file.clone()));
        self.written_to = written_to;
        let mut state = self.shared.state.lock();
        state.spare_ready = false;
        state.files.insert(piece.segment, OpenSegment { file, seed: piece.seed });
        Ok(())
    }

    /// Writes zeros behind a piece that ends where nothing was written yet. They are what is read there anyway, so
    /// it does not matter how much of them survives a crash.
    fn zeroed_ahead(&self, file: &dyn DiskFile, piece: &Piece) -> Result<u64, Fault> {
        let end = u64::from(piece.start) + piece.bytes.len() as u64;
        if end <= self.written_to {
            return Ok(self.written_to);
        }
        let reserved = file.len().map_err(|error| self.fault("measure", piece.segment, &error))?;
        let room = usize::try_from(reserved.saturating_sub(end)).unwrap_or(usize::MAX);
        let zeros = &ZEROS[..room.min(AHEAD_BYTES)];
        if !zeros.is_empty() {
            file.write_at(zeros, end).map_err(|error| self.fault("write", piece.segment, &error))?;
        }
        Ok(end + zeros.len() as u64)
    }

    fn make_spare(&self) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.options.dir.join(segment::SPARE_NAME);
        let file = self.disk.create(&path)?;
        if let Err(error) = file.allocate(u64::from(self.options.segment_bytes_clamped())) {
            // The name must be free for the next try; if it can't be freed that one fails.
            drop(self.disk.remove(&path));
            return Err(error);
        }
        Ok(file)
    }

    /// Keeps the space of the next segment in reserve. A full disk is not a failure here: what is
    /// reserved already can be used up, and it is tried again when segments are deleted.
    pub(super) fn prepare_spare(&mut self) -> Result<(), Fault> {
        if self.spare.is_some() {
            return Ok(());
        }
        self.options.observer.started();
        let made = self.make_spare();
        self.options.observer.finished(0);
        match made {
            Ok(file) => self.spare = Some(file),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => {
                let path = self.options.dir.join(segment::SPARE_NAME);
                return Err(Fault::io(format!("log: allocate {}", path.display()), &error));
            }
        }
        self.shared.state.lock().spare_ready = true;
        Ok(())
    }

    /// Drops the segments below `needed`, none of which has a live entry.
    pub(super) fn delete_before(&mut self, needed: u32) -> Result<(), Fault> {
        let dropped = {
            let mut state = self.shared.state.lock();
            let kept = state.files.split_off(&needed);
            std::mem::replace(&mut state.files, kept)
        };
        if dropped.is_empty() {
            return Ok(());
        }
        self.options.observer.started();
        for segment in dropped.keys() {
            let path = self.options.dir.join(segment::file_name(*segment));
            let renamed = self.disk.rename(&path, &self.options.dir.join(segment::dropped_name(*segment)));
            renamed.map_err(|error| self.fault("drop", *segment, &error))?;
        }
        // A segment that comes back after a crash must be whole.
        self.disk.sync_dir(&self.options.dir).map_err(|error| self.fault("sync the directory of", needed, &error))?;
        self.dropped.extend(dropped.into_iter().map(|(segment, open)| (segment, open.file)));
        self.options.observer.finished(0);
        Ok(())
    }

    /// A dropped segment that nobody reads any more.
    fn freeable(&self) -> Option<usize> {
        self.dropped.iter().position(|(_, file)| Arc::strong_count(file) == 1)
    }

    fn free_some(&mut self) -> Result<(), Fault> {
        let Some(at) = self.freeable() else { return Ok(()) };
        self.options.observer.started();
        let (segment, file) = &self.dropped[at];
        let path = self.options.dir.join(segment::dropped_name(*segment));
        let part = u64::from(self.options.segment_bytes_clamped()).div_ceil(FREED_IN);
        let left = file.len().map(|len| len.checked_sub(part).filter(|left| *left > 0));
        let freed = left.and_then(|left| match left {
            Some(left) => file.set_len(left).map(|()| false),
            None => self.disk.remove(&path).map(|()| true),
        });
        let gone = freed.map_err(|error| Fault::io(format!("log: free {}", path.display()), &error))?;
        self.options.observer.finished(0);
        if gone {
            self.dropped.swap_remove(at);
            return self.prepare_spare();
        }
        Ok(())
    }

    fn note_written(&self, piece: Piece) {
        let end = piece.end();
        let mut bytes = piece.bytes;
        let mut state = self.shared.state.lock();
        state.written = state.written.max(end);
        state.queued_bytes -= bytes.len();
        let written = state.written;
        state.index.evict(written, self.options.cache_bytes);
        if bytes.capacity() <= RECYCLED_BYTES_MAX && bytes.capacity() > state.recycled.capacity() {
            bytes.clear();
            state.recycled = bytes;
        }
        drop(state);
        self.shared.room.notify_all();
    }

    fn fail(&self, fault: Fault, waiting: Vec<Done>) {
        self.shared.fail(&fault, &*self.options.fatal, waiting);
    }
}

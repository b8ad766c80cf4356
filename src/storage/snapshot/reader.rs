//! Reading a snapshot file as a stream: nothing is held but one buffer and the block handed out.

use super::SnapshotMeta;
use super::format::{
    COUNTS_BYTES, CRC_BYTES, DIGEST_BYTES, FRAME_BYTES, HEADER_FIXED_BYTES, block_crc, counts, meta_length, padding,
};
use crate::model::{Fault, codec, limits};
use crate::storage::disk::{Disk, DiskFile, read_fully};
use crate::storage::panic_text;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

const BUFFER_BYTES: usize = 256 << 10;

/// What a whole and right file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSummary {
    pub meta: SnapshotMeta,
    pub blocks: u64,
    /// Bytes in the blocks, and of the file.
    pub payload_bytes: u64,
    pub file_bytes: u64,
    pub digest: [u8; DIGEST_BYTES],
}

/// Reads the whole of a file and checks every block and the digest.
///
/// # Errors
/// `Fault::Corrupt` if it is damaged, `Fault::Io` if it cannot be read.
pub fn verify_file(disk: &dyn Disk, path: &Path) -> Result<SnapshotSummary, Fault> {
    let what = path.display().to_string();
    let file = disk.open_read(path).map_err(|error| Fault::io(format!("open {what}"), &error))?;
    verify(&file, what, || {})
}

pub(super) fn verify(file: &Arc<dyn DiskFile>, what: String, give_way: fn()) -> Result<SnapshotSummary, Fault> {
    let mut reader = SnapshotReader::new(file, what, give_way)?;
    for block in &mut reader {
        block?;
    }
    reader.into_summary()
}

/// Streams the blocks of a file that lies anywhere; its digest is checked at the end of the stream.
///
/// # Errors
/// `Fault::Corrupt` if its header is damaged, `Fault::Io` if it cannot be read.
pub fn read_file(disk: &dyn Disk, path: &Path) -> Result<SnapshotReader, Fault> {
    let what = path.display().to_string();
    let file = disk.open_read(path).map_err(|error| Fault::io(format!("open {what}"), &error))?;
    SnapshotReader::new(&file, what, || {})
}

/// A file read from its beginning to its end, hashed as it passes.
#[derive(Debug)]
struct Source {
    file: Arc<dyn DiskFile>,
    what: String,
    offset: u64,
    length: u64,
    buffer: Vec<u8>,
    used: usize,
    digest: Sha256,
}

impl Source {
    fn corrupt(&self, detail: &str) -> Fault {
        Fault::corrupt(self.what.as_str(), detail)
    }

    /// Bytes not yet handed out.
    fn left(&self) -> u64 {
        let buffered = u64::try_from(self.buffer.len() - self.used).unwrap_or(0);
        self.length.saturating_sub(self.offset) + buffered
    }

    /// Bytes taken so far.
    fn position(&self) -> u64 {
        self.length.saturating_sub(self.left())
    }

    /// The next `length` bytes, which the digest has not seen yet.
    fn take_unhashed(&mut self, length: usize) -> Result<Vec<u8>, Fault> {
        // Before anything is allocated by what the file itself promises.
        if u64::try_from(length).is_ok_and(|length| length > self.left()) {
            return Err(self.corrupt("it ends early"));
        }
        let mut out = Vec::with_capacity(length);
        while out.len() < length {
            if self.used == self.buffer.len() {
                self.fill()?;
            }
            let wanted = (length - out.len()).min(self.buffer.len() - self.used);
            out.extend_from_slice(&self.buffer[self.used..self.used + wanted]);
            self.used += wanted;
        }
        Ok(out)
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, Fault> {
        let out = self.take_unhashed(length)?;
        self.digest.update(&out);
        Ok(out)
    }

    fn fill(&mut self) -> Result<(), Fault> {
        let left = usize::try_from(self.length.saturating_sub(self.offset)).unwrap_or(BUFFER_BYTES);
        self.buffer.resize(left.min(BUFFER_BYTES), 0);
        self.used = 0;
        let read = self.file.read_at(&mut self.buffer, self.offset);
        let read = read.map_err(|error| Fault::io(format!("read {}", self.what), &error))?;
        self.buffer.truncate(read);
        self.offset += u64::try_from(read).unwrap_or(0);
        if read == 0 { Err(self.corrupt("it ends early")) } else { Ok(()) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| self.corrupt("it ends early"))
    }
}

/// The blocks of one file in order. Every block is checked before it is handed out, the counts and
/// the digest after the last: only a stream that ended without an error was whole.
#[derive(Debug)]
pub struct SnapshotReader {
    source: Source,
    meta: SnapshotMeta,
    header_bytes: usize,
    blocks: u64,
    payload_bytes: u64,
    digest: Option<[u8; DIGEST_BYTES]>,
    failed: Option<Fault>,
    /// Called before each block.
    give_way: fn(),
}

impl SnapshotReader {
    pub(super) fn new(file: &Arc<dyn DiskFile>, what: String, give_way: fn()) -> Result<Self, Fault> {
        let length = file.len().map_err(|error| Fault::io(format!("measure {what}"), &error))?;
        let digest = Sha256::new();
        let file = Arc::clone(file);
        let mut source = Source { file, what, offset: 0, length, buffer: Vec::new(), used: 0, digest };
        let mut head = source.take(HEADER_FIXED_BYTES)?;
        let meta_length = meta_length(&source.what, &head)?;
        head.extend(source.take(meta_length)?);
        let crc = u32::from_le_bytes(source.array::<CRC_BYTES>()?);
        if crc != crc32c::crc32c(&head) {
            return Err(source.corrupt("the checksum of its header does not match"));
        }
        let meta = codec::decode(&source.what, &head[HEADER_FIXED_BYTES..])?;
        let header_bytes = head.len();
        Ok(Self { source, meta, header_bytes, blocks: 0, payload_bytes: 0, digest: None, failed: None, give_way })
    }

    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// The same file, for what is to be read again later.
    #[must_use]
    pub fn bytes(&self) -> SnapshotBytes {
        let Source { file, what, length, .. } = &self.source;
        let first_block = u64::try_from(self.header_bytes + CRC_BYTES + FRAME_BYTES).unwrap_or(u64::MAX);
        SnapshotBytes { file: Arc::clone(file), what: what.clone(), bytes: *length, first_block }
    }

    /// Reads ahead on a thread of its own, at most `blocks` blocks.
    ///
    /// # Errors
    /// A fault if the thread cannot be started.
    pub fn read_ahead(self, blocks: usize) -> Result<ReadAhead, Fault> {
        ReadAhead::start(self, blocks)
    }

    fn into_summary(self) -> Result<SnapshotSummary, Fault> {
        match (self.failed, self.digest) {
            (Some(fault), _) => Err(fault),
            (None, None) => Err(self.source.corrupt("it was not read to its end")),
            (None, Some(digest)) => Ok(SnapshotSummary {
                meta: self.meta,
                blocks: self.blocks,
                payload_bytes: self.payload_bytes,
                file_bytes: self.source.length,
                digest,
            }),
        }
    }

    fn next_block(&mut self) -> Result<Option<Bytes>, Fault> {
        let length = u32::from_le_bytes(self.source.array()?);
        if length == 0 {
            return self.finish().map(|()| None);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > limits::SNAPSHOT_BLOCK_BYTES_MAX {
            return Err(self.source.corrupt(&format!("block {} is too long", self.blocks)));
        }
        let crc = u32::from_le_bytes(self.source.array::<CRC_BYTES>()?);
        let bytes = self.source.take(length)?;
        if crc != block_crc(self.blocks, &bytes) {
            return Err(self.source.corrupt(&format!("the checksum of block {} does not match", self.blocks)));
        }
        self.blocks += 1;
        self.payload_bytes += u64::try_from(length).unwrap_or(0);
        Ok(Some(bytes.into()))
    }

    fn finish(&mut self) -> Result<(), Fault> {
        let promised = self.source.take(COUNTS_BYTES)?;
        if promised != counts(self.blocks, self.payload_bytes)[4..] {
            return Err(self.source.corrupt("blocks are missing or too many"));
        }
        self.source.take(padding(self.source.position()))?;
        let found: [u8; DIGEST_BYTES] = self.source.digest.clone().finalize().into();
        if self.source.take_unhashed(DIGEST_BYTES)? != found {
            return Err(self.source.corrupt("its digest does not match"));
        }
        if self.source.left() != 0 {
            return Err(self.source.corrupt("something follows its end"));
        }
        self.digest = Some(found);
        Ok(())
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<Bytes, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.digest.is_some() || self.failed.is_some() {
            return None;
        }
        (self.give_way)();
        let block = self.next_block();
        if let Err(fault) = &block {
            self.failed = Some(fault.clone());
        }
        block.transpose()
    }
}

/// A reader on its own thread, so that decoding and reading overlap. Ends with its handle.
#[derive(Debug)]
pub struct ReadAhead {
    meta: SnapshotMeta,
    blocks: Option<Receiver<Result<Bytes, Fault>>>,
    thread: Option<JoinHandle<()>>,
}

impl ReadAhead {
    fn start(reader: SnapshotReader, blocks: usize) -> Result<Self, Fault> {
        let meta = reader.meta.clone();
        let (send, receive) = sync_channel(blocks.max(1));
        let thread = std::thread::Builder::new()
            .name("snapshot-read".into())
            .spawn(move || {
                // A receiver that is gone wants no more.
                for block in reader {
                    if send.send(block).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| Fault::io("start reading ahead", &error))?;
        Ok(Self { meta, blocks: Some(receive), thread: Some(thread) })
    }

    #[must_use]
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    fn join(&mut self) -> Option<Fault> {
        self.blocks = None;
        let panic = self.thread.take()?.join().err()?;
        Some(Fault::Invariant(format!("reading a snapshot panicked: {}", panic_text(&*panic))))
    }
}

impl Iterator for ReadAhead {
    type Item = Result<Bytes, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.blocks.as_ref()?.recv() {
            Ok(block) => Some(block),
            // A stream cut off by a panic must not look like its end.
            Err(_) => self.join().map(Err),
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        drop(self.join());
    }
}

/// A file's bytes anywhere, unchecked. The file stays as long as this lives, whatever becomes of its name.
#[derive(Debug)]
pub struct SnapshotBytes {
    file: Arc<dyn DiskFile>,
    what: String,
    bytes: u64,
    first_block: u64,
}

impl SnapshotBytes {
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// How many there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the bytes of the first block lie.
    #[must_use]
    pub fn first_block(&self) -> u64 {
        self.first_block
    }

    /// From the end of a block's bytes to those of the next.
    #[must_use]
    pub fn between_blocks(&self) -> u64 {
        u64::try_from(FRAME_BYTES).unwrap_or(u64::MAX)
    }

    /// Fills `out` with what lies from `place` on.
    ///
    /// # Errors
    /// `Fault::Io` if it cannot be read, `Fault::Corrupt` if the file ends before.
    pub fn read(&self, out: &mut [u8], place: u64) -> Result<(), Fault> {
        let filled = read_fully(&*self.file, out, place);
        let filled = filled.map_err(|error| Fault::io(format!("read {}", self.what), &error))?;
        if filled < out.len() { Err(Fault::corrupt(self.what.as_str(), "it ends early")) } else { Ok(()) }
    }
}

/// A file's bytes in pieces, unchecked: whoever receives them checks the digest.
#[derive(Debug)]
pub struct RawSnapshot {
    file: Arc<dyn DiskFile>,
    offset: u64,
    length: u64,
}

impl RawSnapshot {
    pub(super) fn open(file: Arc<dyn DiskFile>) -> Result<Self, Fault> {
        let length = file.len().map_err(|error| Fault::io("measure a snapshot", &error))?;
        Ok(Self { file, offset: 0, length })
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Goes on from that byte of the file, for a download that was cut off.
    pub fn seek(&mut self, offset: u64) {
        self.offset = offset.min(self.length);
    }
}

impl Iterator for RawSnapshot {
    type Item = Result<Bytes, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.length {
            return None;
        }
        let wanted = usize::try_from(self.length - self.offset).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        let mut buffer = vec![0; wanted];
        let read = self.file.read_at(&mut buffer, self.offset).map_err(|error| Fault::io("read a snapshot", &error));
        let read = match read {
            Ok(0) => Err(Fault::corrupt("a snapshot", "it ends early")),
            read => read,
        };
        match read {
            Ok(read) => {
                buffer.truncate(read);
                self.offset += u64::try_from(read).unwrap_or(0);
                Some(Ok(buffer.into()))
            }
            Err(fault) => {
                self.offset = self.length;
                Some(Err(fault))
            }
        }
    }
}

//! Writing a snapshot file: one's own, block by block, or the bytes of another member's.

use super::format::{counts, frame, header, padding};
use super::reader::{SnapshotReader, SnapshotSummary, verify};
use super::{Inner, SnapshotMeta};
use crate::model::Fault;
use crate::storage::disk::{DiskFile, PART_BYTES};
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const BUFFER_BYTES: usize = 256 << 10;

/// Makes all of a file's bytes durable before its name is.
fn flush_before_publishing(file: &dyn DiskFile) -> Result<(), Fault> {
    file.sync_data().map_err(|error| Fault::io("flush a snapshot", &error))
}

/// A file under a temporary name, removed unless it was published.
#[derive(Debug)]
struct Temporary {
    inner: Arc<Inner>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    offset: u64,
    /// Written out up to here, at least.
    flushed: u64,
    buffer: Vec<u8>,
    published: AtomicBool,
}

impl Temporary {
    fn create(inner: Arc<Inner>) -> Result<Self, Fault> {
        let path = inner.temporary_path();
        let file = inner.disk.create(&path).map_err(|error| Fault::io("create a snapshot", &error))?;
        Ok(Self {
            inner,
            path,
            file,
            offset: 0,
            flushed: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            published: AtomicBool::new(false),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.drain()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            return self.write_out(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Bytes written so far.
    fn position(&self) -> u64 {
        self.offset + u64::try_from(self.buffer.len()).unwrap_or(u64::MAX)
    }

    fn drain(&mut self) -> Result<(), Fault> {
        let buffer = std::mem::take(&mut self.buffer);
        self.write_out(&buffer)?;
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    fn write_out(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.write_at(bytes, self.offset).map_err(|error| Fault::io("write a snapshot", &error))?;
        self.offset += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.offset - self.flushed < PART_BYTES {
            return Ok(());
        }
        // The log is on the same disk, and its syncs would wait for all of a large file.
        self.flushed = self.offset;
        let synced = (self.inner.courtesy.take_turns)(&|| self.file.sync_data());
        synced.map_err(|error| Fault::io("write out a snapshot", &error))
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.drain()?;
        flush_before_publishing(&*self.file)
    }

    fn publish(&self, meta: &SnapshotMeta) -> Result<SnapshotSummary, Fault> {
        let summary = self.inner.publish((&self.path, &self.file), meta)?;
        self.published.store(true, Ordering::SeqCst);
        Ok(summary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published.load(Ordering::SeqCst) {
            // Best effort: what is left is removed at the next start. Gone already if the rename was done.
            drop(self.inner.disk.remove(&self.path));
        }
    }
}

/// A snapshot being written.
#[derive(Debug)]
pub struct SnapshotWriter {
    file: Temporary,
    meta: SnapshotMeta,
    digest: Sha256,
    blocks: u64,
    payload_bytes: u64,
}

impl SnapshotWriter {
    pub(super) fn begin(inner: Arc<Inner>, meta: SnapshotMeta) -> Result<Self, Fault> {
        let header = header(&meta)?;
        let file = Temporary::create(inner)?;
        let mut writer = Self { file, meta, digest: Sha256::new(), blocks: 0, payload_bytes: 0 };
        writer.write(&header)?;
        Ok(writer)
    }

    /// Adds a block of 1 byte to 16 MiB.
    ///
    /// # Errors
    /// A fault of the disk, or of a block of another size. The snapshot is to be given up then.
    pub fn write_block(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let frame = frame(self.blocks, bytes)?;
        self.write(&frame)?;
        self.write(bytes)?;
        self.blocks += 1;
        self.payload_bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// Publishes the snapshot: it is durable and was read back when this returns.
    ///
    /// # Errors
    /// A fault of the disk, or if what was read back is not what was written.
    pub fn finish(mut self) -> Result<SnapshotSummary, Fault> {
        let counts = counts(self.blocks, self.payload_bytes);
        self.write(&counts)?;
        let padding = padding(self.file.position());
        self.write(&vec![0; padding])?;
        let digest: [u8; 32] = self.digest.finalize().into();
        self.file.write(&digest)?;
        self.file.flush()?;
        let summary = self.file.publish(&self.meta)?;
        if summary.digest != digest {
            return Err(Fault::corrupt("the snapshot just written", "another one was read back"));
        }
        Ok(summary)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.digest.update(bytes);
        self.file.write(bytes)
    }
}

/// A snapshot file arriving from elsewhere, in pieces of any size.
#[derive(Debug)]
pub struct SnapshotImport {
    file: Temporary,
}

impl SnapshotImport {
    pub(super) fn begin(inner: Arc<Inner>) -> Result<Self, Fault> {
        Ok(Self { file: Temporary::create(inner)? })
    }

    /// # Errors
    /// A fault of the disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.write(bytes)
    }

    /// Flushes the bytes and checks all of them.
    ///
    /// # Errors
    /// `Fault::Corrupt` if what arrived is no whole snapshot: the sender's fault, not this disk's.
    /// `Fault::Io` of the disk.
    pub fn verify(mut self) -> Result<VerifiedImport, Fault> {
        self.file.flush()?;
        let summary = verify(&self.file.file, self.file.path.display().to_string(), self.file.inner.courtesy.give_way)?;
        Ok(VerifiedImport { file: self.file, summary })
    }
}

/// A whole snapshot from elsewhere, not yet published: its meta is to be judged first.
#[derive(Debug)]
pub struct VerifiedImport {
    file: Temporary,
    summary: SnapshotSummary,
}

impl VerifiedImport {
    #[must_use]
    pub fn summary(&self) -> &SnapshotSummary {
        &self.summary
    }

    /// Streams its blocks.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn read(&self) -> Result<SnapshotReader, Fault> {
        SnapshotReader::new(&self.file.file, self.file.path.display().to_string(), self.file.inner.courtesy.give_way)
    }

    /// Keeps it beside the snapshots, under its digest.
    ///
    /// # Errors
    /// A fault of the disk.
    pub fn stage(&self) -> Result<(), Fault> {
        self.file.inner.stage((&self.file.path, &self.file.file), &self.summary.digest)?;
        self.file.published.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Makes it this member's newest snapshot.
    ///
    /// # Errors
    /// A fault of the disk, or if there is a newer one.
    pub fn publish(&self) -> Result<SnapshotSummary, Fault> {
        self.file.publish(&self.summary.meta)
    }
}

//! The disk as the log and the snapshots see it: a small trait, so that crashes, short writes and
//! errors can be injected and un-synced data can be lost in tests.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub trait Disk: Debug + Send + Sync + 'static {
    /// A new file for reading and writing; fails if it exists.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// An existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// An existing file, for reading alone.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// File names (not directories) in `dir`, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that an unprivileged writer could still write below `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

#[expect(clippy::len_without_is_empty, reason = "a file's length is asked for, never whether it is empty")]
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Reads up to `buf.len()` bytes; 0 at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf`, or fails; a failed write may have written a part.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Data and the metadata needed to read it back (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// Reserves space up to `len` so that later writes need no allocation; the file reads as zeros there.
    fn allocate(&self, len: u64) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
}

/// Fills `out` from that byte of the file on; answers how much there was, which is less only at the file's end.
///
/// # Errors
/// Of the disk.
pub(super) fn read_fully(file: &dyn DiskFile, out: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match file.read_at(&mut out[filled..], at + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// How much of a file is left to be written out at once: the syncs of all other files wait for it.
pub(super) const PART_BYTES: u64 = 1 << 20;
/// How much is freed at once, for the same reason.
const FREED_BYTES: u64 = 8 * PART_BYTES;

/// Removes a file that nobody reads any more, freeing its space a part at a time.
///
/// # Errors
/// Of the disk. The file may be shorter then.
pub(super) fn remove_by_parts(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let file = disk.open(path)?;
    let mut length = file.len()?;
    while let Some(rest) = length.checked_sub(FREED_BYTES) {
        file.set_len(rest)?;
        file.sync_data()?;
        length = rest;
    }
    drop(file);
    disk.remove(path)
}

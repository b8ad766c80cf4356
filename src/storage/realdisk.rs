//! The machine's own file system behind the `Disk` trait.
//!
//! New files are readable by their owner only (0600, directories 0700). No call is retried after an
//! error of a sync: the caller ends the process.

use super::disk::{Disk, DiskFile};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile {
    file: File,
}

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Arc::new(RealFile { file }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile { file }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile { file: File::open(path)? }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl RealFile {
    /// For file systems without fallocate: written zeros reserve space as well.
    fn allocate_by_writing(&self, len: u64) -> io::Result<()> {
        let mut at = self.file.metadata()?.len();
        while at < len {
            let step = usize::try_from(len - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.file.write_all_at(&ZEROS[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buf, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        use rustix::io::Errno;
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return self.allocate_by_writing(len),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_and_hold_what_was_written() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        let disk = RealDisk;
        disk.create_dir_all(&dir).unwrap();
        let file = disk.create(&dir.join("one")).unwrap();
        assert!(disk.create(&dir.join("one")).is_err(), "create never opens an existing file");
        file.allocate(10_000).unwrap();
        file.write_at(b"hello", 9_998).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 10_003);
        disk.rename(&dir.join("one"), &dir.join("two")).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["two"]);
        let read = disk.open_read(&dir.join("two")).unwrap();
        assert!(read.write_at(b"x", 0).is_err() && read.set_len(0).is_err(), "for reading alone");
        assert_eq!(read.len().unwrap(), 10_003);
        let mut buf = [1; 8];
        let file = disk.open(&dir.join("two")).unwrap();
        assert_eq!(file.read_at(&mut buf, 9_996).unwrap(), 7);
        assert_eq!(&buf, b"\0\0hello\x01");
        assert!(disk.free_bytes(&dir).unwrap() > 0);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.join("two")), 0o600);
        assert_eq!(mode(&dir), 0o700);
        disk.remove(&dir.join("two")).unwrap();
        assert_eq!(disk.open(&dir.join("two")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn zeros_are_written_where_fallocate_is_missing() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        let file = RealFile { file: File::create_new(path).unwrap() };
        file.write_at(b"abc", 0).unwrap();
        file.allocate_by_writing(200_000).unwrap();
        assert_eq!(file.len().unwrap(), 200_000);
    }
}

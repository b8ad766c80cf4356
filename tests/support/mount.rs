//! A small ext4 of its own on a loop device, whose power can be cut. Cleaned up when dropped, also
//! by a failing test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

#[derive(Debug)]
pub(crate) struct Mount {
    device: String,
    point: PathBuf,
    mounted: bool,
    scratch: TempDir,
}

/// ext4's shutdown ioctl with flag 2: stop at once, without flushing the journal. Python, because
/// this crate forbids the unsafe code that an ioctl takes.
const CUT: &str = "
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
fcntl.ioctl(fd, 0x8004587D, struct.pack('I', 2))
";

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

impl Mount {
    /// `Err` says why there can be none here.
    pub(crate) fn new(size_bytes: u64) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting takes root".to_owned());
        }
        let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
        let image = scratch.path().join("image");
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(size_bytes).map_err(|error| error.to_string())?;
        let point = scratch.path().join("mount");
        std::fs::create_dir(&point).map_err(|error| error.to_string())?;
        // No blocks reserved for root: the test is root and would never meet a full disk.
        let image = image.to_str().expect("a plain path");
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=0", image])?;
        let device = run("losetup", &["--find", "--show", image])?;
        let mut mount = Self { device, point, mounted: false, scratch };
        mount.mount()?;
        Ok(mount)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.point
    }

    /// A place outside the mount that lives as long.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    fn mount(&mut self) -> Result<(), String> {
        run("mount", &["-t", "ext4", &self.device, self.point.to_str().expect("a plain path")])?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        run("umount", &[self.point.to_str().expect("a plain path")])?;
        self.mounted = false;
        Ok(())
    }

    /// Cuts the power: what was not synced is gone. Processes with files here must be paused.
    pub(crate) fn cut(&self) -> Result<(), String> {
        run("python3", &["-c", CUT, self.point.to_str().expect("a plain path")]).map(drop)
    }

    /// After a cut, once nobody has files open here: the disk as it comes back with the power.
    pub(crate) fn power_on(&mut self) -> Result<(), String> {
        self.unmount()?;
        self.mount()
    }

    /// Bytes that can still be written.
    pub(crate) fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.point).expect("the mount answers");
        stat.f_bavail * stat.f_frsize
    }

    /// Takes up space until about `leave` bytes are free.
    pub(crate) fn fill(&self, mut leave: u64) -> Result<PathBuf, String> {
        const LEAVE_AT_MOST: u64 = 64 << 20;
        let ballast = self.point.join("ballast");
        let path = ballast.to_str().expect("a plain path");
        loop {
            let take = self.free_bytes().saturating_sub(leave).to_string();
            match run("fallocate", &["-l", &take, path]) {
                Ok(_) => return Ok(ballast),
                Err(why) => {
                    // Others take space too; what was taken before it failed must not stay.
                    let _may_be_absent = std::fs::remove_file(&ballast);
                    leave = 2 * leave.max(64 << 10);
                    if leave > LEAVE_AT_MOST {
                        return Err(why);
                    }
                }
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted && self.unmount().is_err() {
            // A process that a failing test left behind still has files open.
            let _reported_below = run("umount", &["--lazy", self.point.to_str().expect("a plain path")]);
        }
        if let Err(problem) = run("losetup", &["--detach", &self.device]) {
            eprintln!("{} is left behind: {problem}", self.device);
        }
    }
}

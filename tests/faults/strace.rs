//! System calls that fail when asked to: strace's injection, attached to the running member.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DETACH_WITHIN: Duration = Duration::from_secs(2);

/// An attached strace; detached when dropped.
#[derive(Debug)]
pub(crate) struct Injection {
    child: Child,
    log: PathBuf,
}

impl Injection {
    /// `fault` is what strace's `inject=` takes, as `fdatasync:error=EIO`. `Err` says why there can be none here.
    pub(crate) fn attach(pid: u32, fault: &str, scratch: &Path) -> Result<Self, String> {
        let log = scratch.join("strace.log");
        let calls = fault.split(':').next().unwrap_or(fault);
        let child = Command::new("strace")
            .args(["--follow-forks", "--quiet=exit", "-e"])
            .arg(format!("trace={calls}"))
            .arg("-e")
            .arg(format!("inject={fault}"))
            .arg(format!("--output={}", log.display()))
            .arg(format!("--attach={pid}"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("strace: {error}"))?;
        let mut injection = Self { child, log };
        injection.await_attached(pid)?;
        Ok(injection)
    }

    fn await_attached(&mut self, pid: u32) -> Result<(), String> {
        super::eventually("strace is attached to every thread, or gives up", Duration::from_secs(10), || {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                use std::io::Read;
                let mut problem = String::new();
                self.child.stderr.as_mut()?.read_to_string(&mut problem).ok()?;
                return Some(Err(format!("strace cannot attach: {}", problem.trim())));
            }
            let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
            let traced = |task: std::io::Result<std::fs::DirEntry>| {
                let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
                let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim();
                (tracer != "0").then_some(())
            };
            tasks.all(|task| traced(task).is_some()).then_some(Ok(()))
        })
    }

    /// How many calls were made to fail.
    pub(crate) fn injected(&self) -> usize {
        std::fs::read_to_string(&self.log).unwrap_or_default().matches("(INJECTED)").count()
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // SIGTERM lets strace detach; a SIGKILL could leave the member stopped.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _already_gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let patience = Instant::now() + DETACH_WITHIN;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        // It does not notice the end of a member that ends during an injected delay; the kernel lets go of that.
        let _already_gone = self.child.kill();
        let _already_gone = self.child.wait();
    }
}

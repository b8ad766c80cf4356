//! The command that a watch runs: a process group of its own, told of one event.

use crate::cli::exit::{self, CliError};
use crate::client::WatchEvent;
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

/// One variable of the environment; the system refuses to start a process with much longer ones.
const VARIABLE_BYTES_MAX: usize = 100_000;

pub(super) struct Running {
    child: Child,
    group: Option<Pid>,
    /// Writes the event to the child's standard input.
    feed: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("child", &self.child).finish_non_exhaustive()
    }
}

impl Running {
    /// Without an event the command has an empty standard input.
    pub(super) fn start(argv: &[OsString], event: Option<&WatchEvent>) -> Result<Self, CliError> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(CliError::Usage("there is no command to run".to_owned()));
        };
        let mut command = Command::new(program);
        command.args(arguments).process_group(0).kill_on_drop(true);
        command.stdin(if event.is_some() { Stdio::piped() } else { Stdio::null() });
        for (name, value) in event.into_iter().flat_map(variables) {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command.spawn().map_err(|error| not_started(program, &error))?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let feed = child.stdin.take().zip(event).map(|(mut stdin, event)| {
            let line = event.line.clone();
            let feed = async move {
                // A command that does not read its input is none the worse.
                if stdin.write_all(&line).await.is_ok() {
                    stdin.write_all(b"\n").await.ok();
                }
            };
            Box::pin(feed) as Pin<Box<dyn Future<Output = ()>>>
        });
        Ok(Self { child, group, feed })
    }

    /// Waits for its end; may be dropped and called again.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus, CliError> {
        loop {
            let feed = async {
                match &mut self.feed {
                    Some(feed) => feed.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = self.child.wait() => return status.map_err(|error| CliError::io("wait for the command", &error)),
                () = feed => self.feed = None,
            }
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may have ended just now.
            kill_process_group(group, signal).ok();
        }
    }

    /// Asks it to end, and after `grace` makes it.
    pub(super) async fn stop(mut self, signal: Signal, grace: Duration) -> Result<ExitStatus, CliError> {
        self.signal(signal);
        if let Ok(ended) = tokio::time::timeout(grace, self.ended()).await {
            return ended;
        }
        self.signal(Signal::KILL);
        self.ended().await
    }
}

fn not_started(program: &OsStr, error: &std::io::Error) -> CliError {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => exit::NO_COMMAND,
        _ => exit::NOT_EXECUTABLE,
    };
    CliError::Failed { message: format!("{}: {error}", program.display()), hint: None, code }
}

/// The exit code that is as good as the child's end.
pub(super) fn code_of(status: ExitStatus) -> u8 {
    let signalled = status.signal().map(|signal| i32::from(exit::SIGNALLED) + signal);
    let code = status.code().or(signalled).and_then(|code| u8::try_from(code).ok());
    code.unwrap_or(exit::OTHER)
}

fn variables(event: &WatchEvent) -> [(&'static str, Option<OsString>); 5] {
    let bytes = |bytes: &[u8]| {
        let fits = bytes.len() <= VARIABLE_BYTES_MAX && !bytes.contains(&0);
        fits.then(|| OsStr::from_bytes(bytes).to_owned())
    };
    [
        ("TENURE_EVENT", Some(if event.is_put { "put" } else { "delete" }.into())),
        ("TENURE_KEY", bytes(&event.key)),
        ("TENURE_REVISION", Some(event.revision.to_string().into())),
        ("TENURE_VALUE", if event.is_put { bytes(&event.value) } else { None }),
        ("TENURE_PREV_VALUE", event.previous.as_ref().and_then(|previous| bytes(&previous.value_bytes()))),
    ]
}

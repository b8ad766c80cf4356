//! The command that runs while a claim is held: started, signalled, waited for.

use super::super::super::exit::CliError;
use crate::env::TaskSet;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use tokio::sync::oneshot;

pub(super) const NOT_EXECUTABLE: u8 = 126;
pub(super) const NOT_FOUND: u8 = 127;

#[derive(Debug)]
pub(super) struct Running {
    pid: Pid,
    ended: oneshot::Receiver<std::io::Result<ExitStatus>>,
}

/// Its arguments are given as they are, to no shell.
pub(super) fn start(words: &[OsString], environment: &[(&str, String)]) -> Result<Running, CliError> {
    let (program, arguments) = words.split_first().ok_or_else(|| CliError::Usage("there is no command".to_owned()))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().map(|(name, value)| (*name, value)));
    let mut child = command.spawn().map_err(|error| {
        let code = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
        CliError::Failed { message: format!("{}: {error}", program.display()), hint: None, code }
    })?;
    let pid = Pid::from_child(&child);
    let (tell, ended) = oneshot::channel();
    let tasks = TaskSet::new();
    let waiting = tasks.clone();
    tasks.spawn("wait for the command", async move {
        if let Some(status) = waiting.blocking(move || child.wait()).await {
            // Nobody listens any more once this process is ending.
            tell.send(status).ok();
        }
    });
    Ok(Running { pid, ended })
}

impl Running {
    /// May be dropped and called again until it has answered.
    pub(super) async fn ended(&mut self) -> Result<u8, CliError> {
        match (&mut self.ended).await {
            Ok(Ok(status)) => Ok(code(status)),
            Ok(Err(error)) => Err(CliError::io("waiting for the command", &error)),
            Err(_) => Err(CliError::other("waiting for the command was given up")),
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may just have ended.
        kill_process(self.pid, signal).ok();
    }
}

/// As shells tell it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// What is passed on to the command, or ends the waiting before there is one.
#[derive(Debug)]
pub(super) struct Signals {
    streams: Vec<(tokio::signal::unix::Signal, Signal)>,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, CliError> {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [
            (SignalKind::interrupt(), Signal::INT),
            (SignalKind::terminate(), Signal::TERM),
            (SignalKind::hangup(), Signal::HUP),
            (SignalKind::quit(), Signal::QUIT),
            (SignalKind::user_defined1(), Signal::USR1),
            (SignalKind::user_defined2(), Signal::USR2),
        ];
        let listen = |(kind, sent): (SignalKind, Signal)| Ok((signal(kind)?, sent));
        let streams = kinds.into_iter().map(listen).collect::<std::io::Result<_>>();
        Ok(Self { streams: streams.map_err(|error| CliError::io("signal handlers", &error))? })
    }

    pub(super) async fn next(&mut self) -> Signal {
        let waits = self.streams.iter_mut().map(|(stream, sent)| {
            let sent = *sent;
            Box::pin(async move {
                match stream.recv().await {
                    Some(()) => sent,
                    None => std::future::pending().await,
                }
            })
        });
        futures_util::future::select_all(waits).await.0
    }
}

/// A terminal sends what is typed there to the command itself as well.
pub(super) fn typed(signal: Signal) -> bool {
    (signal == Signal::INT || signal == Signal::QUIT) && std::io::stdin().is_terminal()
}

pub(super) fn number(signal: Signal) -> u8 {
    u8::try_from(signal.as_raw()).unwrap_or_default()
}

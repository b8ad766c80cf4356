//! Running a command on changes, in the modes that `--mode` names.
//!
//! Invariant: a checkpoint moves past a change only when the command has been given its chance with it:
//! in the modes `each` and `latest` when it has ended, in the others when it has been started or told.

use super::checkpoint::Checkpoint;
use super::child::{Running, code_of};
use super::{Signals, Stop, next};
use crate::cli::args::{RunMode, Watch};
use crate::cli::exit::CliError;
use crate::cli::session::note;
use crate::client::{Follow, Followed, WatchEvent};
use rustix::process::Signal;
use std::pin::Pin;
use std::process::ExitStatus;
use tokio::time::Sleep;

pub(super) async fn run(
    follow: &mut Follow<'_>,
    args: &Watch,
    checkpoint: &mut Option<Checkpoint>,
    signals: &mut Signals,
) -> Result<(), CliError> {
    match args.mode {
        RunMode::Each => each(follow, args, checkpoint, signals).await,
        RunMode::Latest | RunMode::Restart | RunMode::Signal(_) => {
            Coalescing::new(args, checkpoint)?.run(follow, signals).await
        }
    }
}

fn reached(checkpoint: &mut Option<Checkpoint>, position: Option<i64>) -> Result<(), CliError> {
    match (checkpoint, position) {
        (Some(checkpoint), Some(position)) => checkpoint.reached(position),
        _ => Ok(()),
    }
}

async fn each(
    follow: &mut Follow<'_>,
    args: &Watch,
    checkpoint: &mut Option<Checkpoint>,
    signals: &mut Signals,
) -> Result<(), CliError> {
    loop {
        let followed = tokio::select! {
            stop = signals.stop() => return Err(stop.exit()),
            followed = next(follow) => followed?,
        };
        if let Followed::Events(events) = followed {
            for event in &events {
                let mut child = Running::start(&args.command, Some(event))?;
                let stop = tokio::select! {
                    status = child.ended() => {
                        tell(status?);
                        continue;
                    }
                    stop = signals.stop() => stop,
                };
                child.stop(stop.signal(), args.grace).await?;
                return Err(stop.exit());
            }
        }
        reached(checkpoint, follow.position())?;
    }
}

/// A command that fails does not end the watch, but is not passed over in silence.
fn tell(status: ExitStatus) {
    if !status.success() {
        note(&format!("watch: the command failed: {status}"));
    }
}

/// Many changes, one command: what it is run for, and when.
struct Coalescing<'a> {
    args: &'a Watch,
    checkpoint: &'a mut Option<Checkpoint>,
    child: Option<Running>,
    /// The newest change that the command has not been given.
    due: Option<WatchEvent>,
    /// Runs out when there was no change for long enough.
    quiet: Option<Pin<Box<Sleep>>>,
    /// How far the watch has come, and how far when the running command was started.
    position: Option<i64>,
    covered: Option<i64>,
}

enum Happened {
    Stopped(Stop),
    Followed(Followed),
    Ended(ExitStatus),
    Quiet,
}

impl<'a> Coalescing<'a> {
    fn new(args: &'a Watch, checkpoint: &'a mut Option<Checkpoint>) -> Result<Self, CliError> {
        // What is to be told of changes has to be there before the first.
        let told = matches!(args.mode, RunMode::Signal(_));
        let child = if told { Some(Running::start(&args.command, None)?) } else { None };
        Ok(Self { args, checkpoint, child, due: None, quiet: None, position: None, covered: None })
    }

    async fn run(mut self, follow: &mut Follow<'_>, signals: &mut Signals) -> Result<(), CliError> {
        loop {
            let happened = match self.happens(follow, signals).await {
                Ok(happened) => happened,
                Err(error) => {
                    self.stop(Signal::TERM).await?;
                    return Err(error);
                }
            };
            match happened {
                Happened::Stopped(stop) => {
                    self.stop(stop.signal()).await?;
                    return Err(stop.exit());
                }
                Happened::Followed(followed) => {
                    if let Followed::Events(events) = followed
                        && let Some(newest) = events.into_iter().last()
                    {
                        self.due = Some(newest);
                        self.quiet = Some(Box::pin(tokio::time::sleep(self.args.debounce)));
                    }
                    self.position = follow.position();
                    if self.due.is_none() && self.child_is_done() {
                        reached(self.checkpoint, self.position)?;
                    }
                }
                Happened::Ended(status) => self.ended(status)?,
                Happened::Quiet => self.give().await?,
            }
        }
    }

    /// Nothing is under way that a checkpoint has to wait for.
    fn child_is_done(&self) -> bool {
        self.args.mode != RunMode::Latest || self.child.is_none()
    }

    async fn happens(&mut self, follow: &mut Follow<'_>, signals: &mut Signals) -> Result<Happened, CliError> {
        // In mode `latest` a change waits for the run before it.
        let waits = self.args.mode == RunMode::Latest && self.child.is_some();
        let quiet = async {
            match &mut self.quiet {
                Some(quiet) if !waits => quiet.await,
                _ => std::future::pending().await,
            }
        };
        let ended = async {
            match &mut self.child {
                Some(child) => child.ended().await,
                None => std::future::pending().await,
            }
        };
        Ok(tokio::select! {
            stop = signals.stop() => Happened::Stopped(stop),
            status = ended => Happened::Ended(status?),
            () = quiet => Happened::Quiet,
            followed = next(follow) => Happened::Followed(followed?),
        })
    }

    fn ended(&mut self, status: ExitStatus) -> Result<(), CliError> {
        self.child = None;
        match self.args.mode {
            // Its end is ours.
            RunMode::Signal(_) if status.success() => Err(CliError::Told(0)),
            RunMode::Signal(_) => Err(CliError::Told(code_of(status))),
            RunMode::Each | RunMode::Latest | RunMode::Restart => {
                tell(status);
                if self.args.mode == RunMode::Latest { reached(self.checkpoint, self.covered) } else { Ok(()) }
            }
        }
    }

    /// Gives the command the newest change.
    async fn give(&mut self) -> Result<(), CliError> {
        self.quiet = None;
        let Some(event) = self.due.take() else { return Ok(()) };
        self.covered = self.position;
        match self.args.mode {
            RunMode::Signal(signal) => {
                if let Some(child) = &self.child {
                    child.signal(signal);
                }
            }
            RunMode::Each | RunMode::Latest | RunMode::Restart => {
                self.stop(Signal::TERM).await?;
                self.child = Some(Running::start(&self.args.command, Some(&event))?);
            }
        }
        if self.args.mode == RunMode::Latest { Ok(()) } else { reached(self.checkpoint, self.covered) }
    }

    async fn stop(&mut self, signal: Signal) -> Result<(), CliError> {
        match self.child.take() {
            Some(child) => child.stop(signal, self.args.grace).await.map(drop),
            None => Ok(()),
        }
    }
}

//! `watch`: follows changes over any number of connections, and prints them or runs a command on them.

mod checkpoint;
mod child;
mod run;
mod show;

use crate::cli::args::{Verbatim, Watch};
use crate::cli::exit::{self, CliError};
use crate::cli::output::Mode;
use crate::cli::session::{Session, note};
use crate::client::{Follow, Followed, Method, Request};
use checkpoint::Checkpoint;
pub(super) use show::event_line;
use tokio::signal::unix::{self, SignalKind};

const MODES: &[Mode] = &[Mode::Human, Mode::Json, Mode::Ndjson, Mode::Value];

pub(in crate::cli) async fn watch(session: &mut Session, args: &Watch) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let mut checkpoint = args.checkpoint.as_deref().map(Checkpoint::open).transpose()?;
    // What was reached before is stronger than where the first run was to begin.
    let after = checkpoint.as_ref().and_then(Checkpoint::revision).or(args.after);
    let request = request(args);
    if session.prints_curl(&Follow::new(&session.client, request.clone(), after).request())? {
        return Ok(());
    }
    let mut follow = Follow::new(&session.client, request, after);
    let mut signals = Signals::listen()?;
    let ended = if args.command.is_empty() {
        show::show(&mut follow, &mut session.out, mode, &mut checkpoint, &mut signals).await
    } else {
        run::run(&mut follow, args, &mut checkpoint, &mut signals).await
    };
    let saved = checkpoint.map_or(Ok(()), |mut checkpoint| checkpoint.flush());
    ended.and_then(|()| saved)
}

fn request(args: &Watch) -> Request {
    let mut request = Request::new(Method::Get, "/v1/watch");
    // `watch a/ --prefix` is `watch --prefix a/`, as with the other commands.
    let bare = args.prefixes.iter().any(|prefix| prefix.0.is_empty()) && !args.keys.is_empty();
    let add = |request: Request, name, items: &[Verbatim]| {
        items
            .iter()
            .filter(|item| !(bare && item.0.is_empty()))
            .fold(request, |request, item| request.also(name, &item.0))
    };
    request = add(request, if bare { "prefix" } else { "key" }, &args.keys);
    request = add(request, "prefix", &args.prefixes);
    if !args.types.is_empty() {
        let names: Vec<&str> = args.types.iter().map(|kind| kind.name()).collect();
        request = request.with("types", names.join(","));
    }
    // A command is told the former value too.
    request.flag("initial", args.initial).flag("prev", args.prev || !args.command.is_empty())
}

/// The signals that end a watch.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Interrupt,
    Terminate,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, CliError> {
        let listen = |kind| unix::signal(kind).map_err(|error| CliError::io("wait for signals", &error));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// May be dropped and called again.
    pub(super) async fn stop(&mut self) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Interrupt,
            _ = self.terminate.recv() => Stop::Terminate,
        }
    }
}

impl Stop {
    fn signal(self) -> rustix::process::Signal {
        match self {
            Self::Interrupt => rustix::process::Signal::INT,
            Self::Terminate => rustix::process::Signal::TERM,
        }
    }

    /// The exit code of who was stopped so.
    pub(super) fn exit(self) -> CliError {
        CliError::Told(exit::SIGNALLED + u8::try_from(self.signal().as_raw()).unwrap_or(0))
    }
}

/// What is said next; breaks of the connection are told on stderr.
pub(super) async fn next(follow: &mut Follow<'_>) -> Result<Followed, CliError> {
    let followed = follow.next().await?;
    if let Some(error) = follow.take_broken() {
        note(&format!("watch: {error}; connected again"));
    }
    if let Followed::Reset(revision) = &followed {
        note(&format!("watch: what came between was compacted; the state of revision {revision} follows"));
    }
    Ok(followed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser as _;

    fn target(args: &[&str]) -> String {
        let cli = Cli::try_parse_from([&["tenure", "watch"], args].concat()).unwrap();
        let Command::Watch(watch) = cli.command else { unreachable!() };
        request(&watch).target()
    }

    #[test]
    fn targets() {
        assert_eq!(target(&[]), "/v1/watch");
        assert_eq!(target(&["a", "b c", "--prefix", "p/"]), "/v1/watch?key=a&key=b%20c&prefix=p/");
        assert_eq!(target(&["a/", "b/", "--prefix"]), "/v1/watch?prefix=a/&prefix=b/");
        assert_eq!(target(&["--prefix", ""]), "/v1/watch?prefix=");
        assert_eq!(target(&["a", "--initial", "--types", "delete,put"]), "/v1/watch?key=a&types=delete,put&initial");
        assert_eq!(target(&["a", "--", "true"]), "/v1/watch?key=a&prev");
    }
}

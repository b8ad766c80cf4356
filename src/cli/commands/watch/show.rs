//! Changes as lines on standard output, each as soon as it is known.

use super::checkpoint::Checkpoint;
use super::{Signals, next};
use crate::cli::exit::CliError;
use crate::cli::output::{Mode, Out, shown};
use crate::client::{Follow, Followed, WatchEvent};
use owo_colors::Style;

pub(super) async fn show(
    follow: &mut Follow<'_>,
    out: &mut Out,
    mode: Mode,
    checkpoint: &mut Option<Checkpoint>,
    signals: &mut Signals,
) -> Result<(), CliError> {
    loop {
        let followed = tokio::select! {
            stop = signals.stop() => return Err(stop.exit()),
            followed = next(follow) => followed?,
        };
        if let Followed::Events(events) = &followed {
            for event in events {
                write(out, mode, event)?;
            }
            out.flush()?;
        }
        if let (Some(checkpoint), Some(position)) = (checkpoint.as_mut(), follow.position()) {
            checkpoint.reached(position)?;
        }
    }
}

fn write(out: &mut Out, mode: Mode, event: &WatchEvent) -> Result<(), CliError> {
    match mode {
        Mode::Json => out.json_as_sent(&event.line),
        Mode::Ndjson => {
            out.bytes(&event.line)?;
            out.bytes(b"\n")
        }
        Mode::Value if event.is_put => {
            out.bytes(&event.value)?;
            out.bytes(b"\n")
        }
        Mode::Value => Ok(()),
        Mode::Human | Mode::Env | Mode::Yaml | Mode::Properties => {
            let line = event_line(out, event);
            out.line(line)
        }
    }
}

/// A change for people: revision, what happened, key, and the value or why it is gone.
pub(in crate::cli::commands) fn event_line(out: &Out, event: &WatchEvent) -> String {
    let key = shown(&event.key);
    if event.is_put {
        let kind = out.paint("put   ", Style::new().green());
        let line = format!("{} {kind} {key}", event.revision);
        return if event.value.is_empty() { line } else { line + " " + &shown(&event.value) };
    }
    let kind = out.paint("delete", Style::new().red());
    match event.reason.as_deref() {
        None | Some("deleted") => format!("{} {kind} {key}", event.revision),
        Some(reason) => format!("{} {kind} {key} ({})", event.revision, reason.replace('_', " ")),
    }
}

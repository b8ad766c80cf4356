//! Failures of commands: their exit codes and how they are told.

use super::args::Global;
use super::output::{Mode, colour_for_stderr};
use crate::client::{self, Applied, Kind};
use crate::node::config::ConfigError;
use owo_colors::OwoColorize as _;
use serde_json::json;
use std::io::Write as _;
use std::process::ExitCode;
use thiserror::Error;

pub(super) const DONE: u8 = 0;
pub(super) const OTHER: u8 = 1;
pub(super) const USAGE: u8 = 2;
pub(super) const NOT_FOUND: u8 = 3;
pub(super) const CONDITION_FAILED: u8 = 4;
pub(super) const HELD: u8 = 5;
pub(super) const DENIED: u8 = 6;
pub(super) const UNAVAILABLE: u8 = 7;
pub(super) const OUTCOME_UNKNOWN: u8 = 8;
pub(super) const COMPACTED: u8 = 9;
pub(super) const UNHEALTHY: u8 = 10;
/// As shells and docker have them: the command is not executable, is not there, was killed by a signal.
pub(super) const NOT_EXECUTABLE: u8 = 126;
pub(super) const NO_COMMAND: u8 = 127;
pub(super) const SIGNALLED: u8 = 128;

#[derive(Debug, Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{message}")]
    Failed { message: String, hint: Option<String>, code: u8 },
    /// A failure with better advice than its own.
    #[error("{error}")]
    Advised { error: Box<CliError>, hint: String },
    /// Whoever read our output has seen enough.
    #[error("standard output was closed")]
    PipeClosed,
    /// Everything has been said already.
    #[error("exit code {0}")]
    Told(u8),
}

impl CliError {
    pub(super) fn other(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: None, code: OTHER }
    }

    pub(super) fn io(context: &str, error: &std::io::Error) -> Self {
        Self::other(format!("{context}: {error}"))
    }

    pub(super) fn advised(self, hint: String) -> Self {
        Self::Advised { error: Box::new(self), hint }
    }

    /// For what is written to standard output.
    pub(super) fn output(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::io("standard output", error),
        }
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => match error.kind() {
                Kind::NotFound => NOT_FOUND,
                Kind::ConditionFailed => CONDITION_FAILED,
                Kind::Held => HELD,
                Kind::Denied => DENIED,
                Kind::Unavailable => UNAVAILABLE,
                Kind::OutcomeUnknown => OUTCOME_UNKNOWN,
                Kind::Compacted => COMPACTED,
                Kind::Usage => USAGE,
                Kind::Other => OTHER,
            },
            Self::Usage(_) => USAGE,
            Self::Config(_) => OTHER,
            Self::Failed { code, .. } | Self::Told(code) => *code,
            Self::Advised { error, .. } => error.exit_code(),
            Self::PipeClosed => DONE,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Failed { hint, .. } => hint.clone(),
            Self::Advised { hint, .. } => Some(hint.clone()),
            Self::Client(error) => match (error, error.kind()) {
                // The server's own advice is for those who write requests.
                (client::Error::Refused(problem), _) if problem.status == 401 => Some(
                    "--user or TENURE_USER says who asks, --token or TENURE_TOKEN shows a token".to_owned(),
                ),
                (client::Error::Refused(problem), _) if problem.hint.is_some() => problem.hint.clone(),
                (client::Error::Unreachable { .. }, _) => Some(
                    "is a member running there? `tenure serve` starts one; --endpoints or TENURE_ENDPOINTS names others"
                        .to_owned(),
                ),
                (_, Kind::OutcomeUnknown) => Some(
                    "look before you repeat it, or repeat it with an --idempotency-key that it had from the start"
                        .to_owned(),
                ),
                _ => None,
            },
            Self::Usage(_) | Self::Config(_) | Self::PipeClosed | Self::Told(_) => None,
        }
    }

    /// The problem document, or one in its likeness for failures that no member told us of.
    fn document(&self) -> String {
        if let Self::Advised { error, .. } = self {
            return error.document();
        }
        if let Self::Client(client::Error::Refused(problem)) = self
            && !problem.code.is_empty()
        {
            return problem.document.clone();
        }
        let (code, applied) = match self {
            Self::Client(error) => match error {
                client::Error::Refused(_) => ("unexpected-answer", problem_applied(error)),
                client::Error::Unreachable { .. } => ("unreachable", "no"),
                client::Error::NoAnswer { .. } => ("no-answer", "no"),
                client::Error::Lost { .. } => ("outcome-unknown", "unknown"),
                client::Error::NotTenure { .. } => ("unexpected-answer", "unknown"),
                client::Error::Local { .. } => ("local", "no"),
                client::Error::Usage(_) => ("usage", "no"),
            },
            Self::Usage(_) => ("usage", "no"),
            Self::Config(_) => ("config", "no"),
            Self::Failed { .. } | Self::Advised { .. } | Self::PipeClosed | Self::Told(_) => ("failed", "no"),
        };
        let mut document = json!({
            "type": format!("urn:tenure:problem:{code}"),
            "code": code,
            "title": self.to_string(),
            "detail": self.to_string(),
            "applied": applied,
        });
        if let Some(hint) = self.hint() {
            document["hint"] = hint.into();
        }
        document.to_string()
    }
}

fn problem_applied(error: &client::Error) -> &'static str {
    match error.problem().and_then(|problem| problem.applied) {
        Some(Applied::Unknown) => "unknown",
        Some(Applied::No) | None => "no",
    }
}

/// Tells a failure on stderr, in the way the command's output mode asks for.
#[derive(Debug)]
pub(super) struct Reporter {
    json: bool,
    colour: bool,
}

impl Reporter {
    pub(super) fn new(global: &Global) -> Self {
        Self { json: matches!(global.output, Some(Mode::Json | Mode::Ndjson)), colour: colour_for_stderr(global.color) }
    }

    pub(super) fn report(&self, error: &CliError) -> ExitCode {
        if !matches!(error, CliError::PipeClosed | CliError::Told(_)) {
            let text = if self.json { error.document() + "\n" } else { self.text(error) };
            // With stderr gone, the exit code is all that is left to tell.
            std::io::stderr().write_all(text.as_bytes()).ok();
        }
        ExitCode::from(error.exit_code())
    }

    fn text(&self, error: &CliError) -> String {
        let (label, hint) = if self.colour {
            ("error:".bright_red().bold().to_string(), "hint:".cyan().to_string())
        } else {
            ("error:".to_owned(), "hint:".to_owned())
        };
        let mut text = format!("{label} {error}\n");
        if let Some(advice) = error.hint() {
            text.push_str(&format!("{hint} {advice}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> CliError {
        client::Error::Unreachable { endpoint: "http://h:1".to_owned(), message: "Connection refused".to_owned() }
            .into()
    }

    #[test]
    fn codes_of_failures_without_an_answer() {
        let at = || ("http://h:1".to_owned(), "timed out".to_owned());
        let (endpoint, message) = at();
        assert_eq!(unreachable().exit_code(), UNAVAILABLE);
        assert_eq!(CliError::from(client::Error::NoAnswer { endpoint, message }).exit_code(), UNAVAILABLE);
        let (endpoint, message) = at();
        assert_eq!(CliError::from(client::Error::Lost { endpoint, message }).exit_code(), OUTCOME_UNKNOWN);
        assert_eq!(CliError::Usage(String::new()).exit_code(), USAGE);
        assert_eq!(CliError::from(client::Error::Usage(String::new())).exit_code(), USAGE);
        assert_eq!(CliError::PipeClosed.exit_code(), DONE);
        assert_eq!(CliError::other("x").exit_code(), OTHER);
    }

    #[test]
    fn text_has_a_label_and_a_hint() {
        let plain = Reporter { json: false, colour: false }.text(&unreachable());
        assert!(plain.starts_with("error: cannot reach http://h:1: Connection refused\nhint: is a member"), "{plain}");
        assert!(!plain.contains('\x1b'));
        assert!(Reporter { json: false, colour: true }.text(&unreachable()).contains('\x1b'));
    }

    #[test]
    fn documents_keep_the_problem_shape() {
        let document: serde_json::Value = serde_json::from_str(&unreachable().document()).unwrap();
        assert_eq!((&document["code"], &document["applied"]), (&json!("unreachable"), &json!("no")));
    }
}

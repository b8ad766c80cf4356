//! Logs: text or JSON lines on stderr, with a level that can be changed while running.
//!
//! error = someone must act; warn = may heal; info = the node's state changed; debug = per request;
//! trace = per message. Values, tokens and passwords are never logged, keys at debug only.

use crate::env::TaskSet;
use parking_lot::Mutex;
use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tracing_subscriber::filter::{Directive, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// Libraries that say more at info and debug than an operator wants.
const QUIET_LIBRARIES: [(&str, LevelFilter); 6] = [
    ("openraft", LevelFilter::ERROR),
    ("sled", LevelFilter::WARN),
    ("hyper", LevelFilter::INFO),
    ("h2", LevelFilter::INFO),
    ("hyper_util", LevelFilter::INFO),
    ("reqwest", LevelFilter::INFO),
];

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    Text,
    Json,
}

#[derive(Debug, Error)]
pub enum LogError {
    #[error("`{0}` is not a log level: off, error, warn, info, debug or trace, or target=level")]
    Level(String),
    #[error(transparent)]
    Taken(#[from] TryInitError),
    #[error("the log filter is gone")]
    Gone,
}

/// A handle on the level of a running process.
#[derive(Clone)]
pub struct LogControl {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` where nothing was installed: tests, and embedders with logs of their own.
    reload: Option<reload::Handle<EnvFilter, Registry>>,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    current: Spec,
    /// Counts changes, so that a revert that was overtaken does nothing.
    change: u64,
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").field("level", &*self.shared.level.lock()).finish()
    }
}

/// A level for everything, and others for some targets: `[target=]level`, separated by commas.
#[derive(Debug, Clone)]
struct Spec {
    text: String,
    everything: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

impl Spec {
    fn parse(text: &str) -> Result<Self, LogError> {
        let unknown = || LogError::Level(text.to_owned());
        let mut spec = Self { text: text.to_owned(), everything: LevelFilter::INFO, targets: Vec::new() };
        for directive in text.split(',') {
            match directive.split_once('=') {
                None => spec.everything = level(directive).ok_or_else(unknown)?,
                Some((target, text)) => spec.targets.push((target.to_owned(), level(text).ok_or_else(unknown)?)),
            }
        }
        // Only what the filter's own syntax refuses in a target is left to fail.
        spec.directives().try_for_each(|directive| directive.parse::<Directive>().map(drop)).map_err(|_| unknown())?;
        Ok(spec)
    }

    /// A library stays quiet at every level, unless it is asked for by name.
    fn directives(&self) -> impl Iterator<Item = String> {
        let unasked = |library: &str| {
            let within = |target: &str| {
                target.strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            };
            !self.targets.iter().any(|(target, _)| within(target))
        };
        let quiet = QUIET_LIBRARIES.into_iter().filter(move |(library, _)| unasked(library));
        let quiet = quiet.map(|(library, level)| format!("{library}={}", level.min(self.everything)));
        quiet.chain(self.targets.iter().map(|(target, level)| format!("{target}={level}")))
    }

    fn filter(&self) -> EnvFilter {
        self.directives()
            .filter_map(|directive| directive.parse().ok())
            .fold(EnvFilter::default().add_directive(self.everything.into()), EnvFilter::add_directive)
    }
}

fn level(text: &str) -> Option<LevelFilter> {
    match text {
        "off" => Some(LevelFilter::OFF),
        "error" => Some(LevelFilter::ERROR),
        "warn" => Some(LevelFilter::WARN),
        "info" => Some(LevelFilter::INFO),
        "debug" => Some(LevelFilter::DEBUG),
        "trace" => Some(LevelFilter::TRACE),
        _ => None,
    }
}

/// Installs the process's only subscriber.
pub fn install(format: LogFormat, level: &str) -> Result<LogControl, LogError> {
    let level = Spec::parse(level)?;
    let (filter, handle) = reload::Layer::new(level.filter());
    let json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(false).boxed()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).boxed()
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(LogControl::new(Some(handle), level))
}

impl LogControl {
    fn new(reload: Option<reload::Handle<EnvFilter, Registry>>, current: Spec) -> Self {
        Self { shared: Arc::new(Shared { reload, level: Mutex::new(Level { current, change: 0 }) }) }
    }

    /// Controls nothing but remembers its level.
    #[must_use]
    pub fn detached() -> Self {
        let info = Spec { text: "info".to_owned(), everything: LevelFilter::INFO, targets: Vec::new() };
        Self::new(None, info)
    }

    #[must_use]
    pub fn level(&self) -> String {
        self.shared.level.lock().current.text.clone()
    }

    /// Sets the level for good.
    pub fn set(&self, level: &str) -> Result<(), LogError> {
        self.change(Spec::parse(level)?, None).map(drop)
    }

    /// Sets the level for a while; then it goes back to what it was, unless it was changed again.
    pub fn set_for(&self, level: &str, duration: Duration, tasks: &TaskSet) -> Result<(), LogError> {
        let before = self.shared.level.lock().current.clone();
        let Some(mine) = self.change(Spec::parse(level)?, None)? else { return Ok(()) };
        let control = self.clone();
        tasks.spawn_until_stop("log level", async move {
            tokio::time::sleep(duration).await;
            if let Err(error) = control.change(before, Some(mine)) {
                tracing::warn!(%error, "the log level could not be set back");
            }
        });
        Ok(())
    }

    /// `expected` is the change that must still be the last one; gives this change's number.
    fn change(&self, to: Spec, expected: Option<u64>) -> Result<Option<u64>, LogError> {
        let mut level = self.shared.level.lock();
        if expected.is_some_and(|expected| expected != level.change) {
            return Ok(None);
        }
        if let Some(reload) = &self.shared.reload {
            reload.reload(to.filter()).map_err(|_| LogError::Gone)?;
        }
        level.current = to;
        level.change += 1;
        Ok(Some(level.change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_level_is_refused_and_changes_nothing() {
        let control = LogControl::detached();
        assert!(control.set("loud").is_err());
        assert_eq!(control.level(), "info");
        control.set("debug").unwrap();
        assert_eq!(control.level(), "debug");
    }

    #[tokio::test(start_paused = true)]
    async fn a_level_for_a_while_reverts_by_itself() {
        let (control, tasks) = (LogControl::detached(), TaskSet::new());
        control.set_for("debug", Duration::from_secs(600), &tasks).unwrap();
        assert_eq!(control.level(), "debug");
        tokio::time::sleep(Duration::from_secs(601)).await;
        assert_eq!(control.level(), "info");
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_change_outlives_the_revert() {
        let (control, tasks) = (LogControl::detached(), TaskSet::new());
        control.set_for("debug", Duration::from_secs(600), &tasks).unwrap();
        control.set("trace").unwrap();
        tokio::time::sleep(Duration::from_secs(601)).await;
        assert_eq!(control.level(), "trace");
    }

    fn directives(text: &str) -> Vec<String> {
        let text = Spec::parse(text).unwrap().filter().to_string();
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn libraries_stay_quiet_at_every_level() {
        for level in ["info", "debug", "trace"] {
            let found = directives(level);
            for (library, quiet) in QUIET_LIBRARIES {
                assert!(found.contains(&format!("{library}={quiet}")), "{library} at {level}: {found:?}");
            }
            assert!(found.contains(&level.to_owned()));
        }
        assert!(
            directives("error").iter().all(|directive| directive.ends_with("error")),
            "quieter than that, if asked"
        );
    }

    #[test]
    fn a_library_that_is_named_speaks() {
        let found = directives("debug,openraft=debug,sled::pagecache=trace,tenure::raft=trace");
        assert!(found.contains(&"openraft=debug".to_owned()) && !found.contains(&"openraft=warn".to_owned()));
        assert!(found.contains(&"sled::pagecache=trace".to_owned()) && !found.contains(&"sled=warn".to_owned()));
        assert!(found.contains(&"tenure::raft=trace".to_owned()) && found.contains(&"hyper=info".to_owned()));
        assert!(directives("debug,sledge=trace").contains(&"sled=warn".to_owned()), "another's name is not its own");
    }
}

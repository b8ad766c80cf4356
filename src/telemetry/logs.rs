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
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// Libraries that say more at info and debug than an operator wants.
const QUIET_LIBRARIES: &str = "openraft=error,sled=warn,hyper=info,h2=info,hyper_util=info,reqwest=info";

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
    #[error("`{0}` is not a log level: error, warn, info, debug or trace")]
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
    current: LevelFilter,
    /// Counts changes, so that a revert that was overtaken does nothing.
    change: u64,
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").field("level", &*self.shared.level.lock()).finish()
    }
}

fn filter(level: LevelFilter) -> EnvFilter {
    // At trace everything is wanted, the libraries' lines too.
    if level == LevelFilter::TRACE {
        return EnvFilter::default().add_directive(level.into());
    }
    QUIET_LIBRARIES
        .split(',')
        .filter_map(|directive| directive.parse().ok())
        .fold(EnvFilter::default().add_directive(level.into()), EnvFilter::add_directive)
}

fn parse(level: &str) -> Result<LevelFilter, LogError> {
    match level {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        other => Err(LogError::Level(other.to_owned())),
    }
}

/// Installs the process's only subscriber.
pub fn install(format: LogFormat, level: &str) -> Result<LogControl, LogError> {
    let level = parse(level)?;
    let (filter, handle) = reload::Layer::new(filter(level));
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
    fn new(reload: Option<reload::Handle<EnvFilter, Registry>>, level: LevelFilter) -> Self {
        Self { shared: Arc::new(Shared { reload, level: Mutex::new(Level { current: level, change: 0 }) }) }
    }

    /// Controls nothing but remembers its level.
    #[must_use]
    pub fn detached() -> Self {
        Self::new(None, LevelFilter::INFO)
    }

    #[must_use]
    pub fn level(&self) -> String {
        self.shared.level.lock().current.to_string()
    }

    /// Sets the level for good.
    pub fn set(&self, level: &str) -> Result<(), LogError> {
        self.change(parse(level)?, None).map(drop)
    }

    /// Sets the level for a while; then it goes back to what it was, unless it was changed again.
    pub fn set_for(&self, level: &str, duration: Duration, tasks: &TaskSet) -> Result<(), LogError> {
        let before = self.shared.level.lock().current;
        let Some(mine) = self.change(parse(level)?, None)? else { return Ok(()) };
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
    fn change(&self, to: LevelFilter, expected: Option<u64>) -> Result<Option<u64>, LogError> {
        let mut level = self.shared.level.lock();
        if expected.is_some_and(|expected| expected != level.change) {
            return Ok(None);
        }
        if let Some(reload) = &self.shared.reload {
            reload.reload(filter(to)).map_err(|_| LogError::Gone)?;
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

    #[test]
    fn every_quiet_library_directive_parses() {
        let text = filter(LevelFilter::INFO).to_string();
        for directive in QUIET_LIBRARIES.split(',') {
            assert!(text.contains(directive), "{directive} is missing in {text}");
        }
    }
}

//! The file in which a watch keeps how far it has come.
//!
//! Invariant: the file never names a revision whose changes have not been dealt with. After a crash
//! it may name an earlier one: then some changes are seen again.

use crate::cli::exit::CliError;
use crate::env::{Clock as _, SystemClock};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A busy watch does not write its file with every change.
const WRITE_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    revision: Option<i64>,
    written: Option<i64>,
    clock: SystemClock,
    written_at: Option<Duration>,
}

impl Checkpoint {
    /// Reads the file, if there is one.
    pub(super) fn open(path: &Path) -> Result<Self, CliError> {
        let revision = match std::fs::read_to_string(path) {
            Ok(text) => Some(text.trim().parse().ok().filter(|revision| *revision >= 0).ok_or_else(|| {
                CliError::Usage(format!("{} does not hold a revision: it is no checkpoint of a watch", path.display()))
            })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(CliError::io(&path.display().to_string(), &error)),
        };
        let clock = SystemClock::new();
        Ok(Self { path: path.to_owned(), revision, written: revision, clock, written_at: None })
    }

    pub(super) fn revision(&self) -> Option<i64> {
        self.revision
    }

    /// Everything up to `revision` has been dealt with.
    pub(super) fn reached(&mut self, revision: i64) -> Result<(), CliError> {
        self.revision = Some(revision);
        let now = self.clock.monotonic();
        if self.written_at.is_none_or(|at| now.saturating_sub(at) >= WRITE_EVERY) {
            self.written_at = Some(now);
            return self.flush();
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), CliError> {
        let Some(revision) = self.revision.filter(|_| self.revision != self.written) else { return Ok(()) };
        let context = self.path.display().to_string();
        self.write(revision).map_err(|error| CliError::io(&context, &error))?;
        self.written = Some(revision);
        Ok(())
    }

    /// In one piece: a reader finds the old revision or the new one.
    fn write(&self, revision: i64) -> std::io::Result<()> {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".tmp");
        let mut file = std::fs::File::create(&name)?;
        writeln!(file, "{revision}")?;
        file.sync_data()?;
        std::fs::rename(&name, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reached_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("position");
        let mut checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.revision(), None);
        for revision in [3, 4, 9] {
            checkpoint.reached(revision).unwrap();
        }
        checkpoint.flush().unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap().revision(), Some(9));
        std::fs::write(&path, "nine").unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap_err().exit_code(), 2);
    }
}

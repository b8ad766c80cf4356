//! How far a transfer is: a bar on a terminal, else a line every few seconds. Always on stderr.

use super::session::note;
use crate::env::{Clock, SystemClock};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::Duration;

const LINE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    clock: SystemClock,
    last_line: Duration,
    label: &'static str,
    done: u64,
    total: Option<u64>,
    /// What is counted, if it is not bytes.
    unit: Option<&'static str>,
}

impl Progress {
    /// Of things that are counted, such as `keys`.
    pub(super) fn of(label: &'static str, unit: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {human_pos}/{human_len} {per_sec} {eta} left");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_prefix(label)
        });
        let total = Some(total);
        Self { bar, clock: SystemClock::new(), last_line: Duration::ZERO, label, done: 0, total, unit: Some(unit) }
    }

    pub(super) fn bytes(label: &'static str, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match total {
                Some(total) => {
                    (ProgressBar::new(total), "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
                }
                None => (ProgressBar::new_spinner(), "{prefix} {spinner} {bytes} {bytes_per_sec}"),
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style).with_prefix(label)
        });
        Self { bar, clock: SystemClock::new(), last_line: Duration::ZERO, label, done: 0, total, unit: None }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.done += bytes;
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
            return;
        }
        let now = self.clock.monotonic();
        if now.saturating_sub(self.last_line) >= LINE_EVERY {
            self.last_line = now;
            note(&self.sentence(now));
        }
    }

    fn sentence(&self, now: Duration) -> String {
        let rate = u128::from(self.done) * 1000 / now.as_millis().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        if let Some(unit) = self.unit {
            let (done, total) = (HumanCount(self.done), HumanCount(self.total.unwrap_or(self.done)));
            return format!("{}: {done} of {total} {unit}, {}/s", self.label, HumanCount(rate));
        }
        let rate = HumanBytes(rate);
        match self.total {
            Some(total) => format!("{}: {} of {}, {rate}/s", self.label, HumanBytes(self.done), HumanBytes(total)),
            None => format!("{}: {}, {rate}/s", self.label, HumanBytes(self.done)),
        }
    }

    pub(super) fn done(&self) -> u64 {
        self.done
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_amount_and_rate() {
        let mut progress = Progress::bytes("saving", Some(10 << 20));
        progress.done = 5 << 20;
        assert_eq!(progress.sentence(Duration::from_secs(5)), "saving: 5.00 MiB of 10.00 MiB, 1.00 MiB/s");
        let mut open_end = Progress::bytes("importing", None);
        open_end.done = 512;
        assert_eq!(open_end.sentence(Duration::from_secs(1)), "importing: 512 B, 512 B/s");
        let mut keys = Progress::of("copying", "keys", 5_000);
        keys.done = 1_000;
        assert_eq!(keys.sentence(Duration::from_secs(2)), "copying: 1,000 of 5,000 keys, 500/s");
    }
}

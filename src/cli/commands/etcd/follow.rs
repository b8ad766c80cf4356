//! The changes from the copied revision on, until the cut-over.

use super::copy::{TXN_BYTES_MAX, TXN_WRITES_MAX};
use super::{Ended, Halt, Run, of_source, of_target, patiently};
use crate::cli::commands::watch::Signals;
use crate::cli::session::note;
use crate::client::etcd::pb::mvccpb::Event;
use crate::client::etcd::pb::mvccpb::event::EventType;
use crate::client::etcd::{Change, Changes, EtcdError, Write};
use crate::env::Clock;
use std::time::Duration;

/// Between looks at how far the source is, and at the leases.
const LOOK: Duration = Duration::from_millis(500);
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Releases from which word on progress never overtakes events; there was a flaw before.
const PROGRESS_HOLDS: &[(u32, u32, u32)] = &[(3, 4, 25), (3, 5, 8)];

/// How far both were when that was told last.
#[derive(Default)]
struct Told {
    applied: i64,
    there: i64,
}

impl Told {
    /// Whether nothing has come since then, although there was something to come: some releases of etcd lose sight
    /// of a watcher that is slow while they compact, and never say anything to it again.
    fn anew(&mut self, applied: i64, there: i64) -> bool {
        let is_forgotten = applied == self.applied && applied < self.there;
        *self = Self { applied, there };
        is_forgotten
    }
}

/// Where following stands.
struct State {
    /// Every change up to this revision of the source is here.
    applied: i64,
    /// To be reached: then it is synced, and may end.
    goal: i64,
    synced: bool,
    cutting_over: bool,
}

impl Run {
    pub(super) async fn follow(&mut self, copied: i64, signals: &mut Signals) -> Result<Ended, Halt> {
        let goal = self.source_revision().await?;
        let mut state = State { applied: copied, goal, synced: false, cutting_over: false };
        let mut changes = self.watch(copied).await?;
        let (mut told_at, mut told) = (self.clock.monotonic(), Told::default());
        loop {
            if state.applied >= state.goal {
                if self.until_synced || state.cutting_over {
                    return self.cut_over(&state).await;
                }
                if !state.synced {
                    state.synced = true;
                    note(&format!(
                        "synced at revision {} of the etcd; following its changes. Stop its writers, then Ctrl-C or SIGTERM cuts over",
                        state.applied
                    ));
                }
            }
            tokio::select! {
                _ = signals.stop(), if !state.cutting_over => {
                    state.cutting_over = true;
                    state.goal = self.source_revision().await?;
                    note(&format!("cutting over: waiting for revision {} of the etcd", state.goal));
                }
                change = changes.next() => self.changed(change, &mut state, &mut changes).await?,
                () = tokio::time::sleep(LOOK) => changes.ask_progress(),
            }
            self.renew_leases().await?;
            let now = self.clock.monotonic();
            if now.saturating_sub(told_at) >= TOLD_EVERY {
                told_at = now;
                let there = self.source_revision().await?;
                let (applied, count) = (state.applied, self.changes);
                note(&format!("following: at revision {applied} of the etcd's {there}, {count} changes so far"));
                if told.anew(applied, there) {
                    note(&format!("the etcd has said nothing for {} s: watching anew", TOLD_EVERY.as_secs()));
                    changes = self.watch(applied).await?;
                }
            }
        }
    }

    async fn changed(
        &mut self,
        change: Result<Change, EtcdError>,
        state: &mut State,
        changes: &mut Changes,
    ) -> Result<(), Halt> {
        match change {
            Ok(Change::Events(events)) => {
                state.applied = state.applied.max(self.apply(events).await?);
                Ok(())
            }
            Ok(Change::Progress(revision)) => {
                if progress_holds(&self.about.version) {
                    state.applied = state.applied.max(revision);
                }
                Ok(())
            }
            Err(EtcdError::Unavailable { .. }) => {
                *changes = self.watch(state.applied).await?;
                Ok(())
            }
            Err(EtcdError::LoggedOut { .. }) => {
                tokio::time::sleep(LOOK).await;
                self.source.look_elsewhere().await;
                *changes = self.watch(state.applied).await?;
                Ok(())
            }
            Err(error) => Err(self.read_failed(error)),
        }
    }

    /// From behind this revision.
    async fn watch(&mut self, revision: i64) -> Result<Changes, Halt> {
        let changes = patiently!(self.clock, self.source, of_source, self.source.watch(revision + 1))?;
        changes.map_err(|error| self.read_failed(error))
    }

    async fn source_revision(&mut self) -> Result<i64, Halt> {
        let counted = patiently!(self.clock, self.source, of_source, self.source.count())?;
        Ok(counted.map_err(of_source)?.1)
    }

    /// Writes what was written there, whole revisions together as far as a transaction reaches; answers the last.
    async fn apply(&mut self, events: Vec<Event>) -> Result<i64, Halt> {
        let count = events.len();
        let (mut last, mut writes) = (0, Vec::new());
        let mut events = events.into_iter().filter_map(write_of).peekable();
        while let Some((revision, first)) = events.next() {
            let mut whole = vec![first];
            while let Some((_, write)) = events.next_if(|(next, _)| *next == revision) {
                whole.push(write);
            }
            let bytes = |writes: &[Write]| writes.iter().map(Write::bytes).sum::<usize>();
            let together =
                writes.len() + whole.len() <= TXN_WRITES_MAX && bytes(&writes) + bytes(&whole) <= TXN_BYTES_MAX;
            if !together {
                self.write(std::mem::take(&mut writes)).await?;
            }
            for write in whole {
                self.gather(&mut writes, write).await?;
            }
            last = revision;
        }
        self.write(writes).await?;
        self.changes += u64::try_from(count).unwrap_or_default();
        Ok(last)
    }

    async fn cut_over(&mut self, state: &State) -> Result<Ended, Halt> {
        self.copy_accounts().await?;
        self.renew_all_leases().await?;
        let here = patiently!(self.clock, self.target, of_target, self.target.count())?.map_err(of_target)?;
        Ok(Ended { source_revision: state.applied, revision: here.1 })
    }
}

/// The revision of a change, and what it comes to here.
fn write_of(event: Event) -> Option<(i64, Write)> {
    let deleted = event.r#type == i32::from(EventType::Delete);
    let kv = event.kv?;
    let write = if deleted {
        Write::Delete { key: kv.key }
    } else {
        Write::Put { key: kv.key, value: kv.value, lease: kv.lease }
    };
    Some((kv.mod_revision, write))
}

fn progress_holds(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    match PROGRESS_HOLDS.iter().find(|(major, minor, _)| (*major, *minor) == (version.0, version.1)) {
        Some(from) => version >= *from,
        None => version >= (3, 6, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_made_anew_that_says_nothing_of_what_there_is() {
        let mut told = Told::default();
        assert!(!told.anew(250, 1_102), "it may be on its way");
        assert!(told.anew(250, 1_102));
        assert!(!told.anew(600, 1_102), "it goes on");
        assert!(!told.anew(1_102, 1_102));
        assert!(!told.anew(1_102, 1_102), "there is nothing to say");
        assert!(!told.anew(1_102, 1_103), "it has only just been written");
        assert!(told.anew(1_102, 1_104));
    }

    #[test]
    fn word_on_progress_is_believed_where_it_is_right() {
        for version in ["3.4.25", "3.5.8", "3.5.21", "3.6.0", "3.7.0-alpha.1", "4.0.0"] {
            assert!(progress_holds(version), "{version}");
        }
        for version in ["3.4.23", "3.5.7", "3.3.99", "", "x"] {
            assert!(!progress_holds(version), "{version}");
        }
    }
}

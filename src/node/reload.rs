//! SIGHUP: reads the settings again and applies what may change while running.
//!
//! Invariants: a file that is wrong anywhere changes nothing; each change is logged with what was
//! before; what only a restart can change is named and stays as it is, also in `/v1/config`.

use super::config::{self, Checked, ConfigError, KEYS, KeyDef, ShownSetting};
use crate::model::Caller;
use crate::raft::DiskStall;
use crate::service::compactor::AutoCompact;
use crate::service::{Context, Service};
use crate::telemetry::LogControl;
use std::fmt;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::watch;

/// How long the replicated quota may take to change.
const QUOTA_WITHIN: Duration = Duration::from_secs(10);

/// Gathers the settings anew, as they were gathered at the start.
pub type Reread = Box<dyn Fn() -> Result<Checked, ConfigError> + Send + Sync>;

/// What follows the settings in effect.
pub(super) struct Parts {
    pub(super) settings: watch::Sender<Checked>,
    pub(super) auto_compact: watch::Sender<AutoCompact>,
    pub(super) shown: watch::Sender<serde_json::Value>,
    pub(super) logs: LogControl,
    pub(super) service: Service,
    pub(super) disk: DiskStall,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Runs until stopped.
pub(super) async fn run(mut hangup: Signal, reread: Reread, parts: Parts) {
    while hangup.recv().await.is_some() {
        match reread() {
            Ok(new) => parts.apply(new).await,
            Err(error) => {
                for problem in error.problems {
                    tracing::error!(problem, "SIGHUP: the settings are wrong, nothing has changed");
                }
            }
        }
    }
}

impl Parts {
    async fn apply(&self, new: Checked) {
        for warning in &new.warnings {
            tracing::warn!("{warning}");
        }
        let mut now = self.settings.borrow().clone();
        let new = new.bound(now.listen_client);
        let mut changes = 0_u32;
        for key in KEYS {
            let (Some(before), Some(after)) = (entry(&now, key), entry(&new, key)) else { continue };
            let (from, to) = (before.value.clone(), after.clone());
            if from != to.value {
                if !key.live {
                    tracing::warn!(setting = key.name, from, to = to.value, "changed, but only a restart applies it");
                    continue;
                }
                if let Err(problem) = self.change(key.name, &mut now, &new).await {
                    tracing::warn!(setting = key.name, from, to = to.value, problem, "could not be applied");
                    continue;
                }
                tracing::info!(setting = key.name, from, to = to.value, "setting changed");
                changes += 1;
            }
            now.shown.iter_mut().filter(|shown| shown.name == key.name).for_each(|shown| *shown = to.clone());
        }
        tracing::info!(changes, "SIGHUP: settings reloaded");
        self.shown.send_replace(shown(&now));
        self.settings.send_replace(now);
    }

    async fn change(&self, name: &str, now: &mut Checked, new: &Checked) -> Result<(), String> {
        match name {
            "log-level" => {
                self.logs.set(&new.log_level).map_err(|error| error.to_string())?;
                now.log_level.clone_from(&new.log_level);
            }
            "quota-bytes" => {
                let context = Context { caller: Caller::System, timeout: QUOTA_WITHIN };
                let set = self.service.set_quota(&context, new.quota_bytes).await;
                set.map_err(|failure| failure.to_string())?;
                now.quota_bytes = new.quota_bytes;
            }
            "auto-compact" => {
                self.auto_compact.send_replace(auto_compact(new));
                now.auto_compact = new.auto_compact;
            }
            "admission-bytes" => {
                self.service.set_admission(new.admission_bytes);
                now.admission_bytes = new.admission_bytes;
            }
            "disk-stall-abort" => {
                self.disk.set_abort_after(new.disk_stall_abort);
                now.disk_stall_abort = new.disk_stall_abort;
            }
            // Read from the settings in effect by the disk watch.
            "disk-reserve-bytes" => now.disk_reserve_bytes = new.disk_reserve_bytes,
            _ => return Err("it has no way to change while running".to_owned()),
        }
        Ok(())
    }
}

fn entry<'a>(settings: &'a Checked, key: &KeyDef) -> Option<&'a ShownSetting> {
    settings.shown.iter().find(|shown| shown.name == key.name)
}

pub(super) fn auto_compact(settings: &Checked) -> AutoCompact {
    match settings.auto_compact {
        config::AutoCompact::Off => AutoCompact::Off,
        config::AutoCompact::Age(age) => AutoCompact::KeepAge(age),
        config::AutoCompact::Revisions(keep) => AutoCompact::KeepRevisions(i64::try_from(keep).unwrap_or(i64::MAX)),
    }
}

/// The effective settings for people, each with where it came from.
pub(super) fn shown(settings: &Checked) -> serde_json::Value {
    serde_json::json!({ "settings": settings.shown })
}

//! Automatic compaction: the leader proposes what its settings call for, by age or by revisions.
//! Above the quota's pressure mark the age shortens to a minute, and revisions to their last thousand.

use super::{CompactTarget, Context, Service};
use crate::model::{Caller, limits};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompact {
    Off,
    KeepAge(Duration),
    KeepRevisions(i64),
}

const PRESSED_AGE: Duration = Duration::from_secs(60);
const PRESSED_REVISIONS: i64 = 1000;
const CHECK_MIN: Duration = Duration::from_secs(1);
const CHECK_MAX: Duration = Duration::from_secs(10);

/// What to keep now, given the share of the quota in use.
fn target(setting: AutoCompact, pressed: bool) -> Option<CompactTarget> {
    match setting {
        AutoCompact::Off => None,
        AutoCompact::KeepAge(age) => Some(CompactTarget::KeepAge(if pressed { age.min(PRESSED_AGE) } else { age })),
        AutoCompact::KeepRevisions(keep) => {
            Some(CompactTarget::KeepRevisions(if pressed { keep.min(PRESSED_REVISIONS) } else { keep }))
        }
    }
}

/// How often to look: a tenth of what is kept, within bounds.
fn interval(setting: AutoCompact) -> Duration {
    match setting {
        AutoCompact::KeepAge(age) => (age / 10).clamp(CHECK_MIN, CHECK_MAX),
        AutoCompact::Off | AutoCompact::KeepRevisions(_) => CHECK_MAX,
    }
}

/// Runs until stopped, by the setting as it is at the time.
pub async fn run(service: Service, mut setting: watch::Receiver<AutoCompact>) {
    loop {
        let now = *setting.borrow_and_update();
        let compacting = compact(&service, now);
        tokio::pin!(compacting);
        tokio::select! {
            () = &mut compacting => {}
            changed = setting.changed() => if changed.is_err() {
                // Nobody is left who could change it.
                compacting.await;
            },
        }
    }
}

/// Never ends.
async fn compact(service: &Service, setting: AutoCompact) {
    let context = Context { caller: Caller::System, timeout: Duration::from_secs(10) };
    let mut ticks = tokio::time::interval(interval(setting));
    loop {
        ticks.tick().await;
        let status = service.status();
        let pressed = status.db_bytes_in_use > status.quota_bytes / 100 * limits::QUOTA_PRESSURE_PERCENT;
        let Some(target) = target(setting, pressed).filter(|_| status.is_leader) else { continue };
        match service.compact(&context, target).await {
            Ok(answer) if answer.body > status.compacted_revision => {
                tracing::debug!(revision = answer.body, pressed, "compacted automatically");
            }
            Ok(_) => {}
            Err(failure) => tracing::debug!(%failure, "automatic compaction failed, the next tick tries again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_shortens_what_is_kept_but_never_lengthens_it() {
        let hour = AutoCompact::KeepAge(Duration::from_secs(3600));
        assert_eq!(target(hour, false), Some(CompactTarget::KeepAge(Duration::from_secs(3600))));
        assert_eq!(target(hour, true), Some(CompactTarget::KeepAge(PRESSED_AGE)));
        let short = AutoCompact::KeepAge(Duration::from_secs(5));
        assert_eq!(target(short, true), Some(CompactTarget::KeepAge(Duration::from_secs(5))));
        assert_eq!(target(AutoCompact::KeepRevisions(10), true), Some(CompactTarget::KeepRevisions(10)));
        assert_eq!(target(AutoCompact::Off, true), None);
    }
}

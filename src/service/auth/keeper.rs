//! What goes on in the background: tokens in use are renewed, those that have run out are removed, and
//! streams hear of changed rights.
//!
//! Invariants: many uses make one renewal; nothing is proposed while no token is used or due; a change
//! is told after it can be read.

use crate::model::{AuthCommand, Command, TokenHash, limits};
use crate::service::{Context, Service};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the leader looks whether a token is due.
const LOOK: Duration = Duration::from_secs(1);
const PROPOSE: Duration = Duration::from_secs(5);

/// Runs until stopped; a second one does nothing.
pub async fn run(service: Service) {
    let Some(using) = service.inner.auth.using.lock().take() else { return };
    tokio::join!(tell(&service), renew(&service, using), expire(&service));
}

/// Compares after every batch, so that streams need look only when something has changed.
async fn tell(service: &Service) {
    let mut applied = service.inner.parts.consensus.applied();
    loop {
        applied.mark_unchanged();
        let (now, now_ms) = (service.auth_status_here(), service.newest().now_ms());
        let clock = &service.inner.parts.clock;
        {
            let mut log_time = service.inner.auth.log_time.lock();
            if log_time.0 != now_ms {
                *log_time = (now_ms, clock.monotonic());
            }
        }
        let changed = service.inner.auth.changes.send_if_modified(|told| {
            *told != now && {
                *told = now;
                true
            }
        });
        if changed {
            service.inner.parts.hub.nudge();
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

async fn renew(service: &Service, mut using: mpsc::Receiver<TokenHash>) {
    let mut used = Vec::new();
    while using.recv_many(&mut used, limits::AUTH_RENEWALS_MAX).await > 0 {
        let view = service.newest();
        let due = |hash: &TokenHash| view.token(hash).is_some_and(|token| service.is_half_over(&token));
        let hashes: BTreeSet<TokenHash> = used.drain(..).filter(due).collect();
        drop(view);
        if !hashes.is_empty() {
            propose(service, AuthCommand::TokensRenew { hashes: hashes.into_iter().collect() }).await;
        }
    }
}

/// Log time stands still while nothing is written: where a token must have run out by now, time goes on with its removal.
async fn expire(service: &Service) {
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let due = service.newest().next_token_end_ms().is_some_and(|end_ms| end_ms <= service.log_time_now_ms());
        if due && service.leads() {
            propose(service, AuthCommand::TokensExpire).await;
        }
    }
}

async fn propose(service: &Service, command: AuthCommand) {
    let proposed = service.propose(&Context::system(PROPOSE), Command::Auth(command), None).await;
    if let Err(failure) = proposed {
        tracing::debug!(%failure, "tokens were not renewed or removed, the next look tries again");
    }
}

//! `POST /v1/leases/{id}/hold`: the server renews a lease for as long as the connection lives.
//!
//! Invariants: the answer begins only after a first renewal; each line says what happened, and a last one
//! why the stream ended; a client that goes away has its lease revoked unless it asked otherwise, but a
//! member that shuts down revokes nothing: the client goes on elsewhere.

use super::fields::Scalars;
use super::leases::id_in_path;
use super::query::Names;
use crate::api::body::Body;
use crate::api::call::{ALWAYS, Call, Outcome, Reply};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::receive;
use crate::env::{Clock, TaskSet};
use crate::model::limits::HOLD_TIMEOUT_S;
use crate::model::{Caller, Failure, LeaseId, Rejection};
use crate::net::Vanishing;
use crate::service::{Context, Service};
use bytes::Bytes;
use futures_util::stream::unfold;
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use std::io;
use std::sync::Arc;
use std::time::Duration;

const HOLD: Names = Names { allowed: &[&["revoke_on_disconnect", "every"], ALWAYS], later: &["ns"] };
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Between two lines at most, so that either end notices when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After a renewal that failed for now.
const RETRY: Duration = Duration::from_millis(200);
const EVERY_MIN: Duration = Duration::from_millis(100);

pub(crate) async fn post(call: &mut Call) -> Outcome {
    let query = call.query(&HOLD)?;
    let id = id_in_path(call)?;
    call.body_is(&["application/json"])?;
    let mut context = call.context(&query)?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let revoke = scalars.maybe_flag("revoke_on_disconnect")?.unwrap_or(true);
    let every = scalars.duration("every")?;
    scalars.finish()?;
    call.admission = None;
    let answer = call.state.service.lease_keep_alive(&context, id).await?;
    let ttl = Duration::from_millis(answer.body);
    let every = match every {
        None => ttl / 3,
        Some(every) if every < EVERY_MIN || every > ttl / 2 => {
            let problem = format!("`every` is between 100ms and half of the TTL, which is {} ms", ttl.as_millis());
            return Err(Problem::parameter("every", problem));
        }
        Some(every) => every,
    };
    // A renewal that takes longer than this is begun anew.
    context.timeout = every.max(Duration::from_secs(1));
    let admission = call.admit_answer(0)?;
    let clock = Arc::clone(&call.state.clock);
    let now = clock.monotonic();
    let held = Held {
        guard: Guard {
            service: call.state.service.clone(),
            tasks: call.state.tasks.clone(),
            caller: context.caller.clone(),
            id,
            revoke,
        },
        clock,
        context,
        every,
        renew_at: now + every,
        heartbeat_at: now + HEARTBEAT,
        first: Some(renewed(id, answer.body)),
        ended: false,
    };
    let lines = unfold(held, |mut held| async move {
        let line = held.next().await?;
        Some((Ok::<_, io::Error>(line), held))
    });
    let mut response = Response::new(Body::stream(lines).admitted(Some(admission)));
    response.extensions_mut().insert(Vanishing(Duration::from_secs(HOLD_TIMEOUT_S)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(Reply { header: Some(answer.header), response })
}

struct Held {
    guard: Guard,
    clock: Arc<dyn Clock>,
    context: Context,
    every: Duration,
    renew_at: Duration,
    heartbeat_at: Duration,
    first: Option<Bytes>,
    ended: bool,
}

impl Held {
    /// The next line; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let service = self.guard.service.clone();
        let line = service.stopping().run_until_cancelled(self.wait()).await;
        let line = line.unwrap_or_else(|| self.end("shutting-down"));
        self.heartbeat_at = self.clock.monotonic() + HEARTBEAT;
        Some(line)
    }

    async fn wait(&mut self) -> Bytes {
        loop {
            if self.heartbeat_at <= self.renew_at {
                self.sleep_until(self.heartbeat_at).await;
                return line(|json| json.text("type", "heartbeat"));
            }
            self.sleep_until(self.renew_at).await;
            let id = self.guard.id;
            let now = self.clock.monotonic();
            match self.guard.service.lease_keep_alive(&self.context, id).await {
                Ok(answer) => {
                    self.renew_at = now + self.every;
                    return renewed(id, answer.body);
                }
                Err(Failure::Rejected(Rejection::LeaseNotFound(_))) => return self.end("lease-not-found"),
                Err(Failure::Rejected(_)) => return self.end("forbidden"),
                // The TTL bounds how long this can go on.
                Err(Failure::Unavailable { .. } | Failure::Fault(_)) => self.renew_at = self.clock.monotonic() + RETRY,
            }
        }
    }

    async fn sleep_until(&self, at: Duration) {
        tokio::time::sleep(at.saturating_sub(self.clock.monotonic())).await;
    }

    fn end(&mut self, code: &str) -> Bytes {
        self.ended = true;
        self.guard.revoke = false;
        line(|json| {
            json.text("type", "ended");
            json.text("code", code);
        })
    }
}

fn renewed(id: LeaseId, ttl_ms: u64) -> Bytes {
    line(|json| {
        json.text("type", "renewed");
        json.text("id", &format!("{id:016x}"));
        json.count("ttl_ms", ttl_ms);
    })
}

fn line(members: impl FnOnce(&mut Writer)) -> Bytes {
    let mut json = Writer::with_capacity(80);
    json.open();
    members(&mut json);
    json.close();
    json.newline();
    json.into_bytes().into()
}

/// Revokes the lease when the stream is dropped before its end.
struct Guard {
    service: Service,
    tasks: TaskSet,
    caller: Caller,
    id: LeaseId,
    revoke: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.revoke || self.service.stopping().is_cancelled() {
            return;
        }
        let (service, id, caller) = (self.service.clone(), self.id, self.caller.clone());
        self.tasks.spawn("revoke of a held lease", async move {
            let context = Context::new(caller, Duration::from_secs(10));
            match service.lease_revoke(&context, id, None).await {
                Ok(_) | Err(Failure::Rejected(Rejection::LeaseNotFound(_))) => {}
                Err(failure) => tracing::debug!(%failure, "a held lease was not revoked, it will run out"),
            }
        });
    }
}

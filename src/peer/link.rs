//! One peer's three connections, dialled when they are needed and again when they are lost.
//!
//! Invariants: after a failed attempt the next waits, longer each time and with jitter, so that a
//! dead peer costs little; a request that meets such a pause fails at once and was never sent.

use crate::env::{Clock, Entropy};
use crate::net::{HyperWire, Patience, Security};
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// What may be under way to a peer and not taken: of one stream, and of one connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// How connections are made and watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Care {
    pub(super) security: Security,
    pub(super) patience: Patience,
    /// An idle or busy connection is asked this often whether the peer lives…
    pub(super) ping_interval: Duration,
    /// … and given up if it has not answered in this time.
    pub(super) ping_timeout: Duration,
}

/// The connection could not be made: whatever was to be sent over it was not.
#[derive(Debug)]
pub(super) struct NotConnected(String);

impl fmt::Display for NotConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotConnected {}

/// When the next attempt is allowed.
#[derive(Debug, Default)]
struct Attempts {
    failed: u32,
    not_before: Duration,
}

#[derive(Clone)]
struct Dialler {
    authority: Arc<str>,
    care: Care,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    attempts: Arc<Mutex<Attempts>>,
}

impl Dialler {
    async fn dial(self) -> Result<HyperWire, NotConnected> {
        let now = self.clock.monotonic();
        {
            let attempts = self.attempts.lock();
            if now < attempts.not_before {
                let wait = attempts.not_before.saturating_sub(now).as_millis();
                return Err(NotConnected(format!("{}: the next attempt is in {wait} ms", self.authority)));
            }
        }
        match self.care.security.dial(&self.authority, self.care.patience).await {
            Ok(wire) => {
                *self.attempts.lock() = Attempts::default();
                Ok(HyperWire::new(wire))
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &io::Error) -> NotConnected {
        let mut attempts = self.attempts.lock();
        let pause = PAUSE_MIN.saturating_mul(1 << attempts.failed.min(10)).min(PAUSE_MAX);
        attempts.failed = attempts.failed.saturating_add(1);
        // Between half of the pause and all of it, so that members do not dial in step.
        let jitter = pause / 2 * u32::try_from(self.entropy.next_u64() % 1000).unwrap_or(0) / 1000;
        attempts.not_before = self.clock.monotonic() + pause / 2 + jitter;
        NotConnected(format!("{}: {error}", self.authority))
    }
}

impl Service<Uri> for Dialler {
    type Response = HyperWire;
    type Error = NotConnected;
    type Future = Pin<Box<dyn Future<Output = Result<HyperWire, NotConnected>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotConnected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().dial())
    }
}

/// A connection to `url`, made when it is first used.
pub(super) fn channel(
    url: &str,
    care: Care,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| format!("peer URL {url:?}: {error}"))?;
    let uri = endpoint.uri();
    let Some(authority) = uri.authority().filter(|authority| authority.port().is_some()) else {
        return Err(format!("peer URL {url:?}: expected http://HOST:PORT"));
    };
    let authority = authority.as_str().into();
    let endpoint = endpoint
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(care.ping_interval)
        .keep_alive_timeout(care.ping_timeout)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(Dialler { authority, care, clock, entropy, attempts: Arc::default() }))
}

/// Whether the request behind `error` certainly never left this member.
pub(super) fn never_sent(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(NotConnected(why)) = error.downcast_ref() {
            return Some(why.clone());
        }
        source = error.source();
    }
    None
}

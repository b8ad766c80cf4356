//! Reading a request's body: bounded in bytes and in time, and admitted before it is read.

use super::call::Call;
use super::problem::Problem;
use super::status::Code;
use crate::model::limits::{BODY_GRACE_S, BODY_RATE_BYTES_PER_S};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT};
use std::time::Duration;
use sync_wrapper::SyncWrapper;

/// A body of unknown length is admitted in steps of this size, as it arrives.
const STEP_BYTES: usize = 64 << 10;
/// What a request costs besides its body.
const REQUEST_BYTES: usize = 512;
/// A refused body is read to its end, and forgotten, if it is no longer than this.
const DISCARD_BYTES_MAX: u64 = 8 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// The whole body. Too long a one is refused before it is read, if it says so, else where it passes
/// the limit.
pub(crate) async fn whole(call: &mut Call) -> Result<Bytes, Problem> {
    let max = call.state.options.request_bytes_max;
    let mut reader = Reader::new(call)?;
    let announced = reader.announced();
    if announced.is_some_and(|bytes| bytes > max as u64) {
        reader.discard(call).await;
        return Err(too_large(max));
    }
    let admitted = announced.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(max);
    // One permit for the most it can be: it is only ever held for as long as the body is slow.
    call.admission = Some(call.state.service.admit(admitted.min(max) + REQUEST_BYTES)?);
    let Some(first) = reader.next(call).await? else { return Ok(Bytes::new()) };
    let mut all = match reader.body.as_ref().is_none_or(hyper::body::Body::is_end_stream) {
        true if first.len() <= max => return Ok(first),
        _ => BytesMut::from(first),
    };
    loop {
        if all.len() > max {
            drop(all);
            reader.discard(call).await;
            return Err(too_large(max));
        }
        match reader.next(call).await? {
            Some(chunk) => all.extend_from_slice(&chunk),
            None => return Ok(all.freeze()),
        }
    }
}

pub(crate) fn too_large(limit: usize) -> Problem {
    Problem::new(Code::TooLarge, format!("the body is longer than {limit} bytes")).count("limit_bytes", limit as u64)
}

/// The body's chunks, at no less than the minimal rate.
#[derive(Debug)]
pub(crate) struct Reader {
    body: Option<axum::body::Body>,
    received: u64,
    /// On the monotonic clock: the grace begins with the reading.
    since: Duration,
}

impl Reader {
    /// Takes the request's body. An encoded one is refused: it would be stored as it came.
    pub(crate) fn new(call: &mut Call) -> Result<Self, Problem> {
        let encoding = call.parts.headers.get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Problem::new(Code::UnsupportedMediaType, "the body's Content-Encoding is not supported")
                .hint("send the body as it is, without Content-Encoding"));
        }
        // hyper refuses lengths that are not numbers, but one beyond u64 would read as unknown.
        let announced = call.parts.headers.get(CONTENT_LENGTH);
        if announced.is_some_and(|length| length.to_str().ok().and_then(|text| text.parse::<u64>().ok()).is_none()) {
            return Err(Problem::body("Content-Length is not a number of bytes"));
        }
        Ok(Self {
            body: call.body.take().map(SyncWrapper::into_inner),
            received: 0,
            since: call.state.clock.monotonic(),
        })
    }

    pub(crate) fn announced(&self) -> Option<u64> {
        self.body.as_ref().map_or(Some(0), |body| body.size_hint().exact())
    }

    /// Lets the sender finish, within bounds: one that is still writing when the connection closes
    /// sees that break and never reads the answer. Whoever asked for leave to send waits for it.
    pub(crate) async fn discard(&mut self, call: &Call) {
        if call.parts.headers.contains_key(EXPECT) || self.announced().is_some_and(|bytes| bytes > DISCARD_BYTES_MAX) {
            return;
        }
        let rest =
            async { while self.received <= DISCARD_BYTES_MAX && matches!(self.next(call).await, Ok(Some(_))) {} };
        // One that has stopped sending is not waited for: it reads.
        drop(tokio::time::timeout(DISCARD_TIME, rest).await);
    }

    /// Waiting for this long must not count as the sender's slowness.
    pub(crate) fn excuse(&mut self, pause: Duration) {
        self.since += pause;
    }

    /// The next chunk; `None` at the end.
    pub(crate) async fn next(&mut self, call: &Call) -> Result<Option<Bytes>, Problem> {
        let Some(body) = &mut self.body else { return Ok(None) };
        loop {
            let frame = if body.is_end_stream() {
                None
            } else {
                let left = left(self.received, call.state.clock.monotonic().saturating_sub(self.since));
                tokio::time::timeout(left, body.frame()).await.map_err(|_| too_slow())?
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a request's body broke off");
                    return Err(Problem::body("the body broke off"));
                }
                Some(Ok(frame)) => {
                    // Trailers say nothing to us.
                    let Ok(chunk) = frame.into_data() else { continue };
                    self.received += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
            }
        }
    }

    /// For streams: a permit for the bytes that are held at a time.
    pub(crate) fn admit(&self, call: &mut Call) -> Result<(), Problem> {
        call.admission = Some(call.state.service.admit(STEP_BYTES)?);
        Ok(())
    }
}

/// How much longer a sender may take for its next bytes.
fn left(received: u64, passed: Duration) -> Duration {
    let allowed = BODY_GRACE_S.saturating_add(received / BODY_RATE_BYTES_PER_S);
    Duration::from_secs(allowed).saturating_sub(passed)
}

fn too_slow() -> Problem {
    Problem::new(
        Code::RequestTimeout,
        format!("the body came slower than {BODY_RATE_BYTES_PER_S} bytes per second after {BODY_GRACE_S} s"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_has_the_grace_and_then_the_minimal_rate() {
        assert_eq!(left(0, Duration::ZERO), Duration::from_secs(10));
        assert_eq!(left(0, Duration::from_secs(10)), Duration::ZERO);
        assert_eq!(left(5 * 1024, Duration::from_secs(10)), Duration::from_secs(5));
        assert_eq!(left(u64::MAX, Duration::from_secs(9)), Duration::from_secs(10 + u64::MAX / 1024 - 9));
    }
}

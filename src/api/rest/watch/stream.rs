//! A watch as a stream of lines, as fast as its reader takes them: the next step is asked for when the
//! one before has gone to the connection.

use super::super::list::{NDJSON, X_ACCEL_BUFFERING};
use super::encode::{Format, Lines, Shape};
use super::{SSE, SSE_RETRY};
use crate::api::body::Body;
use crate::api::call::{Call, Outcome, Reply};
use crate::api::problem::Problem;
use crate::model::{Failure, Rejection};
use crate::service::{Context, WatchRequest, WatchStep, WatchStream};
use bytes::Bytes;
use futures_util::{Stream, stream};
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use std::io;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Sleep;

#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) format: Format,
    pub(super) shape: Shape,
    /// The stream ends cleanly after this long.
    pub(super) timeout: Option<Duration>,
}

pub(super) async fn open(call: &mut Call, context: &Context, request: WatchRequest, manner: Manner) -> Outcome {
    let answer = call.state.service.watch(context, request).await?;
    // In a box: a stream is kept by a future, which would hold it twice, and there may be very many.
    let lines = Box::new(Open {
        stream: answer.body,
        manner,
        begun: false,
        over: manner.timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout))),
        request_id: call.request_id.clone(),
    });
    let mut response = Response::new(Body::stream(lines.into_stream()));
    let headers = response.headers_mut();
    let content_type = match manner.format {
        Format::Sse => SSE,
        Format::Ndjson => NDJSON,
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(Reply { header: Some(answer.header), response })
}

struct Open {
    stream: WatchStream,
    manner: Manner,
    begun: bool,
    over: Option<Pin<Box<Sleep>>>,
    request_id: String,
}

impl Open {
    fn into_stream(self: Box<Self>) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::unfold(self, |mut open| async move {
            let chunk = open.next_chunk().await?;
            Some((Ok(chunk), open))
        })
    }

    async fn next_chunk(&mut self) -> Option<Bytes> {
        let format = self.manner.format;
        if !std::mem::replace(&mut self.begun, true) && format == Format::Sse {
            return Some(Bytes::from_static(SSE_RETRY));
        }
        let step = match &mut self.over {
            None => self.stream.next().await?,
            Some(over) => tokio::select! {
                biased;
                () = over => return None,
                step = self.stream.next() => step?,
            },
        };
        Some(self.encode(step))
    }

    fn encode(&self, step: WatchStep) -> Bytes {
        let Manner { format, shape, .. } = self.manner;
        let mut lines = Lines::new(format, 256);
        match step {
            WatchStep::Listed(entries) => entries.iter().for_each(|kv| lines.listed(kv, shape)),
            WatchStep::Changes(changes) => changes.iter().for_each(|change| lines.change(change, shape)),
            WatchStep::Synced(revision) => lines.mark("synced", revision),
            WatchStep::Progress(revision) => lines.mark("bookmark", revision),
            WatchStep::Reset(revision) => lines.mark("reset", revision),
            WatchStep::Failed(failure) => {
                if let Failure::Fault(fault) = &failure {
                    tracing::error!(request_id = self.request_id, fault, "a watch failed inside");
                }
                let revision = match &failure {
                    Failure::Rejected(Rejection::Compacted { current, .. }) => *current,
                    _ => self.stream.progress().unwrap_or(self.stream.start()),
                };
                lines.problem(&Problem::from(failure), revision, &self.request_id);
            }
        }
        lines.into_bytes().into()
    }
}

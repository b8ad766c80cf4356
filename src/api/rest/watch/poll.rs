//! A watch as one answer: the first changes there are, or none when the wait is over; in either case
//! the revision to ask on from.

use super::super::kv::TENURE_WAIT_MS;
use super::encode::{Shape, items};
use crate::api::call::{Call, Outcome};
use crate::api::json::Writer;
use crate::model::limits::{WAIT_MAX_MS, WATCH_POLL_BYTES_MAX};
use crate::model::{Failure, Revision, Why};
use crate::service::{Context, WatchRequest, WatchStep, WatchStream};
use hyper::StatusCode;
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) wait: Duration,
    /// Events; whole revisions are given, so that the last one may pass it.
    pub(super) limit: u64,
}

struct Gathered {
    json: Writer,
    events: u64,
    revision: Option<Revision>,
    more: bool,
}

pub(super) async fn answer(
    call: &mut Call,
    context: &Context,
    request: WatchRequest,
    shape: Shape,
    bounds: Bounds,
) -> Outcome {
    let answer = call.state.service.watch(context, request).await?;
    let (mut header, mut stream) = (answer.header, answer.body);
    let mut gathered = Gathered { json: Writer::with_capacity(512), events: 0, revision: None, more: false };
    let first = tokio::time::timeout(bounds.wait, stream.next()).await;
    let first = match first {
        Ok(first) => Some(first),
        // A start in the future has nothing to say yet, not even how far it is.
        Err(_) if stream.progress().is_none() => None,
        // However short the wait was: what is at hand is given.
        Err(_) => {
            stream.request_progress();
            Some(stream.next().await)
        }
    };
    if let Some(first) = first {
        gather(&mut stream, first, &mut gathered, shape, bounds.limit).await?;
    }
    let revision = gathered.revision.or(stream.progress()).unwrap_or(stream.start());
    header.revision = revision;
    let mut json = Writer::with_capacity(gathered.json.len() + 64);
    json.open();
    json.int("revision", revision);
    json.name("events");
    json.open_list();
    if gathered.events > 0 {
        json.members(&gathered.json);
    }
    json.close_list();
    json.bool("more", gathered.more);
    json.close();
    let mut answered = call.json(StatusCode::OK, Some(header), json)?;
    let wait_ms = u64::try_from(bounds.wait.as_millis()).unwrap_or(WAIT_MAX_MS);
    answered.response.headers_mut().insert(TENURE_WAIT_MS, wait_ms.into());
    Ok(answered)
}

/// The first changes and whatever is at hand behind them, up to the bounds.
async fn gather(
    stream: &mut WatchStream,
    first: Option<WatchStep>,
    gathered: &mut Gathered,
    shape: Shape,
    limit: u64,
) -> Result<(), Failure> {
    let mut step = first;
    loop {
        match step {
            Some(WatchStep::Changes(changes)) => {
                for change in changes {
                    if gathered.events >= limit || gathered.json.len() >= WATCH_POLL_BYTES_MAX {
                        gathered.more = true;
                        return Ok(());
                    }
                    items(&mut gathered.json, &change, shape);
                    gathered.events += u64::try_from(change.events.events.len()).unwrap_or(u64::MAX);
                    gathered.revision = Some(change.events.revision);
                }
            }
            // Nothing is at hand any more, and this is how far that holds.
            Some(WatchStep::Progress(revision)) => {
                gathered.revision = Some(revision);
                return Ok(());
            }
            // What was gathered is whole: the next poll is told what comes after it.
            Some(WatchStep::Failed(_)) | None if gathered.events > 0 => return Ok(()),
            Some(WatchStep::Failed(failure)) => return Err(failure),
            None => return Err(Failure::not_proposed(Why::ShuttingDown)),
            Some(WatchStep::Listed(_) | WatchStep::Synced(_) | WatchStep::Reset(_)) => {
                return Err(Failure::Fault("a long-poll was given a listing".to_owned()));
            }
        }
        stream.request_progress();
        step = stream.next().await;
    }
}

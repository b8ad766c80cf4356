//! `POST …/{name}/hold`: a claim for as long as the connection lives, told line by line.
//!
//! Invariants: each line is the claim as it stands, the last one a problem if the claim ended; a client
//! that goes away, or reads nothing, holds no longer than its lease.

use super::{Asked, asked, name, names, refused};
use crate::api::body::Body;
use crate::api::call::{Call, Outcome, Reply};
use crate::api::json::Writer;
use crate::api::problem::{Around, Problem};
use crate::api::receive;
use crate::api::rest::idempotency;
use crate::model::ClaimKind;
use crate::model::limits::HOLD_TIMEOUT_S;
use crate::net::Vanishing;
use crate::service::claims::{Acquired, Hold, HoldStep};
use bytes::Bytes;
use futures_util::stream::unfold;
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use std::io;
use std::time::Duration;

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(crate) async fn post(call: &mut Call, kind: ClaimKind) -> Outcome {
    let query = call.query(names(kind))?;
    let of = name(call, kind)?;
    call.body_is(&["application/json"])?;
    let context = call.context(&query)?;
    idempotency::refuse(call)?;
    let body = receive::whole(call).await?;
    let Asked { request, wait, enqueue } = asked(&query, &body, of)?;
    if enqueue {
        return Err(Problem::parameter("enqueue", "`hold` is told when it holds: leave `enqueue` out"));
    }
    call.admission = None;
    let admission = call.admit_answer(0)?;
    let answer = call.state.service.claim_hold(&context, request, wait).await?;
    let hold = match answer.body {
        Ok(hold) => hold,
        Err(Acquired::Refused { holder, waiting, waited_ms }) => {
            return Err(refused(kind, holder.as_ref(), (waiting, waited_ms)).header(answer.header));
        }
        Err(_) => return Err(super::super::kv::foreign("a claim that is none")),
    };
    let telling = Telling { hold: Some(hold), kind, request_id: call.request_id.clone() };
    let lines = unfold(telling, |mut telling| async move {
        let line = telling.next().await?;
        Some((Ok::<_, io::Error>(line), telling))
    });
    let mut reply = stream(answer.header, Body::stream(lines).admitted(Some(admission)), "application/x-ndjson");
    reply.response.extensions_mut().insert(Vanishing(Duration::from_secs(HOLD_TIMEOUT_S)));
    Ok(reply)
}

pub(super) fn stream(header: crate::service::Header, body: Body, content_type: &'static str) -> Reply {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Reply { header: Some(header), response }
}

struct Telling {
    /// `None` after the last line.
    hold: Option<Hold>,
    kind: ClaimKind,
    request_id: String,
}

impl Telling {
    async fn next(&mut self) -> Option<Bytes> {
        let step = self.hold.as_mut()?.next().await;
        let mut json = Writer::with_capacity(256);
        match step {
            HoldStep::Stands(claim) => super::encode::claim(&mut json, &claim),
            HoldStep::Refused { holder, waiting } => {
                self.end(&mut json, &refused(self.kind, holder.as_ref(), (waiting, 0)));
            }
            HoldStep::Lost(failure) => self.end(&mut json, &Problem::from(failure)),
        }
        json.newline();
        Some(json.into_bytes().into())
    }

    fn end(&mut self, json: &mut Writer, problem: &Problem) {
        self.hold = None;
        problem_line(json, problem, &self.request_id);
    }
}

/// What a stream says instead of a status once its head is sent.
pub(super) fn problem_line(json: &mut Writer, problem: &Problem, request_id: &str) {
    let around = Around { mutates: false, revision: None, request_id, pretty: false };
    json.open();
    json.text("type", "problem");
    json.raw("problem", &problem.to_json(around));
    json.close();
}

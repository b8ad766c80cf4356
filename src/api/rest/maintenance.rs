//! This member: status, hash, settings, log level, snapshot; and compaction and restore.

use super::cluster::CLUSTER_NAME;
use super::fields::Scalars;
use super::query::{Names, choose};
use crate::api::body::Body;
use crate::api::call::{ALWAYS, Call, Outcome, Reply};
use crate::api::json::Writer;
use crate::api::problem::Problem;
use crate::api::receive::Reader;
use crate::api::status::Code;
use crate::api::{ETCD_VERSION, receive};
use crate::service::{CompactTarget, Header};
use futures_util::stream::unfold;
use hyper::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use std::io;
use std::time::Duration;

const PLAIN: Names = Names { allowed: &[ALWAYS], later: &[] };
const COMPACT: Names = Names { allowed: &[&["revision", "keep_revisions", "keep"], ALWAYS], later: &[] };
const RESTORE: Names = Names { allowed: &[&["confirm"], ALWAYS], later: &[] };
const HASH: Names = Names { allowed: &[&["revision"], ALWAYS], later: &[] };
const LOG_LEVEL: Names = Names { allowed: &[&["level", "for"], ALWAYS], later: &[] };
const LEVELS: [(&str, &str); 5] =
    [("error", "error"), ("warn", "warn"), ("info", "info"), ("debug", "debug"), ("trace", "trace")];
/// A raised log level is meant for a look, not for ever.
const LOG_LEVEL_FOR_MAX: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn compact(call: &mut Call) -> Outcome {
    let query = call.query(&COMPACT)?;
    super::idempotency::refuse(call)?;
    let context = call.context(&query)?;
    call.body_is(&["application/json"])?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let targets = (scalars.revision("revision")?, scalars.revision("keep_revisions")?, scalars.duration("keep")?);
    scalars.finish()?;
    let target = match targets {
        (Some(revision), None, None) => CompactTarget::Revision(revision),
        (None, Some(revisions), None) => CompactTarget::KeepRevisions(revisions),
        (None, None, Some(age)) => CompactTarget::KeepAge(age),
        _ => {
            return Err(Problem::parameter("revision", "give exactly one of `revision`, `keep_revisions` or `keep`"));
        }
    };
    let answer = call.state.service.compact(&context, target).await?;
    let mut json = Writer::with_capacity(48);
    json.open();
    json.int("compacted_revision", answer.body);
    json.close();
    call.json(StatusCode::OK, Some(answer.header), json)
}

pub(crate) fn status(call: &mut Call) -> Outcome {
    call.query(&PLAIN)?;
    call.accepts(&["application/json"])?;
    let status = call.state.service.status();
    let mut json = Writer::with_capacity(768);
    json.open();
    json.text("name", &status.name);
    json.text("id", &format!("{:016x}", status.id));
    json.text("cluster_id", &format!("{:016x}", status.cluster_id));
    json.text("version", env!("CARGO_PKG_VERSION"));
    json.text("etcd_version", ETCD_VERSION);
    match &status.leader {
        Some(leader) => json.text("leader", leader),
        None => json.raw("leader", b"null"),
    }
    json.bool("is_leader", status.is_leader);
    json.bool("learner", status.learner);
    let numbers = [("term", status.term), ("raft_index", status.raft_index), ("applied_index", status.applied_index)];
    numbers.into_iter().for_each(|(name, value)| json.count(name, value));
    json.int("revision", status.revision);
    json.int("compacted_revision", status.compacted_revision);
    let numbers = [
        ("db_bytes", status.db_bytes),
        ("db_bytes_in_use", status.db_bytes_in_use),
        ("quota_bytes", status.quota_bytes),
        ("keys", status.keys),
        ("leases", status.leases),
        ("watchers", status.watchers),
        ("uptime_ms", status.uptime_ms),
    ];
    numbers.into_iter().for_each(|(name, value)| json.count(name, value));
    json.name("alarms");
    json.open_list();
    status.alarms.iter().for_each(|alarm| json.item_text(alarm));
    json.close_list();
    json.close();
    call.json(StatusCode::OK, None, json)
}

pub(crate) async fn hash(call: &mut Call) -> Outcome {
    let query = call.query(&HASH)?;
    call.accepts(&["application/json"])?;
    let context = call.context(&query)?;
    let answer = call.state.service.hash(&context, query.revision("revision")?).await?;
    // It is of this member by its nature; how old that is belongs to stale reads.
    let header = Header { staleness_ms: None, ..answer.header };
    let mut json = Writer::with_capacity(160);
    json.open();
    json.text("hash", &answer.body.hash);
    json.int("revision", answer.body.revision);
    json.int("compacted_revision", answer.body.compacted_revision);
    json.count("applied_index", answer.body.applied_index);
    json.close();
    call.json(StatusCode::OK, Some(header), json)
}

pub(crate) fn config(call: &mut Call) -> Outcome {
    call.query(&PLAIN)?;
    call.accepts(&["application/json"])?;
    let mut json = Writer::default();
    let config = call.state.options.config.borrow().to_string();
    json.item_raw(config.as_bytes());
    call.json(StatusCode::OK, None, json)
}

pub(crate) async fn log_level(call: &mut Call) -> Outcome {
    let query = call.query(&LOG_LEVEL)?;
    call.body_is(&["application/json"])?;
    let body = receive::whole(call).await?;
    let mut scalars = Scalars::new(&query, &body)?;
    let level = scalars.text("level")?;
    let duration = scalars.duration("for")?;
    scalars.finish()?;
    let level = level.ok_or_else(|| Problem::parameter("level", "`level` is missing"))?;
    let level = choose("level", &level, &LEVELS)?;
    let previous = call.state.logs.level();
    let set = match duration {
        None => call.state.logs.set(level),
        Some(duration) if duration.is_zero() || duration > LOG_LEVEL_FOR_MAX => {
            return Err(Problem::parameter("for", "`for` is between 1ms and 24h"));
        }
        Some(duration) => call.state.logs.set_for(level, duration, &call.state.tasks),
    };
    set.map_err(|error| Problem::parameter("level", error.to_string()))?;
    tracing::info!(level, previous, "log level changed");
    let mut json = Writer::with_capacity(64);
    json.open();
    json.text("level", level);
    json.text("previous", &previous);
    if let Some(duration) = duration {
        json.count("for_ms", u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    }
    json.close();
    call.json(StatusCode::OK, None, json)
}

/// The whole store, put in the place of the present one. The parameter keeps a slip from doing that to the
/// wrong cluster.
pub(crate) async fn restore(call: &mut Call) -> Outcome {
    let query = call.query(&RESTORE)?;
    super::idempotency::refuse(call)?;
    let context = call.context(&query)?;
    call.body_is(&["application/octet-stream"])?;
    let mut reader = Reader::new(call)?;
    let id = format!("{:016x}", call.state.service.header().cluster_id);
    if !query.text("confirm")?.is_some_and(|confirmed| confirmed == CLUSTER_NAME || confirmed == id) {
        reader.discard(call).await;
        let detail = format!("this replaces everything in cluster {CLUSTER_NAME} ({id})");
        let hint = format!("add confirm={CLUSTER_NAME} to the query if that is what you want");
        return Err(Problem::new(Code::PreconditionFailed, detail).hint(hint));
    }
    reader.admit(call)?;
    let service = call.state.service.clone();
    let mut upload = service.begin_restore().await?;
    while let Some(chunk) = reader.next(call).await? {
        upload = upload.write(chunk).await?;
    }
    let answer = service.restore(&context, upload).await?;
    let mut json = Writer::with_capacity(48);
    json.open();
    json.int("revision", answer.body);
    json.close();
    call.json(StatusCode::OK, Some(answer.header), json)
}

pub(crate) async fn snapshot(call: &mut Call) -> Outcome {
    let query = call.query(&PLAIN)?;
    let context = call.context(&query)?;
    let answer = call.state.service.snapshot(&context).await?;
    let mut header = answer.header;
    header.revision = answer.body.revision;
    let name = format!("attachment; filename=\"tenure-{}.snap\"", answer.body.revision);
    let length = answer.body.length;
    let stopping = call.state.service.stopping().clone();
    let chunks = unfold((answer.body.chunks, stopping), |(mut chunks, stopping)| async move {
        let chunk = match stopping.run_until_cancelled(chunks.recv()).await {
            Some(chunk) => chunk?.map_err(|fault| io::Error::other(fault.to_string())),
            // Ending quietly would look like a whole snapshot until its digest is checked.
            None => Err(io::Error::other("this member is shutting down")),
        };
        Some((chunk, (chunks, stopping)))
    });
    let mut response = Response::new(Body::sized(length, chunks));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    if let Ok(name) = HeaderValue::try_from(name) {
        headers.insert(CONTENT_DISPOSITION, name);
    }
    Ok(Reply { header: Some(header), response })
}

//! One operation as a REST request, and what its answer says. Anything that breaks the contract
//! fails the run right here.

use super::http::{Client, Lost, Response};
use super::op::{Action, Answer, Key, Version};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How an operation is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manner {
    /// The server's own deadline, as `2s`; without one, its default.
    pub(crate) timeout: Option<String>,
    /// Makes a repetition safe.
    pub(crate) idempotency_key: Option<String>,
}

pub(crate) fn perform(client: &mut Client, action: &Action, manner: &Manner) -> Answer {
    match answer(client, action, manner) {
        Ok(response) => interpret(action, &response),
        Err(Lost::NotSent(_)) => Answer::No,
        Err(Lost::Unknown(_)) => Answer::Unknown,
    }
}

/// The answer itself, for those who want to see its headers too.
pub(crate) fn answer(client: &mut Client, action: &Action, manner: &Manner) -> Result<Response, Lost> {
    let mut query: Vec<String> = manner.timeout.iter().map(|timeout| format!("timeout={timeout}")).collect();
    let mut headers = Vec::new();
    if let Some(key) = &manner.idempotency_key
        && !action.is_read()
    {
        headers.push(("idempotency-key", key.as_str()));
    }
    let (method, path, body) = match action {
        Action::Put { key, value } => ("PUT", kv(key), value.clone()),
        Action::Cas { key, expected, value } => {
            let revision = expected.as_ref().map_or(0, |(revision, _)| *revision);
            query.push(format!("cas={revision}"));
            ("PUT", kv(key), value.clone())
        }
        Action::Delete { key } => ("DELETE", kv(key), String::new()),
        Action::Add { key, by } => {
            query.push(format!("add={by}"));
            ("POST", format!("/v1/counters/{key}"), String::new())
        }
        Action::Txn { key, expected, puts } => {
            headers.push(("content-type", "application/json"));
            ("POST", "/v1/txn".to_owned(), txn(key, expected.as_ref(), puts).to_string())
        }
        Action::ReadMany { keys } => {
            headers.push(("content-type", "application/json"));
            let gets: Vec<Value> = keys.iter().map(|key| json!({"get": {"key": key}})).collect();
            ("POST", "/v1/txn".to_owned(), json!({"then": gets}).to_string())
        }
        Action::Read { key } => ("GET", kv(key), String::new()),
        Action::StaleRead { key } => {
            query.push("consistency=stale".to_owned());
            ("GET", kv(key), String::new())
        }
    };
    let target = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
    client.request(method, &target, &headers, body.as_bytes())
}

fn kv(key: &Key) -> String {
    format!("/v1/kv/{key}")
}

fn txn(key: &Key, expected: Option<&Version>, puts: &BTreeMap<Key, String>) -> Value {
    let condition = match expected {
        Some((revision, _)) => json!({"key": key, "revision": revision}),
        None => json!({"key": key, "exists": false}),
    };
    let then: Vec<Value> = puts.iter().map(|(key, value)| json!({"put": {"key": key, "value": value}})).collect();
    json!({"if": [condition], "then": then})
}

/// What the answer says.
pub(crate) fn interpret(action: &Action, response: &Response) -> Answer {
    let number = |body: &Value, name: &str| {
        body[name].as_i64().unwrap_or_else(|| panic!("no {name} in {body}, the answer to {action:?}"))
    };
    match (response.status, action) {
        (200 | 404, Action::Read { .. } | Action::StaleRead { .. }) => {
            let version = (response.status == 200).then(|| {
                let etag = response.header("etag").and_then(|etag| etag.trim_matches('"').parse().ok());
                let value = String::from_utf8(response.body.clone()).expect("the value is the text that was put");
                (etag.unwrap_or_else(|| panic!("no ETag: {response:?}")), value)
            });
            Answer::Value { revision: response.revision(), version }
        }
        (200 | 201, Action::Put { .. } | Action::Cas { .. }) => {
            Answer::Written { revision: number(&response.json(), "revision") }
        }
        (200, Action::Delete { .. }) => {
            let body = response.json();
            let count = u64::try_from(number(&body, "deleted")).expect("a count");
            Answer::Deleted { revision: number(&body, "revision"), count }
        }
        (200, Action::Add { .. }) => {
            let body = response.json();
            Answer::Sum { revision: number(&body, "revision"), value: number(&body, "value") }
        }
        (200, Action::ReadMany { keys }) => {
            let body = response.json();
            let results = body["results"].as_array().unwrap_or_else(|| panic!("no results in {body}"));
            assert_eq!(results.len(), keys.len(), "{body}");
            let versions = keys.iter().zip(results).map(|(key, result)| {
                let entry = &result["get"];
                let version = entry["mod_revision"]
                    .as_i64()
                    .map(|at| (at, entry["value"].as_str().expect("the value is the text that was put").to_owned()));
                (key.clone(), version)
            });
            Answer::Values { revision: number(&body, "revision"), versions: versions.collect() }
        }
        (200, Action::Txn { .. }) => {
            let body = response.json();
            let revision = number(&body, "revision");
            match body["succeeded"].as_bool() {
                Some(true) => Answer::Written { revision },
                Some(false) => Answer::Refused { revision },
                None => panic!("no outcome in {body}"),
            }
        }
        (412, Action::Cas { .. }) => Answer::Refused { revision: number(&response.json(), "revision") },
        (429.., _) => {
            let body = response.json();
            match body["applied"].as_str() {
                Some("no") => Answer::No,
                Some("unknown") => Answer::Unknown,
                _ if action.is_read() => Answer::No,
                _ => panic!("status {} does not say whether it was applied: {body}", response.status),
            }
        }
        (status, action) => {
            panic!("status {status} to {action:?}: {}", String::from_utf8_lossy(&response.body))
        }
    }
}

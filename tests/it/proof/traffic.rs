//! Writers whose every value is unique, and what became of each write.

use super::oracle::{ALL_KEYS, Event, Record, key_name};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A request that takes longer is of unknown outcome.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two writes of one writer.
const PAUSE: Duration = Duration::from_millis(15);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// At this revision, or without any change.
    Done(Option<i64>),
    NotDone,
    Unknown,
}

#[derive(Debug)]
pub(super) struct Write {
    puts: Vec<(usize, String)>,
    deletes: Vec<usize>,
    pub(super) became: Became,
}

/// Unique, and now and then long.
fn value(rng: &mut StdRng, writer: usize, at: usize) -> String {
    let filler = if rng.random_bool(0.1) { 4000 } else { rng.random_range(0..100) };
    format!("{writer}-{at}-{}", ".".repeat(filler))
}

fn write(rng: &mut StdRng, writer: usize, at: usize) -> (Write, reqwest::Method, String, String) {
    use reqwest::Method;
    let key = rng.random_range(0..ALL_KEYS);
    let path = format!("/v1/kv/{}", key_name(key));
    let none = |puts, deletes| Write { puts, deletes, became: Became::Unknown };
    match rng.random_range(0..100) {
        0..60 => {
            let value = value(rng, writer, at);
            (none(vec![(key, value.clone())], vec![]), Method::PUT, path, value)
        }
        60..65 => {
            let value = value(rng, writer, at);
            (none(vec![(key, value.clone())], vec![]), Method::PUT, format!("{path}?ttl=1s"), value)
        }
        65..85 => (none(vec![], vec![key]), Method::DELETE, path, String::new()),
        _ => {
            let keys: BTreeSet<usize> = (0..rng.random_range(2..6)).map(|_| rng.random_range(0..ALL_KEYS)).collect();
            let mut all = none(vec![], vec![]);
            let mut then = Vec::new();
            for (sub, key) in keys.into_iter().enumerate() {
                if sub > 0 && rng.random_bool(0.3) {
                    all.deletes.push(key);
                    then.push(json!({"delete": {"key": key_name(key)}}));
                } else {
                    let value = format!("{sub}:{}", value(rng, writer, at));
                    then.push(json!({"put": {"key": key_name(key), "value": value}}));
                    all.puts.push((key, value));
                }
            }
            (all, Method::POST, "/v1/txn".to_owned(), json!({ "then": then }).to_string())
        }
    }
}

/// Writes through one member after the other until it is told to stop.
pub(super) async fn writer(writer: usize, urls: Vec<String>, seed: u64, stop: Arc<AtomicBool>) -> Vec<Write> {
    let mut rng = StdRng::seed_from_u64(seed);
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let mut all = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let (mut write, method, target, body) = write(&mut rng, writer, all.len());
        let url = &urls[rng.random_range(0..urls.len())];
        let json = if target == "/v1/txn" { "application/json" } else { "text/plain" };
        let request = http.request(method, format!("{url}{target}")).header("content-type", json).body(body);
        write.became = match request.send().await {
            Err(error) if error.is_connect() => Became::NotDone,
            Err(_) => Became::Unknown,
            Ok(answer) => {
                let done = answer.status().is_success();
                match answer.json::<Value>().await {
                    Ok(told) if done => {
                        let nothing = told["deleted"] == json!(0);
                        Became::Done((!nothing).then(|| told["revision"].as_i64().unwrap()))
                    }
                    Ok(problem) if problem["applied"] == json!("no") => Became::NotDone,
                    Ok(_) | Err(_) => Became::Unknown,
                }
            }
        };
        if write.became == Became::NotDone {
            tokio::time::sleep(PAUSE * 4).await;
        }
        all.push(write);
        tokio::time::sleep(PAUSE).await;
    }
    all
}

/// Every acknowledged write is in the record as it was asked for, none that was refused is, and nothing is there
/// that nobody wrote.
pub(super) fn judge(record: &Record, after: i64, writes: &[Write]) {
    let mut seen: BTreeMap<&str, (i64, usize)> = BTreeMap::new();
    for revision in after + 1..=record.last() {
        for event in record.at(revision) {
            if let Some(put) = &event.after {
                let twice = seen.insert(&put.value, (revision, event.key));
                assert!(twice.is_none(), "{:?} was written at {twice:?} and at {revision}", put.value);
            }
        }
    }
    let mut written = 0;
    for write in writes {
        for (key, value) in &write.puts {
            let found = seen.get(value.as_str()).copied();
            written += usize::from(found.is_some());
            match &write.became {
                Became::Done(revision) => assert_eq!(found, revision.map(|revision| (revision, *key)), "{write:?}"),
                Became::NotDone => assert_eq!(found, None, "refused, and done: {write:?}"),
                Became::Unknown => {}
            }
        }
        if let (Became::Done(Some(revision)), [key], []) = (&write.became, &write.deletes[..], &write.puts[..]) {
            let gone = Event { key: *key, after: None, reason: "deleted".to_owned() };
            assert_eq!(record.at(*revision), [gone], "{write:?}");
        }
    }
    assert_eq!(written, seen.len(), "values that nobody wrote");
}

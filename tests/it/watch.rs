//! Watches against the real binary: each format, resuming, the state first, compaction, slow readers, the end.

use crate::support::{Node, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Longer than anything a test waits for on purpose.
const PATIENCE: Duration = Duration::from_secs(30);

struct Rig {
    node: Node,
    http: reqwest::Client,
}

/// An open stream and what of it was not looked at yet.
struct Stream {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

/// One server-sent event.
#[derive(Debug, Default, PartialEq)]
struct Sent {
    event: String,
    id: Option<i64>,
    data: Value,
}

impl Rig {
    async fn start() -> Self {
        Self { node: Node::start().await, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    fn url(&self, target: &str) -> String {
        format!("{}{target}", self.node.url())
    }

    async fn json(&self, request: reqwest::RequestBuilder) -> Value {
        let response = request.send().await.unwrap();
        let status = response.status();
        let body = response.bytes().await.unwrap();
        assert!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// Answers the write's revision.
    async fn put(&self, key: &str, value: impl Into<reqwest::Body>) -> i64 {
        let put = self.http.put(self.url(&format!("/v1/kv/{key}"))).body(value);
        self.json(put).await["revision"].as_i64().unwrap()
    }

    async fn delete(&self, key: &str) -> i64 {
        self.json(self.http.delete(self.url(&format!("/v1/kv/{key}")))).await["revision"].as_i64().unwrap()
    }

    async fn txn(&self, then: Value) -> i64 {
        let txn = self.http.post(self.url("/v1/txn")).json(&json!({ "then": then }));
        self.json(txn).await["revision"].as_i64().unwrap()
    }

    async fn compact(&self, revision: i64) {
        self.json(self.http.post(self.url(&format!("/v1/compact?revision={revision}")))).await;
    }

    async fn get(&self, target: &str) -> (u16, Value) {
        let response = self.http.get(self.url(target)).send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
    }

    async fn metric(&self, name: &str) -> u64 {
        let text = self.http.get(self.url("/metrics")).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name}")).split(' ').nth(1).unwrap().parse().unwrap()
    }

    async fn watch(&self, query: &str) -> Stream {
        self.watch_with(query, &[]).await
    }

    async fn watch_with(&self, query: &str, headers: &[(&str, &str)]) -> Stream {
        let mut request = self.http.get(self.url(&format!("/v1/watch?{query}")));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{query}");
        Stream { response, buffer: Vec::new() }
    }
}

impl Stream {
    fn header(&self, name: &str) -> &str {
        self.response.headers()[name].to_str().unwrap()
    }

    /// Up to and without the next separator; `None` at a clean end.
    async fn until(&mut self, separator: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(separator.len()).position(|window| window == separator) {
                let text = self.buffer.drain(..at + separator.len()).take(at).collect();
                return Some(String::from_utf8(text).unwrap());
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("something comes");
            match chunk.expect("the stream is not broken off") {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => {
                    assert!(self.buffer.is_empty(), "half a line at the end");
                    return None;
                }
            }
        }
    }

    async fn next(&mut self) -> Option<Value> {
        Some(serde_json::from_str(&self.until(b"\n").await?).unwrap())
    }

    async fn must(&mut self) -> Value {
        self.next().await.expect("the stream goes on")
    }

    async fn sent(&mut self) -> Sent {
        let mut sent = Sent::default();
        for line in self.until(b"\n\n").await.expect("the stream goes on").lines() {
            match line.split_once(": ").unwrap() {
                ("event", event) => sent.event = event.to_owned(),
                ("id", id) => sent.id = Some(id.parse().unwrap()),
                ("data", data) => sent.data = serde_json::from_str(data).unwrap(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sent.data["type"], json!(sent.event));
        sent
    }
}

fn revision(event: &Value) -> i64 {
    event["revision"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_tell_every_change_of_what_is_followed() {
    let rig = Rig::start().await;
    let before = rig.put("app/host", "db1").await;
    let mut stream = rig.watch("prefix=app/&key=single&start=m&end=n").await;
    assert_eq!(stream.header("content-type"), "application/x-ndjson");
    assert_eq!(stream.header("cache-control"), "no-cache, no-transform");
    assert_eq!(stream.header("x-accel-buffering"), "no");
    assert_eq!(stream.header("tenure-revision"), before.to_string());
    let second = rig.put("app/host", "db2").await;
    rig.put("other", "x").await;
    rig.put("single/not", "x").await;
    rig.put("single", vec![0xff, 0]).await;
    rig.put("mango", "yes").await;
    let gone = rig.delete("app/host").await;
    assert_eq!(
        stream.must().await,
        json!({"type": "put", "revision": second, "key": "app/host", "value": "db2", "version": 2, "create_revision": before, "created": false})
    );
    let binary = stream.must().await;
    assert_eq!((&binary["key"], &binary["value_base64"]), (&json!("single"), &json!("/wA=")));
    assert_eq!(stream.must().await["key"], json!("mango"));
    assert_eq!(
        stream.must().await,
        json!({"type": "delete", "revision": gone, "key": "app/host", "reason": "deleted"})
    );
    // The same again from history, without values and with what was there before.
    let mut past = rig.watch(&format!("key=app/host&after={}&values=false&prev", before - 1)).await;
    let first = past.must().await;
    assert_eq!((&first["size"], &first["created"], first.get("previous")), (&json!(3), &json!(true), None));
    let previous = &past.must().await["previous"];
    assert_eq!((&previous["mod_revision"], &previous["size"]), (&json!(before), &json!(3)));
    let deleted = past.must().await;
    assert_eq!((&deleted["reason"], &deleted["previous"]["mod_revision"]), (&json!("deleted"), &json!(second)));
    let mut deletes = rig.watch(&format!("after={}&types=delete&prev&timeout=300ms", before - 1)).await;
    assert_eq!(deletes.must().await["previous"]["value"], json!("db2"));
    assert_eq!(deletes.next().await, None, "the stream ends cleanly when its time is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_resume_without_losing_half_a_revision() {
    let rig = Rig::start().await;
    let sse = ("accept", "text/event-stream");
    let mut stream = rig.watch_with("prefix=t/", &[sse]).await;
    assert_eq!(stream.header("content-type"), "text/event-stream");
    assert_eq!(stream.until(b"\n\n").await.unwrap(), "retry: 1000");
    let alone = rig.put("t/0", "x").await;
    assert_eq!(stream.sent().await.id, Some(alone));
    let put = |key: &str| json!({"put": {"key": key, "value": "v"}});
    let split = rig.txn(json!([put("t/1"), {"delete": {"key": "t/0"}}, put("t/2")])).await;
    let first = stream.sent().await;
    assert_eq!((first.id, &first.data["partial"]), (None, &json!(true)));
    // The connection breaks here; the browser knows the id before, and its first URL says something else.
    drop(stream);
    let last = alone.to_string();
    let mut stream = rig.watch_with("prefix=t/&after=0&format=sse", &[("last-event-id", &last)]).await;
    stream.until(b"\n\n").await.unwrap();
    let events = [stream.sent().await, stream.sent().await, stream.sent().await];
    let told: Vec<_> =
        events.iter().map(|sent| (sent.event.as_str(), sent.data["key"].as_str().unwrap(), sent.id)).collect();
    assert_eq!(told, [("put", "t/1", None), ("delete", "t/0", None), ("put", "t/2", Some(split))]);
    assert!(events.iter().all(|sent| revision(&sent.data) == split));
}

/// Writers go on while streams begin: every stream's state and changes add up to what the store holds.
#[tokio::test(flavor = "multi_thread")]
async fn the_state_and_its_changes_meet_without_a_gap() {
    let rig = Rig::start().await;
    for at in 0..40 {
        rig.put(&format!("s/{at}"), "0").await;
    }
    let writes = async {
        for round in 0..150 {
            let key = format!("s/{}", round % 50);
            if round % 7 == 3 {
                rig.delete(&key).await
            } else {
                rig.put(&key, round.to_string()).await
            };
        }
        rig.put("s/end", "end").await
    };
    let follow = async |query: &str| {
        let mut stream = rig.watch(query).await;
        let start: i64 = stream.header("tenure-revision").parse().unwrap();
        let (mut state, mut synced, mut last) = (BTreeMap::new(), false, 0);
        loop {
            let event = stream.must().await;
            let key = event["key"].as_str().unwrap_or_default().to_owned();
            match event["type"].as_str().unwrap() {
                "put" if event.get("initial").is_some() => {
                    assert!(!synced && revision(&event) <= start);
                    assert!(state.insert(key, event["value"].clone()).is_none(), "listed twice");
                }
                "synced" => {
                    assert!(!synced && revision(&event) == start);
                    (synced, last) = (true, start);
                }
                kind @ ("put" | "delete") => {
                    assert!(synced && revision(&event) > last, "{event} after {last}");
                    last = revision(&event);
                    if kind == "put" {
                        state.insert(key.clone(), event["value"].clone())
                    } else {
                        state.remove(&key)
                    };
                    if key == "s/end" {
                        return state;
                    }
                }
                "bookmark" => {}
                other => panic!("{other}"),
            }
        }
    };
    let early = follow("prefix=s/&initial");
    let overlapping = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        follow("prefix=s/&prefix=s/1&key=s/12&start=s/&end=s0&initial").await
    };
    let late = async {
        tokio::time::sleep(Duration::from_millis(120)).await;
        follow("initial").await
    };
    let (_, early, overlapping, late) = tokio::join!(writes, early, overlapping, late);
    let (_, listing) = rig.get("/v1/kv?prefix=s/").await;
    let items = listing["items"].as_array().unwrap();
    let truth: BTreeMap<String, Value> =
        items.iter().map(|item| (item["key"].as_str().unwrap().to_owned(), item["value"].clone())).collect();
    assert!(early == truth && overlapping == truth && late == truth);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compacted_is_said() {
    let rig = Rig::start().await;
    let mut revisions = Vec::new();
    for at in 0..10 {
        revisions.push(rig.put("c/a", at.to_string()).await);
    }
    rig.put("c/b", "x").await;
    let deleted = rig.delete("c/b").await;
    let newest = rig.put("c/a", "newest").await;
    rig.compact(deleted).await;
    for target in [format!("/v1/watch?after={}", deleted - 1), "/v1/watch?after=1&wait=1s".to_owned()] {
        let (status, problem) = rig.get(&target).await;
        assert_eq!((status, &problem["code"]), (410, &json!("compacted")));
        assert_eq!((&problem["compacted_revision"], &problem["revision"]), (&json!(deleted), &json!(newest)));
    }
    let mut whole = rig.watch(&format!("after={deleted}&prev")).await;
    let event = whole.must().await;
    assert_eq!((revision(&event), &event["previous"]["value"]), (newest, &json!("9")));
    // A browser that comes back too late starts anew by itself.
    let headers = [("accept", "text/event-stream"), ("last-event-id", "3")];
    let mut stream = rig.watch_with("prefix=c/&initial", &headers).await;
    stream.until(b"\n\n").await.unwrap();
    let sent = [stream.sent().await, stream.sent().await, stream.sent().await];
    assert_eq!((sent[0].event.as_str(), sent[0].id), ("reset", None));
    assert_eq!((&sent[1].data["value"], &sent[1].data["initial"]), (&json!("newest"), &json!(true)));
    assert_eq!((sent[2].event.as_str(), sent[2].id), ("synced", Some(newest)));
    // One that comes back in time does not.
    let last = deleted.to_string();
    let mut stream = rig.watch_with("prefix=c/&initial", &[("last-event-id", &last)]).await;
    let event = stream.must().await;
    assert_eq!((revision(&event), event.get("initial")), (newest, None));
}

/// Readers that take nothing for long: each gets everything at last, or is told what it cannot have.
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_are_served_from_history_and_never_skipped() {
    const WRITES: usize = 700;
    let rig = Rig::start().await;
    let mut slow = rig.watch("prefix=slow/&bookmarks=off").await;
    let mut fails = rig.watch("prefix=slow/&bookmarks=off&prev").await;
    let mut resyncs = rig.watch("prefix=slow/&bookmarks=off&on_compacted=resync").await;
    let mut revisions = Vec::new();
    // More than the ring and all sockets hold.
    for at in 0..WRITES {
        revisions
            .push(rig.put(&format!("slow/{}", at % 5), vec![b'a' + u8::try_from(at % 26).unwrap(); 96 << 10]).await);
    }
    assert!(rig.metric("tenure_watch_lag_revisions").await > 100);
    assert!(rig.metric("tenure_watch_buffered_bytes").await < 8 << 20);
    for (at, expected) in revisions.iter().enumerate() {
        let event = slow.must().await;
        assert_eq!((revision(&event), event["key"].as_str().unwrap()), (*expected, &*format!("slow/{}", at % 5)));
    }
    assert!(rig.metric("tenure_watch_catchups_total").await >= 1);
    let newest = rig.put("slow/0", "newest").await;
    assert_eq!(revision(&slow.must().await), newest, "live again");
    rig.compact(newest).await;
    let mut last = 0;
    let problem = loop {
        let event = fails.must().await;
        if event["type"] == json!("problem") {
            break event;
        }
        assert!(last == 0 || revision(&event) == last + 1, "{} after {last}", revision(&event));
        last = revision(&event);
    };
    assert_eq!((&problem["code"], &problem["compacted_revision"]), (&json!("compacted"), &json!(newest)));
    assert!(last < newest - 1 && fails.next().await.is_none());
    let mut listed = None;
    loop {
        let event = resyncs.must().await;
        match (event["type"].as_str().unwrap(), &mut listed) {
            ("reset", listed) => *listed = Some(0),
            ("synced", _) => break,
            (_, None) => assert!(event.get("initial").is_none()),
            (_, Some(listed)) => {
                assert_eq!(event["initial"], json!(true));
                *listed += 1;
            }
        }
    }
    assert_eq!(listed, Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_move_on_and_hidden_keys_stay_hidden() {
    let rig = Rig::start().await;
    let mut quiet = rig.watch("key=quiet&bookmarks=1s").await;
    let mut hidden = rig.watch("prefix=_tenure/&bookmarks=1s").await;
    let mut all = rig.watch("bookmarks=1s").await;
    let behind = rig.put("_tenure/locks/x", "held").await;
    let other = rig.put("other", "x").await;
    let seen = hidden.must().await;
    assert_eq!((revision(&seen), &seen["key"]), (behind, &json!("_tenure/locks/x")));
    assert_eq!(revision(&all.must().await), other, "a watch of everything does not see it");
    loop {
        let bookmark = quiet.must().await;
        assert_eq!(bookmark["type"], json!("bookmark"));
        if revision(&bookmark) == other {
            break;
        }
    }
    let mut state = rig.watch("initial&timeout=100ms").await;
    assert_eq!(state.must().await["key"], json!("other"));
    assert_eq!(state.must().await["type"], json!("synced"));
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_answer_whole_revisions_and_always_a_place_to_go_on() {
    let rig = Rig::start().await;
    let (_, empty) = rig.get("/v1/watch?prefix=p/&wait=50ms").await;
    assert_eq!((&empty["events"], &empty["more"]), (&json!([]), &json!(false)));
    let start = revision(&empty);
    rig.put("elsewhere", "x").await;
    let (_, moved) = rig.get(&format!("/v1/watch?prefix=p/&after={start}&wait=50ms")).await;
    assert_eq!(revision(&moved), start + 1, "the place moves on without events");
    let waiting = tokio::spawn({
        let request = rig.http.get(rig.url(&format!("/v1/watch?prefix=p/&after={start}&wait=20s")));
        async move { request.send().await.unwrap().json::<Value>().await.unwrap() }
    });
    eventually("the poll waits", PATIENCE, async || rig.metric("tenure_watch_streams").await > 0).await;
    let put = |key: &str| json!({"put": {"key": key, "value": "v"}});
    let three = rig.txn(json!([put("p/1"), put("p/2"), put("p/3")])).await;
    let answer = waiting.await.unwrap();
    assert_eq!((revision(&answer), answer["events"].as_array().unwrap().len()), (three, 3));
    let last = rig.put("p/4", "v").await;
    for (limit, count, upto, more) in [(1, 3, three, true), (3, 3, three, true), (4, 4, last, false)] {
        let (_, answer) = rig.get(&format!("/v1/watch?prefix=p/&after={start}&wait=0&limit={limit}")).await;
        let events = answer["events"].as_array().unwrap();
        assert_eq!((events.len(), revision(&answer), &answer["more"]), (count, upto, &json!(more)), "limit {limit}");
        let partial: Vec<bool> = events.iter().map(|event| event.get("partial").is_some()).collect();
        assert_eq!(partial[..3], [true, true, false]);
    }
    let (_, future) = rig.get(&format!("/v1/watch?after={}&wait=20ms", last + 100)).await;
    assert_eq!((revision(&future), &future["events"]), (last + 100, &json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_ahead_of_the_store_waits_for_it() {
    let rig = Rig::start().await;
    let now = rig.put("f", "1").await;
    let mut stream = rig.watch(&format!("key=f&after={}&bookmarks=1s", now + 2)).await;
    assert_eq!(stream.header("tenure-revision"), (now + 2).to_string());
    for value in ["2", "3", "4"] {
        rig.put("f", value).await;
    }
    let first = stream.must().await;
    assert_eq!((revision(&first), &first["value"]), (now + 3, &json!("4")));
    let (status, late) = rig.get(&format!("/v1/watch?min_revision={}&wait=1s", now + 1000)).await;
    assert_eq!((status, &late["code"]), (504, &json!("revision-not-reached")));
}

/// Deletes at the compacted revision, and the revision itself, outlive a crash.
#[tokio::test(flavor = "multi_thread")]
async fn issue_17780_a_crash_after_compaction_takes_nothing_back() {
    let mut rig = Rig::start().await;
    let mut newest = 0;
    for round in 0..3 {
        rig.put("gone", round.to_string()).await;
        newest = rig.delete("gone").await;
        rig.compact(newest).await;
        rig.node.kill();
        rig.node = rig.node.restart().await;
        let (_, status) = rig.get("/v1/status").await;
        assert_eq!((&status["revision"], &status["compacted_revision"]), (&json!(newest), &json!(newest)));
        let (_, history) = rig.get("/v1/history/gone").await;
        assert_eq!(
            history["items"],
            json!([{"type": "delete", "revision": newest, "version": 0, "reason": "deleted"}])
        );
    }
    let mut stream = rig.watch(&format!("after={newest}")).await;
    let next = rig.put("gone", "back").await;
    let event = stream.must().await;
    assert_eq!((revision(&event), &event["created"]), (newest + 1, &json!(true)));
    assert_eq!(next, newest + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_streams_cleanly_and_soon() {
    let mut rig = Rig::start().await;
    rig.put("z", "1").await;
    let mut ndjson = rig.watch("initial").await;
    let mut sse = rig.watch_with("key=z&after=1", &[("accept", "text/event-stream")]).await;
    // Never read: it must not hold up the others.
    let unread = rig.watch("after=1&bookmarks=off").await;
    assert_eq!(ndjson.must().await["key"], json!("z"));
    assert_eq!(ndjson.must().await["type"], json!("synced"));
    let poll = rig.http.get(rig.url("/v1/watch?wait=60s")).send();
    let stop = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        tokio::time::timeout(Duration::from_secs(10), rig.node.stop()).await
    };
    let (poll, stopped) = tokio::join!(poll, stop);
    assert!(stopped.expect("it stops in time").success());
    assert_eq!(poll.unwrap().status(), 503);
    assert_eq!(ndjson.next().await, None);
    let mut sent = Vec::new();
    while let Some(block) = sse.until(b"\n\n").await {
        sent.push(block);
    }
    assert!(sent.len() >= 2, "{sent:?}");
    drop(unread);
}

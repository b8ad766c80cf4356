//! Watch bugs that etcd had, by their numbers there, from end to end on three real processes. Each is also a test of
//! the part that could have it: `watch::tests::etcd_bugs` (#15220, #15271, #17247, #17529, #18089, #20221),
//! `machine::tests` (#17247, #17780, #18667, #19179), `watch` here (#17780), and `chaos::etcd_issues` for what is no
//! matter of watches (#13766, #14370, #14685, #18055, #20271, #20418).

use crate::support::eventually;
use crate::support::members::{Client, Cluster, Outcome};
use serde_json::Value;
use std::collections::VecDeque;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(90);

/// Lines of one stream.
struct Lines {
    response: reqwest::Response,
    buffer: Vec<u8>,
    ready: VecDeque<Value>,
}

impl Lines {
    async fn open(client: &Client, query: &str) -> Self {
        let response = client.answer("GET", &format!("/v1/watch?{query}"), "").await;
        assert_eq!(response.status(), 200, "{query}");
        Self { response, buffer: Vec::new(), ready: VecDeque::new() }
    }

    /// `None` if nothing comes within `patience`.
    async fn next(&mut self, patience: Duration) -> Option<Value> {
        while self.ready.is_empty() {
            let chunk = tokio::time::timeout(patience, self.response.chunk()).await.ok()?;
            self.buffer.extend_from_slice(&chunk.unwrap().expect("the stream goes on"));
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                self.ready.push_back(serde_json::from_slice(&line).unwrap());
            }
        }
        self.ready.pop_front()
    }

    async fn must(&mut self) -> Value {
        self.next(LONG).await.expect("a line comes")
    }
}

fn revision(line: &Value) -> i64 {
    line["revision"].as_i64().unwrap()
}

async fn put(client: &Client, key: &str, value: &str) -> i64 {
    let answer: Value = client.answer("PUT", &format!("/v1/kv/{key}"), value).await.json().await.unwrap();
    answer["revision"].as_i64().unwrap_or_else(|| panic!("{answer}"))
}

/// A watch on a member that was cut off, and brought up to date by a snapshot, went back in time.
#[tokio::test(flavor = "multi_thread")]
async fn issue_15271_a_watch_on_a_member_that_takes_a_snapshot_goes_on_where_it_was() {
    const WRITES: usize = 300;
    let mut cluster = Cluster::linked(3, &["--auto-compact", "off", "--snapshot-bytes", "256KiB"]).await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    let (writer, reader) = (cluster.client(leader), cluster.client(behind));
    let first = put(&writer, "w/0", "x").await;
    eventually("the member has it", LONG, async || reader.get("w/0").await.is_some()).await;
    let mut old = Lines::open(&reader, &format!("prefix=w/&after={}", first - 1)).await;
    assert_eq!(revision(&old.must().await), first);
    cluster.links().isolate(behind, 3);
    let value = "x".repeat(8_000);
    let mut written = Vec::new();
    for at in 0..WRITES {
        written.push(put(&writer, &format!("w/{}", at % 7), &value).await);
    }
    let installs = |log: &str| log.matches("snapshot").count();
    let before = installs(&cluster.log(behind));
    cluster.links().heal();
    cluster.ready(&[0, 1, 2]).await;
    // One that begins on the member only now must tell the same.
    let mut new = Lines::open(&reader, &format!("prefix=w/&after={first}")).await;
    written.push(put(&writer, "w/last", "x").await);
    for stream in [&mut old, &mut new] {
        let (mut seen, mut told) = (0, first);
        while seen < written.len() {
            let line = stream.must().await;
            if line["type"] == "bookmark" {
                assert!(revision(&line) >= told, "a bookmark went back: {line} after {told}");
                let next = written[seen];
                assert!(revision(&line) < next, "a bookmark passed over {next}: {line}");
                told = revision(&line);
                continue;
            }
            assert_eq!((&line["type"], revision(&line)), (&"put".into(), written[seen]), "after {told}");
            (seen, told) = (seen + 1, revision(&line));
        }
    }
    println!("{} lines on snapshots in its log before, {} after", before, installs(&cluster.log(behind)));
    cluster.stop().await;
}

/// A watch on a future revision was told of old events, or that it had progressed: also on a member that lags.
#[tokio::test(flavor = "multi_thread")]
async fn issues_15220_and_20221_a_watch_in_the_future_is_silent_until_then_on_every_member() {
    let mut cluster = Cluster::linked(3, &[]).await;
    let leader = cluster.leader().await;
    let behind = (leader + 1) % 3;
    let writer = cluster.client(leader);
    let now = put(&writer, "f", "x").await;
    let start = now + 20;
    let mut streams = Vec::new();
    for member in 0..3 {
        streams.push(Lines::open(&cluster.client(member), &format!("after={start}&bookmarks=1s")).await);
    }
    cluster.links().isolate(behind, 3);
    for _ in now..start {
        put(&writer, "f", "x").await;
    }
    for (member, stream) in streams.iter_mut().enumerate() {
        let told = stream.next(Duration::from_millis(300)).await;
        // Where it is reached, that may be said.
        let fine = told.as_ref().is_none_or(|line| line["type"] == "bookmark" && revision(line) == start);
        assert!(fine && (member != behind || told.is_none()), "member {member}: {told:?}");
    }
    cluster.links().heal();
    eventually("it is written", LONG, async || cluster.client(behind).put("f", "y").await == Outcome::Done).await;
    for stream in &mut streams {
        loop {
            let line = stream.must().await;
            assert!(revision(&line) >= start, "{line} before {start}");
            if line["type"] == "put" {
                assert_eq!(revision(&line), start + 1);
                break;
            }
        }
    }
    cluster.stop().await;
}

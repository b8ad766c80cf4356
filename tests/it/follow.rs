//! `tenure watch` against a real member: what it prints, what it runs, and that neither a restart of the
//! member nor its own loses or repeats a change.

use crate::support::{Data, Node, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};

const PATIENCE: Duration = Duration::from_secs(30);

/// A running `tenure watch` (or another command that lasts).
struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(url: &str, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("TENURE_ENDPOINTS", url);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("a line comes");
        line.unwrap().expect("the command goes on")
    }

    async fn end(mut self) -> i32 {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends");
        status.unwrap().code().unwrap()
    }

    async fn interrupt(self, signal: Signal) -> i32 {
        kill_process(Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap(), signal).unwrap();
        self.end().await
    }
}

struct Store {
    url: String,
    http: reqwest::Client,
}

impl Store {
    fn at(url: String) -> Self {
        Self { url, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        let answer = self.http.put(format!("{}/v1/kv/{key}", self.url)).body(value.to_owned()).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["revision"].as_i64().unwrap()
    }

    async fn delete(&self, key: &str) -> i64 {
        let answer = self.http.delete(format!("{}/v1/kv/{key}", self.url)).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["revision"].as_i64().unwrap()
    }

    async fn compact(&self, revision: i64) {
        self.http.post(format!("{}/v1/compact?revision={revision}", self.url)).send().await.unwrap();
    }

    /// So many watches are open.
    async fn watched(&self, count: usize) {
        eventually("the watch is open", PATIENCE, async || {
            let text = self.http.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
            text.lines().any(|line| line == format!("tenure_watch_streams {count}"))
        })
        .await;
    }
}

/// A port that stays while the member behind it comes and goes.
async fn door(member: &Node) -> (String, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let target = Arc::new(Mutex::new(member.address().to_owned()));
    let current = Arc::clone(&target);
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            let address = current.lock().unwrap().clone();
            tokio::spawn(async move {
                if let Ok(mut outside) = TcpStream::connect(address).await {
                    tokio::io::copy_bidirectional(&mut inside, &mut outside).await.ok();
                }
            });
        }
    });
    (url, target)
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_printed_in_every_mode() {
    let node = Node::start().await;
    let store = Store::at(node.url());
    let first = store.put("a/1", "one").await;
    let mut human = Watch::start(&store.url, &["watch", "a/", "--prefix", "--initial"]);
    let mut json = Watch::start(&store.url, &["watch", "a/1", "-o", "ndjson", "--prev"]);
    let mut value = Watch::start(&store.url, &["watch", "--prefix", "a/", "-o", "value"]);
    let mut listing = Watch::start(&store.url, &["ls", "a/", "--watch"]);
    assert_eq!(human.line().await, format!("{first} put    a/1 one"));
    assert_eq!(listing.line().await, "a/1");
    store.watched(4).await;
    let second = store.put("a/1", "two\nlines").await;
    let third = store.delete("a/1").await;
    assert_eq!(human.line().await, format!("{second} put    a/1 two\\nlines"));
    assert_eq!(human.line().await, format!("{third} delete a/1"));
    let event: Value = serde_json::from_str(&json.line().await).unwrap();
    assert_eq!((event["revision"].as_i64(), event["previous"]["value"].as_str()), (Some(second), Some("one")));
    assert_eq!((value.line().await, value.line().await), ("two".to_owned(), "lines".to_owned()));
    assert_eq!(listing.line().await, format!("{second} put    a/1"));
    assert_eq!(listing.line().await, format!("{third} delete a/1"));
    assert_eq!(human.interrupt(Signal::INT).await, 130);
    assert_eq!(json.interrupt(Signal::TERM).await, 143);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_member_is_taken_up_where_it_was_left() {
    let data = Data::fresh();
    let mut node = Node::start_with(&data, &[]).await;
    let (url, target) = door(&node).await;
    let mut watch = Watch::start(&url, &["watch", "--prefix", "k/"]);
    let mut expected = Vec::new();
    for round in 0..3 {
        let store = Store::at(node.url());
        store.watched(1).await;
        for at in 0..20 {
            let key = format!("k/{round}-{at}");
            expected.push(format!("{} put    {key} v", store.put(&key, "v").await));
        }
        if round == 1 {
            // Told to stop, it ends the stream; killed, it breaks it.
            assert!(node.stop().await.success());
        } else {
            node.kill();
        }
        node = node.restart().await;
        // Changes that come while nobody is connected.
        let store = Store::at(node.url());
        expected.push(format!("{} put    k/between v", store.put("k/between", "v").await));
        *target.lock().unwrap() = node.address().to_owned();
    }
    for line in expected {
        assert_eq!(watch.line().await, line);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_resumes_and_compaction_is_an_exit_code() {
    let node = Node::start().await;
    let store = Store::at(node.url());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("position");
    let args = ["watch", "c", "--checkpoint", file.to_str().unwrap()];
    let mut watch = Watch::start(&store.url, &args);
    store.watched(1).await;
    let seen = store.put("c", "1").await;
    assert_eq!(watch.line().await, format!("{seen} put    c 1"));
    assert_eq!(watch.interrupt(Signal::INT).await, 130);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{seen}\n"));
    let missed = store.put("c", "2").await;
    let mut watch = Watch::start(&store.url, &args);
    assert_eq!(watch.line().await, format!("{missed} put    c 2"));
    assert_eq!(watch.interrupt(Signal::TERM).await, 143);
    let newest = store.put("c", "3").await;
    store.compact(newest).await;
    assert_eq!(Watch::start(&store.url, &args).end().await, 9);
    let mut watch = Watch::start(&store.url, &[&args[..], &["--initial"]].concat());
    assert_eq!(watch.line().await, format!("{newest} put    c 3"));
    // It keeps its file: it has to be gone before somebody else writes there.
    assert_eq!(watch.interrupt(Signal::TERM).await, 143);
    fs::write(&file, "what").unwrap();
    assert_eq!(Watch::start(&store.url, &args).end().await, 2);
    assert_eq!(Watch::start("127.0.0.1:1", &["watch", "c"]).end().await, 7);
}

/// A script that appends what it was given to a file.
fn recorder() -> (tempfile::TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let script = format!(
        "read -r line; printf '%s %s %s %s prev=%s\\n%s\\n' \"$TENURE_EVENT\" \"$TENURE_KEY\" \"$TENURE_REVISION\" \"$TENURE_VALUE\" \"$TENURE_PREV_VALUE\" \"$line\" >>{}",
        log.display()
    );
    (folder, log, script)
}

async fn logged(log: &PathBuf, lines: usize) -> Vec<String> {
    let read = || fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    eventually("the command has run", PATIENCE, async || read().len() >= lines).await;
    read()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_run_for_each_change_in_order() {
    let node = Node::start().await;
    let store = Store::at(node.url());
    let (_folder, log, script) = recorder();
    let watch = Watch::start(&store.url, &["watch", "e", "--", "sh", "-c", &script]);
    store.watched(1).await;
    let first = store.put("e", "it's \"$HOME\"").await;
    let second = store.put("e", "").await;
    let third = store.delete("e").await;
    let lines = logged(&log, 6).await;
    assert_eq!(lines[0], format!("put e {first} it's \"$HOME\" prev="));
    assert_eq!(lines[2], format!("put e {second}  prev=it's \"$HOME\""));
    assert_eq!(lines[4], format!("delete e {third}  prev="));
    let event: Value = serde_json::from_str(&lines[3]).unwrap();
    assert_eq!((event["type"].as_str(), event["revision"].as_i64()), (Some("put"), Some(second)));
    assert_eq!(watch.interrupt(Signal::INT).await, 130);
    let missing = Watch::start(&store.url, &["watch", "e", "--initial", "--after", "1", "--", "/no/such/command"]);
    assert_eq!(missing.end().await, 127);
    let closed = Watch::start(&store.url, &["watch", "e", "--after", "1", "--", "/etc/passwd"]);
    assert_eq!(closed.end().await, 126);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_changes_can_be_one_run() {
    let node = Node::start().await;
    let store = Store::at(node.url());
    let (_folder, log, script) = recorder();
    let mode = ["--mode", "latest", "--debounce", "300ms", "--", "sh", "-c", &script];
    let watch = Watch::start(&store.url, &[&["watch", "--prefix", "m/"], &mode[..]].concat());
    store.watched(1).await;
    let mut last = 0;
    for at in 0..20 {
        last = store.put("m/x", &at.to_string()).await;
    }
    let lines = logged(&log, 2).await;
    assert!(lines[0].starts_with(&format!("put m/x {last} 19 ")), "{lines:?}");
    let next = store.put("m/y", "z").await;
    let lines = logged(&log, 4).await;
    assert_eq!(lines.len(), 4, "one run for twenty changes: {lines:?}");
    assert!(lines[2].starts_with(&format!("put m/y {next} z ")), "{lines:?}");
    assert_eq!(watch.interrupt(Signal::INT).await, 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_command_is_restarted_or_signalled() {
    let node = Node::start().await;
    let store = Store::at(node.url());
    let (_folder, log, _) = recorder();
    let path = log.display();
    // The shell waits for its child, so that a trap runs at once.
    let script = format!(
        "trap 'echo ended $TENURE_VALUE >>{path}; kill $!; exit' TERM; echo began $TENURE_VALUE >>{path}; sleep 60 & wait"
    );
    let watch =
        Watch::start(&store.url, &["watch", "r", "--mode", "restart", "--debounce", "10ms", "--", "sh", "-c", &script]);
    store.watched(1).await;
    store.put("r", "1").await;
    logged(&log, 1).await;
    store.put("r", "2").await;
    assert_eq!(logged(&log, 3).await, ["began 1", "ended 1", "began 2"]);
    assert_eq!(watch.interrupt(Signal::TERM).await, 143);
    assert_eq!(logged(&log, 4).await[3], "ended 2", "the command does not outlive the watch");
    fs::remove_file(&log).unwrap();
    let script = format!(
        "trap 'echo told >>{path}' USR1; trap 'kill $!; exit 7' HUP; echo began >>{path}; while :; do sleep 60 & wait; done"
    );
    let run = ["--debounce", "10ms", "--grace", "100ms", "--", "sh", "-c", &script];
    store.watched(0).await;
    let watch = Watch::start(&store.url, &[&["watch", "r", "--mode", "signal=USR1"], &run[..]].concat());
    logged(&log, 1).await;
    store.watched(1).await;
    store.put("r", "3").await;
    assert_eq!(logged(&log, 2).await, ["began", "told"]);
    // The command does not care for SIGTERM, as a shell that waits: it is killed after the grace.
    assert_eq!(watch.interrupt(Signal::TERM).await, 143);
    store.watched(0).await;
    let watch = Watch::start(&store.url, &[&["watch", "r", "--mode", "signal=HUP"], &run[..]].concat());
    logged(&log, 3).await;
    store.watched(1).await;
    store.put("r", "4").await;
    assert_eq!(watch.end().await, 7, "the command's end is ours");
}

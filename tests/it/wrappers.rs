//! The command line's wrappers around commands, and what else is waited for there, by driving the real binary:
//! signals, exit codes, a claim that is lost, and that a command has ended before the next one begins.

use crate::support::{Node, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SOON: Duration = Duration::from_secs(30);

struct Bench {
    node: Node,
    folder: tempfile::TempDir,
    http: reqwest::Client,
}

impl Bench {
    async fn start() -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { node: Node::start().await, folder: tempfile::tempdir().unwrap(), http }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Child {
        run_at(self.node.address(), arguments)
    }

    async fn get(&self, target: &str) -> Value {
        self.http.get(format!("{}{target}", self.node.url())).send().await.unwrap().json().await.unwrap()
    }

    async fn post(&self, target: &str) -> (u16, Value) {
        let answer = self.http.post(format!("{}{target}", self.node.url())).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn delete(&self, target: &str) -> u16 {
        self.http.delete(format!("{}{target}", self.node.url())).send().await.unwrap().status().as_u16()
    }

    async fn holds(&self, lock: &str) {
        let target = format!("/v1/locks/{lock}");
        eventually("it holds", SOON, async || self.get(&target).await["held"] == true).await;
    }

    /// One stream is open: whoever opened it listens for signals by then.
    async fn is_watched(&self) {
        let url = format!("{}/metrics", self.node.url());
        let metrics = async || self.http.get(&url).send().await.unwrap().text().await.unwrap();
        eventually("it follows", SOON, async || metrics().await.contains("tenure_watch_streams 1\n")).await;
    }

    async fn waits(&self, lock: &str, count: usize) {
        let target = format!("/v1/locks/{lock}");
        let waiters = async || self.get(&target).await["waiters"].as_array().map(Vec::len) == Some(count);
        eventually("so many wait", SOON, waiters).await;
    }
}

fn run_at(address: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    command.args(["--endpoints", address]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Its exit code and what it said on either stream.
async fn ended(child: Child) -> (i32, String, String) {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = tokio::time::timeout(SOON, output).await.expect("it ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

async fn has_lines(path: &Path, count: usize) {
    eventually("the command has written", SOON, async || lines(path).len() >= count).await;
}

/// A command that notes the time, in nanoseconds, as long as it lives, and does not care for SIGTERM.
fn ticking(log: &Path) -> String {
    format!("trap '' TERM; while :; do date +%s%N >>{}; sleep 0.02; done", log.display())
}

/// A way to the member that can be cut: what is under way then gets no further.
async fn cuttable(address: String) -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (door, cut) = (listener.local_addr().unwrap().to_string(), Arc::new(AtomicBool::new(false)));
    let is_cut = Arc::clone(&cut);
    tokio::spawn(async move {
        while let Ok((inside, _)) = listener.accept().await {
            let (address, is_cut) = (address.clone(), Arc::clone(&is_cut));
            tokio::spawn(async move {
                let Ok(outside) = TcpStream::connect(address).await else { return };
                let (from_client, to_client) = inside.into_split();
                let (from_member, to_member) = outside.into_split();
                tokio::join!(pass(from_client, to_member, &is_cut), pass(from_member, to_client, &is_cut));
            });
        }
    });
    (door, cut)
}

async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, cut: &AtomicBool) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if cut.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapper_that_is_told_to_end_while_it_waits_leaves_the_queue() {
    let bench = Bench::start().await;
    assert_eq!(bench.post("/v1/locks/l?ttl=60s").await.0, 200);
    for (sent, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let waiter = bench.run(&["lock", "l", "--", "echo", "never"]);
        bench.waits("l", 1).await;
        signal(&waiter, sent);
        let (ended_with, out, _) = ended(waiter).await;
        assert_eq!((ended_with, out.as_str()), (code, ""), "{sent:?}");
        bench.waits("l", 0).await;
    }
    // And one that holds without a command gives up what it has.
    let holder = bench.run(&["lock", "free"]);
    bench.holds("free").await;
    signal(&holder, Signal::TERM);
    let (code, out, _) = ended(holder).await;
    assert!(code == 143 && out.contains("is held, token "), "{code} {out}");
    assert_eq!(bench.get("/v1/locks/free").await["held"], false);
}

/// A wrapper that reaches nobody any more has stopped its command, which does not want to stop, before the next
/// holder's begins.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_ended_before_the_next_holders_begins() {
    let bench = Bench::start().await;
    let (door, cut) = cuttable(bench.node.address().to_owned()).await;
    let (first, second) = (bench.file("first"), bench.file("second"));
    let ttl = ["--ttl", "3s", "--grace", "1s"];
    let holder = run_at(&door, &[&["lock", "l"], &ttl[..], &["--", "sh", "-c", &ticking(&first)]].concat());
    has_lines(&first, 3).await;
    let script = format!("date +%s%N >{}", second.display());
    let next = bench.run(&[&["lock", "l"], &ttl[..], &["--", "sh", "-c", &script]].concat());
    bench.waits("l", 1).await;
    cut.store(true, Ordering::SeqCst);
    let (code, _, said) = ended(holder).await;
    assert!(code == 125 && said.contains("stopping the command"), "{code} {said}");
    assert_eq!(ended(next).await.0, 0);
    let (last, began) = (lines(&first).pop().unwrap(), lines(&second).pop().unwrap());
    let (last, began): (u64, u64) = (last.parse().unwrap(), began.parse().unwrap());
    assert!(last < began, "the command went on for {} ms beside the next one", (last - began) / 1_000_000);
    println!("the command ended {} ms before the next began", (began - last) / 1_000_000);
}

/// A wrapper that stood still itself for longer than its TTL cannot stop its command in time, which is what fences are
/// for; but it does so at once when it goes on, and does not pretend to hold.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrapper_that_stood_still_ends_its_command_when_it_goes_on() {
    let bench = Bench::start().await;
    let log = bench.file("log");
    let holder = bench.run(&["lock", "l", "--ttl", "1s", "--grace", "300ms", "--", "sh", "-c", &ticking(&log)]);
    has_lines(&log, 1).await;
    signal(&holder, Signal::STOP);
    let (status, next) = bench.post("/v1/locks/l?ttl=60s&wait=20s&owner=next").await;
    assert_eq!((status, next["owner"].as_str()), (200, Some("next")));
    signal(&holder, Signal::CONT);
    assert_eq!(ended(holder).await.0, 125);
    let written = lines(&log).len();
    let state = bench.get("/v1/locks/l").await;
    assert_eq!(state["holder"]["token"], next["token"], "it released another's claim");
    assert_eq!(lines(&log).len(), written, "the command outlives its wrapper");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_loses_its_office_stands_again_unless_it_was_to_do_so_once() {
    let bench = Bench::start().await;
    let log = bench.file("log");
    // It ends as soon as it is told to.
    let script = format!(
        "echo $TENURE_ELECTION_NAME $TENURE_FENCING_TOKEN $TENURE_FENCE >>{}; while :; do sleep 0.05; done",
        log.display()
    );
    let stand = ["elect", "e", "--value", "n1:9000", "--ttl", "5s"];
    let candidate = bench.run(&[&stand[..], &["--", "sh", "-c", &script]].concat());
    has_lines(&log, 1).await;
    let observer = bench.run(&["elect", "e", "--observe", "-o", "ndjson"]);
    bench.is_watched().await;
    let leader = bench.get("/v1/elections/e").await["leader"].clone();
    assert_eq!(leader["value"], "n1:9000");
    assert_eq!(lines(&log)[0], format!("e {0} election:e={0}", leader["token"]));
    let lease = format!("/v1/leases/{}", leader["lease"].as_str().unwrap());
    assert_eq!(bench.delete(&lease).await, 200);
    has_lines(&log, 2).await;
    let again = bench.get("/v1/elections/e").await["leader"].clone();
    assert!(again["token"].as_i64() > leader["token"].as_i64(), "{again} after {leader}");
    // Told to end, it passes that on and resigns.
    signal(&candidate, Signal::TERM);
    assert_eq!(ended(candidate).await.0, 143);
    assert_eq!(bench.get("/v1/elections/e").await["leader"], Value::Null);
    signal(&observer, Signal::INT);
    let (_, seen, _) = ended(observer).await;
    assert!(seen.contains(&format!("\"token\":{}", again["token"])), "{seen}");

    let once = bench.run(&[&stand[..], &["--once", "--", "sh", "-c", &script]].concat());
    has_lines(&log, 3).await;
    let leader = bench.get("/v1/elections/e").await["leader"].clone();
    assert_eq!(bench.delete(&format!("/v1/leases/{}", leader["lease"].as_str().unwrap())).await, 200);
    assert_eq!(ended(once).await.0, 125);
    assert_eq!(lines(&log).len(), 3, "it stood again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_semaphore_lets_in_as_many_as_it_has_permits() {
    let bench = Bench::start().await;
    let log = bench.file("log");
    let script = format!("echo $TENURE_SEMAPHORE_NAME >>{}; while :; do sleep 0.05; done", log.display());
    let take = |more: &[&str]| {
        let command = ["--", "sh", "-c", script.as_str()];
        bench.run(&[&["sem", "s", "--limit", "3"], more, &command[..]].concat())
    };
    let (one, two) = (take(&["--permits", "2"]), take(&[]));
    has_lines(&log, 2).await;
    assert_eq!(bench.get("/v1/semaphores/s").await["used"], 3);
    let waiter = take(&[]);
    let waiting = async || bench.get("/v1/semaphores/s").await["waiters"].as_array().map(Vec::len) == Some(1);
    eventually("the third waits", SOON, waiting).await;
    assert_eq!(ended(bench.run(&["sem", "s", "--limit", "3", "-w", "100ms", "--", "true"])).await.0, 1);
    let (code, _, said) = ended(bench.run(&["sem", "s", "--limit", "4", "--", "true"])).await;
    assert!(code == 125 && said.contains('3'), "another limit: {code} {said}");
    signal(&two, Signal::TERM);
    assert_eq!(ended(two).await.0, 143);
    has_lines(&log, 3).await;
    assert_eq!(lines(&log), ["s", "s", "s"]);
    for child in [one, waiter] {
        signal(&child, Signal::TERM);
        assert_eq!(ended(child).await.0, 143);
    }
    assert_eq!(bench.get("/v1/semaphores/s").await["used"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_an_exit_code() {
    let bench = Bench::start().await;
    let limit = ["ratelimit", "user:7", "--limit", "2", "--per", "1h"];
    let run = async |more: &[&str]| {
        let (code, out, _) = ended(bench.run(&[&limit[..], more].concat())).await;
        (code, out.trim().to_owned())
    };
    assert_eq!(run(&["-o", "value"]).await, (0, "1".to_owned()));
    assert_eq!(run(&["--peek", "-o", "value"]).await, (0, "1".to_owned()));
    assert_eq!(run(&["-o", "value"]).await, (0, "0".to_owned()));
    assert_eq!(run(&[]).await.0, 5, "as a lock that is held");
    assert_eq!(run(&["--peek", "-o", "value"]).await, (0, "0".to_owned()));
    assert_eq!(ended(bench.run(&["ratelimit", "user:7", "--reset"])).await.0, 0);
    assert_eq!(run(&["--cost", "2", "-o", "value"]).await, (0, "0".to_owned()));
    assert_ne!(run(&["--cost", "3"]).await.0, 0, "more than there can be");
}

/// A watch that is killed between two changes: the next one takes up behind the last change that its command was
/// done with, so that each is dealt with, and only the last may be dealt with again.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_watch_goes_on_behind_its_checkpoint() {
    let bench = Bench::start().await;
    let (log, checkpoint) = (bench.file("log"), bench.file("checkpoint"));
    let script = format!("echo $TENURE_VALUE >>{}", log.display());
    let checkpoint = checkpoint.to_str().unwrap();
    let follow = || bench.run(&["watch", "k", "--after", "1", "--checkpoint", checkpoint, "--", "sh", "-c", &script]);
    let put = async |value: usize| {
        let url = format!("{}/v1/kv/k", bench.node.url());
        assert!(bench.http.put(url).body(value.to_string()).send().await.unwrap().status().is_success());
    };
    for value in 0..12 {
        put(value).await;
    }
    for round in 1..4 {
        let mut watch = follow();
        has_lines(&log, 3 * round).await;
        watch.kill().unwrap();
        watch.wait().unwrap();
    }
    // What no earlier one can have dealt with: it listens for signals by then.
    let last = follow();
    put(12).await;
    eventually("the last is dealt with", SOON, async || lines(&log).iter().any(|line| line == "12")).await;
    signal(&last, Signal::INT);
    assert_eq!(ended(last).await.0, 130);
    let done: Vec<usize> = lines(&log).iter().map(|line| line.parse().unwrap()).collect();
    let mut next = 0;
    for value in &done {
        assert!(*value <= next, "{next} was passed over: {done:?}");
        next = next.max(value + 1);
    }
    assert_eq!(next, 13);
}

//! Locks of a real server: exclusion, order, hand-over, what ends a claim, a holder that stands still,
//! and the command line's wrapper.

use crate::support::{Node, eventually};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

async fn post(client: &reqwest::Client, url: String) -> (u16, Value) {
    let answer = client.post(url).send().await.expect("an answer");
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn get(node: &Node, path: &str) -> Value {
    reqwest::get(format!("{}{path}", node.url())).await.unwrap().json().await.unwrap()
}

async fn release(client: &reqwest::Client, node: &Node, name: &str, lease: &Value) -> u16 {
    let url = format!("{}/v1/locks/{name}/claims/{}", node.url(), lease.as_str().unwrap());
    client.delete(url).send().await.unwrap().status().as_u16()
}

/// Fifty clients, one holder at a time, tokens that only grow, and nobody starves.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_exclude_each_other() {
    let node = Arc::new(Node::start().await);
    let (inside, newest, grants) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicI64::new(0)), Arc::new(AtomicUsize::new(0)));
    let clients = (0..50).map(|_| {
        let (node, inside, newest, grants) = (node.clone(), inside.clone(), newest.clone(), grants.clone());
        tokio::spawn(async move {
            let client = reqwest::Client::new();
            for _ in 0..3 {
                let (status, claim) = post(&client, format!("{}/v1/locks/one?ttl=30s&wait=60s", node.url())).await;
                assert_eq!(status, 200, "{claim}");
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold at a time");
                let token = claim["token"].as_i64().unwrap();
                assert!(newest.swap(token, Ordering::SeqCst) < token, "a token that does not grow");
                grants.fetch_add(1, Ordering::SeqCst);
                inside.fetch_sub(1, Ordering::SeqCst);
                assert_eq!(release(&client, &node, "one", &claim["lease"]).await, 200);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert_eq!(grants.load(Ordering::SeqCst), 150);
    assert_eq!(get(&node, "/v1/locks/one").await["held"], json!(false));
    let left = get(&node, "/v1/kv?prefix=_tenure/locks/&count_only").await;
    assert_eq!(left["count"], json!(0), "a claim was left behind");
}

/// Who came first is served first, and is woken by the release, not by a clock.
#[tokio::test(flavor = "multi_thread")]
async fn waiters_are_served_in_their_order_and_at_once() {
    let node = Arc::new(Node::start().await);
    let client = reqwest::Client::new();
    let (_, first) = post(&client, format!("{}/v1/locks/q?ttl=60s", node.url())).await;
    let mut waiters = Vec::new();
    for at in 0..8_usize {
        let (node, client) = (node.clone(), client.clone());
        let waiting = node.clone();
        waiters.push(tokio::spawn(async move {
            let (status, claim) =
                post(&client, format!("{}/v1/locks/q?ttl=60s&wait=60s&owner=w{at}", node.url())).await;
            assert_eq!(status, 200, "{claim}");
            let held = Instant::now();
            assert_eq!(release(&client, &node, "q", &claim["lease"]).await, 200);
            (claim["token"].as_i64().unwrap(), held)
        }));
        eventually("the waiter is queued", SOON, async || {
            get(&waiting, "/v1/locks/q").await["waiters"].as_array().unwrap().len() == at + 1
        })
        .await;
    }
    let released = Instant::now();
    assert_eq!(release(&client, &node, "q", &first["lease"]).await, 200);
    let mut last = (0, released);
    for waiter in waiters {
        let (token, held) = waiter.await.unwrap();
        assert!(token > last.0 && held >= last.1, "out of order");
        last = (token, held);
    }
    let each = last.1.duration_since(released) / 8;
    println!("hand-over including release and answer: {each:?} each of 8");
    assert!(each < Duration::from_millis(500), "{each:?}: something waits for a timer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_that_goes_away_leaves_the_queue() {
    let node = Node::start().await;
    let client = reqwest::Client::new();
    post(&client, format!("{}/v1/locks/w?ttl=60s", node.url())).await;
    for path in ["w?wait=60s", "w/hold"] {
        let request = client.post(format!("{}/v1/locks/{path}", node.url()));
        let waiting =
            tokio::spawn(async move { request.send().await.map(|mut answer| async move { answer.chunk().await }) });
        let queued = async |count| get(&node, "/v1/locks/w").await["waiters"].as_array().unwrap().len() == count;
        eventually("it waits", SOON, async || queued(1).await).await;
        waiting.abort();
        drop(waiting);
        eventually("it has left", SOON, async || queued(0).await).await;
    }
    assert_eq!(get(&node, "/v1/locks/w").await["held"], json!(true), "the holder stays");
}

/// A holder that says nothing any more loses the lock after its TTL, never before, and what it still
/// writes under its fence is refused.
#[tokio::test(flavor = "multi_thread")]
async fn an_ended_lease_hands_over_and_fences_the_former_holder() {
    let node = Node::start().await;
    let client = reqwest::Client::new();
    let began = Instant::now();
    let (_, first) = post(&client, format!("{}/v1/locks/f?ttl=1s", node.url())).await;
    let (status, second) = post(&client, format!("{}/v1/locks/f?ttl=60s&wait=30s", node.url())).await;
    assert_eq!(status, 200, "{second}");
    assert!(began.elapsed() >= Duration::from_secs(1), "handed over early");
    assert!(second["token"].as_i64() > first["token"].as_i64());
    let put = async |token: &Value| {
        let request = client.put(format!("{}/v1/kv/guarded", node.url())).header("tenure-fence", format!("f={token}"));
        request.body("x").send().await.unwrap().status().as_u16()
    };
    assert_eq!(put(&second["token"]).await, 201);
    assert_eq!(put(&first["token"]).await, 412);
    assert_eq!(put(&second["token"]).await, 200);
}

/// A wrapper as it would be started by a script; its command may use the shell.
fn wrapper(node: &Node, arguments: &[&str], script: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    command.args(["--endpoints", node.address()]).args(arguments);
    if !script.is_empty() {
        command.args(["--", "sh", "-c", script]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn ran(mut command: Command) -> (i32, String, String) {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrapper_passes_on_codes_and_says_what_is_held() {
    let node = Node::start().await;
    let say = "echo $TENURE_LOCK_NAME $TENURE_FENCING_TOKEN $TENURE_LEASE $TENURE_FENCE; exit 7";
    let (code, out, err) = ran(wrapper(&node, &["lock", "a/b", "--ttl", "10s"], say)).await;
    assert_eq!(code, 7, "{err}");
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!((words[0], words[3]), ("a/b", format!("a%2Fb={}", words[1]).as_str()), "{out}");
    assert_eq!(get(&node, "/v1/locks/a%2Fb").await["held"], json!(false), "released at the end");
    assert_eq!(ran(wrapper(&node, &["lock", "a"], "kill -9 $$")).await.0, 137);
    let mut missing = wrapper(&node, &["lock", "a"], "");
    missing.args(["--", "/nowhere/command"]);
    assert_eq!(ran(missing).await.0, 127);
    let client = reqwest::Client::new();
    post(&client, format!("{}/v1/locks/a?ttl=60s&owner=other", node.url())).await;
    let (code, _, err) = ran(wrapper(&node, &["lock", "a", "--try"], "echo no")).await;
    assert!(code == 1 && err.contains("held by other"), "{code} {err}");
    assert_eq!(ran(wrapper(&node, &["lock", "a", "-n", "-E", "75"], "echo no")).await.0, 75);
    assert_eq!(ran(wrapper(&node, &["lock", "a", "-w", "200ms"], "echo no")).await.0, 1);
    assert_eq!(get(&node, "/v1/locks/a").await["waiters"], json!([]), "gave up its place");
    assert_eq!(ran(wrapper(&node, &["sem", "s", "--limit", "2"], "exit 3")).await.0, 3);
    assert_eq!(ran(wrapper(&node, &["elect", "e", "--value", "n1"], "exit 4")).await.0, 4);
    assert_eq!(ran(wrapper(&node, &["elect", "e", "--leader"], "")).await.0, 3);
    let (code, out, _) = ran(wrapper(&node, &["lock", "ls"], "")).await;
    assert!(code == 0 && out.contains("other"), "{out}");
    assert_eq!(ran(wrapper(&node, &["lock", "break", "a"], "")).await.0, 0);
    let mut dead = Command::new(env!("CARGO_BIN_EXE_tenure"));
    dead.args(["--endpoints", "127.0.0.1:1", "lock", "a", "--", "true"]).stderr(Stdio::null());
    assert_eq!(ran(dead).await.0, 125);
}

fn kill(child: &std::process::Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

async fn code_of(mut child: std::process::Child) -> i32 {
    tokio::task::spawn_blocking(move || child.wait().unwrap().code().unwrap_or(-1)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrapper_passes_signals_on_and_stops_its_command_when_the_lock_is_lost() {
    use rustix::process::Signal;
    let node = Node::start().await;
    let held = async || get(&node, "/v1/locks/sig").await["held"] == json!(true);
    let child = wrapper(&node, &["lock", "sig"], "trap 'exit 9' USR1; while :; do sleep 0.05; done").spawn().unwrap();
    eventually("it holds", SOON, async || held().await).await;
    // The shell may not have set its trap yet: it is told until it has ended.
    let mut child = Some(child);
    let mut code = None;
    eventually("the command ends by the signal", SOON, async || {
        let running = child.as_mut().unwrap();
        if let Some(status) = running.try_wait().unwrap() {
            code = status.code();
            return true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        rustix::process::kill_process(rustix::process::Pid::from_child(running), Signal::USR1).ok();
        false
    })
    .await;
    assert!(code == Some(9) || code == Some(138), "{code:?}");
    // Taken away: the command is stopped though it ignores SIGTERM, and the wrapper says so.
    let child =
        wrapper(&node, &["lock", "sig", "--ttl", "3s", "--grace", "1s"], "trap '' TERM; while :; do sleep 0.05; done")
            .spawn()
            .unwrap();
    eventually("it holds again", SOON, async || held().await).await;
    let lease = get(&node, "/v1/locks/sig").await["holder"]["lease"].as_str().unwrap().to_owned();
    let revoked = reqwest::Client::new().delete(format!("{}/v1/leases/{lease}", node.url())).send().await.unwrap();
    assert_eq!(revoked.status(), 200);
    assert_eq!(code_of(child).await, 125);
}

/// With the server gone, the command has ended before its TTL is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_claim_cannot_be_renewed_is_stopped_in_time() {
    let mut node = Node::start().await;
    let child =
        wrapper(&node, &["lock", "cut", "--ttl", "3s", "--grace", "1s"], "trap '' TERM; while :; do sleep 0.05; done")
            .spawn()
            .unwrap();
    eventually("it holds", SOON, async || get(&node, "/v1/locks/cut").await["held"] == json!(true)).await;
    node.kill();
    let cut = Instant::now();
    assert_eq!(code_of(child).await, 125);
    assert!(
        cut.elapsed() < Duration::from_millis(3_000),
        "{:?} after the last renewal it could have had",
        cut.elapsed()
    );
}

/// P10: a holder that stands still for longer than its TTL, goes on, and writes. None of its fenced writes
/// lands after those of the next holder. `TENURE_LOCK_ROUNDS` asks for more rounds.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_stood_still_cannot_overwrite_the_next_ones_work() {
    use rustix::process::Signal;
    let rounds: usize = std::env::var("TENURE_LOCK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let node = Node::start().await;
    let client = reqwest::Client::new();
    let mut refused = 0;
    for round in 0..rounds {
        let name = format!("r{round}");
        let url = format!("{}/v1/kv/{name}", node.url());
        // The holder writes under its fence as fast as it can; -f makes curl tell a refusal.
        let script = format!(
            "while curl -sf -o /dev/null -X PUT -H \"Tenure-Fence: $TENURE_FENCE\" -d old {url}; do :; done; exit 5"
        );
        let mut holder = Command::new("sh");
        let (status, claim) = post(&client, format!("{}/v1/locks/{name}?ttl=1s", node.url())).await;
        assert_eq!(status, 200);
        holder.args(["-c", &script]).env("TENURE_FENCE", format!("{name}={}", claim["token"]));
        let mut holder = holder.spawn().unwrap();
        eventually("it writes", SOON, async || client.get(&url).send().await.unwrap().status() == 200).await;
        kill(&holder, Signal::STOP);
        let (status, next) = post(&client, format!("{}/v1/locks/{name}?ttl=30s&wait=30s", node.url())).await;
        assert_eq!(status, 200);
        let fence = format!("{name}={}", next["token"]);
        let put = client.put(&url).header("tenure-fence", fence).body("new").send().await.unwrap();
        assert_eq!(put.status(), 200);
        kill(&holder, Signal::CONT);
        let ended = tokio::task::spawn_blocking(move || holder.wait().unwrap().code()).await.unwrap();
        refused += usize::from(ended == Some(5));
        assert_eq!(client.get(&url).send().await.unwrap().text().await.unwrap(), "new", "round {round}");
    }
    assert_eq!(refused, rounds, "every stopped holder was told");
}

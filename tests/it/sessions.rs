//! Leases, locks and elections on three real processes whose leader is killed, moved, stands still or is cut off:
//! no lease ends early or stays too long, no update under a fence is lost, and tokens only grow.
//!
//! `TENURE_LEADER_CHANGES`, `TENURE_LOCK_ROUNDS` and `TENURE_STALL_SECONDS` ask for more than the short forms.

use crate::support::eventually;
use crate::support::members::Cluster;
use rand::Rng;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MEMBERS: usize = 3;
const LONG: Duration = Duration::from_secs(90);
/// Of one call, so that a member that stands still costs little.
const CALL: Duration = Duration::from_secs(1);

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn http(timeout: Duration) -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(timeout).build().unwrap()
}

fn urls(cluster: &Cluster) -> Vec<String> {
    (0..MEMBERS).map(|member| format!("http://{}", cluster.client_address(member))).collect()
}

/// A member that answers after whoever led before may lead no more.
async fn change_leader(cluster: &mut Cluster, way: usize) {
    let leader = cluster.leader().await;
    match way % 4 {
        0 => {
            let to = (leader + 1) % MEMBERS + 1;
            let url = format!("http://{}/v1/cluster/leader?to=n{to}", cluster.client_address(leader));
            let moved = http(Duration::from_secs(10)).post(url).send().await;
            assert!(moved.is_ok_and(|answer| answer.status().is_success()), "the lead is handed over");
        }
        1 => {
            cluster.kill(leader);
            let others: Vec<usize> = (0..MEMBERS).filter(|member| *member != leader).collect();
            cluster.ready(&others).await;
            cluster.restart(leader).await;
        }
        2 => {
            cluster.pause(leader);
            let others: Vec<usize> = (0..MEMBERS).filter(|member| *member != leader).collect();
            cluster.ready(&others).await;
            cluster.resume(leader);
        }
        _ => {
            cluster.links().isolate(leader, MEMBERS);
            let others: Vec<usize> = (0..MEMBERS).filter(|member| *member != leader).collect();
            cluster.ready(&others).await;
            cluster.links().heal();
        }
    }
    cluster.ready(&[0, 1, 2]).await;
}

/// What a client knows of its lease: until when it lives, by the client's own clock.
#[derive(Debug, Clone, Copy)]
struct Promise {
    /// When the last acknowledged renewal was sent.
    sent: Instant,
}

const TTL: Duration = Duration::from_secs(10);

/// Keeps one lease alive through whoever answers.
async fn keeper(id: usize, urls: Vec<String>, stop: Arc<AtomicBool>, renewals: Arc<AtomicUsize>) -> Promise {
    let http = http(CALL);
    let begun = Instant::now();
    let (mut promise, mut attached) = (None, false);
    for at in id.. {
        let url = &urls[at % urls.len()];
        let sent = Instant::now();
        let request = match promise {
            None => http.post(format!("{url}/v1/leases?ttl=10s&id={:x}", id + 1)),
            Some(_) if !attached => http.put(format!("{url}/v1/kv/lease/{id}?lease={:x}", id + 1)),
            Some(_) => http.post(format!("{url}/v1/leases/{:x}/keepalive", id + 1)),
        };
        match (request.send().await.map(|answer| answer.status().as_u16()), promise) {
            (Ok(201), None) => promise = Some(Promise { sent }),
            // A grant whose first answer was lost: it is there since then.
            (Ok(409), None) => promise = Some(Promise { sent: begun }),
            (Ok(200 | 201), Some(_)) if !attached => attached = true,
            (Ok(200), Some(_)) => {
                renewals.fetch_add(1, Ordering::Relaxed);
                promise = Some(Promise { sent });
            }
            (Ok(404), Some(promise)) => {
                let left = (promise.sent + TTL).saturating_duration_since(Instant::now());
                panic!("lease {id} is gone {left:?} before its time, though it was kept alive all the time");
            }
            (Ok(503 | 504) | Err(_), _) => {}
            (Ok(other), _) => panic!("lease {id}: status {other}"),
        }
        if attached && stop.load(Ordering::SeqCst) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    promise.unwrap()
}

/// P9: kept alive through changes of leader, no lease ends; let go, none ends before its TTL and all are gone soon
/// after it.
#[tokio::test(flavor = "multi_thread")]
async fn leases_that_are_kept_alive_outlive_every_leader() {
    const LEASES: usize = 30;
    let changes = setting("TENURE_LEADER_CHANGES", 4);
    let mut cluster = Cluster::linked(MEMBERS, &[]).await;
    let (stop, renewals) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let keepers: Vec<_> = (0..LEASES)
        .map(|id| tokio::spawn(keeper(id, urls(&cluster), Arc::clone(&stop), Arc::clone(&renewals))))
        .collect();
    let count = async |cluster: &Cluster| {
        let leader = cluster.leader().await;
        let answer = cluster.client(leader).answer("GET", "/v1/kv?prefix=lease/&count_only", "").await;
        answer.json::<Value>().await.unwrap()["count"].as_u64()
    };
    eventually("all leases have their key", LONG, async || count(&cluster).await == Some(LEASES as u64)).await;
    for change in 0..changes {
        change_leader(&mut cluster, change).await;
        assert_eq!(count(&cluster).await, Some(LEASES as u64), "after change {change}");
        assert!(!keepers.iter().any(|keeper| keeper.is_finished()), "a keeper gave up");
    }
    stop.store(true, Ordering::SeqCst);
    let mut promises = Vec::new();
    for keeper in keepers {
        promises.push(keeper.await.unwrap());
    }
    let client = cluster.client(0);
    let last = promises.iter().map(|promise| promise.sent).max().unwrap();
    // The oracle's bound with the default election timeout, and what a busy machine adds.
    let bound = last + TTL + Duration::from_millis(2 * 600 + 1000) + Duration::from_secs(8);
    let mut latest = Duration::ZERO;
    loop {
        let page: Value = client.answer("GET", "/v1/kv?prefix=lease/&keys_only", "").await.json().await.unwrap();
        let now = Instant::now();
        let there: Vec<&str> = page["items"].as_array().unwrap().iter().map(|kv| kv["key"].as_str().unwrap()).collect();
        for (id, promise) in promises.iter().enumerate() {
            let gone = !there.contains(&format!("lease/{id}").as_str());
            assert!(!gone || now >= promise.sent + TTL, "lease {id} ended {:?} early", promise.sent + TTL - now);
        }
        if there.is_empty() {
            latest = latest.max(now.saturating_duration_since(last + TTL));
            break;
        }
        assert!(now < bound, "{there:?} are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "{changes} changes of leader, {} answers to {LEASES} leases, none ended early, the last {latest:?} late",
        renewals.load(Ordering::Relaxed)
    );
}

/// Delays every flush of a process until it is let go.
struct Stall(std::process::Child);

impl Stall {
    /// `None` where no process can be traced.
    fn of(pid: u32) -> Option<Self> {
        use std::io::BufRead;
        let mut strace = std::process::Command::new("strace");
        strace.args(["-f", "-q", "-q", "-e", "trace=fdatasync,fsync", "-o", "/dev/null", "-p", &pid.to_string()]);
        strace.args(["-e", "inject=fdatasync,fsync:delay_enter=120000000"]);
        strace.stderr(std::process::Stdio::piped());
        let mut child = strace.spawn().ok()?;
        let traced = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        let began = Instant::now();
        while !traced() {
            if child.try_wait().ok()?.is_some() || began.elapsed() > Duration::from_secs(10) {
                let lines = std::io::BufReader::new(child.stderr.take()?).lines();
                println!("strace: {:?}", lines.map_while(Result::ok).collect::<Vec<_>>());
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self(child))
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A leader whose disk does not answer gives the lead away within two seconds, and no lease that is kept alive ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_stands_still_takes_no_lease_with_it() {
    const LEASES: usize = 20;
    let stall = Duration::from_secs(u64::try_from(setting("TENURE_STALL_SECONDS", 12)).unwrap());
    let mut cluster = Cluster::linked(MEMBERS, &[]).await;
    let (stop, renewals) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let keepers: Vec<_> = (0..LEASES)
        .map(|id| tokio::spawn(keeper(id, urls(&cluster), Arc::clone(&stop), Arc::clone(&renewals))))
        .collect();
    let there = async |client: &crate::support::members::Client| {
        let answer = client.try_answer("GET", "/v1/kv?prefix=lease/&count_only", "").await.ok()?;
        answer.json::<Value>().await.ok()?["count"].as_u64()
    };
    eventually("all leases have their key", LONG, async || there(&cluster.client(0)).await == Some(LEASES as u64))
        .await;
    let leader = cluster.leader().await;
    let pid = cluster.links().pids().lock().unwrap()[leader].unwrap();
    let Some(stalled) = Stall::of(pid) else {
        println!("skipped: no process can be traced here");
        return;
    };
    let (other, began) = (cluster.client((leader + 1) % MEMBERS), Instant::now());
    // Something to flush.
    let writer = cluster.client((leader + 2) % MEMBERS);
    let write = tokio::spawn(async move { writer.put("beside", "x").await });
    let former = format!("n{}", leader + 1);
    eventually("another leads", LONG, async || {
        let status = other.try_answer("GET", "/v1/status", "").await;
        let Ok(status) = status else { return false };
        let status = status.json::<Value>().await.unwrap_or_default();
        status["leader"].as_str().is_some_and(|name| name != former)
    })
    .await;
    let moved = began.elapsed();
    println!("the lead was moved {moved:?} after the disk stood still");
    while began.elapsed() < stall {
        assert_eq!(there(&other).await, Some(LEASES as u64), "a lease ended during the stall");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(stalled);
    drop(write.await.unwrap());
    cluster.ready(&[0, 1, 2]).await;
    assert_eq!(there(&other).await, Some(LEASES as u64), "a lease ended after the stall");
    assert!(!keepers.iter().any(|keeper| keeper.is_finished()), "a keeper gave up");
    stop.store(true, Ordering::SeqCst);
    for keeper in keepers {
        keeper.await.unwrap();
    }
    // Two seconds on a quiet machine; this one may be busy.
    assert!(moved < Duration::from_secs(10), "the lead was moved after {moved:?}");
    cluster.stop().await;
}

#[derive(Debug, Clone, Copy)]
struct Kind {
    /// Of the routes.
    root: &'static str,
    /// Before a name in a fence.
    fence: &'static str,
    asks: &'static str,
}

const LOCK: Kind = Kind { root: "locks", fence: "", asks: "ttl=2s&wait=5s" };
const ELECTION: Kind = Kind { root: "elections", fence: "election:", asks: "ttl=2s&wait=5s&value=me" };

/// What contenders agree on.
#[derive(Debug, Default)]
struct Arena {
    grants: AtomicUsize,
    refused: AtomicUsize,
    written: AtomicUsize,
    tokens: Mutex<Vec<i64>>,
}

/// Waits until a claim has ended, or nobody can say for long.
async fn gone(http: &reqwest::Client, url: &str) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if http.get(url).send().await.is_ok_and(|answer| answer.status() == 404) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Claims, reads, sometimes sleeps through its TTL, and writes one more under its fence.
async fn contend(kind: Kind, urls: Vec<String>, rounds: usize, arena: Arc<Arena>) {
    let (http, patient) = (http(CALL), http(Duration::from_secs(8)));
    while arena.grants.load(Ordering::SeqCst) < rounds {
        let url = &urls[rand::rng().random_range(0..urls.len())];
        let claim = patient.post(format!("{url}/v1/{}/x?{}", kind.root, kind.asks)).send().await;
        let Ok(claim) = claim else { continue };
        if claim.status() != 200 {
            continue;
        }
        let Ok(claim) = claim.json::<Value>().await else { continue };
        let token = claim["token"].as_i64().unwrap();
        let grant = arena.grants.fetch_add(1, Ordering::SeqCst);
        arena.tokens.lock().unwrap().push(token);
        // Each leader gives the claim its whole TTL anew, so only who looks knows that it has gone.
        if grant % 6 == 5 {
            gone(&http, &format!("{url}/v1/{}/x/claims/{}", kind.root, claim["lease"].as_str().unwrap())).await;
        }
        let mut fenced = false;
        for _ in 0..3 {
            let read = http.get(format!("{url}/v1/kv/guarded-{}", kind.root)).send().await;
            let value: u64 = match read {
                Ok(answer) if answer.status() == 404 => 0,
                Ok(answer) if answer.status() == 200 => match answer.text().await {
                    Ok(text) => text.split(':').next_back().unwrap().parse().unwrap(),
                    Err(_) => break,
                },
                _ => break,
            };
            let sleeps = rand::rng().random_bool(0.15);
            if sleeps {
                tokio::time::sleep(Duration::from_millis(2500)).await;
            }
            let write = http.put(format!("{url}/v1/kv/guarded-{}", kind.root));
            let write = write.header("tenure-fence", format!("{}x={token}", kind.fence));
            match write.body(format!("{token}:{}", value + 1)).send().await.map(|answer| answer.status().as_u16()) {
                Ok(200 | 201) => drop(arena.written.fetch_add(1, Ordering::SeqCst)),
                Ok(412) => {
                    arena.refused.fetch_add(1, Ordering::SeqCst);
                    fenced = true;
                    break;
                }
                // What became of it is found out by whoever reads next.
                _ => break,
            }
        }
        if !fenced && rand::rng().random_bool(0.8) {
            let lease = claim["lease"].as_str().unwrap();
            // Otherwise the TTL gives it up.
            http.delete(format!("{url}/v1/{}/x/claims/{lease}", kind.root)).send().await.ok();
        }
    }
}

/// P10: each accepted write continues the one before it, and tokens never go back.
async fn exclusion(kind: Kind) {
    let rounds = setting("TENURE_LOCK_ROUNDS", 25);
    let mut cluster = Cluster::linked(MEMBERS, &[]).await;
    let arena = Arc::new(Arena::default());
    let contenders: Vec<_> =
        (0..5).map(|_| tokio::spawn(contend(kind, urls(&cluster), rounds, Arc::clone(&arena)))).collect();
    let mut changes = 0;
    while arena.grants.load(Ordering::SeqCst) < rounds {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        change_leader(&mut cluster, changes).await;
        changes += 1;
    }
    for contender in contenders {
        contender.await.unwrap();
    }
    let client = cluster.client(0);
    let (mut newest, mut before) = (Vec::new(), String::new());
    loop {
        let page = client.answer("GET", &format!("/v1/history/guarded-{}?limit=1000{before}", kind.root), "").await;
        let page: Value = page.json().await.unwrap();
        newest.extend(page["items"].as_array().unwrap().iter().map(|item| item["value"].as_str().unwrap().to_owned()));
        if page["more"] != json!(true) {
            break;
        }
        before = format!("&before={}", page["next_before"]);
    }
    let mut last = (0, 0);
    for value in newest.iter().rev() {
        let (token, number) = value.split_once(':').unwrap();
        let (token, number): (i64, u64) = (token.parse().unwrap(), number.parse().unwrap());
        assert!(token >= last.0, "token {token} wrote after {}", last.0);
        assert_eq!(number, last.1 + 1, "an update was lost: {value} after {last:?}");
        last = (token, number);
    }
    let written = arena.written.load(Ordering::SeqCst);
    assert!(newest.len() >= written, "{written} acknowledged writes, {} are there", newest.len());
    let mut tokens = arena.tokens.lock().unwrap().clone();
    let grants = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), grants, "one token was given twice");
    let refused = arena.refused.load(Ordering::SeqCst);
    println!("{grants} grants, {written} writes, {refused} refused by their fence, {changes} changes of leader");
    assert!(refused > 0 && written > 0, "nobody was refused: nothing was tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_lock_no_update_is_lost_whoever_leads() {
    exclusion(LOCK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_leaders_of_an_election_are_told_apart_by_their_tokens() {
    exclusion(ELECTION).await;
}

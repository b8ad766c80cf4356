//! Clusters of real processes: what survives the loss of a member, and what an operator does to them.

use crate::support::eventually;
use crate::support::members::{Cluster, NO_ANSWER, Outcome};
use reqwest::StatusCode;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// Writers that note what became of each write, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    writers: Vec<tokio::task::JoinHandle<Vec<(String, Outcome, Duration)>>>,
}

impl Load {
    /// One writer through each of these members.
    fn start(cluster: &Cluster, through: &[usize], tag: &str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let writers = through.iter().enumerate().map(|(at, &member)| {
            let (stop, done) = (stop.clone(), done.clone());
            let (client, tag) = (cluster.client(member), format!("{tag}-{at}-{member}"));
            tokio::spawn(async move {
                let mut seen = Vec::new();
                for i in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let key = format!("{tag}-{i}");
                    let began = Instant::now();
                    let outcome = client.put(&key, "v").await;
                    match outcome {
                        Outcome::Done => {
                            done.fetch_add(1, Ordering::SeqCst);
                        }
                        Outcome::NotDone(_) | Outcome::Unknown(_) => {
                            tokio::time::sleep(Duration::from_millis(10)).await
                        }
                    }
                    seen.push((key, outcome, began.elapsed()));
                }
                seen
            })
        });
        let writers = writers.collect();
        Self { stop, done, writers }
    }

    async fn has_done(&self, some: usize) {
        eventually("writes are done", LONG, async || self.done.load(Ordering::SeqCst) >= some).await;
    }

    async fn end(self) -> Vec<(String, Outcome, Duration)> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for writer in self.writers {
            all.extend(writer.await.unwrap());
        }
        all
    }
}

/// What was acknowledged is there, and what certainly did not happen is not.
async fn holds(cluster: &Cluster, member: usize, writes: &[(String, Outcome, Duration)]) {
    let client = cluster.client(member);
    for (key, outcome, _) in writes {
        let there = client.get(key).await.is_some();
        match outcome {
            Outcome::Done => assert!(there, "{key} was acknowledged and is lost"),
            Outcome::NotDone(why) => assert!(!there, "{key} was said not to have happened ({why}), and is there"),
            Outcome::Unknown(_) => {}
        }
    }
}

fn count(writes: &[(String, Outcome, Duration)]) -> (usize, usize, usize) {
    let done = writes.iter().filter(|(_, outcome, _)| *outcome == Outcome::Done).count();
    let unknown = writes.iter().filter(|(_, outcome, _)| matches!(outcome, Outcome::Unknown(_))).count();
    (done, unknown, writes.len() - done - unknown)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_member_answers_everything_and_all_end_with_one_hash() {
    let mut cluster = Cluster::start(3, &[]).await;
    for writer in 0..3 {
        let key = format!("by-{writer}");
        assert_eq!(cluster.client(writer).put(&key, "v").await, Outcome::Done);
        for reader in 0..3 {
            let answer = cluster.client(reader).answer("GET", &format!("/v1/kv/{key}"), "").await;
            assert_eq!(answer.status(), StatusCode::OK, "written through {writer}, read through {reader}");
            assert_eq!(answer.headers()["tenure-served-by"], format!("n{}", reader + 1).as_str());
            assert!(answer.headers().contains_key("tenure-leader") && answer.headers().contains_key("tenure-term"));
        }
    }
    let writes = Load::start(&cluster, &[0, 0, 1, 1, 2, 2], "load");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let writes = writes.end().await;
    let (done, unknown, refused) = count(&writes);
    assert!(done > 50 && unknown == 0 && refused == 0, "{done} done, {unknown} unknown, {refused} refused");
    let revision = cluster.status(0).await["revision"].as_i64().unwrap();
    for member in 0..3 {
        let target = format!("/v1/kv/by-0?consistency=stale&min_revision={revision}");
        assert_eq!(cluster.client(member).answer("GET", &target, "").await.status(), StatusCode::OK);
    }
    cluster.one_hash(&[0, 1, 2]).await;
    // Repeated with its key through another member, a write is not done again.
    let add = |member: usize| {
        let client = cluster.client(member);
        async move { client.add_once("/v1/counters/c?add=1", "one").await }
    };
    assert_eq!(add(0).await["value"], add(1).await["value"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_go_on_when_the_leader_is_killed() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    let load = Load::start(&cluster, &others, "killed");
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.kill(leader);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let writes = load.end().await;
    let (done, unknown, refused) = count(&writes);
    assert!(done > 20, "{done} done, {unknown} unknown, {refused} refused");
    let longest = writes.iter().map(|(_, _, took)| *took).max().unwrap();
    println!("longest write over the failover: {longest:?}; {done} done, {unknown} unknown, {refused} refused");
    assert!(longest < Duration::from_secs(3), "writes stood still for {longest:?}");
    holds(&cluster, others[0], &writes).await;
    cluster.restart(leader).await;
    holds(&cluster, leader, &writes).await;
    cluster.one_hash(&[0, 1, 2]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_of_the_leader_fails_no_write_of_the_others() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|member| *member != leader).collect();
    let load = Load::start(&cluster, &others, "planned");
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.terminate(leader).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let writes = load.end().await;
    let failed: Vec<_> = writes.iter().filter(|(_, outcome, _)| *outcome != Outcome::Done).collect();
    let longest = writes.iter().map(|(_, _, took)| *took).max().unwrap();
    println!("longest write over the hand-over: {longest:?} of {}", writes.len());
    assert!(failed.is_empty(), "{failed:?}");
    assert!(longest < Duration::from_secs(1), "handing over took {longest:?}");
    cluster.restart(leader).await;
    holds(&cluster, leader, &writes).await;
    cluster.one_hash(&[0, 1, 2]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_leaves_no_write_in_doubt_that_the_stopping_member_answers() {
    const WRITERS: usize = 8;
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    for stopping in [leader, (leader + 1) % 3] {
        let load = Load::start(&cluster, &[stopping; WRITERS], &format!("stopped-{stopping}"));
        load.has_done(20 * WRITERS).await;
        cluster.terminate(stopping).await;
        let writes = load.end().await;
        let is_in_doubt = |outcome: &Outcome| matches!(outcome, Outcome::Unknown(why) if !why.starts_with(NO_ANSWER));
        let in_doubt: Vec<_> = writes.iter().filter(|(_, outcome, _)| is_in_doubt(outcome)).collect();
        assert!(in_doubt.is_empty(), "{in_doubt:?}");
        cluster.restart(stopping).await;
        holds(&cluster, stopping, &writes).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_members_stop_soon_though_requests_wait_for_a_leader() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let left = (leader + 1) % 3;
    cluster.terminate(leader).await;
    cluster.kill((leader + 2) % 3);
    let client = cluster.client(left);
    eventually("the lost leader is noticed", LONG, async || cluster_leader(&client).await.is_null()).await;
    let ask = |method: &'static str, target: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.answer(method, target, "").await })
    };
    let write = ask("PUT", "/v1/kv/waits?timeout=1m");
    let read = ask("GET", "/v1/kv/waits?timeout=1m&consistency=linearizable");
    eventually("the write waits", LONG, async || {
        let metrics = String::from_utf8(client.bytes("/metrics").await).unwrap();
        metrics.contains("tenure_raft_proposals_pending 1")
    })
    .await;
    let began = Instant::now();
    cluster.terminate(left).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for (request, applied) in [(write, Value::from("no")), (read, Value::Null)] {
        let answer = request.await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json::<Value>().await.unwrap()["applied"], applied);
    }
    for member in 0..3 {
        cluster.relaunch(member);
    }
    cluster.ready(&[0, 1, 2]).await;
    assert_eq!(cluster.client(left).get("waits").await, None);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_serves_no_stale_linearizable_read() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let other = (leader + 1) % 3;
    assert_eq!(cluster.client(leader).put("k", "old").await, Outcome::Done);
    cluster.pause(leader);
    let began = Instant::now();
    while cluster.client(other).put("k", "new").await != Outcome::Done {
        assert!(began.elapsed() < LONG, "no new leader");
    }
    // Reads are on their way before it wakes.
    let client = cluster.client(leader);
    let reads: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("k").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.resume(leader);
    for read in reads {
        let value = read.await.unwrap();
        assert!(value.is_none() || value.as_deref() == Some("new"), "a stale read: {value:?}");
    }
    let after = cluster.client(leader);
    eventually("the paused member reads again", LONG, async || after.get("k").await.as_deref() == Some("new")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_a_follower_writes_nothing_and_says_so() {
    without_a_majority(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_the_leader_writes_nothing_and_says_so() {
    without_a_majority(0).await;
}

/// Only the member that many places behind the leader is left.
async fn without_a_majority(behind: usize) {
    let mut cluster = Cluster::start(3, &[]).await;
    assert_eq!(cluster.client(0).put("before", "v").await, Outcome::Done);
    let leader = cluster.leader().await;
    let left = (leader + behind) % 3;
    for member in (0..3).filter(|member| *member != left) {
        cluster.kill(member);
    }
    let client = cluster.client(left);
    eventually("the lost leader is noticed", LONG, async || cluster_leader(&client).await.is_null()).await;
    eventually("the metrics say so", LONG, async || {
        let metrics = String::from_utf8(client.bytes("/metrics").await).unwrap();
        metrics.contains("\ntenure_raft_has_leader 0") && metrics.contains("\ntenure_raft_is_leader 0")
    })
    .await;
    let own: Value =
        client.answer("GET", &format!("/v1/cluster/members/n{}", left + 1), "").await.json().await.unwrap();
    assert_eq!(own["state"], "candidate");
    let refused = client.answer("PUT", "/v1/kv/lost?timeout=1s", "v").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let problem: Value = refused.json().await.unwrap();
    assert_eq!((&problem["code"], &problem["applied"]), (&"no-leader".into(), &"no".into()), "{problem}");
    let read = client.answer("GET", "/v1/kv/before?timeout=1s", "").await;
    assert!(!read.status().is_success(), "a linearizable read without a majority");
    let stale = client.answer("GET", "/v1/kv/before?consistency=stale", "").await;
    assert_eq!((stale.status(), stale.headers().get("tenure-leader")), (StatusCode::OK, None));
    let bound = client.answer("GET", "/v1/kv/before?consistency=stale&max_staleness=10ms&timeout=1s", "").await;
    assert_eq!(bound.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(bound.json::<Value>().await.unwrap()["code"], "too-stale");
    for member in (0..3).filter(|member| *member != left) {
        cluster.relaunch(member);
    }
    cluster.ready(&[0, 1, 2]).await;
    assert_eq!(client.get("before").await.as_deref(), Some("v"));
    assert_eq!(client.get("lost").await, None);
    cluster.stop().await;
}

async fn cluster_leader(client: &crate::support::members::Client) -> Value {
    client.answer("GET", "/v1/status", "").await.json::<Value>().await.unwrap()["leader"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_grows_to_three_without_a_failed_write_and_shrinks_again() {
    let mut cluster = Cluster::start(1, &[]).await;
    let load = Load::start(&cluster, &[0, 0], "grown");
    for _ in 0..2 {
        let member = cluster.join().await;
        let promoted = format!("/v1/cluster/members/n{}/promote?wait=30s", member + 1);
        let answer = cluster.client(0).answer("POST", &promoted, "").await;
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let writes = load.end().await;
    let failed: Vec<_> = writes.iter().filter(|(_, outcome, _)| *outcome != Outcome::Done).collect();
    assert!(failed.is_empty() && writes.len() > 50, "{failed:?} of {}", writes.len());
    let seen: Value = cluster.client(2).answer("GET", "/v1/cluster", "").await.json().await.unwrap();
    assert_eq!((&seen["quorum"], &seen["tolerates"], &seen["healthy"]), (&2.into(), &1.into(), &true.into()), "{seen}");
    cluster.one_hash(&[0, 1, 2]).await;
    // The first member may go: the others have all.
    cluster.kill(0);
    holds(&cluster, 1, &writes).await;
    cluster.restart(0).await;
    // The leader itself is removed, through another member.
    let leader = cluster.leader().await;
    let other = (leader + 1) % 3;
    let removed = format!("/v1/cluster/members/n{}", leader + 1);
    let answer = cluster.client(other).answer("DELETE", &removed, "").await;
    assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
    assert_eq!(cluster.client(other).put("after", "v").await, Outcome::Done);
    let why = cluster.ended_with(leader).await;
    assert!(why.contains("was removed from its cluster"), "{why}");
    let seen: Value = cluster.client(other).answer("GET", "/v1/cluster/members", "").await.json().await.unwrap();
    assert_eq!(seen["members"].as_array().unwrap().len(), 2, "{seen}");
    // Of two, one that does not answer must not leave: the other could not go on.
    let last = (leader + 2) % 3;
    cluster.kill(last);
    eventually("its silence is noticed", LONG, async || {
        let target = format!("/v1/cluster/members/n{}?timeout=2s", other + 1);
        let answer = cluster.client(other).answer("DELETE", &target, "").await;
        !answer.status().is_success()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_far_behind_is_brought_up_by_a_snapshot_and_replaces_a_lost_member() {
    let mut cluster = Cluster::start(3, &["--snapshot-bytes", "32KiB"]).await;
    let value = "x".repeat(4096);
    for i in 0..60 {
        assert_eq!(cluster.client(i % 3).put(&format!("k{i}"), &value).await, Outcome::Done);
    }
    // A wiped member must not come back under its name.
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    cluster.kill(lost);
    cluster.wipe(lost);
    cluster.relaunch(lost);
    let why = cluster.ended_with(lost).await;
    assert!(why.contains("lost its disk") || why.contains("has lost"), "{why}");
    let newcomer = cluster.join().await;
    let status = cluster.status(newcomer).await;
    assert_eq!(status["learner"], true, "{status}");
    eventually("the newcomer has it all", LONG, async || {
        cluster.client(newcomer).answer("GET", "/v1/kv/k59?consistency=stale", "").await.status() == StatusCode::OK
    })
    .await;
    let target = format!("/v1/cluster/members/n{}/replace", lost + 1);
    let body = format!(r#"{{"name":"n{}","peer_url":"{}"}}"#, newcomer + 1, cluster.peer_url(newcomer));
    let answer = cluster.client(leader).answer("POST", &target, &body).await;
    assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
    let seen: Value = cluster.client(newcomer).answer("GET", "/v1/cluster", "").await.json().await.unwrap();
    assert_eq!((&seen["quorum"], &seen["healthy"]), (&2.into(), &true.into()), "{seen}");
    let rest: Vec<usize> = (0..4).filter(|member| *member != lost).collect();
    cluster.one_hash(&rest).await;
    // With the newcomer the cluster again bears the loss of a member.
    cluster.kill(leader);
    assert_eq!(cluster.client(newcomer).put("after", "v").await, Outcome::Done);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_where_it_is_told() {
    let mut cluster = Cluster::start(3, &[]).await;
    for to in [1, 2, 0] {
        let answer = cluster.client(0).answer("POST", &format!("/v1/cluster/leader?to=n{}", to + 1), "").await;
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
        assert_eq!(cluster.leader().await, to);
        assert_eq!(cluster.client(to).put("k", "v").await, Outcome::Done);
    }
    let unknown = cluster.client(0).answer("POST", "/v1/cluster/leader?to=n9", "").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_know_only_one_find_each_other() {
    let mut cluster = Cluster::expecting(3).await;
    for member in 0..3 {
        assert_eq!(cluster.client(member).put(&format!("k{member}"), "v").await, Outcome::Done);
    }
    cluster.one_hash(&[0, 1, 2]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_the_peer_port_are_told_and_hurt_nobody() {
    let mut cluster = Cluster::start(3, &[]).await;
    let http = reqwest::Client::new();
    let answer = http.get(format!("{}/v1/kv/a", cluster.peer_url(0))).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
    assert!(answer.text().await.unwrap().contains("--listen-client"));
    assert!(cluster.log(0).contains("peer port"), "one line says what to correct");
    // Garbage, and a gRPC frame that promises more than it may, close a connection and nothing else.
    for bytes in [&b"\x00\x01\x02garbage\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff"] {
        cluster.send_raw(0, bytes).await;
    }
    assert_eq!(cluster.client(0).put("a", "v").await, Outcome::Done);
    // A member of another cluster is refused by both.
    let mut other = Cluster::start(1, &[]).await;
    let stranger = other.join_url(&cluster.peer_url(1)).await;
    assert!(stranger.is_err(), "a member of one cluster was taken into another");
    other.stop().await;
    cluster.stop().await;
}

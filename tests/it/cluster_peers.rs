//! Members that do not belong together, cannot be reached, have moved, or are wanted by two operators at once.

use crate::support::eventually;
use crate::support::members::{Client, Cluster, Outcome};
use reqwest::StatusCode;
use serde_json::Value;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
/// Peers are tried many times in this.
const A_WHILE: Duration = Duration::from_secs(3);

async fn problem(client: &Client, method: &str, target: &str) -> (StatusCode, Value) {
    let answer = client.answer(method, target, "").await;
    let status = answer.status();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or(Value::Null))
}

async fn added(client: &Client, name: &str, peer_url: &str) {
    let target = format!("/v1/cluster/members?name={name}&peer_url={peer_url}");
    let answer = client.answer("POST", &target, "").await;
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

fn lines<'a>(log: &'a str, with: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(with)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_do_not_belong_here_are_refused_with_one_line_that_says_what_to_correct() {
    let (mut here, mut there) = tokio::join!(Cluster::start(1, &[]), Cluster::start(1, &[]));
    let client = there.client(0);
    // Registered with the address of another cluster's member, and with a client's port.
    added(&client, "foreign", &here.peer_url(0)).await;
    added(&client, "misdirected", &format!("http://{}", here.client_address(0))).await;
    let said = async |cluster: &Cluster, text: &str| {
        eventually(text, LONG, async || !lines(&cluster.log(0), text).is_empty()).await;
    };
    said(&there, "cluster id differs").await;
    said(&there, "is one of the addresses a client port").await;
    said(&here, "a member was refused at the peer port: cluster id differs").await;
    // A browser, or a client with the wrong port, again and again.
    let http = reqwest::Client::new();
    for _ in 0..20 {
        let answer = http.get(format!("{}/v1/kv/a", here.peer_url(0))).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
        tokio::time::sleep(A_WHILE / 20).await;
    }
    for (log, text) in [
        (here.log(0), "a member was refused at the peer port"),
        (here.log(0), "a client came to the peer port"),
        (there.log(0), "cluster id differs"),
        (there.log(0), "is one of the addresses a client port"),
    ] {
        assert_eq!(lines(&log, text).len(), 1, "{text:?} is said once: {log}");
    }
    assert!(lines(&here.log(0), "cluster id differs")[0].contains("correct the peer URLs"), "{}", here.log(0));
    for cluster in [&here, &there] {
        assert_eq!(cluster.client(0).put("k", "v").await, Outcome::Done);
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_cannot_be_reached_is_not_waited_for() {
    let mut cluster = Cluster::start(1, &[]).await;
    let learner = cluster.join().await;
    let client = cluster.client(0);
    assert_eq!(client.put("k", "v").await, Outcome::Done);
    cluster.kill(learner);
    added(&client, "absent", &cluster.peer_url(learner)).await;
    for name in [format!("n{}", learner + 1), "absent".to_owned()] {
        let began = Instant::now();
        let target = format!("/v1/cluster/members/{name}/promote?wait=60s");
        let (status, problem) = problem(&client, "POST", &target).await;
        assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &"learner-behind".into()), "{problem}");
        assert!(problem["lag_entries"].is_u64(), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("cannot be reached"), "{problem}");
        assert!(began.elapsed() < Duration::from_secs(20), "it was waited for: {:?}", began.elapsed());
    }
    cluster.restart(learner).await;
    let target = format!("/v1/cluster/members/n{}/promote?wait=30s", learner + 1);
    eventually("it is heard again and promoted", LONG, async || {
        client.answer("POST", &target, "").await.status() == StatusCode::OK
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_comes_back_at_other_addresses_is_found_there() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let (moved, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.terminate(moved).await;
    assert_eq!(cluster.client(leader).put("meanwhile", "v").await, Outcome::Done);
    cluster.readdress(moved);
    cluster.restart(moved).await;
    assert_eq!(cluster.client(moved).get("meanwhile").await.as_deref(), Some("v"));
    for through in [leader, moved, other] {
        let target = format!("/v1/cluster/members/n{}", moved + 1);
        eventually("the membership has its URLs", LONG, async || {
            let seen: Value = cluster.client(through).answer("GET", &target, "").await.json().await.unwrap();
            let client_url = format!("http://{}", cluster.client_address(moved));
            seen["peer_url"] == cluster.peer_url(moved).as_str() && seen["client_url"] == client_url.as_str()
        })
        .await;
    }
    // It counts again: with it, the cluster bears the loss of another.
    cluster.kill(other);
    assert_eq!(cluster.client(moved).put("after", "v").await, Outcome::Done);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_operators_who_change_the_membership_at_once_all_but_one_are_told_so() {
    let mut cluster = Cluster::start(3, &[]).await;
    let began = Instant::now();
    let (mut told, mut made) = (0, 0);
    for round in 0.. {
        let operators = (0..8).map(|operator| {
            let client = cluster.client(operator % 3);
            let name = format!("x{round}-{operator}");
            let target = format!("/v1/cluster/members?name={name}&peer_url=http://127.0.0.1:9");
            tokio::spawn(async move { problem(&client, "POST", &target).await })
        });
        for operator in operators.collect::<Vec<_>>() {
            let (status, answer) = operator.await.unwrap();
            if status.is_success() {
                made += 1;
            } else {
                let expected = (StatusCode::CONFLICT, &Value::from("change-in-progress"), &Value::from("no"));
                assert_eq!((status, &answer["code"], &answer["applied"]), expected, "{answer}");
                told += 1;
            }
        }
        assert!(made > round, "in each round one of them is first");
        if told > 0 {
            break;
        }
        assert!(began.elapsed() < LONG, "{made} changes and no two at once");
    }
    let seen: Value = cluster.client(1).answer("GET", "/v1/cluster/members", "").await.json().await.unwrap();
    assert_eq!(seen["members"].as_array().unwrap().len(), 3 + made, "what was refused was not made");
    assert_eq!(cluster.client(0).put("k", "v").await, Outcome::Done);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_to_a_member_that_stands_still_does_not_end_the_writes() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let to = (leader + 1) % 3;
    let client = cluster.client(leader);
    assert_eq!(client.put("before", "v").await, Outcome::Done);
    cluster.pause(to);
    let began = Instant::now();
    let (status, problem) = problem(&client, "POST", &format!("/v1/cluster/leader?to=n{}", to + 1)).await;
    let told = (status, &problem["code"], &problem["applied"]);
    assert_eq!(told, (StatusCode::GATEWAY_TIMEOUT, &"timeout".into(), &"no".into()), "{problem}");
    assert_eq!(client.put("after", "v").await, Outcome::Done);
    println!("offered, not taken and writing again after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    cluster.resume(to);
    cluster.one_hash(&[0, 1, 2]).await;
    cluster.stop().await;
}

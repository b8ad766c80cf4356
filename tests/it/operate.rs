//! What an operator does to a running cluster besides changing its members: restores, and worse.

use crate::support::members::{Cluster, Outcome};
use crate::support::{Data, Node, eventually};
use reqwest::StatusCode;
use serde_json::Value;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);
const RESTORE: &str = "/v1/restore?confirm=tenure";

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_takes_the_place_of_everything_on_all_members() {
    let mut cluster = Cluster::start(3, &[]).await;
    let first = cluster.client(0);
    assert_eq!(first.put("kept", "old").await, Outcome::Done);
    let leased = first.answer("PUT", "/v1/kv/leased?ttl=1h", "v").await;
    assert!(leased.status().is_success());
    let locked = first.answer("POST", "/v1/locks/deploy?owner=me&ttl=1h", "").await;
    assert!(locked.status().is_success(), "{}", locked.text().await.unwrap());
    let backup = first.bytes("/v1/snapshot").await;
    assert_eq!(first.put("kept", "new").await, Outcome::Done);
    assert_eq!(first.put("gone", "v").await, Outcome::Done);
    let before = cluster.status(0).await["revision"].as_i64().unwrap();
    let watch = format!("/v1/watch?prefix=&after={before}&wait=30s");
    let watcher = cluster.client(2);
    let (watched, restored) = tokio::join!(watcher.answer("GET", &watch, ""), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Through a member that does not lead, as well.
        let through = (cluster.leader().await + 1) % 3;
        cluster.client(through).send(RESTORE, backup.clone()).await
    });
    assert_eq!(restored.status(), StatusCode::OK, "{}", restored.text().await.unwrap());
    let revision = restored.json::<Value>().await.unwrap()["revision"].as_i64().unwrap();
    assert!(revision > before, "the revision went from {before} to {revision}");
    assert_eq!(watched.status(), StatusCode::GONE, "a watcher of the former history is told");
    cluster.one_hash(&[0, 1, 2]).await;
    for member in 0..3 {
        let client = cluster.client(member);
        assert_eq!(client.get("kept").await.as_deref(), Some("old"));
        assert_eq!((client.get("gone").await, client.get("leased").await), (None, None));
        let locks = client.answer("GET", "/v1/locks", "").await.text().await.unwrap();
        assert!(!locks.contains("deploy"), "a claim came back with the backup: {locks}");
        let old = client.answer("GET", &format!("/v1/kv/kept?revision={before}"), "").await;
        assert_eq!(old.status(), StatusCode::GONE);
    }
    assert_eq!(first.put("after", "v").await, Outcome::Done);
    // Killed, they come back with the same: the entry is applied again, from the file beside the log.
    for member in 0..3 {
        cluster.kill(member);
    }
    for member in 0..3 {
        cluster.relaunch(member);
    }
    cluster.ready(&[0, 1, 2]).await;
    assert_eq!(cluster.client(1).get("kept").await.as_deref(), Some("old"));
    assert_eq!(cluster.client(1).get("after").await.as_deref(), Some("v"));
    cluster.one_hash(&[0, 1, 2]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_staged_on_every_voter_changes_nothing_and_a_learner_fetches_it_later() {
    let mut cluster = Cluster::start(1, &[]).await;
    let learner = cluster.join().await;
    let first = cluster.client(0);
    assert_eq!(first.put("kept", "old").await, Outcome::Done);
    let backup = first.bytes("/v1/snapshot").await;
    assert_eq!(first.put("kept", "new").await, Outcome::Done);
    cluster.kill(learner);
    let restored = first.send(RESTORE, backup.clone()).await;
    assert_eq!(restored.status(), StatusCode::OK, "{}", restored.text().await.unwrap());
    cluster.restart(learner).await;
    let client = cluster.client(learner);
    eventually("the learner has it too", LONG, async || client.get("kept").await.as_deref() == Some("old")).await;
    cluster.one_hash(&[0, learner]).await;
    // As a voter, it must have it before anything is done.
    let promoted = first.answer("POST", &format!("/v1/cluster/members/n{}/promote", learner + 1), "").await;
    assert_eq!(promoted.status(), StatusCode::OK, "{}", promoted.text().await.unwrap());
    let third = cluster.join().await;
    let promoted = first.answer("POST", &format!("/v1/cluster/members/n{}/promote", third + 1), "").await;
    assert_eq!(promoted.status(), StatusCode::OK, "{}", promoted.text().await.unwrap());
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    assert_eq!(cluster.client(leader).put("kept", "newest").await, Outcome::Done);
    cluster.kill(lost);
    let refused = cluster.client(leader).send(RESTORE, backup).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let problem: Value = refused.json().await.unwrap();
    assert_eq!((&problem["code"], &problem["applied"]), (&"not-ready".into(), &"no".into()), "{problem}");
    assert_eq!(cluster.client(leader).get("kept").await.as_deref(), Some("newest"));
    cluster.stop().await;
}

fn tenure(arguments: &[&str]) -> (i32, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tenure")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_quorum_is_recovered_from_one_member() {
    let mut cluster = Cluster::start(3, &["--snapshot-bytes", "1MiB"]).await;
    let value = "v".repeat(20_000);
    for i in 0..150 {
        assert_eq!(cluster.client(i % 3).put(&format!("k{i}"), &value).await, Outcome::Done);
    }
    let leased = cluster.client(0).answer("PUT", "/v1/kv/leased?ttl=1h", "v").await;
    assert!(leased.status().is_success());
    assert_eq!(cluster.client(0).put("last", "v").await, Outcome::Done);
    let revision = cluster.status(0).await["revision"].as_i64().unwrap();
    let left = cluster.leader().await;
    for member in 0..3 {
        cluster.kill(member);
    }
    let old = cluster.data_dir(left).display().to_string();
    let data = Data::fresh();
    let new = data.path().display().to_string();
    let (code, _, hint) = tenure(&["recover", "--data-dir", &old, "--into", &new]);
    assert!(code == 2 && hint.contains("--force-new-cluster"), "{code} {hint}");
    let recover = ["recover", "--data-dir", &old, "--into", &new, "--name", "n9", "--force-new-cluster"];
    let (code, said, warned) = tenure(&recover);
    assert_eq!(code, 0, "{said}{warned}");
    assert!(warned.contains("are gone") && warned.contains("never start"), "{warned}");
    let (code, _, again) = tenure(&recover);
    assert!(code == 1 && again.contains("not empty"), "{code} {again}");
    let node = Node::start_with(&data, &["--name", "n9"]).await;
    let http = reqwest::Client::new();
    let get = async |target: &str| http.get(format!("{}{target}", node.url())).send().await.unwrap();
    for i in 0..150 {
        assert_eq!(get(&format!("/v1/kv/k{i}")).await.text().await.unwrap(), value, "k{i}");
    }
    assert_eq!(get("/v1/kv/last").await.status(), StatusCode::OK);
    assert_eq!(get("/v1/kv/leased").await.status(), StatusCode::NOT_FOUND, "nobody owns anything any more");
    let status: Value = get("/v1/status").await.json().await.unwrap();
    assert!(status["revision"].as_i64().unwrap() > revision, "{status}");
    // What it was made from is untouched.
    cluster.relaunch(left);
    eventually("the old member starts", LONG, async || cluster.log(left).lines().count() > 0).await;
}

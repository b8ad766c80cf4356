//! The etcd door over its JSON gateway, which calls the gRPC services in process: what it answers, and its
//! JSON as it is on the wire. `scripts/etcd-clients.sh` drives gRPC itself with etcd's own client.

use crate::support::Node;
use serde_json::Value;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(10);

async fn json(node: &Node, path: &str, body: &'static str) -> Value {
    let (status, text) = post(node, path, body).await;
    assert_eq!(status, 200, "{path} {body}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// The code and the text, by which etcd's clients tell errors apart.
async fn error(node: &Node, path: &str, body: &'static str) -> (i64, String) {
    let (status, text) = post(node, path, body).await;
    assert_ne!(status, 200, "{path} {body}: {text}");
    let error: Value = serde_json::from_str(&text).unwrap();
    (error["code"].as_i64().unwrap(), error["message"].as_str().unwrap().to_owned())
}

/// So many lines of a streaming call.
async fn lines(node: &Node, path: &str, body: &'static str, count: usize) -> Vec<Value> {
    let mut answer = reqwest::Client::new().post(format!("{}{path}", node.url())).body(body).send().await.unwrap();
    let mut text = String::new();
    while text.lines().count() < count || !text.ends_with('\n') {
        let chunk = tokio::time::timeout(WAIT, answer.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn kubernetes_creates_updates_and_deletes_by_mod_revision() {
    let node = Node::start().await;
    let create = r#"{"compare":[{"key":"aw==","target":"MOD","mod_revision":"0"}],
        "success":[{"request_put":{"key":"aw==","value":"MQ=="}}]}"#;
    let created = json(&node, "/v3/kv/txn", create).await;
    assert_eq!((&created["succeeded"], &created["header"]["revision"]), (&true.into(), &"2".into()));
    assert!(json(&node, "/v3/kv/txn", create).await.get("succeeded").is_none(), "it is there already");
    let stale = r#"{"compare":[{"key":"aw==","target":"MOD","mod_revision":"1"}],
        "success":[{"request_put":{"key":"aw==","value":"Mg=="}}],"failure":[{"request_range":{"key":"aw=="}}]}"#;
    let refused = json(&node, "/v3/kv/txn", stale).await;
    let current = &refused["responses"][0]["response_range"]["kvs"][0];
    assert_eq!((&current["mod_revision"], &current["value"]), (&"2".into(), &"MQ==".into()));
    let delete = r#"{"compare":[{"key":"aw==","target":"MOD","mod_revision":"2"}],
        "success":[{"request_delete_range":{"key":"aw=="}}]}"#;
    assert_eq!(json(&node, "/v3/kv/txn", delete).await["header"]["revision"], "3", "a delete takes a revision");
    let twice = r#"{"success":[{"request_put":{"key":"aw=="}},{"request_delete_range":{"key":"aw=="}}]}"#;
    let duplicate = (3, "etcdserver: duplicate key given in txn request".to_owned());
    assert_eq!(error(&node, "/v3/kv/txn", twice).await, duplicate);
    assert_eq!(error(&node, "/v3/kv/txn", r#"{"success":[{}]}"#).await.1, "etcdserver: key not found");
}

#[tokio::test]
async fn a_count_is_of_the_whole_range_and_old_revisions_end_at_compaction() {
    let node = Node::start().await;
    for body in [r#"{"key":"YQ=="}"#, r#"{"key":"Yg=="}"#, r#"{"key":"Yw=="}"#] {
        json(&node, "/v3/kv/put", body).await;
    }
    let page = json(&node, "/v3/kv/range", r#"{"key":"YQ==","range_end":"eg==","limit":"2"}"#).await;
    assert_eq!(page["kvs"].as_array().unwrap().len(), 2);
    assert_eq!((&page["count"], &page["more"]), (&"3".into(), &true.into()));
    json(&node, "/v3/kv/compaction", r#"{"revision":"4"}"#).await;
    let compacted = error(&node, "/v3/kv/range", r#"{"key":"YQ==","revision":"2"}"#).await;
    assert_eq!(compacted, (11, "etcdserver: mvcc: required revision has been compacted".to_owned()));
    let future = error(&node, "/v3/kv/range", r#"{"key":"YQ==","revision":"99"}"#).await;
    assert_eq!(future, (11, "etcdserver: mvcc: required revision is a future revision".to_owned()));
    let lines = lines(&node, "/v3/watch", r#"{"create_request":{"key":"YQ==","start_revision":"2"}}"#, 2).await;
    let (created, canceled) = (&lines[0]["result"], &lines[1]["result"]);
    assert!(created["created"] == true && created.get("canceled").is_none(), "{created}");
    assert_eq!((&canceled["canceled"], &canceled["compact_revision"]), (&true.into(), &"4".into()));
    assert!(canceled["header"].get("revision").is_none(), "{canceled}");
    let missing = error(&node, "/v3/kv/put", r#"{"key":"eA==","ignore_lease":true}"#).await;
    assert_eq!(missing, (3, "etcdserver: key not found".to_owned()));
}

#[tokio::test]
async fn a_watch_tells_what_was_before_and_progress_never_overtakes_it() {
    let node = Node::start().await;
    for body in [r#"{"key":"dw==","value":"MQ=="}"#, r#"{"key":"dw==","value":"Mg=="}"#] {
        json(&node, "/v3/kv/put", body).await;
    }
    json(&node, "/v3/kv/deleterange", r#"{"key":"dw=="}"#).await;
    let body = r#"{"create_request":{"key":"dw==","start_revision":"2","prev_kv":true}}{"progress_request":{}}"#;
    let lines = lines(&node, "/v3/watch", body, 3).await;
    let events = lines[1]["result"]["events"].as_array().unwrap();
    assert_eq!(events.len(), 3);
    assert!(events[0].get("prev_kv").is_none());
    assert_eq!(events[1]["prev_kv"]["value"], "MQ==");
    assert_eq!((&events[2]["type"], &events[2]["prev_kv"]["value"]), (&"DELETE".into(), &"Mg==".into()));
    let progress = &lines[2]["result"];
    assert_eq!((&progress["watch_id"], &progress["header"]["revision"]), (&"-1".into(), &"4".into()));
}

#[tokio::test]
async fn leases_are_raised_to_two_seconds_and_take_their_keys_with_them() {
    let node = Node::start().await;
    assert_eq!(json(&node, "/v3/lease/grant", r#"{"TTL":"1","ID":"7"}"#).await["TTL"], "2");
    json(&node, "/v3/kv/put", r#"{"key":"bA==","lease":"7"}"#).await;
    let kept = lines(&node, "/v3/lease/keepalive", r#"{"ID":"7"}{"ID":"8"}"#, 2).await;
    assert_eq!(kept[0]["result"]["TTL"], "2");
    assert!(kept[1]["result"].get("TTL").is_none(), "an unknown one has none, and the stream lives on");
    json(&node, "/v3/lease/revoke", r#"{"ID":"7"}"#).await;
    assert!(json(&node, "/v3/kv/range", r#"{"key":"bA=="}"#).await.get("count").is_none());
    assert_eq!(json(&node, "/v3/lease/timetolive", r#"{"ID":"7"}"#).await["TTL"], "-1");
    assert_eq!(error(&node, "/v3/lock/lock", r#"{"name":"bA==","lease":"7"}"#).await.0, 2, "unknown, as etcd says");
}

#[tokio::test]
async fn locks_of_etcds_clients_and_of_rest_exclude_each_other() {
    let node = Node::start().await;
    // _tenure/locks/deploy
    let name = r#"{"name":"X3RlbnVyZS9sb2Nrcy9kZXBsb3k="}"#;
    let held = json(&node, "/v3/lock/lock", name).await;
    assert!(held["key"].as_str().unwrap().starts_with("X3RlbnVyZS9sb2Nrcy9kZXBsb3kv"), "{held}");
    let rest = reqwest::Client::new().post(format!("{}/v1/locks/deploy?ttl=10s", node.url())).send().await.unwrap();
    assert_eq!(rest.status(), 409, "REST sees who holds it");
    json(&node, "/v3/lease/grant", r#"{"TTL":"30","ID":"9"}"#).await;
    let won = json(&node, "/v3/election/campaign", r#"{"name":"ZQ==","lease":"9","value":"bWU="}"#).await;
    assert_eq!(won["leader"]["key"], "ZS85", "e/9");
    assert_eq!(json(&node, "/v3/election/leader", r#"{"name":"ZQ=="}"#).await["kv"]["value"], "bWU=");
}

#[tokio::test]
async fn the_members_status_is_what_kubernetes_asks_for() {
    let node = Node::start().await;
    let status = json(&node, "/v3/maintenance/status", "{}").await;
    let version = status["version"].as_str().unwrap().split('.').map(|part| part.parse().unwrap());
    assert!(version.collect::<Vec<u32>>() >= vec![3, 6, 0], "{status}");
    assert_eq!(json(&node, "/v3/cluster/member/list", "{}").await["members"].as_array().unwrap().len(), 1);
    json(&node, "/v3/maintenance/defragment", "{}").await;
    let refused = error(&node, "/v3/auth/authenticate", r#"{"name":"root","password":"x"}"#).await;
    assert_eq!(refused, (9, "etcdserver: authentication is not enabled".to_owned()));
}

async fn post(node: &Node, path: &str, body: &'static str) -> (u16, String) {
    let answer = reqwest::Client::new().post(format!("{}{path}", node.url())).body(body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn the_gateways_json_is_protobufs() {
    let node = Node::start().await;
    let (status, put) = post(&node, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy","unknown":1} trailing"#).await;
    assert!(status == 200 && put.contains(r#""revision":"2""#), "{put}");
    let (_, range) = post(&node, "/v3/kv/range", r#"{"key":"Zm9v"}"#).await;
    let kvs =
        r#""kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}],"count":"1"}"#;
    assert!(range.ends_with(kvs), "{range}");
    let (status, error) = post(&node, "/v3/lease/revoke", r#"{"ID":"99"}"#).await;
    let expected = r#"{"code":5,"error":"etcdserver: requested lease not found","message":"etcdserver: requested lease not found"}"#;
    assert_eq!((status, error.as_str()), (404, expected));
    for bad in ["", "null", r#"{"key":"Zg"}"#, r#"{"key":"_-8="}"#, r#"{"key":"Zm9v","sort_target":7}"#] {
        assert_eq!(post(&node, "/v3/kv/range", bad).await.0, 400, "{bad:?}");
    }
    let got = reqwest::get(format!("{}/v3/kv/range", node.url())).await.unwrap();
    assert_eq!(got.status(), 405);
    assert!(got.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
}

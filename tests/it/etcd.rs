//! The etcd door, driven by a client library that was written for etcd, and the gateway's JSON as it is
//! on the wire.

use crate::support::Node;
use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, LeaseGrantOptions, PutOptions, Txn, TxnOp, WatchOptions,
};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(10);

async fn client(node: &Node) -> Client {
    Client::connect([node.url()], None).await.expect("a connection")
}

/// The status text, by which etcd's clients tell errors apart.
fn text(error: etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => format!("{:?}: {}", status.code(), status.message()),
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test]
async fn keys_are_put_ranged_and_deleted() {
    let node = Node::start().await;
    let mut client = client(&node).await;
    for key in ["a", "b", "c"] {
        client.put(key, "1", None).await.unwrap();
    }
    let page = client.get("a", Some(GetOptions::new().with_range("z").with_limit(2))).await.unwrap();
    assert_eq!((page.kvs().len(), page.count(), page.more()), (2, 3, true), "the count is of the whole range");
    let old = client.put("a", "2", Some(PutOptions::new().with_prev_key())).await.unwrap();
    assert_eq!(old.prev_key().unwrap().value(), b"1");
    assert_eq!(client.get("a", Some(GetOptions::new().with_revision(2))).await.unwrap().kvs()[0].value(), b"1");
    assert_eq!(client.delete("b", None).await.unwrap().deleted(), 1);
    let future = client.get("a", Some(GetOptions::new().with_revision(99))).await.unwrap_err();
    assert_eq!(text(future), "OutOfRange: etcdserver: mvcc: required revision is a future revision");
    client.compact(5, None).await.unwrap();
    let compacted = client.get("a", Some(GetOptions::new().with_revision(2))).await.unwrap_err();
    assert_eq!(text(compacted), "OutOfRange: etcdserver: mvcc: required revision has been compacted");
    assert_eq!(text(client.put("", "x", None).await.unwrap_err()), "InvalidArgument: etcdserver: key is not provided");
    let missing = client.put("none", "x", Some(PutOptions::new().with_ignore_lease())).await.unwrap_err();
    assert_eq!(text(missing), "InvalidArgument: etcdserver: key not found");
}

#[tokio::test]
async fn kubernetes_creates_updates_and_deletes_by_mod_revision() {
    let node = Node::start().await;
    let mut client = client(&node).await;
    let guarded = |revision| vec![Compare::mod_revision("k", CompareOp::Equal, revision)];
    let create = Txn::new().when(guarded(0)).and_then([TxnOp::put("k", "1", None)]);
    let created = client.txn(create.clone()).await.unwrap();
    let revision = created.header().unwrap().revision();
    assert!(created.succeeded());
    assert!(!client.txn(create).await.unwrap().succeeded(), "it is there already");
    let read = client.get("k", None).await.unwrap();
    assert_eq!(read.kvs()[0].mod_revision(), revision, "the header tells the put's revision");
    let stale =
        Txn::new().when(guarded(revision - 1)).and_then([TxnOp::put("k", "2", None)]).or_else([TxnOp::get("k", None)]);
    let refused = client.txn(stale).await.unwrap();
    assert!(!refused.succeeded());
    assert_eq!(refused.op_responses().len(), 1, "a failure holds the current value");
    let gone = Txn::new().when(guarded(revision)).and_then([TxnOp::delete("k", None)]);
    let gone = client.txn(gone).await.unwrap();
    assert!(gone.succeeded() && gone.header().unwrap().revision() == revision + 1, "a delete takes a revision");
    let twice = Txn::new().and_then([TxnOp::put("d", "1", None), TxnOp::delete("d", None)]);
    let twice = text(client.txn(twice).await.unwrap_err());
    assert_eq!(twice, "InvalidArgument: etcdserver: duplicate key given in txn request");
}

#[tokio::test]
async fn a_watch_tells_every_event_with_what_was_before_and_its_progress() {
    let node = Node::start().await;
    let mut client = client(&node).await;
    client.put("w/a", "1", None).await.unwrap();
    let options = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(2);
    let mut stream = client.watch("w/", Some(options)).await.unwrap();
    client.put("w/a", "2", None).await.unwrap();
    client.delete("w/a", None).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let message = tokio::time::timeout(WAIT, stream.message()).await.unwrap().unwrap().unwrap();
        for event in message.events() {
            let prev = event.prev_kv().map(|kv| kv.value().to_vec());
            seen.push((event.event_type(), event.kv().unwrap().mod_revision(), prev));
        }
    }
    let before = |text: &str| Some(text.as_bytes().to_vec());
    assert_eq!(seen[0], (EventType::Put, 2, None));
    assert_eq!(seen[1], (EventType::Put, 3, before("1")));
    assert_eq!(seen[2], (EventType::Delete, 4, before("2")));
    stream.request_progress().await.unwrap();
    let progress = tokio::time::timeout(WAIT, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((progress.watch_id(), progress.header().unwrap().revision()), (-1, 4));
}

#[tokio::test]
async fn a_watch_from_a_compacted_revision_is_created_and_then_canceled_with_it() {
    let node = Node::start().await;
    let mut client = client(&node).await;
    for value in ["1", "2", "3", "4"] {
        client.put("w", value, None).await.unwrap();
    }
    client.compact(4, None).await.unwrap();
    let mut stream = client.watch("w", Some(WatchOptions::new().with_start_revision(2))).await.unwrap();
    let canceled = tokio::time::timeout(WAIT, stream.message()).await.unwrap().unwrap().unwrap();
    assert!(canceled.canceled() && canceled.compact_revision() == 4 && canceled.events().is_empty());
    let mut stream = client.watch("w", Some(WatchOptions::new().with_start_revision(4))).await.unwrap();
    let first = tokio::time::timeout(WAIT, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.events()[0].kv().unwrap().mod_revision(), 4, "the compacted revision itself is there");
}

#[tokio::test]
async fn leases_are_raised_to_two_seconds_and_take_their_keys_with_them() {
    let node = Node::start().await;
    let mut client = client(&node).await;
    let lease = client.lease_grant(1, Some(LeaseGrantOptions::new().with_id(7))).await.unwrap();
    assert_eq!((lease.id(), lease.ttl()), (7, 2));
    client.put("l", "1", Some(PutOptions::new().with_lease(7))).await.unwrap();
    let (mut keeper, mut answers) = client.lease_keep_alive(7).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 2);
    client.lease_revoke(7).await.unwrap();
    assert_eq!(client.get("l", None).await.unwrap().count(), 0);
    assert_eq!(client.lease_time_to_live(7, None).await.unwrap().ttl(), -1);
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 0, "and the stream lives on");
    let unknown = text(client.lease_revoke(7).await.unwrap_err());
    assert_eq!(unknown, "NotFound: etcdserver: requested lease not found");
}

#[tokio::test]
async fn locks_and_elections_exclude_each_other_and_those_of_rest() {
    let node = Node::start().await;
    let mut client = client(&node).await;
    let held = client.lock("_tenure/locks/deploy", None).await.unwrap();
    let rest = reqwest::Client::new().post(format!("{}/v1/locks/deploy?ttl=10s", node.url())).send().await.unwrap();
    assert_eq!(rest.status(), 409, "REST sees who holds it");
    let mut other = client.clone();
    let waiter = tokio::spawn(async move { other.lock("_tenure/locks/deploy", None).await.unwrap() });
    client.unlock(held.key()).await.unwrap();
    let next = tokio::time::timeout(WAIT, waiter).await.unwrap().unwrap();
    assert_ne!(next.key(), held.key());
    let lease = client.lease_grant(30, None).await.unwrap().id();
    let won = client.campaign("e", "me", lease).await.unwrap();
    assert_eq!(client.leader("e").await.unwrap().kv().unwrap().value(), b"me");
    assert!(won.leader().unwrap().key().starts_with(b"e/"));
}

#[tokio::test]
async fn the_members_status_is_what_kubernetes_asks_for() {
    let node = Node::start().await;
    let mut client = client(&node).await;
    let status = client.status().await.unwrap();
    let version: Vec<u32> = status.version().split('.').map(|part| part.parse().unwrap()).collect();
    assert!(version >= vec![3, 6, 0], "{version:?}");
    assert_eq!(client.member_list().await.unwrap().members().len(), 1);
    client.defragment().await.unwrap();
    let refused = text(client.authenticate("root".into(), "x".into()).await.unwrap_err());
    assert_eq!(refused, "FailedPrecondition: etcdserver: authentication is not enabled");
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

#[tokio::test]
async fn a_streaming_call_of_the_gateway_gives_a_line_for_each_message() {
    let node = Node::start().await;
    post(&node, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
    let body = r#"{"create_request":{"key":"Zm9v","start_revision":"2"}}{"create_request":{"key":"Zm9v"}}"#;
    let mut answer = reqwest::Client::new().post(format!("{}/v3/watch", node.url())).body(body).send().await.unwrap();
    let mut text = String::new();
    while text.lines().count() < 3 || !text.ends_with('\n') {
        let chunk = tokio::time::timeout(WAIT, answer.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.lines().all(|line| line.starts_with(r#"{"result":{"header":{"#)), "{text}");
    assert_eq!(text.matches(r#""created":true"#).count(), 2, "{text}");
    assert!(text.contains(r#""events":[{"kv":{"key":"Zm9v""#), "{text}");
}

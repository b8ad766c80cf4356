//! Leases of a real member: never early by the client's own clock, hardly late, through kill -9, standstill
//! and shutdown.

use crate::support::{Node, eventually};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

/// Short calls to one node.
struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn of(node: &Node) -> Self {
        Self { http: reqwest::Client::new(), url: node.url() }
    }

    async fn call(&self, method: &str, target: &str) -> (u16, Value) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let answer = self.http.request(method, format!("{}{target}", self.url)).send().await.expect("an answer");
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    async fn exists(&self, key: &str) -> bool {
        self.call("HEAD", &format!("/v1/kv/{key}")).await.0 == 200
    }

    async fn put(&self, target: &str) -> Value {
        let (status, body) = self.call("PUT", target).await;
        assert!(matches!(status, 200 | 201), "{target}: {status} {body}");
        body
    }

    async fn grant(&self, id: &str, ttl: &str) {
        let (status, body) = self.call("POST", &format!("/v1/leases?id={id}&ttl={ttl}")).await;
        assert_eq!(status, 201, "{body}");
    }

    /// When the key was first seen gone, by the answer's arrival.
    async fn gone(&self, key: &str) -> Instant {
        let mut at = Instant::now();
        eventually("the key is gone", SOON, async || {
            let exists = self.exists(key).await;
            at = Instant::now();
            !exists
        })
        .await;
        at
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = self.http.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// `TENURE_EXPIRIES` asks for more, up to the 10,000 keys of one page.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_ttls_end_never_early_and_hardly_late() {
    let keys: usize = std::env::var("TENURE_EXPIRIES").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    const TTL: Duration = Duration::from_secs(2);
    let node = Node::start().await;
    let client = Client::of(&node);
    let puts = futures_util::stream::iter(0..keys).map(|at| {
        let client = &client;
        async move {
            let key = format!("brief/{at:05}");
            let sent = Instant::now();
            client.put(&format!("/v1/kv/{key}?ttl=2s")).await;
            (key, (sent, Instant::now()))
        }
    });
    let mut left: BTreeMap<String, (Instant, Instant)> = puts.buffer_unordered(16).collect().await;
    let mut late = Vec::new();
    while !left.is_empty() {
        let (status, page) = client.call("GET", "/v1/kv?prefix=brief/&keys_only&limit=10000").await;
        let now = Instant::now();
        assert_eq!(status, 200);
        let there: Vec<&str> =
            page["items"].as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap()).collect();
        left.retain(|key, (sent, answered)| {
            if there.binary_search(&key.as_str()).is_ok() {
                assert!(now < *answered + TTL + SOON, "{key} stays");
                return true;
            }
            assert!(now >= *sent + TTL, "{key} was gone {:?} after its put was sent", now - *sent);
            late.push(now.saturating_duration_since(*answered + TTL));
            false
        });
    }
    late.sort();
    println!(
        "lateness as polled: median {:?}, p99 {:?}, most {:?}",
        late[keys / 2],
        late[keys * 99 / 100],
        late[keys - 1]
    );
    let name = "tenure_lease_expiry_lateness_seconds";
    let count = client.metric(&format!("{name}_count")).await;
    let within_50_ms = client.metric(&format!("{name}_bucket{{le=\"0.05\"}}")).await;
    assert_eq!(count, f64::from(u32::try_from(keys).unwrap()));
    assert!(within_50_ms >= count / 2.0, "only {within_50_ms} of {count} within 50 ms");
    assert_eq!(client.metric("tenure_leases_expired_total").await, count);
    let (_, history) = client.call("GET", "/v1/history/brief/00007").await;
    assert_eq!(history["items"][0]["reason"], json!("expired"), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_lives_as_long_as_it_is_kept_alive_and_takes_its_keys_with_it() {
    let node = Node::start().await;
    let client = Client::of(&node);
    client.grant("a1", "1s").await;
    client.put("/v1/kv/one?lease=a1").await;
    client.put("/v1/kv/two?lease=a1").await;
    client.put("/v1/kv/two").await;
    let begun = Instant::now();
    let mut sent = begun;
    while begun.elapsed() < Duration::from_secs(3) {
        sent = Instant::now();
        let (status, body) = client.call("POST", "/v1/leases/a1/keepalive").await;
        assert_eq!((status, &body["ttl_ms"]), (200, &json!(1000)));
        assert!(client.exists("one").await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let gone = client.gone("one").await;
    assert!(gone >= sent + Duration::from_secs(1), "gone {:?} after the last renewal was sent", gone - sent);
    // A plain put took the other off the lease.
    assert!(client.exists("two").await);
    let (status, body) = client.call("POST", "/v1/leases/a1/keepalive").await;
    assert_eq!((status, body["code"].as_str()), (404, Some("lease-not-found")));
    assert!(client.metric("tenure_lease_keepalives_total").await >= 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_by_ttl_makes_no_revision() {
    let node = Node::start().await;
    let client = Client::of(&node);
    let put = client.put("/v1/kv/presence/ann?ttl=1s").await;
    let begun = Instant::now();
    let mut sent = begun;
    while begun.elapsed() < Duration::from_millis(2500) {
        sent = Instant::now();
        assert_eq!(client.call("PUT", "/v1/ttl/presence/ann?ttl=1s").await.0, 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (status, entry) = client.call("GET", "/v1/kv/presence/ann?format=json").await;
    assert_eq!((status, &entry["mod_revision"]), (200, &put["revision"]));
    let gone = client.gone("presence/ann").await;
    assert!(gone >= sent + Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_and_restart_every_lease_has_its_whole_ttl() {
    const TTL: Duration = Duration::from_secs(3);
    let mut node = Node::start().await;
    let client = Client::of(&node);
    client.grant("a1", "3s").await;
    client.put("/v1/kv/shared?lease=a1").await;
    client.put("/v1/kv/own?ttl=3s").await;
    client.grant("a2", "1h").await;
    client.put("/v1/kv/long?lease=a2").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.kill();
    let begun = Instant::now();
    let node = node.restart().await;
    let ready = Instant::now();
    let client = Client::of(&node);
    assert!(client.exists("shared").await && client.exists("own").await);
    let (_, lease) = client.call("GET", "/v1/leases/a1").await;
    assert!(lease["remaining_ms"].as_u64() > Some(1000), "{lease}");
    for key in ["shared", "own"] {
        let gone = client.gone(key).await;
        assert!(gone >= begun + TTL, "{key} was gone {:?} after the restart", gone - begun);
        assert!(gone < ready + TTL + Duration::from_secs(3), "{key} was gone {:?} after it was ready", gone - ready);
    }
    assert!(client.exists("long").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_stood_still_tells_the_truth_when_it_goes_on() {
    let node = Node::start().await;
    let client = Client::of(&node);
    for id in ["a1", "a2"] {
        client.grant(id, "2s").await;
        client.put(&format!("/v1/kv/{id}?lease={id}")).await;
    }
    client.put("/v1/kv/later?ttl=10s").await;
    node.pause();
    let renewal = async { client.call("POST", "/v1/leases/a1/keepalive").await };
    let resumed = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        node.resume();
    };
    // Asked while it stands still, answered after both TTLs have passed.
    let ((status, _), ()) = tokio::join!(renewal, resumed);
    match status {
        // It was renewed after the standstill.
        200 => assert!(client.exists("a1").await),
        404 => assert!(!client.exists("a1").await),
        other => panic!("status {other}"),
    }
    client.gone("a2").await;
    assert!(client.exists("later").await);
    assert_eq!(client.call("POST", "/v1/leases/a2/keepalive").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_renews_while_connected_and_revokes_when_not() {
    let node = Node::start().await;
    let client = Client::of(&node);
    for id in ["a1", "a2"] {
        client.grant(id, "1s").await;
        client.put(&format!("/v1/kv/{id}?lease={id}")).await;
    }
    // A client of its own each: dropping the answer closes the connection.
    let hold = async |target: &str| {
        let http = reqwest::Client::new();
        http.post(format!("{}{target}", node.url())).send().await.expect("an answer")
    };
    let mut first = hold("/v1/leases/a1/hold").await;
    let mut second = hold("/v1/leases/a2/hold?revoke_on_disconnect=false&every=200ms").await;
    let begun = Instant::now();
    let mut lines = String::new();
    while begun.elapsed() < Duration::from_millis(2500) {
        lines += std::str::from_utf8(&first.chunk().await.unwrap().expect("a line")).unwrap();
        second.chunk().await.unwrap().expect("a line");
    }
    assert!(lines.lines().filter(|line| line.contains(r#""type":"renewed""#)).count() >= 4, "{lines}");
    assert!(client.exists("a1").await && client.exists("a2").await);
    let let_go = Instant::now();
    drop((first, second));
    client.gone("a1").await;
    let (_, history) = client.call("GET", "/v1/history/a1").await;
    assert_eq!(history["items"][0]["reason"], json!("lease_revoked"), "{history}");
    // The other runs out by itself.
    client.gone("a2").await;
    let (_, history) = client.call("GET", "/v1/history/a2").await;
    assert_eq!(history["items"][0]["reason"], json!("expired"), "{history}");
    assert!(let_go.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_hold_and_leaves_the_lease() {
    let mut node = Node::start().await;
    let client = Client::of(&node);
    client.grant("a1", "5s").await;
    client.put("/v1/kv/a1?lease=a1").await;
    let held = client.http.post(format!("{}/v1/leases/a1/hold", node.url())).send().await.unwrap();
    let (status, text) = tokio::join!(node.stop(), held.text());
    assert!(status.success());
    assert!(text.unwrap().ends_with("{\"type\":\"ended\",\"code\":\"shutting-down\"}\n"));
    let node = node.restart().await;
    assert!(Client::of(&node).exists("a1").await);
}

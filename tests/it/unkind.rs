//! What bad input and bad luck get from watches, leases and claims: each its documented answer, and nobody else
//! notices.

use crate::support::{Node, eventually};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);

struct Api {
    node: Node,
    http: reqwest::Client,
}

impl Api {
    async fn start() -> Self {
        Self { node: Node::start().await, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    async fn call(&self, method: &str, target: &str) -> (u16, Value) {
        self.send(method, target, "").await
    }

    async fn send(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.http.request(method, format!("{}{target}", self.node.url()));
        let json = if body.starts_with('{') { "application/json" } else { "text/plain" };
        let request = if body.is_empty() { request } else { request.header("content-type", json) };
        let answer = request.body(body.to_owned()).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    async fn refused(&self, method: &str, target: &str) -> (u16, String) {
        let (status, problem) = self.call(method, target).await;
        (status, problem["code"].as_str().unwrap_or_default().to_owned())
    }

    async fn streams(&self) -> u64 {
        let text = self.http.get(format!("{}/metrics", self.node.url())).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("tenure_watch_streams "));
        line.unwrap().parse().unwrap()
    }
}

fn code(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// Ten thousand streams one after the other, many at a time, none of which reads: none stays, and a bystander's
/// writes go on.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_leave_nothing_behind() {
    const CONNECTIONS: usize = 10_000;
    const AT_ONCE: usize = 200;
    let api = Api::start().await;
    let open = async |at: usize| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(api.node.address()).await.unwrap();
        let request = format!("GET /v1/watch?prefix=p{at}/ HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
    };
    let all = async { futures_util::stream::iter(0..CONNECTIONS).map(open).buffer_unordered(AT_ONCE).count().await };
    let bystander = async {
        let mut slowest = Duration::ZERO;
        for at in 0..200 {
            let began = Instant::now();
            assert_eq!(api.send("PUT", &format!("/v1/kv/by/{at}"), "x").await.0, 201);
            slowest = slowest.max(began.elapsed());
        }
        slowest
    };
    let (count, slowest) = tokio::join!(all, bystander);
    assert_eq!(count, CONNECTIONS);
    println!("the slowest of 200 writes beside {CONNECTIONS} connections: {slowest:?}");
    eventually("every stream is closed", SOON, async || api.streams().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_prefixes_are_too_many() {
    let api = Api::start().await;
    let targets = |count| (0..count).map(|at| format!("prefix=p{at}/&")).collect::<String>();
    let (status, problem) = api.call("GET", &format!("/v1/watch?{}", targets(1000))).await;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid-parameter")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("64"), "the limit is told: {problem}");
    assert_eq!(api.refused("GET", &format!("/v1/watch?{}", targets(65))).await.0, 400);
    let (status, polled) = api.call("GET", &format!("/v1/watch?{}wait=10ms", targets(64))).await;
    assert_eq!((status, &polled["events"]), (200, &json!([])));
}

/// A revision ahead of the store, be it a typing error or another cluster's, is waited for: nothing before it is
/// told. One that is compacted is refused, and the refusal says where to go on.
#[tokio::test(flavor = "multi_thread")]
async fn starts_in_the_future_and_in_the_compacted_past_have_their_answers() {
    let api = Api::start().await;
    for value in ["1", "2", "3"] {
        api.send("PUT", "/v1/kv/a", value).await;
    }
    let now = api.call("GET", "/v1/status").await.1["revision"].as_i64().unwrap();
    let ahead = format!("{}/v1/watch?after={}&timeout=400ms&bookmarks=1s", api.node.url(), now + 1_000_000);
    let future = api.http.get(ahead).send();
    let write = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        api.send("PUT", "/v1/kv/a", "4").await
    };
    let (future, _) = tokio::join!(future, write);
    let future = future.unwrap();
    assert_eq!(future.status(), 200);
    assert_eq!(future.text().await.unwrap(), "", "nothing is told before the start, no bookmark either");
    assert_eq!(api.refused("GET", "/v1/watch?after=-1").await.0, 400);
    assert_eq!(api.refused("GET", "/v1/watch?after=99999999999999999999").await.0, 400);
    assert_eq!(api.call("POST", &format!("/v1/compact?revision={now}")).await.0, 200);
    let (status, gone) = api.call("GET", &format!("/v1/watch?after={}", now - 1)).await;
    assert_eq!((status, &gone["code"]), (410, &json!("compacted")));
    assert_eq!((&gone["compacted_revision"], &gone["revision"]), (&json!(now), &json!(now + 1)));
    let (status, next) = api.call("GET", &format!("/v1/watch?after={now}&wait=5s")).await;
    assert_eq!((status, &next["events"][0]["revision"]), (200, &json!(now + 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn ttls_of_nothing_and_of_decades_are_refused() {
    let api = Api::start().await;
    for ttl in ["0", "0s", "999ms", "999999999", "366d"] {
        assert_eq!(api.refused("POST", &format!("/v1/leases?ttl={ttl}")).await, code(400, "bad-ttl"), "{ttl}");
        assert_eq!(api.refused("PUT", &format!("/v1/kv/a?ttl={ttl}")).await, code(400, "bad-ttl"), "{ttl}");
        assert_eq!(api.refused("POST", &format!("/v1/locks/a?ttl={ttl}")).await, code(400, "bad-ttl"), "{ttl}");
    }
    for ttl in ["-1", "-5s", "", "soon", "1000000000", "1e9", "99999999999999999999"] {
        assert_eq!(api.refused("POST", &format!("/v1/leases?ttl={ttl}")).await.0, 400, "{ttl}");
        assert_eq!(api.refused("PUT", &format!("/v1/kv/a?ttl={ttl}")).await.0, 400, "{ttl}");
    }
    let (status, problem) = api.send("POST", "/v1/leases", r#"{"ttl":1000000000}"#).await;
    assert_eq!((status, &problem["code"]), (400, &json!("bad-ttl")));
    assert_eq!(api.refused("GET", "/v1/kv/a").await, code(404, "key-not-found"), "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_claims_may_be_odd_but_not_endless() {
    let api = Api::start().await;
    let (status, slash) = api.call("POST", "/v1/locks/a%2Fb?ttl=30s").await;
    assert_eq!((status, &slash["name"]), (200, &json!("a/b")));
    assert_eq!(api.call("GET", "/v1/locks/a").await.1["held"], json!(false), "`a` is another lock than `a/b`");
    for root in ["locks", "semaphores", "elections"] {
        let asks = "ttl=30s&limit=1";
        let asks = if root == "semaphores" { asks } else { &asks[..7] };
        for name in ["%00", "a%0Ab", "%7F", "%1B%5B2J", "%FF"] {
            let (status, _) = api.refused("POST", &format!("/v1/{root}/{name}?{asks}")).await;
            assert_eq!(status, 400, "{root} {name}");
        }
        let endless = "n".repeat(10_000);
        let (status, _) = api.refused("POST", &format!("/v1/{root}/{endless}?{asks}")).await;
        assert!(matches!(status, 400 | 414), "{root} of 10 kB: {status}");
        assert_eq!(api.refused("POST", &format!("/v1/{root}/{}?{asks}", "n".repeat(257))).await.0, 400, "{root}");
    }
    assert_eq!(api.call("POST", &format!("/v1/locks/{}?ttl=30s", "n".repeat(256))).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_released_only_as_that_claim() {
    let api = Api::start().await;
    let (_, held) = api.call("POST", "/v1/locks/a?ttl=30s&owner=one").await;
    let (_, other) = api.call("POST", "/v1/locks/b?ttl=30s&owner=two").await;
    let lease = |claim: &Value| claim["lease"].as_str().unwrap().to_owned();
    // The other's lease has no claim here, and neither has one that never was.
    for stranger in [lease(&other), "00000000000000ff".to_owned()] {
        let refused = api.refused("DELETE", &format!("/v1/locks/a/claims/{stranger}")).await;
        assert_eq!(refused, code(404, "claim-not-found"));
    }
    assert_eq!(api.refused("DELETE", "/v1/locks/a/claims/nonsense").await.0, 400);
    assert_eq!(api.call("GET", "/v1/locks/a").await.1["holder"]["token"], held["token"], "it still holds");
    assert_eq!(api.call("GET", "/v1/locks/b").await.1["holder"]["token"], other["token"]);
    assert_eq!(api.call("DELETE", &format!("/v1/locks/a/claims/{}", lease(&held))).await.0, 200);
    let again = api.refused("DELETE", &format!("/v1/locks/a/claims/{}", lease(&held))).await;
    assert_eq!(again, code(404, "claim-not-found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_lease_cannot_be_kept_alive() {
    let api = Api::start().await;
    assert_eq!(api.call("POST", "/v1/leases?ttl=1s&id=e1").await.0, 201);
    assert_eq!(api.send("PUT", "/v1/kv/mine?lease=e1", "x").await.0, 201);
    eventually("it has expired", SOON, async || api.call("GET", "/v1/leases/e1").await.0 == 404).await;
    assert_eq!(api.refused("POST", "/v1/leases/e1/keepalive").await, code(404, "lease-not-found"));
    assert_eq!(api.refused("POST", "/v1/leases/e1/hold").await, code(404, "lease-not-found"));
    assert_eq!(api.refused("PUT", "/v1/kv/mine?lease=e1").await, code(404, "lease-not-found"));
    assert_eq!(api.refused("DELETE", "/v1/leases/e1").await, code(404, "lease-not-found"));
}

/// A transaction that attaches to a lease happens while the lease lives or not at all, never in half.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_during_transactions_ends_between_them() {
    let api = Api::start().await;
    assert_eq!(api.call("POST", "/v1/leases?ttl=1s&id=e2").await.0, 201);
    let (mut done, began) = (0, Instant::now());
    loop {
        let txn = json!({"then": [
            {"put": {"key": "count", "value": (done + 1).to_string()}},
            {"put": {"key": "leased", "value": (done + 1).to_string(), "lease": "e2"}},
        ]});
        let (status, told) = api.send("POST", "/v1/txn", &txn.to_string()).await;
        if status == 404 {
            assert_eq!((&told["code"], &told["applied"]), (&json!("lease-not-found"), &json!("no")), "{told}");
            break;
        }
        assert_eq!(status, 200, "{told}");
        assert!(began.elapsed() < SOON, "a lease of a second lives on");
        done += 1;
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "it ended early");
    assert_eq!(api.call("GET", "/v1/kv/count").await.1, json!(done), "the refused transaction wrote nothing");
    assert_eq!(api.refused("GET", "/v1/kv/leased").await, code(404, "key-not-found"));
}

//! Clients that mean harm or are broken: each gets its refusal and costs nobody else anything.

#![expect(clippy::large_futures, reason = "a test may hold a whole exchange on its stack")]

use crate::support::Node;
use crate::wire::{Wire, exchange, get, put};
use std::time::Duration;

const PUT_HEAD: &str = "PUT /v1/kv/hostile HTTP/1.1\r\nHost: localhost\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_bytes_of_the_raw_path() {
    let node = Node::start().await;
    for (target, same) in [
        ("/v1/kv/%00%FF", "/v1/kv/AP8?key_encoding=base64url"),
        ("/v1/kv//a//b/", "/v1/kv/%2Fa%2F%2Fb%2F"),
        ("/v1/kv/a%2fb", "/v1/kv/a/b"),
        ("/v1/kv/%2e%2e/x", "/v1/kv/../x"),
        ("/v1/kv/a+b", "/v1/kv/a%2Bb"),
        ("/v1/kv/a%20b", "/v1/kv/YSBi?key_encoding=base64url"),
    ] {
        assert_eq!(put(&node, target, target.as_bytes()).await.status, 201, "{target}");
        let read = get(&node, same).await;
        assert_eq!((read.status, &read.body[..]), (200, target.as_bytes()), "{target} as {same}");
    }
    for (target, status, code) in [
        ("/v1/kv/", 400, "empty-key"),
        ("/v1/kv/?key_encoding=base64url", 400, "empty-key"),
        ("/v1/kv/%", 400, "invalid-parameter"),
        ("/v1/kv/a%f", 400, "invalid-parameter"),
        ("/v1/kv/%zz", 400, "invalid-parameter"),
        ("/v1/kv/a?revision=%zz", 400, "invalid-parameter"),
        ("/v1/kv/a?revision=99999999999999999999", 400, "invalid-parameter"),
        ("/v1/kv/a?timeout=1s&timeout=1s", 400, "invalid-parameter"),
        ("/v1/kv/a*b?key_encoding=base64url", 400, "invalid-parameter"),
    ] {
        let refused = get(&node, target).await;
        assert_eq!((refused.status, &*refused.code()), (status, code), "{target}");
    }
    assert_eq!(put(&node, &format!("/v1/kv/{}", "k".repeat(4096)), b"").await.status, 201);
    assert_eq!(put(&node, &format!("/v1/kv/{}", "k".repeat(4097)), b"").await.status, 414);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_before_it_is_read() {
    let node = Node::start().await;
    let huge = exchange(&node, format!("{PUT_HEAD}Content-Length: 10000000000\r\n\r\n").as_bytes()).await;
    assert_eq!((huge.status, &*huge.code()), (413, "too-large"));
    let beyond = exchange(&node, format!("{PUT_HEAD}Content-Length: 99999999999999999999999\r\n\r\n").as_bytes()).await;
    assert_eq!(beyond.status, 400);
    // Chunks without end: refused where they pass the limit.
    let mut endless = Wire::connect(&node).await;
    endless.send(format!("{PUT_HEAD}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).await;
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    for _ in 0..25 {
        endless.send(&chunk).await;
    }
    assert_eq!(endless.answer().await.map(|answer| answer.status), Some(413));
    let value = vec![b'v'; 1_572_864];
    assert_eq!(put(&node, "/v1/kv/largest", &value[..value.len() - 7]).await.status, 201);
    assert_eq!(put(&node, "/v1/kv/larger", &[&value[..], b"v"].concat()).await.status, 413);
    assert_eq!(get(&node, "/v1/kv/larger").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_bounded() {
    let node = Node::start().await;
    let long =
        exchange(&node, format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(20_000)).as_bytes()).await;
    assert_eq!(long.status, 431);
    let many: String = (0..150).map(|number| format!("X-{number}: x\r\n")).collect();
    assert_eq!(exchange(&node, format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes()).await.status, 431);
    let mut endless = Wire::connect(&node).await;
    endless.send(b"GET / HTTP/1.1\r\n").await;
    for number in 0..2000 {
        if !endless.send(format!("X-{number}: {}\r\n", "x".repeat(50)).as_bytes()).await {
            break;
        }
    }
    assert!(matches!(endless.answer().await.map(|answer| answer.status), None | Some(431)));
    assert_eq!(get(&node, "/livez").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_strict_and_bounded() {
    let node = Node::start().await;
    let post = async |body: &str| {
        let head = format!("POST /v1/txn HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        exchange(&node, &[head.as_bytes(), body.as_bytes()].concat()).await
    };
    let deep = format!(r#"{{"then":[{{"put":{{"key":"a","value_json":{}}}}}]}}"#, "[".repeat(1000) + &"]".repeat(1000));
    for body in [
        &*deep,
        "[[[[",
        r#"{"then":[]} {}"#,
        r#"{"then":[],"then":[]}"#,
        r#"{"then":[{"put":{"key":"a","value":"1","value_base64":"MQ=="}}]}"#,
        "{\"then\":[{\"put\":{\"key\":\"a\",\"value\":\"\\ud800\"}}]}",
        "\u{feff}{}",
    ] {
        let refused = post(body).await;
        assert_eq!((refused.status, &*refused.code()), (400, "invalid-body"), "{}", &body[..body.len().min(60)]);
    }
    let nested = r#"{"then":[{"txn":{"then":[]}}]}"#;
    assert_eq!(post(nested).await.status, 400);
    // What is stored as JSON is stored as it was written.
    let exact = r#"{"then":[{"put":{"key":"exact","value_json":{"b": 1.50, "a":12345678901234567890}}}]}"#;
    assert_eq!(post(exact).await.status, 200);
    let read = get(&node, "/v1/kv/exact").await;
    assert_eq!(read.body, br#"{"b": 1.50, "a":12345678901234567890}"#);
    assert_eq!(read.header("content-type"), Some("application/json"));
}

/// Slow heads, slow bodies and idle connections wait for the server's own time-outs, together.
#[tokio::test(flavor = "multi_thread")]
async fn the_slow_are_cut_off_and_the_idle_are_not() {
    let node = Node::start().await;
    let slow_head = async {
        let mut wire = Wire::connect(&node).await;
        wire.send(b"GET / HT").await;
        assert!(wire.is_closed_within(Duration::from_secs(14)).await, "a head that does not end");
    };
    let dripping_head = async {
        let mut wire = Wire::connect(&node).await;
        wire.send(b"GET / HTTP/1.1\r\nX: ").await;
        let drip = async {
            while wire.send(b"x").await {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(16), drip).await.is_ok(), "a head that drips for ever");
    };
    let slow_body = async {
        let mut wire = Wire::connect(&node).await;
        wire.send(format!("{PUT_HEAD}Content-Length: 100000\r\n\r\nx").as_bytes()).await;
        let answer = wire.answer().await.expect("a refusal");
        assert_eq!((answer.status, &*answer.code()), (408, "request-timeout"));
        assert!(String::from_utf8_lossy(&answer.body).contains(r#""applied":"no""#));
    };
    let idle = async {
        let mut wire = Wire::connect(&node).await;
        wire.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(wire.answer().await.map(|answer| answer.status), Some(200));
        assert!(!wire.is_closed_within(Duration::from_secs(13)).await, "kept alive longer than a head may take");
        wire.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(wire.answer().await.map(|answer| answer.status), Some(200));
    };
    tokio::join!(slow_head, dripping_head, slow_body, idle);
    assert_eq!(get(&node, "/v1/kv/hostile").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_foreign_sites_get_nothing() {
    let node = Node::start().await;
    let with = async |method: &str, headers: &str| {
        let body = if method == "GET" { "" } else { "x" };
        let head = format!("{method} /v1/kv/page HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len());
        exchange(&node, head.as_bytes()).await
    };
    let foreign = with("PUT", "Host: localhost\r\nOrigin: http://evil.example\r\n").await;
    assert_eq!((foreign.status, &*foreign.code()), (403, "cross-site"));
    assert!(String::from_utf8_lossy(&foreign.body).contains(r#""applied":"no""#));
    assert_eq!(with("PUT", "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n").await.status, 403);
    assert_eq!(with("GET", "Host: rebound.example\r\nUser-Agent: Mozilla/5.0\r\n").await.status, 403);
    assert_eq!(with("PUT", "Host: anything.example\r\n").await.status, 201, "no browser sends this");
    assert_eq!(with("PUT", "Host: localhost:1\r\nOrigin: http://localhost:1\r\n").await.status, 200);
}

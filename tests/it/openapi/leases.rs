//! Every documented answer about leases and TTLs.

use super::*;

pub(super) async fn drive(run: &mut Run) {
    choices(run).await;
    ttls(run).await;
    shared(run).await;
    held(run).await;
}

async fn choices(run: &mut Run) {
    run.drive("kvPut", "/v1/kv/gone?lease=7f", NO_HEADERS, "v", 404).await;
    run.drive("kvPut", "/v1/kv/doc", JSON, "{}", 200).await;
    run.drive("kvPatch", "/v1/kv/doc?lease=7f", MERGE, "{}", 404).await;
    run.drive("txn", "/v1/txn", JSON, r#"{"then":[{"put":{"key":"t","value":"1","lease":"7f"}}]}"#, 404).await;
    run.drive("kvPut", "/v1/kv/gone?ttl=1ms", NO_HEADERS, "v", 400).await;
    run.drive("kvPut", "/v1/kv/gone?ttl=1m&keep_ttl", NO_HEADERS, "v", 400).await;
    let put = run.drive("kvPut", "/v1/kv/brief?ttl=1m", NO_HEADERS, "v", 201).await.json();
    assert!(put["expires_at"].is_string(), "{put}");
    let entry = run.drive("kvGet", "/v1/kv/brief?format=json", NO_HEADERS, "", 200).await;
    assert_eq!((&entry.json()["lease"], &entry.json()["ttl_ms"]), (&put["lease"], &json!(60_000)));
    assert_eq!(entry.header("tenure-ttl-ms"), Some("60000"));
    assert_eq!(entry.header("tenure-lease"), put["lease"].as_str());
    run.drive("kvHead", "/v1/kv/brief", NO_HEADERS, "", 200).await;
    let listed = run.drive("kvList", "/v1/kv?prefix=brief", NO_HEADERS, "", 200).await.json();
    assert_eq!(listed["items"][0]["ttl_ms"], json!(60_000));
    let kept = run.drive("kvPut", "/v1/kv/brief?keep_ttl&prev", NO_HEADERS, "w", 200).await.json();
    assert_eq!(kept["lease"], put["lease"]);
    run.drive("counterAdd", "/v1/counters/visits?ttl=1h", NO_HEADERS, "", 200).await;
    let txn = r#"{"if":[{"key":"brief","lease":{"ne":"0"}}],"then":[{"put":{"key":"t","value":"1","ttl":"1h"}}]}"#;
    assert_eq!(run.drive("txn", "/v1/txn", JSON, txn, 200).await.json()["succeeded"], json!(true));
}

async fn ttls(run: &mut Run) {
    let ttl = run.drive("ttlGet", "/v1/ttl/brief", NO_HEADERS, "", 200).await.json();
    assert_eq!(ttl["ttl_ms"], json!(60_000));
    run.drive("ttlGet", "/v1/ttl/none", NO_HEADERS, "", 404).await;
    let longer = run.drive("ttlPut", "/v1/ttl/brief", JSON, r#"{"ttl":120}"#, 200).await.json();
    assert_eq!((&longer["lease"], &longer["remaining_ms"]), (&ttl["lease"], &json!(120_000)));
    run.drive("ttlPut", "/v1/ttl/none?ttl=1m", NO_HEADERS, "", 404).await;
    let stays = run.drive("ttlDelete", "/v1/ttl/brief", NO_HEADERS, "", 200).await.json();
    assert_eq!(stays["ttl_ms"], Value::Null);
    run.drive("ttlDelete", "/v1/ttl/none", NO_HEADERS, "", 404).await;
    run.drive("ttlGet", "/v1/ttl/brief", NO_HEADERS, "", 200).await;
    // Setting and clearing it made no version.
    let entry = run.drive("kvGet", "/v1/kv/brief?format=json", NO_HEADERS, "", 200).await.json();
    assert_eq!((&entry["version"], entry.get("lease")), (&json!(2), None));
}

async fn shared(run: &mut Run) {
    let body = r#"{"ttl":"1m","name":"worker-1","metadata":{"zone": "b"},"id":"A1"}"#;
    let granted = run.drive("leaseGrant", "/v1/leases", JSON, body, 201).await;
    let expected = json!({"id": "00000000000000a1", "name": "worker-1", "metadata": {"zone": "b"}, "ttl_ms": 60_000,
        "remaining_ms": 60_000});
    assert_eq!(granted.json(), expected);
    run.drive("leaseGrant", "/v1/leases?ttl=1m&id=a1", NO_HEADERS, "", 409).await;
    for wrong in ["", "?ttl=1ms", "?ttl=1m&id=0", "?ttl=1m&name="] {
        run.drive("leaseGrant", &format!("/v1/leases{wrong}"), NO_HEADERS, "", 400).await;
    }
    let large = json!({"ttl": "1m", "metadata": {"a": "x".repeat(4096)}}).to_string();
    run.drive("leaseGrant", "/v1/leases", JSON, &large, 413).await;
    run.drive("leaseGrant", "/v1/leases?ttl=1m", NO_HEADERS, "", 201).await;
    run.drive("kvPut", "/v1/kv/shared?lease=a1", NO_HEADERS, "v", 201).await;
    run.drive("ttlPut", "/v1/ttl/shared?ttl=1m", NO_HEADERS, "", 409).await;
    let lease = run.drive("leaseGet", "/v1/leases/a1?keys", NO_HEADERS, "", 200).await.json();
    assert_eq!(lease["keys"], json!([{"key": "shared"}]));
    run.drive("leaseGet", "/v1/leases/a2", NO_HEADERS, "", 404).await;
    run.drive("leaseGet", "/v1/leases/zz", NO_HEADERS, "", 400).await;
    lists(run).await;
    run.drive("leaseKeepalive", "/v1/leases/a1/keepalive", NO_HEADERS, "", 200).await;
    run.drive("leaseKeepalive", "/v1/leases/a2/keepalive", NO_HEADERS, "", 404).await;
    let revoked = run.drive("leaseRevoke", "/v1/leases/a1", NO_HEADERS, "", 200).await.json();
    assert_eq!(revoked["deleted"], json!(1));
    run.drive("leaseRevoke", "/v1/leases/a1", NO_HEADERS, "", 404).await;
    run.drive("kvGet", "/v1/kv/shared", NO_HEADERS, "", 404).await;
}

async fn lists(run: &mut Run) {
    let count = |page: &Value| page["items"].as_array().map(Vec::len);
    let linked = run.drive("leaseList", "/v1/leases?limit=1", NO_HEADERS, "", 200).await;
    let first = linked.json();
    let next = format!("/v1/leases?cursor={}", first["next"].as_str().expect("a second lease"));
    let link = linked.header("link").expect("a link to the next page");
    assert_eq!(link, format!("</v1/leases?limit=1&cursor={}>; rel=\"next\"", first["next"].as_str().unwrap()));
    // Some of the leases here are of single keys, and are not listed.
    assert_eq!(count(&run.drive("leaseList", &next, NO_HEADERS, "", 200).await.json()), Some(1));
    let named = run.drive("leaseList", "/v1/leases?prefix=worker", NO_HEADERS, "", 200).await.json();
    assert_eq!((count(&named), &named["more"]), (Some(1), &json!(false)));
    run.drive("leaseList", "/v1/leases?cursor=x", NO_HEADERS, "", 400).await;
}

async fn held(run: &mut Run) {
    run.drive("leaseHold", "/v1/leases/a1/hold", NO_HEADERS, "", 404).await;
    run.drive("leaseGrant", "/v1/leases?ttl=2s&id=b1", NO_HEADERS, "", 201).await;
    run.drive("leaseHold", "/v1/leases/b1/hold?every=2s", NO_HEADERS, "", 400).await;
    run.drive("leaseHold", "/v1/leases/b1/hold", JSON, r#"{"every":"2s"}"#, 400).await;
    run.drive("leaseHold", "/v1/leases/b1/hold", JSON, r#"{"evry":"1s"}"#, 400).await;
    run.drive("leaseHold", "/v1/leases/b1/hold?every=1s", JSON, r#"{"every":"500ms"}"#, 400).await;
    run.drive("leaseHold", "/v1/leases/b1/hold", &[("content-type", "text/plain")], "every=1s", 415).await;
    let url = format!("{}/v1/leases/b1/hold?every=100ms", run.node.url());
    // The head comes after the first renewal; the body ends when the lease has.
    let stream = run.client.post(url).send().await.expect("an answer");
    run.drive("leaseRevoke", "/v1/leases/b1", NO_HEADERS, "", 200).await;
    let answer = Run::received(stream).await;
    run.note(CONTRACT.by_id("leaseHold"), "a held lease", &answer, 200);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(text.starts_with(r#"{"type":"renewed","id":"00000000000000b1","ttl_ms":2000}"#), "{text}");
    assert!(text.ends_with("{\"type\":\"ended\",\"code\":\"lease-not-found\"}\n"), "{text}");
}

//! Rate limits, and fences around every write.

use super::{CONTRACT, Headers, JSON, NO_HEADERS, Run, plain_target};
use serde_json::json;

pub(super) async fn rate_limits(run: &mut Run) {
    let target = "/v1/ratelimits/user:7?limit=2&per=1h";
    let full = run.drive("rateGet", target, NO_HEADERS, "", 200).await.json();
    assert_eq!(full, json!({"allowed": true, "limit": 2, "remaining": 2, "retry_after_ms": 0, "reset_ms": 0}));
    let taken = run.drive("rateTake", target, NO_HEADERS, "", 200).await.json();
    assert_eq!((taken["allowed"].clone(), taken["remaining"].clone()), (json!(true), json!(1)));
    let body = r#"{"limit":2,"per":3600,"burst":2,"cost":2,"strict":false}"#;
    let refused = run.drive("rateTake", "/v1/ratelimits/user:7", JSON, body, 200).await.json();
    assert_eq!((refused["allowed"].clone(), refused["remaining"].clone()), (json!(false), json!(1)));
    let retry_ms = refused["retry_after_ms"].as_u64().unwrap();
    assert!((1_700_000..=1_800_000).contains(&retry_ms), "{refused}");
    let strict = run.drive("rateTake", &format!("{target}&cost=2&strict"), NO_HEADERS, "", 429).await;
    assert_eq!(strict.code().as_deref(), Some("rate-limited"));
    let seconds: u64 = strict.header("retry-after").unwrap().parse().unwrap();
    assert!((1_700..=1_800).contains(&seconds), "{seconds}");
    let over = run.drive("rateTake", &format!("{target}&cost=3"), NO_HEADERS, "", 400).await;
    assert_eq!(over.code().as_deref(), Some("cost-over-burst"));
    for wrong in ["limit=2", "per=1h", "limit=0&per=1h", "limit=2&per=0s", "limit=2&per=366d", "limit=2000&per=1ms"] {
        run.drive("rateTake", &format!("/v1/ratelimits/user:7?{wrong}"), NO_HEADERS, "", 400).await;
        run.drive("rateGet", &format!("/v1/ratelimits/user:7?{wrong}"), NO_HEADERS, "", 400).await;
    }
    // What is kept is hidden from ranges that merely cover it, and found by those that ask for it.
    let hidden = run.send("GET", "/v1/kv?prefix=_ten&count_only", NO_HEADERS, "").await.json();
    assert_eq!(hidden["count"], json!(0));
    let kept = run.send("GET", "/v1/kv?prefix=_tenure/ratelimits/", NO_HEADERS, "").await.json();
    assert_eq!(kept["items"][0]["key"], json!("_tenure/ratelimits/user:7"));
    assert!(kept["items"][0]["lease"].is_string(), "{kept}");
    let reset = run.drive("rateReset", "/v1/ratelimits/user:7", NO_HEADERS, "", 200).await.json();
    assert_eq!(reset["deleted"], json!(1));
    assert_eq!(run.drive("rateReset", "/v1/ratelimits/user:7", NO_HEADERS, "", 200).await.json()["deleted"], json!(0));
    assert_eq!(run.drive("rateGet", target, NO_HEADERS, "", 200).await.json()["remaining"], json!(2));
}

/// Every operation that changes the store obeys a fence, and does nothing when it does not hold.
pub(super) async fn fences(run: &mut Run) {
    let before = run.send("GET", "/v1/hash", NO_HEADERS, "").await.json();
    for operation in CONTRACT.operations.iter().filter(|operation| super::mutates(operation)) {
        let fenced = operation.parameters.iter().any(|parameter| parameter["name"] == json!("Tenure-Fence"));
        assert!(fenced, "{} takes no fence", operation.id);
        let body = match operation.id.as_str() {
            "kvPatch" => r#"{"a":1}"#,
            "kvImport" => "{\"key\":\"fenced\",\"value\":\"\"}\n",
            "txn" => r#"{"if":[{"key":"never","exists":true}],"then":[],"else":[{"put":{"key":"fenced","value":""}}]}"#,
            _ => "",
        };
        // Keeping more than there is asks for nothing, so nothing is refused.
        let target =
            if operation.id == "compact" { "/v1/compact?revision=2".to_owned() } else { plain_target(operation) };
        let media_type = operation.request.keys().next().map_or("text/plain", |media_type| media_type.as_str());
        let headers: Headers<'_> = &[("tenure-fence", "nobody=1"), ("content-type", media_type)];
        let answer = run.send(&operation.method, &target, headers, body).await;
        run.note(operation, "with a fence that does not hold", &answer, 412);
        assert_eq!(answer.code().as_deref(), Some("fenced"), "{}", operation.id);
        assert_eq!(answer.json()["holder"], json!(null), "{}", operation.id);
        let headers: Headers<'_> = &[("tenure-fence", "nobody"), ("content-type", media_type)];
        let answer = run.send(&operation.method, &target, headers, body).await;
        run.note(operation, "with a malformed fence", &answer, 400);
    }
    let after = run.send("GET", "/v1/hash", NO_HEADERS, "").await.json();
    assert_eq!(before["revision"], after["revision"], "a fenced write left something behind");
    run.drive("kvGet", "/v1/kv/a", &[("tenure-fence", "nobody=1")], "", 400).await;
    let compare =
        json!({"if": [{"lock": "nobody", "token": 1}, {"semaphore": "s", "token": 1}, {"election": "e", "token": 1}]});
    let answer = run.drive("txn", "/v1/txn", JSON, &compare.to_string(), 200).await.json();
    assert_eq!(answer["failed_if"], json!([0, 1, 2]));
}

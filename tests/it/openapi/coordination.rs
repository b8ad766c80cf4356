//! Rate limits, locks, semaphores, elections, and fences around every write.

use super::{Answer, CONTRACT, Headers, JSON, NO_HEADERS, Operation, Run, plain_target};
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
    // Renewing changes nothing that a fence could guard, the membership is no part of the
    // store, and a restore ends whatever a fence could stand for.
    let is_elsewhere = |operation: &Operation| {
        let id = operation.id.as_str();
        matches!(id, "leaseKeepalive" | "leaseHold" | "leaderMove" | "restore") || id.starts_with("member")
    };
    for operation in CONTRACT.operations.iter().filter(|operation| super::mutates(operation)) {
        let fenced = operation.parameters.iter().any(|parameter| parameter["name"] == json!("Tenure-Fence"));
        assert_eq!(fenced, !is_elsewhere(operation), "{}", operation.id);
        if !fenced {
            let headers: Headers<'_> = &[("tenure-fence", "nobody=1")];
            let answer = run.send(&operation.method, &plain_target(operation), headers, "").await;
            run.note(operation, "with a fence", &answer, 400);
            continue;
        }
        let body = match operation.id.as_str() {
            "kvPatch" => r#"{"a":1}"#,
            "kvImport" => "{\"key\":\"fenced\",\"value\":\"\"}\n",
            "txn" => r#"{"if":[{"key":"never","exists":true}],"then":[],"else":[{"put":{"key":"fenced","value":""}}]}"#,
            "electionProclaim" => "v",
            _ => "",
        };
        // Keeping more than there is asks for nothing, so nothing is refused.
        let claim = operation.path.contains("{lease}");
        let target = match operation.id.as_str() {
            "compact" => "/v1/compact?revision=2".to_owned(),
            "lockBreak" | "semaphoreBreak" => operation.path.replace("{name}", "driven"),
            "semaphoreAcquire" => "/v1/semaphores/plain?limit=1".to_owned(),
            "semaphoreHold" => "/v1/semaphores/plain/hold?limit=1".to_owned(),
            "leaseGrant" => "/v1/leases?ttl=1m".to_owned(),
            _ if claim => operation.path.replace("{name}", "driven").replace("{lease}", "c9"),
            "ttlPut" => "/v1/ttl/plain?ttl=1m".to_owned(),
            _ => plain_target(operation),
        };
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

pub(super) fn changes_claims(operation: &Operation) -> bool {
    let claims = ["/v1/locks", "/v1/semaphores", "/v1/elections"].iter().any(|root| operation.path.starts_with(root));
    claims && operation.method != "GET"
}

/// Reads a stream until a line holds `word`, and closes it.
async fn until(run: &mut Run, id: &str, target: &str, headers: Headers<'_>, word: &str) -> String {
    let operation = CONTRACT.by_id(id);
    let method = reqwest::Method::from_bytes(operation.method.as_bytes()).unwrap();
    let mut request = run.client.request(method, format!("{}{target}", run.node.url()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = request.send().await.expect("an answer");
    let mut answer = Answer { status: response.status().as_u16(), headers: Vec::new(), body: Vec::new() };
    for (name, value) in response.headers() {
        answer.headers.push((name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    }
    while !String::from_utf8_lossy(&answer.body).contains(word) {
        let chunk = response.chunk().await.expect("a stream").unwrap_or_else(|| panic!("{target} ended: {answer:?}"));
        answer.body.extend_from_slice(&chunk);
    }
    drop(response);
    if answer.media_type() != Some("text/event-stream") {
        run.note(operation, target, &answer, 200);
    }
    String::from_utf8(answer.body).unwrap()
}

/// Another's claim on `lock`, `semaphore` or `election`, of the lease that the test keeps.
async fn shared_refusals(run: &mut Run, kind: &str, ask: &str) {
    let (root, hold) = (format!("/v1/{kind}s"), format!("{kind}Hold"));
    run.drive("leaseGrant", &format!("/v1/leases?ttl=1h&id={}", kind.len() + 160), NO_HEADERS, "", 201).await;
    for wrong in ["ttl=1ms", "wait=11m", "owner=", "lease=xyz", "lease=7f&owner=me", "enqueue&wait=1s"] {
        run.drive(ask, &format!("{root}/x?{wrong}"), NO_HEADERS, "", 400).await;
        run.drive(&hold, &format!("{root}/x/hold?{wrong}"), NO_HEADERS, "", 400).await;
    }
    run.drive(ask, &format!("{root}/%00"), NO_HEADERS, "", 400).await;
    let limit = if kind == "semaphore" { "&limit=1" } else { "" };
    run.drive(ask, &format!("{root}/x?lease=7f{limit}"), NO_HEADERS, "", 404).await;
    run.drive(&hold, &format!("{root}/x/hold?lease=7f{limit}"), NO_HEADERS, "", 404).await;
    run.drive(&format!("{kind}ClaimGet"), &format!("{root}/x/claims/7f"), NO_HEADERS, "", 404).await;
    let release = if kind == "election" { "electionResign".to_owned() } else { format!("{kind}Release") };
    run.drive(&release, &format!("{root}/x/claims/7f"), NO_HEADERS, "", 404).await;
    run.drive(&format!("{kind}ClaimGet"), &format!("{root}/x/claims/xyz"), NO_HEADERS, "", 400).await;
    run.drive(&format!("{kind}Get"), &format!("{root}/x"), NO_HEADERS, "", 200).await;
    run.drive(&format!("{kind}List"), &root, NO_HEADERS, "", 200).await;
    run.drive(&format!("{kind}List"), &format!("{root}?cursor=x"), NO_HEADERS, "", 400).await;
    if kind == "lock" {
        run.drive("leaseGrant", "/v1/leases?ttl=1h&id=c9", NO_HEADERS, "", 201).await;
    }
    // For the tests of fences and idempotency keys.
    let driven = format!("{root}/driven?lease=c9{limit}");
    run.drive(ask, &driven, NO_HEADERS, "", 200).await;
    run.drive(ask, &driven, NO_HEADERS, "", 200).await;
}

pub(super) async fn locks(run: &mut Run) {
    shared_refusals(run, "lock", "lockAcquire").await;
    let body = r#"{"ttl":60,"owner":"ci-42","metadata":{"run": 7}}"#;
    let held = run.drive("lockAcquire", "/v1/locks/a%2Fb", JSON, body, 200).await.json();
    let token = held["token"].as_i64().unwrap();
    let lease = held["lease"].as_str().unwrap().to_owned();
    let expected = json!({"name": "a/b", "kind": "lock", "state": "held", "position": 0, "token": token, "lease": lease,
        "owner": "ci-42", "metadata": {"run": 7}, "ttl_ms": 60_000, "remaining_ms": 60_000});
    assert_eq!(held, expected);
    let page = run.drive("lockList", "/v1/locks?limit=1", NO_HEADERS, "", 200).await;
    let next = page.json()["next"].as_str().expect("a second lock").to_owned();
    let link = page.header("link").expect("a link to the next page");
    assert_eq!(link, format!("</v1/locks?limit=1&cursor={next}>; rel=\"next\""));
    let key = format!("/v1/kv/_tenure/locks/a%252Fb/{}", lease.trim_start_matches('0'));
    assert_eq!(
        run.drive("kvGet", &key, NO_HEADERS, "", 200).await.header("tenure-create-revision").unwrap(),
        token.to_string()
    );
    let refused = run.drive("lockAcquire", "/v1/locks/a%2Fb?owner=me&wait=20ms", NO_HEADERS, "", 409).await.json();
    assert_eq!((&refused["holder"]["owner"], &refused["waiting"]), (&json!("ci-42"), &json!(0)));
    assert!(refused["waited_ms"].as_u64().unwrap() >= 20, "{refused}");
    let waiting = run.drive("lockAcquire", "/v1/locks/a%2Fb?owner=next&enqueue", NO_HEADERS, "", 202).await.json();
    assert_eq!((&waiting["state"], &waiting["position"]), (&json!("waiting"), &json!(1)));
    let next = waiting["lease"].as_str().unwrap();
    let claim = format!("/v1/locks/a%2Fb/claims/{next}");
    assert_eq!(run.drive("lockClaimGet", &claim, NO_HEADERS, "", 200).await.json()["state"], json!("waiting"));
    run.drive("lockHold", "/v1/locks/a%2Fb/hold?wait=0s", NO_HEADERS, "", 409).await;
    let state = run.drive("lockGet", "/v1/locks/a%2Fb", NO_HEADERS, "", 200).await.json();
    assert_eq!((&state["holder"]["lease"], state["waiters"].as_array().unwrap().len()), (&json!(lease), 1));
    let page = run.drive("lockList", "/v1/locks?prefix=a/&limit=1", NO_HEADERS, "", 200).await.json();
    assert_eq!((&page["items"][0]["name"], page["items"].as_array().unwrap().len()), (&json!("a/b"), 1));
    // A fence that holds lets the write pass; after the lock was taken away it does not.
    let good = format!("a%2Fb={token}");
    run.drive("kvPut", "/v1/kv/guarded", &[("tenure-fence", &good)], "1", 201).await;
    let compare = json!({"if": [{"lock": "a/b", "token": token}], "then": []}).to_string();
    assert_eq!(run.drive("txn", "/v1/txn", JSON, &compare, 200).await.json()["succeeded"], json!(true));
    let broken = run.drive("lockBreak", "/v1/locks/a%2Fb", NO_HEADERS, "", 200).await.json();
    assert_eq!(broken["broken"][0]["owner"], json!("ci-42"));
    let fenced = run.drive("kvPut", "/v1/kv/guarded", &[("tenure-fence", &good)], "2", 412).await.json();
    assert_eq!((&fenced["lock"], &fenced["holder"]["lease"]), (&json!("a/b"), &json!(next)));
    let got = run.drive("lockClaimGet", &format!("{claim}?wait=5s"), NO_HEADERS, "", 200).await.json();
    assert_eq!(got["state"], json!("held"));
    run.drive("lockRelease", &claim, NO_HEADERS, "", 200).await;
    run.drive("lockRelease", &claim, NO_HEADERS, "", 404).await;
    run.drive("lockBreak", "/v1/locks/a%2Fb", NO_HEADERS, "", 404).await;
    let lines = until(run, "lockHold", "/v1/locks/held/hold?owner=me", NO_HEADERS, "\n").await;
    assert!(lines.contains(r#""state":"held""#), "{lines}");
    super::super::support::eventually("a closed hold releases", std::time::Duration::from_secs(5), async || {
        run.send("GET", "/v1/locks/held", NO_HEADERS, "").await.json()["held"] == json!(false)
    })
    .await;
}

pub(super) async fn semaphores(run: &mut Run) {
    shared_refusals(run, "semaphore", "semaphoreAcquire").await;
    run.drive("semaphoreAcquire", "/v1/semaphores/none", NO_HEADERS, "", 400).await;
    run.drive("semaphoreAcquire", "/v1/semaphores/none?limit=2&permits=3", NO_HEADERS, "", 400).await;
    let two = run.drive("semaphoreAcquire", "/v1/semaphores/s?limit=3&permits=2", NO_HEADERS, "", 200).await.json();
    assert_eq!(two["permits"], json!(2));
    run.drive("semaphoreAcquire", "/v1/semaphores/s?permits=4", NO_HEADERS, "", 400).await;
    let refused = run.drive("semaphoreAcquire", "/v1/semaphores/s?permits=2", NO_HEADERS, "", 409).await;
    assert_eq!(refused.code().as_deref(), Some("lock-held"));
    let other = run.drive("semaphoreAcquire", "/v1/semaphores/s?limit=4", NO_HEADERS, "", 409).await;
    assert_eq!((other.code().as_deref(), &other.json()["limit"]), (Some("limit-mismatch"), &json!(3)));
    run.drive("semaphoreHold", "/v1/semaphores/s/hold?permits=2&wait=0s", NO_HEADERS, "", 409).await;
    let waiting = run.drive("semaphoreAcquire", "/v1/semaphores/s?permits=2&enqueue", NO_HEADERS, "", 202).await.json();
    // One permit is free, but nobody passes whoever waits.
    run.drive("semaphoreAcquire", "/v1/semaphores/s?permits=1&wait=20ms", NO_HEADERS, "", 409).await;
    let claim = format!("/v1/semaphores/s/claims/{}", two["lease"].as_str().unwrap());
    run.drive("semaphoreRelease", &claim, NO_HEADERS, "", 200).await;
    let claim = format!("/v1/semaphores/s/claims/{}?wait=5s", waiting["lease"].as_str().unwrap());
    assert_eq!(run.drive("semaphoreClaimGet", &claim, NO_HEADERS, "", 200).await.json()["state"], json!("held"));
    let state = run.drive("semaphoreGet", "/v1/semaphores/s", NO_HEADERS, "", 200).await.json();
    assert_eq!((&state["limit"], &state["used"]), (&json!(3), &json!(2)));
    let fence = format!("sem:s={}", waiting["token"]);
    run.drive("kvPut", "/v1/kv/guarded", &[("tenure-fence", &fence)], "3", 200).await;
    let broken = run.drive("semaphoreBreak", "/v1/semaphores/s", NO_HEADERS, "", 200).await.json();
    assert_eq!(broken["broken"].as_array().unwrap().len(), 1);
    run.drive("semaphoreBreak", "/v1/semaphores/s", NO_HEADERS, "", 404).await;
    let lines = until(run, "semaphoreHold", "/v1/semaphores/h/hold?limit=1", NO_HEADERS, "\n").await;
    assert!(lines.contains(r#""permits":1"#), "{lines}");
}

pub(super) async fn elections(run: &mut Run) {
    shared_refusals(run, "election", "electionCampaign").await;
    let leader = run.drive("electionCampaign", "/v1/elections/e?value=n1&ttl=1m", NO_HEADERS, "", 200).await.json();
    let refused = run.drive("electionCampaign", "/v1/elections/e?value=n2", NO_HEADERS, "", 409).await;
    assert_eq!(refused.code().as_deref(), Some("leader-exists"));
    run.drive("electionHold", "/v1/elections/e/hold?wait=0s", NO_HEADERS, "", 409).await;
    let bytes = r#"{"value_base64":"/wA=","enqueue":true}"#;
    let second = run.drive("electionCampaign", "/v1/elections/e", JSON, bytes, 202).await.json();
    assert_eq!(second["value_base64"], json!("/wA="));
    let state = run.drive("electionGet", "/v1/elections/e", NO_HEADERS, "", 200).await;
    let tag = state.header("etag").unwrap().to_owned();
    assert_eq!(tag, format!("\"{}\"", leader["token"]));
    run.drive("electionGet", "/v1/elections/e?wait=20ms", &[("if-none-match", &tag)], "", 304).await;
    let mine = format!("/v1/elections/e/claims/{}", leader["lease"].as_str().unwrap());
    let theirs = format!("/v1/elections/e/claims/{}", second["lease"].as_str().unwrap());
    let said = run.drive("electionProclaim", &mine, JSON, r#"{"value":"n1b"}"#, 200).await.json();
    assert_eq!((&said["value"], &said["token"]), (&json!("n1b"), &leader["token"]));
    run.drive("electionProclaim", &mine, NO_HEADERS, "n1c", 200).await;
    run.drive("electionProclaim", &mine, JSON, r#"{"walue":"n1b"}"#, 400).await;
    run.drive("electionProclaim", &theirs, NO_HEADERS, "n2", 409).await;
    run.drive("electionProclaim", "/v1/elections/e/claims/7f", NO_HEADERS, "n2", 404).await;
    let lines = until(run, "electionObserve", "/v1/elections/e/observe?bookmarks=1s", NO_HEADERS, "bookmark").await;
    assert!(lines.starts_with(r#"{"type":"leader""#) && lines.contains(r#""value":"n1c""#), "{lines}");
    let sse: Headers<'_> = &[("accept", "text/event-stream")];
    let events = until(run, "electionObserve", "/v1/elections/e/observe", sse, "}\n\n").await;
    assert!(events.starts_with("retry: 1000\n\nevent: leader\nid: "), "{events}");
    let id = events.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    let back: Headers<'_> = &[("accept", "text/event-stream"), ("last-event-id", &id)];
    let again = until(run, "electionObserve", "/v1/elections/e/observe?consistency=stale", back, "leader").await;
    assert!(again.contains(r#""value":"n1c""#), "{again}");
    let odd: Headers<'_> = &[("last-event-id", "yesterday")];
    run.drive("electionObserve", "/v1/elections/e/observe", odd, "", 400).await;
    let ahead: Headers<'_> = &[("last-event-id", "900000000")];
    run.drive("electionObserve", "/v1/elections/e/observe?consistency=stale&timeout=50ms", ahead, "", 504).await;
    run.drive("electionResign", &mine, NO_HEADERS, "", 200).await;
    let changed = run.drive("electionGet", "/v1/elections/e?wait=5s", &[("if-none-match", &tag)], "", 200).await.json();
    assert_eq!(changed["leader"]["token"], second["token"]);
    assert_eq!(run.drive("electionClaimGet", &theirs, NO_HEADERS, "", 200).await.json()["state"], json!("held"));
    let lines = until(run, "electionHold", "/v1/elections/h/hold?value=me", NO_HEADERS, "\n").await;
    assert!(lines.contains(r#""value":"me""#), "{lines}");
}

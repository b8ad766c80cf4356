//! What the API promises beyond its shapes: conditions under contention, at-most-once, pages of one
//! revision, waits that wake and end, and answers that survive the process.

use crate::support::{Data, Node};
use futures_util::future::join_all;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

struct Api {
    node: Node,
    client: Client,
}

impl Api {
    async fn start() -> Self {
        Self { node: Node::start().await, client: Client::new() }
    }

    fn request(&self, method: &str, target: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.client.request(method, format!("{}{target}", self.node.url()))
    }

    async fn get(&self, target: &str) -> Response {
        self.request("GET", target).send().await.unwrap()
    }

    async fn json(&self, target: &str) -> Value {
        self.get(target).await.json().await.unwrap()
    }

    async fn put(&self, key: &str, value: &str) -> Response {
        self.request("PUT", &format!("/v1/kv/{key}")).body(value.to_owned()).send().await.unwrap()
    }

    async fn lines(&self, target: &str) -> Vec<Value> {
        let answer = self.request("GET", target).header("accept", "application/x-ndjson").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let text = answer.text().await.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn keys(entries: &[Value]) -> Vec<String> {
    entries.iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_come_back_as_they_were_sent() {
    let api = Api::start().await;
    let bytes: Vec<u8> = (0..=255).collect();
    for (key, content_type, body, served) in [
        ("binary", None, bytes.clone(), "application/octet-stream"),
        ("text", None, b"d\xc3\xa9j\xc3\xa0".to_vec(), "text/plain; charset=utf-8"),
        ("form", Some("application/x-www-form-urlencoded"), b"hello".to_vec(), "text/plain; charset=utf-8"),
        ("page", Some("text/html"), b"<script>".to_vec(), "text/html"),
        ("empty", Some("image/png"), Vec::new(), "image/png"),
    ] {
        let mut request = api.request("PUT", &format!("/v1/kv/{key}")).body(body.clone());
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        assert_eq!(request.send().await.unwrap().status(), StatusCode::CREATED);
        let head = api.request("HEAD", &format!("/v1/kv/{key}")).send().await.unwrap();
        let read = api.get(&format!("/v1/kv/{key}")).await;
        for name in ["content-type", "content-length", "etag", "tenure-version", "content-security-policy"] {
            assert_eq!(head.headers().get(name), read.headers().get(name), "{key} {name}");
        }
        assert_eq!(read.headers()["content-type"], served);
        assert_eq!(read.headers()["x-content-type-options"], "nosniff");
        assert_eq!(read.headers()["content-security-policy"], "sandbox; default-src 'none'");
        assert_eq!(read.bytes().await.unwrap(), body, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_creators_wins() {
    let api = Api::start().await;
    let contenders = (0..16).map(|number| {
        let by_header = number % 2 == 0;
        let target = if by_header { "/v1/kv/won" } else { "/v1/kv/won?cas=0" };
        let request = api.request("PUT", target).body(number.to_string());
        let request = if by_header { request.header("if-none-match", "*") } else { request };
        async move { (number, request.send().await.unwrap()) }
    });
    let answers = join_all(contenders).await;
    let won: Vec<_> = answers.iter().filter(|(_, answer)| answer.status() == StatusCode::CREATED).collect();
    let [(winner, answer)] = won[..] else { panic!("{} won", won.len()) };
    let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
    assert!(answers.iter().all(|(_, answer)| matches!(answer.status().as_u16(), 201 | 412)));
    let read = api.get("/v1/kv/won").await;
    assert_eq!(read.headers()["etag"], tag.as_str());
    assert_eq!(read.text().await.unwrap(), winner.to_string());
    let stale = api.request("PUT", "/v1/kv/won").header("if-match", "\"1\"").body("x").send().await.unwrap();
    assert_eq!(stale.status(), StatusCode::PRECONDITION_FAILED);
    let problem: Value = stale.json().await.unwrap();
    assert_eq!(problem["current"]["value"], json!(winner.to_string()));
    assert_eq!((&problem["applied"], &problem["code"]), (&json!("no"), &json!("precondition-failed")));
    let next = api.request("PUT", "/v1/kv/won").header("if-match", tag).body("next").send().await.unwrap();
    assert_eq!(next.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_happens_once() {
    let api = Api::start().await;
    let once = (0..12).map(|_| {
        let request = api.request("POST", "/v1/counters/visits?add=5").header("idempotency-key", "visit-1");
        async move { request.send().await.unwrap() }
    });
    let mut replayed = 0;
    let mut bodies = BTreeSet::new();
    for answer in join_all(once).await {
        assert_eq!(answer.status(), StatusCode::OK);
        replayed += usize::from(answer.headers().contains_key("idempotency-replayed"));
        bodies.insert(answer.text().await.unwrap());
    }
    assert_eq!((replayed, bodies.len()), (11, 1), "{bodies:?}");
    assert_eq!(api.json("/v1/counters/visits").await["value"], json!(5));
    let request = api.request("POST", "/v1/counters/visits?add=6").header("idempotency-key", "visit-1");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::UNPROCESSABLE_ENTITY);
    // A large answer is kept as its outcome only, and still makes sense.
    api.put("large", &"x".repeat(10_000)).await;
    let put = || api.request("PUT", "/v1/kv/large?prev").header("idempotency-key", "large-1").body("y").send();
    assert!(put().await.unwrap().json::<Value>().await.unwrap()["previous"].is_object());
    let again = put().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    assert_eq!(again.json::<Value>().await.unwrap()["outcome_only"], json!(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_one_revision_whatever_is_written_meanwhile() {
    let api = Api::start().await;
    for number in 0..25 {
        api.put(&format!("p/{number:02}"), "old").await;
    }
    for (order, ascending) in [("asc", true), ("desc", false)] {
        let mut seen = Vec::new();
        let mut target = format!("/v1/kv?prefix=p/&limit=7&order={order}");
        let mut revision = None;
        loop {
            let answer = api.get(&target).await;
            let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
            let page: Value = answer.json().await.unwrap();
            assert_eq!(*revision.get_or_insert(page["revision"].clone()), page["revision"]);
            seen.extend(page["items"].as_array().unwrap().clone());
            assert_eq!(page["more"].as_bool(), Some(link.is_some()));
            let Some(link) = link else { break };
            target = link.trim_start_matches('<').split('>').next().unwrap().to_owned();
            api.put(&format!("p/{:02}", seen.len()), "new").await;
            api.put(&format!("p/zz{order}{}", seen.len()), "new").await;
        }
        let mut names = keys(&seen);
        let unchanged = if ascending { seen.iter().all(|entry| entry["value"] == "old") } else { true };
        assert!(unchanged, "a later write shows in {seen:?}");
        names.sort();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), seen.len(), "a key came twice");
        assert!(names.len() >= 25, "{names:?}");
    }
    let all = api.json("/v1/kv?prefix=p/&count&limit=1000").await;
    let items = all["items"].as_array().unwrap();
    assert_eq!(all["count"].as_u64(), Some(items.len() as u64));
    assert_eq!(&api.lines("/v1/kv?prefix=p/").await, items);
    assert_eq!(api.lines("/v1/kv?prefix=p/&limit=3").await, items[..3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_was_overtaken_by_compaction_says_so() {
    let api = Api::start().await;
    for number in 0..4 {
        api.put(&format!("c/{number}"), "1").await;
    }
    let cursor = api.json("/v1/kv?prefix=c/&limit=2").await["next"].as_str().unwrap().to_owned();
    api.put("c/0", "2").await;
    let current = api.put("c/0", "3").await.json::<Value>().await.unwrap()["revision"].as_i64().unwrap();
    let compacted = api.request("POST", &format!("/v1/compact?revision={current}")).send().await.unwrap();
    assert_eq!(compacted.status(), StatusCode::OK);
    let gone = api.get(&format!("/v1/kv?prefix=c/&limit=2&cursor={cursor}")).await;
    assert_eq!(gone.status(), StatusCode::GONE);
    assert_eq!(gone.json::<Value>().await.unwrap()["compacted_revision"], json!(current));
    assert_eq!(keys(api.json("/v1/kv?prefix=c/").await["items"].as_array().unwrap()).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_can_be_imported() {
    let api = Api::start().await;
    let import = async |query: &str, body: String| {
        let request = api.request("POST", &format!("/v1/import{query}")).header("content-type", "application/x-ndjson");
        request.body(body).send().await.unwrap()
    };
    // More than one transaction holds, with the same key again and again.
    let many: String = (0..700).map(|n| format!("{{\"key\":\"e/{}\",\"value\":\"{n}\"}}\n", n % 350)).collect();
    let imported: Value = import("", many).await.json().await.unwrap();
    assert_eq!((&imported["imported"], &imported["skipped"]), (&json!(700), &json!(0)));
    assert_eq!(api.get("/v1/kv/e/7").await.text().await.unwrap(), "357", "the last line wins");
    api.request("PUT", "/v1/kv/e/%FF").header("content-type", "image/png").body(vec![0, 255]).send().await.unwrap();
    let export = api.request("GET", "/v1/kv?prefix=e/").header("accept", "application/x-ndjson");
    let export = export.send().await.unwrap().text().await.unwrap();
    let again: Value = import("?prefix=copy/&on_conflict=fail", export.clone()).await.json().await.unwrap();
    assert_eq!(again["imported"], json!(351));
    assert_eq!(api.get("/v1/kv/copy/e/%FF").await.headers()["content-type"], "image/png");
    let skipped: Value = import("?prefix=copy/&on_conflict=skip", export.clone()).await.json().await.unwrap();
    assert_eq!((&skipped["imported"], &skipped["skipped"]), (&json!(0), &json!(351)), "{skipped}");
    let conflict =
        import("?prefix=copy/&on_conflict=fail", format!("{{\"key\":\"new\",\"value\":\"\"}}\n\n{export}")).await;
    assert_eq!(conflict.status(), StatusCode::CONFLICT);
    let problem: Value = conflict.json().await.unwrap();
    assert_eq!((&problem["code"], &problem["line"]), (&json!("key-exists"), &json!(3)));
    assert_eq!(api.get("/v1/kv/copy/new").await.status(), StatusCode::NOT_FOUND, "its transaction did not happen");
    let broken: String = (0..300).map(|n| format!("{{\"key\":\"b/{n}\",\"value\":\"\"}}\n")).collect();
    let problem: Value = import("", broken + "{\"key\":").await.json().await.unwrap();
    assert_eq!(
        (&problem["code"], &problem["line"], &problem["applied"]),
        (&json!("invalid-body"), &json!(301), &json!("unknown"))
    );
    let count = api.json("/v1/kv?prefix=b/&count_only").await["count"].clone();
    assert_eq!(problem["imported"], count);
}

/// What was to vanish vanishes: with its lease where that lives, by a TTL of its own otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn leases_and_ttls_are_carried_over() {
    let api = Api::start().await;
    let import = async |query: &str, body: String| {
        let request = api.request("POST", &format!("/v1/import{query}")).header("content-type", "application/x-ndjson");
        let answer = request.body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    api.request("POST", "/v1/leases?ttl=60s&id=fa").send().await.unwrap();
    api.request("PUT", "/v1/kv/t/shared?lease=fa").body("1").send().await.unwrap();
    api.request("PUT", "/v1/kv/t/own?ttl=40s").body("2").send().await.unwrap();
    let export = api.request("GET", "/v1/kv?prefix=t/").header("accept", "application/x-ndjson");
    let export = export.send().await.unwrap().text().await.unwrap();
    assert!(export.contains("\"ttl_ms\":60000") && export.contains("\"ttl_ms\":40000"), "{export}");
    assert_eq!(import("?prefix=copy/", export.clone()).await.1["imported"], json!(2));
    let shared = api.json("/v1/ttl/copy/t/shared").await;
    assert_eq!(shared["lease"], json!("00000000000000fa"));
    let (own, before) = (api.json("/v1/ttl/copy/t/own").await, api.json("/v1/ttl/t/own").await);
    assert_eq!(own["ttl_ms"], json!(40_000));
    assert_ne!(own["lease"], before["lease"], "a lease of one key is not shared with its copy");
    // Its lease is gone: the entry gets the TTL that the lease had.
    api.request("DELETE", "/v1/leases/fa").send().await.unwrap();
    assert_eq!(import("?prefix=late/", export).await.1["imported"], json!(2));
    let late = api.json("/v1/ttl/late/t/shared").await;
    assert_eq!(late["ttl_ms"], json!(60_000));
    assert_ne!(late["lease"], json!("00000000000000fa"));
    let lost = "{\"key\":\"a\",\"value\":\"\"}\n{\"key\":\"b\",\"value\":\"\",\"lease\":\"00000000000000fb\"}\n";
    let (status, problem) = import("", lost.to_owned()).await;
    assert_eq!((status, &problem["code"], &problem["line"]), (404, &json!("lease-not-found"), &json!(2)));
    let txn = json!({"then": [{"put": {"key": "x", "value": "1", "ttl": "30s"}}, {"get": {"key": "x"}}]});
    let request = api.request("POST", "/v1/txn").header("content-type", "application/json");
    let told: Value = request.body(txn.to_string()).send().await.unwrap().json().await.unwrap();
    assert!(told["results"][0]["put"]["expires_at"].is_string(), "{told}");
    assert_eq!(told["results"][1]["get"]["ttl_ms"], json!(30_000), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_wake_at_the_change_and_end_at_their_time() {
    let api = Api::start().await;
    let created = api.put("w", "1").await;
    let tag = created.headers()["etag"].clone();
    let known = |tag: &reqwest::header::HeaderValue| {
        api.request("GET", "/v1/kv/w?wait=30s").header("if-none-match", tag).send()
    };
    let (woken, _) = tokio::join!(known(&tag), api.put("w", "2"));
    let woken = woken.unwrap();
    let tag = woken.headers()["etag"].clone();
    assert_eq!((woken.status(), woken.headers()["tenure-wait-ms"].to_str().unwrap()), (StatusCode::OK, "30000"));
    assert_eq!(woken.text().await.unwrap(), "2");
    let (gone, _) = tokio::join!(known(&tag), api.request("DELETE", "/v1/kv/w").send());
    assert_eq!(gone.unwrap().status(), StatusCode::NOT_FOUND);
    let (appeared, _) = tokio::join!(api.get("/v1/kv/later?wait=30s"), api.put("later", "here"));
    assert_eq!(appeared.text().await.unwrap(), "here");
    assert_eq!(api.get("/v1/kv/never?wait=50ms").await.status(), StatusCode::NOT_FOUND);
    let tag = api.get("/v1/kv/later").await.headers()["etag"].clone();
    let same = api.request("GET", "/v1/kv/later?wait=50ms").header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
    let clamped = api.get("/v1/kv/later?wait=24h").await;
    assert_eq!(clamped.headers()["tenure-wait-ms"], "600000");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_waits_and_leaves_cleanly() {
    let mut api = Api::start().await;
    api.put("s", "1").await;
    let waiting = tokio::spawn(api.request("GET", "/v1/kv/none?wait=10m").send());
    crate::support::eventually("the wait is counted", Duration::from_secs(5), async || {
        api.json("/v1/status").await["watchers"].as_u64() > Some(0)
    })
    .await;
    let status = api.node.stop().await;
    assert!(status.success(), "{status}");
    // Told so, or cut off with the connection: but not left hanging.
    if let Ok(answer) = waiting.await.unwrap() {
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_the_process() {
    let data = Data::fresh();
    let mut api = Api { node: Node::start_with(&data, &[]).await, client: Client::new() };
    let mut revision = 0;
    for round in 0..3 {
        let answer: Value = api.put(&format!("d/{round}"), "kept").await.json().await.unwrap();
        let written = answer["revision"].as_i64().unwrap();
        assert!(written > revision, "revisions never go back");
        revision = written;
        if round == 1 {
            api.node.stop().await;
        } else {
            api.node.kill();
        }
        api = Api { node: api.node.restart().await, client: Client::new() };
        let list = api.json("/v1/kv?prefix=d/").await;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(round + 1));
        assert!(list["revision"].as_i64() >= Some(revision));
    }
    let history = api.json("/v1/history/d/0").await;
    assert_eq!(history["items"][0]["value"], json!("kept"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_at_an_old_revision_is_of_then() {
    let api = Api::start().await;
    let mut revisions = Vec::new();
    for value in ["one", "two", "three"] {
        let answer: Value = api.put("h", value).await.json().await.unwrap();
        revisions.push((answer["revision"].as_i64().unwrap(), value));
    }
    api.request("DELETE", "/v1/kv/h").send().await.unwrap();
    for (revision, value) in &revisions {
        assert_eq!(api.get(&format!("/v1/kv/h?revision={revision}")).await.text().await.unwrap(), *value);
    }
    assert_eq!(api.get("/v1/kv/h").await.status(), StatusCode::NOT_FOUND);
    let history = api.json("/v1/history/h").await;
    let kinds: Vec<_> =
        history["items"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["delete", "put", "put", "put"]);
    let read = api.get(&format!("/v1/kv/none?consistency=stale&min_revision={}", revisions[2].0 + 1)).await;
    assert_eq!(read.status(), StatusCode::NOT_FOUND);
    let ahead = api.get("/v1/kv/h?consistency=stale&min_revision=1000000&timeout=50ms").await;
    assert_eq!(ahead.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(ahead.json::<Value>().await.unwrap()["code"], json!("revision-not-reached"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_seen_whole_or_not_at_all() {
    let api = Api::start().await;
    let txn = |value: u32| {
        let body = json!({"then": [{"put": {"key": "t/a", "value": value.to_string()}}, {"put": {"key": "t/b", "value": value.to_string()}}]});
        api.request("POST", "/v1/txn").header("content-type", "application/json").body(body.to_string()).send()
    };
    txn(0).await.unwrap();
    let write = async {
        for value in 1..60 {
            assert_eq!(txn(value).await.unwrap().status(), StatusCode::OK);
        }
    };
    let read = async {
        for _ in 0..60 {
            let items = api.json("/v1/kv?prefix=t/").await["items"].clone();
            assert_eq!(items[0]["value"], items[1]["value"], "half a transaction: {items}");
            assert_eq!(items[0]["mod_revision"], items[1]["mod_revision"]);
        }
    };
    tokio::join!(write, read);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_says_how_long_it_is() {
    let api = Api::start().await;
    api.put("a", "1").await;
    let answer = api.get("/v1/snapshot").await;
    let length: usize = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
    assert_eq!(answer.bytes().await.unwrap().len(), length);
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_in_a_transaction_share_one_page() {
    let api = Api::start().await;
    let value = "x".repeat(1 << 20);
    for number in 0..8 {
        assert_eq!(api.put(&format!("big/{number}"), &value).await.status(), StatusCode::CREATED);
    }
    for (listings, each) in [(1, 4), (2, 2), (8, 1)] {
        let lists: Vec<Value> = (0..listings).map(|_| json!({ "list": { "prefix": "big/" } })).collect();
        let request = api.request("POST", "/v1/txn").json(&json!({ "then": lists }));
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        for result in answer["results"].as_array().unwrap() {
            let list = &result["list"];
            assert_eq!(list["items"].as_array().unwrap().len(), each, "of {listings}");
            assert_eq!((&list["more"], &list["count"]), (&true.into(), &8.into()));
        }
    }
    let keys_only = json!({ "then": [{ "list": { "prefix": "big/", "keys_only": true } }] });
    let answer: Value = api.request("POST", "/v1/txn").json(&keys_only).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["results"][0]["list"]["more"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_media_type_is_stored_as_one() {
    let api = Api::start().await;
    for (declared, status) in
        [("text/plain; charset=utf-8", 201), ("json", 400), ("text/plain; charset", 400), ("a b/c", 400)]
    {
        let put = api.request("PUT", "/v1/kv/typed?cas=0").header("content-type", declared).body("x");
        let answer = put.send().await.unwrap();
        assert_eq!(answer.status(), status, "{declared}");
        if status == 400 {
            let problem: Value = answer.json().await.unwrap();
            assert_eq!((&problem["code"], &problem["applied"]), (&"invalid-parameter".into(), &"no".into()));
            assert_eq!(problem["parameter"], "content-type");
        } else {
            api.request("DELETE", "/v1/kv/typed").send().await.unwrap();
        }
    }
    let put = json!({ "then": [{ "put": { "key": "a", "value": "1", "content_type": "json" } }] });
    let answer = api.request("POST", "/v1/txn").json(&put).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert!(answer.text().await.unwrap().contains("content_type"));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_what_the_store_holds() {
    let api = Api::start().await;
    for key in ["a", "b", "a"] {
        api.put(key, &"x".repeat(100)).await;
    }
    api.request("POST", "/v1/compact?keep_revisions=1").send().await.unwrap();
    let page = api.get("/metrics").await.text().await.unwrap();
    let metric = |name: &str| -> u64 {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    };
    let status = api.json("/v1/status").await;
    assert_eq!(metric("tenure_store_keys"), 2);
    assert_eq!(metric("tenure_store_revision"), status["revision"].as_u64().unwrap());
    assert_eq!(metric("tenure_store_compacted_revision"), status["compacted_revision"].as_u64().unwrap());
    assert!(metric("tenure_store_compacted_revision") > 0);
    assert_eq!(metric("tenure_store_logical_bytes"), status["db_bytes_in_use"].as_u64().unwrap());
    assert!(metric("tenure_store_logical_bytes") > 200);
}

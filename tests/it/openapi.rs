//! The document against the server: the routes are the documented ones, the examples fit their own
//! schemas, and every operation, driven through each documented status that can be had from
//! outside, answers as described.

use crate::contract::{Answer, CONTRACT, Contract, Operation};
use crate::support::{Data, Node};
use serde_json::{Value, json};
use std::collections::BTreeSet;

mod coordination;

/// Statuses that need users, or a broken, overloaded or stopping server; other tests and the fault scripts have
/// them.
const NOT_FROM_OUTSIDE: &[u16] = &[401, 408, 429, 431, 500, 503, 504, 507];
const BODY_BYTES_MAX: usize = 1_572_864;

#[test]
fn the_routes_are_the_documented_ones() {
    let documented: BTreeSet<(&str, &str, &str)> =
        CONTRACT.operations.iter().map(|o| (o.method.as_str(), o.path.as_str(), o.id.as_str())).collect();
    let routed: BTreeSet<(&str, &str, &str)> =
        tenure::api::ROUTES.iter().map(|route| (route.method, route.path, route.operation_id)).collect();
    let undocumented: Vec<_> = routed.difference(&documented).collect();
    let unrouted: Vec<_> = documented.difference(&routed).collect();
    assert!(undocumented.is_empty() && unrouted.is_empty(), "undocumented {undocumented:?}, unrouted {unrouted:?}");
}

#[test]
fn every_example_fits_its_schema() {
    let mut wrong = Vec::new();
    let mut check = |place: String, schema: &Value, example: &Value| {
        let errors: Vec<String> =
            CONTRACT.validator(schema).iter_errors(example).map(|error| error.to_string()).collect();
        if !errors.is_empty() {
            wrong.push(format!("{place}: {}", errors.join("; ")));
        }
    };
    for operation in &CONTRACT.operations {
        for parameter in &operation.parameters {
            if let Some(example) = parameter.get("example") {
                check(format!("{} {}", operation.id, parameter["name"]), &parameter["schema"], example);
            }
        }
        let responses =
            operation.responses.iter().flat_map(|(status, response)| contents(&status.to_string(), response));
        let requests = operation.request.iter().map(|(media_type, content)| (media_type.clone(), content.clone()));
        for (place, content) in responses.chain(requests) {
            // A text of lines is one string in the document.
            if place.contains("ndjson") {
                continue;
            }
            for example in content["examples"].as_object().into_iter().flat_map(|examples| examples.values()) {
                check(format!("{} {place}", operation.id), &content["schema"], &example["value"]);
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn contents(place: &str, holder: &Value) -> Vec<(String, Value)> {
    let content = holder.get("content").and_then(Value::as_object);
    content
        .into_iter()
        .flatten()
        .map(|(media_type, content)| (format!("{place} {media_type}"), content.clone()))
        .collect()
}

#[test]
fn every_problem_example_names_its_own_code() {
    for (name, response) in CONTRACT.responses() {
        let Some(problem) = response.pointer("/content/application~1problem+json") else { continue };
        let examples = problem["examples"].as_object().unwrap_or_else(|| panic!("{name} has no example"));
        for (code, example) in examples {
            assert_eq!(example["value"]["code"], json!(code), "{name}");
            assert_eq!(example["value"]["type"], json!(format!("urn:tenure:problem:{code}")), "{name}");
        }
    }
}

/// Every code of the problem schema belongs to a response, and the other way round.
#[test]
fn the_problem_codes_are_those_of_the_responses() {
    let listed: BTreeSet<&str> = texts(&CONTRACT.schema("Problem")["properties"]["code"]["enum"]);
    let used: BTreeSet<&str> = CONTRACT
        .responses()
        .values()
        .filter_map(|response| {
            response.pointer("/content/application~1problem+json/schema/allOf/1/properties/code/enum")
        })
        .flat_map(texts)
        .collect();
    assert_eq!(listed, used);
}

fn texts(list: &Value) -> BTreeSet<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn every_curl_line_is_a_request_of_its_operation() {
    let mut wrong = Vec::new();
    for operation in &CONTRACT.operations {
        let mut own = false;
        for line in &operation.curl {
            match curl_target(line) {
                Err(error) => wrong.push(format!("{}: {error}: {line}", operation.id)),
                Ok((method, path, query)) => {
                    let Some(target) =
                        CONTRACT.operations.iter().find(|o| o.method == method && matches_path(&o.path, &path))
                    else {
                        wrong.push(format!("{}: no operation {method} {path}: {line}", operation.id));
                        continue;
                    };
                    own |= target.id == operation.id;
                    let unknown = query.iter().find(|name| !target.parameters.iter().any(|p| p["name"] == json!(name)));
                    if let Some(name) = unknown.filter(|_| !line.contains("# → 400")) {
                        wrong.push(format!("{}: {} has no parameter {name}: {line}", operation.id, target.id));
                    }
                }
            }
        }
        if !own {
            wrong.push(format!("{}: no curl line calls it", operation.id));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn matches_path(template: &str, path: &str) -> bool {
    if let Some(before) = template.strip_suffix("{key}") {
        return path.strip_prefix(before).is_some_and(|key| !key.is_empty());
    }
    let (wanted, given): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
    let fits = |(wanted, given): (&&str, &&str)| wanted == given || wanted.starts_with('{') && !given.is_empty();
    wanted.len() == given.len() && wanted.iter().zip(&given).all(fits)
}

/// Method, path and the names of the query of a documented line.
fn curl_target(line: &str) -> Result<(String, String, Vec<String>), String> {
    let command = line.split(" # → ").next().unwrap_or(line);
    let words = shell_words(command)?;
    let curl = words.iter().position(|word| word == "curl").ok_or("no curl")?;
    let words = &words[curl + 1..];
    let urls: Vec<&String> = words.iter().filter(|word| word.starts_with("localhost:2379")).collect();
    let [url] = urls[..] else { return Err("not exactly one URL of localhost:2379".into()) };
    let named = words.iter().position(|word| word == "-X").and_then(|at| words.get(at + 1)).cloned();
    let given = |option: &str| words.iter().any(|word| word == option);
    let method = named.unwrap_or_else(|| {
        let method = match () {
            () if given("-I") => "HEAD",
            () if given("-T") => "PUT",
            () if given("-d") || given("--json") || given("--data-binary") => "POST",
            () => "GET",
        };
        method.to_owned()
    });
    let target = url.trim_start_matches("localhost:2379");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let names = query.split('&').filter(|part| !part.is_empty());
    let names = names.map(|part| part.split('=').next().unwrap_or(part).to_owned()).collect();
    Ok((method, if path.is_empty() { "/".into() } else { path.to_owned() }, names))
}

/// Words as a shell splits them: quotes, and a pipe as a word of its own.
fn shell_words(command: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut open, mut quote) = (Vec::new(), String::new(), false, None);
    for c in command.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, open) = (Some(c), true),
            (None, c) if c.is_whitespace() => {
                if open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (None, '?' | '*' | '&' | '(' | ')' | ';' | '<' | '>' | '{' | '}') => {
                return Err(format!("`{c}` outside quotes"));
            }
            (None, c) => word.push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote that does not end".into());
    }
    if open || !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// One server, and what it was seen to answer.
struct Run {
    node: Node,
    client: reqwest::Client,
    seen: BTreeSet<(String, u16)>,
    wrong: Vec<String>,
}

type Headers<'a> = &'a [(&'a str, &'a str)];
const NO_HEADERS: Headers<'static> = &[];
const MERGE: Headers<'static> = &[("content-type", "application/merge-patch+json")];
const JSON: Headers<'static> = &[("content-type", "application/json")];

impl Run {
    async fn start() -> Self {
        Self { node: Node::start().await, client: reqwest::Client::new(), seen: BTreeSet::new(), wrong: Vec::new() }
    }

    /// Sends a request; `target` is path and query as they go on the wire.
    async fn send(&self, method: &str, target: &str, headers: Headers<'_>, body: impl Into<Vec<u8>>) -> Answer {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self.client.request(method, format!("{}{target}", self.node.url())).body(body.into());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Self::received(request.send().await.expect("an answer")).await
    }

    /// The whole answer, also of a stream that ends.
    async fn received(response: reqwest::Response) -> Answer {
        let status = response.status().as_u16();
        let text = |value: &reqwest::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let body = response.bytes().await.expect("a whole body").to_vec();
        Answer { status, headers, body }
    }

    /// Drives one operation, and notes whatever the document does not say of the answer.
    async fn drive(
        &mut self,
        id: &str,
        target: &str,
        headers: Headers<'_>,
        body: impl AsRef<[u8]>,
        expected: u16,
    ) -> Answer {
        let operation = CONTRACT.by_id(id);
        assert!(matches_path(&operation.path, target.split('?').next().unwrap_or(target)), "{id} {target}");
        let answer = self.send(&operation.method, target, headers, body.as_ref()).await;
        self.note(operation, &format!("{} {target}", operation.method), &answer, expected);
        answer
    }

    fn note(&mut self, operation: &Operation, request: &str, answer: &Answer, expected: u16) {
        let mut wrong = CONTRACT.judge(operation, answer);
        if answer.status != expected {
            wrong.push(format!("status {} instead of {expected}", answer.status));
        }
        let problem = answer.media_type() == Some("application/problem+json");
        let says = answer.json().get("applied").is_some();
        // A body is not told of an answer to HEAD.
        if problem && operation.method != "HEAD" && says != mutates(operation) {
            wrong.push("`applied` belongs to problems of requests that could change the store, and only there".into());
        }
        for what in wrong {
            let body = String::from_utf8_lossy(&answer.body).chars().take(400).collect::<String>();
            self.wrong.push(format!(
                "{request} -> {} {}: {what}\n    {}",
                operation.id,
                answer.status,
                body.trim_end()
            ));
        }
        self.seen.insert((operation.id.clone(), answer.status));
    }

    fn finish(&self) {
        assert!(self.wrong.is_empty(), "\n{}", self.wrong.join("\n"));
    }
}

fn mutates(operation: &Operation) -> bool {
    matches!(
        operation.id.as_str(),
        "kvPut" | "kvPatch" | "kvDelete" | "kvDeleteRange" | "kvImport" | "counterAdd" | "txn" | "compact"
    ) || matches!(
        operation.id.as_str(),
        "ttlPut" | "ttlDelete" | "leaseGrant" | "leaseRevoke" | "leaseKeepalive" | "leaseHold"
    ) || matches!(
        operation.id.as_str(),
        "rateTake"
            | "rateReset"
            | "memberAdd"
            | "memberPatch"
            | "memberRemove"
            | "memberPromote"
            | "memberReplace"
            | "leaderMove"
            | "restore"
    ) || coordination::changes_claims(operation)
}

/// A path of the operation that is good, and query parameters without which it is refused.
fn plain_target(operation: &Operation) -> String {
    let path = operation
        .path
        .replace("{key}", "plain")
        .replace("{id}", "7f")
        .replace("{name}", "plain")
        .replace("{lease}", "7f");
    match operation.id.as_str() {
        "kvDeleteRange" => format!("{path}?prefix=plain"),
        "compact" => format!("{path}?keep_revisions=1000000"),
        "rateGet" | "rateTake" => format!("{path}?limit=100&per=1m"),
        "watch" => format!("{path}?wait=10ms"),
        "logLevelPut" => format!("{path}?level=info"),
        _ => path,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_as_documented() {
    let mut run = Run::start().await;
    keys(&mut run).await;
    lists(&mut run).await;
    history_and_counters(&mut run).await;
    watches(&mut run).await;
    leases::drive(&mut run).await;
    transactions(&mut run).await;
    coordination::rate_limits(&mut run).await;
    coordination::locks(&mut run).await;
    coordination::semaphores(&mut run).await;
    coordination::elections(&mut run).await;
    coordination::fences(&mut run).await;
    cluster(&mut run).await;
    maintenance(&mut run).await;
    operations(&mut run).await;
    refusals_that_all_share(&mut run).await;
    refusals_of_keys_and_bodies(&mut run).await;
    reused_idempotency_keys(&mut run).await;
    restores(&mut run).await;
    run.finish();
    let documented = CONTRACT.operations.iter().flat_map(|o| o.responses.keys().map(|status| (o.id.clone(), *status)));
    let unseen: Vec<_> = documented
        .filter(|(id, status)| !NOT_FROM_OUTSIDE.contains(status) && !run.seen.contains(&(id.clone(), *status)))
        .collect();
    assert!(unseen.is_empty(), "documented, but never answered: {unseen:?}");
}

async fn keys(run: &mut Run) {
    let merge: Headers<'_> = &[("content-type", "application/merge-patch+json")];
    let created = run.drive("kvPut", "/v1/kv/a/b", NO_HEADERS, "one", 201).await;
    assert_eq!(created.json()["created"], json!(true));
    let tag = created.header("etag").expect("an ETag").to_owned();
    run.drive("kvPut", "/v1/kv/a/b?prev", &[("if-match", &tag)], "two", 200).await;
    run.drive("kvPut", "/v1/kv/a/b", &[("if-match", &tag)], "three", 412).await;
    run.drive("kvPut", "/v1/kv/a/b", &[("if-none-match", "*")], "three", 412).await;
    run.drive("kvPut", "/v1/kv/gone?cas=7", NO_HEADERS, "three", 412).await;
    run.drive("kvPut", "/v1/kv/%00%FF?cas=0", NO_HEADERS, "bytes", 201).await;
    run.drive("kvPut", "/v1/kv/page", &[("content-type", "text/html")], "<p>", 201).await;
    run.drive("kvPut", "/v1/kv/binary", &[("content-type", "application/octet-stream")], "\0\u{1}", 201).await;
    run.drive("kvPut", "/v1/kv/empty", NO_HEADERS, "", 201).await;
    run.drive("kvPut", "/v1/kv/doc", JSON, r#"{"a":1}"#, 201).await;
    for target in ["/v1/kv/a/b", "/v1/kv/%00%FF", "/v1/kv/page", "/v1/kv/binary", "/v1/kv/empty", "/v1/kv/doc"] {
        run.drive("kvGet", target, NO_HEADERS, "", 200).await;
        run.drive("kvHead", target, NO_HEADERS, "", 200).await;
        let entry = run.drive("kvGet", &format!("{target}?format=json&pretty"), NO_HEADERS, "", 200).await;
        let fits = CONTRACT.validator(CONTRACT.schema("Entry")).is_valid(&entry.json());
        assert!(fits, "{target}: {}", String::from_utf8_lossy(&entry.body));
    }
    let read = run.drive("kvGet", "/v1/kv/a/b", NO_HEADERS, "", 200).await;
    assert_eq!(read.body, b"two");
    let tag = read.header("etag").expect("an ETag").to_owned();
    run.drive("kvGet", "/v1/kv/a/b", &[("if-none-match", &tag)], "", 304).await;
    run.drive("kvHead", "/v1/kv/a/b", &[("if-none-match", &tag)], "", 304).await;
    run.drive("kvGet", "/v1/kv/a/b?wait=20ms", &[("if-none-match", &tag)], "", 304).await;
    run.drive("kvGet", "/v1/kv/a/b?wait=20ms", &[("if-none-match", "\"\"")], "", 200).await;
    run.drive("kvGet", "/v1/kv/none?wait=20ms", NO_HEADERS, "", 404).await;
    run.drive("kvGet", "/v1/kv/none", NO_HEADERS, "", 404).await;
    run.drive("kvHead", "/v1/kv/none", NO_HEADERS, "", 404).await;
    run.drive("kvGet", "/v1/kv/a/b?consistency=stale&max_staleness=1m&min_revision=1", NO_HEADERS, "", 200).await;
    run.drive("kvGet", "/v1/kv/a/b?revision=1000000", NO_HEADERS, "", 400).await;
    run.drive("kvGet", "/v1/kv/a/b?revision=2", NO_HEADERS, "", 200).await;
    run.drive("kvPatch", "/v1/kv/doc?prev", merge, r#"{"b":[1,2],"a":null}"#, 200).await;
    assert_eq!(run.drive("kvGet", "/v1/kv/doc", NO_HEADERS, "", 200).await.json(), json!({"b": [1, 2]}));
    run.drive("kvPatch", "/v1/kv/page", merge, "{}", 409).await;
    run.drive("kvPatch", "/v1/kv/none", merge, "{}", 404).await;
    run.drive("kvPatch", "/v1/kv/doc?cas=1", merge, "{}", 412).await;
    run.drive("kvPatch", "/v1/kv/doc", merge, "{", 400).await;
    run.drive("kvPatch", "/v1/kv/doc", &[("content-type", "text/plain")], "{}", 415).await;
    run.drive("kvDelete", "/v1/kv/binary?cas=1", NO_HEADERS, "", 412).await;
    run.drive("kvDelete", "/v1/kv/binary?prev", NO_HEADERS, "", 200).await;
    run.drive("kvDelete", "/v1/kv/binary", NO_HEADERS, "", 200).await;
}

async fn lists(run: &mut Run) {
    for key in ["l/1", "l/2", "l/d/3"] {
        run.drive("kvPut", &format!("/v1/kv/{key}"), NO_HEADERS, "v", 201).await;
    }
    let page = run.drive("kvList", "/v1/kv?prefix=l/&limit=2", NO_HEADERS, "", 200).await;
    let cursor = page.json()["next"].as_str().expect("a next page").to_owned();
    assert!(page.header("link").is_some_and(|link| link.contains("cursor=")), "{:?}", page.headers);
    let rest = run.drive("kvList", &format!("/v1/kv?prefix=l/&limit=2&cursor={cursor}"), NO_HEADERS, "", 200).await;
    assert_eq!(rest.json()["items"].as_array().map(Vec::len), Some(1));
    for query in [
        "prefix=",
        "prefix=l/&keys_only",
        "prefix=l/&count",
        "prefix=l/&count_only",
        "start=l/&end=l/2",
        "prefix=%00",
        "prefix=l/&delimiter=/",
        "prefix=l/&sort=mod&order=desc",
        "prefix=l/&modified_after=1",
        "prefix=l/&consistency=stale",
    ] {
        run.drive("kvList", &format!("/v1/kv?{query}"), NO_HEADERS, "", 200).await;
    }
    let lines: Headers<'_> = &[("accept", "application/x-ndjson")];
    let answer = run.drive("kvList", "/v1/kv?prefix=", lines, "", 200).await;
    assert_eq!(answer.media_type(), Some("application/x-ndjson"));
    run.drive("kvList", "/v1/kv?prefix=l/&cursor=nonsense", NO_HEADERS, "", 400).await;
    run.drive("kvDeleteRange", "/v1/kv?prefix=l/d/&dry_run", NO_HEADERS, "", 200).await;
    run.drive("kvDeleteRange", "/v1/kv?prefix=l/d/&prev", NO_HEADERS, "", 200).await;
    run.drive("kvDeleteRange", "/v1/kv?start=l/&end=l/2", NO_HEADERS, "", 200).await;
    run.drive("kvDeleteRange", "/v1/kv", NO_HEADERS, "", 400).await;
    run.drive("kvDeleteRange", "/v1/kv?prefix=", NO_HEADERS, "", 400).await;
    let ndjson: Headers<'_> = &[("content-type", "application/x-ndjson")];
    let body = "{\"key\":\"i/1\",\"value\":\"1\"}\n{\"key_base64\":\"/w==\",\"value_base64\":\"/w==\"}\n{\"key\":\"i/2\",\"value_json\":{\"a\":1}}\n";
    run.drive("kvImport", "/v1/import?prefix=x/", ndjson, body, 200).await;
    run.drive("kvImport", "/v1/import?prefix=x/&on_conflict=skip", ndjson, body, 200).await;
    run.drive("kvImport", "/v1/import?prefix=x/&on_conflict=fail", ndjson, body, 409).await;
    run.drive("kvImport", "/v1/import", ndjson, "{\"key\":\"i/3\"}\n", 400).await;
    let timed = "{\"key\":\"i/4\",\"value\":\"\",\"lease\":\"00000000000000fe\",\"ttl_ms\":60000}\n";
    run.drive("kvImport", "/v1/import", ndjson, timed, 200).await;
    let lost = "{\"key\":\"i/5\",\"value\":\"\",\"lease\":\"00000000000000fe\"}\n";
    run.drive("kvImport", "/v1/import", ndjson, lost, 404).await;
}

async fn history_and_counters(run: &mut Run) {
    run.drive("historyGet", "/v1/history/a/b", NO_HEADERS, "", 200).await;
    run.drive("historyGet", "/v1/history/%00%FF", NO_HEADERS, "", 200).await;
    run.drive("historyGet", "/v1/history/binary?keys_only", NO_HEADERS, "", 200).await;
    let page = run.drive("historyGet", "/v1/history/a/b?limit=1", NO_HEADERS, "", 200).await;
    let before = page.json()["next_before"].as_i64().expect("an older version");
    run.drive("historyGet", &format!("/v1/history/a/b?before={before}"), NO_HEADERS, "", 200).await;
    run.drive("historyGet", "/v1/history/none", NO_HEADERS, "", 404).await;
    run.drive("counterGet", "/v1/counters/none", NO_HEADERS, "", 200).await;
    run.drive("counterAdd", "/v1/counters/c", NO_HEADERS, "", 200).await;
    run.drive("counterAdd", "/v1/counters/c", JSON, r#"{"add":41,"max":100}"#, 200).await;
    assert_eq!(run.drive("counterGet", "/v1/counters/c", NO_HEADERS, "", 200).await.json()["value"], json!(42));
    let full = run.drive("counterAdd", "/v1/counters/c?add=59&max=100", NO_HEADERS, "", 409).await;
    assert_eq!(full.code().as_deref(), Some("out-of-range"));
    run.drive("counterAdd", "/v1/counters/c?add=59&max=100&on_limit=clamp", NO_HEADERS, "", 200).await;
    let over = run.drive("counterAdd", "/v1/counters/c?add=9223372036854775807", NO_HEADERS, "", 409).await;
    assert_eq!(over.code().as_deref(), Some("overflow"));
    run.drive("counterAdd", "/v1/counters/page", NO_HEADERS, "", 409).await;
    run.drive("counterGet", "/v1/counters/page", NO_HEADERS, "", 409).await;
    run.drive("counterAdd", "/v1/counters/c?add=1", JSON, r#"{"add":2}"#, 400).await;
}

async fn transactions(run: &mut Run) {
    let all = json!({
        "if": [{"key": "t/1", "exists": false}, {"prefix": "t/", "exists": false}, {"key": "a/b", "version": {"gte": 1}},
               {"key": "a/b", "value": {"ne": "x"}}],
        "then": [{"put": {"key": "t/1", "value": "1", "prev": true}}, {"put": {"key_base64": "/w==", "value_json": [1]}},
                 {"add": {"key": "t/n", "by": 2, "initial": 1}}, {"get": {"key": "t/1"}}, {"get": {"key": "none"}},
                 {"list": {"prefix": "t/", "limit": 1}}, {"list": {"prefix": "t/", "count_only": true}},
                 {"delete": {"prefix": "x/", "prev": true}}],
        "else": []
    });
    let done = run.drive("txn", "/v1/txn", JSON, &all.to_string(), 200).await;
    assert_eq!(done.json()["succeeded"], json!(true), "{}", String::from_utf8_lossy(&done.body));
    let other = json!({"if": [{"key": "t/1", "exists": false}], "else": [{"get": {"key": "t/1"}}]});
    let other = run.drive("txn", "/v1/txn", JSON, &other.to_string(), 200).await;
    assert_eq!(other.json()["failed_if"], json!([0]));
    let strict = json!({"if": [{"key": "t/1", "value": "0"}], "then": [{"delete": {"key": "t/1"}}]}).to_string();
    run.drive("txn", "/v1/txn?strict", JSON, &strict, 412).await;
    let bounded =
        json!({"then": [{"put": {"key": "t/2", "value": ""}}, {"add": {"key": "t/n", "by": 1, "max": 1}}]}).to_string();
    assert_eq!(run.drive("txn", "/v1/txn", JSON, &bounded, 409).await.json()["operation"], json!(1));
    let twice = json!({"then": [{"put": {"key": "t/2", "value": "1"}}, {"delete": {"key": "t/2"}}]}).to_string();
    assert_eq!(run.drive("txn", "/v1/txn", JSON, &twice, 400).await.code().as_deref(), Some("duplicate-key"));
    let many = json!({"then": vec![json!({"get": {"key": "a"}}); 129]}).to_string();
    run.drive("txn", "/v1/txn", JSON, &many, 400).await;
    run.drive("txn", "/v1/txn", JSON, r#"{"than":[]}"#, 400).await;
    run.drive("txn", "/v1/txn", JSON, r#"{"then":[{"put":{"key":""#, 400).await;
}

/// A member joins, votes, leads, is replaced, and leaves: what is left is the one there was.
async fn cluster(run: &mut Run) {
    let members = "/v1/cluster/members";
    let seen = run.drive("clusterGet", "/v1/cluster", NO_HEADERS, "", 200).await.json();
    let seed = seen["members"][0]["peer_url"].as_str().expect("a URL").to_owned();
    run.drive("memberList", members, NO_HEADERS, "", 200).await;
    run.drive("memberGet", "/v1/cluster/members/n1", NO_HEADERS, "", 200).await;
    run.drive("memberGet", "/v1/cluster/members/n9", NO_HEADERS, "", 404).await;
    let join: &[&str] = &["--name", "n2", "--join", &seed];
    let mut second = Node::start_with(&Data::fresh(), join).await;
    run.drive("memberPromote", "/v1/cluster/members/n2/promote", JSON, r#"{"wait":"30s"}"#, 200).await;
    run.drive("leaderMove", "/v1/cluster/leader?to=n2", NO_HEADERS, "", 200).await;
    run.drive("leaderMove", "/v1/cluster/leader", JSON, "{}", 200).await;
    let announced = r#"{"name":"n3","peer_url":"http://127.0.0.1:9"}"#;
    let added = run.drive("memberAdd", members, JSON, announced, 201).await.json();
    assert!(added["join"].as_str().is_some_and(|join| join.contains(&seed)), "{added}");
    run.drive("memberAdd", members, JSON, announced, 409).await;
    run.drive("memberAdd", members, JSON, r#"{"name":"n4","peer_url":"127.0.0.1:9"}"#, 400).await;
    let third = Node::start_with(&Data::fresh(), &["--name", "n3", "--join", &seed]).await;
    let joined = run.drive("memberGet", "/v1/cluster/members/n3", NO_HEADERS, "", 200).await.json();
    assert_eq!(joined["id"], added["id"], "it joined as another than the announced one");
    let at = joined["peer_url"].as_str().expect("a URL");
    run.drive("leaderMove", "/v1/cluster/leader?to=n3", NO_HEADERS, "", 409).await;
    run.drive("leaderMove", "/v1/cluster/leader?to=n9", NO_HEADERS, "", 404).await;
    let replacement = format!(r#"{{"name":"n3","peer_url":"{at}","wait":"30s"}}"#);
    run.drive("memberReplace", "/v1/cluster/members/n2/replace", JSON, &replacement, 200).await;
    run.drive("memberReplace", "/v1/cluster/members/n2/replace", JSON, &replacement, 404).await;
    second.kill();
    run.drive("memberRemove", "/v1/cluster/members/n3", NO_HEADERS, "", 200).await;
    drop(third);
    run.drive("memberRemove", "/v1/cluster/members/n3", NO_HEADERS, "", 404).await;
    run.drive("memberRemove", "/v1/cluster/members/n1", NO_HEADERS, "", 409).await;
    run.drive("memberAdd", &format!("{members}?name=n5&peer_url=http://127.0.0.1:9"), NO_HEADERS, "", 201).await;
    run.drive("memberPromote", "/v1/cluster/members/n5/promote?wait=10ms", NO_HEADERS, "", 409).await;
    run.drive("memberPromote", "/v1/cluster/members/n9/promote", NO_HEADERS, "", 404).await;
    let behind = r#"{"name":"n5","peer_url":"http://127.0.0.1:9","wait":"10ms"}"#;
    run.drive("memberReplace", "/v1/cluster/members/n1/replace", JSON, behind, 409).await;
    run.drive("memberPatch", "/v1/cluster/members/n5?client_url=http://127.0.0.1:8", NO_HEADERS, "", 200).await;
    run.drive("memberPatch", "/v1/cluster/members/n5", JSON, r#"{"name":"n1"}"#, 409).await;
    run.drive("memberPatch", "/v1/cluster/members/n9?name=n8", NO_HEADERS, "", 404).await;
    run.drive("memberPatch", "/v1/cluster/members/n5", NO_HEADERS, "", 400).await;
    run.drive("memberRemove", "/v1/cluster/members/n5", NO_HEADERS, "", 200).await;
}

async fn maintenance(run: &mut Run) {
    let status = run.drive("statusGet", "/v1/status", NO_HEADERS, "", 200).await.json();
    let revision = status["revision"].as_i64().expect("a revision");
    run.drive("hashGet", "/v1/hash", NO_HEADERS, "", 200).await;
    run.drive("configGet", "/v1/config", NO_HEADERS, "", 200).await;
    run.drive("logLevelPut", "/v1/log-level?level=info&for=1s", NO_HEADERS, "", 200).await;
    run.drive("logLevelPut", "/v1/log-level", JSON, r#"{"level":"info","for":"1s"}"#, 200).await;
    run.drive("logLevelPut", "/v1/log-level?level=loud", NO_HEADERS, "", 400).await;
    let snapshot = run.drive("snapshotGet", "/v1/snapshot", NO_HEADERS, "", 200).await;
    assert!(snapshot.body.len() > 32);
    let page = run.drive("kvList", "/v1/kv?prefix=&limit=1", NO_HEADERS, "", 200).await;
    let cursor = page.json()["next"].as_str().expect("a next page").to_owned();
    run.drive("kvPut", "/v1/kv/later", NO_HEADERS, "", 201).await;
    run.drive("kvPut", "/v1/kv/later", NO_HEADERS, "", 200).await;
    run.drive("compact", &format!("/v1/compact?revision={}", revision + 2), NO_HEADERS, "", 200).await;
    run.drive("compact", &format!("/v1/compact?revision={}", revision + 1), NO_HEADERS, "", 410).await;
    run.drive("watch", &format!("/v1/watch?after={}", revision + 1), NO_HEADERS, "", 410).await;
    run.drive("watch", "/v1/watch", &[("last-event-id", "1")], "", 410).await;
    run.drive("compact", "/v1/compact", JSON, r#"{"keep":"1h"}"#, 200).await;
    run.drive("compact", "/v1/compact", NO_HEADERS, "", 400).await;
    run.drive("compact", "/v1/compact?revision=1&keep=1s", NO_HEADERS, "", 400).await;
    run.drive("compact", "/v1/compact?revision=1000000", NO_HEADERS, "", 400).await;
    run.drive("kvGet", "/v1/kv/a/b?revision=3", NO_HEADERS, "", 410).await;
    run.drive("kvHead", "/v1/kv/a/b?revision=3", NO_HEADERS, "", 410).await;
    run.drive("kvList", "/v1/kv?prefix=&revision=3", NO_HEADERS, "", 410).await;
    run.drive("kvList", &format!("/v1/kv?prefix=&limit=1&cursor={cursor}"), NO_HEADERS, "", 410).await;
    run.drive("hashGet", "/v1/hash?revision=3", NO_HEADERS, "", 410).await;
}

async fn restores(run: &mut Run) {
    let binary: Headers<'_> = &[("content-type", "application/octet-stream")];
    let snapshot = run.drive("snapshotGet", "/v1/snapshot", NO_HEADERS, "", 200).await.body;
    run.drive("restore", "/v1/restore?confirm=tenure", JSON, "{}", 415).await;
    run.drive("restore", "/v1/restore", binary, snapshot.clone(), 412).await;
    run.drive("restore", "/v1/restore?confirm=another", binary, snapshot.clone(), 412).await;
    let mut damaged = snapshot.clone();
    damaged[snapshot.len() / 2] ^= 1;
    for bad in [damaged, snapshot[..snapshot.len() - 1].to_vec(), b"nothing of the kind".to_vec()] {
        let refused = run.drive("restore", "/v1/restore?confirm=tenure", binary, bad, 400).await.json();
        assert_eq!(refused["code"], json!("bad-snapshot"), "{refused}");
    }
    let before = run.drive("statusGet", "/v1/status", NO_HEADERS, "", 200).await.json();
    let restored = run.drive("restore", "/v1/restore?confirm=tenure", binary, snapshot, 200).await.json();
    assert!(restored["revision"].as_i64() > before["revision"].as_i64(), "{restored}");
}

async fn operations(run: &mut Run) {
    for (id, target) in [
        ("livez", "/livez"),
        ("livez", "/livez?verbose"),
        ("readyz", "/readyz"),
        ("readyz", "/readyz?verbose"),
        ("health", "/health"),
        ("health", "/health?serializable=true&exclude=NOSPACE"),
        ("version", "/version"),
        ("openapiYaml", "/openapi.yaml"),
        ("openapiJson", "/openapi.json"),
        ("root", "/"),
    ] {
        run.drive(id, target, NO_HEADERS, "", 200).await;
    }
    let yaml = run.drive("openapiYaml", "/openapi.yaml", NO_HEADERS, "", 200).await;
    assert!(yaml.body == include_bytes!("../../openapi.yaml"), "the served document is another one");
    let served = run.drive("openapiJson", "/openapi.json", NO_HEADERS, "", 200).await.json();
    let same: Value = serde_saphyr::from_str(include_str!("../../openapi.yaml")).expect("YAML");
    assert!(served == same, "the JSON is not the YAML");
    let metrics = run.drive("metrics", "/metrics", NO_HEADERS, "", 200).await;
    let text = String::from_utf8(metrics.body).expect("text");
    let names: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(
        names
            .iter()
            .all(|name| name.starts_with("tenure_") || name.starts_with("etcd_") || name.starts_with("process_")),
        "{names:?}"
    );
    assert!(names.len() > 10 && text.ends_with("# EOF\n"), "{names:?}");
}

/// A foreign page, an unknown parameter and another method, for every operation there is.
async fn watches(run: &mut Run) {
    let now = run.drive("watch", "/v1/watch?wait=1ms", NO_HEADERS, "", 200).await.json()["revision"].clone();
    run.drive("kvPut", "/v1/kv/watched", NO_HEADERS, "one", 201).await;
    run.drive("kvPut", "/v1/kv/watched", &[("content-type", "text/html")], "two", 200).await;
    run.drive("kvDelete", "/v1/kv/watched", NO_HEADERS, "", 200).await;
    let polled = format!("/v1/watch?key=watched&after={now}&prev&wait=5s");
    let answer = run.drive("watch", &polled, NO_HEADERS, "", 200).await.json();
    assert_eq!(answer["events"].as_array().map(Vec::len), Some(3), "{answer}");
    for manner in ["initial", "after=0&prev", "after=0&values=false", "initial&values=false&prefix=a/&key=watched"] {
        let target = format!("/v1/watch?{manner}&timeout=50ms");
        let lines = run.drive("watch", &target, NO_HEADERS, "", 200).await;
        assert_eq!(lines.media_type(), Some("application/x-ndjson"));
        assert!(lines.body.starts_with(b"{\"type\":\"put\""), "{target}: {}", String::from_utf8_lossy(&lines.body));
        let events = run.drive("watch", &target, &[("accept", "text/event-stream")], "", 200).await;
        assert_eq!(events.media_type(), Some("text/event-stream"));
        assert!(events.body.starts_with(b"retry: 1000\n\nevent: put\n"), "{target}");
    }
    let json: Headers<'_> = &[("accept", "application/json")];
    run.drive("watch", "/v1/watch?timeout=1ms", json, "", 406).await;
    let long = "k".repeat(5000);
    run.drive("watch", &format!("/v1/watch?key={long}"), NO_HEADERS, "", 414).await;
    for bad in [
        "key=",
        "start=a",
        "after=-1",
        "types=gone",
        "bookmarks=1ms",
        "limit=5",
        "wait=1s&initial",
        "wait=1s&format=sse",
        "format=json",
        "timeout=0",
        "on_compacted=ignore",
        "ns=a",
    ] {
        run.drive("watch", &format!("/v1/watch?{bad}"), NO_HEADERS, "", 400).await;
    }
    run.drive("watch", "/v1/watch", &[("last-event-id", "x")], "", 400).await;
}

async fn refusals_that_all_share(run: &mut Run) {
    for operation in &CONTRACT.operations {
        let target = plain_target(operation);
        let foreign: Headers<'_> = &[("host", "rebound.example"), ("origin", "http://elsewhere.example")];
        let answer = run.send(&operation.method, &target, foreign, "").await;
        run.note(operation, &format!("foreign {} {target}", operation.method), &answer, 403);
        let separator = if target.contains('?') { '&' } else { '?' };
        let misspelt = format!("{target}{separator}prety=true");
        let answer = run.send(&operation.method, &misspelt, NO_HEADERS, "").await;
        // Scrapers may be configured with parameters of their own: metrics refuse none.
        let refused = operation.responses.contains_key(&400);
        run.note(operation, &format!("{} {misspelt}", operation.method), &answer, if refused { 400 } else { 200 });
        if refused && operation.method != "HEAD" {
            assert_eq!(answer.json()["suggestion"], json!("pretty"), "{}", operation.id);
        }
        let answer = run.send("TRACE", &target, NO_HEADERS, "").await;
        let allowed: BTreeSet<&str> = answer.header("allow").unwrap_or_default().split(", ").collect();
        assert!(allowed.contains(operation.method.as_str()), "{}: {allowed:?}", operation.id);
        let response = operation.responses.get(&405).unwrap_or_else(|| panic!("{} has no 405", operation.id));
        let wrong = CONTRACT.judge_response(response, &answer, false);
        assert!(answer.status == 405 && wrong.is_empty(), "{} {}: {wrong:?}", operation.id, answer.status);
        run.seen.insert((operation.id.clone(), 405));
    }
    let nothing = run.send("GET", "/v1/keys", NO_HEADERS, "").await;
    let wrong = CONTRACT.judge_response(&CONTRACT.responses()["NoSuchRoute"], &nothing, false);
    assert!(nothing.status == 404 && wrong.is_empty(), "{}: {wrong:?}", nothing.status);
}

async fn refusals_of_keys_and_bodies(run: &mut Run) {
    let long = "k".repeat(5000);
    for operation in &CONTRACT.operations {
        if operation.path.ends_with("{key}") {
            let target = operation.path.replace("{key}", &long);
            let answer = run.send(&operation.method, &target, NO_HEADERS, "").await;
            run.note(operation, "a long key", &answer, 414);
            let target = operation.path.replace("{key}", "");
            let answer = run.send(&operation.method, &target, NO_HEADERS, "").await;
            run.note(operation, "an empty key", &answer, 400);
        }
        // A backup is bounded by the disk alone.
        if let Some(media_type) = operation.request.keys().next().filter(|_| operation.id != "restore") {
            // An import is a stream: what is bounded is one line.
            let bytes = if operation.id == "kvImport" { 3 * BODY_BYTES_MAX } else { BODY_BYTES_MAX + 1 };
            let headers: Headers<'_> = &[("content-type", media_type)];
            let answer = run.send(&operation.method, &plain_target(operation), headers, vec![b'x'; bytes]).await;
            run.note(operation, "a long body", &answer, 413);
            let encoded: Headers<'_> = &[("content-type", media_type), ("content-encoding", "gzip")];
            let answer = run.send(&operation.method, &plain_target(operation), encoded, "{}").await;
            run.note(operation, "an encoded body", &answer, 415);
        }
        if operation.responses.contains_key(&406) {
            let picture: Headers<'_> = &[("accept", "image/png")];
            let answer = run.send(&operation.method, &plain_target(operation), picture, "").await;
            run.note(operation, "a picture", &answer, 406);
        }
    }
    let put = json!({"then": [{"put": {"key": long, "value": ""}}]}).to_string();
    run.drive("txn", "/v1/txn", JSON, &put, 414).await;
    let ndjson: Headers<'_> = &[("content-type", "application/x-ndjson")];
    run.drive("kvImport", "/v1/import", ndjson, &format!("{}\n", json!({"key": long, "value": ""})), 414).await;
}

/// A request with an idempotency key, its repetition, and another request with the same key.
async fn reused_idempotency_keys(run: &mut Run) {
    let merge = "application/merge-patch+json";
    let requests = [
        ("kvPut", "/v1/kv/once", "text/plain", "v", "/v1/kv/once?prev"),
        ("kvPatch", "/v1/kv/doc", merge, "{}", "/v1/kv/doc?prev"),
        ("kvDelete", "/v1/kv/once", "text/plain", "", "/v1/kv/once?prev"),
        ("kvDeleteRange", "/v1/kv?prefix=once", "text/plain", "", "/v1/kv?prefix=twice"),
        ("counterAdd", "/v1/counters/once", "application/json", "", "/v1/counters/once?add=2"),
        (
            "rateTake",
            "/v1/ratelimits/once?limit=9&per=1h",
            "application/json",
            "",
            "/v1/ratelimits/once?limit=8&per=1h",
        ),
        ("lockAcquire", "/v1/locks/once?ttl=1h", "application/json", "", "/v1/locks/once?ttl=2h"),
        (
            "semaphoreAcquire",
            "/v1/semaphores/once?ttl=1h&limit=3",
            "application/json",
            "",
            "/v1/semaphores/once?ttl=2h",
        ),
        ("electionCampaign", "/v1/elections/once?ttl=1h", "application/json", "", "/v1/elections/once?ttl=2h"),
        ("lockAcquire", "/v1/locks/twice?lease=c9", "application/json", "", "/v1/locks/once?ttl=2h"),
        ("electionProclaim", "/v1/elections/driven/claims/c9", "text/plain", "v", "/v1/elections/other/claims/c9"),
        ("lockRelease", "/v1/locks/driven/claims/c9", "text/plain", "", "/v1/locks/other/claims/c9"),
        ("semaphoreRelease", "/v1/semaphores/driven/claims/c9", "text/plain", "", "/v1/semaphores/other/claims/c9"),
        ("electionResign", "/v1/elections/driven/claims/c9", "text/plain", "", "/v1/elections/other/claims/c9"),
        ("rateReset", "/v1/ratelimits/once", "text/plain", "", "/v1/ratelimits/twice"),
        ("txn", "/v1/txn", "application/json", r#"{"then":[{"add":{"key":"once"}}]}"#, "/v1/txn?strict"),
        ("ttlPut", "/v1/ttl/page?ttl=1h", "application/json", "", "/v1/ttl/page?ttl=2h"),
        ("ttlDelete", "/v1/ttl/page", "text/plain", "", "/v1/ttl/other"),
        ("leaseGrant", "/v1/leases?ttl=1h&id=c1", "application/json", "", "/v1/leases?ttl=2h&id=c1"),
        ("leaseRevoke", "/v1/leases/c1", "text/plain", "", "/v1/leases/c2"),
    ];
    // By the clock of the moment, also of a replay.
    let replayed = |answer: &Answer| {
        let mut json = answer.json();
        for name in ["expires_at", "remaining_ms"] {
            json.as_object_mut().map(|members| members.remove(name));
        }
        json
    };
    for (id, target, content_type, body, other) in requests {
        let operation = CONTRACT.by_id(id);
        let key = format!("key-of-{id}-{}", target.len());
        let headers: Headers<'_> = &[("idempotency-key", &key), ("content-type", content_type)];
        let first = run.send(&operation.method, target, headers, body).await;
        run.note(
            operation,
            "with an idempotency key",
            &first,
            if matches!(id, "kvPut" | "leaseGrant") { 201 } else { 200 },
        );
        let again = run.send(&operation.method, target, headers, body).await;
        run.note(operation, "repeated", &again, first.status);
        assert_eq!(again.header("idempotency-replayed"), Some("true"), "{id}");
        assert_eq!(replayed(&first), replayed(&again), "{id}");
        let other = run.send(&operation.method, other, headers, body).await;
        run.note(operation, "another request", &other, 422);
    }
}

mod leases;

/// The judge must be able to say no.
mod judge {
    use super::*;

    const DOCUMENT: &str = "
paths:
  /a:
    get:
      operationId: aGet
      x-curl: curl localhost:2379/a
      responses:
        '200':
          headers:
            ETag: { required: true, schema: { type: string, pattern: '^\"[0-9]+\"$' } }
            Count: { schema: { type: integer } }
          content:
            application/json:
              schema: { $ref: '#/components/schemas/A' }
            application/x-ndjson:
              schema: { $ref: '#/components/schemas/A' }
        '304': { $ref: '#/components/responses/Same' }
components:
  responses:
    Same: { description: nothing new }
  schemas:
    A: { type: object, required: [size], properties: { size: { type: integer } }, additionalProperties: false }
";

    fn judged(status: u16, content_type: &str, extra: &[(&str, &str)], body: &str) -> Vec<String> {
        let contract = Contract::read(DOCUMENT);
        let given = extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let headers = given.chain([("content-type".to_owned(), content_type.to_owned())]).collect();
        contract.judge(contract.by_id("aGet"), &Answer { status, headers, body: body.into() })
    }

    #[test]
    fn accepts_what_is_documented() {
        let tag: Headers<'_> = &[("etag", "\"1\""), ("count", "3")];
        for (content_type, body) in
            [("application/json", "{\"size\":1}\n"), ("application/x-ndjson", "{\"size\":1}\n{\"size\":2}\n")]
        {
            assert_eq!(judged(200, content_type, tag, body), Vec::<String>::new());
        }
        assert_eq!(judged(304, "text/plain", NO_HEADERS, ""), Vec::<String>::new());
    }

    #[test]
    fn refuses_everything_else() {
        let tag: Headers<'_> = &[("etag", "\"1\"")];
        let cases: &[(u16, &str, Headers<'_>, &str)] = &[
            (201, "application/json", tag, "{\"size\":1}\n"),
            (200, "text/plain", tag, "{\"size\":1}\n"),
            (200, "application/json", NO_HEADERS, "{\"size\":1}\n"),
            (200, "application/json", &[("etag", "W/1")], "{\"size\":1}\n"),
            (200, "application/json", &[("etag", "\"1\""), ("count", "many")], "{\"size\":1}\n"),
            (200, "application/json", &[("etag", "\"1\""), ("tenure-other", "1")], "{\"size\":1}\n"),
            (200, "application/json", tag, "{\"size\":\"1\"}\n"),
            (200, "application/json", tag, "{\"size\":1,\"m\":2}\n"),
            (200, "application/json", tag, "{}\n"),
            (200, "application/json", tag, "{\"size\":1}"),
            (200, "application/json", tag, "{\"size\":1\n"),
            (200, "application/x-ndjson", tag, "{\"size\":1}\n{\"size\":null}\n"),
            (304, "text/plain", NO_HEADERS, "body"),
        ];
        for (status, content_type, headers, body) in cases {
            assert_eq!(
                judged(*status, content_type, headers, body).len(),
                1,
                "{status} {content_type} {headers:?} {body}"
            );
        }
    }

    #[test]
    fn curl_lines_are_read_as_a_shell_would() {
        let target =
            |line: &str| curl_target(line).map(|(method, path, names)| format!("{method} {path} {}", names.join(",")));
        assert_eq!(target("curl localhost:2379/a").as_deref(), Ok("GET /a "));
        assert_eq!(target("curl -X PUT 'localhost:2379/a?b=1&c' -d 'x y'   # → 200").as_deref(), Ok("PUT /a b,c"));
        assert_eq!(target("printf '%s' '{}' | curl --data-binary @- localhost:2379/").as_deref(), Ok("POST / "));
        assert!(target("curl localhost:2379/a?b=1").is_err());
        assert!(target("curl 'localhost:2379/a").is_err());
        assert!(target("curl example.com/a").is_err());
    }
}

//! Users, roles and tokens over real doors: etcd's rules and texts, tokens that count on every member,
//! revocation, and no secret anywhere. Who may do what, for every route and method: `matrix`.

mod cli;
mod flood;
mod matrix;

use crate::support::members::Cluster;
use crate::support::{Data, Node, eventually};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// From a revocation to the end of what it ends, with room for a busy machine.
const CUT: Duration = Duration::from_secs(1);

/// How a request says who it is from.
#[derive(Debug, Clone)]
enum Who {
    Nobody,
    Token(String),
    Basic(&'static str, &'static str),
}

impl Who {
    fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Nobody => request,
            Self::Token(token) => request.header("authorization", format!("Bearer {token}")),
            Self::Basic(user, password) => request.basic_auth(user, Some(password)),
        }
    }
}

/// One member's door.
#[derive(Debug, Clone)]
struct Door {
    http: reqwest::Client,
    url: String,
}

impl Door {
    fn new(url: String) -> Self {
        Self { http: reqwest::Client::new(), url }
    }

    async fn ask(&self, who: &Who, method: &str, target: &str, body: &str) -> Response {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let patches = method == Method::PATCH && target.starts_with("/v1/kv/");
        let request = self.http.request(method, format!("{}{target}", self.url)).body(body.to_owned());
        let request = if patches { request.header("content-type", "application/merge-patch+json") } else { request };
        who.sign(request).send().await.unwrap()
    }

    async fn status(&self, who: &Who, method: &str, target: &str, body: &str) -> u16 {
        self.ask(who, method, target, body).await.status().as_u16()
    }

    /// A call of etcd's that succeeds.
    async fn call(&self, who: &Who, path: &str, body: Value) -> Value {
        let answer = self.ask(who, "POST", &format!("/v3/{path}"), &body.to_string()).await;
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// One that is refused: the code and the text.
    async fn refusal(&self, who: &Who, path: &str, body: Value) -> (i64, String) {
        let answer = self.ask(who, "POST", &format!("/v3/{path}"), &body.to_string()).await;
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_ne!(status, 200, "{path} {body}: {text}");
        let error: Value = serde_json::from_str(&text).unwrap();
        (error["code"].as_i64().unwrap(), error["message"].as_str().unwrap().to_owned())
    }

    async fn token(&self, name: &str, password: &str) -> Who {
        let body = json!({"name": name, "password": password});
        let answer = self.call(&Who::Nobody, "auth/authenticate", body).await;
        Who::Token(answer["token"].as_str().unwrap().to_owned())
    }

    /// Root, and authentication on; a token of root's.
    async fn secured(&self) -> Who {
        self.add_user(&Who::Nobody, "root", "rootpw", None).await;
        self.call(&Who::Nobody, "auth/user/grant", json!({"user": "root", "role": "root"})).await;
        self.call(&Who::Nobody, "auth/enable", json!({})).await;
        self.token("root", "rootpw").await
    }

    async fn add_user(&self, by: &Who, name: &str, password: &str, role: Option<&str>) {
        self.call(by, "auth/user/add", json!({"name": name, "password": password})).await;
        if let Some(role) = role {
            self.call(by, "auth/user/grant", json!({"user": name, "role": role})).await;
        }
    }

    /// A role with permissions on ranges; `""` as the end is the key alone.
    async fn add_role(&self, by: &Who, name: &str, permissions: &[(&str, &str, &str)]) {
        self.call(by, "auth/role/add", json!({"name": name})).await;
        for (access, key, end) in permissions {
            let perm = json!({"permType": access, "key": b64(key), "range_end": b64(end)});
            self.call(by, "auth/role/grant", json!({"name": name, "perm": perm})).await;
        }
    }
}

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

async fn node(arguments: &[&str]) -> (Node, Door) {
    let node = Node::start_with(&Data::fresh(), arguments).await;
    let door = Door::new(node.url());
    (node, door)
}

#[tokio::test]
async fn users_and_roles_are_managed_as_in_etcd_and_refusals_have_its_words() {
    let (_node, door) = node(&[]).await;
    let anyone = Who::Nobody;
    let status = door.call(&anyone, "auth/status", json!({})).await;
    assert_eq!((status.get("enabled"), &status["authRevision"]), (None, &"1".into()), "{status}");
    let not_enabled = (9, "etcdserver: authentication is not enabled".to_owned());
    assert_eq!(door.refusal(&anyone, "auth/authenticate", json!({"name": "a", "password": "b"})).await, not_enabled);
    let no_root = (9, "etcdserver: root user does not exist".to_owned());
    assert_eq!(door.refusal(&anyone, "auth/enable", json!({})).await, no_root);
    door.add_user(&anyone, "root", "rootpw", None).await;
    let no_role = (9, "etcdserver: root user does not have root role".to_owned());
    assert_eq!(door.refusal(&anyone, "auth/enable", json!({})).await, no_role);
    door.call(&anyone, "auth/role/add", json!({"name": "root"})).await;
    door.call(&anyone, "auth/user/grant", json!({"user": "root", "role": "root"})).await;
    door.call(&anyone, "auth/enable", json!({})).await;
    let root = door.token("root", "rootpw").await;
    let cases = [
        ("auth/user/add", json!({"name": "root", "password": "x"}), 9, "user name already exists"),
        ("auth/user/add", json!({"name": "", "password": "x"}), 3, "user name is empty"),
        ("auth/user/get", json!({"name": "no"}), 9, "user name not found"),
        ("auth/user/delete", json!({"name": "no"}), 9, "user name not found"),
        ("auth/user/delete", json!({"name": "root"}), 3, "invalid auth management"),
        ("auth/user/changepw", json!({"name": "no", "password": "x"}), 9, "user name not found"),
        ("auth/user/grant", json!({"user": "root", "role": "no"}), 9, "role name not found"),
        ("auth/user/revoke", json!({"name": "root", "role": "no"}), 9, "role is not granted to the user"),
        ("auth/user/revoke", json!({"name": "root", "role": "root"}), 3, "invalid auth management"),
        ("auth/role/add", json!({"name": "root"}), 9, "role name already exists"),
        ("auth/role/add", json!({"name": ""}), 3, "role name is empty"),
        ("auth/role/get", json!({"role": "no"}), 9, "role name not found"),
        ("auth/role/delete", json!({"role": "root"}), 3, "invalid auth management"),
        ("auth/role/grant", json!({"name": "root"}), 3, "permission not given"),
        ("auth/role/grant", json!({"name": "root", "perm": {"key": ""}}), 3, "invalid auth management"),
        ("auth/role/revoke", json!({"role": "root", "key": b64("a")}), 9, "permission is not granted to the role"),
        ("auth/authenticate", json!({"name": "root", "password": "x"}), 3, FAILED),
        ("auth/authenticate", json!({"name": "no", "password": "x"}), 3, FAILED),
    ];
    for (path, body, code, text) in cases {
        assert_eq!(door.refusal(&root, path, body).await, (code, format!("etcdserver: {text}")), "{path}");
    }
    let empty = (3, "etcdserver: user name is empty".to_owned());
    assert_eq!(door.refusal(&anyone, "kv/range", json!({"key": b64("a")})).await, empty);
    let invalid = (16, "etcdserver: invalid auth token".to_owned());
    let garbage = Who::Token("garbage.1".into());
    assert_eq!(door.refusal(&garbage, "kv/range", json!({"key": b64("a")})).await, invalid);
    door.add_role(&root, "app", &[("READ", "a", "b"), ("READWRITE", "k", ""), ("WRITE", "x", "\0")]).await;
    let role = door.call(&root, "auth/role/get", json!({"role": "app"})).await;
    let expected = json!([
        {"key": b64("a"), "range_end": b64("b")},
        {"permType": "READWRITE", "key": b64("k")},
        {"permType": "WRITE", "key": b64("x"), "range_end": b64("\0")},
    ]);
    assert_eq!(role["perm"], expected);
    door.add_user(&root, "ann", "annpw", Some("app")).await;
    assert_eq!(door.call(&root, "auth/user/list", json!({})).await["users"], json!(["ann", "root"]));
    assert_eq!(door.call(&root, "auth/role/list", json!({})).await["roles"], json!(["app", "root"]));
    let ann = door.token("ann", "annpw").await;
    assert_eq!(door.call(&ann, "auth/user/get", json!({"name": "ann"})).await["roles"], json!(["app"]));
    door.call(&ann, "auth/role/get", json!({"role": "app"})).await;
    let denied = (7, "etcdserver: permission denied".to_owned());
    assert_eq!(door.refusal(&ann, "auth/user/list", json!({})).await, denied);
    assert_eq!(door.refusal(&ann, "kv/put", json!({"key": b64("a")})).await, denied);
    door.call(&ann, "kv/put", json!({"key": b64("k"), "value": b64("v")})).await;
    door.call(&root, "auth/role/delete", json!({"role": "app"})).await;
    assert_eq!(door.refusal(&ann, "kv/put", json!({"key": b64("k")})).await, denied);
    door.call(&root, "auth/disable", json!({})).await;
    door.call(&anyone, "kv/put", json!({"key": b64("k")})).await;
    door.call(&garbage, "kv/put", json!({"key": b64("k")})).await;
}

const FAILED: &str = "authentication failed, invalid user ID or password";

#[tokio::test]
async fn rest_takes_tokens_and_passwords_and_says_what_is_missing() {
    let (node, door) = node(&[]).await;
    let root = door.secured().await;
    door.add_role(&root, "app", &[("READWRITE", "app/", "app0")]).await;
    door.add_user(&root, "ann", "p:w", Some("app")).await;
    let basic = Who::Basic("ann", "p:w");
    let token = door.token("ann", "p:w").await;
    for who in [&basic, &token, &basic] {
        assert_eq!(door.status(who, "PUT", "/v1/kv/app/a", "v").await / 100, 2);
        assert_eq!(door.status(who, "GET", "/v1/kv?prefix=app/", "").await, 200);
    }
    let problem = |answer: Response| async move {
        let (status, guard) = (answer.status().as_u16(), answer.headers().get("www-authenticate").cloned());
        (status, guard.is_some(), answer.json::<Value>().await.unwrap())
    };
    let (status, _, denied) = problem(door.ask(&token, "PUT", "/v1/kv/other", "v").await).await;
    assert_eq!((status, &denied["code"], &denied["applied"]), (403, &"forbidden".into(), &"no".into()));
    assert_eq!((&denied["action"], &denied["key"]), (&"write".into(), &"other".into()));
    for who in [Who::Nobody, Who::Basic("ann", "wrong"), Who::Basic("nobody", "p:w"), Who::Token("x".into())] {
        let (status, guard, refused) = problem(door.ask(&who, "PUT", "/v1/kv/app/a", "v").await).await;
        assert_eq!((status, guard), (401, true), "{who:?}: {refused}");
        assert_eq!((&refused["code"], &refused["applied"]), (&"unauthenticated".into(), &"no".into()));
    }
    for open in ["/livez", "/readyz", "/health", "/version", "/metrics", "/openapi.yaml", "/"] {
        assert_eq!(door.status(&Who::Nobody, "GET", open, "").await, 200, "{open}");
    }
    // A change of the password ends what was remembered at once.
    door.call(&root, "auth/user/changepw", json!({"name": "ann", "password": "new"})).await;
    assert_eq!(door.status(&basic, "GET", "/v1/kv/app/a", "").await, 401);
    assert_eq!(door.status(&token, "GET", "/v1/kv/app/a", "").await, 401);
    assert_eq!(door.status(&Who::Basic("ann", "new"), "GET", "/v1/kv/app/a", "").await, 200);
    // Users, and the token, outlive the process.
    let node = node.restart().await;
    let door = Door::new(node.url());
    assert_eq!(door.status(&Who::Basic("ann", "new"), "GET", "/v1/kv/app/a", "").await, 200);
    assert_eq!(door.status(&root, "GET", "/v1/config", "").await, 200);
    assert_eq!(door.status(&Who::Nobody, "GET", "/v1/kv/app/a", "").await, 401);
}

#[tokio::test]
async fn a_token_lasts_while_it_is_used_and_no_longer() {
    let (_node, door) = node(&["--auth-token-ttl", "2s"]).await;
    let root = door.secured().await;
    let idle = door.token("root", "rootpw").await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        assert_eq!(door.status(&root, "GET", "/v1/kv/a?consistency=stale", "").await, 404, "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(door.status(&idle, "GET", "/v1/kv/a", "").await, 401);
    // Nothing is written meanwhile: time goes on all the same.
    eventually("an unused token ends", Duration::from_secs(10), async || {
        tokio::time::sleep(Duration::from_secs(3)).await;
        door.status(&root, "GET", "/v1/kv/a", "").await == 401
    })
    .await;
}

/// Reads a stream until it ends, and gives what came.
async fn until_end(mut stream: Response) -> String {
    let mut text = String::new();
    while let Ok(Some(chunk)) = stream.chunk().await {
        text.push_str(&String::from_utf8_lossy(&chunk));
        if text.contains("\"canceled\":true") {
            break;
        }
    }
    text
}

#[tokio::test]
async fn a_revocation_counts_everywhere_at_once_and_ends_open_watches() {
    let mut cluster = Cluster::start(3, &[]).await;
    let doors: Vec<Door> =
        (0..3).map(|member| Door::new(format!("http://{}", cluster.client_address(member)))).collect();
    let root = doors[0].secured().await;
    for door in &doors {
        assert_eq!(door.status(&root, "PUT", "/v1/kv/app/a", "v").await / 100, 2, "a token counts on every member");
        assert_eq!(door.status(&Who::Nobody, "GET", "/v1/kv/app/a", "").await, 401);
    }
    doors[1].add_role(&root, "app", &[("READ", "app/", "app0")]).await;
    doors[2].add_user(&root, "ann", "annpw", Some("app")).await;
    for round in 0..3 {
        let ann = doors[round].token("ann", "annpw").await;
        let (far, near) = (&doors[(round + 1) % 3], &doors[(round + 2) % 3]);
        let rest = far.ask(&ann, "GET", "/v1/watch?prefix=app/", "").await;
        assert_eq!(rest.status(), 200);
        let create = json!({"create_request": {"key": b64("app/"), "range_end": b64("app0")}});
        let etcd = near.ask(&ann, "POST", "/v3/watch", &create.to_string()).await;
        let watches = [tokio::spawn(until_end(rest)), tokio::spawn(until_end(etcd))];
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(watches.iter().all(|watch| !watch.is_finished()), "open while it may be");
        match round {
            0 => {
                doors[0]
                    .call(
                        &root,
                        "auth/role/revoke",
                        json!({"role": "app", "key": b64("app/"), "range_end": b64("app0")}),
                    )
                    .await
            }
            1 => doors[0].call(&root, "auth/user/revoke", json!({"name": "ann", "role": "app"})).await,
            _ => doors[0].call(&root, "auth/user/changepw", json!({"name": "ann", "password": "new"})).await,
        };
        let revoked = Instant::now();
        let refused = if round == 2 { 401 } else { 403 };
        for door in &doors {
            assert_eq!(door.status(&ann, "GET", "/v1/kv/app/a", "").await, refused, "round {round}");
        }
        for watch in watches {
            let text = watch.await.unwrap();
            assert!(revoked.elapsed() < CUT, "{:?}", revoked.elapsed());
            let word = if round == 2 {
                ["unauthenticated", "revision of auth store is old"]
            } else {
                ["forbidden", "permission denied"]
            };
            assert!(word.iter().any(|word| text.contains(word)), "round {round}: {text}");
        }
        match round {
            0 => {
                let perm = json!({"permType": "READ", "key": b64("app/"), "range_end": b64("app0")});
                doors[1].call(&root, "auth/role/grant", json!({"name": "app", "perm": perm})).await;
            }
            1 => drop(doors[1].call(&root, "auth/user/grant", json!({"user": "ann", "role": "app"})).await),
            _ => {}
        }
    }
    // Whoever turns authentication on ends the watches of nobody.
    doors[0].call(&root, "auth/disable", json!({})).await;
    for door in &doors[1..] {
        eventually("it is off everywhere", Duration::from_secs(5), async || {
            door.status(&Who::Nobody, "GET", "/v1/kv/app/a?consistency=stale", "").await == 200
        })
        .await;
    }
    let open = doors[1].ask(&Who::Nobody, "GET", "/v1/watch?prefix=app/", "").await;
    let watch = tokio::spawn(until_end(open));
    doors[2].call(&Who::Nobody, "auth/enable", json!({})).await;
    let enabled = Instant::now();
    assert!(watch.await.unwrap().contains("unauthenticated"));
    assert!(enabled.elapsed() < CUT);
    doors[0].call(&root_again(&doors[0]).await, "auth/disable", json!({})).await;
    eventually("it is off everywhere", Duration::from_secs(5), async || {
        doors[2].status(&Who::Nobody, "GET", "/v1/kv/app/a?consistency=stale", "").await == 200
    })
    .await;
    cluster.one_hash(&[0, 1, 2]).await;
    cluster.stop().await;
}

async fn root_again(door: &Door) -> Who {
    door.token("root", "rootpw").await
}

fn files_below(path: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

/// Passwords and tokens that must be nowhere but where their clients keep them.
#[tokio::test]
async fn no_secret_is_in_the_log_in_snapshots_in_metrics_or_in_what_the_process_says() {
    let mut cluster = Cluster::start(1, &["--log-level", "debug"]).await;
    let door = Door::new(format!("http://{}", cluster.client_address(0)));
    let root = door.secured().await;
    let passwords = ["canary-password-one", "canary-password-two", "canary-wrong-password"];
    door.add_user(&root, "ann", passwords[0], None).await;
    let ann = door.token("ann", passwords[0]).await;
    door.call(&root, "auth/user/changepw", json!({"name": "ann", "password": passwords[1]})).await;
    let again = door.token("ann", passwords[1]).await;
    let wrong = door.refusal(&Who::Nobody, "auth/authenticate", json!({"name": "ann", "password": passwords[2]})).await;
    let basic = Who::Basic("ann", "canary-wrong-password");
    let mut said = format!("{wrong:?}");
    for who in [&ann, &again, &basic, &root] {
        said += &door.ask(who, "PUT", "/v1/kv/denied", "v").await.text().await.unwrap();
        said += &door.ask(who, "GET", "/v1/config", "").await.text().await.unwrap();
    }
    let backup = door.ask(&root, "GET", "/v1/snapshot", "").await.bytes().await.unwrap();
    said += &door.ask(&root, "GET", "/metrics", "").await.text().await.unwrap();
    cluster.terminate(0).await;
    said += &cluster.log(0);
    let mut secrets: Vec<String> = passwords.iter().map(|&password| password.to_owned()).collect();
    for who in [&ann, &again, &root] {
        let Who::Token(token) = who else { panic!("a token") };
        secrets.push(token.clone());
    }
    secrets.push("rootpw".into());
    let mut files = Vec::new();
    files_below(&cluster.data_dir(0), &mut files);
    let contents: Vec<(String, Vec<u8>)> = files
        .iter()
        .map(|path| (path.display().to_string(), std::fs::read(path).unwrap()))
        .chain([("the backup".to_owned(), backup.to_vec()), ("what was said".to_owned(), said.into_bytes())])
        .collect();
    let holds = |content: &[u8], needle: &str| content.windows(needle.len()).any(|part| part == needle.as_bytes());
    assert!(contents.iter().any(|(place, content)| place.contains("wal") && holds(content, "ann")), "nothing was read");
    for (place, content) in &contents {
        for secret in &secrets {
            assert!(!holds(content, secret), "{secret} is in {place}");
        }
    }
}

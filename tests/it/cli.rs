//! The command line against a real member: every command, exit code and output mode, by the real
//! binary. What a terminal would change is tested beside the code; here nothing is a terminal.

use crate::support;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_tenure");

struct Ran {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    #[track_caller]
    fn ok(self) -> Self {
        self.exits(0)
    }

    #[track_caller]
    fn exits(self, code: i32) -> Self {
        let shown = String::from_utf8_lossy(&self.stdout);
        assert_eq!(self.code, code, "stdout: {shown}\nstderr: {}", self.stderr);
        self
    }

    #[track_caller]
    fn prints(self, text: &str) -> Self {
        assert_eq!(self.text(), text, "stderr: {}", self.stderr);
        self
    }
}

/// The binary in an empty environment, with a directory of its own.
struct Shell {
    url: String,
    dir: tempfile::TempDir,
}

impl Shell {
    fn on(url: &str) -> Self {
        Self { url: url.to_owned(), dir: tempfile::tempdir().unwrap() }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("TMPDIR", self.dir.path())
            .env("TENURE_ENDPOINTS", &self.url)
            .current_dir(self.dir.path());
        command
    }

    fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Ran {
        finish(self.command().args(args), b"")
    }

    fn fed<S: AsRef<OsStr>>(&self, input: &[u8], args: &[S]) -> Ran {
        finish(self.command().args(args), input)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a shell makes of one line, with the binary's name in `$TENURE`.
    fn script(&self, line: &str) -> Ran {
        let mut command = Command::new("sh");
        let envs: Vec<_> = self.command().get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
        command.env_clear().envs(envs).env("TENURE", BINARY).current_dir(self.dir.path()).args(["-c", line]);
        finish(&mut command, b"")
    }

    /// The revision of the last write.
    fn put(&self, key: &str, value: &str) -> i64 {
        self.run(&["put", key, value, "-o", "json"]).ok().json()["revision"].as_i64().unwrap()
    }
}

fn finish(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that does not read its input may be gone before all of it is written.
    let feeder = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A free port; somebody else could take it before we do, which fails the test and nothing else.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn put_and_get_keep_every_byte() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let bytes: Vec<u8> = (0..=255).collect();
    shell.fed(&bytes, &["put", "binary", "-"]).ok();
    assert_eq!(shell.run(&["get", "binary"]).ok().stdout, bytes);
    shell.fed(b"from stdin\n", &["put", "stdin"]).ok();
    shell.run(&["get", "stdin"]).ok().prints("from stdin\n");
    fs::write(shell.path("logo.png"), &bytes).unwrap();
    shell.run(&["put", "file", "@logo.png"]).ok();
    assert_eq!(shell.run(&["get", "file", "-o", "value"]).ok().stdout, bytes);
    shell.run(&["put", "empty", ""]).ok();
    shell.run(&["get", "empty"]).ok().prints("");
    shell.run(&["put", "negative", "-5"]).ok();
    shell.run(&["get", "negative"]).ok().prints("-5");
}

#[test]
fn keys_are_taken_verbatim() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let keys: [&[u8]; 9] = [
        b"/registry/pods",
        b"a/../b",
        b"..",
        b"a//b/",
        b"sp ace?&#%41+",
        "grüße".as_bytes(),
        b"not utf-8 \xff\xfe",
        b"tab\tnewline\n",
        b"--",
    ];
    for (number, key) in keys.iter().enumerate() {
        let (key, value) = (OsStr::from_bytes(key), number.to_string());
        let args = [OsStr::new("put"), OsStr::new("--"), key, OsStr::new(&value)];
        shell.run(&args).ok();
    }
    for (number, key) in keys.iter().enumerate() {
        let args = [OsStr::new("get"), OsStr::new("--"), OsStr::from_bytes(key)];
        shell.run(&args).ok().prints(&number.to_string());
    }
    let listed = shell.run(&["ls", "-r", "-o", "value"]).ok();
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    assert_eq!(listed.stdout, [sorted.join(&b'\n'), b"\n".to_vec()].concat());
    shell.run(&["ls", "not", "-r"]).ok().prints("not utf-8 \\xff\\xfe\n");
}

#[test]
fn put_says_what_it_did() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let first = shell.run(&["put", "k", "1"]).ok();
    assert!(first.text().starts_with("created, revision "), "{}", first.text());
    let second = shell.run(&["put", "k", "2"]).ok();
    assert!(second.text().starts_with("updated, revision ") && second.text().ends_with(", version 2\n"));
    let value = shell.run(&["put", "k", "3", "-o", "value"]).ok();
    let revision: i64 = value.text().trim().parse().unwrap();
    let answer = shell.run(&["put", "k", "4", "-o", "json"]).ok().json();
    assert_eq!((answer["revision"].as_i64().unwrap(), &answer["version"]), (revision + 1, &json!(4)));
    shell.run(&["put", "typed", "{}", "--content-type", "application/json"]).ok();
    assert_eq!(shell.run(&["get", "typed", "-o", "json"]).ok().json()["content_type"], "application/json");
}

#[test]
fn conditions_that_fail_exit_with_4() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    shell.run(&["put", "k", "1", "--create"]).ok();
    let refused = shell.run(&["put", "k", "2", "--create"]).exits(4);
    assert!(refused.stdout.is_empty() && refused.stderr.starts_with("error: "), "{}", refused.stderr);
    shell.run(&["put", "k", "2", "--cas", "0"]).exits(4);
    let revision = shell.put("k", "2").to_string();
    shell.run(&["put", "k", "3", "--cas", &revision]).ok();
    shell.run(&["put", "k", "4", "--cas", &revision]).exits(4);
    shell.run(&["del", "k", "--cas", &revision]).exits(4);
    shell.run(&["get", "k"]).ok().prints("3");
    let problem = shell.run(&["put", "k", "4", "--create", "-o", "json"]).exits(4);
    let document: Value = serde_json::from_str(&problem.stderr).unwrap();
    assert_eq!((&document["code"], &document["applied"]), (&json!("precondition-failed"), &json!("no")));
    assert_eq!(document["current"]["value"], "3");
}

#[test]
fn get_in_every_mode() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let first = shell.put("app/db/host", "db 1");
    shell.put("app/db/host", "db 2");
    shell.put("app/port", "5432");
    let get = |mode: &str| shell.run(&["get", "app/db/host", "-o", mode]).ok();
    get("human").prints("db 2");
    get("value").prints("db 2");
    let entry = get("json").json();
    assert_eq!((&entry["key"], &entry["value"], &entry["version"]), (&json!("app/db/host"), &json!("db 2"), &json!(2)));
    assert_eq!(get("ndjson").json(), entry);
    get("env").prints("APP_DB_HOST='db 2'\n");
    get("yaml").prints("\"app/db/host\": \"db 2\"\n");
    get("properties").prints("app.db.host=db 2\n");
    shell.run(&["get", "app/db/host", "--rev", &first.to_string()]).ok().prints("db 1");
    let meta = shell.run(&["get", "app/db/host", "--meta"]).ok();
    for line in ["key             app/db/host", "version         2", "size            4", "value           db 2"] {
        assert!(meta.text().lines().any(|found| found == line), "{line:?} in {}", meta.text());
    }

    let all = |mode: &str| shell.run(&["get", "--prefix", "app/", "-o", mode]).ok();
    all("human").prints("KEY          VALUE\napp/db/host  db 2\napp/port     5432\n");
    all("value").prints("db 2\n5432\n");
    let document = all("json").json();
    assert_eq!(document["items"].as_array().unwrap().len(), 2);
    assert_eq!((&document["more"], &document["items"][1]["value"]), (&json!(false), &json!("5432")));
    assert_eq!(all("ndjson").text().lines().count(), 2);
    all("env").prints("DB_HOST='db 2'\nPORT=5432\n");
    all("yaml").prints("\"db/host\": \"db 2\"\n\"port\": \"5432\"\n");
    all("properties").prints("db.host=db 2\nport=5432\n");
    shell.run(&["get", "app/", "--prefix", "-o", "value"]).ok().prints("db 2\n5432\n");
    shell.put("app/db_host", "x");
    let clash = shell.run(&["get", "--prefix", "app/", "-o", "env"]).exits(1);
    assert!(clash.stderr.contains("DB_HOST"), "{}", clash.stderr);
}

#[test]
fn what_is_not_there_exits_with_3() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let missing = shell.run(&["get", "nothing"]).exits(3);
    assert!(missing.stdout.is_empty() && missing.stderr.starts_with("error: "), "{}", missing.stderr);
    shell.run(&["history", "nothing"]).exits(3);
    shell.run(&["get", "nothing", "--wait", "100ms"]).exits(3);
    shell.run(&["get", "--prefix", "nothing", "-o", "value"]).ok().prints("");
    shell.run(&["del", "nothing"]).ok();
}

#[test]
fn get_can_wait_for_a_key() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    shell.put("there", "1");
    shell.run(&["get", "there", "-w", "30s"]).ok().prints("1");
}

#[test]
fn del_takes_keys_ranges_and_everything() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    for key in ["a/1", "a/2", "a/3", "b", "c"] {
        shell.put(key, "x");
    }
    let one = shell.run(&["del", "a/1"]).ok();
    assert!(one.text().starts_with("deleted 1, revision "), "{}", one.text());
    let trial = shell.run(&["del", "--prefix", "a/", "--dry-run"]).ok();
    assert!(trial.text().starts_with("would delete 2, "), "{}", trial.text());
    shell.run(&["ls", "--count"]).ok().prints("4\n");
    shell.run(&["del", "a/", "--prefix", "-o", "value"]).ok().prints("2\n");
    assert_eq!(shell.run(&["del", "b", "-o", "json"]).ok().json()["deleted"], 1);
    shell.run(&["del", "--prefix", ""]).exits(2);
    shell.run(&["del", "--prefix"]).exits(2);
    shell.run(&["del", "k", "--dry-run"]).exits(2);
    shell.run(&["ls"]).ok().prints("c\n");
    shell.run(&["del", "--all", "--yes", "-o", "value"]).ok().prints("1\n");
    shell.run(&["ls", "--count"]).ok().prints("0\n");
}

#[test]
fn ls_shows_one_level_or_all() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    for key in ["app/db/host", "app/db/port", "app/opts", "zed"] {
        shell.put(key, "four");
    }
    shell.run(&["ls"]).ok().prints("app/\nzed\n");
    shell.run(&["ls", "app/"]).ok().prints("app/db/\napp/opts\n");
    shell.run(&["ls", "app/", "-r"]).ok().prints("app/db/host\napp/db/port\napp/opts\n");
    shell.run(&["ls", "app/", "--count"]).ok().prints("3\n");
    assert_eq!(shell.run(&["ls", "--count", "-o", "json"]).ok().json()["count"], 4);
    let level = shell.run(&["ls", "-o", "json"]).ok().json();
    assert_eq!((&level["prefixes"], &level["items"][0]["value"]), (&json!(["app/"]), &json!("four")));
    let keys = shell.run(&["ls", "-r", "--keys", "-o", "ndjson"]).ok();
    let first: Value = serde_json::from_str(keys.text().lines().next().unwrap()).unwrap();
    assert_eq!((keys.text().lines().count(), &first["size"], first.get("value")), (4, &json!(4), None));
    let long = shell.run(&["ls", "-l"]).ok();
    let lines: Vec<Vec<&str>> = long.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["REVISION", "VERSION", "SIZE", "TYPE", "KEY"]);
    assert_eq!(lines[1], ["-", "-", "-", "-", "app/"]);
    assert_eq!(lines[2][1..], ["1", "4", "-", "zed"]);
}

/// More keys than a page holds, all of them once and in order.
#[test]
fn listings_cross_pages() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let wanted: Vec<String> = (0..2500).map(|number| format!("k/{number:05}")).collect();
    let lines: String = wanted.iter().map(|key| format!("{}\n", json!({"key": key, "value": "v"}))).collect();
    let imported = shell.fed(lines.as_bytes(), &["import", "-"]).ok();
    assert!(imported.text().starts_with("imported 2500, skipped 0, "), "{}", imported.text());
    let text = wanted.join("\n") + "\n";
    shell.run(&["ls", "-r", "k/"]).ok().prints(&text);
    let document = shell.run(&["get", "--prefix", "k/", "-o", "json"]).ok().json();
    assert_eq!(document["items"].as_array().unwrap().len(), 2500);
    let exported = shell.run(&["export", "k/"]).ok();
    assert_eq!(exported.text().lines().count(), 2500);
}

#[test]
fn history_shows_versions_and_what_they_changed() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let first = shell.put("k", "one\ntwo\n");
    let second = shell.put("k", "one\n2\n");
    shell.run(&["del", "k"]).ok();
    let table = shell.run(&["history", "k"]).ok();
    let lines: Vec<Vec<&str>> = table.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["REVISION", "VERSION", "CHANGE", "VALUE"]);
    assert_eq!(lines[1][1..], ["-", "delete", "(deleted)"]);
    assert_eq!(lines[2], [second.to_string().as_str(), "2", "put", "one\\n2\\n"]);
    let diff = shell.run(&["history", "k", "--diff"]).ok();
    let wanted = format!(
        "revision {}  delete (deleted)\n-one\n-2\nrevision {second}  version 2  put\n one\n-two\n+2\nrevision {first}  version 1  put\n+one\n+two\n",
        second + 1
    );
    assert_eq!(diff.text(), wanted);
    assert!(!diff.text().contains('\x1b'));
    let coloured = shell.run(&["history", "k", "--diff", "--color", "always"]).ok();
    assert!(coloured.text().contains("\x1b[32m+2\x1b[0m"), "{:?}", coloured.text());
    let document = shell.run(&["history", "k", "-o", "json"]).ok().json();
    assert_eq!(document["items"].as_array().unwrap().len(), 3);
    assert_eq!(document["items"][0]["reason"], "deleted");
    let newest = shell.run(&["history", "k", "-n", "1", "-o", "ndjson"]).ok();
    assert_eq!(newest.json()["type"], "delete");
    let cut = shell.run(&["history", "k", "--diff", "-n", "2"]).ok();
    assert_eq!(cut.text().lines().filter(|line| line.starts_with("revision ")).count(), 2);
}

#[test]
fn incr_counts_within_bounds() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    shell.run(&["incr", "hits"]).ok().prints("1\n");
    shell.run(&["incr", "hits", "10"]).ok().prints("11\n");
    shell.run(&["incr", "hits", "-1", "-o", "value"]).ok().prints("10\n");
    shell.run(&["incr", "hits", "5", "--max", "12"]).exits(5);
    shell.run(&["incr", "hits", "5", "--max", "12", "--clamp"]).ok().prints("12\n");
    shell.run(&["incr", "hits", "-13", "--min", "0"]).exits(5);
    shell.run(&["incr", "stock", "-1", "--initial", "3", "-o", "json"]).ok();
    shell.run(&["get", "stock"]).ok().prints("2");
    shell.put("text", "abc");
    shell.run(&["incr", "text"]).exits(1);
    let once = ["incr", "safe", "--idempotency-key", "abc"];
    shell.run(&once).ok().prints("1\n");
    shell.run(&once).ok().prints("1\n");
    shell.run(&["get", "safe"]).ok().prints("1");
}

#[test]
fn ttl_and_leases_bound_the_life_of_keys() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    shell.run(&["put", "brief", "x", "--ttl", "1h"]).ok();
    let left = shell.run(&["ttl", "brief"]).ok();
    assert!(left.text().contains(" left of 3600s, lease "), "{}", left.text());
    shell.run(&["ttl", "brief", "--set", "90s", "-o", "value"]).ok().prints("90000\n");
    shell.run(&["put", "brief", "y", "--keep-ttl"]).ok();
    assert_eq!(shell.run(&["ttl", "brief", "-o", "json"]).ok().json()["ttl_ms"], 90_000);
    shell.run(&["ttl", "brief", "--clear"]).ok().prints("no TTL: it stays\n");
    shell.run(&["ttl", "brief", "-o", "value"]).ok().prints("-1\n");
    shell.run(&["ttl", "none"]).exits(3);
    shell.run(&["incr", "visits", "--ttl", "1h"]).ok().prints("1\n");
    assert_eq!(shell.run(&["ttl", "visits", "-o", "json"]).ok().json()["ttl_ms"], 3_600_000);
    let grant = ["lease", "grant", "1h", "--id", "a1", "--name", "worker", "--metadata", "{\"zone\":\"b\"}"];
    shell.run(&grant).ok().prints("00000000000000a1\n");
    shell.run(&grant).exits(1);
    shell.run(&["put", "leased", "x", "--lease", "a1"]).ok();
    shell.run(&["ttl", "leased", "--set", "90s"]).exits(1);
    let lease = shell.run(&["lease", "get", "a1", "--keys"]).ok();
    assert!(lease.text().ends_with("\nname worker\nmetadata {\"zone\":\"b\"}\nkey leased\n"), "{}", lease.text());
    shell.run(&["lease", "ls", "work", "-o", "value"]).ok().prints("00000000000000a1\n");
    shell.run(&["lease", "ls", "other", "-o", "value"]).ok().prints("");
    assert_eq!(shell.run(&["lease", "ls", "-o", "json"]).ok().json()["items"][0]["metadata"]["zone"], "b");
    shell.run(&["lease", "keepalive", "a1"]).ok().prints("3600s left\n");
    shell.run(&["lease", "revoke", "a1", "-o", "value"]).ok().prints("1\n");
    shell.run(&["lease", "keepalive", "a1"]).exits(3);
    shell.run(&["lease", "get", "a1/keepalive"]).exits(2);
    shell.run(&["lease", "hold", "a1"]).exits(3);
    shell.run(&["get", "leased"]).exits(3);
}

#[test]
fn a_lease_is_held_until_the_command_ends_or_the_lease_does() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    for id in ["a1", "a2"] {
        shell.run(&["lease", "grant", "2s", "--id", id]).ok();
        shell.run(&["put", id, "x", "--lease", id]).ok();
    }
    let hold = |id: &str| {
        let mut command = shell.command();
        command.args(["lease", "hold", id, "--every", "100ms", "-o", "ndjson"]).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut first = [0; 1];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        child
    };
    let (mut ended, mut killed) = (hold("a1"), hold("a2"));
    shell.run(&["lease", "revoke", "a1"]).ok();
    assert_eq!(ended.wait().unwrap().code(), Some(3));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let begun = Instant::now();
    while shell.run(&["get", "a2"]).code != 3 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the lease outlives its holder");
    }
    let history = shell.run(&["history", "a2", "-o", "json"]).ok().json();
    assert_eq!(history["items"][0]["reason"], "lease_revoked");
}

#[test]
fn txn_from_a_file_from_stdin_and_line_by_line() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let txn = br#"{"if":[{"key":"a","exists":false}],"then":[{"put":{"key":"a","value":"1"}},{"put":{"key":"b","value":"2"}}],"else":[{"get":{"key":"a"}}]}"#;
    fs::write(shell.path("order.json"), txn).unwrap();
    let done = shell.run(&["txn", "-f", "order.json"]).ok();
    assert!(done.text().starts_with("succeeded, revision "), "{}", done.text());
    assert!(done.text().ends_with("\n  put a: created\n  put b: created\n"), "{}", done.text());
    let again = shell.fed(txn, &["txn"]).ok();
    assert!(again.text().starts_with("did not succeed (compare 0), revision "), "{}", again.text());
    assert!(again.text().ends_with("\n  a = 1\n"), "{}", again.text());
    let answer = shell.fed(txn, &["txn", "-o", "json"]).ok().json();
    assert_eq!((&answer["succeeded"], &answer["failed_if"]), (&json!(false), &json!([0])));
    shell.fed(txn, &["txn", "--strict"]).exits(4);
    shell.fed(b"{\"then\":", &["txn"]).exits(1);
    shell.run(&["txn", "-f", "nowhere.json"]).exits(1);
    let typed = b"value(\"a\") = \"1\"\nversion(b) > 0\n\nput a \"it's 2\"\ndel b\n\nget a\n";
    let asked = shell.fed(typed, &["txn", "--interactive"]).ok();
    assert!(asked.text().ends_with("\n  put a: version 2\n  deleted 1\n"), "{}", asked.text());
    shell.run(&["get", "a"]).ok().prints("it's 2");
    shell.fed(b"mod(a) ~ 1\n", &["txn", "-i"]).exits(2);
}

#[test]
fn edit_saves_only_what_nobody_else_changed() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    shell.run(&["put", "k", "old", "--content-type", "text/x-test"]).ok();
    let edit = |editor: &str, key: &str| finish(shell.command().env("EDITOR", editor).args(["edit", key]), b"");
    let saved = edit("sed -i s/old/new/", "k").ok();
    assert!(saved.text().starts_with("saved, revision "), "{}", saved.text());
    let entry = shell.run(&["get", "k", "-o", "json"]).ok().json();
    assert_eq!((&entry["value"], &entry["content_type"]), (&json!("new"), &json!("text/x-test")));
    let revision = entry["mod_revision"].clone();
    edit("true", "k").ok();
    assert_eq!(shell.run(&["get", "k", "-o", "json"]).ok().json()["mod_revision"], revision, "nothing was written");
    edit("false", "k").exits(1);
    edit("echo made >", "brand/new.json").ok();
    shell.run(&["get", "brand/new.json"]).ok().prints("made\n");
    assert_eq!(scratch_files(&shell), Vec::<PathBuf>::new());

    let race = format!("{BINARY} put k theirs >&2; echo mine >");
    let refused = edit(&race, "k").exits(4);
    assert!(refused.text().contains("-theirs\n+mine\n"), "{}", refused.text());
    shell.run(&["get", "k"]).ok().prints("theirs");
    let kept = scratch_files(&shell);
    assert_eq!(kept.len(), 1, "the text must not be lost");
    assert!(refused.stderr.contains(kept[0].to_str().unwrap()), "{}", refused.stderr);
    assert_eq!(fs::read(&kept[0]).unwrap(), b"mine\n");
}

fn scratch_files(shell: &Shell) -> Vec<PathBuf> {
    let entries = fs::read_dir(shell.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().as_bytes().starts_with(b"tenure-")).collect()
}

#[test]
fn status_health_and_hash_tell_of_each_endpoint() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let revision = shell.put("k", "v");
    let status = shell.run(&["status", "-o", "json"]).ok().json();
    assert_eq!((status["revision"].as_i64(), &status["keys"]), (Some(revision), &json!(1)));
    let table = shell.run(&["status"]).ok();
    assert!(table.text().starts_with("ENDPOINT "), "{}", table.text());
    assert_eq!(table.text().lines().count(), 2);
    shell.run(&["health"]).ok().prints(&format!("{} is healthy\n", shell.url));
    let hash = shell.run(&["hash", "-o", "json"]).ok().json();
    assert_eq!(hash["hash"].as_str().unwrap().len(), 32);
    assert!(shell.run(&["hash"]).ok().text().contains(hash["hash"].as_str().unwrap()));

    let dead = format!("http://127.0.0.1:{}", free_port());
    let both = format!("{},{dead}", shell.url);
    let health = shell.run(&["health", "--endpoints", &both]).exits(10);
    assert!(health.text().contains(" is healthy\n") && health.text().contains(" is unhealthy: "), "{}", health.text());
    shell.run(&["health", "--endpoints", &dead, "-o", "json"]).exits(10);
    let status = shell.run(&["status", "--endpoints", &both, "-o", "json"]).exits(7);
    assert_eq!(status.json().as_array().unwrap().len(), 2);
}

#[test]
fn what_is_compacted_exits_with_9() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let first = shell.put("k", "1").to_string();
    shell.put("k", "2");
    let newest = shell.put("k", "3");
    shell.run(&["get", "k", "--rev", &first]).ok().prints("1");
    let compacted = shell.run(&["compact", &newest.to_string()]).ok();
    compacted.prints(&format!("history is kept after revision {newest}\n"));
    shell.run(&["get", "k", "--rev", &first]).exits(9);
    shell.run(&["get", "k"]).ok().prints("3");
    assert!(shell.run(&["compact", "--keep-revisions", "0", "-o", "json"]).ok().json()["compacted_revision"].is_i64());
}

#[test]
fn export_and_import_carry_everything_over() {
    let (from, to) = (support::server(), support::server());
    let (source, target) = (Shell::on(&from.url()), Shell::on(&to.url()));
    source.put("app/text", "grüße\n");
    source.fed(b"\xff\x00\xfe", &["put", "app/binary"]).ok();
    source.run(&["put", "app/typed", "{}", "--content-type", "application/json"]).ok();
    source.put("other", "x");
    let file = target.path("dump.ndjson");
    let exported = source.run(&["export", "app/", "-f", file.to_str().unwrap()]).ok();
    assert!(exported.text().is_empty() && exported.stderr.starts_with("exported 3 entries"), "{}", exported.stderr);
    let imported = target.run(&["import", "dump.ndjson"]).ok();
    assert!(imported.text().starts_with("imported 3, skipped 0, revision "), "{}", imported.text());
    target.run(&["get", "app/text"]).ok().prints("grüße\n");
    assert_eq!(target.run(&["get", "app/binary"]).ok().stdout, b"\xff\x00\xfe");
    assert_eq!(target.run(&["get", "app/typed", "-o", "json"]).ok().json()["content_type"], "application/json");
    target.run(&["ls", "--count"]).ok().prints("3\n");

    let skipped = target.run(&["import", "dump.ndjson", "--on-conflict", "skip", "-o", "json"]).ok().json();
    assert_eq!((&skipped["imported"], &skipped["skipped"]), (&json!(0), &json!(3)));
    target.run(&["import", "dump.ndjson", "--on-conflict", "fail"]).exits(4);
    target.run(&["import", "dump.ndjson", "--prefix", "copy/"]).ok();
    target.run(&["get", "copy/app/text"]).ok().prints("grüße\n");
    target.run(&["import", "nowhere.ndjson"]).exits(1);
    let piped =
        source.script(&format!("\"$TENURE\" export other | TENURE_ENDPOINTS={} \"$TENURE\" import", target.url));
    piped.ok();
    target.run(&["get", "other"]).ok().prints("x");
}

/// A member of our own making, ended when dropped.
struct Member {
    process: Child,
    url: String,
}

impl Member {
    fn serve(data_dir: &Path) -> Self {
        let url = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(BINARY);
        command.env_clear().args(["serve", "--listen-client", &url, "--data-dir"]).arg(data_dir);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let member = Self { process, url };
        let shell = Shell::on(&member.url);
        let deadline = Instant::now() + Duration::from_secs(30);
        while shell.run(&["health"]).code != 0 {
            assert!(Instant::now() < deadline, "the member did not become healthy");
            thread::sleep(Duration::from_millis(50));
        }
        member
    }

    fn terminate(mut self) -> Option<i32> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.process.wait().unwrap().code()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn serve_runs_until_it_is_told_to_stop_and_keeps_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let member = Member::serve(&data_dir);
    Shell::on(&member.url).put("k", "kept");
    assert_eq!(member.terminate(), Some(0));
    let member = Member::serve(&data_dir);
    Shell::on(&member.url).run(&["get", "k"]).ok().prints("kept");
    let running = Shell::on(&member.url).run(&["config", "show", "--running"]).ok();
    let line = running.text().lines().find(|line| line.starts_with("data-dir ")).unwrap();
    assert!(line.contains(data_dir.to_str().unwrap()) && line.ends_with("flag"), "{line}");
}

#[test]
fn serve_refuses_settings_that_make_no_sense() {
    let shell = Shell::on("127.0.0.1:1");
    let refused = shell.run(&["serve", "--quota-bytes", "lots", "--heartbeat", "1h"]).exits(1);
    assert!(refused.stderr.contains("quota-bytes = \"lots\" (from flag --quota-bytes)"), "{}", refused.stderr);
    shell.run(&["serve", "--qouta-bytes", "1GiB"]).exits(2);
    shell.run(&["serve", "--config", "nowhere.toml"]).exits(1);
}

#[test]
fn a_snapshot_is_saved_inspected_and_restored() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    shell.put("app/a", "1");
    shell.put("app/b", "2");
    let revision = shell.put("app/a", "3");
    let saved = shell.run(&["snapshot", "save", "b.snap", "-o", "json"]).ok().json();
    let bytes = fs::metadata(shell.path("b.snap")).unwrap().len();
    assert_eq!((saved["revision"].as_i64(), saved["bytes"].as_u64()), (Some(revision), Some(bytes)));
    shell.run(&["snapshot", "save", "b.snap"]).exits(1);
    shell.run(&["snapshot", "save", "b.snap", "--force"]).ok();
    assert_eq!(fs::read_dir(shell.dir.path()).unwrap().count(), 1, "nothing half-written stays");

    let report = shell.run(&["snapshot", "inspect", "b.snap", "-o", "json"]).ok().json();
    assert_eq!((report["revision"].as_i64(), &report["keys"]), (Some(revision), &json!(2)));
    let mut damaged = fs::read(shell.path("b.snap")).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(shell.path("damaged.snap"), &damaged).unwrap();
    shell.run(&["snapshot", "inspect", "damaged.snap"]).exits(1);
    shell.run(&["snapshot", "inspect", "nowhere.snap"]).exits(1);
    shell.run(&["snapshot", "restore", "damaged.snap", "--data-dir", "new"]).exits(1);

    fs::create_dir(shell.path("full")).unwrap();
    fs::write(shell.path("full/precious"), b"x").unwrap();
    let refused = shell.run(&["snapshot", "restore", "b.snap", "--data-dir", "full"]).exits(1);
    assert!(refused.stderr.contains("is not empty"), "{}", refused.stderr);
    let restored = shell.run(&["snapshot", "restore", "b.snap", "--data-dir", "restored", "-o", "json"]).ok().json();
    let bumped = restored["revision"].as_i64().unwrap();
    assert!(bumped >= revision + 1_000_000_000, "{restored}");

    shell.put("app/a", "4");
    shell.run(&["snapshot", "restore", "b.snap"]).exits(2);
    let refused = shell.run(&["snapshot", "restore", "b.snap", "--confirm", "another"]).exits(4);
    assert!(refused.stderr.contains("replaces everything in cluster tenure"), "{}", refused.stderr);
    shell.run(&["get", "app/a"]).ok().prints("4");
    let online = shell.run(&["snapshot", "restore", "b.snap", "--confirm", "tenure", "-o", "json"]).ok().json();
    assert!(online["revision"].as_i64() > Some(revision + 1), "{online}");
    shell.run(&["get", "app/a"]).ok().prints("3");
    shell.run(&["get", "app/a", "--rev", &revision.to_string()]).exits(9);

    let member = Member::serve(&shell.path("restored"));
    let there = Shell::on(&member.url);
    there.run(&["get", "app/a"]).ok().prints("3");
    there.run(&["ls", "-r"]).ok().prints("app/a\napp/b\n");
    there.run(&["get", "app/a", "--rev", &revision.to_string()]).exits(9);
    assert!(there.put("app/c", "4") > bumped);
    assert_eq!(member.terminate(), Some(0));
}

#[test]
fn config_is_checked_and_shown_with_its_sources() {
    let shell = Shell::on("127.0.0.1:1");
    fs::write(shell.path("good.toml"), "name = \"n7\"\nquota-bytes = \"1GiB\"\n").unwrap();
    shell.run(&["config", "check", "good.toml"]).ok().prints("good.toml: fine, 2 settings\n");
    fs::write(shell.path("bad.toml"), "data_dir = \"x\"\n").unwrap();
    let bad = shell.run(&["config", "check", "bad.toml"]).exits(1);
    assert!(bad.stderr.contains("unknown key data_dir; did you mean data-dir?"), "{}", bad.stderr);
    fs::write(shell.path("wrong.toml"), "heartbeat = \"fast\"\nlog-level = \"loud\"\n").unwrap();
    let wrong = shell.run(&["config", "check", "wrong.toml"]).exits(1);
    assert!(wrong.stderr.contains("heartbeat") && wrong.stderr.contains("log-level"), "{}", wrong.stderr);

    let mut command = shell.command();
    command.args(["config", "show", "--config", "good.toml", "--data-dir", "/d", "-o", "json"]);
    let shown = finish(command.env("TENURE_LOG_LEVEL", "warn").env("TENURE_NAME", "n8"), b"").ok().json();
    let setting = |name: &str| {
        let settings = shown["settings"].as_array().unwrap();
        let found = settings.iter().find(|setting| setting["name"] == name).unwrap();
        (found["value"].as_str().unwrap().to_owned(), found["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(setting("name"), ("n8".to_owned(), "env".to_owned()));
    assert_eq!(setting("quota-bytes"), ("1GiB".to_owned(), "file".to_owned()));
    assert_eq!(setting("data-dir"), ("/d".to_owned(), "flag".to_owned()));
    assert_eq!(setting("heartbeat"), ("100ms".to_owned(), "default".to_owned()));
    let table = shell.run(&["config", "show"]).ok();
    assert!(table.text().starts_with("SETTING "), "{}", table.text());
    let warned = finish(shell.command().args(["config", "show"]).env("TENURE_DATADIR", "x"), b"").ok();
    assert!(warned.stderr.contains("did you mean TENURE_DATA_DIR?"), "{}", warned.stderr);
}

#[test]
fn a_context_gives_defaults_that_environment_and_flags_override() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let dead = format!("127.0.0.1:{}", free_port());
    let file = format!(
        "current = \"dead\"\n[contexts.dead]\nendpoints = [\"{dead}\"]\n[contexts.live]\nendpoints = [\"{}\"]\noutput = \"json\"\n",
        shell.url
    );
    fs::create_dir_all(shell.path(".config/tenure")).unwrap();
    fs::write(shell.path(".config/tenure/config.toml"), file).unwrap();
    let run = |args: &[&str]| finish(shell.command().env_remove("TENURE_ENDPOINTS").args(args), b"");
    run(&["put", "k", "v"]).exits(7);
    run(&["--context", "live", "put", "k", "v"]).ok();
    assert_eq!(run(&["get", "k", "--context", "live"]).ok().json()["value"], "v");
    run(&["get", "k", "--context", "live", "-o", "value"]).ok().prints("v");
    run(&["get", "k", "--endpoints", &shell.url]).ok().prints("v");
    shell.run(&["get", "k"]).ok().prints("v");
    let unknown = run(&["get", "k", "--context", "lve"]).exits(2);
    assert!(unknown.stderr.contains("it has dead, live"), "{}", unknown.stderr);
}

#[test]
fn an_unreachable_member_exits_with_7_and_another_is_tried() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let dead = format!("127.0.0.1:{}", free_port());
    let refused = shell.run(&["put", "k", "v", "--endpoints", &dead]).exits(7);
    assert!(refused.stderr.starts_with("error: cannot reach http://127.0.0.1:"), "{}", refused.stderr);
    assert!(refused.stderr.contains("\nhint: "), "{}", refused.stderr);
    let document: Value =
        serde_json::from_str(&shell.run(&["get", "k", "--endpoints", &dead, "-o", "json"]).exits(7).stderr).unwrap();
    assert_eq!((&document["code"], &document["applied"]), (&json!("unreachable"), &json!("no")));
    let both = format!("{dead},{}", shell.url);
    let moved = shell.run(&["put", "k", "v", "--endpoints", &both, "--verbose"]).ok();
    assert!(moved.stderr.contains("cannot reach") && moved.stderr.contains("request id "), "{}", moved.stderr);
    shell.run(&["get", "k", "--endpoints", "https://x"]).exits(2);
}

/// A stand-in for a member, for answers that a healthy one does not give.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let mut seen = Vec::new();
        while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
            let read = socket.read(&mut request).unwrap();
            seen.extend_from_slice(&request[..read]);
        }
        socket.write_all(answer.as_bytes()).unwrap();
    });
    url
}

#[test]
fn a_write_without_an_answer_exits_with_8_and_is_not_repeated() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let silent = answering("");
    let both = format!("{silent},{}", shell.url);
    let lost = shell.run(&["put", "k", "v", "--endpoints", &both]).exits(8);
    assert!(lost.stderr.contains("may have happened"), "{}", lost.stderr);
    shell.run(&["get", "k"]).exits(3);
    let unknown = "HTTP/1.1 504 x\r\nconnection: close\r\ncontent-length: 45\r\n\r\n{\"code\":\"outcome-unknown\",\"applied\":\"unknown\"}";
    shell.run(&["put", "k", "v", "--endpoints", &answering(unknown)]).exits(8);
}

#[test]
fn a_refused_caller_exits_with_6() {
    let shell = Shell::on("127.0.0.1:1");
    let forbidden =
        "HTTP/1.1 403 x\r\nconnection: close\r\ncontent-length: 35\r\n\r\n{\"code\":\"forbidden\",\"applied\":\"no\"}";
    shell.run(&["get", "k", "--endpoints", &answering(forbidden)]).exits(6);
    let unknown = "HTTP/1.1 401 x\r\nconnection: close\r\ncontent-length: 26\r\n\r\n{\"code\":\"unauthenticated\"}";
    shell.run(&["put", "k", "v", "--endpoints", &answering(unknown)]).exits(6);
}

/// The printed line does what the command would have done.
#[test]
fn curl_lines_do_the_same() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let curl = |args: &[&str]| {
        let printed = shell.run(&[args, &["--curl"]].concat()).ok();
        assert!(printed.text().contains("curl ") && printed.text().contains(&shell.url), "{}", printed.text());
        shell.script(printed.text().trim_end()).ok()
    };
    curl(&["put", "it's a/key", "va'l\"ue $HOME\n"]);
    shell.run(&["get", "it's a/key"]).ok().prints("va'l\"ue $HOME\n");
    curl(&["get", "it's a/key"]).prints("va'l\"ue $HOME\n");
    curl(&["put", "a/../b", "dots"]);
    shell.run(&["get", "a/../b"]).ok().prints("dots");
    let refused = curl(&["put", "a/../b", "x", "--create"]).json();
    assert_eq!(refused["code"], "precondition-failed");
    assert_eq!(curl(&["incr", "n", "5"]).json()["value"], 5);
    assert_eq!(curl(&["ls", "--count"]).json()["count"], 3);
    assert_eq!(curl(&["status"]).json()["keys"], 3);
    assert_eq!(curl(&["del", "n"]).json()["deleted"], 1);
    fs::write(shell.path("t.json"), "{\"then\":[{\"put\":{\"key\":\"t\",\"value\":\"1\"}}]}").unwrap();
    assert_eq!(curl(&["txn", "-f", "t.json"]).json()["succeeded"], true);
    curl(&["snapshot", "save", "c.snap"]);
    assert!(shell.path("c.snap").exists());
    shell.run(&["edit", "k", "--curl"]).exits(2);
}

#[test]
fn output_modes_that_mean_nothing_are_usage_errors() {
    let shell = Shell::on("127.0.0.1:1");
    for args in [&["put", "k", "v", "-o", "yaml"][..], &["ls", "-o", "env"], &["status", "-o", "properties"]] {
        let refused = shell.run(args).exits(2);
        assert!(refused.stderr.contains("this command has no output"), "{}", refused.stderr);
    }
    shell.run(&["frobnicate"]).exits(2);
    shell.run(&["get"]).exits(2);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let lines: String =
        (0..2000).map(|n| format!("{}\n", json!({"key": format!("k{n:04}"), "value": "v".repeat(100)}))).collect();
    shell.fed(lines.as_bytes(), &["import"]).ok();
    let ran = shell.script("{ \"$TENURE\" export; echo \"code $?\" >&2; } | head -n 1");
    assert_eq!((ran.text().lines().count(), ran.stderr.as_str()), (1, "code 0\n"));
}

#[test]
fn the_program_tells_about_itself() {
    let shell = Shell::on("127.0.0.1:1");
    let version = env!("CARGO_PKG_VERSION");
    shell.run(&["version"]).ok().prints(&format!("tenure {version}\n"));
    shell.run(&["--version"]).ok().prints(&format!("tenure {version}\n"));
    assert_eq!(shell.run(&["version", "-o", "json"]).ok().json()["tenure"], version);
    assert_eq!(shell.run(&["openapi"]).ok().text(), include_str!("../../openapi.yaml"));
    for (name, mark) in [("bash", "complete -F"), ("zsh", "#compdef tenure"), ("fish", "complete -c tenure")] {
        assert!(shell.run(&["completion", name]).ok().text().contains(mark), "{name}");
    }
    for name in ["powershell", "elvish"] {
        assert!(shell.run(&["completion", name]).ok().text().contains("snapshot"), "{name}");
    }
    shell.run(&["man", "pages/man1"]).ok();
    for page in ["tenure.1", "tenure-get.1", "tenure-serve.1", "tenure-snapshot-restore.1", "tenure-bench-put.1"] {
        assert!(fs::read_to_string(shell.path("pages/man1").join(page)).unwrap().starts_with(".ie"), "{page}");
    }
    let help = shell.run(&["help", "put"]).ok();
    assert!(help.text().contains("--cas") && help.text().contains("--curl"), "{}", help.text());
}

/// The same loads through each door; ranges and counts are what they say, or are counted as errors.
#[test]
fn bench_goes_through_every_door() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let bench = |args: &[&str]| shell.run(&[&["bench"], args, &["-o", "json"]].concat()).ok().json();
    let common = ["--key-space", "200", "--count", "200", "--warm-up", "0s"];
    for (door, name) in [(&[][..], "rest"), (&["--etcd"], "etcd-json"), (&["--grpc"], "etcd-grpc")] {
        let prefix = format!("{name}/");
        let common = [&common[..], &["--key-prefix", &prefix], door].concat();
        for (load, operation) in [
            (&["put", "--txn", "50", "--keys", "sequential"][..], "put"),
            (&["get", "--no-fill"], "get"),
            (&["get", "--stale"], "get"),
            (&["range", "--limit", "10"], "range"),
            (&["range", "--limit", "10", "--stale", "--no-fill"], "range"),
            (&["count", "--no-fill"], "count"),
            (&["mixed", "--reads", "50", "--no-fill"], "mixed"),
        ] {
            let told = bench(&[load, &common[..]].concat());
            assert_eq!((&told["operation"], &told["door"]), (&json!(operation), &json!(name)));
            assert_eq!((&told["operations"], &told["errors"]), (&json!(200), &json!({})), "{told}");
        }
    }
    let shared = bench(&["put", "--count", "100", "--grpc", "--connections", "3", "--clients", "20"]);
    assert_eq!((&shared["connections"], &shared["clients"]), (&json!(3), &json!(20)));
    let missing = ["--key-prefix", "none/", "--no-fill", "--count", "10", "--warm-up", "0s", "--grpc"];
    shell.run(&[&["bench", "get"], &missing[..]].concat()).exits(7);
    shell.run(&["bench", "range", "--limit", "300", "--key-space", "300"]).exits(2);
    for (door, watches) in [(&["--streams", "12"][..], 12), (&["--grpc", "-s", "4", "-w", "5", "-c", "2"], 20)] {
        let watched = bench(&[&["watch", "-d", "400ms", "--rate", "50", "--key-space", "3"], door].concat());
        assert_eq!((&watched["watches"], &watched["broken"]), (&json!(watches), &json!(0)), "{watched}");
        assert!(watched["delivered"].as_u64() >= Some(watches), "{watched}");
        assert_eq!(watched["delivered"], watched["expected"]);
    }
}

#[test]
fn bench_reports_rates_latency_and_cost() {
    let server = support::server();
    let shell = Shell::on(&server.url());
    let bench = |args: &[&str]| {
        let common = ["--connections", "4", "--warm-up", "0s", "--key-space", "300", "--seed", "7", "-o", "json"];
        shell.run(&[&["bench"], args, &common[..]].concat()).ok().json()
    };
    let loaded = bench(&["put", "--txn", "64", "--count", "300", "--keys", "sequential"]);
    assert_eq!(
        (&loaded["operations"], &loaded["requests"], &loaded["error_count"]),
        (&json!(300), &json!(5), &json!(0))
    );
    shell.run(&["ls", "b/", "--count"]).ok().prints("300\n");
    let key = shell.run(&["ls", "b/", "-r", "-o", "value"]).ok();
    assert!(key.text().lines().all(|key| key.len() == 32));
    let put = bench(&["put", "--duration", "300ms", "--value-size", "10"]);
    let latency = &put["latency_us"];
    let rising = ["p50", "p90", "p99", "p999", "max"].map(|name| latency[name].as_u64().unwrap());
    assert!(rising[0] > 0 && rising.is_sorted(), "{latency}");
    assert!(put["ops_per_s"].as_f64().unwrap() > 0.0 && put["server"]["rss_bytes"].as_f64().unwrap() > 0.0);
    assert!(put["server"]["cpu_us_per_op"].is_number() && put["client"]["cpu_us_per_op"].is_number());
    let get = bench(&["get", "--count", "500"]);
    assert_eq!((&get["operations"], &get["errors"]), (&json!(500), &json!({})));
    let mixed = bench(&["mixed", "--count", "200", "--reads", "50", "--rate", "2000", "--no-fill"]);
    assert_eq!(mixed["operations"], 200);
    assert!(mixed["seconds"].as_f64().unwrap() >= 0.09, "the rate must hold it back: {mixed}");
    let table = shell.run(&["bench", "put", "-n", "10", "--key-space", "10"]).ok();
    assert!(table.text().starts_with("OP ") && table.text().contains("SERVER CPU/OP"), "{}", table.text());
    shell.run(&["bench", "put", "-n", "10", "--key-size", "8", "--key-space", "100000000"]).exits(2);
    for (args, operation) in [
        (&["lock", "-d", "300ms", "--contenders", "3"][..], "lock hand-over"),
        (&["lease", "-l", "10", "-c", "2", "-d", "200ms"], "keep-alive"),
        (&["replay", "-r", "500", "-c", "4"], "replayed event"),
        (&["lease", "-l", "300", "-c", "2", "--expire", "2s"], "put beside an expiry"),
        (&["lock", "-d", "300ms", "--contenders", "3", "--connections", "2", "--grpc"], "lock hand-over"),
        (&["lease", "-l", "10", "-c", "2", "-d", "200ms", "--grpc"], "keep-alive"),
        (&["replay", "-r", "500", "-c", "4", "--grpc"], "replayed event"),
    ] {
        let told = shell.run(&[&["bench"], args, &["-o", "json"]].concat()).ok().json();
        assert_eq!(told["operation"], operation);
        assert!(told["operations"].as_u64() > Some(0) && told["server_cpu_us_per_op"].is_number(), "{told}");
        assert_eq!(told["gone_after_s"].is_number(), args.contains(&"--expire"), "{told}");
    }
    shell.run(&["bench", "lease", "-l", "100000", "-c", "1", "--expire", "1s"]).exits(7);
    // What came before the run is compacted, and no part of it.
    shell.run(&["put", "x", "y"]).ok();
    let newest = shell.run(&["get", "x", "-o", "json"]).ok().json()["mod_revision"].as_i64().unwrap();
    shell.run(&["compact", &newest.to_string()]).ok();
    for door in [&[][..], &["--grpc"]] {
        let args = [&["replay", "-r", "100", "-c", "2"], door].concat();
        assert_eq!(shell.run(&[&["bench"], &args[..], &["-o", "json"]].concat()).ok().json()["operations"], 100);
    }
    let dead = format!("127.0.0.1:{}", free_port());
    shell.run(&["bench", "put", "-d", "200ms", "-c", "1", "--endpoints", &dead]).exits(7);
}

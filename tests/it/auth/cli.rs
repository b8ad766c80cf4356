//! The command line against a member with authentication on: every command says who asks, in every way there is
//! to say it, and shows no secret.

use super::{Door, node};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

const LONG: Duration = Duration::from_secs(60);
const DENIED: i32 = 6;

/// Each with a member that has authentication on; the second is what it exits with for nobody.
const COMMANDS: &[(&str, i32)] = &[
    ("put a 1", DENIED),
    ("get a", DENIED),
    ("ls", DENIED),
    ("ls --count", DENIED),
    ("incr n", DENIED),
    ("history a", DENIED),
    ("ttl a", DENIED),
    ("txn --file txn.json", DENIED),
    ("lease grant 60s --id a1", DENIED),
    ("lease keepalive a1", DENIED),
    ("lease ls", DENIED),
    ("lease revoke a1", DENIED),
    ("ratelimit r --limit 10 --per 1s", DENIED),
    ("lock l -- true", 125),
    ("lock ls", DENIED),
    ("sem s --limit 2 -- true", 125),
    ("elect e --value v -- true", 125),
    ("edit a", DENIED),
    ("export -f all.ndjson", DENIED),
    ("import all.ndjson", DENIED),
    ("status", DENIED),
    ("member list", DENIED),
    ("leader", DENIED),
    ("hash", DENIED),
    ("config show --running", DENIED),
    ("snapshot save backup.snap --force", DENIED),
    ("compact --keep-revisions 1000", DENIED),
    ("del n", DENIED),
    ("bench put -n 50 -c 2 --key-space 10", 7),
    ("bench get -n 50 -c 2 --key-space 10", 7),
    ("bench mixed --etcd -n 50 -c 2 --key-space 10", 7),
    ("bench watch -s 2 -d 300ms --rate 20", 7),
    ("bench lock -c 2 -d 300ms", 7),
    ("bench lease -l 4 -c 2 -d 300ms", 7),
    ("bench replay -r 100 -c 2", 7),
];

type Env<'a> = &'a [(&'a str, &'a str)];

struct Shell {
    url: String,
    dir: tempfile::TempDir,
}

impl Shell {
    fn on(url: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("txn.json"), r#"{"then":[{"get":{"key":"a"}}]}"#).unwrap();
        std::fs::write(dir.path().join("password"), "rootpw\n").unwrap();
        Self { url: url.to_owned(), dir }
    }

    /// In an empty environment but for these, and without a terminal.
    fn command(&self, env: Env<'_>, args: &[&str]) -> Command {
        let mut command = Command::new("setsid");
        command.arg("--wait").arg(env!("CARGO_BIN_EXE_tenure")).args(args);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.dir.path()).env("EDITOR", "true");
        command.env("TENURE_ENDPOINTS", &self.url).envs(env.iter().copied()).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run(&self, env: Env<'_>, args: &[&str]) -> (i32, String) {
        let output = tokio::time::timeout(LONG, self.command(env, args).output()).await.unwrap().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code().unwrap_or(-1), said.concat())
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[tokio::test]
async fn every_command_says_who_asks() {
    let (node, door) = node(&[]).await;
    door.secured().await;
    let shell = Shell::on(&node.url());
    let mut wrong = Vec::new();
    for (line, code) in COMMANDS {
        for (env, code) in [(&[("TENURE_USER", "root:rootpw")][..], 0), (&[], *code)] {
            let (ended, said) = shell.run(env, &words(line)).await;
            if ended != code || said.contains("rootpw") {
                wrong.push(format!("{line}: {ended} instead of {code}: {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (_, said) = shell.run(&[], &["ls"]).await;
    assert!(said.contains("--user or TENURE_USER"), "{said}");
    // What goes on until it is stopped.
    for line in ["watch --prefix --initial", "ls --watch", "lease hold b1"] {
        if line.starts_with("lease") {
            shell.run(&[("TENURE_USER", "root:rootpw")], &words("lease grant 60s --id b1")).await;
        }
        let mut child = shell.command(&[("TENURE_USER", "root:rootpw")], &words(line)).spawn().unwrap();
        let (mut out, mut err) = (
            BufReader::new(child.stdout.take().unwrap()).lines(),
            BufReader::new(child.stderr.take().unwrap()).lines(),
        );
        let first = async {
            tokio::select! { line = out.next_line() => line, line = err.next_line() => line }
        };
        let first = tokio::time::timeout(LONG, first).await.unwrap().unwrap();
        assert!(first.as_ref().is_some_and(|first| !first.contains("error")), "{line}: {first:?}");
        assert!(child.try_wait().unwrap().is_none(), "{line} goes on");
        child.kill().await.unwrap();
        let (ended, said) = shell.run(&[], &words(line)).await;
        assert_eq!(ended, DENIED, "{line}, by nobody: {said}");
    }
}

#[tokio::test]
async fn in_whichever_way_it_is_said() {
    let (node, door) = node(&[]).await;
    let super::Who::Token(token) = door.secured().await else { panic!("a token") };
    let shell = Shell::on(&node.url());
    let file = shell.path("password");
    let fine: &[(Env<'_>, &[&str])] = &[
        (&[], &["ls", "--user", "root:rootpw"]),
        (&[], &["--user", "root:rootpw", "ls"]),
        (&[], &["ls", "--user", "root", "--password-file", &file]),
        (&[("TENURE_USER", "root"), ("TENURE_PASSWORD_FILE", &file)], &["ls"]),
        (&[], &["ls", "--token", &token]),
        (&[("TENURE_TOKEN", &token)], &["ls"]),
        // What is typed counts before the environment.
        (&[("TENURE_TOKEN", "stale")], &["ls", "--user", "root:rootpw"]),
        (&[("TENURE_USER", "ann:wrong")], &["ls", "--token", &token]),
        (&[("TENURE_USER", "ann:wrong")], &["ls", "--user", "root:rootpw"]),
        (&[("TENURE_PASSWORD_FILE", "/nowhere")], &["ls", "--user", "root:rootpw"]),
        (&[("TENURE_PASSWORD_FILE", "/nowhere")], &["ls", "--token", &token]),
    ];
    for (env, args) in fine {
        let (code, said) = shell.run(env, args).await;
        assert_eq!(code, 0, "{env:?} {args:?}: {said}");
    }
    let config = "current = \"live\"\n[contexts.live]\nuser = \"root\"\npassword_file = \"password\"\n";
    std::fs::write(shell.dir.path().join("client.toml"), config).unwrap();
    let context = [("TENURE_CLIENT_CONFIG", "client.toml")];
    assert_eq!(shell.run(&context, &["ls"]).await.0, 0);
    assert_eq!(shell.run(&context, &["ls", "--user", "root:wrong"]).await.0, DENIED);
    let wrong: &[(Env<'_>, &[&str], i32, &str)] = &[
        (&[], &["ls", "--user", "root:canary"], DENIED, "authentication failed"),
        (&[], &["ls", "--user", "canary:rootpw"], DENIED, "authentication failed"),
        (&[], &["ls", "--token", "canary.1"], DENIED, "token"),
        (&[], &["ls", "--token", "canary token"], 2, "visible ASCII"),
        (&[], &["ls", "--user", ":canary"], 2, "NAME or NAME:PASSWORD"),
        (&[], &["ls", "--user", "root"], 2, "--password-file"),
        (&[], &["ls", "--password-file", &file], 2, "--user"),
        (&[], &["ls", "--user", "root:canary", "--token", "canary"], 2, "say one of them"),
        (&[("TENURE_USER", "root:canary"), ("TENURE_TOKEN", "canary")], &["ls"], 2, "say one of them"),
        (&[("TENURE_USER", "root:canary"), ("TENURE_PASSWORD_FILE", &file)], &["ls"], 2, "say one of them"),
        (&[], &["ls", "--token", "canary", "--password-file", &file], 2, "say one of them"),
        (&[], &["ls", "--user", "root:canary", "--password-file", &file], 2, "say one of them"),
        (&[], &["ls", "--endpoints", "http://root:canary@127.0.0.1:1"], 2, "--user"),
        (&[], &["ls"], DENIED, "this needs a user"),
    ];
    for (env, args, code, text) in wrong {
        for mode in ["human", "json"] {
            let args = [args, &["-o", mode, "--verbose"][..]].concat();
            let (ended, said) = shell.run(env, &args).await;
            assert_eq!(ended, *code, "{env:?} {args:?}: {said}");
            assert!(said.contains(text), "{env:?} {args:?}: {said}");
            assert!(!said.contains("canary"), "{env:?} {args:?}: {said}");
        }
    }
}

#[tokio::test]
async fn nothing_that_is_printed_holds_a_secret() {
    let shell = Shell::on("http://127.0.0.1:1");
    let token = [("TENURE_TOKEN", "canary.1")];
    let user = [("TENURE_USER", "ann:canary")];
    let (code, said) = shell.run(&user, &["get", "a", "--curl"]).await;
    assert_eq!((code, said.as_str()), (0, "curl -u ann http://127.0.0.1:1/v1/kv/a\n"));
    // Nothing is asked for that is not sent.
    let (code, said) = shell.run(&[], &["get", "a", "--curl", "--user", "ann"]).await;
    assert_eq!((code, said.as_str()), (0, "curl -u ann http://127.0.0.1:1/v1/kv/a\n"));
    let (code, said) = shell.run(&token, &["get", "a", "--curl"]).await;
    let line = "curl -H \"Authorization: Bearer $TENURE_TOKEN\" http://127.0.0.1:1/v1/kv/a\n";
    assert_eq!((code, said.as_str()), (0, line));
    // Who asks is no affair of commands that ask nobody.
    assert_eq!(shell.run(&[user[0], token[0]], &["config", "show"]).await.0, 0);
    for env in [&user[..], &token[..]] {
        for args in [&["config", "show"][..], &["--help"], &["get", "--help"], &["get", "a", "--verbose"], &["frob"]] {
            let (_, said) = shell.run(env, args).await;
            assert!(!said.contains("canary") && !said.is_empty(), "{args:?}: {said}");
        }
    }
}

#[tokio::test]
async fn a_password_is_asked_for_at_the_terminal_and_not_shown_there() {
    if !Path::new("/usr/bin/script").exists() {
        println!("script is not installed: nobody is asked for a password");
        return;
    }
    let (node, door) = node(&[]).await;
    door.secured().await;
    let shell = Shell::on(&node.url());
    // Standard output stays the command's own.
    let line = |args: &str| format!("{} {args} >out; echo \"ended $?\"; stty -a", env!("CARGO_BIN_EXE_tenure"));
    for (args, typed, code) in [
        ("ls --count --user root", "rootpw\n", 0),
        ("ls --count --user root", "nonsense\x15rootpwx\x7f\n", 0),
        ("ls --count --user root", "wrongpw\n", DENIED),
        ("ls --count --user root", "roo\x03", 130),
    ] {
        let mut command = Command::new("script");
        command.args(["--quiet", "--command", &line(args), "/dev/null"]);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", shell.dir.path()).env("SHELL", "/bin/sh");
        command.env("TENURE_ENDPOINTS", &shell.url).current_dir(shell.dir.path()).kill_on_drop(true);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut seen = Vec::new();
        let watched = async {
            let mut asked = false;
            while tokio::io::AsyncReadExt::read_buf(&mut screen, &mut seen).await.unwrap() > 0 {
                if !asked && String::from_utf8_lossy(&seen).contains("password of root: ") {
                    asked = true;
                    // Typed when the terminal has become quiet, as by a person.
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    keys.write_all(typed.as_bytes()).await.unwrap();
                    keys.flush().await.unwrap();
                }
            }
        };
        tokio::time::timeout(LONG, watched).await.unwrap();
        let seen = String::from_utf8_lossy(&seen).into_owned();
        assert!(seen.contains(&format!("ended {code}")), "{typed:?}: {seen}");
        assert!(!seen.contains("rootpw") && !seen.contains("wrongpw") && !seen.contains("roo\r"), "{seen}");
        assert!(seen.contains(" echo ") && seen.contains(" icanon ") && seen.contains("isig "), "{seen}");
        let out = std::fs::read_to_string(shell.path("out")).unwrap();
        assert_eq!(out.trim(), if code == 0 { "0" } else { "" });
    }
}

/// A token that a script gets once and hands on.
#[tokio::test]
async fn a_token_of_the_command_line_ends_with_its_password() {
    let (node, door) = node(&[]).await;
    let root = door.secured().await;
    let super::Who::Token(token) = door.token("root", "rootpw").await else { panic!("a token") };
    let shell = Shell::on(&node.url());
    let env = [("TENURE_TOKEN", token.as_str())];
    assert_eq!(shell.run(&env, &["put", "a", "1"]).await.0, 0);
    Door::new(node.url())
        .call(&root, "auth/user/changepw", serde_json::json!({"name": "root", "password": "new"}))
        .await;
    let (code, said) = shell.run(&env, &["put", "a", "2"]).await;
    assert!(code == DENIED && !said.contains(&token), "{code} {said}");
    assert_eq!(shell.run(&[("TENURE_USER", "root:new")], &["get", "a"]).await, (0, "1".to_owned()));
}

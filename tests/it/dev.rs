//! `tenure dev`: the prompt, and that nothing is left behind.

use crate::support::eventually;
use reqwest::StatusCode;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// A port from which on the members' are free.
fn base(members: u16) -> u16 {
    let first = 31_000 + u16::try_from(std::process::id() % 800).unwrap();
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let fits = |base: &u16| (0..members).all(|n| (0..3).all(|more| free(base + 100 * n + more)));
    (first..first + 90).step_by(3).find(fits).expect("free ports")
}

struct Dev {
    child: Child,
    base: u16,
    http: reqwest::Client,
}

impl Dev {
    fn start() -> Self {
        let base = base(3);
        let (client, peer) = (base.to_string(), (base + 1).to_string());
        let child = Command::new(env!("CARGO_BIN_EXE_tenure"))
            .args(["dev", "-n", "3", "--client-port", &client, "--peer-port", &peer])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        Self { child, base, http: reqwest::Client::new() }
    }

    fn order(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    async fn ask(&self, member: usize, method: &str, target: &str) -> Option<reqwest::Response> {
        let port = self.base + 100 * u16::try_from(member).unwrap();
        let url = format!("http://127.0.0.1:{port}{target}");
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.http.request(method, url).timeout(Duration::from_secs(5)).send().await.ok()
    }

    async fn leader(&self, through: usize) -> Option<usize> {
        let status: Value = self.ask(through, "GET", "/v1/status").await?.json().await.ok()?;
        status["leader"].as_str()?.trim_start_matches('n').parse::<usize>().ok().map(|n| n - 1)
    }

    async fn is_ready(&self, member: usize) -> bool {
        self.ask(member, "GET", "/readyz").await.is_some_and(|answer| answer.status() == StatusCode::OK)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).ok();
        self.child.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_killed_cut_off_and_brought_back_from_the_prompt() {
    let mut dev = Dev::start();
    let mut said = BufReader::new(dev.child.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.starts_with("3 members"), "{line}");
    let dir = line.split(" in ").nth(1).and_then(|rest| rest.split(" (").next()).unwrap().to_owned();
    assert!(std::path::Path::new(&dir).join("n3/data").exists(), "{line}");
    assert_eq!(dev.ask(0, "PUT", "/v1/kv/a").await.unwrap().status(), StatusCode::CREATED);

    let leader = dev.leader(0).await.expect("a leader");
    let other = (leader + 1) % 3;
    dev.order(&format!("kill {}", leader + 1));
    eventually("another leads", LONG, async || dev.leader(other).await.is_some_and(|now| now != leader)).await;
    assert_eq!(dev.ask(other, "PUT", "/v1/kv/b").await.unwrap().status(), StatusCode::CREATED);
    dev.order(&format!("restart {}", leader + 1));
    eventually("it is back", LONG, async || dev.is_ready(leader).await).await;

    let leader = dev.leader(other).await.expect("a leader");
    let other = (leader + 1) % 3;
    dev.order(&format!("partition {}", leader + 1));
    eventually("the others go on", LONG, async || dev.leader(other).await.is_some_and(|now| now != leader)).await;
    assert_eq!(dev.ask(other, "PUT", "/v1/kv/c").await.unwrap().status(), StatusCode::CREATED);
    assert!(!dev.is_ready(leader).await, "it is cut off and says that it is ready");
    dev.order(&format!("heal {}", leader + 1));
    eventually("it reads what was written meanwhile", LONG, async || {
        dev.ask(leader, "GET", "/v1/kv/c").await.is_some_and(|answer| answer.status() == StatusCode::OK)
    })
    .await;

    dev.order("pause 2");
    dev.order("boom");
    dev.order("leader");
    dev.order("status");
    dev.order("quit");
    let ended = dev.child.wait().unwrap();
    assert!(ended.success(), "{ended}");
    for n in 0..3 {
        assert!(TcpStream::connect(("127.0.0.1", dev.base + 100 * n)).is_err(), "n{} still runs", n + 1);
    }
    assert!(!std::path::Path::new(&dir).exists(), "{dir} is left");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn members_end_with_their_prompt_when_it_is_killed() {
    let mut dev = Dev::start();
    let mut said = BufReader::new(dev.child.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let dir = line.split(" in ").nth(1).and_then(|rest| rest.split(" (").next()).unwrap().to_owned();
    // Also one that stands still, and so could do nothing about it.
    dev.order("pause 2");
    dev.order("leader");
    said.read_line(&mut String::new()).unwrap();
    dev.child.kill().unwrap();
    let ports: Vec<u16> = (0..3).map(|n| dev.base + 100 * n).collect();
    let gone = async || ports.iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    eventually("the members have ended", LONG, gone).await;
    drop(dev);
    std::fs::remove_dir_all(dir).unwrap();
}

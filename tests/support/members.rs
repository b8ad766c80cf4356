//! Several real processes as one cluster.

use super::links::Links;
use super::{eventually, stands_still};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LONG: Duration = Duration::from_secs(60);
/// Lines of each member's log in a failure's report.
const LOG_LINES: usize = 25;

/// Begins what is said of a write that was not answered at all.
pub(crate) const NO_ANSWER: &str = "no answer";

/// What a client knows of its write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    NotDone(String),
    Unknown(String),
}

/// A client of one member.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    pub(crate) async fn try_answer(&self, method: &str, target: &str, body: &str) -> reqwest::Result<Response> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.http.request(method, format!("{}{target}", self.url)).timeout(LONG);
        let json = if body.starts_with('{') { "application/json" } else { "text/plain" };
        let request = if body.is_empty() { request } else { request.header("content-type", json) };
        request.body(body.to_owned()).send().await
    }

    pub(crate) async fn answer(&self, method: &str, target: &str, body: &str) -> Response {
        self.try_answer(method, target, body).await.unwrap()
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> Outcome {
        let answer = match self.try_answer("PUT", &format!("/v1/kv/{key}"), value).await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return Outcome::NotDone(error.to_string()),
            Err(error) => return Outcome::Unknown(format!("{NO_ANSWER}: {error:?}")),
        };
        let status = answer.status();
        if status.is_success() {
            return Outcome::Done;
        }
        let problem: Value = answer.json().await.unwrap_or_default();
        match problem["applied"].as_str() {
            Some("no") => Outcome::NotDone(format!("{status} {problem}")),
            _ => Outcome::Unknown(format!("{status} {problem}")),
        }
    }

    pub(crate) async fn bytes(&self, target: &str) -> Vec<u8> {
        self.answer("GET", target, "").await.bytes().await.unwrap().to_vec()
    }

    pub(crate) async fn send(&self, target: &str, body: Vec<u8>) -> Response {
        let request = self.http.post(format!("{}{target}", self.url)).timeout(LONG);
        request.header("content-type", "application/octet-stream").body(body).send().await.unwrap()
    }

    /// A linearizable read; `None` also if there is no answer.
    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        let answer = self.try_answer("GET", &format!("/v1/kv/{key}"), "").await.ok()?;
        match answer.status() {
            StatusCode::OK => answer.text().await.ok(),
            _ => None,
        }
    }

    pub(crate) async fn add_once(&self, target: &str, key: &str) -> Value {
        let request = self.http.post(format!("{}{target}", self.url)).header("idempotency-key", key);
        request.send().await.unwrap().json().await.unwrap()
    }
}

#[derive(Debug)]
struct Process {
    child: Option<Child>,
    dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    arguments: Vec<String>,
}

/// Members `n1`, `n2`… by their position; ended when dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    root: TempDir,
    members: Vec<Process>,
    http: reqwest::Client,
    settings: Vec<String>,
    links: Links,
}

/// A port that nobody listens on now, below those that the system gives out by itself.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id() * 37 + NEXT.fetch_add(1, Ordering::SeqCst);
        let port = u16::try_from(12_000 + step % 18_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Cluster {
    fn empty(settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&text| text.to_owned()).collect();
        let root = TempDir::new().expect("a temporary directory");
        Self { root, members: Vec::new(), http: reqwest::Client::new(), settings, links: Links::default() }
    }

    /// So many members by `--initial-cluster`, ready; one founds its cluster alone.
    pub(crate) async fn start(count: usize, settings: &[&str]) -> Self {
        let mut cluster = Self::empty(settings);
        for _ in 0..count {
            cluster.prepare();
        }
        let named = |at: usize| format!("n{}={}", at + 1, cluster.peer_url(at));
        let all: Vec<String> = (0..count).map(named).collect();
        for member in &mut cluster.members {
            member.arguments = vec!["--initial-cluster".to_owned(), all.join(",")];
        }
        (0..count).for_each(|member| cluster.relaunch(member));
        cluster.ready(&(0..count).collect::<Vec<_>>()).await;
        cluster
    }

    /// So many members that reach each other only through links that can be cut.
    pub(crate) async fn linked(count: usize, settings: &[&str]) -> Self {
        let mut cluster = Self::empty(settings);
        for _ in 0..count {
            cluster.prepare();
        }
        let door =
            |(at, member): (usize, &Process)| format!("http://127.0.0.1:{}", cluster.links.door(at, member.peer_port));
        let doors: Vec<String> = cluster.members.iter().enumerate().map(door).collect();
        let named = |(at, url): (usize, &String)| format!("n{}={url}", at + 1);
        let all: Vec<String> = doors.iter().enumerate().map(named).collect();
        for (member, door) in cluster.members.iter_mut().zip(doors) {
            member.arguments =
                ["--initial-cluster".to_owned(), all.join(","), "--advertise-peer".to_owned(), door].into();
        }
        (0..count).for_each(|member| cluster.relaunch(member));
        cluster.ready(&(0..count).collect::<Vec<_>>()).await;
        cluster
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn client_address(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.members[member].client_port)
    }

    /// So many members that find each other through the first.
    pub(crate) async fn expecting(count: usize) -> Self {
        let mut cluster = Self::empty(&[]);
        for _ in 0..count {
            cluster.prepare();
        }
        let seed = cluster.peer_url(0);
        for member in &mut cluster.members {
            let expect = ["--bootstrap-expect".to_owned(), count.to_string(), "--join".to_owned(), seed.clone()];
            member.arguments = expect.to_vec();
        }
        (0..count).rev().for_each(|member| cluster.relaunch(member));
        cluster.ready(&(0..count).collect::<Vec<_>>()).await;
        cluster
    }

    fn prepare(&mut self) -> usize {
        let dir = self.root.path().join(format!("n{}", self.members.len() + 1));
        std::fs::create_dir(&dir).unwrap();
        let (client_port, peer_port) = (free_port(), free_port());
        self.members.push(Process { child: None, dir, client_port, peer_port, arguments: Vec::new() });
        self.members.len() - 1
    }

    /// One more member, by `--join`; it is a learner then, and answers.
    pub(crate) async fn join(&mut self) -> usize {
        let seed = self.running().map(|member| self.peer_url(member)).collect::<Vec<_>>().join(",");
        let member = self.prepare();
        self.members[member].arguments = vec!["--join".to_owned(), seed];
        self.relaunch(member);
        self.ready(&[member]).await;
        member
    }

    /// Restarts the first member as one that is to join another cluster; whether it was taken in.
    pub(crate) async fn join_url(&mut self, url: &str) -> Result<(), String> {
        let before = self.status(0).await["cluster_id"].clone();
        self.terminate(0).await;
        self.members[0].arguments = vec!["--join".to_owned(), url.to_owned()];
        self.relaunch(0);
        self.ready(&[0]).await;
        let after = self.status(0).await["cluster_id"].clone();
        if before == after { Err(format!("still of {after}")) } else { Ok(()) }
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(|member| self.members[*member].child.is_some())
    }

    pub(crate) fn relaunch(&mut self, at: usize) {
        let settings = self.settings.clone();
        let member = &mut self.members[at];
        let log = File::options().create(true).append(true).open(member.dir.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tenure"))
            .args(["serve", "--name", &format!("n{}", at + 1)])
            .args(["--listen-client", &format!("127.0.0.1:{}", member.client_port)])
            .args(["--listen-peer", &format!("127.0.0.1:{}", member.peer_port)])
            .arg("--data-dir")
            .arg(member.dir.join("data"))
            .args(&member.arguments)
            .args(settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.links.runs(at, Some(child.id()));
        member.child = Some(child);
    }

    /// Waits until these members answer linearizable reads.
    pub(crate) async fn ready(&self, members: &[usize]) {
        for &member in members {
            let client = self.client(member);
            eventually(&format!("n{} is ready", member + 1), LONG, async || {
                let answer = client.try_answer("GET", "/readyz", "").await;
                answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
            })
            .await;
        }
    }

    pub(crate) fn client(&self, member: usize) -> Client {
        let url = format!("http://127.0.0.1:{}", self.members[member].client_port);
        Client { http: self.http.clone(), url }
    }

    pub(crate) fn peer_url(&self, member: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[member].peer_port)
    }

    pub(crate) async fn status(&self, member: usize) -> Value {
        self.client(member).answer("GET", "/v1/status", "").await.json().await.unwrap()
    }

    /// The member that leads, as it says itself, once all that run agree.
    pub(crate) async fn leader(&self) -> usize {
        let mut leader = None;
        eventually("one leader is known to all", LONG, async || {
            let mut names = Vec::new();
            for member in self.running() {
                names.push(self.status(member).await["leader"].clone());
            }
            let first = names.first().and_then(Value::as_str).map(str::to_owned);
            leader = first.filter(|first| names.iter().all(|name| name == first.as_str()));
            leader.is_some()
        })
        .await;
        leader.unwrap().trim_start_matches('n').parse::<usize>().unwrap() - 1
    }

    /// Waits until these members have applied the same and have the same hash.
    pub(crate) async fn one_hash(&self, members: &[usize]) {
        let mut hashes = Vec::new();
        eventually("one hash", LONG, async || {
            hashes.clear();
            for &member in members {
                let answer = self.client(member).answer("GET", "/v1/hash", "").await;
                hashes.push(answer.json::<Value>().await.unwrap());
            }
            hashes.iter().all(|hash| hash["applied_index"] == hashes[0]["applied_index"])
        })
        .await;
        assert!(hashes.iter().all(|hash| hash == &hashes[0]), "members differ: {hashes:?}");
    }

    fn signal(&self, member: usize, signal: rustix::process::Signal) {
        let child = self.members[member].child.as_ref().expect("it runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).expect("the child is there");
    }

    pub(crate) fn pause(&self, member: usize) {
        self.signal(member, rustix::process::Signal::STOP);
        stands_still(self.members[member].child.as_ref().expect("it runs").id());
    }

    pub(crate) fn resume(&self, member: usize) {
        self.signal(member, rustix::process::Signal::CONT);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(mut child) = self.members[member].child.take() {
            child.kill().expect("the child is there");
            child.wait().expect("the child can be waited for");
        }
    }

    /// SIGTERM, and the end of the process.
    pub(crate) async fn terminate(&mut self, member: usize) {
        self.signal(member, rustix::process::Signal::TERM);
        let _code = self.ended(member).await;
    }

    /// Waits until a member has ended by itself; its exit code, if it has one.
    pub(crate) async fn ended(&mut self, member: usize) -> Option<i32> {
        let child = self.members[member].child.as_mut().expect("it runs");
        let mut status = None;
        eventually("the member ends", LONG, async || {
            status = child.try_wait().expect("the child can be asked");
            status.is_some()
        })
        .await;
        self.members[member].child = None;
        status.and_then(|status| status.code())
    }

    /// Waits until a member has ended by itself; its log.
    pub(crate) async fn ended_with(&mut self, member: usize) -> String {
        let _code = self.ended(member).await;
        self.log(member)
    }

    /// Has a member that does not run come back at other addresses.
    pub(crate) fn readdress(&mut self, member: usize) {
        let member = &mut self.members[member];
        (member.client_port, member.peer_port) = (free_port(), free_port());
        for (flag, port) in [("--advertise-peer", member.peer_port), ("--advertise-client", member.client_port)] {
            member.arguments.extend([flag.to_owned(), format!("http://127.0.0.1:{port}")]);
        }
    }

    pub(crate) async fn restart(&mut self, member: usize) {
        self.relaunch(member);
        self.ready(&[member]).await;
    }

    pub(crate) fn wipe(&self, member: usize) {
        std::fs::remove_dir_all(self.members[member].dir.join("data")).unwrap();
    }

    pub(crate) fn data_dir(&self, member: usize) -> PathBuf {
        self.members[member].dir.join("data")
    }

    pub(crate) fn log(&self, member: usize) -> String {
        log_of(&self.members[member].dir)
    }

    /// Writes bytes to a peer port and reads what comes until it is closed.
    pub(crate) async fn send_raw(&self, member: usize, bytes: &[u8]) {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.members[member].peer_port)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "the connection stays open");
    }

    /// Ends all that run, in good order.
    pub(crate) async fn stop(&mut self) {
        let running: Vec<usize> = self.running().collect();
        for member in running {
            self.terminate(member).await;
        }
    }
}

fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap_or_default()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                drop(child.kill());
                drop(child.wait());
            }
            if std::thread::panicking() {
                let log = log_of(&member.dir);
                let lines: Vec<&str> = log.lines().collect();
                let end = lines.len().saturating_sub(LOG_LINES);
                println!("--- the end of the log of {}\n{}", member.dir.display(), lines[end..].join("\n"));
            }
        }
    }
}

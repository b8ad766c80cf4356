//! Starts the real binary on a free port and ends it again: the only harness of the tests in `it`.

pub(crate) mod grpc;
pub(crate) mod links;
pub(crate) mod members;
mod sockets;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// From the start of the process to its first ready answer.
const START: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of the process; the server allows itself 15 s.
const STOP: Duration = Duration::from_secs(20);
/// Lines of the server's log that are kept for a failure's report.
const LOG_LINES: usize = 60;

/// One server, ended when dropped. Its data goes with the last `Data` handle.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    address: String,
    log: Arc<Mutex<Vec<String>>>,
    data: Data,
}

/// For tests that block.
pub(crate) fn server() -> Node {
    Node::launch(&Data::fresh(), &[])
}

/// A data directory that outlives its servers.
#[derive(Debug, Clone)]
pub(crate) struct Data(Arc<TempDir>);

impl Data {
    pub(crate) fn fresh() -> Self {
        Self(Arc::new(TempDir::new().expect("a temporary directory")))
    }

    /// Where a server on it has its data.
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.0.path().join("data")
    }
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with(&Data::fresh(), &[]).await
    }

    /// On this data, with further arguments of `tenure serve`.
    pub(crate) async fn start_with(data: &Data, arguments: &[&str]) -> Self {
        let (data, arguments) = (data.clone(), arguments.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        tokio::task::spawn_blocking(move || Self::launch(&data, &arguments)).await.expect("the node starts")
    }

    fn launch(data: &Data, arguments: &[String]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tenure"))
            .args(["serve", "--listen-client", "127.0.0.1:0", "--listen-peer", "127.0.0.1:0", "--data-dir"])
            .arg(data.0.path().join("data"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let banner = follow(&mut child, Arc::clone(&log));
        let mut node = Self { child, address: String::new(), log, data: data.clone() };
        node.address = banner.recv_timeout(START).expect("an address in the banner");
        let began = Instant::now();
        while !node.is_ready() {
            assert!(began.elapsed() < START, "the node is not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        node
    }

    fn is_ready(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(&self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The same data under a new process, after whatever became of the old one.
    pub(crate) async fn restart(self) -> Self {
        let data = self.data.clone();
        drop(self);
        Self::start_with(&data, &[]).await
    }

    /// SIGTERM, and how the process ended.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal_terminate();
        let mut ended = None;
        eventually("the node ends", STOP, async || {
            ended = self.child.try_wait().expect("the child can be asked");
            ended.is_some()
        })
        .await;
        ended.expect("ended")
    }

    pub(crate) fn signal_terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub(crate) fn signal_hangup(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    /// SIGSTOP: it stands still until `resume`.
    pub(crate) fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
        stands_still(self.child.id());
    }

    pub(crate) fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).expect("the child is there");
    }

    /// The last lines of what the server has said.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// SIGKILL, as a crash.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the child is there");
        self.child.wait().expect("the child can be waited for");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if std::thread::panicking() {
            println!("--- the end of the node's log\n{}", self.log.lock().unwrap().join("\n"));
        }
    }
}

/// Reads the log to its end, so that the server never waits for us; gives the address of the banner.
fn follow(child: &mut Child, log: Arc<Mutex<Vec<String>>>) -> mpsc::Receiver<String> {
    let lines = BufReader::new(child.stderr.take().expect("a pipe"));
    let (found, banner) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("http://127.0.0.1:") {
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                // Only the first is waited for.
                drop(found.send(format!("127.0.0.1:{port}")));
            }
            let mut log = log.lock().unwrap();
            if log.len() == LOG_LINES {
                log.remove(0);
            }
            log.push(line);
        }
    });
    banner
}

/// Waits until a process that was sent SIGSTOP has no thread left that runs: on a busy machine that takes its time.
fn stands_still(process: u32) {
    let began = Instant::now();
    let is_stopped = |task: std::fs::DirEntry| {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { return true };
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    };
    while !std::fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten().all(is_stopped) {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Asks until the answer is yes.
pub(crate) async fn eventually(what: &str, within: Duration, mut ask: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(within, asking).await.is_ok(), "not within {} s: {what}", within.as_secs());
}

/// What a process holds in memory; `None` if it is gone.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
}

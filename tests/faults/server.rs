//! The real binary as a child process: start, ready, kill, pause, stop; its output kept for reports.

use super::http::Client;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const START_WITHIN: Duration = Duration::from_secs(30);

/// How to start a member; the address stays the same through restarts.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) data_dir: PathBuf,
    pub(crate) address: SocketAddr,
    /// Flags besides these, as `--name=value`.
    pub(crate) flags: Vec<String>,
    output: PathBuf,
}

impl Setup {
    /// A member whose data is in `data_dir` and whose output goes to a file in `scratch`.
    pub(crate) fn new(data_dir: &Path, scratch: &Path, flags: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let mut all = vec!["--auto-compact=off".to_owned(), "--log-format=text".to_owned()];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        Self {
            data_dir: data_dir.to_owned(),
            address: free.expect("a free port"),
            flags: all,
            output: scratch.join("output.log"),
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.address, Duration::from_secs(10))
    }

    /// A client that is patient enough for a blocking read.
    pub(crate) fn waiting_client(&self) -> Client {
        Client::new(self.address, Duration::from_secs(90))
    }

    /// Everything the member has said since it was first started.
    pub(crate) fn output(&self) -> String {
        std::fs::read(&self.output).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Starts the output anew. The member appends, so a running one goes on at the new beginning.
    pub(crate) fn forget_output(&self) {
        File::create(&self.output).expect("the output file");
    }

    fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Starts the process and does not wait for anything.
    pub(crate) fn launch(&self) -> Server {
        let output = File::options().create(true).append(true).open(&self.output).expect("the output file");
        let child = Command::new(binary())
            .arg("serve")
            .arg(format!("--data-dir={}", self.data_dir.display()))
            .arg(format!("--listen-client={}", self.address))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("the binary starts");
        Server { child, setup: self.clone() }
    }

    /// Starts the process and waits until it is ready.
    pub(crate) fn start(&self) -> Server {
        let mut server = self.launch();
        let deadline = Instant::now() + START_WITHIN;
        while !server.is_ready() {
            if let Some(status) = server.child.try_wait().expect("the child can be waited for") {
                panic!("VIOLATION: the member ended at start with {status}:\n{}", self.tail());
            }
            assert!(Instant::now() < deadline, "not ready within {START_WITHIN:?}:\n{}", self.tail());
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Starts the process, which must refuse; returns what it said.
    pub(crate) fn start_refused(&self) -> String {
        self.forget_output();
        let mut server = self.launch();
        let status = super::eventually("the start is refused", START_WITHIN, || {
            assert!(!server.is_ready(), "VIOLATION: it serves what it had to refuse:\n{}", self.tail());
            server.child.try_wait().expect("the child can be waited for")
        });
        let output = self.output();
        assert!(!status.success(), "the start was to be refused, but it ended with {status}:\n{output}");
        assert!(!output.contains("panicked"), "it refused by a panic:\n{output}");
        output
    }
}

fn binary() -> PathBuf {
    std::env::var_os("TENURE_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_tenure").into(), PathBuf::from)
}

/// A running member; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    setup: Setup,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn is_ready(&self) -> bool {
        let mut client = Client::new(self.setup.address, Duration::from_secs(2));
        client.get("/readyz").is_ok_and(|response| response.status == 200)
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child's id");
        kill_process(pid, signal).expect("the signal is sent");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    /// SIGKILL, and nothing of it is left on return. It must have been running until then.
    pub(crate) fn kill(mut self) {
        assert!(self.is_running(), "the member had ended by itself:\n{}", self.setup.tail());
        self.signal(Signal::KILL);
        self.child.wait().expect("the child can be waited for");
    }

    /// SIGSTOP, and no thread runs any more on return.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        super::eventually("all threads are stopped", Duration::from_secs(10), || {
            let mut tasks = std::fs::read_dir(&tasks).ok()?;
            let stopped = |task: std::io::Result<std::fs::DirEntry>| {
                let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
                stat.rsplit(')').next()?.trim_start().starts_with('T').then_some(())
            };
            tasks.all(|task| stopped(task).is_some()).then_some(())
        });
    }

    /// SIGTERM, without waiting.
    pub(crate) fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGTERM, then waits for the end. The time it took comes with the status.
    pub(crate) fn terminate(mut self, within: Duration) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        self.signal(Signal::TERM);
        (self.wait(within), begun.elapsed())
    }

    pub(crate) fn stop(self) {
        let setup = self.setup.clone();
        let (status, _) = self.terminate(Duration::from_secs(20));
        assert!(status.success(), "a graceful stop ended with {status}:\n{}", setup.tail());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {within:?}:\n{}", self.setup.tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _already_gone = self.child.kill();
            let _already_gone = self.child.wait();
        }
    }
}

/// Puts numbered keys one by one and returns what was acknowledged: key, value and revision.
pub(crate) fn put_some(client: &mut Client, name: &str, count: usize, bytes: usize) -> Vec<(String, String, i64)> {
    let put = |number: usize| {
        let (key, value) = (format!("{name}/{number}"), format!("{number}{}", "-".repeat(bytes)));
        let answer = client.request("PUT", &format!("/v1/kv/{key}"), &[], value.as_bytes()).expect("an answer");
        assert!(answer.status < 300, "status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        let revision = answer.json()["revision"].as_i64().expect("a revision");
        (key, value, revision)
    };
    (0..count).map(put).collect()
}

/// Every one of these is there, as it was acknowledged.
pub(crate) fn expect_all(client: &mut Client, acknowledged: &[(String, String, i64)]) {
    for (key, value, revision) in acknowledged {
        let answer = client.get(&format!("/v1/kv/{key}")).expect("an answer");
        assert_eq!(answer.status, 200, "VIOLATION: {key} of revision {revision} is lost");
        assert!(answer.body == value.as_bytes(), "VIOLATION: {key} of revision {revision} has another value");
        assert_eq!(answer.header("etag"), Some(format!("\"{revision}\"").as_str()), "VIOLATION: {key}'s revision");
    }
}

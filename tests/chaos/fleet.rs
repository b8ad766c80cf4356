//! The members under test: real processes in numbered slots, each with a disk of its own where that
//! can be had, and with every connection between them through [`Net`]. Only the nemesis changes it;
//! clients see [`View`].

use super::eventually;
use super::http::{Client, Response};
use super::mount::Mount;
use super::proxy::{Door, MEMBERS_MAX, Net, listen};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const DISK_BYTES: u64 = 1 << 30;
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(60);

/// Where the members are, for clients. A life is one process of one member.
#[derive(Debug)]
pub(crate) struct View {
    slots: Vec<(Mutex<SocketAddr>, AtomicU64)>,
}

impl View {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn address(&self, slot: usize) -> SocketAddr {
        *self.slots[slot].0.lock().unwrap()
    }

    pub(crate) fn life(&self, slot: usize) -> u64 {
        self.slots[slot].1.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Member {
    /// Its number; it is called `n` and that.
    number: usize,
    child: Option<Child>,
    client: SocketAddr,
    peer: SocketAddr,
    /// What others are told.
    url: String,
    forming: Vec<String>,
    /// What its wall clock is moved by is in this file, if that is possible here.
    clock: Option<PathBuf>,
    output: PathBuf,
    data: PathBuf,
    mount: Option<Mount>,
    _door: Door,
}

#[derive(Debug)]
pub(crate) struct Fleet {
    members: Vec<Member>,
    pub(crate) view: Arc<View>,
    pub(crate) net: Net,
    flags: Vec<String>,
    next: usize,
    lives: u64,
    /// Of members that were removed, too.
    outputs: Vec<PathBuf>,
    with_disks: bool,
    with_clocks: bool,
    scratch: TempDir,
}

/// A port that nobody listens on now, below those that the system gives out by itself.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id() * 41 + NEXT.fetch_add(1, Ordering::SeqCst);
        let port = u16::try_from(12_000 + step % 18_000).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// The library that moves a process's clock.
fn faketime() -> Option<PathBuf> {
    let homes = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let homes = homes.chain(["/usr/lib".into(), "/usr/lib64".into(), "/usr/local/lib".into()]);
    homes.map(|home| home.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}

fn binary() -> PathBuf {
    std::env::var_os("TENURE_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_tenure").into(), PathBuf::from)
}

impl Fleet {
    /// So many members, ready. `with_disks`: each on a disk of its own whose power can be cut, if that
    /// is possible here.
    pub(crate) fn start(count: usize, flags: &[&str], with_disks: bool) -> Self {
        Self::start_as(count, flags, with_disks, false)
    }

    /// The same for a campaign: with clocks that can be stepped, too.
    pub(crate) fn start_with_everything(count: usize, flags: &[&str]) -> Self {
        let wanted = std::env::var("TENURE_CHAOS_ONLY").map_or(true, |only| only.contains("Clock"));
        if wanted && faketime().is_none() {
            super::skipped("stepped clocks", "there is no libfaketime");
        }
        Self::start_as(count, flags, true, faketime().is_some())
    }

    fn start_as(count: usize, flags: &[&str], with_disks: bool, with_clocks: bool) -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let view = View { slots: (0..count).map(|_| (Mutex::new(nowhere), AtomicU64::new(0))).collect() };
        let mut fleet = Self {
            members: Vec::new(),
            view: Arc::new(view),
            net: Net::new(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            next: 0,
            lives: 0,
            outputs: Vec::new(),
            with_disks,
            with_clocks,
            scratch: tempfile::tempdir().unwrap(),
        };
        for _ in 0..count {
            let member = fleet.member(Vec::new());
            fleet.members.push(member);
        }
        let named = |member: &Member| format!("n{}={}", member.number, member.url);
        let all: Vec<String> = fleet.members.iter().map(named).collect();
        for member in &mut fleet.members {
            member.forming = vec!["--initial-cluster".to_owned(), all.join(",")];
        }
        (0..count).for_each(|slot| fleet.launch(slot));
        fleet.await_ready(READY_WITHIN).unwrap_or_else(|why| panic!("the members do not get ready: {why}"));
        fleet
    }

    fn member(&mut self, forming: Vec<String>) -> Member {
        self.next += 1;
        let number = self.next;
        assert!(number < MEMBERS_MAX, "too many members for one run");
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (client, peer, door) = (at(free_port()), at(free_port()), listen(free_port()));
        let url = format!("http://{}", door.local_addr().unwrap());
        let mount = if self.with_disks {
            match Mount::new(DISK_BYTES) {
                Ok(mount) => Some(mount),
                Err(why) => {
                    super::skipped("disks of their own, power cuts, stuck and full disks", &why);
                    self.with_disks = false;
                    None
                }
            }
        } else {
            None
        };
        let output = self.scratch.path().join(format!("n{number}.log"));
        let data = match &mount {
            Some(mount) => mount.path().join("data"),
            None => self.scratch.path().join(format!("n{number}")),
        };
        self.outputs.push(output.clone());
        let clock = self.scratch.path().join(format!("n{number}.clock"));
        let clock = faketime().filter(|_| self.with_clocks).map(|_| clock);
        if let Some(clock) = &clock {
            std::fs::write(clock, "+0").expect("the clock's file");
        }
        let door = self.net.open(number, door, peer);
        Member { number, child: None, client, peer, url, forming, clock, output, data, mount, _door: door }
    }

    pub(crate) fn count(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn has_disks(&self) -> bool {
        self.with_disks
    }

    pub(crate) fn has_clocks(&self) -> bool {
        self.with_clocks
    }

    /// Moves a member's wall clock, as `+3600`; takes effect within a second.
    pub(crate) fn step_clock(&self, slot: usize, by: &str) {
        let clock = self.members[slot].clock.as_ref().expect("asked only where there are clocks");
        std::fs::write(clock, by).expect("the clock's file");
    }

    /// Day and hour by a member's wall clock: by the line that it logs when it is told to read its settings again.
    pub(crate) fn hour(&self, slot: usize) -> Option<String> {
        let output = &self.members[slot].output;
        let before = read(output).len();
        self.signal(slot, Signal::HUP);
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            let new = read(output).split_off(before);
            let stamp = new.lines().find(|line| line.contains('Z')).and_then(|line| line.get(..13));
            if stamp.is_some() && new.ends_with('\n') {
                return stamp.map(str::to_owned);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    pub(crate) fn number(&self, slot: usize) -> usize {
        self.members[slot].number
    }

    pub(crate) fn name(&self, slot: usize) -> String {
        format!("n{}", self.members[slot].number)
    }

    pub(crate) fn mount(&self, slot: usize) -> &Mount {
        self.members[slot].mount.as_ref().expect("asked only where there are disks")
    }

    pub(crate) fn is_running(&mut self, slot: usize) -> bool {
        let child = self.members[slot].child.as_mut();
        child.is_some_and(|child| child.try_wait().expect("the child can be asked").is_none())
    }

    /// Starts a member's process and waits for nothing.
    pub(crate) fn launch(&mut self, slot: usize) {
        let (flags, member) = (self.flags.clone(), &mut self.members[slot]);
        assert!(member.child.is_none(), "n{} runs already", member.number);
        launch(member, &flags);
        self.net.is_process_of(member.number, member.child.as_ref().map(Child::id));
        self.lives += 1;
        *self.view.slots[slot].0.lock().unwrap() = member.client;
        self.view.slots[slot].1.store(self.lives, Ordering::SeqCst);
    }

    pub(crate) fn client(&self, slot: usize, timeout: Duration) -> Client {
        Client::new(self.members[slot].client, timeout)
    }

    pub(crate) fn ask(&self, slot: usize, method: &str, target: &str, timeout: Duration) -> Option<Response> {
        self.client(slot, timeout).request(method, target, &[], b"").ok()
    }

    pub(crate) fn json(&self, slot: usize, target: &str) -> Option<Value> {
        let answer = self.ask(slot, "GET", target, Duration::from_secs(2))?;
        (answer.status == 200).then(|| answer.json())
    }

    /// Waits until every member answers linearizable reads and knows a leader; `Err` says who does not.
    pub(crate) fn await_ready(&mut self, within: Duration) -> Result<(), String> {
        let deadline = Instant::now() + within;
        for slot in 0..self.count() {
            while self.ask(slot, "GET", "/readyz", Duration::from_secs(3)).is_none_or(|answer| answer.status != 200) {
                if !self.is_running(slot) {
                    return Err(format!("{} has ended:\n{}", self.name(slot), self.tail(slot)));
                }
                if Instant::now() > deadline {
                    return Err(format!("{} is not ready within {within:?}:\n{}", self.name(slot), self.tail(slot)));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Leader and term by the newest account that a running member gives.
    pub(crate) fn leadership(&mut self) -> Option<(usize, u64)> {
        let mut newest: Option<(u64, String)> = None;
        for slot in 0..self.count() {
            let Some(status) = self.json(slot, "/v1/status") else { continue };
            let term = status["term"].as_u64().unwrap_or(0);
            if let Some(leader) = status["leader"].as_str()
                && newest.as_ref().is_none_or(|(known, _)| *known < term)
            {
                newest = Some((term, leader.to_owned()));
            }
        }
        let (term, leader) = newest?;
        let slot = (0..self.count()).find(|slot| self.name(*slot) == leader)?;
        Some((slot, term))
    }

    /// The leader's slot and its term, once there is one.
    pub(crate) fn leader(&mut self) -> (usize, u64) {
        eventually("a leader is known", READY_WITHIN, || self.leadership())
    }

    fn signal(&self, slot: usize, signal: Signal) {
        let child = self.members[slot].child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("the child is there");
    }

    /// SIGKILL; whether it had been running until then.
    pub(crate) fn kill(&mut self, slot: usize) -> bool {
        let running = self.is_running(slot);
        let member = &mut self.members[slot];
        let Some(mut child) = member.child.take() else { return false };
        self.net.is_process_of(member.number, None);
        let _already_gone = child.kill();
        child.wait().expect("the child can be waited for");
        running
    }

    /// SIGSTOP, and no thread runs any more on return.
    pub(crate) fn pause(&self, slot: usize) {
        self.signal(slot, Signal::STOP);
        let tasks = self.tasks(slot);
        eventually("all threads are stopped", Duration::from_secs(20), || {
            states(&tasks).iter().all(|state| matches!(state, 'T' | 'Z' | 'X')).then_some(())
        });
    }

    pub(crate) fn resume(&self, slot: usize) {
        self.signal(slot, Signal::CONT);
    }

    fn tasks(&self, slot: usize) -> PathBuf {
        let child = self.members[slot].child.as_ref().expect("it runs");
        format!("/proc/{}/task", child.id()).into()
    }

    /// Whether a thread waits for its disk without being interruptible.
    pub(crate) fn is_stuck(&self, slot: usize) -> bool {
        states(&self.tasks(slot)).contains(&'D')
    }

    /// SIGTERM, and the end of the process.
    pub(crate) fn terminate(&mut self, slot: usize) -> ExitStatus {
        self.signal(slot, Signal::TERM);
        self.await_end(slot)
    }

    /// Waits for the end of a process that ends by itself.
    pub(crate) fn await_end(&mut self, slot: usize) -> ExitStatus {
        let member = &mut self.members[slot];
        let mut child = member.child.take().expect("it runs");
        let status = eventually("the member ends", Duration::from_secs(30), || {
            child.try_wait().expect("the child can be waited for")
        });
        self.net.is_process_of(member.number, None);
        status
    }

    /// Cuts the power of these members' disks, all before any of them comes back.
    pub(crate) fn cut_power(&mut self, slots: &[usize]) -> Result<(), String> {
        // A flush under way at that very moment could be reported done without being so.
        slots.iter().for_each(|slot| self.pause(*slot));
        for slot in slots {
            self.mount(*slot).cut()?;
        }
        for slot in slots {
            self.kill(*slot);
        }
        for slot in slots {
            self.members[*slot].mount.as_mut().expect("there are disks").power_on()?;
        }
        Ok(())
    }

    /// A new member takes the place of one: it joins, is promoted, and the old one is removed and ends.
    pub(crate) fn replace(&mut self, slot: usize) -> Result<(), String> {
        let seeds: Vec<String> = self.members.iter().map(|member| member.url.clone()).collect();
        let mut newcomer = self.member(vec!["--join".to_owned(), seeds.join(",")]);
        launch(&mut newcomer, &self.flags);
        self.net.is_process_of(newcomer.number, newcomer.child.as_ref().map(Child::id));
        let swapped = self.admit(slot, &newcomer);
        if swapped.is_err() {
            end(&mut newcomer);
            return swapped;
        }
        let mut old = std::mem::replace(&mut self.members[slot], newcomer);
        self.lives += 1;
        *self.view.slots[slot].0.lock().unwrap() = self.members[slot].client;
        self.view.slots[slot].1.store(self.lives, Ordering::SeqCst);
        let gone = old.child.as_mut().is_none_or(|child| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while Instant::now() < deadline && child.try_wait().expect("the child can be asked").is_none() {
                std::thread::sleep(Duration::from_millis(20));
            }
            child.try_wait().expect("the child can be asked").is_some()
        });
        let number = old.number;
        end(&mut old);
        self.net.is_process_of(number, None);
        if gone { Ok(()) } else { Err(format!("n{number} was removed and does not end")) }
    }

    fn admit(&mut self, slot: usize, newcomer: &Member) -> Result<(), String> {
        let patience = Duration::from_secs(40);
        let mut there = Client::new(newcomer.client, Duration::from_secs(3));
        eventually("the newcomer answers", Duration::from_secs(40), || {
            there.get("/readyz").is_ok_and(|answer| answer.status == 200).then_some(())
        });
        let other = (slot + 1) % self.count();
        let promote = format!("/v1/cluster/members/n{}/promote?wait=30s", newcomer.number);
        let remove = format!("/v1/cluster/members/{}?timeout=10s", self.name(slot));
        for (method, target) in [("POST", promote), ("DELETE", remove)] {
            let deadline = Instant::now() + patience;
            loop {
                let answer = self.ask(other, method, &target, patience);
                match answer {
                    Some(answer) if answer.status == 200 => break,
                    // Already gone: an earlier attempt's answer was lost.
                    Some(answer) if method == "DELETE" && answer.status == 404 => break,
                    answer if Instant::now() > deadline => {
                        let said = answer.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
                        return Err(format!("{method} {target}: {said:?}"));
                    }
                    _ => std::thread::sleep(Duration::from_millis(200)),
                }
            }
        }
        Ok(())
    }

    /// Writes until it is acknowledged; the revision.
    pub(crate) fn put(&self, slot: usize, key: &str, value: &str) -> i64 {
        let headers = [("idempotency-key", key)];
        let target = format!("/v1/kv/{key}?timeout=2s");
        eventually(&format!("{key} is written"), READY_WITHIN, || {
            let mut client = self.client(slot, Duration::from_secs(4));
            let answer = client.request("PUT", &target, &headers, value.as_bytes()).ok()?;
            (answer.status < 300).then(|| answer.json()["revision"].as_i64().expect("a revision"))
        })
    }

    /// A linearizable read, once it is answered.
    pub(crate) fn get(&self, slot: usize, key: &str) -> Option<String> {
        eventually(&format!("{key} is read"), READY_WITHIN, || {
            let answer = self.ask(slot, "GET", &format!("/v1/kv/{key}?timeout=2s"), Duration::from_secs(4))?;
            match answer.status {
                200 => Some(Some(String::from_utf8_lossy(&answer.body).into_owned())),
                404 => Some(None),
                _ => None,
            }
        })
    }

    /// These members are at one point of the log, with one hash.
    pub(crate) fn one_hash(&self, slots: &[usize]) {
        eventually("the members are level", READY_WITHIN, || {
            let hashes: Vec<Value> = slots.iter().map(|slot| self.json(*slot, "/v1/hash")).collect::<Option<_>>()?;
            let level = hashes.iter().all(|hash| hash["applied_index"] == hashes[0]["applied_index"]);
            level.then(|| assert!(hashes.iter().all(|hash| *hash == hashes[0]), "VIOLATION: they differ: {hashes:?}"))
        });
    }

    pub(crate) fn data(&self, slot: usize) -> &Path {
        &self.members[slot].data
    }

    /// Starts a member that must refuse; what it says.
    pub(crate) fn launch_refused(&mut self, slot: usize) -> String {
        let before = read(&self.members[slot].output).len();
        self.launch(slot);
        let status = self.await_end(slot);
        let said = read(&self.members[slot].output).split_off(before);
        assert!(!status.success() && !said.contains("panicked"), "it ended with {status}:\n{said}");
        said
    }

    /// The end of what a member has said.
    pub(crate) fn tail(&self, slot: usize) -> String {
        let output = read(&self.members[slot].output);
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// How often a member was brought up by a snapshot, of all there have been.
    pub(crate) fn snapshots_installed(&self) -> usize {
        self.outputs.iter().map(|path| read(path).matches("brought up to the others by a snapshot").count()).sum()
    }

    /// Lines that must not be in any member's output.
    pub(crate) fn panics(&self) -> Vec<String> {
        let bad = |line: &&str| line.contains("panicked at") || line.contains("stack backtrace");
        let lines = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            read(path).lines().filter(bad).map(|line| format!("{name}: {line}")).collect::<Vec<_>>()
        };
        self.outputs.iter().flat_map(lines).collect()
    }
}

fn launch(member: &mut Member, flags: &[String]) {
    let output = File::options().create(true).append(true).open(&member.output).expect("the output file");
    let mut command = Command::new(binary());
    if let (Some(clock), Some(library)) = (&member.clock, faketime()) {
        // Only the wall clock; monotonic time goes on as it does.
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock);
        command.env("FAKETIME_CACHE_DURATION", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    let child = command
        .args(["serve", "--name", &format!("n{}", member.number), "--auto-compact=off", "--log-format=text"])
        .arg(format!("--listen-client={}", member.client))
        .arg(format!("--listen-peer={}", member.peer))
        .arg(format!("--advertise-peer={}", member.url))
        .arg(format!("--data-dir={}", member.data.display()))
        .args(&member.forming)
        .args(flags)
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a second handle"))
        .stderr(output)
        .spawn()
        .expect("the binary starts");
    member.child = Some(child);
}

fn end(member: &mut Member) {
    if let Some(mut child) = member.child.take() {
        let _already_gone = child.kill();
        let _already_gone = child.wait();
    }
}

fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// One letter for each thread.
fn states(tasks: &Path) -> Vec<char> {
    let Ok(tasks) = std::fs::read_dir(tasks) else { return Vec::new() };
    let state = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit(')').next()?.trim_start().chars().next()
    };
    tasks.flatten().filter_map(state).collect()
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for member in &mut self.members {
            end(member);
        }
        if std::thread::panicking() {
            for slot in 0..self.members.len() {
                eprintln!("--- the end of {}'s log\n{}", self.name(slot), self.tail(slot));
            }
            if let Some(kept) = std::env::var_os("TENURE_CHAOS_KEEP") {
                let _best_effort = Command::new("cp").arg("-r").arg(self.scratch.path()).arg(kept).status();
            }
        }
    }
}

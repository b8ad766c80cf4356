//! Every byte between members goes through here: one door per member, which tells by the kernel's
//! socket tables which member a connection comes from. So each direction of each link can be cut,
//! slowed or let through by itself, without root.
//!
//! A cut either holds bytes back, and they arrive when it ends (as TCP makes up for lost packets), or
//! loses them, and then the connection breaks when it ends. What was held, lost or delayed is counted:
//! a cut through which nothing wanted to go proves nothing.

use super::sockets;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as Bound};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// Members there can ever be in a run: each replacement is a new one.
pub(crate) const MEMBERS_MAX: usize = 256;
const CHUNK: usize = 64 << 10;
/// Chunks under way on a slow link.
const DELAYED_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Rule {
    #[default]
    Pass,
    Hold,
    Lose,
    Delay(Duration),
}

#[derive(Debug)]
struct State {
    rules: Mutex<Vec<Vec<Rule>>>,
    changed: watch::Sender<u64>,
    /// The process of each member, by which its connections are known.
    processes: Mutex<Vec<Option<u32>>>,
    touched: AtomicU64,
}

impl State {
    fn rule(&self, from: usize, to: usize) -> Rule {
        self.rules.lock().unwrap()[from][to]
    }

    fn touch(&self, bytes: usize) {
        self.touched.fetch_add(u64::try_from(bytes).unwrap(), Ordering::Relaxed);
    }
}

/// The network between the members.
#[derive(Debug, Clone)]
pub(crate) struct Net {
    state: Arc<State>,
    runtime: Arc<tokio::runtime::Runtime>,
}

/// A member's door; closed when dropped.
#[derive(Debug)]
pub(crate) struct Door {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Net {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = State {
            rules: Mutex::new(vec![vec![Rule::Pass; MEMBERS_MAX]; MEMBERS_MAX]),
            changed: watch::Sender::new(0),
            processes: Mutex::new(vec![None; MEMBERS_MAX]),
            touched: AtomicU64::new(0),
        };
        Self { state: Arc::new(state), runtime: Arc::new(runtime) }
    }

    pub(crate) fn is_process_of(&self, member: usize, process: Option<u32>) {
        self.state.processes.lock().unwrap()[member] = process;
    }

    /// Lets others reach `member`, which listens at `target`, through `door`.
    pub(crate) fn open(&self, member: usize, door: Bound, target: SocketAddr) -> Door {
        door.set_nonblocking(true).unwrap();
        let state = Arc::clone(&self.state);
        let task = self.runtime.spawn(async move {
            let listener = TcpListener::from_std(door).unwrap();
            while let Ok((stream, from)) = listener.accept().await {
                let state = Arc::clone(&state);
                let door = stream.local_addr().map_or(0, |at| at.port());
                tokio::spawn(async move {
                    let asked = Arc::clone(&state);
                    let caller = tokio::task::spawn_blocking(move || asked.caller(from.port(), door)).await.unwrap();
                    if let (Some(caller), Ok(onward)) = (caller, TcpStream::connect(target).await) {
                        join(&state, caller, member, stream, onward).await;
                    }
                });
            }
        });
        Door { task }
    }

    pub(crate) fn set(&self, links: &[(usize, usize)], rule: Rule) {
        let mut rules = self.state.rules.lock().unwrap();
        for (from, to) in links {
            rules[*from][*to] = rule;
        }
        drop(rules);
        self.state.changed.send_modify(|turn| *turn += 1);
    }

    pub(crate) fn heal(&self) {
        for row in self.state.rules.lock().unwrap().iter_mut() {
            row.fill(Rule::Pass);
        }
        self.state.changed.send_modify(|turn| *turn += 1);
    }

    /// Bytes that were held, lost or delayed so far.
    pub(crate) fn touched(&self) -> u64 {
        self.state.touched.load(Ordering::Relaxed)
    }
}

impl State {
    /// The member whose process has the socket with this local port, towards that door.
    fn caller(&self, port: u16, door: u16) -> Option<usize> {
        const LOOKS: u32 = 50;
        (0..LOOKS).find_map(|look| {
            if look > 0 {
                std::thread::sleep(Duration::from_millis(4));
            }
            let processes = self.processes.lock().unwrap().clone();
            sockets::owner(port, door, &processes)
        })
    }
}

async fn join(state: &Arc<State>, caller: usize, member: usize, stream: TcpStream, onward: TcpStream) {
    let _best_effort = (stream.set_nodelay(true), onward.set_nodelay(true));
    let (near_in, near_out) = stream.into_split();
    let (far_in, far_out) = onward.into_split();
    tokio::select! {
        () = pump(state, caller, member, near_in, far_out) => {}
        () = pump(state, member, caller, far_in, near_out) => {}
    }
}

/// Carries bytes one way until that ends; both ways end with it.
async fn pump(state: &Arc<State>, from: usize, to: usize, mut source: OwnedReadHalf, mut sink: OwnedWriteHalf) {
    let (delayed, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(DELAYED_MAX);
    let writing = async move {
        while let Some((at, bytes)) = due.recv().await {
            tokio::time::sleep_until(at.into()).await;
            if sink.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let reading = async move {
        let mut changed = state.changed.subscribe();
        let mut bytes = vec![0; CHUNK];
        let lost = AtomicBool::new(false);
        loop {
            let count = source.read(&mut bytes).await.unwrap_or(0);
            let counted = AtomicBool::new(false);
            let due = loop {
                let turn = *changed.borrow_and_update();
                let rule = state.rule(from, to);
                if rule != Rule::Pass && !counted.swap(true, Ordering::Relaxed) {
                    state.touch(count);
                }
                match rule {
                    Rule::Pass => break Some(Instant::now()),
                    Rule::Delay(by) => break Some(Instant::now() + by),
                    Rule::Lose if count > 0 => {
                        lost.store(true, Ordering::Relaxed);
                        break None;
                    }
                    // The end of a connection does not get through a cut either.
                    Rule::Hold | Rule::Lose => {
                        if changed.wait_for(|now| *now != turn).await.is_err() {
                            return;
                        }
                    }
                }
            };
            let Some(at) = due else { continue };
            // A connection that has lost bytes can only break.
            let over = count == 0 || lost.load(Ordering::Relaxed);
            if over || delayed.send((at, bytes[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    // What was read before the source's end is still written.
    tokio::join!(reading, writing);
}

/// A door's listener, on a port of its own.
pub(crate) fn listen(port: u16) -> Bound {
    Bound::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port")
}

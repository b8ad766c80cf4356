//! The wires between members, each of which can be cut: one door before every member's peer port.
//!
//! A cut link takes bytes no further and keeps its connections open, as a network that drops everything: what
//! was on its way arrives when the link heals. Who connects is found by the socket's owner in `/proc`.

use super::sockets;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

const LOOK: Duration = Duration::from_millis(10);
/// A connection may be older than the entry of its process in our list.
const LOOKS_FOR_OWNER: usize = 200;

#[derive(Debug, Default)]
struct Shared {
    /// Process ids by member.
    pids: Arc<Mutex<Vec<Option<u32>>>>,
    /// From whom nothing reaches whom.
    cut: Mutex<BTreeSet<(usize, usize)>>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Links(Arc<Shared>);

impl Links {
    /// Opens a door to a member; its port.
    pub(crate) fn door(&self, to: usize, peer_port: u16) -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let links = self.clone();
        tokio::spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((inside, address)) = listener.accept().await {
                let links = links.clone();
                tokio::spawn(async move {
                    let Some(from) = links.owner(address.port(), port).await else { return };
                    let Ok(outside) = TcpStream::connect(("127.0.0.1", peer_port)).await else { return };
                    inside.set_nodelay(true).ok();
                    outside.set_nodelay(true).ok();
                    let ((a_read, a_write), (b_read, b_write)) = (inside.into_split(), outside.into_split());
                    tokio::select! {
                        () = links.carry((from, to), a_read, b_write) => {}
                        () = links.carry((to, from), b_read, a_write) => {}
                    }
                });
            }
        });
        port
    }

    /// Of each member that runs or ran last.
    pub(crate) fn pids(&self) -> Arc<Mutex<Vec<Option<u32>>>> {
        Arc::clone(&self.0.pids)
    }

    pub(crate) fn runs(&self, member: usize, pid: Option<u32>) {
        let mut pids = self.0.pids.lock().unwrap();
        if pids.len() <= member {
            pids.resize(member + 1, None);
        }
        pids[member] = pid;
    }

    /// Nothing goes from the one to the other any more.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.0.cut.lock().unwrap().insert((from, to));
    }

    /// Alone: nothing in, nothing out.
    pub(crate) fn isolate(&self, member: usize, members: usize) {
        for other in (0..members).filter(|other| *other != member) {
            self.cut(member, other);
            self.cut(other, member);
        }
    }

    pub(crate) fn heal(&self) {
        self.0.cut.lock().unwrap().clear();
    }

    fn is_cut(&self, link: (usize, usize)) -> bool {
        self.0.cut.lock().unwrap().contains(&link)
    }

    async fn carry(&self, link: (usize, usize), mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            while self.is_cut(link) {
                tokio::time::sleep(LOOK).await;
            }
            if to.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    }

    async fn owner(&self, port: u16, door: u16) -> Option<usize> {
        for _ in 0..LOOKS_FOR_OWNER {
            let pids = self.0.pids.lock().unwrap().clone();
            if let Some(member) = sockets::owner(port, door, &pids) {
                return Some(member);
            }
            tokio::time::sleep(LOOK).await;
        }
        None
    }
}

//! The way between the members of `dev`: each is reached by its peers through a port here, so that it can
//! be cut off.
//!
//! A connection's source is found in the kernel's tables (Linux); where that is not possible, only the way
//! to a member is cut, which is enough to keep it from leading and from hearing a leader.

use crate::cli::exit::CliError;
use crate::env::TaskSet;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Default)]
pub(super) struct Links(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Who is cut off.
    cut: watch::Sender<BTreeSet<usize>>,
    /// Which process is which member.
    processes: Mutex<BTreeMap<u32, usize>>,
}

impl Links {
    pub(super) fn cut(&self, member: usize, cut: bool) {
        self.0.cut.send_modify(|members| {
            if cut {
                members.insert(member);
            } else {
                members.remove(&member);
            }
        });
    }

    pub(super) fn note_process(&self, process: u32, member: usize) {
        let mut processes = self.0.processes.lock();
        processes.retain(|_, known| *known != member);
        processes.insert(process, member);
    }

    /// Passes on what comes to `from` to a member's own peer port.
    pub(super) fn carry(
        &self,
        target: usize,
        from: SocketAddr,
        to: SocketAddr,
        tasks: &TaskSet,
    ) -> Result<(), CliError> {
        let shown = from.to_string();
        let listener = std::net::TcpListener::bind(from).map_err(|error| CliError::io(&shown, &error))?;
        listener.set_nonblocking(true).map_err(|error| CliError::io(&shown, &error))?;
        let listener = TcpListener::from_std(listener).map_err(|error| CliError::io(&shown, &error))?;
        let (links, pipes) = (self.clone(), tasks.clone());
        tasks.spawn_until_stop("link", async move {
            // An accept fails if too many files are open: the peer dials again.
            loop {
                if let Ok((stream, peer)) = listener.accept().await {
                    pipes.spawn_until_stop("link", links.clone().pipe(target, stream, peer, to));
                }
            }
        });
        Ok(())
    }

    async fn pipe(self, target: usize, mut near: TcpStream, peer: SocketAddr, to: SocketAddr) {
        let source = self.source(peer);
        let mut cut = self.0.cut.subscribe();
        let is_cut = move |members: &BTreeSet<usize>| {
            members.contains(&target) || source.is_some_and(|source| members.contains(&source))
        };
        if is_cut(&cut.borrow_and_update()) {
            return;
        }
        let Ok(mut far) = TcpStream::connect(to).await else { return };
        near.set_nodelay(true).and_then(|()| far.set_nodelay(true)).ok();
        tokio::select! {
            // Either end's end, or its being broken, ends both.
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            _ = cut.wait_for(is_cut) => {}
        }
    }

    fn source(&self, peer: SocketAddr) -> Option<usize> {
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let inode = inode_of(&table, peer.port())?;
        let socket = format!("socket:[{inode}]");
        let processes = self.0.processes.lock();
        let owner = processes.iter().find(|(process, _)| {
            let files = std::fs::read_dir(format!("/proc/{process}/fd"));
            let mut links =
                files.into_iter().flatten().flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
            links.any(|link| link.to_str() == Some(&socket))
        });
        owner.map(|(_, member)| *member)
    }
}

/// Of the socket bound to this local port, in the kernel's table of TCP sockets.
fn inode_of(table: &str, port: u16) -> Option<&str> {
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let local = columns.get(1)?.rsplit_once(':')?.1;
        let connected = columns.get(3)? == &"01";
        (connected && u16::from_str_radix(local, 16).ok()? == port).then(|| columns.get(9).copied())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_its_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:094C 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 111 1\n   \
                     1: 0100007F:C350 0100007F:094C 01 00000000:00000000 00:00000000 00000000  0 0 222 1\n";
        assert_eq!(inode_of(table, 50_000), Some("222"));
        assert_eq!(inode_of(table, 2380), None, "a listener is no connection");
    }
}

//! Whose a connection on this machine is, by the kernel's tables. It must not know what goes over it.

/// Which of these processes holds the end of a connection that is at `port`, towards `peer_port`. The table is read in
/// pieces and a socket can be missed while others come and go: who must know looks again.
pub(crate) fn owner(port: u16, peer_port: u16, processes: &[Option<u32>]) -> Option<usize> {
    let socket = socket_of(port, peer_port)?;
    processes.iter().position(|process| process.is_some_and(|process| owns(process, &socket)))
}

/// How `/proc/<pid>/fd` shows it. By both ends: a port may be that of several connections, old ones included.
fn socket_of(port: u16, peer_port: u16) -> Option<String> {
    let at = |port: u16| format!("0100007F:{port:04X}");
    let ends = (at(port), at(peer_port));
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1) == Some(&ends.0.as_str()) && fields.get(2) == Some(&ends.1.as_str());
        is_it.then(|| fields.get(9).copied())?
    })?;
    Some(format!("socket:[{inode}]"))
}

fn owns(process: u32, socket: &str) -> bool {
    let Ok(open) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    open.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == socket))
}

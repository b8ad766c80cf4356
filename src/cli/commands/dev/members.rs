//! The processes of `dev`.

use super::links::Links;
use crate::cli::args::Dev;
use crate::cli::exit::CliError;
use crate::cli::server_flags::END_WITH;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// For all members to serve, and for all to end in good order.
const START_LOOKS: u32 = 300;
const END_LOOKS: u32 = 200;
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Members {
    binary: PathBuf,
    root: PathBuf,
    /// It was not named, so it goes with the members.
    temporary: bool,
    links: Links,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    child: Option<Child>,
    client: SocketAddr,
    /// Where its peers are told to come, and where it is.
    link: SocketAddr,
    peer: SocketAddr,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Members {
    pub(super) fn prepare(args: &Dev, links: &Links) -> Result<Self, CliError> {
        let binary = std::env::current_exe().map_err(|error| CliError::io("this program's own path", &error))?;
        let own = || std::env::temp_dir().join(format!("tenure-dev-{}", std::process::id()));
        let (root, temporary) = args.data_dir.clone().map_or_else(|| (own(), true), |dir| (dir, false));
        let mut members = Vec::new();
        for n in 0..args.members {
            let step = u16::try_from(n * 100).unwrap_or(u16::MAX);
            let port = |base: u16, more: u16| {
                let port = base.checked_add(step).and_then(|port| port.checked_add(more));
                port.map(local).ok_or_else(|| CliError::Usage("the ports go beyond 65535".to_owned()))
            };
            let (client, link, peer) = (port(args.client_port, 0)?, port(args.peer_port, 0)?, port(args.peer_port, 1)?);
            std::fs::create_dir_all(root.join(format!("n{}", n + 1)))
                .map_err(|error| CliError::io(&root.display().to_string(), &error))?;
            members.push(Member { child: None, client, link, peer });
        }
        Ok(Self { binary, root, temporary, links: links.clone(), members })
    }

    /// For each member: where its peers come, and where it is.
    pub(super) fn links(&self) -> Vec<(usize, SocketAddr, SocketAddr)> {
        self.members.iter().enumerate().map(|(n, member)| (n, member.link, member.peer)).collect()
    }

    pub(super) fn greeting(&self) -> String {
        let each = self.members.iter().enumerate();
        let each: Vec<String> = each.map(|(n, member)| format!("  n{}  http://{}", n + 1, member.client)).collect();
        let kept = if self.temporary { "deleted at the end" } else { "kept" };
        format!("{} members, data and logs in {} ({kept})\n{}", each.len(), self.root.display(), each.join("\n"))
    }

    pub(super) fn start_all(&mut self) -> Result<(), CliError> {
        (0..self.members.len()).try_for_each(|n| self.start(n))
    }

    fn start(&mut self, n: usize) -> Result<(), CliError> {
        let all: Vec<String> =
            self.members.iter().enumerate().map(|(n, member)| format!("n{}=http://{}", n + 1, member.link)).collect();
        let (name, dir) = (format!("n{}", n + 1), self.root.join(format!("n{}", n + 1)));
        let path = dir.join("log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(|error| CliError::io(&path.display().to_string(), &error))?;
        let member = &mut self.members[n];
        let child = Command::new(&self.binary)
            .args(["serve", "--name", &name, "--initial-cluster", &all.join(",")])
            .args(["--listen-client", &member.client.to_string(), "--listen-peer", &member.peer.to_string()])
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args([&format!("--{END_WITH}"), &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for this process, which ends them.
            .process_group(0)
            .spawn()
            .map_err(|error| CliError::io("start a member", &error))?;
        self.links.note_process(child.id(), n);
        member.child = Some(child);
        Ok(())
    }

    pub(super) fn wait_ready(&mut self) -> Result<(), CliError> {
        for _ in 0..START_LOOKS {
            if self.ask(&["health"]).is_ok() {
                return Ok(());
            }
            for (n, member) in self.members.iter_mut().enumerate() {
                let ended = member.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
                if ended.is_some() {
                    let log = self.root.join(format!("n{}/log", n + 1));
                    let said = std::fs::read_to_string(log).unwrap_or_default();
                    return Err(CliError::other(format!("n{} has ended:\n{}", n + 1, said.trim_end())));
                }
            }
            std::thread::sleep(LOOK);
        }
        Err(CliError::other(format!("the members are not ready; their logs are in {}", self.root.display())))
    }

    /// Runs this program's own command against all members; what it says.
    pub(super) fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let endpoints: Vec<String> = self.members.iter().map(|member| member.client.to_string()).collect();
        let output = Command::new(&self.binary).args(["--endpoints", &endpoints.join(",")]).args(arguments).output();
        let output = output.map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        // A table with a member that does not answer is worth as much as one without.
        match output.status.success() || (arguments == ["status"] && !output.stdout.is_empty()) {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    fn running(&mut self, n: usize) -> Result<&mut Child, String> {
        self.members[n].child.as_mut().ok_or_else(|| format!("n{0} does not run; `restart {0}` starts it", n + 1))
    }

    pub(super) fn kill(&mut self, n: usize) -> Result<(), String> {
        let child = self.running(n)?;
        let killed = child.kill().and_then(|()| child.wait().map(drop));
        self.members[n].child = None;
        killed.map_err(|error| error.to_string())
    }

    pub(super) fn restart(&mut self, n: usize) -> Result<(), String> {
        if self.members[n].child.is_some() {
            self.kill(n)?;
        }
        self.start(n).map_err(|error| error.to_string())
    }

    pub(super) fn pause(&mut self, n: usize, pause: bool) -> Result<(), String> {
        let child = Pid::from_child(self.running(n)?);
        let signal = if pause { Signal::STOP } else { Signal::CONT };
        kill_process(child, signal).map_err(|error| error.to_string())
    }

    /// Ends them all, in good order where that is possible.
    pub(super) fn end(&mut self) {
        let children: Vec<&mut Child> = self.members.iter_mut().filter_map(|member| member.child.as_mut()).collect();
        for child in &children {
            // One may have ended by itself.
            kill_process(Pid::from_child(child), Signal::CONT).ok();
            kill_process(Pid::from_child(child), Signal::TERM).ok();
        }
        for child in children {
            let mut looks = 0;
            while matches!(child.try_wait(), Ok(None)) {
                if looks == END_LOOKS {
                    child.kill().ok();
                    child.wait().ok();
                    break;
                }
                looks += 1;
                std::thread::sleep(LOOK);
            }
        }
        self.members.iter_mut().for_each(|member| member.child = None);
        if self.temporary {
            // What stays is in the system's directory for such things.
            std::fs::remove_dir_all(&self.root).ok();
        }
    }
}

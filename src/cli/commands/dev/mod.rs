//! `dev`: a cluster to play with, in one command, and a prompt that does to its members what life does.
//!
//! Invariants: every member is a process of its own, started as any operator would; what it is told of
//! its peers leads through `links`, which can be cut; all of them end with this process, whichever way
//! that is asked to end or is ended (on Linux), and a directory that was not named goes with them when it was asked.

mod links;
mod members;

use crate::cli::args::Dev;
use crate::cli::exit::CliError;
use crate::cli::output::Out;
use crate::cli::session::note;
use crate::env::TaskSet;
use links::Links;
use members::Members;
use parking_lot::Mutex;
use std::io::{BufRead, IsTerminal};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
kill N       end member N at once (SIGKILL)        restart N    start it again
pause N      stop it where it is (SIGSTOP)         resume N     let it go on
partition N  cut it off from the others            heal N       and put it back
leader       who leads        status   how all do        quit (or end of input)";

/// What is asked for at the prompt.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    Kill(usize),
    Restart(usize),
    Pause(usize),
    Resume(usize),
    Partition(usize),
    Heal(usize),
    Leader,
    Status,
    Help,
    Quit,
    Nothing,
}

fn order(line: &str, members: usize) -> Result<Order, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |text: &str| {
        let number = text.trim_start_matches('n').parse::<usize>().ok();
        let number = number.filter(|number| (1..=members).contains(number));
        number.map(|number| number - 1).ok_or_else(|| format!("there is no member {text}; they are 1 to {members}"))
    };
    match words.as_slice() {
        [] => Ok(Order::Nothing),
        ["kill", n] => number(n).map(Order::Kill),
        ["restart", n] => number(n).map(Order::Restart),
        ["pause", n] => number(n).map(Order::Pause),
        ["resume", n] => number(n).map(Order::Resume),
        ["partition", n] => number(n).map(Order::Partition),
        ["heal", n] => number(n).map(Order::Heal),
        ["leader"] => Ok(Order::Leader),
        ["status"] => Ok(Order::Status),
        ["help" | "?"] => Ok(Order::Help),
        ["quit" | "exit"] => Ok(Order::Quit),
        [verb @ ("kill" | "restart" | "pause" | "resume" | "partition" | "heal"), ..] => {
            Err(format!("which member? for example: {verb} 1"))
        }
        [other, ..] => Err(format!("{other:?} is unknown; `help` says what there is")),
    }
}

pub(in crate::cli) fn run(args: &Dev, out: &mut Out) -> Result<(), CliError> {
    // The links are carried while this thread waits for its user.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| CliError::io("async runtime", &error))?;
    let _inside = runtime.enter();
    let (links, tasks) = (Links::default(), TaskSet::new());
    let members = Arc::new(Mutex::new(Members::prepare(args, &links)?));
    for (target, from, to) in members.lock().links() {
        links.carry(target, from, to, &tasks)?;
    }
    end_with_signals(&members, &tasks)?;
    let result = play(args, out, &members, &links);
    members.lock().end();
    tasks.stopping().cancel();
    result
}

/// Ctrl-C and SIGTERM end the members too.
#[expect(clippy::disallowed_methods, reason = "the main thread waits for a line, which may never come")]
fn end_with_signals(members: &Arc<Mutex<Members>>, tasks: &TaskSet) -> Result<(), CliError> {
    let listen = |kind| signal(kind).map_err(|error| CliError::io("signal handlers", &error));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let members = members.clone();
    tasks.spawn_until_stop("end with signals", async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        members.lock().end();
        std::process::exit(0);
    });
    Ok(())
}

fn play(args: &Dev, out: &mut Out, members: &Mutex<Members>, links: &Links) -> Result<(), CliError> {
    members.lock().start_all()?;
    members.lock().wait_ready()?;
    out.line(members.lock().greeting())?;
    out.line(HELP)?;
    out.flush()?;
    let asks = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if asks {
            out.bytes(b"> ")?;
            out.flush()?;
        }
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line.map_err(|error| CliError::io("standard input", &error))?;
        match order(&line, args.members) {
            Ok(Order::Quit) => return Ok(()),
            Ok(order) => match carry_out(&order, &mut members.lock(), links) {
                Ok(said) if said.is_empty() => {}
                Ok(said) => out.line(said)?,
                Err(problem) => note(&problem),
            },
            Err(problem) => note(&problem),
        }
        out.flush()?;
    }
}

/// What there is to say when it is done.
fn carry_out(order: &Order, members: &mut Members, links: &Links) -> Result<String, String> {
    let name = |n: &usize| format!("n{}", n + 1);
    match order {
        Order::Kill(n) => members.kill(*n).map(|()| format!("{} was killed", name(n))),
        Order::Restart(n) => members.restart(*n).map(|()| format!("{} is started", name(n))),
        Order::Pause(n) => members.pause(*n, true).map(|()| format!("{} is paused", name(n))),
        Order::Resume(n) => members.pause(*n, false).map(|()| format!("{} goes on", name(n))),
        Order::Partition(n) => {
            links.cut(*n, true);
            Ok(format!("{} is cut off from the others; clients still reach it", name(n)))
        }
        Order::Heal(n) => {
            links.cut(*n, false);
            Ok(format!("{} reaches the others again", name(n)))
        }
        Order::Leader => members.ask(&["leader"]),
        Order::Status => members.ask(&["status"]),
        Order::Help => Ok(HELP.to_owned()),
        Order::Quit | Order::Nothing => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_slips_are_told() {
        assert_eq!(order("kill 2", 3), Ok(Order::Kill(1)));
        assert_eq!(order("  partition  n3 ", 3), Ok(Order::Partition(2)));
        assert_eq!(order("", 3), Ok(Order::Nothing));
        assert_eq!(order("quit", 3), Ok(Order::Quit));
        for (line, part) in [("kill", "which member"), ("kill 4", "1 to 3"), ("kill 0", "1 to 3"), ("boom", "unknown")]
        {
            let problem = order(line, 3).unwrap_err();
            assert!(problem.contains(part), "{line}: {problem}");
        }
    }
}

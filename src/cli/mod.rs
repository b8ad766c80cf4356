//! The command line (rank 7): `tenure serve` and the client commands.
//!
//! Invariants: data goes to stdout, everything else to stderr; every outcome has the exit code that
//! `exit` lists; what takes a key takes its bytes verbatim; a client command is a `client::Request`
//! that is either sent or printed as a `curl` line. It must not know the machine, storage or Raft.
//! Together with the server's keys the only home of clap.

mod args;
mod bench;
mod claim_args;
mod commands;
mod context;
mod credentials;
mod exit;
mod output;
mod progress;
mod render;
mod server_flags;
mod session;

use args::{Cli, Command, ConfigCommand, SnapshotCommand, SnapshotRestore};
use clap::FromArgMatches as _;
use exit::CliError;
use output::Out;
use session::Session;
use std::process::ExitCode;

/// Parses the process's arguments, runs the command and answers its exit code.
#[must_use]
pub fn run() -> ExitCode {
    let parsed = Cli::definition().try_get_matches().and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        cli.global.settle(&matches);
        Ok(cli)
    });
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // A terminal that is gone cannot be told so.
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    let reporter = exit::Reporter::new(&cli.global);
    match dispatch(cli) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => reporter.report(&error),
    }
}

fn dispatch(cli: Cli) -> Result<(), CliError> {
    let Cli { global, command } = cli;
    let mode = global.output.unwrap_or_default();
    match command {
        Command::Serve(flags) => commands::serve::run(flags),
        Command::Dev(dev) => commands::dev::run(&dev, &mut Out::new(&global)),
        Command::Config(ConfigCommand::Check(check)) => commands::config::check(&check, &mut Out::new(&global)),
        Command::Config(ConfigCommand::Show(show)) if !show.running => {
            commands::config::show(show.flags, mode, &mut Out::new(&global))
        }
        Command::Completion(completion) => commands::about::completion(&completion, &mut Out::new(&global)),
        Command::Man(man) => commands::about::man(&man),
        Command::Version => commands::about::version(mode, &mut Out::new(&global)),
        Command::Openapi => commands::about::openapi(&mut Out::new(&global)),
        Command::Snapshot(SnapshotCommand::Inspect(inspect)) => {
            commands::backup::inspect(&inspect, mode, &mut Out::new(&global))
        }
        Command::Snapshot(SnapshotCommand::Restore(SnapshotRestore {
            file, data_dir: Some(data_dir), name, ..
        })) => commands::backup::restore(&file, &data_dir, name, mode, &mut Out::new(&global)),
        Command::Recover(recover) => commands::recover::recover(&recover, mode, &mut Out::new(&global)),
        Command::Bench(bench) => bench::run(&bench, Session::open(&global)?),
        online => {
            let session = Session::open(&global)?;
            session::block_on(talk(online, session))
        }
    }
}

/// The commands that speak to a member.
async fn talk(command: Command, mut session: Session) -> Result<(), CliError> {
    let outcome = match command {
        Command::Get(get) => commands::read::get(&mut session, &get).await,
        Command::Ls(ls) => commands::read::ls(&mut session, &ls).await,
        Command::Put(put) => commands::write::put(&mut session, &put).await,
        Command::Del(del) => commands::write::del(&mut session, &del).await,
        Command::Incr(incr) => commands::write::incr(&mut session, &incr).await,
        Command::Watch(watch) => Box::pin(commands::watch::watch(&mut session, &watch)).await,
        Command::Ttl(ttl) => commands::lease::ttl(&mut session, &ttl).await,
        Command::Lease(lease) => commands::lease::lease(&mut session, &lease).await,
        Command::Lock(lock) => Box::pin(commands::claims::lock(&mut session, lock)).await,
        Command::Sem(sem) => Box::pin(commands::claims::sem(&mut session, sem)).await,
        Command::Elect(elect) => Box::pin(commands::claims::elect(&mut session, *elect)).await,
        Command::Ratelimit(limit) => commands::ratelimit::ratelimit(&mut session, &limit).await,
        Command::History(history) => commands::history::history(&mut session, &history).await,
        Command::Edit(edit) => Box::pin(commands::edit::edit(&mut session, &edit)).await,
        Command::Txn(txn) => commands::txn::txn(&mut session, &txn).await,
        Command::Status(status) => commands::status::status(&mut session, &status).await,
        Command::Health => commands::status::health(&mut session).await,
        Command::Member(command) => commands::member::member(&mut session, &command).await,
        Command::Leader(leader) => commands::member::leader(&mut session, leader.command.as_ref()).await,
        Command::Compact(compact) => commands::status::compact(&mut session, &compact).await,
        Command::Hash(hash) => commands::status::hash(&mut session, &hash).await,
        Command::Export(export) => commands::transfer::export(&mut session, &export).await,
        Command::Import(import) => commands::transfer::import(&mut session, &import).await,
        Command::Snapshot(SnapshotCommand::Save(save)) => commands::backup::save(&mut session, &save).await,
        Command::Snapshot(SnapshotCommand::Restore(restore)) => {
            commands::backup::restore_running(&mut session, &restore).await
        }
        Command::Config(ConfigCommand::Show(_)) => commands::config::show_running(&mut session).await,
        Command::Serve(_)
        | Command::Dev(_)
        | Command::Config(ConfigCommand::Check(_))
        | Command::Completion(_)
        | Command::Man(_)
        | Command::Version
        | Command::Openapi
        | Command::Recover(_)
        | Command::Snapshot(SnapshotCommand::Inspect(_))
        | Command::Bench(_) => Ok(()),
    };
    session.close(outcome)
}

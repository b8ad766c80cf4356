//! What can be typed after `lock`, `sem` and `elect`. Definitions only.

use crate::node::config::parse;
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Lock {
    #[command(subcommand)]
    pub(super) command: Option<ClaimCommand>,
    #[command(flatten)]
    pub(super) hold: HoldArgs,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Sem {
    #[command(subcommand)]
    pub(super) command: Option<ClaimCommand>,
    /// How many permits there are; the first caller sets it
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,
    /// How many permits to take
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) permits: u64,
    #[command(flatten)]
    pub(super) hold: HoldArgs,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Elect {
    #[command(subcommand)]
    pub(super) command: Option<ElectCommand>,
    /// What the leader is known for, such as its address
    #[arg(long, value_name = "VALUE", default_value = "")]
    pub(super) value: String,
    /// Follow who leads instead of standing
    #[arg(long, conflicts_with_all = ["leader", "value"])]
    pub(super) observe: bool,
    /// Print the leader's value: exit code 3 if nobody leads
    #[arg(long, conflicts_with = "value")]
    pub(super) leader: bool,
    /// Do not stand again when the office is lost
    #[arg(long)]
    pub(super) once: bool,
    #[command(flatten)]
    pub(super) hold: HoldArgs,
}

/// How a claim is had and held, and what runs meanwhile.
#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    /// What is claimed
    #[arg(value_name = "NAME", required = true)]
    pub(super) name: Option<String>,
    /// Do not wait
    #[arg(short = 'n', long = "try", conflicts_with = "wait")]
    pub(super) once_only: bool,
    /// Wait this long [default: without end]
    #[arg(short, long, value_name = "DURATION", value_parser = parse::duration)]
    pub(super) wait: Option<Duration>,
    /// How long it stays held if this process vanishes
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse::duration)]
    pub(super) ttl: Duration,
    /// Between SIGTERM and SIGKILL for a command whose claim is in danger [default: 5s, at most a third of the TTL]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(super) grace: Option<Duration>,
    /// What others see it as [default: host:pid]
    #[arg(long, value_name = "TEXT")]
    pub(super) owner: Option<String>,
    /// Exit code when it is not had
    #[arg(short = 'E', long, value_name = "CODE", default_value_t = 1)]
    pub(super) conflict_exit_code: u8,
    /// Runs while it is held, and is stopped before anybody else can hold it
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command_line: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ClaimCommand {
    /// List what is claimed, by whom, and how many wait
    Ls(ClaimLs),
    /// Show one and its queue
    Status(ClaimNamed),
    /// Give a claim up
    Release(ClaimLeased),
    /// Take it from whoever holds it
    Break(ClaimNamed),
}

#[derive(Debug, Subcommand)]
pub(super) enum ElectCommand {
    /// List elections, their leaders, and how many wait
    Ls(ClaimLs),
    /// Show one and its candidates
    Status(ClaimNamed),
    /// Give the office, or the candidature, up
    Resign(ClaimLeased),
    /// Publish another value as the leader
    Proclaim(Proclaim),
}

#[derive(Debug, Args)]
pub(super) struct ClaimLs {
    /// Only names that begin with this
    #[arg(value_name = "PREFIX")]
    pub(super) prefix: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ClaimNamed {
    #[arg(value_name = "NAME")]
    pub(super) name: String,
}

#[derive(Debug, Args)]
pub(super) struct ClaimLeased {
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// The claim's lease
    #[arg(long, value_name = "ID", env = "TENURE_LEASE")]
    pub(super) lease: String,
}

#[derive(Debug, Args)]
pub(super) struct Proclaim {
    #[command(flatten)]
    pub(super) claim: ClaimLeased,
    /// What the leader is known for
    #[arg(value_name = "VALUE")]
    pub(super) value: String,
}

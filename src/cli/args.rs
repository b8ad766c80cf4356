//! What can be typed. Definitions only: what they mean is in `commands`.

use super::claim_args::{Elect, Lock, Sem};
use super::output::{Colour, Mode};
use super::server_flags::ServerFlags;
use crate::node::config::parse;
use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use rustix::process::Signal;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(name = "tenure", version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Commands that speak to nobody: the client's options would only clutter their help.
const OFFLINE: [&str; 5] = ["serve", "completion", "man", "version", "openapi"];

impl Cli {
    /// The definition with the options of the client hidden where they mean nothing.
    pub(super) fn definition() -> clap::Command {
        let mut definition = Self::command();
        // Global options reach the commands only when the definition is built.
        definition.build();
        OFFLINE.into_iter().fold(definition, |definition, name| {
            definition.mut_subcommand(name, |command| {
                command
                    .mut_args(|arg| if arg.get_help_heading() == Some(CLIENT_OPTIONS) { arg.hide(true) } else { arg })
            })
        })
    }
}

const CLIENT_OPTIONS: &str = "Client options";
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 other error, 2 usage, 3 not found, 4 condition failed, 5 held or out of range,
  6 denied, 7 unavailable (nothing happened), 8 outcome unknown, 9 compacted, 10 unhealthy";

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = CLIENT_OPTIONS)]
pub(super) struct Global {
    /// Members to talk to, in this order, separated by commas [default: 127.0.0.1:2379]
    #[arg(
        long,
        global = true,
        value_name = "URL,…",
        env = "TENURE_ENDPOINTS",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(super) endpoints: Option<Vec<String>>,
    /// How long a member may take to answer [default: 5s]
    #[arg(long, global = true, value_name = "DURATION", env = "TENURE_TIMEOUT", hide_env_values = true, value_parser = parse::duration)]
    pub(super) timeout: Option<Duration>,
    /// Which `[contexts.NAME]` of ~/.config/tenure/config.toml to use
    #[arg(long, global = true, value_name = "NAME", env = "TENURE_CONTEXT", hide_env_values = true)]
    pub(super) context: Option<String>,
    /// Who asks; without a password it comes from --password-file, or is asked for at the terminal
    #[arg(long, global = true, value_name = "NAME[:PASSWORD]", env = "TENURE_USER", hide_env_values = true)]
    pub(super) user: Option<Secret>,
    /// A file with nothing but the user's password
    #[arg(long, global = true, value_name = "FILE", env = "TENURE_PASSWORD_FILE", hide_env_values = true)]
    pub(super) password_file: Option<PathBuf>,
    /// A token of `/v3/auth/authenticate`, instead of a user
    #[arg(long, global = true, value_name = "TOKEN", env = "TENURE_TOKEN", hide_env_values = true)]
    pub(super) token: Option<Secret>,
    /// How to write results [default: human]
    #[arg(short, long, global = true, value_name = "MODE", env = "TENURE_OUTPUT", hide_env_values = true)]
    pub(super) output: Option<Mode>,
    /// When to use colours; NO_COLOR is honoured
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        env = "TENURE_COLOR",
        hide_env_values = true
    )]
    pub(super) color: Colour,
    /// Print the equivalent curl line instead of running the command
    #[arg(long, global = true)]
    pub(super) curl: bool,
    /// Also tell the request id and the endpoints tried
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
}

impl Global {
    /// What is typed counts before what the environment says, where only one of them can.
    pub(super) fn settle(&mut self, matches: &ArgMatches) {
        let typed = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
        let (user, token, file) = (typed("user"), typed("token"), typed("password_file"));
        if user && !token {
            self.token = None;
        }
        if token && !user {
            self.user = None;
        }
        let takes_none = self.user.as_ref().map_or(token, |typed| user && typed.0.contains(':'));
        if takes_none && !file {
            self.password_file = None;
        }
    }
}

/// What may hold a password.
#[derive(Clone)]
pub(super) struct Secret(pub(super) String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a member
    Serve(ServerFlags),
    /// Run a throw-away cluster on this machine, with a prompt that breaks and mends it
    Dev(Dev),
    /// Print a key's value, or everything under a prefix
    Get(Get),
    /// Store a value
    Put(Put),
    /// Delete a key, or everything under a prefix
    Del(Del),
    /// List keys, one level at a time
    Ls(Ls),
    /// Follow changes, and run a command on them
    Watch(Box<Watch>),
    /// Show the former versions of a key
    History(History),
    /// Change a value in $EDITOR; saved only if nobody else changed it meanwhile
    Edit(Edit),
    /// Compare and write several keys atomically
    Txn(Txn),
    /// Add to a counter and print its new value
    Incr(Incr),
    /// Show, set or clear the time that a key has left
    Ttl(Ttl),
    /// Grant leases, which end with their keys unless they are kept alive
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Take permits of a rate limit: exit code 5 if there are not enough
    Ratelimit(Ratelimit),
    /// Hold a lock, alone or while a command runs
    Lock(Lock),
    /// Hold permits of a semaphore, alone or while a command runs
    Sem(Sem),
    /// Stand for an election, follow one, or run a command only while leading
    Elect(Box<Elect>),
    /// Show the state of each endpoint
    Status(Status),
    /// Check that each endpoint can serve: exit code 0, or 10
    Health,
    /// Show and change the members of the cluster
    #[command(subcommand)]
    Member(MemberCommand),
    /// Show or move leadership
    Leader(Leader),
    /// Forget old history
    Compact(Compact),
    /// Show each endpoint's hash of its data
    Hash(Hash),
    /// Back up and restore
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Begin a new cluster with what a member of one that lost its quorum holds
    Recover(Recover),
    /// Write entries as NDJSON, all read at one revision
    Export(Export),
    /// Store entries from NDJSON
    Import(Import),
    /// Measure a running member
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Check or show the server's settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a shell's completion script
    Completion(Completion),
    /// Write the manual pages into a directory
    Man(Man),
    /// Print the version
    Version,
    /// Print the REST API's OpenAPI document
    Openapi,
}

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// How many members
    #[arg(short = 'n', long, default_value = "3", value_name = "COUNT", value_parser = members())]
    pub(super) members: usize,
    /// Keep data and logs here; without it they are deleted at the end
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Of n1; each further member has one that is 100 higher
    #[arg(long, default_value = "2379", value_name = "PORT")]
    pub(super) client_port: u16,
    /// Likewise; the next one is used, too
    #[arg(long, default_value = "2380", value_name = "PORT")]
    pub(super) peer_port: u16,
}

fn members() -> ValueParser {
    clap::value_parser!(u64).range(1..=9).map(|count| usize::try_from(count).unwrap_or(1)).into()
}

/// Bytes exactly as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verbatim(pub(super) Vec<u8>);

fn verbatim() -> ValueParser {
    OsStringValueParser::new().map(|text| Verbatim(text.into_encoded_bytes())).into()
}

/// A key, or with `--prefix` everything that begins with it. `--prefix P` and `P --prefix` are the same.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// The key, byte for byte
    #[arg(value_parser = verbatim(), value_name = "KEY", required_unless_present = "prefix")]
    pub(super) key: Option<Verbatim>,
    /// Everything that begins with this
    #[arg(long, value_parser = verbatim(), value_name = "PREFIX", num_args = 0..=1)]
    pub(super) prefix: Option<Option<Verbatim>>,
}

#[derive(Debug, Args)]
pub(super) struct ReadFrom {
    /// Read the state as it was at this revision
    #[arg(long, value_name = "REVISION")]
    pub(super) rev: Option<i64>,
    /// Take any member's state, even if it lags
    #[arg(long)]
    pub(super) stale: bool,
}

#[derive(Debug, Args)]
pub(super) struct Get {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) read: ReadFrom,
    /// Also show revisions, version and content type
    #[arg(long, conflicts_with = "prefix")]
    pub(super) meta: bool,
    /// Wait this long for the key to appear
    #[arg(short, long, value_name = "DURATION", value_parser = parse::duration, conflicts_with_all = ["prefix", "rev"])]
    pub(super) wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Retry {
    /// Makes it safe to repeat the command: the same key is applied once
    #[arg(long, value_name = "KEY")]
    pub(super) idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Put {
    /// The key, byte for byte
    #[arg(value_parser = verbatim(), value_name = "KEY")]
    pub(super) key: Verbatim,
    /// The value; `-` (or nothing) reads standard input, `@FILE` reads a file
    #[arg(value_parser = verbatim(), value_name = "VALUE|-|@FILE", allow_negative_numbers = true)]
    pub(super) value: Option<Verbatim>,
    /// Only if the key's revision is this; 0: only if there is no such key
    #[arg(long, value_name = "REVISION")]
    pub(super) cas: Option<u64>,
    /// Only if there is no such key
    #[arg(long, conflicts_with = "cas")]
    pub(super) create: bool,
    /// Stored with the value and given back with it
    #[arg(long, value_name = "TYPE")]
    pub(super) content_type: Option<String>,
    /// Delete the key when this time has passed; never early
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(super) ttl: Option<Duration>,
    /// Attach the key to this lease: it goes when the lease ends
    #[arg(long, value_name = "ID", conflicts_with = "ttl")]
    pub(super) lease: Option<String>,
    /// Leave the key's TTL or lease as it is
    #[arg(long, conflicts_with_all = ["ttl", "lease"])]
    pub(super) keep_ttl: bool,
    #[command(flatten)]
    pub(super) retry: Retry,
}

#[derive(Debug, Args)]
pub(super) struct Del {
    #[command(flatten)]
    pub(super) target: OptionalTarget,
    /// Every key
    #[arg(long, conflicts_with_all = ["key", "prefix"])]
    pub(super) all: bool,
    /// Only if the key's revision is this
    #[arg(long, value_name = "REVISION", conflicts_with_all = ["prefix", "all"])]
    pub(super) cas: Option<u64>,
    /// Only say how many keys would go
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask before deleting many keys
    #[arg(short, long)]
    pub(super) yes: bool,
    #[command(flatten)]
    pub(super) retry: Retry,
}

/// As `Target`, where something else may stand in for it.
#[derive(Debug, Args)]
pub(super) struct OptionalTarget {
    /// The key, byte for byte
    #[arg(value_parser = verbatim(), value_name = "KEY", required_unless_present_any = ["prefix", "all"])]
    pub(super) key: Option<Verbatim>,
    /// Everything that begins with this
    #[arg(long, value_parser = verbatim(), value_name = "PREFIX", num_args = 0..=1)]
    pub(super) prefix: Option<Option<Verbatim>>,
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// List what begins with this
    #[arg(value_parser = verbatim(), value_name = "PREFIX")]
    pub(super) prefix: Option<Verbatim>,
    /// All levels at once
    #[arg(short, long)]
    pub(super) recursive: bool,
    /// Leave values out of JSON
    #[arg(long)]
    pub(super) keys: bool,
    /// Only count
    #[arg(long, conflicts_with_all = ["long", "keys", "recursive"])]
    pub(super) count: bool,
    /// With revision, version, size and content type
    #[arg(short, long)]
    pub(super) long: bool,
    /// Go on showing what changes: on a terminal the listing anew, otherwise a line for each change
    #[arg(short, long, conflicts_with_all = ["count", "rev"])]
    pub(super) watch: bool,
    #[command(flatten)]
    pub(super) read: ReadFrom,
}

#[derive(Debug, Args)]
#[command(after_help = WATCH_HELP)]
pub(super) struct Watch {
    /// Keys to follow, byte for byte; with a bare `--prefix`, what begins with them; without any, every key
    #[arg(value_parser = verbatim(), value_name = "KEY")]
    pub(super) keys: Vec<Verbatim>,
    /// Follow everything that begins with this; may be given again
    #[arg(long = "prefix", value_parser = verbatim(), value_name = "PREFIX", num_args = 0..=1, default_missing_value = "")]
    pub(super) prefixes: Vec<Verbatim>,
    /// Begin after this revision instead of now
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(0..))]
    pub(super) after: Option<i64>,
    /// First the present state, then its changes
    #[arg(long)]
    pub(super) initial: bool,
    /// Only changes of these types
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',')]
    pub(super) types: Vec<ChangeType>,
    /// Also ask for the entry before each change
    #[arg(long)]
    pub(super) prev: bool,
    /// Keep the last revision seen in this file, and resume after it
    #[arg(long, value_name = "FILE")]
    pub(super) checkpoint: Option<PathBuf>,
    /// How COMMAND follows changes: each, latest, restart or signal=NAME
    #[arg(long, value_name = "MODE", default_value = "each", value_parser = RunMode::parse, requires = "command")]
    pub(super) mode: RunMode,
    /// latest, restart, signal: wait until there was no change for this long
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = parse::duration, requires = "command")]
    pub(super) debounce: Duration,
    /// How long COMMAND has after SIGTERM before it is killed
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse::duration, requires = "command")]
    pub(super) grace: Duration,
    /// Run this, without a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

const WATCH_HELP: &str = "\
COMMAND gets TENURE_EVENT (put or delete), TENURE_KEY, TENURE_REVISION, TENURE_VALUE and TENURE_PREV_VALUE
in its environment where they fit there (no NUL, at most 100 kB), and the event as JSON on standard input.
Modes:
  each         run it for every change, one after another (the default)
  latest       run it for the newest change; those that come while it runs are one more run
  restart      run it, and stop and start it again with every change
  signal=HUP   run it from the start, and send it this signal with every change; its end is ours
Interrupted, tenure ends COMMAND and exits with 130 (SIGINT) or 143 (SIGTERM).";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ChangeType {
    Put,
    Delete,
}

impl ChangeType {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }
}

/// How a command follows changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunMode {
    Each,
    Latest,
    Restart,
    Signal(Signal),
}

impl RunMode {
    fn parse(text: &str) -> Result<Self, String> {
        let signals = [
            ("HUP", Signal::HUP),
            ("INT", Signal::INT),
            ("QUIT", Signal::QUIT),
            ("TERM", Signal::TERM),
            ("USR1", Signal::USR1),
            ("USR2", Signal::USR2),
            ("WINCH", Signal::WINCH),
        ];
        match text.split_once('=') {
            None if text == "each" => Ok(Self::Each),
            None if text == "latest" => Ok(Self::Latest),
            None if text == "restart" => Ok(Self::Restart),
            Some(("signal", name)) => {
                let plain = name.strip_prefix("SIG").unwrap_or(name);
                let signal = signals.iter().find(|(known, _)| *known == plain).map(|(_, signal)| Self::Signal(*signal));
                let known = || signals.map(|(known, _)| known).join(", ");
                signal.ok_or_else(|| format!("signal {name:?} is none of {}", known()))
            }
            _ => Err("it is each, latest, restart or signal=NAME".to_owned()),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// The key, byte for byte
    #[arg(value_parser = verbatim(), value_name = "KEY")]
    pub(super) key: Verbatim,
    /// Show what each version changed
    #[arg(long)]
    pub(super) diff: bool,
    /// How many versions, newest first
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 100)]
    pub(super) limit: u64,
}

#[derive(Debug, Args)]
pub(super) struct Edit {
    /// The key, byte for byte
    #[arg(value_parser = verbatim(), value_name = "KEY")]
    pub(super) key: Verbatim,
}

#[derive(Debug, Args)]
pub(super) struct Txn {
    /// The transaction as JSON: `{"if":[…],"then":[…],"else":[…]}`; `-` is standard input
    #[arg(short, long, value_name = "FILE|-", default_value = "-")]
    pub(super) file: PathBuf,
    /// Ask for compares and operations line by line, as etcdctl does
    #[arg(short, long, conflicts_with = "file")]
    pub(super) interactive: bool,
    /// Fail with exit code 4 if the compares do not hold
    #[arg(long)]
    pub(super) strict: bool,
    #[command(flatten)]
    pub(super) retry: Retry,
}

#[derive(Debug, Args)]
pub(super) struct Incr {
    /// The key, byte for byte
    #[arg(value_parser = verbatim(), value_name = "KEY")]
    pub(super) key: Verbatim,
    /// What to add; may be negative
    #[arg(value_name = "BY", default_value_t = 1, allow_negative_numbers = true)]
    pub(super) by: i64,
    /// Never let it fall below this
    #[arg(long, allow_negative_numbers = true)]
    pub(super) min: Option<i64>,
    /// Never let it rise above this
    #[arg(long, allow_negative_numbers = true)]
    pub(super) max: Option<i64>,
    /// What a missing counter starts from
    #[arg(long, allow_negative_numbers = true)]
    pub(super) initial: Option<i64>,
    /// Stop at the bound instead of failing
    #[arg(long)]
    pub(super) clamp: bool,
    /// Delete the counter when this time has passed since its last addition
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(super) ttl: Option<Duration>,
    #[command(flatten)]
    pub(super) retry: Retry,
}

#[derive(Debug, Args)]
pub(super) struct Ratelimit {
    /// The key, byte for byte
    #[arg(value_parser = verbatim(), value_name = "KEY")]
    pub(super) key: Verbatim,
    /// How many permits there are in the time of --per
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..), required_unless_present = "reset")]
    pub(super) limit: Option<u64>,
    /// The time in which --limit permits come back
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, required_unless_present = "reset")]
    pub(super) per: Option<Duration>,
    /// How many can be had at once [default: the limit]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) burst: Option<u64>,
    /// How many to take
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) cost: u64,
    /// Only look
    #[arg(long, conflicts_with_all = ["cost", "reset"])]
    pub(super) peek: bool,
    /// Make it full again
    #[arg(long, conflicts_with_all = ["cost", "limit", "per", "burst"])]
    pub(super) reset: bool,
    #[command(flatten)]
    pub(super) retry: Retry,
}

#[derive(Debug, Args)]
pub(super) struct Ttl {
    /// The key, byte for byte
    #[arg(value_parser = verbatim(), value_name = "KEY")]
    pub(super) key: Verbatim,
    /// Give it this long from now on; no new revision, no watcher wakes
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(super) set: Option<Duration>,
    /// Make it stay
    #[arg(long, conflicts_with = "set")]
    pub(super) clear: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum LeaseCommand {
    /// Grant a lease and print its id
    Grant(LeaseGrant),
    /// List leases
    Ls(LeaseLs),
    /// Show a lease
    Get(LeaseGet),
    /// Give a lease its whole TTL again
    Keepalive(LeaseId),
    /// Keep a lease alive until this command ends, then revoke it
    Hold(LeaseHold),
    /// End a lease and delete its keys
    Revoke(LeaseId),
}

#[derive(Debug, Args)]
pub(super) struct LeaseGrant {
    /// Its time to live, such as 15s
    #[arg(value_name = "TTL", value_parser = parse::duration)]
    pub(super) ttl: Duration,
    /// What people call it
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Its id, 1 to 16 hexadecimal digits; a random one by default
    #[arg(long)]
    pub(super) id: Option<String>,
    /// A JSON object to note with it
    #[arg(long, value_name = "JSON")]
    pub(super) metadata: Option<String>,
    #[command(flatten)]
    pub(super) retry: Retry,
}

#[derive(Debug, Args)]
pub(super) struct LeaseLs {
    /// Only leases whose name begins with this
    #[arg(value_name = "PREFIX")]
    pub(super) prefix: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct LeaseGet {
    #[command(flatten)]
    pub(super) lease: LeaseId,
    /// Also list its keys
    #[arg(long)]
    pub(super) keys: bool,
}

#[derive(Debug, Args)]
pub(super) struct LeaseId {
    /// The lease's id
    #[arg(value_name = "ID")]
    pub(super) id: String,
}

#[derive(Debug, Args)]
pub(super) struct LeaseHold {
    #[command(flatten)]
    pub(super) lease: LeaseId,
    /// Do not revoke it at the end: it runs out by itself
    #[arg(long)]
    pub(super) keep: bool,
    /// Time between renewals; a third of the TTL by default
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(super) every: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Show it again and again
    #[arg(short, long, value_name = "EVERY", num_args = 0..=1, default_missing_value = "2s", value_parser = parse::duration)]
    pub(super) watch: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(super) enum MemberCommand {
    /// List the members and how they do
    #[command(visible_alias = "list", name = "ls")]
    List,
    /// Announce a new member; it joins as a learner
    Add(MemberAdd),
    /// Make a learner a voter once it has caught up
    Promote(MemberPromote),
    /// Remove a member, also the leader
    Remove(MemberRemove),
    /// Put a new member in a voter's place
    Replace(MemberReplace),
}

#[derive(Debug, Args)]
pub(super) struct MemberAdd {
    /// Its name, unique in the cluster
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Where other members reach it, such as http://10.0.0.4:2380
    #[arg(value_name = "PEER_URL")]
    pub(super) peer_url: String,
    /// Where clients reach it
    #[arg(long, value_name = "URL")]
    pub(super) client_url: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct MemberPromote {
    /// Name or id
    #[arg(value_name = "MEMBER")]
    pub(super) member: String,
    /// How long it may take to catch up
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse::duration)]
    pub(super) wait: Duration,
    /// How many entries behind it may be
    #[arg(long, value_name = "ENTRIES")]
    pub(super) max_lag: Option<u64>,
}

#[derive(Debug, Args)]
pub(super) struct MemberRemove {
    /// Name or id
    #[arg(value_name = "MEMBER")]
    pub(super) member: String,
    /// Also when too few of the others are in reach
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct MemberReplace {
    /// Name or id of the voter that goes
    #[arg(value_name = "OLD")]
    pub(super) old: String,
    /// Name of the member that comes
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Where other members reach it
    #[arg(value_name = "PEER_URL")]
    pub(super) peer_url: String,
    /// How long it may take to catch up
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse::duration)]
    pub(super) wait: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Leader {
    #[command(subcommand)]
    pub(super) command: Option<LeaderCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum LeaderCommand {
    /// Print the leader's name
    Show,
    /// Move leadership to a voter, or to the one that is furthest
    Move {
        /// Name or id
        #[arg(value_name = "TO")]
        to: Option<String>,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Compact {
    /// Forget what was superseded at or before this revision
    #[arg(value_name = "REVISION")]
    pub(super) revision: Option<i64>,
    /// Keep this many of the newest revisions
    #[arg(long, value_name = "COUNT")]
    pub(super) keep_revisions: Option<u64>,
    /// Keep what is younger than this
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(super) keep: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Hash {
    /// Hash the state as it was at this revision
    #[arg(long, value_name = "REVISION")]
    pub(super) rev: Option<i64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Download a backup and verify it
    Save(SnapshotSave),
    /// Write a fresh data directory from a backup, without a server
    Restore(SnapshotRestore),
    /// Check a backup file and say what it holds
    Inspect(SnapshotInspect),
}

#[derive(Debug, Args)]
pub(super) struct SnapshotSave {
    /// Written only when complete and verified
    pub(super) file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct SnapshotRestore {
    pub(super) file: PathBuf,
    /// Make a fresh data directory of it, without a server; must not exist, or be empty
    #[arg(long, value_name = "DIR", required_unless_present = "confirm")]
    pub(super) data_dir: Option<PathBuf>,
    /// Name of the member that will serve that directory
    #[arg(long, default_value = "n1")]
    pub(super) name: String,
    /// Replace everything in the running cluster of this name or id
    #[arg(long, value_name = "CLUSTER", conflicts_with_all = ["data_dir", "name"])]
    pub(super) confirm: Option<String>,
}

/// What the lost members had acknowledged and this one had not received is gone. Use it only if a
/// majority of the voters is lost for good; the others must never be started on their old data again.
#[derive(Debug, Args)]
pub(super) struct Recover {
    /// Of the member that is left; it must not run, and keeps what it holds
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: PathBuf,
    /// The data directory of the new cluster's first member; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub(super) into: PathBuf,
    /// Name of that member
    #[arg(long, default_value = "n1")]
    pub(super) name: String,
    /// Yes: acknowledged writes may be lost, and all leases and locks end
    #[arg(long, required = true)]
    pub(super) force_new_cluster: bool,
}

#[derive(Debug, Args)]
pub(super) struct SnapshotInspect {
    pub(super) file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// Only what begins with this
    #[arg(value_parser = verbatim(), value_name = "PREFIX")]
    pub(super) prefix: Option<Verbatim>,
    /// Write here instead of standard output; appears only when complete
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) read: ReadFrom,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// NDJSON as `export` writes it; `-` is standard input
    #[arg(value_name = "FILE|-", default_value = "-")]
    pub(super) file: PathBuf,
    /// What to do with a key that exists
    #[arg(long, value_name = "WHAT", default_value = "overwrite")]
    pub(super) on_conflict: OnConflict,
    /// Put before every key
    #[arg(long, value_parser = verbatim(), value_name = "PREFIX")]
    pub(super) prefix: Option<Verbatim>,
    /// Copy a running etcd, and follow its changes until Ctrl-C or SIGTERM cuts over
    #[arg(long, value_name = "URL,…", value_delimiter = ',', conflicts_with_all = ["file", "on_conflict", "prefix"])]
    pub(super) from_etcd: Option<Vec<String>>,
    /// With --from-etcd: end as soon as the copy has caught up
    #[arg(long, requires = "from_etcd")]
    pub(super) until_synced: bool,
    /// With --from-etcd: who reads there, by the role root; the password may also be asked for, or stand in the URL
    #[arg(long, value_name = "NAME[:PASSWORD]", env = "TENURE_ETCD_USER", hide_env_values = true)]
    pub(super) etcd_user: Option<Secret>,
    /// A file with nothing but that user's password
    #[arg(long, value_name = "FILE", requires = "from_etcd")]
    pub(super) etcd_password_file: Option<PathBuf>,
    /// With --from-etcd: leave users and roles out
    #[arg(long, requires = "from_etcd")]
    pub(super) without_users: bool,
    /// With --from-etcd: delete what is here and not in the etcd
    #[arg(long, requires = "from_etcd")]
    pub(super) replace: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnConflict {
    Overwrite,
    Skip,
    Fail,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a configuration file without starting anything
    Check(ConfigCheck),
    /// Show every setting, its value and where it comes from
    Show(Box<ConfigShow>),
}

#[derive(Debug, Args)]
pub(super) struct ConfigCheck {
    pub(super) file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ConfigShow {
    /// Ask the running member instead of reading flags, environment and file here
    #[arg(long)]
    pub(super) running: bool,
    #[command(flatten)]
    pub(super) flags: ServerFlags,
}

#[derive(Debug, Args)]
pub(super) struct Completion {
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    pub(super) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    #[command(flatten)]
    Loop(BenchLoop),
    /// Follow keys with many streams while they are written
    Watch(BenchWatch),
    /// Hand one lock around
    Lock(BenchLock),
    /// Keep leases alive, or let them all run out at once
    Lease(BenchLease),
    /// Read a history on one stream
    Replay(BenchReplay),
}

#[derive(Debug, Args)]
pub(super) struct BenchLock {
    /// Clients that want it, each on a connection of its own
    #[arg(short, long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) contenders: u64,
    /// With --grpc: connections that the clients share instead
    #[arg(long, value_name = "COUNT", requires = "grpc", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) connections: Option<u64>,
    /// How long
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    pub(super) duration: Duration,
    /// The lock's name
    #[arg(long, value_name = "NAME", default_value = "bench")]
    pub(super) name: String,
    /// Speak etcd's gRPC instead (v3lockpb): to an etcd, or a member
    #[arg(long)]
    pub(super) grpc: bool,
}

#[derive(Debug, Args)]
pub(super) struct BenchLease {
    /// How many leases
    #[arg(short, long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(super) leases: u64,
    /// Connections that grant and renew them, one after the other; with --grpc on one stream each
    #[arg(short, long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) connections: u64,
    /// How long to renew
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    pub(super) duration: Duration,
    /// Instead of renewing, let them all end after this long, each with a key
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(super) expire: Option<Duration>,
    /// Clients that write 100 times a second each while the leases end
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(super) bystanders: u64,
    /// Speak etcd's gRPC instead: to an etcd, or a member
    #[arg(long, conflicts_with = "expire")]
    pub(super) grpc: bool,
}

#[derive(Debug, Args)]
pub(super) struct BenchReplay {
    /// Revisions to write and then to read
    #[arg(short, long, value_name = "COUNT", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(super) revisions: u64,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub(super) value_size: u64,
    /// Clients that write them, each on a connection of its own; with --grpc they share 2 to each endpoint
    #[arg(short, long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) connections: u64,
    /// Speak etcd's gRPC instead: to an etcd, or a member
    #[arg(long)]
    pub(super) grpc: bool,
}

/// Connections that each send one request after the other.
#[derive(Debug, Subcommand)]
pub(super) enum BenchLoop {
    /// Write
    Put(BenchPut),
    /// Read single keys
    Get(BenchGet),
    /// Read and write
    Mixed(BenchMixed),
    /// Read ranges of keys
    Range(BenchRange),
    /// Count all keys of the key space
    Count(BenchGet),
}

#[derive(Debug, Args)]
pub(super) struct BenchWatch {
    /// Streams [default: 1000, each on a connection of its own; with --grpc 10]
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(super) streams: Option<u64>,
    /// With --grpc: watches on each stream [default: 100]
    #[arg(short, long, value_name = "COUNT", requires = "grpc", value_parser = clap::value_parser!(u64).range(1..=20_000))]
    pub(super) watches_per_stream: Option<u64>,
    /// With --grpc: connections that the streams share [default: 2 to each endpoint]
    #[arg(short, long, value_name = "COUNT", requires = "grpc", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) connections: Option<u64>,
    /// Writes a second
    #[arg(long, value_name = "OPS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) rate: u64,
    /// How long to write
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    pub(super) duration: Duration,
    /// Distinct keys; streams, or watches, and writes are dealt to them in turn
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) key_space: u64,
    /// Bytes of a key
    #[arg(long, value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u64).range(8..=4096))]
    pub(super) key_size: u64,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
    pub(super) value_size: u64,
    /// What the keys begin with
    #[arg(long, value_name = "PREFIX", default_value = "w/")]
    pub(super) key_prefix: String,
    /// Threads of the load generator
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(super) threads: u64,
    /// Speak etcd's gRPC instead: to an etcd, or a member
    #[arg(long)]
    pub(super) grpc: bool,
}

#[derive(Debug, Args)]
pub(super) struct BenchPut {
    /// Write this many keys in each request, as one transaction
    #[arg(long, alias = "pipeline", value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=128))]
    pub(super) txn: Option<u64>,
    #[command(flatten)]
    pub(super) load: BenchLoad,
}

#[derive(Debug, Args)]
pub(super) struct BenchGet {
    #[command(flatten)]
    pub(super) read: BenchRead,
    #[command(flatten)]
    pub(super) load: BenchLoad,
}

#[derive(Debug, Args)]
pub(super) struct BenchMixed {
    /// Reads among 100 operations
    #[arg(long, value_name = "PERCENT", default_value_t = 90, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub(super) reads: u64,
    #[command(flatten)]
    pub(super) read: BenchRead,
    #[command(flatten)]
    pub(super) load: BenchLoad,
}

#[derive(Debug, Args)]
pub(super) struct BenchRange {
    /// Keys in each range
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) limit: u64,
    #[command(flatten)]
    pub(super) read: BenchRead,
    #[command(flatten)]
    pub(super) load: BenchLoad,
}

#[derive(Debug, Args)]
pub(super) struct BenchRead {
    /// Read any member's state, even if it lags
    #[arg(long)]
    pub(super) stale: bool,
    /// The keys are there already: do not write them first
    #[arg(long)]
    pub(super) no_fill: bool,
}

#[derive(Debug, Clone, Args)]
pub(super) struct BenchLoad {
    /// Connections [default: 64, each with one request at a time; with --grpc 2 to each endpoint, which the clients share]
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(super) connections: Option<u64>,
    /// With --grpc: clients, each with one request at a time, dealt to the connections in turn [default: 64]
    #[arg(long, value_name = "COUNT", requires = "grpc", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(super) clients: Option<u64>,
    /// How long to measure
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    pub(super) duration: Duration,
    /// Stop after this many operations instead
    #[arg(short = 'n', long, conflicts_with = "duration")]
    pub(super) count: Option<u64>,
    /// Load before measuring [default: 1s, none with --count]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(super) warm_up: Option<Duration>,
    /// Bytes of a key
    #[arg(long, value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u64).range(8..=4096))]
    pub(super) key_size: u64,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=1_048_576))]
    pub(super) value_size: u64,
    /// Distinct keys
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) key_space: u64,
    /// In which order keys are used
    #[arg(long, value_name = "ORDER", default_value = "random")]
    pub(super) keys: KeyOrder,
    /// Operations a second over all connections, instead of as many as possible
    #[arg(long, value_name = "OPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) rate: Option<u64>,
    /// What the keys begin with
    #[arg(long, value_name = "PREFIX", default_value = "b/")]
    pub(super) key_prefix: String,
    /// Threads of the load generator
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(super) threads: u64,
    /// Makes the order of random keys repeatable
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// Speak to etcd's JSON gateway (/v3) instead: an etcd, or a member
    #[arg(long)]
    pub(super) etcd: bool,
    /// Speak etcd's gRPC instead: to an etcd, or a member
    #[arg(long, conflicts_with = "etcd")]
    pub(super) grpc: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum KeyOrder {
    Sequential,
    Random,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["tenure"], args].concat())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_servers_help_shows_only_what_it_uses() {
        let help =
            |name| Cli::definition().find_subcommand_mut(name).map(|command| command.render_long_help().to_string());
        assert!(!help("serve").unwrap().contains("--endpoints"));
        assert!(help("serve").unwrap().contains("--data-dir"));
        assert!(help("get").unwrap().contains("--endpoints"));
    }

    #[test]
    fn global_options_stand_on_either_side() {
        for args in [["-o", "json", "get", "k"], ["get", "k", "-o", "json"]] {
            assert_eq!(parsed(&args).unwrap().global.output, Some(Mode::Json));
        }
        let endpoints = parsed(&["get", "k", "--endpoints", "a:1,b:2"]).unwrap().global.endpoints;
        assert_eq!(endpoints, Some(vec!["a:1".to_owned(), "b:2".to_owned()]));
    }

    #[test]
    fn wrong_combinations_are_usage_errors() {
        for args in [
            &["get"][..],
            &["get", "k", "--wait", "soon"],
            &["get", "--prefix", "p", "--meta"],
            &["put"],
            &["put", "k", "v", "--cas", "3", "--create"],
            &["del"],
            &["del", "k", "--all"],
            &["incr", "k", "one"],
            &["compact"],
            &["compact", "3", "--keep", "1h"],
            &["txn", "-i", "-f", "x"],
            &["completion", "cmd.exe"],
            &["bench", "put", "--txn", "129"],
            &["bench", "put", "--grpc", "--etcd"],
            &["bench", "put", "--clients", "4"],
            &["bench", "watch", "--watches-per-stream", "4"],
            &["bench", "lease", "--grpc", "--expire", "1s"],
            &["watch", "k", "--mode", "latest"],
            &["watch", "k", "--mode", "signal=NOPE", "--", "true"],
            &["watch", "--after", "-1"],
            &["ls", "--watch", "--count"],
            &["get", "k", "-o", "xml"],
            &["serve", "--quota", "1"],
        ] {
            assert_eq!(parsed(args).map(drop).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn what_follows_the_dashes_is_the_watchs_command() {
        let Command::Watch(watch) =
            parsed(&["watch", "a", "b", "--prefix", "p/", "--mode", "signal=SIGHUP", "--", "x", "--prefix"])
                .unwrap()
                .command
        else {
            unreachable!()
        };
        assert_eq!(watch.keys, [Verbatim(b"a".to_vec()), Verbatim(b"b".to_vec())]);
        assert_eq!((watch.prefixes.len(), watch.mode), (1, RunMode::Signal(Signal::HUP)));
        assert_eq!(watch.command, ["x", "--prefix"]);
        let Command::Watch(watch) = parsed(&["watch", "a/", "--prefix"]).unwrap().command else { unreachable!() };
        assert_eq!((watch.keys.len(), &watch.prefixes), (1, &vec![Verbatim(Vec::new())]));
    }

    #[test]
    fn negative_numbers_are_values() {
        assert!(matches!(parsed(&["incr", "k", "-5"]).unwrap().command, Command::Incr(Incr { by: -5, .. })));
        let Command::Put(put) = parsed(&["put", "k", "-1"]).unwrap().command else { unreachable!() };
        assert_eq!(put.value, Some(Verbatim(b"-1".to_vec())));
    }
}

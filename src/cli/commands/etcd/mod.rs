//! `import --from-etcd`: copies a running etcd, then follows its changes until it is told to cut over.
//!
//! One pass is a copy at one revision and the changes from there on. Whenever that cannot go on without a
//! gap (the etcd has compacted what comes next; a lease here has ended that lives there) another pass
//! begins, which also deletes here what is not there. Invariants: what is written is what was read, so
//! everything may be done again; it is never said to be synced before every change up to that revision is here.

mod accounts;
mod copy;
mod follow;
mod leases;
mod source;

use super::watch::{Signals, Stop};
use crate::cli::args::Import;
use crate::cli::exit::{self, CliError};
use crate::cli::output::Mode;
use crate::cli::session::{Session, note};
use crate::client::etcd::{About, Etcd, EtcdError, Login};
use crate::env::{Clock, SystemClock};
use accounts::Accounts;
use leases::Leases;
use serde_json::json;
use std::time::Duration;

/// How long an end that does not answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Of passes that break off; more often than that it would not end by itself.
const PASSES_MAX: u32 = 20;

pub(in crate::cli) async fn import(session: &mut Session, urls: &[String], args: &Import) -> Result<(), CliError> {
    session.no_curl("import --from-etcd")?;
    let mode = session.mode.among(&[Mode::Human, Mode::Json, Mode::Ndjson])?;
    let (endpoints, login) = source::named(urls, args)?;
    let (source, about) = Etcd::connect(endpoints, login.clone()).await.map_err(of_source)?;
    let shown = Login::Shown(session.client.credentials().clone());
    let (target, here) = Etcd::connect(session.client.endpoints().to_vec(), shown).await.map_err(of_target)?;
    if about.cluster_id == here.cluster_id {
        return Err(CliError::Usage("--from-etcd names the cluster that is to be imported into".to_owned()));
    }
    let (there, revision) = source.count().await.map_err(of_source)?;
    let (already, _) = target.count().await.map_err(of_target)?;
    if already > 0 && !args.replace {
        return Err(CliError::Failed {
            message: format!("there are {already} keys here already"),
            hint: Some("import into an empty cluster, or say --replace: what the etcd has not is deleted".to_owned()),
            code: exit::CONDITION_FAILED,
        });
    }
    note(&format!("etcd {} has {there} keys at revision {revision}", about.version));
    let mut signals = Signals::listen()?;
    let mut run = Run {
        leases: Leases::default(),
        accounts: Accounts::new(args.without_users, login, source.is_logged_in()),
        clock: SystemClock::new(),
        source,
        target,
        about,
        until_synced: args.until_synced,
        sweep: already > 0,
        copied: 0,
        changes: 0,
    };
    let ended = run.passes(&mut signals).await?;
    let text = format!(
        "cut over at revision {} of the etcd: {} keys copied, {} changes followed, {} leases; revision {} here",
        ended.source_revision,
        run.copied,
        run.changes,
        run.leases.len(),
        ended.revision
    );
    if mode == Mode::Human {
        session.out.line(text)?;
        return run.accounts.tell(&mut session.out);
    }
    let told = json!({"copied": run.copied, "changes": run.changes, "leases": run.leases.len(),
        "source_revision": ended.source_revision, "revision": ended.revision,
        "users": run.accounts.told.users, "roles": run.accounts.told.roles});
    session.out.line(told.to_string())
}

/// How far a finished import came.
struct Ended {
    source_revision: i64,
    revision: i64,
}

/// Why a pass did not go on.
#[derive(Debug)]
enum Halt {
    /// Another pass mends it.
    Again(String),
    Failed(CliError),
}

impl From<CliError> for Halt {
    fn from(error: CliError) -> Self {
        Self::Failed(error)
    }
}

#[derive(Debug)]
struct Run {
    source: Etcd,
    target: Etcd,
    about: About,
    leases: Leases,
    accounts: Accounts,
    clock: SystemClock,
    until_synced: bool,
    /// There may be keys here that the source does not have.
    sweep: bool,
    copied: u64,
    changes: u64,
}

impl Run {
    async fn passes(&mut self, signals: &mut Signals) -> Result<Ended, CliError> {
        for _ in 0..PASSES_MAX {
            let copied = tokio::select! {
                copied = self.copy() => copied,
                stop = signals.stop() => return Err(stopped(stop)),
            };
            let outcome = match copied {
                Ok(revision) => self.follow(revision, signals).await,
                Err(halt) => Err(halt),
            };
            match outcome {
                Ok(ended) => return Ok(ended),
                Err(Halt::Failed(error)) => return Err(error),
                Err(Halt::Again(why)) => {
                    note(&format!("{why}: copying again"));
                    self.sweep = true;
                    self.leases = Leases::default();
                }
            }
        }
        Err(CliError::Failed {
            message: format!("the copy broke off {PASSES_MAX} times"),
            hint: Some("have the etcd keep more of its history (--auto-compaction-retention) meanwhile".to_owned()),
            code: exit::COMPACTED,
        })
    }
}

fn stopped(stop: Stop) -> CliError {
    note("stopped before everything was copied: what is here is a part, and stays");
    stop.exit()
}

fn of_source(error: EtcdError) -> CliError {
    told(error, "--from-etcd names a client URL of the etcd, such as http://10.0.0.1:2379")
}

fn of_target(error: EtcdError) -> CliError {
    told(error, "--endpoints names the cluster to import into; `tenure serve` starts one")
}

fn told(error: EtcdError, where_to: &str) -> CliError {
    let (code, hint) = match &error {
        EtcdError::Usage(text) => return CliError::Usage(text.clone()),
        EtcdError::Unavailable { .. } => (exit::UNAVAILABLE, Some(where_to)),
        EtcdError::NotEtcd { .. } => (exit::OTHER, Some(where_to)),
        EtcdError::Compacted { .. } => (exit::COMPACTED, None),
        EtcdError::Denied { .. } | EtcdError::LoggedOut { .. } => {
            (exit::DENIED, Some("--etcd-user says who reads there, --user who writes here; it takes the role root"))
        }
        EtcdError::LeaseNotFound { .. } => (exit::NOT_FOUND, None),
        EtcdError::Refused { .. } => (exit::OTHER, None),
    };
    CliError::Failed { message: error.to_string(), hint: hint.map(str::to_owned), code }
}

/// Asks an end until it answers, for a minute; each of its endpoints in turn.
macro_rules! patiently {
    ($clock:expr, $etcd:expr, $told:expr, $call:expr) => {{
        let mut patience = $crate::cli::commands::etcd::Patience::new(&$clock);
        loop {
            let answer = $call.await;
            match answer {
                Err(error) if patience.allows(&$clock, &error) => {
                    patience.pause().await;
                    $etcd.look_elsewhere().await;
                }
                Err($crate::client::etcd::EtcdError::Unavailable { endpoint, message }) => {
                    let lost = $crate::client::etcd::EtcdError::Unavailable { endpoint, message };
                    break Err($crate::cli::commands::etcd::Halt::Failed($told(lost)));
                }
                other => break Ok(other),
            }
        }
    }};
}
use patiently;

#[derive(Debug)]
struct Patience {
    began: Duration,
    pause: Duration,
}

impl Patience {
    fn new(clock: &SystemClock) -> Self {
        Self { began: clock.monotonic(), pause: PAUSE_FIRST }
    }

    fn allows(&self, clock: &SystemClock, error: &EtcdError) -> bool {
        error.may_pass() && clock.monotonic().saturating_sub(self.began) < PATIENCE
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

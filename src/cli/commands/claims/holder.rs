//! Having a claim, and keeping it while a command runs.
//!
//! Invariants: what counts is this process's own clock: a claim is safe until its TTL after the *sending*
//! of the last renewal that was answered. A command whose claim is in danger gets SIGTERM a grace before
//! that moment and SIGKILL before it, so it has ended before another can hold; what a process that was
//! itself stopped still writes is for fences to refuse. While it waits, a claim keeps its place in the
//! queue whichever member is asked.

use super::super::super::claim_args::HoldArgs;
use super::super::super::exit::CliError;
use super::super::super::output::Mode;
use super::super::super::session::{Session, duration_text, note};
use super::child::{self, Running, Signals, number, typed};
use super::on_name;
use crate::client::{Client, Error, Kind as Failed, Method, Request};
use crate::env::{Clock, SystemClock};
use rustix::process::Signal;
use serde::Deserialize;
use std::ffi::OsString;
use std::time::Duration;

/// The wrapper failed, or the claim was lost.
const WRAPPER_FAILED: u8 = 125;
/// One request waits at most this long; the place in the queue is kept between them.
const WAIT_STEP: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(5);
/// Before the moment at which another may hold, for the killing itself.
const MARGIN: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Lock,
    Semaphore,
    Election,
}

impl Kind {
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Lock => "locks",
            Self::Semaphore => "semaphores",
            Self::Election => "elections",
        }
    }

    fn singular(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Semaphore => "semaphore",
            Self::Election => "election",
        }
    }

    /// Before the name in a `Tenure-Fence`, and the variable that tells the command the name.
    fn of_command(self) -> (&'static str, &'static str) {
        match self {
            Self::Lock => ("", "TENURE_LOCK_NAME"),
            Self::Semaphore => ("sem:", "TENURE_SEMAPHORE_NAME"),
            Self::Election => ("election:", "TENURE_ELECTION_NAME"),
        }
    }
}

/// What to ask for besides the name and the TTL; `again` once it is lost.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) kind: Kind,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) again: bool,
}

struct Plan {
    asking: Asking,
    name: String,
    ttl: Duration,
    grace: Duration,
    wait: Option<Duration>,
    only_try: bool,
    owner: String,
    conflict: u8,
    words: Vec<OsString>,
    clock: SystemClock,
}

#[derive(Debug, Clone, Deserialize)]
struct Claim {
    state: String,
    token: i64,
    lease: String,
    ttl_ms: u64,
}

/// A claim and until when it is surely ours.
struct Held<'c> {
    client: &'c Client,
    claim: Claim,
    /// When the last answered renewal was sent, on this process's clock.
    renewed: Duration,
    next: Duration,
}

enum Ended {
    Code(u8),
    Lost,
}

impl Plan {
    fn of(asking: Asking, args: HoldArgs) -> Result<Self, CliError> {
        let grace = args.grace.unwrap_or_else(|| GRACE.min(args.ttl / 3));
        if grace > args.ttl / 2 {
            return Err(CliError::Usage("--grace is at most half of --ttl".to_owned()));
        }
        Ok(Self {
            asking,
            name: args.name.unwrap_or_default(),
            ttl: args.ttl,
            grace,
            wait: args.wait,
            only_try: args.once_only,
            owner: args.owner.unwrap_or_else(default_owner),
            conflict: args.conflict_exit_code,
            words: args.command_line,
            clock: SystemClock::new(),
        })
    }

    fn what(&self) -> String {
        format!("{} '{}'", self.asking.kind.singular(), self.name)
    }

    fn request(&self) -> Request {
        let request = on_name(Method::Post, self.asking.kind, &self.name, "")
            .with("ttl", duration_text(self.ttl))
            .with("owner", &self.owner)
            .flag("enqueue", !self.only_try);
        self.asking.query.iter().fold(request, |request, (name, value)| request.with(name, value))
    }

    fn on_claim(&self, method: Method, claim: &Claim) -> Request {
        on_name(method, self.asking.kind, &self.name, &format!("/claims/{}", claim.lease))
    }

    async fn sleep_until(&self, at: Duration) {
        tokio::time::sleep(at.saturating_sub(self.clock.monotonic())).await;
    }
}

fn default_owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    format!("{host}:{}", std::process::id())
}

pub(super) async fn hold(session: &mut Session, asking: Asking, args: HoldArgs) -> Result<(), CliError> {
    let plan = Plan::of(asking, args)?;
    session.mode.among(super::MODES)?;
    if session.prints_curl(&plan.request())? {
        return Ok(());
    }
    let wraps = !plan.words.is_empty();
    let outcome = had_and_held(session, &plan).await;
    match outcome {
        // A wrapper's own failures must not look like its command's.
        Err(CliError::Client(error)) if wraps => {
            Err(CliError::Failed { message: error.to_string(), hint: None, code: WRAPPER_FAILED })
        }
        outcome => outcome,
    }
}

async fn had_and_held(session: &mut Session, plan: &Plan) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    loop {
        let mut held = acquire(&session.client, plan, &mut signals).await?;
        let ended = if plan.words.is_empty() {
            tell(&mut session.out, session.mode, plan, &held.claim)?;
            idle(plan, &mut held, &mut signals).await
        } else {
            run(plan, &mut held, &mut signals).await
        };
        match ended {
            Ok(Ended::Lost) if plan.asking.again => note(&format!("{} was lost; standing again", plan.what())),
            Ok(Ended::Lost) => {
                let message = format!("{} was lost", plan.what());
                return Err(CliError::Failed { message, hint: None, code: WRAPPER_FAILED });
            }
            Ok(Ended::Code(code)) => {
                release(plan, &held).await;
                return if code == 0 { Ok(()) } else { Err(CliError::Told(code)) };
            }
            Err(error) => {
                release(plan, &held).await;
                return Err(error);
            }
        }
    }
}

fn tell(out: &mut super::super::super::output::Out, mode: Mode, plan: &Plan, claim: &Claim) -> Result<(), CliError> {
    let document = serde_json::json!({"name": plan.name, "token": claim.token, "lease": claim.lease});
    match mode {
        Mode::Json | Mode::Ndjson => out.json_line(&document)?,
        Mode::Value => out.line(claim.token.to_string())?,
        _ => out.line(format!("{} is held, token {}, lease {}", plan.what(), claim.token, claim.lease))?,
    }
    out.flush()
}

/// Queues, and waits for the turn.
async fn acquire<'c>(client: &'c Client, plan: &Plan, signals: &mut Signals) -> Result<Held<'c>, CliError> {
    let began = plan.clock.monotonic();
    let claim: Claim = match client.send(&plan.request()).await {
        Ok(answer) => answer.json()?,
        Err(error) if error.problem().is_some_and(|problem| is_held(&problem.code)) => {
            return Err(CliError::Failed { message: error.to_string(), hint: None, code: plan.conflict });
        }
        Err(error) => return Err(error.into()),
    };
    let mut held = Held { client, renewed: began, next: began + plan.ttl / 3, claim };
    let until = plan.wait.map(|wait| began + wait);
    while held.claim.state != "held" {
        let left = until.map_or(WAIT_STEP, |until| until.saturating_sub(plan.clock.monotonic()));
        if left.is_zero() {
            release(plan, &held).await;
            let message = format!("{} was not had within {:?}", plan.what(), plan.wait.unwrap_or_default());
            return Err(CliError::Failed { message, hint: None, code: plan.conflict });
        }
        let step = left.min(WAIT_STEP);
        let request = plan.on_claim(Method::Get, &held.claim).with("wait", duration_text(step)).waiting(step);
        let answer = tokio::select! {
            answer = held.while_waiting(plan, client.send(&request)) => answer,
            signal = signals.next() => {
                release(plan, &held).await;
                return Err(CliError::Told(128 + number(signal)));
            }
        };
        match answer {
            Ok(answer) => held.claim = answer.json()?,
            // The queue survives a member; only the TTL bounds how long nobody may answer.
            Err(error) if error.kind() == Failed::Unavailable && !held.is_over(plan) => {
                tokio::time::sleep(plan.ttl / 10).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    // It may be long since the last renewal, and a command needs time.
    held.renew(plan).await?;
    Ok(held)
}

fn is_held(code: &str) -> bool {
    code == "lock-held" || code == "leader-exists"
}

impl Held<'_> {
    fn safe_until(&self, plan: &Plan) -> Duration {
        self.renewed + Duration::from_millis(self.claim.ttl_ms).min(plan.ttl)
    }

    fn is_over(&self, plan: &Plan) -> bool {
        plan.clock.monotonic() >= self.safe_until(plan)
    }

    /// Asks for the whole TTL once more.
    async fn renew(&mut self, plan: &Plan) -> Result<(), Error> {
        let sent = plan.clock.monotonic();
        let request = Request::new(Method::Post, format!("/v1/leases/{}/keepalive", self.claim.lease));
        let renewal = tokio::time::timeout(plan.ttl / 3, self.client.send(&request)).await;
        self.next = plan.clock.monotonic() + plan.ttl / 10;
        match renewal {
            Ok(Ok(_)) => {
                self.renewed = sent;
                self.next = sent + plan.ttl / 3;
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::NoAnswer { endpoint: String::new(), message: "a renewal timed out".to_owned() }),
        }
    }

    /// Ends when the claim is refused a renewal: it is lost. May be dropped and called again.
    async fn lost(&mut self, plan: &Plan) {
        loop {
            plan.sleep_until(self.next).await;
            if let Err(error) = self.renew(plan).await
                && error.kind() == Failed::NotFound
            {
                return;
            }
        }
    }

    /// A wait during which the lease is kept alive.
    async fn while_waiting<T>(
        &mut self,
        plan: &Plan,
        wait: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            answer = wait => answer,
            () = self.lost(plan) => {
                Err(Error::Usage(format!("the lease of {} ended while it waited", plan.what())))
            }
        }
    }
}

/// Holds until a signal.
async fn idle(plan: &Plan, held: &mut Held<'_>, signals: &mut Signals) -> Result<Ended, CliError> {
    loop {
        let danger = held.safe_until(plan);
        tokio::select! {
            signal = signals.next() => return Ok(Ended::Code(128 + number(signal))),
            () = held.lost(plan) => return Ok(Ended::Lost),
            () = plan.sleep_until(danger) => {}
        }
        if held.is_over(plan) {
            return Ok(Ended::Lost);
        }
    }
}

/// Runs the command; stops it before another can hold.
async fn run(plan: &Plan, held: &mut Held<'_>, signals: &mut Signals) -> Result<Ended, CliError> {
    let (prefix, name) = plan.asking.kind.of_command();
    let claim = &held.claim;
    let environment = [
        (name, plan.name.clone()),
        ("TENURE_FENCING_TOKEN", claim.token.to_string()),
        ("TENURE_LEASE", claim.lease.clone()),
        ("TENURE_FENCE", format!("{prefix}{}={}", crate::client::encode_component(plan.name.as_bytes()), claim.token)),
    ];
    let mut command = child::start(&plan.words, &environment)?;
    loop {
        // The clock moves on with each renewal, so this is looked at again after it.
        let danger = held.safe_until(plan).saturating_sub(plan.grace);
        tokio::select! {
            code = command.ended() => return code.map(Ended::Code),
            signal = signals.next() => if !typed(signal) {
                command.signal(signal);
            },
            () = held.lost(plan) => {
                stop(plan, &mut command, plan.clock.monotonic() + plan.grace).await?;
                return Ok(Ended::Lost);
            }
            () = plan.sleep_until(danger) => {
                let safe_until = held.safe_until(plan);
                if plan.clock.monotonic() + plan.grace >= safe_until {
                    stop(plan, &mut command, safe_until.saturating_sub(MARGIN)).await?;
                    return Ok(Ended::Lost);
                }
            }
        }
    }
}

async fn stop(plan: &Plan, command: &mut Running, kill_at: Duration) -> Result<(), CliError> {
    note(&format!("{} is lost or in danger: stopping the command", plan.what()));
    command.signal(Signal::TERM);
    // One that is stopped must get it, too.
    command.signal(Signal::CONT);
    tokio::select! {
        code = command.ended() => return code.map(|_| ()),
        () = plan.sleep_until(kill_at) => command.signal(Signal::KILL),
    }
    command.ended().await.map(|_| ())
}

/// Gives the claim up; if nobody can be told, its TTL ends it.
async fn release(plan: &Plan, held: &Held<'_>) {
    let request = plan.on_claim(Method::Delete, &held.claim);
    match tokio::time::timeout(plan.ttl, held.client.send(&request)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.kind() == Failed::NotFound => {}
        Ok(Err(error)) => note(&format!("{} could not be given up, it ends with its TTL: {error}", plan.what())),
        Err(_) => note(&format!("{} could not be given up, it ends with its TTL", plan.what())),
    }
}

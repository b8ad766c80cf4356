//! `bench`: a closed loop of clients against running members, or many watch streams (`watch`), or coordination (`lock`,
//! `lease`, `replay`), with the server's own cost: through REST, or through etcd's doors, of a member or of an etcd.
//!
//! The load generator shares the machine with the server more often than not, so it must cost little:
//! one task per client with one request at a time, on one thread unless told otherwise. Over HTTP/1.1 it
//! has its own exchange, and no allocation per request; over gRPC many clients share a connection, so
//! that frames travel together. It reports its own processor time too.

mod coordinate;
mod cost;
mod door;
mod grpc;
mod keys;
mod load;
mod report;
mod request;
mod watch;
mod wire;

use super::args::{BenchCommand, BenchLoad, BenchLoop};
use super::exit::CliError;
use super::output::Mode;
use super::session::Session;
use crate::env::{Entropy as _, SystemEntropy};
use door::Reach;
use load::{Mix, Phase, Plan, Until};
use report::Report;
use std::time::Duration;

const WARM_UP_DEFAULT: Duration = Duration::from_secs(1);
/// Keys in one request while the key space is filled.
const FILL_TXN_KEYS: u64 = 128;

pub(super) fn run(command: &BenchCommand, mut session: Session) -> Result<(), CliError> {
    session.no_curl("bench")?;
    session.mode.among(&[Mode::Human, Mode::Json, Mode::Ndjson])?;
    let threads = match command {
        BenchCommand::Loop(command) => options(command).threads,
        BenchCommand::Watch(args) => args.threads,
        BenchCommand::Lock(_) | BenchCommand::Lease(_) | BenchCommand::Replay(_) => 1,
    };
    let threads = usize::try_from(threads).unwrap_or(1);
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        _ => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    let runtime = runtime.map_err(|error| CliError::io("async runtime", &error))?;
    let outcome = match command {
        BenchCommand::Loop(command) => runtime.block_on(Box::pin(measure(command, &mut session))),
        BenchCommand::Watch(args) => runtime.block_on(Box::pin(watch::measure(args, &mut session))),
        BenchCommand::Lock(args) => runtime.block_on(Box::pin(coordinate::lock(args, &mut session))),
        BenchCommand::Lease(args) => runtime.block_on(Box::pin(coordinate::lease(args, &mut session))),
        BenchCommand::Replay(args) => runtime.block_on(Box::pin(coordinate::replay(args, &mut session))),
    };
    session.close(outcome)
}

fn options(command: &BenchLoop) -> &BenchLoad {
    match command {
        BenchLoop::Put(put) => &put.load,
        BenchLoop::Get(get) => &get.load,
        BenchLoop::Mixed(mixed) => &mixed.load,
        BenchLoop::Range(range) => &range.load,
        BenchLoop::Count(count) => &count.load,
    }
}

fn mix(command: &BenchLoop) -> Mix {
    match command {
        BenchLoop::Put(put) => match put.txn {
            Some(keys) => Mix::Txn { keys },
            None => Mix::Put,
        },
        BenchLoop::Get(get) => Mix::Reads { percent: 100, stale: get.read.stale },
        BenchLoop::Mixed(mixed) => Mix::Reads { percent: mixed.reads, stale: mixed.read.stale },
        BenchLoop::Range(range) => Mix::Range { keys: range.limit, stale: range.read.stale },
        BenchLoop::Count(count) => Mix::Count { stale: count.read.stale },
    }
}

async fn measure(command: &BenchLoop, session: &mut Session) -> Result<(), CliError> {
    let load = options(command);
    let mix = mix(command);
    if let Mix::Range { keys, .. } = mix
        && keys >= load.key_space
    {
        let problem = format!("--limit {keys} takes more keys than that: --key-space is {}", load.key_space);
        return Err(CliError::Usage(problem));
    }
    let plan = Plan::new(load, &session.client, load.seed.unwrap_or_else(|| SystemEntropy.next_u64()))?;
    let needs_keys = match command {
        BenchLoop::Put(_) => false,
        BenchLoop::Get(get) | BenchLoop::Count(get) => !get.read.no_fill,
        BenchLoop::Mixed(mixed) => !mixed.read.no_fill,
        BenchLoop::Range(range) => !range.read.no_fill,
    };
    if needs_keys {
        plan.run(&Phase::fill(load.key_space, FILL_TXN_KEYS), "filling")
            .await?
            .expect_clean("filling the key space")?;
    }
    let warm_up = load.warm_up.unwrap_or(if load.count.is_some() { Duration::ZERO } else { WARM_UP_DEFAULT });
    if !warm_up.is_zero() {
        plan.run(&Phase { mix, until: Until::Elapsed(warm_up), rate: load.rate, order: load.keys }, "warming up")
            .await?;
    }
    let until = load.count.map_or(Until::Elapsed(load.duration), Until::Count);
    let before = cost::sample(&session.client).await;
    let tally = plan.run(&Phase { mix, until, rate: load.rate, order: load.keys }, "measuring").await?;
    let after = cost::sample(&session.client).await;
    let reach = Reach::of(load, session.client.endpoints().len());
    let report = Report::new(command, reach, &tally, [&before, &after]);
    match session.mode {
        Mode::Human => report.table(&mut session.out)?,
        _ => session.out.json(&report)?,
    }
    // Numbers of a run that mostly failed are no numbers.
    tally.expect_some()
}

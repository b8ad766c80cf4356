//! `bench lock`, `lease` and `replay` through etcd's gRPC: the same runs as over REST, of a member or of an etcd.

use super::coordinate::{REPLAY_KEYS, Tally, lost};
use super::cost;
use super::door;
use crate::cli::args::{BenchLease, BenchLock, BenchReplay};
use crate::cli::exit::{CliError, UNAVAILABLE};
use crate::cli::session::Session;
use crate::client::etcd::{Etcd, EtcdError, Renewals, Span, range_end};
use crate::env::{Clock as _, Entropy as _, SystemEntropy};
use crate::model::KeyRange;
use bytes::Bytes;
use futures_util::future::try_join_all;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const LEASE_TTL_S: i64 = 600;

fn failed(error: &EtcdError) -> CliError {
    CliError::Failed { message: error.to_string(), hint: None, code: UNAVAILABLE }
}

async fn dial(session: &Session, count: u64) -> Result<Vec<Etcd>, CliError> {
    let (endpoints, credentials) = (session.client.endpoints(), session.client.credentials());
    door::dial(endpoints, credentials, count).await.map_err(|message| lost(&std::io::Error::other(message)))
}

/// The first of so many ids that nobody else has.
fn first_lease() -> i64 {
    i64::try_from(SystemEntropy.next_u64() >> 2).unwrap_or(1)
}

fn at(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) async fn lock(args: &BenchLock, session: &mut Session) -> Result<(), CliError> {
    let tally = Tally::new()?;
    let released_us = AtomicU64::new(0);
    let first = first_lease();
    let connections = dial(session, args.connections.unwrap_or(args.contenders)).await?;
    let before = cost::sample(&session.client).await;
    let began = tally.clock.monotonic();
    let contenders = (0..args.contenders).zip(connections.iter().cycle()).map(|(contender, etcd)| {
        let (tally, released_us, lease) = (&tally, &released_us, first + at(contender));
        let name = Bytes::copy_from_slice(args.name.as_bytes());
        async move {
            etcd.grant(lease, LEASE_TTL_S).await?;
            while tally.clock.monotonic().saturating_sub(began) < args.duration {
                let held = etcd.lock(name.clone(), lease).await?;
                // Nobody else holds: what is read was written by the holder before.
                let released = released_us.load(Ordering::SeqCst);
                if released > 0 {
                    tally.note(tally.now_us().saturating_sub(released));
                }
                released_us.store(tally.now_us(), Ordering::SeqCst);
                etcd.unlock(held).await?;
            }
            etcd.revoke(lease).await
        }
    });
    try_join_all(contenders).await.map_err(|error| failed(&error))?;
    let took = tally.clock.monotonic().saturating_sub(began);
    let after = cost::sample(&session.client).await;
    tally.report("lock hand-over", took, [&before, &after]).tell(session)
}

pub(super) async fn keep_alive(args: &BenchLease, session: &mut Session) -> Result<(), CliError> {
    let tally = Tally::new()?;
    let first = first_lease();
    let each = args.leases.div_ceil(args.connections);
    let of = |connection: u64| (connection * each..(connection + 1) * each).map(move |lease| first + at(lease));
    let connections = dial(session, args.connections).await?;
    let granted = connections.iter().zip(0..).map(|(etcd, connection)| async move {
        for lease in of(connection) {
            etcd.grant(lease, LEASE_TTL_S).await?;
        }
        etcd.renewals(of(connection).next().unwrap_or(first)).await
    });
    let mut streams: Vec<Renewals> = try_join_all(granted).await.map_err(|error| failed(&error))?;
    let before = cost::sample(&session.client).await;
    let began = tally.clock.monotonic();
    let counted = &tally;
    let renewals = streams.iter_mut().zip(0..).map(|(stream, connection)| async move {
        for lease in of(connection).cycle() {
            let sent = counted.now_us();
            if Duration::from_micros(sent).saturating_sub(began) >= args.duration {
                break;
            }
            stream.renew(lease).await?;
            counted.note(counted.now_us().saturating_sub(sent));
        }
        Ok::<_, EtcdError>(())
    });
    try_join_all(renewals).await.map_err(|error| failed(&error))?;
    let took = tally.clock.monotonic().saturating_sub(began);
    let after = cost::sample(&session.client).await;
    let revoked = connections.iter().zip(0..).map(|(etcd, connection)| async move {
        for lease in of(connection) {
            etcd.revoke(lease).await?;
        }
        Ok::<_, EtcdError>(())
    });
    try_join_all(revoked).await.map_err(|error| failed(&error))?;
    tally.report("keep-alive", took, [&before, &after]).tell(session)
}

pub(super) async fn replay(args: &BenchReplay, session: &mut Session) -> Result<(), CliError> {
    let tally = Tally::new()?;
    let value = Bytes::from("x".repeat(usize::try_from(args.value_size).unwrap_or(0)));
    let prefix = format!("bench-replay/{:x}/", SystemEntropy.next_u64());
    let endpoints = session.client.endpoints().len();
    let connections = dial(session, door::connections(None, endpoints).min(args.connections)).await?;
    let span = Span { key: Bytes::from(prefix.clone()), ..Span::default() };
    let stood = connections[0].read(span).await.map_err(|error| failed(&error))?.revision;
    let next = AtomicU64::new(0);
    let writers = (0..args.connections).zip(connections.iter().cycle()).map(|(_, etcd)| {
        let (next, prefix, value) = (&next, &prefix, &value);
        async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= args.revisions {
                    return Ok::<_, EtcdError>(());
                }
                etcd.put(format!("{prefix}{}", number % REPLAY_KEYS).into(), value.clone()).await?;
            }
        }
    });
    try_join_all(writers).await.map_err(|error| failed(&error))?;
    let before = cost::sample(&session.client).await;
    let began = tally.clock.monotonic();
    let KeyRange { start, end } = KeyRange::prefix(prefix);
    let watched = connections[0].watch_range((start, range_end(end)), stood + 1).await;
    let mut watched = watched.map_err(|error| failed(&error))?;
    let mut seen = 0;
    while seen < args.revisions {
        let events = watched.next().await.map_err(|error| failed(&error))?;
        seen += u64::try_from(events.len()).unwrap_or(0);
    }
    let took = tally.clock.monotonic().saturating_sub(began);
    tally.note(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    tally.operations.store(args.revisions, Ordering::Relaxed);
    let after = cost::sample(&session.client).await;
    tally.report("replayed event", took, [&before, &after]).tell(session)
}

//! What a load goes through: REST or etcd's JSON gateway, where each client has an HTTP/1.1 connection of its
//! own; or etcd's gRPC, where clients share a few HTTP/2 connections, as in etcd's own `benchmark`.

use super::keys::Keyspace;
use super::request::Requests;
use super::wire::Wire;
use crate::cli::args::BenchLoad;
use crate::client::etcd::{Etcd, EtcdError, Login, Span, Write, range_end};
use crate::client::{Credentials, Endpoint};
use crate::model::KeyRange;
use bytes::Bytes;
use futures_util::future::try_join_all;
use std::sync::Arc;

/// Clients, if nothing else is said.
const CLIENTS: u64 = 64;
/// HTTP/2 connections to each endpoint, if nothing else is said.
const CONNECTIONS_EACH: u64 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Rest,
    Gateway,
    Grpc,
}

/// The door of a load, and how wide it is open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    pub(super) door: Door,
    pub(super) connections: u64,
    /// Each with one request at a time.
    pub(super) clients: u64,
}

/// Why there was no good answer.
#[derive(Debug)]
pub(super) struct Missed {
    pub(super) why: String,
    /// With its connection.
    pub(super) lost: bool,
}

impl From<EtcdError> for Missed {
    fn from(error: EtcdError) -> Self {
        Self { lost: matches!(error, EtcdError::Unavailable { .. }), why: error.to_string() }
    }
}

/// One operation, by the numbers of its keys.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask<'a> {
    Get {
        key: u64,
        stale: bool,
    },
    Put {
        key: u64,
    },
    /// One transaction that puts all of these.
    Txn {
        keys: &'a [u64],
    },
    /// So many keys from this one on.
    Range {
        from: u64,
        limit: u64,
        stale: bool,
    },
    /// All keys of the key space.
    Count {
        stale: bool,
    },
}

impl Reach {
    pub(super) fn of(load: &BenchLoad, endpoints: usize) -> Self {
        let door = match (load.grpc, load.etcd) {
            (true, _) => Door::Grpc,
            (_, true) => Door::Gateway,
            _ => Door::Rest,
        };
        if door != Door::Grpc {
            let clients = load.connections.unwrap_or(CLIENTS);
            return Self { door, connections: clients, clients };
        }
        let clients = load.clients.unwrap_or(CLIENTS);
        Self { door, connections: connections(load.connections, endpoints).min(clients), clients }
    }
}

/// HTTP/2 connections, a few to each endpoint.
pub(super) fn connections(asked: Option<u64>, endpoints: usize) -> u64 {
    asked.unwrap_or_else(|| CONNECTIONS_EACH * u64::try_from(endpoints).unwrap_or(1))
}

impl Door {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Gateway => "etcd-json",
            Self::Grpc => "etcd-grpc",
        }
    }
}

/// Connections that are dealt to the endpoints in turn.
pub(super) async fn dial(endpoints: &[Endpoint], credentials: &Credentials, count: u64) -> Result<Vec<Etcd>, String> {
    let shown = || Login::Shown(credentials.clone());
    let dialled =
        (0..count).zip(endpoints.iter().cycle()).map(|(_, endpoint)| Etcd::connect(vec![endpoint.clone()], shown()));
    let dialled = try_join_all(dialled).await.map_err(|error| error.to_string())?;
    Ok(dialled.into_iter().map(|(etcd, _)| etcd).collect())
}

/// What one client speaks through.
pub(super) enum Link {
    Http { endpoint: Endpoint, requests: Box<Requests>, request: Vec<u8>, wire: Option<Wire> },
    Grpc { etcd: Box<Etcd>, keys: Arc<Keyspace>, value: Bytes },
}

impl Link {
    pub(super) fn http(endpoint: Endpoint, requests: Requests, wire: Option<Wire>) -> Self {
        Self::Http { endpoint, requests: Box::new(requests), request: Vec::with_capacity(64 << 10), wire }
    }

    /// Sends one request and reads its whole answer. After a connection was lost the next one has another.
    pub(super) async fn exchange(&mut self, ask: Ask<'_>) -> Result<(), Missed> {
        match self {
            Self::Http { endpoint, requests, request, wire } => {
                requests.write(request, ask);
                let outcome = exchange(endpoint, request, wire).await;
                if outcome.is_err() {
                    *wire = None;
                }
                match outcome {
                    Ok(200..=299) => Ok(()),
                    Ok(status) => Err(Missed { why: format!("status {status}"), lost: false }),
                    Err(error) => Err(Missed { why: error.to_string(), lost: true }),
                }
            }
            Self::Grpc { etcd, keys, value } => call(etcd, keys, value, ask).await,
        }
    }
}

async fn exchange(endpoint: &Endpoint, request: &[u8], wire: &mut Option<Wire>) -> std::io::Result<u16> {
    let connection = match wire {
        Some(connection) => connection,
        None => wire.insert(Wire::open(endpoint).await?),
    };
    let (status, reusable) = connection.exchange(request).await?;
    if !reusable {
        *wire = None;
    }
    Ok(status)
}

async fn call(etcd: &Etcd, keys: &Keyspace, value: &Bytes, ask: Ask<'_>) -> Result<(), Missed> {
    let (span, wanted) = match ask {
        Ask::Put { key } => {
            return Ok(etcd.put(keys.bytes(key), value.clone()).await?);
        }
        Ask::Txn { keys: numbers } => {
            let put = |number: &u64| Write::Put { key: keys.bytes(*number), value: value.clone(), lease: 0 };
            etcd.write(numbers.iter().map(put).collect()).await?;
            return Ok(());
        }
        Ask::Get { key, stale } => (Span { key: keys.bytes(key), serializable: stale, ..Span::default() }, 1),
        Ask::Range { from, limit, stale } => {
            let (key, end) = (keys.bytes(from), keys.bytes(from + limit));
            (Span { key, end, serializable: stale, ..Span::default() }, limit)
        }
        Ask::Count { stale } => {
            let KeyRange { start, end } = keys.range();
            (Span { key: start, end: range_end(end), serializable: stale, count_only: true, ..Span::default() }, 0)
        }
    };
    let found = etcd.read(span).await?;
    // What answers with too little would look fast.
    if found.count < wanted || usize::try_from(wanted).is_ok_and(|wanted| found.kvs < wanted) {
        return Err(Missed { why: format!("{} keys instead of {wanted}", found.kvs), lost: false });
    }
    Ok(())
}

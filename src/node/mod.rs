//! The composition root (rank 6): the checked configuration, the wiring of one member, and the order
//! of its start and its end. Everything below is handed its `Options`; only this module knows all of
//! them. It must not know the command line.
//!
//! Start: lock and identity, log, snapshots, consensus (which restores the machine), then the port is
//! opened. End: the port closes and open requests get time, waits and streams end, leadership is handed
//! over, the log closes.

mod addresses;
pub mod config;
mod disk_watch;
mod fatal;
mod forming;
pub mod identity;
mod peer_port;
mod reception;
pub mod recover;
pub mod reload;
pub mod restore;
mod stores;

use crate::api;
use crate::env::{Clock, Entropy, SystemClock, SystemEntropy, TaskSet, give_way};
use crate::machine;
use crate::model::{Revision, RevisionEvents, limits};
use crate::net::{Limits, Listener, Security};
use crate::peer::{self, Door, PeerTransport, Settings};
use crate::raft::{Consensus, DiskStall, Options, Parts, Publisher, StartError};
use crate::service::compactor::{self, AutoCompact};
use crate::service::{self, Context, Lessor, Service, auth, lessor};
use crate::telemetry::{self, HttpMetrics, LogControl, Metrics, Registry};
use crate::watch::{Hub, HubOptions};
use addresses::Advertised;
use config::{Checked, Forming};
use forming::{Asker, Formed, form};
use identity::{DataDir, Identity};
use peer_port::PeerPort;
use reception::{Reachable, Reception};
use reload::Reread;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long the log's committed tail may take to apply before start is called a failure.
const RECOVERY: Duration = Duration::from_secs(600);
/// How often the leader compares the quota with its setting.
const QUOTA_LOOK: Duration = Duration::from_millis(500);
/// Of the shutdown's time, what open requests may take of it.
const DRAIN_PERCENT: u32 = 60;

#[derive(Debug, Error)]
pub enum NodeError {
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error("{0}")]
    Log(#[from] crate::storage::wal::WalError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Fault(#[from] crate::model::Fault),
    #[error(
        "the log is empty although this member had begun one: it is lost\nhint: restore the whole data directory, or start from a backup with `tenure snapshot restore`"
    )]
    LogLost,
    #[error(
        "this member was removed from its cluster\nhint: to bring this host back, give it an empty --data-dir and start it with --join"
    )]
    Removed,
    #[error("what was logged before the start was not applied within {} s", RECOVERY.as_secs())]
    NotRecovered,
    #[error("{context}: {source}{hint}")]
    Io { context: String, source: io::Error, hint: String },
    #[error("{0}")]
    Setting(String),
}

/// Of an address to listen on; `flag` chooses another.
fn io_error(context: String, flag: &'static str) -> impl FnOnce(io::Error) -> NodeError {
    move |source| {
        let in_use = source.kind() == io::ErrorKind::AddrInUse && !flag.is_empty();
        let hint = if in_use {
            format!("\nhint: another process listens there; choose {flag} HOST:PORT")
        } else {
            String::new()
        };
        NodeError::Io { context, source, hint }
    }
}

fn setting(problem: String) -> NodeError {
    NodeError::Setting(problem)
}

/// Runs one member until it is told to stop.
///
/// # Errors
/// If it cannot start. Once it serves, a storage fault ends the process instead.
pub fn run(config: Checked, reread: Reread) -> Result<(), NodeError> {
    let format = match config.log_format {
        config::LogFormat::Auto => telemetry::LogFormat::Auto,
        config::LogFormat::Text => telemetry::LogFormat::Text,
        config::LogFormat::Json => telemetry::LogFormat::Json,
    };
    let logs =
        telemetry::logs::install(format, &config.log_level).map_err(|error| NodeError::Setting(error.to_string()))?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // A core is left to the log's writer and to the kernel: on two cores, one worker takes a fifth to a quarter less
    // processor time for a put than two, which wake each other.
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() - 1).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .thread_name("tenure")
        .build()
        .map_err(io_error("start the runtime".to_owned(), ""))?;
    let result = runtime.block_on(serve(config, reread, logs));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// The hub and the lessor as the apply path sees them.
#[derive(Debug)]
struct Watchers {
    hub: Hub,
    lessor: Arc<Lessor>,
}

impl Publisher for Watchers {
    fn publish(&self, revisions: &[RevisionEvents]) {
        self.hub.publish(revisions);
    }

    fn leases(&self, changes: &[machine::LeaseChange]) {
        self.lessor.note(changes);
    }

    fn reset(&self, revision: Revision) {
        self.hub.reset(revision);
    }
}

async fn serve(config: Checked, reread: Reread, logs: LogControl) -> Result<(), NodeError> {
    // From here on it ends nothing; it is answered once there is something to change.
    let hangup = on_signal(SignalKind::hangup())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let address = config.listen_client;
    // First, because it is the slip that is made most often and nothing has to be undone for it.
    let listener =
        Listener::bind(address).await.map_err(io_error(format!("listen on {address}"), "--listen-client"))?;
    let config = config.bound(listener.address());
    let peer_port = PeerPort::bind(&config).await?;
    let data = Arc::new(DataDir::open(&config.data_dir)?);
    let identity = data.identity(&*entropy)?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let (tasks, history) = (TaskSet::new(), Arc::new(stores::LateHistory::default()));
    let hub = Hub::new(history.clone(), HubOptions::default(), tasks.clone(), metrics.clone());
    let disk = disk_stall(&config, &clock);
    let stores = stores::open(&data, &clock, &metrics, &disk)?;
    let lessor = Arc::new(Lessor::new(clock.clone()));
    let snapshots = stores.snapshots.clone();
    let has_log = stores.recovered.last_index.is_some() || stores.recovered.purged.is_some();
    if identity.bootstrapped && !has_log {
        return Err(NodeError::LogLost);
    }
    let settings = Settings { security: Security::Plain, election_max: config.election_timeout.max };
    let asker = Asker { settings, clock: clock.clone(), entropy: entropy.clone() };
    let at = Reachable {
        name: config.name.clone(),
        peer_url: peer_port.url(&config),
        client_url: config.advertise_client.clone(),
    };
    let adoptable = !matches!(config.forming, Forming::Alone);
    let reception = Reception::new(data.clone(), identity, at, adoptable, tasks.clone());
    let door = Door::new(reception.meeting(), clock.clone());
    let peers = peer_port.serve(door.clone());
    let Formed { identity, members } = form(&config.forming, has_log, &data, &reception, &asker).await?;
    let transport = PeerTransport::new(settings, clock.clone(), entropy.clone());
    let me = peer::Identity {
        cluster_id: identity.cluster_id,
        node_id: identity.node_id,
        incarnation: u128::from(identity.incarnation),
    };
    transport.identify(me);
    let parts = Parts {
        wal: stores.wal,
        recovered: stores.recovered,
        snapshots: stores.snapshots,
        new_store: stores.new_store,
        machine: machine::Options {
            value_cache_bytes: config.value_cache_bytes,
            give_way,
            ..machine::Options::default()
        },
        transport: Arc::new(transport.clone()),
        publisher: Arc::new(Watchers { hub: hub.clone(), lessor: lessor.clone() }),
        clock: clock.clone(),
        metrics: metrics.clone(),
        tasks: tasks.clone(),
        fatal: fatal::handler(),
    };
    let consensus = Consensus::start(raft_options(&config, &identity, disk.clone()), parts).await?;
    peers.must_serve(&consensus)?;
    history.set(consensus.clone());
    tasks.spawn("watch hub", hub.clone().run());
    let founds_alone = members.as_ref().is_some_and(|members| members.len() == 1);
    if let Some(members) = members.filter(|_| !has_log) {
        consensus.bootstrap(members).await?;
    }
    door.open(me, Arc::new(consensus.clone()));
    reception.open(consensus.clone());
    let announced = addresses::announce(consensus.clone(), identity.clone(), Advertised::of(&config), asker);
    tasks.spawn_until_stop("own addresses", announced);
    tasks.spawn_until_stop("identity", note_begun(consensus.clone(), data.clone(), identity.clone(), tasks.clone()));
    // With others, recovery waits for a leader: meanwhile this member already says that it is not ready.
    if (founds_alone || consensus.members().len() == 1) && !consensus.wait_recovered(RECOVERY).await {
        return Err(NodeError::NotRecovered);
    }
    let member =
        service::Member { cluster_id: identity.cluster_id, id: identity.node_id, name: config.name.as_str().into() };
    let service = Service::new(
        service::Parts {
            consensus: consensus.clone(),
            snapshots,
            hub,
            clock: clock.clone(),
            entropy: entropy.clone(),
            lessor: lessor.clone(),
            tasks: tasks.clone(),
            metrics: metrics.clone(),
        },
        service::Options { member, admission_bytes: config.admission_bytes, token_ttl: config.auth_token_ttl },
    );
    let (settings, in_effect) = watch::channel(config.clone());
    let auto_compact = watch::channel(reload::auto_compact(&config)).0;
    background(&in_effect, auto_compact.subscribe(), &service, &tasks);
    tasks.spawn_until_stop("lessor", lessor::run(lessor, consensus.clone(), metrics.clone()));
    let http = HttpMetrics::new(&mut registry, &api::operation_ids());
    register_collectors(&config, &mut registry, &metrics, &service);
    let shown = watch::channel(reload::shown(&config)).0;
    let options = api::Options {
        listen: listener.address(),
        cors_origins: config.cors_origin.clone(),
        request_bytes_max: config.max_request_bytes,
        etcd: api::EtcdOptions {
            progress_every: config.watch_progress_notify_interval,
            leader_patience: config.election_timeout.max * 3,
        },
        config: shown.subscribe(),
    };
    let reloaded = reload::Parts { settings, auto_compact, shown, logs: logs.clone(), service: service.clone(), disk };
    tasks.spawn_until_stop("reload", reload::run(hangup, reread, reloaded));
    let state =
        api::State { service: service.clone(), registry, http, logs, clock, entropy, tasks: tasks.clone(), options };
    banner(&config, &listener, &service);
    let result = until_told(listener, state, &tasks, config.shutdown_timeout, &consensus).await;
    transport.end().await;
    peers.end().await;
    result
}

/// A disk that keeps a write for longer than two election timeouts no longer serves a leader.
fn disk_stall(config: &Checked, clock: &Arc<dyn Clock>) -> DiskStall {
    DiskStall::new(clock.clone(), config.election_timeout.max * 2, config.disk_stall_abort)
}

fn raft_options(config: &Checked, identity: &Identity, disk: DiskStall) -> Options {
    Options {
        cluster_id: identity.cluster_id,
        heartbeat: config.heartbeat,
        election_min: config.election_timeout.min,
        election_max: config.election_timeout.max,
        snapshot_log_bytes: config.snapshot_bytes,
        disk: Some(disk),
        ..Options::new(identity.node_id)
    }
}

/// The identity says that there is a log only when its first entry is durable. What is applied is.
async fn note_begun(consensus: Consensus, data: Arc<DataDir>, identity: Identity, tasks: TaskSet) {
    if identity.bootstrapped || consensus.applied().wait_for(|applied| applied.applied.is_some()).await.is_err() {
        return;
    }
    let saved = tasks.blocking(move || data.save(&Identity { bootstrapped: true, ..identity })).await;
    if let Some(Err(error)) = saved {
        tracing::warn!(%error, "the identity could not be updated, the next start tries again");
    }
}

fn background(
    settings: &watch::Receiver<Checked>,
    auto_compact: watch::Receiver<AutoCompact>,
    service: &Service,
    tasks: &TaskSet,
) {
    tasks.spawn_until_stop("tokens", auth::run(service.clone()));
    tasks.spawn_until_stop("quota", quota(service.clone(), settings.clone()));
    tasks.spawn_until_stop("automatic compaction", compactor::run(service.clone(), auto_compact));
    let watch = disk_watch::run(service.clone(), tasks.clone(), settings.clone());
    tasks.spawn_until_stop("disk watch", watch);
}

/// The replicated quota is the one that its leader was started with.
async fn quota(service: Service, settings: watch::Receiver<Checked>) {
    let system = Context::system(Duration::from_secs(10));
    let mut looks = tokio::time::interval(QUOTA_LOOK);
    loop {
        looks.tick().await;
        let (status, bytes) = (service.status(), settings.borrow().quota_bytes);
        if status.is_leader
            && status.quota_bytes != bytes
            && let Err(failure) = service.set_quota(&system, bytes).await
        {
            tracing::debug!(%failure, "the quota could not be set, the next look tries again");
        }
    }
}

fn register_collectors(config: &Checked, registry: &mut Registry, metrics: &Metrics, service: &Service) {
    telemetry::process::register(registry);
    let lagging = service.clone();
    telemetry::watch::register(registry, move || lagging.watch_lag());
    if config.etcd_metrics {
        let service = service.clone();
        telemetry::etcd::register(registry, metrics, move || {
            let status = service.status();
            telemetry::etcd::Sizes {
                db_bytes: status.db_bytes,
                db_bytes_in_use: status.db_bytes_in_use,
                quota_bytes: status.quota_bytes,
            }
        });
    }
}

fn on_signal(kind: SignalKind) -> Result<Signal, NodeError> {
    signal(kind).map_err(io_error("wait for signals".to_owned(), ""))
}

/// What a port of this process allows.
fn listening(connections_max: usize) -> Limits {
    Limits {
        connections_max,
        head_bytes_max: limits::HEAD_BYTES_MAX,
        headers_max: limits::HEADERS_MAX,
        head_timeout: Duration::from_secs(limits::HEAD_TIMEOUT_S),
        idle_timeout: Duration::from_secs(limits::IDLE_TIMEOUT_S),
        stall_timeout: Duration::from_secs(limits::STALL_TIMEOUT_S),
    }
}

/// Serves until SIGTERM or SIGINT (a second one ends the waiting), then ends everything in order.
async fn until_told(
    listener: Listener,
    state: api::State,
    tasks: &TaskSet,
    within: Duration,
    consensus: &Consensus,
) -> Result<(), NodeError> {
    let (mut terminate, mut interrupt) = (on_signal(SignalKind::terminate())?, on_signal(SignalKind::interrupt())?);
    let closing = CancellationToken::new();
    // Connections have a task set of their own: they are drained while the rest still runs for them.
    let connections = TaskSet::new();
    let drain = within * DRAIN_PERCENT / 100;
    let handler = api::handler(Arc::new(state));
    let serving =
        listener.serve(handler, listening(limits::CONNECTIONS_MAX), connections.clone(), closing.clone(), drain);
    let mut serving = Box::pin(async {
        if !serving.await {
            tracing::warn!("connections were cut whose requests did not end in time");
        }
    });
    let mut removed = false;
    tokio::select! {
        () = &mut serving => {}
        () = consensus.removed() => {
            tracing::error!("this member was removed from its cluster: shutting down");
            removed = true;
        }
        _ = terminate.recv() => tracing::info!("SIGTERM: shutting down"),
        _ = interrupt.recv() => tracing::info!("interrupted: shutting down"),
    }
    // While everything still runs: what comes meanwhile is forwarded to the new leader.
    consensus.leave().await;
    closing.cancel();
    // Waits and streams end at once; requests that write or read get their answer.
    tasks.stopping().cancel();
    let ended = async {
        tokio::select! {
            () = &mut serving => consensus.shutdown().await,
            // Then open requests wait for nothing, and are answered by the end of what they wait at.
            () = consensus.forsaken() => {
                consensus.shutdown().await;
                serving.await;
            }
        }
        tasks.stop(within).await
    };
    tokio::select! {
        ended = tokio::time::timeout(within, ended) => match ended {
            Ok(true) => tracing::info!("stopped"),
            Ok(false) | Err(_) => tracing::warn!("stopped with work left after {} s: nothing acknowledged is lost", within.as_secs()),
        },
        _ = interrupt.recv() => tracing::warn!("interrupted again: stopped with work left"),
    }
    if removed { Err(NodeError::Removed) } else { Ok(()) }
}

/// What a person sees first, on standard error, before any log line of normal work.
#[expect(clippy::print_stderr, reason = "the one greeting of a server started by a person")]
fn banner(config: &Checked, listener: &Listener, service: &Service) {
    let (address, status) = (listener.address(), service.status());
    let guard = match (address.ip().is_loopback(), service.is_auth_enabled()) {
        (true, false) => "no TLS, no auth (loopback)",
        (true, true) => "no TLS, auth on (loopback)",
        (false, true) => "NO TLS, auth on",
        (false, false) => "NO TLS, NO AUTH",
    };
    eprintln!(
        "tenure {}  node {}  {}  revision {}   data {} (kept)   {guard}\n  REST   http://{address}/v1       API  http://{address}/openapi.yaml\n  try    curl -X PUT {address}/v1/kv/hello -d world",
        env!("CARGO_PKG_VERSION"),
        status.name,
        if status.is_leader { "leader" } else { "follower" },
        status.revision,
        config.data_dir.display(),
    );
    if !address.ip().is_loopback() {
        let auth = service.is_auth_enabled();
        tracing::warn!(%address, auth, "serving beyond this host without TLS: passwords and tokens can be read on the way");
    }
}

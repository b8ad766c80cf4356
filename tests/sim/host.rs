//! One simulated machine: a disk that outlives its process, and a process with a runtime and a clock of
//! its own.
//!
//! Each process has a current-thread runtime with paused time, driven a tick at a time. So to kill it is
//! to drop its runtime, with all that runs on it; to pause it is to leave its ticks out, and then its
//! clock jumps, as after SIGSTOP. The log's writer runs inline, between simulated syncs.

use super::ledger::Ledger;
use super::net::{Home, Net};
use super::rng::Rng;
use super::swarm::Swarm;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tenure::env::{Clock, SeededEntropy, TaskSet};
use tenure::machine::{self, LeaseChange};
use tenure::model::{EventPage, Failure, Fault, KeyRange, Rejection, Revision, RevisionEvents};
use tenure::raft::{Consensus, Member, MemberId, NewStore, Options, Parts, Publisher};
use tenure::service::{self, Lessor, Service, lessor};
use tenure::storage::blocks::{BlockOptions, BlockStore};
use tenure::storage::memory::MemoryEngine;
use tenure::storage::simdisk::{SimDisk, Survivors};
use tenure::storage::snapshot::SnapshotStore;
use tenure::storage::wal::{Threading, Wal, WalOptions};
use tenure::telemetry::{Metrics, Registry};
use tenure::watch::{History, Hub, HubOptions};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

pub(crate) const CLUSTER: u64 = 0x7e57;
/// Who begins the cluster, again if a power cut takes what it had begun with.
const FOUNDER: MemberId = 1;
/// Where the simulated wall clocks begin.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// A runtime whose time stands still between ticks.
pub(crate) fn runtime() -> Runtime {
    let built = Builder::new_current_thread().enable_all().start_paused(true).max_blocking_threads(2).build();
    built.expect("a runtime can be built")
}

/// The process's own clock, and a wall clock that may be stepped.
#[derive(Debug)]
pub(crate) struct SimClock {
    origin: Instant,
    began_us: u64,
    wall_offset_ms: Arc<AtomicI64>,
}

impl Clock for SimClock {
    fn monotonic(&self) -> Duration {
        Instant::now().saturating_duration_since(self.origin) + Duration::from_secs(1)
    }

    fn wall_ms(&self) -> u64 {
        let since = Instant::now().saturating_duration_since(self.origin) + Duration::from_micros(self.began_us);
        let wall = EPOCH_MS + u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        wall.saturating_add_signed(self.wall_offset_ms.load(Ordering::Relaxed))
    }
}

/// What apply tells, on its way to the hub, the lessor and the ledger.
#[derive(Debug)]
struct Feed {
    hub: Hub,
    lessor: Arc<Lessor>,
    ledger: Arc<Ledger>,
    net: Net,
    member: MemberId,
    consensus: Arc<OnceLock<Consensus>>,
}

impl Publisher for Feed {
    fn publish(&self, revisions: &[RevisionEvents]) {
        // Whoever hears of it may act at once, while this thread waits for its turn and the clock goes on.
        let known_us = self.net.now_us();
        self.hub.publish(revisions);
        let view = self.consensus.get().map(|consensus| consensus.reader().view());
        self.ledger.applied(self.member, known_us, revisions, view.as_ref());
    }

    fn leases(&self, changes: &[LeaseChange]) {
        self.lessor.note(changes);
    }

    fn reset(&self, revision: Revision) {
        self.hub.reset(revision);
    }
}

#[derive(Debug, Default)]
struct Past(Arc<OnceLock<Consensus>>);

impl Past {
    fn view(&self) -> Option<machine::View> {
        self.0.get().map(|consensus| consensus.reader().view())
    }
}

impl History for Past {
    fn revision(&self) -> Revision {
        self.view().map_or(0, |view| view.revision())
    }

    fn compacted_revision(&self) -> Revision {
        self.view().map_or(0, |view| view.compacted_revision())
    }

    fn events(&self, ranges: &[KeyRange], from: Revision, max_records: usize) -> Result<EventPage, Fault> {
        match self.view().map(|view| view.events_of(ranges, from, max_records)) {
            Some(Ok(page)) => Ok(page),
            None | Some(Err(Failure::Rejected(Rejection::Compacted { .. }))) => Ok(EventPage::default()),
            Some(Err(failure)) => Err(Fault::Invariant(failure.to_string())),
        }
    }
}

/// What a process is made of.
pub(crate) struct Process {
    runtime: Option<Runtime>,
    origin: Instant,
    began_us: u64,
    reached_us: u64,
    pub(crate) consensus: Consensus,
    pub(crate) wal: Wal,
    hung: Arc<AtomicBool>,
}

impl Process {
    /// Whether what it had logged before its start is applied again.
    pub(crate) fn recovered(&self) -> bool {
        let _entered = self.runtime.as_ref().map(|runtime| runtime.enter());
        self.consensus.state().recovered
    }

    pub(crate) fn describe(&self) -> String {
        let _entered = self.runtime.as_ref().map(|runtime| runtime.enter());
        let view = self.consensus.reader().view();
        let state = self.consensus.state();
        format!(
            "term {} leader {:?} last {:?} committed {:?} applied {:?} recovered {} revision {} leases {} hash {:x} voters {:?} members {:?}",
            state.term,
            state.leader,
            state.last_log,
            state.committed,
            state.applied,
            state.recovered,
            view.revision(),
            view.stats().leases,
            view.state_hash(),
            self.consensus.voters(),
            self.consensus.members().into_keys().collect::<Vec<_>>(),
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

pub(crate) struct Host {
    pub(crate) id: MemberId,
    disk: SimDisk,
    pub(crate) process: Option<Process>,
    pub(crate) life: u64,
    pub(crate) paused_until_us: u64,
    pub(crate) down_until_us: u64,
    hangs_until_us: u64,
    wall_offset_ms: Arc<AtomicI64>,
    /// It was taken out of the cluster and does not come back.
    pub(crate) retired: bool,
    rng: Rng,
}

/// What all hosts have in common.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) swarm: Swarm,
    pub(crate) net: Net,
    pub(crate) ledger: Arc<Ledger>,
}

pub(crate) fn member(id: MemberId) -> Member {
    let url = |what: &str| format!("http://{what}-{id}");
    Member { name: format!("m{id}"), peer_url: url("peer"), client_url: url("client"), incarnation: u128::from(id) }
}

fn new_store(fatal: Arc<dyn Fn(&Fault) + Send + Sync>) -> NewStore {
    Arc::new(move || {
        Ok(Arc::new(BlockStore::new(Arc::new(MemoryEngine::default()), BlockOptions::new(fatal.clone()))?))
    })
}

impl Host {
    pub(crate) fn new(id: MemberId, rng: Rng) -> Self {
        Self {
            id,
            disk: SimDisk::new(),
            process: None,
            life: 0,
            paused_until_us: 0,
            down_until_us: 0,
            hangs_until_us: 0,
            wall_offset_ms: Arc::default(),
            retired: false,
            rng,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Starts the process on what its disk holds.
    pub(crate) fn start(&mut self, setting: &Setting) -> Result<(), String> {
        let runtime = runtime();
        self.life += 1;
        let began_us = setting.net.now_us();
        let pump = self.rng.fork();
        let hung = Arc::new(AtomicBool::new(false));
        let started = runtime.block_on(self.assemble(setting, began_us, (pump, hung.clone())));
        let (origin, consensus, service, wal) = started?;
        let home = Home { runtime: runtime.handle().clone(), consensus: consensus.clone(), service, life: self.life };
        setting.net.move_in(self.id, home);
        self.process =
            Some(Process { runtime: Some(runtime), origin, began_us, reached_us: began_us, consensus, wal, hung });
        Ok(())
    }

    async fn assemble(
        &mut self,
        setting: &Setting,
        began_us: u64,
        (pump, hung): (Rng, Arc<AtomicBool>),
    ) -> Result<(Instant, Consensus, Service, Wal), String> {
        let (id, swarm) = (self.id, &setting.swarm);
        let origin = Instant::now();
        let clock: Arc<dyn Clock> =
            Arc::new(SimClock { origin, began_us, wall_offset_ms: self.wall_offset_ms.clone() });
        let tasks = TaskSet::new();
        let metrics = Metrics::new(&mut Registry::default());
        let fatal: Arc<dyn Fn(&Fault) + Send + Sync> = {
            let (ledger, life) = (setting.ledger.clone(), self.life);
            Arc::new(move |fault: &Fault| ledger.fault(id, life, fault))
        };
        let wal_options = WalOptions {
            segment_bytes: swarm.segment_bytes,
            cache_bytes: 32 << 10,
            threading: Threading::Pumped,
            ..WalOptions::new("/data/wal", fatal.clone())
        };
        let (wal, recovered) =
            Wal::open(Arc::new(self.disk.clone()), wal_options).map_err(|error| format!("member {id}: {error}"))?;
        let has_log = recovered.last_index.is_some() || recovered.purged.is_some();
        tokio::spawn(pump_log(wal.clone(), pump, swarm.sync_us, hung));
        let snapshots = SnapshotStore::open(Arc::new(self.disk.clone()), "/data/snapshot")
            .map_err(|fault| format!("member {id}: {fault}"))?;
        let late: Arc<OnceLock<Consensus>> = Arc::default();
        let hub_options = HubOptions { ring_bytes: swarm.ring_bytes, ..HubOptions::default() };
        let hub = Hub::new(Arc::new(Past(late.clone())), hub_options, tasks.clone(), metrics.clone());
        let lessor = Arc::new(Lessor::new(clock.clone()));
        let feed = Feed {
            hub: hub.clone(),
            lessor: lessor.clone(),
            ledger: setting.ledger.clone(),
            net: setting.net.clone(),
            member: id,
            consensus: late.clone(),
        };
        let parts = Parts {
            wal: wal.clone(),
            recovered,
            snapshots: snapshots.clone(),
            new_store: new_store(fatal.clone()),
            machine: machine::Options { value_cache_bytes: 16 << 10, ..machine::Options::default() },
            transport: Arc::new(setting.net.wire(id)),
            publisher: Arc::new(feed),
            clock: clock.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            fatal,
        };
        let options = Options { cluster_id: CLUSTER, snapshot_log_bytes: swarm.snapshot_log_bytes, ..Options::new(id) };
        let consensus = Consensus::start(options, parts).await.map_err(|error| format!("member {id}: {error}"))?;
        drop(late.set(consensus.clone()));
        tasks.spawn("watch hub", hub.clone().run());
        if id == FOUNDER && !has_log {
            let founders = (1..=swarm.members).map(|id| (id, member(id))).collect();
            consensus.bootstrap(founders).await.map_err(|fault| format!("member {id}: {fault}"))?;
        }
        let service = Service::new(
            service::Parts {
                consensus: consensus.clone(),
                snapshots,
                hub,
                clock,
                entropy: Arc::new(SeededEntropy::new(self.rng.next())),
                lessor: lessor.clone(),
                tasks: tasks.clone(),
                metrics: metrics.clone(),
            },
            service::Options {
                member: service::Member { cluster_id: CLUSTER, id, name: format!("m{id}").into() },
                admission_bytes: 64 << 20,
                token_ttl: Duration::from_secs(300),
            },
        );
        tasks.spawn_until_stop("lessor", lessor::run(lessor, consensus.clone(), metrics));
        Ok((origin, consensus, service, wal))
    }

    /// Lets the process run up to now.
    pub(crate) fn tick(&mut self, now_us: u64, tick_us: u64) {
        let Some(process) = self.process.as_mut().filter(|_| now_us >= self.paused_until_us) else { return };
        process.hung.store(now_us < self.hangs_until_us, Ordering::Relaxed);
        let stood_us = now_us.saturating_sub(process.reached_us);
        let target = process.origin + Duration::from_micros(now_us - process.began_us);
        let Some(runtime) = &process.runtime else { return };
        runtime.block_on(async {
            if stood_us > 2 * tick_us {
                // It stood still: its timers all find themselves late at once.
                let ahead = Duration::from_micros(stood_us - tick_us);
                let left = target.saturating_duration_since(Instant::now());
                tokio::time::advance(ahead.min(left)).await;
            }
            tokio::time::sleep_until(target).await;
        });
        process.reached_us = now_us;
    }

    pub(crate) fn pause(&mut self, until_us: u64) {
        self.paused_until_us = until_us;
    }

    pub(crate) fn hang_disk(&mut self, until_us: u64) {
        self.hangs_until_us = until_us;
    }

    pub(crate) fn step_wall(&mut self, offset_ms: i64) {
        self.wall_offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    /// Ends the process between two instructions. `survivors` is of a power cut.
    pub(crate) fn kill(&mut self, net: &Net, survivors: Option<Survivors>) {
        net.move_out(self.id);
        // What the old process still does to its disk while it is taken apart must not count.
        let disk = self.disk.fork();
        match survivors {
            Some(survivors) => disk.crash(survivors),
            None => disk.restart_process(),
        }
        self.disk.cut_after(0);
        self.disk = disk;
        self.process = None;
        self.hangs_until_us = 0;
        self.paused_until_us = 0;
    }
}

/// The log's disk: a sync takes its time, and what came meanwhile is in the next one.
async fn pump_log(wal: Wal, mut rng: Rng, sync_us: (u64, u64), hung: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(Duration::from_micros(rng.between(sync_us.0, sync_us.1))).await;
        if !hung.load(Ordering::Relaxed) {
            wal.pump();
        }
    }
}

/// Says what went on when something goes wrong.
#[derive(Debug, Default)]
pub(crate) struct Trace(Mutex<Vec<String>>);

impl Trace {
    pub(crate) fn note(&self, line: String) {
        self.0.lock().push(line);
    }

    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let lines = self.0.lock();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }
}

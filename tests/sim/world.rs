//! One run: the machines, the network, the clients, and the time they share.
//!
//! All of it happens on one thread, a tick at a time: parcels arrive, faults act, then each process runs
//! up to the new time, in an order drawn anew. After the faults comes the healing: everything is mended,
//! and the cluster must answer, settle and agree within bounds.

use super::client::{Client, one, put};
use super::host::{Host, Process, Setting, Trace, runtime};
use super::invariants;
use super::ledger::Fate;
use super::nemesis::Nemesis;
use super::net::Net;
use super::operator::Orders;
use super::rng::Rng;
use super::swarm::Swarm;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tenure::model::LeaseChoice;
use tenure::raft::MemberId;
use tenure::storage::simdisk::Survivors;
use tokio::runtime::Runtime;
use tokio::time::Instant;

/// Between looks at the members' logs.
const LOOK_US: u64 = 200_000;
/// How long a healed cluster may take to answer through every member, and then to agree.
const ANSWERS_US: u64 = 15_000_000;
const AGREES_US: u64 = 15_000_000;

pub(crate) struct World {
    setting: Setting,
    rng: Rng,
    hosts: BTreeMap<MemberId, Host>,
    clients: Runtime,
    clients_origin: Instant,
    /// Clients that have not finished.
    busy: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
    orders: Arc<Mutex<Orders>>,
    trace: Trace,
    looked_us: u64,
}

/// What a run was.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) violations: Vec<String>,
    pub(crate) trace: Vec<String>,
    pub(crate) faults: u64,
    pub(crate) terms: u64,
    pub(crate) acked: u64,
    pub(crate) unknown: u64,
    pub(crate) reads: u64,
    pub(crate) events: u64,
    pub(crate) grants: u64,
    pub(crate) changes: u64,
    pub(crate) revisions: u64,
    pub(crate) parcels: u64,
    pub(crate) states: u64,
    pub(crate) logged: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {} faults, {} terms, {} revisions, {} acked, {} unknown, {} reads, {} watched, {} grants, \
             {} member changes, {} parcels",
            self.seed,
            self.faults,
            self.terms,
            self.revisions,
            self.acked,
            self.unknown,
            self.reads,
            self.events,
            self.grants,
            self.changes,
            self.parcels
        )
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let swarm = Swarm::drawn(&mut rng);
        let net = Net::new(&swarm, rng.fork());
        let setting = Setting { swarm, net, ledger: Arc::default() };
        let clients = runtime();
        let clients_origin = clients.block_on(async { Instant::now() });
        Self {
            setting,
            rng,
            hosts: BTreeMap::new(),
            clients,
            clients_origin,
            busy: Arc::default(),
            ending: Arc::default(),
            orders: Arc::default(),
            trace: Trace::default(),
            looked_us: 0,
        }
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.setting.net.now_us()
    }

    pub(crate) fn net(&self) -> &Net {
        &self.setting.net
    }

    pub(crate) fn swarm(&self) -> &Swarm {
        &self.setting.swarm
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    pub(crate) fn up(&self) -> Vec<MemberId> {
        self.hosts.values().filter(|host| host.is_up()).map(|host| host.id).collect()
    }

    /// All that have not been taken out.
    pub(crate) fn known(&self) -> Vec<MemberId> {
        self.hosts.values().filter(|host| !host.retired).map(|host| host.id).collect()
    }

    /// Who leads in the newest term that anyone leads in.
    pub(crate) fn leader(&self) -> Option<MemberId> {
        let processes = self.hosts.values().filter_map(|host| Some((host.id, host.process.as_ref()?)));
        let leading = processes.filter_map(|(id, process)| Some(((*process.consensus.leading().borrow())?, id)));
        leading.max().map(|(_, id)| id)
    }

    pub(crate) fn kill(&mut self, id: MemberId, survivors: Option<Survivors>, until_us: u64) {
        if let Some(host) = self.hosts.get_mut(&id).filter(|host| host.is_up()) {
            self.setting.ledger.dies(id, host.life);
            host.kill(&self.setting.net, survivors);
            host.down_until_us = until_us;
        }
    }

    pub(crate) fn pause(&mut self, id: MemberId, until_us: u64) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.pause(until_us);
        }
    }

    pub(crate) fn hang_disk(&mut self, id: MemberId, until_us: u64) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.hang_disk(until_us);
        }
    }

    /// No promise rests on wall clocks: those of all members may be wrong, each in its own way.
    pub(crate) fn step_wall(&mut self, id: MemberId, offset_ms: i64) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.step_wall(offset_ms);
        }
    }

    pub(crate) fn request_change(&self) {
        self.orders.lock().wanted += 1;
    }

    fn start_all(&mut self) {
        self.orders.lock().next_id = self.setting.swarm.members;
        for id in 1..=self.setting.swarm.members {
            self.boot(id);
        }
    }

    fn boot(&mut self, id: MemberId) {
        let rng = self.rng.fork();
        let host = self.hosts.entry(id).or_insert_with(|| Host::new(id, rng));
        if let Err(error) = host.start(&self.setting) {
            self.setting.ledger.violate(format!("a member does not start: {error}"));
        }
    }

    fn start_clients(&mut self) {
        let parts = (self.setting.net.clone(), self.setting.ledger.clone());
        let mut client = |name: String| Client::new(name, (&parts.0, &parts.1), self.rng.fork(), &self.ending);
        let mut tasks: Vec<futures_util::future::BoxFuture<'static, ()>> = Vec::new();
        for at in 0..self.setting.swarm.workers {
            tasks.push(Box::pin(client(format!("w{at}")).work()));
        }
        for id in 1..=self.setting.swarm.members {
            tasks.push(Box::pin(client(format!("r{id}")).probe(id)));
        }
        for at in 0..2 {
            tasks.push(Box::pin(client(format!("f{at}")).follow()));
            tasks.push(Box::pin(client(format!("l{at}")).lease()));
            tasks.push(Box::pin(client(format!("h{at}")).lock()));
        }
        tasks.push(Box::pin(client("l2".to_owned()).lease()));
        tasks.push(Box::pin(client("f2".to_owned()).follow()));
        for at in 2..5 {
            tasks.push(Box::pin(client(format!("h{at}")).lock()));
        }
        tasks.push(Box::pin(client("op".to_owned()).operate(self.orders.clone())));
        for task in tasks {
            self.employ(task);
        }
    }

    fn employ(&self, task: futures_util::future::BoxFuture<'static, ()>) {
        let busy = self.busy.clone();
        busy.fetch_add(1, Ordering::Relaxed);
        self.clients.spawn(async move {
            task.await;
            busy.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// One tick of everybody.
    fn tick(&mut self) {
        let tick_us = self.setting.swarm.tick_us;
        let now_us = self.now_us() + tick_us;
        self.setting.net.deliver(now_us);
        let mut order: Vec<MemberId> = self.hosts.keys().copied().collect();
        self.rng.shuffle(&mut order);
        for id in order {
            let Some(host) = self.hosts.get_mut(&id) else { continue };
            if !host.is_up() && !host.retired && now_us >= host.down_until_us {
                self.boot(id);
            } else {
                host.tick(now_us, tick_us);
            }
        }
        let target = self.clients_origin + Duration::from_micros(now_us);
        self.clients.block_on(async { tokio::time::sleep_until(target).await });
        self.obey();
        if now_us >= self.looked_us + LOOK_US {
            self.looked_us = now_us;
            self.look();
        }
        for panic in super::panics() {
            self.setting.ledger.violate(format!("a panic: {panic}"));
        }
    }

    fn obey(&mut self) {
        let (boot, retire) = {
            let mut orders = self.orders.lock();
            (std::mem::take(&mut orders.boot), std::mem::take(&mut orders.retire))
        };
        for id in boot {
            self.boot(id);
        }
        for id in retire {
            self.kill(id, None, u64::MAX);
            if let Some(host) = self.hosts.get_mut(&id) {
                host.retired = true;
            }
        }
    }

    /// What can be seen of each member from outside.
    fn look(&mut self) {
        let mut book = self.setting.ledger.book();
        let mut found = Vec::new();
        for host in self.hosts.values() {
            let Some(process) = &host.process else { continue };
            found.extend(book.log_matching.look(host.id, &process.wal));
            // Not before what it had applied earlier is applied again.
            if process.recovered() {
                let view = process.consensus.reader().view();
                found.extend(book.member_revisions.shows(host.id, view.revision()));
                found.extend(book.state_machine.applied(host.id, &view));
            }
        }
        drop(book);
        found.into_iter().for_each(|violation| self.setting.ledger.violate(violation));
    }

    fn failed(&self) -> bool {
        self.setting.ledger.failed()
    }

    fn run_until(&mut self, what: &str, within_us: u64, mut done: impl FnMut(&mut Self) -> bool) {
        let until_us = self.now_us() + within_us;
        while !self.failed() && !done(self) {
            if self.now_us() > until_us {
                let state = self.describe();
                self.setting
                    .ledger
                    .violate(format!("healing: not within {} s: {what}; {state}", within_us / 1_000_000));
                return;
            }
            self.tick();
        }
    }

    fn describe(&self) -> String {
        let each = self.hosts.values().filter(|host| !host.retired).map(|host| {
            let state = host.process.as_ref().map(Process::describe);
            format!("member {}: {state:?}", host.id)
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// The members, as their leader knows them.
    fn members(&self) -> Vec<MemberId> {
        let leader = self.leader().and_then(|id| self.hosts.get(&id)?.process.as_ref());
        leader.map(|process| process.consensus.members().into_keys().collect()).unwrap_or_default()
    }

    fn heal(&mut self) {
        self.setting.net.calm();
        for host in self.hosts.values_mut() {
            host.pause(0);
            host.hang_disk(0);
            host.down_until_us = host.down_until_us.min(self.setting.net.now_us());
        }
        self.run_until("a leader", ANSWERS_US, |world| world.leader().is_some() && !world.members().is_empty());
        let answered: Arc<Mutex<Vec<MemberId>>> = Arc::default();
        let asked = self.known();
        for id in asked.clone() {
            let (net, ledger) = (self.setting.net.clone(), self.setting.ledger.clone());
            let mut client = Client::new(format!("healer{id}"), (&net, &ledger), self.rng.fork(), &self.ending);
            let answered = answered.clone();
            self.employ(Box::pin(async move {
                let value = Bytes::from(client.fresh("healed"));
                while !client.ledger.failed() {
                    let txn = one(put(&Bytes::from("healed"), &value, LeaseChoice::Detach));
                    if matches!(client.txn(id, txn, None).await.0, Fate::Acked { .. }) {
                        answered.lock().push(id);
                        return;
                    }
                    if client.is_over() {
                        return;
                    }
                    client.think(10, 100).await;
                }
            }));
        }
        self.run_until("every member answers", ANSWERS_US, |world| {
            let answered = answered.lock();
            let members = world.members();
            // Who is added meanwhile is not asked.
            !members.is_empty() && members.iter().filter(|id| asked.contains(id)).all(|id| answered.contains(id))
        });
        self.ending.store(true, Ordering::Relaxed);
        self.run_until("the clients come to their end", ANSWERS_US, |world| world.busy.load(Ordering::Relaxed) == 0);
        self.run_until("all leases end and all members agree", AGREES_US, |world| {
            let views = world.views();
            views.len() == world.members().len()
                && views.iter().all(|(_, view)| view.stats().leases == 0)
                && invariants::unequal(&views).is_none()
        });
    }

    fn views(&self) -> Vec<(MemberId, tenure::machine::View)> {
        let members = self.members();
        let of = |id: MemberId| Some((id, self.hosts.get(&id)?.process.as_ref()?.consensus.reader().view()));
        members.into_iter().filter_map(of).collect()
    }

    fn report(&self, seed: u64, faults: u64) -> Report {
        let mut violations = self.setting.ledger.violations();
        let book = self.setting.ledger.book();
        if violations.is_empty() {
            violations = invariants::judge(&book);
        }
        let fate = |wanted: fn(&Fate) -> bool| book.writes.iter().filter(|write| wanted(&write.fate)).count() as u64;
        Report {
            seed,
            violations,
            trace: self.trace.last(40),
            faults,
            terms: book.election.terms() as u64,
            acked: fate(|fate| matches!(fate, Fate::Acked { .. })),
            unknown: fate(|fate| matches!(fate, Fate::Unknown)),
            reads: book.reads.len() as u64,
            events: book.streams.iter().map(|stream| stream.said.len() as u64).sum(),
            grants: book.grants.len() as u64,
            changes: self.orders.lock().done,
            revisions: book.told.len() as u64,
            parcels: self.setting.net.carried(),
            states: book.state_machine.compared() as u64,
            logged: book.log_matching.looked_at,
        }
    }
}

/// Runs one seed.
pub(crate) fn run(seed: u64) -> Report {
    drop(super::panics());
    let mut world = World::new(seed);
    world.start_all();
    world.start_clients();
    let mut nemesis = Nemesis::new(world.rng.fork());
    let until_us = world.now_us() + world.swarm().faulty_ms * 1000;
    while world.now_us() < until_us && !world.failed() {
        nemesis.step(&mut world);
        world.tick();
    }
    if !world.failed() {
        world.heal();
    }
    let report = world.report(seed, nemesis.acted);
    for id in world.up() {
        world.kill(id, None, u64::MAX);
    }
    report
}

//! Three members with all of the command core, over an in-memory transport.

use crate::env::{Clock, SeededEntropy, SystemClock, TaskSet};
use crate::machine::LeaseChange;
use crate::model::{Caller, EventPage, Fault, KeyRange, LeaseChoice, Op, PutOp, Revision, RevisionEvents};
use crate::raft::Publisher;
use crate::raft::tests::LONG;
use crate::raft::tests::cluster::Cluster;
use crate::service::{Context, Lessor, Member, Options, Parts, Service, lessor};
use crate::storage::simdisk::SimDisk;
use crate::storage::snapshot::SnapshotStore;
use crate::telemetry::{Metrics, Registry};
use crate::watch::{History, Hub, HubOptions};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What apply tells.
#[derive(Debug)]
struct Told {
    lessor: Arc<Lessor>,
    hub: Hub,
}

impl Publisher for Told {
    fn leases(&self, changes: &[LeaseChange]) {
        self.lessor.note(changes);
    }

    fn publish(&self, revisions: &[RevisionEvents]) {
        self.hub.publish(revisions);
    }

    fn reset(&self, revision: Revision) {
        self.hub.reset(revision);
    }
}

/// For hubs whose watchers never lag.
#[derive(Debug)]
struct NoHistory;

impl History for NoHistory {
    fn revision(&self) -> Revision {
        1
    }

    fn compacted_revision(&self) -> Revision {
        0
    }

    fn events(&self, _: &[KeyRange], _: Revision, _: usize) -> Result<EventPage, Fault> {
        Ok(EventPage::default())
    }
}

/// Each member with its service, its lessor, and its hub, which wakes nobody until `wake_watchers`.
pub(super) struct Members {
    pub(super) cluster: Cluster,
    pub(super) services: BTreeMap<u64, Service>,
    hubs: BTreeMap<u64, Hub>,
    tasks: TaskSet,
}

impl Members {
    pub(super) async fn start() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let tasks = TaskSet::new();
        let metrics = Metrics::new(&mut Registry::default());
        let hub = |id| (id, Hub::new(Arc::new(NoHistory), HubOptions::default(), tasks.clone(), metrics.clone()));
        let hubs: BTreeMap<u64, Hub> = (1..=3).map(hub).collect();
        let lessors: BTreeMap<u64, Arc<Lessor>> =
            (1..=3).map(|id| (id, Arc::new(Lessor::new(clock.clone())))).collect();
        let told = |id| Told { lessor: Arc::clone(&lessors[&id]), hub: hubs[&id].clone() };
        let cluster = Cluster::start_with(None, |id| Arc::new(told(id))).await;
        let service = |id: u64| {
            let node = &cluster.nodes[&id];
            let (consensus, lessor, tasks) = (node.consensus.clone(), lessors[&id].clone(), node.tasks.clone());
            tasks.spawn_until_stop("lessor", lessor::run(lessor.clone(), consensus.clone(), metrics.clone()));
            let parts = Parts {
                consensus,
                snapshots: SnapshotStore::open(Arc::new(SimDisk::new()), "/none").unwrap(),
                hub: hubs[&id].clone(),
                clock: clock.clone(),
                entropy: Arc::new(SeededEntropy::new(id)),
                lessor,
                tasks,
                metrics: metrics.clone(),
            };
            let member = Member { cluster_id: 1, id, name: format!("m{id}").into() };
            Service::new(parts, Options { member, admission_bytes: 1 << 20, token_ttl: Duration::from_secs(300) })
        };
        let services = (1..=3).map(|id| (id, service(id))).collect();
        Self { cluster, services, hubs, tasks }
    }

    /// From here on this member's watchers are told what has changed, and what had.
    pub(super) fn wake_watchers(&self, id: u64) {
        self.tasks.spawn_until_stop("hub", self.hubs[&id].clone().run());
    }

    pub(super) fn watchers(&self, id: u64) -> usize {
        self.hubs[&id].streams()
    }

    pub(super) fn has(&self, id: u64, key: &'static str) -> bool {
        let view = self.cluster.nodes[&id].consensus.reader().view();
        view.get(&Caller::Anonymous, &key.into(), 0).unwrap().is_some()
    }

    pub(super) async fn put(&self, id: u64, key: &'static str, lease: LeaseChoice) {
        let put = PutOp {
            key: key.into(),
            value: "v".into(),
            content_type: None,
            lease,
            prev_kv: false,
            ignore_value: false,
        };
        self.services[&id].operation(&context(LONG), Op::Put(put), None).await.unwrap();
    }

    pub(super) async fn stop(self) {
        self.tasks.stop(LONG).await;
        self.cluster.stop().await;
    }
}

pub(super) fn context(timeout: Duration) -> Context {
    Context::new(Caller::Anonymous, timeout)
}

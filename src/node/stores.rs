//! Opens what is on disk: the log, the snapshots, and the engine under the history.

use super::identity::DataDir;
use super::{NodeError, disk_watch, fatal, io_error};
use crate::env::{Clock, give_way, take_turns};
use crate::model::{EventPage, Failure, Fault, KeyRange, Rejection, Revision, limits};
use crate::raft::{Consensus, DiskStall, NewStore};
use crate::storage::blocks::{BlockOptions, BlockStore, Rotation};
use crate::storage::engine::Engine;
use crate::storage::realdisk::RealDisk;
use crate::storage::sled::SledFactory;
use crate::storage::snapshot::{Courtesy, SnapshotStore};
use crate::storage::wal::{Observer, Recovered, Wal, WalOptions};
use crate::storage::watched::Watched;
use crate::telemetry::Metrics;
use crate::watch::History;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub(super) struct Stores {
    pub(super) wal: Wal,
    pub(super) recovered: Recovered,
    pub(super) snapshots: SnapshotStore,
    pub(super) new_store: NewStore,
}

pub(super) fn open(
    data: &DataDir,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
    stall: &DiskStall,
) -> Result<Stores, NodeError> {
    let fatal = fatal::handler();
    let disk = Arc::new(RealDisk);
    let space = disk_watch::space(&data.root).map_err(io_error(format!("measure {}", data.root.display()), ""))?;
    let options = WalOptions {
        segment_bytes: disk_watch::segment_bytes(space, limits::WAL_SEGMENT_BYTES),
        observer: Arc::new(WriteTimes {
            clock: Arc::clone(clock),
            metrics: metrics.clone(),
            stall: stall.clone(),
            begun: Mutex::new(None),
        }),
        ..WalOptions::new(data.wal(), Arc::clone(&fatal))
    };
    let (wal, recovered) = Wal::open(disk.clone(), options)?;
    let snapshots = SnapshotStore::giving_way(disk, data.snapshot(), Courtesy { give_way, take_turns })?;
    let new_store = new_store(data, clock, metrics)?;
    Ok(Stores { wal, recovered, snapshots, new_store })
}

/// Every store gets a fresh engine: what an earlier run left in `state/` is wiped first.
fn new_store(data: &DataDir, clock: &Arc<dyn Clock>, metrics: &Metrics) -> Result<NewStore, NodeError> {
    let fatal = fatal::handler();
    let factory = SledFactory::new(data.state())?;
    let watching = Arc::clone(&fatal);
    let engine = move || -> Result<Arc<dyn Engine>, Fault> {
        Ok(Arc::new(Watched::new(factory.make()?, Arc::clone(&watching))?))
    };
    let engine: Arc<dyn Fn() -> Result<Arc<dyn Engine>, Fault> + Send + Sync> = Arc::new(engine);
    let (clock, metrics) = (Arc::clone(clock), metrics.clone());
    Ok(Arc::new(move || {
        let (clock, times) = (Arc::clone(&clock), metrics.engine_commit.clone());
        let options = BlockOptions {
            around_commit: Arc::new(move |commit| {
                let begun = clock.monotonic();
                commit();
                times.observe(clock.monotonic().saturating_sub(begun).as_secs_f64());
            }),
            rotation: Some(Rotation::new(Arc::clone(&engine))),
            ..BlockOptions::new(Arc::clone(&fatal))
        };
        Ok(Arc::new(BlockStore::new(engine()?, options)?))
    }))
}

/// Times the log's writes and syncs: `storage` itself has no clock.
#[derive(Debug)]
struct WriteTimes {
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    stall: DiskStall,
    begun: Mutex<Option<Duration>>,
}

impl Observer for WriteTimes {
    fn started(&self) {
        self.stall.write_began();
    }

    fn syncing(&self) {
        *self.begun.lock() = Some(self.clock.monotonic());
    }

    fn finished(&self, bytes: usize) {
        self.stall.write_ended();
        if let Some(begun) = self.begun.lock().take() {
            self.metrics.wal_fsync.observe(self.clock.monotonic().saturating_sub(begun).as_secs_f64());
        }
        self.metrics.wal_bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}

/// The store's history for the hub, which is there before consensus is.
#[derive(Debug, Default)]
pub(super) struct LateHistory(OnceLock<Consensus>);

impl LateHistory {
    pub(super) fn set(&self, consensus: Consensus) {
        // Set once, by the start of the one member this belongs to.
        drop(self.0.set(consensus));
    }
}

impl History for LateHistory {
    fn revision(&self) -> Revision {
        self.0.get().map_or(0, |consensus| consensus.reader().view().revision())
    }

    fn compacted_revision(&self) -> Revision {
        self.0.get().map_or(0, |consensus| consensus.reader().view().compacted_revision())
    }

    fn events(&self, ranges: &[KeyRange], from: Revision, max_records: usize) -> Result<EventPage, Fault> {
        match self.0.get() {
            // A revision compacted meanwhile is what `compacted_revision` then tells.
            Some(consensus) => match consensus.reader().view().events_of(ranges, from, max_records) {
                Ok(page) => Ok(page),
                Err(Failure::Rejected(Rejection::Compacted { .. })) => Ok(EventPage::default()),
                Err(failure) => Err(Fault::Invariant(format!("reading history: {failure}"))),
            },
            None => Ok(EventPage::default()),
        }
    }
}

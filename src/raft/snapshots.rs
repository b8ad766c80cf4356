//! Snapshots: when one is taken, how it is written while applies go on, how one from a leader comes
//! in, and how far the log may be purged.
//!
//! Invariants: a snapshot is published only after the log before it is durable on this disk; the log
//! is purged only up to the second-newest snapshot that was verified in this run; a snapshot that
//! cannot be written costs a warning, never the log. A received one replaces the machine only after
//! it is published. What is in a snapshot is the machine's affair, how it lies on disk `storage`'s.

use super::apply::{Applier, membership_of};
use super::consensus::{Core, NewStore, Options};
use super::network::Meta;
use super::restore::{Digest, Staging};
use super::transfer::{Head, Partial};
use super::types::{MemberId, Types, log_id, position};
use crate::env::{Clock, TaskSet, give_way};
use crate::machine::{self, Image, Machine};
use crate::model::{Failure, Fault, LogPosition, Why, codec};
use crate::storage::blocks::BlockStore;
use crate::storage::mutant::Mutant;
use crate::storage::snapshot::{
    RawSnapshot, SnapshotId, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotSummary, VerifiedImport,
};
use crate::telemetry::metrics::Metrics;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use openraft::RaftSnapshotBuilder;
use openraft::Snapshot;
use openraft::alias::SnapshotOf;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Before a snapshot that is asked for is asked for again, because another was being built.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Blocks read ahead of the machine that is restored from them.
const READ_AHEAD_BLOCKS: usize = 16;

/// A snapshot is written anew before it is sent if the log has grown by more since than this part of what it may.
const SENT_TAIL_PART: u64 = 8;

/// At most this long is waited for that.
const RENEWAL_MAX: Duration = Duration::from_secs(15);

/// Bytes of applied entries that are in no snapshot.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    since_begun: AtomicU64,
    /// That a snapshot which is being written stands for.
    in_writing: AtomicU64,
}

impl Tail {
    pub(super) fn grow(&self, bytes: usize) {
        self.since_begun.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The state was replaced by that of a snapshot.
    pub(super) fn forget(&self) {
        self.since_begun.store(0, Ordering::Relaxed);
        self.in_writing.store(0, Ordering::Relaxed);
    }

    fn begin(&self) {
        self.in_writing.store(self.since_begun.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    fn end(&self, is_written: bool) {
        let bytes = self.in_writing.swap(0, Ordering::Relaxed);
        if !is_written {
            self.since_begun.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn since_begun(&self) -> u64 {
        self.since_begun.load(Ordering::Relaxed)
    }

    fn bytes(&self) -> u64 {
        self.since_begun().saturating_add(self.in_writing.load(Ordering::Relaxed))
    }
}

/// Steps from the log that the first member lets grow between snapshots to twice that.
const STEPS: u64 = 8;

/// Each member lets its log grow by a different part of what it may, so that their snapshots fall apart: a write
/// waits for a majority of the members, and most of these write none then.
fn tail_max(usual: u64, voters_before: usize) -> u64 {
    let steps = u64::try_from(voters_before).unwrap_or(u64::MAX).min(STEPS);
    usual.saturating_add(usual / STEPS * steps)
}

/// How an empty machine is made.
pub(crate) struct Restorer {
    pub(crate) new_store: NewStore,
    pub(crate) machine: machine::Options,
}

pub(crate) struct Snapshots {
    store: SnapshotStore,
    restorer: Restorer,
    id: MemberId,
    cluster_id: u64,
    log_bytes_min: u64,
    tasks: TaskSet,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    current: Mutex<Option<Local>>,
    tail: Arc<Tail>,
    /// The tail after which a snapshot is taken.
    tail_max: AtomicU64,
    due: Notify,
    newest: watch::Sender<Option<LogPosition>>,
    /// The state that would be written is in doubt.
    suspect: AtomicBool,
    partial: Mutex<Option<Partial>>,
    staging: Staging,
}

/// A machine and the block store under it.
pub(crate) struct Restored {
    pub(crate) machine: Machine,
    pub(crate) store: Arc<BlockStore>,
}

/// A snapshot in this member's store.
#[derive(Debug, Clone)]
pub(super) struct Local {
    meta: Meta,
    stored: SnapshotSummary,
}

/// Who built a snapshot, kept in its file: one that this member did not build came from a leader.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BuiltBy(pub(super) MemberId);

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshots").field("current", &self.current).finish_non_exhaustive()
    }
}

impl Snapshots {
    pub(crate) fn new(
        options: &Options,
        store: SnapshotStore,
        restorer: Restorer,
        tasks: TaskSet,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            restorer,
            id: options.id,
            cluster_id: options.cluster_id,
            log_bytes_min: options.snapshot_log_bytes,
            tasks,
            clock,
            metrics,
            current: Mutex::new(None),
            tail: Arc::default(),
            tail_max: AtomicU64::new(options.snapshot_log_bytes),
            due: Notify::new(),
            newest: watch::Sender::new(None),
            suspect: AtomicBool::new(false),
            partial: Mutex::new(None),
            staging: Staging::default(),
        })
    }

    /// The machine of the newest snapshot that verifies, or an empty one. The last says whether that
    /// snapshot came from a leader.
    pub(crate) async fn restore_newest(self: &Arc<Self>) -> Result<(Restored, bool), Fault> {
        let this = self.clone();
        self.blocking(move || {
            let found = this.store.newest_verified()?;
            for damaged in &found.damaged {
                tracing::error!(path = %damaged.path.display(), fault = %damaged.fault, "snapshot damaged, passed over");
            }
            match found.snapshot {
                Some((stored, reader)) => {
                    let BuiltBy(builder) = codec::decode("snapshot's builder", &stored.meta.extra)?;
                    let (restored, local) = this.restore(stored, reader, this.new_store()?)?;
                    this.published(local);
                    Ok((restored, builder != this.id))
                }
                None => {
                    let store = this.new_store()?;
                    let machine = Machine::new(store.clone(), &this.restorer.machine);
                    Ok((Restored { machine, store }, false))
                }
            }
        })
        .await
    }

    /// An empty store. Its threads have the priority of the one that makes it.
    pub(super) fn new_store(&self) -> Result<Arc<BlockStore>, Fault> {
        (self.restorer.new_store)()
    }

    pub(super) fn restore(
        &self,
        stored: SnapshotSummary,
        reader: SnapshotReader,
        store: Arc<BlockStore>,
    ) -> Result<(Restored, Local), Fault> {
        self.check_cluster(&stored)?;
        let Restored { machine, store } = self.load(reader, store)?;
        if machine.applied() != Some(stored.meta.last) {
            let why = format!("it says {:?}, its content {:?}", stored.meta.last, machine.applied());
            return Err(Fault::corrupt("snapshot", why));
        }
        let meta = Meta { last_log_id: Some(log_id(stored.meta.last)), last_membership: membership_of(&machine)? };
        Ok((Restored { machine, store }, Local { meta, stored }))
    }

    /// The machine of a file, over an empty store.
    pub(super) fn load(&self, reader: SnapshotReader, store: Arc<BlockStore>) -> Result<Restored, Fault> {
        let file = reader.bytes();
        let blocks = reader.read_ahead(READ_AHEAD_BLOCKS)?;
        let machine = Machine::restore_over(file, store.clone(), &self.restorer.machine, blocks)?;
        Ok(Restored { machine, store })
    }

    pub(super) fn staging(&self) -> &Staging {
        &self.staging
    }

    /// Has a snapshot taken soon, whatever the log's size.
    pub(super) fn soon(&self) {
        self.due.notify_one();
    }

    fn check_cluster(&self, stored: &SnapshotSummary) -> Result<(), Fault> {
        if stored.meta.cluster_id == self.cluster_id {
            return Ok(());
        }
        let why = format!("it is of cluster {:x}, this member is of {:x}", stored.meta.cluster_id, self.cluster_id);
        Err(Fault::corrupt("snapshot", why))
    }

    /// `local` is verified and the newest.
    pub(super) fn published(&self, local: Local) {
        let at = local.stored.meta.last;
        let before = local.meta.last_membership.voter_ids().filter(|voter| *voter < self.id).count();
        let tail_max = tail_max(self.log_bytes_min.max(local.stored.file_bytes / 2), before);
        self.tail_max.store(tail_max, Ordering::Relaxed);
        *self.current.lock() = Some(local);
        self.newest.send_replace(Some(at));
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.tasks.blocking(work).await.unwrap_or_else(panicked)
    }

    /// For what takes seconds and nobody waits for.
    pub(super) async fn background<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.tasks.background("snapshot", work).await.unwrap_or_else(panicked)
    }

    pub(crate) fn tail(&self) -> &Arc<Tail> {
        &self.tail
    }

    /// Begins a snapshot if the log has grown enough since the last.
    pub(crate) fn consider(&self) {
        if !self.suspect.load(Ordering::SeqCst) && self.tail.since_begun() > self.tail_max.load(Ordering::Relaxed) {
            self.due.notify_one();
        }
    }

    /// Has a snapshot written that is newer than that one, if it can be soon.
    async fn renew(&self, old: LogPosition) {
        let mut newest = self.newest.subscribe();
        self.soon();
        let written = newest.wait_for(|newest| newest.is_some_and(|at| at.index > old.index));
        let written = self.tasks.stopping().run_until_cancelled(written);
        // Where none can be written the old one must do.
        drop(tokio::time::timeout(RENEWAL_MAX, written).await);
    }

    /// Has due snapshots built and the log purged, until Raft ends.
    pub(crate) async fn keep(self: Arc<Self>, raft: Core) {
        let mut newest = self.newest.subscribe();
        loop {
            let asked = tokio::select! {
                () = self.due.notified() => raft.trigger().snapshot().await,
                Ok(()) = newest.changed() => match self.purgeable().await {
                    Some(index) => {
                        self.unstage(index).await;
                        raft.trigger().purge_log(index).await
                    }
                    None => Ok(()),
                },
            };
            if asked.is_err() {
                return;
            }
        }
    }

    /// The log up to here is in two verified snapshots.
    async fn purgeable(&self) -> Option<u64> {
        let store = self.store.clone();
        match self.background(move || store.second_newest()).await {
            Ok(found) => {
                for damaged in &found.damaged {
                    tracing::error!(path = %damaged.path.display(), fault = %damaged.fault, "snapshot damaged");
                }
                found.snapshot.map(|older| older.meta.last.index)
            }
            Err(fault) => {
                tracing::warn!(%fault, "snapshots cannot be read, the log is not purged");
                None
            }
        }
    }

    /// A snapshot of all that is applied now.
    pub(crate) async fn now(&self, raft: &Core, applier: &Applier, timeout: Duration) -> Result<LogPosition, Failure> {
        let Some(wanted) = applier.progress().applied else { return Err(Failure::not_proposed(Why::NotReady)) };
        if self.suspect.load(Ordering::SeqCst) {
            return Err(Failure::not_proposed(Why::Diverged));
        }
        let mut newest = self.newest.subscribe();
        let written = async {
            loop {
                if let Some(at) = *newest.borrow_and_update()
                    && at.index >= wanted.index
                {
                    return Ok(at);
                }
                if raft.trigger().snapshot().await.is_err() {
                    return Err(Failure::not_proposed(Why::ShuttingDown));
                }
                // An elapsed time is no error: it asks again.
                drop(tokio::time::timeout(ASK_AGAIN, newest.changed()).await);
            }
        };
        // None is written from the end on.
        let written = self.tasks.stopping().run_until_cancelled(written);
        match tokio::time::timeout(timeout, written).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(Failure::not_proposed(Why::ShuttingDown)),
            Err(_) => Err(Failure::not_proposed(Why::Timeout)),
        }
    }

    /// Pins the state as it is applied now.
    pub(crate) fn builder(self: &Arc<Self>, applier: &Arc<Applier>) -> Result<Builder, Fault> {
        Ok(Builder { snapshots: self.clone(), applier: applier.clone(), work: self.pin(applier)? })
    }

    /// A builder that builds nothing.
    pub(crate) fn no_builder(self: &Arc<Self>, applier: &Arc<Applier>) -> Builder {
        Builder { snapshots: self.clone(), applier: applier.clone(), work: None }
    }

    /// `None` if nothing is applied.
    fn pin(&self, applier: &Applier) -> Result<Option<Work>, Fault> {
        let machine = applier.machine();
        let Some(at) = machine.applied() else { return Ok(None) };
        let meta = Meta { last_log_id: Some(log_id(at)), last_membership: membership_of(&machine)? };
        let membership = machine.membership().map(|(_, bytes)| bytes).unwrap_or_default();
        let image = machine.image();
        self.tail.begin();
        drop(machine);
        let stored = SnapshotMeta {
            cluster_id: self.cluster_id,
            last: at,
            membership,
            revision: image.revision(),
            created_wall_ms: self.clock.wall_ms(),
            extra: codec::encode(&BuiltBy(self.id))?.into(),
        };
        Ok(Some(Work { image, stored, meta }))
    }

    /// The newest snapshot, for sending.
    pub(crate) fn current(self: &Arc<Self>) -> Option<SnapshotOf<Types, Stored>> {
        let local = self.current.lock().clone()?;
        Some(Snapshot { meta: local.meta, snapshot: Stored::Local { stored: local.stored, snapshots: self.clone() } })
    }

    /// `None`: the member is shutting down, which must not wait for a large file. The log has it all.
    fn write(&self, image: &Image, meta: SnapshotMeta) -> Result<Option<SnapshotSummary>, Fault> {
        let begun = self.clock.monotonic();
        let stopping = self.tasks.stopping();
        let mut writer = self.store.begin(meta)?;
        let go_on = || {
            give_way();
            if stopping.is_cancelled() {
                return Err(Fault::Invariant("a snapshot was written on after the end".into()));
            }
            Ok(())
        };
        let written = image.write_to(&go_on, &mut |bytes| go_on().and_then(|()| writer.write_block(bytes)));
        if stopping.is_cancelled() {
            return Ok(None);
        }
        written?;
        let stored = writer.finish()?;
        let took = self.clock.monotonic().saturating_sub(begun);
        self.metrics.snapshot_build.observe(took.as_secs_f64());
        Ok(Some(stored))
    }

    /// What a received file says of itself is what was announced, and of this cluster.
    pub(super) fn check_received(&self, received: &SnapshotSummary, announced: &Head) -> Result<(), Fault> {
        self.check_cluster(received)?;
        if Some(received.meta.last) == announced.meta.last_log_id.as_ref().map(position) {
            return Ok(());
        }
        let why = format!("announced as of {:?}, it is of {:?}", announced.meta.last_log_id, received.meta.last);
        Err(Fault::corrupt("received snapshot", why))
    }

    pub(super) fn store(&self) -> &SnapshotStore {
        &self.store
    }

    /// What there is of a file that broke off.
    pub(super) fn partial(&self) -> &Mutex<Option<Partial>> {
        &self.partial
    }

    /// Whether this member's state was in doubt when it ended.
    pub(super) fn was_suspect(&self) -> Result<bool, Fault> {
        let suspect = self.store.is_suspect()?;
        self.suspect.store(suspect, Ordering::SeqCst);
        Ok(suspect)
    }

    /// Notes on disk that this member's state, and what is built from it, is in doubt, or no longer.
    pub(super) async fn suspect(&self, suspect: bool) {
        if self.suspect.swap(suspect, Ordering::SeqCst) == suspect {
            return;
        }
        let store = self.store.clone();
        if let Err(fault) = self.blocking(move || store.set_suspect(suspect)).await {
            tracing::warn!(%fault, "whether this member's state is in doubt could not be noted on disk");
        }
    }

    /// Publishes a received snapshot and puts its machine in the place of the present one.
    pub(crate) async fn install(
        self: &Arc<Self>,
        applier: &Arc<Applier>,
        meta: &Meta,
        stored: Stored,
    ) -> Result<(), Fault> {
        let Stored::Received(import) = stored else {
            return Err(Fault::Invariant("only a received snapshot can be installed".into()));
        };
        applier.flushed.settled().await;
        let this = self.clone();
        // What serves later is made here, at the usual priority.
        let store = self.blocking(move || this.new_store()).await?;
        let (this, expected) = (self.clone(), meta.clone());
        let loading = self.background(move || {
            let (restored, local) = this.restore(import.summary().clone(), import.read()?, store)?;
            if local.meta != expected {
                return Err(Fault::corrupt("received snapshot", "it is not what the leader said it is"));
            }
            import.publish()?;
            Ok((restored, local))
        });
        let (restored, local) = loading.await?;
        let (this, of) = (self.clone(), applier.clone());
        self.blocking(move || {
            of.replace(restored);
            let at = local.meta.last_log_id.map_or(0, |last| last.index);
            this.published(local);
            tracing::info!(at, "brought up to the others by a snapshot");
            Ok(())
        })
        .await
    }
}

/// A snapshot on its way to the store.
pub(crate) struct Builder {
    snapshots: Arc<Snapshots>,
    applier: Arc<Applier>,
    work: Option<Work>,
}

struct Work {
    image: Image,
    stored: SnapshotMeta,
    meta: Meta,
}

fn panicked<T>() -> Result<T, Fault> {
    Err(Fault::Invariant("work on a snapshot panicked".into()))
}

impl Builder {
    async fn build(&self, work: Work) {
        let Work { image, stored, meta } = work;
        let at = stored.last.index;
        if self.applier.planted() != Some(Mutant::SnapshotAheadOfFlush) {
            self.applier.flushed.covers(at).await;
        }
        let snapshots = self.snapshots.clone();
        match self.snapshots.background(move || snapshots.write(&image, stored)).await {
            Ok(Some(stored)) => {
                self.snapshots.tail.end(true);
                self.snapshots.published(Local { meta, stored });
            }
            Ok(None) => {}
            Err(fault) => {
                // The log is still whole: nothing is lost, and the next attempt comes when it has
                // grown a little more. For openraft, the snapshot there is remains the newest.
                tracing::warn!(%fault, at, "snapshot not written");
                self.snapshots.tail.end(false);
            }
        }
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Stored;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, Stored>, io::Error> {
        if let Some(work) = self.work.take() {
            self.build(work).await;
        }
        let nothing = Snapshot { meta: Meta::default(), snapshot: Stored::Nothing };
        Ok(self.snapshots.current().unwrap_or(nothing))
    }
}

/// What openraft holds of a snapshot.
#[derive(Clone)]
pub(crate) enum Stored {
    /// In this member's store.
    Local {
        stored: SnapshotSummary,
        snapshots: Arc<Snapshots>,
    },
    /// Received whole and verified, not published yet.
    Received(Arc<VerifiedImport>),
    /// A backup beside the snapshots.
    Staged {
        digest: Digest,
        bytes: u64,
        snapshots: Arc<Snapshots>,
    },
    Nothing,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { stored, .. } => write!(f, "{:?}", stored.meta.last),
            Self::Received(import) => write!(f, "received {:?}", import.summary().meta.last),
            Self::Staged { bytes, .. } => write!(f, "staged, {bytes} bytes"),
            Self::Nothing => f.write_str("none"),
        }
    }
}

/// Which file is sent.
enum Source {
    Snapshot(SnapshotId),
    Staged(Digest),
}

impl Stored {
    /// The file's digest and length, if it is one of this member's.
    pub(crate) fn digest(&self) -> Option<([u8; 32], u64)> {
        match self {
            Self::Local { stored, .. } => Some((stored.digest, stored.file_bytes)),
            Self::Staged { digest, bytes, .. } => Some((*digest, *bytes)),
            Self::Received(_) | Self::Nothing => None,
        }
    }

    /// Whether the log has grown so much since that a newer one should be sent: to apply it takes whoever gets it many
    /// times what the same takes in a snapshot.
    pub(super) fn lacks_much(&self) -> bool {
        let Self::Local { snapshots, .. } = self else { return false };
        !snapshots.suspect.load(Ordering::SeqCst)
            && snapshots.tail.bytes() > snapshots.tail_max.load(Ordering::Relaxed) / SENT_TAIL_PART
    }

    /// Has a newer one written, if it can be soon.
    pub(super) async fn renew(&self) {
        if let Self::Local { stored, snapshots } = self {
            snapshots.renew(stored.meta.last).await;
        }
    }

    /// The file's bytes from `offset` on, for sending. At an error they end early, which the receiver finds.
    pub(crate) fn pieces(self, offset: u64) -> BoxStream<'static, Bytes> {
        let (snapshots, opened) = match self {
            Self::Local { stored, snapshots } => (snapshots, Source::Snapshot(SnapshotId::of(&stored.meta))),
            Self::Staged { digest, snapshots, .. } => (snapshots, Source::Staged(digest)),
            Self::Received(_) | Self::Nothing => return stream::empty().boxed(),
        };
        let begin = async move {
            let store = snapshots.store.clone();
            let open = move || {
                let mut raw = match opened {
                    Source::Snapshot(id) => store.raw(id)?,
                    Source::Staged(digest) => match store.raw_staged(&digest)? {
                        Some(raw) => raw,
                        None => return Err(Fault::Invariant("a staged backup is gone".into())),
                    },
                };
                raw.seek(offset);
                Ok(raw)
            };
            let raw = snapshots.blocking(open).await;
            raw.inspect_err(|fault| tracing::warn!(%fault, "snapshot cannot be sent")).ok().map(|raw| (raw, snapshots))
        };
        let next = |state: Option<(RawSnapshot, Arc<Snapshots>)>| async move {
            let (mut raw, snapshots) = state?;
            let (piece, raw) = snapshots.blocking(move || Ok((raw.next().transpose()?, raw))).await.ok()?;
            piece.map(|piece| (piece, Some((raw, snapshots))))
        };
        stream::once(begin).flat_map(move |state| stream::unfold(state, next)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::{Tail, tail_max};

    #[test]
    fn members_take_their_snapshots_after_logs_of_different_lengths() {
        let of_three = [0, 1, 2].map(|before| tail_max(64 << 20, before) >> 20);
        assert_eq!(of_three, [64, 72, 80]);
        assert_eq!((tail_max(80, 8), tail_max(80, 1000)), (160, 160), "never more than twice as long");
        assert_eq!(tail_max(u64::MAX, 3), u64::MAX);
    }

    #[test]
    fn the_tail_is_what_no_snapshot_has() {
        let tail = Tail::default();
        let both = || (tail.since_begun(), tail.bytes());
        tail.grow(100);
        assert_eq!(both(), (100, 100));
        tail.begin();
        tail.grow(10);
        assert_eq!(both(), (10, 110), "what is written does not count yet");
        tail.end(false);
        assert_eq!(both(), (110, 110), "it was not written");
        tail.begin();
        tail.grow(1);
        tail.end(true);
        assert_eq!(both(), (1, 1));
        tail.begin();
        tail.forget();
        tail.end(false);
        assert_eq!(both(), (0, 0), "a state from elsewhere was put in its place");
    }
}

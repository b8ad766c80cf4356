//! From the committed log to the machine: the one place that applies.
//!
//! For each entry: wait until this disk holds it, apply it, tell the watchers, answer the proposers.
//! Invariants: state never runs ahead of the log on this disk; entries are applied in order, once;
//! every responder is answered; a fault ends the process through the handler given in. It must not
//! know what a command means.

use super::divergence::Marks;
use super::flushed::Flushed;
use super::log_store::io_error;
use super::restore::{Digest, Prepared, restores};
use super::snapshots::{Builder, Restored, Snapshots, Stored, Tail};
use super::types::{LogId, Outcomes, Payload, StoredMembership, Types, log_id, position};
use crate::env::{Clock, unhurried};
use crate::machine::{LeaseChange, Machine, Reader};
use crate::model::{Batch, Command, Fault, LogPosition, Op, Revision, RevisionEvents, codec, limits};
use crate::storage::blocks::BlockStore;
use crate::storage::mutant::Mutant;
use crate::telemetry::metrics::Metrics;
use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt};
use openraft::EntryPayload;
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use parking_lot::{Mutex, MutexGuard};
use std::fmt::{self, Debug};
use std::io;
use std::sync::Arc;
use tokio::sync::watch;

/// From here on, applying is taken to wait.
const PENDING_BYTES_CROWDED: u64 = limits::WRITE_BEHIND_BYTES_MAX as u64 / 2;

/// What is told of changes: the watch hub.
pub trait Publisher: Debug + Send + Sync + 'static {
    /// The events of newly applied revisions, in order; they can be read before this is called.
    fn publish(&self, revisions: &[RevisionEvents]);
    /// What became of leases, in order, before anyone is answered.
    fn leases(&self, changes: &[LeaseChange]);
    /// The store was replaced by a snapshot at `revision`: there are no events up to it.
    fn reset(&self, revision: Revision);
}

/// How far this member has applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub applied: Option<LogPosition>,
    pub revision: Revision,
    /// Log time of the newest applied batch.
    pub now_ms: u64,
}

impl Progress {
    #[must_use]
    pub fn covers(&self, index: u64) -> bool {
        self.applied.is_some_and(|applied| applied.index >= index)
    }
}

pub(crate) type Fatal = Arc<dyn Fn(&Fault) + Send + Sync>;

/// What came of trying to apply an entry.
enum Step {
    Done(Outcomes),
    /// It is to wait.
    Wait,
    /// It needs this backup, loaded.
    Load(Digest),
}

/// The machine, and what is shared around it.
pub(crate) struct Applier {
    machine: Mutex<Machine>,
    reader: Reader,
    progress: watch::Sender<Progress>,
    tail: Arc<Tail>,
    marks: Marks,
    /// Entries beyond this index wait.
    limit: watch::Sender<u64>,
    /// A backup's state that an entry may put in the place of this one.
    prepared: Mutex<Prepared>,
    pub(super) flushed: Arc<Flushed>,
    #[cfg_attr(not(any(test, feature = "mutants")), expect(dead_code, reason = "no bug is planted in this build"))]
    mutant: Option<Mutant>,
    /// The block store under the machine.
    store: ArcSwap<BlockStore>,
    publisher: Arc<dyn Publisher>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    fatal: Fatal,
}

impl Debug for Applier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applier").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

pub(crate) struct ApplierOptions {
    pub(crate) flushed: Arc<Flushed>,
    pub(crate) tail: Arc<Tail>,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) publisher: Arc<dyn Publisher>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) fatal: Fatal,
}

impl Applier {
    pub(crate) fn new(restored: Restored, options: ApplierOptions) -> Self {
        let Restored { machine, store } = restored;
        let ApplierOptions { flushed, tail, mutant, publisher, clock, metrics, fatal } = options;
        let reader = machine.reader();
        let progress = progress_of(&machine, &reader);
        publisher.reset(progress.revision);
        let marks = Marks::default();
        marks.begin(machine.applied(), machine.state_hash());
        Self {
            machine: Mutex::new(machine),
            reader,
            progress: watch::Sender::new(progress),
            tail,
            marks,
            limit: watch::Sender::new(u64::MAX),
            prepared: Mutex::new(None),
            flushed,
            mutant,
            store: ArcSwap::new(store),
            publisher,
            clock,
            metrics,
            fatal,
        }
    }

    #[cfg(any(test, feature = "mutants"))]
    pub(super) fn planted(&self) -> Option<Mutant> {
        self.mutant
    }

    #[cfg(not(any(test, feature = "mutants")))]
    #[expect(clippy::unused_self, reason = "the same call in both builds")]
    pub(super) const fn planted(&self) -> Option<Mutant> {
        None
    }

    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock()
    }

    pub(crate) fn reader(&self) -> Reader {
        self.reader.clone()
    }

    pub(crate) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Has what is not applied yet wait; gives the index of what is.
    pub(super) fn hold(&self) -> u64 {
        let machine = self.machine.lock();
        let applied = machine.applied().map_or(0, |at| at.index);
        self.limit.send_replace(applied);
        applied
    }

    pub(super) fn allow_up_to(&self, index: u64) {
        self.limit.send_replace(index);
    }

    pub(super) fn allow_all(&self) {
        self.limit.send_replace(u64::MAX);
    }

    async fn allowed(&self, index: u64) {
        if *self.limit.borrow() >= index {
            return;
        }
        // The sender lives as long as this does.
        drop(self.limit.subscribe().wait_for(|limit| *limit >= index).await);
    }

    /// Replaces the machine by one restored from a snapshot.
    pub(crate) fn replace(&self, restored: Restored) {
        let current = self.machine.lock();
        self.replace_locked(current, restored);
    }

    /// As `replace`, if exactly `at` is applied now.
    pub(super) fn replace_at(&self, at: LogPosition, restored: Restored) -> bool {
        let current = self.machine.lock();
        let fits = current.applied() == Some(at);
        if fits {
            self.replace_locked(current, restored);
        }
        fits
    }

    fn replace_locked(&self, mut current: MutexGuard<'_, Machine>, restored: Restored) {
        let Restored { machine, store } = restored;
        self.store.store(store);
        current.install(machine);
        self.marks.begin(current.applied(), current.state_hash());
        let progress = progress_of(&current, &self.reader);
        self.publisher.reset(progress.revision);
        drop(current);
        self.tail.forget();
        self.progress.send_replace(progress);
    }

    /// Ends the process, as far as the handler does; the error stops Raft in any case.
    pub(crate) fn fail(&self, fault: Fault) -> io::Error {
        (self.fatal)(&fault);
        io_error(fault)
    }

    pub(super) fn is_prepared(&self, digest: &Digest) -> bool {
        self.prepared.lock().as_ref().is_some_and(|(prepared, _)| prepared == digest)
    }

    pub(super) fn prepare(&self, digest: Digest, restored: Restored) {
        *self.prepared.lock() = Some((digest, restored));
    }

    pub(super) fn forget_prepared(&self, digest: &Digest) {
        self.prepared.lock().take_if(|(prepared, _)| prepared == digest);
    }

    fn apply_restore(&self, at: LogPosition, batch: &Batch, digest: Digest) -> Result<Step, Fault> {
        let mut current = self.machine.lock();
        if *self.limit.borrow() < at.index {
            return Ok(Step::Wait);
        }
        let prepared = self.prepared.lock().take_if(|(prepared, _)| *prepared == digest);
        let Some((_, Restored { machine, store })) = prepared else { return Ok(Step::Load(digest)) };
        let applied = current.succeed(machine, at, batch)?;
        self.store.store(store);
        self.marks.note(at, current.state_hash());
        self.publisher.leases(&applied.leases);
        self.publisher.reset(applied.revision);
        let progress = progress_of(&current, &self.reader);
        drop(current);
        self.tail.forget();
        self.progress.send_replace(progress);
        tracing::info!(revision = applied.revision, "a backup has taken the place of the state");
        Ok(Step::Done(Outcomes(applied.outcomes)))
    }

    fn apply_batch(&self, at: LogPosition, bytes: &[u8]) -> Result<Step, Fault> {
        let mut batch: Batch = codec::decode("batch", bytes)?;
        if self.planted() == Some(Mutant::FlipStateByte) {
            flip(&mut batch);
        }
        if let Some(digest) = restores(&batch) {
            return self.apply_restore(at, &batch, digest);
        }
        // Applying waits for the engine when the write-behind queue is full.
        let crowded = self.store.load().stats().pending_bytes > PENDING_BYTES_CROWDED;
        let brief = batch.proposals.iter().all(|proposal| proposal.command.is_brief());
        unhurried(crowded || !brief, || self.apply_decoded(at, &batch, bytes.len()))
    }

    fn apply_decoded(&self, at: LogPosition, batch: &Batch, bytes: usize) -> Result<Step, Fault> {
        let begun = self.clock.monotonic();
        let mut machine = self.machine.lock();
        if *self.limit.borrow() < at.index {
            return Ok(Step::Wait);
        }
        let applied = machine.apply(at, batch)?;
        self.marks.note(at, machine.state_hash());
        drop(machine);
        let took = self.clock.monotonic().saturating_sub(begun);
        self.metrics.apply_duration.observe(took.as_secs_f64());
        if !applied.leases.is_empty() {
            self.publisher.leases(&applied.leases);
        }
        if !applied.events.is_empty() {
            self.publisher.publish(&applied.events);
        }
        self.tail.grow(bytes);
        self.progress.send_modify(|progress| {
            progress.applied = Some(at);
            progress.revision = applied.revision;
            progress.now_ms = progress.now_ms.max(batch.proposed_at_ms);
        });
        Ok(Step::Done(Outcomes(applied.outcomes)))
    }

    fn note(&self, at: LogPosition, membership: Option<Vec<u8>>) -> Result<Step, Fault> {
        let mut machine = self.machine.lock();
        if *self.limit.borrow() < at.index {
            return Ok(Step::Wait);
        }
        machine.note(at, membership.map(Into::into))?;
        self.marks.note(at, machine.state_hash());
        drop(machine);
        self.progress.send_modify(|progress| progress.applied = Some(at));
        Ok(Step::Done(Outcomes::default()))
    }
}

/// The planted bug: what is applied here is not what was proposed.
fn flip(batch: &mut Batch) {
    for proposal in &mut batch.proposals {
        let Command::Txn(txn) = &mut proposal.command else { continue };
        for op in &mut txn.success {
            if let Op::Put(put) = op
                && put.value.starts_with(b"flip")
            {
                put.value =
                    put.value.iter().enumerate().map(|(at, byte)| if at == 0 { byte ^ 1 } else { *byte }).collect();
            }
        }
    }
}

fn progress_of(machine: &Machine, reader: &Reader) -> Progress {
    let view = reader.view();
    Progress { applied: machine.applied(), revision: view.revision(), now_ms: view.now_ms() }
}

/// What openraft knows as the state machine.
#[derive(Debug)]
pub(crate) struct StateMachine {
    pub(super) applier: Arc<Applier>,
    pub(super) snapshots: Arc<Snapshots>,
}

impl StateMachine {
    fn apply_entry(&self, at: &LogId, payload: &Payload) -> Result<Step, Fault> {
        let at = position(at);
        match payload {
            EntryPayload::Normal(batch) => self.applier.apply_batch(at, &batch.bytes),
            EntryPayload::Blank => self.applier.note(at, None),
            EntryPayload::Membership(membership) => self.applier.note(at, Some(codec::encode(membership)?)),
        }
    }

    fn state(&self) -> Result<(Option<LogId>, StoredMembership), Fault> {
        let machine = self.applier.machine();
        Ok((machine.applied().map(log_id), membership_of(&machine)?))
    }
}

/// The membership that the machine has applied last, as openraft wants it.
pub(crate) fn membership_of(machine: &Machine) -> Result<StoredMembership, Fault> {
    match machine.membership() {
        Some((at, bytes)) => {
            let membership = codec::decode("membership", &bytes)?;
            Ok(StoredMembership::new(at.map(log_id), membership))
        }
        None => Ok(StoredMembership::default()),
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Stored;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        self.state().map_err(|fault| self.applier.fail(fault))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + Send,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            if self.applier.planted() == Some(Mutant::AppliedAheadOfData) {
                self.applier.progress.send_modify(|progress| progress.applied = Some(position(&entry.log_id)));
                tokio::task::yield_now().await;
            }
            if self.applier.planted() != Some(Mutant::ApplyAheadOfFlush) {
                self.applier.flushed.covers(entry.log_id.index).await;
            }
            let outcomes = loop {
                self.applier.allowed(entry.log_id.index).await;
                let step = self.apply_entry(&entry.log_id, &entry.payload);
                match step.map_err(|fault| self.applier.fail(fault))? {
                    Step::Done(outcomes) => break outcomes,
                    Step::Wait => {}
                    Step::Load(digest) => {
                        self.snapshots.note_activated(digest, entry.log_id.index);
                        let loaded = self.snapshots.prepare_for_apply(&self.applier, digest).await;
                        loaded.map_err(|fault| self.applier.fail(fault))?;
                        self.snapshots.soon();
                    }
                }
            };
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        self.snapshots.consider();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        match self.snapshots.builder(&self.applier) {
            Ok(builder) => builder,
            Err(fault) => {
                drop(self.applier.fail(fault));
                self.snapshots.no_builder(&self.applier)
            }
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Types>, stored: Stored) -> Result<(), io::Error> {
        self.snapshots.install(&self.applier, meta, stored).await.map_err(|fault| self.applier.fail(fault))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, Stored>>, io::Error> {
        Ok(self.snapshots.current())
    }
}

//! The single writer: owns the working state, publishes it after every batch.

use super::apply::{Applied, LeaseChange, Outcome};
use super::index::Place;
use super::root::{Published, Root};
use super::values::{Hand, Values};
use super::view::Reader;
use crate::model::{Batch, Fault, LogPosition, limits};
use crate::storage::blocks::BlockStore;
use crate::storage::record::Record;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of current values kept in memory.
    pub value_cache_bytes: u64,
    /// The quota of an empty store; afterwards `Command::SetQuota` decides. Must be the same on all
    /// members, so leave it alone outside tests.
    pub quota_bytes: u64,
    /// Idempotency records kept at most. Must be the same on all members, too.
    pub idempotency_records_max: usize,
    /// Called often by the threads that load an image.
    pub give_way: fn(),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            value_cache_bytes: limits::VALUE_CACHE_BYTES_DEFAULT,
            quota_bytes: limits::QUOTA_BYTES_DEFAULT,
            idempotency_records_max: limits::IDEMPOTENCY_RECORDS_MAX,
            give_way: || {},
        }
    }
}

pub struct Machine {
    pub(super) root: Root,
    pub(super) published: Arc<Published>,
    pub(super) values: Arc<Values>,
    /// Records of the batch under way, not yet in the block store.
    pub(super) pending: Vec<Arc<Record>>,
    /// What the batch under way did to leases, in order.
    pub(super) lease_changes: Vec<LeaseChange>,
    /// The term of the entry under way.
    pub(super) term: u64,
    pub(super) hand: Hand,
    pub(super) content_types: ContentTypes,
    /// Versions that left the index when their keys were written, of which the block store is yet to be told.
    pub(super) outlived: Vec<Place>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("numbers", &self.root.numbers).field("applied", &self.root.applied).finish()
    }
}

impl Machine {
    /// The empty store, over an empty block store.
    #[must_use]
    pub fn new(store: Arc<BlockStore>, options: &Options) -> Self {
        let values = Arc::new(Values::new(store, options.value_cache_bytes));
        Self::from_root(Root::empty(values, options))
    }

    pub(super) fn from_root(root: Root) -> Self {
        root.values.set_trimmed(root.trimmed);
        Self {
            published: Arc::new(Published::new(root.clone())),
            values: root.values.clone(),
            pending: Vec::new(),
            lease_changes: Vec::new(),
            term: 0,
            hand: Hand::default(),
            content_types: ContentTypes::default(),
            outlived: Vec::new(),
            root,
        }
    }

    /// Applies one log entry. After a fault the machine is not usable.
    ///
    /// # Errors
    /// Only faults; what is wrong with a single proposal is its outcome.
    pub fn apply(&mut self, at: LogPosition, batch: &Batch) -> Result<Applied, Fault> {
        let root = &mut self.root;
        let passed_ms = batch.proposed_at_ms.saturating_sub(root.numbers.now_ms);
        root.numbers.now_ms += passed_ms;
        root.idempotency.pass(at.term, passed_ms, &mut root.sum);
        self.term = at.term;
        let mut applied = Applied {
            outcomes: Vec::with_capacity(batch.proposals.len()),
            events: Vec::new(),
            leases: Vec::new(),
            revision: 0,
        };
        for proposal in &batch.proposals {
            let outcome: Outcome = self.apply_proposal(proposal, &mut applied.events)?;
            applied.outcomes.push(outcome);
        }
        applied.revision = self.root.numbers.revision;
        applied.leases = std::mem::take(&mut self.lease_changes);
        self.values.store.append(std::mem::take(&mut self.pending))?;
        self.hand.sweep(&self.values, &self.root.index);
        self.advance(at)?;
        Ok(applied)
    }

    /// Notes a log entry without proposals: a blank one, or a membership.
    ///
    /// # Errors
    /// A fault if the log went backwards.
    pub fn note(&mut self, at: LogPosition, membership: Option<Bytes>) -> Result<(), Fault> {
        if let Some(membership) = membership {
            self.root.membership = Some((Some(at), membership));
        }
        self.advance(at)
    }

    fn advance(&mut self, at: LogPosition) -> Result<(), Fault> {
        if let Some(last) = self.root.applied.filter(|last| last.index >= at.index) {
            return Err(Fault::Invariant(format!("log entry {} was applied after {}", at.index, last.index)));
        }
        self.root.applied = Some(at);
        self.publish();
        Ok(())
    }

    pub(super) fn publish(&mut self) {
        self.published.publish(self.root.clone());
    }

    /// Takes over the state of a machine made from an image. Readers of this machine go on with it.
    pub fn install(&mut self, restored: Self) {
        let published = self.published.clone();
        *self = Self { published, ..restored };
        self.publish();
    }

    /// The hash of the state as it is now.
    #[must_use]
    pub fn state_hash(&self) -> u128 {
        self.root.state_hash()
    }

    #[must_use]
    pub fn applied(&self) -> Option<LogPosition> {
        self.root.applied
    }

    /// The last membership, and where in the log it stood.
    #[must_use]
    pub fn membership(&self) -> Option<(Option<LogPosition>, Bytes)> {
        self.root.membership.clone()
    }

    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader { published: self.published.clone() }
    }
}

/// The few content types in use, so that a million keys share one string.
#[derive(Debug, Default)]
pub(super) struct ContentTypes {
    recent: Vec<Arc<str>>,
}

const CONTENT_TYPES_SHARED: usize = 16;

impl ContentTypes {
    pub(super) fn shared(&mut self, declared: &str) -> Arc<str> {
        if let Some(known) = self.recent.iter().find(|known| &***known == declared) {
            return known.clone();
        }
        if self.recent.len() == CONTENT_TYPES_SHARED {
            self.recent.remove(0);
        }
        let new: Arc<str> = declared.into();
        self.recent.push(new.clone());
        new
    }
}

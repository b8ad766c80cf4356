//! Claims: locks, semaphores and elections, which are one mechanism. A claim is a key on a lease; the
//! claims of a name queue by their create revision, which is also the fencing token (`model::claim`).
//!
//! Invariants: whether a claim holds is read from the queue alone, so clients of etcd's concurrency
//! package and ours exclude each other; nobody is told that it holds unless it did when its own write was
//! applied, or that was confirmed later at a linearizable view, lease included; whoever stops waiting leaves the queue; the same
//! lease asking again gets the same claim. No timer is on the way of a hand-over: a waiter is woken by
//! the deletion that lets it in.

mod acquire;
mod election;
mod place;
mod queue;
mod release;
#[cfg(test)]
mod tests;
mod txns;

pub use acquire::Acquired;
pub use election::{Leader, Observer};
pub use place::{Hold, HoldStep};
pub use queue::{ClaimList, ClaimPage};

use crate::model::{ClaimName, LeaseId, LeaseLabel, Revision};
use bytes::Bytes;

/// Whose the claim is to be.
#[derive(Debug, Clone)]
pub enum Session {
    /// A lease of its own, which ends with the claim. The label is what people know the claim by.
    New {
        ttl_ms: u64,
        label: LeaseLabel,
    },
    Lease(LeaseId),
}

#[derive(Debug, Clone)]
pub struct ClaimRequest {
    pub of: ClaimName,
    pub session: Session,
    /// An election's candidate says what it is to be known for; locks and semaphores leave it empty.
    pub value: Bytes,
    /// How much of a semaphore; 1 for the others.
    pub permits: u64,
    /// What a semaphore's limit is to be, or must be.
    pub limit: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub of: ClaimName,
    /// Where it is stored; a foreign client's may be named otherwise than ours.
    pub key: Bytes,
    pub held: bool,
    /// How many claims are before it.
    pub position: u64,
    pub token: Revision,
    pub lease: LeaseId,
    pub label: LeaseLabel,
    pub value: Bytes,
    pub permits: u64,
    pub ttl_ms: u64,
    /// `None` where only another member knows.
    pub remaining_ms: Option<u64>,
}

/// All claims of a name, the holders first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimQueue {
    pub of: ClaimName,
    /// Of a semaphore; `None` if nobody has set it.
    pub limit: Option<u64>,
    pub claims: Vec<Claim>,
    pub revision: Revision,
}

impl ClaimQueue {
    pub fn holders(&self) -> impl Iterator<Item = &Claim> {
        self.claims.iter().take_while(|claim| claim.held)
    }

    pub fn waiters(&self) -> impl Iterator<Item = &Claim> {
        self.claims.iter().skip_while(|claim| claim.held)
    }

    #[must_use]
    pub fn find(&self, lease: LeaseId) -> Option<&Claim> {
        self.claims.iter().find(|claim| claim.lease == lease)
    }
}

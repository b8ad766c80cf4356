//! The replicated state machine (rank 2): applies batches of proposals to an MVCC store, and
//! answers reads from immutable views of it.
//!
//! Invariants: deterministic and synchronous: the answer and the new state depend on the state and
//! the batch only, never on a clock, randomness, hash order, floats, how proposals were cut into
//! batches, what has been trimmed, or whether the state was restored. A rejected command leaves no
//! trace. Revisions rise by one per writing transaction, and a key is written at most once in each.
//! One writer (`Machine`); readers hold views (`Reader`, `View`) and never see half a batch.
//! Whoever touches state holds an `Authorized` request. It must not know Raft's library, watchers,
//! deadlines, sockets or metrics.

mod apply;
mod auth;
mod authority;
mod hash;
mod idempotency;
mod image;
mod image_file;
mod index;
mod leases;
mod packed;
mod patch;
mod read;
mod renew;
mod restore;
mod root;
#[cfg(test)]
mod tests;
mod timeline;
mod trim;
mod validate;
mod values;
mod view;
mod writer;

pub use apply::{Applied, LeaseChange, Outcome};
pub use authority::{Authorized, Request};
pub use image::Image;
pub use root::AUTH_FEATURE_LEVEL;
pub use trim::TrimStep;
pub use validate::validate;
pub use view::{Credentials, LeaseInfo, Reader, Stats, TokenInfo, View};
pub use writer::{Machine, Options};

use crate::model::{Failure, Fault, Rejection};

/// Why a command or a read did not go through.
#[derive(Debug)]
pub(crate) enum Stop {
    Rejected(Rejection),
    Fault(Fault),
}

impl Stop {
    fn invariant(message: &str) -> Self {
        Self::Fault(Fault::Invariant(message.into()))
    }
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Rejected(rejection) => rejection.into(),
            Stop::Fault(fault) => fault.into(),
        }
    }
}

//! Consensus (rank 3), the only home of openraft: the log store and the state machine adapter, the
//! batcher in front, the read barrier, log time, snapshots' schedule, the comparison of members' states,
//! the watchdog over the log's disk, and the handle on it all.
//!
//! Invariants: an answered write is durable on a quorum and applied; only what was refused before
//! the append is called not proposed; state never runs ahead of the log on this disk, and the log is
//! purged only up to the second-newest verified snapshot. It must not know HTTP, gRPC, sockets, or
//! what a command means; openraft's types do not leave it.

mod answer;
mod apply;
mod barrier;
mod batcher;
mod config;
mod consensus;
mod divergence;
mod entry;
mod flushed;
mod handing;
mod link;
mod log_clock;
mod log_store;
mod members;
mod network;
mod peers;
mod queue;
mod repair;
mod responder;
mod restore;
mod seed;
mod snapshots;
mod stall;
mod transfer;
mod trimmer;
mod types;

#[cfg(test)]
pub(crate) mod tests;

pub use apply::{Progress, Publisher};
pub use consensus::{Consensus, LeaderHandler, NewStore, Options, Parts, StartError, State};
pub use divergence::Standing;
pub use members::{About, Change, MemberState};
pub use network::{Lane, NoPeers, Peer, Transport, TransportError};
pub use seed::{Seed, plant, replay};
pub use stall::DiskStall;
pub use types::{Member, MemberId};

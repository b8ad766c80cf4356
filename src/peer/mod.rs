//! Member to member (rank 5): opaque bytes over gRPC streams, three connections to each peer so that
//! neither a bulk append nor a snapshot delays a heartbeat.
//!
//! Invariants: nothing is answered before both ends have shown that they belong to one cluster and
//! are who the other takes them for; what is told apart as "never sent" was never sent; a peer that
//! cannot be reached is tried again with growing, jittered pauses. It must not know what the bytes
//! mean, nor who is asked.

mod codec;
mod door;
mod exchange;
mod hello;
mod link;
mod meet;
mod quiet;
mod transport;

#[cfg(test)]
mod tests;

pub use door::{Answerer, Door, Meeting};
pub use hello::Identity;
pub use meet::meet;
pub use transport::{PeerTransport, Settings};

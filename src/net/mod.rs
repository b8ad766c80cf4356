//! Listening, accepting and draining HTTP connections (rank 0): HTTP/1.1 and h2c on one port; and
//! dialling others.
//!
//! Invariants: the number of connections is bounded; a connection that is silent in the middle of a
//! request's head, that stays idle, or that does not take its answer is closed; shutdown first
//! lets requests finish, then cuts. It must not know routes, or anything else of the product.

mod cause;
mod connection;
mod listen;
mod wire;

pub use cause::root_cause;
pub use connection::Vanishing;
pub use listen::{Limits, Listener};
pub use wire::{Patience, Security, Wire};

/// A connection as hyper takes it.
pub type HyperWire = hyper_util::rt::TokioIo<Wire>;

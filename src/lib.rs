//! Tenure: a strongly consistent store for the small data a fleet must agree on.
//!
//! The code map is ARCHITECTURE.md; each module's own docs say what it is, what always holds in it,
//! and what it must not know. Imports point down the ranks: `model, env, telemetry, net` < `storage`
//! < `machine` < `watch, raft` < `service` < `peer, api, client` < `node` < `cli`; `tests/tidy.rs` fails
//! if one does not.

pub mod api;
pub mod cli;
pub mod client;
pub mod env;
pub mod machine;
pub mod model;
pub mod net;
pub mod node;
pub mod peer;
pub mod raft;
pub mod service;
pub mod storage;
pub mod telemetry;
pub mod watch;

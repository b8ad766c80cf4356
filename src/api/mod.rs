//! The HTTP doors (rank 5): translators onto `service`, and nothing else.
//!
//! Invariants: a request is decoded, one service method is called, its answer is encoded. Every
//! failure goes through `status`; unknown parameters and members are refused, never ignored; a request
//! for a mutation that fails says whether it may have been applied. The routes are one table. It
//! must not know raft, the machine or storage.

mod access;
mod address;
mod body;
mod browser;
mod call;
mod dispatch;
mod etcd;
mod json;
mod ops;
mod problem;
mod receive;
mod rest;
mod routes;
mod status;

pub use body::Body;
pub use dispatch::{handler, operation_ids};
pub use routes::{ROUTES, Route};

use crate::env::{Clock, Entropy, TaskSet};
use crate::service::Service;
use crate::telemetry::{HttpMetrics, LogControl, Registry};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// The release of etcd whose API `/version` and `/v1/status` claim to speak.
pub const ETCD_VERSION: &str = "3.6.5";

/// What the doors need to know of the process's settings.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the client listener is bound: a loopback address turns the guard against DNS rebinding on.
    pub listen: SocketAddr,
    /// Origins of browser pages that may call, as `scheme://host[:port]`.
    pub cors_origins: Vec<String>,
    pub request_bytes_max: usize,
    pub etcd: EtcdOptions,
    /// The effective settings for `/v1/config`, secrets masked.
    pub config: watch::Receiver<serde_json::Value>,
}

/// What only etcd's clients see of the settings.
#[derive(Debug, Clone, Copy)]
pub struct EtcdOptions {
    /// How often a watch that wants to hear of progress does.
    pub progress_every: std::time::Duration,
    /// How long a watch stream whose client needs a leader goes on without one.
    pub leader_patience: std::time::Duration,
}

/// What every handler is given.
#[derive(Debug)]
pub struct State {
    pub service: Service,
    /// Complete: everything is registered before the first scrape.
    pub registry: Registry,
    pub http: HttpMetrics,
    pub logs: LogControl,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub tasks: TaskSet,
    pub options: Options,
}

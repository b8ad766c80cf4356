//! Metrics and tracing set-up (rank 0). Every metric's name is in here (`metrics`, `http`, `process`,
//! `etcd`, `watch`); a registry per node, so that several nodes in one process do not share counters. It must
//! not know business types.

pub mod etcd;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod process;
mod sampled;
pub mod watch;

pub use http::HttpMetrics;
pub use logs::{LogControl, LogError, LogFormat};
pub use metrics::Metrics;
pub use prometheus_client::registry::Registry;

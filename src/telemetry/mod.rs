//! Metrics and tracing set-up (rank 0). Every metric's name is in `metrics`; a registry per node, so
//! that several nodes in one process do not share counters. It must not know business types.

pub mod metrics;

pub use metrics::Metrics;

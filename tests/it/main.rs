//! The real binary over its real port: the contract (`openapi`), and what it takes to be trusted
//! with it (`rest`, `hostile`): bytes, conditions, waits, pages, bad clients, restarts. Changing settings
//! (`reload`). Watches (`watch`). And the command line (`cli`).
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test harness: it fails by panics, starts threads and reports to the terminal"
)]

mod cli;
mod cluster;
mod contract;
mod etcd;
mod follow;
mod hostile;
mod leases;
mod locks;
mod openapi;
mod reload;
mod rest;
#[path = "../support/mod.rs"]
mod support;
mod watch;
mod wire;

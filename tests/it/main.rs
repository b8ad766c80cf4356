//! The real binary over its real port: the contract (`openapi`), and what it takes to be trusted
//! with it (`rest`, `hostile`): bytes, conditions, waits, pages, bad clients, restarts. Changing settings
//! (`reload`). Watches (`watch`). Users and rights (`auth`). And the command line (`cli`). etcd's clients: over JSON (`etcd`),
//! as Kubernetes calls (`etcd_kubernetes`), with bad input (`etcd_hostile`), and copies of etcds (`etcd_import`).
//! On several processes: what survives (`cluster`), and the proofs of watches (`proof`) and of leases and claims
//! (`sessions`). Bad input to all of these: `unkind`. Watch bugs of etcd: `etcd_bugs`. Commands around commands: `wrappers`.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test harness: it fails by panics, starts threads and reports to the terminal"
)]

mod auth;
mod cli;
mod cluster;
mod cluster_cli;
mod cluster_peers;
mod contract;
mod deploy;
mod dev;
mod etcd;
mod etcd_bugs;
mod etcd_hostile;
mod etcd_import;
mod etcd_kubernetes;
mod etcd_watches;
mod follow;
mod hostile;
mod leases;
mod locks;
mod openapi;
mod operate;
mod proof;
mod reload;
mod rest;
mod sessions;
#[path = "../support/mod.rs"]
mod support;
mod unkind;
mod watch;
mod wire;
mod wrappers;

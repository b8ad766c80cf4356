//! The real binary over its real port: the contract (`openapi`), and what it takes to be trusted
//! with it (`rest`): bytes, conditions, waits, pages, hostile clients, restarts.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test harness: it fails by panics, starts threads and reports to the terminal"
)]

mod contract;
mod hostile;
mod openapi;
mod rest;
#[path = "../support/mod.rs"]
mod support;
mod wire;

//! The composition root (rank 6): the checked configuration, the wiring of one member, and the order
//! of its start and its end. Everything below is handed its `Options`; only this module knows all of
//! them. It must not know the command line.

pub mod config;
pub mod restore;

use config::Checked;
use thiserror::Error;

#[derive(Debug, Error)]
#[error("{0}")]
pub struct NodeError(pub String);

/// Runs one member until it is told to stop.
pub fn run(config: Checked) -> Result<(), NodeError> {
    Err(NodeError(format!("member {} cannot run yet: its parts are not assembled", config.name)))
}

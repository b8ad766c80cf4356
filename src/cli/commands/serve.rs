//! `serve`: settings to a checked configuration, then the node takes over.

use crate::cli::exit::CliError;
use crate::cli::server_flags::ServerFlags;
use crate::node;

pub(in crate::cli) fn run(flags: ServerFlags) -> Result<(), CliError> {
    let checked = flags.clone().layered()?.check()?;
    let reread = Box::new(move || flags.clone().layered()?.check());
    node::run(checked, reread).map_err(|error| CliError::other(error.to_string()))
}

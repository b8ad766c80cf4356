//! `serve`: settings to a checked configuration, then the node takes over.

use crate::cli::exit::CliError;
use crate::cli::server_flags::ServerFlags;
use crate::node;

pub(in crate::cli) fn run(flags: ServerFlags) -> Result<(), CliError> {
    if let Some(parent) = flags.end_with() {
        end_with(parent)?;
    }
    shun_huge_pages();
    let checked = flags.clone().layered()?.check()?;
    let reread = Box::new(move || flags.clone().layered()?.check());
    node::run(checked, reread).map_err(|error| CliError::other(error.to_string()))
}

/// The allocator asks for huge pages, of which the store's small objects fill a part and the rest counts as
/// memory in use: 90 to 150 bytes a key of a million, and the zeroing costs writes more than it saves.
#[cfg(target_os = "linux")]
fn shun_huge_pages() {
    // A kernel that knows no huge pages refuses, and that is as well.
    rustix::thread::disable_transparent_huge_pages(true).ok();
}

#[cfg(not(target_os = "linux"))]
fn shun_huge_pages() {}

/// Has the kernel end this process with the one that started it, which may be killed itself.
#[cfg(target_os = "linux")]
fn end_with(parent: u32) -> Result<(), CliError> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    let asked = set_parent_process_death_signal(Some(Signal::KILL));
    asked.map_err(|error| CliError::io("end with the parent process", &error.into()))?;
    // It may have ended before the kernel was asked.
    let lives = getppid().is_some_and(|known| u32::try_from(known.as_raw_nonzero().get()) == Ok(parent));
    if lives { Ok(()) } else { Err(CliError::other("the process that started this member has ended")) }
}

#[cfg(not(target_os = "linux"))]
fn end_with(_: u32) -> Result<(), CliError> {
    Ok(())
}

//! What must hold in every run, one file each. Those with a type are judged while the run goes on, the
//! others at its end, from the ledger. Each answers with what is wrong, in words.

mod counters;
mod election;
mod freshness;
mod hashes;
mod leases;
mod locks;
mod log_matching;
mod replay;
mod revisions;
mod state_machine;
mod watch;
mod writes;

pub(crate) use election::Election;
pub(crate) use hashes::unequal;
pub(crate) use locks::GUARDED;
pub(crate) use log_matching::LogMatching;
pub(crate) use revisions::MemberRevisions;
pub(crate) use state_machine::StateMachine;

use super::ledger::Book;
use replay::Replay;

/// Judges a run that has ended.
pub(crate) fn judge(book: &Book) -> Vec<String> {
    let replay = Replay::of(book);
    let mut found = Vec::new();
    found.extend(replay.holes());
    found.extend(writes::check(book, &replay));
    found.extend(counters::check(book, &replay));
    found.extend(freshness::check(book, &replay));
    found.extend(watch::check(book, &replay));
    found.extend(leases::check(book));
    found.extend(locks::check(book, &replay));
    found
}

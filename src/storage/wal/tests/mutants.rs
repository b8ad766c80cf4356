//! Positive controls: each planted bug must be found by the check that is there to find it.

use super::harness::*;
use super::{crash, damage, faults};
use crate::storage::mutant::Mutant;

fn assert_caught(outcome: Result<(), String>) {
    let problem = outcome.expect_err("the planted bug was not noticed");
    assert!(!problem.is_empty());
}

#[test]
fn a_missing_sync_of_entries_is_caught() {
    assert_caught(crash::crash_everywhere(&mixed_calls(), 2, Some(Mutant::NoFsyncOnAppend)));
}

#[test]
fn a_missing_sync_of_a_vote_is_caught() {
    assert_caught(crash::crash_everywhere(&mixed_calls(), 2, Some(Mutant::NoFsyncOnVote)));
}

#[test]
fn an_ignored_sync_error_is_caught() {
    assert_caught(faults::fail_everywhere(Some(Mutant::FsyncErrorIgnored)));
}

#[test]
fn silently_cut_damage_is_caught() {
    assert_caught(damage::flip_every_byte(Some(Mutant::DamagedMiddleCut)));
}

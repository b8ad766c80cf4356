//! Positive controls: each planted bug must be found by the check that is there to find it.

use super::harness::*;
use super::{crash, damage, faults};
use crate::storage::mutant::Mutant;

const LOST: &str = "acknowledged up to record";

fn assert_caught(outcome: Result<(), String>, expected: &str) {
    let problem = outcome.expect_err("the planted bug was not noticed");
    assert!(problem.contains(expected), "noticed for another reason: {problem}");
}

#[test]
fn a_missing_sync_of_entries_is_caught() {
    assert_caught(crash::crash_everywhere(&mixed_calls(), 2, Some(Mutant::NoFsyncOnAppend)), LOST);
}

#[test]
fn a_missing_sync_of_a_vote_is_caught() {
    assert_caught(crash::crash_everywhere(&mixed_calls(), 2, Some(Mutant::NoFsyncOnVote)), LOST);
}

#[test]
fn an_ignored_sync_error_is_caught() {
    let outcome = faults::fail_everywhere(Some(Mutant::FsyncErrorIgnored));
    assert_caught(outcome, "Eio: fatal was called 0 times");
}

#[test]
fn silently_cut_damage_is_caught() {
    assert_caught(damage::flip_every_byte(Some(Mutant::DamagedMiddleCut)), "was flipped and");
}

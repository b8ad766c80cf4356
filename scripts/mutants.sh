#!/bin/sh
# Positive controls: builds the binary with known bugs that TENURE_MUTANT selects, and shows that the
# tests catch each one. A bug that survives, or a control that did not run, fails the script.
# Needs root for the power cuts and strace for the failing syncs.
set -eu
cd "$(dirname "$0")/.."
export TENURE_FAULTS_REQUIRED=1 TENURE_FAULT_CUTS=15 RUST_BACKTRACE=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# run BUG TEST-ARGUMENTS…: with that bug planted; "" is none.
run() {
    bug=$1
    shift
    env TENURE_MUTANT="$bug" cargo test --quiet --features mutants "$@" >"$log" 2>&1
}

fail() {
    tail -n 40 "$log"
    echo "mutants: $*" >&2
    exit 1
}

# Bugs planted inside unit tests, which demand that their own check finds them.
planted() {
    run "" --lib "$1" || fail "$1 failed"
    grep -q "test result: ok. $2 passed" "$log" || fail "$1 did not run $2 controls"
    echo "caught in process: $1"
}

# Bugs planted in the real binary: the test passes without, and fails with, for a broken promise.
caught() {
    run "" --test faults "$2" || fail "$2 fails without any planted bug"
    grep -q 'test result: ok. [1-9]' "$log" || fail "$2 did not run"
    if run "$1" --test faults "$2"; then fail "$1 survived $2"; fi
    grep -q VIOLATION "$log" || fail "$1 failed $2 for another reason"
    echo "caught: $1 by $2"
}

# Bugs planted in what unit tests drive: the test passes without, and fails with, for a broken promise.
caught_by_unit() {
    run "" --lib "$2" || fail "$2 fails without any planted bug"
    grep -q 'test result: ok. 1 passed' "$log" || fail "$2 is not one test"
    if run "$1" --lib "$2"; then fail "$1 survived $2"; fi
    grep -q VIOLATION "$log" || fail "$1 failed $2 for another reason"
    echo "caught: $1 by $2"
}

# Bugs planted in simulated members: found within the first seeds. How it fares without any is the
# simulation's own test.
simulated() {
    if run "$1" --test sim seeds_keep_every_invariant; then fail "$1 survived the simulation"; fi
    grep -Eq "VIOLATION (${2:-})" "$log" || fail "$1 failed the simulation for another reason than ${2:-a violation}"
    echo "caught: $1 by the simulation${2:+ ($2)}"
}

cargo test --quiet --features mutants --lib --test faults --test sim --no-run
planted storage::wal::tests::mutants:: 4
planted raft::tests::order::apply_waits_for_the_log_on_this_disk 1
planted raft::tests::order::publication_waits_for_the_log_on_this_disk 1
caught NoFsyncOnAppend powercut::
caught FsyncErrorIgnored disk::a_failed_sync_ends_the_process
caught DamagedMiddleCut damage::damage_in_the_middle
caught_by_unit FormerLeaderExpires what_a_former_leader_proposes_ends_and_shortens_nothing
caught_by_unit TermBeginsUnasked a_term_does_not_begin_before_a_quorum_has_told_the_time
caught_by_unit ClaimNotConfirmed a_waiter_on_a_member_left_behind_is_not_told_that_it_holds
export TENURE_SIM_SEEDS=1..120
# A claim is confirmed by such a read, too.
simulated LocalReads 'freshness|locks'
simulated LeaseReadsOnWallClock 'freshness|locks'
simulated AppliedAheadOfData freshness
simulated AckBeforeQuorum
simulated WatchResumesTwice watch
simulated WatchSkipsCompacted watch
simulated WatchSplitsRevision watch
simulated BookmarkAhead watch
# What is done twice shows in what was written as well as in a count.
simulated RequestIdForgotten 'exactly once|writes'
simulated NewLeaderCutsLeases leases
simulated KeepAliveWithoutQuorum leases
simulated SnapshotForgetsRequests
simulated SnapshotForgetsLeases
# One in some forty of such runs finds it.
export TENURE_SIM_SEEDS=1..400 TENURE_SIM_FAULTS=Late
simulated LateAnswersConfirm 'freshness|locks'
# One in some twenty.
export TENURE_SIM_FAULTS=WallStep
simulated StepsAgeRequests 'exactly once|writes'
echo "mutants: none survived"

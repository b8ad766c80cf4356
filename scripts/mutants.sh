#!/bin/sh
# Positive controls: builds the binary with known bugs that TENURE_MUTANT selects, and shows that the
# tests catch each one. A bug that survives, or a control that did not run, fails the script.
# Needs root for the power cuts and strace for the failing syncs.
set -eu
cd "$(dirname "$0")/.."
export TENURE_FAULTS_REQUIRED=1 TENURE_FAULT_CUTS=15 RUST_BACKTRACE=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

run() { cargo test --quiet --features mutants "$@" >"$log" 2>&1; }

fail() {
    tail -n 40 "$log"
    echo "mutants: $*" >&2
    exit 1
}

# Bugs planted inside unit tests, which demand that their own check finds them.
planted() {
    run --lib "$1" || fail "$1 failed"
    grep -q "test result: ok. $2 passed" "$log" || fail "$1 did not run $2 controls"
    echo "caught in process: $1"
}

# Bugs planted in the real binary: the test passes without, and fails with, for a broken promise.
caught() {
    run --test faults "$2" || fail "$2 fails without any planted bug"
    grep -q 'test result: ok. [1-9]' "$log" || fail "$2 did not run"
    if TENURE_MUTANT=$1 run --test faults "$2"; then fail "$1 survived $2"; fi
    grep -q VIOLATION "$log" || fail "$1 failed $2 for another reason"
    echo "caught: $1 by $2"
}

cargo test --quiet --features mutants --lib --test faults --no-run
planted storage::wal::tests::mutants:: 4
planted raft::tests::order::apply_waits_for_the_log_on_this_disk 1
planted raft::tests::order::publication_waits_for_the_log_on_this_disk 1
caught NoFsyncOnAppend powercut::
caught FsyncErrorIgnored disk::a_failed_sync_ends_the_process
caught DamagedMiddleCut damage::damage_in_the_middle
echo "mutants: none survived"

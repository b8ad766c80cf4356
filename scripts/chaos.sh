#!/usr/bin/env bash
# A cluster of real processes under load while it is killed, paused, cut apart, cut off from power…
set -euo pipefail

usage() {
    cat <<'HELP'
usage: scripts/chaos.sh [short|long] [OPTIONS]

Builds the tests (and a release binary for the long run), and runs tests/chaos: every fault is a line;
a table and the verdict of both checkers come at the end. Exit code 1 if any promise was broken, or
if less happened than was asked for.

  short     each kind of fault at least once, some two minutes; it is also part of `cargo test`
  long      the run that counts: 600,000 operations, 300 faults, 100 leader changes, 30 power cuts
            (some 25 minutes); the default

  --members N   3 or 5 (3)
  --seed N      repeats a run's choices
  --ops N --faults N --leaders N --cuts N --seconds N    what must be reached
  --max-seconds N   give up after this long (short 600, long 3600)
  --clients N --pace-ms N   clients, and the least time of each between two operations
  --only NAME,… only these faults, by their names in the table
  --debug       the long run with the binary that the tests build, too

Power cuts, stuck and full disks take root and loop devices, stepped clocks libfaketime; without, they are
left out, and it is said.

  TENURE_BIN    the binary; without it, one is built
  TMPDIR        where the members' data go
HELP
}

mode=long
case "${1:-}" in
    short | long) mode=$1; shift ;;
    -h | --help) usage; exit 0 ;;
esac
debug=
case $mode in
    short) seconds=90 ops=3000 faults=15 leaders=4 cuts=2 max_seconds=600 clients=18 pace_ms=10 ;;
    long) seconds=60 ops=600000 faults=300 leaders=100 cuts=30 max_seconds=3600 clients=30 pace_ms=20 ;;
esac
members=3 seed=
while [ $# -gt 0 ]; do
    case "$1" in
        --members | --seed | --ops | --faults | --leaders | --cuts | --seconds | --max-seconds | --clients | --pace-ms)
            [[ ${2:-} =~ ^[0-9]+$ ]] || { echo "chaos: $1 takes a number" >&2; exit 2; }
            name=${1#--}
            printf -v "${name//-/_}" %s "$2"
            shift 2
            ;;
        --only) export TENURE_CHAOS_ONLY=${2:?--only takes names}; shift 2 ;;
        --debug) debug=1; shift ;;
        -h | --help) usage; exit 0 ;;
        *) echo "chaos: unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
done

root=$(dirname "$(dirname "$(readlink -f "$0")")")
cd "$root"
target=${CARGO_TARGET_DIR:-$root/target}
if [ -n "${TENURE_BIN:-}" ]; then
    export TENURE_TEST_BINARY=$TENURE_BIN
elif [ "$mode" = long ] && [ -z "$debug" ]; then
    cargo build --quiet --locked --release --bin tenure
    export TENURE_TEST_BINARY=$target/release/tenure
fi
cargo test --quiet --locked --test chaos --no-run

TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/tenure-chaos.XXXXXX")
export TMPDIR

# What an interrupted run leaves behind: processes, mounts and loop devices, all below $TMPDIR.
# shellcheck disable=SC2329
clean() {
    local left
    for left in $(grep -slF "$TMPDIR" /proc/[0-9]*/cmdline | grep -oE '[0-9]+'); do
        if grep -qz '^serve$' "/proc/$left/cmdline" 2>/dev/null; then kill -KILL "$left" 2>/dev/null || true; fi
    done
    sleep 0.2
    while read -r left; do
        fsfreeze -u "$left" 2>/dev/null || true
        umount "$left" 2>/dev/null || umount --lazy "$left" || true
    done < <(awk -v dir="$TMPDIR/" 'index($2, dir) == 1 { print $2 }' /proc/mounts)
    if command -v losetup >/dev/null; then
        while read -r left; do losetup --detach "$left" 2>/dev/null || true; done \
            < <(losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null | awk -v dir="$TMPDIR/" 'index($2, dir) == 1 { print $1 }')
    fi
    rm -rf "$TMPDIR"
}
trap clean EXIT
trap 'exit 130' INT TERM

export TENURE_CHAOS_SECONDS=$seconds TENURE_CHAOS_MAX_SECONDS=$max_seconds TENURE_CHAOS_OPS=$ops
export TENURE_CHAOS_FAULTS=$faults TENURE_CHAOS_LEADERS=$leaders TENURE_CHAOS_CUTS=$cuts
export TENURE_CHAOS_MEMBERS=$members TENURE_CHAOS_CLIENTS=$clients TENURE_CHAOS_PACE_MS=$pace_ms
[ -z "$seed" ] || export TENURE_SEED=$seed
echo "chaos: $(nproc) cores, $(uname -sr), $members members, ${TENURE_TEST_BINARY:-the binary of the tests}"
cargo test --quiet --locked --test chaos -- --nocapture --exact campaign::faults_break_no_promise

#!/usr/bin/env bash
# Fixed load scenarios against a node, as a Markdown table.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: scripts/bench.sh [--members COUNT] [--against-etcd] [SECONDS]
       scripts/bench.sh --join [--members COUNT] [KEYS]

Builds a release binary, starts fresh members on this machine (one, or COUNT as one cluster) and runs
`tenure bench` through fixed scenarios, SECONDS (10) each, with the connections spread over all members.
Load generator and members share the machine: compare ratios, not absolutes. The processor time is that of
all servers together.

  --against-etcd  starts as many etcd members beside it (`etcd` on the PATH) and runs each scenario against
                  both in turn: Tenure by REST and by the JSON gateway, etcd by its JSON gateway, then both by
                  gRPC. The last column: how many times the processor time of that row etcd took for the
                  same through its own door
  --join          what a new member costs those who are served: KEYS (1000000) are written, then a member
                  joins that gets them as a snapshot, while clients write at a steady rate

  TENURE_BIN    the binary; without it, a release build
  TENURE_URL    a running node, or several separated by commas, to load instead of fresh ones
  ROUNDS        how many times --against-etcd goes through its scenarios (1)
  RATE          writes a second while a member joins (1000)
HELP
}

members=1
against_etcd=
join=
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --members) members=${2:?--members takes a number}; shift ;;
        --against-etcd) against_etcd=1 ;;
        --join) join=1 ;;
        -* | '' | *[!0-9]*) usage >&2; exit 2 ;;
        *) break ;;
    esac
    shift
done

root=$(dirname "$(dirname "$(readlink -f "$0")")")
cd "$root"
if [ -z "${TENURE_BIN:-}" ]; then
    cargo build --quiet --locked --release --bin tenure
    export TENURE_BIN=${CARGO_TARGET_DIR:-$root/target}/release/tenure
fi
if [ "$members$against_etcd$join" != 1 ]; then
    exec scripts/bench-cluster.sh "${join:+join}${against_etcd:+etcd}" "$members" "${1:-}"
fi
seconds=${1:-10}
if [ -z "${TENURE_URL:-}" ]; then
    exec scripts/with-node.sh scripts/bench.sh "$seconds"
fi

# The value of a JSON member, of the first object that has it; nothing if none has.
member() {
    { grep -oE "\"$2\": *[0-9.]+" <<<"$1" || true; } | head -n 1 | sed 's/.*: *//'
}

row() {
    local name=$1 report
    shift
    report=$("$TENURE_BIN" --endpoints "$TENURE_URL" -o json bench "$@" --duration "${seconds}s" --seed 1)
    awk -v name="$name" -v ops="$(member "$report" ops_per_s)" -v p50="$(member "$report" p50)" \
        -v p99="$(member "$report" p99)" -v p999="$(member "$report" p999)" -v errors="$(member "$report" error_count)" \
        -v cpu="$(member "${report#*\"server\"}" cpu_us_per_op)" -v rss="$(member "${report#*\"server\"}" rss_bytes)" \
        'BEGIN {
            printf "| %s | %.0f | %.2f ms | %.2f ms | %.2f ms | %s | %s | %.0f MiB |\n", name, ops,
                p50 / 1000, p99 / 1000, p999 / 1000, errors, cpu == "" ? "-" : sprintf("%.1f µs", cpu), rss / 1048576
        }'
    [ "$(member "$report" error_count)" = 0 ] || bad=1
}

bad=0
echo "$("$TENURE_BIN" version), $(nproc) cores, $(uname -sr), ${seconds} s each, keys of 32 and values of 256 bytes"
echo
echo '| scenario | ops/s | p50 | p99 | p99.9 | errors | server CPU/op | server RSS |'
echo '|---|---:|---:|---:|---:|---:|---:|---:|'
row 'put, 1 connection' put --connections 1
row 'put, 64 connections' put --connections 64
row 'put, 256 connections' put --connections 256
row 'put, 64 connections, 32 keys a transaction' put --connections 64 --txn 32
row 'get, 1 connection' get --connections 1
row 'get, 64 connections' get --connections 64
row 'get, 64 connections, stale' get --connections 64 --stale
row 'range of 100 keys, 64 connections' range --connections 64
row 'count of 10,000 keys, 64 connections' count --connections 64
row 'mixed 90:10, 64 connections' mixed --connections 64

# Coordination: one figure each; the unit of an operation is in its name.
coordinate() {
    local name=$1 report gone
    shift
    report=$("$TENURE_BIN" --endpoints "$TENURE_URL" -o json bench "$@")
    gone=$(member "$report" gone_after_s)
    awk -v name="$name" -v ops="$(member "$report" ops_per_s)" -v p50="$(member "$report" p50)" \
        -v p99="$(member "$report" p99)" -v cpu="$(member "$report" server_cpu_us_per_op)" -v gone="$gone" 'BEGIN {
            printf "| %s | %.0f | %.2f ms | %.2f ms | %s | %s |\n", name, ops, p50 / 1000, p99 / 1000,
                cpu == "" ? "-" : sprintf("%.1f µs", cpu), gone == "" ? "-" : sprintf("%.1f s", gone)
        }'
}

watched=$("$TENURE_BIN" --endpoints "$TENURE_URL" -o json bench watch --streams 1000 --rate 100 --duration "${seconds}s")
echo
echo '| scenario | ops/s | p50 | p99 | server CPU/op | gone after |'
echo '|---|---:|---:|---:|---:|---:|'
awk -v ops="$(member "$watched" delivered_per_s)" -v p50="$(member "$watched" p50)" -v p99="$(member "$watched" p99)" \
    -v cpu="$(member "$watched" server_cpu_us_per_event)" 'BEGIN {
        printf "| event to one of 1,000 watchers | %.0f | %.2f ms | %.2f ms | %.1f µs | - |\n", ops, p50 / 1000, p99 / 1000, cpu
    }'
coordinate 'event of 20,000 replayed' replay
coordinate 'hand-over of a lock, 8 contenders' lock --contenders 8 --duration "${seconds}s"
coordinate 'keep-alive, 64 connections' lease --duration "${seconds}s"
coordinate 'put while 100,000 leases end' lease --leases 100000 --expire 30s
exit "$bad"

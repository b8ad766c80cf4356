#!/usr/bin/env bash
# Long loads that would show what short ones hide: stalls, growth, and requests that wait too long.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: scripts/soak.sh flood [--minutes N] [--step SECONDS]
       scripts/soak.sh churn [--writes N] [--keys N] [--interval N]
       scripts/soak.sh all   [--minutes N] [--writes N]

Builds a release binary, starts a fresh node for each and loads it over its port. Exit code 1 if
a bound was broken; each break is a line that begins with VIOLATION.

flood   Unpaced writes with every number of operations in flight from 1 to 512, and some beyond, as
        many connections, as large transactions, and as both, for N (10) minutes, SECONDS (1) for each
        number; history of 10 s is kept. No request may fail, hang, or take more than 200 ms.
churn   N (5,000,000) overwrites of N (10,000) keys of 256 bytes over 64 connections, history of 30 s
        kept, looked at after every N (100,000) writes. From the second minute on, state/ must stay
        below 2.5 times live and kept data, except that it may have 80 MiB in any case: three files of 24 MiB,
        and what was copied between them. No request may take more than 50 ms beyond what the
        disk itself took: two flushes of the log, each as long as the longest of the interval (rounded
        up to a bucket of the histogram, the column `fsync <=`).

  TENURE_BIN    the binary; without it, a release build
  TMPDIR        where the node's data goes: put it on the disk that is to be judged
HELP
}

readonly FLOOD_MS=200 CHURN_MS=50 CHURN_FACTOR=2.5 CHURN_FLOOR_MIB=80 WARM_UP_S=60 HANG_S=60

mode=${1:-}
case "$mode" in
    flood | churn | all) shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac
given=("$@")
minutes=10 step=1 writes=5000000 keys=10000 interval=100000
while [ $# -gt 0 ]; do
    case "$1" in
        --minutes | --step | --writes | --keys | --interval)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "soak: $1 takes a number of at least 1" >&2; exit 2; }
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        *) echo "soak: unknown argument $1" >&2; usage >&2; exit 2 ;;
    esac
done

root=$(dirname "$(dirname "$(readlink -f "$0")")")
cd "$root"
if [ -z "${TENURE_BIN:-}" ]; then
    cargo build --quiet --locked --release --bin tenure
    export TENURE_BIN=${CARGO_TARGET_DIR:-$root/target}/release/tenure
fi
if [ "$mode" = all ]; then
    code=0
    scripts/soak.sh flood --minutes "$minutes" --step "$step" || code=1
    scripts/soak.sh churn --writes "$writes" --keys "$keys" --interval "$interval" || code=1
    exit "$code"
fi
if [ -z "${TENURE_SOAK_INSIDE:-}" ]; then
    keep=10s
    [ "$mode" != churn ] || keep=30s
    TENURE_SOAK_INSIDE=1 TENURE_SERVE_ARGS="--auto-compact=$keep --quota-bytes=16GiB" \
        exec scripts/with-node.sh scripts/soak.sh "$mode" "${given[@]}"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/tenure-soak.XXXXXX")
trap 'rm -rf "$work"' EXIT
violations=0

violation() {
    violations=$((violations + 1))
    echo "VIOLATION: $*"
}

# The value of a JSON member, of the first object that has it.
member() {
    grep -oE "\"$2\": *[0-9.]+" <<<"$1" | head -n 1 | sed 's/.*: *//'
}

metrics() {
    curl -fsS --noproxy '*' --max-time 10 "$TENURE_URL/metrics"
}

metric() {
    awk -v name="$1" '$1 == name { print $2; exit }' "$2"
}

# The longest time of a histogram between two scrapes, rounded up to its bucket, in milliseconds.
longest_ms() {
    awk -v name="tenure_$1_duration_seconds_bucket{" -v before="$2" '
        index($0, name) == 1 {
            split($1, part, "\"")
            if (FILENAME == before) { old[part[2]] = $2; next }
            grown = $2 - old[part[2]]
            if (grown > below) { top = part[2] }
            below = grown
        }
        END { print top == "" ? 0 : top == "+Inf" ? 10000 : top * 1000 }
    ' "$2" "$3"
}

# What the host of a virtual machine has taken of its processors since the start, in milliseconds.
stolen_ms() {
    awk -v tick="$(getconf CLK_TCK)" '$1 == "cpu" { print int($9 * 1000 / tick) }' /proc/stat
}

# Runs the load generator; its report is in $report. What it says of itself is kept for a failure.
load() {
    local code=0
    report=$(timeout "$HANG_S" "$TENURE_BIN" --endpoints "$TENURE_URL" -o json bench put --warm-up 0s "$@" 2>"$work/said") ||
        code=$?
    if [ "$code" -ne 0 ]; then
        [ "$code" -ne 124 ] || echo "it did not end within $HANG_S s: a request hangs" >>"$work/said"
        violation "bench put $*: $(tail -n 3 "$work/said" | tr '\n' ' ')"
        return 1
    fi
    local errors
    errors=$(member "$report" error_count)
    [ "$errors" = 0 ] || violation "bench put $*: $errors requests failed: $(tr -d '\n' <<<"${report#*\"errors\"}" | cut -c 1-200)"
}

host() {
    echo "$("$TENURE_BIN" version), $(nproc) cores, $(uname -sr), data in ${TMPDIR:-/tmp}"
}

# So many operations in flight: as connections, as one transaction, or as both in turn.
shape() {
    local size=$1 turn=$2
    connections=$size operations=1
    case $((turn % 3)) in
        1)
            operations=$((size < 128 ? size : 128))
            connections=$(((size + operations - 1) / operations))
            ;;
        2)
            while [ $((operations * operations * 4)) -le "$size" ]; do operations=$((operations * 2)); done
            connections=$(((size + operations - 1) / operations))
            ;;
    esac
}

flood() {
    local end=$((SECONDS + minutes * 60)) turn=0 steps=0 said=$SECONDS size connections operations stolen
    echo "flood: $(host), $minutes min"
    metrics >"$work/before"
    while [ "$SECONDS" -lt "$end" ]; do
        # 1 to 512 in an order without pattern (409 and 512 have no common divisor).
        size=$((turn * 409 % 512 + 1))
        [ $((turn % 16)) -ne 15 ] || size=$((1024 << (turn / 16 % 3)))
        shape "$size" "$((turn / 2))"
        # More connections than that are no larger batches, only a longer queue.
        if [ "$connections" -gt 512 ]; then operations=$(((size + 511) / 512)) connections=512; fi
        turn=$((turn + 1))
        stolen=$(stolen_ms)
        load --connections "$connections" --txn "$operations" --duration "${step}s" --key-space 100000 --seed "$turn" || break
        stolen=$(($(stolen_ms) - stolen))
        metrics >"$work/after"
        awk -v size="$size" -v connections="$connections" -v operations="$operations" \
            -v done="$(member "$report" operations)" -v rate="$(member "$report" ops_per_s)" \
            -v max="$(member "$report" max)" -v fsync="$(longest_ms wal_fsync "$work/before" "$work/after")" \
            -v rss="$(metric process_resident_memory_bytes "$work/after")" \
            'BEGIN { print size, connections, operations, done, rate, max / 1000, fsync, rss / 1048576 }' >>"$work/steps"
        steps=$((steps + 1))
        local slowest
        slowest=$(tail -n 1 "$work/steps" | awk -v limit="$FLOOD_MS" '$6 > limit { print $6 " ms, fsync <= " $7 " ms" }')
        [ -z "$slowest" ] ||
            violation "$connections connections, $operations operations each: a request took $slowest, apply <= $(
                longest_ms apply "$work/before" "$work/after") ms, engine write <= $(
                longest_ms engine_commit "$work/before" "$work/after") ms, stolen $stolen ms"
        mv "$work/after" "$work/before"
        if [ $((SECONDS - said)) -ge 30 ]; then
            said=$SECONDS
            echo "flood: $steps steps, $((end - SECONDS)) s left" >&2
        fi
    done
    flood_table
    summary flood "$steps steps, slowest request $(awk '$6 > max { max = $6 } END { printf "%.1f", max }' "$work/steps" 2>/dev/null) ms of $FLOOD_MS"
}

flood_table() {
    [ -s "$work/steps" ] || return 0
    printf '%12s %6s %12s %10s %12s %10s %18s %10s\n' 'in flight' steps operations ops/s slowest 'fsync <=' 'conns x ops' 'RSS'
    awk '
        { class = int(log($1) / log(2) + 1e-9); if ($1 == 512) class = 8
          steps[class]++; done[class] += $4; rate[class] += $5
          if ($6 >= max[class]) { max[class] = $6; fsync[class] = $7; shape[class] = $2 " x " $3 }
          if ($8 > rss[class]) rss[class] = $8 }
        END {
            for (class = 0; class <= 12; class++) if (steps[class]) {
                low = 2 ^ class; high = class == 8 ? 512 : class > 8 ? low : 2 * low - 1
                printf "%12s %6d %12d %10.0f %9.1f ms %7g ms %18s %6.0f MiB\n", low == high ? low : low "-" high, steps[class],
                    done[class], rate[class] / steps[class], max[class], fsync[class], shape[class], rss[class]
            }
        }' "$work/steps"
}

churn() {
    local done=0 begun=$SECONDS
    echo "churn: $(host), $writes overwrites of $keys keys of 256 bytes"
    printf '%8s %10s %9s %11s %11s %7s %10s %10s %10s %10s\n' \
        time writes ops/s state/ 'live+kept' factor 'RSS' slowest 'fsync <=' 'beyond it'
    metrics >"$work/before"
    while [ "$done" -lt "$writes" ]; do
        local count=$((writes - done < interval ? writes - done : interval))
        load --connections 64 --count "$count" --key-space "$keys" --seed "$done" || break
        done=$((done + count))
        metrics >"$work/after"
        local state row
        # The node rewrites files meanwhile: one that vanishes while it is counted is no failure.
        state=$(du -s --block-size=1 "$TENURE_DATA/state" 2>/dev/null | cut -f 1) || true
        row=$(awk -v time="$((SECONDS - begun))" -v done="$done" -v rate="$(member "$report" ops_per_s)" -v state="${state:-0}" \
            -v logical="$(metric tenure_store_logical_bytes "$work/after")" -v max="$(member "$report" max)" \
            -v rss="$(metric process_resident_memory_bytes "$work/after")" \
            -v fsync="$(longest_ms wal_fsync "$work/before" "$work/after")" -v warm="$WARM_UP_S" \
            -v factor_max="$CHURN_FACTOR" -v floor="$CHURN_FLOOR_MIB" -v beyond_max="$CHURN_MS" 'BEGIN {
                factor = logical > 0 ? state / logical : 0
                beyond = max / 1000 - 2 * fsync; if (beyond < 0) beyond = 0
                printf "%6d s %10d %9.0f %7.1f MiB %7.1f MiB %7.2f %6.0f MiB %7.1f ms %7g ms %7.1f ms\n",
                    time, done, rate, state / 1048576, logical / 1048576, factor, rss / 1048576, max / 1000, fsync, beyond
                if (logical <= 0) print "the node does not say what it holds"
                if (time >= warm && factor >= factor_max && state > floor * 1048576) print "state/ is " factor " times live and kept data"
                if (beyond > beyond_max) print "a request waited " beyond " ms beyond the disk"
            }')
        head -n 1 <<<"$row"
        while read -r broken; do violation "after $done writes: $broken"; done < <(tail -n +2 <<<"$row")
        head -n 1 <<<"$row" >>"$work/rows"
        mv "$work/after" "$work/before"
    done
    summary churn "$done writes in $((SECONDS - begun)) s, worst factor after warm-up $(
        awk -v warm="$WARM_UP_S" -v floor="$CHURN_FLOOR_MIB" '$1 >= warm && $5 > floor && $9 > max { max = $9 } END { printf "%.2f", max }' "$work/rows" 2>/dev/null
    ) of $CHURN_FACTOR, longest wait beyond the disk $(
        awk '$(NF - 1) > max { max = $(NF - 1) } END { printf "%.1f", max }' "$work/rows" 2>/dev/null
    ) ms of $CHURN_MS"
}

summary() {
    local verdict=PASSED
    [ "$violations" -eq 0 ] || verdict="FAILED ($violations violations)"
    echo "$1: $verdict: $2"
}

"$mode"
[ "$violations" -eq 0 ]

#!/usr/bin/env bash
# The scenarios of scripts/bench.sh that need several servers: a cluster, etcd in turn with it, a joining member.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: scripts/bench-cluster.sh ''|etcd|join COUNT [SECONDS|KEYS]

Called by scripts/bench.sh, which see; TENURE_BIN must be set.
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    '' | etcd | join) mode=$1 ;;
    *) usage >&2; exit 2 ;;
esac
count=${2:?}
amount=${3:-}
: "${TENURE_BIN:?}"

root=$(dirname "$(dirname "$(readlink -f "$0")")")
cd "$root"
work=$(mktemp -d "${TMPDIR:-/tmp}/tenure-bench.XXXXXX")
pids=()

# Called by the trap.
# shellcheck disable=SC2329
stop() {
    local code=$? id
    trap - EXIT
    for id in "${pids[@]}"; do kill -TERM "$id" 2>/dev/null || true; done
    TENURE_LOCAL=$work/tenure scripts/cluster.sh down || true
    for id in "${pids[@]}"; do wait "$id" 2>/dev/null || true; done
    [ "$code" = 0 ] || tail -n 5 "$work"/*.log >&2 2>/dev/null || true
    rm -rf "$work"
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT TERM

# A port from which on those that are needed are free.
free_base() {
    local base n more
    for _ in $(seq 1 50); do
        base=$((20000 + RANDOM % 9000))
        for n in $(seq 0 8); do
            for more in 0 1; do
                ! (exec 3<>"/dev/tcp/127.0.0.1/$((base + 100 * n + more))") 2>/dev/null || continue 3
            done
        done
        echo "$base"
        return
    done
    echo "bench: no free ports" >&2
    exit 1
}

# The value of a JSON member, of the first object that has it.
member() {
    grep -oE "\"$2\": *-?[0-9.]+" <<<"$1" | head -n 1 | sed 's/.*: *//'
}

start_tenure() {
    local n
    base=$(free_base)
    export TENURE_LOCAL=$work/tenure CLIENT_PORT=$base PEER_PORT=$((base + 1))
    scripts/cluster.sh up "$count" >/dev/null
    tenure=
    for n in $(seq 1 "$count"); do tenure=$tenure${tenure:+,}127.0.0.1:$((base + 100 * (n - 1))); done
}

start_etcd() {
    local base n all='' client peer
    command -v etcd >/dev/null || { echo "bench: there is no etcd on the PATH" >&2; exit 1; }
    base=$(free_base)
    for n in $(seq 1 "$count"); do all=$all${all:+,}e$n=http://127.0.0.1:$((base + 100 * (n - 1) + 1)); done
    etcd=
    for n in $(seq 1 "$count"); do
        client=127.0.0.1:$((base + 100 * (n - 1)))
        peer=http://127.0.0.1:$((base + 100 * (n - 1) + 1))
        etcd --name "e$n" --data-dir "$work/etcd$n" --logger zap --log-level error \
            --listen-client-urls "http://$client" --advertise-client-urls "http://$client" \
            --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
            --initial-cluster "$all" --initial-cluster-state new >"$work/etcd$n.log" 2>&1 &
        pids+=($!)
        etcd=$etcd${etcd:+,}$client
    done
    for client in ${etcd//,/ }; do
        for _ in $(seq 1 300); do
            ! curl -fs -m 2 --noproxy '*' "http://$client/health" 2>/dev/null | grep -q '"true"' || continue 2
            sleep 0.1
        done
        echo "bench: etcd at $client is not healthy" >&2
        exit 1
    done
}

bad=0
# One row: the system, its endpoints, what it is called, and the arguments of `tenure bench`.
row() {
    local system=$1 endpoints=$2 name=$3 report
    shift 3
    report=$("$TENURE_BIN" --endpoints "$endpoints" -o json bench "$@" --seed 1)
    awk -v sys="$system" -v name="$name" -v ops="$(member "$report" ops_per_s)" \
        -v p50="$(member "$report" p50)" -v p99="$(member "$report" p99)" -v errors="$(member "$report" error_count)" \
        -v cpu="$(member "${report#*\"server\"}" cpu_us_per_op)" 'BEGIN {
            printf "| %s | %s | %.0f | %.2f ms | %.2f ms | %s | %s |\n", name, sys, ops, p50 / 1000, p99 / 1000,
                errors, cpu == "" ? "-" : sprintf("%.1f µs", cpu)
        }'
    p99=$(member "$report" p99)
    [ "$(member "$report" error_count)" = 0 ] || bad=1
}

header() {
    echo "$("$TENURE_BIN" version), $count members, $(nproc) cores, $(uname -sr), keys of 32 and values of 256 bytes"
    [ "$mode" != etcd ] || echo "etcd $(etcd --version | awk 'NR == 1 { print $3 }'), as many members, in turn"
    echo
    echo '| scenario | system | ops/s | p50 | p99 | errors | all servers: CPU/op |'
    echo '|---|---|---:|---:|---:|---:|---:|'
}

scenario() {
    local name=$1
    shift
    set -- "$@" --duration "${seconds}s"
    row 'Tenure, REST' "$tenure" "$name" "$@"
    [ "$mode" = etcd ] || return 0
    row 'Tenure, /v3' "$tenure" "$name" "$@" --etcd
    row 'etcd, /v3' "$etcd" "$name" "$@" --etcd
}

scenarios() {
    scenario 'put, 1 connection' put --connections 1
    scenario 'put, 64 connections' put --connections 64
    scenario 'put, 256 connections' put --connections 256
    scenario 'get, 64 connections' get --connections 64
    scenario 'get, 64 connections, stale' get --connections 64 --stale
    scenario 'mixed 90:10, 64 connections' mixed --connections 64
}

join() {
    local keys=${amount:-1000000} rate=${RATE:-1000} before during began joined client peer
    header
    row 'Tenure, REST' "$tenure" "write $keys keys" put --connections 16 --txn 100 --count "$keys" \
        --key-space "$keys" --keys sequential
    row 'Tenure, REST' "$tenure" "put, $rate a second, before" put --rate "$rate" --duration 10s --key-space "$keys"
    before=$p99
    client=127.0.0.1:$((base + 900))
    peer=127.0.0.1:$((base + 901))
    began=$(date +%s%N)
    "$TENURE_BIN" serve --name joiner --data-dir "$work/joiner" --listen-client "$client" --listen-peer "$peer" \
        --join "http://127.0.0.1:$PEER_PORT" >"$work/joiner.log" 2>&1 &
    pids+=($!)
    row 'Tenure, REST' "$tenure" "put, $rate a second, during" put --rate "$rate" --warm-up 0s --duration 20s \
        --key-space "$keys" >"$work/during" &
    during=$!
    joined=
    for _ in $(seq 1 3000); do
        # Ready is who answers a linearizable read by itself: it has all that was committed when it was asked.
        if curl -fs -m 1 --noproxy '*' -o /dev/null "http://$client/readyz"; then
            joined=$((($(date +%s%N) - began) / 1000000))
            break
        fi
        sleep 0.1
    done
    wait "$during"
    cat "$work/during"
    p99=$(sed 's/.*| \([0-9.]*\) ms | [0-9]* |.*/\1/' "$work/during")
    [ -n "$joined" ] || { echo "bench: the member has not caught up within 300 s" >&2; exit 1; }
    echo
    awk -v ms="$joined" -v before="$before" -v during="$p99" 'BEGIN {
        printf "The new member had caught up after %.1f s. p99 of writes: %.2f ms before, %.2f ms from its start on.\n",
            ms / 1000, before / 1000, during
    }'
}

start_tenure
if [ "$mode" = join ]; then
    join
    exit "$bad"
fi
seconds=${amount:-10}
[ "$mode" != etcd ] || start_etcd
header
for _ in $(seq 1 "${ROUNDS:-1}"); do scenarios; done
exit "$bad"

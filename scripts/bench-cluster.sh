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
# The first of these JSON members that there is; - if there is none.
either() {
    local report=$1 name value
    shift
    for name in "$@"; do
        value=$(member "$report" "$name") || true
        [ -z "$value" ] || break
    done
    echo "${value:--}"
}

# One run. Sets ops, p50, p99, errors and cpu, the processor time of all servers for an operation in µs.
run() {
    local endpoints=$1 report server
    shift
    report=$("$TENURE_BIN" --endpoints "$endpoints" -o json bench "$@")
    server=${report#*\"server\"}
    ops=$(either "$report" ops_per_s delivered_per_s)
    p50=$(either "$report" p50)
    p99=$(either "$report" p99)
    errors=$(either "$report" error_count)
    # Of a report without both the part of neither is asked for.
    cpu=$(either "${server%%\"client\"*}" cpu_us_per_op server_cpu_us_per_op server_cpu_us_per_event)
    case "$errors" in 0 | -) ;; *) bad=1 ;; esac
}

# The last run as a row: what it is called, the system, and how many times its processor time etcd takes.
row() {
    awk -v sys="$2" -v name="$1" -v ratio="${3:--}" -v ops="$ops" -v p50="$p50" -v p99="$p99" -v errors="$errors" \
        -v cpu="$cpu" -v wide="$([ "$mode" != etcd ] || echo 1)" 'BEGIN {
            printf "| %s | %s | %.0f | %.2f ms | %.2f ms | %s | %s |", name, sys, ops, p50 / 1000, p99 / 1000,
                errors, cpu == "-" ? "-" : sprintf("%.1f µs", cpu)
            print wide ? sprintf(" %s |", ratio) : ""
        }'
}

ratio() {
    awk -v ours="$1" -v theirs="$2" 'BEGIN {
        print ours == "-" || theirs == "-" || ours + 0 == 0 ? "-" : sprintf("%.1f", theirs / ours)
    }'
}

header() {
    echo "$("$TENURE_BIN" version), $count members, $(nproc) cores, $(uname -sr), keys of 32 and values of 256 bytes"
    [ "$mode" != etcd ] || echo "etcd $(etcd --version | awk 'NR == 1 { print $3 }'), as many members, in turn"
    echo
    echo "| scenario | system | ops/s | p50 | p99 | errors | all servers: CPU/op |${etcd:+ etcd÷this |}"
    echo "|---|---|---:|---:|---:|---:|---:|${etcd:+---:|}"
}

# Through REST and, beside an etcd, through the JSON gateway of both.
scenario() {
    local name=$1 rest gateway theirs
    shift
    set -- "$@" --duration "${seconds}s" --seed 1
    run "$tenure" "$@"
    if [ "$mode" != etcd ]; then
        row "$name" 'Tenure, REST'
        return
    fi
    rest=$(kept)
    run "$tenure" "$@" --etcd
    gateway=$(kept)
    run "$etcd" "$@" --etcd
    theirs=$cpu
    row "$name" 'etcd, /v3' >"$work/theirs"
    told "$name" 'Tenure, REST' "$theirs" "$rest"
    told "$name" 'Tenure, /v3' "$theirs" "$gateway"
    cat "$work/theirs"
}

# Through gRPC, of both.
grpc() {
    local name=$1 ours theirs
    shift
    run "$tenure" "$@" --grpc
    ours=$(kept)
    run "$etcd" "$@" --grpc
    theirs=$cpu
    row "$name" 'etcd, gRPC' >"$work/theirs"
    told "$name" 'Tenure, gRPC' "$theirs" "$ours"
    cat "$work/theirs"
}

kept() {
    echo "$ops $p50 $p99 $errors $cpu"
}

# An earlier run as a row, beside etcd's processor time.
told() {
    read -r ops p50 p99 errors cpu <<<"$4"
    row "$1" "$2" "$(ratio "$cpu" "$3")"
}

scenarios() {
    scenario 'put, 1 connection' put --connections 1
    scenario 'put, 64 connections' put --connections 64
    scenario 'put, 256 connections' put --connections 256
    scenario 'get, 64 connections' get --connections 64
    scenario 'get, 64 connections, stale' get --connections 64 --stale
    scenario 'range of 100 keys, 64 connections' range --connections 64
    scenario 'count of 10,000 keys, 64 connections' count --connections 64
    scenario 'mixed 90:10, 64 connections' mixed --connections 64
}

grpc_scenarios() {
    local long=(--duration "${seconds}s")
    grpc 'put, 1 client' put --clients 1 "${long[@]}" --seed 1
    grpc 'put, 64 clients' put "${long[@]}" --seed 1
    grpc 'put, 256 clients' put --clients 256 "${long[@]}" --seed 1
    grpc 'get, 64 clients' get "${long[@]}" --seed 1
    grpc 'get, 64 clients, serializable' get --stale "${long[@]}" --seed 1
    grpc 'range of 100 keys, 64 clients' range "${long[@]}" --seed 1
    grpc 'count of 10,000 keys, 64 clients' count "${long[@]}" --seed 1
    grpc 'mixed 90:10, 64 clients' mixed "${long[@]}" --seed 1
    grpc 'keep-alive, 64 streams' lease "${long[@]}"
    grpc 'hand-over of a lock, 8 contenders' lock --contenders 8 "${long[@]}"
    grpc 'event to one of 1,000 watches' watch "${long[@]}"
    grpc 'event of 20,000 replayed' replay
}

join() {
    local keys=${amount:-1000000} rate=${RATE:-1000} before during began joined client peer
    header
    run "$tenure" put --connections 16 --txn 100 --count "$keys" --key-space "$keys" --keys sequential --seed 1
    row "write $keys keys" 'Tenure, REST'
    run "$tenure" put --rate "$rate" --duration 10s --key-space "$keys" --seed 1
    row "put, $rate a second, before" 'Tenure, REST'
    before=$p99
    client=127.0.0.1:$((base + 900))
    peer=127.0.0.1:$((base + 901))
    began=$(date +%s%N)
    "$TENURE_BIN" serve --name joiner --data-dir "$work/joiner" --listen-client "$client" --listen-peer "$peer" \
        --join "http://127.0.0.1:$PEER_PORT" >"$work/joiner.log" 2>&1 &
    pids+=($!)
    {
        run "$tenure" put --rate "$rate" --warm-up 0s --duration 20s --key-space "$keys" --seed 1
        row "put, $rate a second, during" 'Tenure, REST'
        [ "$bad" = 0 ]
    } >"$work/during" &
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
    wait "$during" || bad=1
    cat "$work/during"
    p99=$(sed 's/.*| \([0-9.]*\) ms | [0-9]* |.*/\1/' "$work/during")
    [ -n "$joined" ] || { echo "bench: the member has not caught up within 300 s" >&2; exit 1; }
    echo
    awk -v ms="$joined" -v before="$before" -v during="$p99" 'BEGIN {
        printf "The new member had caught up after %.1f s. p99 of writes: %.2f ms before, %.2f ms from its start on.\n",
            ms / 1000, before / 1000, during
    }'
}

etcd=
start_tenure
if [ "$mode" = join ]; then
    join
    exit "$bad"
fi
seconds=${amount:-10}
[ "$mode" != etcd ] || start_etcd
header
for _ in $(seq 1 "${ROUNDS:-1}"); do
    scenarios
    [ "$mode" != etcd ] || grpc_scenarios
done
exit "$bad"

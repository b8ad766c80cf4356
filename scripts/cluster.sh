#!/usr/bin/env bash
# A local cluster of real processes: data, logs and process ids in .local/cluster.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: scripts/cluster.sh up [COUNT] | down | status | kill N | stop N | restart N | pause N | resume N | logs [N]

  up        starts COUNT members (3), n1, n2…; with data from before they go on
  down      stops them all and deletes their data
  status    what each member says of the cluster
  kill N    SIGKILL    stop N   SIGTERM, in good order
  restart N starts member N again, after ending it if it runs
  pause N   SIGSTOP    resume N SIGCONT
  logs [N]  the end of the logs

  TENURE_BIN         the binary; without it, `cargo build` makes target/debug/tenure
  TENURE_SERVE_ARGS  further arguments of `tenure serve`, separated by blanks
  TENURE_LOCAL       where data, logs and process ids are (.local/cluster)
  CLIENT_PORT        of n1; each further member has one that is 100 higher (2379)
  PEER_PORT          likewise (2380)
HELP
}

root=$(dirname "$(dirname "$(readlink -f "$0")")")
local=${TENURE_LOCAL:-$root/.local/cluster}
client_port=${CLIENT_PORT:-2379}
peer_port=${PEER_PORT:-2380}

fail() {
    echo "cluster: $*" >&2
    exit 1
}

binary() {
    if [ -n "${TENURE_BIN:-}" ]; then
        echo "$TENURE_BIN"
        return
    fi
    (cd "$root" && cargo build --quiet --locked --bin tenure)
    echo "${CARGO_TARGET_DIR:-$root/target}/debug/tenure"
}

client() { echo "127.0.0.1:$((client_port + 100 * ($1 - 1)))"; }
peer() { echo "127.0.0.1:$((peer_port + 100 * ($1 - 1)))"; }

members() {
    local text='' i
    for i in $(seq 1 "$1"); do
        text="$text${text:+,}n$i=http://$(peer "$i")"
    done
    echo "$text"
}

# The process id of member N, if it runs.
running() {
    local id
    [ -f "$local/n$1/pid" ] || return 1
    id=$(cat "$local/n$1/pid")
    kill -0 "$id" 2>/dev/null || return 1
    echo "$id"
}

launch() {
    local n=$1 bin=$2 count
    count=$(cat "$local/count")
    mkdir -p "$local/n$n"
    # What is said to this script is no setting of the member.
    # shellcheck disable=SC2086
    env -u TENURE_BIN -u TENURE_LOCAL -u TENURE_SERVE_ARGS "$bin" serve --name "n$n" --data-dir "$local/n$n/data" \
        --listen-client "$(client "$n")" --listen-peer "$(peer "$n")" \
        --initial-cluster "$(members "$count")" ${TENURE_SERVE_ARGS:-} >>"$local/n$n/log" 2>&1 &
    echo $! >"$local/n$n/pid"
}

ready() {
    local n=$1
    for _ in $(seq 1 300); do
        if curl -fs -m 5 -o /dev/null "http://$(client "$n")/readyz"; then
            return
        fi
        running "$n" >/dev/null || fail "n$n has ended: see $local/n$n/log"
        sleep 0.1
    done
    fail "n$n is not ready within 30 s: see $local/n$n/log"
}

end() {
    local n=$1 how=$2 id
    id=$(running "$n") || return 0
    kill "-$how" "$id"
    for _ in $(seq 1 200); do
        kill -0 "$id" 2>/dev/null || return 0
        sleep 0.1
    done
    fail "n$n did not end within 20 s"
}

number() {
    [ -f "$local/count" ] || fail "no cluster is up"
    case "${1:-}" in
        '' | *[!0-9]*) usage >&2; exit 2 ;;
    esac
    [ -d "$local/n$1" ] || fail "there is no member $1"
}

signal() {
    local id
    number "${2:-}"
    id=$(running "$2") || fail "n$2 does not run"
    kill "-$1" "$id"
}

all() { seq 1 "$(cat "$local/count")"; }

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
    -h | --help) usage ;;
    up)
        count=${1:-3}
        case "$count" in '' | 0 | *[!0-9]*) usage >&2; exit 2 ;; esac
        bin=$(binary)
        mkdir -p "$local"
        [ -f "$local/count" ] || echo "$count" >"$local/count"
        for n in $(all); do running "$n" >/dev/null || launch "$n" "$bin"; done
        for n in $(all); do ready "$n"; done
        for n in $(all); do echo "n$n  http://$(client "$n")"; done
        ;;
    down)
        [ -f "$local/count" ] || exit 0
        for n in $(all); do
            if id=$(running "$n"); then kill -CONT "$id"; fi
            end "$n" TERM
        done
        rm -rf "$local"
        ;;
    status)
        [ -f "$local/count" ] || fail "no cluster is up"
        for n in $(all); do
            curl -s -m 5 "http://$(client "$n")/v1/cluster" || echo "n$n does not answer"
        done
        ;;
    kill) number "${1:-}"; end "$1" KILL ;;
    stop) number "${1:-}"; end "$1" TERM ;;
    restart)
        number "${1:-}"
        bin=$(binary)
        end "$1" TERM
        launch "$1" "$bin"
        ready "$1"
        ;;
    pause) signal STOP "$@" ;;
    resume) signal CONT "$@" ;;
    logs)
        [ -f "$local/count" ] || fail "no cluster is up"
        if [ -n "${1:-}" ]; then number "$1"; tail -n 50 "$local/n$1/log"; else tail -n 20 "$local"/n*/log; fi
        ;;
    *) usage >&2; exit 2 ;;
esac

#!/usr/bin/env bash
# Runs a command against a fresh node: data in a temporary directory, a free port on 127.0.0.1.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: scripts/with-node.sh COMMAND [ARGUMENT...]

Starts one node, waits until it is ready, runs COMMAND, and stops the node.
The command finds the node in TENURE_URL (http://127.0.0.1:PORT) and its process id in
TENURE_PID, its data directory in TENURE_DATA. Its exit code is ours; if it or the node fails, the
end of the node's log is shown.

  TENURE_BIN         the binary; without it, `cargo build` makes target/debug/tenure
  TENURE_SERVE_ARGS  further arguments of `tenure serve`, separated by blanks
  TENURE_LOG         where the node's log goes; kept if given
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    '') usage >&2; exit 2 ;;
esac

root=$(dirname "$(dirname "$(readlink -f "$0")")")
bin=${TENURE_BIN:-}
if [ -z "$bin" ]; then
    (cd "$root" && cargo build --quiet --locked --bin tenure)
    bin=${CARGO_TARGET_DIR:-$root/target}/debug/tenure
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/tenure.XXXXXX")
log=${TENURE_LOG:-$work/log}
node=

# Called by the trap.
# shellcheck disable=SC2329
stop() {
    local code=$?
    trap - EXIT
    if [ -n "$node" ] && kill -0 "$node" 2>/dev/null; then
        kill -TERM "$node" 2>/dev/null || true
        for _ in $(seq 1 200); do
            kill -0 "$node" 2>/dev/null || break
            sleep 0.1
        done
        if kill -0 "$node" 2>/dev/null; then
            echo "with-node: the node did not stop within 20 s" >&2
            kill -KILL "$node" 2>/dev/null || true
            [ "$code" -ne 0 ] || code=1
        fi
        wait "$node" 2>/dev/null || true
    fi
    if [ "$code" -ne 0 ] && [ -s "$log" ]; then
        echo "--- the end of the node's log" >&2
        tail -n 40 "$log" >&2
    fi
    rm -rf "$work"
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT TERM

# Words of TENURE_SERVE_ARGS are meant to be split.
# shellcheck disable=SC2086
"$bin" serve --data-dir "$work/data" --listen-client 127.0.0.1:0 ${TENURE_SERVE_ARGS:-} >"$log" 2>&1 &
node=$!

url=
for _ in $(seq 1 300); do
    kill -0 "$node" 2>/dev/null || { echo "with-node: the node ended while starting" >&2; exit 1; }
    url=$(grep -aoE 'http://127\.0\.0\.1:[1-9][0-9]*' "$log" | head -n 1 || true)
    if [ -n "$url" ] && curl -fsS --noproxy '*' --max-time 5 -o /dev/null "$url/readyz" 2>/dev/null; then
        break
    fi
    url=
    sleep 0.1
done
[ -n "$url" ] || { echo "with-node: the node was not ready within 30 s" >&2; exit 1; }

code=0
TENURE_URL=$url TENURE_PID=$node TENURE_DATA=$work/data "$@" || code=$?
if ! kill -0 "$node" 2>/dev/null; then
    echo "with-node: the node ended by itself" >&2
    [ "$code" -ne 0 ] || code=1
fi
exit "$code"

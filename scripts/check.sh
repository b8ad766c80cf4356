#!/usr/bin/env bash
# The quick gates: what should be green before every commit.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: scripts/check.sh [--fix]

Formatting, clippy, the house rules and the unit tests. --fix formats instead of complaining.
HELP
}

fix=
case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    --fix) fix=1 ;;
    '') ;;
    *) usage >&2; exit 2 ;;
esac

root=$(dirname "$(dirname "$(readlink -f "$0")")")
cd "$root"

step() {
    echo "== $*"
    "$@"
}

if [ -n "$fix" ]; then
    step cargo fmt
else
    step cargo fmt --check
fi
step cargo clippy --quiet --locked --all-targets -- -D warnings
step cargo test --quiet --locked --test tidy
step cargo test --quiet --locked --lib
for script in scripts/*.sh .ci/run; do
    step bash -n "$script"
done
if command -v shellcheck >/dev/null; then
    step shellcheck scripts/*.sh .ci/run
fi

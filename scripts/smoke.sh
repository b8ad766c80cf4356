#!/usr/bin/env bash
# Runs every curl line of README.md and openapi.yaml, in order, against a real node.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: scripts/smoke.sh [FILE...]

Runs the curl lines of the files (README.md and openapi.yaml if none are named) in the order of the
document, each file against a fresh node. Curl lines are those with the word curl in a ```sh block of
a Markdown file or in an `x-curl: |` block of a YAML file; localhost:2379 in them is replaced.

A line passes if its commands succeed and the HTTP status is below 400. A comment at its end can
expect more:

    curl …   # → 412                 the status
    curl …   # → 200 {"deleted":1,…  and the output; … stands for anything

  TENURE_BIN   the binary; without it, it is built
  TENURE_URL   a running node to use instead of a fresh one for each file
HELP
}

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
esac

root=$(dirname "$(dirname "$(readlink -f "$0")")")
cd "$root"

# line number, tab, command
lines_of() {
    case "$1" in
        *.md)
            awk '
                /^```/ { sh = (!sh && $0 == "```sh"); next }
                !sh { next }
                { if (held == "") start = NR; held = held $0 }
                /\\$/ { sub(/\\$/, "", held); next }
                { if (held ~ /(^|[ |(])curl /) print start "\t" held; held = "" }
            ' "$1"
            ;;
        *.yaml)
            awk '
                { match($0, /^ */); indent = RLENGTH }
                block && NF && indent <= level { block = 0 }
                block && NF { sub(/^ */, ""); if ($0 ~ /(^|[ |(])curl /) print NR "\t" $0 }
                /^ *x-curl: \|$/ { block = 1; level = indent }
            ' "$1"
            ;;
        *) echo "smoke: $1: neither Markdown nor YAML" >&2; exit 2 ;;
    esac
}

# The documented lines say just `curl`: this is what they get. The status goes to the error output.
# shellcheck disable=SC2329
curl() {
    command curl -sS --noproxy '*' --max-time 60 -w '%{stderr}\nstatus %{http_code}\n' "$@"
}

# As a pattern of the shell: … is anything, the rest is itself.
pattern_of() {
    printf '%s' "$1" | sed -e 's/[][\\*?+@!()|]/\\&/g' -e 's/…/*/g'
}

matches() {
    # shellcheck disable=SC2254
    case $1 in
        $2) return 0 ;;
        *) return 1 ;;
    esac
}

run_file() {
    local file=$1 number line command expected status want out verdict code
    local total=0 failed=0 scratch
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/tenure-smoke.XXXXXX")
    local -a lines
    mapfile -t lines < <(lines_of "$file")
    for number in "${!lines[@]}"; do
        line=${lines[$number]#*$'\t'}
        expected=
        command=$line
        if [[ $line == *'# → '* ]]; then
            expected=${line##*'# → '}
            command=${line%'# → '*}
        fi
        command=${command//localhost:2379/${TENURE_URL#http://}}
        command=${command//127.0.0.1:2379/${TENURE_URL#http://}}
        want=
        if [[ $expected =~ ^([1-5][0-9][0-9])( (.*))?$ ]]; then
            want=${BASH_REMATCH[1]}
            expected=${BASH_REMATCH[3]}
        fi
        code=0
        pushd "$scratch" >/dev/null
        eval "$command" >"$scratch/.out" 2>"$scratch/.err" || code=$?
        popd >/dev/null
        status=$(sed -n 's/^status \([0-9]*\)$/\1/p' "$scratch/.err" | tail -n 1)
        out=$(tr -d '\000\r' <"$scratch/.out")
        verdict=ok
        if [ "$code" -ne 0 ]; then
            verdict="exit code $code"
        elif [ -z "$status" ]; then
            verdict='no answer'
        elif [ -n "$want" ] && [ "$status" != "$want" ]; then
            verdict="status $status, not $want"
        elif [ -z "$want" ] && [ "$status" -ge 400 ]; then
            verdict="status $status"
        elif [ -n "$expected" ] && ! matches "$out" "$(pattern_of "$expected")"; then
            verdict='other output'
        fi
        total=$((total + 1))
        printf '%-14s %5s  %-4s %s\n' "$file" "${lines[$number]%%$'\t'*}" "$status" "$verdict: ${command:0:100}"
        if [ "$verdict" != ok ]; then
            failed=$((failed + 1))
            [ -z "$expected" ] || printf '    expected %s\n' "$expected"
            printf '    answered %s\n' "${out:0:600}"
            grep -v '^status \|^$' "$scratch/.err" | head -n 3 | sed 's/^/    /' || true
        fi
    done
    rm -rf "$scratch"
    if [ "$total" -eq 0 ]; then
        echo "smoke: $file: no curl line was found" >&2
        return 1
    fi
    echo "$file: $((total - failed)) of $total lines passed"
    [ "$failed" -eq 0 ]
}

[ $# -gt 0 ] || set -- README.md openapi.yaml
if [ -n "${TENURE_URL:-}" ]; then
    bad=0
    for file in "$@"; do
        run_file "$file" || bad=1
    done
    exit "$bad"
fi

if [ -z "${TENURE_BIN:-}" ]; then
    cargo build --quiet --locked --bin tenure
    export TENURE_BIN=${CARGO_TARGET_DIR:-$root/target}/debug/tenure
fi
bad=0
for file in "$@"; do
    scripts/with-node.sh scripts/smoke.sh "$file" || bad=1
done
exit "$bad"

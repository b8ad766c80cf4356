#!/usr/bin/env bash
# etcd's clients against a running node: TENURE_URL, as `with-node.sh` sets it, or an address. Its own command line,
# of which every line must succeed and say what etcd would have said; then, as far as there is Python and Node, the
# libraries of these in scripts/etcd, pinned, in environments below target/ci.
set -euo pipefail

endpoint=${1:-${TENURE_URL:-127.0.0.1:2379}}
endpoint=${endpoint#http://}
export ETCDCTL_API=3
prefix=etcd-clients/$$/

ctl() {
    timeout 20 etcdctl --endpoints "$endpoint" "$@"
}

# What is said must contain the text.
expect() {
    local text=$1 said
    shift
    said=$(ctl "$@" 2>&1) || true
    if [[ $said != *"$text"* ]]; then
        printf 'etcdctl %s\nsaid:     %s\nexpected: %s\n' "$*" "$said" "$text" >&2
        exit 1
    fi
}

work=$(mktemp -d "${TMPDIR:-/tmp}/etcd-clients.XXXXXX")
declare -A running=()

# A command that goes on, by a name; what it says is in a file of that name.
start() {
    local name=$1
    shift
    timeout 60 etcdctl --endpoints "$endpoint" "$@" <"${input:-/dev/null}" >"$work/$name" 2>&1 &
    running[$name]=$!
}

finish() {
    kill "${running[$1]}" 2>/dev/null || true
    wait "${running[$1]}" 2>/dev/null || true
    unset "running[$1]"
}

# Waits until a command that goes on has said something.
holds() {
    for _ in $(seq 1 100); do
        if grep -q -- "$2" "$work/$1"; then return; fi
        sleep 0.1
    done
    printf 'etcdctl, as %s, does not say %s, but:\n' "$1" "$2" >&2
    cat "$work/$1" >&2
    exit 1
}

clean() {
    local name
    for name in "${!running[@]}"; do finish "$name"; done
    # Authentication may be on; and nothing may be left of this.
    ctl --user root:rootpw auth disable >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean EXIT

expect OK put "${prefix}a" 1
expect OK put "${prefix}b" 2
expect "${prefix}b" get --prefix "$prefix" --keys-only
expect 1 del "${prefix}a"
# A client that writes to a pipe which `grep -q` has left would fail.
said=$(printf 'mod("%sb") > "0"\n\nput %sc 3\nget %sb\n\nput %sd 4\n\n' "$prefix" "$prefix" "$prefix" "$prefix" | ctl txn)
[[ $said == *SUCCESS* ]] || { printf 'etcdctl txn\nsaid:     %s\n' "$said" >&2; exit 1; }
lease=$(ctl lease grant 30 | awk '{ print $2 }')
expect OK put "${prefix}k" v --lease "$lease"
expect "${prefix}k" lease timetolive "$lease" --keys
expect 'keepalived' lease keep-alive --once "$lease"
expect "$lease" lease list
expect revoked lease revoke "$lease"
expect '' get "${prefix}k"
(timeout 3 etcdctl --endpoints "$endpoint" watch --prefix "$prefix" --rev 2 || true) | grep -q "${prefix}c"
expect held lock "${prefix}lock" echo held
# A lock with a command: it knows what it holds, its exit code is told, and nobody else has the lock meanwhile.
expect "[${prefix}lock/" lock "${prefix}lock" -- sh -c 'echo "[$ETCD_LOCK_KEY] $ETCD_LOCK_REV"'
expect 'exit status 3' lock "${prefix}lock" -- sh -c 'exit 3'
start holder lock "${prefix}lock"
holds holder "${prefix}lock/"
if timeout 1 etcdctl --endpoints "$endpoint" lock "${prefix}lock" -- true 2>/dev/null; then
    echo 'etcdctl lock: two hold one lock' >&2
    exit 1
fi
finish holder
expect held lock "${prefix}lock" echo held
# An election: who wins is told to those who listen, and the next one takes over.
start first elect "${prefix}election" one
holds first one
start second elect "${prefix}election" two
start listener elect --listen "${prefix}election"
holds listener one
[ ! -s "$work/second" ] || { echo 'etcdctl elect: two lead' >&2; exit 1; }
finish first
holds second two
holds listener two
finish second
finish listener
# Several watches on one stream, and a watch that runs a command.
mkfifo "$work/orders"
# For reading, too, so that neither end waits for the other.
exec 9<>"$work/orders"
input=$work/orders start watcher watch -i
printf 'watch %swatched\nwatch %swatched/ --prefix\n' "$prefix" "$prefix" >&9
start runner watch "${prefix}watched" -- sh -c 'echo "ran $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_VALUE"'
# Until both watches are there, writing does no harm.
for turn in $(seq 1 100); do
    ctl put "${prefix}watched" "turn$turn" >/dev/null
    ctl put "${prefix}watched/below" "below$turn" >/dev/null
    if grep -q turn "$work/watcher" && grep -q below "$work/watcher" && grep -q 'ran "PUT" "turn' "$work/runner"; then
        break
    fi
done
holds watcher turn
holds watcher below
holds runner 'ran "PUT" "turn'
printf 'progress\n' >&9
holds watcher 'progress notify: '
exec 9>&-
finish watcher
finish runner
# Reading and writing in other ways.
expect OK put "${prefix}p" 1
expect "${prefix}p" put "${prefix}p" 2 --prev-kv
old=$(ctl get "${prefix}p" -w fields | awk '$1 == "\"ModRevision\"" { print $3 }')
expect OK put "${prefix}p" --ignore-value
expect '"Version" : 3' get "${prefix}p" -w fields
expect '"version":2,"value":"Mg=="' get "${prefix}p" --rev "$old" -w json
expect "${prefix}p" get --prefix "$prefix" --sort-by MODIFY --order DESCEND --limit 1
expect "${prefix}p" get --from-key "${prefix}p"
expect 2 del "${prefix}p" --prev-kv
expect 'compacted revision' compact "$old"
expect 'etcdserver: mvcc: required revision has been compacted' get "${prefix}p" --rev 1
expect 'requested lease not found' lease revoke 77
expect 'already expired' lease timetolive 77
expect '' alarm disarm
# Without their scheme, which this client would send as part of the authority to single endpoints.
all=$(ctl member list | awk -F', ' '{ sub("http://", "", $5); print $5 }' | paste -sd, -)
if [[ $all == *,* ]]; then
    follower=$(timeout 20 etcdctl --endpoints "$all" endpoint status | awk -F', ' '$5 == "false" { print $2; exit }')
    grep -q "to $follower" <<<"$(timeout 20 etcdctl --endpoints "$all" move-leader "$follower")"
    grep -q "$follower, .*, true," <<<"$(timeout 20 etcdctl --endpoints "$all" endpoint status)"
else
    expect 'etcdserver: bad leader transferee' move-leader 1
fi
# A backup is taken, is not etcd's file, and is not taken for one.
expect 'Snapshot saved' snapshot save "$work/saved"
if command -v curl >/dev/null; then
    curl -fsS --noproxy '*' -o "$work/backup" "http://$endpoint/v1/snapshot"
    expect Error snapshot status "$work/backup"
fi
expect 'etcdserver: mvcc: required revision is a future revision' get x --rev 9999999999
expect 'is healthy' endpoint health
expect 3.6 endpoint status
expect started member list
expect '' alarm list
expect Finished defrag
expect "$endpoint" endpoint hashkv
# Users, roles and tokens; at the end authentication is off again.
root=(--user root:rootpw)
ann=(--user ann:annpw)
expect 'User root created' user add root:rootpw
expect 'etcdserver: user name already exists' user add root:rootpw
expect 'Authentication Enabled' auth enable
expect 'etcdserver: user name is empty' get "${prefix}a"
expect 'etcdserver: authentication failed, invalid user ID or password' --user root:wrong get "${prefix}a"
expect 'Role app created' "${root[@]}" role add app
expect 'Role app updated' "${root[@]}" role grant-permission app readwrite --prefix "${prefix}"
expect "[${prefix}, " "${root[@]}" role get app
expect 'User ann created' "${root[@]}" user add ann:annpw
expect 'Role app is granted to user ann' "${root[@]}" user grant-role ann app
expect 'Roles: app' "${ann[@]}" user get ann
expect OK "${ann[@]}" put "${prefix}mine" 1
expect "${prefix}mine" "${ann[@]}" get --prefix "${prefix}mine"
expect 'etcdserver: permission denied' "${ann[@]}" put elsewhere 1
expect 'etcdserver: permission denied' "${ann[@]}" get --prefix ''
expect 'etcdserver: permission denied' "${ann[@]}" user list
expect 'etcdserver: permission denied' "${ann[@]}" auth disable
expect 'etcdserver: permission denied' "${ann[@]}" compact 2
expect held "${ann[@]}" lock "${prefix}lock" echo held
start waiting "${ann[@]}" elect "${prefix}election" ann
holds waiting ann
finish waiting
# Who may read one key must not follow all of them.
expect 'permission denied' "${ann[@]}" watch --prefix ''
expect 'Role app is revoked from user ann' "${root[@]}" user revoke-role ann app
expect 'etcdserver: permission denied' "${ann[@]}" get "${prefix}mine"
expect 'Password updated' "${root[@]}" user passwd ann --interactive=false <<<newpw
expect 'etcdserver: authentication failed' "${ann[@]}" get "${prefix}mine"
expect 'etcdserver: invalid auth management' "${root[@]}" user delete root
expect 'Role app deleted' "${root[@]}" role delete app
expect 'User ann deleted' "${root[@]}" user delete ann
expect 'Authentication Disabled' "${root[@]}" auth disable
expect 'User root deleted' user delete root
ctl role delete root >/dev/null 2>&1 || true
echo "etcdctl: all as expected"

here=$(dirname "$(readlink -f "$0")")
tools=${CARGO_TARGET_DIR:-$here/../target}/ci/etcd
mkdir -p "$tools"

# A virtual environment with exactly these packages, made once.
python() {
    local list=$here/etcd/$1.txt made=$tools/$1
    if ! cmp -s "$list" "$made/list"; then
        rm -rf "$made"
        python3 -m venv "$made" || return 1
        "$made/bin/pip" install --quiet --disable-pip-version-check -r "$list" || return 1
        cp "$list" "$made/list"
    fi
    "$made/bin/python" "$here/etcd/$2" "$endpoint"
}

if command -v python3 >/dev/null && python3 -m venv --help >/dev/null 2>&1; then
    python python3 clients.py
    python python3-async clients-async.py
else
    echo 'no python3: etcd3, etcd3gw, aetcd and Patroni are not tried'
fi
# The library's build asks for protoc, which Tenure's own does not: a compiler of protobuf in Rust does as well.
if command -v cargo >/dev/null; then
    if ! command -v protoc >/dev/null; then
        [ -x "$tools/bin/protox" ] ||
            CARGO_TARGET_DIR=$tools/protox cargo install --quiet --locked --root "$tools" --features bin protox@0.9.1
        export PROTOC=$tools/bin/protox
    fi
    CARGO_TARGET_DIR=$tools/rust cargo run --quiet --locked --manifest-path "$here/etcd/rust/Cargo.toml" -- "$endpoint"
else
    echo 'no cargo: etcd-client of Rust is not tried'
fi
if command -v npm >/dev/null; then
    if ! [ -d "$tools/node/node_modules/etcd3" ]; then
        mkdir -p "$tools/node"
        npm install --silent --no-audit --no-fund --prefix "$tools/node" etcd3@1.1.2
    fi
    NODE_PATH=$tools/node/node_modules node "$here/etcd/clients.js" "$endpoint"
else
    echo 'no npm: the etcd3 of Node is not tried'
fi

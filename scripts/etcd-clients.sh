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

expect OK put "${prefix}a" 1
expect OK put "${prefix}b" 2
expect "${prefix}b" get --prefix "$prefix" --keys-only
expect 1 del "${prefix}a"
printf 'mod("%sb") > "0"\n\nput %sc 3\nget %sb\n\nput %sd 4\n\n' "$prefix" "$prefix" "$prefix" "$prefix" |
    ctl txn | grep -q SUCCESS
lease=$(ctl lease grant 30 | awk '{ print $2 }')
expect OK put "${prefix}k" v --lease "$lease"
expect "${prefix}k" lease timetolive "$lease" --keys
expect 'keepalived' lease keep-alive --once "$lease"
expect "$lease" lease list
expect revoked lease revoke "$lease"
expect '' get "${prefix}k"
(timeout 3 etcdctl --endpoints "$endpoint" watch --prefix "$prefix" --rev 2 || true) | grep -q "${prefix}c"
expect held lock "${prefix}lock" echo held
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
trap 'ctl "${root[@]}" auth disable >/dev/null 2>&1 || true' EXIT
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
if command -v npm >/dev/null; then
    if ! [ -d "$tools/node/node_modules/etcd3" ]; then
        mkdir -p "$tools/node"
        npm install --silent --no-audit --no-fund --prefix "$tools/node" etcd3@1.1.2
    fi
    NODE_PATH=$tools/node/node_modules node "$here/etcd/clients.js" "$endpoint"
else
    echo 'no npm: the etcd3 of Node is not tried'
fi

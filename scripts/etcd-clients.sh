#!/usr/bin/env bash
# etcd's own command line against a running node: TENURE_URL, as `with-node.sh` sets it, or an address.
# Every line must succeed and say what etcd would have said.
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
echo "etcdctl: all as expected"

#!/usr/bin/env python3
"""Drives an endpoint with the Python clients etcd3 and etcd3gw and with Patroni's class for etcd.

usage: clients.py HOST:PORT
"""
import logging
import os
import sys
import threading
import time

PREFIX = f"python/{os.getpid()}/"


def check(holds, what):
    if not holds:
        sys.exit(f"not as expected: {what}")


def eventually(holds, what):
    """Patroni reads from a cache of its own, which follows a watch."""
    deadline = time.time() + 10
    while not holds():
        check(time.time() < deadline, what)
        time.sleep(0.05)


def with_etcd3(host, port):
    import etcd3
    client = etcd3.client(host=host, port=port, timeout=10)
    key = PREFIX + "etcd3/"
    client.put(key + "a", "1")
    value, meta = client.get(key + "a")
    check(value == b"1" and meta.version == 1, "get")
    check(client.put_if_not_exists(key + "a", "2") is False, "put if not exists")
    check(client.replace(key + "a", "1", "2") is True, "replace")
    done, _ = client.transaction(compare=[client.transactions.value(key + "a") == "2"],
                                 success=[client.transactions.put(key + "b", "x")],
                                 failure=[client.transactions.delete(key + "a")])
    check(done, "transaction")
    check([meta.key for _, meta in client.get_prefix(key)] == [(key + name).encode() for name in "ab"], "prefix")
    events, cancel = client.watch_prefix(key)
    client.put(key + "c", "3")
    client.delete(key + "c")
    first, second = next(events), next(events)
    check(isinstance(first, etcd3.events.PutEvent) and isinstance(second, etcd3.events.DeleteEvent), "watch")
    cancel()
    lease = client.lease(60)
    client.put(key + "leased", "1", lease=lease)
    check(lease.refresh()[0].TTL == 60 and (key + "leased").encode() in lease.keys, "lease")
    lease.revoke()
    check(client.get(key + "leased")[0] is None, "revoke")
    lock = client.lock(PREFIX + "lock", ttl=20)
    check(lock.acquire(timeout=5) and lock.is_acquired(), "lock")
    check(not client.lock(PREFIX + "lock", ttl=20).acquire(timeout=1), "a second holder")
    check(lock.release(), "unlock")
    check(len(list(client.members)) >= 1 and client.status().leader is not None, "members and status")
    check(client.delete_prefix(key).deleted == 2, "delete prefix")
    print("etcd3: all as expected")


def with_etcd3gw(host, port):
    import etcd3gw
    client = etcd3gw.client(host=host, port=port, api_path="/v3/", timeout=10)
    key = PREFIX + "gw/"
    check(client.put(key + "a", "1") and client.get(key + "a") == [b"1"], "put and get")
    check(client.create(key + "a", "2") is False and client.replace(key + "a", "1", "2"), "create and replace")
    check(len(client.get_prefix(key)) == 1, "prefix")
    lease = client.lease(ttl=60)
    client.put(key + "leased", "1", lease=lease)
    check(lease.ttl() > 50 and lease.refresh() == 60 and len(lease.keys()) == 1, "lease")
    seen = []
    events, cancel = client.watch_prefix(key)
    reader = threading.Thread(target=lambda: seen.append(next(events)), daemon=True)
    reader.start()
    time.sleep(0.2)
    client.put(key + "b", "3")
    reader.join(10)
    check(seen and seen[0]["kv"]["value"] == b"3", "watch")
    cancel()
    with client.lock(PREFIX + "gw-lock", ttl=20) as lock:
        check(lock.is_acquired(), "lock")
    lease.revoke()
    check(client.get(key + "leased") == [] and client.delete_prefix(key), "revoke and delete")
    print("etcd3gw: all as expected")


def with_patroni(host, port):
    from patroni.dcs.etcd3 import Etcd3
    from patroni.postgresql.mpp import get_mpp
    logging.basicConfig(level=logging.ERROR)

    def member(name):
        return Etcd3({"hosts": [f"{host}:{port}"], "scope": f"p{os.getpid()}", "namespace": "/service/",
                      "name": name, "ttl": 20, "loop_wait": 5, "retry_timeout": 5}, get_mpp({}))
    one, other = member("one"), member("other")
    for dcs in (one, other):
        check(dcs.touch_member({"conn_url": f"postgres://{dcs._name}/", "state": "running", "xlog_location": 1}),
              "touch member")
    check(one.initialize(create_new=True, sysid="7"), "initialize")
    check(not other.initialize(create_new=True, sysid="8"), "only one initializes")
    check(one.attempt_to_acquire_leader(), "the first gets the lead")
    check(not other.attempt_to_acquire_leader(), "the other does not")

    def leads(seen_by, name):
        leader = seen_by.get_cluster().leader
        return leader is not None and leader.name == name
    eventually(lambda: leads(other, "one"), "the other sees who leads")
    cluster = other.get_cluster()
    check(len(cluster.members) == 2 and cluster.initialize == "7", "cluster")
    check(one.update_leader(cluster, 42, None), "the leader stays")
    check(not other.update_leader(other.get_cluster(), 43, None) or leads(other, "one"), "nobody else")
    eventually(lambda: other.get_cluster().status.last_lsn == 42, "status")
    one.set_config_value('{"ttl": 20}')
    eventually(lambda: one.get_cluster().config and one.get_cluster().config.data["ttl"] == 20, "config")
    check(one.manual_failover("one", "other"), "failover key")
    woken = threading.Event()
    threading.Thread(target=lambda: other.watch(None, 10) and woken.set() or woken.set(), daemon=True).start()
    check(one.delete_leader(one.get_cluster().leader), "the leader resigns")
    check(woken.wait(12), "watch")
    eventually(other.attempt_to_acquire_leader, "the other gets the lead")
    eventually(lambda: leads(one, "other"), "the new leader")
    check(one.delete_cluster() is not False, "delete cluster")
    print("patroni: all as expected")


def main():
    host, port = sys.argv[1].removeprefix("http://").rsplit(":", 1)
    for drive in (with_etcd3, with_etcd3gw, with_patroni):
        drive(host, int(port))
    # Threads of the clients that wait for more.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

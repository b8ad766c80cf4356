#!/usr/bin/env python3
"""Sends the same random requests to an etcd and to a Tenure, both fresh, and compares what they answer.

usage: etcd-diff.py ETCD TENURE_ADDRESS [REQUESTS [SEED]]

ETCD is an address, or the path of a binary that is started for it. Both are asked through the JSON gateway. The
ids of cluster, member and term are left out of the comparison; revisions are part of it. Every hundred requests
the changes since the last compaction are watched in both. Ends at the first difference.
"""
import base64
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time


class Store:
    def __init__(self, address):
        self.address = address
        self.connection = http.client.HTTPConnection(address, timeout=20)

    def ask(self, path, body):
        self.connection.request("POST", path, json.dumps(body))
        answer = self.connection.getresponse()
        said = json.loads(answer.read())
        if answer.status == 200:
            return 200, said
        # Releases of etcd give one code different HTTP statuses.
        return "refused", {"code": said.get("code"), "message": said.get("message")}

    def watched(self, create, last):
        """The events up to a revision, or how the watch was cancelled."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        connection.request("POST", "/v3/watch", json.dumps({"create_request": create}))
        answer, events = connection.getresponse(), []
        while True:
            said = json.loads(answer.readline())["result"]
            if said.get("canceled"):
                connection.close()
                return [said.get("compact_revision"), said.get("cancel_reason")]
            events += said.get("events", [])
            if events and int(events[-1]["kv"]["mod_revision"]) >= last:
                connection.close()
                return events


def without_ids(answer):
    if isinstance(answer, dict):
        left_out = ("cluster_id", "member_id", "raft_term")
        return {name: without_ids(value) for name, value in answer.items() if name not in left_out}
    return [without_ids(item) for item in answer] if isinstance(answer, list) else answer


class Twice(Exception):
    """A key is written twice in one transaction."""


def bounds(delete):
    """The range of a delete; an end of None is none."""
    start, end = (base64.b64decode(delete.get(name, "")) for name in ("key", "range_end"))
    return start, start + b"\0" if not end else None if end == b"\0" else end


def meets(key, ranges):
    return any(start <= key and (end is None or key < end) for start, end in ranges)


def written(operations, etcds):
    """The keys put and the ranges deleted. With `etcds`, checked in the order and with the gaps of etcd's check,
    which does not notice a delete without an end, nor one that is nested behind the put; else as it is meant."""
    nested = [one["request_txn"] for one in operations if "request_txn" in one]
    puts = [base64.b64decode(one["request_put"]["key"]) for one in operations if "request_put" in one]
    deletes = [bounds(one["request_delete_range"]) for one in operations if "request_delete_range" in one]
    if etcds:
        deletes = [(start, end) for start, end in deletes if end is not None]
    seen = set()
    for txn in nested:
        (then, deleted), (other, deleted_too) = (written(txn.get(name, []), etcds) for name in ("success", "failure"))
        if any(key in seen or meets(key, deletes) for key in then | other):
            raise Twice
        if not etcds and any(meets(key, deleted + deleted_too) for key in seen):
            raise Twice
        seen |= then | other
        deletes += deleted + deleted_too
    for key in puts:
        if key in seen:
            raise Twice
        seen.add(key)
    if any(meets(key, deletes) for key in puts):
        raise Twice
    if not etcds:
        level = [bounds(one["request_delete_range"]) for one in operations if "request_delete_range" in one]
        if any(meets(key, level) for key in seen):
            raise Twice
    return seen, deletes


def slips_through(txn):
    """Written twice, and not noticed by etcd: Tenure refuses it, since a revision has a key once."""
    def refused(etcds):
        try:
            written(txn["success"], etcds)
            written(txn["failure"], etcds)
        except Twice:
            return True
        return False
    return refused(False) and not refused(True)


class Requests:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.revision = 1

    def key(self):
        return base64.b64encode(self.random.choice([b"a", b"b", b"b/1", b"b/2", b"c", b"d\x00", b"\xff"])).decode()

    def ranged(self, body):
        choice = self.random.random()
        if choice < 0.3:
            body["range_end"] = "AA=="
        elif choice < 0.6:
            body["range_end"] = self.key()
        return body

    def some(self, body, **options):
        for name, values in options.items():
            if self.random.random() < 0.25:
                body[name] = self.random.choice(values)
        return body

    def range(self):
        near = [str(max(0, self.revision + step)) for step in (-30, -3, -1, 0, 1, 5)]
        body = self.some(
            self.ranged({"key": self.key()}), limit=["1", "2", "5", "-1"], revision=near, keys_only=[True],
            count_only=[True], sort_order=["NONE", "ASCEND", "DESCEND"],
            sort_target=["KEY", "VERSION", "CREATE", "MOD", "VALUE"], min_mod_revision=near, max_mod_revision=near,
            min_create_revision=near, max_create_revision=near, serializable=[True])
        if body.get("sort_order", "NONE") == "NONE" and body.get("sort_target", "KEY") != "KEY":
            # etcd takes as many keys as the limit and one, and sorts these; Tenure sorts before it counts.
            body.pop("limit", None)
        return body

    def put(self):
        value = base64.b64encode(self.random.choice([b"", b"1", b"22", b"x" * 50])).decode()
        body = self.some({"key": self.key()}, value=[value], lease=["7", "8"], prev_kv=[True], ignore_value=[True],
                         ignore_lease=[True])
        if body.get("ignore_value") and not body.get("value"):
            # Where both the key and the lease are missing, either may be said first.
            body.pop("lease", None)
        return body

    def delete(self):
        return self.some(self.ranged({"key": self.key()}), prev_kv=[True])

    def compare(self):
        target, member = self.random.choice([("VERSION", "version"), ("CREATE", "create_revision"),
                                             ("MOD", "mod_revision"), ("VALUE", "value"), ("LEASE", "lease")])
        value = "MQ==" if member == "value" else str(self.random.choice([0, 1, 2, 7, self.revision]))
        body = {"key": self.key(), "target": target, member: value}
        body["result"] = self.random.choice(["EQUAL", "GREATER", "LESS", "NOT_EQUAL"])
        return self.ranged(body)

    def operation(self, depth):
        name, make = self.random.choice([("request_range", self.range), ("request_put", self.put),
                                         ("request_delete_range", self.delete)])
        if depth < 3 and self.random.random() < 0.15:
            return {"request_txn": self.txn(depth + 1)}
        body = make()
        return {} if self.random.random() < 0.01 else {name: body}

    def txn(self, depth=1):
        some = lambda most, make: [make() for _ in range(self.random.randint(0, most))]
        operations = lambda: some(3, lambda: self.operation(depth))
        return {"compare": some(2, self.compare), "success": operations(), "failure": operations()}

    def next(self):
        choice = self.random.random()
        if choice < 0.35:
            return "/v3/kv/range", self.range()
        if choice < 0.6:
            return "/v3/kv/put", self.put()
        if choice < 0.7:
            return "/v3/kv/deleterange", self.delete()
        if choice < 0.92:
            txn = self.txn()
            while slips_through(txn):
                txn = self.txn()
            return "/v3/kv/txn", txn
        lease = {"ID": self.random.choice(["7", "8"])}
        if choice < 0.94:
            return "/v3/lease/grant", {**lease, "TTL": "100000"}
        if choice < 0.955:
            return "/v3/lease/revoke", lease
        if choice < 0.965:
            return "/v3/lease/keepalive", lease
        if choice < 0.975:
            return "/v3/lease/timetolive", self.some(lease, keys=[True])
        if choice < 0.98:
            return "/v3/lease/leases", {}
        return "/v3/kv/compaction", {"revision": str(max(1, self.revision - self.random.randint(-2, 60)))}


def comparable(path, answer):
    status, said = answer
    said = without_ids(said)
    if status == 200 and path == "/v3/lease/timetolive":
        # A second may lie between the two; keys have no order there.
        said.pop("TTL", None) if int(said.get("TTL", "0")) > 0 else None
        said["keys"] = sorted(said.get("keys", []))
    if status == 200 and path == "/v3/lease/leases":
        said["leases"] = sorted(lease["ID"] for lease in said.get("leases", []))
    return status, said


class Pair:
    def __init__(self, etcd, tenure, seed):
        self.stores = [Store(etcd), Store(tenure)]
        self.seed = seed
        self.requests = Requests(seed)
        self.compacted = 1

    def differ(self, number, asked, answers):
        print(f"seed {self.seed}, request {number}: {asked}")
        print("etcd:  ", json.dumps(answers[0]))
        print("tenure:", json.dumps(answers[1]))
        sys.exit(1)

    def step(self, number):
        path, body = self.requests.next()
        answers = [comparable(path, store.ask(path, body)) for store in self.stores]
        if answers[0] != answers[1]:
            self.differ(number, f"{path} {json.dumps(body)}", answers)
        status, said = answers[0]
        if status == 200 and path == "/v3/kv/compaction":
            self.compacted = int(body["revision"])
        revision = said.get("header", {}).get("revision")
        self.requests.revision = int(revision) if revision else self.requests.revision

    def watch(self, number):
        """All that can still be told, and what cannot be any more. Deletes at the compacted revision itself are
        told by Tenure and by late releases of etcd only."""
        options = {"prev_kv": True} if self.requests.random.random() < 0.5 else {}
        everything = {"key": "AA==", "range_end": "AA==", **options}
        starts = [self.compacted + 1, max(1, self.compacted - 3)]
        for start in (start for start in starts if start <= self.requests.revision):
            create = {**everything, "start_revision": str(start)}
            answers = [store.watched(create, self.requests.revision) for store in self.stores]
            if answers[0] != answers[1]:
                self.differ(number, f"watch {json.dumps(create)}", answers)


def started(binary):
    """An etcd of its own; its data goes with it."""
    def port():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            return taken.getsockname()[1]
    data, client, peer = tempfile.TemporaryDirectory(), port(), f"http://127.0.0.1:{port()}"
    address = f"127.0.0.1:{client}"
    process = subprocess.Popen(
        [binary, "--data-dir", os.path.join(data.name, "data"), "--listen-client-urls", f"http://{address}",
         "--advertise-client-urls", f"http://{address}", "--listen-peer-urls", peer,
         "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}", "--log-level", "error"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            if Store(address).ask("/v3/maintenance/status", {})[0] == 200:
                return process, data, address
        except OSError:
            pass
        time.sleep(0.1)
    process.kill()
    sys.exit(f"{binary} is not ready within 30 s")


def main():
    etcd, tenure = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else random.randrange(1 << 32)
    process = None
    if not re.fullmatch(r"[^/]*:\d+", etcd):
        process, _data, etcd = started(etcd)
    try:
        pair = Pair(etcd, re.sub("^http://", "", tenure), seed)
        for number in range(count):
            pair.step(number)
            if number % 100 == 99:
                pair.watch(number)
        print(f"seed {seed}: {count} requests, no difference; at revision {pair.requests.revision}")
    finally:
        if process:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()

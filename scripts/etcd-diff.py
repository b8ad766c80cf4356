#!/usr/bin/env python3
"""Sends the same random requests to an etcd and to a Tenure, both fresh, and compares what they answer.

usage: etcd-diff.py ETCD_ADDRESS TENURE_ADDRESS [REQUESTS [SEED]]

Both are asked through the JSON gateway. The ids of cluster, member and term are left out of the comparison;
revisions are part of it. Ends at the first difference.
"""
import base64
import json
import random
import sys
import urllib.error
import urllib.request


def ask(address, path, body):
    request = urllib.request.Request(f"http://{address}{path}", data=json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        said = json.load(error)
        # Releases of etcd give one code different HTTP statuses.
        return "refused", {"code": said.get("code"), "message": said.get("message")}


def without_ids(answer):
    if isinstance(answer, dict):
        left_out = ("cluster_id", "member_id", "raft_term")
        return {name: without_ids(value) for name, value in answer.items() if name not in left_out}
    return [without_ids(item) for item in answer] if isinstance(answer, list) else answer


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
        return self.some(
            self.ranged({"key": self.key()}), limit=["1", "2", "5", "-1"], revision=near, keys_only=[True],
            count_only=[True], sort_order=["NONE", "ASCEND", "DESCEND"],
            sort_target=["KEY", "VERSION", "CREATE", "MOD", "VALUE"], min_mod_revision=near, max_mod_revision=near,
            min_create_revision=near, max_create_revision=near, serializable=[True])

    def put(self):
        value = base64.b64encode(self.random.choice([b"", b"1", b"22", b"x" * 50])).decode()
        body = self.some({"key": self.key()}, value=[value], lease=["7", "8"], prev_kv=[True], ignore_value=[True],
                         ignore_lease=[True])
        if body.get("ignore_value") and "value" not in body:
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
        if name == "request_delete_range" and body.get("range_end") == "AA==":
            # etcd does not see that such a delete meets a put of the same transaction; Tenure refuses that.
            del body["range_end"]
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
        if choice < 0.93:
            return "/v3/kv/txn", self.txn()
        lease = {"ID": self.random.choice(["7", "8"])}
        if choice < 0.95:
            return "/v3/lease/grant", {**lease, "TTL": "1000"}
        if choice < 0.97:
            return "/v3/lease/revoke", lease
        return "/v3/kv/compaction", {"revision": str(max(1, self.revision - self.random.randint(-2, 60)))}


def main():
    etcd, tenure = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else random.randrange(1 << 32)
    requests = Requests(seed)
    for number in range(count):
        path, body = requests.next()
        answers = [ask(address, path, body) for address in (etcd, tenure)]
        answers = [(status, without_ids(answer)) for status, answer in answers]
        if answers[0] != answers[1]:
            print(f"seed {seed}, request {number}: {path} {json.dumps(body)}")
            print("etcd:  ", *answers[0])
            print("tenure:", *answers[1])
            sys.exit(1)
        revision = answers[0][1].get("header", {}).get("revision")
        requests.revision = int(revision) if revision else requests.revision
    print(f"seed {seed}: {count} requests, no difference")


if __name__ == "__main__":
    main()

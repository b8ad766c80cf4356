#!/usr/bin/env python3
"""Drives an endpoint with the Python client aetcd.

usage: clients-async.py HOST:PORT
"""
import asyncio
import os
import sys

import aetcd

PREFIX = f"aetcd/{os.getpid()}/".encode()


def check(holds, what):
    if not holds:
        sys.exit(f"not as expected: {what}")


async def main():
    host, port = sys.argv[1].removeprefix("http://").rsplit(":", 1)
    async with aetcd.Client(host=host, port=int(port), timeout=10) as client:
        await client.put(PREFIX + b"a", b"1")
        found = await client.get(PREFIX + b"a")
        check(found.value == b"1" and found.version == 1, "put and get")
        check(await client.replace(PREFIX + b"a", b"1", b"2"), "replace")
        done, _ = await client.transaction(compare=[client.transactions.value(PREFIX + b"a") == b"2"],
                                           success=[client.transactions.put(PREFIX + b"b", b"x")], failure=[])
        check(done, "transaction")
        check(len(list(await client.get_prefix(PREFIX))) == 2, "prefix")
        watch = await client.watch_prefix(PREFIX)
        await client.put(PREFIX + b"c", b"3")
        async for event in watch:
            check(event.kv.key == PREFIX + b"c" and event.kv.value == b"3", "watch")
            break
        await watch.cancel()
        lease = await client.lease(60)
        await client.put(PREFIX + b"leased", b"1", lease=lease)
        await lease.refresh()
        check(await lease.remaining_ttl() > 50, "lease")
        await lease.revoke()
        check(await client.get(PREFIX + b"leased") is None, "revoke")
        async with client.lock(PREFIX + b"lock", ttl=20) as lock:
            check(await lock.is_acquired(), "lock")
        await client.delete_prefix(PREFIX)
    print("aetcd: all as expected")


asyncio.run(main())

"""What schemathesis does not know by itself: how lines of JSON are written."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(_context, value):
    if isinstance(value, (bytes, str)):
        return value if isinstance(value, bytes) else value.encode()
    entries = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


@schemathesis.hook
def map_body(_context, body):
    """Waits in a body are kept short like those in a query."""
    if isinstance(body, dict) and isinstance(body.get("wait"), (str, int)):
        return {**body, "wait": "10ms"}
    return body

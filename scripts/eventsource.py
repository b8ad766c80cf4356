#!/usr/bin/env python3
"""A watch in a real browser: EventSource of headless Chromium against a fresh node.

usage: scripts/eventsource.py

A page follows keys while its connection is cut in the middle of a revision and once more between two. It must
tell each change once, in order, with nothing but what the browser does by itself (Last-Event-ID). The page comes
from a small server before the node, as pages of the node's own address must not run scripts of stored values.
Exits with 77 if there is no Chromium.

  TENURE_URL   a running node; without it, scripts/with-node.sh starts one
"""
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

PAGE = b"""<!doctype html><title>watch</title><script>
const told = [];
const tell = (path, body) => fetch(path, { method: 'POST', body: JSON.stringify(body) });
const es = new EventSource('/v1/watch?prefix=es/&initial');
for (const type of ['put', 'delete', 'synced', 'reset', 'problem'])
  es.addEventListener(type, e => {
    const line = JSON.parse(e.data);
    told.push([type, line.key || null, line.value || null, line.initial || false, e.lastEventId]);
    tell('/told', told);
  });
</script>"""
SECONDS = 90


class Relay(http.server.BaseHTTPRequestHandler):
    """The page, what it tells, and the node's streams, which can be cut after so many lines of data."""

    protocol_version = "HTTP/1.1"
    node = None
    told = []
    heard = threading.Condition()
    cut_after = []  # lines of data after which the next streams are cut
    cuts = []  # the Last-Event-ID of each stream that was asked for
    streams = []

    def log_message(self, *_):
        pass

    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Relay.heard:
            # Each says all that was told so far, and two on the way at once may overtake each other.
            Relay.told = max(Relay.told, told, key=len)
            Relay.heard.notify_all()
        self.send_response(204)
        self.end_headers()

    def do_GET(self):
        if not self.path.startswith("/v1/watch"):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)
            return
        Relay.cuts.append(self.headers.get("Last-Event-ID"))
        left = Relay.cut_after.pop(0) if Relay.cut_after else None
        node = http.client.HTTPConnection(Relay.node)
        kept = {name: self.headers[name] for name in ("Accept", "Last-Event-ID") if name in self.headers}
        node.request("GET", self.path, headers=kept)
        answer = node.getresponse()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type"))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        Relay.streams.append(self.connection)
        data = False
        try:
            while line := answer.readline():
                self.wfile.write(line)
                self.wfile.flush()
                if line == b"\n" and data:
                    left = left - 1 if left else left
                    if left == 0:
                        break
                data = line.startswith(b"data: ")
        except OSError:
            pass
        node.close()


def ask(method, path, body=None, kind="text/plain"):
    node = http.client.HTTPConnection(Relay.node)
    node.request(method, path, body, {"Content-Type": kind} if body else {})
    answer = node.getresponse()
    text = answer.read()
    assert answer.status < 300, (path, answer.status, text)
    return json.loads(text)["revision"]


def wait(what, condition):
    with Relay.heard:
        assert Relay.heard.wait_for(lambda: condition(Relay.told), SECONDS), (what, Relay.told)


def keys(told):
    return [line[1] for line in told]


def end_all(browser):
    os.killpg(browser.pid, signal.SIGKILL)
    browser.wait()
    until = time.monotonic() + SECONDS
    try:
        while time.monotonic() < until:
            os.killpg(browser.pid, 0)
            time.sleep(0.01)
    except ProcessLookupError:
        return
    raise AssertionError(f"the browser's helpers have not gone within {SECONDS} s")


def run(chromium):
    Relay.node = urllib.parse.urlsplit(os.environ["TENURE_URL"]).netloc
    ask("PUT", "/v1/kv/es/a", "1")
    # Cut after: a's line, `synced`, and the first of the two lines of one revision.
    Relay.cut_after = [3]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        url = f"http://127.0.0.1:{server.server_port}/"
        # With its helpers, which write to the profile until they have gone, a group of its own.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        browser = subprocess.Popen([chromium, *flags, url], start_new_session=True, **quiet)
        try:
            wait("the page follows", lambda told: any(line[0] == "synced" for line in told))
            put = lambda key: {"put": {"key": key, "value": "2"}}
            txn = {"then": [put("es/b"), put("es/c")]}
            split = ask("POST", "/v1/txn", json.dumps(txn), "application/json")
            wait("the page comes back", lambda told: "es/c" in keys(told))
            Relay.streams[-1].shutdown(socket.SHUT_RDWR)
            gone = ask("DELETE", "/v1/kv/es/a")
            end = ask("PUT", "/v1/kv/es/end", "3")
            wait("the page comes to the end", lambda told: "es/end" in keys(told))
        finally:
            end_all(browser)
    told = Relay.told
    synced = told[1][4]
    # The first of the pair came twice: it was not the end of its revision, so the browser resumed before it.
    expected = [
        ["put", "es/a", "1", True, ""],
        ["synced", None, None, False, synced],
        ["put", "es/b", "2", False, synced],
        ["put", "es/b", "2", False, synced],
        ["put", "es/c", "2", False, str(split)],
        ["delete", "es/a", None, False, str(gone)],
        ["put", "es/end", "3", False, str(end)],
    ]
    assert told == expected, "\n".join(map(str, told))
    assert Relay.cuts[0] is None and Relay.cuts[1] == synced, Relay.cuts
    print(f"EventSource of {chromium} told every change over {len(Relay.cuts)} connections")


if __name__ == "__main__":
    if "-h" in sys.argv or "--help" in sys.argv:
        sys.exit(print(__doc__))
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        print("eventsource: skipped, there is no Chromium here")
        sys.exit(77)
    if "TENURE_URL" not in os.environ:
        here = os.path.dirname(os.path.abspath(__file__))
        os.execv(os.path.join(here, "with-node.sh"), ["with-node.sh", sys.executable, os.path.abspath(__file__)])
    run(found)

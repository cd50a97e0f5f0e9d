"""The main job in one minute: a tailnet in a box, a web app behind Serve, and a second node that fetches it by name.

    make demo

Three processes of an ordinary user on loopback: the coordinator (with DERP and STUN), ``python -m tsnetpy.serve`` in
front of a small web app, and this one, which joins as a second node and dials ``http://hello/``.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio

from tsnetpy.node.node import Node

PAGE = """<!doctype html>
<title>Hello</title>
<p>Hello {login}, this page comes from a web server on 127.0.0.1 that knows nothing of tailnets.</p>
"""


class WebApp(BaseHTTPRequestHandler):
    """The local web app: greets the user that Serve names, and remembers what it was told."""

    seen: "list[dict[str, str]]" = []  # noqa: RUF012 - one list for all requests is the point

    def do_GET(self) -> None:
        """Send the page."""
        self.seen.append(dict(self.headers.items()))
        page = PAGE.format(login=self.headers.get("Tailscale-User-Login", "stranger")).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet: Serve keeps the access log."""


@contextlib.contextmanager
def web_app() -> Iterator[int]:
    """Run the web app on a free loopback port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), WebApp) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)  # noqa: TID251 - an app of its own
        thread.start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def process(*args: str, until: str, **env: str) -> Iterator[str]:
    """Run ``python -m tsnetpy*`` as a process of its own; yield its output up to a line with *until*."""
    command = [sys.executable, "-m", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **env}, text=True) as running:
        try:
            assert running.stdout is not None
            output = ""
            while until not in output:
                line = running.stdout.readline()
                if not line:
                    raise SystemExit(f"{' '.join(command)} ended early:\n{output}")
                output += line
            yield output
        finally:
            running.terminate()
            if running.stdout is not None:
                running.stdout.read()  # so that nothing is left in the pipe when it ends


def run_once(*args: str) -> str:
    """Run ``python -m tsnetpy`` to its end and return what it printed."""
    done = subprocess.run([sys.executable, "-m", "tsnetpy", *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


async def fetch(url: str, key: str) -> None:
    """Join as a second node, fetch the page by name, and show the path."""
    start = time.perf_counter()
    async with Node(hostname="visitor", control_url=url, auth_key=key) as node:
        joined = time.perf_counter() - start
        async with await node.connect_tcp("hello", 80) as stream:
            await stream.send(b"GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n")
            response = b""
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    response += await stream.receive()
        fetched = time.perf_counter() - start
        for _ in range(20):  # the first packets may go by DERP until both sides have found a direct way
            reply = await node.ping("hello", kind="disco")
            if reply.via == "direct":
                break
            await anyio.sleep(0.05)
    print(response.decode())
    names = ("Tailscale-User-Login", "Tailscale-User-Name", "X-Forwarded-For", "X-Forwarded-Host")
    identity = {name: WebApp.seen[-1].get(name, "") for name in names}
    print("identity that the backend saw:", json.dumps(identity))
    print(f"path: {reply.via} {reply.endpoint or ''} in {reply.latency_ns / 1e6:.2f} ms")
    print(f"time to join: {joined:.2f} s, page fetched {fetched:.2f} s after the start")
    if joined >= 2.0 or reply.via != "direct" or not response.startswith(b"HTTP/1.1 200"):
        raise SystemExit("the demo did not go as it should")


def main() -> None:
    """Run the whole of it."""
    with contextlib.ExitStack() as stack:
        state = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tsnetpy-demo-")))
        box = ["tsnetpy", "coordinator", "serve", "--listen", "127.0.0.1:0", "--state", str(state)]
        output = stack.enter_context(process(*box, "--derp-port", "0", "--stun-port", "0", until="coordinator at"))
        url = re.search(r"http://127\.0\.0\.1:\d+", output)
        assert url is not None, output
        key = run_once("coordinator", "keys", "create", "--reusable", "--state", str(state)).split()[-1]
        print(f"coordinator at {url[0]}, in a process of its own")
        port = stack.enter_context(web_app())
        print(f"web app at http://127.0.0.1:{port}, served on the tailnet as http://hello/ by another process\n")
        serve = ["tsnetpy.serve", str(port), "--hostname", "hello", "--json"]
        env = {"TS_AUTHKEY": key, "TS_CONTROL_URL": url[0]}
        stack.enter_context(process(*serve, until='"running"', **env))
        anyio.run(fetch, url[0], key)


if __name__ == "__main__":
    main()

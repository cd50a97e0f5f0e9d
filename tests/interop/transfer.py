"""A node that fetches or sends a body through Serve and prints what it saw: ``transfer.py get|put HOST BYTES``.

Takes the login server and the auth key from the environment. The one line of JSON at the end holds the SHA-256 (of what
came, or of what was sent together with the server's), the seconds, and how the peer was reached meanwhile.
"""

import hashlib
import json
import sys
import time

import anyio

from tests.interop.backend import PATTERN
from tsnetpy.node.node import Node

CHUNK = 1 << 18


async def main(verb: str, host: str, size: int) -> dict[str, object]:
    """Join, wait for a direct path, move *size* bytes, and return the figures."""
    async with Node(hostname=f"transfer-{verb}") as node:
        with anyio.fail_after(30):
            while (await node.ping(host, kind="disco")).via != "direct":  # noqa: ASYNC110 - the peer's path is polled
                await anyio.sleep(0.05)
        start = time.monotonic()
        moved = await (get(node, host, size) if verb == "get" else put(node, host, size))
        seconds = time.monotonic() - start
        status = node.status()
        path = next(peer.path for peer in status.peers if peer.name.startswith(host + "."))
        direct = str(path.cur_addr) if path is not None and path.cur_addr is not None else ""
        return {**moved, "seconds": seconds, "direct": direct, "drops": dict(status.drops)}


async def get(node: Node, host: str, size: int) -> dict[str, object]:
    """Fetch ``/zeros``."""
    digest = hashlib.sha256()
    async with await node.connect_tcp(host, 80) as stream:
        await stream.send(f"GET /zeros?{size} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive()
        body = data.partition(b"\r\n\r\n")[2]
        left = size
        while True:
            digest.update(body)
            left -= len(body)
            if left <= 0:
                break
            body = await stream.receive(CHUNK)
    return {"sha256": digest.hexdigest(), "extra": -left}


async def put(node: Node, host: str, size: int) -> dict[str, object]:
    """Send a body to ``/sha256``."""
    digest = hashlib.sha256()
    async with await node.connect_tcp(host, 80) as stream:
        await stream.send(f"POST /sha256 HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n\r\n".encode())
        left = size
        while left:
            chunk = PATTERN[: min(left, len(PATTERN))]
            digest.update(chunk)
            await stream.send(chunk)
            left -= len(chunk)
        answer = b""
        while len(answer.partition(b"\r\n\r\n")[2]) < 64:
            answer += await stream.receive()
    return {"sha256": digest.hexdigest(), "theirs": answer[-64:].decode()}


if __name__ == "__main__":
    print(json.dumps(anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))))

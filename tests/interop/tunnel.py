"""Small programs at both ends of a WireGuard tunnel: ``tunnel.py MODE ...``, one line of JSON at the end.

``fetch``, ``send``, ``ping``, ``clocks`` and ``steady`` run a node of ours from a wg-quick file; ``crowd``, ``ask`` and
``mirror`` are clients and ``echo`` and ``dns`` servers on ordinary sockets.
"""

import asyncio
import hashlib
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import ByteStream

from tsnetpy.base.addr import format_ip, parse_ip
from tsnetpy.dns import MagicHost, MagicTable, answer
from tsnetpy.wireguard import WireGuardNode

CHUNK = 1 << 18


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def at(node: WireGuardNode) -> str:
    """Return where the node's only peer is."""
    return str(node.status().peers[0].endpoint)


async def fetch(file: str, host: str, path: str, size_text: str, pause_text: str, *rebinds: str) -> None:
    """GET *path*; take a break of so many seconds for each megabyte, and move to a new port at these percentages."""
    size, marks, digest = int(size_text), sorted(map(int, rebinds)), hashlib.sha256()
    async with WireGuardNode.from_file(file) as node, await node.connect_tcp(host, 80) as stream:
        first, ports, slept, longest = at(node), [node.status().listen_port], 0, 0.0
        await stream.send(f"GET {path} HTTP/1.1\r\nHost: peer\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += await stream.receive()
        body = data.partition(b"\r\n\r\n")[2]
        got, started, said = 0, time.monotonic(), False
        while True:
            got += len(body)
            digest.update(body)
            if got >= size:
                break
            if not said and got > size // 5:
                said = True
                say(event="under way")
            if marks and got * 100 > marks[0] * size:
                marks.pop(0)
                node.rebind()
                ports.append(node.status().listen_port)
            if got >> 20 > slept:
                slept = got >> 20
                await anyio.sleep(float(pause_text))
            waited = time.monotonic()
            body = await stream.receive(CHUNK)
            longest = max(longest, time.monotonic() - waited)
        seconds = time.monotonic() - started
        status = node.status()
        say(
            sha256=digest.hexdigest(),
            seconds=seconds,
            longest_gap=longest,
            first=first,
            last=at(node),
            ports=ports,
            drops=dict(status.drops),
        )


async def send(file: str, host: str, size_text: str, *rebinds: str) -> None:
    """POST a body of random megabytes to /sha256, and move to a new port at these percentages."""
    size, marks, digest = int(size_text), sorted(map(int, rebinds)), hashlib.sha256()
    block = os.urandom(1 << 20)
    async with WireGuardNode.from_file(file) as node, await node.connect_tcp(host, 80) as stream:
        started, sent = time.monotonic(), 0
        await stream.send(f"POST /sha256 HTTP/1.1\r\nHost: peer\r\nContent-Length: {size}\r\n\r\n".encode())
        while sent < size:
            piece = block[: size - sent]
            digest.update(piece)
            await stream.send(piece)
            sent += len(piece)
            if marks and sent * 100 > marks[0] * size:
                marks.pop(0)
                node.rebind()
        said = b""
        while len(said.partition(b"\r\n\r\n")[2]) < 64:
            said += await stream.receive()
        say(sha256=digest.hexdigest(), theirs=said[-64:].decode(), seconds=time.monotonic() - started)


async def ping(file: str, *hosts: str) -> None:
    """Ping each host 20 times."""
    async with WireGuardNode.from_file(file) as node:
        found = {}
        for host in hosts:
            found[host] = statistics.median([await node.ping(host) for _ in range(20)]) / 1e6
        say(ms=found, addresses=[format_ip(ip) for ip in node.addresses])


async def clocks(file: str, host: str, *hours: str) -> None:
    """Set the wall clock of this process so many hours wrong, one after the other, with a new handshake each time."""
    true_time, wrong, ages = time.time_ns, 0, []
    time.time_ns = lambda: true_time() + wrong
    async with WireGuardNode.from_file(file) as node:
        await node.ping(host)
        for text in hours:
            step, wrong = int(text) * 3600 * 10**9 - wrong, int(text) * 3600 * 10**9
            node._dataplane.wall_offset_ns += step  # at once, and not when the next timer runs
            await anyio.sleep(5.5)  # two handshakes are 5 s apart
            node.rebind()
            with anyio.fail_after(4):
                while (node.status().peers[0].handshake_age_ns or 0) > 5 * 10**9:  # noqa: ASYNC110 - polled
                    await anyio.sleep(0.01)
            await node.ping(host)
            ages.append((node.status().peers[0].handshake_age_ns or 0) / 1e9)
    say(ages=ages)


async def _flow(stream: ByteStream, seconds: float) -> dict[str, object]:
    """Send 8 KiB twenty times a second while the other end does the same; return sums, and the longest silence."""
    sent, received = hashlib.sha256(), hashlib.sha256()
    count = got = 0
    longest = 0.0
    began = time.monotonic()

    async def send_all() -> None:
        nonlocal count
        while (elapsed := time.monotonic() - began) < seconds:
            piece = count.to_bytes(8, "big") * 1024  # no two pieces are equal
            sent.update(piece)
            await stream.send(piece)
            count += 1
            await anyio.sleep(max(0.0, count / 20 - elapsed))
        await stream.send_eof()

    async with anyio.create_task_group() as group:
        group.start_soon(send_all)
        while True:
            waited = time.monotonic()
            try:
                data = await stream.receive(CHUNK)
            except anyio.EndOfStream:
                break
            longest = max(longest, time.monotonic() - waited)
            got += len(data)
            received.update(data)
    return {"sent": sent.hexdigest(), "received": received.hexdigest(), "bytes": got, "longest_gap": longest}


async def steady(file: str, host: str, port: str, seconds: str) -> None:
    """Exchange data with *host* for so long (``listen`` for *host*: with who calls), and watch for new handshakes."""
    handshakes: list[float] = []
    async with WireGuardNode.from_file(file) as node, anyio.create_task_group() as group:
        listener = await node.create_tcp_listener(int(port)) if host == "listen" else None
        say(event="ready")
        began = time.monotonic()

        async def watch() -> None:
            while True:
                age = node.status().peers[0].handshake_age_ns
                if age is not None:
                    at = time.monotonic() - began - age / 1e9
                    if not handshakes or at > handshakes[-1] + 1:
                        handshakes.append(at)
                await anyio.sleep(0.5)

        group.start_soon(watch)
        stream = await listener.accept() if listener is not None else await node.connect_tcp(host, int(port))
        async with stream:
            result = await _flow(stream, float(seconds))
        group.cancel_scope.cancel()
        drops = dict(node.status().drops)
    say(**result, handshakes=handshakes, drops=drops)


async def mirror(host: str, port: str, seconds: str) -> None:
    """Be the other end of :func:`steady`, on ordinary sockets (``listen`` for *host*: wait for the call)."""

    async def serve(stream: ByteStream) -> None:
        async with stream:
            say(**await _flow(stream, float(seconds)))
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        if host == "listen":
            listener = await anyio.create_tcp_listener(local_host="::", local_port=int(port))
            say(event="ready")
            await listener.serve(serve)
        await serve(await anyio.connect_tcp(host, int(port)))


async def crowd(host: str, port: str, path: str, count: str) -> None:
    """Open *count* connections, and only when all are open use each; return how many distinct bodies came."""
    started = time.monotonic()
    ends = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(int(count))))
    opened = time.monotonic() - started

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: peer\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split()[0])
        body = await reader.readexactly(size)
        writer.close()
        return hashlib.sha256(body).hexdigest()

    digests = await asyncio.gather(*(use(*end) for end in ends))
    say(count=len(digests), digests=sorted(set(digests)), opened=opened, seconds=time.monotonic() - started)


async def ask(host: str, port: str, *sizes: str) -> None:
    """Send one random datagram of each size, again when it gets lost, and compare the echo."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    lost = 0
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((host, int(port)))
        for size in map(int, sizes):
            data = os.urandom(size)
            for _ in range(5):
                sock.send(data)
                try:
                    if sock.recv(65536) == data:
                        break
                except TimeoutError:
                    lost += 1
            else:
                raise SystemExit(f"no echo of {size} bytes")
    say(sizes=list(map(int, sizes)), lost=lost)


async def echo(port: str) -> None:
    """Send every datagram back, for ever."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", int(port)))
        say(event="ready")
        while True:
            data, source = sock.recvfrom(65536)
            sock.sendto(data, source)


async def dns(name: str, *addresses: str) -> None:
    """Be a DNS server that knows one name."""
    table = MagicTable(name.partition(".")[2], [MagicHost(name, tuple(map(parse_ip, addresses)))], answer_aaaa=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((addresses[0], 53))
        say(event="ready")
        while True:
            query, source = sock.recvfrom(65536)
            sock.sendto(answer(query, table, int(time.monotonic())), source)


if __name__ == "__main__":
    modes: dict[str, Callable[..., Awaitable[None]]] = {
        "fetch": fetch,
        "send": send,
        "ping": ping,
        "clocks": clocks,
        "steady": steady,
        "mirror": mirror,
        "crowd": crowd,
        "ask": ask,
        "echo": echo,
        "dns": dns,
    }
    anyio.run(modes[sys.argv[1]], *sys.argv[2:])

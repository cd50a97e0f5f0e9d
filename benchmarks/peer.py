"""A benchmark peer with the flags, modes, ports and output of ``tspeer`` (Go's tsnet): either can stand at either end.

    python -m benchmarks.peer -control URL -authkey KEY -hostname srv
    python -m benchmarks.peer -control URL -authkey KEY -hostname cli -mode bulk -to 100.64.0.1
    python -m benchmarks.peer -wg wg0.conf -mode bulk -to 10.0.0.1

The last is a node of plain WireGuard, for a peer that is in no tailnet. Ports: 7001 sink (reads until EOF, answers
``ok``), 7002 source, 7003 echo (TCP and UDP), 7080 HTTP (``hello``, or a reverse proxy to ``-backend``). A load prints
one JSON object. In the mode ``load`` each line ``mode seconds parallel`` of the standard input is one load.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import ByteStream

from benchmarks.core import is_compiled
from tsnetpy import serve
from tsnetpy.node.config import NodeConfig
from tsnetpy.node.node import Node
from tsnetpy.serve.config import TextTarget, parse_target, single_target
from tsnetpy.wireguard import WireGuardNode

SINK, SOURCE, ECHO, HTTP = 7001, 7002, 7003, 7080
CHUNK = 1 << 18


def cpu_seconds() -> float:
    """Return the processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def report(values: dict[str, float]) -> None:
    """Print the result of a run."""
    print(json.dumps({**values, "max_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)


def say_ready(up_s: float, addresses: tuple[str, ...]) -> None:
    """Tell that the peer is up, after how many seconds, where, and on which core."""
    print(json.dumps({"ready": True, "up_s": up_s, "ips": addresses, "compiled": is_compiled()}), flush=True)


def quantile(values: list[float], q: float) -> float:
    """Return the *q* quantile of *values*, which it sorts."""
    values.sort()
    return values[int((len(values) - 1) * q)] if values else 0.0


async def load(parallel: int, seconds: float, once: Callable[[int], Awaitable[None]]) -> tuple[list[float], int]:
    """Run ``once(worker)`` over and over in *parallel* tasks; return all latencies in seconds, and the failures.

    Each task does it once at least: on a busy machine the processor may be with others for all of a short time.
    """
    latencies: list[float] = []
    bad = 0
    end = time.perf_counter() + seconds

    async def work(number: int) -> None:
        nonlocal bad
        start = time.perf_counter()
        while True:
            try:
                await once(number)
            except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
                bad += 1
                print(repr(error), file=sys.stderr)
                return
            now = time.perf_counter()
            latencies.append(now - start)
            if now >= end:
                return
            start = now

    async with anyio.create_task_group() as tasks:
        for number in range(parallel):
            tasks.start_soon(work, number)
    return latencies, bad


async def receive_exactly(stream: ByteStream, size: int) -> bytes:
    """Return *size* bytes from *stream*."""
    data = await stream.receive(size)
    while len(data) < size:
        data += await stream.receive(size - len(data))
    return data


# ---- server


async def sink(stream: ByteStream) -> None:
    """Read until EOF, answer ``ok``."""
    async with stream:
        try:
            while True:
                await stream.receive(CHUNK)
        except anyio.EndOfStream:
            await stream.send(b"ok\n")
        except anyio.BrokenResourceError:
            return


async def source(stream: ByteStream) -> None:
    """Write until the other side closes."""
    data = bytes(CHUNK)
    async with stream:
        try:
            while True:
                await stream.send(data)
        except anyio.BrokenResourceError:
            return


async def echo(stream: ByteStream) -> None:
    """Send everything back."""
    async with stream:
        try:
            while True:
                await stream.send(await stream.receive(CHUNK))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return


async def echo_udp(node: Node | WireGuardNode) -> None:
    """Send every datagram back."""
    async with await node.create_udp_socket(ECHO) as socket:
        async for data, sender in socket:
            await socket.send((data, sender))


async def run_server(node: Node | WireGuardNode, backend: str, up_s: float) -> None:
    """Serve the ports until ended; HTTP, which Serve answers, in a tailnet only."""
    async with anyio.create_task_group() as tasks:
        for port, handler in ((SINK, sink), (SOURCE, source), (ECHO, echo)):
            listener = await node.create_tcp_listener(port)
            tasks.start_soon(listener.serve, handler)
        tasks.start_soon(echo_udp, node)
        if isinstance(node, Node):
            config = single_target(parse_target(backend) if backend else TextTarget("hello\n"), HTTP)
            await tasks.start(serve.run, node, config)
        say_ready(up_s, tuple(node.status().addresses))


# ---- client


async def warm_up(stream: ByteStream, count: int) -> None:
    """Send echoes until the path is the direct one."""
    for _ in range(count):
        await stream.send(b"x")
        await receive_exactly(stream, 1)
        await anyio.sleep(0.05)


async def run_loads(node: Node | WireGuardNode, args: argparse.Namespace, up_s: float) -> None:
    """Load the peer in one mode and report, or in each mode that comes on the standard input."""
    stream = await node.connect_tcp(args.to, ECHO)
    await warm_up(stream, 30)
    if args.mode != "load":
        report(await run_load(node, args, stream))
        return
    say_ready(up_s, tuple(node.status().addresses))
    while line := await anyio.to_thread.run_sync(sys.stdin.readline):
        args.mode, seconds, parallel = line.split()
        args.secs, args.p = float(seconds), int(parallel)
        await warm_up(stream, 10)
        report(await run_load(node, args, stream))


async def run_load(node: Node | WireGuardNode, args: argparse.Namespace, stream: ByteStream) -> dict[str, float]:
    """Load the peer in one mode; return the figures."""
    cpu0, start = cpu_seconds(), time.perf_counter()
    if args.mode in ("bulk", "source"):
        total = await bulk(node, args, start)
        elapsed = time.perf_counter() - start
        gigabytes = total / 1e9
        cpu = (cpu_seconds() - cpu0) / gigabytes
        return {"mbit_s": gigabytes * 8000 / elapsed, "bytes": total, "cpu_s_per_GB": cpu}
    once = {"rtt": rtt(stream), "conns": conns(node, args.to), "http": http(node, args)}[args.mode]
    latencies, bad = await load(1 if args.mode == "rtt" else args.p, args.secs, once)
    count = max(1, len(latencies))
    cpu_us = (cpu_seconds() - cpu0) / count * 1e6
    p50, p99 = quantile(latencies, 0.5), quantile(latencies, 0.99)
    figures = {"n": count, "bad": bad, "cpu_us": cpu_us}
    if args.mode == "rtt":
        return {**figures, "p50_us": p50 * 1e6, "p99_us": p99 * 1e6}
    rate = "conn_per_s" if args.mode == "conns" else "req_per_s"
    return {**figures, rate: len(latencies) / args.secs, "p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3}


async def bulk(node: Node | WireGuardNode, args: argparse.Namespace, start: float) -> int:
    """Move bytes over ``-p`` connections for ``-secs``; return how many.

    What was sent counts when the sink says that it has read it all.
    """
    total = 0
    data = bytes(CHUNK)

    async def one() -> None:
        nonlocal total
        async with await node.connect_tcp(args.to, SINK if args.mode == "bulk" else SOURCE) as stream:
            while time.perf_counter() - start < args.secs:
                if args.mode == "bulk":
                    await stream.send(data)
                    total += CHUNK
                else:
                    count = len(await stream.receive(CHUNK))  # not in one expression: others add while this waits
                    total += count
            if args.mode == "bulk":
                await stream.send_eof()
                await receive_exactly(stream, 3)

    async with anyio.create_task_group() as tasks:
        for _ in range(args.p):
            tasks.start_soon(one)
    return total


def rtt(stream: ByteStream) -> Callable[[int], Awaitable[None]]:
    """Return one byte there and back."""

    async def once(_: int) -> None:
        await stream.send(b"x")
        await receive_exactly(stream, 1)

    return once


def conns(node: Node | WireGuardNode, to: str) -> Callable[[int], Awaitable[None]]:
    """Return connect, echo one byte, close."""

    async def once(_: int) -> None:
        async with await node.connect_tcp(to, ECHO) as stream:
            await stream.send(b"x")
            await receive_exactly(stream, 1)

    return once


def http(node: Node | WireGuardNode, args: argparse.Namespace) -> Callable[[int], Awaitable[None]]:
    """Return one GET on a kept-alive connection of the worker."""
    request = f"GET {args.path} HTTP/1.1\r\nHost: {args.to}:{HTTP}\r\n\r\n".encode()
    streams: dict[int, ByteStream] = {}

    async def once(worker: int) -> None:
        stream = streams.get(worker)
        if stream is None:
            stream = streams[worker] = await node.connect_tcp(args.to, HTTP)
        await stream.send(request)
        data = await stream.receive()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += await stream.receive()
        head = data[:end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if not head.startswith(b"http/1.1 200"):
            raise OSError(head.partition(b"\r\n")[0].decode())
        missing = end + 4 + length - len(data)
        while missing > 0:
            missing -= len(await stream.receive())

    return once


async def main(args: argparse.Namespace) -> None:
    """Join, then serve or load."""
    start = time.perf_counter()
    async with make_node(args) as node:
        up_s = time.perf_counter() - start
        if args.mode == "serve":
            await run_server(node, args.backend, up_s)
        elif args.mode == "idle":
            await anyio.sleep(args.secs)
            report({"up_s": up_s, "cpu_s": cpu_seconds()})
        else:
            await run_loads(node, args, up_s)


def make_node(args: argparse.Namespace) -> Node | WireGuardNode:
    """Return the node that the flags describe."""
    if args.wg:
        return WireGuardNode.from_file(args.wg)
    config = NodeConfig(
        hostname=args.hostname,
        state_dir=args.dir or None,
        auth_key=args.authkey,
        control_url=args.control,
        ephemeral=True,
    )
    return Node(config)


def parse() -> argparse.Namespace:
    """Return the flags, which are spelled as Go spells them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("control", "", "coordination server URL"),
        ("authkey", "", "auth key"),
        ("hostname", "tspeer", "requested name"),
        ("dir", "", "state directory, one per process"),
        ("wg", "", "be a node of plain WireGuard from this wg-quick file, and of no tailnet"),
        ("to", "", "tailnet address of the peer to load"),
        ("backend", "", "serve: reverse proxy port 7080 to this URL"),
        ("path", "/", "http: path to fetch"),
    ):
        parser.add_argument(f"-{name}", default=default, help=text)
    modes = ("serve", "bulk", "source", "rtt", "conns", "http", "idle", "load")
    parser.add_argument("-mode", default="serve", choices=modes)
    parser.add_argument("-secs", type=float, default=5, help="seconds of load")
    parser.add_argument("-p", type=int, default=1, help="parallel connections")
    parser.add_argument("-trio", action="store_true", help="run on trio instead of asyncio")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse()
    anyio.run(main, arguments, backend="trio" if arguments.trio else "asyncio")

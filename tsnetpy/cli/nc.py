"""``nc``: standard input and output as one TCP connection, as OpenSSH's ``ProxyCommand`` wants it."""

import argparse
import os
import sys

import anyio
from anyio.abc import ByteStream

from tsnetpy.node.node import Node
from tsnetpy.node.program import Progress
from tsnetpy.runtime.threads import run_blocking

from ._command import Subparsers, add_command

_CHUNK = 256 * 1024


def register(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(commands, "nc", "connect standard input and output to a peer's TCP port", _nc)
    parser.add_argument("host", help="name or address")
    parser.add_argument("port", type=int)


async def _nc(node: Node, args: argparse.Namespace, progress: Progress) -> None:
    async with await node.connect_tcp(args.host, args.port) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(_send_input, stream)
        await _print_output(stream)
        tasks.cancel_scope.cancel()


async def _send_input(stream: ByteStream) -> None:
    descriptor = sys.stdin.fileno()
    # A thread reads, since a regular file is never "readable" to an event loop; it is left behind at the end.
    while data := await run_blocking(os.read, descriptor, _CHUNK, abandon=True):
        try:
            await stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
    await stream.send_eof()


async def _print_output(stream: ByteStream) -> None:
    descriptor = sys.stdout.fileno()
    try:
        while True:
            view = memoryview(await stream.receive(_CHUNK))
            while view:
                view = view[await run_blocking(os.write, descriptor, view) :]
    except (anyio.EndOfStream, anyio.BrokenResourceError, BrokenPipeError):
        return

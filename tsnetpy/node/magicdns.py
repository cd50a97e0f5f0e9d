"""MagicDNS as a service inside the node's own stack: 100.100.100.100 and fd7a:115c:a1e0::53, port 53, UDP and TCP.

Only this process can ask it (those addresses never appear on the wire); it is for code that wants DNS itself, like a
resolver library given a tailnet socket. Dials do not need it: they look names up directly.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final, TypeAlias

import anyio
from anyio.abc import TaskStatus

from tsnetpy.base.errors import DecodeError, DialError
from tsnetpy.base.instant import SECOND
from tsnetpy.dns import MAGIC_DNS_V4, MAGIC_DNS_V6, MagicTable, MessageFramer, answer, frame_message
from tsnetpy.netstack import tcp, udp
from tsnetpy.netstack.pump import Pump
from tsnetpy.runtime.clock import wall_ns

_Table: TypeAlias = Callable[[], MagicTable]
_PORT: Final = 53
_CONNECTIONS: Final = 32
_IDLE_S: Final = 30.0


async def serve_magic_dns(
    pump: Pump, table: _Table, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Answer queries until cancelled.

    Args:
        pump: whose stack to serve in.
        table: returns the present table.
        task_status: told once all sockets are open.
    """
    limiter = anyio.CapacityLimiter(_CONNECTIONS)
    async with AsyncExitStack() as stack, anyio.create_task_group() as group:
        for ip in (MAGIC_DNS_V4, MAGIC_DNS_V6):
            socket = await stack.enter_async_context(udp.bind(pump, _PORT, ip=ip))
            listener = await stack.enter_async_context(tcp.listen(pump, _PORT, ip=ip, backlog=_CONNECTIONS))
            group.start_soon(_serve_udp, socket, table)
            group.start_soon(_serve_tcp, listener, table, limiter)
        task_status.started()


async def _serve_udp(socket: udp.UdpSocket, table: _Table) -> None:
    while True:
        try:
            query, (host, port) = await socket.receive()
        except anyio.ClosedResourceError:
            return  # the node is closing
        reply = answer(query, table(), wall_ns() // SECOND)
        try:
            await socket.sendto(reply, host, port)
        except DialError:
            continue  # an answer too long for a datagram; the client will ask again over TCP


async def _serve_tcp(listener: tcp.TcpListener, table: _Table, limiter: anyio.CapacityLimiter) -> None:
    async def converse(stream: tcp.TcpStream) -> None:
        async with stream, limiter:
            framer = MessageFramer()
            try:
                while True:
                    with anyio.fail_after(_IDLE_S):
                        data = await stream.receive()
                    for query in framer.feed(data):
                        await stream.send(frame_message(answer(query, table(), wall_ns() // SECOND, tcp=True)))
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError, DecodeError):
                return

    await listener.serve(converse)

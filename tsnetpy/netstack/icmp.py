"""Ping: ICMP echo through the tunnel, answered by the peer's IP stack."""

from typing import Final

import anyio

from tsnetpy.base.addr import Endpoint, IpBytes, format_ip
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import Duration
from tsnetpy.ipstack import IcmpSocket

from .errors import dial_error, from_local_error
from .pump import Pump

_SEQ: Final = 1


class _Waiter:
    """Owner of an echo socket for as long as one ping takes."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def on_ready(self, bits: int) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = anyio.Event()


async def ping(pump: Pump, target: IpBytes, timeout_s: float, payload: bytes = b"tsnetpy ping 0123456789") -> Duration:
    """Send one echo request to *target* (raw address) and return the round trip in nanoseconds.

    Raises:
        DialError: no answer in time (``ETIMEDOUT``), or a router says that there is no way (``EHOSTUNREACH``).
    """
    try:
        socket = pump.stack.icmp_bind()
    except LocalProtocolError as failure:
        raise from_local_error(failure, format_ip(target)) from failure
    waiter = _Waiter()
    socket.owner = waiter
    try:
        with anyio.move_on_after(timeout_s):
            return await _exchange(pump, socket, waiter, target, payload)
    finally:
        socket.close()
    raise dial_error("timeout", format_ip(target))


async def _exchange(pump: Pump, socket: IcmpSocket, waiter: _Waiter, target: IpBytes, payload: bytes) -> Duration:
    started = pump.now()
    try:
        socket.send_echo(target, _SEQ, payload, started)
    except LocalProtocolError as failure:
        raise from_local_error(failure, Endpoint(target, 0)) from failure
    pump.turn(started)
    while True:
        while (reply := socket.recv()) is not None:
            sender, seq, data, _ = reply
            if sender == target and seq == _SEQ and data == payload:
                return pump.now() - started
        error = socket.take_error()
        if error is not None:
            raise dial_error(error, format_ip(target))
        await waiter.wait()

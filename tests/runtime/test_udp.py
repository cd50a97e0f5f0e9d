"""The UDP port on loopback: offloads where the kernel has them, the same datagrams without."""

import errno
import socket

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsnetpy.base.addr import Endpoint
from tsnetpy.runtime.udp import MAX_SEGMENTS, UdpPort, UdpSocket

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

LOOPBACK_V4 = bytes((127, 0, 0, 1))
LOOPBACK_V6 = bytes(15) + b"\x01"


def datagrams(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def receive(sock: UdpSocket, count: int) -> list[bytes]:
    got: list[bytes] = []
    with anyio.fail_after(5):
        while len(got) < count:
            await sock.wait_readable()
            for batch in sock.receive():
                got += datagrams(bytes(batch.data), batch.segment_size)
    return got


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("ip", [LOOPBACK_V4, LOOPBACK_V6], ids=["v4", "v6"])
async def test_batches_arrive_as_the_same_datagrams(offload: bool, ip: bytes) -> None:
    sender, receiver = UdpPort.open(offload=offload), UdpPort.open(offload=offload)
    try:
        sock = receiver.v4 if len(ip) == 4 else receiver.v6
        if sock is None:
            pytest.skip("no IPv6 here")
        data = bytes(i % 251 for i in range(1280 * 70 + 99))  # more than one call may carry, and a short tail
        assert sender.send(data, 1280, Endpoint(ip, sock.port)) == 0
        assert await receive(sock, 71) == datagrams(data, 1280)
        calls = sum(s.send_calls for s in sender.sockets)
        gso = sender.sockets[0].gso
        assert calls == (2 if gso and offload else 71)
    finally:
        sender.close()
        receiver.close()


async def test_source_is_known_and_both_families_share_a_port() -> None:
    sender, receiver = UdpPort.open(), UdpPort.open()
    try:
        assert receiver.v4 is not None
        assert sender.v4 is not None
        if receiver.v6 is not None:
            assert receiver.v6.port == receiver.v4.port
        sender.send(b"x" * 50, 50, Endpoint(LOOPBACK_V4, receiver.v4.port))
        await receiver.v4.wait_readable()
        (batch,) = receiver.v4.receive()
        assert batch.source == Endpoint(LOOPBACK_V4, sender.v4.port)
        assert receiver.v4.receive() == []
    finally:
        sender.close()
        receiver.close()


async def test_datagrams_that_come_one_by_one_cost_one_call_each_and_none_is_left() -> None:
    sender, receiver = UdpPort.open(ipv6=False), UdpPort.open(ipv6=False)
    try:
        sock = receiver.v4
        assert sock is not None
        to = Endpoint(LOOPBACK_V4, sock.port)
        for number in range(33 + 64):
            sender.send(bytes((number,)) * 50, 50, to)
            assert await receive(sock, 1) == [bytes((number,)) * 50]
        # Each of the first finds nothing behind it; later ones look every eighth time.
        assert sock.receive_calls == 33 * 2 + 64 + 64 // 8
        for size in (50, 60, 70, 80):  # not of one size, so that the kernel does not merge them
            sender.send(b"y" * size, size, to)
        assert [len(data) for data in await receive(sock, 4)] == [50, 60, 70, 80]
        assert sock.receive() == []
    finally:
        sender.close()
        receiver.close()


class Stubborn(socket.socket):
    """A socket that refuses ancillary data, or everything, with a chosen error."""

    refuse_gso = 0
    refuse_all = 0
    open_for = 0  # datagrams that are taken all the same

    def sendmsg(self, *args: object) -> int:
        if not self.refuse_gso:
            return super().sendmsg(*args)  # type: ignore[arg-type]  # passed through unchanged
        raise OSError(self.refuse_gso, "refused")

    def sendto(self, *args: object) -> int:
        if self.open_for:
            self.open_for -= 1
        elif self.refuse_all:
            raise OSError(self.refuse_all, "refused")
        return super().sendto(*args)  # type: ignore[call-overload,no-any-return]  # passed through unchanged


@pytest.fixture
def stubborn() -> UdpSocket:
    sock = Stubborn(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return UdpSocket(sock)


@pytest.mark.parametrize(
    ("code", "gso_afterwards"), [(errno.EIO, False), (errno.ENOPROTOOPT, False), (errno.EINVAL, True)]
)
async def test_refused_gso_falls_back_silently(stubborn: UdpSocket, code: int, gso_afterwards: bool) -> None:
    receiver = UdpPort.open(ipv6=False)
    sock, raw = receiver.v4, stubborn.sock
    assert sock is not None
    assert isinstance(raw, Stubborn)
    try:
        stubborn.gso = True
        raw.refuse_gso = code
        data = bytes(range(200)) * 5
        to = Endpoint(LOOPBACK_V4, sock.port)
        for _ in range(2):
            assert stubborn.send(data, 100, to) == 0
        assert await receive(sock, 20) == datagrams(data, 100) * 2
        assert stubborn.gso is gso_afterwards
        assert stubborn.send_calls == 21  # the refused call was made once only
        assert stubborn.drops.total == 0
    finally:
        receiver.close()
        stubborn.close()


async def test_full_socket_keeps_a_bounded_queue(stubborn: UdpSocket) -> None:
    receiver = UdpPort.open(ipv6=False)
    sock, raw = receiver.v4, stubborn.sock
    assert sock is not None
    assert isinstance(raw, Stubborn)
    try:
        raw.refuse_gso = raw.refuse_all = errno.EAGAIN
        to = Endpoint(LOOPBACK_V4, sock.port)
        for i in range(200):
            assert stubborn.send(b"%03d" % i * 20, 60, to) == 0
        assert stubborn.pending
        assert stubborn.pending_dropped == 200 - 128
        assert not stubborn.flush()
        raw.refuse_all = 0
        await stubborn.wait_writable()
        assert stubborn.flush()
        got = await receive(sock, 128)
        assert {d[:3] for d in got} == {b"%03d" % i for i in range(72, 200)}
    finally:
        receiver.close()
        stubborn.close()


async def test_partial_batch_is_continued_after_a_full_socket(stubborn: UdpSocket) -> None:
    receiver = UdpPort.open(ipv6=False)
    sock, raw = receiver.v4, stubborn.sock
    assert sock is not None
    assert isinstance(raw, Stubborn)
    try:
        stubborn.gso = False
        raw.refuse_all = errno.EAGAIN
        data = bytes(range(250)) * 2
        assert stubborn.send(data, 100, Endpoint(LOOPBACK_V4, sock.port)) == 0
        raw.refuse_all = 0
        while not stubborn.flush():
            pass
        assert sorted(await receive(sock, 5)) == sorted(datagrams(data, 100))
    finally:
        receiver.close()
        stubborn.close()


@pytest.mark.parametrize("gso", [True, False])
async def test_what_was_kept_goes_out_in_order_before_anything_newer(gso: bool) -> None:
    receiver = UdpPort.open(ipv6=False)
    raw = Stubborn(socket.AF_INET, socket.SOCK_DGRAM)
    raw.bind(("127.0.0.1", 0))
    sender = UdpSocket(raw)
    sock = receiver.v4
    assert sock is not None
    told = 0

    def on_pending() -> None:
        nonlocal told
        told += 1

    try:
        sender.gso = gso
        sender.on_pending = on_pending
        to = Endpoint(LOOPBACK_V4, sock.port)
        raw.refuse_gso = raw.refuse_all = errno.EAGAIN
        sizes = [100, 300, 100, 450]
        sent = []
        for number, size in enumerate(sizes):
            data = b"".join(bytes([number, part]) * 50 for part in range(-(-size // 100)))[:size]
            sent += datagrams(data, 100)
            assert sender.send(data, 100, to) == 0
        assert told == 1
        for _ in range(3):
            assert not sender.flush()  # in vain: nothing may change its place
        assert sender.pending == len(sizes)
        if not gso:
            raw.open_for = 3  # the first batch, and two thirds of the second
            assert not sender.flush()
            assert sender.pending == 3
        raw.refuse_gso = raw.refuse_all = 0
        assert sender.flush()
        assert sender.send(b"last", 100, to) == 0
        assert await receive(sock, len(sent) + 1) == [*sent, b"last"]
        assert sender.drops.total == sender.pending_dropped == 0
    finally:
        receiver.close()
        sender.close()


async def test_refusals_come_back_as_errno(stubborn: UdpSocket) -> None:
    raw = stubborn.sock
    assert isinstance(raw, Stubborn)
    try:
        raw.refuse_all = raw.refuse_gso = errno.EHOSTUNREACH
        to = Endpoint(LOOPBACK_V4, 9)
        stubborn.gso = True
        assert stubborn.send(bytes(100), 100, to) == errno.EHOSTUNREACH
        assert stubborn.send(bytes(300), 100, to) == errno.EHOSTUNREACH
        assert stubborn.drops.counts == {"send_ehostunreach": 4}
    finally:
        stubborn.close()
    port = UdpPort.open(ipv6=False)
    assert port.send(b"x", 1, Endpoint(LOOPBACK_V6, 9)) == errno.EAFNOSUPPORT
    port.close()


async def test_taken_port_is_an_error() -> None:
    port = UdpPort.open(ipv6=False)
    assert port.v4 is not None
    with pytest.raises(OSError, match=r"."):
        UdpPort.open(port.v4.port, ipv6=False)
    port.close()


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 1400), count=st.integers(1, MAX_SEGMENTS + 10), tail=st.integers(0, 1400))
def test_any_shape_of_batch(size: int, count: int, tail: int) -> None:
    sender, receiver = UdpPort.open(ipv6=False), UdpPort.open(ipv6=False)
    try:
        sock = receiver.v4
        assert sock is not None
        data = bytes(size) * count + b"t" * min(tail, size)
        assert sender.send(data, size, Endpoint(LOOPBACK_V4, sock.port)) == 0
        got: list[bytes] = []
        while len(batches := sock.receive()):
            for batch in batches:
                got += datagrams(bytes(batch.data), batch.segment_size)
        assert got == datagrams(data, size)
    finally:
        for port in (sender, receiver):  # no event loop here that had to be told of the closing
            for open_socket in port.sockets:
                open_socket.sock.close()

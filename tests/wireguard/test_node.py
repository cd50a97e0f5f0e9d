"""Two plain WireGuard nodes over the loopback address: sockets, roaming, names, cookies."""

import errno
from dataclasses import replace

import anyio
import pytest
from anyio.abc import SocketAttribute

from tests.wireguard.kit import IPS, IPS6, KEYS, PUBLIC, config, pair, peer
from tsnetpy.base.addr import Endpoint, parse_ip, parse_prefix
from tsnetpy.base.errors import ConfigError, DialError
from tsnetpy.base.packet import Buffer, TxBatch
from tsnetpy.dns import MagicHost, MagicTable, MessageFramer, answer, frame_message
from tsnetpy.netstack.tcp import TcpListener, TcpStream
from tsnetpy.netstack.udp import UdpSocket
from tsnetpy.runtime.udp import UdpSocket as HostSocket
from tsnetpy.runtime.underlay import UnderlayConfig, UnderlayPeer
from tsnetpy.testing.entropy import SeededEntropy
from tsnetpy.wg import Device
from tsnetpy.wireguard import HostPort, WireGuardNode
from tsnetpy.wireguard.underlay import WireGuardUnderlay

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]


async def echo(listener: TcpListener) -> None:
    async def one(stream: TcpStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send(data)

    await listener.serve(one)


async def exchange(stream: TcpStream, data: bytes) -> None:
    await stream.send(data)
    got = b""
    while len(got) < len(data):
        got += await stream.receive()
    assert got == data


@pytest.mark.parametrize("family", [IPS, IPS6], ids=["v4", "v6"])
async def test_tcp_udp_and_ping(family: list[str]) -> None:
    with anyio.fail_after(20):
        async with pair() as (a, b), anyio.create_task_group() as group:
            group.start_soon(echo, await b.create_tcp_listener(80))
            async with await a.connect_tcp(family[1], 80) as stream:
                assert stream.extra(SocketAttribute.remote_address) == (family[1], 80)
                await exchange(stream, b"hello" * 100_000)
            theirs = await b.create_udp_socket(53)
            ours = await a.create_udp_socket()
            await ours.sendto(b"datagram", family[1], 53)
            data, source = await theirs.receive()
            await theirs.sendto(data, *source)
            assert (await ours.receive())[0] == b"datagram"
            async with await a.create_connected_udp_socket(family[1], 54) as nobody:
                await nobody.send(b"anybody?")
                with pytest.raises(DialError) as caught:
                    await nobody.receive()
                assert caught.value.errno == errno.ECONNREFUSED
            assert await a.ping(family[1]) > 0
            assert await b.ping(family[0]) > 0
            status = b.status()
            (known,) = status.peers
            assert known.endpoint == Endpoint(parse_ip("127.0.0.1"), a.status().listen_port)
            assert known.handshake_age_ns is not None
            assert known.rx_bytes > 500_000
            group.cancel_scope.cancel()


async def test_a_new_port_of_ours_and_of_the_peer_in_mid_connection() -> None:
    with anyio.fail_after(20):
        async with pair() as (a, b), anyio.create_task_group() as group:
            group.start_soon(echo, await b.create_tcp_listener(80))
            async with await a.connect_tcp(IPS[1], 80) as stream:
                await exchange(stream, b"one")
                before = a.status().listen_port
                a.rebind()
                assert a.status().listen_port != before
                await exchange(stream, b"two" * 50_000)
                (known,) = b.status().peers
                assert known.endpoint == Endpoint(parse_ip("127.0.0.1"), a.status().listen_port)
                b.rebind()
                await exchange(stream, b"three" * 50_000)
                (known,) = a.status().peers
                assert known.endpoint == Endpoint(parse_ip("127.0.0.1"), b.status().listen_port)
            group.cancel_scope.cancel()


async def test_an_endpoint_by_name() -> None:
    with anyio.fail_after(20):
        async with pair("localhost") as (a, _):
            assert await a.ping(IPS[1]) > 0


async def test_dials_that_cannot_work() -> None:
    with anyio.fail_after(20):
        async with pair(dns_servers=()) as (a, b):
            for host, port, number in (
                (IPS[1], 81, errno.ECONNREFUSED),
                (IPS[2], 80, errno.ENETUNREACH),
                ("server.example", 80, errno.EHOSTUNREACH),
            ):
                with pytest.raises(DialError) as caught:
                    await a.connect_tcp(host, port)
                assert caught.value.errno == number
            with pytest.raises(DialError) as caught:
                await a.create_tcp_listener(80, host=IPS[1])
            assert caught.value.errno == errno.EADDRNOTAVAIL
            taken = replace(config(2), listen_port=a.status().listen_port)
            with pytest.raises(ConfigError, match="cannot be opened"):
                async with WireGuardNode(taken):
                    pass
    with pytest.raises(ConfigError, match="not running"):
        await b.connect_tcp(IPS[0], 80)


async def test_nobody_answers() -> None:
    with anyio.fail_after(20):
        lost = config(0, peer(1, HostPort("127.0.0.1", 9)))
        async with WireGuardNode(lost, dial_timeout=0.2) as node:
            with pytest.raises(DialError) as caught:
                await node.connect_tcp(IPS[1], 80)
            assert caught.value.errno == errno.ETIMEDOUT


async def test_a_wrong_preshared_key_lets_nobody_in() -> None:
    with anyio.fail_after(20):
        async with WireGuardNode(config(1, peer(0, psk=None))) as b:
            settings = config(0, peer(1, HostPort("127.0.0.1", b.status().listen_port)))
            async with WireGuardNode(settings, dial_timeout=0.3) as a:
                with pytest.raises(DialError):
                    await a.connect_tcp(IPS[1], 80)
                assert a.status().drops["wg.handshake"] == 1
                assert a.status().peers[0].handshake_age_ns is None


TABLE = MagicTable(
    "lab.example", [MagicHost("web.lab.example", (parse_ip(IPS[1]), parse_ip(IPS6[1])))], answer_aaaa=True
)


async def serve_dns(socket: UdpSocket, listener: TcpListener, *, truncate: bool) -> None:
    async def by_tcp(stream: TcpStream) -> None:
        async with stream:
            framer = MessageFramer()
            async for data in stream:
                for query in framer.feed(data):
                    await stream.send(frame_message(answer(query, TABLE, 0, tcp=True)))

    async with anyio.create_task_group() as group:
        group.start_soon(listener.serve, by_tcp)
        async for query, (host, port) in socket:
            said = bytearray(answer(query, TABLE, 0))
            if truncate:
                said[2] |= 2
            await socket.sendto(b"garbage", host, port)
            await socket.sendto(bytes(said), host, port)


@pytest.mark.parametrize("truncate", [False, True])
async def test_names_are_asked_for_through_the_tunnel(truncate: bool) -> None:
    with anyio.fail_after(20):
        async with (
            pair(dns_servers=(parse_ip(IPS[1]),), search_domains=("lab.example",)) as (a, b),
            anyio.create_task_group() as group,
        ):
            socket, listener = await b.create_udp_socket(53), await b.create_tcp_listener(53)
            group.start_soon(lambda: serve_dns(socket, listener, truncate=truncate))
            group.start_soon(echo, await b.create_tcp_listener(80))
            assert await a.resolve("web") == (IPS[1], IPS6[1])
            async with await a.connect_tcp("WEB.lab.example", 80) as stream:
                await exchange(stream, b"by name")
            for nothing in ("none.lab.example", "a..b", "x" * 64):
                with pytest.raises(DialError) as caught:
                    await a.resolve(nothing)
                assert caught.value.errno == errno.EHOSTUNREACH
            udp = await a.create_udp_socket()
            await udp.sendto(b"x", "web", 9)  # known from before
            with pytest.raises(DialError, match="not looked up lately"):
                await udp.sendto(b"x", "other", 9)
            group.cancel_scope.cancel()


async def test_cookie_replies_leave_by_the_port_that_was_asked() -> None:
    """Under a flood of valid MAC1 the node demands a cookie, and a peer that has one gets through."""
    flood = Device(KEYS[2], SeededEntropy("flood"))
    flood.wall_offset_ns = 1_700_000_000 * 10**9
    with anyio.fail_after(20):
        async with WireGuardNode(config(1, peer(0))) as b:
            flood.add_peer(PUBLIC[1], [], 0)
            flood.initiate(PUBLIC[1], 0)
            ((_, batch),) = flood.take_outgoing()
            async with await anyio.create_connected_udp_socket("127.0.0.1", b.status().listen_port) as stranger:
                replies = 0
                while replies < 3:
                    for _ in range(300):
                        await stranger.send(bytes(batch.data))
                    with anyio.move_on_after(0.05):
                        while True:
                            reply = await stranger.receive()
                            assert (reply[0], len(reply)) == (3, 64)
                            replies += 1
            assert b.status().drops["wg.cookie"] >= replies


class Deliveries:
    def __init__(self) -> None:
        self.got: list[tuple[bytes, object]] = []
        self.any = anyio.Event()

    def __call__(self, batch: object, path: object, now: int) -> None:
        self.got += [(bytes(datagram), path) for datagram in batch]  # type: ignore[attr-defined]  # a list of views
        self.any.set()


def initiation(n: int) -> TxBatch:
    return TxBatch(bytes((1, 0, 0, 0)) + bytes((n,)) * 144, 148)


async def test_handshakes_without_an_answer_go_round_the_addresses_of_a_name() -> None:
    """First to the known address, then to the others in turn; the name is asked again; data stays where it was."""
    ports = [await anyio.create_udp_socket(local_host="127.0.0.1") for _ in range(3)]
    places = [Endpoint(b"\x7f\0\0\1", sock.extra(SocketAttribute.local_port)) for sock in ports]
    asked: list[HostPort] = []

    async def lookup(where: HostPort) -> list[Endpoint]:
        asked.append(where)
        if len(asked) == 1:
            raise OSError("no such name")
        return places[:2]

    underlay = WireGuardUnderlay(endpoints={PUBLIC[1]: HostPort("peer.example", 1)}, lookup=lookup)
    underlay.configure(UnderlayConfig(KEYS[0], (UnderlayPeer(PUBLIC[1], None),)))
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            await group.start(underlay.run, Deliveries())
            underlay.send(PUBLIC[1], initiation(1))  # waits until the second look-up gives addresses
            assert (await ports[0].receive())[0][4] == 1
            for n, port in ((2, 1), (3, 0)):
                underlay.send(PUBLIC[1], initiation(n))
                assert (await ports[port].receive())[0][4] == n
            await anyio.wait_all_tasks_blocked()
            assert len(asked) >= 3
            underlay.send(PUBLIC[1], TxBatch(bytes((4,)) + bytes(47), 48))
            assert len((await ports[0].receive())[0]) == 48
            underlay.note_handshake(PUBLIC[1])
            underlay.note_endpoint(PUBLIC[1], ("udp", *places[2]))
            underlay.send(PUBLIC[1], initiation(5))
            assert (await ports[2].receive())[0][4] == 5
            underlay.send(PUBLIC[1], initiation(6))
            assert (await ports[0].receive())[0][4] == 6
            assert underlay.peer_at(("udp", *places[2])) == PUBLIC[1]
            group.cancel_scope.cancel()
    for sock in ports:
        await sock.aclose()


def is_blocked(node: WireGuardNode) -> bool:
    return node._dataplane.stack.paths.blocked


async def test_a_full_kernel_buffer_holds_tcp_back_instead_of_losing(monkeypatch: pytest.MonkeyPatch) -> None:
    full: list[Endpoint] = []  # where nothing can be sent now
    send = HostSocket._send

    def full_or_not(self: HostSocket, data: Buffer, size: int, to: Endpoint) -> int:
        if to in full:
            return self._keep(data, size, to)
        return send(self, data, size, to)

    async def writable(self: HostSocket) -> None:
        while full:  # noqa: ASYNC110 - a list has no event
            await anyio.sleep(0.01)

    monkeypatch.setattr(HostSocket, "_send", full_or_not)
    monkeypatch.setattr(HostSocket, "wait_writable", writable)
    with anyio.fail_after(20):
        async with pair() as (a, b), anyio.create_task_group() as group:
            group.start_soon(echo, await b.create_tcp_listener(80))
            async with await a.connect_tcp(IPS[1], 80) as stream:
                await exchange(stream, b"one")
                full.append(Endpoint(parse_ip("127.0.0.1"), b.status().listen_port))
                async with anyio.create_task_group() as busy:
                    busy.start_soon(exchange, stream, b"two" * 300_000)
                    await anyio.sleep(0.2)
                    assert is_blocked(a)
                    full.clear()
                assert not is_blocked(a)
            assert a._underlay.counters().get("udp_queue_full", 0) == 0
            group.cancel_scope.cancel()


async def test_nobody_waits_for_a_port_that_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostSocket, "wait_writable", lambda _: anyio.sleep_forever())
    underlay = WireGuardUnderlay()
    underlay.configure(UnderlayConfig(KEYS[0], (UnderlayPeer(PUBLIC[1], None),)))
    told: list[tuple[bool, int]] = []
    underlay.on_blocked = lambda blocked: told.append((blocked, underlay.local_port))
    async with anyio.create_task_group() as group:
        await group.start(underlay.run, Deliveries())
        await anyio.wait_all_tasks_blocked()
        bound = underlay._bound
        assert bound is not None
        left = underlay.local_port
        bound.port.sockets[0]._keep(b"never", 5, Endpoint(parse_ip("127.0.0.1"), 9))
        underlay.rebind()
        assert underlay.local_port != left
        assert told == [(True, left), (False, underlay.local_port)]  # what was held back goes by the new one
        group.cancel_scope.cancel()
    assert len(told) == 2


async def test_what_the_underlay_cannot_send_is_counted() -> None:
    underlay = WireGuardUnderlay()
    underlay.configure(UnderlayConfig(KEYS[0], (UnderlayPeer(PUBLIC[1], None),)))
    underlay.send(PUBLIC[1], initiation(1))
    deliveries = Deliveries()
    async with anyio.create_task_group() as group:
        await group.start(underlay.run, deliveries)
        underlay.send(PUBLIC[1], initiation(1))
        underlay.send(PUBLIC[2], initiation(1))
        async with await anyio.create_connected_udp_socket("127.0.0.1", underlay.local_port) as sender:
            with anyio.fail_after(5):
                await sender.send(b"short")
                await sender.send(bytes(40))
                await deliveries.any.wait()
        assert [len(data) for data, _ in deliveries.got] == [40]
        assert underlay.counters() == {"not_running": 1, "no_endpoint": 1, "no_peer": 1, "runt": 1}
        group.cancel_scope.cancel()


def test_configurations_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="private key"):
        replace(config(0), private_key=bytes(32))
    with pytest.raises(ConfigError, match="MTU"):
        replace(config(0), mtu=500)
    with pytest.raises(ConfigError, match="peer 2"):
        config(0, peer(1), peer(1))
    with pytest.raises(ConfigError, match="peer 1"):
        config(0, peer(0))
    assert parse_prefix(IPS[1]).is_single_ip

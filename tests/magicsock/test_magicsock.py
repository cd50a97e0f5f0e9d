"""MagicSock on loopback against a DERP and STUN server made of our own engines (real derper: the interop tests)."""

import anyio
import pytest

from tests.magicsock.kit import (
    REGION,
    WIREGUARD,
    TestNode,
    running_nodes,
    running_relay,
    text_of,
    wait_connected,
    wait_home,
)
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.packet import TxBatch
from tsnetpy.derp.regions import DerpMap
from tsnetpy.disco.box import DiscoBox
from tsnetpy.disco.endpoints import ENDPOINT_STUN
from tsnetpy.disco.messages import Ping
from tsnetpy.magicsock.underlay import RELAY_BURST
from tsnetpy.runtime.udp import UdpPort

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]


async def test_two_nodes_meet_by_derp_and_go_direct() -> None:
    async with running_relay() as relay:
        a, b = TestNode(), TestNode()
        async with running_nodes(a, b):
            derp_map = relay.derp_map()
            # Neither knows an address of the other: only CallMeMaybe over DERP can bring them together. Its list holds
            # no loopback address (peers elsewhere could not use it), so one side is told the other's.
            a.configure(derp_map, b)
            b.configure(derp_map, a, endpoints=False)
            await wait_home(a, b)
            await wait_connected(relay, a, b)
            bursts: list[tuple[bytes, int]] = []
            a.sock.on_burst = lambda peer, burst: bursts.append((peer, burst))
            a.send(b, b"first")
            assert bursts == [(b.public, RELAY_BURST)]  # a relay drops what comes in large bursts
            await b.wait_received(1)
            assert text_of(b.received[0][0]) == b"first"
            assert b.received[0][1] == ("derp", REGION, a.public)
            found = await a.sock.ping(b.public, 5)
            assert found is not None
            assert (found.via, found.endpoint, found.region) == ("direct", b.loopback, 0)
            b.send(a, b"answer")
            await a.wait_received(1)
            b.received.clear()
            a.send(b, b"direct", 20)
            await b.wait_received(20)
            assert {path for _, path in b.received} == {("udp", *a.loopback)}
            assert bursts[1:] == [(b.public, 0)]
            status = a.sock.peer_status(b.public)
            assert status is not None
            assert (status.cur_addr, status.relay, status.active) == (b.loopback, REGION, True)
            assert status.tx_bytes == 21 * 64
            # The answer comes back directly, too: our ping taught b where we are.
            b.send(a, b"back")
            await a.wait_received(2)
            assert a.received[1][1] == ("udp", *b.loopback)
            assert relay.stun_requests >= 2


async def test_state_lists_what_stun_saw() -> None:
    async with running_relay() as relay:
        node = TestNode()
        async with running_nodes(node):
            assert node.sock.state.value.home_derp == 0
            node.configure(relay.derp_map())
            await wait_home(node)
            state = node.sock.state.value
            assert state.net_info.udp is True
            assert state.net_info.preferred_derp == REGION
            assert set(state.net_info.derp_latency) == {f"{REGION}-v4"}
            seen = [(e.ip, e.port) for e in state.endpoints if e.kind == ENDPOINT_STUN]
            assert seen == [tuple(node.loopback)]


async def test_without_udp_everything_goes_by_derp() -> None:
    async with running_relay() as relay:
        a, b = TestNode(udp=False), TestNode(udp=False)
        async with running_nodes(a, b):
            for node, other in ((a, b), (b, a)):
                node.configure(relay.derp_map(), other)
            await wait_home(a, b)
            await wait_connected(relay, a, b)
            a.send(b, b"x", 30)
            await b.wait_received(30)
            assert {path for _, path in b.received} == {("derp", REGION, a.public)}
            found = await a.sock.ping(b.public, 5)
            assert found is not None
            assert (found.via, found.endpoint, found.region) == ("derp", None, REGION)
            assert a.sock.state.value.net_info.udp is False


async def test_derp_connection_is_made_again() -> None:
    async with running_relay() as relay:
        a, b = TestNode(udp=False), TestNode(udp=False)
        async with running_nodes(a, b):
            for node, other in ((a, b), (b, a)):
                node.configure(relay.derp_map(), other)
            await wait_home(a, b)
            await wait_connected(relay, a, b)
            await relay.drop_everybody()
            with anyio.fail_after(10):
                while relay.engine.is_connected(a.public) or relay.engine.is_connected(b.public):  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            a.send(b, b"kept in the queue")
            await wait_connected(relay, a, b)
            with anyio.fail_after(10):
                while not b.received:  # what was queued may have been sent before b came back
                    a.send(b, b"again")
                    await anyio.sleep(0.05)


async def test_unknown_sources_are_delivered_and_unknown_disco_is_not_answered() -> None:
    node = TestNode()
    stranger = UdpPort.open(ipv6=False)
    assert stranger.v4 is not None
    try:
        async with running_nodes(node):
            node.configure(DerpMap())
            eve = DiscoBox(SystemEntropy())
            ping = eve.seal(node.sock.disco_public, Ping(bytes(12), b""))
            for data in (ping, b"\x07", b"T", WIREGUARD + bytes(28)):
                assert stranger.send(data, len(data), node.loopback) == 0
            await node.wait_received(1)
            assert node.received == [(WIREGUARD + bytes(28), ("udp", b"\x7f\0\0\1", stranger.v4.port))]
            counters = node.sock.counters()
            assert counters["disco_unknown_sender"] == 1
            assert counters["runt"] == 2
            assert stranger.v4.receive() == []
    finally:
        stranger.close()


async def test_known_disco_is_answered_at_its_source() -> None:
    node, peer = TestNode(), TestNode()
    stranger = UdpPort.open(ipv6=False)
    sock = stranger.v4
    assert sock is not None
    try:
        async with running_nodes(node):
            node.configure(DerpMap(), peer, endpoints=False)
            ping = peer.sock._disco.seal(node.sock.disco_public, Ping(bytes(12), peer.public))
            stranger.send(ping, len(ping), node.loopback)
            with anyio.fail_after(5):
                await sock.wait_readable()
            (batch,) = sock.receive()
            assert batch.source == node.loopback
            assert len(batch.data) == 110
    finally:
        stranger.close()


async def test_send_before_run_and_to_strangers_is_counted() -> None:
    node, peer = TestNode(), TestNode()
    node.send(peer, b"x")
    async with running_nodes(node):
        node.configure(DerpMap())
        node.send(peer, b"x", 3)
        node.configure(DerpMap(), peer, endpoints=False)
        node.send(peer, b"x")
        counters = node.sock.counters()
        assert counters["not_running"] == 1
        assert counters["no_region"] == 1
        assert node.sock.peer_status(b"?" * 32) is None
        assert await node.sock.ping(peer.public, 0.01) is None
    assert node.sock.local_port == 0


async def test_port_in_use_is_reported() -> None:
    first = TestNode()
    async with running_nodes(first):
        second = TestNode()
        second.sock._requested_port = first.sock.local_port
        with pytest.raises(OSError, match=r"."):
            await second.sock.run(second.deliver)


async def test_wireguard_only_peer_gets_plain_udp() -> None:
    node, peer = TestNode(), TestNode()
    async with running_nodes(node, peer):
        node.configure(DerpMap(), peer, disco=False)
        node.sock.send(peer.public, TxBatch(WIREGUARD + bytes(60), 64))
        await peer.wait_received(1)
        assert peer.received[0][1] == ("udp", *Endpoint(*node.loopback))

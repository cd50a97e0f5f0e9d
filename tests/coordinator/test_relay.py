"""The DERP relay and the STUN server over loopback sockets."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.streams.tls import TLSStream

from tests.coordinator.wire import connect
from tsnetpy.base.addr import Endpoint, parse_ip
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.keys import NodePublic
from tsnetpy.coordinator.derp import generate_204
from tsnetpy.coordinator.embed import DERP_REGION, Coordinator
from tsnetpy.coordinator.web import WebRequest
from tsnetpy.crypto import dh
from tsnetpy.derp.client import Closed, DerpClient, PeerGone
from tsnetpy.disco import stun
from tsnetpy.runtime import clock, http1
from tsnetpy.runtime.tls import PinnedCert, connect_tls

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]
DISCO = b"TS\xf0\x9f\x92\xac"


def private(number: int) -> bytes:
    return dh.clamp(bytes([number]) * 32)


def derp_node(box: Coordinator) -> dict[str, object]:
    regions = box.derp_map["Regions"]
    assert isinstance(regions, dict)
    node = regions[str(DERP_REGION)]["Nodes"][0]
    assert isinstance(node, dict)
    return node


async def dial(box: Coordinator, pin: str = "") -> TLSStream:
    node = derp_node(box)
    cert = PinnedCert.from_cert_name(pin or str(node["CertName"]))
    assert cert is not None
    stream = await anyio.connect_tcp(str(node["HostName"]), int(str(node["DERPPort"])))
    return await connect_tls(stream, server_hostname=str(node["HostName"]), verify=cert)


class Relayed:
    """A client engine on its stream."""

    def __init__(self, stream: TLSStream, number: int) -> None:
        self.stream = stream
        self.key = dh.public_key(private(number))
        self.engine = DerpClient(private(number), "box", SystemEntropy(), clock.monotonic_ns())

    async def flush(self) -> None:
        await self.stream.send(self.engine.data_to_send())

    async def pump(self) -> None:
        """Read once."""
        try:
            self.engine.receive_data(await self.stream.receive(), clock.monotonic_ns())
        except anyio.EndOfStream:
            self.engine.receive_eof()
        if data := self.engine.data_to_send():
            await self.stream.send(data)

    async def packets(self, count: int) -> list[tuple[bytes, bytes]]:
        got: list[tuple[bytes, bytes]] = []
        with anyio.fail_after(10):
            while len(got) < count:
                await self.pump()
                got += self.engine.take_packets()
        return got

    async def event(self, kind: type[object]) -> object:
        with anyio.fail_after(10):
            while True:
                while (event := self.engine.next_event()) is not None:
                    if isinstance(event, kind):
                        return event
                await self.pump()


@asynccontextmanager
async def relayed(box: Coordinator, number: int) -> AsyncIterator[Relayed]:
    async with await dial(box) as stream:
        client = Relayed(stream, number)
        await client.flush()
        with anyio.fail_after(10):
            while not client.engine.is_ready and not client.engine.is_closed:
                await client.pump()
        yield client


async def admit(box: Coordinator, *numbers: int) -> None:
    """Make nodes whose node keys are those of :func:`private`."""
    for number in numbers:
        async with connect(box.url, number) as node:
            node.node_key = NodePublic(dh.public_key(private(number))).text()
            assert (await node.register(box.create_auth_key()))["Error"] == ""


async def test_packets_pass_between_nodes() -> None:
    async with Coordinator(stun_port=None) as box:
        await admit(box, 1, 2)
        async with relayed(box, 1) as one, relayed(box, 2) as two:
            one.engine.send_packets(two.key, [memoryview(b"to two")])
            await one.flush()
            assert await two.packets(1) == [(one.key, b"to two")]
            # a burst of small packets is not cut down to the queue's 32 while the receiver reads
            burst = [b"%04d" % number for number in range(500)]
            two.engine.send_packets(one.key, [memoryview(item) for item in burst])
            await two.flush()
            assert await one.packets(500) == [(two.key, item) for item in burst]
            assert box.derp_packets == 501
            await one.stream.aclose()
            assert await two.event(PeerGone) == PeerGone(one.key, 0)


async def test_disco_to_nobody_is_answered() -> None:
    async with Coordinator(stun_port=None) as box:
        await admit(box, 1)
        async with relayed(box, 1) as one:
            one.engine.send_packets(bytes(32), [memoryview(DISCO + bytes(40))])
            await one.flush()
            assert await one.event(PeerGone) == PeerGone(bytes(32), 1)


async def test_only_nodes_of_the_tailnet_may_connect() -> None:
    async with Coordinator(stun_port=None) as box:
        await admit(box, 1)
        async with relayed(box, 9) as stranger:
            assert stranger.engine.is_closed
        async with relayed(box, 1) as one:
            assert one.engine.is_ready
            box.delete_node("1")  # ... and a node that is deleted has to leave
            assert isinstance(await one.event(Closed), Closed)


async def test_the_certificate_is_the_pinned_one() -> None:
    async with Coordinator(stun_port=None) as box:
        with pytest.raises(ssl.SSLError):
            await dial(box, "sha256-raw:" + "0" * 64)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/derp/probe", 200),
        ("HEAD", "/derp/latency-check", 200),
        ("GET", "/generate_204", 204),
        ("GET", "/derp", 426),
        ("GET", "/", 404),
    ],
)
async def test_http_of_the_relay(method: str, target: str, status: int) -> None:
    async with Coordinator(stun_port=None) as box, await dial(box) as stream:
        answer = await http1.request(stream, method, target, host="box")
        assert answer.status == status
        if status == 200:
            assert answer.header("access-control-allow-origin") == "*"


@pytest.mark.parametrize(
    ("challenge", "answered"), [("ts_box-1.test:8", True), ("", False), ("a b", False), ("x" * 65, False)]
)
async def test_captive_portal_challenge(challenge: str, answered: bool) -> None:
    answer = generate_204(WebRequest("GET", "/generate_204", "", (("x-tailscale-challenge", challenge),)))
    assert answer.status == 204
    assert answer.headers == ((("X-Tailscale-Response", f"response {challenge}"),) if answered else ())


async def test_stun_tells_the_address_and_ignores_the_rest() -> None:
    async with Coordinator(derp_port=None) as box:
        assert box.derp_map["Regions"] == {}
        port = box.stun_port
        async with await anyio.create_connected_udp_socket("127.0.0.1", port) as client:
            own = client.extra(anyio.abc.SocketAttribute.local_port)
            request = stun.encode_request(bytes(range(12)))
            await client.send(b"nonsense")
            await client.send(request[:-1] + b"\x00")
            await client.send(request)
            with anyio.fail_after(10):
                answer = await client.receive()
        assert stun.decode_response(answer) == (bytes(range(12)), Endpoint(parse_ip("127.0.0.1"), own))
        await anyio.wait_all_tasks_blocked()  # the server counts after it sent
        assert box.stun_answers == 1


async def test_the_certificate_stays_until_the_host_changes(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("state")
    pins = []
    for url in ("", "", "http://box.example:8080"):
        async with Coordinator(state_dir=directory, stun_port=None, url=url) as box:
            pins.append(derp_node(box)["CertName"])
            if url:
                assert derp_node(box)["HostName"] == "box.example"
                assert "IPv4" not in derp_node(box)
    assert pins[0] == pins[1] != pins[2]

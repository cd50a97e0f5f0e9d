"""Strangers send garbage to a node's UDP port as fast as they can: it works on, and the status counts what it drops."""

import random
import socket
from collections.abc import Callable, Iterator

import anyio
import anyio.lowlevel
import pytest

from tsnetpy.base.addr import Endpoint
from tsnetpy.coordinator.embed import Coordinator
from tsnetpy.crypto import hash as hashes
from tsnetpy.disco.box import MAGIC
from tsnetpy.disco.stun import encode_request, encode_response
from tsnetpy.node.node import Node

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

ROUNDS = 150
BULK = bytes(range(256)) * 4096  # 1 MiB


def garbage(seed: int, node_key: bytes, known_disco: bytes) -> dict[str, Callable[[], bytes]]:
    """The kinds of datagrams, by what they pretend to be."""
    rng = random.Random(seed)
    mac1_key = hashes.blake2s(b"mac1----" + node_key)

    def initiation() -> bytes:
        body = b"\1\0\0\0" + rng.randbytes(112)
        return body + hashes.blake2s_mac(mac1_key, body) + bytes(16)

    return {
        "noise": lambda: rng.randbytes(rng.randrange(1, 1400)),
        "runt": lambda: rng.randbytes(rng.randrange(1, 20)),
        "initiation": lambda: b"\1\0\0\0" + rng.randbytes(144),
        "initiation by somebody who knows our key": initiation,
        "response": lambda: b"\2\0\0\0" + rng.randbytes(88),
        "cookie": lambda: b"\3\0\0\0" + rng.randbytes(60),
        "data": lambda: b"\4\0\0\0" + rng.randbytes(rng.choice((28, 44, 1228))),
        "disco of a stranger": lambda: MAGIC + rng.randbytes(rng.randrange(50, 200)),
        "disco in a peer's name": lambda: MAGIC + known_disco + rng.randbytes(rng.randrange(40, 200)),
        "disco cut off": lambda: MAGIC + known_disco + rng.randbytes(rng.randrange(24)),
        "STUN request": lambda: encode_request(rng.randbytes(12)),
        "STUN answer": lambda: encode_response(rng.randbytes(12), Endpoint(bytes([9, 9, 9, 9]), 9)),
        "relay": lambda: b"\0\0\x7a\x11\0\0\0\0" + rng.randbytes(60),
    }


def batches(kinds: dict[str, Callable[[], bytes]]) -> Iterator[list[bytes]]:
    for _ in range(ROUNDS):
        yield [make() for make in kinds.values() for _ in range(8)]


async def test_a_node_works_on_under_a_flood() -> None:
    with anyio.fail_after(60):
        async with Coordinator() as box:
            key = box.create_auth_key(reusable=True)
            async with (
                Node("alpha", control_url=box.url, auth_key=key) as alpha,
                Node("beta", control_url=box.url, auth_key=key) as beta,
            ):
                listener = await beta.create_tcp_listener(80)
                netmap = await beta.netmap.wait_for(lambda m: m is not None and len(m.peers) == 1)
                assert netmap is not None
                (peer,) = netmap.peers.values()
                await alpha.netmap.wait_for(lambda m: m is not None and len(m.peers) == 1)
                assert peer.disco_key is not None
                kinds = garbage(7, netmap.self_node.key.raw, peer.disco_key.raw)
                port = beta.status().underlay.endpoints[0].port
                sent = 0

                async def flood() -> None:
                    nonlocal sent
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                        for batch in batches(kinds):
                            for datagram in batch:
                                sock.sendto(datagram, ("127.0.0.1", port))
                            sent += len(batch)
                            await anyio.lowlevel.checkpoint()

                async def upload() -> None:
                    async with await alpha.connect_tcp("beta", 80) as stream:
                        await stream.send(BULK)

                before = sum(beta.status().drops.values())
                async with anyio.create_task_group() as group:
                    group.start_soon(flood)
                    group.start_soon(upload)
                    received = bytearray()
                    async with await listener.accept() as stream:
                        async for chunk in stream:
                            received += chunk
                assert received == BULK
                while (await alpha.ping("beta", kind="disco")).via != "direct":
                    await anyio.lowlevel.checkpoint()
                assert (await alpha.ping("beta")).latency_ns > 0
                status = beta.status()
                drops = status.drops
                assert status.backend_state == "Running"
                expected = {
                    "underlay.runt",
                    "underlay.not_ours",
                    "underlay.disco_unknown_sender",
                    "underlay.disco_malformed",
                }
                assert expected <= drops.keys(), drops
                assert any(name.startswith("wg.") for name in drops), drops
                # What the kernel's buffer had no room for never came up to us.
                assert 0.3 * sent < sum(drops.values()) - before <= 1.1 * sent, (sent, drops)

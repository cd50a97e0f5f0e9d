"""Configurations of two ends of a tunnel over the loopback address."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from tsnetpy.base.addr import parse_ip, parse_prefix
from tsnetpy.crypto import dh
from tsnetpy.testing.entropy import SeededEntropy
from tsnetpy.wireguard import HostPort, WireGuardConfig, WireGuardNode, WireGuardPeer

KEYS = [dh.generate(SeededEntropy(f"wireguard/{n}")) for n in range(3)]
PUBLIC = [dh.public_key(key) for key in KEYS]
IPS = ["10.9.0.1", "10.9.0.2", "10.9.0.3"]
IPS6 = ["fd00:9::1", "fd00:9::2", "fd00:9::3"]
PSK = SeededEntropy("psk").bytes(32)


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def config(n: int, *peers: WireGuardPeer) -> WireGuardConfig:
    return WireGuardConfig(private_key=KEYS[n], addresses=(parse_ip(IPS[n]), parse_ip(IPS6[n])), peers=peers)


def peer(n: int, endpoint: HostPort | None = None, *, psk: bytes | None = PSK) -> WireGuardPeer:
    prefixes = (parse_prefix(IPS[n]), parse_prefix(IPS6[n]))
    return WireGuardPeer(public_key=PUBLIC[n], allowed_ips=prefixes, endpoint=endpoint, preshared_key=psk)


@asynccontextmanager
async def pair(host: str = "127.0.0.1", **first: object) -> AsyncIterator[tuple[WireGuardNode, WireGuardNode]]:
    """Run two nodes: the first knows where the second is, the second learns it. *first* changes the first's config."""
    async with WireGuardNode(config(1, peer(0))) as b:
        settings = config(0, peer(1, HostPort(host, b.status().listen_port)))
        async with WireGuardNode(replace(settings, **first)) as a:  # type: ignore[arg-type]  # fields by name
            yield a, b

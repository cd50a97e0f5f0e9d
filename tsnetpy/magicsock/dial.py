"""Connecting to a DERP server: addresses of the map first, then TLS the way the map says."""

import ssl
from collections.abc import Sequence
from typing import Final

import anyio
from anyio.abc import ByteStream

from tsnetpy.derp.regions import DerpNode, DerpRegion
from tsnetpy.runtime.dial import connect_tcp
from tsnetpy.runtime.tls import PinnedCert, Verify, connect_tls

DIAL_TIMEOUT_S: Final = 10.0
NODE_TIMEOUT_S: Final = 1.5
TLS_TIMEOUT_S: Final = 5.0


class DerpDialError(OSError):
    """No server of the region could be reached."""


async def dial_region(region: DerpRegion, *, prefer_ipv6: bool = False) -> tuple[ByteStream, DerpNode]:
    """Connect to the first server of *region* that answers; return the stream, ready for the HTTP upgrade.

    Raises:
        DerpDialError: none did.
    """
    problems: list[str] = []
    with anyio.move_on_after(DIAL_TIMEOUT_S):
        for node in region.derp_nodes():
            try:
                return await dial_node(node, prefer_ipv6=prefer_ipv6), node
            except (OSError, ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream, TimeoutError) as error:
                problems.append(f"{node.name}: {str(error) or type(error).__name__}")
    raise DerpDialError(f"DERP region {region.region_id} cannot be reached ({'; '.join(problems) or 'timeout'})")


async def dial_node(node: DerpNode, *, prefer_ipv6: bool = False) -> ByteStream:
    """Connect to one server, TLS included unless the map marks it as a plain one.

    Raises:
        OSError: unreachable.
        ssl.SSLError: the certificate is not what the map says.
        TimeoutError: it did not answer in time.
    """
    stream = await _connect(node, prefer_ipv6=prefer_ipv6)
    if node.plain_http:
        return stream
    with anyio.fail_after(TLS_TIMEOUT_S):
        return await connect_tls(
            stream, server_hostname=node.host_name, verify=tls_verify(node), verify_name=tls_name(node)
        )


def tls_verify(node: DerpNode) -> Verify:
    """Return how to verify the certificate of *node*."""
    if node.insecure_for_tests:
        return "none"
    return PinnedCert.from_cert_name(node.cert_name) or "system"


def tls_name(node: DerpNode) -> str | None:
    """Return the name to verify if it is not the host name."""
    if not node.cert_name or PinnedCert.from_cert_name(node.cert_name) is not None:
        return None
    return node.cert_name


def node_hosts(node: DerpNode, *, prefer_ipv6: bool) -> Sequence[str]:
    """Return the addresses or names to try, in order; a name is resolved (and both families raced) on connect."""
    listed = [ip for ip in ((node.ipv6, node.ipv4) if prefer_ipv6 else (node.ipv4, node.ipv6)) if ip and ip != "none"]
    return listed or [node.host_name]


async def _connect(node: DerpNode, *, prefer_ipv6: bool) -> ByteStream:
    failure: Exception = OSError(f"{node.name} has no address")
    for host in node_hosts(node, prefer_ipv6=prefer_ipv6):
        try:
            with anyio.fail_after(NODE_TIMEOUT_S):
                return await connect_tcp(host, node.derp_port)
        except (OSError, TimeoutError) as error:
            failure = error
    raise failure

"""What features (SSH, Serve, proxies) see of a node. They are functions of a host, never methods on it."""

from typing import Protocol

from anyio.abc import ByteStream, Listener

from tsnetpy.base.addr import IpBytes
from tsnetpy.netstack.attributes import WhoIs
from tsnetpy.netstack.udp import UdpSocket
from tsnetpy.runtime.watch import Watch
from tsnetpy.tailcfg import NetMap


class NodeHost(Protocol):
    """Dial, listen, ask who somebody is, and follow the network map. :class:`tsnetpy.Node` is one."""

    @property
    def name(self) -> str:
        """The node's full name in the tailnet, without a final dot; ``""`` before the first network map."""
        ...

    @property
    def addresses(self) -> tuple[IpBytes, ...]:
        """The node's own addresses, raw, IPv4 first."""
        ...

    @property
    def netmap(self) -> Watch[NetMap | None]:
        """The network map and its changes."""
        ...

    async def connect_tcp(self, host: str, port: int) -> ByteStream:
        """Dial *port* of *host*, a name or address of the tailnet.

        Raises:
            DialError: with ``errno`` as sockets would set it.
        """
        ...

    async def create_tcp_listener(self, port: int, *, host: str | None = None) -> Listener[ByteStream]:
        """Listen on *port* (0: any free one) of *host* (default: each of the node's own addresses).

        Raises:
            DialError: the port is taken (``EADDRINUSE``).
        """
        ...

    async def create_udp_socket(self, port: int = 0, *, host: str | None = None) -> UdpSocket:
        """Bind a UDP socket; arguments and errors as for :meth:`create_tcp_listener`."""
        ...

    def whois(self, address: str) -> WhoIs | None:
        """Return the identity behind ``ip`` or ``ip:port``."""
        ...

"""One unprivileged Python process on a tailnet.

::

    async with tsnetpy.Node("echo") as node:
        async with await node.connect_tcp("server", 80) as stream:
            await stream.send(b"hello")

:class:`Node` is async, on asyncio and trio, with anyio's names. Features (:mod:`tsnetpy.serve`, :mod:`tsnetpy.ssh`) are
functions of a node and are imported by name.
"""

from .base.version import VERSION as __version__
from .errors import (
    AuthError,
    ConfigError,
    ControlError,
    DecodeError,
    DialError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    StateError,
    TsnetError,
)
from .netstack.attributes import TsnetAttribute, WhoIs
from .netstack.tcp import TcpListener, TcpStream
from .netstack.udp import ConnectedUdpSocket, Datagram, UdpSocket
from .node.config import NodeConfig
from .node.host import NodeHost
from .node.node import Node, PingReply
from .node.status import NodeStatus, PeerStatus

__all__ = [
    "AuthError",
    "ConfigError",
    "ConnectedUdpSocket",
    "ControlError",
    "Datagram",
    "DecodeError",
    "DialError",
    "LocalProtocolError",
    "Node",
    "NodeConfig",
    "NodeHost",
    "NodeStatus",
    "PeerStatus",
    "PingReply",
    "ProtocolError",
    "RemoteProtocolError",
    "StateError",
    "TcpListener",
    "TcpStream",
    "TsnetAttribute",
    "TsnetError",
    "UdpSocket",
    "WhoIs",
    "__version__",
]

"""Plain WireGuard, without a coordination server: a node made from a ``wg-quick`` file.

Start with :class:`.node.WireGuardNode`; :mod:`.quick` reads the file, :mod:`.forward` joins ports of this host with
ports of the tunnel.
"""

from .config import HostPort, WireGuardConfig, WireGuardPeer
from .forward import Forward, forward_tcp, forward_udp, parse_forward, reverse_tcp, reverse_udp
from .node import WireGuardNode, WireGuardPeerStatus, WireGuardStatus
from .quick import load_quick, parse_quick

__all__ = [
    "Forward",
    "HostPort",
    "WireGuardConfig",
    "WireGuardNode",
    "WireGuardPeer",
    "WireGuardPeerStatus",
    "WireGuardStatus",
    "forward_tcp",
    "forward_udp",
    "load_quick",
    "parse_forward",
    "parse_quick",
    "reverse_tcp",
    "reverse_udp",
]

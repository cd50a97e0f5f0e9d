"""WireGuard, without I/O: a whole device with peers, handshakes, sessions, timers, cookies and allowed IPs.

Read first: the WireGuard whitepaper (Donenfeld, 2020 revision), sections 5 and 6, whose names are used here.
"""

from .device import Device as Device
from .device import PeerInfo as PeerInfo
from .events import EndpointSeen as EndpointSeen
from .events import PeerHandshake as PeerHandshake
from .events import UnknownPeerInitiation as UnknownPeerInitiation
from .events import UnknownSession as UnknownSession

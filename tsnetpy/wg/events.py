"""What the owner of a device should know about, as data."""

from collections.abc import Hashable
from dataclasses import dataclass

from tsnetpy.base.packet import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerHandshake:
    """A session with *peer* is up: both sides hold the keys and have proved it."""

    peer: PeerId
    initiator: bool
    """True if this side began the handshake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSeen:
    """An authentic message of *peer* came by another path than the one before (roaming)."""

    peer: PeerId
    path: Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownPeerInitiation:
    """Somebody who knows our public key, but is no peer of ours, asks for a session under the key *peer*."""

    peer: PeerId
    path: Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownSession:
    """Transport messages came for a session that does not exist: the sender still uses keys of before a restart.

    It notices by itself only after 15 s; an initiation of ours (:meth:`.device.Device.initiate`) ends the wait. The
    device does that itself where the path names the sender (a relay's). At most one of these a second.
    """

    path: Hashable

"""TSMP, the small protocol that nodes speak among themselves inside the tunnel (data path reference, section 7)."""

from dataclasses import dataclass
from typing import Final

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.errors import DecodeError, LocalProtocolError
from tsnetpy.base.packet import PROTO_TSMP, PeerId, TxPacket
from tsnetpy.nic.rx import RxPacket
from tsnetpy.wire import tsmp

_PONG_IDENT: Final = 0xFFFF
"""IPv4 identification of a pong, as official nodes send it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmpPong:
    """A peer answered :meth:`.plane.DataPlane.tsmp_ping`."""

    peer: PeerId
    source: IpBytes
    data: bytes
    """The 8 bytes of the ping."""
    peer_api_port: int
    """Where the peer's PeerAPI listens, 0 if it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRejected:
    """A peer's policy refuses a flow of ours."""

    peer: PeerId
    proto: int
    local: Endpoint
    remote: Endpoint
    reason: int
    """One of the ``REASON_*`` letters of :mod:`tsnetpy.wire.tsmp`."""


def ping_packet(src: IpBytes, dst: IpBytes, data: bytes) -> TxPacket:
    """Return a ping with 8 bytes of the caller's choice.

    Raises:
        LocalProtocolError: *data* does not have 8 bytes.
    """
    if len(data) != tsmp.PING_DATA_LEN:
        raise LocalProtocolError(f"a TSMP ping carries {tsmp.PING_DATA_LEN} bytes, not {len(data)}")
    return TxPacket(src, dst, PROTO_TSMP, tsmp.Ping(data).encode(), [], 0)


def answer(rx: RxPacket, peer_api_port: int) -> TxPacket | TsmpPong | FlowRejected | None:
    """Return what a received TSMP packet calls for: a pong to send, an event, or ``None`` for nothing."""
    if rx.fragment:
        return None
    try:
        message = tsmp.decode(rx.transport())
    except DecodeError:
        return None
    if isinstance(message, tsmp.Ping):
        body = tsmp.Pong(message.data, peer_api_port).encode()
        return TxPacket(rx.dst, rx.src, PROTO_TSMP, body, [], 0, ident=_PONG_IDENT)
    if isinstance(message, tsmp.Pong):
        return TsmpPong(peer=rx.peer, source=rx.src, data=message.data, peer_api_port=message.peer_api_port)
    if isinstance(message, tsmp.Rejected):
        return FlowRejected(
            peer=rx.peer,
            proto=message.proto,
            local=Endpoint(rx.dst, message.src_port),
            remote=Endpoint(rx.src, message.dst_port),
            reason=message.reason,
        )
    return None  # disco key adverts matter only to nodes that work without control

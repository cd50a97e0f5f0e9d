"""The client side of one DERP connection, from the first byte of the HTTP upgrade on (reference, sections 3.1-3.3).

Feed it what the (TLS) stream gives, send what :meth:`DerpClient.data_to_send` returns. Packets come in batches out of
:meth:`DerpClient.take_packets`; everything rarer is an event.
"""

import json
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import DecodeError, LocalProtocolError
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import Buffer
from tsnetpy.base.stats import Drops
from tsnetpy.crypto import dh
from tsnetpy.crypto.box import Box
from tsnetpy.crypto.errors import CryptoError

from . import frames

HANDSHAKE_TIMEOUT: Final = 10 * SECOND
READ_TIMEOUT: Final = 120 * SECOND
"""A server sends a KeepAlive at least every 65 s."""
_MAX_HEAD: Final = 16 << 10
_MAX_JSON: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Ready:
    """ServerInfo came: the server took us in, packets may flow."""

    server_key: bytes


@dataclass(frozen=True, slots=True)
class PeerGone:
    """A peer is not (or no longer) connected to this server."""

    node_key: bytes
    reason: int
    """:data:`frames.GONE_DISCONNECTED` or :data:`frames.GONE_NOT_HERE`."""


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The server answered a ping of ours."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Health:
    """The server says what is wrong with this connection; empty means nothing any more."""

    problem: str


@dataclass(frozen=True, slots=True)
class Restarting:
    """The server is about to restart (milliseconds)."""

    reconnect_in_ms: int
    try_for_ms: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The conversation is over: the server broke the protocol or fell silent. The owner closes the stream."""

    reason: str


Event: TypeAlias = Ready | PeerGone | PongReceived | Health | Restarting | Closed

_UPGRADING: Final = 0
_WAIT_SERVER_KEY: Final = 1
_WAIT_SERVER_INFO: Final = 2
_READY: Final = 3
_CLOSED: Final = 4


@final
class DerpClient:
    """One connection to one DERP server (an :class:`~tsnetpy.base.engine.Engine`).

    Args:
        node_private: our node key, the identity under which peers reach us.
        host: for the ``Host`` header.
        entropy: for the nonce of ClientInfo.
        now: when the connection was made.
        path: request path of the upgrade.
    """

    def __init__(self, node_private: bytes, host: str, entropy: Entropy, now: Instant, path: str = "/derp") -> None:
        self.drops = Drops()
        self.server_key = b""
        self._private = node_private
        self._public = dh.public_key(node_private)
        self._entropy = entropy
        self._state = _UPGRADING
        self._head = b""
        self._decoder = frames.FrameDecoder()
        self._out: list[bytes] = []
        self._packets: list[tuple[bytes, bytes]] = []
        self._events: list[Event] = []
        self._deadline: Instant = now + HANDSHAKE_TIMEOUT
        self.last_received: Instant = now
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
        self._out.append(request.encode("ascii", "replace"))

    @property
    def is_ready(self) -> bool:
        """True once the server took us in, until the connection is over."""
        return self._state == _READY

    @property
    def is_closed(self) -> bool:
        """True after a :class:`Closed` event."""
        return self._state == _CLOSED

    # -- sending ------------------------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """Return the bytes to write to the stream now."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def send_packets(self, dst: bytes, datagrams: list[memoryview]) -> None:
        """Queue packets for the node *dst* (32 raw bytes).

        Raises:
            LocalProtocolError: the connection is not ready.
        """
        if self._state != _READY:
            raise LocalProtocolError("the DERP connection is not ready")
        self._out.append(frames.encode_packets(frames.SEND_PACKET, dst, datagrams))

    def note_preferred(self, preferred: bool) -> None:
        """Tell the server whether it is our home (for its statistics)."""
        if self._state == _READY:
            self._out.append(frames.encode(frames.NOTE_PREFERRED, b"\x01" if preferred else b"\x00"))

    def ping(self, data: bytes) -> None:
        """Queue a ping with 8 bytes of *data*; the answer is a :class:`PongReceived`."""
        if len(data) != 8:
            raise LocalProtocolError("a DERP ping carries 8 bytes")
        if self._state == _READY:
            self._out.append(frames.encode(frames.PING, data))

    # -- receiving ----------------------------------------------------------------------------------------------

    def receive_data(self, data: Buffer, now: Instant) -> None:
        """Take bytes from the stream."""
        if self._state == _CLOSED:
            return
        self.last_received = now
        if self._state == _READY:
            self._deadline = now + READ_TIMEOUT
        try:
            if self._state == _UPGRADING:
                data = self._receive_head(bytes(data))
                if self._state == _UPGRADING:
                    return
            for kind, payload in self._decoder.feed(data):
                if kind == frames.RECV_PACKET and self._state == _READY:
                    if len(payload) < frames.KEY_BYTES:
                        raise DecodeError("DERP packet without a source")
                    self._packets.append((payload[: frames.KEY_BYTES], payload[frames.KEY_BYTES :]))
                else:
                    self._receive_frame(kind, payload, now)
        except DecodeError as error:
            self._close(str(error))

    def receive_eof(self) -> None:
        """Take the end of the stream."""
        self._close("the server closed the connection")

    def take_packets(self) -> list[tuple[bytes, bytes]]:
        """Return the packets received since the last call, in order: source node key and datagram."""
        packets, self._packets = self._packets, []
        return packets

    def next_event(self) -> Event | None:
        """Return the oldest event not yet taken."""
        return self._events.pop(0) if self._events else None

    def next_deadline(self) -> Instant | None:
        """Return when the server counts as silent."""
        return None if self._state == _CLOSED else self._deadline

    def handle_deadline(self, now: Instant) -> None:
        """Give up on a server that fell silent."""
        if self._state != _CLOSED and now >= self._deadline:
            self._close("the server is silent" if self._state == _READY else "the DERP handshake took too long")

    # -- inside -------------------------------------------------------------------------------------------------

    def _receive_head(self, data: bytes) -> bytes:
        """Take bytes of the HTTP response; return what follows it once it is complete."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > _MAX_HEAD:
                raise DecodeError("the answer to the DERP upgrade is too long")
            return b""
        status_line, _, _ = self._head.partition(b"\r\n")
        parts = status_line.split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or parts[1] != b"101":
            status = parts[1][:3].decode("ascii", "replace") if len(parts) > 1 else "?"
            raise DecodeError(f"the server refused the DERP upgrade (status {status})")
        rest = self._head[end + 4 :]
        self._head = b""
        self._state = _WAIT_SERVER_KEY
        return rest

    def _receive_frame(self, kind: int, payload: bytes, now: Instant) -> None:
        if self._state == _WAIT_SERVER_KEY:
            if kind != frames.SERVER_KEY or len(payload) < 40 or payload[:8] != frames.MAGIC:
                raise DecodeError("the server did not start with its key")
            self.server_key = payload[8:40]
            self._send_client_info()
            self._state = _WAIT_SERVER_INFO
        elif self._state == _WAIT_SERVER_INFO:
            if kind != frames.SERVER_INFO:
                return  # unknown frames may come at any time
            self._check_server_info(payload)
            self._state = _READY
            self._deadline = now + READ_TIMEOUT
            self._events.append(Ready(self.server_key))
        elif kind == frames.PEER_GONE and len(payload) >= frames.KEY_BYTES:
            reason = payload[32] if len(payload) > frames.KEY_BYTES else frames.GONE_DISCONNECTED
            self._events.append(PeerGone(payload[: frames.KEY_BYTES], reason))
        elif kind == frames.PING and len(payload) >= 8:
            self._out.append(frames.encode(frames.PONG, payload[:8]))
        elif kind == frames.PONG:
            self._events.append(PongReceived(payload[:8]))
        elif kind == frames.HEALTH:
            self._events.append(Health(payload[:1024].decode("utf-8", "replace")))
        elif kind == frames.RESTARTING and len(payload) >= 8:
            self._events.append(
                Restarting(int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")),
            )
        elif kind != frames.KEEP_ALIVE:
            self.drops.add("unknown_frame")

    def _send_client_info(self) -> None:
        info = json.dumps({"version": frames.PROTOCOL_VERSION, "CanAckPings": True}, separators=(",", ":")).encode()
        nonce = self._entropy.bytes(24)
        try:
            sealed = Box(self._private, self.server_key).seal(nonce, info)
        except CryptoError:
            raise DecodeError("the server's key is unusable") from None
        self._out.append(frames.encode(frames.CLIENT_INFO, self._public + nonce + sealed))

    def _check_server_info(self, payload: bytes) -> None:
        if not 24 < len(payload) <= _MAX_JSON:
            raise DecodeError("bad ServerInfo")
        try:
            info = json.loads(Box(self._private, self.server_key).open(payload[:24], payload[24:]))
        except (CryptoError, ValueError, RecursionError):
            raise DecodeError("ServerInfo is not authentic or not JSON") from None
        if not isinstance(info, dict):
            raise DecodeError("ServerInfo is no object")

    def _close(self, reason: str) -> None:
        if self._state != _CLOSED:
            self._state = _CLOSED
            self._out.clear()
            self._events.append(Closed(reason))

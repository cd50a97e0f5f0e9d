"""The server side of DERP: a switch of packets between node keys (data path reference, sections 3.2 and 3.4).

:class:`DerpServer` is one region's server. Each accepted stream, after its HTTP upgrade, is a
:class:`ServerConnection`: feed it what arrives, write what :meth:`ServerConnection.data_to_send` returns. A packet that
comes in on one connection makes *another* one ready to write; :meth:`DerpServer.take_ready` says which.
"""

import json
from collections.abc import Container
from typing import Final, final

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import Buffer
from tsnetpy.base.ring import Ring
from tsnetpy.base.stats import Drops
from tsnetpy.crypto import dh
from tsnetpy.crypto.box import Box
from tsnetpy.crypto.errors import CryptoError

from . import frames

KEEP_ALIVE_INTERVAL: Final = 60 * SECOND
HANDSHAKE_TIMEOUT: Final = 10 * SECOND
QUEUE_PACKETS: Final = 32
"""Packets that wait for a slow reader, once for disco and once for the rest; the oldest goes."""
MAX_CONTROL_FRAMES: Final = 256
"""Pongs and PeerGones that wait for a slow reader; beyond that the connection is closed."""
WRITE_TIMEOUT: Final = 2 * SECOND
"""How long the owner should let one write block before it closes the connection."""

# Disco by its magic; the sealed rest is none of the server's business.
_DISCO_MAGIC: Final = b"TS\xf0\x9f\x92\xac"
_GONE_RATE: Final = SECOND
_GONE_BURST: Final = 3


@final
class ServerConnection:
    """One client.

    Attributes:
        node_key: the client's key, empty until its ClientInfo came.
        closed_reason: why the owner should close the stream once ``data_to_send`` is empty; empty while it is open.
        preferred: the client says that this is its home.
        owner: for the I/O shell's use.
        packets_dropped: packets to this client that its queues had no room for.
    """

    __slots__ = (
        "_control",
        "_decoder",
        "_disco",
        "_gone_at",
        "_gone_tokens",
        "_keep_alive_at",
        "_keep_alive_every",
        "_packets",
        "_ready",
        "_server",
        "closed_reason",
        "node_key",
        "owner",
        "preferred",
        "rx_bytes",
        "tx_bytes",
    )

    def __init__(self, server: "DerpServer", keep_alive_every: int, now: Instant) -> None:
        self._server = server
        self.node_key = b""
        self.closed_reason = ""
        self.preferred = False
        self.owner: object | None = None
        self.rx_bytes = 0
        self.tx_bytes = 0
        self._decoder = frames.FrameDecoder(frames.MAX_CLIENT_INFO)
        self._control: list[bytes] = [frames.encode(frames.SERVER_KEY, frames.MAGIC + server.public)]
        self._disco: Ring[bytes] = Ring(QUEUE_PACKETS)
        self._packets: Ring[bytes] = Ring(QUEUE_PACKETS)
        self._keep_alive_every = keep_alive_every
        self._keep_alive_at: Instant = now + HANDSHAKE_TIMEOUT
        self._gone_tokens = _GONE_BURST
        self._gone_at: Instant = now
        self._ready = True

    @property
    def packets_dropped(self) -> int:
        """Packets that made room for newer ones because this client read too slowly."""
        return self._disco.dropped + self._packets.dropped

    def receive_data(self, data: Buffer, now: Instant) -> None:
        """Take bytes from the client's stream."""
        if self.closed_reason:
            return
        self.rx_bytes += len(data)
        try:
            for kind, payload in self._decoder.feed(data):
                if not self.node_key:
                    self._server.admit(self, kind, payload, now)
                elif kind == frames.SEND_PACKET:
                    self._server.switch(self, payload, now)
                else:
                    self._receive_frame(kind, payload)
        except DecodeError as error:
            self.close(str(error))

    def data_to_send(self) -> bytes:
        """Return everything to write now: control frames, then disco, then the other packets."""
        parts = self._control
        self._control = []
        while (frame := self._disco.pop()) is not None:
            parts.append(frame)
        while (frame := self._packets.pop()) is not None:
            parts.append(frame)
        self._ready = False
        data = b"".join(parts)
        self.tx_bytes += len(data)
        return data

    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` is due."""
        return None if self.closed_reason else self._keep_alive_at

    def handle_deadline(self, now: Instant) -> None:
        """Send a KeepAlive, or give up on a client that did not introduce itself."""
        if self.closed_reason or now < self._keep_alive_at:
            return
        if not self.node_key:
            self.close("the client did not introduce itself in time")
            return
        self._keep_alive_at = now + self._keep_alive_every
        self.push_control(frames.encode(frames.KEEP_ALIVE))

    def close(self, reason: str = "the client left") -> None:
        """Take this client out of the switch; call it when the stream ends, too."""
        if not self.closed_reason:
            self.closed_reason = reason
            self._server.leave(self)
            self._mark_ready()

    def admitted(self, now: Instant) -> None:
        """Start the ordinary life of a connection whose client is known now (called by the server)."""
        self._decoder.max_payload = frames.MAX_PACKET + frames.KEY_BYTES
        self._keep_alive_at = now + self._keep_alive_every

    def push_control(self, frame: bytes) -> None:
        """Queue a frame that must not be dropped."""
        if self.closed_reason:
            return
        if len(self._control) >= MAX_CONTROL_FRAMES:
            self.close("the client does not read")
            return
        self._control.append(frame)
        self._mark_ready()

    def push_packet(self, frame: bytes, is_disco: bool) -> None:
        """Queue a packet; the oldest of its kind makes room."""
        if self.closed_reason:
            return
        (self._disco if is_disco else self._packets).push(frame)
        self._mark_ready()

    def may_send_gone(self, now: Instant) -> bool:
        """Take a token for an answer to a disco packet to nobody: 1/s, 3 at once."""
        earned = (now - self._gone_at) // _GONE_RATE
        if earned > 0:
            self._gone_tokens = min(_GONE_BURST, self._gone_tokens + earned)
            self._gone_at += earned * _GONE_RATE
        if self._gone_tokens <= 0:
            return False
        self._gone_tokens -= 1
        return True

    def _receive_frame(self, kind: int, payload: bytes) -> None:
        if kind == frames.PING:
            if not 8 <= len(payload) <= 1000:
                raise DecodeError("DERP ping of a wrong length")
            self.push_control(frames.encode(frames.PONG, payload[:8]))
        elif kind == frames.NOTE_PREFERRED:
            self.preferred = payload[:1] == b"\x01"
        elif kind != frames.PONG:
            self._server.drops.add("unknown_frame")

    def _mark_ready(self) -> None:
        if not self._ready:
            self._ready = True
            self._server.mark_ready(self)


@final
class DerpServer:
    """Routes packets between the connections of one server.

    Args:
        private: the server's own key (32 bytes).
        entropy: for nonces and keep-alive jitter.
        admitted: node keys that may connect; ``None`` admits everybody.
    """

    def __init__(self, private: bytes, entropy: Entropy, admitted: Container[bytes] | None = None) -> None:
        self.public: bytes = dh.public_key(private)
        self.drops = Drops()
        self.admitted_keys = admitted
        self.packets_routed = 0
        self._private = private
        self._entropy = entropy
        # Several connections may claim one key; the last that wrote (or arrived) is the active one, kept last.
        self._clients: dict[bytes, list[ServerConnection]] = {}
        # Who received from a key: they hear of it when the key leaves.
        self._receivers: dict[bytes, set[ServerConnection]] = {}
        self._received_from: dict[ServerConnection, set[bytes]] = {}
        self._ready: list[ServerConnection] = []

    def accept(self, now: Instant) -> ServerConnection:
        """Return the engine for a new stream whose HTTP upgrade is done; it has ServerKey to send at once."""
        jitter = self._entropy.u32() % (5 * SECOND)
        return ServerConnection(self, KEEP_ALIVE_INTERVAL + jitter, now)

    def take_ready(self) -> list[ServerConnection]:
        """Return the connections that got something to send (or were closed) since the last call."""
        ready, self._ready = self._ready, []
        return ready

    def is_connected(self, node_key: bytes) -> bool:
        """Tell whether a client with *node_key* is connected."""
        return node_key in self._clients

    @property
    def client_count(self) -> int:
        """Number of connected keys."""
        return len(self._clients)

    # The rest is called by connections.

    def admit(self, connection: ServerConnection, kind: int, payload: bytes, now: Instant) -> None:
        """Check a ClientInfo and take the client in.

        Raises:
            DecodeError: it is not one, or the key is not admitted.
        """
        if kind != frames.CLIENT_INFO or len(payload) < frames.KEY_BYTES + 24 + 16:
            raise DecodeError("the client did not start with ClientInfo")
        key = payload[:32]
        try:
            box = Box(self._private, key)
            info = json.loads(box.open(payload[32:56], payload[56:]))
        except (CryptoError, ValueError, RecursionError):
            raise DecodeError("ClientInfo is not authentic or not JSON") from None
        if not isinstance(info, dict):
            raise DecodeError("ClientInfo is no object")
        if self.admitted_keys is not None and key not in self.admitted_keys:
            raise DecodeError("this key is not admitted")
        connection.node_key = key
        connection.admitted(now)
        self._clients.setdefault(key, []).append(connection)
        nonce = self._entropy.bytes(24)
        answer = box.seal(nonce, b'{"version":%d}' % frames.PROTOCOL_VERSION)
        connection.push_control(frames.encode(frames.SERVER_INFO, nonce + answer))

    def switch(self, source: ServerConnection, payload: bytes, now: Instant) -> None:
        """Pass a SendPacket on.

        Raises:
            DecodeError: too short, or too long a packet.
        """
        if len(payload) < frames.KEY_BYTES or len(payload) > frames.KEY_BYTES + frames.MAX_PACKET:
            raise DecodeError("DERP packet of a wrong length")
        own = self._clients[source.node_key]
        if own[-1] is not source:
            own.remove(source)
            own.append(source)
        key = payload[:32]
        is_disco = payload[32:38] == _DISCO_MAGIC
        targets = self._clients.get(key)
        if targets is None:
            self.drops.add("not_here")
            # Only disco asks "are you there"; an answer to bulk traffic would double it.
            if is_disco and source.may_send_gone(now):
                source.push_control(frames.encode_peer_gone(key, frames.GONE_NOT_HERE))
            return
        target = targets[-1]
        if target is not source:
            receivers = self._receivers.get(source.node_key)
            if receivers is None:
                receivers = set()
                self._receivers[source.node_key] = receivers
            if target not in receivers:
                receivers.add(target)
                self._received_from.setdefault(target, set()).add(source.node_key)
        self.packets_routed += 1
        target.push_packet(frames.encode_packet(frames.RECV_PACKET, source.node_key, payload[32:]), is_disco)

    def leave(self, connection: ServerConnection) -> None:
        """Forget a connection and tell those who heard from its key, unless another one still holds the key."""
        for key in self._received_from.pop(connection, set()):
            receivers = self._receivers.get(key)
            if receivers is not None:
                receivers.discard(connection)
        own = self._clients.get(connection.node_key)
        if own is None or connection not in own:
            return
        own.remove(connection)
        if own:
            return
        del self._clients[connection.node_key]
        gone = frames.encode_peer_gone(connection.node_key, frames.GONE_DISCONNECTED)
        for receiver in self._receivers.pop(connection.node_key, set()):
            sources = self._received_from.get(receiver)
            if sources is not None:
                sources.discard(connection.node_key)
            receiver.push_control(gone)

    def mark_ready(self, connection: ServerConnection) -> None:
        """Note that *connection* has something for its stream."""
        self._ready.append(connection)

"""One WireGuard interface: bytes from the network in, inner packets out, and the other way round.

After any call the owner takes :meth:`Device.take_outgoing` and :meth:`Device.take_path_outgoing`, drains
:meth:`Device.next_event` and re-arms its timer from :meth:`Device.next_deadline`.
"""

import heapq
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

from tsnetpy.base.addr import IpBytes, IpPrefix
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import ConfigError
from tsnetpy.base.instant import SECOND, Duration, Instant
from tsnetpy.base.packet import Buffer, PeerId, TxBatch
from tsnetpy.base.ring import Ring
from tsnetpy.base.stats import Drops
from tsnetpy.crypto.errors import CryptoError

from . import messages
from .allowed_ips import AllowedIps
from .constants import (
    KEEPALIVE_TIMEOUT,
    MAX_EVENTS,
    MAX_HANDSHAKE_ATTEMPTS,
    MAX_OUTGOING_BATCHES,
    MAX_PEERS,
    REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER,
)
from .events import EndpointSeen, PeerHandshake, UnknownPeerInitiation, UnknownSession
from .handshake import ADMITTED, Handshaker, source_peer
from .peer import NO_INDEX, Peer
from .replay import ReplayWindow
from .session import Session
from .tai64n import NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """State of one peer, for status displays."""

    peer: PeerId
    path: Hashable
    """Where its last authentic message came from; ``None`` before the first."""
    established: bool
    """True while there is a session to send on."""
    last_handshake: Instant | None
    rx_bytes: int
    """Bytes of authentic messages, with all overhead below UDP."""
    tx_bytes: int
    staged: int
    """Packets that wait for a session."""
    handshake_attempts: int
    """Retries of the handshake under way."""


@final
class Device:
    """A WireGuard device without sockets, clock or threads.

    Args:
        private_key: our static private key (the node key), 32 bytes.
        entropy: source of all randomness.
        mtu: of the inner interface; padding does not go past it.

    Attributes:
        mtu: see above.
        wall_offset_ns: what to add to ``now`` to get nanoseconds since 1970; only TAI64N needs it. Keep it up to date.
        drops: dropped input and output by reason.
    """

    __slots__ = (
        "_allowed",
        "_entropy",
        "_events",
        "_handshaker",
        "_heap",
        "_outgoing",
        "_path_outgoing",
        "_peers",
        "_pending",
        "_sessions",
        "_stamped_ns",
        "_unknown_session_at",
        "drops",
        "mtu",
        "wall_offset_ns",
    )

    def __init__(self, private_key: bytes, entropy: Entropy, *, mtu: int = 1280) -> None:
        self._entropy = entropy
        self._handshaker = Handshaker(private_key, entropy)
        self.mtu = mtu
        self.wall_offset_ns = 0
        self.drops = Drops()
        self._peers: dict[PeerId, Peer] = {}
        self._allowed = AllowedIps()
        self._sessions: dict[int, Session] = {}
        self._pending: dict[int, Peer] = {}  # index of our initiation -> whom it went to
        self._outgoing: Ring[tuple[PeerId, TxBatch]] = Ring(MAX_OUTGOING_BATCHES)
        self._path_outgoing: Ring[tuple[Hashable, bytes]] = Ring(MAX_OUTGOING_BATCHES)
        self._events: Ring[object] = Ring(MAX_EVENTS)
        self._heap: list[tuple[Instant, PeerId]] = []
        self._unknown_session_at: Instant | None = None
        self._stamped_ns = NEVER  # the last timestamp sent to a peer that was removed since

    # -- configuration ---------------------------------------------------------------------------------------------

    @property
    def public_key(self) -> PeerId:
        """Our static public key."""
        return self._handshaker.public_key

    def set_private_key(self, private_key: bytes, now: Instant) -> None:
        """Change our identity: every session and handshake ends, a peer that is now ourselves goes."""
        if self._handshaker.same_key(private_key):
            return
        self._handshaker = Handshaker(private_key, self._entropy)
        self.remove_peer(self._handshaker.public_key)
        for peer in self._peers.values():
            peer.static_shared = b""
            self._forget_keys(peer)
            peer.timers.stop()
            peer.last_sent_handshake = None
            if len(peer.staged):
                self._initiate(peer, now, retry=False)
            self._reschedule(peer)

    def add_peer(
        self,
        peer_id: PeerId,
        allowed_ips: Iterable[IpPrefix],
        now: Instant,
        *,
        psk: bytes | None = None,
        persistent_keepalive_s: int = 0,
    ) -> None:
        """Add a peer, or change one; an unchanged peer keeps its sessions.

        Raises:
            ConfigError: a key of a wrong length, our own key, or too many peers.
        """
        if len(peer_id) != 32 or (psk is not None and len(psk) != 32):
            raise ConfigError("WireGuard keys have 32 bytes")
        if peer_id == self._handshaker.public_key:
            raise ConfigError("a node cannot be its own peer")
        interval = persistent_keepalive_s * SECOND
        peer = self._peers.get(peer_id)
        if peer is None:
            if len(self._peers) >= MAX_PEERS:
                raise ConfigError(f"more than {MAX_PEERS} peers")
            # A peer that comes back may remember our last timestamp, and the wall clock may have gone back meanwhile.
            peer = Peer(bytes(peer_id), psk, 0, self._stamped_ns)
            self._peers[peer.key] = peer
        else:
            before = peer.psk
            peer.psk = psk or bytes(32)
            if peer.psk != before:
                self._forget_keys(peer)
        self._allowed.set(peer.key, allowed_ips)
        if interval != peer.persistent_keepalive_ns:
            peer.persistent_keepalive_ns = interval
            peer.timers.persistent_keepalive = None
            if interval:
                self._send_keepalive(peer, now)
        self._reschedule(peer)

    def remove_peer(self, peer_id: PeerId) -> None:
        """Forget a peer, its keys and what waits for it."""
        peer = self._peers.pop(peer_id, None)
        if peer is None:
            return
        peer.removed = True
        self._stamped_ns = max(self._stamped_ns, peer.clock.last_ns)
        self._forget_keys(peer)
        peer.staged.clear()
        peer.timers.stop()
        self._allowed.remove_peer(peer_id)

    def peers(self) -> list[PeerId]:
        """Return the keys of all peers."""
        return list(self._peers)

    def peer_for_ip(self, ip: IpBytes) -> PeerId | None:
        """Return the peer that packets to *ip* belong to."""
        return self._allowed.lookup(ip)

    def peer_info(self, peer_id: PeerId, now: Instant) -> PeerInfo | None:
        """Return the state of one peer, ``None`` if there is no such peer."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return None
        return PeerInfo(
            peer=peer.key,
            path=peer.path,
            established=peer.current is not None and peer.current.can_send(1, now),
            last_handshake=peer.last_handshake,
            rx_bytes=peer.rx_bytes,
            tx_bytes=peer.tx_bytes,
            staged=len(peer.staged),
            handshake_attempts=peer.timers.handshake_attempts,
        )

    # -- output ----------------------------------------------------------------------------------------------------

    def send(self, peer_id: PeerId, packets: Sequence[Buffer], now: Instant) -> None:
        """Send inner packets to a peer; without a session they wait (at most 128, oldest dropped) and one is begun."""
        peer = self._peers.get(peer_id)
        if peer is None:
            self.drops.add("no_peer", len(packets))
            return
        if not packets:
            return
        session = peer.current
        if session is not None and session.can_send(len(packets), now) and not len(peer.staged):
            self._transmit(peer, session, packets, now, data=True)
        else:
            for packet in packets:
                self._stage(peer, bytes(packet))
            self._send_staged(peer, now)
        self._reschedule(peer)

    def initiate(self, peer_id: PeerId, now: Instant) -> None:
        """Begin a handshake with a peer, unless one began less than 5 s ago."""
        peer = self._peers.get(peer_id)
        if peer is not None:
            self._initiate(peer, now, retry=False)
            self._reschedule(peer)

    @property
    def pending(self) -> bool:
        """Whether :meth:`take_outgoing` or :meth:`next_event` have something to return."""
        return bool(self._outgoing.items or self._events.items)

    def take_outgoing(self) -> list[tuple[PeerId, TxBatch]]:
        """Return what must go to peers, in order; the caller picks the path."""
        out: list[tuple[PeerId, TxBatch]] = []
        while (item := self._outgoing.pop()) is not None:
            out.append(item)
        return out

    def take_path_outgoing(self) -> list[tuple[Hashable, bytes]]:
        """Return datagrams that must go back exactly where a message came from (cookie replies)."""
        out: list[tuple[Hashable, bytes]] = []
        while (item := self._path_outgoing.pop()) is not None:
            out.append(item)
        return out

    # -- input -----------------------------------------------------------------------------------------------------

    def receive(self, datagrams: Sequence[Buffer], source: Hashable, now: Instant) -> list[tuple[PeerId, list[Buffer]]]:
        """Take a batch of datagrams that came by one path.

        Returns:
            Decrypted IP packets by peer, in order of arrival, cut to the length in their header, each with an inner
            source that its peer may use. Anything else is counted in :attr:`drops`; nothing raises.
        """
        out: list[tuple[PeerId, list[Buffer]]] = []
        if len(datagrams) > 1 and min(map(len, datagrams)) >= messages.TRANSPORT_MIN_BYTES:
            heads = set(map(messages.HEAD.unpack_from, datagrams))
            if len(heads) == 1:
                kind, index = heads.pop()
                if kind == messages.TRANSPORT:  # bulk: a batch of one session
                    self._receive_transport(index, datagrams, source, now, out)
                    return out
        run: list[Buffer] = []
        run_index = 0
        for datagram in datagrams:
            size = len(datagram)
            if size < messages.TRANSPORT_MIN_BYTES:
                self.drops.add("short")
                continue
            kind, index = messages.HEAD.unpack_from(datagram)
            if kind == messages.TRANSPORT:
                if run and index != run_index:
                    self._receive_transport(run_index, run, source, now, out)
                    run = []
                run_index = index
                run.append(datagram)
                continue
            if run:
                self._receive_transport(run_index, run, source, now, out)
                run = []
            if kind == messages.INITIATION and size == messages.INITIATION_BYTES:
                self._receive_initiation(datagram, source, now)
            elif kind == messages.RESPONSE and size == messages.RESPONSE_BYTES:
                self._receive_response(datagram, source, now)
            elif kind == messages.COOKIE_REPLY and size == messages.COOKIE_REPLY_BYTES:
                self._receive_cookie_reply(datagram, now)
            else:
                self.drops.add("unknown_message")
        if run:
            self._receive_transport(run_index, run, source, now, out)
        return out

    def _receive_transport(
        self,
        index: int,
        datagrams: Sequence[Buffer],
        source: Hashable,
        now: Instant,
        out: list[tuple[PeerId, list[Buffer]]],
    ) -> None:
        session = self._sessions.get(index)
        if session is None:
            self.drops.add("unknown_index", len(datagrams))
            if self._unknown_session_at is None or now - self._unknown_session_at >= SECOND:
                self._unknown_session_at = now
                self._events.push(UnknownSession(path=source))
                known = self._peers.get(source_peer(source))
                if known is not None:
                    self._initiate(known, now, retry=False)
                    self._reschedule(known)
            return
        if now - session.created >= REJECT_AFTER_TIME:
            self.drops.add("expired_session", len(datagrams))
            return
        opened = session.receive_key.open_batch(datagrams)
        if len(opened) != len(datagrams):
            self.drops.add("not_authentic", len(datagrams) - len(opened))
        fresh = _fresh(session.replay, opened)
        if len(fresh) != len(opened):
            self.drops.add("replay", len(opened) - len(fresh))
        if not fresh:
            return

        peer = self._peers[session.peer]
        if session is peer.next:
            self._confirm_next(peer, now)
        self._keep_key_fresh_receiving(peer, now)
        self._note_received(peer, source, now)
        packets, empty = self._check_inner(peer.key, fresh)
        peer.rx_bytes += messages.TRANSPORT_MIN_BYTES * len(fresh) + sum(map(len, fresh))
        if empty != len(fresh):
            peer.timers.data_received(now)
        if packets:
            if out and out[-1][0] == peer.key:
                out[-1][1].extend(packets)
            else:
                out.append((peer.key, packets))
        self._reschedule(peer)

    def _check_inner(self, key: PeerId, plaintexts: list[bytes]) -> tuple[list[Buffer], int]:
        """Return the packets that *key* may send, without padding, and how many plaintexts were empty."""
        packets: list[Buffer] = []
        allowed_source = b""
        empty = 0
        for plain in plaintexts:
            size = len(plain)
            if size == 0:
                empty += 1
                continue
            version = plain[0] >> 4
            if version == 4 and size >= 20:
                length = plain[2] << 8 | plain[3]
                source = plain[12:16]
                least = 20
            elif version == 6 and size >= 40:
                length = (plain[4] << 8 | plain[5]) + 40
                source = plain[8:24]
                least = 40
            else:
                self.drops.add("inner_header")
                continue
            if length != size:
                if length > size or length < least:
                    self.drops.add("inner_length")
                    continue
                plain = plain[:length]
            if source != allowed_source:
                if self._allowed.lookup(source) != key:
                    self.drops.add("allowed_ips")
                    continue
                allowed_source = source
            packets.append(plain)
        return packets, empty

    def _receive_initiation(self, datagram: Buffer, source: Hashable, now: Instant) -> None:
        message = messages.Initiation.decode(datagram)
        if not self._admit(datagram, message.sender, source, now):
            return
        try:
            claimed, noise = self._handshaker.open_initiation(message)
        except CryptoError:
            self.drops.add("handshake")
            return
        peer = self._peers.get(claimed)
        if peer is None:
            self.drops.add("unknown_peer")
            self._events.push(UnknownPeerInitiation(peer=claimed, path=source))
            return
        try:
            reason = self._handshaker.accept_initiation(peer, noise, message, now)
            if reason != ADMITTED:
                self.drops.add(reason)
                return
            reply, session = self._handshaker.create_response(peer, noise, message.sender, self._new_index(), now)
        except CryptoError:
            self.drops.add("handshake")
            return
        peer.rx_bytes += len(datagram)
        self._note_received(peer, source, now)
        # Responder's slots: next <- new; an older next and previous go.
        self._drop_session(peer.next)
        self._drop_session(peer.previous)
        peer.previous = None
        peer.next = session
        self._sessions[session.local_index] = session
        peer.last_sent_handshake = now
        peer.timers.session_derived(now)
        self._emit(peer, TxBatch(reply, len(reply)), now)
        self._reschedule(peer)

    def _receive_response(self, datagram: Buffer, source: Hashable, now: Instant) -> None:
        message = messages.Response.decode(datagram)
        if not self._admit(datagram, message.sender, source, now):
            return
        peer = self._pending.get(message.receiver)
        if peer is None:
            self.drops.add("unknown_index")
            return
        session = self._handshaker.consume_response(peer, message, now)
        if session is None:
            self.drops.add("handshake")
            return
        del self._pending[session.local_index]
        peer.handshake_index = NO_INDEX
        peer.rx_bytes += len(datagram)
        # Initiator's slots: the old current (or a next that the peer never confirmed) stays readable as previous.
        if peer.next is not None:
            self._drop_session(peer.previous)
            self._drop_session(peer.current)
            peer.previous = peer.next
            peer.next = None
        else:
            self._drop_session(peer.previous)
            peer.previous = peer.current
        peer.current = session
        self._sessions[session.local_index] = session
        self._note_received(peer, source, now)
        peer.timers.session_derived(now)
        self._complete(peer, True, now)
        # The first message confirms the session to the responder; if no data waits, a keepalive does it.
        if len(peer.staged):
            self._send_staged(peer, now)
        else:
            self._send_keepalive(peer, now)
        self._reschedule(peer)

    def _receive_cookie_reply(self, datagram: Buffer, now: Instant) -> None:
        reply = messages.CookieReply.decode(datagram)
        peer = self._pending.get(reply.receiver)
        if peer is None:
            session = self._sessions.get(reply.receiver)
            peer = None if session is None else self._peers.get(session.peer)
        if peer is None:
            self.drops.add("unknown_index")
        elif not peer.cookies.consume_reply(reply, now):
            self.drops.add("cookie_reply")

    def _admit(self, datagram: Buffer, sender: int, source: Hashable, now: Instant) -> bool:
        reason = self._handshaker.admit(datagram, sender, source, now)
        if reason == ADMITTED:
            return True
        self.drops.add(reason)
        if reason == "cookie":
            reply = self._handshaker.cookie_reply
            relayed = self._peers.get(source_peer(source))
            if relayed is not None:  # a relay names the sender, so the ordinary way leads back
                self._outgoing.push((relayed.key, TxBatch(reply, len(reply))))
            else:
                self._path_outgoing.push((source, reply))
        return False

    # -- timers ----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` wants to be called; this may be earlier than anything is due.

        Timers move with every packet, so an entry in the heap stays where it is until it comes up, and is put back
        then if its timer was moved or cancelled: O(1) per packet, and a superfluous wake every few seconds.
        """
        heap = self._heap
        while heap:
            when, peer_id = heap[0]
            peer = self._peers.get(peer_id)
            if peer is None or peer.scheduled != when:
                heapq.heappop(heap)
                continue
            return when
        return None

    def handle_deadline(self, now: Instant) -> None:
        """Run every timer that is due."""
        while (due := self.next_deadline()) is not None and due <= now:
            peer = self._peers[heapq.heappop(self._heap)[1]]
            peer.scheduled = None
            self._run_timers(peer, now)
            self._reschedule(peer)

    def next_event(self) -> object | None:
        """Return the oldest event not yet taken."""
        return self._events.pop()

    def _run_timers(self, peer: Peer, now: Instant) -> None:
        timers = peer.timers
        if timers.retransmit_handshake is not None and timers.retransmit_handshake <= now:
            timers.retransmit_handshake = None
            if timers.handshake_attempts > MAX_HANDSHAKE_ATTEMPTS:
                timers.send_keepalive = None
                self.drops.add("handshake_gave_up", len(peer.staged))
                peer.staged.clear()
                if timers.zero_key_material is None:
                    timers.session_derived(now)
            else:
                timers.handshake_attempts += 1
                self._initiate(peer, now, retry=True)
        if timers.new_handshake is not None and timers.new_handshake <= now:
            timers.new_handshake = None
            self._initiate(peer, now, retry=False)
        if timers.send_keepalive is not None and timers.send_keepalive <= now:
            timers.send_keepalive = None
            self._send_keepalive(peer, now)
            if timers.need_another_keepalive:
                timers.need_another_keepalive = False
                timers.send_keepalive = now + KEEPALIVE_TIMEOUT
        if timers.persistent_keepalive is not None and timers.persistent_keepalive <= now:
            timers.persistent_keepalive = None
            self._send_keepalive(peer, now)
        if timers.zero_key_material is not None and timers.zero_key_material <= now:
            timers.zero_key_material = None
            self._forget_keys(peer)
            peer.staged.clear()

    def _reschedule(self, peer: Peer) -> None:
        """Make sure that the heap holds an entry no later than the peer's next timer."""
        due = peer.timers.next_deadline()
        if due is not None and not peer.removed and (peer.scheduled is None or due < peer.scheduled):
            peer.scheduled = due
            heapq.heappush(self._heap, (due, peer.key))

    # -- steps -----------------------------------------------------------------------------------------------------

    def _transmit(self, peer: Peer, session: Session, packets: Sequence[Buffer], now: Instant, *, data: bool) -> None:
        """Seal *packets* on *session*; *data* tells whether any of them is more than a keepalive."""
        counter = session.counter
        session.counter = counter + len(packets)
        for datagrams, segment_size in session.send_key.seal_batch(session.remote_index, counter, packets, self.mtu):
            self._emit(peer, TxBatch(datagrams, segment_size), now)
        if data:
            peer.timers.data_sent(now, self._jitter())
        if session.counter > REKEY_AFTER_MESSAGES or (session.initiator and now - session.created > REKEY_AFTER_TIME):
            self._initiate(peer, now, retry=False)

    def _emit(self, peer: Peer, batch: TxBatch, now: Instant) -> None:
        peer.tx_bytes += len(batch.data)
        peer.timers.packet_sent()
        peer.timers.packet_traversed(now, peer.persistent_keepalive_ns)
        if self._outgoing.push((peer.key, batch)) is not None:
            self.drops.add("outgoing_overflow")

    def _stage(self, peer: Peer, packet: bytes) -> None:
        if peer.staged.push(packet) is not None:
            self.drops.add("staged_overflow")

    def _send_staged(self, peer: Peer, now: Instant) -> None:
        session = peer.current
        if not len(peer.staged):
            return
        if session is None or not session.can_send(len(peer.staged), now):
            self._initiate(peer, now, retry=False)
            return
        packets: list[Buffer] = []
        while (packet := peer.staged.pop()) is not None:
            packets.append(packet)
        self._transmit(peer, session, packets, now, data=any(packets))

    def _send_keepalive(self, peer: Peer, now: Instant) -> None:
        if not len(peer.staged):
            peer.staged.push(b"")
        self._send_staged(peer, now)

    def _initiate(self, peer: Peer, now: Instant, *, retry: bool) -> None:
        if not retry:
            peer.timers.handshake_attempts = 0
        if peer.last_sent_handshake is not None and now - peer.last_sent_handshake < REKEY_TIMEOUT:
            return
        index = self._new_index()
        self._pending.pop(peer.handshake_index, None)
        try:
            message = self._handshaker.create_initiation(peer, index, now + self.wall_offset_ns, now)
        except CryptoError:
            self.drops.add("handshake")  # a peer key of low order: it can never work
            return
        self._pending[index] = peer
        peer.last_sent_handshake = now
        self._emit(peer, TxBatch(message, len(message)), now)
        peer.timers.initiation_sent(now, self._jitter())

    def _note_received(self, peer: Peer, source: Hashable, now: Instant) -> None:
        peer.timers.packet_received()
        peer.timers.packet_traversed(now, peer.persistent_keepalive_ns)
        if peer.path != source:
            peer.path = source
            self._events.push(EndpointSeen(peer=peer.key, path=source))

    def _confirm_next(self, peer: Peer, now: Instant) -> None:
        """The initiator has used the session that we answered: it becomes the current one."""
        self._drop_session(peer.previous)
        peer.previous = peer.current
        peer.current = peer.next
        peer.next = None
        self._complete(peer, False, now)
        self._send_staged(peer, now)

    def _complete(self, peer: Peer, initiator: bool, now: Instant) -> None:
        peer.timers.handshake_complete()
        peer.last_handshake = now
        self._events.push(PeerHandshake(peer=peer.key, initiator=initiator))

    def _keep_key_fresh_receiving(self, peer: Peer, now: Instant) -> None:
        """Renew a session that would expire before our next chance to notice, if only we receive on it."""
        session = peer.current
        if session is None or not session.initiator or peer.timers.sent_last_minute_handshake:
            return
        limit: Duration = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
        if now - session.created > limit:
            peer.timers.sent_last_minute_handshake = True
            self._initiate(peer, now, retry=False)

    def _forget_keys(self, peer: Peer) -> None:
        """Drop all sessions and the handshake under way. (Python cannot overwrite bytes; this drops the references.)"""
        self._drop_session(peer.previous)
        self._drop_session(peer.current)
        self._drop_session(peer.next)
        peer.previous = peer.current = peer.next = None
        self._pending.pop(peer.handshake_index, None)
        peer.handshake_index = NO_INDEX
        peer.handshake = None

    def _drop_session(self, session: Session | None) -> None:
        if session is not None and not session.dead:
            session.dead = True
            session.counter = REJECT_AFTER_MESSAGES
            del self._sessions[session.local_index]

    def _new_index(self) -> int:
        """Return a random index that nothing else uses."""
        while True:
            index = self._entropy.u32()
            if index not in self._sessions and index not in self._pending:
                return index

    def _jitter(self) -> Duration:
        return self._entropy.u32() % REKEY_TIMEOUT_JITTER


def _fresh(replay: ReplayWindow, opened: list[tuple[int, bytes]]) -> list[bytes]:
    """Return the plaintexts whose counters are new, in order."""
    if len(opened) > 2:
        first = opened[0][0]
        if [counter for counter, _ in opened] == [*range(first, first + len(opened))] and replay.accept_run(
            first, len(opened)
        ):
            return [plaintext for _, plaintext in opened]
    return [plaintext for counter, plaintext in opened if replay.accept(counter)]

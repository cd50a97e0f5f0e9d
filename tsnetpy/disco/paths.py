"""Path choice for all peers: disco messages and time in; disco messages to send and the path for each packet out.

The owner (magicsock, or a simulator) seals and sends what :meth:`Paths.take_outgoing` returns and opens what arrives.
Each side of a pair chooses for itself, so the two directions may run over different addresses.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import SECOND, Duration, Instant
from tsnetpy.base.stats import Drops

from .messages import CallMeMaybe, Message, Ping, Pong, derp_endpoint, unique_endpoints
from .peer import PURPOSE_USER, PeerPath

ENDPOINTS_FRESH: Final = 27 * SECOND
FIRST_CONTACT: Final = SECOND
FIRST_CONTACT_END: Final = 10 * SECOND


@dataclass(frozen=True, slots=True)
class PathPeer:
    """One peer of the configuration."""

    node_key: bytes
    disco_key: bytes
    """Empty for a peer without disco."""
    endpoints: tuple[Endpoint, ...] = ()
    home_derp: int = 0


@final
class Outgoing:
    """A disco message to send to the holder of ``disco_key``: by UDP to ``to``, or over DERP if that is ``None``."""

    __slots__ = ("disco_key", "message", "node_key", "region", "to")

    def __init__(self, node_key: bytes, disco_key: bytes, message: Message, to: Endpoint | None, region: int) -> None:
        self.node_key = node_key
        self.disco_key = disco_key
        self.message = message
        self.to = to
        self.region = region


@dataclass(frozen=True, slots=True)
class UserPong:
    """The answer to a ping that :meth:`Paths.ping` sent."""

    node_key: bytes
    txid: bytes
    latency_ns: Duration
    endpoint: Endpoint | None
    """The address pinged, ``None`` if it went over DERP."""
    region: int


Route: TypeAlias = tuple[Endpoint | None, int]
"""A UDP endpoint or ``None``, and a DERP region or 0; a packet goes to both if both are there."""


@final
class Paths:
    """The path state of every peer (an :class:`~tsnetpy.base.engine.Engine`)."""

    def __init__(self, node_key: bytes, entropy: Entropy) -> None:
        self.node_key = node_key
        """Our public node key, carried in pings."""
        self.peers: dict[bytes, PeerPath] = {}
        self.drops = Drops()
        self.usable_regions: set[int] = set()
        """DERP regions of the map, without those that could not be reached lately."""
        self._entropy = entropy
        self._by_disco: dict[bytes, list[PeerPath]] = {}
        self._by_address: dict[Endpoint, PeerPath] = {}
        self._local: tuple[Endpoint, ...] = ()
        self._local_at: Instant | None = None
        self._waiting_cmm: dict[bytes, PeerPath] = {}
        self._restun_wanted = False
        self._outgoing: list[Outgoing] = []
        self._events: list[UserPong] = []
        self._timers: list[tuple[Instant, int, PeerPath]] = []
        self._timer_seq = 0

    # -- configuration ------------------------------------------------------------------------------------------

    def configure(self, peers: Sequence[PathPeer], now: Instant) -> list[bytes]:
        """Adopt the list of peers, keeping the state of those that stay; return disco keys no longer in use."""
        before = set(self._by_disco)
        wanted = {spec.node_key: spec for spec in peers}
        for node_key in [key for key in self.peers if key not in wanted]:
            gone = self.peers.pop(node_key)
            self._forget_addresses(gone)
            self._waiting_cmm.pop(node_key, None)
        self._by_disco = {}
        for spec in wanted.values():
            peer = self.peers.get(spec.node_key)
            if peer is None:
                peer = PeerPath(spec.node_key, spec.disco_key, self._entropy)
                self.peers[spec.node_key] = peer
            elif peer.disco_key != spec.disco_key:
                # A new disco key means a new process at the other end: nothing proven holds any more.
                peer.disco_key = spec.disco_key
                peer.reset(now)
                self._forget_addresses(peer)
            peer.home_derp = spec.home_derp
            peer.set_netmap_endpoints(spec.endpoints, now)
            if spec.disco_key:
                self._by_disco.setdefault(spec.disco_key, []).append(peer)
            self._settle(peer, now)
        return [key for key in before if key not in self._by_disco]

    def knows_disco(self, disco_key: bytes) -> bool:
        """Tell whether *disco_key* belongs to a peer; messages from other senders are dropped unopened."""
        return disco_key in self._by_disco

    def set_local_endpoints(self, endpoints: Sequence[Endpoint], now: Instant) -> None:
        """Take our own current addresses (just measured), and send the CallMeMaybes that waited for them."""
        self._local = unique_endpoints(endpoints)
        self._local_at = now
        waiting, self._waiting_cmm = self._waiting_cmm, {}
        for peer in waiting.values():
            self._send_call_me_maybe(peer)

    def take_restun_request(self) -> bool:
        """Tell (once) whether a CallMeMaybe waits for fresher addresses of ours."""
        wanted, self._restun_wanted = self._restun_wanted, False
        return wanted

    def network_changed(self, now: Instant) -> None:
        """Forget every proven path: our own addresses or sockets changed."""
        self._by_address.clear()
        for peer in self.peers.values():
            peer.reset(now)
            self._settle(peer, now)

    # -- packets ------------------------------------------------------------------------------------------------

    def route(self, node_key: bytes, n_bytes: int, now: Instant) -> Route | None:
        """Return where a packet to *node_key* goes now, and account for it; ``None`` for an unknown peer.

        May queue pings and a CallMeMaybe; the owner calls :meth:`take_outgoing` after it.
        """
        peer = self.peers.get(node_key)
        if peer is None:
            self.drops.add("no_peer")
            return None
        peer.tx_bytes += n_bytes
        best = peer.best
        if best is not None and now < peer.trust_until and peer.heartbeat_at is not None:
            peer.last_send = now
            if not peer.heard_back:
                return self._first_contact(peer, best.endpoint, now)
            return best.endpoint, 0
        peer.note_send(now)
        self._settle(peer, now)
        best = peer.best
        if best is not None:
            if now >= peer.trust_until:
                return best.endpoint, peer.derp_region
            return (best.endpoint, 0) if peer.heard_back else self._first_contact(peer, best.endpoint, now)
        if not peer.disco_key and not peer.derp_region and peer.candidates:
            # A plain WireGuard peer: its configured address is all there is.
            return next(iter(peer.candidates)), 0
        return None, peer.derp_region

    def _first_contact(self, peer: PeerPath, endpoint: Endpoint, now: Instant) -> Route:
        """Return the route of the first packets to a peer, when a ping has proven a direct address already.

        The peer has no such proof, and if it knows our relay neither (its netmap is older than our home region), it has
        no way to answer and drops its handshake response; the next try is five seconds later (seen with tailscale
        1.102.5). A packet over DERP tells it where to answer, so for a second such packets go by DERP alone: were the
        direct copy faster, it would be the one that is answered and the other a replay.
        """
        region = peer.derp_region
        if region not in self.usable_regions:
            return endpoint, 0
        if peer.first_send is None:
            peer.first_send = now
        elif now - peer.first_send > FIRST_CONTACT_END:
            peer.heard_back = True  # or it answers from an address that disco has not seen
            return endpoint, 0
        return (None if now - peer.first_send < FIRST_CONTACT else endpoint), region

    def note_received(self, source: Endpoint, n_bytes: int, now: Instant) -> PeerPath | None:
        """Account for a WireGuard datagram by UDP; return the peer that disco knows at *source*, if any."""
        peer = self._by_address.get(source)
        if peer is not None:
            peer.rx_bytes += n_bytes
            peer.last_rx = now
            peer.heard_back = True
        return peer

    def note_received_derp(self, node_key: bytes, region: int, n_bytes: int, now: Instant) -> PeerPath | None:
        """Account for a packet over DERP; the peer is answered through that region from now on."""
        peer = self.peers.get(node_key)
        if peer is not None:
            peer.heard_derp = region
            peer.rx_bytes += n_bytes
            peer.last_rx = now
            peer.heard_back = True
        return peer

    def derp_opened(self, region: int) -> None:
        """Learn that *region* can be reached, or is new on the map and may be tried."""
        self.usable_regions.add(region)

    def derp_closed(self, region: int) -> None:
        """Forget that peers were heard over *region*: its connection is gone, or could not be made."""
        self.usable_regions.discard(region)
        for peer in self.peers.values():
            if peer.heard_derp == region:
                peer.heard_derp = 0

    def derp_peer_gone(self, node_key: bytes, region: int) -> None:
        """Take a PeerGone: the peer is no longer connected to *region*."""
        peer = self.peers.get(node_key)
        if peer is not None and peer.heard_derp == region:
            peer.heard_derp = 0

    def note_unreachable(self, node_key: bytes, endpoint: Endpoint) -> None:
        """Take a send error of the host (EHOSTUNREACH, EPERM): that address is out."""
        peer = self.peers.get(node_key)
        if peer is not None:
            peer.invalidate(endpoint)

    # -- disco messages -----------------------------------------------------------------------------------------

    def receive_udp(self, disco_key: bytes, message: Message, source: Endpoint, now: Instant) -> None:
        """Take an authentic message from *disco_key* that came by UDP."""
        peers = self._by_disco.get(disco_key, [])
        if isinstance(message, Ping):
            peer = self._pinger(peers, message.node_key)
            if peer is None:
                self.drops.add("disco_ambiguous_sender")
                return
            if peer.handle_ping(message, source, now):
                self._remember(source, peer)
                self._queue(peer, Pong(message.txid, source), source, 0)
            self._settle(peer, now)
        elif isinstance(message, Pong):
            self._receive_pong(peers, message, source, now)
        else:
            # CallMeMaybe over UDP could be a replay that makes us ping strangers: only DERP names its sender.
            self.drops.add("disco_not_by_udp")

    def receive_derp(self, node_key: bytes, disco_key: bytes, message: Message, region: int, now: Instant) -> None:
        """Take an authentic message that came over DERP from *node_key*."""
        peer = self.peers.get(node_key)
        if peer is None or peer.disco_key != disco_key:
            self.drops.add("disco_wrong_sender")
            return
        peer.heard_derp = region
        if isinstance(message, Ping):
            self._queue(peer, Pong(message.txid, derp_endpoint(region)), None, region)
        elif isinstance(message, Pong):
            self._receive_pong([peer], message, None, now)
        elif isinstance(message, CallMeMaybe):
            peer.handle_call_me_maybe(message.endpoints, now)
            self._settle(peer, now)
        else:
            self.drops.add("disco_unused_kind")

    def ping(self, node_key: bytes, now: Instant) -> list[bytes]:
        """Ping a peer for the user: its trusted address, else every candidate and DERP; return transaction ids.

        Answers come as :class:`UserPong` events. Empty for unknown peers and those without disco.
        """
        peer = self.peers.get(node_key)
        if peer is None or not peer.disco_key:
            return []
        peer.note_send(now)
        best = peer.best
        targets: list[Endpoint | None]
        if best is not None and peer.is_trusted(now):
            targets = [best.endpoint]
        else:
            targets = list(peer.candidates)
            if peer.derp_region:
                targets.append(None)
        txids = [peer.start_ping(target, now, PURPOSE_USER) for target in targets]
        self._settle(peer, now)
        return txids

    # -- engine -------------------------------------------------------------------------------------------------

    def take_outgoing(self) -> list[Outgoing]:
        """Return the messages to seal and send, oldest first."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_event(self) -> UserPong | None:
        """Return the oldest event not yet taken."""
        return self._events.pop(0) if self._events else None

    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` wants to be called."""
        timers = self._timers
        while timers and timers[0][2].timer_at != timers[0][0]:
            heapq.heappop(timers)  # superseded by an earlier deadline of the same peer
        return timers[0][0] if timers else None

    def handle_deadline(self, now: Instant) -> None:
        """Run the timers that are due."""
        while True:
            deadline = self.next_deadline()
            if deadline is None or deadline > now:
                return
            _, _, peer = heapq.heappop(self._timers)
            peer.timer_at = None
            if self.peers.get(peer.node_key) is not peer:
                continue
            before = peer.best
            peer.handle_deadline(now)
            if before is not None and peer.best is None:
                self._by_address.pop(before.endpoint, None)
            self._settle(peer, now)

    # -- inside -------------------------------------------------------------------------------------------------

    def _receive_pong(self, peers: list[PeerPath], pong: Pong, source: Endpoint | None, now: Instant) -> None:
        for peer in peers:
            answered = peer.handle_pong(pong.txid, now)
            if answered is None:
                continue
            sent, latency = answered
            if sent.to is not None:
                # The address that we pinged counts, not the one the pong came from: that is where packets will go.
                self._remember(sent.to, peer)
                if source is not None:
                    self._remember(source, peer)
            if sent.purpose == PURPOSE_USER and len(self._events) < 1024:
                self._events.append(UserPong(peer.node_key, pong.txid, latency, sent.to, sent.region))
            self._settle(peer, now)
            return
        self.drops.add("disco_unknown_pong")

    def _pinger(self, peers: list[PeerPath], node_key: bytes) -> PeerPath | None:
        """Return which peer sent a ping: almost always the only one with that disco key."""
        if len(peers) == 1:
            return peers[0]
        for peer in peers:
            if peer.node_key == node_key:
                return peer
        return None

    def _settle(self, peer: PeerPath, now: Instant) -> None:
        """Collect what *peer* decided to send and re-arm its timer."""
        if peer.pings_to_send:
            for txid, to, region in peer.pings_to_send:
                self._queue(peer, Ping(txid, self.node_key), to, region)
            peer.pings_to_send.clear()
        if peer.wants_call_me_maybe:
            peer.wants_call_me_maybe = False
            if self._local_at is not None and now - self._local_at <= ENDPOINTS_FRESH:
                self._send_call_me_maybe(peer)
            else:
                self._waiting_cmm[peer.node_key] = peer
                self._restun_wanted = True
        deadline = peer.next_deadline()
        if deadline is not None and (peer.timer_at is None or deadline < peer.timer_at):
            peer.timer_at = deadline
            self._timer_seq += 1
            heapq.heappush(self._timers, (deadline, self._timer_seq, peer))

    def _send_call_me_maybe(self, peer: PeerPath) -> None:
        if peer.derp_region and self._local:
            self._queue(peer, CallMeMaybe(self._local), None, peer.derp_region)

    def _queue(self, peer: PeerPath, message: Message, to: Endpoint | None, region: int) -> None:
        if len(self._outgoing) >= 4096:
            self.drops.add("disco_backlog")  # the owner drains after each call; a bound in case it does not
            return
        self._outgoing.append(Outgoing(peer.node_key, peer.disco_key, message, to, region))

    def _remember(self, address: Endpoint, peer: PeerPath) -> None:
        if len(self._by_address) >= 1024 + 64 * len(self.peers):
            # A peer may ping from ever new ports; only what is still a candidate is worth remembering.
            self._by_address = {
                endpoint: other for endpoint, other in self._by_address.items() if endpoint in other.candidates
            }
        self._by_address[address] = peer

    def _forget_addresses(self, peer: PeerPath) -> None:
        self._by_address = {endpoint: other for endpoint, other in self._by_address.items() if other is not peer}

"""The path state of one peer: its candidate addresses, pings under way, best address and session.

Read the data path reference, section 2.2, first. This object decides; :mod:`tsnetpy.disco.paths` owns all peers, the
maps between keys and addresses, and the timers.
"""

from typing import Final, final

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration, Instant, earliest

from .messages import Ping
from .quality import AddrQuality, better_addr, is_link_local

HEARTBEAT_INTERVAL: Final = 3 * SECOND
TRUST_DURATION: Final = 6_500 * MILLISECOND
PING_TIMEOUT: Final = 5 * SECOND
PING_SPACING: Final = 5 * SECOND
SESSION_TIMEOUT: Final = 45 * SECOND
REPROBE_INTERVAL: Final = 60 * SECOND
GOOD_ENOUGH_LATENCY: Final = 5 * MILLISECOND
LEARNED_LIFETIME: Final = 45 * SECOND
MAX_CANDIDATES: Final = 100

PURPOSE_DISCOVERY: Final = 0
PURPOSE_HEARTBEAT: Final = 1
PURPOSE_USER: Final = 2


@final
class Candidate:
    """An address at which the peer might be reached."""

    __slots__ = ("from_call_me_maybe", "from_netmap", "heard_at", "last_ping", "last_rx_txid", "latency_ns")

    def __init__(self) -> None:
        self.from_netmap = False
        self.from_call_me_maybe = False
        self.heard_at: Instant | None = None
        """When a Ping last came from this address."""
        self.last_ping: Instant | None = None
        self.last_rx_txid = b""
        self.latency_ns: Duration | None = None

    def is_live(self, now: Instant) -> bool:
        """Tell whether something still speaks for this address; learned ones fade when the peer stops pinging."""
        if self.from_netmap or self.from_call_me_maybe:
            return True
        return self.heard_at is not None and now - self.heard_at < LEARNED_LIFETIME


@final
class SentPing:
    """A ping that waits for its pong."""

    __slots__ = ("purpose", "region", "sent_at", "to")

    def __init__(self, to: Endpoint | None, region: int, sent_at: Instant, purpose: int) -> None:
        self.to = to
        """The address pinged, or ``None`` for a ping over DERP."""
        self.region = region
        self.sent_at = sent_at
        self.purpose = purpose


@final
class PeerPath:
    """One peer. Methods that decide to ping append ``(txid, endpoint or None, region)`` to :attr:`pings_to_send`.

    Attributes:
        node_key: 32 raw bytes.
        disco_key: 32 raw bytes, empty if the peer speaks no disco.
        home_derp: the region from the netmap, 0 if unknown.
        heard_derp: the region over which a packet of the peer last came, while that connection is open; else 0.
        best: the proven address in use, or ``None``.
        trust_until: until when ``best`` is used alone.
        heard_back: a packet of the tunnel came from the peer since it was configured or reset.
        first_send: when the first packet went out, while nothing came back.
        wants_call_me_maybe: set when the peer should be asked to ping us; the owner takes it.
    """

    __slots__ = (
        "_entropy",
        "_sweep_at",
        "best",
        "candidates",
        "disco_key",
        "first_send",
        "heard_back",
        "heard_derp",
        "heartbeat_at",
        "home_derp",
        "last_full_ping",
        "last_rx",
        "last_send",
        "node_key",
        "pings",
        "pings_to_send",
        "rx_bytes",
        "timer_at",
        "trust_until",
        "tx_bytes",
        "wants_call_me_maybe",
    )

    def __init__(self, node_key: bytes, disco_key: bytes, entropy: Entropy) -> None:
        self.node_key = node_key
        self.disco_key = disco_key
        self.home_derp = 0
        self.heard_derp = 0
        self.heard_back = False
        self.first_send: Instant | None = None
        self.candidates: dict[Endpoint, Candidate] = {}
        self.best: AddrQuality | None = None
        self.trust_until: Instant = 0
        self.pings: dict[bytes, SentPing] = {}
        self.heartbeat_at: Instant | None = None
        self.last_send: Instant | None = None
        self.last_full_ping: Instant | None = None
        self.last_rx: Instant | None = None
        self.rx_bytes = 0
        self.tx_bytes = 0
        self.wants_call_me_maybe = False
        self.pings_to_send: list[tuple[bytes, Endpoint | None, int]] = []
        self.timer_at: Instant | None = None
        """Owned by :class:`~tsnetpy.disco.paths.Paths`: the deadline under which its heap knows this peer."""
        self._entropy = entropy
        # No candidate may be pinged again before this; keeps the untrusted send path from scanning all candidates.
        self._sweep_at: Instant = 0

    # -- configuration ------------------------------------------------------------------------------------------

    def set_netmap_endpoints(self, endpoints: tuple[Endpoint, ...], now: Instant) -> None:
        """Replace the candidates that come from the netmap."""
        for candidate in self.candidates.values():
            candidate.from_netmap = False
        for endpoint in endpoints[:MAX_CANDIDATES]:
            self._candidate(endpoint).from_netmap = True
        self._prune(now)

    def reset(self, now: Instant) -> None:
        """Forget what was proven: the peer restarted, or our own network changed."""
        self.best = None
        self.trust_until = 0
        self.heard_back = False
        self.first_send = None
        self.pings.clear()
        for candidate in self.candidates.values():
            candidate.last_ping = None
            candidate.heard_at = None
            candidate.from_call_me_maybe = False
        self._sweep_at = 0
        self._prune(now)

    # -- sending ------------------------------------------------------------------------------------------------

    @property
    def derp_region(self) -> int:
        """The region to send through: where the peer was heard, else its home, else 0."""
        return self.heard_derp or self.home_derp

    def is_trusted(self, now: Instant) -> bool:
        """Tell whether the best address may be used alone."""
        return self.best is not None and now < self.trust_until

    def note_send(self, now: Instant) -> None:
        """Account for a packet that the tunnel wants sent; the heartbeat starts and paths are probed if needed."""
        self.last_send = now
        if self.heartbeat_at is None and self.disco_key:
            self.heartbeat_at = now + HEARTBEAT_INTERVAL
        if self.best is None or now >= self.trust_until:
            self.full_ping(now, call_me_maybe=True)

    def full_ping(self, now: Instant, *, call_me_maybe: bool) -> None:
        """Ping every candidate not pinged within the last 5 s; optionally ask the peer to do the same."""
        if not self.disco_key or now < self._sweep_at:
            return
        self._prune(now)
        sent = False
        sweep_at = now + PING_SPACING
        for endpoint, candidate in self.candidates.items():
            if candidate.last_ping is not None and now - candidate.last_ping < PING_SPACING:
                sweep_at = min(sweep_at, candidate.last_ping + PING_SPACING)
                continue
            self.start_ping(endpoint, now, PURPOSE_DISCOVERY)
            sent = True
        self._sweep_at = sweep_at
        if sent:
            self.last_full_ping = now
            if call_me_maybe and self.derp_region:
                self.wants_call_me_maybe = True

    def start_ping(self, to: Endpoint | None, now: Instant, purpose: int) -> bytes:
        """Queue a ping to *to* (``None``: over DERP) and return its transaction id."""
        txid = self._entropy.bytes(12)
        region = 0
        if to is None:
            region = self.derp_region
        else:
            candidate = self.candidates.get(to)
            if candidate is not None:
                candidate.last_ping = now
        self.pings[txid] = SentPing(to, region, now, purpose)
        self.pings_to_send.append((txid, to, region))
        return txid

    # -- receiving ----------------------------------------------------------------------------------------------

    def handle_ping(self, ping: Ping, source: Endpoint, now: Instant) -> bool:
        """Take a Ping that came by UDP; return whether to answer (a repeated transaction id is not)."""
        candidate = self._candidate(source)
        if candidate.last_rx_txid == ping.txid:
            return False
        candidate.last_rx_txid = ping.txid
        if candidate.heard_at is None and candidate.last_ping is None:
            self._sweep_at = 0  # a new address: the next send may ping it at once
        candidate.heard_at = now
        self._prune(now)
        return True

    def handle_pong(self, txid: bytes, now: Instant) -> tuple[SentPing, Duration] | None:
        """Take a Pong; return the ping that it answers and the round trip, or ``None`` if it answers nothing."""
        sent = self.pings.pop(txid, None)
        if sent is None:
            return None
        latency = max(0, now - sent.sent_at)
        if sent.to is not None:
            candidate = self.candidates.get(sent.to)
            if candidate is not None:
                candidate.latency_ns = latency
                quality = AddrQuality(sent.to, latency)
                if not self.is_trusted(now) or better_addr(quality, self.best):
                    self.best = quality
                if self.best is not None and self.best.endpoint == sent.to:
                    self.best.latency_ns = latency
                    self.trust_until = now + TRUST_DURATION
        return sent, latency

    def handle_call_me_maybe(self, endpoints: tuple[Endpoint, ...], now: Instant) -> None:
        """Take the peer's list of its addresses and ping them all at once, which opens our NAT towards it."""
        for candidate in self.candidates.values():
            candidate.from_call_me_maybe = False
        for endpoint in endpoints[:MAX_CANDIDATES]:
            # A link-local address means nothing without the interface it belongs to.
            if (len(endpoint.ip) == 16 and is_link_local(endpoint.ip)) or not endpoint.port:
                continue
            self._candidate(endpoint).from_call_me_maybe = True
        for candidate in self.candidates.values():
            candidate.last_ping = None
        self._sweep_at = 0
        self._prune(now)
        self.full_ping(now, call_me_maybe=False)

    def invalidate(self, endpoint: Endpoint) -> None:
        """Stop using *endpoint*: the host says that it cannot be reached."""
        if self.best is not None and self.best.endpoint == endpoint:
            self.best = None
            self.trust_until = 0

    # -- time ---------------------------------------------------------------------------------------------------

    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` is due."""
        deadline = self.heartbeat_at
        if self.pings:
            # Insertion order is time order, so the first ping is the oldest.
            deadline = earliest(deadline, next(iter(self.pings.values())).sent_at + PING_TIMEOUT)
        return deadline

    def handle_deadline(self, now: Instant) -> None:
        """Give up on old pings, then beat."""
        expired = [txid for txid, ping in self.pings.items() if now - ping.sent_at >= PING_TIMEOUT]
        for txid in expired:
            ping = self.pings.pop(txid)
            if ping.to is not None and not self.is_trusted(now):
                self.invalidate(ping.to)
        if self.heartbeat_at is None or now < self.heartbeat_at:
            return
        if self.last_send is None or now - self.last_send > SESSION_TIMEOUT:
            self.heartbeat_at = None
            return
        self.heartbeat_at = now + HEARTBEAT_INTERVAL
        best = self.best
        if best is not None:
            self.start_ping(best.endpoint, now, PURPOSE_HEARTBEAT)
        if not self.is_trusted(now) or (best is not None and self._reprobe_due(best, now)):
            self.full_ping(now, call_me_maybe=True)

    def _reprobe_due(self, best: AddrQuality, now: Instant) -> bool:
        if best.latency_ns <= GOOD_ENOUGH_LATENCY:
            return False
        return self.last_full_ping is None or now - self.last_full_ping >= REPROBE_INTERVAL

    # -- candidates ---------------------------------------------------------------------------------------------

    def _candidate(self, endpoint: Endpoint) -> Candidate:
        candidate = self.candidates.get(endpoint)
        if candidate is None:
            candidate = Candidate()
            self.candidates[endpoint] = candidate
            self._sweep_at = 0
        return candidate

    def _prune(self, now: Instant) -> None:
        """Drop candidates that nothing speaks for, and the stalest learned ones above the cap."""
        in_use = self.best.endpoint if self.best is not None and now < self.trust_until else None
        dead = [
            endpoint
            for endpoint, candidate in self.candidates.items()
            if endpoint != in_use and not candidate.is_live(now)
        ]
        for endpoint in dead:
            self._remove(endpoint)
        surplus = len(self.candidates) - MAX_CANDIDATES
        if surplus > 0:
            ranked = sorted(
                (not_learned, candidate.heard_at or 0, i, endpoint)
                for i, (endpoint, candidate) in enumerate(self.candidates.items())
                for not_learned in (candidate.from_netmap or candidate.from_call_me_maybe,)
            )
            for _, _, _, endpoint in ranked[:surplus]:
                self._remove(endpoint)

    def _remove(self, endpoint: Endpoint) -> None:
        # The best address outlives its candidate only as long as it is trusted; removal ends that at once.
        del self.candidates[endpoint]
        self.invalidate(endpoint)

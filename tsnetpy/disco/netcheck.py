"""Finding out about the network with STUN: latency to each DERP region, our public addresses, the kind of NAT.

Pure logic (data path reference, section 4): :class:`NetCheck` says which probes to send when, takes the answers, and
knows when it has seen enough. The owner resolves host names beforehand and sends from the data socket, so that the
NAT mapping that is learned is the one that data uses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration, Instant

STUN_TIMEOUT: Final = 3 * SECOND
FULL_INTERVAL: Final = 5 * 60 * SECOND
_FULL_SPACING: Final = 100 * MILLISECOND
_DEFAULT_LATENCY: Final = 200 * MILLISECOND
_ENOUGH_REGIONS: Final = 3
_MIN_GRACE: Final = 50 * MILLISECOND
"""The other family of a nearby region gets at least this long."""
_MAX_PROBES: Final = 512


@dataclass(frozen=True, slots=True)
class NetInfo:
    """Summary for control (reference, section 4); ``None`` means "not known"."""

    udp: bool | None = None
    """STUN answered at all."""
    ipv6: bool | None = None
    os_has_ipv6: bool | None = None
    mapping_varies_by_dest_ip: bool | None = None
    """The NAT gives different public ports towards different servers ("hard" NAT)."""
    preferred_derp: int = 0
    derp_latency: Mapping[str, float] = field(default_factory=dict)
    """``<region>-v4`` and ``<region>-v6`` to seconds."""


@dataclass(frozen=True, slots=True)
class StunTarget:
    """One STUN server address of a region, with the host name already resolved."""

    region: int
    server: Endpoint


@final
class Probe:
    """A STUN request to send at ``at`` (and what became of it)."""

    __slots__ = ("at", "region", "sent_at", "server", "txid")

    def __init__(self, region: int, server: Endpoint, at: Instant, txid: bytes) -> None:
        self.region = region
        self.server = server
        self.at = at
        self.txid = txid
        self.sent_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one check found."""

    latency_v4: Mapping[int, Duration] = field(default_factory=dict)
    """Region to the best round trip over IPv4."""
    latency_v6: Mapping[int, Duration] = field(default_factory=dict)
    global_v4: tuple[Endpoint, ...] = ()
    """Our IPv4 address as servers saw it: the first, and others that more than one server saw."""
    global_v6: tuple[Endpoint, ...] = ()
    mapping_varies: bool | None = None
    """``None`` if fewer than two IPv4 servers answered."""

    @property
    def udp(self) -> bool:
        """True if any server answered."""
        return bool(self.latency_v4 or self.latency_v6)

    def latency(self) -> dict[int, Duration]:
        """Return region to the better of both families."""
        best = dict(self.latency_v4)
        for region, value in self.latency_v6.items():
            best[region] = min(value, best.get(region, value))
        return best

    def net_info(self, preferred_derp: int, *, os_has_ipv6: bool) -> NetInfo:
        """Return the summary for control."""
        latency = {f"{region}-v4": value / SECOND for region, value in sorted(self.latency_v4.items())}
        latency.update((f"{region}-v6", value / SECOND) for region, value in sorted(self.latency_v6.items()))
        return NetInfo(
            udp=self.udp,
            ipv6=bool(self.latency_v6),
            os_has_ipv6=os_has_ipv6,
            mapping_varies_by_dest_ip=self.mapping_varies,
            preferred_derp=preferred_derp,
            derp_latency=latency,
        )


@final
class NetCheck:
    """One check at a time (an :class:`~tsnetpy.base.engine.Engine`; :attr:`report` is there once :attr:`is_done`)."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._waiting: list[Probe] = []
        self._sent: dict[bytes, Probe] = {}
        self._v4: dict[int, Duration] = {}
        self._v6: dict[int, Duration] = {}
        self._seen: dict[Endpoint, int] = {}
        self._first_v4: Endpoint | None = None
        self._varies: bool | None = None
        self._answers_v4 = 0
        self._answered: set[Endpoint] = set()
        self._ends: Instant = 0
        self._regions = 0
        self._full = True
        self._running = False
        self.last_full: Instant | None = None
        self.report = Report()

    @property
    def is_done(self) -> bool:
        """True while no check is under way."""
        return not self._running

    def start(self, targets: Sequence[StunTarget], home: int, now: Instant) -> None:
        """Begin a check; a full one every five minutes, else only the three fastest regions and the home.

        Args:
            targets: all STUN servers, in the order of the DERP map.
            home: the present home region, 0 for none.
            now: the time.
        """
        previous = self.report.latency()
        full = self.last_full is None or now - self.last_full >= FULL_INTERVAL or not previous
        self._full = full
        self._ends = now + STUN_TIMEOUT
        self._sent.clear()
        self._answered.clear()
        self._v4, self._v6, self._seen = {}, {}, {}
        self._first_v4, self._varies, self._answers_v4 = None, None, 0
        self._running = True
        by_region: dict[tuple[int, int], list[Endpoint]] = {}
        for target in targets:
            by_region.setdefault((target.region, len(target.server.ip)), []).append(target.server)
        fastest = sorted(previous, key=lambda region: (previous[region], region))[:3]
        plan: list[Probe] = []
        for (region, _), servers in by_region.items():
            tries, spacing = 3, _FULL_SPACING
            if not full:
                if region == home:
                    tries = 4
                elif region in fastest:
                    tries = 1 if fastest.index(region) == 2 else 2
                else:
                    continue
                spacing = previous.get(region, _DEFAULT_LATENCY) * 12 // 10
            for i in range(tries):
                extra = max(0, i - 1) * 50 * MILLISECOND if not full else 0
                server = servers[i % len(servers)]
                plan.append(Probe(region, server, now + i * spacing + extra, self._entropy.bytes(12)))
        self._regions = len({probe.region for probe in plan})
        plan.sort(key=lambda probe: probe.at)
        self._waiting = plan[:_MAX_PROBES]
        if full:
            self.last_full = now
        if not plan:
            self._finish()

    def take_probes(self, now: Instant) -> list[Probe]:
        """Return the probes to send now."""
        due: list[Probe] = []
        while self._waiting and self._waiting[0].at <= now:
            probe = self._waiting.pop(0)
            if self._adds_nothing(probe):
                continue
            probe.sent_at = now
            self._sent[probe.txid] = probe
            due.append(probe)
        return due

    def handle_response(self, txid: bytes, mapped: Endpoint, now: Instant) -> bool:
        """Take the answer to a probe; return False if it answers none (late, repeated or forged)."""
        probe = self._sent.pop(txid, None)
        if probe is None or probe.sent_at is None or not self._running:
            return False
        latency = max(0, now - probe.sent_at)
        v4 = len(probe.server.ip) == 4
        table = self._v4 if v4 else self._v6
        table[probe.region] = min(latency, table.get(probe.region, latency))
        if v4:
            self._answers_v4 += 1
            if self._first_v4 is None:
                self._first_v4 = mapped
            elif self._varies is not True:
                self._varies = mapped != self._first_v4
        self._seen[mapped] = self._seen.get(mapped, 0) + 1
        self._answered.add(probe.server)
        self._waiting = [other for other in self._waiting if not self._adds_nothing(other)]
        if not self._waiting and all(self._adds_nothing(other) for other in self._sent.values()):
            self._finish()
        elif len(self._v4.keys() | self._v6.keys()) >= min(_ENOUGH_REGIONS, self._regions):
            # The slowest so far bounds how long a better one could still take.
            slowest = max([*self._v4.values(), *self._v6.values()])
            self._ends = min(self._ends, now + max(slowest * (2 if self._full else 1), _MIN_GRACE))
        return True

    def server_failed(self, server: Endpoint) -> None:
        """Take note that the host refuses to send to *server* (no route, no such family): nothing will come of it."""
        self._answered.add(server)
        self._waiting = [probe for probe in self._waiting if probe.server != server]
        self._sent = {txid: probe for txid, probe in self._sent.items() if probe.server != server}
        if self._running and not self._waiting and not self._sent:
            self._finish()

    def next_deadline(self) -> Instant | None:
        """Return when to call :meth:`handle_deadline` (probes due, or the end)."""
        if not self._running:
            return None
        return min(self._waiting[0].at, self._ends) if self._waiting else self._ends

    def handle_deadline(self, now: Instant) -> None:
        """End the check if its time is over."""
        if self._running and now >= self._ends:
            self._finish()

    def next_event(self) -> None:
        """Return nothing: the result is :attr:`report`."""
        return None

    def _adds_nothing(self, probe: Probe) -> bool:
        """Tell whether *probe* is pointless: that server answered, or its region did and the kind of NAT is known."""
        if probe.server in self._answered:
            return True
        if len(probe.server.ip) == 16:
            return probe.region in self._v6
        return probe.region in self._v4 and self._answers_v4 >= 2

    def _finish(self) -> None:
        self._running = False
        self._waiting.clear()
        v4 = [endpoint for endpoint in self._seen if len(endpoint.ip) == 4]
        v6 = [endpoint for endpoint in self._seen if len(endpoint.ip) == 16]
        self.report = Report(
            latency_v4=dict(self._v4),
            latency_v6=dict(self._v6),
            global_v4=tuple(e for i, e in enumerate(v4) if i == 0 or self._seen[e] > 1),
            global_v6=tuple(e for i, e in enumerate(v6) if i == 0 or self._seen[e] > 1),
            mapping_varies=self._varies,
        )

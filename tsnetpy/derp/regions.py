"""The DERP map as the data path sees it, and the choice of the home region (data path reference, section 3.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

from tsnetpy.base.instant import MILLISECOND, SECOND, Duration, Instant

DEFAULT_DERP_PORT: Final = 443
DEFAULT_STUN_PORT: Final = 3478
STUN_OFF: Final = -1

HISTORY_AGE: Final = 5 * 60 * SECOND
KEEP_GAIN: Final = 10 * MILLISECOND
HEARD_RECENTLY: Final = 8 * SECOND


@dataclass(frozen=True, slots=True)
class DerpNode:
    """One server of a region."""

    name: str
    region_id: int
    host_name: str
    cert_name: str = ""
    """A name to verify instead of ``host_name``, or ``sha256-raw:<hex>`` for a pinned certificate."""
    ipv4: str = ""
    """Address in text form; ``""`` means resolve ``host_name``, ``"none"`` switches the family off."""
    ipv6: str = ""
    stun_port: int = DEFAULT_STUN_PORT
    """UDP port of STUN, or :data:`STUN_OFF`."""
    stun_only: bool = False
    derp_port: int = DEFAULT_DERP_PORT
    insecure_for_tests: bool = False
    """Skip the verification of the TLS certificate."""
    plain_http: bool = False
    """Speak DERP without TLS; only a coordination server of this project asks for it, on its own map."""


@dataclass(frozen=True, slots=True)
class DerpRegion:
    """Servers that are near each other and know of each other's clients."""

    region_id: int
    code: str = ""
    name: str = ""
    nodes: tuple[DerpNode, ...] = ()
    no_measure_no_home: bool = False

    def derp_nodes(self) -> list[DerpNode]:
        """Return the nodes that relay, in the order in which to try them."""
        return [node for node in self.nodes if not node.stun_only]


@dataclass(frozen=True, slots=True)
class DerpMap:
    """All regions by id."""

    regions: Mapping[int, DerpRegion] = field(default_factory=dict)
    region_scores: Mapping[int, float] = field(default_factory=dict)
    """Factors on measured latencies in the home choice (absent = 1)."""

    def node(self, region_id: int) -> DerpNode | None:
        """Return the first relaying node of a region, or ``None``."""
        region = self.regions.get(region_id)
        if region is None:
            return None
        nodes = region.derp_nodes()
        return nodes[0] if nodes else None


@final
class HomeChooser:
    """Chooses the home region from latency reports, with the hysteresis that keeps it from flapping."""

    __slots__ = ("_reports", "home")

    def __init__(self) -> None:
        self._reports: list[tuple[Instant, dict[int, Duration]]] = []
        self.home = 0
        """The present choice, 0 for none."""

    def choose(
        self,
        latency: Mapping[int, Duration],
        derp_map: DerpMap,
        now: Instant,
        *,
        heard_from_home_at: Instant | None = None,
    ) -> int:
        """Take a report of measured latencies and return the home region (also kept in :attr:`home`).

        Without any measurement the old home stays; 0 if there is none (see :func:`stable_choice`).

        Args:
            latency: region to its best round trip in this report.
            derp_map: present map; regions that left it are never chosen.
            now: the time of the report.
            heard_from_home_at: last frame read from the present home's DERP connection.
        """
        usable = {
            region: value
            for region, value in latency.items()
            if region in derp_map.regions and not derp_map.regions[region].no_measure_no_home
        }
        self._reports = [(at, report) for at, report in self._reports if now - at <= HISTORY_AGE][-64:]
        self._reports.append((now, usable))
        recent: dict[int, float] = {}
        for _, report in self._reports:
            for region, value in report.items():
                scored = value * derp_map.region_scores.get(region, 1.0)
                if region not in recent or scored < recent[region]:
                    recent[region] = scored
        old = self.home if self.home in derp_map.regions else 0
        heard = heard_from_home_at is not None and now - heard_from_home_at <= HEARD_RECENTLY
        if not usable:
            self.home = old
            return old
        # Ties go to the lower id so that two nodes with the same measurements meet in one region.
        best = min(usable, key=lambda region: (recent[region], region))
        if old and old != best and (old in usable or heard):
            old_latency = recent.get(old)
            if old_latency is None or old_latency - recent[best] < KEEP_GAIN or recent[best] > old_latency * 2 / 3:
                best = old
        self.home = best
        return best


def stable_choice(derp_map: DerpMap, seed: bytes) -> int:
    """Return a region that depends only on *seed* and the map: the home of a node that could measure nothing."""
    candidates: Sequence[int] = sorted(
        region for region, info in derp_map.regions.items() if info.derp_nodes() and not info.no_measure_no_home
    )
    if not candidates:
        return 0
    return candidates[int.from_bytes(seed[:4], "big") % len(candidates)]

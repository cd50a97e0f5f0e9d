"""The map of DERP relays."""

import msgspec

from ._struct import Message


class DERPNode(Message, frozen=True, kw_only=True):
    """One relay server."""

    name: str = ""
    region_id: int = 0
    host_name: str = ""
    cert_name: str = ""
    """``sha256-raw:<hex>`` pins the certificate."""
    ipv4: str = ""
    ipv6: str = ""
    """``none`` disables the family."""
    stun_port: int = 0
    """0 is 3478, -1 is off."""
    stun_only: bool = False
    derp_port: int = 0
    """0 is 443."""
    insecure_for_tests: bool = False
    stun_test_ip: str = ""
    can_port80: bool = msgspec.field(default=False, name="CanPort80")


class DERPRegion(Message, frozen=True, kw_only=True):
    """Relay servers at one place, which forward to each other."""

    region_id: int = 0
    region_code: str = ""
    region_name: str = ""
    latitude: float = 0.0
    longitude: float = 0.0
    avoid: bool = False
    """Older form of *no_measure_no_home*; Headscale sends it."""
    no_measure_no_home: bool = False
    nodes: tuple[DERPNode, ...] = ()


class DERPHomeParams(Message, frozen=True, kw_only=True):
    """Weights for choosing the home region. ``None`` keeps, ``{}`` resets."""

    region_score: dict[int, float] | None = None


class DERPMap(Message, frozen=True, kw_only=True):
    """All regions by number. In an update ``None`` regions keep the known ones."""

    home_params: DERPHomeParams | None = None
    regions: dict[int, DERPRegion | None] | None = None
    omit_default_regions: bool = msgspec.field(default=False, name="omitDefaultRegions")

    @property
    def known_regions(self) -> dict[int, DERPRegion]:
        """Regions by number, without null entries."""
        return {number: region for number, region in (self.regions or {}).items() if region is not None}

"""What is known about the network we are on: the part of a netcheck report that control receives."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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

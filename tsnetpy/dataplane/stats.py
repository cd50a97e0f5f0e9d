"""Counters of the whole data plane, as one snapshot."""

from dataclasses import dataclass

from tsnetpy.base.stats import Drops


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlaneStats:
    """Totals since the start."""

    rx_datagrams: int
    """Datagrams taken from the underlay, good or bad."""
    rx_bytes: int
    tx_datagrams: int
    tx_bytes: int
    rx_packets: int
    """Inner IP packets that came out of the tunnel."""
    rx_units: int
    """Super-segments that they were joined to."""
    tx_packets: int
    tx_units: int
    filter_accepted: int
    """Inner packets that the filter let in."""
    cookies_sent: int
    """TCP handshakes that were answered with a SYN cookie, for want of room for half-open connections."""
    cookies_accepted: int
    """Those of them that were completed."""
    drops: dict[str, int]
    """Everything dropped, by engine and reason: ``"wg.replay"``, ``"filter.rule"``, ``"nic.tcp_checksum"``, ..."""


def collect_drops(engines: list[tuple[str, Drops]]) -> dict[str, int]:
    """Return the drops of several engines in one table."""
    return {f"{name}.{reason}": n for name, drops in engines for reason, n in drops.snapshot().items() if n}

"""What a connection may be told at birth. Times in nanoseconds, sizes in bytes."""

from dataclasses import dataclass

from tsnetpy.base.instant import MILLISECOND, SECOND, Duration


@dataclass(slots=True)
class TcpConfig:
    """The knobs of one TCP connection; the defaults suit an interactive peer behind a 1280-byte tunnel."""

    mss: int = 1220
    """Largest segment we announce and send, before options: MTU minus 40 (IPv4) or 60 (IPv6)."""
    max_gso_bytes: int = 62_000
    """Upper bound of one super-segment's payload; also cut at :attr:`max_gso_packets`."""
    max_gso_packets: int = 48
    """Packets of one super-segment. 49 full WireGuard messages fit one ``UDP_SEGMENT`` call."""
    max_segments_per_call: int = 8
    """How many super-segments one ``segments_to_send`` returns at most; call again for more."""
    rcv_buf: int = 256 * 1024
    """Receive buffer at the start."""
    rcv_buf_max: int = 8 * 1024 * 1024
    """Receive autotuning stops here; equal to :attr:`rcv_buf` turns it off."""
    snd_buf: int = 256 * 1024
    """Send buffer at the start."""
    snd_buf_max: int = 6 * 1024 * 1024
    """Send autotuning stops here; equal to :attr:`snd_buf` turns it off."""
    nodelay: bool = True
    """False turns Nagle's algorithm on (RFC 9293 §3.7.4, in Minshall's form)."""
    window_scaling: bool = True
    timestamps: bool = True
    sack: bool = True
    initial_window_packets: int = 10
    """RFC 6928."""
    congestion: str = "cubic"
    """A name in ``tcp.congestion.registry``: "cubic" (RFC 9438) or "reno" (RFC 5681)."""
    loss_tolerance: bool = True
    """Rare losses in round trips without a queue are repaired without slowing down (``docs/congestion.md``)."""
    pacing: bool = True
    """Spread a window over the round trip on paths of more than 3 ms, in steps of two milliseconds' worth."""
    delayed_ack: Duration = 40 * MILLISECOND
    quick_acks: int = 16
    """That many full packets are acknowledged without delay: the peer is in slow start. Small ones are requests, whose
    answer will carry the ACK; only after one that waited in vain they are acknowledged at once for as many packets."""
    rto_initial: Duration = SECOND
    rto_min: Duration = 200 * MILLISECOND
    """Least variance term of the timeout: peers delay their acknowledgments by up to 200 ms."""
    rto_max: Duration = 120 * SECOND
    syn_retries: int = 6
    data_retries: int = 15
    """R2 of RFC 9293 §3.8.3: retransmissions of one segment before "timeout"."""
    persist_max: Duration = 60 * SECOND
    user_timeout: Duration = 0
    """Give up when nothing was acknowledged for that long (RFC 5482, local part); 0 for never."""
    keepalive_idle: Duration = 0
    """Silence before the first probe; 0 for no keep-alive (RFC 9293 §3.8.4 wants it off by default)."""
    keepalive_interval: Duration = 15 * SECOND
    keepalive_probes: int = 4
    time_wait: Duration = 10 * SECOND
    """2 MSL. Short: the tunnel drops old duplicates by its replay window, and a newer SYN may take the pair over."""
    orphan_timeout: Duration = 60 * SECOND
    """After close(): how long without progress until the connection is reset (FIN-WAIT-2, zero window)."""
    max_reassembly_ranges: int = 128
    """Disjoint out-of-order ranges kept per connection (CVE-2018-5390)."""

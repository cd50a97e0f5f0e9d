"""Counters of one connection, and the snapshot that ``Connection.info`` returns."""

from dataclasses import dataclass
from typing import final

from tsnetpy.base.instant import Duration


@final
class TcpStats:
    """What happened so far. Plain ints: they are touched for every segment."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "bytes_retransmitted",
        "challenge_acks",
        "dropped_bad_ack",
        "dropped_malformed",
        "dropped_no_ack",
        "dropped_out_of_window",
        "dropped_paws",
        "dropped_reassembly",
        "dsacks_in",
        "fast_retransmits",
        "packets_in",
        "retransmits",
        "rto_fires",
        "segments_out",
        "tail_probes",
        "undos",
        "zero_window_probes",
    )

    def __init__(self) -> None:
        self.packets_in = 0
        self.segments_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.bytes_retransmitted = 0
        self.retransmits = 0
        self.fast_retransmits = 0
        self.rto_fires = 0
        self.tail_probes = 0
        self.zero_window_probes = 0
        self.challenge_acks = 0
        self.dropped_bad_ack = 0
        self.dropped_malformed = 0
        self.dropped_no_ack = 0
        self.dropped_out_of_window = 0
        self.dropped_paws = 0
        self.dropped_reassembly = 0
        self.dsacks_in = 0
        self.undos = 0


@dataclass(slots=True, frozen=True, kw_only=True)
class TcpInfo:
    """A look inside, in the spirit of ``TCP_INFO``. Sizes in bytes, times in nanoseconds."""

    state: str
    mss: int
    """Payload bytes per packet, options subtracted."""
    srtt: Duration
    """0 before the first sample."""
    rttvar: Duration
    min_rtt: Duration
    rto: Duration
    cwnd: int
    ssthresh: int
    bytes_in_flight: int
    bytes_unsent: int
    snd_wnd: int
    rcv_wnd: int
    snd_buf: int
    rcv_buf: int
    recovery: str
    """"open", "disorder" (something was reported out of order, and may be late or lost), "recovery" or "loss"."""
    sacked_bytes: int
    """In flight, and reported by the peer."""
    lost_bytes: int
    """In flight and deemed lost, whether sent again since or not."""
    retransmitted_in_flight: int
    """Bytes sent again whose repetition is neither reported nor deemed lost."""
    dup_acks: int
    """In a row."""
    reordering: int
    """Packets by which the path was seen to reorder; 3 at least."""
    reorder_seen: int
    """ACKs that showed reordering."""
    rcv_mss: int
    """The largest packet payload that the peer sent, in bytes; 0 before the first."""
    probes: int
    """Zero-window probes without an answer; looks in vain whether a blocked way out is free again."""
    backoff: int
    """How often the retransmission timeout has doubled."""
    retransmits: int
    rto_fires: int
    fast_retransmits: int
    tail_probes: int
    undos: int
    """Recoveries that turned out to be needless and were taken back."""
    dsacks: int
    """Duplicates that the peer reported."""
    bytes_in: int
    bytes_out: int
    bytes_retransmitted: int
    sack: bool
    timestamps: bool
    window_scaling: bool

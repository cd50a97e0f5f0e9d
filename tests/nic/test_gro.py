"""Which segments become one, and which must not."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nic.kit import A4, A6, B4, B6, PEER, ip_packet, tcp_packet, timestamps, udp_packet
from tsnetpy.base.packet import Buffer
from tsnetpy.base.stats import Drops
from tsnetpy.nic.gro import MAX_RUN_BYTES, coalesce
from tsnetpy.nic.rx import RxPacket
from tsnetpy.wire import ipv4, tcp


def run(*packets: Buffer, verify: bool = True, drops: Drops | None = None) -> list[RxPacket]:
    return coalesce([(PEER, packet) for packet in packets], drops if drops is not None else Drops(), verify)


def test_in_order_segments_become_one() -> None:
    (unit,) = run(
        tcp_packet(100, b"abc", ack=5, wnd=10),
        tcp_packet(103, b"de", ack=9, wnd=20, flags=tcp.ACK | tcp.PSH),
        tcp_packet(105, b"fghi", ack=9, wnd=30),
    )
    assert unit.payload == b"abcdefghi"
    assert (unit.seq, unit.ack, unit.wnd, unit.packets) == (100, 9, 30, 3)
    assert unit.flags == tcp.ACK | tcp.PSH


@pytest.mark.attack(1, 54)
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("odd", [b"", b"E", bytes(20), bytes(40), b"`" * 39])
def test_short_packets_among_segments_are_dropped_alone(odd: bytes, verify: bool) -> None:
    drops = Drops()
    stream = [tcp_packet(100, b"ab"), tcp_packet(102, b"cd"), odd, tcp_packet(104, b"ef"), odd, odd]
    units = run(*stream, verify=verify, drops=drops)
    assert b"".join(unit.payload for unit in units) == b"abcdef"
    assert drops.total == 3


def test_sequence_numbers_wrap() -> None:
    (unit,) = run(tcp_packet(0xFFFFFFFE, b"abcd"), tcp_packet(2, b"ef"))
    assert unit.payload == b"abcdef"


@pytest.mark.parametrize(
    "second",
    [
        lambda: tcp_packet(104, b"x"),  # a hole
        lambda: tcp_packet(100, b"abc"),  # a retransmission
        lambda: tcp_packet(103, b"x", sport=1001),
        lambda: tcp_packet(103, b"x", dport=2001),
        lambda: tcp_packet(103, b"x", src=bytes((100, 64, 0, 9))),
        lambda: tcp_packet(103, b"x", ttl=63),
        lambda: tcp_packet(103, b"x", tos=3),  # congestion experienced
        lambda: tcp_packet(103, b"x", ack=0),  # older than the first's
        lambda: tcp_packet(103, b"x", options=timestamps(1, 1)),
        lambda: tcp_packet(103, b""),  # a pure ACK counts by itself
        lambda: tcp_packet(103, b"x", flags=tcp.ACK | tcp.URG),
        lambda: tcp_packet(103, b"x", flags=tcp.ACK | tcp.RST),
        lambda: tcp_packet(103, b"x", flags=tcp.ACK | tcp.SYN),
        lambda: tcp_packet(103, b"x", flags=tcp.ACK | tcp.ECE),
        lambda: tcp_packet(103, b"x", flags=tcp.ACK | tcp.CWR),
        lambda: tcp_packet(103, b"x", flags=tcp.PSH),
    ],
)
def test_not_merged(second: Callable[[], bytes]) -> None:
    first = tcp_packet(100, b"abc")
    units = run(first, second())
    assert len(units) == 2
    assert units[0].payload == b"abc"
    assert [unit.packets for unit in units] == [1, 1]


@pytest.mark.parametrize("flags", [tcp.SYN, tcp.ACK | tcp.SYN, tcp.ACK | tcp.RST, tcp.ACK | tcp.FIN, tcp.ACK | tcp.URG])
def test_nothing_is_appended_to_a_special_segment(flags: int) -> None:
    assert len(run(tcp_packet(100, b"abc", flags=flags), tcp_packet(103, b"x"), tcp_packet(104, b"y"))) == 2


def test_fin_ends_a_run_and_belongs_to_it() -> None:
    first, second = run(
        tcp_packet(100, b"abc"),
        tcp_packet(103, b"de", flags=tcp.ACK | tcp.FIN),
        tcp_packet(105, b"late"),
    )
    assert first.payload == b"abcde"
    assert first.flags == tcp.ACK | tcp.FIN
    assert second.payload == b"late"


def test_a_pure_ack_keeps_its_place_in_the_flow() -> None:
    # Were the data behind it merged in front of it, the ACK would look like a duplicate of the merged one.
    units = run(tcp_packet(100, b"abc", ack=1), tcp_packet(103, ack=50), tcp_packet(103, b"de", ack=50))
    assert [(unit.payload, unit.ack) for unit in units] == [(b"abc", 1), (b"", 50), (b"de", 50)]


def test_flows_interleave() -> None:
    packets: list[bytes] = []
    for index in range(4):
        packets.extend(tcp_packet(100 + index, b"%d" % index, sport=sport) for sport in (1000, 1001))
        packets.append(tcp_packet(100 + index, b"%d" % index, src=A6, dst=B6))
    units = run(*packets)
    assert [unit.payload for unit in units] == [b"0123"] * 3
    assert [unit.src_port for unit in units] == [1000, 1001, 1000]


def test_peers_are_kept_apart() -> None:
    other = b"\x02" * 32
    units = coalesce([(PEER, tcp_packet(100, b"abc")), (other, tcp_packet(103, b"de"))], Drops())
    assert [unit.peer for unit in units] == [PEER, other]


def test_timestamps_may_advance() -> None:
    (unit,) = run(
        tcp_packet(100, b"abc", options=timestamps(0xFFFFFFFF, 70)),
        tcp_packet(103, b"de", options=timestamps(0, 71)),
        tcp_packet(105, b"f", options=timestamps(3, 72)),
    )
    # The first TSval for TS.Recent (RFC 7323 §4.3), the last TSecr for the round-trip time.
    assert unit.options == timestamps(0xFFFFFFFF, 72)


def test_timestamps_may_not_go_back() -> None:
    units = run(tcp_packet(100, b"abc", options=timestamps(5, 1)), tcp_packet(103, b"d", options=timestamps(4, 1)))
    assert [unit.options for unit in units] == [timestamps(5, 1), timestamps(4, 1)]


def test_size_cap() -> None:
    chunk = bytes(1200)
    units = run(*[tcp_packet(100 + 1200 * i, chunk) for i in range(60)])
    assert [unit.packets for unit in units] == [MAX_RUN_BYTES // 1200, 60 - MAX_RUN_BYTES // 1200]
    assert b"".join(unit.payload for unit in units) == bytes(72000)


@pytest.mark.attack(3)
def test_tunnel_padding_is_cut_off() -> None:
    # WireGuard pads plaintexts to 16 bytes.
    (unit,) = run(tcp_packet(100, b"abc") + bytes(5), tcp_packet(103, b"de") + b"\xff" * 6)
    assert unit.payload == b"abcde"


def test_views_are_not_kept() -> None:
    buffer = bytearray(tcp_packet(100, b"abc") + tcp_packet(103, b"defg"))
    view = memoryview(buffer)
    (unit,) = run(view[:43], view[43:])
    buffer[:] = bytes(len(buffer))
    assert unit.payload == b"abcdefg"
    assert type(unit.payload) is bytes


@pytest.mark.checklist(53)
@pytest.mark.attack(12)
def test_bad_checksum_is_dropped_alone() -> None:
    good, bad = tcp_packet(100, b"abc"), bytearray(tcp_packet(103, b"de"))
    bad[-1] ^= 1
    drops = Drops()
    (unit,) = run(good, bytes(bad), drops=drops)
    assert unit.payload == b"abc"
    assert drops.snapshot() == {"tcp_checksum": 1}
    header = bytearray(good)
    header[8] ^= 1
    assert run(bytes(header), drops=drops) == []
    assert drops.counts["ip_checksum"] == 1


def test_verification_can_be_off_for_all_or_for_some() -> None:
    bad = bytearray(tcp_packet(100, b"abc"))
    bad[-1] ^= 1
    assert len(run(bytes(bad), verify=False)) == 1
    assert len(coalesce([(PEER, bytes(bad))], Drops(), trusted=frozenset({A4}))) == 1
    assert coalesce([(PEER, bytes(bad))], Drops(), trusted=frozenset({B4})) == []
    udp = bytearray(udp_packet(b"abc"))
    udp[-1] ^= 1
    assert len(coalesce([(PEER, bytes(udp))], Drops(), trusted=frozenset({A4}))) == 1
    assert coalesce([(PEER, bytes(udp))], Drops()) == []


def test_fragments_and_options_pass_through_unmerged() -> None:
    segment = tcp_packet(103, b"x" * 12)[20:]
    fragment = ip_packet(A4, B4, 6, segment, frag=ipv4.FLAG_MF)
    header = ipv4.Ipv4Header(A4, B4, 6, 24 + len(segment), options=b"\x01\x01\x01\x01").encode()
    units = run(tcp_packet(100, b"abc"), fragment, header + segment, tcp_packet(103, b"de"))
    assert [(unit.fragment, unit.payload) for unit in units] == [
        (False, b"abc"),
        (True, b""),
        (False, b"x" * 12),
        (False, b"de"),
    ]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.booleans()), min_size=1, max_size=40))
def test_merging_never_changes_a_stream(steps: list[tuple[int, int, bool]]) -> None:
    """Each flow's bytes, in order of arrival, are the same with and without merging, whatever arrives."""
    next_seq = [0xFFFFFFF0, 5, 1000, 0]
    packets = []
    plain: dict[int, list[tuple[int, bytes]]] = {}
    for index, (flow, size, skip) in enumerate(steps):
        seq = next_seq[flow] + (3 if skip else 0)
        data = bytes((index,)) * size
        packets.append(tcp_packet(seq, data, sport=1000 + flow))
        next_seq[flow] = seq + size
        plain.setdefault(flow, []).append((seq & 0xFFFFFFFF, data))
    units = run(*packets)
    assert sum(unit.packets for unit in units) == len(packets)
    for flow, expected in plain.items():
        got = [unit for unit in units if unit.src_port == 1000 + flow]
        assert b"".join(unit.payload for unit in got) == b"".join(data for _, data in expected)
        starts = {seq for seq, _ in expected}
        assert all(unit.seq in starts for unit in got)


@pytest.mark.attack(54)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([20, 20, 20, 20, 7, 0]),  # payload bytes
            st.sampled_from([0, 0, 0, 0, 0, 3, -5]),  # how far beside the sequence number that is due
            st.sampled_from(["", "", "", "", "ack", "wnd", "psh", "fin", "tos", "ttl", "peer", "time", "echo", "pad"]),
            st.sampled_from([1000, 1000, 1000, 1001]),  # port: of two flows with the same sequence numbers
        ),
        max_size=25,
    ),
    st.booleans(),
    st.sampled_from([1, 0xFFFFFFF0]),
)
def test_what_looks_like_its_predecessor_is_joined_as_anything_else(
    steps: list[tuple[int, int, str, int]], v6: bool, start: int
) -> None:
    # With checksums verified each packet takes the long way; without them most of these take the short one.
    due = {1000: start, 1001: start}
    ack, clock, echo = 5, 9, 4
    packets: list[tuple[bytes, Buffer]] = []
    src, dst = (A6, B6) if v6 else (A4, B4)
    for size, beside, change, port in steps:
        ack += change == "ack"
        clock += (1 if size == 20 else -1) if change == "time" else 0
        echo += change == "echo"
        packet = tcp_packet(
            due[port] + beside,
            bytes(i + len(packets) & 0xFF for i in range(size)),
            src=src,
            dst=dst,
            sport=port,
            ack=ack,
            flags=tcp.ACK | {"psh": tcp.PSH, "fin": tcp.FIN}.get(change, 0),
            wnd=101 if change == "wnd" else 100,
            options=timestamps(clock, echo),
            ttl=63 if change == "ttl" else 64,
            tos=3 if change == "tos" else 0,
        )
        if change == "pad":
            packet += bytes(3)
        packets.append((PEER[::-1] + b"2" if change == "peer" else PEER, packet))
        due[port] += size + beside

    def summary(units: list[RxPacket]) -> list[tuple[object, ...]]:
        return [
            (u.peer, u.addrs, u.ports, u.seq, u.ack, u.flags, u.wnd, u.options, u.payload, u.packets, u.tos, u.ttl)
            for u in units
        ]

    expected = summary(coalesce(packets, Drops()))
    assert summary(coalesce(packets, Drops(), verify=False)) == expected
    assert summary(coalesce([(p, memoryview(d)) for p, d in packets], Drops(), trusted=frozenset({src}))) == expected


def test_two_like_flows_in_turn_are_not_mixed_up() -> None:
    # The one that is checked is never the predecessor that the other was compared with.
    source = frozenset({A4})
    packets: list[tuple[bytes, Buffer]] = [
        (PEER, tcp_packet(100, b"aaa")),
        (PEER, tcp_packet(100, b"bbb", src=bytes((100, 64, 0, 9)))),  # not trusted
        (PEER, tcp_packet(103, b"AAA")),
        (PEER, tcp_packet(103, b"BBB", src=bytes((100, 64, 0, 9)))),
    ]
    units = coalesce(packets, Drops(), trusted=source)
    assert [unit.payload for unit in units] == [b"aaaAAA", b"bbbBBB"]


def test_the_short_way_wraps_is_capped_and_tells_peers_apart() -> None:
    other = b"\x02" * 32
    packets: list[tuple[bytes, Buffer]] = [(PEER, tcp_packet(seq, b"abcd")) for seq in (0xFFFFFFF8, 0xFFFFFFFC, 0, 4)]
    units = coalesce([*packets, (other, tcp_packet(8, b"abcd"))], Drops(), verify=False)
    assert [(unit.peer, unit.packets) for unit in units] == [(PEER, 4), (other, 1)]

    packets = [(PEER, tcp_packet(at * 1000, bytes(1000))) for at in range(70)]
    assert [len(unit.payload) for unit in coalesce(packets, Drops(), verify=False)] == [65000, 5000]


@given(st.lists(st.binary(max_size=120), max_size=8), st.booleans())
def test_any_bytes_are_taken(blobs: list[bytes], verify: bool) -> None:
    drops = Drops()
    units = run(*blobs, verify=verify, drops=drops)
    assert sum(unit.packets for unit in units) + drops.total == len(blobs)


@pytest.mark.attack(54)
@given(st.integers(0, 255), st.integers(0, 255), st.booleans())
def test_damaged_headers_are_taken(at: int, value: int, v6: bool) -> None:
    src, dst = (A6, B6) if v6 else (A4, B4)
    packet = bytearray(tcp_packet(100, b"abc" * 20, src=src, dst=dst, options=timestamps(1, 2)))
    packet[at % len(packet)] = value
    drops = Drops()
    units = run(bytes(packet), verify=False, drops=drops)
    assert len(units) + drops.total == 1

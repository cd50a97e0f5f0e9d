"""The packet checker finds what it says it finds."""

from tsnetpy.base.addr import parse_ip
from tsnetpy.base.packet import PROTO_TCP, TxPacket
from tsnetpy.nic import tso
from tsnetpy.testing.checkers import TcpChecker
from tsnetpy.wire.tcp import encode_header

A, B = parse_ip("100.64.0.1"), parse_ip("100.64.0.2")
S, P, F, ACK = 2, 8, 1, 16
MSS = bytes.fromhex("020404d8")


def packet(
    sender: int, seq: int, ack: int, flags: int, wnd: int = 1000, payload: bytes = b"", options: bytes = b""
) -> bytes:
    """Return one packet of side 0 (ISN 100) or 1 (ISN 900)."""
    src, dst, ports = (A, B, (1, 2)) if sender == 0 else (B, A, (2, 1))
    header = encode_header(*ports, seq, ack, flags, wnd, options)
    return tso.split(TxPacket(src, dst, PROTO_TCP, header, [payload], len(payload)), 1 << 16)[0]


def watched(*packets: bytes) -> list[str]:
    """Return the complaints about *packets* behind a handshake."""
    checker = TcpChecker()
    for data in (
        packet(0, 100, 0, S, options=MSS),
        packet(1, 900, 101, S | ACK, options=MSS),
        packet(0, 101, 901, ACK),
        *packets,
    ):
        checker.see(data)
    return checker.complaints


def test_an_honest_exchange_passes() -> None:
    assert not watched(
        packet(0, 101, 901, ACK | P, payload=b"hello"),
        packet(0, 101, 901, ACK | P, payload=b"hello"),
        packet(1, 901, 106, ACK, 995),
        packet(0, 106, 901, ACK | F),
        packet(1, 901, 107, ACK, 994),
    )


def test_each_rule_has_its_complaint() -> None:
    hello = packet(0, 101, 901, ACK | P, payload=b"hello")
    got = packet(1, 901, 106, ACK, 995)
    cases = {
        "other bytes": [hello, packet(0, 101, 901, ACK, payload=b"jello")],
        "moves back": [hello, got, packet(1, 901, 101, ACK, 2000)],
        "never sent": [packet(1, 901, 500, ACK)],
        "shrinks": [hello, packet(1, 901, 106, ACK, 10)],
        "beyond the promised window": [packet(0, 101, 901, ACK, payload=bytes(1001))],
        "behind a FIN": [packet(0, 101, 901, ACK | F), packet(0, 101, 901, ACK, payload=b"x")],
        "SACK block": [
            packet(1, 901, 101, ACK, options=bytes.fromhex("0101050a") + bytes((0, 0, 0, 120, 0, 0, 0, 110)))
        ],
        "malformed": [hello[:-1] + b"X"],
    }
    for text, packets in cases.items():
        complaints = watched(*packets)
        assert any(text in complaint for complaint in complaints), (text, complaints)


def test_a_packet_longer_than_the_mtu_is_noticed() -> None:
    assert any("MTU" in text for text in watched(packet(0, 101, 901, ACK, payload=bytes(1300))))

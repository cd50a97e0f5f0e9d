"""Captures of official clients: every packet decodes, on the wire and inside the tunnel."""

import json
from collections import Counter

import pytest

from tests.recordings.captures import CAPTURES, DATA, ETHERNET, Packet, link_type, packets
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.packet import PROTO_ICMP, PROTO_TCP, PROTO_UDP
from tsnetpy.disco import classify, messages, stun
from tsnetpy.disco.box import DiscoBox, looks_like_disco
from tsnetpy.dns.codec import decode_query
from tsnetpy.wg.messages import Initiation, Response
from tsnetpy.wire import checksum, icmpv4, tcp, tsmp, udp
from tsnetpy.wire.ipv4 import Ipv4Header
from tsnetpy.wire.pretty import packet as pretty

WIRE = [name for name in CAPTURES if link_type(name) == ETHERNET]
TUNNEL = [name for name in CAPTURES if link_type(name) != ETHERNET]
PROTO_TSMP = 99
RECORDED = json.loads((DATA / "datapath" / "disco-recorded.json").read_text())
KEYS = [bytes.fromhex(RECORDED[f"{who}_disco_private"]) for who in ("ours", "tailscaled")]

# What is inside. "sealed" is disco for a node whose key was not kept.
EXPECTED = {
    "bulk-gso-cut": {"data": 400},
    "disco-two-nodes": {"Ping": 10, "Pong": 10, "data": 8},
    "first-contact-udp": {"sealed": 6, "Pong": 3, "Ping": 2, "Response": 1, "data": 43},
    "heartbeat": {"sealed": 81, "Ping": 39, "Pong": 41, "data": 9, "STUN request": 12, "STUN answer": 12},
    "join-stun-derp-wire": {
        "STUN request": 6, "STUN answer": 6, "TCP": 19, "Ping": 2, "Pong": 2, "sealed": 5, "data": 13,
    },
    "udp-blocked": {
        "STUN request": 17, "STUN answer": 17, "sealed": 53, "Pong": 14, "Ping": 43, "Initiation": 1, "Response": 1,
        "data": 1,
    },
}  # fmt: skip


def open_disco(datagram: bytes) -> str:
    """Open a disco message with the keys that were kept; ``sealed`` if neither of the two may."""
    for private in KEYS:
        box = DiscoBox(SystemEntropy(), private)
        try:
            message = box.open(datagram)
        except DecodeError:
            continue
        assert messages.decode(messages.encode(message)) == message
        if isinstance(message, messages.Ping):
            assert len(message.node_key) == 32
        return type(message).__name__
    return "sealed"


def kind_of(datagram: bytes) -> str:
    """Run one UDP payload through what the node's socket would run it through."""
    kind = classify.classify(datagram)
    if kind == classify.STUN:
        try:
            stun.decode_request(datagram)
        except DecodeError:
            _, seen = stun.decode_response(datagram)
            assert seen.port in (41641, 41642) or seen.port > 1024
            return "STUN answer"
        return "STUN request"
    if kind == classify.DISCO:
        assert looks_like_disco(datagram)
        return open_disco(datagram)
    assert kind == classify.WIREGUARD
    if datagram[0] == 1:
        assert len(datagram) == 148
        assert Initiation.decode(datagram).encode() == datagram[:116]
        return "Initiation"
    if datagram[0] == 2:
        assert len(datagram) == 92
        assert Response.decode(datagram).encode() == datagram[:60]
        return "Response"
    assert datagram[0] == 4
    return "data"


@pytest.mark.parametrize("name", WIRE)
def test_every_datagram_on_the_wire_is_understood(name: str) -> None:
    found: Counter[str] = Counter()
    for packet in packets(name):
        if packet.proto == PROTO_TCP:
            segment = tcp.decode(packet.body)
            assert 443 in (segment.src_port, segment.dst_port), "DERP in TLS"
            found["TCP"] += 1
            continue
        assert packet.proto == PROTO_UDP
        header = udp.decode(packet.body)
        assert header.length == len(packet.body)
        found[kind_of(packet.body[8:])] += 1
    assert dict(found) == EXPECTED[name]


def test_bulk_is_recognised_whole() -> None:
    """Datagrams as the kernel hands them over: many in one buffer, of the size that the first one tells."""
    for packet in packets("bulk-gso-cut"):
        assert packet.cut
        size = len(packet.body) - 8
        assert size == 0 or classify.is_bulk(memoryview(packet.body)[8:], size)


@pytest.mark.parametrize("name", WIRE)
def test_transport_data_has_a_padded_length(name: str) -> None:
    for packet in packets(name):
        datagram = packet.body[8:]
        if packet.cut or packet.proto != PROTO_UDP or classify.classify(datagram) != classify.WIREGUARD:
            continue
        if datagram[0] == 4:
            assert len(datagram) >= 32
            assert datagram[1:4] == bytes(3)
            inner = len(datagram) - 32
            assert inner % 16 == 0 or inner == 1280, "padded to 16, but not beyond the MTU"


def checksum_state(packet: Packet) -> str:
    """``good``, or ``left`` for one that the sending kernel left to a network card (the pseudo-header's sum)."""
    if checksum.transport_ok(packet.src, packet.dst, packet.proto, packet.body):
        return "good"
    at = 16 if packet.proto == PROTO_TCP else 6
    pseudo = checksum.pseudo_header(packet.src, packet.dst, packet.proto, len(packet.body))
    assert int.from_bytes(packet.body[at : at + 2], "big") == checksum.fold(pseudo)
    return "left"


@pytest.mark.parametrize("name", TUNNEL)
def test_every_packet_in_the_tunnel_decodes_and_encodes_again(name: str) -> None:
    states: Counter[str] = Counter()
    for packet in packets(name):
        again: bytes
        if packet.proto == PROTO_TCP:
            header = tcp.decode(packet.body)
            assert tcp.options_ok(header.options)
            payload = packet.body[20 + len(header.options) :]
            again = header.encode(packet.src, packet.dst, payload) + payload
        elif packet.proto == PROTO_UDP:
            datagram = udp.decode(packet.body)
            again = udp.encode_datagram(packet.src, packet.dst, datagram.src_port, datagram.dst_port, packet.body[8:])
        elif packet.proto == PROTO_ICMP:
            message = icmpv4.decode(packet.body)
            assert checksum.checksum(packet.body) == 0
            again = message.encode()
        else:
            assert packet.proto == PROTO_TSMP
            rejected = tsmp.decode(packet.body)
            assert isinstance(rejected, tsmp.Ping | tsmp.Pong | tsmp.Rejected)
            states["TSMP"] += 1
            continue
        if packet.proto == PROTO_ICMP:
            assert again == packet.body
            continue
        state = checksum_state(packet)
        states[state] += 1
        at = 16 if packet.proto == PROTO_TCP else 6
        assert again[:at] + again[at + 2 :] == packet.body[:at] + packet.body[at + 2 :]
        assert again[at : at + 2] == packet.body[at : at + 2] or state == "left"
        # The one with our checksum in its place holds, whatever the recorded one was.
        assert checksum.transport_ok(packet.src, packet.dst, packet.proto, again)
    assert states["good"]


@pytest.mark.parametrize("name", TUNNEL)
def test_the_ip_headers_hold_and_can_be_read(name: str) -> None:
    for packet in packets(name):
        if isinstance(packet.header, Ipv4Header):
            assert checksum.checksum(packet.data[: packet.header.header_len]) == 0
            assert packet.header.encode() == packet.data[: packet.header.header_len]
        else:
            assert packet.header.encode() == packet.data[:40]
        assert pretty(packet.data)


def test_magic_dns_queries_are_read() -> None:
    names = {
        question.name
        for packet in packets("magicdns-tun")
        if udp.decode(packet.body).dst_port == 53 and (question := decode_query(packet.body[8:]).question) is not None
    }
    assert any(name.startswith("peera") for name in names)

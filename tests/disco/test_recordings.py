"""Every recorded and computed disco and STUN message decodes, and comes out byte for byte when made again."""

import json
import pathlib

import pytest

from tsnetpy.base.addr import Endpoint, parse_ip
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import DecodeError
from tsnetpy.disco import classify, messages, stun
from tsnetpy.disco.box import DiscoBox, sender_key

DATA = pathlib.Path(__file__).parents[1] / "data" / "datapath"
VECTORS = json.loads((DATA / "disco.json").read_text())
RECORDED = json.loads((DATA / "disco-recorded.json").read_text())
STUN = json.loads((DATA / "stun.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda v: v["name"])
def test_vector_opens_and_seals_byte_for_byte(vector: dict[str, str]) -> None:
    sender = DiscoBox(SystemEntropy(), bytes.fromhex(VECTORS["sender_private"]))
    receiver = DiscoBox(SystemEntropy(), bytes.fromhex(VECTORS["receiver_private"]))
    wire, plain = bytes.fromhex(vector["msg"]), bytes.fromhex(vector["plain"])
    assert classify.classify(wire) == classify.DISCO
    assert sender_key(wire) == sender.public
    message = receiver.open(memoryview(wire))
    assert messages.encode(message) == plain
    assert sender.seal_plain(receiver.public, plain, bytes.fromhex(vector["nonce"])) == wire


def test_vector_fields() -> None:
    by_name = {v["name"]: messages.decode(bytes.fromhex(v["plain"])) for v in VECTORS["messages"]}
    endpoints = tuple(Endpoint(parse_ip(ip), port) for ip, port in VECTORS["endpoints"])
    ping = by_name["Ping"]
    assert isinstance(ping, messages.Ping)
    assert ping.node_key.hex() == VECTORS["sender_node_public"]
    assert by_name["Pong v4"] == messages.Pong(ping.txid, endpoints[0])
    assert by_name["Pong v6"] == messages.Pong(ping.txid, endpoints[1])
    assert by_name["Pong over DERP"] == messages.Pong(ping.txid, messages.derp_endpoint(900))
    assert by_name["CallMeMaybe"] == messages.CallMeMaybe(endpoints)


@pytest.mark.parametrize("index", range(len(RECORDED["messages"])))
def test_recorded_message_opens(index: int) -> None:
    record = RECORDED["messages"][index]
    wire, plain = bytes.fromhex(record["msg"]), bytes.fromhex(record["plain"])
    side = "ours_disco_private" if record["dir"] == "from tailscaled" else "tailscaled_disco_private"
    message = DiscoBox(SystemEntropy(), bytes.fromhex(RECORDED[side])).open(wire)
    assert message == messages.decode(plain)
    if plain[0] != messages.PING:
        return
    assert isinstance(message, messages.Ping)
    assert message.txid == plain[2:14]


def test_disco_capture_opens() -> None:
    """Four seconds between two official clients: each disco datagram in the capture opens with the recorded keys."""
    data = (DATA / "disco-two-nodes.pcap").read_bytes()
    boxes = [
        DiscoBox(SystemEntropy(), bytes.fromhex(RECORDED[name]))
        for name in ("ours_disco_private", "tailscaled_disco_private")
    ]
    kinds: list[type] = []
    at = 24
    while at < len(data):
        size = int.from_bytes(data[at + 8 : at + 12], "little")
        frame = data[at + 16 : at + 16 + size]
        at += 16 + size
        offset = frame.find(messages_magic := b"TS\xf0\x9f\x92\xac")
        if offset < 0:
            continue
        wire = frame[offset:]
        assert wire.startswith(messages_magic)
        opened = []
        for box in boxes:
            try:
                opened.append(box.open(wire))
            except DecodeError:
                continue
        kinds += [type(message) for message in opened]
    assert {messages.Ping, messages.Pong} <= set(kinds)


@pytest.mark.parametrize("case", STUN, ids=lambda c: f"{c['ip']}{'-mapped' if c['v4_mapped'] else ''}")
def test_stun_vector(case: dict[str, object]) -> None:
    txid = bytes.fromhex(str(case["txid"]))
    source = Endpoint(parse_ip(str(case["ip"])), int(str(case["port"])))
    request, response = bytes.fromhex(str(case["request"])), bytes.fromhex(str(case["response"]))
    assert stun.encode_request(txid) == request
    assert stun.decode_request(request) == txid
    assert stun.encode_response(txid, source, v4_mapped=bool(case["v4_mapped"])) == response
    assert stun.decode_response(response) == (txid, source)
    assert classify.classify(request) == classify.classify(response) == classify.STUN


def test_reference_request_vector() -> None:
    expected = "000100142112a442000102030405060708090a0b802200087461696c6e6f6465802800048aabad90"
    assert stun.encode_request(bytes(range(12))).hex() == expected

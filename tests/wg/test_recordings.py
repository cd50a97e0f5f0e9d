"""Against bytes that others made: vectors in both roles, and sessions recorded from wireguard-go and tailscaled."""

import struct
from typing import Any

import pytest

from tests.wg.kit import SeededEntropy, load
from tsnetpy.base.addr import parse_prefix
from tsnetpy.base.instant import SECOND
from tsnetpy.base.packet import Buffer
from tsnetpy.crypto import dh
from tsnetpy.crypto.aead import Aead
from tsnetpy.wg import Device
from tsnetpy.wg.cookies import CookieChecker, CookieGenerator
from tsnetpy.wg.messages import CookieReply
from tsnetpy.wg.tai64n import stamp

NOW = 50 * SECOND
EVERYWHERE = [parse_prefix("0.0.0.0/0")]


def wall_of(tai64n: str) -> int:
    raw = bytes.fromhex(tai64n)
    return (int.from_bytes(raw[:8], "big") - 0x400000000000000A) * SECOND + int.from_bytes(raw[8:], "big")


def device(private: str, peer_public: bytes, index: int, ephemeral: str, tai64n: str) -> Device:
    """A device whose next handshake uses *index* and *ephemeral* at the time *tai64n*."""
    script = index.to_bytes(4, "big") + bytes.fromhex(ephemeral)
    made = Device(bytes.fromhex(private), SeededEntropy(1, script))
    made.wall_offset_ns = wall_of(tai64n) - NOW
    made.add_peer(peer_public, EVERYWHERE, NOW)
    return made


def taken(dev: Device) -> list[bytes]:
    return [bytes(d) for _, batch in dev.take_outgoing() for d in batch.datagrams()]


def opened(dev: Device, message: str) -> list[Buffer]:
    return [p for _, packets in dev.receive([bytes.fromhex(message)], "path", NOW) for p in packets]


def test_timestamp_of_the_vector() -> None:
    vector = load("wireguard.json")
    assert stamp(vector["unix_secs"] * SECOND + vector["nanos"]).hex() == vector["tai64n"]


def test_vector_both_roles_byte_for_byte() -> None:
    v = load("wireguard.json")
    public_i, public_r = (bytes.fromhex(v[f"{who}_static_public"]) for who in ("initiator", "responder"))
    i = device(
        v["initiator_static_private"], public_r, v["sender_index"], v["initiator_ephemeral_private"], v["tai64n"]
    )
    r = device(
        v["responder_static_private"], public_i, v["responder_index"], v["responder_ephemeral_private"], v["tai64n"]
    )
    assert (i.public_key, r.public_key) == (public_i, public_r)
    assert i.mtu == v["mtu"]

    i.initiate(public_r, NOW)
    assert [m.hex() for m in taken(i)] == [v["initiation"]]
    assert opened(r, v["initiation"]) == []
    assert [m.hex() for m in taken(r)] == [v["response"]]
    assert opened(i, v["response"]) == []

    first, *rest = v["transport"]
    assert [m.hex() for m in taken(i)] == [first["msg"]]  # the keepalive that confirms the session
    assert opened(r, first["msg"]) == []
    for message in rest:
        sender, receiver, to = (i, r, public_r) if message["dir"] == "i->r" else (r, i, public_i)
        plain = bytes.fromhex(message["plain"])
        sender.send(to, [plain], NOW)
        assert [m.hex() for m in taken(sender)] == [message["msg"]]
        assert opened(receiver, message["msg"]) == ([plain] if plain else [])
    assert i.drops.total == r.drops.total == 0


def test_vector_of_the_cookie() -> None:
    v = load("wireguard.json")
    cookie = v["cookie"]
    public_r = bytes.fromhex(v["responder_static_public"])
    host, port = cookie["source"].split(":")
    source = bytes(map(int, host.split("."))) + int(port).to_bytes(2, "little")
    script = bytes.fromhex(cookie["secret"]) + bytes.fromhex(cookie["nonce"])
    checker = CookieChecker(public_r, SeededEntropy(1, script))
    initiation = bytes.fromhex(v["initiation"])
    assert checker.check_mac1(initiation)
    assert not checker.check_mac2(initiation, source, NOW)
    reply = checker.reply(initiation, v["sender_index"], source, NOW)
    assert reply.hex() == cookie["reply"]

    generator = CookieGenerator(public_r)
    assert generator.add_macs(initiation[:116], NOW) == initiation
    assert generator.consume_reply(CookieReply.decode(reply), NOW)
    retry = bytes.fromhex(cookie["retry_initiation"])
    assert generator.add_macs(retry[:116], NOW) == retry
    assert checker.check_mac2(retry, source, NOW)
    assert not checker.check_mac2(retry, source[:-1] + b"\0", NOW)  # good for one address and port only
    assert not checker.check_mac2(retry, source, NOW + 121 * SECOND)


def test_the_retry_with_a_cookie_from_a_device() -> None:
    v = load("wireguard.json")
    cookie = v["cookie"]
    public_r = bytes.fromhex(v["responder_static_public"])
    script = (
        v["sender_index"].to_bytes(4, "big")
        + bytes.fromhex(v["initiator_ephemeral_private"])
        + bytes(4)  # jitter
        + cookie["retry_index"].to_bytes(4, "big")
        + bytes.fromhex(cookie["retry_ephemeral_private"])
    )
    dev = Device(bytes.fromhex(v["initiator_static_private"]), SeededEntropy(1, script))
    dev.add_peer(public_r, EVERYWHERE, NOW)
    dev.wall_offset_ns = wall_of(v["tai64n"]) - NOW
    dev.initiate(public_r, NOW)
    taken(dev)
    assert opened(dev, cookie["reply"]) == []
    assert taken(dev) == []  # the cookie waits for the next retry
    later = NOW + 5 * SECOND
    dev.wall_offset_ns = wall_of(cookie["retry_tai64n"]) - later
    dev.handle_deadline(later)
    assert [m.hex() for m in taken(dev)] == [cookie["retry_initiation"]]


def test_session_recorded_with_wireguard_go_as_responder() -> None:
    s = load("wireguard-recorded.json")[0]
    public_r = dh.public_key(bytes.fromhex(s["responder_static_private"]))
    index = int.from_bytes(bytes.fromhex(s["initiation"])[4:8], "little")
    dev = device(s["initiator_static_private"], public_r, index, s["initiator_ephemeral_private"], s["tai64n"])
    first, *rest = s["transport"]
    dev.send(public_r, [bytes.fromhex(first["plain"])], NOW)
    assert [m.hex() for m in taken(dev)] == [s["initiation"]]
    assert opened(dev, s["response"]) == []
    assert [m.hex() for m in taken(dev)] == [first["msg"]]
    received = 0
    for message in rest:
        if message["dir"] == "i->r":
            dev.send(public_r, [bytes.fromhex(message["plain"])], NOW)
            assert [m.hex() for m in taken(dev)] == [message["msg"]]
        else:
            padded = bytes.fromhex(message["padded_plain"])
            length = int.from_bytes(padded[2:4], "big")
            assert opened(dev, message["msg"]) == [padded[:length]]
            received += 1
    assert received == 4
    assert dev.drops.total == 0


def test_session_recorded_with_wireguard_go_as_initiator() -> None:
    s = load("wireguard-recorded.json")[1]
    public_i = dh.public_key(bytes.fromhex(s["initiator_static_private"]))
    index = int.from_bytes(bytes.fromhex(s["response"])[4:8], "little")
    dev = device(s["responder_static_private"], public_i, index, s["responder_ephemeral_private"], s["tai64n"])
    assert opened(dev, s["initiation"]) == []
    assert [m.hex() for m in taken(dev)] == [s["response"]]
    for message in s["transport"]:
        assert message["dir"] == "i->r"
        padded = bytes.fromhex(message["padded_plain"])
        assert opened(dev, message["msg"]) == [padded[: int.from_bytes(padded[2:4], "big")]]
    assert dev.drops.total == 0


@pytest.mark.parametrize("s", load("wireguard-tailscaled-recorded.json"))
def test_initiations_recorded_from_tailscaled(s: dict[str, Any]) -> None:
    public_i = bytes.fromhex(s["initiator_static_public"])
    index = int.from_bytes(bytes.fromhex(s["response"])[4:8], "little")
    dev = device(s["responder_static_private"], public_i, index, s["responder_ephemeral_private"], s["tai64n"])
    assert opened(dev, s["initiation"]) == []
    assert [m.hex() for m in taken(dev)] == [s["response"]]

    # The keys that the other side confirmed: a keepalive under one, then our keepalive's bytes under the other.
    head = struct.pack("<IIQ", 4, index, 0)
    keepalive = head + Aead(bytes.fromhex(s["key_initiator_to_responder"])).seal(bytes(12), b"")
    assert opened(dev, keepalive.hex()) == []
    assert dev.drops.total == 0
    dev.send(public_i, [b""], NOW)
    (sent,) = taken(dev)
    assert sent[16:] == Aead(bytes.fromhex(s["key_responder_to_initiator"])).seal(bytes(12), b"")

    assert opened(dev, s["initiation"]) == []
    assert dev.drops.snapshot() == {"initiation_replay": 1}


@pytest.mark.parametrize("s", load("wireguard-psk-recorded.json"), ids=lambda s: s["peer"])
def test_sessions_with_a_preshared_key_recorded_with_wireguard_go(s: dict[str, Any]) -> None:
    script = s["index"].to_bytes(4, "big") + bytes.fromhex(s["ephemeral_private"])
    peer = bytes.fromhex(s["peer_static_public"])

    def ours(psk: str) -> Device:
        made = Device(bytes.fromhex(s["static_private"]), SeededEntropy(1, script), mtu=1420)
        made.wall_offset_ns = s["wall_ns"] - NOW
        made.add_peer(peer, EVERYWHERE, NOW, psk=bytes.fromhex(psk))
        return made

    dev, other = ours(s["psk"]), ours("00" * 32)
    if "responder" in s["peer"]:
        for each in (dev, other):
            each.send(peer, [bytes.fromhex(s["transport"][0]["plain"])], NOW)
            assert [m.hex() for m in taken(each)] == [s["initiation"]]  # the key comes in with the response
        assert opened(dev, s["response"]) == []
        assert opened(other, s["response"]) == []
        assert other.drops.snapshot() == {"handshake": 1}
        assert [m.hex() for m in taken(dev)] == [s["transport"][0]["msg"]]
    else:
        assert opened(dev, s["initiation"]) == []
        assert [m.hex() for m in taken(dev)] == [s["response"]]
        assert opened(other, s["initiation"]) == []
        assert [m.hex() for m in taken(other)] != [s["response"]]
    for message in s["transport"]:
        if message["dir"] == "in":
            assert opened(dev, message["msg"]) == [bytes.fromhex(message["plain"])]
    assert dev.drops.total == 0

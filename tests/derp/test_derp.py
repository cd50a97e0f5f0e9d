"""DERP frames and both engines: vectors, a recorded session with derper, and a switch with clients in memory."""

import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import DecodeError, LocalProtocolError
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.crypto import dh
from tsnetpy.derp import client as dc
from tsnetpy.derp import frames
from tsnetpy.derp.client import DerpClient
from tsnetpy.derp.server import QUEUE_PACKETS, DerpServer, ServerConnection

DATA = pathlib.Path(__file__).parents[1] / "data" / "datapath"
VECTORS = json.loads((DATA / "derp.json").read_text())
SESSIONS = json.loads((DATA / "derp-recorded.json").read_text())
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
DISCO = b"TS\xf0\x9f\x92\xac" + bytes(100)


class ScriptedEntropy:
    """Gives out prepared nonces."""

    def __init__(self, *values: bytes) -> None:
        self._values = list(values)

    def bytes(self, n: int) -> bytes:
        value = self._values.pop(0)
        assert len(value) == n
        return value

    def u32(self) -> int:
        return 0


def vector(name: str) -> list[bytes]:
    return [bytes.fromhex(f["bytes"]) for f in VECTORS["frames"] if f["frame"] == name]


def events_of(client: DerpClient) -> list[dc.Event]:
    found = []
    while (event := client.next_event()) is not None:
        found.append(event)
    return found


def test_client_makes_and_takes_the_vector_frames() -> None:
    nonce = bytes.fromhex(VECTORS["client_info_nonce"])
    client = DerpClient(bytes.fromhex(VECTORS["client_private"]), "h", ScriptedEntropy(nonce), 0)
    assert client.data_to_send().startswith(b"GET /derp HTTP/1.1\r\nHost: h\r\nUpgrade: DERP\r\n")
    client.receive_data(SWITCHING + vector("ServerKey")[0], 0)
    # The recorded peer wrote its JSON with the same two fields, so the frame is equal byte for byte.
    assert client.data_to_send() == vector("ClientInfo")[0]
    client.receive_data(vector("ServerInfo")[0], 0)
    assert client.is_ready
    peer = bytes.fromhex(VECTORS["peer_public"])
    packet = bytes.fromhex(VECTORS["packet"])
    client.send_packets(peer, [memoryview(packet)])
    client.note_preferred(True)
    client.ping(vector("Ping")[0][5:])
    assert client.data_to_send() == vector("SendPacket")[0] + vector("NotePreferred")[0] + vector("Ping")[0]
    for name in ("RecvPacket", "KeepAlive", "PeerGone", "Pong", "Health", "Restarting"):
        for frame in vector(name):
            client.receive_data(frame, 0)
    assert client.take_packets() == [(peer, packet)]
    assert events_of(client) == [
        dc.Ready(bytes.fromhex(VECTORS["server_public"])),
        dc.PeerGone(peer, frames.GONE_NOT_HERE),
        dc.PeerGone(peer, frames.GONE_DISCONNECTED),
        dc.PongReceived(vector("Pong")[0][5:]),
        dc.Health(""),
        dc.Restarting(100, 3000),
    ]
    client.receive_data(vector("Ping")[0], 0)
    assert client.data_to_send() == vector("Pong")[0]


def test_server_makes_and_takes_the_vector_frames() -> None:
    nonce = bytes.fromhex(VECTORS["server_info_nonce"])
    server = DerpServer(bytes.fromhex(VECTORS["server_private"]), ScriptedEntropy(nonce))
    connection = server.accept(0)
    assert connection.data_to_send() == vector("ServerKey")[0]
    connection.receive_data(vector("ClientInfo")[0], 0)
    assert connection.data_to_send() == vector("ServerInfo")[0]
    connection.receive_data(vector("NotePreferred")[0] + vector("Ping")[0], 0)
    assert connection.preferred
    assert connection.data_to_send() == vector("Pong")[0]
    connection.handle_deadline(61 * SECOND)
    assert connection.data_to_send() == vector("KeepAlive")[0]


@pytest.mark.parametrize("session", SESSIONS, ids=lambda s: s["peer"])
@pytest.mark.parametrize("piece", [1 << 16, 7, 1])
def test_recorded_session_replays(session: dict[str, Any], piece: int) -> None:
    """What derper said is understood in pieces of any size, and our answers equal the recorded ones."""
    entropy = ScriptedEntropy(bytes.fromhex(session["client_info_nonce"]))
    client = DerpClient(bytes.fromhex(session["client_private"]), "192.0.2.1", entropy, 0)
    sent = b""
    stream = session["stream_inside_tls"]
    for part in stream:
        data = bytes.fromhex(part["bytes"])
        if part["dir"] == "c2s":
            sent += data
            continue
        for at in range(0, len(data), piece):
            client.receive_data(data[at : at + piece], 1)
    other = bytes.fromhex(session["other_client_public"])
    assert client.server_key.hex() == session["server_public"]
    assert client.take_packets() == [(other, b"openopenopenopenopen")]
    kinds = [type(event) for event in events_of(client)]
    assert kinds == [dc.Ready, dc.PongReceived, dc.PeerGone, dc.PeerGone]
    ours = client.data_to_send()
    assert ours == sent[: len(ours)]  # the upgrade and ClientInfo; the rest was the recorder's own choice
    assert ours.endswith(bytes.fromhex(stream[2]["bytes"]))


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=8), st.data())
def test_decoder_does_not_care_about_pieces(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    wire = b"".join(frames.encode(kind, payload) for kind, payload in sent)
    decoder = frames.FrameDecoder()
    received: list[tuple[int, bytes]] = []
    at = 0
    while at < len(wire):
        size = data.draw(st.integers(1, 64))
        received += decoder.feed(wire[at : at + size])
        at += size
    assert received == sent
    assert decoder.buffered == 0


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_engines_never_raise_on_garbage(pieces: list[bytes]) -> None:
    client = DerpClient(dh.generate(SystemEntropy()), "h", SystemEntropy(), 0)
    connection = DerpServer(dh.generate(SystemEntropy()), SystemEntropy()).accept(0)
    client.receive_data(SWITCHING, 0)
    for piece in pieces:
        client.receive_data(piece, 0)
        connection.receive_data(piece, 0)


@given(st.integers(0, 255), st.binary(max_size=80))
def test_ready_client_never_raises_on_any_frame(kind: int, payload: bytes) -> None:
    link = Link(DerpServer(dh.generate(SystemEntropy()), SystemEntropy()))
    client, connection = link.join()
    client.receive_data(frames.encode(kind, payload), 0)
    connection.receive_data(frames.encode(kind, payload), 0)


def test_header_over_the_limit_is_refused_before_its_payload() -> None:
    decoder = frames.FrameDecoder(10)
    with pytest.raises(DecodeError):
        decoder.feed(frames.encode(1, bytes(11))[:5])


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 426 Upgrade Required\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n" + b"x" * (20 << 10),
        SWITCHING + frames.encode(frames.KEEP_ALIVE),
        SWITCHING + frames.encode(frames.SERVER_KEY, b"DERP----" + bytes(32)),
        SWITCHING + frames.encode(frames.SERVER_KEY, frames.MAGIC + bytes(32)),
    ],
)
def test_client_closes_on_a_bad_start(answer: bytes) -> None:
    client = DerpClient(dh.generate(SystemEntropy()), "h", SystemEntropy(), 0)
    client.receive_data(answer, 0)
    (event,) = events_of(client)
    assert isinstance(event, dc.Closed)
    assert client.is_closed
    with pytest.raises(LocalProtocolError):
        client.send_packets(bytes(32), [])


def test_client_gives_up_on_a_silent_server() -> None:
    link = Link(DerpServer(dh.generate(SystemEntropy()), SystemEntropy()))
    client, connection = link.join()
    deadline = client.next_deadline()
    assert deadline == 120 * SECOND
    connection.handle_deadline(65 * SECOND)
    link.pump(65 * SECOND)
    assert client.next_deadline() == 185 * SECOND
    client.handle_deadline(185 * SECOND)
    assert client.is_closed
    assert client.next_deadline() is None


class Link:
    """Clients joined to one server by perfect byte streams."""

    def __init__(self, server: DerpServer) -> None:
        self.server = server
        self.pairs: list[tuple[DerpClient, ServerConnection]] = []

    def join(self, private: bytes = b"", now: Instant = 0) -> tuple[DerpClient, ServerConnection]:
        client = DerpClient(private or dh.generate(SystemEntropy()), "h", SystemEntropy(), now)
        connection = self.server.accept(now)
        client.data_to_send()
        client.receive_data(SWITCHING, now)
        self.pairs.append((client, connection))
        self.pump(now)
        assert client.is_ready
        assert isinstance(client.next_event(), dc.Ready)
        return client, connection

    def pump(self, now: Instant = 0) -> None:
        for _ in range(10):
            for client, connection in self.pairs:
                connection.receive_data(client.data_to_send(), now)
                client.receive_data(connection.data_to_send(), now)
            self.server.take_ready()


@pytest.fixture
def link() -> Link:
    return Link(DerpServer(dh.generate(SystemEntropy()), SystemEntropy()))


def test_packets_are_switched_by_key(link: Link) -> None:
    (alice, a), (bob, b) = link.join(), link.join()
    alice.send_packets(b.node_key, [memoryview(b"one"), memoryview(b"two!")])
    link.pump()
    assert bob.take_packets() == [(a.node_key, b"one"), (a.node_key, b"two!")]
    bob.send_packets(b.node_key, [memoryview(b"to myself")])
    link.pump()
    assert bob.take_packets() == [(b.node_key, b"to myself")]


def test_ready_list_names_the_receiver(link: Link) -> None:
    (alice, a), (_, b) = link.join(), link.join()
    alice.send_packets(b.node_key, [memoryview(b"one"), memoryview(b"two")])
    a.receive_data(alice.data_to_send(), 0)
    assert link.server.take_ready() == [b]
    assert link.server.take_ready() == []


def test_peer_gone_reaches_those_who_heard_from_the_key(link: Link) -> None:
    (alice, a), (bob, b), (carol, _) = link.join(), link.join(), link.join()
    carol.send_packets(a.node_key, [memoryview(b"x")])  # carol only sent to alice
    alice.send_packets(b.node_key, [memoryview(b"x")])
    link.pump()
    a.close()
    link.pump()
    assert events_of(bob) == [dc.PeerGone(a.node_key, frames.GONE_DISCONNECTED)]
    assert events_of(carol) == []
    assert not link.server.is_connected(a.node_key)


def test_not_here_only_for_disco_and_rate_limited(link: Link) -> None:
    alice, _ = link.join()
    nobody = b"n" * 32
    alice.send_packets(nobody, [memoryview(b"wireguard")])
    alice.send_packets(nobody, [memoryview(DISCO)] * 10)
    link.pump()
    assert events_of(alice) == [dc.PeerGone(nobody, frames.GONE_NOT_HERE)] * 3
    alice.send_packets(nobody, [memoryview(DISCO)] * 10)
    link.pump(2 * SECOND)
    assert len(events_of(alice)) == 2


def test_slow_reader_keeps_the_newest_and_disco_has_its_own_queue(link: Link) -> None:
    (alice, a), (bob, b) = link.join(), link.join()
    alice.send_packets(b.node_key, [memoryview(b"%03d" % i) for i in range(100)] + [memoryview(DISCO)])
    a.receive_data(alice.data_to_send(), 0)
    link.pump()
    got = [data for _, data in bob.take_packets()]
    assert got == [DISCO] + [b"%03d" % i for i in range(100 - QUEUE_PACKETS, 100)]
    assert b.packets_dropped == 100 - QUEUE_PACKETS


def test_duplicate_key_follows_the_last_writer(link: Link) -> None:
    private = dh.generate(SystemEntropy())
    (old, old_side), (new, new_side) = link.join(private), link.join(private)
    sender, s = link.join()

    def reached() -> list[DerpClient]:
        sender.send_packets(old_side.node_key, [memoryview(b"x")])
        link.pump()
        return [client for client in (old, new) if client.take_packets()]

    assert reached() == [new]
    old.send_packets(s.node_key, [memoryview(b"here")])
    link.pump()
    assert reached() == [old]
    old_side.close()
    assert reached() == [new]
    sender.take_packets()
    assert events_of(sender) == []  # the key never left
    new_side.close()
    assert link.server.client_count == 1


def test_unknown_client_keys_can_be_kept_out() -> None:
    private = dh.generate(SystemEntropy())
    server = DerpServer(dh.generate(SystemEntropy()), SystemEntropy(), admitted={dh.public_key(private)})
    link = Link(server)
    link.join(private)
    stranger = DerpClient(dh.generate(SystemEntropy()), "h", SystemEntropy(), 0)
    connection = server.accept(0)
    stranger.data_to_send()
    stranger.receive_data(SWITCHING + connection.data_to_send(), 0)
    connection.receive_data(stranger.data_to_send(), 0)
    assert connection.closed_reason
    assert server.client_count == 1


def why_closed(connection: ServerConnection) -> str:
    return connection.closed_reason


def test_connection_limits(link: Link) -> None:
    client, connection = link.join()
    client.send_packets(bytes(32), [memoryview(bytes(frames.MAX_PACKET))])
    link.pump()
    assert not why_closed(connection)
    client.send_packets(bytes(32), [memoryview(bytes(frames.MAX_PACKET + 1))])
    link.pump()
    assert why_closed(connection)
    _, short_ping = link.join()
    short_ping.receive_data(frames.encode(frames.PING, b"1234567"), 0)
    assert short_ping.closed_reason
    _, not_reading = link.join()
    not_reading.receive_data(frames.encode(frames.PING, b"12345678") * 1000, 0)
    assert not_reading.closed_reason


def test_silent_newcomer_is_dropped_after_ten_seconds(link: Link) -> None:
    connection = link.server.accept(0)
    assert connection.next_deadline() == 10 * SECOND
    connection.handle_deadline(10 * SECOND)
    assert connection.closed_reason
    assert connection.next_deadline() is None

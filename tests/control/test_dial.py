"""Which ports are tried when, and who may be the server."""

import ssl
import time
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream

from tests.control.kit import MemoryStream, Server, read_head, stream_pair
from tests.control.test_client import a_server
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.errors import ConfigError, ControlError
from tsnetpy.base.keys import MachinePrivate, MachinePublic
from tsnetpy.control.backoff import MAXIMUM, STEP, ControlBackoff
from tsnetpy.control.dial import NoiseDialer, ServerUrl, describe, fetch_server_key, is_private_host
from tsnetpy.control.hostinfo import default_hostinfo
from tsnetpy.control.ping import c2n_answer
from tsnetpy.crypto import dh
from tsnetpy.crypto.x509 import make_self_signed
from tsnetpy.tailcfg.mapping import ControlDialPlan, ControlIPCandidate

pytestmark = pytest.mark.anyio


def dialer(server: Server, url: str) -> NoiseDialer:
    entropy = SystemEntropy()
    return NoiseDialer(
        ServerUrl.parse(url),
        machine_key=MachinePrivate(dh.generate(entropy)),
        version=117,
        entropy=entropy,
        connect=server.connect,
    )


def key(server: Server) -> MachinePublic:
    return MachinePublic(dh.public_key(server.private))


@pytest.mark.parametrize(
    ("url", "plain", "tls"),
    [
        ("https://h", 80, 443),
        ("https://h:8443", 80, 8443),
        ("http://h", 80, 443),
        ("http://h:8080", 8080, 443),
        ("http://192.0.2.1:8080", 8080, 443),  # a documentation range counts as public
        ("http://10.1.2.3:8080", 8080, None),
        ("http://172.31.0.1", 80, None),
        ("http://172.32.0.1", 80, 443),
        ("http://192.168.1.1:81", 81, None),
        ("http://127.0.0.1", 80, None),
        ("http://localhost:8080", 8080, None),
        ("http://[fd00::1]:8080", 8080, None),
        ("http://[::1]", 80, None),
        ("http://[2001:db8::1]", 80, 443),
    ],
)
def test_the_ports_of_a_url(url: str, plain: int, tls: int | None) -> None:
    parsed = ServerUrl.parse(url)
    assert (parsed.plain_port, parsed.tls_port) == (plain, tls)


@pytest.mark.parametrize("url", ["", "h:80", "ftp://h", "https://", "http://h:99999", "https://u:p@h", "http://[::1"])
def test_what_is_no_server_url(url: str) -> None:
    with pytest.raises(ConfigError):
        ServerUrl.parse(url)


def test_authorities() -> None:
    assert ServerUrl.parse("https://H.example").authority == "h.example"
    assert ServerUrl.parse("http://[::1]:80").authority == "[::1]:80"
    assert not is_private_host("example.com")


async def test_the_plain_port_wins_if_it_answers() -> None:
    async with a_server() as server:
        stream = await dialer(server, "http://192.0.2.1:8080").dial(key(server))
        assert server.dials == [("192.0.2.1", 8080)]
        await stream.aclose()


async def test_tls_starts_at_once_when_plain_fails() -> None:
    async with a_server() as server:
        server.refused_ports = {80, 443}
        started = anyio.current_time()
        with pytest.raises(ControlError, match=r"port 80 \(plain\).*port 443 \(TLS\)") as caught:
            await dialer(server, "https://h").dial(key(server))
        assert server.dials == [("h", 80), ("h", 443)]
        assert anyio.current_time() - started < 0.5
        assert caught.value.hint


async def test_tls_joins_a_silent_plain_port_after_half_a_second() -> None:
    async with a_server() as server:
        dials: list[tuple[int, float]] = []

        async def connect(host: str, port: int) -> ByteStream:
            dials.append((port, anyio.current_time()))
            if port == 80:
                await anyio.sleep_forever()
            raise ConnectionRefusedError(111, "no")

        made = dialer(server, "https://h")
        made._connect = connect
        started = anyio.current_time()
        with pytest.raises(ControlError):
            await made.dial(key(server))
        assert [port for port, _ in dials] == [80, 443]
        assert dials[1][1] - dials[0][1] == pytest.approx(0.5, abs=0.01)
        assert anyio.current_time() - started == pytest.approx(10, abs=0.1)
        dials.clear()
        with pytest.raises(ControlError):
            await made.dial(key(server))
        assert [port for port, _ in dials] == [443], "soon after a dial only TLS is tried"


async def test_a_plain_server_stays_plain_after_a_lost_connection() -> None:
    # Official clients stop trying the plain port for two minutes, which strands them on servers without TLS.
    async with a_server() as server:
        made = dialer(server, "http://192.0.2.1:8080")
        await (await made.dial(key(server))).aclose()
        server.dials.clear()
        await (await made.dial(key(server))).aclose()
        assert server.dials == [("192.0.2.1", 8080)]


async def test_the_wrong_server_is_told() -> None:
    async with a_server() as server:
        other = MachinePublic(dh.public_key(dh.generate(SystemEntropy())))
        with pytest.raises(ControlError, match="its key or our version is refused"):
            await dialer(server, "http://10.0.0.1").dial(other)


async def test_a_dial_plan_goes_first_and_dns_is_the_fallback() -> None:
    async with a_server() as server:
        made = dialer(server, "http://localhost:8080")
        made.dial_plan = ControlDialPlan(
            candidates=(
                ControlIPCandidate(ip="10.0.0.1", dial_start_delay_sec=3, dial_timeout_sec=1),
                ControlIPCandidate(ip="10.0.0.2", dial_start_delay_sec=1),
                ControlIPCandidate(ace_host="ignored"),
            )
        )
        await (await made.dial(key(server))).aclose()
        assert server.dials == [("10.0.0.2", 8080)]
        server.dials.clear()
        real = server.connect

        async def connect(host: str, port: int) -> ByteStream:
            if host != "localhost":
                raise OSError("unreachable")
            return await real(host, port)

        made._connect = connect
        await (await made.dial(key(server))).aclose()
        assert server.dials == [("localhost", 8080)]


async def test_fetching_the_key() -> None:
    async with a_server() as server:
        got = await fetch_server_key(ServerUrl.parse("http://h:81"), version=117, connect=server.connect)
        assert got == key(server)
        assert server.dials == [("h", 81)]
        server.down = True
        with pytest.raises(ControlError, match="Connection refused"):
            await fetch_server_key(ServerUrl.parse("http://h:81"), version=117, connect=server.connect)


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's TLS context for the name ``server.test``, and a client's that trusts it."""
    made = make_self_signed(["server.test"], [], 1, time.time_ns())
    (tmp_path / "cert").write_bytes(made.cert_pem)
    (tmp_path / "key").write_bytes(made.key_pem)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    return serving, ssl.create_default_context(cadata=made.cert_pem.decode())


async def test_the_key_comes_over_verified_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with a_server() as server:
        serving, trusting = contexts
        server.tls_ports[443] = serving
        url = ServerUrl.parse("https://server.test")
        assert await fetch_server_key(url, version=117, verify=trusting, connect=server.connect) == key(server)
        with pytest.raises(ControlError, match="certificate does not verify"):
            await fetch_server_key(url, version=117, connect=server.connect)
        other = ServerUrl.parse("https://other.test")
        with pytest.raises(ControlError, match="certificate does not verify"):
            await fetch_server_key(other, version=117, verify=trusting, connect=server.connect)


async def test_noise_inside_unverified_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async with a_server() as server:
        server.tls_ports[8443] = contexts[0]
        server.refused_ports = {80}
        stream = await dialer(server, "https://whatever.test:8443").dial(key(server))
        assert server.dials == [("whatever.test", 80), ("whatever.test", 8443)]
        await stream.aclose()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b"", "404"),
        (200, b"<html>", "cannot be read"),
        (200, b"{}", "no Noise key"),
        (200, b'{"publicKey":"mkey:zz"}', "cannot be read"),
        (200, bytes(70_000), "more than"),
    ],
)
async def test_what_is_no_coordination_server(status: int, body: bytes, says: str) -> None:
    async with anyio.create_task_group() as group:

        async def serve(far: MemoryStream) -> None:
            await read_head(far)
            await far.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)

        async def connect(host: str, port: int) -> ByteStream:
            near, far = stream_pair()
            group.start_soon(serve, far)
            return near

        with pytest.raises(ControlError, match=says):
            await fetch_server_key(ServerUrl.parse("http://h"), version=117, connect=connect)


async def test_a_silent_server_is_left_in_time() -> None:
    async def connect(host: str, port: int) -> ByteStream:
        return stream_pair()[0]

    started = anyio.current_time()
    with pytest.raises(ControlError, match="timed out"):
        await fetch_server_key(ServerUrl.parse("http://h"), version=117, connect=connect)
    assert anyio.current_time() - started == pytest.approx(15, abs=0.1)


class FixedEntropy:
    def __init__(self, value: int) -> None:
        self.value = value

    def bytes(self, n: int) -> bytes:
        return bytes(n)

    def u32(self) -> int:
        return self.value


def test_backoff_grows_with_the_square_and_is_bounded() -> None:
    longest, middle, shortest = (ControlBackoff(FixedEntropy(v)) for v in (2**32 - 1, 2**31, 0))
    assert [middle.next_pause() for _ in range(4)] == [STEP, 4 * STEP, 9 * STEP, 16 * STEP]
    pauses = [longest.next_pause() for _ in range(1000)]
    assert max(pauses) <= 2 * MAXIMUM
    assert pauses == sorted(pauses)
    assert shortest.next_pause() == 0
    longest.reset()
    assert longest.next_pause() <= 2 * STEP


def test_errors_in_words() -> None:
    refused = ConnectionRefusedError(111, "Connect call failed ('192.0.2.1', 1)")
    outer = OSError("All connection attempts failed")
    outer.__cause__ = refused
    assert describe(outer) == describe(refused) == "Connection refused"
    outer.__cause__ = BaseExceptionGroup("x", [refused, OSError(113, "?")])
    assert describe(outer) == "Connection refused, No route to host"
    assert describe(TimeoutError()) == "timed out"
    assert describe(anyio.BrokenResourceError()) == "BrokenResourceError"


def test_hostinfo_says_little() -> None:
    made = default_hostinfo("n", version="0.1", entropy=SystemEntropy(), routes=("10.0.0.0/8",), tags=("tag:x",))
    assert (made.hostname, made.ipn_version, made.routable_ips) == ("n", "0.1-tsnetpy", ("10.0.0.0/8",))
    assert made.request_tags == ("tag:x",)
    assert made.userspace is True
    assert made.no_logs_no_support
    assert len(made.backend_log_id) == 64
    assert not made.os_version


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", b"200"),
        (b"GET /echo?x HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /debug/goroutines HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhi", b"400"),
        (b"GET /echo HTTP/1.1\r\n", b"400"),
        (b"\x00\xff", b"400"),
        (b"", b"400"),
    ],
)
def test_c2n(payload: bytes, status: bytes) -> None:
    assert c2n_answer(payload).startswith(b"HTTP/1.1 " + status)

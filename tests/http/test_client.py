"""httpx over our streams, against Serve on our listeners: two nodes in memory, virtual time, both event loops."""

import importlib
import json
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import ByteStream
from anyio.streams.tls import TLSListener

from tests.http.kit import lab, pieces
from tsnetpy.base.addr import parse_ip
from tsnetpy.base.instant import MILLISECOND
from tsnetpy.crypto.x509 import make_self_signed
from tsnetpy.http import http_client
from tsnetpy.netstack import tcp
from tsnetpy.netstack.tcp import TcpStream
from tsnetpy.runtime.clock import wall_ns
from tsnetpy.runtime.http2 import Http2Request, serve_http2
from tsnetpy.serve.config import AsgiTarget, TlsFiles, single_target
from tsnetpy.testing.clock import virtual_backend
from tsnetpy.testing.internet import Link

pytestmark = pytest.mark.anyio

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_backend(request.param)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[TlsFiles, ssl.SSLContext]:
    """Files for a server called "server", and what a client needs to trust them."""
    made = make_self_signed(["server"], [parse_ip("100.64.0.2")], 30, wall_ns())
    place = tmp_path_factory.mktemp("tls")
    (place / "cert.pem").write_bytes(made.cert_pem)
    (place / "key.pem").write_bytes(made.key_pem)
    trust = ssl.create_default_context(cadata=made.cert_pem.decode())
    return TlsFiles(str(place / "cert.pem"), str(place / "key.pem")), trust


async def app(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
    """Say what was asked, echo bodies as they come, or be slow."""
    if scope["type"] != "http":
        return
    path = scope["path"]
    headers = [(b"content-type", b"text/plain")]
    if path == "/never":
        await anyio.sleep_forever()
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if path == "/echo":
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    elif path == "/drip":
        for n in range(4):
            await send({"type": "http.response.body", "body": b"%d\n" % n, "more_body": True})
            await anyio.sleep(1)
        await send({"type": "http.response.body", "body": b""})
    elif path == "/endless":
        while True:
            await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
    else:
        said = {"method": scope["method"], "path": path, "query": scope["query_string"].decode()}
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})


APP = AsgiTarget(app)


async def test_requests_of_all_kinds_share_one_connection() -> None:
    async with lab(Link(delay=10 * MILLISECOND)) as net:
        await net.serve(single_target(APP, 80))
        async with http_client(net.client) as client:
            answer = await client.get("http://server/a/b?c=d")
            assert answer.json() == {"method": "GET", "path": "/a/b", "query": "c=d"}
            assert answer.http_version == "HTTP/1.1"
            body = bytes(range(256)) * 4000
            assert (await client.post("http://server/echo", content=body)).content == body
            parts = [b"%06d" % n * 1000 for n in range(50)]
            assert (await client.put("http://server/echo", content=pieces(parts))).content == b"".join(parts)
            assert (await client.head("http://server/")).content == b""
            assert (await client.request("DELETE", "http://server/x")).json()["method"] == "DELETE"
            assert len(net.client.dialled) == 1
            where = answer.extensions["network_stream"].get_extra_info("server_addr")
            assert where == ("100.64.0.2", 80)
            assert (await client.get("http://server6/")).status_code == 200
        await net.all_forgotten()


async def test_a_response_is_read_while_it_is_made() -> None:
    async with lab() as net:
        await net.serve(single_target(APP, 80))
        async with http_client(net.client) as client, client.stream("GET", "http://server/drip") as answer:
            started = anyio.current_time()
            seen = [(line, round(anyio.current_time() - started)) async for line in answer.aiter_lines()]
        assert seen == [("0", 0), ("1", 1), ("2", 2), ("3", 3)]


async def test_many_requests_at_once_wait_for_a_connection_of_the_pool() -> None:
    limits = httpx.Limits(max_connections=10)
    async with lab(Link(delay=5 * MILLISECOND)) as net:
        await net.serve(single_target(APP, 80))
        async with http_client(net.client, limits=limits) as client, anyio.create_task_group() as group:
            answers: dict[int, str] = {}

            async def ask(n: int) -> None:
                answers[n] = (await client.get(f"http://server/{n}")).json()["path"]

            for n in range(100):
                group.start_soon(ask, n)
        assert answers == {n: f"/{n}" for n in range(100)}
        assert len(net.client.dialled) == 10


async def test_every_timeout_has_its_exception() -> None:
    async with lab() as net:
        await net.serve(single_target(APP, 80))
        deaf = tcp.listen(net.net.b.pump, 81)
        async with http_client(net.client, timeout=3.0) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get("http://server/never")
            with pytest.raises(httpx.WriteTimeout):
                await client.post("http://server:81/", content=bytes(64 << 20))
        one = httpx.Limits(max_connections=1)
        async with (
            http_client(net.client, timeout=3.0, limits=one) as client,
            client.stream("GET", "http://server/endless"),
        ):
            with pytest.raises(httpx.PoolTimeout):
                await client.get("http://server/")
        net.net.internet.link_between(net.net.a.underlay, net.net.b.underlay).up = False
        async with http_client(net.client, timeout=3.0) as client:
            started = anyio.current_time()
            with pytest.raises(httpx.ConnectTimeout, match="server port 80: no answer"):
                await client.get("http://server/")
            assert 2.9 < anyio.current_time() - started < 3.2
        async with http_client(net.client, timeout=None) as client:  # the stack's own patience
            with pytest.raises(httpx.ConnectTimeout):
                await client.get("http://server/")
        await deaf.aclose()


async def test_dials_that_fail_say_why() -> None:
    async with lab() as net, http_client(net.client) as client:
        with pytest.raises(httpx.ConnectError, match="refused"):
            await client.get("http://server:9/")
        with pytest.raises(httpx.ConnectError, match="no such name"):
            await client.get("http://www.example.com/")
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("ftp://server/")


async def test_a_response_cut_short_is_an_error() -> None:
    async def reset(stream: TcpStream) -> None:
        await stream.receive()
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await anyio.sleep(1)
        stream.abort()

    async def leave(stream: TcpStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    async with lab() as net:
        net.serve_listener(tcp.listen(net.net.b.pump, 80), reset)
        net.serve_listener(tcp.listen(net.net.b.pump, 81), leave)
        async with http_client(net.client) as client:
            with pytest.raises(httpx.ReadError):
                await client.get("http://server/")
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("http://server:81/")
        await net.all_forgotten()


@pytest.mark.parametrize("steps", [1, 5, 15])
async def test_cancelled_in_a_response_leaves_no_connection(steps: int) -> None:
    async with lab(Link(delay=MILLISECOND)) as net:
        await net.serve(single_target(APP, 80))
        async with http_client(net.client, limits=httpx.Limits(max_connections=1)) as client:

            async def read() -> None:
                async with client.stream("GET", "http://server/endless") as answer:
                    async for _ in answer.aiter_raw():
                        pass

            async with anyio.create_task_group() as group:
                group.start_soon(read)
                for _ in range(steps):
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()
            # The pool has one place only, and it is free again.
            assert (await client.get("http://server/after")).json()["path"] == "/after"
            assert len(net.client.dialled) == (1 if steps == 1 else 2)  # the first step is within the dial
        await net.all_forgotten()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_cancelled_anywhere_leaves_no_connection(
    scheme: str, certificate: tuple[TlsFiles, ssl.SSLContext]
) -> None:
    """In the dial, the TLS handshake, the request's body and the response, at every half millisecond."""
    files, trust = certificate
    port = 443 if scheme == "https" else 80
    async with lab(Link(delay=MILLISECOND)) as net:
        await net.serve(single_target(APP, port, files if scheme == "https" else None))
        one = httpx.Limits(max_connections=1)
        async with http_client(net.client, verify=trust, limits=one) as client:
            for step in range(40):
                left: list[int] = []

                async def body(step: int = step, left: list[int] = left) -> AsyncIterator[bytes]:
                    try:
                        for _ in range(4):
                            await anyio.sleep(0.001)
                            yield bytes(5000)
                    finally:
                        left.append(step)

                with anyio.move_on_after(step / 2000):
                    await client.post(f"{scheme}://server/echo", content=body())
                assert len(left) <= 1
                with anyio.fail_after(5):
                    assert (await client.get(f"{scheme}://server/after")).json()["path"] == "/after"
            assert left == [39]  # in time at last
        await net.all_forgotten()


async def test_a_server_that_is_deaf_to_tls_is_a_timeout_of_the_connection() -> None:
    async with lab() as net, http_client(net.client, timeout=3.0) as client:
        deaf = tcp.listen(net.net.b.pump, 443)
        for _ in range(2):
            with pytest.raises(httpx.ConnectTimeout):
                await client.get("https://server/")
        await deaf.aclose()
        await net.all_forgotten()


async def test_a_connection_that_the_server_ended_is_not_used_again() -> None:
    """A POST is not repeated by itself, so a stale connection must be found out before it is used."""
    async with lab() as net:
        await net.serve(single_target(APP, 80))
        async with http_client(net.client, limits=httpx.Limits(keepalive_expiry=None)) as client:
            await client.get("http://server/")
            await anyio.sleep(3600)  # longer than Serve keeps an idle connection
            assert (await client.post("http://server/echo", content=b"x")).content == b"x"
            assert len(net.client.dialled) == 2


async def test_https_checks_the_name(certificate: tuple[TlsFiles, ssl.SSLContext]) -> None:
    files, trust = certificate
    async with lab(Link(delay=MILLISECOND)) as net:
        await net.serve(single_target(APP, 443, files))
        async with http_client(net.client, verify=trust) as client:
            answer = await client.post("https://server/echo", content=bytes(300_000))
            assert answer.content == bytes(300_000)
            assert answer.extensions["network_stream"].get_extra_info("ssl_object").version() == "TLSv1.3"
            await client.get("https://server/")
            assert len(net.client.dialled) == 1
            with pytest.raises(httpx.ConnectError, match="Hostname mismatch"):
                await client.get("https://server6/")
        async with http_client(net.client) as client:
            with pytest.raises(httpx.ConnectError, match="self-signed"):
                await client.get("https://server/")
        async with http_client(net.client, verify=False) as client:
            assert (await client.get("https://server6/")).status_code == 200
        await net.all_forgotten()


async def test_http2_runs_many_requests_in_one_connection(certificate: tuple[TlsFiles, ssl.SSLContext]) -> None:
    files, trust = certificate
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])

    async def answer(request: Http2Request) -> None:
        body = await request.read()
        await anyio.sleep(1)
        await request.respond(200, body or request.path.encode())

    async def serve(stream: ByteStream) -> None:
        async with stream:
            await serve_http2(stream, answer)

    async with lab(Link(delay=MILLISECOND)) as net:
        listener = TLSListener(tcp.listen(net.net.b.pump, 443), context, standard_compatible=False)
        net.serve_listener(listener, serve)
        async with http_client(net.client, verify=trust, http2=True) as client:
            got: dict[int, str] = {}

            async def ask(n: int) -> None:
                response = await client.get(f"https://server/{n}")
                assert response.http_version == "HTTP/2"
                got[n] = response.text

            await client.get("https://server/first")
            started = anyio.current_time()
            async with anyio.create_task_group() as group:
                for n in range(20):
                    group.start_soon(ask, n)
            assert anyio.current_time() - started < 1.5
            assert got == {n: f"/{n}" for n in range(20)}
            assert (await client.post("https://server/", content=bytes(500_000))).content == bytes(500_000)
            assert len(net.client.dialled) == 1


async def test_proxies_of_the_environment_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with lab() as net:
        await net.serve(single_target(APP, 80))
        async with http_client(net.client, base_url="http://server") as client:
            assert (await client.get("/x")).json()["path"] == "/x"


def test_without_httpx_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "tsnetpy.http")
    with pytest.raises(ModuleNotFoundError, match=r"needs httpx: pip install 'tsnetpy\[http\]'"):
        importlib.import_module("tsnetpy.http")

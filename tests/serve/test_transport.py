"""TLS, TCP forwarding, large files, and the real network of this host (loopback)."""

import os
import pathlib
import ssl

import anyio
import pytest
from anyio.streams.tls import TLSAttribute, TLSStream

from tests.serve.app_kit import Client, serving
from tests.serve.kit import MemoryStream, receive_all, settle, stream_pair
from tsnetpy.base.errors import ConfigError
from tsnetpy.crypto.x509 import make_self_signed
from tsnetpy.runtime.clock import wall_ns
from tsnetpy.serve import (
    DirectoryTarget,
    HttpPort,
    Mount,
    ServeConfig,
    Site,
    TcpPort,
    TextTarget,
    TlsFiles,
    TlsSelfSigned,
    parse_target,
    single_target,
)

pytestmark = pytest.mark.anyio


async def connect_tls(stream: MemoryStream, context: ssl.SSLContext, name: str) -> TLSStream:
    return await TLSStream.wrap(stream, hostname=name, ssl_context=context, standard_compatible=False)


async def test_https_with_a_self_made_certificate() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(single_target(TextTarget("secret"), 443, TlsSelfSigned())) as served:
        assert served.urls == ["https://server.lab.test/"]
        stream = await connect_tls(served.connect(443), context, "server.lab.test")
        assert stream.extra(TLSAttribute.alpn_protocol) == "http/1.1"
        client = Client(stream)
        assert (await client.get("/")).body == b"secret"
        assert (await client.get("/")).body == b"secret"


async def test_https_with_certificate_files(tmp_path: pathlib.Path) -> None:
    made = make_self_signed(["server.lab.test"], [], 1, wall_ns())
    (tmp_path / "cert.pem").write_bytes(made.cert_pem)
    (tmp_path / "key.pem").write_bytes(made.key_pem)
    context = ssl.create_default_context(cadata=made.cert_pem.decode())
    tls = TlsFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    async with serving(single_target(TextTarget("secret"), 443, tls)) as served:
        client = Client(await connect_tls(served.connect(443), context, "server.lab.test"))
        assert (await client.get("/")).body == b"secret"


async def test_certificate_files_that_are_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving(single_target(TextTarget("x"), 443, TlsFiles(str(tmp_path / "a"), str(tmp_path / "b")))):
            pass
    assert caught.group_contains(ConfigError, depth=1)


async def test_http_on_the_tls_port_is_told_so() -> None:
    async with serving(single_target(TextTarget("x"), 443, TlsSelfSigned())) as served:
        stream = served.connect(443)
        await stream.send(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        assert b"Client sent an HTTP request to an HTTPS server" in await receive_all(stream)


async def test_a_forwarded_connection_keeps_its_half_closes() -> None:
    async def late(stream: MemoryStream) -> None:
        got = await receive_all(stream)
        await stream.send(b"after your FIN: " + got)
        await stream.aclose()

    async with anyio.create_task_group() as group:

        async def dial(port: TcpPort) -> MemoryStream:
            await anyio.lowlevel.checkpoint()
            near, far = stream_pair()
            group.start_soon(late, far)
            return near

        config = ServeConfig((TcpPort(9001, "127.0.0.1", 9100, None, 1),))
        async with serving(config, dial_tcp=dial) as served:
            stream = served.connect(9001)
            await stream.send(b"data")
            await stream.send_eof()
            answer = await receive_all(stream)
            assert answer == b"after your FIN: PROXY TCP4 100.64.0.3 100.64.0.1 40000 9100\r\ndata"
            await settle()
            assert served.log[0].method == "TCP"
            assert served.log[0].sent_bytes == len(answer)


async def test_a_forward_to_nowhere_ends_the_connection_and_says_why() -> None:
    async def dial(port: TcpPort) -> MemoryStream:
        await anyio.lowlevel.checkpoint()
        raise ConnectionRefusedError(111, "Connection refused")

    async with serving(ServeConfig((TcpPort(9001, "127.0.0.1", 9100),)), dial_tcp=dial) as served:
        assert await receive_all(served.connect(9001)) == b""
        await settle()
        assert "connection refused" in served.log[0].error


async def test_tls_in_front_of_a_forward() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    async def echo(stream: MemoryStream) -> None:
        await stream.send(b"<" + await stream.receive() + b">")
        await receive_all(stream)
        await stream.aclose()

    async with anyio.create_task_group() as group:

        async def dial(port: TcpPort) -> MemoryStream:
            await anyio.lowlevel.checkpoint()
            near, far = stream_pair()
            group.start_soon(echo, far)
            return near

        async with serving(ServeConfig((TcpPort(5, "h", 1, TlsSelfSigned()),)), dial_tcp=dial) as served:
            stream = await connect_tls(served.connect(5), context, "whatever")
            await stream.send(b"hi")
            assert await stream.receive() == b"<hi>"
            await stream.aclose()


async def test_a_large_file_in_whole_and_in_part(tmp_path: pathlib.Path) -> None:
    content = os.urandom(900_000)
    (tmp_path / "big.bin").write_bytes(content)
    config = ServeConfig((HttpPort(80, (Site("*", (Mount("/f", DirectoryTarget(str(tmp_path))),)),)),))
    async with serving(config) as served:
        client = Client(served.connect())
        assert (await client.get("/f/big.bin")).body == content
        part = await client.get("/f/big.bin", "Range: bytes=300000-799999")
        assert (part.status, part.body) == (206, content[300_000:800_000])
        assert part.fields["content-range"] == "bytes 300000-799999/900000"
        assert (await client.get("/f/big.bin", "Range: bytes=900000-")).status == 416
        assert (await client.get("/f/big.bin", method="HEAD")).fields["content-length"] == "900000"
        assert (await client.get("/f/%2e%2e/%2e%2e/etc/passwd")).status == 404


@pytest.mark.loopback
async def test_a_real_backend_and_a_port_where_there_is_none() -> None:
    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nreal")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, answer)
        async with serving(single_target(parse_target(str(port)), 80)) as served:
            assert (await Client(served.connect()).get("/")).body == b"real"
        group.cancel_scope.cancel()
    async with serving(single_target(parse_target(str(port)), 80)) as served:
        answer_ = await Client(served.connect()).get("/")
        assert answer_.status == 502
        assert b"connection refused" in answer_.body

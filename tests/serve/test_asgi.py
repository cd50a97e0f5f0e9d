"""ASGI applications: requests, streaming, disconnection, websockets, lifespan, failures."""

import logging
from typing import Any

import anyio
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.events import Request as WsRequest

from tests.serve.app_kit import Client, serving
from tests.serve.kit import MemoryStream, settle
from tsnetpy.base.errors import ConfigError
from tsnetpy.serve import AsgiTarget, HttpPort, Mount, ServeConfig, Site, single_target
from tsnetpy.serve.asgi import load_app

pytestmark = pytest.mark.anyio


def config(app: object) -> ServeConfig:
    return single_target(AsgiTarget(app), 80)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the body; no lifespan."""
    if scope["type"] != "http":
        raise ValueError(scope["type"])
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


async def test_a_request_and_its_answer_in_one_send() -> None:
    async with serving(config(echo)) as served:
        stream = served.connect()
        client = Client(stream)
        for _ in range(3):
            answer = await client.get("/", method="POST", body=b"x" * 100)
            assert (answer.status, answer.body) == (200, b"x" * 100)
            assert answer.fields["content-length"] == "100"


async def test_the_scope_says_who_asks_and_where() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.update(scope)
            await echo(scope, receive, send)
        else:
            raise ValueError

    mounts = (Mount("/api/", AsgiTarget(app)),)
    async with serving(ServeConfig((HttpPort(80, (Site("*", mounts),)),))) as served:
        await Client(served.connect()).get("/api/x%20y?q=1", "Tailscale-User-Login: evil", "Tailscale_User_Login: evil")
    assert (seen["path"], seen["raw_path"], seen["root_path"]) == ("/api/x y", b"/api/x%20y", "/api")
    assert seen["query_string"] == b"q=1"
    assert seen["client"] == ("100.64.0.3", 40000)
    assert seen["server"] == ("server.lab.test", 80)
    assert seen["extensions"]["tailscale"]["login"] == "alice@example.com"
    logins = [value for name, value in seen["headers"] if b"login" in name]
    assert logins == [b"alice@example.com"]


async def test_a_stream_goes_out_piece_by_piece_and_the_application_sees_the_client_leave() -> None:
    left = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError
        assert (await receive())["more_body"] is False
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with serving(config(app)) as served:
        stream = served.connect()
        client = Client(stream)
        await stream.send(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        assert (await client.read_head())[1]["transfer-encoding"] == "chunked"
        assert await client.exactly(8) == b"3\r\none\r\n"
        await stream.aclose()
        with anyio.fail_after(5):
            await left.wait()


async def test_a_failing_application_is_a_500_and_the_connection_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/ok":
            await echo(scope, receive, send)
        elif scope["path"] == "/nothing":
            return
        else:
            raise ZeroDivisionError

    with caplog.at_level(logging.CRITICAL, "tsnetpy.serve"):
        async with serving(config(app)) as served:
            client = Client(served.connect())
            assert (await client.get("/")).status == 500
            assert (await client.get("/nothing")).status == 500
            assert (await client.get("/ok")).status == 200


async def test_a_response_cut_off_by_a_failure_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    with caplog.at_level(logging.CRITICAL, "tsnetpy.serve"):
        async with serving(config(app)) as served:
            client = Client(served.connect())
            with pytest.raises(anyio.EndOfStream):
                await client.get("/")
            assert client.buffer == b"half"


async def test_an_application_cannot_inject_headers(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nSet-Cookie: b")]})
        await send({"type": "http.response.body", "body": b""})

    with caplog.at_level(logging.CRITICAL, "tsnetpy.serve"):
        async with serving(config(app)) as served:
            assert (await Client(served.connect()).get("/")).status == 500


async def test_lifespan_brackets_the_server_and_shares_its_state() -> None:
    events: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            events.append((await receive())["type"])
            scope["state"]["answer"] = 42
            await send({"type": "lifespan.startup.complete"})
            events.append((await receive())["type"])
            await anyio.lowlevel.checkpoint()  # the shutdown may await although everything around is cancelled
            events.append("done")
            await send({"type": "lifespan.shutdown.complete"})
        else:
            assert scope["state"]["answer"] == 42
            await echo(scope, receive, send)

    async with serving(config(app)) as served:
        assert events == ["lifespan.startup"]
        assert (await Client(served.connect()).get("/")).status == 200
    assert events == ["lifespan.startup", "lifespan.shutdown", "done"]


async def test_an_application_that_refuses_to_start_says_why() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving(config(app)):
            pass
    assert caught.group_contains(ConfigError, match="no database", depth=1)


def test_import_strings() -> None:
    assert load_app(AsgiTarget("tests.serve.test_asgi:echo")) is not None
    with pytest.raises(ConfigError, match="cannot import"):
        load_app(AsgiTarget("no_such_module_anywhere:app"))
    with pytest.raises(ConfigError, match="has no"):
        load_app(AsgiTarget("tests.serve.test_asgi:nothing"))
    with pytest.raises(ConfigError, match="not callable"):
        load_app(AsgiTarget("tests.serve.test_asgi:__doc__"))


class WsClient:
    """A websocket client over a stream."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.ws = WSConnection(ConnectionType.CLIENT)

    async def open(self, path: str) -> Event:
        await self.stream.send(self.ws.send(WsRequest(host="server", target=path, subprotocols=["chat"])))
        return await self.next()

    async def next(self) -> Event:
        while True:
            for event in self.ws.events():
                return event
            self.ws.receive_data(await self.stream.receive())

    async def send(self, event: Event) -> None:
        await self.stream.send(self.ws.send(event))


async def ws_echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        raise ValueError
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/no":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][0]})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("text") == "bye":
            await send({"type": "websocket.close", "code": 4001, "reason": "told so"})
            return
        await send({**message, "type": "websocket.send"})


async def test_a_websocket_echoes_text_bytes_and_pings() -> None:
    async with serving(config(ws_echo)) as served:
        client = WsClient(served.connect())
        accepted = await client.open("/ws")
        assert isinstance(accepted, AcceptConnection)
        assert accepted.subprotocol == "chat"
        await client.send(TextMessage("häl", message_finished=False))
        await client.send(TextMessage("lo"))
        assert (await client.next()) == TextMessage("hällo")
        await client.send(BytesMessage(b"\0" * 70_000))
        size = 0
        while size < 70_000:
            event = await client.next()
            assert isinstance(event, BytesMessage)
            size += len(event.data)
        await client.send(Ping(b"p"))
        assert isinstance(await client.next(), Pong)
        await client.send(TextMessage("bye"))
        closed = await client.next()
        assert isinstance(closed, CloseConnection)
        assert (closed.code, closed.reason) == (4001, "told so")
        assert served.log == [] or served.log[0].status == 101


async def test_a_refused_websocket_is_a_403() -> None:
    async with serving(config(ws_echo)) as served:
        client = WsClient(served.connect())
        await client.open("/no")
        await settle()
        assert served.log[0].status == 403

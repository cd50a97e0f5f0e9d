"""Running a configuration on a memory host, and speaking HTTP to it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, TaskStatus

from tests.serve.kit import MemoryHost, MemoryStream
from tsnetpy.netstack.attributes import WhoIs
from tsnetpy.serve import ServeConfig, run
from tsnetpy.serve.backend import Dial, dial
from tsnetpy.serve.server import AccessRecord
from tsnetpy.serve.tcp_forward import DialTcp
from tsnetpy.serve.tcp_forward import dial as dial_tcp
from tsnetpy.tailcfg.node import Node, UserProfile

ALICE = WhoIs(Node(name="client.lab.test."), UserProfile(login_name="alice@example.com", display_name="Alice"))


class Served:
    """A running server."""

    def __init__(self, host: MemoryHost, urls: list[str], log: list[AccessRecord]) -> None:
        self.host = host
        self.urls = urls
        self.log = log

    def connect(self, port: int = 80) -> MemoryStream:
        return self.host.listeners[port].connect()


@asynccontextmanager
async def serving(config: ServeConfig, dial: Dial = dial, dial_tcp: DialTcp = dial_tcp) -> AsyncIterator[Served]:
    """Serve *config* while the block runs."""
    host = MemoryHost(who={"100.64.0.3": ALICE})
    log: list[AccessRecord] = []
    async with anyio.create_task_group() as group:

        async def serve(*, task_status: TaskStatus[list[str]]) -> None:
            await run(host, config, log=log.append, dial=dial, dial_tcp=dial_tcp, task_status=task_status)

        urls = await group.start(serve)
        try:
            yield Served(host, urls, log)
        finally:
            group.cancel_scope.cancel()


class Answer:
    """A response as a client reads it."""

    def __init__(self, status: int, fields: dict[str, str], body: bytes) -> None:
        self.status = status
        self.fields = fields
        self.body = body


class Client:
    """A small HTTP/1.1 client over a stream, independent of the server's parser."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def _more(self) -> None:
        self.buffer += await self.stream.receive()

    async def _line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            await self._more()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    async def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._more()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    async def read_head(self) -> tuple[int, dict[str, str]]:
        status = int((await self._line()).split(b" ")[1])
        fields: dict[str, str] = {}
        while line := await self._line():
            name, _, value = line.decode("latin-1").partition(": ")
            fields[name.lower()] = value
        return status, fields

    async def read_answer(self, *, head_only: bool = False) -> Answer:
        status, fields = await self.read_head()
        body = b""
        if head_only or status in (204, 304):
            pass
        elif fields.get("transfer-encoding") == "chunked":
            while size := int(await self._line(), 16):
                body += await self.exactly(size)
                await self._line()
            await self._line()
        elif "content-length" in fields:
            body = await self.exactly(int(fields["content-length"]))
        else:
            try:
                while True:
                    await self._more()
            except anyio.EndOfStream:
                body, self.buffer = self.buffer, b""
        return Answer(status, fields, body)

    async def get(self, path: str, *fields: str, method: str = "GET", body: bytes = b"") -> Answer:
        lines = [f"{method} {path} HTTP/1.1", "Host: server", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        await self.stream.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return await self.read_answer(head_only=method == "HEAD")

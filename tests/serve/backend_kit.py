"""The backend of the recordings, on in-memory streams: it logs what it saw and answers by path (``/m/NAME``)."""

import base64
import gzip
import json

import anyio
from anyio.abc import TaskGroup

from tests.serve.kit import MemoryStream, settle, stream_pair
from tsnetpy.serve.config import ProxyTarget

DATE = ("Date", "Mon, 02 Jan 2006 15:04:05 GMT")
JSON = ("Content-Type", "application/json")

RAW = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n"
    b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Other\r\nContent-Type: text/plain"
    b"\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\nX-Undeclared: u\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b'HTTP/1.1 304 Not Modified\r\nEtag: "x"\r\n\r\n',
    "600reasonless": b"HTTP/1.1 299\r\nContent-Length: 2\r\n\r\nok",
    "noct": b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<html>sniffed</",
    "bigresphdr": b"HTTP/1.1 200 OK\r\nX-Big: " + b"a" * 200000 + b"\r\nContent-Length: 2\r\n\r\nok",
    "clte": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "hdrutf8": "HTTP/1.1 200 OK\r\nX-U: äöü\r\nContent-Length: 2\r\n\r\nok".encode(),
}
RAW_THEN_CLOSE = {
    "close-now": b"",
    "wsother": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\nhello",
    "unasked101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "close-mid": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nContent-Type: text/plain\r\n\r\n0123456789",
    "close-mid-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n"
    b"5\r\nhello\r\n",
    "http10": b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil close",
    "garbage": b"this is not http\r\n\r\n",
    "badhdr": b"HTTP/1.1 200 OK\r\nBad Header: x\r\nContent-Length: 2\r\n\r\nok",
    "extra": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokEXTRA",
}
FIELDS = {
    "hop": (
        "200 OK",
        [
            DATE,
            JSON,
            ("Connection", "X-Drop-Me, keep-alive"),
            ("X-Drop-Me", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Authenticate", "Basic"),
            ("Upgrade", "h2c"),
            ("Te", "trailers"),
            ("Proxy-Connection", "x"),
            ("Trailer", "X-Nope"),
            ("X-Stay", "1"),
        ],
        b"hop\n",
    ),
    "cookies": (
        "200 OK",
        [
            DATE,
            ("Set-Cookie", "a=1; Path=/"),
            ("Set-Cookie", "b=2"),
            ("x-lower-name", "v"),
            ("X-Empty", ""),
            ("Server", "backend/1"),
            ("Via", "1.1 x"),
        ],
        b"cookies\n",
    ),
    "redirect": ("302 Found", [DATE, ("Location", "/elsewhere?x=1")], b""),
    "redirectabs": ("301 Moved Permanently", [DATE, ("Location", "http://127.0.0.1:9000/base/z")], b""),
    "999": ("999 Weird", [DATE], b"x"),
}


def response(status: str, fields: list[tuple[str, str]], body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body


class Reader:
    """Buffered reading from a stream."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def more(self) -> bool:
        try:
            self.buffer += await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return False
        return True

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            if not await self.more():
                data, self.buffer = self.buffer, b""
                return data
        head, found, self.buffer = self.buffer.partition(mark)
        return head + found

    async def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count and await self.more():
            pass
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data


class Backend:
    """All listeners of the recordings' backend; :meth:`dial` is what the proxy is given."""

    def __init__(self, group: TaskGroup) -> None:
        self.seen: list[dict[str, object]] = []
        self.dials = 0
        self._group = group

    async def dial(self, target: ProxyTarget) -> MemoryStream:
        await anyio.lowlevel.checkpoint()
        if target.scheme == "unix" and target.host != "/run/api.sock":
            raise FileNotFoundError(2, "No such file or directory")
        if target.port == 9:
            raise ConnectionRefusedError(111, "Connection refused")
        if target.scheme == "https":
            raise OSError("certificate verify failed")
        self.dials += 1
        near, far = stream_pair(("127.0.0.1", 50000), ("127.0.0.1", target.port))
        names = {"unix": "unix", "http": "http", "https+insecure": "https"}
        self._group.start_soon(self._serve, far, names[target.scheme])
        return near

    async def _serve(self, stream: MemoryStream, name: str) -> None:
        reader = Reader(stream)
        try:
            while await self._request(stream, reader, name):
                pass
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        await stream.aclose()

    async def _request(self, stream: MemoryStream, reader: Reader, name: str) -> bool:
        head = await reader.until(b"\r\n\r\n")
        if not head.endswith(b"\r\n\r\n"):
            return False
        lines = head.decode("latin-1").split("\r\n")
        fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:] if ":" in line]
        low = {field[0].lower(): field[1] for field in fields}
        path = lines[0].split(" ")[1]
        mode = path.split("/m/", 1)[1].split("?")[0] if "/m/" in path else "echo"
        entry: dict[str, object] = {"listener": name, "head": head.decode("latin-1"), "body": b"", "framing": "none"}
        self.seen.append(entry)
        if mode == "early":
            await stream.send(response("413 Too Large", [DATE, ("Connection", "close")], b"early\n"))
            await settle(20)
            return False
        if low.get("expect", "").lower() == "100-continue":
            if mode == "final417":
                await stream.send(response("417 Expectation Failed", [DATE, ("Connection", "close")], b"no\n"))
                return False
            await stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        entry["body"], entry["framing"] = await self._body(reader, low)
        echo = json.dumps({"line": lines[0], "headers": fields}).encode()
        if mode == "ws":
            return await self._websocket(stream, reader, name)
        if mode in RAW_THEN_CLOSE:
            if RAW_THEN_CLOSE[mode]:
                await stream.send(RAW_THEN_CLOSE[mode])
                await settle(20)
            return False
        if mode == "reset":
            stream.abort()
            return False
        if mode in RAW:
            await stream.send(RAW[mode])
        elif mode in FIELDS:
            await stream.send(response(*FIELDS[mode]))
        elif mode == "slow":
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Type: text/plain\r\n\r\n")
            for byte in b"slowly":
                await settle(5)
                await stream.send(bytes((byte,)))
        elif mode == "sse":
            await stream.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for n in range(3):
                await stream.send(b"9\r\ndata: %d\n\n\r\n" % n)
                await settle(5)
            await stream.send(b"0\r\n\r\n")
        elif mode == "hints":
            await stream.send(
                b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>; rel=preload\r\n\r\n"
                + response("200 OK", [DATE, JSON], echo)
            )
        elif mode == "500":
            await stream.send(response("500 Oops Custom Reason", [DATE, JSON], echo))
        elif mode == "gzip":
            packed = "gzip" in low.get("accept-encoding", "")
            body = gzip.compress(b"squeezed body", mtime=0) if packed else b"squeezed body"
            extra = [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")] if packed else []
            await stream.send(response("200 OK", [DATE, ("Content-Type", "text/plain"), *extra], body))
        else:
            full = response("200 OK", [DATE, JSON], echo)
            await stream.send(full[: -len(echo)] if lines[0].startswith("HEAD ") else full)
        return low.get("connection", "").lower() != "close"

    async def _body(self, reader: Reader, low: dict[str, str]) -> tuple[bytes, str]:
        if "chunked" in low.get("transfer-encoding", "").lower():
            body = b""
            while True:
                line = await reader.until(b"\r\n")
                if not line:
                    return body, "eof"
                size = int(line.split(b";")[0].strip() or b"0", 16)
                if size == 0:
                    while await reader.until(b"\r\n") not in (b"\r\n", b""):
                        pass
                    return body, "chunked"
                body += await reader.exactly(size)
                await reader.until(b"\r\n")
        if "content-length" in low:
            size = int(low["content-length"])
            body = await reader.exactly(size)
            return body, "length" if len(body) == size else "eof-in-length"
        return b"", "none"

    async def _websocket(self, stream: MemoryStream, reader: Reader, name: str) -> bool:
        await stream.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Extra: yes\r\n\r\n"
        )
        got = b""
        while reader.buffer or await reader.more():
            data, reader.buffer = reader.buffer, b""
            got += data
            await stream.send(b"<" + data + b">")
            if b"quit" in data:
                break
        self.seen.append({"listener": name, "upgraded": base64.b64encode(got).decode()})
        return False

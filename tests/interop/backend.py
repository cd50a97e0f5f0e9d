"""The web application behind Serve in the interop tests: an ASGI app on a loopback port, with nothing but the library.

Run as ``python backend.py PORT``. ``/hello``, ``/headers`` (what the backend saw, as JSON), ``POST /sha256`` (digest of
the body), ``/zeros?n`` (n bytes of a fixed pattern), and a websocket that echoes on ``/ws``.
"""

import asyncio
import base64
import hashlib
import json
import sys

PATTERN = hashlib.sha256(b"tsnetpy interop").digest() * 2048  # 64 KiB


async def read_head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    """Return method, target and header fields of a request."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    return method, target, {name.lower(): value for name, value in fields.items()}


async def digest_body(reader: asyncio.StreamReader, fields: dict[str, str]) -> str:
    """Return the SHA-256 of a request body, of known length or in chunks."""
    digest = hashlib.sha256()
    if fields.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            digest.update(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readline()
        return digest.hexdigest()
    left = int(fields.get("content-length", "0"))
    while left:
        data = await reader.read(min(left, 1 << 18))
        digest.update(data)
        left -= len(data)
    return digest.hexdigest()


async def echo_frames(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
    """Accept a websocket (RFC 6455) and send every frame back unmasked."""
    accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())  # noqa: S324
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
    while True:
        first, second = await reader.readexactly(2)
        size = second & 127
        if size >= 126:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
        mask = await reader.readexactly(4)
        data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await reader.readexactly(size)))
        header = bytes([first, size]) if size < 126 else bytes([first, 126]) + size.to_bytes(2, "big")
        writer.write(header + data)
        if first & 15 == 8:
            return


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    try:
        while True:
            method, target, fields = await read_head(reader)
            if "sec-websocket-key" in fields:
                await echo_frames(reader, writer, fields["sec-websocket-key"])
                break
            path, _, query = target.partition("?")
            if path == "/zeros":
                size = int(query)
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                while size:
                    writer.write(PATTERN[:size])
                    size -= min(size, len(PATTERN))
                    await writer.drain()
                continue
            digest = await digest_body(reader, fields)
            body = {"/sha256": digest, "/headers": json.dumps(fields)}.get(path, f"hello from {method} {path}\n")
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    """Listen on the loopback port given on the command line."""
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=512)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

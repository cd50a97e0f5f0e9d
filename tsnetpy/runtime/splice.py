"""Two byte streams joined: what one end sends comes out at the other, both ways, half-closes included."""

from typing import Final

import anyio
from anyio.abc import ByteStream

CHUNK_BYTES: Final = 1 << 18
"""What one receive may return: also what one direction holds, since it reads on only when the sink has taken all."""


async def splice(one: ByteStream, other: ByteStream) -> tuple[int, int]:
    """Copy both ways until both ends are reached; an end of one side is passed on as a half-close.

    A broken side ends both, and so does an end that the other side cannot be told of (TLS has no half-close). The
    streams stay open for the caller to close.

    Returns:
        Bytes copied from *one* to *other*, and back.
    """
    counts = [0, 0]
    async with anyio.create_task_group() as group:
        group.start_soon(_copy, one, other, counts, 0, group.cancel_scope)
        group.start_soon(_copy, other, one, counts, 1, group.cancel_scope)
    return counts[0], counts[1]


async def _copy(source: ByteStream, sink: ByteStream, counts: list[int], at: int, both: anyio.CancelScope) -> None:
    try:
        while True:
            data = await source.receive(CHUNK_BYTES)
            await sink.send(data)
            counts[at] += len(data)
    except anyio.EndOfStream:
        try:
            await sink.send_eof()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, NotImplementedError):
            both.cancel()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        both.cancel()

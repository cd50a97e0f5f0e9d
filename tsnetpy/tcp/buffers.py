"""The byte stores of a connection: what is to be sent, what may be read, what came too early.

All of them hold immutable chunks and are addressed by absolute sequence number. Large ``bytes`` are taken by
reference; what the caller could still change is copied. Small pieces are packed together, so that a peer or an
application that deals in single bytes pays for bytes and not for objects (SegmentSmack, CVE-2018-5390).
"""

from bisect import bisect_right
from typing import Final, final

from tsnetpy.base.packet import Buffer

_SMALL: Final = 4096
"""Below this, a chunk is packed with its neighbours."""
_PACK_LIMIT: Final = 65_536
"""A block of packed writes is sealed at this size."""


@final
class SendBuffer:
    """A rope of the bytes from SND.UNA to the end of what the application wrote.

    Attributes:
        start: sequence number of the first byte kept.
        end: sequence number after the last byte.
    """

    __slots__ = ("_chunks", "_loose", "_loose_len", "_sealed_end", "_starts", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self._chunks: list[Buffer] = []
        self._starts: list[int] = []
        self._sealed_end = start
        self._loose: list[bytes] = []
        self._loose_len = 0

    def append(self, data: Buffer, size: int) -> None:
        """Take the first *size* bytes of *data*: by reference if they are immutable and many, else as a copy."""
        if size < _SMALL:
            self._loose.append(bytes(data[:size]))
            self._loose_len += size
            self.end += size
            if self._loose_len >= _PACK_LIMIT:
                self._seal()
            return
        if self._loose_len:
            self._seal()
        chunk: Buffer
        if isinstance(data, bytes):
            # A small part of something huge is copied: a view would keep all of it alive.
            if size == len(data):
                chunk = data
            elif size * 4 < len(data):
                chunk = data[:size]
            else:
                chunk = memoryview(data)[:size]
        elif isinstance(data, memoryview) and type(data.obj) is bytes and data.contiguous and data.format == "B":
            chunk = data[:size] if size * 4 >= len(data.obj) else bytes(data[:size])
        else:
            chunk = bytes(data[:size])
        self._chunks.append(chunk)
        self._starts.append(self._sealed_end)
        self._sealed_end += size
        self.end += size

    def _seal(self) -> None:
        """Make one chunk of the loose writes."""
        loose = self._loose
        self._chunks.append(loose[0] if len(loose) == 1 else b"".join(loose))
        self._starts.append(self._sealed_end)
        self._sealed_end += self._loose_len
        self._loose = []
        self._loose_len = 0

    def slices(self, seq: int, size: int) -> list[Buffer]:
        """Return *size* bytes from *seq* on as pieces, without copying. They must lie inside the buffer."""
        stop = seq + size
        if stop > self._sealed_end:
            self._seal()
        starts = self._starts
        chunks = self._chunks
        index = bisect_right(starts, seq) - 1
        chunk = chunks[index]
        begin = seq - starts[index]
        if begin + size <= len(chunk):
            if begin == 0 and size == len(chunk):
                return [chunk]
            return [memoryview(chunk)[begin : begin + size]]
        pieces: list[Buffer] = [memoryview(chunk)[begin:] if begin else chunk]
        size -= len(chunk) - begin
        while size > 0:
            index += 1
            chunk = chunks[index]
            if size < len(chunk):
                pieces.append(memoryview(chunk)[:size])
                break
            pieces.append(chunk)
            size -= len(chunk)
        return pieces

    def drop_until(self, seq: int) -> None:
        """Forget everything before *seq*: it was acknowledged."""
        self.start = seq
        starts = self._starts
        if len(starts) > 1 and starts[1] <= seq:
            index = bisect_right(starts, seq) - 1
            del starts[:index]
            del self._chunks[:index]
        if starts and seq >= self._sealed_end:
            starts.clear()
            self._chunks.clear()

    def clear(self) -> None:
        """Forget everything, for a connection that ended."""
        self.start = self.end
        self._sealed_end = self.end
        self._chunks.clear()
        self._starts.clear()
        self._loose = []
        self._loose_len = 0


@final
class ReceiveQueue:
    """In-order bytes waiting for the application.

    Attributes:
        size: how many.
    """

    __slots__ = ("_chunks", "_head", "_tail", "size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []  # an empty deque takes ten times the memory
        self._head = 0
        self._tail = bytearray()
        self.size = 0

    def append(self, data: bytes) -> None:
        """Add *data* at the end."""
        size = len(data)
        self.size += size
        if size < _SMALL:
            if self._tail or self.size > size:
                self._tail += data
                if len(self._tail) >= _PACK_LIMIT:
                    self._flush()
                return
        elif self._tail:
            self._flush()
        self._chunks.append(data)

    def _flush(self) -> None:
        self._chunks.append(bytes(self._tail))
        self._tail = bytearray()

    def read(self, max_bytes: int) -> bytes:
        """Remove and return up to *max_bytes* from the front.

        Whole chunks are preferred over exact amounts, so fewer bytes than available may come back; ``b""`` only when
        the queue is empty or *max_bytes* is not positive.
        """
        if max_bytes <= 0 or self.size == 0:
            return b""
        chunks = self._chunks
        if not chunks:
            self._flush()
        head = self._head
        chunk = chunks[0]
        left = len(chunk) - head
        if left > max_bytes:
            self._head = head + max_bytes
            self.size -= max_bytes
            return chunk[head : head + max_bytes]
        self._head = 0
        first = chunk[head:] if head else chunk
        self.size -= left
        if self.size == 0:
            chunks.clear()
            return first
        if len(chunks) == 1:
            self._flush()
        room = max_bytes - left
        count = 1
        while count < len(chunks) and len(chunks[count]) <= room:
            room -= len(chunks[count])
            self.size -= len(chunks[count])
            count += 1
        if count == 1:
            del chunks[0]
            return first
        parts = chunks[:count]
        parts[0] = first
        del chunks[:count]
        return b"".join(parts)

    def clear(self) -> None:
        """Forget everything."""
        self._chunks.clear()
        self._tail = bytearray()
        self._head = 0
        self.size = 0


@final
class ReassemblyQueue:
    """Bytes that arrived ahead of RCV.NXT, as disjoint sorted ranges; what came first wins over what overlaps it.

    Attributes:
        starts, ends: the ranges, ascending; neighbours never touch.
        size: bytes held.
    """

    __slots__ = ("_max_ranges", "_parts", "_recent", "ends", "size", "starts")

    def __init__(self, max_ranges: int) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self._parts: list[list[bytes | bytearray]] = []
        self._recent: list[int] = []
        self._max_ranges = max_ranges
        self.size = 0

    def add(self, seq: int, data: bytes) -> int:
        """Insert *data* at *seq*; return how many bytes were new, or -1 when the range limit refuses it."""
        end = seq + len(data)
        starts = self.starts
        ends = self.ends
        # The last range that starts at or before seq takes the data if it reaches that far.
        at = bisect_right(starts, seq) - 1
        if at >= 0 and ends[at] >= seq:
            self._touch(starts[at])
            if ends[at] >= end:
                return 0
        else:
            at += 1
            if at == len(starts) or starts[at] > end:
                if len(starts) >= self._max_ranges:
                    return -1
                starts.insert(at, seq)
                ends.insert(at, end)
                self._parts.insert(at, [data])
                self.size += len(data)
                self._touch(seq)
                return len(data)
            # It begins before range `at` and reaches it: grow that range to the left by what it lacks.
            new = starts[at] - seq
            parts = self._parts[at]
            if new < _SMALL and len(parts[0]) < _SMALL:
                parts[0] = bytearray(data[:new]) + parts[0]
            else:
                parts.insert(0, data[:new])
            self.size += new
            starts[at] = seq
            self._touch(seq)
            if ends[at] >= end:
                return new
            return new + self._grow(at, seq, end, data)
        return self._grow(at, seq, end, data)

    def _grow(self, at: int, seq: int, end: int, data: bytes) -> int:
        """Extend range *at* to the right with the part of *data* (which spans seq..end) that nobody holds yet."""
        starts = self.starts
        ends = self.ends
        parts = self._parts[at]
        added = 0
        while True:
            have = ends[at]
            following = at + 1
            last = following >= len(starts) or starts[following] > end
            stop = end if last else starts[following]
            if stop > have:
                piece = data[have - seq : stop - seq]
                added += stop - have
                ends[at] = stop
                tail = parts[-1]
                if len(piece) < _SMALL and len(tail) < _PACK_LIMIT:
                    if isinstance(tail, bytearray):
                        tail += piece
                    elif len(tail) < _SMALL:
                        parts[-1] = bytearray(tail) + piece
                    else:
                        parts.append(piece)
                else:
                    parts.append(piece)
            if last:
                break
            parts.extend(self._parts[following])
            ends[at] = ends[following]
            del starts[following]
            del ends[following]
            del self._parts[following]
            if ends[at] >= end:
                break
        self.size += added
        return added

    def _touch(self, seq: int) -> None:
        """Remember the range around *seq* as the most recent one (RFC 2018 §4: it is reported first)."""
        recent = self._recent
        if recent and recent[0] == seq:
            return
        recent.insert(0, seq)
        del recent[8:]

    def pop_until(self, rcv_nxt: int) -> list[bytes]:
        """Remove ranges that *rcv_nxt* reached and return what of them lies at or after it, in order."""
        out: list[bytes] = []
        starts = self.starts
        while starts and starts[0] <= rcv_nxt:
            skip = rcv_nxt - starts[0]
            rcv_nxt = max(rcv_nxt, self.ends[0])
            self.size -= self.ends[0] - starts[0]
            parts = self._parts[0]
            del starts[0]
            del self.ends[0]
            del self._parts[0]
            for part in parts:
                if skip >= len(part):
                    skip -= len(part)
                    continue
                out.append(bytes(part[skip:]) if skip or isinstance(part, bytearray) else part)
                skip = 0
        return out

    def blocks(self, limit: int) -> list[tuple[int, int]]:
        """Return up to *limit* ranges, the most recently changed first (RFC 2018 §4)."""
        starts = self.starts
        out: list[tuple[int, int]] = []
        for seq in self._recent:
            at = bisect_right(starts, seq) - 1
            if at >= 0 and self.ends[at] > seq:
                block = (starts[at], self.ends[at])
                if block not in out:
                    out.append(block)
                    if len(out) == limit:
                        return out
        for at in range(len(starts)):
            block = (starts[at], self.ends[at])
            if block not in out:
                out.append(block)
                if len(out) >= limit:
                    break
        return out

    def clear(self) -> None:
        """Forget everything."""
        self.starts.clear()
        self.ends.clear()
        self._parts.clear()
        self._recent.clear()
        self.size = 0

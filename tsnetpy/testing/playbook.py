"""Tests of one stack against hand-made packets, line by line, in the notation of packetdrill.

::

    book = Playbook()
    book.listen()
    book.inject("S 0:0(0) win 65535 <mss 1000>")
    book.expect("S. 0:0(0) ack 1 <...>")
    book.inject(". 1:1(0) ack 1 win 65535")
    socket = book.accept()
    book.send(2000)
    book.expect("P. 1:2001(2000) ack 1")
    book.wait(ms(300))

Both sequence spaces start at 0. Payload bytes follow from the stream offset and are compared by themselves.
"""

from typing import final

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.instant import Duration, Instant
from tsnetpy.ipstack import Stack, TcpListenerSocket, TcpSocket
from tsnetpy.tcp import TcpConfig

from .packetdrill.parser import parse
from .packetdrill.runner import START, Mismatch, Run
from .packetdrill.script import Packet, Script
from .packetdrill.settings import VARIANTS, Settings, Variant, linux_like
from .packetdrill.wire import describe, pattern

__all__ = ["Mismatch", "Playbook", "linux_like", "pattern"]


@final
class Playbook:
    """One stack, one connection, and the test as the peer.

    Args:
        config: of the connections; the stack's usual one if left out. MSS comes from the MTU of 1500 (IPv6: 1520).
        variant: as for packetdrill scripts (IPv6, GRO off, one MSS at a time).

    Attributes:
        socket: the connection, once :meth:`accept` or :meth:`connect` made one.
        sent, read_bytes: how far into either stream the application is.
    """

    def __init__(self, config: TcpConfig | None = None, variant: Variant = VARIANTS[0]) -> None:
        settings = Settings(config if config is not None else TcpConfig(), tolerance=0)
        self._run = Run(Script(), settings, variant, START)
        self._listener: TcpListenerSocket | None = None
        self._socket: TcpSocket | None = None
        self.sent = 0
        self.read_bytes = 0

    @property
    def stack(self) -> Stack:
        """The stack under test."""
        return self._run.stack

    @property
    def now(self) -> Instant:
        """Virtual time."""
        return self._run.now

    @property
    def socket(self) -> TcpSocket:
        """The connection."""
        if self._socket is None:
            raise RuntimeError("there is no connection yet")
        return self._socket

    @property
    def trace(self) -> list[str]:
        """Every packet so far, as text with the time in seconds."""
        return self._run.trace

    # -- the peer ----------------------------------------------------------------------------------------------------

    def inject(self, packet: str) -> None:
        """Let *packet* (as behind ``<`` in a script) arrive now."""
        self._run.inject(_packet("<", packet))
        self._run.pump()

    def expect(self, packet: str, *, within: Duration = 0) -> Instant:
        """Check that the next thing sent is *packet* (as behind ``>``), now or within *within*; return when it was.

        Raises:
            Mismatch: it is something else, or nothing.
        """
        return self._run.expect(_packet(">", packet), self._run.now, self._run.now + within)

    def expect_nothing(self, during: Duration = 0) -> None:
        """Check that nothing is sent now, nor in the time *during* from now on, which passes.

        Raises:
            Mismatch: something is.
        """
        self._run.advance(self._run.now + during)
        if self._run.sent:
            head = self._run.sent[0]
            raise Mismatch(f"expected nothing, sent {getattr(head, 'proto', None) or describe(head)}")  # type: ignore[arg-type]  # what has no proto is a TCP segment

    def wait(self, span: Duration) -> None:
        """Let time pass; what is sent meanwhile waits to be expected."""
        self._run.advance(self._run.now + span)

    # -- the application ---------------------------------------------------------------------------------------------

    def listen(self, backlog: int = 128) -> None:
        """Listen on the one local port."""
        self._listener = self.stack.tcp_listen(self._run.flow.local_port, self.now, backlog=backlog)

    def accept(self) -> TcpSocket:
        """Return the connection whose handshake is over."""
        socket = self._listener.accept() if self._listener is not None else None
        if socket is None:
            raise Mismatch("no connection to accept")
        self._socket = socket
        return socket

    def connect(self) -> TcpSocket:
        """Start to connect to the peer; the SYN is the next thing to expect."""
        flow = self._run.flow
        self._socket = self.stack.tcp_connect(Endpoint(flow.remote, flow.remote_port), self.now)
        flow.local_port = self._socket.local.port
        self._run.pump()
        return self._socket

    def handshake(self, options: str = "mss 1460,sackOK,nop,nop,nop,wscale 7", win: int = 65535) -> TcpSocket:
        """Do listen, the peer's SYN with *options*, our answer, and accept."""
        self.listen()
        self.inject(f"S 0:0(0) win {win}" + (f" <{options}>" if options else ""))
        self.expect("S. 0:0(0) ack 1 <...>")
        self.inject(f". 1:1(0) ack 1 win {win >> 7}" if "wscale 7" in options else f". 1:1(0) ack 1 win {win}")
        return self.accept()

    def send(self, size: int) -> int:
        """Write the next *size* bytes of the stream; return how many were taken."""
        taken = self.socket.send(pattern(1 + self.sent, size), self.now)
        self.sent += taken
        self._run.pump()
        return taken

    def read(self, size: int = 1 << 20) -> int:
        """Read up to *size* bytes, compare them with the stream, and return how many there were.

        Raises:
            Mismatch: they are not what the peer sent.
        """
        data = self.socket.read(size, self.now)
        if data != pattern(1 + self.read_bytes, len(data)):
            raise Mismatch(f"wrong bytes at offset {self.read_bytes}")
        self.read_bytes += len(data)
        self._run.pump()
        return len(data)

    def shutdown(self) -> None:
        """Finish sending."""
        self.socket.shutdown(self.now)
        self._run.pump()

    def close(self) -> None:
        """Close both directions."""
        self.socket.close(self.now)
        self._run.pump()

    def abort(self) -> None:
        """Reset."""
        self.socket.abort(self.now)
        self._run.pump()


def _packet(direction: str, text: str) -> Packet:
    action = parse(f"+0 {direction} {text}").events[0].action
    assert isinstance(action, Packet)
    return action

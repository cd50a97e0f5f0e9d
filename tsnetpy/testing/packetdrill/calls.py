"""The system calls of a script over our sockets. A call returns ``None`` while it would block."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, final

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import MILLISECOND, Instant
from tsnetpy.ipstack import Stack, TcpListenerSocket, TcpSocket, UdpSocket
from tsnetpy.tcp import State

from .script import Call, Name, Struct, Unsupported, Value
from .settings import name_of
from .wire import Flow, pattern

_IGNORED_OPTIONS: Final = frozenset(
    {"SO_REUSEADDR", "IP_MTU_DISCOVER", "IPV6_MTU_DISCOVER", "SO_LINGER_OFF", "IPV6_V6ONLY"}
)
_SIZES: Final = frozenset({"SO_SNDBUF", "SO_RCVBUF"})
_ERRNO: Final = {
    "timeout": "ETIMEDOUT",
    "reset": "ECONNRESET",
    "refused": "ECONNREFUSED",
    "unreachable": "EHOSTUNREACH",
}
_POLL: Final = {"POLLIN": 1, "POLLPRI": 2, "POLLOUT": 4, "POLLERR": 8, "POLLHUP": 16, "POLLRDHUP": 0x2000}


class CallMismatch(Exception):
    """A call gave something else than the script says; the message tells what."""


@dataclass(slots=True)
class Outcome:
    """What a call returned."""

    result: int
    errno: str | None = None


@final
@dataclass(slots=True)
class _Descriptor:
    """One file descriptor of the script."""

    datagram: bool
    nonblocking: bool = False
    listener: TcpListenerSocket | None = None
    tcp: TcpSocket | None = None
    udp: UdpSocket | None = None
    bound: bool = False
    connecting: bool = False
    read_shut: bool = False
    error_told: bool = False
    written: int = 1
    read: int = 1
    options: dict[str, int] = field(default_factory=dict)


@final
class Calls:
    """File descriptors and the calls on them.

    Args:
        stack: where sockets live.
        flow: addresses, ports.
        max_segment: what TCP_MAXSEG is set to somewhere in the script; the stack already uses it.
    """

    def __init__(self, stack: Stack, flow: Flow, max_segment: int) -> None:
        self._stack = stack
        self._flow = flow
        self._max_segment = max_segment
        self._table: dict[int, _Descriptor] = {}
        self._progress = 0
        self.last_tcp: TcpSocket | None = None
        self.protocol_udp = False

    def attempt(self, call: Call, now: Instant, fresh: bool) -> Outcome | None:
        """Do *call*, or go on with it; ``None`` if it blocks.

        Args:
            call: as the script has it; its result names the descriptor that socket and accept return.
            now: the current instant.
            fresh: False when the same call is tried again.

        Raises:
            Unsupported: not a call, or an argument of it, that this runner knows.
            CallMismatch: a value passed back through an argument is not the script's.
        """
        if fresh:
            self._progress = 0
        method = _CALLS.get(call.name)
        if method is None:
            raise Unsupported(f"system call {call.name}")
        if len(call.arguments) < _ARGUMENTS.get(call.name, 1):
            raise Unsupported(f"{call.name} with {len(call.arguments)} arguments")
        return method(self, call, now)

    # -- the table ---------------------------------------------------------------------------------------------------

    def _get(self, call: Call) -> _Descriptor:
        number = call.arguments[0] if call.arguments else None
        if not isinstance(number, int):
            raise Unsupported(f"{call.name} on something that is no descriptor")
        found = self._table.get(number)
        if found is None:
            raise CallMismatch(f"descriptor {number} is not open")
        return found

    def _new_number(self, call: Call) -> int:
        if not isinstance(call.result, int):
            raise Unsupported(f"{call.name} without a descriptor as its result")
        if call.result < 0:
            raise CallMismatch(f"{call.name} succeeds")
        return call.result

    def socket(self, call: Call, now: Instant) -> Outcome:
        """socket(domain, type, protocol)."""
        kind = call.arguments[1]
        names = kind.parts if isinstance(kind, Name) else ()
        number = self._new_number(call)
        if "SOCK_DGRAM" in names:
            self._table[number] = _Descriptor(True, "SOCK_NONBLOCK" in names)
            self.protocol_udp = True
        elif "SOCK_STREAM" in names:
            self._table[number] = _Descriptor(False, "SOCK_NONBLOCK" in names)
        else:
            raise Unsupported(f"socket type {'|'.join(names)}")
        return Outcome(number)

    def bind(self, call: Call, now: Instant) -> Outcome:
        """bind(fd, address, length): to the one port that the script talks to."""
        fd = self._get(call)
        fd.bound = True
        if fd.datagram:
            fd.udp = self._stack.udp_bind(self._flow.local_port)
        return Outcome(0)

    def listen(self, call: Call, now: Instant) -> Outcome:
        """listen(fd, backlog)."""
        fd = self._get(call)
        backlog = call.arguments[1]
        # Linux lets one more connection wait than the number says.
        size = backlog + 1 if isinstance(backlog, int) else 128
        fd.listener = self._stack.tcp_listen(self._flow.local_port, now, backlog=size)
        return Outcome(0)

    def accept(self, call: Call, now: Instant) -> Outcome | None:
        """accept(fd, ...), accept4(fd, ..., ..., flags)."""
        fd = self._get(call)
        if fd.listener is None:
            return Outcome(-1, "EINVAL")
        socket = fd.listener.accept()
        if socket is None:
            return Outcome(-1, "EAGAIN") if fd.nonblocking else None
        accepted = _Descriptor(False, tcp=socket)
        flags = call.arguments[3] if len(call.arguments) > 3 else None
        accepted.nonblocking = isinstance(flags, Name) and "SOCK_NONBLOCK" in flags.parts
        accepted.options.update(fd.options)
        number = self._new_number(call)
        self._table[number] = accepted
        self.last_tcp = socket
        return Outcome(number)

    def connect(self, call: Call, now: Instant) -> Outcome | None:
        """connect(fd, address, length): to the one remote end of the script."""
        fd = self._get(call)
        remote = Endpoint(self._flow.remote, self._flow.remote_port)
        if fd.datagram:
            if fd.udp is None:
                fd.udp = self._stack.udp_bind()
                self._flow.local_port = fd.udp.local.port
            fd.udp.connect(remote)
            return Outcome(0)
        if fd.tcp is None:
            local = Endpoint(b"", self._flow.local_port) if fd.bound else None
            fd.tcp = self._stack.tcp_connect(remote, now, local)
            fd.connecting = True
            self._flow.local_port = fd.tcp.local.port
            self.last_tcp = fd.tcp
            if "TCP_NODELAY" in fd.options:
                fd.tcp.connection.tcb.config.nodelay = bool(fd.options["TCP_NODELAY"])
            if fd.nonblocking:
                return Outcome(-1, "EINPROGRESS")
        connection = fd.tcp.connection
        if connection.error is not None:
            fd.error_told = True
            return Outcome(-1, _ERRNO.get(connection.error, "EIO"))
        if connection.state in (State.SYN_SENT, State.SYN_RECEIVED):
            return Outcome(-1, "EALREADY") if fd.nonblocking else None
        if fd.connecting:
            fd.connecting = False
            return Outcome(0)
        return Outcome(-1, "EISCONN")

    # -- data --------------------------------------------------------------------------------------------------------

    def write(self, call: Call, now: Instant) -> Outcome | None:
        """write(fd, ..., count), send(fd, ..., count, flags), sendto likewise."""
        fd = self._get(call)
        count = _size(call, 2)
        blocking = not fd.nonblocking
        if len(call.arguments) > 3 and call.name != "write":
            flags = call.arguments[3]
            names = set(flags.parts) if isinstance(flags, Name) else set()
            if "MSG_DONTWAIT" in names:
                blocking = False
            names -= {"MSG_DONTWAIT", "MSG_NOSIGNAL"}
            if names:
                raise Unsupported(f"{call.name} with {'|'.join(sorted(names))}")
        if fd.datagram:
            return self._send_datagram(fd, count, now)
        if fd.tcp is None:
            return Outcome(-1, "ENOTCONN")
        connection = fd.tcp.connection
        if connection.error is not None:
            return self._tell_error(fd, connection.error, "EPIPE")
        if connection.state is State.SYN_SENT and not blocking:
            return Outcome(-1, "EAGAIN")
        while self._progress < count:
            try:
                taken = fd.tcp.send(pattern(fd.written, count - self._progress), now)
            except LocalProtocolError:
                return Outcome(-1, "EPIPE")
            fd.written += taken
            self._progress += taken
            if not taken:
                break
        if self._progress < count and blocking:
            return None
        return Outcome(self._progress) if self._progress or not count else Outcome(-1, "EAGAIN")

    def _send_datagram(self, fd: _Descriptor, count: int, now: Instant) -> Outcome:
        if fd.udp is None:
            fd.udp = self._stack.udp_bind()
            self._flow.local_port = fd.udp.local.port
        error = fd.udp.take_error()
        if error is not None:
            return Outcome(-1, _ERRNO.get(error, "EIO"))
        fd.udp.send_to(pattern(0, count), Endpoint(self._flow.remote, self._flow.remote_port), now)
        return Outcome(count)

    def read(self, call: Call, now: Instant) -> Outcome | None:
        """read(fd, ..., count), recv(fd, ..., count, flags), recvfrom likewise."""
        fd = self._get(call)
        count = _size(call, 2)
        blocking = not fd.nonblocking
        if len(call.arguments) > 3 and call.name != "read":
            flags = call.arguments[3]
            names = set(flags.parts) if isinstance(flags, Name) else set()
            if "MSG_DONTWAIT" in names:
                blocking = False
            names.discard("MSG_DONTWAIT")
            if names:
                raise Unsupported(f"{call.name} with {'|'.join(sorted(names))}")
        if fd.datagram:
            if fd.udp is None:
                return Outcome(-1, "EINVAL")
            error = fd.udp.take_error()
            if error is not None:
                return Outcome(-1, _ERRNO.get(error, "EIO"))
            item = fd.udp.recv_from()
            if item is not None:
                return Outcome(min(len(item[0]), count))
            return None if blocking else Outcome(-1, "EAGAIN")
        if fd.tcp is None:
            return Outcome(-1, "ENOTCONN")
        connection = fd.tcp.connection
        data = fd.tcp.read(count, now)
        if data:
            if data != pattern(fd.read, len(data)):
                raise CallMismatch(f"{call.name} returned wrong bytes at offset {fd.read}")
            fd.read += len(data)
            return Outcome(len(data))
        if connection.error is not None:
            told = self._tell_error(fd, connection.error, "")
            return told if told.errno else Outcome(0)
        if connection.eof_received or fd.read_shut or connection.state is State.CLOSED:
            return Outcome(0)
        return None if blocking else Outcome(-1, "EAGAIN")

    def _tell_error(self, fd: _Descriptor, error: str, later: str) -> Outcome:
        """Return a connection's error the first time, then what Linux says of a dead socket."""
        if fd.error_told:
            return Outcome(-1, later or None)
        fd.error_told = True
        return Outcome(-1, _ERRNO.get(error, "EIO"))

    # -- closing -----------------------------------------------------------------------------------------------------

    def close(self, call: Call, now: Instant) -> Outcome:
        """close(fd)."""
        fd = self._get(call)
        if fd.listener is not None:
            fd.listener.close(now)
        if fd.tcp is not None:
            fd.tcp.close(now)
        if fd.udp is not None:
            fd.udp.close()
        number = call.arguments[0]
        assert isinstance(number, int)
        del self._table[number]
        return Outcome(0)

    def shutdown(self, call: Call, now: Instant) -> Outcome:
        """shutdown(fd, how). Like Linux, the end of reading is only between application and socket."""
        fd = self._get(call)
        if fd.tcp is None:
            return Outcome(-1, "ENOTCONN")
        how = name_of(call.arguments[1])
        if how not in ("SHUT_RD", "SHUT_WR", "SHUT_RDWR"):
            raise Unsupported(f"shutdown {how}")
        if how != "SHUT_WR":
            fd.read_shut = True
        if how != "SHUT_RD":
            fd.tcp.shutdown(now)
        return Outcome(0)

    # -- options and readiness -----------------------------------------------------------------------------------------

    def setsockopt(self, call: Call, now: Instant) -> Outcome:
        """setsockopt(fd, level, name, [value], length)."""
        fd = self._get(call)
        option = name_of(call.arguments[2])
        if option in _IGNORED_OPTIONS:
            return Outcome(0)
        value = _one(call.arguments[3])
        fd.options[option] = value * 2 if option in _SIZES else value
        config = fd.tcp.connection.tcb.config if fd.tcp is not None else None
        if option == "TCP_NODELAY":
            if config is not None:
                config.nodelay = bool(value)
        elif option == "TCP_USER_TIMEOUT":
            if config is None:
                raise Unsupported("TCP_USER_TIMEOUT before there is a connection")
            config.user_timeout = value * MILLISECOND
        elif option not in _SIZES and option not in ("TCP_MAXSEG", "IP_TOS"):
            raise Unsupported(f"socket option {option}")
        return Outcome(0)

    def getsockopt(self, call: Call, now: Instant) -> Outcome:
        """getsockopt(fd, level, name, [expected], [length])."""
        fd = self._get(call)
        option = name_of(call.arguments[2])
        expected = _one(call.arguments[3])
        if option == "TCP_MAXSEG" and fd.tcp is not None and fd.tcp.connection.state is not State.SYN_SENT:
            info = fd.tcp.connection.info()
            actual = info.mss + (12 if info.timestamps else 0)
        elif option == "SO_ERROR":
            actual = 0
            if fd.tcp is not None and fd.tcp.connection.error is not None and not fd.error_told:
                raise Unsupported("SO_ERROR by number")
        elif option in fd.options:
            actual = fd.options[option]
        else:
            raise Unsupported(f"getsockopt {option}")
        if actual != expected:
            raise CallMismatch(f"getsockopt {option} gives {actual}, not {expected}")
        return Outcome(0)

    def fcntl(self, call: Call, now: Instant) -> Outcome:
        """fcntl(fd, F_SETFL, flags) and F_GETFL."""
        fd = self._get(call)
        command = name_of(call.arguments[1])
        if command == "F_GETFL":
            expected = call.result
            flags = {"O_RDWR"} | ({"O_NONBLOCK"} if fd.nonblocking else set())
            if isinstance(expected, Name) and set(expected.parts) != flags:
                raise CallMismatch(f"fcntl F_GETFL gives {'|'.join(sorted(flags))}")
            return Outcome(2)
        if command != "F_SETFL":
            raise Unsupported(f"fcntl {command}")
        flag = call.arguments[2] if len(call.arguments) > 2 else None
        fd.nonblocking = isinstance(flag, Name) and "O_NONBLOCK" in flag.parts
        return Outcome(0)

    def ioctl(self, call: Call, now: Instant) -> Outcome:
        """ioctl(fd, SIOCINQ, [expected])."""
        fd = self._get(call)
        command = name_of(call.arguments[1])
        if command != "SIOCINQ" or fd.tcp is None:
            raise Unsupported(f"ioctl {command}")
        expected = _one(call.arguments[2])
        actual = fd.tcp.readable_bytes
        if actual != expected:
            raise CallMismatch(f"SIOCINQ gives {actual}, not {expected}")
        return Outcome(0)

    def poll(self, call: Call, now: Instant) -> Outcome | None:
        """poll([{fd, events, revents}], count, timeout): every stated revents must agree."""
        entries = call.arguments[0]
        if not isinstance(entries, tuple):
            raise Unsupported("poll without a list")
        count = 0
        for entry in entries:
            if not isinstance(entry, Struct):
                raise Unsupported("poll with something else than {fd=, events=, revents=}")
            number = entry.get("fd")
            fd = self._table.get(number) if isinstance(number, int) else None
            if fd is None:
                raise CallMismatch(f"descriptor {number} is not open")
            wanted = _mask(entry.get("events")) | _POLL["POLLERR"] | _POLL["POLLHUP"]
            actual = self._poll_bits(fd) & wanted
            revents = entry.get("revents")
            if actual:
                count += 1
            if revents is not None and (actual or call.arguments[2] == 0) and actual != _mask(revents):
                raise CallMismatch(f"poll of descriptor {number} gives {actual:#x}")
        return Outcome(count) if count or call.arguments[2] == 0 else None

    def _poll_bits(self, fd: _Descriptor) -> int:
        bits = 0
        if fd.listener is not None:
            raise Unsupported("poll of a listening socket")
        if fd.tcp is not None:
            connection = fd.tcp.connection
            if fd.tcp.readable_bytes or connection.eof_received or connection.error is not None:
                bits |= _POLL["POLLIN"]
            if connection.eof_received:
                bits |= _POLL["POLLRDHUP"]
            if connection.error is not None:
                bits |= _POLL["POLLERR"] | _POLL["POLLHUP"] | _POLL["POLLOUT"]
            elif connection.state not in (State.SYN_SENT, State.SYN_RECEIVED) and fd.tcp.send_space:
                bits |= _POLL["POLLOUT"]
        elif fd.udp is not None:
            raise Unsupported("poll of a UDP socket")
        return bits


def _size(call: Call, at: int) -> int:
    value = call.arguments[at] if len(call.arguments) > at else None
    if not isinstance(value, int):
        raise Unsupported(f"{call.name} without a number of bytes")
    return value


def _one(value: Value) -> int:
    inner = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(inner, int):
        raise Unsupported("a value that is no number")
    return inner


def _mask(value: Value | None) -> int:
    if isinstance(value, int):
        return value
    if not isinstance(value, Name):
        raise Unsupported("poll events that are no constants")
    bits = 0
    for part in value.parts:
        if part not in _POLL:
            raise Unsupported(f"poll event {part}")
        bits |= _POLL[part]
    return bits


_CALLS: Final[Mapping[str, Callable[[Calls, Call, Instant], Outcome | None]]] = {
    "socket": Calls.socket,
    "bind": Calls.bind,
    "listen": Calls.listen,
    "accept": Calls.accept,
    "accept4": Calls.accept,
    "connect": Calls.connect,
    "write": Calls.write,
    "send": Calls.write,
    "sendto": Calls.write,
    "read": Calls.read,
    "recv": Calls.read,
    "recvfrom": Calls.read,
    "close": Calls.close,
    "shutdown": Calls.shutdown,
    "setsockopt": Calls.setsockopt,
    "getsockopt": Calls.getsockopt,
    "fcntl": Calls.fcntl,
    "ioctl": Calls.ioctl,
    "poll": Calls.poll,
}

_ARGUMENTS: Final[Mapping[str, int]] = {
    "socket": 3,
    "listen": 2,
    "shutdown": 2,
    "setsockopt": 4,
    "getsockopt": 4,
    "fcntl": 2,
    "ioctl": 3,
    "poll": 3,
}
"""How many arguments a call needs at least, where that is more than one."""

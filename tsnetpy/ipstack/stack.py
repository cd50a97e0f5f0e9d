"""The IP stack of one node: addresses, demultiplexing, sockets and timers around the TCP engine.

Read :meth:`Stack.ingress` and :meth:`Stack.egress` first; all else hangs off them. Packets arrive parsed, checksummed
and joined (:mod:`tsnetpy.nic`) and past the packet filter; they leave as :class:`TxPacket`. Packets to this node's own
addresses, and to the two service addresses of Tailscale, never leave: egress feeds them back.

Work is proportional to what happens: connections that something happened to are in ``_touched``, those with output in
``_sending``, and deadlines in a heap whose stale entries are skipped when they surface.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import Final, final

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import (
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_TSMP,
    PROTO_UDP,
    Buffer,
    PeerId,
    TxPacket,
)
from tsnetpy.base.stats import Drops
from tsnetpy.nic.parse import parse
from tsnetpy.nic.rx import RxPacket
from tsnetpy.nic.tso import split
from tsnetpy.tcp import Connection, Listener, State, TcpConfig, rst_for
from tsnetpy.tcp.flags import ACK, CLOSED, ERROR, ESTABLISHED, FIN, READABLE, RST, SYN
from tsnetpy.wire import ipv4, ipv6
from tsnetpy.wire.tcp import encode_header
from tsnetpy.wire.udp import UdpHeader

from . import icmp
from .addresses import SERVICES, is_martian
from .errors import (
    AddressInUse,
    AddressNotAvailable,
    InvalidAddress,
    MessageTooLong,
    NoRoute,
    TooManySockets,
)
from .fragments import Reassembler
from .limits import StackLimits, TokenBucket
from .ports import IsnGenerator, PortAllocator, check_port
from .sockets import IcmpSocket, Socket, TcpListenerSocket, TcpSocket, UdpSocket

ACCEPT: Final = 64
"""Readiness of a listening socket, next to the bits of ``tcp.flags``: a connection waits for ``accept()``."""

LOOPBACK_PEER: Final[PeerId] = bytes(32)
"""The peer of packets that this node sent to itself."""

_BAD_FLAGS: Final = frozenset(
    f for f in range(64) if not f or f & (SYN | FIN) == SYN | FIN or (f & RST and f & (SYN | FIN))
)
"""Combinations no honest TCP sends; never to be taken for a SYN."""

_LOOP_ROUNDS: Final = 64
_MAX_OUT: Final = 256
"""Units one egress returns at most, give or take what one connection yields."""
_PMTU_LIFETIME: Final = 600 * SECOND
_PMTU_ENTRIES: Final = 256
_ANY: Final[IpBytes] = b""


@final
class Stack:
    """IPv4 and IPv6, TCP, UDP and ICMP of one node. An :class:`~tsnetpy.base.engine.Engine`.

    Attributes:
        mtu: of the tunnel; change it with :meth:`set_mtu`.
        drops: packets not delivered, by reason.
        rx_packets, tx_units: arrived packets, and super-segments given out (loopback included in both).
    """

    __slots__ = (
        "_addresses",
        "_conns",
        "_echo_bucket",
        "_embryos",
        "_error_bucket",
        "_heap",
        "_ident",
        "_idents",
        "_isn",
        "_limits",
        "_listeners",
        "_local",
        "_loop",
        "_now",
        "_out",
        "_peer_conns",
        "_peer_embryos",
        "_pmtu",
        "_ports",
        "_ready",
        "_reassembler",
        "_reset_bucket",
        "_sending",
        "_serial",
        "_source4",
        "_source6",
        "_tcp4",
        "_tcp6",
        "_tcp_config",
        "_touched",
        "_udp",
        "drops",
        "entropy",
        "mtu",
        "rx_packets",
        "tx_units",
    )

    def __init__(
        self,
        entropy: Entropy,
        mtu: int = 1280,
        tcp_config: TcpConfig | None = None,
        limits: StackLimits | None = None,
    ) -> None:
        limits = limits if limits is not None else StackLimits()
        self.entropy = entropy
        self.drops = Drops()
        self.rx_packets = 0
        self.tx_units = 0
        self._limits = limits
        self._tcp_config = tcp_config if tcp_config is not None else TcpConfig()
        self.set_mtu(mtu)

        self._addresses: frozenset[IpBytes] = frozenset()
        self._local: frozenset[IpBytes] = SERVICES
        self._source4: IpBytes | None = None
        self._source6: IpBytes | None = None

        # TCP: (remote address + local address, remote port << 16 | local port), as the bytes of an arriving packet
        # have them; listeners and UDP: (address or empty, port).
        self._conns: dict[tuple[bytes, int], TcpSocket] = {}
        self._listeners: dict[tuple[IpBytes, int], TcpListenerSocket] = {}
        self._udp: dict[tuple[IpBytes, int], UdpSocket] = {}
        self._idents: dict[int, IcmpSocket] = {}
        self._peer_conns: dict[PeerId, int] = {}
        self._peer_embryos: dict[PeerId, int] = {}
        self._embryos = 0

        self._touched: dict[TcpSocket, None] = {}
        self._sending: dict[TcpSocket, None] = {}
        self._ready: dict[Socket, int] = {}
        self._out: deque[TxPacket] = deque()
        self._loop: list[RxPacket] = []
        self._heap: list[tuple[Instant, int, TcpSocket]] = []
        self._serial = 0
        self._now: Instant = 0

        self._reassembler = Reassembler(limits, self.drops)
        self._ports = PortAllocator(entropy, limits.ephemeral_first, limits.ephemeral_last)
        self._isn = IsnGenerator(entropy)
        self._ident = entropy.u32()
        self._pmtu: dict[IpBytes, tuple[int, Instant]] = {}
        self._error_bucket = TokenBucket(limits.icmp_errors_per_second, limits.icmp_error_burst)
        self._echo_bucket = TokenBucket(limits.echo_replies_per_second, limits.echo_reply_burst)
        self._reset_bucket = TokenBucket(limits.resets_per_second, limits.reset_burst)

    # -- configuration -----------------------------------------------------------------------------------------------

    def set_mtu(self, mtu: int) -> None:
        """Set the tunnel's MTU (at least 1280); connections made from now on use it."""
        self.mtu = mtu
        self._tcp4 = replace(self._tcp_config, mss=mtu - ipv4.HEADER_LEN - 20)
        self._tcp6 = replace(self._tcp_config, mss=mtu - ipv6.HEADER_LEN - 20)

    @property
    def addresses(self) -> frozenset[IpBytes]:
        """This node's own addresses."""
        return self._addresses

    def set_addresses(self, addresses: Sequence[IpBytes]) -> None:
        """Set this node's own addresses; the first of each family is the source of what we send.

        Connections on an address that went away end silently with "unreachable".
        """
        kept = frozenset(addresses)
        gone = self._addresses - kept
        self._addresses = kept
        self._local = kept | SERVICES
        self._source4 = next((ip for ip in addresses if len(ip) == 4), None)
        self._source6 = next((ip for ip in addresses if len(ip) == 16), None)
        if gone:
            for socket in list(self._conns.values()):
                if socket.local.ip in gone:
                    socket.connection.discard()
                    self.tcp_touched(socket)

    # -- sockets -----------------------------------------------------------------------------------------------------

    def tcp_connect(self, remote: Endpoint, now: Instant, local: Endpoint | None = None) -> TcpSocket:
        """Start a connection to *remote*; the result comes as ESTABLISHED or ERROR readiness.

        Args:
            remote: address and port.
            now: the current instant.
            local: our end; an empty address or port 0 leaves that part to the stack.

        Raises:
            InvalidPort, InvalidAddress, NoRoute, AddressNotAvailable, AddressInUse, TooManySockets: see the classes.
        """
        self._now = now
        check_port(remote.port, zero=False)
        source = self._pick_source(remote.ip, local.ip if local is not None else _ANY)
        if len(self._conns) >= self._limits.connections:
            raise TooManySockets("too many TCP connections")
        addrs = remote.ip + source
        high = remote.port << 16
        if local is not None and local.port:
            check_port(local.port, zero=False)
            port = local.port
            if (addrs, high | port) in self._conns:
                raise AddressInUse(f"a connection from {Endpoint(source, port)} to {remote} exists")
        else:
            port = self._ports.pick(lambda p: self._tcp_port_free(addrs, high, p, source))
        if source == remote.ip and port == remote.port:
            raise AddressInUse("a connection cannot end where it starts")
        config = self._tcp4 if len(source) == 4 else self._tcp6
        iss = self._isn.iss(source, port, remote.ip, remote.port, now)
        ts_offset = self._isn.timestamp_offset(source, port, remote.ip, remote.port)
        connection = Connection.connect(config, iss, now, ts_offset)
        return self._adopt(connection, Endpoint(source, port), remote, LOOPBACK_PEER)

    def tcp_listen(self, port: int, now: Instant, ip: IpBytes | None = None, backlog: int = 128) -> TcpListenerSocket:
        """Listen on *port* (0: a free one) of *ip*, or of all our addresses (``None``).

        A listener on one address goes before one on all. The service addresses take part only by name.

        Raises:
            InvalidPort, AddressNotAvailable, AddressInUse: see the classes.
        """
        self._now = now
        check_port(port, zero=True)
        where = self._bind_address(ip)
        if not port:
            port = self._ports.pick(lambda p: (where, p) not in self._listeners)
        elif (where, port) in self._listeners:
            raise AddressInUse(f"TCP port {port} is already listened on")
        engines = [Listener(c, backlog, self._limits.embryos) for c in (self._tcp4, self._tcp6)]
        socket = TcpListenerSocket(self, Endpoint(where, port), engines[0], engines[1])
        self._listeners[where, port] = socket
        return socket

    def udp_bind(self, port: int = 0, ip: IpBytes | None = None) -> UdpSocket:
        """Bind to *port* (0: a free one) of *ip*, or of all our addresses (``None``); rules as for TCP.

        Raises:
            InvalidPort, AddressNotAvailable, AddressInUse: see the classes.
        """
        check_port(port, zero=True)
        where = self._bind_address(ip)
        if not port:
            port = self._ports.pick(lambda p: (where, p) not in self._udp and (_ANY, p) not in self._udp)
        elif (where, port) in self._udp:
            raise AddressInUse(f"UDP port {port} is already bound")
        socket = UdpSocket(self, Endpoint(where, port), self._limits.udp_queue_bytes)
        self._udp[where, port] = socket
        return socket

    def icmp_bind(self) -> IcmpSocket:
        """Return a socket for echo requests, with an identifier of its own.

        Raises:
            TooManySockets: all identifiers are taken.
        """
        start = self.entropy.u32()
        for step in range(0x10000):
            ident = (start + step) & 0xFFFF
            if ident not in self._idents:
                socket = IcmpSocket(self, ident)
                self._idents[ident] = socket
                return socket
        raise TooManySockets("every echo identifier is taken")

    def take_ready(self) -> list[tuple[Socket, int]]:
        """Return sockets and what became true of each since the last call: bits of ``tcp.flags``, and ACCEPT."""
        self._settle()
        if not self._ready:
            return []
        ready = list(self._ready.items())
        self._ready.clear()
        return ready

    # -- packets in --------------------------------------------------------------------------------------------------

    def ingress(self, packets: Iterable[RxPacket], now: Instant) -> None:
        """Take packets from the tunnel, past the packet filter; nothing in them can make this raise."""
        self._now = now
        addresses = self._addresses
        conns = self._conns
        for rx in packets:
            self.rx_packets += rx.packets
            if rx.dst not in addresses:
                self.drops.add("not_local")
            elif rx.proto == PROTO_TCP and not rx.fragment:
                # Addresses were checked when the connection was made, so a known one needs no second look.
                socket = conns.get((rx.addrs, rx.ports))
                if socket is not None:
                    self._tcp_known(socket, rx, now)
                elif rx.src in self._local or is_martian(rx.src):
                    self.drops.add("martian")
                else:
                    self._tcp_unknown(rx, now)
            elif rx.src in self._local or is_martian(rx.src):
                self.drops.add("martian")
            else:
                self._dispatch(rx, now)

    def _dispatch(self, rx: RxPacket, now: Instant) -> None:
        """Deliver anything, from addresses that were checked."""
        proto = rx.proto
        if rx.fragment:
            self._fragment(rx, now)
        elif proto == PROTO_TCP:
            socket = self._conns.get((rx.addrs, rx.ports))
            if socket is not None:
                self._tcp_known(socket, rx, now)
            else:
                self._tcp_unknown(rx, now)
        elif proto == PROTO_UDP:
            self._udp_in(rx, now)
        elif proto in (PROTO_ICMP, PROTO_ICMPV6):
            self._icmp_in(rx, now)
        elif proto == PROTO_TSMP or proto == ipv6.NEXT_NONE:
            self.drops.add("no_protocol")
        else:
            self.drops.add("no_protocol")
            self._send_error(icmp.protocol_unreachable, rx, now)

    def _fragment(self, rx: RxPacket, now: Instant) -> None:
        raw = self._reassembler.add(rx, now)
        if raw is not None:
            whole = parse(rx.peer, raw, self.drops)
            if whole is not None and not whole.fragment:
                self._dispatch(whole, now)

    def _tcp_known(self, socket: TcpSocket, rx: RxPacket, now: Instant) -> None:
        flags = rx.flags
        if flags & 0x3F in _BAD_FLAGS:
            self.drops.add("tcp_flags")
            return
        connection = socket.connection
        if (
            flags & (SYN | ACK | RST) == SYN
            and connection.state is State.TIME_WAIT
            and connection.accepts_new_syn(rx.seq, rx.options)
            and self._listener_for(rx) is not None
        ):
            connection.discard()
            self._forget(socket)
            self._tcp_unknown(rx, now)
            return
        connection.receive_segment(rx.seq, rx.ack, flags, rx.wnd, rx.options, rx.payload, now, rx.packets)
        self._touched[socket] = None

    def _tcp_unknown(self, rx: RxPacket, now: Instant) -> None:
        """Handle a segment of no connection: a SYN for a listener, or a stray to be reset (RFC 9293 §3.10.7.1)."""
        flags = rx.flags
        if flags & 0x3F in _BAD_FLAGS:
            self.drops.add("tcp_flags")
            return
        if flags & RST:
            self.drops.add("no_connection")
            return
        if flags & (SYN | ACK) == SYN:
            listener = self._listener_for(rx)
            if listener is not None:
                self._tcp_syn(listener, rx, now)
                return
        self.drops.add("no_connection")
        if self._reset_bucket.allow(now):
            seq, ack, reply = rst_for(rx.seq, rx.ack, flags, len(rx.payload))
            header = encode_header(rx.dst_port, rx.src_port, seq, ack, reply, 0)
            self._enqueue(TxPacket(rx.dst, rx.src, PROTO_TCP, header, [], 0))

    def _tcp_syn(self, listener: TcpListenerSocket, rx: RxPacket, now: Instant) -> None:
        limits = self._limits
        peer = rx.peer
        if (
            len(self._conns) >= limits.connections
            or self._peer_conns.get(peer, 0) >= limits.connections_per_peer
            or self._embryos >= limits.embryos
            or self._peer_embryos.get(peer, 0) >= limits.embryos_per_peer
        ):
            self.drops.add("syn_limit")
            return
        local = rx.destination
        remote = rx.source
        iss = self._isn.iss(local.ip, local.port, remote.ip, remote.port, now)
        ts_offset = self._isn.timestamp_offset(local.ip, local.port, remote.ip, remote.port)
        key = (rx.addrs, rx.ports)
        connection = listener.engine(local.ip).receive_syn(key, rx.seq, rx.wnd, rx.options, now, iss, ts_offset)
        if connection is None:
            self.drops.add("syn_refused")
            return
        socket = self._adopt(connection, local, remote, peer)
        socket.listener = listener
        socket.embryo = True
        self._embryos += 1
        self._peer_embryos[peer] = self._peer_embryos.get(peer, 0) + 1

    def _listener_for(self, rx: RxPacket) -> TcpListenerSocket | None:
        port = rx.dst_port
        listener = self._listeners.get((rx.dst, port))
        if listener is None and rx.dst in self._addresses:
            return self._listeners.get((_ANY, port))
        return listener

    def _udp_in(self, rx: RxPacket, now: Instant) -> None:
        socket = self._udp_for(rx.dst, rx.dst_port)
        if socket is None or (socket.remote is not None and socket.remote != rx.source):
            self.drops.add("no_socket")
            self._send_error(icmp.port_unreachable, rx, now)
            return
        socket.deliver(rx.raw[rx.offset + 8 : rx.end], rx.source, rx.dst)
        self._ready[socket] = self._ready.get(socket, 0) | READABLE

    def _udp_for(self, ip: IpBytes, port: int) -> UdpSocket | None:
        socket = self._udp.get((ip, port))
        if socket is None and ip in self._addresses:
            return self._udp.get((_ANY, port))
        return socket

    def _icmp_in(self, rx: RxPacket, now: Instant) -> None:
        if icmp.is_echo_request(rx):
            if not self._echo_bucket.allow(now):
                self.drops.add("echo_limit")
                return
            rest = int.from_bytes(rx.raw[rx.offset + 4 : rx.offset + 8], "big")
            body = rx.raw[rx.offset + 8 : rx.end]
            self._enqueue(icmp.echo_packet(rx.dst, rx.src, False, rest, body, self._next_ident(), rx.tos))
        elif icmp.is_echo_reply(rx):
            rest = int.from_bytes(rx.raw[rx.offset + 4 : rx.offset + 8], "big")
            socket = self._idents.get(rest >> 16)
            if socket is None:
                self.drops.add("no_socket")
                return
            socket.deliver(rx.src, rest & 0xFFFF, rx.raw[rx.offset + 8 : rx.end], rx.ttl)
            self._ready[socket] = self._ready.get(socket, 0) | READABLE
        else:
            error = icmp.parse_error(rx) if icmp.is_error(rx) else None
            if error is None or error.src not in self._local:
                self.drops.add("icmp_ignored")
            else:
                self._icmp_error(error, now)

    def _icmp_error(self, error: icmp.IcmpError, now: Instant) -> None:
        """Tell the flow that *error* quotes; quotes of flows we do not have are ignored (RFC 5927 §4)."""
        local_port = error.ports >> 16
        remote_port = error.ports & 0xFFFF
        if error.proto == PROTO_TCP:
            socket = self._conns.get((error.dst + error.src, remote_port << 16 | local_port))
            tcb = socket.connection.tcb if socket is not None else None
            if socket is None or tcb is None or (error.seq - tcb.snd_una) & 0xFFFFFFFF > tcb.snd_nxt - tcb.snd_una:
                self.drops.add("icmp_ignored")
            elif error.reason == "too big":
                mtu = self._learn_mtu(error, now)
                if mtu:
                    socket.connection.mtu_changed(mtu - (40 if len(error.src) == 4 else 60))
                    self._touched[socket] = None
            else:
                socket.connection.icmp_error(error.hard, error.reason)
                self._touched[socket] = None
        elif error.proto == PROTO_UDP:
            udp = self._udp_for(error.src, local_port)
            if udp is None:
                self.drops.add("icmp_ignored")
            elif error.reason == "too big":
                self._learn_mtu(error, now)
            elif udp.remote == Endpoint(error.dst, remote_port):
                udp.fail(error.reason)
                self._ready[udp] = self._ready.get(udp, 0) | ERROR
        elif error.proto in (PROTO_ICMP, PROTO_ICMPV6):
            echo = self._idents.get(local_port)
            if echo is None:
                self.drops.add("icmp_ignored")
            elif error.reason == "too big":
                self._learn_mtu(error, now)
            else:
                echo.fail(error.reason)
                self._ready[echo] = self._ready.get(echo, 0) | ERROR

    def flow_rejected(self, local: Endpoint, remote: Endpoint, now: Instant) -> None:
        """Take a peer's TSMP word that its policy refuses the TCP flow from *local* to *remote*.

        Only a handshake still in progress is ended by it ("refused"): nothing in the message proves knowledge of the
        flow, so an established connection does not listen to it.
        """
        self._now = now
        socket = self._conns.get((remote.ip + local.ip, remote.port << 16 | local.port))
        if socket is not None:
            socket.connection.icmp_error(True, "refused")
            self._touched[socket] = None

    # -- packets out -------------------------------------------------------------------------------------------------

    def egress(self, now: Instant) -> list[TxPacket]:
        """Return what is to be sent to peers; call again until it is empty.

        Packets to ourselves are delivered on the way, and what they cause is part of the result.
        """
        self._now = now
        out: list[TxPacket] = []
        for _ in range(_LOOP_ROUNDS):
            if self._touched:
                self._settle()
            while self._out and len(out) < _MAX_OUT:
                self._emit(self._out.popleft(), out)
            while self._sending and len(out) < _MAX_OUT:
                socket = next(iter(self._sending))
                del self._sending[socket]
                self._pull(socket, out, now)
            if not self._loop:
                break
            batch = self._loop
            self._loop = []
            for rx in batch:
                self.rx_packets += rx.packets
                self._dispatch(rx, now)
        self.tx_units += len(out)
        return out

    def _pull(self, socket: TcpSocket, out: list[TxPacket], now: Instant) -> None:
        """Take all that *socket* wants to send."""
        connection = socket.connection
        src, src_port = socket.local
        dst, dst_port = socket.remote
        while True:
            segments = connection.segments_to_send(now)
            if not segments:
                break
            for segment in segments:
                header = encode_header(
                    src_port, dst_port, segment.seq, segment.ack, segment.flags, segment.wnd, segment.options
                )
                tx = TxPacket(src, dst, PROTO_TCP, header, segment.payload, segment.payload_len, segment.gso_size)
                self._emit(tx, out)
            if len(out) >= _MAX_OUT:
                self._sending[socket] = None
                break
        bits = connection.take_ready()
        if bits:
            self._note_bits(socket, bits)
        deadline = connection.next_deadline()
        if deadline is not None and (socket.armed is None or deadline < socket.armed):
            socket.armed = deadline
            self._serial += 1
            heappush(self._heap, (deadline, self._serial, socket))

    def _emit(self, tx: TxPacket, out: list[TxPacket]) -> None:
        """Give *tx* out, or back to ourselves."""
        if tx.dst not in self._local:
            out.append(tx)
        elif len(self._loop) >= self._limits.queue:
            self.drops.add("loop_queue")
        else:
            rx = _loop_back(tx, self.drops)
            if rx is not None:
                self._loop.append(rx)

    def _enqueue(self, tx: TxPacket) -> None:
        if len(self._out) >= self._limits.queue:
            self.drops.add("tx_queue")
            return
        if tx.proto != PROTO_TCP:
            mtu = self._path_mtu(tx.dst, self._now)
            if mtu:
                tx.mtu = mtu
        self._out.append(tx)

    def _send_error(self, build: Callable[[RxPacket, int], TxPacket | None], rx: RxPacket, now: Instant) -> None:
        if rx.dst in SERVICES:
            return  # Tailscale's service addresses stay silent (data path reference, section 9)
        if not self._error_bucket.allow(now):
            self.drops.add("icmp_limit")
            return
        tx = build(rx, self._next_ident())
        if tx is not None:
            self._enqueue(tx)

    def _next_ident(self) -> int:
        self._ident = (self._ident + 1) & 0xFFFFFFFF
        return self._ident

    # -- time --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` is due; at once while something waits to be sent."""
        if self._touched or self._sending or self._out or self._loop:
            return self._now
        heap = self._heap
        while heap and (heap[0][2].closed or heap[0][2].armed != heap[0][0]):
            heappop(heap)
        deadline = self._reassembler.next_deadline() if len(self._reassembler) else None
        if heap and (deadline is None or heap[0][0] < deadline):
            return heap[0][0]
        return deadline

    def handle_deadline(self, now: Instant) -> None:
        """Run the timers that are due; then call :meth:`egress`."""
        self._now = now
        heap = self._heap
        while heap and heap[0][0] <= now:
            deadline, _, socket = heappop(heap)
            if socket.closed or socket.armed != deadline:
                continue
            socket.armed = None
            due = socket.connection.next_deadline()
            if due is None:
                continue
            if due > now:  # it moved while the entry slept in the heap
                socket.armed = due
                self._serial += 1
                heappush(heap, (due, self._serial, socket))
                continue
            socket.connection.handle_deadline(now)
            self._touched[socket] = None
        if len(self._reassembler):
            for first in self._reassembler.expire(now):
                self._send_error(icmp.reassembly_timeout, first, now)

    def next_event(self) -> object | None:
        """Return ``None``: a stack reports through :meth:`take_ready` only."""
        return None

    # -- what sockets call (SocketHost) ------------------------------------------------------------------------------

    def tcp_touched(self, socket: TcpSocket) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.SocketHost`."""
        self._touched[socket] = None

    def tcp_accepted(self, socket: TcpSocket) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.SocketHost`."""
        socket.listener = None
        if socket.held_bits:
            self._ready[socket] = socket.held_bits
            socket.held_bits = 0

    def listener_closed(self, socket: TcpListenerSocket, orphans: list[TcpSocket]) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.SocketHost`."""
        self._listeners.pop((socket.local.ip, socket.local.port), None)
        self._ready.pop(socket, None)
        for orphan in orphans:
            self._embryo_over(orphan)
            orphan.listener = None
            self._touched[orphan] = None

    def udp_send(self, socket: UdpSocket, data: Buffer, remote: Endpoint, now: Instant, source: IpBytes | None) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.SocketHost`."""
        self._now = now
        check_port(remote.port, zero=False)
        bound = socket.local.ip
        if source is not None and bound and source != bound:
            raise AddressNotAvailable("the socket is bound to another address")
        src = self._pick_source(remote.ip, bound or source or _ANY)
        size = len(data)
        if size > (65507 if len(src) == 4 else 65527):
            raise MessageTooLong(f"a datagram of {size} bytes does not fit one packet")
        header = UdpHeader(socket.local.port, remote.port, size + 8).encode()
        ident = self._next_ident()
        self._enqueue(TxPacket(src, remote.ip, PROTO_UDP, header, [bytes(data)], size, 0, 64, 0, ident))

    def udp_closed(self, socket: UdpSocket) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.SocketHost`."""
        self._udp.pop((socket.local.ip, socket.local.port), None)
        self._ready.pop(socket, None)

    def echo_send(self, socket: IcmpSocket, dst: IpBytes, seq: int, payload: bytes, now: Instant) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.SocketHost`."""
        self._now = now
        src = self._pick_source(dst, _ANY)
        if len(payload) > (65507 if len(src) == 4 else 65527):
            raise MessageTooLong(f"an echo of {len(payload)} bytes does not fit one packet")
        self._enqueue(icmp.echo_packet(src, dst, True, socket.ident << 16 | seq, payload, self._next_ident()))

    def icmp_closed(self, socket: IcmpSocket) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.SocketHost`."""
        self._idents.pop(socket.ident, None)
        self._ready.pop(socket, None)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _adopt(self, connection: Connection, local: Endpoint, remote: Endpoint, peer: PeerId) -> TcpSocket:
        socket = TcpSocket(self, connection, local, remote, peer)
        connection.owner = socket
        self._conns[socket.key] = socket
        self._peer_conns[peer] = self._peer_conns.get(peer, 0) + 1
        self._touched[socket] = None
        return socket

    def _settle(self) -> None:
        """Collect the readiness of touched connections and queue them for sending."""
        touched = self._touched
        self._touched = {}
        for socket in touched:
            bits = socket.connection.take_ready()
            if bits:
                self._note_bits(socket, bits)
            self._sending[socket] = None

    def _note_bits(self, socket: TcpSocket, bits: int) -> None:
        if bits & ESTABLISHED:
            mtu = self._path_mtu(socket.remote.ip, self._now)
            if mtu:
                socket.connection.mtu_changed(mtu - (40 if len(socket.local.ip) == 4 else 60))
        listener = socket.listener
        if listener is None:
            self._ready[socket] = self._ready.get(socket, 0) | bits
        else:
            socket.held_bits |= bits
            if bits & ESTABLISHED:
                self._embryo_over(socket)
                listener.finished(socket)
                self._ready[listener] = self._ready.get(listener, 0) | ACCEPT
        if bits & CLOSED:
            if listener is not None:
                listener.engine(socket.local.ip).forget(socket.connection)
            self._forget(socket)

    def _embryo_over(self, socket: TcpSocket) -> None:
        if socket.embryo:
            socket.embryo = False
            self._embryos -= 1
            _decrement(self._peer_embryos, socket.peer)

    def _forget(self, socket: TcpSocket) -> None:
        """Take a closed connection out of the tables; a last reset may still be pulled from it."""
        self._embryo_over(socket)
        if not socket.closed:
            socket.closed = True
            del self._conns[socket.key]
            _decrement(self._peer_conns, socket.peer)

    def _pick_source(self, remote: IpBytes, wanted: IpBytes) -> IpBytes:
        """Return our address for talking to *remote* (RFC 6724 comes down to: same family, and ours)."""
        if len(remote) not in (4, 16) or is_martian(remote):
            raise InvalidAddress("the remote address is no unicast address")
        if wanted:
            if len(wanted) != len(remote):
                raise InvalidAddress("local and remote address are of different families")
            if wanted not in self._local:
                raise AddressNotAvailable("the local address is not ours")
            return wanted
        if remote in self._addresses:
            return remote
        source = self._source4 if len(remote) == 4 else self._source6
        if source is None and remote in SERVICES:
            return remote
        if source is None:
            family = "IPv4" if len(remote) == 4 else "IPv6"
            raise NoRoute(f"this node has no {family} address", hint="wait until the node is connected")
        return source

    def _bind_address(self, ip: IpBytes | None) -> IpBytes:
        if ip is None or not ip:
            return _ANY
        if ip not in self._local:
            raise AddressNotAvailable("the address is not this node's")
        return ip

    def _tcp_port_free(self, addrs: bytes, high: int, port: int, source: IpBytes) -> bool:
        return (
            (addrs, high | port) not in self._conns
            and (source, port) not in self._listeners
            and (_ANY, port) not in self._listeners
        )

    def _path_mtu(self, dst: IpBytes, now: Instant) -> int:
        """Return the path MTU towards *dst* if it is known to be below ours, else 0."""
        if not self._pmtu:
            return 0
        known = self._pmtu.get(dst)
        if known is None:
            return 0
        if known[1] <= now:
            del self._pmtu[dst]
            return 0
        return known[0]

    def _learn_mtu(self, error: icmp.IcmpError, now: Instant) -> int:
        """Believe "too big" within bounds; return the MTU to use now, or 0 if the report changes nothing.

        IPv6 paths never go below 1280 (RFC 8201 §4), and for IPv4 nothing below 576 is believed: a forged tiny MTU
        would multiply the packets.
        """
        mtu = error.mtu
        if len(error.src) == 16:
            if mtu < ipv6.MIN_MTU:
                return 0
        else:
            mtu = max(mtu, ipv4.MIN_MTU)
        if mtu >= (self._path_mtu(error.dst, now) or self.mtu):
            return 0
        if len(self._pmtu) >= _PMTU_ENTRIES and error.dst not in self._pmtu:
            del self._pmtu[next(iter(self._pmtu))]
        self._pmtu[error.dst] = (mtu, now + _PMTU_LIFETIME)
        return mtu


def _decrement(counts: dict[PeerId, int], peer: PeerId) -> None:
    left = counts.get(peer, 0) - 1
    if left > 0:
        counts[peer] = left
    else:
        counts.pop(peer, None)


def _loop_back(tx: TxPacket, drops: Drops) -> RxPacket | None:
    """Turn what we send to ourselves into what we receive, without cutting and summing it in between."""
    if tx.proto != PROTO_TCP:
        return parse(LOOPBACK_PEER, split(tx, 1 << 17)[0], drops, False)
    header = tx.header
    rx = RxPacket(LOOPBACK_PEER, tx.src + tx.dst, PROTO_TCP, int.from_bytes(header[:4], "big"), tx.tos, tx.ttl)
    rx.seq = int.from_bytes(header[4:8], "big")
    rx.ack = int.from_bytes(header[8:12], "big")
    rx.flags = header[13]
    rx.wnd = int.from_bytes(header[14:16], "big")
    rx.options = header[20:]
    rx.payload = b"".join(tx.payload)
    if tx.gso_size:
        rx.packets = max(1, -(-tx.payload_len // tx.gso_size))
    return rx

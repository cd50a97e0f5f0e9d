"""TCP connections of one node: the tables, opening and listening, limits, timers, and the pull for output."""

from collections.abc import Callable
from dataclasses import replace
from heapq import heapify, heappop, heappush
from typing import Final, final

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.instant import Instant, earliest
from tsnetpy.base.packet import PROTO_TCP, PeerId, TxPacket
from tsnetpy.nic.rx import RxPacket
from tsnetpy.tcp import Connection, Listener, State, SynCookies, TcpConfig, rst_for
from tsnetpy.tcp.flags import ACK, CLOSED, ESTABLISHED, FIN, RST, SYN
from tsnetpy.tcp.options import SynOptions
from tsnetpy.wire import ipv4, ipv6
from tsnetpy.wire.tcp import encode_header

from .errors import AddressInUse, TooManySockets
from .host import ANY, Host
from .icmp import IcmpError
from .limits import TokenBucket
from .paths import BURST_INTERVAL, Path
from .ports import IsnGenerator, check_port, flow_name
from .resting import RestingConnections
from .sockets import TcpListenerSocket, TcpSocket

ACCEPT: Final = 64
"""Readiness of a listening socket, next to the bits of ``tcp.flags``: a connection waits for ``accept()``."""

LOOPBACK_PEER: Final[PeerId] = bytes(32)
"""The peer of packets that this node sent to itself, and of the connections that it opened."""

_BAD_FLAGS: Final = frozenset(
    f for f in range(64) if not f or f & (SYN | FIN) == SYN | FIN or (f & RST and f & (SYN | FIN))
)
"""Combinations no honest TCP sends; never to be taken for a SYN."""
_LEAST_HEAP: Final = 64


@final
class Connections:
    """All TCP of one node.

    Work is proportional to what happens: the connections that something happened to are in ``_touched``, those with
    output in ``_sending``, and deadlines in a heap whose stale entries are skipped, and swept out when they are many.
    """

    __slots__ = (
        "_conns",
        "_cookie_bucket",
        "_embryos",
        "_heap",
        "_host",
        "_isn",
        "_listeners",
        "_peer_conns",
        "_peer_embryos",
        "_release_at",
        "_reset_bucket",
        "_resting",
        "_sending",
        "_serial",
        "_tcp4",
        "_tcp6",
        "_tcp_config",
        "_touched",
        "_waiting",
        "cookies",
    )

    def __init__(self, host: Host, config: TcpConfig) -> None:
        limits = host.limits
        self._host = host
        self._tcp_config = config
        self.set_mtu(host.mtu)
        # (remote address + local address, remote port << 16 | local port), as the bytes of an arriving packet have them
        self._conns: dict[tuple[bytes, int], TcpSocket] = {}
        self._listeners: dict[tuple[IpBytes, int], TcpListenerSocket] = {}  # by address (empty for all) and port
        self._peer_conns: dict[PeerId, int] = {}
        self._peer_embryos: dict[PeerId, int] = {}
        self._embryos = 0
        self._resting = RestingConnections()  # counted in _peer_conns as well
        self._touched: dict[TcpSocket, None] = {}
        self._sending: dict[TcpSocket, None] = {}
        self._waiting: dict[TcpSocket, None] = {}  # for their path to take more, until _release_at
        self._release_at: Instant | None = None
        self._heap: list[tuple[Instant, int, TcpSocket]] = []
        self._serial = 0
        self._isn = IsnGenerator(host.entropy)
        self._reset_bucket = TokenBucket(limits.resets_per_second, limits.reset_burst)
        self.cookies = SynCookies(host.entropy)
        self._cookie_bucket = TokenBucket(limits.cookies_per_second, limits.cookie_burst)

    def set_mtu(self, mtu: int) -> None:
        """Use segments that fit *mtu* for connections made from now on."""
        self._tcp4 = replace(self._tcp_config, mss=mtu - ipv4.HEADER_LEN - 20)
        self._tcp6 = replace(self._tcp_config, mss=mtu - ipv6.HEADER_LEN - 20)

    def discard_on(self, gone: frozenset[IpBytes]) -> None:
        """End the connections on local addresses that went away; silently, for nothing may be sent from there."""
        for socket in list(self._conns.values()):
            if socket.local.ip in gone:
                socket.connection.discard()
                self.tcp_touched(socket)
        for key in self._resting.on_addresses(gone):
            self._end_rest(key)

    # -- opening -----------------------------------------------------------------------------------------------------

    def connect(self, remote: Endpoint, now: Instant, local: Endpoint | None = None) -> TcpSocket:
        """Start a connection to *remote*; the result comes as ESTABLISHED or ERROR readiness.

        Args:
            remote: address and port.
            now: the current instant.
            local: our end; an empty address or port 0 leaves that part to the stack.

        Raises:
            InvalidPort, InvalidAddress, NoRoute, AddressNotAvailable, AddressInUse, TooManySockets: see the classes.
        """
        self._host.now = now
        check_port(remote.port, zero=False)
        source = self._host.pick_source(remote.ip, local.ip if local is not None else ANY)
        if self._full and not self._make_room(LOOPBACK_PEER):
            raise TooManySockets("too many TCP connections")
        addrs = remote.ip + source
        high = remote.port << 16
        if local is not None and local.port:
            check_port(local.port, zero=False)
            port = local.port
            if (addrs, high | port) in self._conns or (addrs, high | port) in self._resting:
                raise AddressInUse(f"a connection from {Endpoint(source, port)} to {remote} exists")
        else:
            # Only who asks for it by name gets a connection to itself (RFC 9293 §3.5, figure 7).
            own = remote.port if source == remote.ip else 0
            port = self._host.ports.pick(lambda p: p != own and self._port_free(addrs, high, p, source))
        config = self._tcp4 if len(source) == 4 else self._tcp6
        iss = self._isn.iss(source, port, remote.ip, remote.port, now)
        ts_offset = self._isn.timestamp_offset(source, port, remote.ip, remote.port)
        connection = Connection.connect(config, iss, now, ts_offset)
        return self._adopt(connection, Endpoint(source, port), remote, LOOPBACK_PEER)

    def listen(self, port: int, now: Instant, ip: IpBytes | None = None, backlog: int = 128) -> TcpListenerSocket:
        """Listen on *port* (0: a free one) of *ip*, or of all our addresses (``None``).

        A listener on one address goes before one on all. The service addresses take part only by name.

        Raises:
            InvalidPort, AddressNotAvailable, AddressInUse: see the classes.
        """
        self._host.now = now
        check_port(port, zero=True)
        where = self._host.bind_address(ip)
        if not port:
            port = self._host.ports.pick(lambda p: (where, p) not in self._listeners)
        elif (where, port) in self._listeners:
            raise AddressInUse(f"TCP port {port} is already listened on")
        engines = [Listener(c, backlog, self._host.limits.embryos) for c in (self._tcp4, self._tcp6)]
        socket = TcpListenerSocket(self, Endpoint(where, port), engines[0], engines[1])
        self._listeners[where, port] = socket
        return socket

    def _port_free(self, addrs: bytes, high: int, port: int, source: IpBytes) -> bool:
        return (
            (addrs, high | port) not in self._conns
            and (addrs, high | port) not in self._resting
            and (source, port) not in self._listeners
            and (ANY, port) not in self._listeners
        )

    # -- segments in -------------------------------------------------------------------------------------------------

    def find(self, rx: RxPacket) -> TcpSocket | None:
        """Return the connection that *rx* belongs to."""
        return self._conns.get((rx.addrs, rx.ports))

    def receive(self, socket: TcpSocket, rx: RxPacket, now: Instant) -> None:
        """Take a segment of the known connection *socket*."""
        flags = rx.flags
        if flags & 0x3F in _BAD_FLAGS:
            self._host.drops.add("tcp_flags")
            return
        connection = socket.connection
        if (
            flags & (SYN | ACK | RST) == SYN
            and connection.state is State.TIME_WAIT
            and connection.accepts_new_syn(rx.seq, rx.options)
            and not connection.readable_bytes
            and self._listener_for(rx) is not None
        ):
            # RFC 9293 §3.10.7.4: a newer SYN may take the pair over; abort() sends nothing in TIME-WAIT.
            connection.abort(now)
            self._forget(socket)
            self._touched[socket] = None
            self.receive_stray(rx, now)
            return
        if socket.embryo and self._late_cookie(socket, rx, now):
            return
        connection.receive_segment(rx.seq, rx.ack, flags, rx.wnd, rx.options, rx.payload, now, rx.packets)
        self._touched[socket] = None

    def receive_stray(self, rx: RxPacket, now: Instant) -> None:
        """Handle a segment of no connection: a SYN for a listener, or a stray to be reset (RFC 9293 §3.10.7.1)."""
        flags = rx.flags
        if flags & 0x3F in _BAD_FLAGS:
            self._host.drops.add("tcp_flags")
            return
        if self._rested(rx, now):
            return
        if flags & RST:
            self._host.drops.add("no_connection")
            return
        if flags & (SYN | ACK) == SYN:
            listener = self._listener_for(rx)
            if listener is not None:
                self._syn(listener, rx, now)
                return
        elif flags & (SYN | ACK) == ACK and self.cookies.awaited(now) and self._cookie_back(rx, now):
            return
        self._host.drops.add("no_connection")
        if self._reset_bucket.allow(now):
            seq, ack, reply = rst_for(rx.seq, rx.ack, flags, len(rx.payload))
            header = encode_header(rx.dst_port, rx.src_port, seq, ack, reply, 0)
            self._host.enqueue(TxPacket(rx.dst, rx.src, PROTO_TCP, header, [], 0))

    def _rested(self, rx: RxPacket, now: Instant) -> bool:
        """Handle a segment of a connection in TIME-WAIT; False if there is none (any more)."""
        key = (rx.addrs, rx.ports)
        state = self._resting.get(key)
        if state is None:
            return False
        if (
            rx.flags & (SYN | ACK | RST) == SYN
            and state.accepts_new_syn(rx.seq, rx.options)
            and self._listener_for(rx) is not None
        ):
            self._end_rest(key)
            return False
        until = state.until
        answer = state.receive_segment(rx.seq, rx.flags, len(rx.payload), now)
        if state.until != until:
            self._resting.restart(key)
        if answer is not None:
            header = encode_header(
                rx.dst_port, rx.src_port, answer.seq, answer.ack, answer.flags, answer.wnd, answer.options
            )
            self._host.enqueue(TxPacket(rx.dst, rx.src, PROTO_TCP, header, [], 0))
        return True

    def _admit(self, peer: PeerId) -> bool:
        """Tell whether *peer* may have one more connection; a resting one may have to go for it."""
        mine_full = self._peer_conns.get(peer, 0) >= self._host.limits.connections_per_peer
        if mine_full and not self._resting.has(peer):
            return False
        return not (self._full or mine_full) or self._make_room(peer)

    def _syn(self, listener: TcpListenerSocket, rx: RxPacket, now: Instant) -> None:
        limits = self._host.limits
        peer = rx.peer
        if not self._admit(peer):
            self._host.drops.add("syn_limit")
            return
        local = listener.local_end(rx.dst)
        remote = rx.source
        engine = listener.engine(local.ip)
        ts_offset = self._isn.timestamp_offset(local.ip, local.port, remote.ip, remote.port)
        if (
            self._embryos >= limits.embryos
            or self._peer_embryos.get(peer, 0) >= limits.embryos_per_peer
            or engine.embryos >= engine.max_embryos
        ):
            self._answer_with_cookie(listener, rx, now, ts_offset)
            return
        iss = self._isn.iss(local.ip, local.port, remote.ip, remote.port, now)
        key = (rx.addrs, rx.ports)
        connection = engine.receive_syn(key, rx.seq, rx.wnd, rx.options, now, iss, ts_offset)
        if connection is None:
            self._host.drops.add("syn_refused")
            return
        socket = self._adopt(connection, local, remote, peer)
        socket.listener = listener
        socket.ip_fields = listener.ip_fields
        socket.embryo = True
        self._embryos += 1
        self._peer_embryos[peer] = self._peer_embryos.get(peer, 0) + 1

    def _answer_with_cookie(self, listener: TcpListenerSocket, rx: RxPacket, now: Instant, ts_offset: int) -> None:
        """There is no room for an embryo: let the peer remember the handshake (RFC 4987 §3.6)."""
        engine = listener.engine(rx.dst)
        if not (self._host.limits.syn_cookies and engine.has_room and self._cookie_bucket.allow(now)):
            self._host.drops.add("syn_limit")
            return
        answer = self.cookies.answer(_flow(rx), engine.config, rx.seq, rx.options, now, ts_offset)
        if answer is None:
            self._host.drops.add("syn_refused")
            return
        header = encode_header(
            rx.dst_port, rx.src_port, answer.seq, answer.ack, answer.flags, answer.wnd, answer.options
        )
        fields = listener.ip_fields
        self._host.enqueue(TxPacket(rx.dst, rx.src, PROTO_TCP, header, [], 0, 0, fields >> 8, fields & 0xFF))

    def _cookie_back(self, rx: RxPacket, now: Instant) -> bool:
        """Handle the ACK of a handshake that we kept nothing of, or data that overtook it; False if it is none."""
        listener = self._listener_for(rx)
        if listener is None:
            return False
        offer = self.cookies.check(_flow(rx), rx.seq, rx.ack, rx.options, now)
        if offer is not None:
            self._take_cookie(listener, offer, rx, now)
        elif (rx.payload or rx.flags & FIN) and self.cookies.may_follow(rx.ack, now):
            # A reset would end what the peer holds for a connection. It sends again, from the segment that counts on.
            self._host.drops.add("before_handshake")
        else:
            return False
        return True

    def _take_cookie(self, listener: TcpListenerSocket, offer: SynOptions, rx: RxPacket, now: Instant) -> None:
        """Make the connection that the cookie in *rx* stands for, if there is room."""
        if not self._admit(rx.peer):
            self._host.drops.add("syn_limit")
            return
        local = listener.local_end(rx.dst)
        remote = rx.source
        ts_offset = self._isn.timestamp_offset(local.ip, local.port, remote.ip, remote.port)
        connection = listener.engine(local.ip).receive_cookie(
            (rx.addrs, rx.ports), rx.ack - 1, rx.seq - 1, offer, now, ts_offset
        )
        if connection is None:
            self._host.drops.add("syn_refused")
            return
        socket = self._adopt(connection, local, remote, rx.peer)
        socket.listener = listener
        socket.ip_fields = listener.ip_fields
        connection.receive_segment(rx.seq, rx.ack, rx.flags, rx.wnd, rx.options, rx.payload, now, rx.packets)

    def _late_cookie(self, socket: TcpSocket, rx: RxPacket, now: Instant) -> bool:
        """A SYN drew a cookie and, repeated, an embryo; see whether *rx* answers the cookie, which then wins."""
        listener = socket.listener
        if (
            rx.flags & (SYN | ACK | RST) != ACK
            or rx.ack == socket.connection.tcb.snd_nxt & 0xFFFFFFFF
            or not self.cookies.awaited(now)
            or listener is None
        ):
            return False
        offer = self.cookies.check(_flow(rx), rx.seq, rx.ack, rx.options, now)
        if offer is None:
            return False
        socket.connection.discard()
        listener.engine(socket.local.ip).forget(socket.connection)
        self._forget(socket)
        self._take_cookie(listener, offer, rx, now)
        return True

    @property
    def count(self) -> int:
        """Connections, those in TIME-WAIT included."""
        return len(self._conns) + len(self._resting)

    @property
    def _full(self) -> bool:
        return self.count >= self._host.limits.connections

    def _make_room(self, peer: PeerId) -> bool:
        """Forget the connection that is longest in TIME-WAIT, *peer*'s before all others'; False if there is none."""
        key = self._resting.oldest(peer)
        if key is None:
            return False
        self._end_rest(key)
        return True

    def _end_rest(self, key: tuple[bytes, int]) -> None:
        _decrement(self._peer_conns, self._resting.remove(key))

    def _listener_for(self, rx: RxPacket) -> TcpListenerSocket | None:
        port = rx.dst_port
        listener = self._listeners.get((rx.dst, port))
        if listener is None and rx.dst in self._host.addresses:
            return self._listeners.get((ANY, port))
        return listener

    def flow_error(self, error: IcmpError, now: Instant) -> None:
        """Tell the connection whose segment *error* quotes; the quote must lie in what is in flight (RFC 5927 §4)."""
        local_port = error.ports >> 16
        remote_port = error.ports & 0xFFFF
        socket = self._conns.get((error.dst + error.src, remote_port << 16 | local_port))
        tcb = socket.connection.tcb if socket is not None else None
        if socket is None or tcb is None or (error.seq - tcb.snd_una) & 0xFFFFFFFF > tcb.snd_nxt - tcb.snd_una:
            self._host.drops.add("icmp_ignored")
        elif error.reason == "too big":
            if self._host.path_mtus.learn(error, self._host.mtu, now):
                self._fit(socket, True)
                self.path_changed(error.dst)
        else:
            socket.connection.icmp_error(error.hard, error.reason)
            self._touched[socket] = None

    def _fit(self, socket: TcpSocket, lost: bool) -> None:
        """Use packets that fit the way to the other end; with *lost*, send again what did not."""
        mtu = self._host.path_mtu(socket.remote.ip) or self._host.mtu
        socket.connection.mtu_changed(mtu - (40 if len(socket.local.ip) == 4 else 60), lost)
        self._touched[socket] = None

    def path_changed(self, dst: IpBytes) -> None:
        """The MTU of the way to *dst* is another one: tell its connections (RFC 8201 §5.4)."""
        for socket in self._conns.values():
            if socket.remote.ip == dst:
                self._fit(socket, False)

    def peer_changed(self, peer: PeerId) -> None:
        """The MTU of the way to *peer* is another one."""
        route = self._host.paths.route
        for socket in self._conns.values():
            if route(socket.remote.ip) == peer:
                self._fit(socket, False)

    def release(self) -> None:
        """Let those send that waited for their path."""
        self._sending.update(self._waiting)
        self._waiting.clear()
        self._release_at = None

    def flow_rejected(self, local: Endpoint, remote: Endpoint) -> None:
        """End the handshake from *local* to *remote* as refused, if there is one."""
        socket = self._conns.get((remote.ip + local.ip, remote.port << 16 | local.port))
        if socket is not None:
            socket.connection.icmp_error(True, "refused")
            self._touched[socket] = None

    # -- segments out ------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether a connection may have something to send or to report."""
        return bool(self._touched or self._sending)

    def settle(self) -> None:
        """Collect the readiness of touched connections and queue them for sending."""
        touched = self._touched
        self._touched = {}
        for socket in touched:
            connection = socket.connection
            bits = connection.take_ready()
            if bits:
                self._note_bits(socket, bits)
            if connection.has_output:
                self._sending[socket] = None
            else:
                self._rest(socket)

    def pull_next(self, emit: Callable[[TxPacket], None], budget: int, now: Instant) -> bool:
        """Give what one connection wants to send to *emit*; return False if no connection waits.

        A connection that still has more after *budget* units goes to the end of the line.
        """
        if not self._sending:
            return False
        socket = next(iter(self._sending))
        del self._sending[socket]
        self._pull(socket, emit, budget, now)
        return True

    def _pull(self, socket: TcpSocket, emit: Callable[[TxPacket], None], budget: int, now: Instant) -> None:
        """Take all that *socket* wants to send."""
        connection = socket.connection
        path: Path | None = None
        if self._host.paths.used or self._host.paths.blocked:
            path = self._path_of(socket)
            if self._must_wait(socket, path, now):
                self._arm(socket)
                return
        src, src_port = socket.local
        dst, dst_port = socket.remote
        ttl = socket.ip_fields >> 8
        tos = socket.ip_fields & 0xFF
        most = connection.tcb.config.max_segments_per_call
        while True:
            segments = connection.segments_to_send(now)
            for segment in segments:
                header = encode_header(
                    src_port, dst_port, segment.seq, segment.ack, segment.flags, segment.wnd, segment.options
                )
                tx = TxPacket(
                    src, dst, PROTO_TCP, header, segment.payload, segment.payload_len, segment.gso_size, ttl, tos
                )
                if path is not None:
                    path.sent(-(-segment.payload_len // segment.gso_size) if segment.gso_size else 1)
                emit(tx)
            if len(segments) < most:
                break
            budget -= len(segments)
            if budget <= 0 or (path is not None and not path.may_send(now)):
                # To the end of the line, and not among those that wait for their path already: whoever had a part of
                # this burst lets the others go first in the next one.
                self._sending[socket] = None
                break
        bits = connection.take_ready()
        if bits:
            self._note_bits(socket, bits)
        self._rest(socket)

    def _path_of(self, socket: TcpSocket) -> Path | None:
        """Return the way to the other end if it is a special one; super-segments are cut to what it takes at once."""
        path = self._host.paths.lookup(socket.remote.ip)
        tcb = socket.connection.tcb
        usual = self._tcp_config
        packets, calls = usual.max_gso_packets, usual.max_segments_per_call
        if path is not None and path.burst:
            packets, calls = min(packets, path.burst), 1
        if tcb.config.max_gso_packets != packets or tcb.config.max_segments_per_call != calls:
            tcb.config = replace(tcb.config, max_gso_packets=packets, max_segments_per_call=calls)
        return path

    def _must_wait(self, socket: TcpSocket, path: Path | None, now: Instant) -> bool:
        """Tell whether nothing of *socket* may leave now; then it stands aside until its path takes more."""
        blocked = self._host.paths.blocked and socket.remote.ip not in self._host.local
        if not blocked and (path is None or path.may_send(now)):
            return False
        self._waiting[socket] = None
        if not blocked and self._release_at is None:
            self._release_at = now + BURST_INTERVAL
        return True

    def _rest(self, socket: TcpSocket) -> None:
        """Leave *socket* until something happens: its next deadline goes to the heap if no earlier entry is there."""
        if socket.closed:
            return
        connection = socket.connection
        if connection.state is State.TIME_WAIT and not connection.readable_bytes:
            self._retire(socket)
            return
        self._arm(socket)

    def _arm(self, socket: TcpSocket) -> None:
        deadline = socket.connection.next_deadline()
        if deadline is not None and (socket.armed is None or deadline < socket.armed):
            self._push(deadline, socket)

    def _push(self, deadline: Instant, socket: TcpSocket) -> None:
        """Wake *socket* at *deadline*. An entry that this makes stale stays until its time, or until they are many."""
        if len(self._heap) > _LEAST_HEAP + 2 * len(self._conns):
            self._sweep()
        socket.armed = deadline
        self._serial += 1
        heappush(self._heap, (deadline, self._serial, socket))

    def _sweep(self) -> None:
        """Leave one entry for each connection.

        The entry of a keep-alive would else hold a connection for hours after its end, and a living one would get
        another with each timer that fires before.
        """
        sockets = self._conns.values()
        self._heap[:] = [(s.armed, n, s) for n, s in enumerate(sockets, self._serial + 1) if s.armed is not None]
        self._serial += len(sockets)
        heapify(self._heap)

    def _retire(self, socket: TcpSocket) -> None:
        """Part with a connection in TIME-WAIT that has nothing more to give; keep the little that the wait needs."""
        socket.closed = True
        del self._conns[socket.key]
        socket.connection.owner = None  # the two would hold each other until a garbage collection
        self._resting.add(socket.key, socket.peer, socket.connection.time_wait())
        self._host.mark_ready(socket, CLOSED)

    def _note_bits(self, socket: TcpSocket, bits: int) -> None:
        if bits & ESTABLISHED and self._host.path_mtu(socket.remote.ip):
            self._fit(socket, False)
        listener = socket.listener
        if listener is None:
            self._host.mark_ready(socket, bits)
        else:
            socket.held_bits |= bits
            if bits & ESTABLISHED:
                self._embryo_over(socket)
                listener.finished(socket)
                self._host.mark_ready(listener, ACCEPT)
        if bits & CLOSED:
            if listener is not None:
                listener.engine(socket.local.ip).forget(socket.connection)
            self._forget(socket)

    # -- time --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> Instant | None:
        """Return the earliest deadline of any connection."""
        heap = self._heap
        while heap and (heap[0][2].closed or heap[0][2].armed != heap[0][0]):
            heappop(heap)
        due = earliest(heap[0][0] if heap else None, self._resting.next_deadline())
        return due if self._release_at is None else earliest(due, self._release_at)

    def handle_deadline(self, now: Instant) -> None:
        """Run the connections' timers that are due."""
        if self._release_at is not None and self._release_at <= now:
            self.release()
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
                self._push(due, socket)
                continue
            socket.connection.handle_deadline(now)
            self._touched[socket] = None
        for key in self._resting.over(now):
            self._end_rest(key)

    # -- what sockets call (TcpHost) ----------------------------------------------------------------------------------

    def tcp_touched(self, socket: TcpSocket) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.TcpHost`."""
        self._touched[socket] = None

    def tcp_accepted(self, socket: TcpSocket) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.TcpHost`."""
        socket.listener = None
        if socket.held_bits:
            self._host.ready[socket] = socket.held_bits
            socket.held_bits = 0

    def listener_closed(self, socket: TcpListenerSocket, orphans: list[TcpSocket]) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.TcpHost`."""
        self._listeners.pop((socket.local.ip, socket.local.port), None)
        self._host.ready.pop(socket, None)
        for orphan in orphans:
            self._embryo_over(orphan)
            orphan.listener = None
            self._touched[orphan] = None

    # -- inside ------------------------------------------------------------------------------------------------------

    def _adopt(self, connection: Connection, local: Endpoint, remote: Endpoint, peer: PeerId) -> TcpSocket:
        socket = TcpSocket(self, connection, local, remote, peer)
        connection.owner = socket
        self._conns[socket.key] = socket
        self._peer_conns[peer] = self._peer_conns.get(peer, 0) + 1
        self._touched[socket] = None
        return socket

    def _embryo_over(self, socket: TcpSocket) -> None:
        if socket.embryo:
            socket.embryo = False
            self._embryos -= 1
            _decrement(self._peer_embryos, socket.peer)

    def _forget(self, socket: TcpSocket) -> None:
        """Take a closed connection out of the tables; a last reset may still be pulled from it."""
        to_be_accepted = socket.listener is not None and not socket.embryo
        self._embryo_over(socket)
        if not socket.closed:
            socket.closed = True
            del self._conns[socket.key]
            if not to_be_accepted:
                socket.connection.owner = None  # see _retire
            _decrement(self._peer_conns, socket.peer)


def _flow(rx: RxPacket) -> bytes:
    """Return the name of the connection that *rx* belongs to, from our point of view."""
    return flow_name(rx.dst, rx.dst_port, rx.src, rx.src_port)


def _decrement(counts: dict[PeerId, int], peer: PeerId) -> None:
    left = counts.get(peer, 0) - 1
    if left > 0:
        counts[peer] = left
    else:
        counts.pop(peer, None)

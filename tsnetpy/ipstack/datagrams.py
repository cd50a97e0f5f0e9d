"""UDP and ICMP: demultiplexing to sockets, echo replies, and what ICMP errors mean for either."""

from typing import final

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.instant import Instant
from tsnetpy.base.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_UDP, Buffer, TxPacket
from tsnetpy.nic.rx import RxPacket
from tsnetpy.tcp.flags import ERROR, READABLE
from tsnetpy.wire.udp import UdpHeader

from . import icmp
from .errors import AddressInUse, AddressNotAvailable, InvalidOption, MessageTooLong, TooManySockets
from .host import ANY, Host
from .limits import TokenBucket
from .ports import check_port
from .sockets import IcmpSocket, UdpSocket


@final
class Datagrams:
    """The UDP ports and echo identifiers of one node."""

    __slots__ = ("_echo_bucket", "_host", "_idents", "_udp")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._udp: dict[tuple[IpBytes, int], UdpSocket] = {}  # by address (empty for all) and port
        self._idents: dict[int, IcmpSocket] = {}
        self._echo_bucket = TokenBucket(host.limits.echo_replies_per_second, host.limits.echo_reply_burst)

    def udp_bind(self, port: int = 0, ip: IpBytes | None = None) -> UdpSocket:
        """Bind to *port* (0: a free one) of *ip*, or of all our addresses (``None``); rules as for TCP.

        Raises:
            InvalidPort, AddressNotAvailable, AddressInUse: see the classes.
        """
        check_port(port, zero=True)
        where = self._host.bind_address(ip)
        if not port:
            port = self._host.ports.pick(lambda p: (where, p) not in self._udp and (ANY, p) not in self._udp)
        elif (where, port) in self._udp:
            raise AddressInUse(f"UDP port {port} is already bound")
        socket = UdpSocket(self, Endpoint(where, port), self._host.limits.udp_queue_bytes)
        self._udp[where, port] = socket
        return socket

    def udp_connect(self, remote: Endpoint, local: Endpoint | None) -> UdpSocket:
        """Bind, and connect; see :meth:`.stack.Stack.udp_connect`."""
        check_port(remote.port, zero=False)
        self._host.pick_source(remote.ip, local.ip if local is not None else ANY)
        socket = self.udp_bind(local.port, local.ip) if local is not None else self.udp_bind()
        socket.connect(remote)
        return socket

    def icmp_bind(self) -> IcmpSocket:
        """Return a socket for echo requests, with an identifier of its own.

        Raises:
            TooManySockets: all identifiers are taken.
        """
        start = self._host.entropy.u32()
        for step in range(0x10000):
            ident = (start + step) & 0xFFFF
            if ident not in self._idents:
                socket = IcmpSocket(self, ident)
                self._idents[ident] = socket
                return socket
        raise TooManySockets("every echo identifier is taken")

    def udp_in(self, rx: RxPacket, now: Instant) -> None:
        """Deliver a datagram, or say that nobody listens."""
        socket = self._udp_for(rx.dst, rx.dst_port)
        if socket is None or (socket.remote is not None and socket.remote != rx.source):
            self._host.drops.add("no_socket")
            self._host.send_error(icmp.port_unreachable, rx, now)
            return
        socket.deliver(rx.raw[rx.offset + 8 : rx.end], rx.source, rx.dst)
        self._host.mark_ready(socket, READABLE)

    def _udp_for(self, ip: IpBytes, port: int) -> UdpSocket | None:
        socket = self._udp.get((ip, port))
        if socket is None and ip in self._host.addresses:
            return self._udp.get((ANY, port))
        return socket

    def icmp_in(self, rx: RxPacket, now: Instant) -> None:
        """Answer an echo request or deliver a reply; other queries are ignored. Errors go to :meth:`flow_error`."""
        if icmp.is_echo_request(rx):
            if not self._echo_bucket.allow(now):
                self._host.drops.add("echo_limit")
                return
            rest = int.from_bytes(rx.raw[rx.offset + 4 : rx.offset + 8], "big")
            body = rx.raw[rx.offset + 8 : rx.end]
            tos = rx.tos & 0xFC  # what routers marked on the way here (RFC 3168) is not so on the way back
            self._host.enqueue(icmp.echo_packet(rx.dst, rx.src, False, rest, body, self._host.next_ident(), tos))
        elif icmp.is_echo_reply(rx):
            rest = int.from_bytes(rx.raw[rx.offset + 4 : rx.offset + 8], "big")
            socket = self._idents.get(rest >> 16)
            if socket is None:
                self._host.drops.add("no_socket")
                return
            socket.deliver(rx.src, rest & 0xFFFF, rx.raw[rx.offset + 8 : rx.end], rx.ttl)
            self._host.mark_ready(socket, READABLE)
        else:
            self._host.drops.add("icmp_ignored")

    def flow_error(self, error: icmp.IcmpError, now: Instant) -> None:
        """Tell the socket whose datagram *error* quotes; connected UDP sockets and echo sockets listen."""
        local_port = error.ports >> 16
        if error.proto == PROTO_UDP:
            udp = self._udp_for(error.src, local_port)
            if udp is None:
                self._host.drops.add("icmp_ignored")
            elif error.reason == "too big":
                self._host.datagram_too_big(error, now)
            elif udp.remote == Endpoint(error.dst, error.ports & 0xFFFF):
                udp.fail(error.reason)
                self._host.mark_ready(udp, ERROR)
        elif error.proto in (PROTO_ICMP, PROTO_ICMPV6):
            echo = self._idents.get(local_port)
            if echo is None:
                self._host.drops.add("icmp_ignored")
            elif error.reason == "too big":
                self._host.datagram_too_big(error, now)
            else:
                echo.fail(error.reason)
                self._host.mark_ready(echo, ERROR)

    # -- what sockets call (DatagramHost) -----------------------------------------------------------------------------

    def udp_send(
        self,
        socket: UdpSocket,
        data: Buffer,
        remote: Endpoint,
        now: Instant,
        source: IpBytes | None,
        segment: int,
    ) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.DatagramHost`."""
        host = self._host
        host.now = now
        check_port(remote.port, zero=False)
        bound = socket.local.ip
        if source is not None and bound and source != bound:
            raise AddressNotAvailable("the socket is bound to another address")
        src = host.pick_source(remote.ip, bound or source or ANY)
        size = len(data)
        v4 = len(src) == 4
        if size > (65507 if v4 else 65527):
            raise MessageTooLong(f"a datagram of {size} bytes does not fit one packet")
        if segment < 0:
            raise InvalidOption(f"no segment size: {segment}")
        if segment > host.mtu - (28 if v4 else 48):
            raise MessageTooLong(f"segments of {segment} bytes do not fit the tunnel")
        if segment >= size:
            segment = 0
        header = UdpHeader(socket.local.port, remote.port, 0 if segment else size + 8).encode()
        ident = host.next_ident(-(-size // segment) if segment else 1)
        fields = socket.ip_fields
        host.enqueue(
            TxPacket(src, remote.ip, PROTO_UDP, header, [bytes(data)], size, segment, fields >> 8, fields & 0xFF, ident)
        )

    def udp_closed(self, socket: UdpSocket) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.DatagramHost`."""
        self._udp.pop((socket.local.ip, socket.local.port), None)
        self._host.ready.pop(socket, None)

    def echo_send(self, socket: IcmpSocket, dst: IpBytes, seq: int, payload: bytes, now: Instant) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.DatagramHost`."""
        self._host.now = now
        src = self._host.pick_source(dst, ANY)
        if len(payload) > (65507 if len(src) == 4 else 65527):
            raise MessageTooLong(f"an echo of {len(payload)} bytes does not fit one packet")
        self._host.enqueue(icmp.echo_packet(src, dst, True, socket.ident << 16 | seq, payload, self._host.next_ident()))

    def icmp_closed(self, socket: IcmpSocket) -> None:
        """See :class:`~tsnetpy.ipstack.sockets.DatagramHost`."""
        self._idents.pop(socket.ident, None)
        self._host.ready.pop(socket, None)

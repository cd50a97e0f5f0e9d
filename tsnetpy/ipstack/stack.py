"""The IP stack of one node: what comes in goes to TCP, UDP or ICMP, and what these send goes out.

Read :meth:`Stack.ingress` and :meth:`Stack.egress` first; all else hangs off them. Packets arrive parsed, checksummed
and joined (:mod:`tsnetpy.nic`) and past the packet filter; they leave as :class:`TxPacket`. Packets to this node's own
addresses, and to the two service addresses of Tailscale, never leave: egress feeds them back.

TCP is in :mod:`.connections`, UDP and ICMP in :mod:`.datagrams`, what they share in :mod:`.host`.
"""

from collections.abc import Iterable, Sequence
from typing import Final, final

from tsnetpy.base.addr import Endpoint, IpBytes
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.instant import Instant, earliest
from tsnetpy.base.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_TSMP, PROTO_UDP, PeerId, TxPacket
from tsnetpy.base.stats import Drops
from tsnetpy.nic.parse import parse
from tsnetpy.nic.rx import RxPacket
from tsnetpy.nic.tso import split
from tsnetpy.tcp import SynCookies, TcpConfig
from tsnetpy.wire import ipv6

from . import icmp
from .addresses import is_martian
from .connections import LOOPBACK_PEER, Connections
from .datagrams import Datagrams
from .fragments import Reassembler
from .host import Host
from .limits import StackLimits
from .paths import PathTable
from .sockets import IcmpSocket, Socket, TcpListenerSocket, TcpSocket, UdpSocket

_LOOP_ROUNDS: Final = 64
_MAX_OUT: Final = 256
"""Units one egress returns at most, give or take what one connection yields."""
_MAX_OUT_BYTES: Final = 256 * 1024
"""Likewise, in payload bytes: what is cut should still be in the processor's cache when it is sealed."""
_PULL_BUDGET: Final = 4
"""Super-segments after which a connection goes to the end of the line."""


@final
class Stack:
    """IPv4 and IPv6, TCP, UDP and ICMP of one node. An :class:`~tsnetpy.base.engine.Engine`.

    Attributes:
        drops: packets not delivered, by reason.
        rx_packets, tx_units: arrived packets, and super-segments given out (those to ourselves only in the first).
    """

    __slots__ = (
        "_datagrams",
        "_host",
        "_loop",
        "_out",
        "_out_bytes",
        "_reassembler",
        "_tcp",
        "drops",
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
        self._host = Host(entropy, limits if limits is not None else StackLimits(), mtu)
        self._tcp = Connections(self._host, tcp_config if tcp_config is not None else TcpConfig())
        self._datagrams = Datagrams(self._host)
        self._reassembler = Reassembler(self._host.limits, self._host.drops)
        self._out: list[TxPacket] = []
        self._out_bytes = 0
        self._loop: list[RxPacket] = []
        self.drops = self._host.drops
        self.rx_packets = 0
        self.tx_units = 0

    # -- configuration -----------------------------------------------------------------------------------------------

    @property
    def mtu(self) -> int:
        """MTU of the tunnel; :meth:`set_mtu` changes it."""
        return self._host.mtu

    def set_mtu(self, mtu: int) -> None:
        """Set the tunnel's MTU (at least 1280); connections made from now on use it."""
        self._host.mtu = mtu
        self._tcp.set_mtu(mtu)

    @property
    def addresses(self) -> frozenset[IpBytes]:
        """This node's own addresses."""
        return self._host.addresses

    def set_addresses(self, addresses: Sequence[IpBytes]) -> None:
        """Set this node's own addresses; the first of each family is the source of what we send.

        Connections on an address that went away end silently with "unreachable".
        """
        gone = self._host.set_addresses(addresses)
        if gone:
            self._tcp.discard_on(gone)

    @property
    def syn_cookies(self) -> SynCookies:
        """Counters of handshakes that were not kept here but given to the peer to remember."""
        return self._tcp.cookies

    @property
    def tcp_connections(self) -> int:
        """TCP connections of any kind that take up room: half-open, open, and in TIME-WAIT."""
        return self._tcp.count

    @property
    def paths(self) -> PathTable:
        """What is special about the ways to peers; change it by :meth:`set_path` and :meth:`set_blocked`."""
        return self._host.paths

    def set_path(self, peer: PeerId, mtu: int, burst: int) -> None:
        """Note what the way to *peer* takes: see :class:`.paths.Path`. Zeros: the same as any other."""
        if self._host.paths.set(peer, mtu, burst):
            self._tcp.peer_changed(peer)

    def set_blocked(self, blocked: bool) -> None:
        """Back-pressure: while *blocked*, TCP keeps what it has to send; late, it is sent with the latest news."""
        self._host.paths.blocked = blocked
        if not blocked:
            self._tcp.release()

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
        return self._tcp.connect(remote, now, local)

    def tcp_listen(self, port: int, now: Instant, ip: IpBytes | None = None, backlog: int = 128) -> TcpListenerSocket:
        """Listen on *port* (0: a free one) of *ip*, or of all our addresses (``None``).

        A listener on one address goes before one on all. The service addresses take part only by name.

        Raises:
            InvalidPort, AddressNotAvailable, AddressInUse: see the classes.
        """
        return self._tcp.listen(port, now, ip, backlog)

    def udp_bind(self, port: int = 0, ip: IpBytes | None = None) -> UdpSocket:
        """Bind to *port* (0: a free one) of *ip*, or of all our addresses (``None``); rules as for TCP.

        Raises:
            InvalidPort, AddressNotAvailable, AddressInUse: see the classes.
        """
        return self._datagrams.udp_bind(port, ip)

    def udp_connect(self, remote: Endpoint, local: Endpoint | None = None) -> UdpSocket:
        """Bind to *local* (default: a free port of all our addresses) and talk to *remote* only.

        ICMP errors about *remote* reach this socket: :meth:`.sockets.UdpSocket.take_error`.

        Raises:
            InvalidPort, InvalidAddress, NoRoute, AddressNotAvailable, AddressInUse: see the classes.
        """
        return self._datagrams.udp_connect(remote, local)

    def icmp_bind(self) -> IcmpSocket:
        """Return a socket for echo requests, with an identifier of its own.

        Raises:
            TooManySockets: all identifiers are taken.
        """
        return self._datagrams.icmp_bind()

    def take_ready(self) -> list[tuple[Socket, int]]:
        """Return sockets and what became true of each since the last call: bits of ``tcp.flags``, and ACCEPT."""
        self._tcp.settle()
        ready = self._host.ready
        if not ready:
            return []
        taken = list(ready.items())
        ready.clear()
        return taken

    # -- packets in --------------------------------------------------------------------------------------------------

    def ingress(self, packets: Iterable[RxPacket], now: Instant) -> None:
        """Take packets from the tunnel, past the packet filter; nothing in them can make this raise."""
        host = self._host
        tcp = self._tcp
        host.now = now
        for rx in packets:
            self.rx_packets += rx.packets
            if rx.dst not in host.addresses:
                host.drops.add("not_local")
                continue
            if rx.proto == PROTO_TCP and not rx.fragment:
                # Addresses were checked when the connection was made, so a known one needs no second look.
                socket = tcp.find(rx)
                if socket is not None:
                    tcp.receive(socket, rx, now)
                    continue
            if rx.src in host.local or is_martian(rx.src):
                host.drops.add("martian")
            else:
                self._dispatch(rx, now)

    def _dispatch(self, rx: RxPacket, now: Instant) -> None:
        """Deliver anything, from addresses that were checked."""
        proto = rx.proto
        if rx.problem >= 0:
            self.drops.add("ip_problem")
            self._host.send_error(icmp.parameter_problem, rx, now)
        elif rx.fragment:
            raw = self._reassembler.add(rx, now)
            if raw is not None:
                whole = parse(rx.peer, raw, self.drops)
                if whole is not None and not whole.fragment:
                    self._dispatch(whole, now)
        elif proto == PROTO_TCP:
            socket = self._tcp.find(rx)
            if socket is not None:
                self._tcp.receive(socket, rx, now)
            else:
                self._tcp.receive_stray(rx, now)
        elif proto == PROTO_UDP:
            self._datagrams.udp_in(rx, now)
        elif proto in (PROTO_ICMP, PROTO_ICMPV6):
            if icmp.is_error(rx):
                self._icmp_error(rx, now)
            else:
                self._datagrams.icmp_in(rx, now)
        else:
            self.drops.add("no_protocol")
            if proto not in (PROTO_TSMP, ipv6.NEXT_NONE):
                self._host.send_error(icmp.protocol_unreachable, rx, now)

    def _icmp_error(self, rx: RxPacket, now: Instant) -> None:
        """Tell the flow that the error quotes; quotes of flows we do not have are ignored (RFC 5927 §4)."""
        error = icmp.parse_error(rx)
        if (
            error is None
            or error.src not in self._host.local
            or not (rx.peer == LOOPBACK_PEER or self._host.heard_from_its_way(error, rx.peer))
        ):
            self.drops.add("icmp_ignored")
        elif error.proto == PROTO_TCP:
            self._tcp.flow_error(error, now)
        else:
            self._datagrams.flow_error(error, now)

    def flow_rejected(self, local: Endpoint, remote: Endpoint, now: Instant) -> None:
        """Take a peer's TSMP word that its policy refuses the TCP flow from *local* to *remote*.

        Only a handshake still in progress is ended by it ("refused"): nothing in the message proves knowledge of the
        flow, so an established connection does not listen to it.
        """
        self._host.now = now
        self._tcp.flow_rejected(local, remote)

    # -- packets out -------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether :meth:`egress` may have something to return or to do."""
        return self._tcp.pending or bool(self._host.out or self._loop)

    def egress(self, now: Instant) -> list[TxPacket]:
        """Return what is to be sent to peers; call again while :attr:`pending`.

        Packets to ourselves are delivered on the way, and what they cause is part of the result.
        """
        host = self._host
        tcp = self._tcp
        queue = host.out
        host.now = now
        for _ in range(_LOOP_ROUNDS):
            tcp.settle()
            while queue and len(self._out) < _MAX_OUT:
                self._emit(queue.popleft())
            while (
                len(self._out) < _MAX_OUT
                and self._out_bytes < _MAX_OUT_BYTES
                and tcp.pull_next(self._emit, _PULL_BUDGET, now)
            ):
                pass
            if not self._loop:
                break
            batch = self._loop
            self._loop = []
            for rx in batch:
                self.rx_packets += rx.packets
                self._dispatch(rx, now)
        out = self._out
        self._out = []
        self._out_bytes = 0
        self.tx_units += len(out)
        return out

    def _emit(self, tx: TxPacket) -> None:
        """Give *tx* out, or back to ourselves."""
        if tx.dst not in self._host.local:
            self._out.append(tx)
            self._out_bytes += tx.payload_len
            return
        room = self._host.limits.queue - len(self._loop)
        if room <= 0:
            self.drops.add("loop_queue")
            return
        arrived = _loop_back(tx, self.drops)
        self._loop += arrived[:room]
        if len(arrived) > room:
            self.drops.add("loop_queue", len(arrived) - room)

    # -- time --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` is due; at once while something waits to be sent."""
        if self.pending:
            return self._host.now
        host = self._host
        deadline = earliest(self._tcp.next_deadline(), host.path_mtus.next_deadline())
        if len(self._reassembler):
            return earliest(deadline, self._reassembler.next_deadline())
        return deadline

    def handle_deadline(self, now: Instant) -> None:
        """Run the timers that are due; then call :meth:`egress`."""
        self._host.now = now
        self._tcp.handle_deadline(now)
        for dst in self._host.path_mtus.expire(now):
            self._tcp.path_changed(dst)
        self._host.datagram_mtus.expire(now)
        if len(self._reassembler):
            for first in self._reassembler.expire(now):
                self._host.send_error(icmp.reassembly_timeout, first, now)

    def next_event(self) -> object | None:
        """Return ``None``: a stack reports through :meth:`take_ready` only."""
        return None


def _loop_back(tx: TxPacket, drops: Drops) -> list[RxPacket]:
    """Turn what we send to ourselves into what we receive; TCP without cutting and summing it in between."""
    if tx.proto != PROTO_TCP:
        parsed = [parse(LOOPBACK_PEER, packet, drops, False) for packet in split(tx, 1 << 17)]
        return [rx for rx in parsed if rx is not None]
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
    return [rx]

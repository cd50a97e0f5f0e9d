"""The packet path of one node.

Inbound: WireGuard, NIC (parse, verify, join), TSMP, packet filter, IP stack. Outbound: IP stack, filter (remembers
flows), allowed-IPs, NIC (cut, checksum), WireGuard. The order is Tailscale's (data path reference, section 1.8).
"""

from collections.abc import Hashable, Sequence
from typing import Final, final

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import ConfigError, LocalProtocolError
from tsnetpy.base.instant import Instant, earliest
from tsnetpy.base.packet import PROTO_TCP, PROTO_TSMP, Buffer, PeerId, TxBatch, TxPacket
from tsnetpy.base.ring import Ring
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import Stack, StackLimits
from tsnetpy.ipstack.filter import PacketFilter
from tsnetpy.nic.device import Nic
from tsnetpy.nic.rx import RxPacket
from tsnetpy.tcp import TcpConfig
from tsnetpy.wg import Device, PeerInfo

from . import tsmp
from .config import DataPlaneConfig, PeerSpec
from .stats import DataPlaneStats, collect_drops

_MAX_EVENTS: Final = 256
_MAX_OWN_PACKETS: Final = 256
_EMPTY_ROUNDS: Final = 64


@final
class DataPlane:
    """WireGuard, filter, NIC and stack as one engine (see :class:`tsnetpy.base.engine.Engine`).

    After any call that may change something, including calls on :attr:`stack` and its sockets: drain
    :meth:`next_event`, send :meth:`to_underlay` until it is empty, re-arm the timer from :meth:`next_deadline`.

    Args:
        entropy: source of all randomness.
        config: first configuration; without one, packets are dropped until :meth:`configure`.
        now: the current instant.
        tcp_config, limits: of the stack.

    Attributes:
        stack: sockets live here.
        nic: taps may be put on it.
        filter: the packet filter.
        drops: what no other engine counts.
        peer_api_port: what TSMP pongs say about our PeerAPI, 0 for none.
    """

    __slots__ = (
        "_config",
        "_device",
        "_entropy",
        "_events",
        "_own_packets",
        "_rx_bytes",
        "_rx_datagrams",
        "_specs",
        "_tx_bytes",
        "_tx_datagrams",
        "_wall_offset_ns",
        "drops",
        "filter",
        "nic",
        "peer_api_port",
        "stack",
    )

    def __init__(
        self,
        entropy: Entropy,
        config: DataPlaneConfig | None = None,
        now: Instant = 0,
        *,
        tcp_config: TcpConfig | None = None,
        limits: StackLimits | None = None,
    ) -> None:
        self._entropy = entropy
        self.stack = Stack(entropy, 1280, tcp_config, limits)
        self.nic = Nic()
        self.filter = PacketFilter()
        self.drops = Drops()
        self.peer_api_port = 0
        self._device: Device | None = None
        self._config: DataPlaneConfig | None = None
        self._specs: dict[PeerId, PeerSpec] = {}
        self._wall_offset_ns = 0
        self._events: Ring[object] = Ring(_MAX_EVENTS)
        self._own_packets: Ring[TxPacket] = Ring(_MAX_OWN_PACKETS)
        self._rx_datagrams = 0
        self._rx_bytes = 0
        self._tx_datagrams = 0
        self._tx_bytes = 0
        self.stack.paths.route = self.peer_for_ip
        if config is not None:
            self.configure(config, now)

    # -- configuration ---------------------------------------------------------------------------------------------

    def configure(self, config: DataPlaneConfig, now: Instant) -> None:
        """Move to *config*; what does not differ from the state so far is left alone.

        Raises:
            ConfigError: a key of a wrong length or an MTU out of range; nothing was changed.
        """
        if len(config.private_key) != 32:
            raise ConfigError("the node key has 32 bytes")
        if not 1280 <= config.mtu <= 9000:
            raise ConfigError(f"tunnel MTU {config.mtu} is outside 1280-9000")
        for spec in config.peers:
            if len(spec.public_key) != 32 or (spec.psk is not None and len(spec.psk) != 32):
                raise ConfigError("a peer's keys have 32 bytes")
        before = self._config
        if config == before:
            return
        self._config = config

        device = self._device
        if device is None:
            device = Device(config.private_key, self._entropy, mtu=config.mtu)
            device.wall_offset_ns = self._wall_offset_ns
            self._device = device
        else:
            device.set_private_key(config.private_key, now)
        if before is None or config.mtu != before.mtu:
            device.mtu = config.mtu
            self.nic.mtu = config.mtu
            self.stack.set_mtu(config.mtu)
        if before is None or config.addresses != before.addresses:
            self.stack.set_addresses(config.addresses)
        self.filter.exempt_tcp_ports = config.exempt_tcp_ports
        if (
            before is None
            or config.filter_rules != before.filter_rules
            or config.addresses != before.addresses
            or config.shields_up != before.shields_up
        ):
            self.filter.configure(config.filter_rules, config.addresses, config.shields_up)
        self._configure_peers(device, config, now)

    def _configure_peers(self, device: Device, config: DataPlaneConfig, now: Instant) -> None:
        wanted = {spec.public_key: spec for spec in config.peers if spec.public_key != device.public_key}
        for key in [key for key in self._specs if key not in wanted]:
            device.remove_peer(key)
            self.stack.paths.forget(key)
        for key, spec in wanted.items():
            if self._specs.get(key) != spec:
                device.add_peer(
                    key, spec.allowed_ips, now, psk=spec.psk, persistent_keepalive_s=spec.persistent_keepalive_s
                )
        self._specs = wanted
        self.nic.trusted = (
            frozenset()
            if config.verify_peer_checksums
            else frozenset(prefix.ip for spec in wanted.values() for prefix in spec.allowed_ips if prefix.is_single_ip)
        )

    @property
    def wall_offset_ns(self) -> int:
        """What to add to ``now`` to get nanoseconds since 1970; the owner keeps it up to date."""
        return self._wall_offset_ns

    @wall_offset_ns.setter
    def wall_offset_ns(self, value: int) -> None:
        self._wall_offset_ns = value
        if self._device is not None:
            self._device.wall_offset_ns = value

    def set_path(self, peer: PeerId, *, mtu: int = 0, burst: int = 0) -> None:
        """Note what the present way to *peer* takes; call it again whenever that changes.

        Args:
            peer: node key.
            mtu: bytes of inner IP packet, if less than the tunnel's (at least 1280 if IPv6 is to work); 0 for the
                tunnel's.
            burst: packets that may leave back to back, with a millisecond between bursts; 0 for no limit. A relay
                with a short queue wants 16.
        """
        if peer in self._specs:
            self.stack.set_path(peer, mtu, burst)

    def set_blocked(self, blocked: bool) -> None:
        """Back-pressure from below: while *blocked*, TCP gives nothing out, so that nothing is queued and dropped."""
        self.stack.set_blocked(blocked)

    # -- packets ---------------------------------------------------------------------------------------------------

    def from_underlay(self, batch: Sequence[Buffer], path: Hashable, now: Instant) -> None:
        """Take WireGuard datagrams that came by one path. The buffers are borrowed; nothing in them can raise."""
        self._rx_datagrams += len(batch)
        self._rx_bytes += sum(map(len, batch))
        device = self._device
        if device is None:
            self.drops.add("not_configured", len(batch))
            return
        groups = device.receive(batch, path, now)
        if not groups:
            return
        inner: list[tuple[PeerId, Buffer]] = [(peer, packet) for peer, packets in groups for packet in packets]
        arrived = self.nic.receive(inner, now + self._wall_offset_ns)
        passed: list[RxPacket] = []
        for rx in arrived:
            if rx.proto == PROTO_TSMP:
                self._tsmp(rx, now)
            elif self.filter.check_inbound(rx):
                passed.append(rx)
        for reject in self.filter.take_rejects():
            self._own_packets.push(reject)
        if passed:
            self.stack.ingress(passed, now)

    @property
    def pending(self) -> bool:
        """Whether :meth:`next_event` or :meth:`to_underlay` have something to return, as far as is known."""
        device = self._device
        return (
            self.stack.pending
            or bool(self._own_packets.items or self._events.items)
            or (device is not None and device.pending)
        )

    def to_underlay(self, now: Instant) -> list[tuple[PeerId, TxBatch]]:
        """Return datagrams to send, in order; call again while :attr:`pending`."""
        device = self._device
        stack = self.stack
        rounds = _EMPTY_ROUNDS
        while rounds and (stack.pending or self._own_packets.items):
            rounds -= 1
            units = stack.egress(now)
            while (own := self._own_packets.pop()) is not None:
                units.append(own)
            if self._to_tunnel(units, now):
                break
        if device is None:
            return []
        out = device.take_outgoing()
        for _, batch in out:
            self._tx_bytes += len(batch.data)
            self._tx_datagrams += batch.count
        return out

    def take_path_outgoing(self) -> list[tuple[Hashable, bytes]]:
        """Return datagrams that must go back by the very path that a message came by (cookie replies under load)."""
        return [] if self._device is None else self._device.take_path_outgoing()

    def _to_tunnel(self, units: list[TxPacket], now: Instant) -> bool:
        """Filter, route, cut and encrypt; tell whether anything was left to send."""
        device = self._device
        if device is None:
            self.drops.add("not_configured", len(units))
            return False
        wall_ns = now + self._wall_offset_ns
        packets: list[Buffer] = []
        to: PeerId = b""
        dst: IpBytes = b""
        sent = False
        for tx in units:
            if not self.filter.note_outbound(tx):
                continue
            if tx.dst != dst:
                peer = device.peer_for_ip(tx.dst)
                if peer is None:
                    self.drops.add("no_route")
                    continue
                dst = tx.dst
                if peer != to:
                    if packets:
                        device.send(to, packets, now)
                        packets = []
                    to = peer
            packets.extend(self.nic.transmit(tx, to, wall_ns))
            sent = True
        if packets:
            device.send(to, packets, now)
        return sent

    # -- TSMP ------------------------------------------------------------------------------------------------------

    def tsmp_ping(self, dst: IpBytes, data: bytes, now: Instant) -> None:
        """Ask the peer that has *dst* for a :class:`.tsmp.TsmpPong` with the same 8 bytes.

        Raises:
            LocalProtocolError: *data* does not have 8 bytes, or we have no address of that family.
        """
        source = next((ip for ip in self._config.addresses if len(ip) == len(dst)), None) if self._config else None
        if source is None:
            raise LocalProtocolError("this node has no address of that family")
        self._own_packets.push(tsmp.ping_packet(source, dst, data))

    def _tsmp(self, rx: RxPacket, now: Instant) -> None:
        if rx.dst not in self.stack.addresses:
            self.drops.add("tsmp_not_local")
            return
        result = tsmp.answer(rx, self.peer_api_port)
        if result is None:
            self.drops.add("tsmp_ignored")
        elif isinstance(result, TxPacket):
            self._own_packets.push(result)
        else:
            if isinstance(result, tsmp.FlowRejected) and result.proto == PROTO_TCP:
                self.stack.flow_rejected(result.local, result.remote, now)
            self._events.push(result)

    # -- engine ----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> Instant | None:
        """Return when :meth:`handle_deadline` wants to be called."""
        due = self.stack.next_deadline()
        return due if self._device is None else earliest(due, self._device.next_deadline())

    def handle_deadline(self, now: Instant) -> None:
        """Run every timer that is due."""
        if self._device is not None:
            self._device.handle_deadline(now)
        self.stack.handle_deadline(now)

    def next_event(self) -> object | None:
        """Return the oldest event not yet taken: those of :mod:`tsnetpy.wg.events` and of :mod:`.tsmp`."""
        event = self._events.pop()
        if event is None and self._device is not None:
            event = self._device.next_event()
        return event

    # -- looking inside --------------------------------------------------------------------------------------------

    def peer_info(self, peer: PeerId, now: Instant) -> PeerInfo | None:
        """Return the tunnel's state for one peer, ``None`` if there is no such peer."""
        return None if self._device is None else self._device.peer_info(peer, now)

    def peer_for_ip(self, ip: IpBytes) -> PeerId | None:
        """Return the peer that packets to *ip* go to."""
        return None if self._device is None else self._device.peer_for_ip(ip)

    def initiate(self, peer: PeerId, now: Instant) -> None:
        """Begin a handshake without waiting for traffic."""
        if self._device is not None:
            self._device.initiate(peer, now)

    def stats(self) -> DataPlaneStats:
        """Return all counters."""
        engines = [
            ("plane", self.drops),
            ("nic", self.nic.drops),
            ("filter", self.filter.drops),
            ("stack", self.stack.drops),
        ]
        if self._device is not None:
            engines.append(("wg", self._device.drops))
        return DataPlaneStats(
            rx_datagrams=self._rx_datagrams,
            rx_bytes=self._rx_bytes,
            tx_datagrams=self._tx_datagrams,
            tx_bytes=self._tx_bytes,
            rx_packets=self.nic.rx_packets,
            rx_units=self.nic.rx_units,
            tx_packets=self.nic.tx_packets,
            tx_units=self.nic.tx_units,
            filter_accepted=self.filter.accepted,
            cookies_sent=self.stack.syn_cookies.sent,
            cookies_accepted=self.stack.syn_cookies.accepted,
            drops=collect_drops(engines),
        )

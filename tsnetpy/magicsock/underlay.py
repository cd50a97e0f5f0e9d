"""MagicSock: the underlay of a real node. One UDP port for everything, DERP behind it, disco choosing per peer.

Read the data path reference, sections 2.2, 3.3 and 6. All decisions are :class:`tsnetpy.disco.paths.Paths`'; this
module seals, opens, sends and receives. The packet path is synchronous: the reader task hands batches straight to
``deliver``, and :meth:`MagicSock.send` ends in a system call.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, final

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

from tsnetpy.base.addr import Endpoint
from tsnetpy.base.entropy import Entropy, SystemEntropy
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.instant import SECOND, Duration, Instant
from tsnetpy.base.packet import Buffer, PeerId, TxBatch
from tsnetpy.base.ring import Ring
from tsnetpy.base.stats import Drops
from tsnetpy.crypto import dh
from tsnetpy.crypto.errors import CryptoError
from tsnetpy.derp.client import PeerGone
from tsnetpy.derp.regions import DerpMap, HomeChooser, stable_choice
from tsnetpy.disco import classify
from tsnetpy.disco.box import DiscoBox, sender_key
from tsnetpy.disco.endpoints import TypedEndpoint, gather
from tsnetpy.disco.netcheck import Report
from tsnetpy.disco.paths import PathPeer, Paths, UserPong
from tsnetpy.disco.peer import SESSION_TIMEOUT
from tsnetpy.runtime.clock import loop_clock, monotonic_ns
from tsnetpy.runtime.flusher import Flusher
from tsnetpy.runtime.queues import Kick
from tsnetpy.runtime.udp import Received, UdpPort, UdpSocket
from tsnetpy.runtime.underlay import (
    Deliver,
    PathId,
    PathStatus,
    PingResult,
    UnderlayConfig,
    UnderlayEndpoint,
    UnderlayState,
)
from tsnetpy.runtime.watch import Watch

from .derp_pool import DerpPool
from .interfaces import has_ipv6, interface_ips
from .stun import StunProber

RESTUN_MIN: Final = 20 * SECOND
RESTUN_SPAN: Final = 6 * SECOND
LINK_POLL_S: Final = 10.0
PING_RETRY: Final = SECOND
MAX_PINGS_WAITING: Final = 256
HELD_BATCHES: Final = 4
HELD_TIME: Final = 5 * SECOND
RELAY_BURST: Final = 16
"""Datagrams for one peer that a relay is given back to back: its queue holds 32, and drops from the head."""

# The host says that this address is out right now: no route, or a local firewall.
_UNREACHABLE: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENETDOWN}
)

_log = logging.getLogger(__name__)


@final
class _PingWait:
    """A user's ping that waits for the first pong to any of its transactions."""

    __slots__ = ("done", "result")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.result: UserPong | None = None


@final
class MagicSock:
    """Implements :class:`tsnetpy.runtime.underlay.PathUnderlay` on sockets.

    Args:
        port: local UDP port, 0 for any free one.
        entropy: source of keys, nonces and transaction ids.
        ipv6: use IPv6 if the host has it.
        udp: False leaves DERP as the only path (for tests and for networks where UDP is forbidden).
        offload: use GSO and GRO if the kernel has them.

    Attributes:
        drops: lost datagrams by reason (see also :meth:`counters`).
        derp: the relay connections.
        on_burst: told when the way to a peer changes: how many datagrams may go back to back, 0 for no limit.
        flusher: its ``on_blocked`` is told when the kernel takes no more, and when it does again.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        entropy: Entropy | None = None,
        ipv6: bool = True,
        udp: bool = True,
        offload: bool = True,
    ) -> None:
        self.drops = Drops()
        self._entropy = entropy if entropy is not None else SystemEntropy()
        self._disco = DiscoBox(self._entropy)
        self._paths = Paths(b"", self._entropy)
        self._state = Watch(UnderlayState())
        self._chooser = HomeChooser()
        self._requested_port = port
        self._want_ipv6 = ipv6
        self._want_udp = udp
        self._offload = offload
        self._port: UdpPort | None = None
        self._stun: StunProber | None = None
        self._deliver: Deliver | None = None
        self._clock: Callable[[], Instant] = monotonic_ns
        self._derp_map = DerpMap()
        self._report = Report()
        self._timer = Kick()
        self._armed: Instant | None = None
        self._restun = Kick()
        self._config: UnderlayConfig | None = None
        self._pings: dict[bytes, _PingWait] = {}
        self._held: dict[PeerId, Ring[tuple[TxBatch, Instant]]] = {}  # waiting for a first path
        self._interface_ips: list[bytes] = []
        self._last_active: Instant | None = None
        self._relayed: set[PeerId] = set()
        self.flusher = Flusher()
        self.on_burst: Callable[[PeerId, int], None] | None = None
        self.derp = DerpPool(self._entropy, self)

    # -- PathUnderlay -------------------------------------------------------------------------------------------

    @property
    def state(self) -> Watch[UnderlayState]:
        """Our endpoints, home region and network report, as control should hear them."""
        return self._state

    @property
    def disco_public(self) -> bytes:
        """Our disco key (32 raw bytes), new in each process."""
        return self._disco.public

    @property
    def local_port(self) -> int:
        """The UDP port in use, 0 before :meth:`run`."""
        return self._port.sockets[0].port if self._port is not None and self._port.sockets else 0

    def reply(self, path: PathId, datagram: bytes) -> None:
        """Send one datagram back by the path that a message came by."""
        port = self._port
        if port is None:
            self.drops.add("not_running")
        elif path[0] == "derp":
            self.derp.send_datagram(path[1], path[2], datagram, monotonic_ns())
        else:
            port.send(datagram, len(datagram), Endpoint(path[1], path[2]))

    def configure(self, config: UnderlayConfig) -> None:
        """Adopt *config*; takes effect at once when running, else with :meth:`run`."""
        self._config = config
        if self._port is not None:
            self._apply(config)

    def send(self, peer: PeerId, batch: TxBatch) -> None:
        """Send a batch to *peer*: by its trusted UDP address alone, else by UDP (if any is known) and DERP both."""
        port = self._port
        if port is None:
            self.drops.add("not_running")
            return
        now = self._clock()
        self._last_active = now
        route = self._paths.route(peer, len(batch.data), now)
        if route is None:
            self.drops.add("no_peer", batch.count)
            return
        endpoint, region = route
        if (endpoint is None) != (peer in self._relayed):
            self._note_relayed(peer, endpoint is None)
        if endpoint is not None and not self._send_udp(port, peer, endpoint, batch) and not region:
            # Refused by the host: this batch goes by the relay right away instead of being lost.
            state = self._paths.peers.get(peer)
            region = state.derp_region if state is not None else 0
            if not region:
                self.drops.add("no_path", batch.count)
        elif endpoint is None and not region:
            self._hold(peer, batch, now)
        if region:
            self.derp.send(region, peer, batch, now)
        self._settle(now)

    async def ping(self, peer: PeerId, timeout_s: float) -> PingResult | None:
        """Send disco pings to *peer*, one round a second, until a pong comes or *timeout_s* is over."""
        wait = _PingWait()
        txids: list[bytes] = []
        try:
            with anyio.move_on_after(timeout_s):
                while not wait.done.is_set():
                    now = monotonic_ns()
                    sent = self._paths.ping(peer, now)
                    for txid in sent:
                        if len(self._pings) < MAX_PINGS_WAITING:
                            self._pings[txid] = wait
                            txids.append(txid)
                    self._settle(now)
                    with anyio.move_on_after(PING_RETRY / SECOND):
                        await wait.done.wait()
        finally:
            for txid in txids:
                self._pings.pop(txid, None)
        pong = wait.result
        if pong is None:
            return None
        via_derp = pong.endpoint is None
        return PingResult(pong.latency_ns, "derp" if via_derp else "direct", pong.endpoint, pong.region)

    def peer_status(self, peer: PeerId) -> PathStatus | None:
        """Return how *peer* is reached now, or ``None`` for a key that is not configured."""
        state = self._paths.peers.get(peer)
        if state is None:
            return None
        now = monotonic_ns()
        best = state.best if state.is_trusted(now) else None
        latency: Duration | None = best.latency_ns if best is not None else None
        return PathStatus(
            cur_addr=best.endpoint if best is not None else None,
            relay=state.derp_region,
            rx_bytes=state.rx_bytes,
            tx_bytes=state.tx_bytes,
            last_rx=state.last_rx,
            latency_ns=latency,
            active=state.last_send is not None and now - state.last_send <= SESSION_TIMEOUT,
        )

    def drop_counts(self) -> dict[str, int]:
        """Return how many datagrams were lost below the tunnel, by reason."""
        sockets = self._port.sockets if self._port is not None else []
        totals = {"udp_queue_full": sum(sock.pending_dropped for sock in sockets)}
        for group in (self.drops, self._paths.drops, self.derp.drops, *(sock.drops for sock in sockets)):
            for reason, n in group.counts.items():
                totals[reason] = totals.get(reason, 0) + n
        return {reason: n for reason, n in totals.items() if n}

    def counters(self) -> dict[str, int]:
        """Return every drop below the tunnel by reason, and the system calls made."""
        sockets = self._port.sockets if self._port is not None else []
        return {
            **self.drop_counts(),
            "udp_send_calls": sum(sock.send_calls for sock in sockets),
            "udp_receive_calls": sum(sock.receive_calls for sock in sockets),
        }

    async def run(self, deliver: Deliver, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Open the port and work until cancelled.

        Raises:
            OSError: the requested port is taken, or the host allows no UDP sockets at all.
        """
        if self._port is not None:
            raise RuntimeError("this underlay is already running")
        self._deliver = deliver
        self._clock = loop_clock()
        if self._want_udp:
            port = UdpPort.open(self._requested_port, ipv6=self._want_ipv6 and has_ipv6(), offload=self._offload)
        else:
            port = UdpPort(None, None)
        self._port = port
        self._stun = StunProber(self._entropy, port, self.drops)
        try:
            async with anyio.create_task_group() as tasks:
                if self._config is not None:
                    self._apply(self._config)
                for sock in port.sockets:
                    tasks.start_soon(self._read, sock, name="magicsock-read")
                tasks.start_soon(self._run_timers, name="magicsock-timers")
                tasks.start_soon(self.flusher.run, port.sockets, name="magicsock-flush")
                tasks.start_soon(self._run_stun, self._stun, name="magicsock-stun")
                tasks.start_soon(self._watch_links, name="magicsock-links")
                tasks.start_soon(self.derp.run, name="magicsock-derp")
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._port = None
            self._deliver = None
            port.close()

    def _hold(self, peer: PeerId, batch: TxBatch, now: Instant) -> None:
        """Keep *batch* until *peer* has a path.

        The first packets to a peer that just joined overtake the news of its relay and the first pong. Dropping them
        would cost a handshake's retry timeout, five seconds.
        """
        held = self._held.get(peer)
        if held is None:
            held = self._held[peer] = Ring(HELD_BATCHES)
        victim = held.push((batch, now))
        if victim is not None:
            self.drops.add("no_path", victim[0].count)

    def _release_held(self, now: Instant) -> None:
        """Send what waited for a path that is known now; forget what is too old to be of use."""
        for peer in list(self._held):
            state = self._paths.peers.get(peer)
            if state is not None and state.best is None and not state.derp_region:
                continue
            held = self._held.pop(peer)
            while (item := held.pop()) is not None:
                batch, since = item
                if state is not None and now - since <= HELD_TIME:
                    self.send(peer, batch)
                else:
                    self.drops.add("no_path", batch.count)

    # -- DerpSink -----------------------------------------------------------------------------------------------

    def derp_packets(self, region: int, packets: Sequence[tuple[bytes, bytes]], now: Instant) -> None:
        """Take packets from a relay: disco for us, the rest for the tunnel, in runs of one source."""
        run: list[Buffer] = []
        run_source = b""
        for source, data in packets:
            kind = classify.classify(data)
            if kind == classify.DISCO:
                self._receive_disco_derp(region, source, data, now)
                continue
            if kind != classify.WIREGUARD:
                self.drops.add("derp_not_wireguard")
                continue
            if source != run_source and run:
                self._deliver_derp(region, run_source, run, now)
                run = []
            run_source = source
            run.append(data)
        if run:
            self._deliver_derp(region, run_source, run, now)
        self._settle(now)

    def derp_peer_gone(self, region: int, event: PeerGone) -> None:
        """Stop answering a peer through a region that it left."""
        self._paths.derp_peer_gone(event.node_key, region)

    def derp_up(self, region: int) -> None:
        """A relay took us in."""
        self._paths.derp_opened(region)
        _log.debug("DERP region %d is connected", region)

    def derp_down(self, region: int, lost: bool) -> None:
        """A relay connection ended or could not be made: routes over it are void, and the network may have changed."""
        self._paths.derp_closed(region)
        if lost:
            self._restun.kick()

    # -- configuration ------------------------------------------------------------------------------------------

    def _apply(self, config: UnderlayConfig) -> None:
        now = monotonic_ns()
        self._paths.node_key = dh.public_key(config.node_private)
        specs = [
            PathPeer(
                node_key=peer.node_key,
                disco_key=peer.disco_key if peer.disco_key is not None and any(peer.disco_key) else b"",
                endpoints=peer.endpoints,
                home_derp=peer.home_derp,
            )
            for peer in config.peers
        ]
        for key in self._paths.configure(specs, now):
            self._disco.forget(key)
        map_changed = config.derp_map != self._derp_map
        for number, region in config.derp_map.regions.items():
            if region.derp_nodes() and region != self._derp_map.regions.get(number):
                self._paths.derp_opened(number)
        self._relayed.intersection_update(self._paths.peers)
        self._derp_map = config.derp_map
        self.derp.configure(config.node_private, config.derp_map)
        if map_changed:
            self._restun.kick()
        self._settle(now)

    # -- sending ------------------------------------------------------------------------------------------------

    def _send_udp(self, port: UdpPort, peer: PeerId, endpoint: Endpoint, batch: TxBatch) -> bool:
        code = port.send(batch.data, batch.segment_size, endpoint)
        if not code:
            return True
        if code in _UNREACHABLE:
            self._paths.note_unreachable(peer, endpoint)
        return False

    def _note_relayed(self, peer: PeerId, relayed: bool) -> None:
        (self._relayed.add if relayed else self._relayed.discard)(peer)
        if self.on_burst is not None:
            self.on_burst(peer, RELAY_BURST if relayed else 0)

    def _settle(self, now: Instant) -> None:
        """After every call into the paths: events, then messages to send, then the timer."""
        paths = self._paths
        while (event := paths.next_event()) is not None:
            wait = self._pings.get(event.txid)
            if wait is not None and wait.result is None:
                wait.result = event
                wait.done.set()
        outgoing = paths.take_outgoing()
        port = self._port
        if outgoing and port is not None:
            for message in outgoing:
                try:
                    sealed = self._disco.seal(message.disco_key, message.message)
                except CryptoError:
                    self.drops.add("disco_bad_key")
                    continue
                if message.to is None:
                    self.derp.send_datagram(message.region, message.node_key, sealed, now)
                elif port.send(sealed, len(sealed), message.to) in _UNREACHABLE:
                    paths.note_unreachable(message.node_key, message.to)
        if paths.take_restun_request():
            self._restun.kick()
        if self._held:
            self._release_held(now)
        deadline = paths.next_deadline()
        if deadline is not None and (self._armed is None or deadline < self._armed):
            self._armed = deadline
            self._timer.kick()

    # -- receiving ----------------------------------------------------------------------------------------------

    async def _read(self, sock: UdpSocket) -> None:
        def take() -> None:
            batches = sock.receive()
            if batches:
                self._receive_udp(batches, self._clock())

        await sock.run_reader(take)

    def _receive_udp(self, batches: list[Received], now: Instant) -> None:
        deliver = self._deliver
        if deliver is None:
            return
        run: list[Buffer] = []
        run_source: Endpoint | None = None
        run_bytes = 0
        for data, size, source in batches:
            if source != run_source and run and run_source is not None:
                self._deliver_udp(deliver, run_source, run, run_bytes, now)
                run, run_bytes = [], 0
            run_source = source
            if classify.is_bulk(data, size):
                run += [data[at : at + size] for at in range(0, len(data), size)]
                run_bytes += len(data)
                continue
            for at in range(0, len(data), size):
                datagram = data[at : at + size]
                kind = classify.classify(datagram)
                if kind == classify.WIREGUARD:
                    run.append(datagram)
                    run_bytes += len(datagram)
                elif kind == classify.DISCO:
                    self._receive_disco_udp(source, datagram, now)
                elif kind == classify.STUN and self._stun is not None:
                    self._stun.receive(datagram, now)
                else:
                    self.drops.add("runt" if kind == classify.RUNT else "not_ours")
        if run and run_source is not None:
            self._deliver_udp(deliver, run_source, run, run_bytes, now)
        self._settle(now)

    def _deliver_udp(self, deliver: Deliver, source: Endpoint, run: list[Buffer], n_bytes: int, now: Instant) -> None:
        self._paths.note_received(source, n_bytes, now)
        deliver(run, ("udp", source.ip, source.port), now)

    def _deliver_derp(self, region: int, source: bytes, run: list[Buffer], now: Instant) -> None:
        self._paths.note_received_derp(source, region, sum(map(len, run)), now)
        if self._deliver is not None:
            self._deliver(run, ("derp", region, source), now)

    def _receive_disco_udp(self, source: Endpoint, data: Buffer, now: Instant) -> None:
        disco_key = sender_key(data)
        if not self._paths.knows_disco(disco_key):
            self.drops.add("disco_unknown_sender")
            return
        try:
            message = self._disco.open(data)
        except DecodeError:
            self.drops.add("disco_malformed")
            return
        self._paths.receive_udp(disco_key, message, source, now)

    def _receive_disco_derp(self, region: int, node_key: bytes, data: Buffer, now: Instant) -> None:
        disco_key = sender_key(data)
        if not self._paths.knows_disco(disco_key):
            self.drops.add("disco_unknown_sender")
            return
        try:
            message = self._disco.open(data)
        except DecodeError:
            self.drops.add("disco_malformed")
            return
        self._paths.receive_derp(node_key, disco_key, message, region, now)

    # -- tasks --------------------------------------------------------------------------------------------------

    async def _run_timers(self) -> None:
        while True:
            now = monotonic_ns()
            self._armed = 0  # this loop looks at the deadline itself below, so _settle need not wake it
            self._paths.handle_deadline(now)
            self._settle(now)
            deadline = self._paths.next_deadline()
            self._armed = deadline
            with anyio.move_on_after(None if deadline is None else max(0, deadline - monotonic_ns()) / SECOND):
                await self._timer.wait()

    async def _run_stun(self, stun: StunProber) -> None:
        self._publish()  # interface addresses at once; what STUN adds comes when it is known
        while True:
            derp_map = self._derp_map
            report = await stun.run_check(derp_map, self.derp.home)
            self._take_report(report, derp_map)
            now = monotonic_ns()
            active = self._last_active is not None and now - self._last_active <= SESSION_TIMEOUT
            pause = (RESTUN_MIN + self._entropy.u32() % RESTUN_SPAN) / SECOND if active else None
            with anyio.move_on_after(pause):
                await self._restun.wait()

    def _take_report(self, report: Report, derp_map: DerpMap) -> None:
        """Use what a check over *derp_map* found; a newer map has already asked for the next check."""
        now = monotonic_ns()
        self._report = report
        home = self._chooser.choose(
            report.latency(), derp_map, now, heard_from_home_at=self.derp.last_received(self._chooser.home)
        )
        if not report.udp and not home:
            home = stable_choice(derp_map, self._paths.node_key)
            self._chooser.home = home
        self.derp.set_home(home)
        self._publish()

    def _publish(self) -> None:
        """Compose our endpoints and tell control (by the cell) and waiting peers."""
        port, now = self._port, monotonic_ns()
        if port is None:
            return
        self._interface_ips = interface_ips()
        stun = (*self._report.global_v4, *self._report.global_v6)
        endpoints: list[TypedEndpoint] = gather(
            stun,
            self._interface_ips,
            port_v4=port.v4.port if port.v4 is not None else 0,
            port_v6=port.v6.port if port.v6 is not None else 0,
            varies=self._report.mapping_varies,
            fixed_port=self._requested_port,
        )
        self._paths.set_local_endpoints([typed.endpoint for typed in endpoints], now)
        home = self.derp.home
        state = UnderlayState(
            endpoints=tuple(UnderlayEndpoint(t.endpoint.ip, t.endpoint.port, t.kind) for t in endpoints),
            home_derp=home,
            net_info=self._report.net_info(home, os_has_ipv6=port.v6 is not None),
        )
        # Latencies differ a little in every report; alone they are no news that control must hear.
        old = self._state.value
        latency = old.net_info.derp_latency
        if state.net_info.derp_latency.keys() != latency.keys():
            latency = state.net_info.derp_latency
        if replace(state, net_info=replace(state.net_info, derp_latency=latency)) != old:
            self._state.set(state)
        self._settle(now)

    async def _watch_links(self) -> None:
        """Notice that the host's addresses changed: proven paths are void, relays start over, STUN runs again."""
        while True:
            await anyio.sleep(LINK_POLL_S)
            current = interface_ips()
            if set(current) == set(self._interface_ips):
                continue
            _log.info("the host's addresses changed")
            self._interface_ips = current
            now = monotonic_ns()
            self._paths.network_changed(now)
            self.derp.reconnect_all()
            self._restun.kick()
            self._settle(now)

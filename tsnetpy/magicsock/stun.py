"""One STUN pass after the other over the data socket: resolve servers, probe, report (reference, sections 4 and 6)."""

import logging
import socket
from typing import Final, final

import anyio

from tsnetpy.base.addr import Endpoint, parse_ip
from tsnetpy.base.entropy import Entropy
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.instant import SECOND, Instant
from tsnetpy.base.packet import Buffer
from tsnetpy.base.stats import Drops
from tsnetpy.derp.regions import STUN_OFF, DerpMap, DerpNode
from tsnetpy.disco.netcheck import NetCheck, Report, StunTarget
from tsnetpy.disco.stun import decode_response, encode_request
from tsnetpy.runtime.clock import monotonic_ns
from tsnetpy.runtime.dial import look_up
from tsnetpy.runtime.queues import Kick
from tsnetpy.runtime.udp import UdpPort

RESOLVE_TIMEOUT_S: Final = 2.0
RESOLVED_LIFETIME: Final = 10 * 60 * SECOND
_MAX_NAMES: Final = 256

_log = logging.getLogger(__name__)


@final
class StunProber:
    """Runs netchecks; :meth:`receive` takes what the socket's reader recognised as STUN."""

    def __init__(self, entropy: Entropy, port: UdpPort, drops: Drops) -> None:
        self._port = port
        self._drops = drops
        self._check = NetCheck(entropy)
        self._kick = Kick()
        self._resolved: dict[tuple[str, bool], tuple[Instant, bytes | None]] = {}

    async def run_check(self, derp_map: DerpMap, home: int) -> Report:
        """Probe the STUN servers of *derp_map* and return what was learned."""
        targets = await self._targets(derp_map)
        check = self._check
        check.start(targets, home, monotonic_ns())
        while not check.is_done:
            now = monotonic_ns()
            for probe in check.take_probes(now):
                request = encode_request(probe.txid)
                if self._port.send(request, len(request), probe.server):
                    check.server_failed(probe.server)
            check.handle_deadline(now)
            deadline = check.next_deadline()
            if deadline is None:
                break
            with anyio.move_on_after(max(0, deadline - monotonic_ns()) / SECOND):
                await self._kick.wait()
        return check.report

    def receive(self, data: Buffer, now: Instant) -> None:
        """Take a datagram that looks like STUN."""
        try:
            txid, mapped = decode_response(data)
        except DecodeError:
            self._drops.add("stun_malformed")
            return
        if self._check.handle_response(txid, mapped, now):
            self._kick.kick()
        else:
            self._drops.add("stun_unexpected")

    async def _targets(self, derp_map: DerpMap) -> list[StunTarget]:
        """Return every STUN server address that our sockets can reach; names are resolved all at once."""
        nodes = [
            node
            for region in derp_map.regions.values()
            if not region.no_measure_no_home
            for node in region.nodes
            if node.stun_port != STUN_OFF
        ]
        now = monotonic_ns()
        async with anyio.create_task_group() as tasks:
            for node in nodes[:_MAX_NAMES]:
                for ipv6, listed in ((False, node.ipv4), (True, node.ipv6)):
                    if not listed and self._is_stale(node.host_name, ipv6, now):
                        tasks.start_soon(self._resolve, node.host_name, ipv6)
        targets: list[StunTarget] = []
        for node in nodes:
            for ipv6 in (False, True):
                if (self._port.v6 if ipv6 else self._port.v4) is None:
                    continue
                ip = self._address(node, ipv6)
                if ip is not None:
                    targets.append(StunTarget(node.region_id, Endpoint(ip, node.stun_port)))
        return targets

    def _address(self, node: DerpNode, ipv6: bool) -> bytes | None:
        listed = node.ipv6 if ipv6 else node.ipv4
        if not listed:
            return self._resolved.get((node.host_name, ipv6), (0, None))[1]
        try:
            ip = parse_ip(listed)
        except ValueError:
            return None  # "none" switches the family off
        return ip if len(ip) == (16 if ipv6 else 4) else None

    def _is_stale(self, name: str, ipv6: bool, now: Instant) -> bool:
        known = self._resolved.get((name, ipv6))
        return known is None or now - known[0] > RESOLVED_LIFETIME

    async def _resolve(self, name: str, ipv6: bool) -> None:
        found: bytes | None = None
        try:
            literal = parse_ip(name)
            found = literal if len(literal) == (16 if ipv6 else 4) else None
        except ValueError:
            found = await self._look_up(name, ipv6)
        if len(self._resolved) >= _MAX_NAMES * 2:
            self._resolved.clear()
        self._resolved[name, ipv6] = (monotonic_ns(), found)

    async def _look_up(self, name: str, ipv6: bool) -> bytes | None:
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        with anyio.move_on_after(RESOLVE_TIMEOUT_S):
            try:
                for address in await look_up(name, 0, family):
                    return parse_ip(address.partition("%")[0])
            except (OSError, ValueError) as error:
                _log.debug("%s does not resolve: %s", name, error)
        return None

"""Two stacks that talk to each other while a wire between them lies: ``python -m tests.fuzz.soak --packets N``.

Every genuine packet is accompanied by damaged copies of itself and of older ones, by fragments of it, and by noise.
What must hold all the time: nothing raises, tables and queues stay within their limits, memory does not grow, and no
batch takes long. One seed gives one run.

With ``--jobs`` the packets are dealt out in parts of half a million, each with a seed and a process of its own; with
``--progress FILE`` parts that are through are noted there, and another run of the same command goes on with the rest.
"""

import argparse
import gc
import json
import multiprocessing
import random
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.ipstack.kit import A4, A6, B4, B6, PEER_A, PEER_B, Dice
from tests.nic.kit import ip_packet
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import MILLISECOND, SECOND
from tsnetpy.base.packet import Buffer, PeerId
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import Stack, StackLimits, TcpSocket
from tsnetpy.nic import gro, tso
from tsnetpy.tcp import TcpConfig
from tsnetpy.wire import ipv6

LIMITS = StackLimits(
    connections=64,
    connections_per_peer=48,
    embryos=32,
    embryos_per_peer=16,
    fragment_bytes=200_000,
    queue=100,
    udp_queue_bytes=100_000,
)
MTU = 1280
_SPECIAL = (0, 1, 0x7F, 0x80, 0xFE, 0xFF, 6, 17, 58, 44, 43, 60, 0x45, 0x60)
_TEMPLATES = 64
PART = 500_000
"""Packets of one part of a long run."""


class Soak:
    """The two stacks, the wire, and the dice.

    Attributes:
        fed: packets handed to either stack.
        slowest: seconds that the dearest batch took.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0
        self.fed = 0
        self.slowest = 0.0
        self.drops = Drops()
        self.a = self._stack(seed, (A4, A6))
        self.b = self._stack(seed + 1, (B4, B6))
        self.sockets: list[TcpSocket] = []
        self.templates: dict[PeerId, list[bytes]] = {
            PEER_A: [ip_packet(A4, B4, 17, bytes(8))],
            PEER_B: [ip_packet(B6, A6, 58, bytes(8))],
        }

    def _stack(self, seed: int, addresses: tuple[bytes, ...]) -> Stack:
        config = TcpConfig(rcv_buf=40_000, snd_buf=40_000)
        stack = Stack(Dice(seed), MTU, config, LIMITS)
        stack.set_addresses(addresses)
        stack.paths.route = lambda ip: PEER_A if ip in (A4, A6) else PEER_B if ip in (B4, B6) else None
        self.listener = stack.tcp_listen(80, 0, backlog=8)
        stack.tcp_listen(81, 0, backlog=2)
        self.udp = stack.udp_bind(53)
        self.echo = stack.icmp_bind()
        return stack

    def step(self) -> None:
        """Let the applications do something, and carry what comes of it."""
        dice = self.random
        self._applications()
        if dice.random() < 0.02:
            self._conditions()
        for _ in range(4):
            moved = self._carry(self.a, self.b, PEER_A) + self._carry(self.b, self.a, PEER_B)
            if not moved:
                break
            self.now += dice.randrange(20) * MILLISECOND
        self.now += dice.choice((0, MILLISECOND, 50 * MILLISECOND, 300 * MILLISECOND, 20 * SECOND))
        for stack in (self.a, self.b):
            deadline = stack.next_deadline()
            if deadline is not None and deadline <= self.now:
                stack.handle_deadline(self.now)

    def _conditions(self) -> None:
        """Let the ways to the peers change, and the applications' wishes."""
        dice = self.random
        for stack, peer in ((self.a, PEER_B), (self.b, PEER_A)):
            stack.set_path(peer, dice.choice((0, 0, 1280)), dice.choice((0, 0, 1, 16)))
            stack.set_blocked(dice.random() < 0.1)
        for socket in self.sockets:
            socket.set_cork(dice.random() < 0.2)
            socket.set_nodelay(dice.random() < 0.7)
            socket.set_keepalive(dice.choice((0, 30 * SECOND)), SECOND, 3, self.now)
            socket.hop_limit = dice.randrange(1, 256)

    def _applications(self) -> None:
        dice = self.random
        self.sockets = [socket for socket in self.sockets if not socket.closed]
        if len(self.sockets) < 8:
            target = Endpoint(dice.choice((A4, A6)), dice.choice((80, 80, 80, 81, 9)))
            self.sockets.append(self.b.tcp_connect(target, self.now))
        for stack in (self.a, self.b):
            for socket, _ in stack.take_ready():
                accept = getattr(socket, "accept", None)
                if accept is not None and dice.random() < 0.9:
                    while (accepted := accept()) is not None:
                        self.sockets.append(accepted)
                receive = getattr(socket, "recv_from", None) or getattr(socket, "recv", None)
                while receive is not None and receive() is not None:
                    pass
        for socket in self.sockets:
            action = dice.random()
            try:
                if action < 0.6:
                    socket.send(bytes(dice.randrange(6000)), self.now)
                elif action < 0.63:
                    socket.shutdown(self.now)
                elif action < 0.65:
                    socket.close(self.now)
                elif action < 0.66:
                    socket.abort(self.now)
            except LocalProtocolError:
                pass  # closed meanwhile
            if action > 0.2:
                socket.read(1 << 16, self.now)
        target = Endpoint(dice.choice((A4, A6)), dice.choice((53, 54)))
        self.udp.send_to(bytes(dice.randrange(4000)), target, self.now, segment=dice.choice((0, 0, 500)))
        self.echo.send_echo(dice.choice((A4, A6)), 1, bytes(dice.randrange(3000)), self.now)

    def _carry(self, source: Stack, sink: Stack, peer: PeerId) -> int:
        dice = self.random
        templates = self.templates[peer]
        batch: list[tuple[PeerId, Buffer]] = []
        units = source.egress(self.now)
        for unit in units:
            for packet in tso.split(unit, MTU):
                if dice.random() < 0.02:
                    templates[dice.randrange(_TEMPLATES) % len(templates)] = packet
                    if len(templates) < _TEMPLATES:
                        templates.append(packet)
                if dice.random() < 0.97:
                    batch.append((peer, packet))
                lies = dice.randrange(4)
                batch += [(peer, self._lie(packet if lies & 1 else dice.choice(templates))) for _ in range(lies)]
        if dice.random() < 0.1:
            batch.append((peer, dice.randbytes(dice.randrange(200))))
            dice.shuffle(batch)
        if batch:
            began = time.thread_time()
            units_in = gro.coalesce(batch, self.drops, dice.random() < 0.3)
            assert sum(rx.packets for rx in units_in) <= len(batch)
            sink.ingress(units_in, self.now)
            self.slowest = max(self.slowest, (time.thread_time() - began) / (len(batch) + 10))
            self.fed += len(batch)
        return len(units)

    def _lie(self, packet: bytes) -> bytes:
        """Return a damaged copy of *packet*."""
        dice = self.random
        kind = dice.randrange(8)
        data = bytearray(packet)
        if kind <= 3:  # some bytes, the headers' more often
            reach = len(data) if kind == 3 else min(len(data), 80)
            for _ in range(dice.randrange(1, 4)):
                value = dice.choice(_SPECIAL) if kind & 1 else dice.randrange(256)
                data[dice.randrange(reach)] = value
        elif kind == 4:
            del data[dice.randrange(len(data)) :]
        elif kind == 5:
            at = dice.randrange(len(data))
            data[at:at] = dice.randbytes(dice.randrange(1, 40))
        elif kind == 6 and data[0] >> 4 == 4:
            data[6:8] = dice.choice((0x2000, 0x2005, 10, 11, 0x200A, 0x1FFF, 0x3FFF)).to_bytes(2, "big")
            data[5] = dice.randrange(4)
        elif kind == 6:
            offset = dice.choice((0, 0, 80, 88, 1208, 65528))
            head = ipv6.FragmentHeader(data[6], offset, dice.random() < 0.7, dice.randrange(4)).encode()
            data[6] = 44
            data[40:40] = head
            data[4:6] = ((len(data) - 40) & 0xFFFF).to_bytes(2, "big")
        else:  # a number nearby: sequence, acknowledgement, window
            at = (20 if data[0] >> 4 == 4 else 40) + dice.choice((4, 8, 14))
            if at + 4 <= len(data):
                value = int.from_bytes(data[at : at + 4], "big") + dice.choice((-70_000, -1, 1, 500, 1228, 1 << 31))
                data[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "big")
        return bytes(data)


def check_tables(stack: Stack) -> None:
    """Assert that what peers can make *stack* remember is within its limits."""
    host = stack._host
    assert stack.tcp_connections <= LIMITS.connections
    assert stack._tcp._embryos <= LIMITS.embryos
    assert stack._reassembler.held_bytes <= LIMITS.fragment_bytes
    assert len(stack._reassembler) <= LIMITS.fragment_datagrams
    assert len(host.out) <= LIMITS.queue
    assert len(host._large) <= 256
    assert len(host.ready) <= LIMITS.connections + 8
    assert len(stack.drops.counts) < 40


def run(seed: int, packets: int, seconds: float = float("inf"), *, report: bool = False) -> Soak:
    """Feed at least *packets* packets, or for *seconds*, and check the limits along the way."""
    soak = Soak(seed)
    began = time.monotonic()
    base = 0
    next_check = 0
    while soak.fed < packets and time.monotonic() - began < seconds:
        soak.step()
        if soak.fed >= next_check:
            next_check = soak.fed + max(packets // 20, 5_000) if packets < 1 << 60 else soak.fed + 200_000
            gc.collect()
            for stack in (soak.a, soak.b):
                check_tables(stack)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            base = base or peak
            assert peak - base < 100_000, f"memory grew by {peak - base} KiB"
            assert soak.slowest < 0.05, f"{soak.slowest} s per packet"
            if report:
                spent = time.monotonic() - began
                print(
                    f"{soak.fed} packets, {spent:.0f} s, {peak} KiB, worst batch {soak.slowest * 1e6:.0f} us a packet"
                )
    if report:
        print("dropped:", dict(sorted(reasons(soak).items(), key=lambda item: -item[1])))
    return soak


def reasons(soak: Soak) -> dict[str, int]:
    """Return what both ends dropped, by reason."""
    counts = {**soak.drops.counts}
    for stack in (soak.a, soak.b):
        for reason, count in stack.drops.counts.items():
            counts[reason] = counts.get(reason, 0) + count
    return counts


def part(seed: int) -> tuple[int, int, float, dict[str, int]]:
    """Run one part; return its seed, its packets, the dearest batch in seconds per packet, and what was dropped."""
    soak = run(seed, PART)
    return seed, soak.fed, soak.slowest, reasons(soak)


def run_parts(first_seed: int, packets: int, jobs: int, progress: Path | None) -> int:
    """Run as many parts as *packets* need, those noted in *progress* left out; return the packets of all."""
    seeds = [first_seed + n for n in range(-(-packets // PART))]
    done: dict[str, int] = {}
    if progress is not None and progress.exists():
        done = json.loads(progress.read_text())
    total = sum(count for seed, count in done.items() if int(seed) in seeds)
    left = [seed for seed in seeds if str(seed) not in done]
    print(f"{len(seeds) - len(left)} of {len(seeds)} parts were through before", flush=True)
    dropped: dict[str, int] = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(part, seed) for seed in left]):
            if future.exception() is not None:
                pool.shutdown(wait=False, cancel_futures=True)  # or all other parts would run first
            seed, fed, slowest, counts = future.result()
            total += fed
            done[str(seed)] = fed
            for reason, count in counts.items():
                dropped[reason] = dropped.get(reason, 0) + count
            if progress is not None:
                progress.write_text(json.dumps(done))
            print(
                f"seed {seed}: {fed} packets, worst batch {slowest * 1e6:.0f} us a packet, {total} in all", flush=True
            )
    print("dropped:", dict(sorted(dropped.items(), key=lambda item: -item[1])))
    return total


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--packets", type=int, default=1 << 62)
    parser.add_argument("--seconds", type=float, default=60.0, help="without --jobs: stop after so long")
    parser.add_argument("--jobs", type=int, default=0, help="run in parts, so many at a time")
    parser.add_argument("--progress", type=Path, help="with --jobs: where parts that are through are noted")
    options = parser.parse_args()
    if options.jobs:
        print(f"{run_parts(options.seed, options.packets, options.jobs, options.progress)} packets clean")
        return 0
    soak = run(options.seed, options.packets, options.seconds, report=True)
    print(f"{soak.fed} packets clean")
    return 0


if __name__ == "__main__":
    sys.exit(main())

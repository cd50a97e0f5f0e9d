"""A bad network of ours: an Ethernet bridge with two ends that delays, loses, reorders and duplicates UDP frames.

    relay.py wire INTERFACE
    relay.py run LEFT RIGHT [--loss 0.01] [--reorder 0.05] [--duplicate 0.01] [--delay-ms 5] [--jitter-ms 3] [--seed 1]

LEFT and RIGHT are interfaces without addresses. Everything but UDP passes as it is, so that the control connection and
DERP stay what they are. A reordered frame waits up to *jitter* longer, and what came after it overtakes. Every choice
comes from the seed; ``wire`` prepares the ends that talk through it. SIGUSR1 prints the counters as one line of JSON,
and so does the end by SIGTERM.

Linux only and root only: packet(7) sockets, since not every kernel has netem.
"""

import argparse
import ctypes
import fcntl
import heapq
import json
import os
import pathlib
import random
import selectors
import signal
import socket
import struct
import time
from collections import deque
from types import FrameType

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_IGNORE_OUTGOING = 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
BUFFER = 16 << 20
SIOCETHTOOL = 0x8946
# ETHTOOL_S{RXCSUM,TXCSUM,SG,TSO,UFO,GSO,GRO} of linux/ethtool.h
OFFLOADS = (0x15, 0x17, 0x19, 0x1F, 0x22, 0x24, 0x2C)
MAX_FRAMES_PER_TURN = 64


def switch_offloads_off(interface: str, *, quiet: bool = True) -> None:
    """Make *interface* carry frames as a wire would: of at most one MTU, with finished checksums.

    With *quiet* the host itself says nothing on it either.

    Between two ends of one machine the kernel leaves segmentation and checksums to a card that never comes; a program
    that copies frames would pass on super-frames that do not fit and checksums that are not there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("=II", command, 0))
            request = struct.pack("@16sP", interface.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(sock, SIOCETHTOOL, request.ljust(40, b"\0"))
            except OSError:
                continue  # this kernel has no such switch, or does not let it be turned
    switch = pathlib.Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6")
    if quiet and switch.exists():
        switch.write_text("1")  # IPv6 talks on every interface by itself


def is_udp(frame: bytes) -> bool:
    """Tell whether an Ethernet frame carries UDP, over IPv4 or plain IPv6."""
    kind = frame[12:14]
    return (kind == b"\x08\x00" and frame[23:24] == b"\x11") or (kind == b"\x86\xdd" and frame[20:21] == b"\x11")


def open_port(interface: str) -> socket.socket:
    """Return a socket for all frames that arrive at *interface*."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.bind((interface, ETH_P_ALL))
    sock.setblocking(False)
    return sock


class Relay:
    """Both directions between two interfaces."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.random = random.Random(options.seed)
        self.loss: float = options.loss
        self.reorder: float = options.reorder
        self.duplicate: float = options.duplicate
        self.delay: float = options.delay_ms / 1000
        self.jitter: float = options.jitter_ms / 1000
        self.ports = [open_port(options.left), open_port(options.right)]
        self.counts = dict.fromkeys(
            ("udp_frames", "udp_bytes", "lost", "reordered", "duplicated", "other_frames", "overflow"), 0
        )
        self.in_order: deque[tuple[float, socket.socket, bytes]] = deque()
        self.late: list[tuple[float, int, socket.socket, bytes]] = []
        self.serial = 0

    def run(self) -> None:
        """Copy frames for ever."""
        selector = selectors.DefaultSelector()
        one, other = self.ports
        selector.register(one, selectors.EVENT_READ, (one, other))
        selector.register(other, selectors.EVENT_READ, (other, one))
        while True:
            for key, _ in selector.select(self.pause()):
                self.drain(*key.data)
            self.send_due()

    def pause(self) -> float | None:
        """Return the seconds until a frame is due, ``None`` if none waits."""
        due = [self.in_order[0][0]] if self.in_order else []
        if self.late:
            due.append(self.late[0][0])
        return max(0.0, min(due) - time.monotonic()) if due else None

    def drain(self, port: socket.socket, out: socket.socket) -> None:
        """Take what waits at *port* and decide each frame's fate."""
        now = time.monotonic()
        counts, chance = self.counts, self.random.random
        for _ in range(MAX_FRAMES_PER_TURN):
            try:
                frame = port.recv(65536)
            except BlockingIOError:
                return
            if not is_udp(frame):
                counts["other_frames"] += 1
                self.send(out, frame)
                continue
            counts["udp_frames"] += 1
            counts["udp_bytes"] += len(frame)
            if chance() < self.loss:
                counts["lost"] += 1
                continue
            copies = 1
            if chance() < self.duplicate:
                counts["duplicated"] += 1
                copies = 2
            for _ in range(copies):
                if chance() < self.reorder:
                    counts["reordered"] += 1
                    self.serial += 1
                    due = now + self.delay + self.jitter * (0.2 + 0.8 * chance())
                    heapq.heappush(self.late, (due, self.serial, out, frame))
                else:
                    self.in_order.append((now + self.delay, out, frame))

    def send_due(self) -> None:
        """Send what has waited long enough."""
        now = time.monotonic()
        while self.in_order and self.in_order[0][0] <= now:
            _, out, frame = self.in_order.popleft()
            self.send(out, frame)
        while self.late and self.late[0][0] <= now:
            _, _, out, frame = heapq.heappop(self.late)
            self.send(out, frame)

    def send(self, out: socket.socket, frame: bytes) -> None:
        """Put a frame on the other side."""
        try:
            out.send(frame)
        except OSError:
            self.counts["overflow"] += 1

    def report(self) -> None:
        """Print the counters."""
        for port in self.ports:
            raw = port.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)  # reading resets them
            self.counts["overflow"] += int(struct.unpack("=II", raw)[1])
        print(json.dumps(self.counts), flush=True)


def main() -> None:
    """Run the command line."""
    commands = argparse.ArgumentParser()
    choice = commands.add_subparsers(dest="command", required=True)
    choice.add_parser("wire").add_argument("interface")
    parser = choice.add_parser("run")
    parser.add_argument("left")
    parser.add_argument("right")
    parser.add_argument("--loss", type=float, default=0.01)
    parser.add_argument("--reorder", type=float, default=0.05)
    parser.add_argument("--duplicate", type=float, default=0.01)
    parser.add_argument("--delay-ms", type=float, default=5.0)
    parser.add_argument("--jitter-ms", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    options = commands.parse_args()
    if options.command == "wire":
        switch_offloads_off(options.interface, quiet=False)
        return
    for interface in (options.left, options.right):
        switch_offloads_off(interface)
    relay = Relay(options)

    def end(number: int, frame: FrameType | None) -> None:
        relay.report()
        os._exit(0)

    signal.signal(signal.SIGUSR1, lambda number, frame: relay.report())
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    relay.run()


if __name__ == "__main__":
    main()

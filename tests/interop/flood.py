"""A flood of handshakes: ``flood.py garbage|initiations HOST PORT PUBLIC_KEY_HEX RATE``, until SIGTERM.

``garbage`` has the sizes and types of all four messages and random bytes behind them; ``initiations`` are made by
strangers who know the target's key, so MAC1 holds and only the Diffie-Hellman would tell that they are no peers. RATE
is in datagrams a second. At the end one line of JSON says how many went out, and in which time.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from types import FrameType

from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.instant import SECOND
from tsnetpy.crypto import dh
from tsnetpy.wg import Device

SOL_UDP, UDP_SEGMENT = 17, 103
BURST = 40
SOCKETS = 8
MESSAGES = ((1, 148), (2, 92), (3, 64), (4, 96))


def garbage(count: int) -> list[tuple[int, bytes]]:
    """Return bursts of datagrams as ``(size of each, all of them)``."""
    bursts = []
    for n in range(count):
        kind, size = MESSAGES[n % len(MESSAGES)]
        bursts.append((size, b"".join(bytes((kind, 0, 0, 0)) + os.urandom(size - 4) for _ in range(BURST))))
    return bursts


def initiations(target: bytes, count: int) -> list[tuple[int, bytes]]:
    """Return bursts of initiations of many strangers."""
    entropy = SystemEntropy()
    made = []
    for _ in range(64):
        device = Device(dh.generate(entropy), entropy)
        device.wall_offset_ns = time.time_ns()
        device.add_peer(target, [], 0)
        for n in range(4):
            device.initiate(target, n * 6 * SECOND)
        made += [bytes(batch.data) for _, batch in device.take_outgoing() if batch.data[0] == 1]
    return [(148, b"".join(random.choices(made, k=BURST))) for _ in range(count)]


def main(kind: str, host: str, port: str, key: str, rate: str) -> None:
    """Send until told to stop."""
    bursts = garbage(64) if kind == "garbage" else initiations(bytes.fromhex(key), 64)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socks = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(SOCKETS)]
    for sock in socks:
        sock.connect((host, int(port)))
    per_second = int(rate)
    sent = calls = refused = 0
    began = time.monotonic()

    def end(number: int, frame: FrameType | None) -> None:
        print(json.dumps({"sent": sent, "seconds": time.monotonic() - began, "refused": refused}), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    while True:
        while sent < (time.monotonic() - began) * per_second:
            size, data = bursts[calls % len(bursts)]
            sock = socks[calls % SOCKETS]
            calls += 1
            sent += BURST
            try:
                sock.setsockopt(SOL_UDP, UDP_SEGMENT, size)
                sock.send(data)
            except OSError:
                refused += BURST
        time.sleep(0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])

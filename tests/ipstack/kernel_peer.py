"""Run one stack on a TUN device against the kernel's; started by ``test_kernel.py`` inside a network namespace."""

import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
import time

from tsnetpy.base.addr import parse_ip
from tsnetpy.base.entropy import SystemEntropy
from tsnetpy.base.packet import Buffer, PeerId
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import Stack, TcpSocket
from tsnetpy.nic import gro, tso

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
PEER = bytes(32)
OURS = ("100.64.0.2", "fd7a:115c:a1e0::2")


class Responder:
    """A UDP echo on port 53 and a TCP echo on port 80, behind *tun*."""

    def __init__(self, tun: int) -> None:
        self.tun = tun
        self.stack = Stack(SystemEntropy())
        self.stack.set_addresses([parse_ip(ip) for ip in OURS])
        self.udp = self.stack.udp_bind(53)
        self.listener = self.stack.tcp_listen(80, time.monotonic_ns())
        self.pending: dict[TcpSocket, bytes] = {}
        self.drops = Drops()
        self.stop = False

    def run(self) -> None:
        while not self.stop:
            deadline = self.stack.next_deadline()
            wait = 0.05 if deadline is None else min(0.05, max(0.0, (deadline - time.monotonic_ns()) / 1e9))
            select.select([self.tun], [], [], wait)
            batch: list[tuple[PeerId, Buffer]] = []
            while len(batch) < 128:
                try:
                    batch.append((PEER, os.read(self.tun, 2000)))
                except BlockingIOError:
                    break
            now = time.monotonic_ns()
            self.stack.ingress(gro.coalesce(batch, self.drops), now)
            self.stack.handle_deadline(now)
            self.answer(now)
            while units := self.stack.egress(now):
                for unit in units:
                    for packet in tso.split(unit, 1280):
                        select.select([], [self.tun], [])
                        os.write(self.tun, packet)
            self.stack.take_ready()

    def answer(self, now: int) -> None:
        while (item := self.udp.recv_from()) is not None:
            self.udp.send_to(item[0], item[1], now)
        while (accepted := self.listener.accept()) is not None:
            self.pending[accepted] = b""
        for conn, waiting in list(self.pending.items()):
            data = waiting if len(waiting) > 1 << 20 else waiting + conn.read(1 << 18, now)
            if data:
                data = data[conn.send(data, now) :]
            elif conn.connection.eof_received:
                conn.close(now)
                del self.pending[conn]
                continue
            self.pending[conn] = data


def check(ip: str) -> None:
    """Talk to the stack through the kernel's sockets."""
    subprocess.run(["ping", "-c2", "-i0.2", "-W2", "-s3000", ip], check=True, stdout=subprocess.DEVNULL)
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.settimeout(5)
        for size in (0, 5, 1253, 9000, 60000):
            udp.sendto(bytes(size), (ip, 53))
            assert udp.recv(70000) == bytes(size)
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.settimeout(5)
        udp.connect((ip, 99))
        udp.send(b"x")
        try:
            udp.recv(10)
        except ConnectionRefusedError:
            pass
        else:
            raise AssertionError("a closed UDP port answered")
    try:
        socket.create_connection((ip, 81), timeout=5)
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("a closed TCP port answered")
    data = os.urandom(8 << 20)
    got: list[bytes] = []
    with socket.create_connection((ip, 80), timeout=20) as conn:

        def read() -> None:
            while chunk := conn.recv(1 << 18):
                got.append(chunk)

        reader = threading.Thread(target=read)  # noqa: TID251 - kernel sockets that block
        reader.start()
        conn.sendall(data)
        conn.shutdown(socket.SHUT_WR)
        reader.join(60)
    assert b"".join(got) == data


def main() -> None:
    """Make the device, start the responder, run the checks."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"tsn0", IFF_TUN_NO_PI))
    for command in (
        "ip addr add 100.64.0.1/24 dev tsn0",
        "ip -6 addr add fd7a:115c:a1e0::1/64 dev tsn0 nodad",
        "ip link set tsn0 mtu 1280 up",
    ):
        subprocess.run(command.split(), check=True)
    responder = Responder(tun)
    thread = threading.Thread(target=responder.run)  # noqa: TID251 - the kernel side blocks
    thread.start()
    try:
        for ip in OURS:
            check(ip)
    finally:
        responder.stop = True
        thread.join()
    assert responder.drops.total == 0, responder.drops.snapshot()
    expected = {"no_socket", "no_connection", "not_local"}
    assert set(responder.stack.drops.counts) <= expected, responder.stack.drops.snapshot()


if __name__ == "__main__":
    main()

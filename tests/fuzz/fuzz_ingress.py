"""Coverage-guided fuzzing of ``ingress``: ``make fuzz``, or ``python -m tests.fuzz.fuzz_ingress [seconds] [corpus]``.

An input is a list of records: an operation, a length, and as many bytes. Operations feed raw bytes, build packets
around them (so that the fuzzer need not guess addresses and numbers), let time pass, or act as the application. Where
atheris is not installed, the seeded soak of :mod:`tests.fuzz.soak` runs for the same time instead.
"""

import sys
from pathlib import Path

from tests.fuzz import guided
from tests.ipstack.kit import A4, A6, B4, B6, PEER_B, Dice
from tests.nic.kit import ip_packet
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import MILLISECOND
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import PacketFilter, Stack, StackLimits
from tsnetpy.nic.gro import coalesce
from tsnetpy.nic.tso import split
from tsnetpy.tcp import TcpConfig
from tsnetpy.wire import ipv6, tcp, udp

LIMITS = StackLimits(connections=16, embryos=8, embryos_per_peer=4, fragment_bytes=20_000, queue=20)
MAX_RECORDS = 64
_PROTOS = (1, 6, 17, 44, 43, 0, 60, 58, 59, 99, 132)


class Target:
    """A stack with a connection open, one attempted, a listener, and sockets."""

    def __init__(self) -> None:
        self.now = 0
        self.stack = Stack(Dice(3), 1280, TcpConfig(rcv_buf=20_000, snd_buf=20_000), LIMITS)
        self.stack.set_addresses((A4, A6))
        self.stack.paths.route = lambda ip: PEER_B if ip in (B4, B6) else None
        self.drops = Drops()
        self.filter = PacketFilter()
        self.filter.configure([], (A4, A6))
        self.listener = self.stack.tcp_listen(2000, 0, backlog=2)
        self.udp = self.stack.udp_bind(53)
        self.echo = self.stack.icmp_bind()
        self.attempt = self.stack.tcp_connect(Endpoint(B6, 80), 0, Endpoint(A6, 5001))
        self.open = self.stack.tcp_connect(Endpoint(B4, 80), 0, Endpoint(A4, 5000))
        for unit in self.stack.egress(0):
            if unit.dst == B4:
                self.iss = int.from_bytes(unit.header[4:8], "big")
        options = b"\x02\x04\x04\xd8\x03\x03\x02\x04\x02\x01\x01\x01"
        self._segment(0, tcp.SYN | tcp.ACK, 999, self.iss + 1, 65535, options, b"")

    def act(self, op: int, body: bytes) -> None:
        """Do one record."""
        what = op % 12
        number = int.from_bytes(body[:2].ljust(2, b"\0"), "big")
        if what == 0:
            self._feed(body, bool(op & 128))
        elif what == 1:
            self._feed(ip_packet(B4, A4, _PROTOS[op // 12 % len(_PROTOS)], body), False)
        elif what == 2:
            self._feed(ip_packet(B6, A6, _PROTOS[op // 12 % len(_PROTOS)], body), False)
        elif what in (3, 4, 5):
            tcb = self.open.connection.tcb
            head = body.ljust(6, b"\0")
            seq = tcb.rcv_nxt + int.from_bytes(head[:1], "big", signed=True) * 100
            ack = tcb.snd_una + int.from_bytes(head[1:2], "big", signed=True) * 50
            cut = 6 + head[4] % 41 // 4 * 4
            self._segment(
                op, head[2] if what == 5 else tcp.ACK | head[2] & 9, seq, ack, number, head[6:cut], head[cut:]
            )
        elif what == 6:
            self._feed(ip_packet(B4, A4, 17, body, frag=number & 0x3FFF), False)
        elif what == 7:
            head6 = ipv6.FragmentHeader(body[2] if len(body) > 2 else 17, number & 0xFFF8, bool(op & 16), op >> 6)
            self._feed(ip_packet(B6, A6, 44, head6.encode() + body[3:]), False)
        elif what == 8:
            self._feed(ip_packet(B6, A6, 17, udp.encode_datagram(B6, A6, 9, 53, body)), True)
        elif what == 9:
            flags = tcp.SYN if op & 16 else body[0] if body else 0
            options = body[2 : 2 + len(body[2:42]) // 4 * 4]
            syn = tcp.TcpHeader(1000 + op // 16, 2000, number, 1, flags, 100, 0, 0, options)
            self._feed(ip_packet(B4, A4, 6, syn.encode(B4, A4, b"")), False)
        elif what == 10:
            self.now += number * MILLISECOND * (100 if op & 16 else 1)
            deadline = self.stack.next_deadline()
            if deadline is not None and deadline <= self.now:
                self.stack.handle_deadline(self.now)
        else:
            self._application(op // 12 % 10, body)
        self._drain()

    def _application(self, what: int, body: bytes) -> None:
        try:
            if what == 0:
                self.open.send(body * 50, self.now)
            elif what == 1:
                self.open.read(1000, self.now)
            elif what == 2:
                self.open.shutdown(self.now)
            elif what == 3:
                self.open.close(self.now)
            elif what == 4:
                self.udp.send_to(body * 40, Endpoint(B4, 9), self.now)
            elif what == 5:
                self.echo.send_echo(B6, 1, body, self.now)
            elif what == 6:
                self.open.set_cork(bool(body[:1] > b"\x7f"))
                self.open.set_nodelay(not body)
            elif what == 7:
                self.udp.send_to(body * 40, Endpoint(B6, 9), self.now, segment=len(body) * 3)
            elif what == 8:
                self.stack.set_path(PEER_B, 0, len(body) % 20)
            else:
                self.stack.set_blocked(bool(body[:1] > b"\x7f"))
        except LocalProtocolError:
            pass  # a call that the state does not allow
        while (socket := self.listener.accept()) is not None:
            socket.abort(self.now)
        while self.udp.recv_from() is not None or self.echo.recv() is not None:
            pass

    def _segment(self, op: int, flags: int, seq: int, ack: int, wnd: int, options: bytes, payload: bytes) -> None:
        head = tcp.TcpHeader(80, 5000, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, flags, wnd, 0, 0, options)
        payload = payload * 8 if op & 64 else payload
        self._feed(ip_packet(B4, A4, 6, head.encode(B4, A4, payload) + payload), False)

    def _feed(self, packet: bytes, verify: bool) -> None:
        units = coalesce([(PEER_B, packet)], self.drops, verify)
        assert len(units) <= 1
        for unit in units:
            self.filter.check_inbound(unit)  # its verdict must not raise; the stack gets all the same
        self.filter.take_rejects()
        self.stack.ingress(units, self.now)

    def _drain(self) -> None:
        count = 0
        while units := self.stack.egress(self.now):
            for unit in units:
                for packet in split(unit, 1280):
                    count += 1
                    assert len(packet) <= 1280
        assert count < 400, f"{count} packets for one record"
        self.stack.take_ready()


def replay(data: bytes) -> Stack:
    """Run one input; return the stack for a look."""
    target = Target()
    at = 0
    for _ in range(MAX_RECORDS):
        if at + 2 > len(data):
            break
        target.act(data[at], data[at + 2 : at + 2 + data[at + 1]])
        at += 2 + data[at + 1]
    for reason, count in target.drops.counts.items():
        target.stack.drops.add(reason, count)
    return target.stack


def main() -> int:
    """Fuzz until the time is over."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    if not guided.available():
        from tests.fuzz.soak import run

        print("atheris is not installed: seeded packets instead of guided ones")
        soak = run(seed=seconds, packets=1 << 62, seconds=seconds, report=True)
        print(f"{soak.fed} packets clean")
        return 0
    guided.fuzz(replay, seconds, Path(sys.argv[2] if len(sys.argv) > 2 else "build/fuzz/corpus"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

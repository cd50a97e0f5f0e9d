"""Runs one script against one stack on a virtual clock.

The stack sees complete IP packets through the same GRO that the data plane uses. What it sends is compared at the level
of byte ranges: consecutive segments of ours are joined, and longer ones cut at a multiple of their segment size, until
they are what the script writes. Not compared: PSH, padding between options, and timestamps unless the script gives the
length of their tick.
"""

import re
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from tsnetpy.base.addr import parse_ip
from tsnetpy.base.errors import LocalProtocolError
from tsnetpy.base.instant import MILLISECOND, SECOND, Duration, Instant
from tsnetpy.base.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Buffer, PeerId
from tsnetpy.base.stats import Drops
from tsnetpy.ipstack import Stack
from tsnetpy.nic import gro
from tsnetpy.tcp.flags import ACK, FIN, PSH, SYN
from tsnetpy.testing.entropy import SeededEntropy

from .asserts import check, tcp_info
from .calls import CallMismatch, Calls, Outcome
from .parser import parse
from .script import (
    Call,
    Code,
    Command,
    Event,
    IcmpSpec,
    Name,
    Option,
    Packet,
    Script,
    ScriptError,
    TcpSpec,
    TimeKind,
    UdpSpec,
    Unsupported,
)
from .settings import VARIANTS, Settings, Variant, max_segment, mid_script, settings_for
from .wire import Flow, Live, LiveOther, describe, flag_bits, option_text, pattern

_PEER: Final[PeerId] = b"\x0b" * 32
START: Final[Instant] = 1000 * SECOND
_LOCAL4, _REMOTE4 = parse_ip("192.168.0.1"), parse_ip("192.0.2.1")
_LOCAL6, _REMOTE6 = parse_ip("fd3d:0a0b:17d6::1"), parse_ip("2001:db8::1")
_WRAP_PEER: Final = 2**32 - 700
_WRAP_OURS: Final = 2**32 - 2500
_MAX_ROUNDS: Final = 20_000
_IGNORED_FLAGS: Final = PSH
_UNCUT: Final = 1 << 16

DEFINES: Final[Mapping[str, str]] = {"CODE": "host_unreachable"}
"""Words replaced in every script, as its own runner does."""


class Mismatch(Exception):
    """The stack did not do what the script says; *line* is where."""

    line = 0


class _Restart(Exception):
    """Run again from another start of the clock, so that our ISN is where the variant wants it."""

    def __init__(self, shift: Duration) -> None:
        super().__init__()
        self.shift = shift


@dataclass(slots=True, frozen=True)
class Result:
    """How a script went.

    Attributes:
        name: path of the script, as given.
        variant: which of the variants.
        status: "pass", "fail" or "skip".
        reason: why not "pass".
        line: where, 0 if nowhere in particular.
        trace: every packet that went in or came out, with the time in seconds.
    """

    name: str
    variant: str
    status: str
    reason: str = ""
    line: int = 0
    trace: tuple[str, ...] = ()


def run_file(
    path: Path, variant: Variant = VARIANTS[0], defines: Mapping[str, str] = DEFINES, tolerance: Duration = 0
) -> Result:
    """Run the script in *path*."""
    return run_text(path.read_text(encoding="utf-8", errors="replace"), path.name, variant, defines, tolerance)


def run_text(
    text: str,
    name: str = "script",
    variant: Variant = VARIANTS[0],
    defines: Mapping[str, str] = DEFINES,
    tolerance: Duration = 0,
) -> Result:
    """Run the script *text*; never raises for what is in it. *tolerance* may widen that of the script."""
    for word, value in defines.items():
        text = re.sub(rf"\b{re.escape(word)}\b", value, text)
    run: Run | None = None
    status, reason, line = "pass", "", 0
    try:
        script = parse(text)
        try:
            run = Run(script, settings_for(script, variant, tolerance), variant, START)
            run.play()
        except _Restart as restart:
            run = Run(script, settings_for(script, variant, tolerance), variant, START + restart.shift)
            run.play()
    except ScriptError as error:
        status, reason, line = "skip", f"not understood: {error}", error.line
    except Unsupported as error:
        status, reason, line = "skip", f"unsupported: {error}", error.line
    except Mismatch as error:
        status, reason, line = "fail", str(error), error.line
    return Result(name, variant.name, status, reason, line, tuple(run.trace) if run is not None else ())


@final
@dataclass(slots=True)
class _Blocked:
    """A call under way."""

    call: Call
    line: int
    due: Instant


@final
class Run:
    """One script on one stack.

    Attributes:
        stack, flow: the stack, and how its numbers map to those of the script.
        now: virtual time.
        sent: what the stack sent and nobody expected yet.
        trace: every packet, as text.
    """

    def __init__(self, script: Script, settings: Settings, variant: Variant, start: Instant) -> None:
        self._script = script
        self._settings = settings
        self._variant = variant
        local, remote = (_LOCAL6, _REMOTE6) if variant.ipv6 else (_LOCAL4, _REMOTE4)
        self.flow = Flow(local, remote, _WRAP_PEER if variant.wrap else 0x1000_0000)
        headers = 60 if variant.ipv6 else 40
        mtu = (max_segment(script) or 1460) + headers
        self.stack = Stack(SeededEntropy(1), mtu, settings.config)
        self.stack.set_addresses([local])
        self._calls = Calls(self.stack, self.flow, max_segment(script))
        self._start = start
        self._shifted = start != START
        self.now = start
        self._last = start
        self.sent: deque[Live | LiveOther] = deque()
        self._blocked: _Blocked | None = None
        self._drops = Drops()
        self._isn_known = False
        self._poked = False  # something happened that may let a blocked call go on
        self._sacked: list[tuple[int, int]] = []
        self.trace: list[str] = []

    # -- the script --------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Run every event.

        Raises:
            Mismatch, Unsupported: with the line.
        """
        line = 0
        try:
            for event in self._script.events:
                line = event.line
                self._event(event)
            if self._blocked is not None:
                line = self._blocked.line
                self._finish_blocked()
        except (Mismatch, Unsupported) as error:
            error.line = line
            raise
        except CallMismatch as error:
            mismatch = Mismatch(str(error))
            mismatch.line = line
            raise mismatch from error

    def _event(self, event: Event) -> None:
        when = event.when
        base = self._last if when.kind in (TimeKind.RELATIVE, TimeKind.RELATIVE_RANGE) else self._start
        first, last = base + when.start, base + when.start
        if when.kind in (TimeKind.RANGE, TimeKind.RELATIVE_RANGE):
            last = base + when.end
        action = event.action
        if isinstance(action, Packet) and not action.inbound:
            anytime = when.kind is TimeKind.ANY
            at = self.expect(action, None if anytime else first, last)
            self._last = first if when.kind in (TimeKind.RELATIVE, TimeKind.ABSOLUTE) else at
            return
        if when.kind is TimeKind.ANY:
            first = self.now
        self.advance(first)
        self._last = first
        if isinstance(action, Packet):
            self.inject(action)
        elif isinstance(action, Call):
            self._call(action, event.line, base)
        elif isinstance(action, Command):
            self._command(action)
        else:
            self._code(action)
        self.pump()

    def _command(self, command: Command) -> None:
        meaning = mid_script(command)
        if meaning:
            self.stack.set_blocked(meaning == "dead")

    def _code(self, code: Code) -> None:
        socket = self._calls.last_tcp
        if socket is None:
            raise Unsupported("a Python block before there is a connection")
        failed = check(code.text, tcp_info(socket.connection))
        if failed is not None:
            raise Mismatch(failed)

    # -- calls -------------------------------------------------------------------------------------------------------

    def _call(self, call: Call, line: int, base: Instant) -> None:
        if self._blocked is not None:
            self._finish_blocked()
        outcome = self._attempt(call, True)
        if call.end is not None:
            due = base + call.end
            if outcome is None:
                self._blocked = _Blocked(call, line, due)
                return
            self._check_moment(self.now, due, due, f"{call.name} returned")
        elif outcome is None:
            raise Mismatch(f"{call.name} blocks")
        self._check_outcome(call, outcome)

    def _attempt(self, call: Call, fresh: bool) -> Outcome | None:
        try:
            return self._calls.attempt(call, self.now, fresh)
        except LocalProtocolError as error:
            return Outcome(-1, str(error))

    def _retry_blocked(self) -> None:
        """Try the blocked call again."""
        blocked = self._blocked
        if blocked is None:
            return
        outcome = self._attempt(blocked.call, False)
        if outcome is None:
            return
        self._blocked = None
        self._check_moment(self.now, blocked.due, blocked.due, f"{blocked.call.name} (line {blocked.line}) returned")
        self._check_outcome(blocked.call, outcome)

    def _finish_blocked(self) -> None:
        blocked = self._blocked
        if blocked is not None:
            self.advance(blocked.due + self._settings.tolerance)
            if self._blocked is not None:
                raise Mismatch(f"{blocked.call.name} (line {blocked.line}) still blocks")

    def _check_outcome(self, call: Call, outcome: Outcome) -> None:
        expected = call.result
        if isinstance(expected, int) and outcome.result != expected:
            errno = f" {outcome.errno}" if outcome.errno else ""
            raise Mismatch(f"{call.name} gives {outcome.result}{errno}, not {expected} {call.errno or ''}".rstrip())
        if not isinstance(expected, int | Name):
            raise Unsupported(f"the result of {call.name}")
        if call.errno is not None and outcome.errno != call.errno:
            raise Mismatch(f"{call.name} sets {outcome.errno}, not {call.errno}")

    # -- packets in --------------------------------------------------------------------------------------------------

    def inject(self, packet: Packet) -> None:
        self._note(f"< {_spec_text(packet)}")
        try:
            packets = self._build(packet)
        except (struct.error, ValueError, OverflowError) as error:
            raise Unsupported(f"a number that does not fit its field ({error})") from error
        self._poked = True
        batch: list[tuple[PeerId, Buffer]] = [(_PEER, data) for data in packets]
        if self._variant.gro:
            self.stack.ingress(gro.coalesce(batch, self._drops), self.now)
        else:
            for single in batch:
                self.stack.ingress(gro.coalesce([single], self._drops), self.now)

    def _build(self, packet: Packet) -> list[bytes]:
        spec = packet.spec
        if isinstance(spec, TcpSpec):
            if isinstance(spec.options, tuple):
                edges = [n for option in spec.options if option.name == "sack" for n in option.numbers]
                self._sacked += zip(edges[::2], edges[1::2])
            cut = self._settings.packet_mss
            if not cut and not self._variant.gro:
                cut = 1000
            return self.flow.build(spec, cut, packet.tos or 0)
        if isinstance(spec, UdpSpec):
            return self.flow.build_udp(spec.length)
        return self.flow.build_icmp(spec, PROTO_UDP if self._calls.protocol_udp else PROTO_TCP)

    def _note(self, text: str) -> None:
        self.trace.append(f"{(self.now - self._start) / SECOND:9.4f} {text}")

    # -- time and packets out ----------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Take what the stack wants to send now, and go on with a blocked call if that can."""
        for _ in range(_MAX_ROUNDS):
            while units := self.stack.egress(self.now):
                for unit in units:
                    live = self.flow.read(unit, self.now)
                    self._place_isn(live)
                    self._note(f"> {describe(live) if isinstance(live, Live) else f'protocol {live.proto}'}")
                    self.sent.append(live)
            if self.stack.take_ready():
                self._poked = True
            if not self._poked:
                return
            self._poked = False
            self._retry_blocked()
        raise Mismatch("the stack never comes to rest")

    def _place_isn(self, live: Live | LiveOther) -> None:
        if self._variant.wrap and not self._shifted and isinstance(live, Live) and live.flags & SYN:
            assert self.flow.our_isn is not None
            # The generator's clock ticks every 4 microseconds (RFC 6528).
            raise _Restart(((_WRAP_OURS - self.flow.our_isn) & 0xFFFFFFFF) * 4000)

    def advance(self, until: Instant) -> None:
        """Let time pass up to *until*."""
        for _ in range(_MAX_ROUNDS):
            self.pump()
            deadline = self.stack.next_deadline()
            if deadline is None or deadline > until:
                self.now = max(self.now, until)
                return
            self._tick(deadline)
        raise Mismatch("timers never come to rest")

    def _tick(self, deadline: Instant) -> None:
        self.now = max(self.now, deadline)
        self.stack.handle_deadline(self.now)
        self._poked = True

    def _advance_to_packet(self, until: Instant, count: int) -> None:
        """Let time pass until more than *count* segments wait, at most up to *until*."""
        for _ in range(_MAX_ROUNDS):
            self.pump()
            if len(self.sent) > count:
                return
            deadline = self.stack.next_deadline()
            if deadline is None or deadline > until:
                return
            self._tick(deadline)
        raise Mismatch("timers never come to rest")

    def expect(self, packet: Packet, first: Instant | None, last: Instant) -> Instant:
        """Match what the stack sent next with *packet*; return when that was."""
        tolerance = self._settings.tolerance
        until = self.now + 3600 * SECOND if first is None else last + tolerance
        self._advance_to_packet(until, 0)
        spec = packet.spec
        if not self.sent:
            raise Mismatch(f"expected {_spec_text(packet)}, nothing was sent")
        head = self.sent.popleft()
        if isinstance(spec, TcpSpec):
            if not isinstance(head, Live):
                raise Mismatch(f"expected {_spec_text(packet)}, protocol {head.proto} was sent")
            if spec.seq and head.flags & SYN and not self._isn_known:
                # The script starts our numbers elsewhere than at 0.
                assert self.flow.our_isn is not None
                self.flow.our_isn = (self.flow.our_isn - spec.seq) & 0xFFFFFFFF
                self.flow.our_start = spec.seq
                head.seq = (head.seq + spec.seq) & 0xFFFFFFFF
            self._isn_known = True
            if isinstance(spec.options, tuple) and any(o.name.startswith("fastopen") for o in spec.options):
                raise Unsupported("TCP Fast Open")
            head = self._fit(head, spec, until)
            self._compare(head, spec)
            if packet.tos is not None and head.tos != packet.tos:
                raise Mismatch(f"expected traffic class {packet.tos:#x}, sent {head.tos:#x}")
        else:
            self._compare_other(head, spec)
        if first is not None:
            self._check_moment(head.at, first, last, f"{_spec_text(packet)} was sent")
        return head.at

    def _check_moment(self, at: Instant, first: Instant, last: Instant, what: str) -> None:
        tolerance = self._settings.tolerance
        if not first - tolerance <= at <= last + tolerance:
            relative, wanted = (at - self._start) / SECOND, (first - self._start) / SECOND
            upto = f"~{(last - self._start) / SECOND:.4f}" if last != first else ""
            raise Mismatch(f"{what} at {relative:.4f}, not at {wanted:.4f}{upto}")

    def _fit(self, head: Live, spec: TcpSpec, until: Instant) -> Live:
        """Join or cut what was sent until it has the length that the script writes."""
        while len(head.payload) < spec.length:
            self._advance_to_packet(until, 0)
            following = self.sent[0] if self.sent else None
            if not isinstance(following, Live) or not _continues(head, following):
                break
            self.sent.popleft()
            head = Live(
                head.at,
                head.flags | following.flags,
                head.seq,
                head.ack,
                head.window,
                head.options,
                head.payload + following.payload,
                head.gso_size or following.gso_size or len(head.payload),
                head.tos,
            )
        size = spec.length
        if len(head.payload) > size > 0 and head.gso_size and size % head.gso_size == 0 and not spec.flags.count("F"):
            rest = Live(
                head.at,
                head.flags,
                (head.seq + size) & 0xFFFFFFFF,
                head.ack,
                head.window,
                head.options,
                head.payload[size:],
                head.gso_size,
                head.tos,
            )
            self.sent.appendleft(rest)
            head = Live(
                head.at,
                head.flags & ~FIN,
                head.seq,
                head.ack,
                head.window,
                head.options,
                head.payload[:size],
                head.gso_size,
                head.tos,
            )
        return head

    def _compare(self, live: Live, spec: TcpSpec) -> None:
        wanted = flag_bits(spec.flags)
        if (live.flags ^ wanted) & ~_IGNORED_FLAGS:
            raise Mismatch(f"expected {_tcp_text(spec)}, sent {describe(live)}")
        if live.seq != spec.seq & 0xFFFFFFFF or not self._length_fits(live, spec):
            raise Mismatch(f"expected {_tcp_text(spec)}, sent {describe(live)}")
        if spec.ack is not None and live.flags & ACK and live.ack != spec.ack & 0xFFFFFFFF:
            raise Mismatch(f"expected {_tcp_text(spec)}, sent {describe(live)}")
        if spec.win is not None and live.window != spec.win:
            raise Mismatch(f"expected window {spec.win}, sent {describe(live)}")
        if live.payload and live.payload != pattern(live.seq - self.flow.our_start, len(live.payload)):
            raise Mismatch(f"wrong bytes in {describe(live)}")
        if isinstance(spec.options, tuple):
            self._compare_options(live, [o for o in spec.options if o.name not in ("nop", "eol")])

    def _length_fits(self, live: Live, spec: TcpSpec) -> bool:
        """Compare lengths. Linux repeats whole segments; what the peer holds already may be left out at the end."""
        if len(live.payload) == spec.length:
            return True
        end = spec.seq + len(live.payload)
        return bool(live.payload) and end < spec.end and any(a <= end and spec.end <= b for a, b in self._sacked)

    def _compare_options(self, live: Live, wanted: list[Option]) -> None:
        same = len(wanted) == len(live.options)
        for want, have in zip(wanted, live.options):
            if want.name == "TS" == have.name:
                same = same and want.numbers[1] == have.numbers[1] and self._tick_fits(want.numbers[0], have.numbers[0])
                self.flow.note_timestamp(want.numbers[0], have.numbers[0])
            else:
                same = same and (want.name, want.numbers) == (have.name, have.numbers)
        if not same:
            text = ",".join(map(option_text, wanted)) or "no options"
            raise Mismatch(f"expected <{text}>, sent {describe(live)}")

    def _tick_fits(self, script_val: int, live_val: int) -> bool:
        """Compare our timestamp with the script's, if the script says how long a tick is."""
        tick = self._settings.ts_tick
        shift = self.flow.ts_shift
        if not tick or shift is None:
            return True
        ours = ((live_val - shift - script_val) & 0xFFFFFFFF) * MILLISECOND
        theirs = ((script_val + shift - live_val) & 0xFFFFFFFF) * MILLISECOND
        return tick != MILLISECOND or min(ours, theirs) <= max(self._settings.tolerance, tick)

    def _compare_other(self, head: Live | LiveOther, spec: UdpSpec | IcmpSpec) -> None:
        if isinstance(head, Live):
            raise Mismatch(f"expected no TCP, sent {describe(head)}")
        if isinstance(spec, UdpSpec):
            if head.proto != PROTO_UDP or len(head.body) - 8 != spec.length:
                raise Mismatch(
                    f"expected udp ({spec.length}), sent {len(head.body) - 8} bytes of protocol {head.proto}"
                )
            return
        kind, code = self.flow.describe_icmp(spec)
        if head.proto not in (PROTO_ICMP, PROTO_ICMPV6) or (head.body[0], head.body[1]) != (kind, code):
            raise Mismatch(f"expected ICMP type {kind} code {code}, sent protocol {head.proto} {head.body[:2].hex()}")


def _continues(head: Live, following: Live) -> bool:
    """Tell whether *following* is the next piece of the same run."""
    plain = FIN | PSH | ACK
    return (
        bool(following.payload)
        and not head.flags & FIN
        and not (head.flags | following.flags) & ~plain
        and following.seq == (head.seq + len(head.payload)) & 0xFFFFFFFF
        and following.ack == head.ack
        and [o for o in following.options if o.name != "TS"] == [o for o in head.options if o.name != "TS"]
    )


def _spec_text(packet: Packet) -> str:
    spec = packet.spec
    if isinstance(spec, TcpSpec):
        return _tcp_text(spec)
    return f"udp ({spec.length})" if isinstance(spec, UdpSpec) else f"icmp {spec.kind} {spec.code}".rstrip()


def _tcp_text(spec: TcpSpec) -> str:
    ack = f" ack {spec.ack}" if spec.ack is not None else ""
    return f"{spec.flags} {spec.seq}:{spec.end}({spec.length}){ack}"

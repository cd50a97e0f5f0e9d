"""What a script is made of, once parsed. Times are nanoseconds; sequence numbers start at 0 on each side."""

import enum
from dataclasses import dataclass, field
from typing import TypeAlias

from tsnetpy.base.instant import Duration


class ScriptError(Exception):
    """The script is not in the language.

    Args:
        line: where, from 1.
        message: what is wrong there.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


class Unsupported(Exception):
    """The script needs something that this runner, or a user-space stack, does not have; the message says what.

    Attributes:
        line: where, 0 if nowhere in particular.
    """

    line = 0


class Ellipsis_(enum.Enum):
    """``...`` in place of an argument or of a whole option list."""

    ANY = "..."


ANY = Ellipsis_.ANY


@dataclass(slots=True, frozen=True)
class Name:
    """A symbolic constant, or several joined by ``|``."""

    parts: tuple[str, ...]


@dataclass(slots=True, frozen=True)
class Struct:
    """``{...}``: named fields, or (under ``""``) the positional ones."""

    fields: tuple[tuple[str, "Value"], ...]

    def get(self, name: str) -> "Value | None":
        """Return the field called *name*."""
        return next((value for key, value in self.fields if key == name), None)


@dataclass(slots=True, frozen=True)
class Applied:
    """``name(argument)``, as in ``htons(80)``."""

    name: str
    arguments: tuple["Value", ...]


Value: TypeAlias = int | str | Ellipsis_ | Name | Struct | Applied | tuple["Value", ...]


class TimeKind(enum.Enum):
    """How the moment of an event is written."""

    ABSOLUTE = "absolute"
    RELATIVE = "relative"
    ANY = "any"
    RANGE = "range"
    RELATIVE_RANGE = "relative range"


@dataclass(slots=True, frozen=True)
class When:
    """The moment of an event; *end* for ranges only."""

    kind: TimeKind
    start: Duration = 0
    end: Duration = 0


@dataclass(slots=True, frozen=True)
class Option:
    """One TCP option by name: mss, wscale, sackOK, sack, TS, nop, eol, md5, fastopen, fastopen_exp.

    *numbers* holds its values: one for mss and wscale, (val, ecr) for TS, left and right edges in turn for sack.
    """

    name: str
    numbers: tuple[int, ...] = ()
    blob: bytes = b""


@dataclass(slots=True, frozen=True)
class TcpSpec:
    """A TCP packet as written: ``None`` (and ANY for the options) where the script leaves something open."""

    flags: str
    seq: int
    end: int
    length: int
    ack: int | None
    win: int | None
    urg: int | None
    options: tuple[Option, ...] | Ellipsis_


@dataclass(slots=True, frozen=True)
class UdpSpec:
    """A UDP datagram of *length* payload bytes."""

    length: int


@dataclass(slots=True, frozen=True)
class IcmpSpec:
    """An ICMP error: *kind* and *code* by name, the MTU for "too big", and the quoted sequence range."""

    kind: str
    code: str
    mtu: int
    quoted_seq: int | None


@dataclass(slots=True, frozen=True)
class Packet:
    """``<`` (to be injected) or ``>`` (expected)."""

    inbound: bool
    spec: TcpSpec | UdpSpec | IcmpSpec
    tos: int | None = None


@dataclass(slots=True, frozen=True)
class Call:
    """A system call: *end* is set for calls that block, as a moment of the same kind as the event's start."""

    name: str
    arguments: tuple[Value, ...]
    result: Value
    errno: str | None
    end: Duration | None


@dataclass(slots=True, frozen=True)
class Command:
    """A shell command; only understood, never executed."""

    text: str


@dataclass(slots=True, frozen=True)
class Code:
    """Python of a ``%{ }%`` block."""

    text: str


@dataclass(slots=True, frozen=True)
class Event:
    """One line of a script."""

    line: int
    when: When
    action: Packet | Call | Command | Code


@dataclass(slots=True)
class Script:
    """A whole script."""

    options: dict[str, str] = field(default_factory=dict)
    init: str = ""
    events: list[Event] = field(default_factory=list)

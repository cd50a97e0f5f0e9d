"""A recursive-descent parser for the packetdrill language, written from the published grammar (syntax.md, 2019).

What the runner cannot act upon is refused here or there with a reason: a line silently skipped would be a false pass.
"""

import contextlib
import re
from typing import Final

from tsnetpy.base.instant import SECOND, Duration

from .script import (
    ANY,
    Applied,
    Call,
    Code,
    Command,
    Ellipsis_,
    Event,
    IcmpSpec,
    Name,
    Option,
    Packet,
    Script,
    ScriptError,
    Struct,
    TcpSpec,
    TimeKind,
    UdpSpec,
    Unsupported,
    Value,
    When,
)

_SPACE: Final = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/|#[^\n]*)*", re.DOTALL)
_TIME: Final = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_INT: Final = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)")
_UNSIGNED: Final = re.compile(r"\d+")
_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FLAGS: Final = re.compile(r"-|[FSRPUEWA]+\.?|\.")
_HEX: Final = re.compile(r"[0-9a-fA-F]+")
_OPTION: Final = re.compile(r"--([A-Za-z0-9_]+)(?:=(\"[^\"]*\"|`[^`]*`|\S+))?")
_NOTE: Final = re.compile(r"\([^)]*\)")
_IP_INFO: Final = re.compile(r"[\[(]([^\])]*)[\])]")
_TOS: Final = {"noecn": 0, "ect0": 2, "ect1": 1, "ce": 3}
_PLAIN_OPTIONS: Final = ("nop", "eol", "sackOK")


def _integer(text: str) -> int:
    return int(text, 16 if "x" in text.lower() else 10)


class _Cursor:
    """A position in the text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.skip()

    @property
    def line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def done(self) -> bool:
        return self.at >= len(self.text)

    def fail(self, what: str) -> ScriptError:
        rest = self.text[self.at : self.at + 30].split("\n")[0]
        return ScriptError(self.line, f"{what} expected at {rest!r}")

    def skip(self) -> None:
        found = _SPACE.match(self.text, self.at)
        if found is not None:
            self.at = found.end()

    def looking_at(self, literal: str) -> bool:
        return self.text.startswith(literal, self.at)

    def take(self, literal: str) -> bool:
        """Step over *literal* if it stands here."""
        if not self.looking_at(literal):
            return False
        self.at += len(literal)
        self.skip()
        return True

    def need(self, literal: str) -> None:
        if not self.take(literal):
            raise self.fail(repr(literal))

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Step over *pattern* if it matches here."""
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
            self.skip()
        return found

    def get(self, pattern: re.Pattern[str], what: str) -> str:
        found = self.match(pattern)
        if found is None:
            raise self.fail(what)
        return found.group()

    def word(self) -> str:
        return self.get(_WORD, "a word")

    def keyword(self, word: str) -> bool:
        """Step over *word* if it stands here as a whole word."""
        found = _WORD.match(self.text, self.at)
        if found is None or found.group() != word:
            return False
        self.at = found.end()
        self.skip()
        return True

    def number(self) -> int:
        return _integer(self.get(_INT, "a number"))

    def unsigned(self) -> int:
        return int(self.get(_UNSIGNED, "a number"))

    def until(self, closing: str) -> str:
        """Return the text up to *closing* and step over both."""
        end = self.text.find(closing, self.at)
        if end < 0:
            raise self.fail(repr(closing))
        text = self.text[self.at : end]
        self.at = end + len(closing)
        self.skip()
        return text


def parse(text: str) -> Script:
    """Return the script written in *text*.

    Raises:
        ScriptError: *text* is not in the language.
        Unsupported: it is, but in a part of it that this package does not speak.
    """
    script = Script()
    cursor = _Cursor(text)
    while (option := cursor.match(_OPTION)) is not None:
        script.options[option.group(1)] = (option.group(2) or "").strip('"')
    if cursor.take("`"):
        script.init = cursor.until("`")
    while not cursor.done():
        if cursor.take("`"):  # without a time: the cleanup, which has nothing to clean up here
            cursor.until("`")
            if not cursor.done():
                raise cursor.fail("the end of the script")
            break
        line = cursor.line
        when = _when(cursor)
        script.events.append(Event(line, when, _action(cursor, when)))
    return script


def _duration(cursor: _Cursor) -> Duration:
    return round(float(cursor.get(_TIME, "a time")) * 1_000_000) * (SECOND // 1_000_000)


def _when(cursor: _Cursor) -> When:
    if cursor.take("*"):
        return When(TimeKind.ANY)
    relative = cursor.take("+")
    start = _duration(cursor)
    if cursor.take("~"):
        if relative:
            cursor.need("+")
        return When(TimeKind.RELATIVE_RANGE if relative else TimeKind.RANGE, start, _duration(cursor))
    return When(TimeKind.RELATIVE if relative else TimeKind.ABSOLUTE, start)


def _action(cursor: _Cursor, when: When) -> Packet | Call | Command | Code:
    if cursor.take("<"):
        return _packet(cursor, True)
    if cursor.take(">"):
        return _packet(cursor, False)
    if cursor.take("`"):
        return Command(cursor.until("`"))
    if cursor.take("%{"):
        return Code(cursor.until("}%"))
    end = None
    if cursor.take("..."):
        end = _duration(cursor)
    return _call(cursor, end)


# -- packets ---------------------------------------------------------------------------------------------------------


def _packet(cursor: _Cursor, inbound: bool) -> Packet:
    tos: int | None = None
    if (info := cursor.match(_IP_INFO)) is not None:
        tos = _tos(info.group(1))
    for kind in ("ipv4", "ipv6", "gre", "mpls"):
        if cursor.keyword(kind):
            raise Unsupported(f"packets inside {kind}")
    if cursor.keyword("udp"):
        _no_ports(cursor)
        cursor.need("(")
        length = cursor.unsigned()
        cursor.need(")")
        return Packet(inbound, UdpSpec(length), tos)
    if cursor.keyword("icmp"):
        return Packet(inbound, _icmp(cursor), tos)
    _no_ports(cursor)
    flags = cursor.get(_FLAGS, "TCP flags")
    seq, end, length = _range(cursor)
    ack = cursor.unsigned() if cursor.keyword("ack") else None
    win = cursor.unsigned() if cursor.keyword("win") else None
    urg = cursor.unsigned() if cursor.keyword("urg") else None
    options: tuple[Option, ...] | Ellipsis_ = ()
    if cursor.take("<"):
        if cursor.take("..."):
            options = ANY
        else:
            found = [_option(cursor)]
            while cursor.take(","):
                found.append(_option(cursor))
            options = tuple(found)
        cursor.need(">")
    return Packet(inbound, TcpSpec(flags, seq, end, length, ack, win, urg, options), tos)


def _tos(text: str) -> int:
    text = text.strip()
    if text.lower() in _TOS:
        return _TOS[text.lower()]
    if text.lower().startswith("tos "):
        with contextlib.suppress(ValueError):
            return _integer(text[4:])
    raise Unsupported(f"IP header field {text!r}")


def _no_ports(cursor: _Cursor) -> None:
    if re.compile(r"\d+\s*>\s*\d+").match(cursor.text, cursor.at):
        raise Unsupported("explicit port numbers (several connections in one script)")


def _range(cursor: _Cursor) -> tuple[int, int, int]:
    seq = cursor.unsigned()
    cursor.need(":")
    end = cursor.unsigned()
    cursor.need("(")
    length = cursor.unsigned()
    cursor.need(")")
    if end - seq != length:
        raise ScriptError(cursor.line, f"{seq}:{end} does not hold {length} bytes")
    return seq, end, length


def _option(cursor: _Cursor) -> Option:
    for plain in _PLAIN_OPTIONS:
        if cursor.keyword(plain):
            return Option(plain)
    if cursor.keyword("mss"):
        return Option("mss", (cursor.unsigned(),))
    if cursor.keyword("wscale"):
        return Option("wscale", (cursor.unsigned(),))
    if cursor.keyword("TS"):
        if not cursor.keyword("val"):
            raise cursor.fail("'val'")
        val = cursor.unsigned()
        if not cursor.keyword("ecr"):
            raise cursor.fail("'ecr'")
        return Option("TS", (val, cursor.unsigned()))
    if cursor.keyword("sack"):
        edges: list[int] = []
        while (edge := cursor.match(_UNSIGNED)) is not None:
            edges.append(int(edge.group()))
            cursor.need(":")
            edges.append(cursor.unsigned())
        if not edges:
            raise cursor.fail("a SACK block")
        return Option("sack", tuple(edges))
    for word, name in (("md5", "md5"), ("FOEXP", "fastopen_exp"), ("FO", "fastopen")):
        if cursor.keyword(word):
            digits = cursor.match(_HEX)
            if digits is not None and len(digits.group()) % 2:
                raise cursor.fail("an even number of hexadecimal digits")
            return Option(name, (), bytes.fromhex(digits.group()) if digits is not None else b"")
    raise Unsupported(f"TCP option {cursor.text[cursor.at : cursor.at + 12].split(',')[0]!r}")


def _icmp(cursor: _Cursor) -> IcmpSpec:
    kind = cursor.word()
    code = ""
    if not cursor.looking_at("mtu") and (word := cursor.match(_WORD)) is not None:
        code = word.group()
    mtu = cursor.unsigned() if cursor.keyword("mtu") else 0
    if cursor.keyword("id"):
        raise Unsupported("ICMP echo identifiers")
    quoted: int | None = None
    if cursor.take("["):
        if cursor.keyword("udp") or cursor.keyword("raw"):
            cursor.until("]")
        else:
            quoted = _range(cursor)[0]
            cursor.need("]")
    return IcmpSpec(kind, code, mtu, quoted)


# -- system calls ----------------------------------------------------------------------------------------------------


def _call(cursor: _Cursor, end: Duration | None) -> Call:
    name = cursor.word()
    cursor.need("(")
    arguments: list[Value] = []
    if not cursor.take(")"):
        arguments.append(_value(cursor))
        while cursor.take(","):
            arguments.append(_value(cursor))
        cursor.need(")")
    cursor.need("=")
    result = _value(cursor)
    errno: str | None = None
    if (word := cursor.match(_WORD)) is not None:
        errno = word.group()
    cursor.match(_NOTE)
    return Call(name, tuple(arguments), result, errno, end)


def _value(cursor: _Cursor) -> Value:
    if cursor.take("..."):
        return ANY
    if (text := cursor.match(_STRING)) is not None:
        cursor.take("...")
        return text.group(1)
    if cursor.take("["):
        return _sequence(cursor, "]")
    if cursor.take("{"):
        return _struct(cursor)
    if (number := cursor.match(_INT)) is not None:
        return _integer(number.group())
    word = cursor.word()
    if cursor.take("("):
        return Applied(word, _sequence(cursor, ")"))
    parts = [word]
    while cursor.take("|"):
        parts.append(cursor.get(_WORD, "a constant"))
    return Name(tuple(parts))


def _sequence(cursor: _Cursor, closing: str) -> tuple[Value, ...]:
    out: list[Value] = []
    if cursor.take(closing):
        return ()
    out.append(_value(cursor))
    while cursor.take(","):
        out.append(_value(cursor))
    cursor.need(closing)
    return tuple(out)


def _struct(cursor: _Cursor) -> Struct:
    fields: list[tuple[str, Value]] = []
    while True:
        found = re.compile(r"(\w+)\s*(?:\([^)]*\))?\s*=").match(cursor.text, cursor.at)
        name = ""
        if found is not None:
            name = found.group(1)
            cursor.at = found.end()
            cursor.skip()
        fields.append((name, _value(cursor)))
        if not cursor.take(","):
            break
    cursor.need("}")
    return Struct(tuple(fields))

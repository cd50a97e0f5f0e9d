"""The policy file: who may reach what. Text (HuJSON) or a dict in, a checked :class:`Policy` out.

Sections: ``groups hosts tagOwners acls grants ssh nodeAttrs randomizeClientPort``. Anything that this server cannot
carry out is an error, never ignored: a policy that is only half understood opens or closes the wrong doors. Meaning of
the sections: control protocol reference, section 11.
"""

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn

from tsnetpy.base.addr import IpPrefix, parse_prefix
from tsnetpy.base.errors import ConfigError

from . import hujson
from .auth import check_tags

_SECTIONS: Final = frozenset(
    ("groups", "hosts", "tagOwners", "acls", "grants", "ssh", "nodeAttrs", "randomizeClientPort")
)
_REFUSED_SECTIONS: Final = {
    "autoApprovers": "this server approves no subnet routes and no exit nodes",
    "postures": "this server collects no device attributes",
    "ipsets": "write the addresses under 'hosts'",
    "tests": "this server does not run policy tests",
    "sshTests": "this server does not run policy tests",
}
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

PROTOCOLS: Final = {
    "icmp": 1,
    "igmp": 2,
    "ipv4": 4,
    "ip-in-ip": 4,
    "tcp": 6,
    "egp": 8,
    "igp": 9,
    "udp": 17,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "sctp": 132,
}
_WITH_PORTS: Final = frozenset((6, 17, 132))


class PortRange(NamedTuple):
    """Ports from *first* to *last*, both included."""

    first: int
    last: int


ALL_PORTS: Final = PortRange(0, 65535)


class Kind(enum.Enum):
    """What a selector picks devices by."""

    ANY = "*"
    DANGER_ALL = "autogroup:danger-all"
    USERS = "user or group"
    TAG = "tag"
    MEMBER = "autogroup:member"
    TAGGED = "autogroup:tagged"
    SELF = "autogroup:self"
    PREFIX = "address"


@dataclass(frozen=True, slots=True)
class Selector:
    """One entry of a ``src``, ``dst`` or ``target`` list."""

    kind: Kind
    names: frozenset[str] = frozenset()
    """Login names for ``USERS``, the tag for ``TAG``."""
    prefix: IpPrefix | None = None
    """The address or range for ``PREFIX``."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Sources may reach destinations; an ACL becomes one per destination, a grant one per protocol and one for apps."""

    sources: tuple[Selector, ...]
    destinations: tuple[Selector, ...]
    ports: tuple[PortRange, ...] = ()
    """Empty for a grant of application capabilities."""
    protocols: tuple[int, ...] = ()
    """IP protocol numbers; empty = TCP, UDP and both ICMPs."""
    capabilities: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Peer capability to its values."""


@dataclass(frozen=True, slots=True)
class SshRule:
    """Sources may log in on destinations as one of the users."""

    sources: tuple[Selector, ...]
    destinations: tuple[Selector, ...]
    users: tuple[str, ...]
    accept_env: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy. Build it with :func:`parse`; :data:`ALLOW_ALL` is what holds without one."""

    grants: tuple[Grant, ...]
    ssh: tuple[SshRule, ...] = ()
    tag_owners: Mapping[str, tuple[Selector, ...]] = field(default_factory=dict)
    node_attributes: tuple[tuple[tuple[Selector, ...], tuple[str, ...]], ...] = ()
    """Per entry: the devices, and the capabilities that they get."""


_ANYTHING: Final = Selector(Kind.ANY)
ALLOW_ALL: Final = Policy(grants=(Grant((_ANYTHING,), (_ANYTHING,), (ALL_PORTS,)),))


def parse(source: str | Mapping[str, object]) -> Policy:
    """Return the policy in *source*: HuJSON text, or the same as a dict.

    Raises:
        ConfigError: syntax, an unknown or unsupported section or member, a name that is not defined.
    """
    value = hujson.decode(source) if isinstance(source, str) else source
    return _Reader(_mapping(value, "policy")).policy()


def _refuse(where: str, what: str, hint: str = "") -> NoReturn:
    raise ConfigError(f"policy: {where}: {what}", hint=hint)


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        _refuse(where, "must be an object")
    return value


def _list(value: object, where: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        _refuse(where, "must be a list")
    return list(value)


def _strings(value: object, where: str) -> list[str]:
    entries = _list(value, where)
    out = [entry for entry in entries if isinstance(entry, str)]
    if len(out) != len(entries):
        _refuse(where, "must be a list of strings")
    return out


def _only(rule: Mapping[str, object], known: frozenset[str], where: str) -> None:
    for name in rule:
        if name not in known:
            _refuse(where, f"{name!r} is unknown or not supported")


def parse_ports(text: str, where: str) -> tuple[PortRange, ...]:
    """Return the ranges in ``*``, ``22``, ``80,443`` or ``1000-2000``.

    Raises:
        ConfigError: anything else.
    """
    if text == "*":
        return (ALL_PORTS,)
    ranges: list[PortRange] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            _refuse(where, f"{text!r} names no ports")
        entry = PortRange(int(first), int(last) if dash else int(first))
        if entry.first > entry.last or entry.last > 65535:
            _refuse(where, f"{text!r} is no range of ports")
        ranges.append(entry)
    return tuple(ranges)


def _protocol(text: str, where: str) -> tuple[int, ...]:
    if text in ("", "*"):
        return ()
    number = PROTOCOLS.get(text.lower())
    if number is None and text.isascii() and text.isdigit() and 0 < int(text) < 256:
        number = int(text)
    if number is None:
        _refuse(where, f"unknown protocol {text!r}")
    return (number,)


class _Reader:
    """Reads one policy; names that rules refer to are resolved here, so that :class:`Policy` needs no dictionaries."""

    def __init__(self, document: Mapping[str, object]) -> None:
        for name in document:
            if name in _REFUSED_SECTIONS:
                _refuse(name, "not supported", _REFUSED_SECTIONS[name])
            if name not in _SECTIONS:
                _refuse(name, "unknown section", f"known sections: {', '.join(sorted(_SECTIONS))}")
        self._document = document
        self._groups = self._read_groups()
        self._hosts = self._read_hosts()
        self._tags: frozenset[str] = frozenset(_mapping(document.get("tagOwners", {}), "tagOwners"))

    def policy(self) -> Policy:
        document = self._document
        grants: list[Grant] = []
        for number, rule in enumerate(_list(document.get("acls"), "acls")):
            grants.extend(self._acl(_mapping(rule, f"acls[{number}]"), f"acls[{number}]"))
        for number, rule in enumerate(_list(document.get("grants"), "grants")):
            grants.extend(self._grant(_mapping(rule, f"grants[{number}]"), f"grants[{number}]"))
        if "acls" not in document and "grants" not in document:
            grants.extend(ALLOW_ALL.grants)
        return Policy(
            grants=tuple(grants),
            ssh=tuple(
                self._ssh_rule(_mapping(rule, f"ssh[{number}]"), f"ssh[{number}]")
                for number, rule in enumerate(_list(document.get("ssh"), "ssh"))
            ),
            tag_owners=self._tag_owners(),
            node_attributes=self._node_attributes(),
        )

    # -- names ---------------------------------------------------------------------------------------------------

    def _read_groups(self) -> dict[str, frozenset[str]]:
        groups: dict[str, frozenset[str]] = {}
        for name, members in _mapping(self._document.get("groups", {}), "groups").items():
            if not name.startswith("group:"):
                _refuse("groups", f"{name!r} must start with 'group:'")
            logins = _strings(members, f"groups[{name!r}]")
            for login in logins:
                if "@" not in login:
                    _refuse(
                        f"groups[{name!r}]", f"{login!r} is no user", "write a user as name@ or as an e-mail address"
                    )
            groups[name] = frozenset(logins)
        return groups

    def _read_hosts(self) -> dict[str, IpPrefix]:
        hosts: dict[str, IpPrefix] = {}
        for name, address in _mapping(self._document.get("hosts", {}), "hosts").items():
            if not _HOST_NAME.fullmatch(name):
                _refuse("hosts", f"{name!r} is no host name")
            if not isinstance(address, str):
                _refuse(f"hosts[{name!r}]", "must be an address or a range")
            try:
                hosts[name] = parse_prefix(address)
            except ValueError as error:
                _refuse(f"hosts[{name!r}]", str(error))
        return hosts

    def _tag_owners(self) -> dict[str, tuple[Selector, ...]]:
        owners: dict[str, tuple[Selector, ...]] = {}
        for tag, names in _mapping(self._document.get("tagOwners", {}), "tagOwners").items():
            where = f"tagOwners[{tag!r}]"
            check_tags([tag])
            owners[tag] = self._selectors(names, where, _may_own)
        return owners

    def _selectors(self, value: object, where: str, allowed: Callable[[Selector], bool]) -> tuple[Selector, ...]:
        selectors = []
        for text in _strings(value, where):
            selector = self._selector(text, where)
            if not allowed(selector):
                _refuse(where, f"{text!r} is not possible here")
            selectors.append(selector)
        return tuple(selectors)

    def _selector(self, text: str, where: str) -> Selector:
        if text == "*":
            return _ANYTHING
        if text.startswith("autogroup:"):
            for kind in (Kind.DANGER_ALL, Kind.MEMBER, Kind.TAGGED, Kind.SELF):
                if text == kind.value:
                    return Selector(kind)
            _refuse(where, f"{text!r} is unknown or not supported")
        if text.startswith("group:"):
            if text not in self._groups:
                _refuse(where, f"{text!r} is not under 'groups'")
            return Selector(Kind.USERS, self._groups[text])
        if text.startswith("tag:"):
            if text not in self._tags:
                _refuse(where, f"{text!r} is not under 'tagOwners'")
            return Selector(Kind.TAG, frozenset((text,)))
        if text in self._hosts:
            return Selector(Kind.PREFIX, prefix=self._hosts[text])
        if "@" in text:
            return Selector(Kind.USERS, frozenset((text,)))
        try:
            return Selector(Kind.PREFIX, prefix=parse_prefix(text))
        except ValueError as error:
            hint = "a user is written name@ or as an e-mail address; a host must be under 'hosts'"
            _refuse(where, f"{text!r}: {error}", hint)

    # -- rules ---------------------------------------------------------------------------------------------------

    def _acl(self, rule: Mapping[str, object], where: str) -> list[Grant]:
        _only(rule, frozenset(("action", "proto", "src", "dst")), where)
        if rule.get("action") != "accept":
            _refuse(where, "'action' must be 'accept'", "what no rule accepts is denied")
        proto = rule.get("proto", "")
        if not isinstance(proto, str | int):
            _refuse(where, "'proto' must be a name or a number")
        protocols = _protocol(str(proto), where)
        sources = self._selectors(rule.get("src"), f"{where}.src", _may_send)
        grants = []
        for text in _strings(rule.get("dst"), f"{where}.dst"):
            name, colon, ports_text = text.rpartition(":")
            if not colon:
                _refuse(f"{where}.dst", f"{text!r} has no ':ports'")
            if name.startswith("[") and name.endswith("]"):
                name = name[1:-1]
            destination = self._selectors([name], f"{where}.dst", _may_receive)
            ports = parse_ports(ports_text, f"{where}.dst")
            _check_ports(protocols, ports, where)
            grants.append(Grant(sources, destination, ports, protocols))
        return grants

    def _grant(self, rule: Mapping[str, object], where: str) -> list[Grant]:
        _only(rule, frozenset(("src", "dst", "ip", "app")), where)
        sources = self._selectors(rule.get("src"), f"{where}.src", _may_send)
        destinations = self._selectors(rule.get("dst"), f"{where}.dst", _may_receive)
        if not rule.get("ip") and not rule.get("app"):
            _refuse(where, "needs 'ip' or 'app'")
        ports: dict[tuple[int, ...], list[PortRange]] = {}
        for text in _strings(rule.get("ip"), f"{where}.ip"):
            name, colon, rest = text.rpartition(":")
            protocols: tuple[int, ...] = ()
            if not colon and (text == "*" or text[:1].isdigit()):
                ranges = parse_ports(text, f"{where}.ip")
            elif not colon:
                protocols, ranges = _protocol(text, f"{where}.ip"), (ALL_PORTS,)
            else:
                protocols, ranges = _protocol(name, f"{where}.ip"), parse_ports(rest, f"{where}.ip")
            _check_ports(protocols, ranges, where)
            ports.setdefault(protocols, []).extend(ranges)
        grants = [Grant(sources, destinations, tuple(ranges), protocols) for protocols, ranges in ports.items()]
        app = _mapping(rule.get("app", {}), f"{where}.app")
        if app:
            values = {name: tuple(_list(entries, f"{where}.app[{name!r}]")) for name, entries in app.items()}
            grants.append(Grant(sources, destinations, capabilities=values))
        return grants

    def _ssh_rule(self, rule: Mapping[str, object], where: str) -> SshRule:
        _only(rule, frozenset(("action", "src", "dst", "users", "acceptEnv")), where)
        if rule.get("action") != "accept":
            _refuse(
                where, "'action' must be 'accept'", "check mode needs a login page, which this server does not have"
            )
        users = _strings(rule.get("users"), f"{where}.users")
        for user in users:
            if user.startswith("autogroup:") and user != "autogroup:nonroot":
                _refuse(f"{where}.users", f"{user!r} is unknown or not supported")
        return SshRule(
            sources=self._selectors(rule.get("src"), f"{where}.src", _may_log_in),
            destinations=self._selectors(rule.get("dst"), f"{where}.dst", _may_be_logged_in_on),
            users=tuple(users),
            accept_env=tuple(_strings(rule.get("acceptEnv"), f"{where}.acceptEnv")),
        )

    def _node_attributes(self) -> tuple[tuple[tuple[Selector, ...], tuple[str, ...]], ...]:
        entries = []
        for number, value in enumerate(_list(self._document.get("nodeAttrs"), "nodeAttrs")):
            where = f"nodeAttrs[{number}]"
            rule = _mapping(value, where)
            _only(rule, frozenset(("target", "attr")), where)
            attributes = tuple(_strings(rule.get("attr"), f"{where}.attr"))
            if "funnel" in attributes:
                _refuse(where, "'funnel' needs relays on the internet, which this server does not have")
            entries.append((self._selectors(rule.get("target"), f"{where}.target", _may_send), attributes))
        randomize = self._document.get("randomizeClientPort", False)
        if not isinstance(randomize, bool):
            _refuse("randomizeClientPort", "must be true or false")
        if randomize:
            entries.append(((_ANYTHING,), ("randomize-client-port",)))
        return tuple(entries)


def _check_ports(protocols: tuple[int, ...], ports: tuple[PortRange, ...], where: str) -> None:
    # Clients match a protocol without ports only against rules for ports 0-65535; others would silently never match.
    if protocols and not _WITH_PORTS.issuperset(protocols) and ports != (ALL_PORTS,):
        _refuse(where, f"protocol {protocols[0]} has no ports", "write '*' for its ports")


def _may_send(selector: Selector) -> bool:
    return selector.kind is not Kind.SELF


def _may_receive(selector: Selector) -> bool:
    return selector.kind is not Kind.DANGER_ALL


def _may_own(selector: Selector) -> bool:
    return selector.kind in (Kind.USERS, Kind.MEMBER)


def _may_log_in(selector: Selector) -> bool:
    return selector.kind in (Kind.USERS, Kind.TAG, Kind.MEMBER, Kind.TAGGED)


def _may_be_logged_in_on(selector: Selector) -> bool:
    return selector.kind in (Kind.USERS, Kind.TAG, Kind.MEMBER, Kind.TAGGED, Kind.SELF)

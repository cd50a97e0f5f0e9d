"""The ``wg-quick`` file format: wg(8) "CONFIGURATION FILE FORMAT" and wg-quick(8).

Mistakes are reported with their line number, and no message repeats a word of the file: in a line that is wrong, a key
can stand anywhere.
"""

import base64
import binascii
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import Final, TypeVar

from tsnetpy.base.addr import IpBytes, IpPrefix, parse_ip
from tsnetpy.base.errors import ConfigError
from tsnetpy.crypto import dh

from .config import DEFAULT_MTU, MAX_MTU, MIN_MTU, HostPort, WireGuardConfig, WireGuardPeer

T = TypeVar("T")

MAX_FILE_BYTES: Final = 1 << 20

_INTERFACE_NAMES: Final = ("PrivateKey", "Address", "ListenPort", "MTU", "DNS")
_PEER_NAMES: Final = ("PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive")
_IGNORED_NAMES: Final = ("FwMark", "Table", "PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig")
"""Routing tables, marks and shell hooks of the host. A node inside a process has none of these, and runs no command."""

_SPELLING: Final = {name.lower(): name for name in (*_INTERFACE_NAMES, *_PEER_NAMES, *_IGNORED_NAMES)}
_INTERFACE: Final = frozenset(name.lower() for name in _INTERFACE_NAMES)
_PEER: Final = frozenset(name.lower() for name in _PEER_NAMES)
_IGNORED: Final = frozenset(name.lower() for name in _IGNORED_NAMES)
_LISTS: Final = frozenset({"address", "dns", "allowedips"})
"""May be given several times; each adds to the ones before."""


@dataclass(slots=True)
class _Section:
    """One section with its settings by name, and the lines on which they stand."""

    title: str
    line: int
    values: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def load_quick(path: str | os.PathLike[str]) -> WireGuardConfig:
    """Read a file; see :func:`parse_quick`.

    Raises:
        ConfigError: no such file, not readable, not UTF-8, or wrong.
    """
    try:
        with pathlib.Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{os.fspath(path)}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{os.fspath(path)}: longer than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{os.fspath(path)}: not a text file") from None
    return parse_quick(text, os.fspath(path))


def parse_quick(text: str, name: str = "configuration") -> WireGuardConfig:
    """Return the configuration in the text of a ``wg-quick`` file.

    Args:
        text: the content.
        name: what errors call it.

    Raises:
        ConfigError: ``name:line: what is wrong``.
    """
    interface, peers = _sections(text, name)
    private = _one(interface, "privatekey", _key, name)
    if private is None:
        raise _error(name, interface.line, "[Interface] needs a PrivateKey")
    own = dh.public_key(private)
    first_line: dict[bytes, int] = {}
    made: list[WireGuardPeer] = []
    for section in peers:
        peer = _peer(section, name)
        line = section.values["publickey"][0][0]
        if peer.public_key == own:
            raise _error(name, line, "this is the public key of our own PrivateKey", hint="a node is not its own peer")
        if peer.public_key in first_line:
            raise _error(name, line, f"this peer stands on line {first_line[peer.public_key]} already")
        first_line[peer.public_key] = line
        made.append(peer)
    dns = _many(interface, "dns", _dns_entry, name)
    addresses = _many(interface, "address", _address, name)
    if not addresses:
        raise _error(name, interface.line, "[Interface] needs an Address")
    mtu = _one(interface, "mtu", _mtu, name)
    return WireGuardConfig(
        private_key=private,
        addresses=tuple(dict.fromkeys(addresses)),
        listen_port=_one(interface, "listenport", _port, name) or 0,
        mtu=DEFAULT_MTU if mtu is None else mtu,
        dns_servers=tuple(entry for entry in dns if isinstance(entry, bytes)),
        search_domains=tuple(entry for entry in dns if isinstance(entry, str)),
        peers=tuple(made),
        ignored=tuple(
            f"line {line}: {_SPELLING[key]}"
            for key in interface.values
            if key in _IGNORED
            for line, _ in interface.values[key]
        ),
    )


# -- lines -------------------------------------------------------------------------------------------------------------


def _error(name: str, line: int, text: str, *, hint: str = "") -> ConfigError:
    return ConfigError(f"{name}:{line}: {text}", hint=hint)


def _sections(text: str, name: str) -> tuple[_Section, list[_Section]]:
    interface: _Section | None = None
    peers: list[_Section] = []
    section: _Section | None = None
    line = 0
    for line, raw in enumerate(text.split("\n"), start=1):
        content = raw.partition("#")[0].strip()
        if not content:
            continue
        if content.startswith("["):
            title = content.lower()
            if title == "[interface]":
                if interface is not None:
                    raise _error(name, line, f"a second [Interface]; the first is on line {interface.line}")
                section = interface = _Section("[Interface]", line)
            elif title == "[peer]":
                section = _Section("[Peer]", line)
                peers.append(section)
            else:
                raise _error(name, line, "unknown section", hint="there are [Interface] and [Peer]")
            continue
        key, equals, value = content.partition("=")
        _take(section, key.strip(), value.strip() if equals else None, name, line)
    if interface is None:
        raise _error(name, max(line, 1), "there is no [Interface]")
    return interface, peers


def _take(section: _Section | None, key: str, value: str | None, name: str, line: int) -> None:
    """Put one setting into its section."""
    if value is None:
        raise _error(name, line, "neither a section nor a setting", hint="settings have the form `Name = value`")
    if section is None:
        raise _error(name, line, "a setting before the first section", hint="begin with [Interface]")
    folded = key.lower()
    here, other = (_INTERFACE | _IGNORED, _PEER) if section.title == "[Interface]" else (_PEER, _INTERFACE | _IGNORED)
    if folded not in here:
        if folded in other:
            raise _error(name, line, f"{_SPELLING[folded]} does not belong into {section.title}")
        raise _error(name, line, f"unknown setting in {section.title}", hint=f"known are {_known(here)}")
    if not value and folded != "allowedips":
        raise _error(name, line, f"{_SPELLING[folded]} has no value")
    found = section.values.setdefault(folded, [])
    if found and folded not in _LISTS and folded not in _IGNORED:
        raise _error(name, line, f"{_SPELLING[folded]} stands on line {found[0][0]} already")
    found.append((line, value))


def _known(keys: frozenset[str]) -> str:
    return ", ".join(sorted(_SPELLING[key] for key in keys - _IGNORED))


def _one(section: _Section, key: str, read: Callable[[str], T], name: str) -> T | None:
    found = section.values.get(key)
    return None if found is None else _read(key, found[0][1], read, name, found[0][0])


def _many(section: _Section, key: str, read: Callable[[str], T], name: str) -> list[T]:
    out: list[T] = []
    for line, text in section.values.get(key, ()):
        if text:
            out += [_read(key, item.strip(), read, name, line) for item in text.split(",")]
    return out


def _read(key: str, text: str, read: Callable[[str], T], name: str, line: int) -> T:
    try:
        return read(text)
    except ValueError as error:
        raise _error(name, line, f"{_SPELLING[key]}: {error}") from None


def _peer(section: _Section, name: str) -> WireGuardPeer:
    public = _one(section, "publickey", _key, name)
    if public is None:
        raise _error(name, section.line, "[Peer] needs a PublicKey")
    return WireGuardPeer(
        public_key=public,
        allowed_ips=tuple(dict.fromkeys(_many(section, "allowedips", _prefix, name))),
        endpoint=_one(section, "endpoint", parse_host_port, name),
        preshared_key=_one(section, "presharedkey", _key, name),
        persistent_keepalive_s=_one(section, "persistentkeepalive", _keepalive, name) or 0,
    )


# -- values ------------------------------------------------------------------------------------------------------------
# Each raises ValueError with words of its own.


def _key(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or len(text) != 44:
        raise ValueError("a key is 44 characters of base64")
    if not any(raw):
        raise ValueError("a key of zeros is no key")
    return raw


def _interface(text: str) -> tuple[IpBytes, int]:
    if "%" in text:
        raise ValueError("an address without a zone is needed")
    try:
        found = ip_interface(text)
    except ValueError:
        raise ValueError("not an IPv4 or IPv6 address with an optional /bits") from None
    return found.ip.packed, found.network.prefixlen


def _address(text: str) -> IpBytes:
    return _interface(text)[0]


def _prefix(text: str) -> IpPrefix:
    ip, bits = _interface(text)
    shift = len(ip) * 8 - bits  # wg clears host bits without a word
    return IpPrefix((int.from_bytes(ip, "big") >> shift << shift).to_bytes(len(ip), "big"), bits)


def _dns_entry(text: str) -> IpBytes | str:
    """Return a server's address, or a search domain."""
    try:
        return parse_ip(text)
    except ValueError:
        pass
    if not is_host_name(text):
        raise ValueError("neither an address of a server nor a search domain")
    return text.strip(".").lower()


def _number(text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise ValueError(f"not a number from {least} to {most}")
    return int(text)


def _port(text: str) -> int:
    return _number(text, 0, 65535)


def _mtu(text: str) -> int:
    return _number(text, MIN_MTU, MAX_MTU)


def _keepalive(text: str) -> int:
    return 0 if text.lower() == "off" else _number(text, 0, 65535)


def is_host_name(text: str) -> bool:
    """Tell whether *text* can be a DNS name (RFC 1123 §2.1, with underscores)."""
    labels = text.removesuffix(".").split(".")
    return len(text) <= 254 and all(
        0 < len(label) <= 63 and all(c.isalnum() or c in "-_" for c in label) and label[0] != "-" for label in labels
    )


def parse_host_port(text: str) -> HostPort:
    """Return what ``1.2.3.4:5``, ``[::1]:5`` or ``name:5`` means.

    Raises:
        ValueError: not of that form.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise ValueError("a port is missing (host:port)")
    port = _number(port_text, 1, 65535)
    if host.startswith("[") and host.endswith("]"):
        found = HostPort(host[1:-1], port)
        if found.ip is None or len(found.ip) != 16:
            raise ValueError("no IPv6 address in the brackets")
        return found
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets, as in [2001:db8::1]:51820")
    found = HostPort(host, port)
    if found.ip is None and (not is_host_name(host) or all(c.isdigit() or c == "." for c in host)):
        raise ValueError("neither an address nor a name")
    return found

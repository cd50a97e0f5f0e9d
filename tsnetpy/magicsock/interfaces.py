"""The host's own IP addresses, without a dependency: what the kernel lists, or what a connected socket shows."""

import array
import contextlib
import fcntl
import socket
import struct
import sys
from typing import Final

from tsnetpy.base.addr import Endpoint, IpBytes

_SIOCGIFCONF: Final = 0x8912
_SIOCGIFFLAGS: Final = 0x8913
_IFF_UP: Final = 1
_IFREQ: Final = 40 if struct.calcsize("P") == 8 else 32
_MAX_INTERFACES: Final = 1024
_IPV6_TABLE: Final = "/proc/net/if_inet6"
# RFC 4862 address states that cannot be used as a source for new conversations.
_IFA_F_DADFAILED: Final = 0x08
_IFA_F_DEPRECATED: Final = 0x20
_IFA_F_TENTATIVE: Final = 0x40


def interface_ips() -> list[IpBytes]:
    """Return the raw addresses of the interfaces that are up, IPv4 first; on unknown systems the default ones."""
    if sys.platform == "linux":
        found = _ipv4_linux() + _ipv6_linux()
        if found:
            return found
    return [ip for ip in (source_ip(Endpoint(bytes((192, 0, 2, 1)), 9)), source_ip(_DOC_V6)) if ip is not None]


_DOC_V6: Final = Endpoint(bytes.fromhex("20010db8") + bytes(11) + b"\1", 9)


def source_ip(to: Endpoint) -> IpBytes | None:
    """Return the address that the host would send from towards *to* (nothing is sent), or ``None``."""
    family = socket.AF_INET if len(to.ip) == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((socket.inet_ntop(family, to.ip), to.port))
            host: str = probe.getsockname()[0]
            return socket.inet_pton(family, host.partition("%")[0])
    except OSError:
        return None


def has_ipv6() -> bool:
    """Tell whether the host can open an IPv6 socket."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM):
            return True
    except OSError:
        return False


def _ipv4_linux() -> list[IpBytes]:
    """Read SIOCGIFCONF (netdevice(7)): every IPv4 address, secondary ones included."""
    found: list[IpBytes] = []
    table = array.array("B", bytes(_IFREQ * _MAX_INTERFACES))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = struct.pack("iP", len(table), table.buffer_info()[0])
            used = struct.unpack("iP", fcntl.ioctl(sock.fileno(), _SIOCGIFCONF, request))[0]
            raw = table.tobytes()[:used]
            up: dict[bytes, bool] = {}
            for at in range(0, used, _IFREQ):
                name = raw[at : at + 16]
                if name not in up:
                    up[name] = _is_up(sock, name)
                if up[name]:
                    found.append(raw[at + 20 : at + 24])  # sockaddr_in: family, port, address
    except OSError:
        return found
    return found


def _is_up(sock: socket.socket, name: bytes) -> bool:
    label = name.partition(b"\0")[0].partition(b":")[0]  # "eth0:1" is an alias of eth0
    with contextlib.suppress(OSError):
        answer = fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, label.ljust(_IFREQ, b"\0"))
        return bool(struct.unpack_from("H", answer, 16)[0] & _IFF_UP)
    return False


def _ipv6_linux() -> list[IpBytes]:
    """Read the kernel's table: address, index, prefix length, scope, flags, name."""
    found: list[IpBytes] = []
    try:
        with open(_IPV6_TABLE, encoding="ascii") as table:
            lines = table.read(1 << 20).splitlines()
    except OSError:
        return found
    for line in lines:
        fields = line.split()
        if len(fields) < 6:
            continue
        with contextlib.suppress(ValueError):
            ip, flags = bytes.fromhex(fields[0]), int(fields[4], 16)
            if len(ip) == 16 and not flags & (_IFA_F_DADFAILED | _IFA_F_DEPRECATED | _IFA_F_TENTATIVE):
                found.append(ip)
    return found

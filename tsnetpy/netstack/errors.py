"""How an engine's reasons become exceptions: errno values as the operating system's sockets would set them."""

import errno
from typing import Final

from anyio import BrokenResourceError

from tsnetpy.base.addr import Endpoint, IpBytes, parse_ip
from tsnetpy.base.errors import DialError, LocalProtocolError

_DIAL: Final[dict[str, tuple[int, str, str]]] = {
    "refused": (
        errno.ECONNREFUSED,
        "connection refused",
        "nothing listens on that port, or a policy (the tailnet's, the peer's) does not let this node reach it",
    ),
    "reset": (errno.ECONNRESET, "connection reset while it was being made", ""),
    "timeout": (
        errno.ETIMEDOUT,
        "no answer",
        "the peer may be offline, or a policy (the tailnet's, the peer's) may silently drop this connection",
    ),
    "unreachable": (errno.EHOSTUNREACH, "no route to host", "no peer has that address"),
    "stopped": (errno.ECONNABORTED, "this node has ended", ""),
    "network-unreachable": (errno.ENETUNREACH, "network is unreachable", "the node has no address of that family"),
}


def dial_error(reason: str | None, target: Endpoint | str) -> DialError:
    """Return the :class:`DialError` for an engine's *reason* why a connection to *target* was not made."""
    number, text, hint = _DIAL.get(reason or "", (errno.ECONNABORTED, f"connection failed ({reason})", ""))
    return DialError(f"{target}: {text}", errno=number, hint=hint)


def broken(reason: str | None) -> BrokenResourceError:
    """Return the exception for an established stream that died of *reason*; its cause is an ``OSError`` with errno."""
    number = {"reset": errno.ECONNRESET, "timeout": errno.ETIMEDOUT, "unreachable": errno.EHOSTUNREACH}.get(
        reason or "", errno.EPIPE
    )
    error = BrokenResourceError(reason or "the stream is broken")
    error.__cause__ = OSError(number, reason or "broken stream")
    return error


def from_local_error(failure: LocalProtocolError, target: Endpoint | str) -> DialError:
    """Return the :class:`DialError` for a call that the stack refused (port taken, address not ours, no ports left)."""
    number = getattr(failure, "errno", 0) or 0
    return DialError(f"{target}: {failure}", errno=number, hint=failure.hint)


def bind_address(host: str | None) -> IpBytes | None:
    """Return the raw address that a listener's or socket's *host* names; ``None`` stands for every own address.

    Raises:
        DialError: *host* is no address (``EADDRNOTAVAIL``).
    """
    if host is None or host in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not bound; nothing here is the host's
        return None
    try:
        return parse_ip(host)
    except ValueError:
        raise DialError(f"{host!r} is no address", errno=errno.EADDRNOTAVAIL) from None

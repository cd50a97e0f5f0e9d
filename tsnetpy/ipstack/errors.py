"""Why a socket call was refused. Each carries the ``errno`` that the operating system's sockets would set."""

import errno as codes
from typing import ClassVar

from tsnetpy.base.errors import LocalProtocolError


class SocketError(LocalProtocolError):
    """A socket call that the stack cannot honour.

    Attributes:
        errno: the operating system's number for it.
    """

    errno: ClassVar[int] = codes.EINVAL


class AddressInUse(SocketError):
    """The port (or the whole 4-tuple) is taken, or no ephemeral port is free."""

    errno: ClassVar[int] = codes.EADDRINUSE


class AddressNotAvailable(SocketError):
    """The local address is not one of this node's."""

    errno: ClassVar[int] = codes.EADDRNOTAVAIL


class InvalidPort(SocketError):
    """The port is outside 0-65535, or 0 where a port must be named."""

    errno: ClassVar[int] = codes.EINVAL


class InvalidAddress(SocketError):
    """The remote address cannot be talked to: unspecified, multicast, or of another family than the local one."""

    errno: ClassVar[int] = codes.EINVAL


class NoRoute(SocketError):
    """This node has no address of the remote's family."""

    errno: ClassVar[int] = codes.ENETUNREACH


class MessageTooLong(SocketError):
    """The datagram does not fit one IP packet."""

    errno: ClassVar[int] = codes.EMSGSIZE


class NotConnected(SocketError):
    """The socket has no remote end, or is closed."""

    errno: ClassVar[int] = codes.ENOTCONN


class SendAfterShutdown(SocketError):
    """The sending direction is shut down, or the whole connection is over."""

    errno: ClassVar[int] = codes.EPIPE


class InvalidOption(SocketError):
    """A socket option has no such value."""

    errno: ClassVar[int] = codes.EINVAL


class TooManySockets(SocketError):
    """A limit of the stack is reached."""

    errno: ClassVar[int] = codes.EMFILE

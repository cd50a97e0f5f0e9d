"""The exceptions that cross package borders. ``tsnetpy.errors`` re-exports the public ones.

Bad packets never raise past an engine: they are counted (:mod:`tsnetpy.base.stats`). Exceptions are for bad calls, bad
configuration and peers of the control plane.
"""


class TsnetError(Exception):
    """Base of everything this library raises on purpose.

    Attributes:
        hint: one sentence on what the user can do about it, or ``""``.
    """

    hint: str

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(TsnetError):
    """The configuration, a command line flag, or a state file cannot be used."""


class StateError(ConfigError):
    """The state directory or file is unreadable, read-only, damaged, or in use by another process."""


class AuthError(TsnetError):
    """The coordination server refuses this node: wrong, used or expired key, or a login that was rejected."""


class ControlError(TsnetError):
    """The coordination server cannot be reached or does not speak the protocol."""


class ProtocolError(TsnetError):
    """A rule of a protocol was broken."""


class LocalProtocolError(ProtocolError):
    """This side called an engine in a way that the protocol forbids (for instance: send after shutdown)."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol forbids; the conversation with it ends."""


class DecodeError(RemoteProtocolError):
    """Bytes from the wire do not form the message they claim to be."""


class DialError(TsnetError, OSError):
    """A connection over the tailnet could not be made.

    ``errno`` is set as the operating system's own sockets would set it (``ECONNREFUSED``, ``ETIMEDOUT``,
    ``EHOSTUNREACH``, ``ENETUNREACH``), so code written for sockets keeps working.
    """

    def __init__(self, message: str, *, errno: int = 0, hint: str = "") -> None:
        TsnetError.__init__(self, message, hint=hint)
        self.errno = errno or None
        self.strerror = message

    def __str__(self) -> str:
        return str(self.strerror)

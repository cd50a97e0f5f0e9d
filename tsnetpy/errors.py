"""Every exception that this library raises on purpose. Streams raise anyio's own (``EndOfStream`` and its siblings)."""

from .base.errors import AuthError as AuthError
from .base.errors import ConfigError as ConfigError
from .base.errors import ControlError as ControlError
from .base.errors import DecodeError as DecodeError
from .base.errors import DialError as DialError
from .base.errors import LocalProtocolError as LocalProtocolError
from .base.errors import ProtocolError as ProtocolError
from .base.errors import RemoteProtocolError as RemoteProtocolError
from .base.errors import StateError as StateError
from .base.errors import TsnetError as TsnetError

__all__ = [
    "AuthError",
    "ConfigError",
    "ControlError",
    "DecodeError",
    "DialError",
    "LocalProtocolError",
    "ProtocolError",
    "RemoteProtocolError",
    "StateError",
    "TsnetError",
]

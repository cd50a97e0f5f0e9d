"""Registration: a node key asks to be let into a tailnet (reference, section 4)."""

from datetime import datetime

import msgspec

from tsnetpy.base.keys import MachinePublic, NodePublic

from ._struct import CamelMessage, Message
from .hostinfo import Hostinfo
from .times import GO_ZERO, is_past


class RegisterAuth(Message, frozen=True, kw_only=True):
    """Credentials. The auth key never prints."""

    auth_key: str = ""

    def __repr__(self) -> str:
        return "RegisterAuth(auth_key=redacted)"


class RegisterRequest(Message, frozen=True, kw_only=True):
    """``POST /machine/register``."""

    version: int = 0
    node_key: NodePublic = msgspec.field(default_factory=NodePublic.zero)
    old_node_key: NodePublic = msgspec.field(default_factory=NodePublic.zero)
    """The key before this one; once set it is repeated with every later request."""
    nl_key: str = ""
    """Tailnet lock public key, ``nlpub:…``."""
    auth: RegisterAuth | None = None
    expiry: datetime = msgspec.field(default_factory=lambda: GO_ZERO)
    """Zero: none. In the past (but set): log out."""
    followup: str = ""
    """The login URL just received: the answer comes when the user is done there."""
    hostinfo: Hostinfo | None = None
    ephemeral: bool = False
    node_key_signature: bytes | None = None
    tailnet: str = ""

    def is_logout(self, wall_ns: int) -> bool:
        """Tell whether this asks for the key to expire. Test it before *auth*: a logout may carry both."""
        return is_past(self.expiry, wall_ns)


class User(Message, frozen=True, kw_only=True):
    """The account that a node was registered to. Always sent whole: strict decoders want every member."""

    id: int = msgspec.field(default_factory=int)
    display_name: str = msgspec.field(default_factory=str)
    profile_pic_url: str = ""
    created: datetime | None = None


class Login(Message, frozen=True, kw_only=True):
    """The identity that the user signed in with."""

    id: int = msgspec.field(default_factory=int)
    provider: str = msgspec.field(default_factory=str)
    login_name: str = msgspec.field(default_factory=str)
    display_name: str = msgspec.field(default_factory=str)
    profile_pic_url: str = ""


class RegisterResponse(Message, frozen=True, kw_only=True, omit_defaults=False):
    """The answer to a :class:`RegisterRequest`; refusals come as *error* with HTTP status 200."""

    user: User = User()
    login: Login = Login()
    node_key_expired: bool = False
    machine_authorized: bool = False
    auth_url: str = ""
    """Non-empty: a person has to visit this."""
    node_key_signature: bytes | None = None
    error: str = ""


class ServerKeys(CamelMessage, frozen=True, kw_only=True, omit_defaults=False):
    """``GET /key``: the server's Noise static key, the sole anchor of its authenticity."""

    legacy_public_key: MachinePublic = msgspec.field(default_factory=MachinePublic.zero)
    public_key: MachinePublic = msgspec.field(default_factory=MachinePublic.zero)


class EarlyNoise(CamelMessage, frozen=True, kw_only=True):
    """The early payload: what the server sends before HTTP/2 (reference, section 3.5)."""

    node_key_challenge: str = ""

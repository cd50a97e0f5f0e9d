"""Typed attributes of tailnet streams: who is at the other end."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from anyio import TypedAttributeSet, typed_attribute

from tsnetpy.tailcfg.node import Node, UserProfile


@dataclass(frozen=True, slots=True)
class WhoIs:
    """The identity behind a tailnet address, as the network map states it (LocalAPI's ``whois``).

    WireGuard binds each source address to one node key, so for traffic that came through the tunnel this identity is
    authenticated, not claimed.
    """

    node: Node
    """The node that owns the address, or routes to it."""
    user: UserProfile | None
    """The node's owner; for a tagged node the profile (if any) is not an identity to authorise by."""
    cap_map: Mapping[str, list[object]] = field(default_factory=dict)
    """Capabilities that the policy grants this peer towards this node: name to the granted values."""

    @property
    def is_tagged(self) -> bool:
        """True if the node's identity is its tags and not a user."""
        return bool(self.node.tags)

    @property
    def login_name(self) -> str:
        """The owner's login name (``alice@example.com``), or ``""`` for a tagged node."""
        return "" if self.is_tagged or self.user is None else self.user.login_name

    @property
    def display_name(self) -> str:
        """The owner's display name, or ``""`` for a tagged node."""
        return "" if self.is_tagged or self.user is None else self.user.display_name

    @property
    def profile_pic_url(self) -> str:
        """The owner's picture, or ``""``."""
        return "" if self.is_tagged or self.user is None else self.user.profile_pic_url


class TsnetAttribute(TypedAttributeSet):
    """Attributes that tailnet streams have beyond :class:`anyio.abc.SocketAttribute`."""

    peer: WhoIs = typed_attribute()
    """Who is at the other end; absent if the remote address belongs to no known peer."""

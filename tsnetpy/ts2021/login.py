"""Getting a node key accepted: the state machine around ``/machine/register`` (reference, section 4).

The owner sends :meth:`LoginMachine.request`, hands the answer to :meth:`LoginMachine.receive`, and does what the result
says. A refusal ends it: unlike the official client, which retries a wrong key for ever, the caller hears of it at once.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias, final

from tsnetpy.base.entropy import Entropy
from tsnetpy.base.keys import NodePrivate, NodePublic
from tsnetpy.crypto import dh
from tsnetpy.tailcfg.hostinfo import Hostinfo
from tsnetpy.tailcfg.register import Login, RegisterAuth, RegisterRequest, RegisterResponse, User
from tsnetpy.tailcfg.times import LOGOUT_EXPIRY

_MAX_KEYS_PER_LOGIN: Final = 2
"""New keys tried because of ``NodeKeyExpired`` before giving up: a server that never accepts one must not loop us."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The node key is accepted; store it, then poll."""

    user: User
    login: Login
    machine_authorized: bool
    """Only a hint; the network map's own field decides."""


@dataclass(frozen=True, slots=True)
class NeedsLogin:
    """A person has to visit *url*; send the next request, which waits for that."""

    url: str


@dataclass(frozen=True, slots=True)
class SendAgain:
    """Send the next request at once (with a new key, or now with the auth key)."""

    new_key: bool


@dataclass(frozen=True, slots=True)
class WaitAndSend:
    """Back off, then send the next request."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The server says no, in *reason*; *hint* tells what can be done."""

    reason: str
    hint: str


LoginResult: TypeAlias = LoggedIn | NeedsLogin | SendAgain | WaitAndSend | Refused


@final
class LoginMachine:
    """One login, from the first request to acceptance or refusal.

    Args:
        version: capability version.
        node_private: the stored node key, or ``None`` to make one.
        old_node_public: the stored key before it, zero if there was none.
        auth_key: a pre-authentication key, or ``""`` for an interactive login.
        hostinfo: sent along.
        ephemeral: ask for removal when the node goes away.
        entropy: for new keys.
        plain_http: the server's URL is ``http:``, so login URLs may be too.
        force_new_key: the stored key is known to have expired; begin with its successor.

    Attributes:
        node_private: the key being registered.
        old_node_public: the key before it; once set, it stays in every later request.
    """

    __slots__ = (
        "_auth_key", "_entropy", "_ephemeral", "_followup", "_had_key", "_hostinfo", "_new_keys", "_plain_http",
        "_use_auth", "_version", "node_private", "old_node_public",
    )  # fmt: skip

    def __init__(
        self,
        *,
        version: int,
        node_private: NodePrivate | None,
        old_node_public: NodePublic,
        auth_key: str,
        hostinfo: Hostinfo,
        ephemeral: bool,
        entropy: Entropy,
        plain_http: bool,
        force_new_key: bool = False,
    ) -> None:
        self._version = version
        self._auth_key = auth_key
        self._hostinfo = hostinfo
        self._ephemeral = ephemeral
        self._entropy = entropy
        self._plain_http = plain_http
        self._followup = ""
        self._new_keys = 0
        self._had_key = node_private is not None
        # A stored key speaks for itself: a spent or expired auth key must not stop a restart.
        self._use_auth = bool(auth_key) and not self._had_key
        self.node_private = NodePrivate(dh.generate(entropy)) if node_private is None else node_private
        self.old_node_public = old_node_public
        if force_new_key and self._had_key:
            self._rotate()

    @property
    def node_public(self) -> NodePublic:
        """The public half of :attr:`node_private`."""
        return NodePublic(dh.public_key(self.node_private.raw))

    def request(self) -> RegisterRequest:
        """Return what to send next."""
        return RegisterRequest(
            version=self._version,
            node_key=self.node_public,
            old_node_key=self.old_node_public,
            auth=RegisterAuth(auth_key=self._auth_key) if self._use_auth else None,
            followup=self._followup,
            hostinfo=self._hostinfo,
            ephemeral=self._ephemeral,
        )

    def receive(self, response: RegisterResponse) -> LoginResult:
        """Return what the answer means. After anything but :class:`LoggedIn` and :class:`Refused`, go on."""
        if response.error and self._followup:
            # A restarted server has forgotten the login URL; begin again without it before taking no for an answer.
            self._followup = ""
            return WaitAndSend(response.error)
        if response.error:
            return Refused(response.error, hint_for(response.error))
        if response.node_key_signature:
            return Refused(
                "the tailnet is locked and wants the node key signed",
                "sign this node from another one, or use a server without tailnet lock",
            )
        if response.node_key_expired:
            return self._rotate()
        if response.auth_url:
            return self._interactive(response.auth_url)
        return LoggedIn(response.user, response.login, response.machine_authorized)

    def receive_status(self, status: int, text: str) -> LoginResult:
        """Return what an answer with another status than 200 means."""
        if status == 400 and "unsupported client version" in text:
            return Refused(
                f"the server does not serve capability version {self._version}", "use an older or newer server"
            )
        return WaitAndSend(f"the server answers {status}")

    def _rotate(self) -> LoginResult:
        if self._new_keys >= _MAX_KEYS_PER_LOGIN:
            return Refused("the server calls every new node key expired", "check the server's clock and key expiry")
        self._new_keys += 1
        if self._had_key:  # a key that was never accepted needs no successor
            self.old_node_public = self.node_public
        self.node_private = NodePrivate(dh.generate(self._entropy))
        self._use_auth = bool(self._auth_key)
        self._followup = ""
        return SendAgain(new_key=True)

    def _interactive(self, url: str) -> LoginResult:
        if self._auth_key and not self._use_auth:
            self._use_auth = True
            return SendAgain(new_key=False)
        if not url.startswith("https://") and not (self._plain_http and url.startswith("http://")):
            return Refused("the server sends a login URL that is not https", "do not open it; check the server")
        if url == self._followup:
            return WaitAndSend("the login is still open")
        self._followup = url
        return NeedsLogin(url)


def logout_request(
    version: int, node_public: NodePublic, old_node_public: NodePublic, hostinfo: Hostinfo
) -> RegisterRequest:
    """Return the request that makes the server expire *node_public* now (and delete an ephemeral node)."""
    return RegisterRequest(
        version=version,
        node_key=node_public,
        old_node_key=old_node_public,
        expiry=LOGOUT_EXPIRY,
        hostinfo=hostinfo,
    )


_HINTS: Final = (
    ("already used", "the auth key was for one node only; make a reusable one, or a new one"),
    ("expired", "make a new auth key on the coordination server"),
    ("requested tags", "the auth key may not set these tags; let the key carry the tags, or leave them out"),
    ("different machine key", "another installation uses this node's state; remove the state or the node"),
    ("already in use by another machine", "another installation uses this node's state; remove the state or the node"),
    ("extending key", "log in again instead of asking for a later expiry"),
    ("auth key", "check the auth key: it is unknown to this server"),
    ("authkey", "check the auth key: it is unknown to this server"),
    ("invalid key", "check the auth key: it is unknown to this server"),
)


def hint_for(error: str) -> str:
    """Return one sentence of advice for a server's refusal (texts of Headscale and Tailscale)."""
    lowered = error.lower()
    for part, hint in _HINTS:
        if part in lowered:
            return hint
    return "the coordination server's log may say more"

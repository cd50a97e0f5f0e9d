"""``/machine/register``: who is let in, and what the others are told.

The answers and their wording follow what other servers give (control protocol reference, section 4), since clients show
the text. Refusals are ordinary answers with ``Error``, not HTTP errors.
"""

import base64
from typing import Final

from tsnetpy.base.errors import ConfigError
from tsnetpy.base.keys import MachinePublic
from tsnetpy.tailcfg.register import RegisterRequest
from tsnetpy.tailcfg.times import is_zero, to_wall_ns

from . import auth
from .compile import Json, owns_tag
from .netmaps import rfc3339
from .state import TAGGED_LOGIN, TAGGED_USER_ID, NodeRecord, UserRecord
from .tailnet import MAX_TAGS, Pending, Tailnet

LOGIN_LIFETIME_NS: Final = 15 * 60 * 1_000_000_000
"""How long a login URL is good."""
LOGIN_PATH: Final = "/register/"


class Registrar:
    """Decides about register requests.

    Args:
        tailnet: where nodes are added.
        server_url: what login URLs start with, without a slash at the end.
    """

    def __init__(self, tailnet: Tailnet, server_url: str) -> None:
        self._tailnet = tailnet
        self._server_url = server_url

    def register(
        self, machine: MachinePublic, request: RegisterRequest, hostinfo: Json, now_wall_ns: int
    ) -> Json | Pending:
        """Return the answer, or the pending login that the client wants to wait for.

        Args:
            machine: the key that the Noise connection proved.
            request: what the client sent.
            hostinfo: its ``Hostinfo`` as it came.
            now_wall_ns: the wall clock.
        """
        tailnet = self._tailnet
        if request.node_key.is_zero:
            return refusal("node key missing")
        node = tailnet.node_by_key(request.node_key)
        if node is not None and node.machine_key != machine.text():
            return refusal("node exists with a different machine key")
        # Before the auth key: a logout carries one too. A zero expiry (year 1) means "none", not "past".
        if request.is_logout(now_wall_ns):
            return self._log_out(node, now_wall_ns)
        if node is not None and not node.is_expired(now_wall_ns):
            # No new look at the auth key: a restart with a single-use key must succeed.
            return self._known(node, request, now_wall_ns)
        if request.auth is not None and request.auth.auth_key:
            return self._with_auth_key(machine, request, request.auth.auth_key, hostinfo, now_wall_ns)
        if request.followup:
            pending = tailnet.pending.get(request.followup.rpartition("/")[2])
            if pending is not None and pending.machine == machine and pending.node_key == request.node_key:
                return pending
        elif node is not None:
            return {**refusal(""), "NodeKeyExpired": True}
        return self._start_login(machine, request, hostinfo, now_wall_ns)

    def _known(self, node: NodeRecord, request: RegisterRequest, now_wall_ns: int) -> Json:
        if not is_zero(request.expiry):
            wanted = to_wall_ns(request.expiry)
            if not node.expiry_ns or wanted < node.expiry_ns:
                node.expiry_ns = wanted
                self._tailnet.touch(save=True)
            elif wanted > node.expiry_ns:
                return refusal("extending key is not allowed")
        return self._welcome(node, now_wall_ns)

    def _log_out(self, node: NodeRecord | None, now_wall_ns: int) -> Json:
        if node is None:
            return {**refusal(""), "NodeKeyExpired": True}
        if node.ephemeral:
            self._tailnet.delete_node(node)
            return {**refusal(""), "NodeKeyExpired": True}
        self._tailnet.expire_node(node, now_wall_ns)
        return self._welcome(node, now_wall_ns)

    def _with_auth_key(
        self, machine: MachinePublic, request: RegisterRequest, text: str, hostinfo: Json, now_wall_ns: int
    ) -> Json:
        tailnet = self._tailnet
        try:
            key = auth.find(tailnet.auth_keys, text)
            auth.check_usable(key, now_wall_ns)
            tags = self.permitted_tags(key.tags, _requested_tags(request), tailnet.users[key.user_id])
            node = tailnet.add_node(
                machine,
                request.node_key,
                user_id=key.user_id,
                tags=tags,
                ephemeral=key.ephemeral or request.ephemeral,
                hostname=request.hostinfo.hostname if request.hostinfo else "",
                hostinfo=hostinfo,
                expiry_ns=0 if is_zero(request.expiry) else to_wall_ns(request.expiry),
                cap=request.version,
                now_wall_ns=now_wall_ns,
                auth_key_id=key.id,
            )
        except auth.AuthKeyRefused as reason:
            return refusal(str(reason))
        except ConfigError as reason:
            return refusal(str(reason))
        key.uses += 1
        tailnet.touch(save=True)  # before the answer: a used key must stay used if the server dies now
        return self._welcome(node, now_wall_ns)

    def permitted_tags(self, given: list[str], requested: tuple[str, ...], user: UserRecord) -> list[str]:
        """Return the tags of a new node: those that its auth key gives, and those that its user may ask for.

        Raises:
            ConfigError: it asks for others.
        """
        wrong = [tag for tag in requested if tag not in given and not owns_tag(self._tailnet.policy, user.login, tag)]
        if wrong:
            raise ConfigError(f"requested tags [{' '.join(wrong)}] are invalid or not permitted")
        return auth.check_tags([*given, *requested])

    def _start_login(self, machine: MachinePublic, request: RegisterRequest, hostinfo: Json, now_wall_ns: int) -> Json:
        tailnet = self._tailnet
        for pending in tailnet.pending.values():
            # The same node asking again gets the same URL: a client that polls would otherwise fill the table.
            if pending.machine == machine and pending.node_key == request.node_key:
                return self._go_to(pending)
        login_id = base64.urlsafe_b64encode(tailnet.entropy.bytes(18)).decode()
        hostname = request.hostinfo.hostname if request.hostinfo else ""
        pending = Pending(login_id, machine, request.node_key, request.version, now_wall_ns, hostname)
        pending.hostinfo = hostinfo
        pending.tags = _requested_tags(request)
        pending.ephemeral = request.ephemeral
        tailnet.add_pending(pending)
        return self._go_to(pending)

    def _go_to(self, pending: Pending) -> Json:
        return {**refusal(""), "AuthURL": f"{self._server_url}{LOGIN_PATH}{pending.id}"}

    def approve(self, pending: Pending, login: str, now_wall_ns: int, *, ephemeral: bool = False) -> NodeRecord:
        """Let a waiting node in as a device of the user *login*.

        Raises:
            ConfigError: a bad user name, or tags that this user may not give.
        """
        user = self._tailnet.user(login, now_wall_ns)
        tags = self.permitted_tags([], pending.tags, user)
        return self._tailnet.approve(pending, user.id, now_wall_ns, tags=tags, ephemeral=ephemeral or pending.ephemeral)

    def approve_with_key(self, pending: Pending, text: str, now_wall_ns: int) -> NodeRecord:
        """Let a waiting node in with an auth key that somebody typed into the login page.

        Raises:
            AuthKeyRefused: the key is no good.
            ConfigError: tags that the key does not give.
        """
        tailnet = self._tailnet
        key = auth.find(tailnet.auth_keys, text)
        auth.check_usable(key, now_wall_ns)
        tags = self.permitted_tags(key.tags, pending.tags, tailnet.users[key.user_id])
        key.uses += 1
        ephemeral = key.ephemeral or pending.ephemeral
        return tailnet.approve(pending, key.user_id, now_wall_ns, tags=tags, ephemeral=ephemeral)

    def forget_old_logins(self, now_wall_ns: int) -> None:
        """Drop logins that nobody decided about in time."""
        for pending in list(self._tailnet.pending.values()):
            if pending.created_ns + LOGIN_LIFETIME_NS <= now_wall_ns:
                self._tailnet.reject(pending)

    def _welcome(self, node: NodeRecord, now_wall_ns: int) -> Json:
        if node.tags:
            user_id, login, display = TAGGED_USER_ID, TAGGED_LOGIN, "Tagged Devices"
            created = node.created_ns
        else:
            user = self._tailnet.users[node.user_id]
            user_id, login, display, created = user.id, user.login, user.display_name, user.created_ns
        return {
            **refusal(""),
            "User": {"ID": user_id, "DisplayName": display, "ProfilePicURL": "", "Created": rfc3339(created)},
            "Login": {
                "ID": user_id,
                "Provider": "",
                "LoginName": login,
                "DisplayName": display,
                "ProfilePicURL": "",
            },
            "NodeKeyExpired": node.is_expired(now_wall_ns),
            "MachineAuthorized": True,
        }


def refusal(error: str) -> Json:
    """Return a register answer with every member there is (strict decoders want that) that grants nothing."""
    return {
        "User": {"ID": 0, "DisplayName": "", "ProfilePicURL": "", "Created": "0001-01-01T00:00:00Z"},
        "Login": {"ID": 0, "Provider": "", "LoginName": "", "DisplayName": "", "ProfilePicURL": ""},
        "NodeKeyExpired": False,
        "MachineAuthorized": False,
        "AuthURL": "",
        "NodeKeySignature": None,
        "Error": error,
    }


def _requested_tags(request: RegisterRequest) -> tuple[str, ...]:
    return request.hostinfo.request_tags[:MAX_TAGS] if request.hostinfo is not None else ()

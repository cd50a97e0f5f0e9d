"""Who may log in as whom: pure evaluation of the netmap's SSH policy (control protocol reference, section 8).

The first rule decides that has not expired, has an action, names the caller, and (unless it rejects) maps the requested
user. No policy, no rule, or no match means: nobody.
"""

from dataclasses import dataclass
from datetime import datetime

from tsnetpy.base.addr import format_ip, parse_ip
from tsnetpy.tailcfg.node import Node, UserProfile
from tsnetpy.tailcfg.ssh import SSHPolicy, SSHPrincipal, SSHRule

PASSWORD_SUFFIX = "+password"  # noqa: S105 - the suffix of a user name, no secret
"""A client that insists on a password asks for ``user+password``; whatever it sends is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The peer that connects, as the netmap knows it."""

    ip: str
    """Its tailnet address, canonical text."""
    node: Node
    user: UserProfile | None
    """Its owner; ``None`` if the server sent no profile, and then no rule by login name matches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the policy says about one login."""

    accept: bool
    local_user: str = ""
    """The account that the policy maps the requested name to (only when accepted)."""
    message: str = ""
    """Text to show before the session, or why the login is refused."""
    session_duration_ns: int = 0
    """How long the session may last; 0 is without end."""
    accept_env: tuple[str, ...] = ()


def evaluate(policy: SSHPolicy | None, caller: Caller, requested: str, now: datetime) -> Decision:
    """Decide whether *caller* may log in as *requested*.

    Args:
        policy: the netmap's policy; ``None`` admits nobody.
        caller: who connects.
        requested: the user name from the SSH client, without :data:`PASSWORD_SUFFIX`.
        now: wall clock with time zone, against which rules expire.
    """
    knows_caller = False
    for rule in policy.rules if policy is not None else ():
        action = rule.action
        if action is None or _expired(rule, now) or not any(_matches(p, caller) for p in rule.principals):
            continue
        if action.reject and not action.accept:
            return Decision(accept=False, message=action.message or "tailscale: access denied\n")
        knows_caller = True
        local = _map_user(rule, requested)
        if not local:
            continue
        if action.accept:
            return Decision(
                accept=True,
                local_user=local,
                message=action.message,
                session_duration_ns=action.session_duration,
                accept_env=rule.accept_env,
            )
        if action.hold_and_delegate:
            return Decision(
                accept=False,
                message="tailscale: this login needs a check in the browser, which this server does not offer\n",
            )
    whom = f'as user "{requested}"' if knows_caller else "to this node"
    return Decision(accept=False, message=f"tailscale: tailnet policy does not permit you to SSH {whom}\n")


def _expired(rule: SSHRule, now: datetime) -> bool:
    return rule.rule_expires is not None and rule.rule_expires <= now


def _matches(principal: SSHPrincipal, caller: Caller) -> bool:
    """Tell whether any field of *principal* names the caller; an empty principal names nobody."""
    if principal.any:
        return True
    if principal.node and principal.node == caller.node.stable_id:
        return True
    if principal.node_ip and _same_ip(principal.node_ip, caller.ip):
        return True
    return bool(principal.user_login) and caller.user is not None and principal.user_login == caller.user.login_name


def _same_ip(text: str, ip: str) -> bool:
    try:
        return format_ip(parse_ip(text)) == ip
    except ValueError:
        return False


def _map_user(rule: SSHRule, requested: str) -> str:
    """Return the local account for *requested*, or ``""``. ``=`` means the same name, but never root."""
    local = rule.ssh_users.get(requested)
    if local is None:
        local = rule.ssh_users.get("*", "")
    if local == "=":
        return requested if requested != "root" else ""
    return local

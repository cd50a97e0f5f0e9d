"""SSH policy: who may log in as whom (reference, section 8). Names are lower camel case on the wire."""

from datetime import datetime

import msgspec

from ._struct import CamelMessage, Message


class SSHPrincipal(CamelMessage, frozen=True, kw_only=True):
    """Who connects; any one of the fields matches."""

    node: str = ""
    """StableID."""
    node_ip: str = ""
    user_login: str = ""
    any: bool = False


class SSHRecorderFailureAction(Message, frozen=True, kw_only=True):
    """What to do if no session recorder can be reached; ``None`` instead of this means: carry on."""

    reject_session_with_message: str = ""
    terminate_session_with_message: str = ""
    notify_url: str = ""


class SSHAction(CamelMessage, frozen=True, kw_only=True):
    """What happens to a connection that a rule matches."""

    message: str = ""
    """Shown to the user before the session."""
    reject: bool = False
    accept: bool = False
    session_duration: int = 0
    """Nanoseconds; 0 is unlimited."""
    allow_agent_forwarding: bool = False
    hold_and_delegate: str = ""
    """URL to fetch the next action from."""
    allow_local_port_forwarding: bool = False
    allow_remote_port_forwarding: bool = False
    recorders: tuple[str, ...] = ()
    on_recording_failure: SSHRecorderFailureAction | None = None


class SSHRule(CamelMessage, frozen=True, kw_only=True):
    """One rule; the first that matches decides."""

    rule_expires: datetime | None = None
    principals: tuple[SSHPrincipal, ...] = msgspec.field(default_factory=tuple)
    ssh_users: dict[str, str] = msgspec.field(default_factory=dict)
    """Requested name (or ``*``) to local user; ``=`` is the same name, empty is no match."""
    action: SSHAction | None = None
    accept_env: tuple[str, ...] = ()


class SSHPolicy(CamelMessage, frozen=True, kw_only=True):
    """All rules, in order. ``null`` rules are no rules."""

    rules: tuple[SSHRule, ...] = ()

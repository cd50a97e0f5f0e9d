"""How far the control client has come."""

from dataclasses import dataclass
from enum import StrEnum


class ControlState(StrEnum):
    """Where a control client stands."""

    CONNECTING = "connecting"
    """Dialling, registering, or waiting before the next attempt."""
    NEEDS_LOGIN = "needs-login"
    """A person has to visit :attr:`ControlStatus.auth_url`."""
    NEEDS_MACHINE_AUTH = "needs-machine-auth"
    """Logged in; an administrator has to approve this machine."""
    RUNNING = "running"
    """The map stream is open and the node is part of the tailnet."""
    EXPIRED = "expired"
    """The node key has expired; a new login follows."""
    REFUSED = "refused"
    """The server said no; the client has stopped."""
    LOGGED_OUT = "logged-out"
    """The node key was given back; the client has stopped."""


@dataclass(frozen=True, slots=True)
class ControlStatus:
    """The latest state, and what a user should know about it."""

    state: ControlState = ControlState.CONNECTING
    auth_url: str = ""
    """Set in ``NEEDS_LOGIN``."""
    message: str = ""
    """The last trouble in words, or ``""``."""
    hint: str = ""
    """What can be done about it, or ``""``."""
    attempts: int = 0
    """Failed attempts in a row."""

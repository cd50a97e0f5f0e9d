"""What a node is told before it starts: arguments first, then the environment variables that Tailscale's image has.

====================  ==================================================================================
variable              meaning
====================  ==================================================================================
``TS_AUTHKEY``        pre-authentication key, or ``file:/path`` to read one; ``TS_AUTH_KEY`` is the same
``TS_HOSTNAME``       requested host name
``TS_CONTROL_URL``    coordination server
``TS_STATE_DIR``      where keys are kept; without it (and without *state_dir*) nothing touches the disk
====================  ==================================================================================
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypedDict
from urllib.parse import urlsplit

from tsnetpy.base.errors import ConfigError

DEFAULT_CONTROL_URL: Final = "https://controlplane.tailscale.com"
_TAG: Final = re.compile(r"tag:[a-zA-Z][a-zA-Z0-9-]*")
_LABEL_LIMIT: Final = 63


class NodeOptions(TypedDict, total=False):
    """The fields of :class:`NodeConfig` as keyword arguments of ``Node``."""

    hostname: str
    state_dir: str | Path | None
    ephemeral: bool | None
    auth_key: str
    tags: tuple[str, ...]
    control_url: str
    port: int
    accept_routes: bool
    shields_up: bool
    timeout: float
    login_timeout: float | None
    dial_timeout: float
    on_auth_url: Callable[[str], None] | None
    serve_dns: bool
    ssh_host_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Settings of one node. Empty fields are filled from the environment by :meth:`resolved`."""

    hostname: str = ""
    """Requested host name; default: ``TS_HOSTNAME``, then the program's name. The server may assign another."""
    state_dir: str | Path | None = None
    """Directory for ``tailscaled.state``; default: ``TS_STATE_DIR``, and without that the keys live in memory only."""
    ephemeral: bool | None = None
    """Leave the tailnet for good on close; ``None``: yes if there is no state directory."""
    auth_key: str = field(default="", repr=False)
    """Pre-authentication key, or ``file:/path``; default: ``TS_AUTHKEY``. Ignored once the state is logged in."""
    tags: tuple[str, ...] = ()
    """Tags to ask for (``tag:web``)."""
    control_url: str = ""
    """Coordination server; default: ``TS_CONTROL_URL``, then Tailscale's."""
    port: int = 0
    """Local UDP port for WireGuard, 0: any free one."""
    accept_routes: bool = False
    """Use the subnet routes that peers offer."""
    shields_up: bool = False
    """Refuse everything that peers initiate."""
    timeout: float = 60.0
    """Seconds that ``async with Node(...)`` waits until the node runs."""
    login_timeout: float | None = None
    """Seconds that a person has to visit the login URL (``math.inf``: any time); ``None``: *timeout* covers it."""
    dial_timeout: float = 30.0
    """Seconds after which a dial that nobody answers fails with ``ETIMEDOUT``."""
    on_auth_url: Callable[[str], None] | None = field(default=None, repr=False)
    """Called with each login URL that a person has to visit; without it the URL is logged. The status has it, too."""
    serve_dns: bool = True
    """Answer MagicDNS queries at 100.100.100.100 inside the node's own stack."""
    ssh_host_keys: tuple[str, ...] = ()
    """Public host keys (``authorized_keys`` lines) of an SSH server on this node; they are told to the tailnet."""

    def resolved(self, environ: Mapping[str, str] | None = None) -> "NodeConfig":
        """Return a copy with every field filled and checked.

        Args:
            environ: instead of ``os.environ``.

        Raises:
            ConfigError: a value cannot be used; the message never repeats a secret.
        """
        env = os.environ if environ is None else environ
        state_dir = self.state_dir if self.state_dir is not None else (env.get("TS_STATE_DIR") or None)
        control_url = (self.control_url or env.get("TS_CONTROL_URL", "") or DEFAULT_CONTROL_URL).rstrip("/")
        if not _is_server_url(control_url):
            raise ConfigError(f"{control_url!r} is no URL of a coordination server", hint="use https://host[:port]")
        for tag in self.tags:
            if not _TAG.fullmatch(tag):
                raise ConfigError(f"{tag!r} is no tag", hint="tags look like tag:web: letters, digits and dashes")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"{self.port} is no UDP port")
        if self.timeout <= 0 or self.dial_timeout <= 0:
            raise ConfigError("a timeout must be positive")
        return replace(
            self,
            hostname=host_label(self.hostname or env.get("TS_HOSTNAME", "") or _program_name()),
            state_dir=Path(state_dir).expanduser() if state_dir is not None else None,
            ephemeral=state_dir is None if self.ephemeral is None else self.ephemeral,
            auth_key=_read_secret(self.auth_key or env.get("TS_AUTHKEY", "") or env.get("TS_AUTH_KEY", "")),
            control_url=control_url,
        )


def host_label(name: str) -> str:
    """Return *name* as one DNS label: lower case, runs of anything else become a dash, at most 63 characters."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LABEL_LIMIT].strip("-")
    return label or "tsnetpy"


def _is_server_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not close, a port beyond 65535
        return False


def _program_name() -> str:
    path = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("tsnetpy")
    return path.parent.name if path.name == "__main__.py" else path.stem


def _read_secret(value: str) -> str:
    # Keys are pasted with line ends and blanks around them; none of those is ever part of a key.
    value = value.strip()
    if not value.startswith("file:"):
        return value
    path = value.removeprefix("file:")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the auth key from {path}: {error}", hint="file:PATH names a readable file that holds the key"
        ) from error

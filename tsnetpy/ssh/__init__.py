"""An SSH server on the tailnet: who may enter comes from the netmap, sessions run as this process's own user."""

from .server import SshConfig, serve

__all__ = ["SshConfig", "serve"]

"""Serve: publish something inside the tailnet over HTTP, HTTPS or TCP, with the identity of every caller.

:func:`run` serves a :class:`ServeConfig` on a node; ``python -m tsnetpy.serve TARGET`` is the application around it.
"""

from .config import (
    AsgiTarget,
    DirectoryTarget,
    HttpPort,
    Mount,
    ProxyTarget,
    RedirectTarget,
    ServeConfig,
    Site,
    Target,
    TcpPort,
    TextTarget,
    TlsFiles,
    TlsSelfSigned,
    parse_serve_document,
    parse_target,
    single_target,
)
from .server import run

__all__ = [
    "AsgiTarget",
    "DirectoryTarget",
    "HttpPort",
    "Mount",
    "ProxyTarget",
    "RedirectTarget",
    "ServeConfig",
    "Site",
    "Target",
    "TcpPort",
    "TextTarget",
    "TlsFiles",
    "TlsSelfSigned",
    "parse_serve_document",
    "parse_target",
    "run",
    "single_target",
]

"""What this node says about its host: as little as the server and the peers need."""

import platform
import sys
from typing import Final

from tsnetpy.base.entropy import Entropy
from tsnetpy.tailcfg.hostinfo import Hostinfo

_OS_NAMES: Final = {"linux": "linux", "darwin": "macOS", "win32": "windows"}
_GO_ARCHES: Final = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "i686": "386"}


def default_hostinfo(
    hostname: str,
    *,
    version: str,
    entropy: Entropy,
    routes: tuple[str, ...] = (),
    tags: tuple[str, ...] = (),
    app: str = "",
) -> Hostinfo:
    """Return the description of a userspace node called *hostname*.

    Args:
        hostname: wanted name; the server sanitises it and makes it unique.
        version: this library's version.
        entropy: for the log ID, a number that official servers want to see although this node sends no logs.
        routes: advertised prefixes.
        tags: requested tags.
        app: name of the program around this library.
    """
    machine = platform.machine().lower()
    return Hostinfo(
        ipn_version=f"{version}-tsnetpy",
        backend_log_id=entropy.bytes(32).hex(),
        os=_OS_NAMES.get(sys.platform, sys.platform),
        hostname=hostname,
        machine=machine,
        go_arch=_GO_ARCHES.get(machine, machine),
        app=app,
        no_logs_no_support=True,
        userspace=True,
        userspace_router=True,
        routable_ips=routes,
        request_tags=tags,
    )

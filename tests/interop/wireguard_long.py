"""Transfers of 150 s that begin early and run beside other tests, in namespaces of their own."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.interop.lab import Process
from tests.interop.wireguard_lab import K6, K_IN, PORT, U6, U_IN, Tunnel, running_tunnel

SECONDS = 150
OUR_PORT = 41000


@dataclass(slots=True)
class LongRun:
    """One transfer under way."""

    tunnel: Tunnel
    node: Process
    mirror: Process


@contextlib.contextmanager
def long_run(initiator: str) -> Iterator[LongRun]:
    """Start a transfer whose first packet comes from *initiator*, ``ours`` or ``theirs``."""
    with running_tunnel(initiator[0], servers=False) as tunnel:
        steady, mirror = ("-m", "tests.interop.tunnel", "steady"), ("-m", "tests.interop.tunnel", "mirror")
        tunnel.kernel_down()
        tunnel.kernel_up("" if initiator == "ours" else f"[{U6}]:{OUR_PORT}", log_level="verbose")
        if initiator == "ours":
            file = tunnel.file(f"[{K6}]:{PORT}")
            there = tunnel.start_plain("mirror", "k", [*mirror, "listen", "5001", str(SECONDS)])
            there.wait_for("ready")
            here = tunnel.start_plain("steady", "u", [*steady, file, K_IN[1], "5001", str(SECONDS)])
        else:
            # Our file names no endpoint, so only the kernel's end can begin.
            file = tunnel.file("", interface=f"ListenPort = {OUR_PORT}")
            here = tunnel.start_plain("steady", "u", [*steady, file, "listen", "5001", str(SECONDS)])
            here.wait_for("ready")
            there = tunnel.start_plain("mirror", "k", [*mirror, U_IN[0], "5001", str(SECONDS)])
        yield LongRun(tunnel, here, there)


@contextlib.contextmanager
def long_runs() -> Iterator[dict[str, LongRun]]:
    """Start one transfer for each initiator."""
    with contextlib.ExitStack() as stack:
        yield {initiator: stack.enter_context(long_run(initiator)) for initiator in ("ours", "theirs")}

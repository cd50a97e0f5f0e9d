"""What every program built around one node shares: flags, exit codes, signals, words on standard error."""

import argparse
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import Final, TextIO, final

import anyio

from tsnetpy.base.errors import AuthError, ConfigError, ControlError, DialError, StateError, TsnetError
from tsnetpy.runtime.supervise import single_failure

from .config import NodeConfig

JOIN_TIMEOUT_S: Final = 60.0
BACKEND_ENV: Final = "TSNETPY_BACKEND"
"""``asyncio`` (default) or ``trio``."""


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILURE = 1
    """Anything that has no code of its own."""
    USAGE = 2
    """A flag, an argument or a configuration value cannot be used."""
    AUTH = 3
    """The coordination server refuses this node."""
    CONTROL = 4
    """The coordination server cannot be reached or does not speak the protocol."""
    STATE = 5
    """The state directory is unreadable, read-only, damaged, or in use by another process."""
    DIAL = 6
    """A peer could not be reached."""
    INTERRUPTED = 130
    """Ended by Ctrl-C or SIGTERM before it was done."""


def exit_code(error: BaseException) -> Exit:
    """Return the exit code for an exception."""
    table: tuple[tuple[type[BaseException], Exit], ...] = (
        (StateError, Exit.STATE),
        (ConfigError, Exit.USAGE),
        (AuthError, Exit.AUTH),
        (ControlError, Exit.CONTROL),
        (DialError, Exit.DIAL),
    )
    return next((code for kind, code in table if isinstance(error, kind)), Exit.FAILURE)


def add_node_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which node to be. Their names are Tailscale's."""
    group = parser.add_argument_group("node")
    group.add_argument("--hostname", default="", help="name to ask for (TS_HOSTNAME)")
    group.add_argument(
        "--state", metavar="DIR", help="keep the identity in DIR (TS_STATE_DIR); without it: memory only"
    )
    group.add_argument(
        "--ephemeral",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="leave the tailnet for good at the end (default without --state)",
    )
    group.add_argument("--tag", action="append", default=[], metavar="tag:NAME", help="tag to ask for; repeatable")
    group.add_argument("--login-server", default="", metavar="URL", help="coordination server (TS_CONTROL_URL)")
    group.add_argument(
        "--auth-key", default="", metavar="KEY", help="auth key or file:PATH (TS_AUTHKEY, which other users cannot see)"
    )
    group.add_argument("--udp-port", type=int, default=0, metavar="PORT", help="WireGuard's UDP port (default: any)")
    group.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help=f"seconds to wait for joining (default {JOIN_TIMEOUT_S:g}; a person who logs in may take any time)",
    )
    group.add_argument("-v", "--verbose", action="count", default=0, help="log to standard error; twice for more")


def node_config(args: argparse.Namespace, progress: "Progress") -> NodeConfig:
    """Return the configuration that the flags of :func:`add_node_arguments` and the environment describe.

    Raises:
        ConfigError: a value cannot be used.
    """
    return NodeConfig(
        hostname=args.hostname,
        state_dir=args.state,
        ephemeral=args.ephemeral,
        auth_key=args.auth_key,
        tags=tuple(args.tag),
        control_url=args.login_server,
        port=args.udp_port,
        timeout=JOIN_TIMEOUT_S if args.timeout is None else args.timeout,
        login_timeout=math.inf if args.timeout is None else None,
        on_auth_url=progress.auth_url,
    ).resolved()


@final
class Progress:
    """Tells a person (standard error) or a program (``--json``: one object a line on standard output) how far it is."""

    def __init__(self, *, as_json: bool, err: TextIO | None = None, out: TextIO | None = None) -> None:
        self.as_json = as_json
        self._err = err or sys.stderr
        self._out = out or sys.stdout

    def say(self, event: str, text: str, **fields: object) -> None:
        """Report one step: *event* and *fields* for programs, *text* for people (nothing if empty)."""
        if self.as_json:
            self._out.write(json.dumps({"event": event, **fields}, default=str) + "\n")
            self._out.flush()
        elif text:
            self._err.write(text + "\n")
            self._err.flush()

    def auth_url(self, url: str) -> None:
        """Show a login URL, with a QR code where a person looks on and the ``cli`` extra is installed."""
        self.say("auth-url", f"\nTo authenticate, visit:\n\n\t{url}\n", url=url)
        if not self.as_json and self._err.isatty():
            try:
                import segno
            except ImportError:
                return
            segno.make(url, error="l").terminal(out=self._err, compact=True)

    def failed(self, error: BaseException, code: Exit) -> None:
        """Report why the program ends."""
        hint = error.hint if isinstance(error, TsnetError) else ""
        text = f"error: {error}" + (f"\nhint: {hint}" if hint else "")
        self.say("error", text, kind=type(error).__name__, message=str(error), hint=hint, exit_code=int(code))


def configure_logging(verbose: int) -> None:
    """Log warnings, or with ``-v`` more, to standard error."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if verbose < 2:
        logging.getLogger("paramiko").setLevel(logging.ERROR)


def run_program(
    main: Callable[[], Awaitable[int | None]], progress: Progress, environ: Mapping[str, str] | None = None
) -> int:
    """Run *main* in an event loop until it ends or a signal comes; return the exit code.

    SIGINT and SIGTERM cancel *main*, which then leaves the tailnet in order; a second signal ends the process at once.
    Typed errors are told with their hint and become their exit code.
    """
    env = os.environ if environ is None else environ
    backend = env.get(BACKEND_ENV, "asyncio")
    try:
        return anyio.run(_supervised, main, progress, backend=backend)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


async def _supervised(main: Callable[[], Awaitable[int | None]], progress: Progress) -> int:
    result: int = Exit.OK
    interrupted = False

    async def watch(scope: anyio.CancelScope) -> None:
        nonlocal interrupted
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                if interrupted:
                    os._exit(Exit.INTERRUPTED)  # the orderly way hangs, and the user has asked twice
                interrupted = True
                scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(watch, scope)
            with scope:
                result = await main() or Exit.OK
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = single_failure(group)
        if not isinstance(error, TsnetError):
            raise
        result = exit_code(error)
        progress.failed(error, Exit(result))
    return Exit.INTERRUPTED if interrupted else result

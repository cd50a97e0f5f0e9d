"""``python -m tsnetpy coordinator …``: run a coordinator, and manage one that runs.

The command line mounts :func:`add_arguments` and :func:`run`.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio.abc import TaskStatus

from tsnetpy.base.errors import ConfigError, TsnetError

from . import admin
from .embed import DEFAULT_DOMAIN, DEFAULT_USER, Coordinator, breaks_official_clients
from .policy import parse

_log = logging.getLogger(__name__)

STATE_ENV: Final = "TSNETPY_COORDINATOR_STATE"
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What ``coordinator serve`` is told."""

    host: str = "127.0.0.1"
    port: int = 8080
    url: str = ""
    state_dir: Path | None = None
    policy_file: Path | None = None
    domain: str = DEFAULT_DOMAIN
    user: str = DEFAULT_USER
    derp_port: int | None = 8443
    stun_port: int | None = 3478


async def serve(options: ServeOptions, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Run a coordinator until SIGINT or SIGTERM; SIGHUP reads the policy file again. Ready once nodes can join.

    Raises:
        ConfigError: something in *options* cannot be used.
    """
    box = Coordinator(
        host=options.host,
        port=options.port,
        url=options.url,
        domain=options.domain,
        state_dir=options.state_dir,
        policy=_read_policy(options.policy_file),
        user=options.user,
        derp_port=options.derp_port,
        stun_port=options.stun_port,
    )
    async with box:
        listener = await admin.listen(options.state_dir) if options.state_dir is not None else None
        try:
            async with anyio.create_task_group() as tasks:
                if listener is not None:
                    tasks.start_soon(admin.serve_admin, box, listener)
                with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                    _announce(box, options)
                    task_status.started()
                    await _obey_signals(box, options, signals)
                tasks.cancel_scope.cancel()
        finally:
            if options.state_dir is not None:
                (options.state_dir / admin.SOCKET_NAME).unlink(missing_ok=True)


async def _obey_signals(box: Coordinator, options: ServeOptions, signals: AsyncIterator[signal.Signals]) -> None:
    """Return when a signal says to stop."""
    async for number in signals:
        if number != signal.SIGHUP:
            return
        try:
            box.set_policy(_read_policy(options.policy_file))
            _log.warning("policy read again")
        except ConfigError as error:
            _log.error("the old policy holds on: %s", error)


def _read_policy(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the policy {path}: {error}") from error


def _announce(box: Coordinator, options: ServeOptions) -> None:
    _out(f"coordinator at {box.url}, tailnet {box.domain}")
    if breaks_official_clients(box.url):
        _out(
            "warning: plain HTTP on a public address; official clients do not find back after a broken connection. "
            "Use an https URL (a TLS proxy in front) or a private address."
        )
    if options.state_dir is None:
        # Without a state directory there is no admin socket either, so this is the one chance to get a key.
        _out("state is kept in memory only; auth key for this run (reusable, one day):")
        _out(f"  {box.create_auth_key(reusable=True)}")
    else:
        _out("make an auth key with:")
        _out(f"  python -m tsnetpy coordinator keys create --reusable --state {options.state_dir}")
    _out("join with, for instance:")
    _out(f"  tailscale up --login-server={box.url} --auth-key=KEY")


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# -- command line ------------------------------------------------------------------------------------------------


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of ``127.0.0.1:8080``, ``[::1]:8080`` or ``:8080`` (every address).

    Raises:
        argparse.ArgumentTypeError: not of that form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return host or "0.0.0.0", int(port)  # noqa: S104 - as the caller asked


def parse_port(text: str) -> int | None:
    """Return a port number, or ``None`` for ``off``.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    if text == "off":
        return None
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a port nor 'off'")
    return int(text)


def parse_duration(text: str) -> float | None:
    """Return the seconds in ``90s``, ``30m``, ``24h``, ``7d``; ``None`` for ``never``.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if text == "never":
        return None
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration like 30m, 24h, 7d, or 'never'")
    return float(int(number) * _UNITS[unit])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``coordinator`` to *parser*; :func:`run` carries them out."""
    commands = parser.add_subparsers(dest="coordinator_command", required=True, metavar="COMMAND")

    serving = commands.add_parser("serve", help="run a coordination server with DERP relay and STUN")
    serving.add_argument("--listen", type=parse_listen, default=("127.0.0.1", 8080), metavar="HOST:PORT")
    serving.add_argument("--url", default="", help="how nodes reach it, if not http://HOST:PORT")
    serving.add_argument("--state", type=Path, metavar="DIR", help="where to keep the tailnet (default: memory only)")
    serving.add_argument(
        "--policy", type=Path, metavar="FILE", help="HuJSON policy (default: nodes may reach each other)"
    )
    serving.add_argument("--domain", default=DEFAULT_DOMAIN, help="MagicDNS suffix (default: %(default)s)")
    serving.add_argument("--user", default=DEFAULT_USER, help="who owns new nodes (default: %(default)s)")
    serving.add_argument("--derp-port", type=parse_port, default=8443, metavar="PORT|off")
    serving.add_argument("--stun-port", type=parse_port, default=3478, metavar="PORT|off")

    state = argparse.ArgumentParser(add_help=False)
    default = os.environ.get(STATE_ENV)
    state.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        default=Path(default) if default else None,
        help=f"state directory of the running coordinator (default: ${STATE_ENV})",
    )
    state.add_argument("--json", action="store_true", help="print JSON")

    keys = commands.add_parser("keys", help="auth keys").add_subparsers(dest="action", required=True, metavar="ACTION")
    create = keys.add_parser("create", parents=[state], help="make an auth key and print it")
    create.add_argument("--reusable", action="store_true", help="for any number of nodes")
    create.add_argument("--ephemeral", action="store_true", help="its nodes are deleted once they are gone")
    create.add_argument("--tag", action="append", default=[], metavar="tag:NAME", help="tag its nodes (repeatable)")
    create.add_argument("--expiry", type=parse_duration, default=86_400.0, metavar="24h|never")
    create.add_argument("--user", default="", help="whose nodes it makes")
    keys.add_parser("list", parents=[state], help="list auth keys, without their secrets")
    keys.add_parser("revoke", parents=[state], help="make a key useless").add_argument("id")

    nodes = commands.add_parser("nodes", help="nodes").add_subparsers(dest="action", required=True, metavar="ACTION")
    nodes.add_parser("list", parents=[state], help="list nodes, and logins that wait for approval")
    approve = nodes.add_parser("approve", parents=[state], help="let a waiting node in")
    approve.add_argument("login", help="the login URL, or the id in it")
    approve.add_argument("--user", default="", help="whose node it becomes")
    approve.add_argument("--ephemeral", action="store_true", help="delete it once it is gone")
    nodes.add_parser("reject", parents=[state], help="turn a waiting node away").add_argument("login")
    nodes.add_parser("delete", parents=[state], help="forget a node").add_argument("node", help="id, name or address")
    nodes.add_parser("expire", parents=[state], help="make a node log in again").add_argument("node")

    policy = commands.add_parser("policy", help="policy").add_subparsers(dest="action", required=True, metavar="ACTION")
    policy.add_parser("check", help="read a policy file and say what is wrong").add_argument("file", type=Path)
    policy.add_parser("set", parents=[state], help="let a policy file hold until the next start").add_argument(
        "file", type=Path
    )


def run(args: argparse.Namespace) -> int:
    """Carry out what :func:`add_arguments` parsed; return the exit status."""
    try:
        if args.coordinator_command == "serve":
            anyio.run(serve, _serve_options(args))
            return 0
        if args.coordinator_command == "policy" and args.action == "check":
            parse(_read_policy(args.file) or "")
            _out(f"{args.file}: good")
            return 0
        if args.state is None:
            raise ConfigError("which coordinator?", hint=f"give --state DIR, or set {STATE_ENV}")
        _print(args, anyio.run(_ask, args))
    except TsnetError as error:
        sys.stderr.write(f"error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return 1
    return 0


def _serve_options(args: argparse.Namespace) -> ServeOptions:
    host, port = args.listen
    return ServeOptions(
        host=host,
        port=port,
        url=args.url,
        state_dir=args.state,
        policy_file=args.policy,
        domain=args.domain,
        user=args.user,
        derp_port=args.derp_port,
        stun_port=args.stun_port,
    )


async def _ask(args: argparse.Namespace) -> object:
    command = f"{args.coordinator_command}.{args.action}"
    if command == "keys.create":
        return await admin.call(
            args.state,
            command,
            reusable=args.reusable,
            ephemeral=args.ephemeral,
            tags=args.tag,
            expiry=args.expiry,
            user=args.user,
        )
    if command == "nodes.approve":
        return await admin.call(args.state, command, login=args.login, user=args.user, ephemeral=args.ephemeral)
    if command == "policy.set":
        return await admin.call(args.state, command, text=_read_policy(args.file))
    members = {name: getattr(args, name) for name in ("id", "login", "node") if hasattr(args, name)}
    return await admin.call(args.state, command, **members)


def _print(args: argparse.Namespace, result: object) -> None:
    command = f"{args.coordinator_command}.{args.action}"
    if args.json:
        _out(msgspec.json.format(msgspec.json.encode(result)).decode())
    elif command == "keys.create":
        _out(str(result))
    elif command == "keys.list" and isinstance(result, list):
        _out(_table(("ID", "USER", "KIND", "TAGS", "USES", "EXPIRES"), [_key_row(entry) for entry in result]))
    elif command == "nodes.list" and isinstance(result, dict):
        _out(_table(("ID", "NAME", "ADDRESS", "USER", "STATE", "LAST SEEN"), [_node_row(n) for n in result["nodes"]]))
        for login in result["pending"]:
            _out(f"waiting: {login['hostname'] or '(no name)'}  approve with: nodes approve {login['id']}")
    elif command == "nodes.approve" and isinstance(result, dict):
        _out(f"{result['name']} is in")


def _key_row(key: dict[str, object]) -> tuple[str, ...]:
    words = [word for word in ("reusable", "ephemeral", "revoked") if key[word]]
    tags = key["tags"]
    tag_text = ",".join(tags) if isinstance(tags, list) else ""
    kind = ",".join(words) or "single-use"
    return str(key["id"]), str(key["user"]), kind, tag_text, str(key["uses"]), _when(key["expires_ns"])


def _node_row(node: dict[str, object]) -> tuple[str, ...]:
    addresses, tags = node["addresses"], node["tags"]
    address = str(addresses[0]) if isinstance(addresses, list) else ""
    owner = ",".join(tags) if isinstance(tags, list) and tags else str(node["user"])
    state = "expired" if node["expired"] else "online" if node["online"] else "offline"
    return str(node["id"]), str(node["name"]), address, owner, state, _when(node["last_seen_ns"])


def _when(wall_ns: object) -> str:
    if not isinstance(wall_ns, int) or not wall_ns:
        return "never"
    return datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows))
    return "\n".join(lines)

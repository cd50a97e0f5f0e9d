"""The administrator's door: a Unix socket in the state directory, one JSON object per line each way.

Who may open the socket (mode 0600, in a directory of mode 0700) may do everything; there is no other authentication.
"""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import anyio
import msgspec
from anyio.abc import Listener, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from tsnetpy.base.errors import ConfigError, StateError, TsnetError

from .compile import Json
from .embed import Coordinator

_log = logging.getLogger(__name__)

SOCKET_NAME: Final = "admin.sock"
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
TIMEOUT_S: Final = 30.0

T = TypeVar("T")


class _Arguments:
    """The members of a request, checked as they are taken."""

    def __init__(self, members: Json) -> None:
        self._members = members

    def get(self, name: str, kind: type[T], default: T) -> T:
        value = self._members.get(name, default)
        if not isinstance(value, kind):
            raise ConfigError(f"{name!r} must be a {kind.__name__}")
        return value

    def need(self, name: str) -> str:
        value = self.get(name, str, "")
        if not value:
            raise ConfigError(f"{name!r} is missing")
        return value

    def strings(self, name: str) -> list[str]:
        values = self.get(name, list, [])
        if not all(isinstance(value, str) for value in values):
            raise ConfigError(f"{name!r} must be a list of strings")
        return [str(value) for value in values]

    def seconds(self, name: str, default: float | None) -> float | None:
        value = self._members.get(name, default)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{name!r} must be a number or null")
        return float(value)


def _create_key(box: Coordinator, given: _Arguments) -> object:
    return box.create_auth_key(
        reusable=given.get("reusable", bool, False),
        ephemeral=given.get("ephemeral", bool, False),
        tags=given.strings("tags"),
        expiry=given.seconds("expiry", 24 * 3600.0),
        user=given.get("user", str, ""),
    )


def _list_keys(box: Coordinator, given: _Arguments) -> object:
    users = {user.id: user.login for user in box.users()}
    return [
        {
            "id": key.id,
            "user": users[key.user_id],
            "reusable": key.reusable,
            "ephemeral": key.ephemeral,
            "tags": key.tags,
            "uses": key.uses,
            "revoked": key.revoked,
            "expires_ns": key.expires_ns,
            "created_ns": key.created_ns,
        }
        for key in box.auth_keys()
    ]


def _list_nodes(box: Coordinator, given: _Arguments) -> object:
    return {
        "nodes": [dataclasses.asdict(node) for node in box.nodes()],
        "pending": [dataclasses.asdict(login) for login in box.pending_logins()],
    }


def _approve(box: Coordinator, given: _Arguments) -> object:
    node = box.approve(
        given.need("login"), user=given.get("user", str, ""), ephemeral=given.get("ephemeral", bool, False)
    )
    return dataclasses.asdict(node)


_COMMANDS: Final[dict[str, Callable[[Coordinator, _Arguments], object]]] = {
    "keys.create": _create_key,
    "keys.list": _list_keys,
    "keys.revoke": lambda box, given: box.revoke_auth_key(given.need("id")),
    "nodes.list": _list_nodes,
    "nodes.approve": _approve,
    "nodes.reject": lambda box, given: box.reject(given.need("login")),
    "nodes.delete": lambda box, given: box.delete_node(given.need("node")),
    "nodes.expire": lambda box, given: box.expire_node(given.need("node")),
    "policy.set": lambda box, given: box.set_policy(given.need("text")),
}


def execute(box: Coordinator, line: bytes) -> bytes:
    """Carry out one request and return the answer, both without their newline."""
    answer: Json
    try:
        request = msgspec.json.decode(line)
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            raise ConfigError("no command")
        command = _COMMANDS.get(request["command"])
        if command is None:
            raise ConfigError(f"unknown command {request['command']!r}")
        answer = {"result": command(box, _Arguments(request))}
    except TsnetError as error:
        answer = {"error": str(error), "hint": error.hint}
    except msgspec.DecodeError:
        answer = {"error": "not JSON", "hint": ""}
    return msgspec.json.encode(answer)


async def listen(state_dir: Path) -> Listener[SocketStream]:
    """Return a listener on the socket in *state_dir*, for :func:`serve_admin`.

    Raises:
        StateError: the socket cannot be made there.
    """
    path = state_dir / SOCKET_NAME
    try:
        # Left over from a process that died; one that lives would hold the directory's lock.
        path.unlink(missing_ok=True)
        return await anyio.create_unix_listener(path, mode=0o600)
    except OSError as error:
        raise StateError(f"cannot make the socket {path}: {error.strerror or error}") from error


async def serve_admin(box: Coordinator, listener: Listener[SocketStream]) -> None:
    """Serve requests until cancelled."""

    async def handle(stream: SocketStream) -> None:
        async with stream:
            lines = BufferedByteReceiveStream(stream)
            try:
                with anyio.move_on_after(TIMEOUT_S):
                    line = await lines.receive_until(b"\n", MAX_LINE_BYTES)
                    await stream.send(execute(box, line) + b"\n")
            except (anyio.IncompleteRead, anyio.DelimiterNotFound, anyio.BrokenResourceError) as error:
                _log.debug("admin socket: %r", error)

    async with listener:
        await listener.serve(handle)


async def call(state_dir: Path, command: str, **members: object) -> object:
    """Ask the coordinator that runs on *state_dir*; return its result.

    Raises:
        ConfigError: none runs there, or it refuses.
    """
    path = state_dir / SOCKET_NAME
    try:
        async with await anyio.connect_unix(os.fspath(path)) as stream:
            await stream.send(msgspec.json.encode({"command": command, **members}) + b"\n")
            with anyio.fail_after(TIMEOUT_S):
                line = await BufferedByteReceiveStream(stream).receive_until(b"\n", MAX_LINE_BYTES)
    except (OSError, anyio.IncompleteRead) as error:
        raise ConfigError(
            f"no coordinator answers on {path}", hint=f"start one with: coordinator serve --state {state_dir}"
        ) from error
    answer = msgspec.json.decode(line)
    if "error" in answer:
        raise ConfigError(answer["error"], hint=answer.get("hint", ""))
    result: object = answer["result"]
    return result

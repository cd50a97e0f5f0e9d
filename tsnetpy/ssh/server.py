"""The SSH server of a node: accepts on the tailnet, decides by the netmap, and ends sessions that lose their right."""

import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

import anyio
import anyio.abc
from anyio.abc import ByteStream, SocketAttribute, TaskStatus

from tsnetpy.node.host import NodeHost
from tsnetpy.runtime import clock
from tsnetpy.runtime.threads import new_limiter, run_blocking

from ._paramiko import Connection
from .account import Account, own_account
from .hostkeys import HostKey, load_or_create
from .policy import Caller, Decision, evaluate

DEFAULT_PORT: Final = 22
MAX_CONNECTIONS: Final = 64
_CHUNK: Final = 256 * 1024

_log = logging.getLogger("tsnetpy.ssh")


@dataclass(frozen=True, slots=True, kw_only=True)
class SshConfig:
    """How the server runs."""

    port: int = DEFAULT_PORT
    """Tailnet port."""
    state_dir: str | os.PathLike[str] | None = None
    """Directory of the node's state, where the host keys live; ``None`` makes keys for this process alone."""
    host_keys: tuple[HostKey, ...] = ()
    """Host keys that were loaded already; empty loads them from *state_dir*."""
    max_connections: int = MAX_CONNECTIONS
    """Connections at one time; further ones are closed at once."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    """Where PATH, the locale, and for an unknown uid the account come from."""


class SshHost(NodeHost, Protocol):
    """A node that can also tell its peers about the server's host keys."""

    def advertise(self, *, ssh_host_keys: tuple[str, ...]) -> None:
        """Publish the public lines of the host keys; non-empty means that there is an SSH server."""
        ...


async def serve(
    node: SshHost, config: SshConfig | None = None, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Serve SSH on the tailnet until cancelled.

    Exec, shell under a PTY, and SFTP, all as this process's own user. Who may enter is decided by the SSH policy in the
    netmap at each login, and again for everybody whenever the policy changes; without a policy nobody may.

    Args:
        node: a running node.
        config: how; by default port 22 with host keys for this process alone.
        task_status: started once the port is open.

    Raises:
        StateError: the host keys cannot be read or written.
    """
    config = config or SshConfig()
    keys = config.host_keys or await run_blocking(load_or_create, config.state_dir)
    server = _Server(node, config, keys, own_account(config.environ))
    listener = await node.create_tcp_listener(config.port)
    # Peers put these lines into their known_hosts, and take them as the sign that SSH is on.
    node.advertise(ssh_host_keys=tuple(key.public_line for key in keys))
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(server.watch_policy)
        task_status.started()
        await listener.serve(server.handle)


class _Server:
    def __init__(self, node: NodeHost, config: SshConfig, keys: tuple[HostKey, ...], account: Account) -> None:
        self._node = node
        self._config = config
        self._keys = keys
        self._account = account
        self._connections: set[Connection] = set()
        # One thread waits on each connection; the workers of the rest of the program stay free.
        self._limiter = new_limiter(config.max_connections)

    async def handle(self, stream: ByteStream) -> None:
        """Serve one connection."""
        async with stream:
            peer = _address(stream.extra(SocketAttribute.remote_address))
            local = _address(stream.extra(SocketAttribute.local_address))
            if len(self._connections) >= self._config.max_connections:
                _log.warning("SSH connection from %s closed: %d are open", peer[0], len(self._connections))
                return
            ours, theirs = socket.socketpair()
            with ours:
                ours.setblocking(False)
                connection = Connection(
                    theirs,
                    self._keys,
                    self._account,
                    lambda user: self._decide(peer[0], user),
                    peer,
                    local,
                    dict(self._config.environ),
                )
                self._connections.add(connection)
                try:
                    await self._run(stream, ours, connection)
                finally:
                    self._connections.discard(connection)

    async def _run(self, stream: ByteStream, ours: socket.socket, connection: Connection) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_to_engine, stream, ours)
            tasks.start_soon(_wait_for_end, connection, self._limiter)
            try:
                await _from_engine(ours, stream)
            finally:
                tasks.cancel_scope.cancel()
                # Ends the engine's threads and, with SIGHUP, the programs; quick, but it must not block the loop.
                with anyio.CancelScope(shield=True):
                    await run_blocking(connection.close)

    def _decide(self, ip: str, user: str) -> Decision:
        """Ask the netmap of this moment. Runs in the engine's thread and reads immutable values only."""
        netmap = self._node.netmap.value
        who = self._node.whois(ip)
        if netmap is None or who is None:
            return Decision(accept=False, message="tailscale: unknown peer\n")
        now = datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)
        return evaluate(netmap.ssh_policy, Caller(ip=ip, node=who.node, user=who.user), user, now)

    async def watch_policy(self) -> None:
        """After each change of the netmap, end every connection that the policy no longer permits."""
        seen = None
        async for netmap in self._node.netmap.changes():
            policy = netmap.ssh_policy if netmap is not None else None
            if policy == seen:
                continue
            seen = policy
            for connection in list(self._connections):
                if not connection.still_permitted():
                    await run_blocking(connection.revoke)


async def _to_engine(stream: ByteStream, ours: socket.socket) -> None:
    with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        while True:
            view = memoryview(await stream.receive(_CHUNK))
            while view:
                try:
                    view = view[ours.send(view) :]
                except BlockingIOError:
                    await anyio.wait_writable(ours)
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_WR)


async def _from_engine(ours: socket.socket, stream: ByteStream) -> None:
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        while True:
            try:
                data = ours.recv(_CHUNK)
            except BlockingIOError:
                await anyio.wait_readable(ours)
                continue
            if not data:
                return
            await stream.send(data)


async def _wait_for_end(connection: Connection, limiter: anyio.CapacityLimiter) -> None:
    await run_blocking(connection.run, abandon=True, limiter=limiter)


def _address(value: str | tuple[str, int]) -> tuple[str, int]:
    return (value, 0) if isinstance(value, str) else (value[0], value[1])

"""Coordination servers that speak garbage: a typed error with a hint in time, and a later recovery."""

import anyio
import pytest

from tests.loopback.evil import BAD_FRAMES, EvilServer, EvilServerInMemory, evil_server
from tsnetpy.base.errors import AuthError, ControlError, TsnetError
from tsnetpy.control import ControlState
from tsnetpy.control.dial import Connect, connect_tcp
from tsnetpy.node.node import Node
from tsnetpy.runtime.underlay import PathUnderlay
from tsnetpy.testing.clock import virtual_backend
from tsnetpy.testing.internet import Internet

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

MODES = [
    "tcp hangs up",
    *(
        f"http {what}"
        for what in ("silent", "no http", "500", "redirect", "page", "cut", "endless head", "endless body")
    ),
    *(f"key {what}" for what in ("zero", "other", "low order", "number")),
    *(f"switch {what}" for what in ("404", "websocket", "garbage", "wrong answer", "hangs up")),
    *(f"noise {what}" for what in ("garbage", "hangs up")),
    *(f"register {what}" for what in ("500", "cut", "null", "binary", "types", "huge")),
    *(f"map {what}" for what in ("500", *BAD_FRAMES)),
]


async def join(
    server: EvilServer, seconds: float, *, connect: Connect = connect_tcp, underlay: PathUnderlay | None = None
) -> TsnetError | None:
    """Try to join; return why that failed."""
    try:
        with anyio.fail_after(seconds + 4):
            async with Node(
                "victim",
                control_url=server.url,
                auth_key="tskey-secret",
                timeout=seconds,
                connect=connect,
                underlay=underlay,
            ):
                return None
    except TsnetError as error:
        return error


@pytest.mark.parametrize("anyio_backend", [virtual_backend(name) for name in ("asyncio", "trio")])
async def test_garbage_is_a_typed_error_with_a_hint() -> None:
    """All modes side by side, since each waits for its time to be up; virtual time, or the load would use it up."""
    failures: dict[str, TsnetError | None] = {}

    async def attempt(mode: str) -> None:
        async with anyio.create_task_group() as servers:
            server = EvilServerInMemory(servers)
            server.mode = mode
            failures[mode] = await join(server, 2.0, connect=server.connect, underlay=Internet().underlay())
            servers.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for mode in MODES:
            group.start_soon(attempt, mode)
    assert failures.keys() == set(MODES)
    for mode, error in failures.items():
        assert isinstance(error, ControlError), (mode, error)
        assert error.hint, mode
        assert "within 2 s: " in str(error) or mode == "http silent", (mode, str(error))
        assert "tskey-secret" not in str(error) + error.hint
        assert len(str(error)) < 500, mode


async def test_a_login_url_that_runs_code_is_refused() -> None:
    async with evil_server() as server:
        server.mode = "register script"
        error = await join(server, 30)
        assert isinstance(error, AuthError)
        assert "not https" in str(error)


@pytest.mark.parametrize("mode", ["http 500", "switch garbage", "register cut", "map types"])
async def test_the_node_gets_in_once_the_server_is_sane(mode: str) -> None:
    async with evil_server() as server, anyio.create_task_group() as group:
        server.mode = mode

        async def repent() -> None:
            await anyio.sleep(0.1)
            server.mode = "good"

        group.start_soon(repent)
        assert await join(server, 30) is None


@pytest.mark.parametrize("what", [name for name in BAD_FRAMES if name != "end"])
async def test_a_running_node_survives_a_bad_map(what: str) -> None:
    with anyio.fail_after(60):
        async with evil_server() as server, Node("victim", control_url=server.url, auth_key="k", timeout=30) as node:
            addresses = node.addresses
            await server.streams[-1].send(BAD_FRAMES[what])
            while len(server.streams) < 2:
                assert node.addresses == addresses, "the network map stays while the server is mad"
                await anyio.sleep(0.01)
            while node.status().control.state is not ControlState.RUNNING:  # noqa: ASYNC110 - polled as users do
                await anyio.sleep(0.01)
            assert node.status().backend_state == "Running"


async def test_leaving_during_a_registration_gives_the_key_back() -> None:
    """The server may let a node in after that has given up; it must not wait for a node that is gone."""
    async with evil_server() as server:
        server.hold = hold = anyio.Event()

        async def answer_late() -> None:
            while not server.registers:  # noqa: ASYNC110 - the list is no event
                await anyio.sleep(0.01)
            scope.cancel()
            await anyio.sleep(0.1)
            hold.set()

        async with anyio.create_task_group() as group:
            group.start_soon(answer_late)
            with anyio.CancelScope() as scope:
                await join(server, 30)
        first, *_, last = server.registers
        assert last.is_logout(2 * 10**18)
        assert last.node_key == first.node_key

"""The control client against a server in memory."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from tests.control.kit import ACCEPT, Keys, Server, make_client, self_node
from tsnetpy.base.addr import parse_endpoint
from tsnetpy.base.errors import AuthError, ControlError
from tsnetpy.base.keys import NodePrivate, NodePublic
from tsnetpy.control import ControlClient, ControlState
from tsnetpy.control.client import WATCHDOG_SECONDS
from tsnetpy.crypto import dh
from tsnetpy.tailcfg import (
    EndpointType,
    Hostinfo,
    MapResponse,
    NetInfo,
    NetMap,
    Node,
    PingRequest,
    RegisterRequest,
    RegisterResponse,
)
from tsnetpy.tailcfg.mapping import ControlDialPlan, ControlIPCandidate, Debug

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def a_server() -> AsyncIterator[Server]:
    async with anyio.create_task_group() as group:
        server = Server(group)
        yield server
        group.cancel_scope.cancel()


@asynccontextmanager
async def running(client: ControlClient) -> AsyncIterator[NetMap]:
    """*client* running, with its first map."""
    async with anyio.create_task_group() as group:
        await group.start(client.run)
        with anyio.fail_after(1000):
            netmap = await client.netmap.wait_for(lambda value: value is not None)
        assert netmap is not None
        yield netmap
        group.cancel_scope.cancel()


async def state(client: ControlClient, wanted: ControlState) -> None:
    with anyio.fail_after(10_000):
        await client.status.wait_for(lambda status: status.state is wanted)


async def test_join_with_an_auth_key() -> None:
    async with a_server() as server:
        keys = Keys()
        client = make_client(server, save_keys=keys.save)
        async with running(client) as netmap:
            assert netmap.self_node.name == "n.lab.test."
            await state(client, ControlState.RUNNING)
            (request,) = server.registers
            assert request.auth is not None
            assert request.auth.auth_key == "tskey-secret"
            assert client.node_key is not None
            assert keys == [(client.node_key, NodePublic.zero())]
            assert request.node_key == NodePublic(dh.public_key(client.node_key.raw))
            assert server.polls[0].node_key == request.node_key
            assert server.polls[0].compress == "zstd"
            assert not server.polls[0].disco_key.is_zero
            assert client.user_login == "alice"
        assert server.dials == [("127.0.0.1", 8080)] * 2, "a private plain server has no TLS port"


async def test_a_refusal_is_raised_at_once_with_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with a_server() as server:
        server.register = lambda request: RegisterResponse(error="authkey already used")
        client = make_client(server)
        with anyio.fail_after(1), pytest.raises(AuthError, match="already used") as caught:
            await client.run()
        assert "reusable" in caught.value.hint
        assert len(server.registers) == 1
        assert client.status.value.state is ControlState.REFUSED
        assert "tskey-secret" not in caplog.text + str(caught.value) + repr(client.status.value)


async def test_the_configuration_does_not_print_secrets() -> None:
    async with a_server() as server:
        client = make_client(server)
        assert "tskey-secret" not in repr(client._config)
        assert client._config.machine_key.raw.hex() not in repr(client._config)


async def test_an_unreachable_server_is_tried_again_and_says_so() -> None:
    async with a_server() as server:
        server.down = True
        client = make_client(server)
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            with anyio.fail_after(1000):
                status = await client.status.wait_for(lambda status: status.attempts >= 20)
            assert status.state is ControlState.CONNECTING
            assert "Connection refused" in status.message
            assert status.hint
            server.down = False
            await state(client, ControlState.RUNNING)
            assert client.status.value.message == ""
            group.cancel_scope.cancel()


async def test_a_server_restart_is_seamless() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client) as before:
            await server.cut()
            await state(client, ControlState.CONNECTING)
            assert client.netmap.value is before, "the map stays while the server is away"
            await state(client, ControlState.RUNNING)
            await server.wait_until(lambda: len(server.polls) == 2)
            assert len(server.registers) == 1, "the node is still registered"
            assert server.polls[1].node_key == server.polls[0].node_key


async def test_a_reinstalled_server_is_asked_for_its_key_again() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client):
            server.private = dh.generate(client._entropy)
            await server.cut()
            await server.wait_until(lambda: len(server.polls) == 2)


async def test_a_silent_stream_is_given_up() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client):
            started = anyio.current_time()
            for _ in range(3):  # keep-alives hold it up
                await anyio.sleep(60)
                await server.say(MapResponse(keep_alive=True))
            assert len(server.polls) == 1
            await server.wait_until(lambda: len(server.polls) == 2)
            assert 180 + WATCHDOG_SECONDS <= anyio.current_time() - started < 180 + WATCHDOG_SECONDS + 2


async def test_deltas_reach_the_map() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client):
            version = client.netmap.version
            await server.say(MapResponse(peers_changed=(Node(id=2, name="p.lab.test."),)))
            netmap = await client.netmap.wait_change(version)
            assert netmap is not None
            assert list(netmap.peers) == [2]
            version = client.netmap.version
            await server.say(MapResponse(keep_alive=True))
            await server.say(MapResponse(peers_removed=(2,)))
            netmap = await client.netmap.wait_change(version)
            assert netmap is not None
            assert netmap.peers == {}
            assert client.netmap.version == version + 1, "a keep-alive is no change"


async def test_reports_are_sent_when_something_changed() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client):
            await server.wait_until(lambda: len(server.reports) == 1)
            assert server.reports[0].omit_peers
            assert not server.reports[0].stream
            endpoint = parse_endpoint("192.0.2.1:41641")
            client.update_endpoints([(endpoint, EndpointType.STUN)])
            client.update_netinfo(NetInfo(preferred_derp=900))
            await server.wait_until(lambda: len(server.reports) == 2)
            report = server.reports[1]
            assert report.endpoints == ("192.0.2.1:41641",)
            assert report.endpoint_types == (2,)
            assert report.hostinfo == Hostinfo(hostname="n", net_info=NetInfo(preferred_derp=900))
            client.update_endpoints([(endpoint, EndpointType.STUN)])
            client.update_netinfo(NetInfo(preferred_derp=900))
            await anyio.sleep(60)
            assert len(server.reports) == 2, "each report makes every peer work"
            await server.cut()
            await server.wait_until(lambda: len(server.polls) == 2)
            await anyio.sleep(10)
            assert len(server.reports) == 2, "a new stream alone is no reason for a report"
            assert server.polls[1].endpoints == ("192.0.2.1:41641",)


async def test_a_deleted_node_registers_again() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client):
            server.status_of_map = 404
            server.register = lambda request: ACCEPT if request.auth else RegisterResponse(auth_url="http://x/login")
            client.update_netinfo(NetInfo(preferred_derp=1))  # the open stream says nothing; a report hears of it
            await server.wait_until(lambda: len(server.registers) >= 3)
            server.status_of_map = 200
            await server.wait_until(lambda: len(server.polls) >= 2)
            first, second, third = server.registers[:3]
            assert second.auth is None, "the stored key is tried alone"
            assert third.auth is not None
            assert first.node_key == second.node_key == third.node_key
            await state(client, ControlState.RUNNING)


async def test_an_expired_key_is_rotated() -> None:
    async with a_server() as server:
        keys = Keys()
        client = make_client(server, save_keys=keys.save)
        async with running(client) as netmap:
            node = msgspec.structs.replace(netmap.self_node, expired=True, machine_authorized=False)
            await server.say(MapResponse(node=node))
            await server.wait_until(lambda: len(server.polls) == 2)
            old, new = server.registers
            assert new.node_key != old.node_key
            assert new.old_node_key == old.node_key
            assert new.auth is not None
            assert len(keys) == 2
            assert keys[1][1] == old.node_key
            await state(client, ControlState.RUNNING)


async def test_a_stored_key_that_the_server_calls_expired_is_rotated() -> None:
    stored = NodePrivate(bytes([5]) * 32)

    def register(request: RegisterRequest) -> RegisterResponse:
        expired = request.node_key == NodePublic(dh.public_key(stored.raw))
        return RegisterResponse(node_key_expired=True) if expired else ACCEPT

    async with a_server() as server:
        server.register = register
        client = make_client(server, node_key=stored)
        async with running(client):
            assert [request.auth is not None for request in server.registers] == [False, True]
            assert server.registers[1].old_node_key == server.registers[0].node_key


async def test_an_interactive_login_survives_a_lost_connection() -> None:
    async with a_server() as server:
        release = False

        def register(request: RegisterRequest) -> RegisterResponse:
            return ACCEPT if release and request.followup else RegisterResponse(auth_url="http://127.0.0.1:8080/r/1")

        server.register = register
        client = make_client(server, auth_key="")
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await state(client, ControlState.NEEDS_LOGIN)
            assert client.status.value.auth_url == "http://127.0.0.1:8080/r/1"
            await server.cut()
            await state(client, ControlState.CONNECTING)
            await state(client, ControlState.NEEDS_LOGIN)
            release = True
            await state(client, ControlState.RUNNING)
            assert len({request.node_key for request in server.registers}) == 1, "the person is approving this key"
            group.cancel_scope.cancel()


async def test_a_machine_that_needs_approval() -> None:
    async with a_server() as server:
        server.first_map = lambda request: MapResponse(node=self_node(request, machine_authorized=False))
        client = make_client(server)
        async with running(client) as netmap:
            await state(client, ControlState.NEEDS_MACHINE_AUTH)
            await server.say(MapResponse(node=msgspec.structs.replace(netmap.self_node, machine_authorized=True)))
            await state(client, ControlState.RUNNING)


async def test_pings_are_answered() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client):
            await server.say(MapResponse(ping_request=PingRequest(url="http://127.0.0.1:8080/pong?id=1")))
            await server.wait_until(lambda: "HEAD /pong?id=1 127.0.0.1:8080" in server.heads)
            await server.say(MapResponse(ping_request=PingRequest(url="https://x/noise?id=2", url_is_noise=True)))
            await server.wait_until(lambda: "HEAD /noise?id=2 noise " in server.heads)
            echo = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
            await server.say(MapResponse(ping_request=PingRequest(url="http://x/c2n", types="c2n", payload=echo)))
            await server.wait_until(lambda: any("200 OK" in head and head.endswith("hi") for head in server.heads))
            await server.say(
                MapResponse(ping_request=PingRequest(url="http://x/t", types="TSMP,ICMP", url_is_noise=True))
            )
            await server.wait_until(lambda: sum(head.startswith("POST /t ") for head in server.heads) == 2)
            assert len(server.polls) == 1


async def test_an_unreachable_ping_url_does_no_harm() -> None:
    async with a_server() as server:
        server.refused_ports = {81}
        client = make_client(server)
        async with running(client):
            for url in ("http://127.0.0.1:81/", "gopher://x/", "http://[", "nonsense"):
                await server.say(MapResponse(ping_request=PingRequest(url=url)))
            await server.say(MapResponse(peers_changed=(Node(id=2),)))
            await client.netmap.wait_for(lambda netmap: netmap is not None and 2 in netmap.peers)
            assert len(server.polls) == 1


async def test_logout_while_connected() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await state(client, ControlState.RUNNING)
            server.register = lambda request: RegisterResponse(node_key_expired=True)
            assert await client.logout()
            assert server.registers[-1].is_logout(2 * 10**18)
            assert server.registers[-1].node_key == server.registers[0].node_key
            await server.say(MapResponse(node=self_node(server.polls[0], expired=True)))
            await server.cut()
            # run() ends by itself: an expired key must not log in again after this
        assert client.status.value.state is ControlState.LOGGED_OUT
        assert len(server.registers) == 2


async def test_logout_after_the_run_ended() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client):
            pass
        assert await client.logout()
        assert server.registers[-1].is_logout(2 * 10**18)


async def test_logout_gives_up_in_time() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client):
            pass
        server.down = True
        assert not await client.logout()
        assert not await make_client(server).logout(), "nothing to give back"

        async def hang(host: str, port: int) -> anyio.abc.ByteStream:
            await anyio.sleep_forever()
            raise AssertionError

        client._config = type(client._config)(
            server_url="http://127.0.0.1",
            machine_key=client._config.machine_key,
            hostinfo=Hostinfo(),
            node_key=client.node_key,
            connect=hang,
        )
        client._server_key = None
        started = anyio.current_time()
        assert not await client.logout()
        assert anyio.current_time() - started <= 5.1


async def test_requests_over_the_same_connection() -> None:
    async with a_server() as server:
        client = make_client(server)
        with pytest.raises(ControlError):
            await client.request("GET", "/machine/ssh/action/1/to/2")
        async with running(client):
            assert await client.request("GET", "/machine/ssh/action/1/to/2?x=y") == (200, b"answer")
            assert server.heads == ["GET /machine/ssh/action/1/to/2?x=y noise "]


async def test_too_many_requests_waits_as_told() -> None:
    async with a_server() as server:
        server.register_status = 429
        server.register_headers = [("Retry-After", "17")]
        client = make_client(server)
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await server.wait_until(lambda: len(server.registers) == 1)
            started = anyio.current_time()
            server.register_status = 200
            await state(client, ControlState.RUNNING)
            assert 17 <= anyio.current_time() - started < 18
            group.cancel_scope.cancel()


async def test_other_statuses_are_tried_again() -> None:
    async with a_server() as server:
        server.register_status = 503
        client = make_client(server)
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await server.wait_until(lambda: len(server.registers) == 3)
            assert "503" in client.status.value.message
            server.register_status = 200
            server.status_of_map = 500
            await server.wait_until(lambda: len(server.polls) == 2)
            server.status_of_map = 200
            await state(client, ControlState.RUNNING)
            group.cancel_scope.cancel()


async def test_a_broken_first_message_is_tried_again() -> None:
    async with a_server() as server:
        server.first_map = lambda request: MapResponse(domain="no node in it")
        client = make_client(server)
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await server.wait_until(lambda: len(server.polls) == 2)
            server.first_map = lambda request: MapResponse(node=self_node(request))
            await state(client, ControlState.RUNNING)
            group.cancel_scope.cancel()


async def test_the_dial_plan_outlives_the_stream() -> None:
    async with a_server() as server:
        plan = ControlDialPlan(candidates=(ControlIPCandidate(ip="10.9.9.9", dial_start_delay_sec=0.1),))
        client = make_client(server)
        async with running(client):
            await server.say(MapResponse(control_dial_plan=plan, debug=Debug(sleep_seconds=1)))
            await server.say(MapResponse(peers_changed=(Node(id=2),)))
            await client.netmap.wait_for(lambda netmap: netmap is not None and 2 in netmap.peers)
            server.dials.clear()
            await server.cut()
            await server.wait_until(lambda: len(server.polls) == 2)
            assert server.dials == [("10.9.9.9", 8080)]


async def test_logout_over_a_new_connection_when_the_open_one_has_just_ended() -> None:
    async with a_server() as server:
        client = make_client(server)
        async with running(client):
            connected = client._http
        client._http = connected  # as for somebody who logs out while run() is being cancelled
        assert await client.logout()
        assert server.registers[-1].is_logout(2 * 10**18)

"""Whole nodes with a coordinator in one process, over sockets on 127.0.0.1."""

import errno
import json
import logging
import os
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Unpack

import anyio
import pytest
from anyio.abc import SocketAttribute
from dnslib import DNSRecord

from tests.loopback.kit import StopWatch
from tsnetpy import AuthError, ConfigError, ControlError, DialError, Node, StateError, TcpStream, TsnetAttribute
from tsnetpy.base.addr import format_ip
from tsnetpy.coordinator.embed import Coordinator
from tsnetpy.node.config import NodeOptions
from tsnetpy.node.state import MemoryStore

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]


@asynccontextmanager
async def tailnet(*names: str, policy: str | None = None, **options: Unpack[NodeOptions]) -> AsyncIterator[list[Node]]:
    """Run a coordinator and nodes that all know each other."""
    async with AsyncExitStack() as stack:
        box = await stack.enter_async_context(Coordinator(policy=policy))
        key = box.create_auth_key(reusable=True)
        options = {"control_url": box.url, "auth_key": key, **options}
        nodes = [await stack.enter_async_context(Node(name, **options)) for name in names]
        for node in nodes:
            with anyio.fail_after(30):
                await node.netmap.wait_for(lambda m: m is not None and len(m.peers) == len(names) - 1)
        yield nodes


async def echo(stream: TcpStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send(chunk)


async def test_join_dial_by_name_and_be_known() -> None:
    with anyio.fail_after(60):
        async with tailnet("alpha", "beta") as (alpha, beta):
            assert beta.name.startswith("beta.")
            listener = await beta.create_tcp_listener(7)
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, echo)
                for host in ("beta", beta.name, beta.name + ".", *(format_ip(ip) for ip in beta.addresses)):
                    async with await alpha.connect_tcp(host, 7) as stream:
                        await stream.send(host.encode())
                        assert await stream.receive() == host.encode()
                        assert stream.extra(TsnetAttribute.peer).node.short_name == "beta"
                        assert stream.extra(SocketAttribute.remote_port) == 7
                group.cancel_scope.cancel()
            found = beta.whois(format_ip(alpha.addresses[0]))
            assert found is not None
            assert found.node.short_name == "alpha"
            assert found.login_name
            assert alpha.resolve("beta") == tuple(format_ip(ip) for ip in beta.addresses)


async def test_udp_ping_and_path() -> None:
    with anyio.fail_after(60):
        async with tailnet("alpha", "beta") as (alpha, beta):
            async with await beta.create_udp_socket(5353) as server, await alpha.create_udp_socket() as client:
                await client.sendto(b"ping", "beta", 5353)
                found = await server.receive_datagram()
                assert found.peer is not None
                assert (found.data, found.peer.node.short_name) == (b"ping", "alpha")
                await server.sendto(b"pong", *found.remote)
                assert (await client.receive())[0] == b"pong"
                async with await alpha.create_connected_udp_socket("beta", 5353) as connected:
                    await connected.send(b"again")
                    assert (await server.receive())[0] == b"again"
            assert (await alpha.ping("beta")).name == beta.name
            disco = await alpha.ping("beta", kind="disco")
            assert disco.via in ("direct", "derp")
            status = alpha.status()
            (peer,) = status.peers
            assert status.backend_state == "Running"
            assert peer.path is not None
            assert peer.path.tx_bytes > 0
            assert peer.handshake_age_s is not None
            assert status.accel in ("pure", "native")
            assert status.counters["tx_datagrams"] > 0


async def test_bulk_arrives_whole() -> None:
    data = bytes(range(256)) * 16384  # 4 MiB
    with anyio.fail_after(60):
        async with tailnet("alpha", "beta") as (alpha, beta):
            listener = await beta.create_tcp_listener(80)
            async with anyio.create_task_group() as group:

                async def send() -> None:
                    async with await alpha.connect_tcp("beta", 80) as stream:
                        await stream.send(data)

                group.start_soon(send)
                got = bytearray()
                async with await listener.accept() as stream:
                    async for chunk in stream:
                        got += chunk
            assert got == data


async def test_errors_of_dials() -> None:
    policy = json.dumps({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:1-99"]}]})
    with anyio.fail_after(60):
        async with tailnet("alpha", "beta", policy=policy, dial_timeout=2.0) as (alpha, beta):
            listener = await beta.create_tcp_listener(100)
            for host, port, number in (
                ("beta", 9, errno.ECONNREFUSED),
                ("beta", 100, errno.ECONNREFUSED),
                ("nobody", 80, errno.EHOSTUNREACH),
                ("8.8.8.8", 53, errno.ENETUNREACH),
            ):
                with pytest.raises(DialError) as caught:
                    await alpha.connect_tcp(host, port)
                assert caught.value.errno == number, (host, port)
            with pytest.raises(DialError) as caught:
                await beta.create_tcp_listener(100)
            assert caught.value.errno == errno.EADDRINUSE
            with pytest.raises(DialError) as caught:
                await beta.create_tcp_listener(80, host="8.8.8.8")
            assert caught.value.errno == errno.EADDRNOTAVAIL
            await listener.aclose()


async def test_magic_dns_inside_the_stack() -> None:
    with anyio.fail_after(60):
        async with tailnet("alpha", "beta") as (alpha, beta):
            query = DNSRecord.question(beta.name, "A").pack()
            async with await alpha.create_udp_socket() as socket:
                await socket.sendto(query, "100.100.100.100", 53)
                answer, _ = await socket.receive()
            assert str(DNSRecord.parse(answer).rr[0].rdata) == format_ip(beta.addresses[0])
            async with await alpha.connect_tcp("100.100.100.100", 53) as stream:
                await stream.send(struct.pack("!H", len(query)) + query)
                framed = await stream.receive()
            assert str(DNSRecord.parse(framed[2:]).rr[0].rdata) == format_ip(beta.addresses[0])


async def test_wrong_auth_key_is_told_at_once() -> None:
    async with Coordinator() as box:
        with anyio.fail_after(30), pytest.raises(AuthError) as caught:
            async with Node("alpha", control_url=box.url, auth_key="hskey-auth-wrong", timeout=30):
                pytest.fail("it must not run")
        assert caught.value.hint
        assert "wrong" not in str(caught.value)


async def test_unreachable_server_is_told_in_time() -> None:
    with anyio.fail_after(30), pytest.raises(ControlError) as caught:
        async with Node("alpha", control_url="http://127.0.0.1:9", timeout=0.5):
            pytest.fail("it must not run")
    assert "http://127.0.0.1:9" in str(caught.value)
    assert caught.value.hint


async def test_login_url_is_reported_and_the_time_a_person_takes_does_not_count() -> None:
    shown = anyio.Event()
    urls: list[str] = []

    def show(url: str) -> None:
        urls.append(url)
        shown.set()

    async def approve(box: Coordinator) -> None:
        await shown.wait()
        await anyio.sleep(0.8)  # longer than the node's own patience
        box.approve(urls[0])

    with anyio.fail_after(60):
        async with Coordinator() as box, anyio.create_task_group() as group:
            group.start_soon(approve, box)
            async with Node("alpha", control_url=box.url, on_auth_url=show, timeout=0.7, login_timeout=10) as node:
                assert node.status().backend_state == "Running"
            assert len(urls) == 1


async def test_nobody_logs_in(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tsnetpy")
    async with Coordinator() as box:
        with anyio.fail_after(30), pytest.raises(AuthError) as caught:
            async with Node("alpha", control_url=box.url, timeout=0.5):
                pytest.fail("it must not run")
        assert box.url in caught.value.hint
        assert any(f"{box.url}/register/" in record.getMessage() for record in caplog.records)


async def test_state_directory_keeps_the_identity(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with Coordinator() as box:
            key = box.create_auth_key()
            async with Node("alpha", control_url=box.url, auth_key=key, state_dir=tmp_path) as node:
                first = node.addresses
                with pytest.raises(StateError, match="in use"):
                    async with Node("other", control_url=box.url, auth_key=key, state_dir=tmp_path):
                        pytest.fail("it must not run")
            # The key was for one use only; the state is what lets the node in again.
            async with Node("alpha", control_url=box.url, auth_key=key, state_dir=tmp_path) as node:
                assert node.addresses == first
            assert len(box.nodes()) == 1
            state = json.loads((tmp_path / "tailscaled.state").read_text())
            assert set(state) >= {"_machinekey", "_profiles", "_current-profile"}


async def test_closing_is_quick_delivers_and_removes_an_ephemeral_node() -> None:
    with anyio.fail_after(60):
        async with Coordinator() as box:
            key = box.create_auth_key(reusable=True)
            async with Node("beta", control_url=box.url, auth_key=key) as beta:
                listener = await beta.create_tcp_listener(80)
                async with Node("alpha", control_url=box.url, auth_key=key) as alpha:
                    await alpha.netmap.wait_for(lambda m: m is not None and m.peer_by_name("beta") is not None)
                    stream = await alpha.connect_tcp("beta", 80)
                    other = await listener.accept()
                    await stream.send(bytes(100_000))
                    waiting = await alpha.create_tcp_listener(1)
                    watch = StopWatch(os.getpid())
                assert watch.seconds() < 2.2
                got = 0
                async for chunk in other:
                    got += len(chunk)
                assert got == 100_000
                assert [node.name for node in box.nodes()] == ["beta"]
                with pytest.raises(anyio.ClosedResourceError):
                    await waiting.accept()
                assert not list(Path.cwd().glob("tailscaled.state*"))


async def test_logout_forgets_the_key() -> None:
    store = MemoryStore()
    with anyio.fail_after(60):
        async with Coordinator() as box:
            key = box.create_auth_key(reusable=True)
            async with Node("alpha", control_url=box.url, auth_key=key, ephemeral=False, store=store) as node:
                assert await node.logout()
            assert all(info.expired for info in box.nodes())


async def test_errors_of_the_body_pass_through_unwrapped() -> None:
    with anyio.fail_after(60):
        async with Coordinator() as box:
            with pytest.raises(KeyError):
                async with Node("alpha", control_url=box.url, auth_key=box.create_auth_key()):
                    raise KeyError("mine")


async def test_a_node_runs_once_and_only_inside_its_block() -> None:
    with anyio.fail_after(60):
        async with Coordinator() as box:
            node = Node("alpha", control_url=box.url, auth_key=box.create_auth_key(reusable=True))
            with pytest.raises(ConfigError):
                await node.connect_tcp("beta", 80)
            assert node.status().backend_state == "NoState"
            assert (node.name, node.addresses) == ("", ())
            async with node:
                pass
            with pytest.raises(ConfigError):
                async with node:
                    pass


async def test_policy_change_reaches_open_listeners() -> None:
    with anyio.fail_after(60):
        async with AsyncExitStack() as stack:
            box = await stack.enter_async_context(Coordinator())
            key = box.create_auth_key(reusable=True)
            alpha = await stack.enter_async_context(Node("alpha", control_url=box.url, auth_key=key, dial_timeout=1.0))
            beta = await stack.enter_async_context(Node("beta", control_url=box.url, auth_key=key))
            await alpha.netmap.wait_for(lambda m: m is not None and len(m.peers) == 1)
            listener = await beta.create_tcp_listener(80)
            await (await alpha.connect_tcp("beta", 80)).aclose()
            await (await listener.accept()).aclose()
            box.set_policy({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]})

            async def dial_until_refused() -> None:
                while True:  # the next map may be one that was on its way before the policy changed
                    await (await alpha.connect_tcp("beta", 80)).aclose()
                    await (await listener.accept()).aclose()

            with pytest.raises(DialError):
                await dial_until_refused()

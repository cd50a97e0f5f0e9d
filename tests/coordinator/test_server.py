"""The whole box over loopback sockets, against the protocol engines."""

from pathlib import Path

import anyio
import msgspec
import pytest

from tests.coordinator.wire import VERSION, WireNode, connect, fetch, host_port
from tsnetpy.base.errors import ConfigError, StateError
from tsnetpy.coordinator.compile import Json
from tsnetpy.coordinator.embed import Coordinator
from tsnetpy.coordinator.server import ServerTimes
from tsnetpy.runtime import http1

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]

FAST = ServerTimes(coalesce=0.01, keep_alive=30.0, offline_after=0.05, ephemeral_after=0.05)


def box(times: ServerTimes = FAST, **options: object) -> Coordinator:
    return Coordinator(derp_port=None, stun_port=None, times=times, **options)  # type: ignore[arg-type]  # forwarded


def entries(message: Json, name: str) -> list[Json]:
    found = message[name]
    assert isinstance(found, list)
    return found


async def test_a_node_joins_and_gets_a_full_map_at_once() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node:
        answer = await node.register(tailnet.create_auth_key())
        assert (answer["Error"], answer["MachineAuthorized"]) == ("", True)
        for compress in ("zstd", ""):
            async with node.maps(compress=compress) as maps:
                first = await maps.next()
            own = first["Node"]
            assert isinstance(own, dict)
            assert own["Addresses"] == ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]
            assert own["Online"] is True
        assert node.engine.early is not None
        assert node.engine.early.node_key_challenge.startswith("chalpub:")


async def test_peers_hear_of_each_other() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as one, connect(tailnet.url, 2) as two:
        key = tailnet.create_auth_key(reusable=True)
        await one.register(key)
        async with one.maps() as maps:
            assert "Peers" not in await maps.next()
            await two.register(key)
            async with two.maps() as other:
                [peer] = entries(await maps.until("PeersChanged"), "PeersChanged")
                assert (peer["Key"], peer["DiscoKey"], peer["Online"]) == (two.node_key, two.disco_key, True)
                [peer] = entries(await other.next(), "Peers")
                assert peer["Key"] == one.node_key
                hostinfo = {"Hostname": "wire-02", "NetInfo": {"PreferredDERP": 900}}
                assert await two.update(Endpoints=["192.0.2.1:1"], Hostinfo=hostinfo) == 200
                change = {"NodeID": 2, "Endpoints": ["192.0.2.1:1"], "DERPRegion": 900}
                message = await maps.next()
                patches = entries(message, "PeersChangedPatch") if "PeersChangedPatch" in message else []
                if not patches:  # the host name is news as well: the whole node
                    [peer] = entries(message, "PeersChanged")
                    assert (peer["Endpoints"], peer["HomeDERP"]) == (["192.0.2.1:1"], 900)
                    assert await two.update(Endpoints=["192.0.2.1:2"], Hostinfo=hostinfo) == 200
                    patches = entries(await maps.until("PeersChangedPatch"), "PeersChangedPatch")
                    change = {"NodeID": 2, "Endpoints": ["192.0.2.1:2"]}
                assert patches == [change]
            # offline is said once the node has been away for a moment
            [gone] = entries(await maps.until("PeersChangedPatch"), "PeersChangedPatch")
            assert gone["Online"] is False
            tailnet.delete_node("2")
            assert (await maps.until("PeersRemoved"))["PeersRemoved"] == [2]


async def test_policy_changes_reach_open_streams() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node:
        await node.register(tailnet.create_auth_key())
        async with node.maps() as maps:
            await maps.next()
            tailnet.set_policy('{"acls": [], /* nothing */}')
            assert (await maps.until("PacketFilters"))["PacketFilters"] == {"base": []}
            with pytest.raises(ConfigError):
                tailnet.set_policy({"acls": "nonsense"})
            tailnet.set_policy(None)
            filters = (await maps.until("PacketFilters"))["PacketFilters"]
            assert isinstance(filters, dict)
            assert len(filters["base"]) == 1


async def test_a_quiet_stream_is_kept_alive() -> None:
    times = ServerTimes(coalesce=0.01, keep_alive=0.05)
    async with box(times) as tailnet, connect(tailnet.url, 1) as node:
        await node.register(tailnet.create_auth_key())
        async with node.maps() as maps:
            await maps.next()
            assert [await maps.next() for _ in range(2)] == [{"KeepAlive": True}] * 2


async def test_a_deleted_node_loses_its_stream_and_gets_404() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node:
        await node.register(tailnet.create_auth_key())
        async with node.maps() as maps:
            await maps.next()
            tailnet.delete_node("wire-01")
            with pytest.raises(anyio.EndOfStream):
                await maps.next()
        assert await node.update() == 404


async def test_an_expired_node_is_told_so_on_its_open_stream() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node:
        await node.register(tailnet.create_auth_key())
        async with node.maps() as maps:
            await maps.next()
            tailnet.expire_node("100.64.0.1")
            own = (await maps.until("Node"))["Node"]
            assert isinstance(own, dict)
            assert own["Expired"] is True
        assert (await node.register())["NodeKeyExpired"] is True


async def test_a_newer_stream_replaces_the_older_one() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node:
        await node.register(tailnet.create_auth_key())
        async with node.maps() as old:
            await old.next()
            async with node.maps() as new:
                await new.next()
                with pytest.raises(anyio.EndOfStream):
                    await old.next()
                assert tailnet.nodes()[0].online


async def test_an_ephemeral_node_is_deleted_after_it_left() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node, connect(tailnet.url, 2) as watcher:
        await node.register(tailnet.create_auth_key(ephemeral=True))
        await watcher.register(tailnet.create_auth_key())
        async with watcher.maps() as maps:
            async with node.maps() as own:
                await own.next()
            assert (await maps.until("PeersRemoved"))["PeersRemoved"] == [1]


async def test_another_machine_cannot_use_a_node_key() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node, connect(tailnet.url, 2) as thief:
        await node.register(tailnet.create_auth_key())
        thief.node_key = node.node_key
        assert await thief.update(Endpoints=["192.0.2.66:1"]) == 404
        assert "different machine key" in str((await thief.register())["Error"])
        assert tailnet.nodes()[0].endpoints == ()


async def test_a_followup_is_answered_when_somebody_approves() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node:
        url = str((await node.register())["AuthURL"])
        page = await fetch(tailnet.url, "GET", "/register/" + url.rpartition("/")[2])
        assert b"wire-01" in page.body
        answers: list[Json] = []

        async def follow() -> None:
            answers.append(await node.register(Followup=url))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            assert not answers
            assert tailnet.approve(url, user="somebody@example.com").name == "wire-01"
        [answer] = answers
        login = answer["Login"]
        assert isinstance(login, dict)
        assert login["LoginName"] == "somebody@example.com"


async def test_the_login_page_escapes_and_takes_a_key() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node:
        answer = await node.register(Hostinfo={"Hostname": "<script>"})
        path = "/register/" + str(answer["AuthURL"]).rpartition("/")[2]
        assert b"<script>" not in (await fetch(tailnet.url, "GET", path)).body
        refused = await fetch(tailnet.url, "POST", path, b"key=tskey-auth-wrong")
        assert refused.status == 403
        assert tailnet.nodes() == []
        assert (await fetch(tailnet.url, "POST", path, b"key=" + tailnet.create_auth_key().encode())).status == 200
        assert len(tailnet.nodes()) == 1
        assert (await fetch(tailnet.url, "GET", path)).status == 404


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/key", 400),
        ("GET", "/key?v=117", 200),
        ("POST", "/key?v=117", 405),
        ("GET", "/generate_204", 204),
        ("POST", "/ts2021", 400),
        ("GET", "/register/none", 404),
        ("GET", "/nothing", 404),
        ("HEAD", "/", 200),
    ],
)
async def test_outside_noise(method: str, target: str, status: int) -> None:
    async with box() as tailnet:
        assert (await fetch(tailnet.url, method, target)).status == status


async def test_inside_noise_what_is_not_served_says_so() -> None:
    async with box() as tailnet, connect(tailnet.url, 1) as node:
        for path, status in (
            ("/machine/set-dns", 501),
            ("/machine/update-health", 204),
            ("/machine/tka/init/begin", 404),
        ):
            assert (await node.post(path, {}))[0] == status
        response, _ = await node.client.request("GET", "/machine/map")
        assert response.status == 405
        old, bad_key = {"Version": 10, "NodeKey": node.node_key}, {"Version": VERSION, "NodeKey": "nonsense"}
        for body in (msgspec.json.encode(old), msgspec.json.encode(bad_key), b"[]", b"{"):
            response, _ = await node.client.request("POST", "/machine/register", body=body)
            assert response.status == 400
        await works(tailnet, node)


async def works(tailnet: Coordinator, node: WireNode) -> None:
    assert (await node.register(tailnet.create_auth_key()))["Error"] == ""


async def test_a_handshake_for_another_server_is_refused_in_words() -> None:
    async with box() as first, box() as second, await anyio.connect_tcp(*host_port(second.url)) as stream:
        assert first.url != second.url
        answer = await http1.request(
            stream,
            "POST",
            "/ts2021",
            host="box",
            headers=[("Upgrade", "tailscale-control-protocol"), ("X-Tailscale-Handshake", "AHUBAGA=")],
        )
        assert answer.status == 400
        assert b"initiation" in answer.body


async def test_recorded_requests_of_an_official_client(request: pytest.FixtureRequest) -> None:
    data = request.path.parents[1] / "data" / "coordinator"

    def recorded(name: str) -> Json:
        body = msgspec.json.decode((data / f"official-{name}.json").read_bytes())["body"]
        assert isinstance(body, dict)
        return body

    async with box() as tailnet, connect(tailnet.url, 1) as node:
        register, logout = recorded("register"), recorded("logout")
        register["Auth"] = logout["Auth"] = {"AuthKey": tailnet.create_auth_key()}
        status, answer = await node.post("/machine/register", register)
        assert (status, msgspec.json.decode(answer)["MachineAuthorized"]) == (200, True)
        body = msgspec.json.encode(recorded("map-stream"))
        async with node.client.stream("POST", "/machine/map", body=body) as response:
            assert response.status == 200
            assert (await node.post("/machine/map", recorded("map-lite")))[0] == 200
            [info] = tailnet.nodes()
            assert info.endpoints == ("192.0.2.12:41999", "[2001:db8::12]:41999")
            assert (info.name, info.home_derp, info.online) == ("off", 900, True)
        status, answer = await node.post("/machine/register", logout)
        assert msgspec.json.decode(answer)["NodeKeyExpired"] is True
        assert tailnet.nodes()[0].expired


async def test_the_state_survives_a_restart(tmp_path: Path) -> None:
    async with box(state_dir=tmp_path) as tailnet, connect(tailnet.url, 1) as node:
        await node.register(tailnet.create_auth_key())
        with pytest.raises(StateError, match="in use"):
            box(state_dir=tmp_path)
    async with box(state_dir=tmp_path) as tailnet, connect(tailnet.url, 1) as node, node.maps() as maps:
        assert "Node" in await maps.next()  # no new registration needed


async def test_what_the_caller_raises_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with box():
            raise ZeroDivisionError
    with pytest.raises(ConfigError, match="cannot listen"):
        async with box(host="192.0.2.1"):
            pass
    for bad in ("ftp://x", "http://", "http://h/path", "http://h:99999"):
        with pytest.raises(ConfigError, match="no URL"):
            box(url=bad)
    with pytest.raises(ConfigError, match="needs a URL"):
        box(host="0.0.0.0")


async def test_garbage_on_the_port_harms_nobody() -> None:
    async with box() as tailnet:
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000):
            async with await anyio.connect_tcp(*host_port(tailnet.url)) as stream:
                try:
                    await stream.send(garbage)
                    await stream.send_eof()
                    while await stream.receive():
                        pass
                except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                    pass
        assert (await fetch(tailnet.url, "GET", "/")).status == 200

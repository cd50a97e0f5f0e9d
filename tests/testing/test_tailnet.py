"""A tailnet in one call."""

import anyio
import pytest

from tsnetpy.testing.tailnet import Tailnet

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]


async def test_nodes_find_each_other_as_users_and_tags() -> None:
    with anyio.fail_after(20):
        async with Tailnet() as tailnet:
            web = await tailnet.node("web", tags=("tag:web",))
            laptop = await tailnet.node("laptop", user="bob@example.com")
            listener = await web.create_tcp_listener(80)
            stream = await laptop.connect_tcp("web", 80)
            accepted = await listener.accept()
            assert accepted.peer is not None
            assert accepted.peer.login_name == "bob@example.com"
            assert stream.peer is not None
            assert (stream.peer.is_tagged, stream.peer.node.tags) == (True, ("tag:web",))


async def test_it_ends_with_its_block() -> None:
    tailnet = Tailnet()
    with pytest.raises(RuntimeError):
        await tailnet.node("early")
    async with tailnet:
        assert tailnet.coordinator.url
    with pytest.raises(RuntimeError):
        await tailnet.node("late")

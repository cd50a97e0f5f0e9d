"""An HTTP client on a whole node: names of the tailnet, and who answers."""

import anyio
import httpx
import pytest
from anyio.abc import TaskStatus

from tsnetpy.http import http_client
from tsnetpy.serve import run
from tsnetpy.serve.config import TextTarget, single_target
from tsnetpy.testing.tailnet import Tailnet

pytestmark = [pytest.mark.anyio, pytest.mark.loopback]


async def test_a_page_of_a_peer_by_name() -> None:
    with anyio.fail_after(60):
        async with Tailnet() as tailnet:
            web = await tailnet.node("web", tags=("tag:web",))
            laptop = await tailnet.node("laptop")

            async def serve(*, task_status: TaskStatus[list[str]]) -> None:
                await run(web, single_target(TextTarget("hello from the tailnet"), 80), task_status=task_status)

            async with anyio.create_task_group() as group, http_client(laptop) as client:
                (url,) = await group.start(serve)
                for address in (url, "http://web/"):
                    answer = await client.get(address)
                    assert answer.text == "hello from the tailnet"
                    peer = answer.extensions["network_stream"].get_extra_info("peer")
                    assert peer.node.tags == ("tag:web",)
                with pytest.raises(httpx.ConnectError, match="no such name"):
                    await client.get("http://example.com/")
                group.cancel_scope.cancel()

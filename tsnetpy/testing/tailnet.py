"""A whole tailnet in one process: a coordinator, and as many nodes as a test asks for, over loopback sockets.

::

    async with Tailnet() as tailnet:
        web, laptop = await tailnet.node("web"), await tailnet.node("laptop")
        stream = await laptop.connect_tcp("web", 80)
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Self, Unpack, final

import anyio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus

from tsnetpy.coordinator.embed import Coordinator
from tsnetpy.node.config import NodeOptions
from tsnetpy.node.node import Node

_KNOWN_SECONDS = 10.0


@final
class Tailnet(AsyncContextManagerMixin):
    """Runs a coordinator (with DERP and STUN) and nodes until the block ends.

    Args:
        policy: HuJSON text or a dict; ``None`` allows everything between nodes.
        domain: MagicDNS suffix.
    """

    def __init__(self, *, policy: str | Mapping[str, object] | None = None, domain: str = "tailnet.internal") -> None:
        self.coordinator = Coordinator(policy=policy, domain=domain)
        """For policies, auth keys, and what the server knows of nodes."""
        self._nodes: list[Node] = []
        self._group: TaskGroup | None = None
        self._end = anyio.Event()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        failure: Exception | None = None
        async with self.coordinator, anyio.create_task_group() as group:
            self._group = group
            self._end = anyio.Event()
            try:
                yield self
            except Exception as error:
                failure = error  # the test's own, to be raised as it is
            finally:
                self._group = None
                self._nodes.clear()
                self._end.set()
        if failure is not None:
            raise failure

    async def node(self, name: str, *, user: str = "", **options: Unpack[NodeOptions]) -> Node:
        """Add a node; return it once it runs and every earlier node of this tailnet that may see it does.

        It runs in a task of the tailnet, so nodes may be added anywhere, and end with the tailnet.

        Args:
            name: host name.
            user: whose device it is; by default the coordinator's own user.
            options: further settings; see ``NodeConfig``. With *tags* it is a tagged device instead of a user's.
        """
        if self._group is None:
            raise RuntimeError("use it inside `async with Tailnet() as tailnet:`")
        settings: NodeOptions = {
            "control_url": self.coordinator.url,
            "auth_key": self.coordinator.create_auth_key(user=user, tags=options.get("tags", ())),
            **options,
            "hostname": name,
        }
        node = Node(**settings)
        failure: Exception | None = await self._group.start(self._run, node)
        if failure is not None:
            raise failure
        await self._until_known(node)
        self._nodes.append(node)
        return node

    async def _run(self, node: Node, *, task_status: TaskStatus[Exception | None]) -> None:
        running = False
        try:
            async with node:
                running = True
                task_status.started(None)
                await self._end.wait()
        except Exception as error:
            if running:
                raise
            task_status.started(error)

    async def _until_known(self, node: Node) -> None:
        netmap = node.netmap.value
        if netmap is None:
            return
        own = netmap.self_node.key
        visible = {peer.key for peer in netmap.peers.values()}
        with anyio.fail_after(_KNOWN_SECONDS):
            for other in self._nodes:
                known = other.netmap.value
                if known is not None and known.self_node.key in visible:
                    await other.netmap.wait_for(lambda m: m is not None and m.peer_by_key(own.raw) is not None)

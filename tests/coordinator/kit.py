"""Helpers of the coordinator's tests: keys, requests, a tailnet in memory."""

from datetime import datetime

import msgspec

from tsnetpy.base.keys import DiscoPublic, MachinePublic, NodePublic
from tsnetpy.coordinator.compile import Json
from tsnetpy.coordinator.register import Registrar
from tsnetpy.coordinator.state import NodeRecord, Store
from tsnetpy.coordinator.tailnet import Pending, Tailnet
from tsnetpy.tailcfg.hostinfo import Hostinfo
from tsnetpy.tailcfg.mapping import MapRequest
from tsnetpy.tailcfg.register import RegisterAuth, RegisterRequest
from tsnetpy.tailcfg.times import GO_ZERO

T0 = 1_800_000_000 * 1_000_000_000
"""A wall clock time, nanoseconds."""


class CountingEntropy:
    """Different bytes at every call, the same in every run."""

    def __init__(self) -> None:
        self._count = 0

    def bytes(self, n: int) -> bytes:
        self._count += 1
        return (self._count.to_bytes(4, "big") * (n // 4 + 1))[:n]

    def u32(self) -> int:
        self._count += 1
        return self._count


def machine(number: int) -> MachinePublic:
    return MachinePublic(bytes([number]) * 32)


def node_key(number: int) -> NodePublic:
    return NodePublic(bytes([0xA0, number]) * 16)


class Box:
    """A tailnet in memory with its registrar and a clock."""

    def __init__(self, store: Store | None = None) -> None:
        self.tailnet = Tailnet(store or Store(None), CountingEntropy(), "box.test")
        self.registrar = Registrar(self.tailnet, "http://10.0.0.1:8080")
        self.now = T0

    def key(self, *, login: str = "me", lifetime_s: int = 3600, reusable: bool = False, **options: object) -> str:
        ephemeral = bool(options.get("ephemeral", False))
        tags = options.get("tags", ())
        assert isinstance(tags, tuple)
        return self.tailnet.create_auth_key(
            self.now,
            login=login,
            lifetime_ns=lifetime_s * 1_000_000_000,
            reusable=reusable,
            ephemeral=ephemeral,
            tags=tags,
        )

    def register(
        self,
        number: int,
        *,
        key: str = "",
        node: int | None = None,
        hostname: str = "host",
        followup: str = "",
        expiry: datetime = GO_ZERO,
        tags: tuple[str, ...] = (),
    ) -> Json | Pending:
        info = Hostinfo(hostname=hostname, os="linux", request_tags=tags)
        request = RegisterRequest(
            version=117,
            node_key=node_key(number if node is None else node),
            auth=RegisterAuth(auth_key=key) if key else None,
            hostinfo=info,
            followup=followup,
            expiry=expiry,
        )
        return self.registrar.register(machine(number), request, msgspec.to_builtins(info), self.now)

    def answer(self, number: int, **options: object) -> Json:
        answer = self.register(number, **options)  # type: ignore[arg-type]  # forwards keywords unchanged
        assert isinstance(answer, dict)
        return answer

    def join(self, number: int, *, login: str = "me", tags: tuple[str, ...] = (), hostname: str = "host") -> NodeRecord:
        """Register with a fresh key and report a disco key, so that peers see the node."""
        answer = self.answer(number, key=self.key(login=login, tags=tags), hostname=hostname)
        assert answer["Error"] == ""
        record = self.tailnet.node_by_key(node_key(number))
        assert record is not None
        self.poll(record, number, hostname=hostname)
        return record

    def poll(self, record: NodeRecord, number: int, *, hostname: str = "host", endpoints: tuple[str, ...] = ()) -> None:
        info = Hostinfo(hostname=hostname, os="linux")
        request = MapRequest(
            version=117,
            node_key=node_key(number),
            disco_key=DiscoPublic(bytes([number]) * 32),
            hostinfo=info,
            endpoints=endpoints,
            omit_peers=True,
        )
        self.tailnet.update_node(record, request, msgspec.to_builtins(info), self.now)

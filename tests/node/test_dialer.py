"""What a dial resolves to: inside the tailnet, or an error that says why not."""

import errno

import pytest

from tests.node.kit import netmap, node
from tsnetpy.base.addr import format_ip
from tsnetpy.base.errors import DialError
from tsnetpy.node.dialer import Dialer
from tsnetpy.tailcfg import DNSConfig

TAILNET = netmap(
    node(2, "b"),
    node(3, "six", addresses=("fd7a:115c:a1e0::3/128",)),
    node(4, "router", allowed_ips=("100.64.0.4/32", "10.1.0.0/16", "0.0.0.0/0")),
    dns_config=DNSConfig(domains=("tail.example",), proxied=True),
)


def dialer(*, accept_routes: bool = False) -> Dialer:
    made = Dialer(accept_routes=accept_routes)
    made.update(TAILNET)
    return made


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("b", "100.64.0.2"),
        ("b.tail.example.", "100.64.0.2"),
        ("100.64.0.2", "100.64.0.2"),
        ("::ffff:100.64.0.2", "100.64.0.2"),
        ("[fd7a:115c:a1e0::2]", "fd7a:115c:a1e0::2"),
        ("six", "fd7a:115c:a1e0::3"),
        ("self", "100.64.0.1"),
        ("100.100.100.100", "100.100.100.100"),
    ],
)
def test_reachable(host: str, address: str) -> None:
    assert format_ip(dialer().route(host)) == address


@pytest.mark.parametrize(
    ("host", "number"),
    [
        ("nobody", errno.EHOSTUNREACH),
        ("", errno.EHOSTUNREACH),
        ("example.com", errno.EHOSTUNREACH),
        ("8.8.8.8", errno.ENETUNREACH),
        ("100.64.0.99", errno.ENETUNREACH),
        ("10.1.2.3", errno.ENETUNREACH),
        ("127.0.0.1", errno.ENETUNREACH),
    ],
)
def test_not_on_the_tailnet(host: str, number: int) -> None:
    with pytest.raises(DialError) as caught:
        dialer().route(host)
    assert caught.value.errno == number
    assert caught.value.hint


def test_subnet_routes_on_request() -> None:
    assert format_ip(dialer(accept_routes=True).route("10.1.2.3")) == "10.1.2.3"


def test_before_the_first_network_map_nothing_is_reachable() -> None:
    with pytest.raises(DialError):
        Dialer().route("b")

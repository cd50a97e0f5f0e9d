"""Who is behind an address."""

import pytest

from tests.node.kit import netmap, node
from tsnetpy.node.whois import whois_address
from tsnetpy.tailcfg import CapGrant, FilterRule, NetMap

TAILNET = netmap(
    node(2, "laptop"),
    node(3, "web", tags=("tag:web",)),
    node(4, "router", allowed_ips=("100.64.0.4/32", "10.1.0.0/16", "0.0.0.0/0")),
    node(5, "orphan", user=99),
    packet_filter=(
        FilterRule(
            src_ips=("100.64.0.2",),
            cap_grant=(CapGrant(dsts=("100.64.0.1/32",), cap_map={"example.com/cap/admin": [{"role": "rw"}]}),),
        ),
    ),
)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("100.64.0.2", "laptop"),
        ("100.64.0.2:1234", "laptop"),
        ("fd7a:115c:a1e0::2", "laptop"),
        ("[fd7a:115c:a1e0::2]:80", "laptop"),
        ("::ffff:100.64.0.2", "laptop"),
        ("100.64.0.1", "self"),
        ("10.1.2.3", "router"),  # the routing node is what WireGuard authenticates
        ("8.8.8.8", None),
        ("100.64.0.77", None),
        ("laptop", None),
        ("", None),
    ],
)
def test_lookup(address: str, name: str | None) -> None:
    found = whois_address(TAILNET, address)
    assert (found.node.short_name if found is not None else None) == name


def test_user_and_capabilities() -> None:
    found = whois_address(TAILNET, "100.64.0.2")
    assert found is not None
    assert (found.login_name, found.display_name, found.profile_pic_url) == ("alice@example.com", "Alice", "p")
    assert found.cap_map == {"example.com/cap/admin": [{"role": "rw"}]}
    assert not found.is_tagged


def test_tags_replace_the_user() -> None:
    found = whois_address(TAILNET, "100.64.0.3")
    assert found is not None
    assert found.is_tagged
    assert (found.login_name, found.display_name, found.profile_pic_url, found.cap_map) == ("", "", "", {})


def test_unknown_owner_has_no_name() -> None:
    found = whois_address(TAILNET, "100.64.0.5")
    assert found is not None
    assert found.user is None
    assert found.login_name == ""


def test_before_the_first_network_map() -> None:
    nothing: NetMap | None = None
    assert whois_address(nothing, "100.64.0.2") is None

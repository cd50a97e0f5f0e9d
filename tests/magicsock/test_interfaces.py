"""What the host says about its own addresses."""

import pytest

from tsnetpy.base.addr import Endpoint
from tsnetpy.derp.regions import DerpNode
from tsnetpy.magicsock.dial import node_hosts, tls_name, tls_verify
from tsnetpy.magicsock.interfaces import interface_ips, source_ip
from tsnetpy.runtime.tls import PinnedCert


@pytest.mark.loopback
def test_addresses_are_raw_and_usable() -> None:
    found = interface_ips()
    assert all(len(ip) in (4, 16) for ip in found)
    assert len(set(found)) == len(found)
    loopback = source_ip(Endpoint(bytes((127, 0, 0, 1)), 9))
    assert loopback == bytes((127, 0, 0, 1))
    assert loopback in found


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "prefer6", "hosts"),
    [
        ("192.0.2.1", "2001:db8::1", False, ["192.0.2.1", "2001:db8::1"]),
        ("192.0.2.1", "2001:db8::1", True, ["2001:db8::1", "192.0.2.1"]),
        ("192.0.2.1", "none", True, ["192.0.2.1"]),
        ("", "", False, ["derp.test"]),
    ],
)
def test_derp_addresses_to_try(ipv4: str, ipv6: str, prefer6: bool, hosts: list[str]) -> None:
    node = DerpNode("1a", 1, "derp.test", ipv4=ipv4, ipv6=ipv6)
    assert list(node_hosts(node, prefer_ipv6=prefer6)) == hosts


def test_how_the_map_says_to_verify() -> None:
    pinned = DerpNode("1a", 1, "h", cert_name="sha256-raw:00ff")
    assert (tls_verify(pinned), tls_name(pinned)) == (PinnedCert("00ff"), None)
    renamed = DerpNode("1a", 1, "h", cert_name="other.test")
    assert (tls_verify(renamed), tls_name(renamed)) == ("system", "other.test")
    assert tls_verify(DerpNode("1a", 1, "h", insecure_for_tests=True)) == "none"

"""wg-quick files: what they mean, and what a wrong one is told, with the line."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wireguard.kit import KEYS, PSK, PUBLIC, b64
from tsnetpy.base.addr import parse_ip, parse_prefix
from tsnetpy.base.errors import ConfigError
from tsnetpy.wireguard import HostPort, load_quick, parse_quick

PRIVATE = b64(KEYS[0])
GOOD = f"""\
# a comment
[Interface]
PrivateKey = {PRIVATE}   # with a comment
Address = 10.9.0.1/24, fd00:9::1/64
address=10.9.0.9
ListenPort = 51820
MTU = 1380
DNS = 10.9.0.53, fd00:9::53, corp.example, Lab.Example.
PostUp = iptables -A FORWARD -i %i -j ACCEPT
PostUp = echo = done
Table = off

[Peer]
PublicKey = {b64(PUBLIC[1])}
PresharedKey = {b64(PSK)}
AllowedIPs = 10.9.0.2/32, 10.20.30.40/16
AllowedIPs = ::/0
Endpoint = vpn.example.com:51820
PersistentKeepalive = 25

[PEER]
publickey = {b64(PUBLIC[2])}
AllowedIPs =
Endpoint = [2001:db8::1]:7
PersistentKeepalive = off
"""


def test_a_whole_file() -> None:
    config = parse_quick(GOOD)
    assert config.private_key == KEYS[0]
    assert config.public_key == PUBLIC[0]
    assert config.addresses == tuple(map(parse_ip, ("10.9.0.1", "fd00:9::1", "10.9.0.9")))
    assert (config.listen_port, config.mtu) == (51820, 1380)
    assert config.dns_servers == (parse_ip("10.9.0.53"), parse_ip("fd00:9::53"))
    assert config.search_domains == ("corp.example", "lab.example")
    assert config.ignored == ("line 9: PostUp", "line 10: PostUp", "line 11: Table")
    first, second = config.peers
    assert (first.public_key, first.preshared_key) == (PUBLIC[1], PSK)
    assert first.allowed_ips == tuple(map(parse_prefix, ("10.9.0.2/32", "10.20.0.0/16", "::/0")))
    assert first.endpoint == HostPort("vpn.example.com", 51820)
    assert first.persistent_keepalive_s == 25
    assert (second.allowed_ips, second.preshared_key, second.persistent_keepalive_s) == ((), None, 0)
    assert str(second.endpoint) == "[2001:db8::1]:7"


def test_defaults_and_line_ends_of_other_systems() -> None:
    config = parse_quick(f"[Interface]\r\nPrivateKey={PRIVATE}\r\nAddress=10.9.0.1\r\n")
    assert (config.mtu, config.listen_port, config.peers, config.dns_servers) == (1420, 0, (), ())


def test_secrets_do_not_print() -> None:
    config = parse_quick(GOOD)
    shown = repr(config)
    assert repr(KEYS[0]) not in shown
    assert repr(PSK) not in shown


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("[Interface]", "[Interfaces]", 2, "unknown section"),
        ("[Interface]\n", "PrivateKey = x\n[Interface]\n", 2, "before the first section"),
        ("[Peer]", "[Interface]", 13, "first is on line 2"),
        (f"PrivateKey = {PRIVATE}", "", 2, "needs a PrivateKey"),
        (f"PrivateKey = {PRIVATE}", f"PrivateKey = {PRIVATE[:-1]}", 3, "44 characters"),
        (f"PrivateKey = {PRIVATE}", f"PrivateKey = {'A' * 43}=", 3, "zeros"),
        (f"PrivateKey = {PRIVATE}", f"PrivateKey {PRIVATE}", 3, "unknown setting"),
        ("ListenPort = 51820", f"PrivateKey {PRIVATE[:-1]}", 6, "neither a section nor a setting"),
        (f"PrivateKey = {PRIVATE}", f"PrivateKey = {PRIVATE}\nPrivateKey = {PRIVATE}", 4, "line 3 already"),
        (f"PrivateKey = {PRIVATE}", f"PresharedKey = {PRIVATE}", 3, "does not belong into [Interface]"),
        ("ListenPort = 51820", "ListenPort = 65536", 6, "0 to 65535"),
        ("ListenPort = 51820", "ListenPort = ", 6, "no value"),
        ("ListenPort = 51820", "ListenPorts = 1", 6, "unknown setting"),
        ("MTU = 1380", "MTU = 1279", 7, "1280 to 9000"),
        ("Address = 10.9.0.1/24,", "Address = 10.9.0.1/33,", 4, "not an IPv4 or IPv6 address"),
        ("Address = 10.9.0.1/24,", "Address = 10.9.0.1/24,,", 4, "not an IPv4 or IPv6 address"),
        ("Address = 10.9.0.1/24,", "Address = fe80::1%eth0,", 4, "zone"),
        ("DNS = 10.9.0.53,", "DNS = 10.9.0.53;", 8, "neither an address"),
        (f"PublicKey = {b64(PUBLIC[1])}", "", 13, "needs a PublicKey"),
        (f"PublicKey = {b64(PUBLIC[1])}", f"PublicKey = {b64(PUBLIC[2])}", 22, "line 14 already"),
        (f"PublicKey = {b64(PUBLIC[1])}", f"PublicKey = {b64(PUBLIC[0])}", 14, "our own"),
        (f"PresharedKey = {b64(PSK)}", "PresharedKey = secret!", 15, "44 characters"),
        ("10.9.0.2/32", "10.9.0.2-10.9.0.9", 16, "not an IPv4 or IPv6 address"),
        ("vpn.example.com:51820", "vpn.example.com", 18, "port is missing"),
        ("vpn.example.com:51820", "vpn.example.com:0", 18, "1 to 65535"),
        ("vpn.example.com:51820", "2001:db8::1:51820", 18, "brackets"),
        ("vpn.example.com:51820", "[vpn.example.com]:51820", 18, "no IPv6 address in the brackets"),
        ("vpn.example.com:51820", "1.2.3:51820", 18, "neither an address nor a name"),
        ("PersistentKeepalive = 25", "PersistentKeepalive = soon", 19, "not a number"),
    ],
)
def test_wrong_files(old: str, new: str, line: int, words: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse_quick(GOOD.replace(old, new, 1), "wg0.conf")
    assert str(caught.value).startswith(f"wg0.conf:{line}: ")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value) + caught.value.hint


def test_no_interface_at_all() -> None:
    with pytest.raises(ConfigError, match=r":1: there is no \[Interface\]"):
        parse_quick("")
    with pytest.raises(ConfigError, match=r":1: \[Interface\] needs an Address"):
        parse_quick(f"[Interface]\nPrivateKey = {PRIVATE}")


@given(st.integers(0, GOOD.count("\n") - 1), st.text(max_size=60), st.integers(0, 80))
def test_any_damage_is_told_without_repeating_it(line: int, text: str, at: int) -> None:
    lines = GOOD.split("\n")
    lines[line] = lines[line][:at] + text + lines[line][at:]
    try:
        parse_quick("\n".join(lines), "f")
    except ConfigError as error:
        message = f"{error} {error.hint}"
        assert message.startswith("f:")
        for secret in (PRIVATE[:12], b64(PSK)[:12]):
            assert secret not in message


def test_files(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "wg0.conf"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_quick(file) == parse_quick(GOOD)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        load_quick(file)
    file.write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(ConfigError, match="longer than"):
        load_quick(file)
    with pytest.raises(ConfigError, match="No such file"):
        load_quick(tmp_path / "none")

"""The pure parts: headers, routing, configuration, PROXY headers; and what the command line makes of its flags."""

import base64
import json
import pathlib
import posixpath
from email.header import decode_header, make_header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsnetpy.base.errors import ConfigError
from tsnetpy.serve import (
    AsgiTarget,
    DirectoryTarget,
    Mount,
    ProxyTarget,
    ServeConfig,
    Site,
    TcpPort,
    TextTarget,
    parse_serve_document,
    parse_target,
    single_target,
)
from tsnetpy.serve.__main__ import default_hostname, main, parser, serve_config
from tsnetpy.serve.headers import capability_header, encode_header_text, identity_headers
from tsnetpy.serve.router import Router, SiteTable, backend_target, clean_path, clean_query, split_target
from tsnetpy.serve.tcp_forward import proxy_header

DATA = pathlib.Path(__file__).parents[1] / "data/serve"


@given(st.text(max_size=120))
def test_any_text_survives_as_a_header(text: str) -> None:
    encoded = encode_header_text(text)
    assert all(32 <= byte < 127 for byte in encoded)
    if not encoded.startswith(b"=?"):
        assert encoded.decode() == text
        return
    assert all(len(word) <= 75 for word in encoded.split(b" "))
    assert str(make_header(decode_header(encoded.decode()))) == text


def test_text_that_was_no_utf8_is_left_out() -> None:
    assert encode_header_text("a\udc80") == b"=?utf-8?q?a?="


def test_a_tagged_caller_has_no_identity() -> None:
    assert identity_headers("", "name", "pic") == []


def test_capabilities_are_restricted_to_what_the_mount_accepts() -> None:
    granted: dict[str, list[object]] = {"a.b/c": [{"x": 1}], "a.b/d": [True]}
    assert capability_header(granted, ["a.b/c"]) == [(b"Tailscale-App-Capabilities", b'{"a.b/c":[{"x":1}]}')]
    assert capability_header(granted, ["a.b/none"]) == [(b"Tailscale-App-Capabilities", b"{}")]
    assert capability_header({}, ["a.b/c"]) == []
    assert capability_header(granted, []) == []


@given(st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"..."]), max_size=8))
def test_paths_are_cleaned_like_everywhere(parts: list[bytes]) -> None:
    path = b"/" + b"/".join(parts)
    assert clean_path(path) == posixpath.normpath(path).replace(b"//", b"/")


@given(st.binary(max_size=30))
def test_a_cleaned_query_is_stable(query: bytes) -> None:
    once = clean_query(query)
    assert clean_query(once) == once
    assert b";" not in once


@given(st.lists(st.sampled_from([b"/", b"a", b"..", b".", b"%2e", b"%2F", b"api", b"//", b"%61"]), max_size=8))
def test_a_route_never_leaves_its_mount(parts: list[bytes]) -> None:
    router = Router([Mount("/api/", TextTarget("api")), Mount("/", TextTarget("root"))])
    path = b"/" + b"".join(parts)
    route = router.route(path)
    assert route is None or route.prefix + route.rest == path
    if route is not None and route.mount.path == "/api/":
        assert path.startswith(b"/api")


def test_backend_targets_join_paths_and_queries() -> None:
    target = ProxyTarget("http", "h", 80, "/base", "k=1")
    assert backend_target(target, b"", None) == b"/base?k=1"
    assert backend_target(target, b"/x", b"a=2") == b"/base/x?k=1&a=2"
    assert backend_target(ProxyTarget("http", "h", 80), b"", b"") == b"/?"


def test_request_targets_are_split() -> None:
    assert split_target(b"http://h:1/p?q") == (b"/p", b"q", b"h:1")
    assert split_target(b"http://h?q") == (b"", None, b"h")
    assert split_target(b"/%zz") is None


def test_sites_are_found_by_bare_name_full_name_and_default() -> None:
    sites = [Site("web.lab.test", (Mount("/", TextTarget("web")),)), Site("*", (Mount("/", TextTarget("any")),))]

    def text(host: bytes, table: SiteTable) -> str | None:
        router = table.router(host)
        route = router.route(b"/") if router is not None else None
        target = route.mount.target if route is not None else None
        return target.text if isinstance(target, TextTarget) else None

    table = SiteTable(sites, "lab.test")
    for host in (b"web", b"WEB.lab.test.", b"web:8080", b"web.lab.test:1"):
        assert text(host, table) == "web"
    for host in (b"", b"100.64.0.1", b"[fd7a::1]:80", b"other", b"web.lab.test.evil.com"):
        assert text(host, table) == "any"
    assert SiteTable(sites[:1], "lab.test").router(b"other") is None


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("3000", ProxyTarget("http", "127.0.0.1", 3000)),
        ("db:80", ProxyTarget("http", "db", 80)),
        ("[::1]:80", ProxyTarget("http", "::1", 80)),
        ("https://h/p?q=1", ProxyTarget("https", "h", 443, "/p", "q=1")),
        ("https+insecure://h:1", ProxyTarget("https+insecure", "h", 1)),
        ("unix:/run/x.sock", ProxyTarget("unix", "/run/x.sock")),
        ("app.main:create.app", AsgiTarget("app.main:create.app")),
        ("text:hello", TextTarget("hello")),
    ],
)
def test_target_strings(text: str, target: object) -> None:
    assert parse_target(text) == target


def test_a_directory_is_a_target(tmp_path: pathlib.Path) -> None:
    assert parse_target(str(tmp_path)) == DirectoryTarget(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "0", "99999", "ftp://h", "http://", "http://u@h/", "./nowhere", "/nowhere", "unix:x", "host:0"],
)
def test_bad_targets_come_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_target(text)
    assert caught.value.hint


def test_the_recorded_document_but_for_what_is_refused() -> None:
    document = json.loads((DATA / "config.json").read_text("utf-8"))
    with pytest.raises(ConfigError, match="PROXY"):
        parse_serve_document(json.dumps(document))
    del document["TCP"]["9007"]
    config = parse_serve_document(json.dumps(document))
    ports = {port.port: port for port in config.ports}
    assert ports[9002] == TcpPort(9002, "127.0.0.1", 9100, None, 1)
    assert ports[9006] == TcpPort(9006, "/run/api.sock.tcp", 0)


@pytest.mark.parametrize(
    "document",
    [
        "[",
        "[]",
        '{"TCP": {"x": {}}}',
        '{"TCP": []}',
        '{"TCP": {"1": {"TCPForward": "nowhere"}}}',
        '{"Services": {"svc:a": {}}}',
        '{"TCP": {"80": {"HTTP": true}}, "Web": {"h:80": {"Handlers": {"x": {"Text": "t"}}}}}',
        '{"TCP": {"80": {"HTTP": true}}, "Web": {"h:80": {"Handlers": {"/": {"Proxy": "gopher://x"}}}}}',
    ],
)
def test_documents_that_cannot_be_served(document: str) -> None:
    with pytest.raises(ConfigError):
        parse_serve_document(document)


def test_a_port_has_one_role() -> None:
    with pytest.raises(ConfigError, match="twice"):
        ServeConfig((*single_target(TextTarget("a"), 80).ports, TcpPort(80, "h", 1)))


def test_proxy_headers_are_those_of_the_recording() -> None:
    assert (
        proxy_header(1, ("100.64.0.3", 57628), "100.64.0.1", 9100) == b"PROXY TCP4 100.64.0.3 100.64.0.1 57628 9100\r\n"
    )
    v6 = proxy_header(1, ("fd7a:115c:a1e0::3", 47176), "fd7a:115c:a1e0::1", 9100)
    assert v6 == b"PROXY TCP6 fd7a:115c:a1e0::3 fd7a:115c:a1e0::1 47176 9100\r\n"
    recorded = base64.b64decode("DQoNCgANClFVSVQKIREADGRAAANkQAABsUQjjEJZRQo=")
    assert proxy_header(2, ("100.64.0.3", 0xB144), "100.64.0.1", 9100) == recorded[:28]
    recorded = base64.b64decode("DQoNCgANClFVSVQKISEAJP16EVyh4AAAAAAAAAAAAAP9ehFcoeAAAAAAAAAAAAAB68wjjGhpCg==")
    assert proxy_header(2, ("fd7a:115c:a1e0::3", 0xEBCC), "fd7a:115c:a1e0::1", 9100) == recorded[:52]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["3000", "--cert", "x"],
        ["3000", "--config", "x"],
        ["--config", "/nowhere.json"],
        ["3000", "--proxy-protocol", "1"],
        ["3000", "--port", "70000"],
        ["unix:/x", "--tcp"],
        ["3000", "--tag", "web"],
        ["3000", "--login-server", "ftp://x"],
    ],
)
def test_bad_flags_end_with_2_and_a_message(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_bad_flags_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense", "--json"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["exit_code"] == 2


def test_flags_make_configurations(tmp_path: pathlib.Path) -> None:
    def made(*flags: str) -> ServeConfig:
        return serve_config(parser().parse_args(flags))

    assert made("3000") == single_target(ProxyTarget("http", "127.0.0.1", 3000), 80)
    assert made("3000", "--https").ports[0].port == 443
    assert made("--tcp", "db:5432").ports == (TcpPort(5432, "db", 5432),)
    assert made("--tcp", "db:5432", "--port", "1", "--proxy-protocol", "2").ports == (TcpPort(1, "db", 5432, None, 2),)
    (tmp_path / "My Site").mkdir()
    assert default_hostname(made(str(tmp_path / "My Site"))) == "my-site"
    assert default_hostname(made("pkg.web:app")) == "web"
    assert default_hostname(made("3000")) == ""

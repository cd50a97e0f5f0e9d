"""The register state machine, against recorded answers and by table."""

import pytest

from tests.tailcfg.kit import load, raw
from tsnetpy.base.keys import NodePrivate, NodePublic
from tsnetpy.crypto import dh
from tsnetpy.tailcfg import Hostinfo, RegisterRequest, RegisterResponse, decode, encode
from tsnetpy.ts2021.login import (
    LoggedIn,
    LoginMachine,
    LoginResult,
    NeedsLogin,
    Refused,
    SendAgain,
    WaitAndSend,
    hint_for,
    logout_request,
)


class CountingEntropy:
    """Different bytes at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def bytes(self, n: int) -> bytes:
        self.calls += 1
        return bytes([self.calls]) * n

    def u32(self) -> int:
        return 0


STORED = NodePrivate(bytes([99]) * 32)


def machine(
    *, auth_key: str = "", stored: bool = False, plain_http: bool = True, force_new_key: bool = False
) -> LoginMachine:
    return LoginMachine(
        version=117,
        node_private=STORED if stored else None,
        old_node_public=NodePublic.zero(),
        auth_key=auth_key,
        hostinfo=Hostinfo(hostname="n"),
        ephemeral=False,
        entropy=CountingEntropy(),
        plain_http=plain_http,
        force_new_key=force_new_key,
    )


def recorded(name: str) -> RegisterResponse:
    return decode(raw(load(name)["response"]), RegisterResponse)


OK = RegisterResponse(machine_authorized=True)
EXPIRED = RegisterResponse(node_key_expired=True)


def link(url: str) -> RegisterResponse:
    return RegisterResponse(auth_url=url)


def test_first_login_with_an_auth_key() -> None:
    login = machine(auth_key="key")
    request = login.request()
    assert request.auth is not None
    assert request.auth.auth_key == "key"
    assert request.node_key == login.node_public
    assert request.old_node_key.is_zero
    assert not request.is_logout(10**19), "the zero expiry is no logout"
    result = login.receive(recorded("register-authkey"))
    assert isinstance(result, LoggedIn)
    assert result.login.login_name == "lab"
    assert result.machine_authorized


def test_a_restart_needs_no_auth_key() -> None:
    login = machine(auth_key="spent", stored=True)
    assert login.request().auth is None
    assert login.request().node_key == NodePublic(dh.public_key(STORED.raw))
    assert isinstance(login.receive(recorded("register-restart")), LoggedIn)


def test_a_restart_of_a_deleted_node_uses_the_auth_key() -> None:
    login = machine(auth_key="key", stored=True)
    assert login.receive(recorded("register-interactive")) == SendAgain(new_key=False)
    assert login.request().auth is not None
    assert login.request().followup == ""
    assert isinstance(login.receive(OK), LoggedIn)


@pytest.mark.parametrize(
    ("recording", "hint"),
    [("register-bad-key", "unknown"), ("register-used-key", "reusable")],
)
def test_a_refusal_ends_it_with_advice(recording: str, hint: str) -> None:
    result = machine(auth_key="key").receive(recorded(recording))
    assert isinstance(result, Refused)
    assert hint in result.hint


def test_an_expired_key_is_replaced_and_remembered() -> None:
    login = machine(stored=True, auth_key="key")
    assert login.receive(recorded("register-after-logout")) == SendAgain(new_key=True)
    request = login.request()
    assert request.node_key != NodePublic(dh.public_key(STORED.raw))
    assert request.old_node_key == NodePublic(dh.public_key(STORED.raw))
    assert request.auth is not None
    assert isinstance(login.receive(OK), LoggedIn)
    assert login.old_node_public == request.old_node_key


def test_an_expired_first_key_has_no_successor_to_name() -> None:
    login = machine()
    before = login.request().node_key
    assert login.receive(EXPIRED) == SendAgain(new_key=True)
    assert login.request().node_key != before
    assert login.request().old_node_key.is_zero


def test_a_server_that_expires_every_key_is_left() -> None:
    login = machine(stored=True)
    results = [login.receive(EXPIRED) for _ in range(3)]
    assert isinstance(results[-1], Refused)


def test_a_known_expired_key_is_not_offered() -> None:
    login = machine(stored=True, auth_key="key", force_new_key=True)
    assert login.request().node_key != NodePublic(dh.public_key(STORED.raw))
    assert login.request().old_node_key == NodePublic(dh.public_key(STORED.raw))
    assert login.request().auth is not None


def test_an_interactive_login() -> None:
    login = machine()
    first = recorded("register-interactive")
    assert login.receive(first) == NeedsLogin(first.auth_url)
    followup = login.request()
    assert followup.followup == first.auth_url
    assert followup.node_key == login.node_public
    rejected = recorded("register-followup-rejected")
    assert login.receive(rejected) == NeedsLogin(rejected.auth_url)
    assert login.receive(rejected) == WaitAndSend("the login is still open")
    assert login.request().followup == rejected.auth_url
    assert isinstance(login.receive(recorded("register-followup")), LoggedIn)


def test_a_forgotten_login_url_starts_over() -> None:
    login = machine()
    login.receive(link("https://x/1"))
    gone = RegisterResponse(error="unknown login")
    assert isinstance(login.receive(gone), WaitAndSend)
    assert login.request().followup == ""
    assert isinstance(login.receive(gone), Refused)


@pytest.mark.parametrize(
    ("url", "plain_http", "result"),
    [
        ("https://a/b", False, NeedsLogin),
        ("https://a/b", True, NeedsLogin),
        ("http://a/b", True, NeedsLogin),
        ("http://a/b", False, Refused),
        ("javascript:alert(1)", True, Refused),
        ("file:///etc/passwd", True, Refused),
    ],
)
def test_which_login_urls_are_shown(url: str, plain_http: bool, result: type[LoginResult]) -> None:
    assert isinstance(machine(plain_http=plain_http).receive(link(url)), result)


def test_tailnet_lock_is_refused_with_words() -> None:
    result = machine(auth_key="k").receive(RegisterResponse(node_key_signature=b"x"))
    assert isinstance(result, Refused)
    assert "locked" in result.reason


def test_other_statuses() -> None:
    recording = load("register-old-version")
    assert isinstance(machine().receive_status(recording["status"], recording["response"]), Refused)
    for status in (400, 401, 404, 500, 503):
        assert isinstance(machine().receive_status(status, "x"), WaitAndSend)


def test_the_logout_request_is_the_recorded_one() -> None:
    sent = decode(raw(load("register-logout")["request"]), RegisterRequest)
    made = logout_request(
        sent.version, sent.node_key, sent.old_node_key, Hostinfo(hostname="logout-unix123", os="linux")
    )
    assert made == sent
    assert made.is_logout(10**18)
    assert b'"Expiry":"1970-01-01T00:02:03Z"' in encode(made)
    assert decode(raw(load("official-logout")["body"]), RegisterRequest).is_logout(10**18), "although it carries Auth"


@pytest.mark.parametrize(
    "error",
    [
        "invalid pre auth key",
        "authkey already used",
        "authkey expired",
        "requested tags [tag:x] are invalid or not permitted",
        "node exists with a different machine key",
        "node key already in use by another machine",
        "extending key is not allowed",
        "something new",
    ],
)
def test_every_refusal_has_a_hint(error: str) -> None:
    assert hint_for(error)


def test_the_auth_key_does_not_print() -> None:
    login = machine(auth_key="tskey-secret")
    assert "secret" not in repr(login)
    assert "secret" not in repr(login.request())

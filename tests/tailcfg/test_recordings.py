"""Every message that real peers sent decodes, and what we would send back says the same."""

import json
from typing import Any

import msgspec
import pytest

from tests.tailcfg.kit import load, names, raw
from tsnetpy.tailcfg import MapRequest, MapResponse, RegisterRequest, RegisterResponse, SSHAction, decode, encode
from tsnetpy.tailcfg.register import ServerKeys

ZERO_KEY = "nodekey:" + "0" * 64
ZERO_TIME = "0001-01-01T00:00:00Z"


def pieces(name: str) -> list[tuple[type[msgspec.Struct], Any]]:
    """The messages in recording *name* with their types."""
    data = load(name)
    if "-map-request" in name:
        return [(MapRequest, data)]
    if "-official-map" in name:
        return [(MapRequest, data["body"])]
    if "-official-" in name:
        return [(RegisterRequest, data["body"])]
    if "-map-" in name:
        return [(MapResponse, data)]
    if "-ssh-action-" in name:
        return [(SSHAction, data["response"])]
    if name == "01-key":
        return [(ServerKeys, data["response"])]
    answer = [(RegisterResponse, data["response"])] if data["status"] == 200 else []
    return [(RegisterRequest, data["request"]), *answer]


def meaning(value: Any) -> Any:
    """*value* without what Go reads as "not set", and with times cut to the millisecond."""
    if isinstance(value, dict):
        cleaned = {name: meaning(item) for name, item in value.items()}
        return {n: v for n, v in cleaned.items() if v is not None and v not in ("", ZERO_KEY, ZERO_TIME)}
    if isinstance(value, list):
        return [meaning(item) for item in value]
    if isinstance(value, str) and value.startswith("20") and value.endswith("Z") and "." in value:
        return value[:23]
    return value


@pytest.mark.parametrize("name", names())
def test_recording_survives_the_round_trip(name: str) -> None:
    for kind, sent in pieces(name):
        again = json.loads(encode(decode(raw(sent), kind)))
        assert meaning(again) == meaning(sent)


@pytest.mark.parametrize("name", names())
def test_names_may_come_in_any_case(name: str) -> None:
    # Go's decoder does not care about case, and tailscale-rs relies on it.
    for kind, sent in pieces(name):
        if name == "21-map-first":
            continue  # "node" is a name of its own inside SSH principals
        fields = {name.lower(): item for name, item in sent.items()}
        if "node" in fields:
            fields["Node"] = fields.pop("node")
        assert decode(raw(fields), kind) == decode(raw(sent), kind)


def test_a_register_answer_is_sent_whole() -> None:
    # tailscale-rs decodes strictly and wants every member.
    expected = set(load("register-bad-key")["response"])
    assert set(json.loads(encode(RegisterResponse()))) == expected
    assert json.loads(encode(RegisterResponse()))["User"].keys() >= {"ID", "DisplayName"}


def test_a_register_request_always_says_its_zero_expiry() -> None:
    assert json.loads(encode(RegisterRequest()))["Expiry"] == ZERO_TIME

"""SSH policy: the table of field rules, one row a case."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tsnetpy.ssh.policy import Caller, evaluate
from tsnetpy.tailcfg.codec import decode
from tsnetpy.tailcfg.node import Node, UserProfile
from tsnetpy.tailcfg.ssh import SSHPolicy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ACCEPT = {"accept": True}


def caller() -> Caller:
    return Caller(ip="100.64.0.3", node=Node(stable_id="n1"), user=UserProfile(id=7, login_name="alice@example.com"))


def rule(principal: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"principals": [{"any": True} if principal is None else principal], "sshUsers": {"*": "="}} | fields


def policy(*rules: dict[str, Any]) -> SSHPolicy:
    return decode(json.dumps({"rules": rules}).encode(), SSHPolicy)


@pytest.mark.parametrize(
    ("principal", "matches"),
    [
        ({"any": True}, True),
        ({"node": "n1"}, True),
        ({"node": "n2"}, False),
        ({"nodeIP": "100.64.0.3"}, True),
        ({"nodeIP": "100.64.0.4"}, False),
        ({"nodeIP": "no address"}, False),
        ({"userLogin": "alice@example.com"}, True),
        ({"userLogin": "bob@example.com"}, False),
        ({}, False),
        ({"node": "n2", "userLogin": "alice@example.com"}, True),
    ],
)
def test_any_field_of_a_principal_admits(principal: dict[str, Any], matches: bool) -> None:
    assert evaluate(policy(rule(principal, action=ACCEPT)), caller(), "bob", NOW).accept is matches


@pytest.mark.parametrize(
    ("users", "requested", "local"),
    [
        ({"*": "="}, "bob", "bob"),
        ({"*": "="}, "root", ""),
        ({"*": "=", "root": "root"}, "root", "root"),
        ({"*": "=", "root": ""}, "root", ""),
        ({"bob": "robert"}, "bob", "robert"),
        ({"bob": "robert"}, "eve", ""),
        ({"bob": "", "*": "="}, "bob", ""),
        ({}, "bob", ""),
    ],
)
def test_user_mapping(users: dict[str, str], requested: str, local: str) -> None:
    decision = evaluate(policy(rule(sshUsers=users, action=ACCEPT)), caller(), requested, NOW)
    assert (decision.accept, decision.local_user) == (bool(local), local)


def test_nobody_without_a_policy_or_rules() -> None:
    assert not evaluate(None, caller(), "bob", NOW).accept
    assert not evaluate(policy(), caller(), "bob", NOW).accept
    assert evaluate(policy(), caller(), "bob", NOW).message.endswith("to SSH to this node\n")


def test_the_first_matching_rule_decides() -> None:
    reject = rule(action={"reject": True, "message": "closed\n"})
    accept = rule(action=ACCEPT)
    assert evaluate(policy(reject, accept), caller(), "bob", NOW).message == "closed\n"
    assert evaluate(policy(accept, reject), caller(), "bob", NOW).accept


def test_expired_rules_and_rules_without_action_are_passed_over() -> None:
    expired = rule(ruleExpires="2025-01-01T00:00:00Z", action=ACCEPT)
    assert not evaluate(policy(expired, rule()), caller(), "bob", NOW).accept
    assert evaluate(policy(rule(ruleExpires="2027-01-01T00:00:00Z", action=ACCEPT)), caller(), "bob", NOW).accept


def test_a_known_peer_with_the_wrong_user_is_told_so() -> None:
    rules = policy(rule(sshUsers={"bob": "bob"}, action=ACCEPT))
    assert 'as user "eve"' in evaluate(rules, caller(), "eve", NOW).message


def test_check_mode_is_refused_and_says_why() -> None:
    decision = evaluate(policy(rule(action={"holdAndDelegate": "http://x/"})), caller(), "bob", NOW)
    assert not decision.accept
    assert "check" in decision.message

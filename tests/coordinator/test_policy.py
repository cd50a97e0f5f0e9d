"""The policy file: what is read, what is refused, and what each device gets out of it."""

import pytest

from tsnetpy.base.addr import parse_ip
from tsnetpy.base.errors import ConfigError
from tsnetpy.coordinator import hujson
from tsnetpy.coordinator.compile import TAILNET_RANGES, CompiledPolicy, Subject
from tsnetpy.coordinator.policy import ALLOW_ALL, Policy, parse


def subject(number: int, login: str = "me", tags: tuple[str, ...] = ()) -> Subject:
    addresses = (parse_ip(f"100.64.0.{number}"), parse_ip(f"fd7a:115c:a1e0::{number:x}"))
    return Subject(number, login, frozenset(tags), addresses)


ALICE, ALICE_2 = subject(1, "alice"), subject(2, "alice")
BOB = subject(3, "bob@example.com")
WEB = subject(4, "alice", ("tag:web",))
DB = subject(5, "bob@example.com", ("tag:db",))
EVERYBODY = [ALICE, ALICE_2, BOB, WEB, DB]


def compiled(document: dict[str, object]) -> CompiledPolicy:
    owners = {"tag:web": ["alice@"], "tag:db": ["bob@example.com"]}
    return CompiledPolicy(parse({"tagOwners": owners, **document}), EVERYBODY)


def ports(first: int, last: int | None = None) -> dict[str, int]:
    return {"First": first, "Last": first if last is None else last}


# -- syntax ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2,], /* c */ "b": "//x", }', {"a": [1, 2], "b": "//x"}),
        ('// first\n{"a": "x,]" , // last\n}', {"a": "x,]"}),
        ('{"a": "\\"/*", "b": [ /* , */ ]}', {"a": '"/*', "b": []}),
        ("[[1,],/**/]", [[1]]),
    ],
)
def test_hujson_reads_comments_and_trailing_commas(text: str, value: object) -> None:
    assert hujson.decode(text) == value


@pytest.mark.parametrize("text", ["[,]", "[1,,]", "{,}", "[1 /* open ]", "", "{'a': 1}"])
def test_hujson_refuses_what_is_not_hujson(text: str) -> None:
    with pytest.raises(ConfigError):
        hujson.decode(text)


def test_hujson_error_names_line_and_column_of_the_file() -> None:
    with pytest.raises(ConfigError, match=r"line 3, column 4"):
        hujson.decode('{ // comment with ünicode\n  "a": 1,\n   x\n}')


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"acl": []},
        {"autoApprovers": {}},
        {"tests": []},
        {"acls": [{"action": "deny", "src": ["*"], "dst": ["*:*"]}]},
        {"acls": [{"action": "accept", "src": ["*"], "dst": ["*"]}]},
        {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:80-22"]}]},
        {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:70000"]}]},
        {"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "users": ["x"]}]},
        {"acls": [{"action": "accept", "src": ["group:none"], "dst": ["*:*"]}]},
        {"acls": [{"action": "accept", "src": ["tag:none"], "dst": ["*:*"]}]},
        {"acls": [{"action": "accept", "src": ["nohost"], "dst": ["*:*"]}]},
        {"acls": [{"action": "accept", "src": ["autogroup:self"], "dst": ["*:*"]}]},
        {"acls": [{"action": "accept", "src": ["10.0.0.1/8"], "dst": ["*:*"]}]},
        {"acls": [{"action": "accept", "src": ["*"], "dst": ["autogroup:internet:*"]}]},
        {"acls": [{"action": "accept", "proto": "icmp", "src": ["*"], "dst": ["*:22"]}]},
        {"acls": [{"action": "accept", "proto": "carrier-pigeon", "src": ["*"], "dst": ["*:*"]}]},
        {"grants": [{"src": ["*"], "dst": ["*"]}]},
        {"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], "via": ["tag:web"]}]},
        {"groups": {"group:a": ["group:b"]}},
        {"groups": {"a": ["x@"]}},
        {"hosts": {"h": "nowhere"}},
        {"tagOwners": {"web": []}},
        {"ssh": [{"action": "check", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}]},
        {"ssh": [{"action": "accept", "src": ["*"], "dst": ["autogroup:self"], "users": ["root"]}]},
        {"nodeAttrs": [{"target": ["*"], "attr": ["funnel"]}]},
        {"acls": {}},
    ],
)
def test_what_cannot_be_carried_out_is_an_error(document: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"policy|tag"):
        parse(document)


# -- packet filter -----------------------------------------------------------------------------------------------


def test_without_acls_and_grants_everything_is_allowed() -> None:
    for policy in (ALLOW_ALL, parse("{}"), parse({"ssh": []})):
        rules = CompiledPolicy(policy, EVERYBODY).filter_rules(1)
        assert rules == [{"SrcIPs": list(TAILNET_RANGES), "DstPorts": [{"IP": "*", "Ports": ports(0, 65535)}]}]


@pytest.mark.parametrize("section", ["acls", "grants"])
def test_an_empty_section_denies_everything(section: str) -> None:
    policy = compiled({section: []})
    assert policy.filter_rules(1) == []
    assert policy.visible_peers(1) == set()


def test_an_acl_reaches_only_the_filters_of_its_destinations() -> None:
    policy = compiled({"acls": [{"action": "accept", "proto": "tcp", "src": ["alice@"], "dst": ["tag:web:80,443"]}]})
    [rule] = policy.filter_rules(4)
    assert rule == {
        # the tagged device was registered by alice, but a tag replaces the user
        "SrcIPs": ["100.64.0.1", "100.64.0.2", "fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"],
        "DstPorts": [
            {"IP": "100.64.0.4", "Ports": ports(80)},
            {"IP": "100.64.0.4", "Ports": ports(443)},
            {"IP": "fd7a:115c:a1e0::4", "Ports": ports(80)},
            {"IP": "fd7a:115c:a1e0::4", "Ports": ports(443)},
        ],
        "IPProto": [6],
    }
    for other in (1, 2, 3, 5):
        assert policy.filter_rules(other) == []
    # either side may reach the other: both see each other, and nobody else sees anybody
    assert [policy.visible_peers(n) for n in (1, 2, 3, 4, 5)] == [{4}, {4}, set(), {1, 2}, set()]


def test_rules_with_equal_sources_and_protocols_are_merged() -> None:
    rule = {"action": "accept", "src": ["bob@example.com"]}
    policy = compiled({"acls": [{**rule, "dst": ["100.64.0.5:22"]}, {**rule, "dst": ["100.64.0.5:22", "tag:db:5432"]}]})
    [merged] = policy.filter_rules(5)
    assert merged["DstPorts"] == [
        {"IP": "100.64.0.5", "Ports": ports(22)},  # a host address is only that address
        {"IP": "100.64.0.5", "Ports": ports(5432)},
        {"IP": "fd7a:115c:a1e0::5", "Ports": ports(5432)},
    ]


def test_autogroup_self_is_the_same_users_untagged_devices() -> None:
    policy = compiled({"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]})
    assert policy.filter_rules(1)[0]["SrcIPs"] == [
        "100.64.0.1",
        "100.64.0.2",
        "fd7a:115c:a1e0::1",
        "fd7a:115c:a1e0::2",
    ]
    assert policy.filter_rules(3)[0]["SrcIPs"] == ["100.64.0.3", "fd7a:115c:a1e0::3"]
    assert policy.filter_rules(4) == []
    assert [policy.visible_peers(n) for n in (1, 2, 3, 4)] == [{2}, {1}, set(), set()]


def test_groups_hosts_and_ranges() -> None:
    policy = compiled(
        {
            "groups": {"group:ops": ["alice@", "bob@example.com"]},
            "hosts": {"db": "100.64.0.5", "office": "192.0.2.0/24"},
            "acls": [
                {"action": "accept", "src": ["group:ops"], "dst": ["db:1-9"]},
                {"action": "accept", "src": ["office", "tag:web"], "dst": ["autogroup:tagged:*"]},
            ],
        }
    )
    by_group, by_office = policy.filter_rules(5)
    assert by_group["SrcIPs"] == [
        *("100.64.0.1", "100.64.0.2", "100.64.0.3"),
        *("fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2", "fd7a:115c:a1e0::3"),
    ]
    assert by_group["DstPorts"] == [{"IP": "100.64.0.5", "Ports": ports(1, 9)}]
    assert by_office["SrcIPs"] == ["192.0.2.0/24", "100.64.0.4", "fd7a:115c:a1e0::4"]


def test_a_user_without_at_sign_is_written_with_one() -> None:
    policy = compiled({"acls": [{"action": "accept", "src": ["bob@"], "dst": ["*:*"]}]})
    # "bob@" is the user "bob", not bob@example.com
    assert policy.filter_rules(1) == []


def test_danger_all_is_the_only_way_to_let_the_world_in() -> None:
    policy = compiled({"acls": [{"action": "accept", "src": ["autogroup:danger-all"], "dst": ["*:80"]}]})
    assert policy.filter_rules(1)[0]["SrcIPs"] == ["*"]


def test_grants_give_ports_by_protocol_and_capabilities() -> None:
    policy = compiled(
        {
            "grants": [
                {
                    "src": ["tag:web"],
                    "dst": ["tag:db"],
                    "ip": ["tcp:5432", "udp:53-60", "icmp", "8080"],
                    "app": {"example.test/cap/db": [{"role": "reader"}]},
                }
            ]
        }
    )
    tcp, udp, icmp, any_protocol, app = policy.filter_rules(5)
    assert (tcp["IPProto"], udp["IPProto"], icmp["IPProto"]) == ([6], [17], [1])
    assert udp["DstPorts"] == [
        {"IP": "100.64.0.5", "Ports": ports(53, 60)},
        {"IP": "fd7a:115c:a1e0::5", "Ports": ports(53, 60)},
    ]
    assert "IPProto" not in any_protocol
    assert app == {
        "SrcIPs": ["100.64.0.4", "fd7a:115c:a1e0::4"],
        "CapGrant": [
            {
                "Dsts": ["100.64.0.5/32", "fd7a:115c:a1e0::5/128"],
                "CapMap": {"example.test/cap/db": [{"role": "reader"}]},
            }
        ],
    }


def test_node_attributes() -> None:
    policy = compiled(
        {"nodeAttrs": [{"target": ["tag:web"], "attr": ["b", "a"]}], "randomizeClientPort": True},
    )
    assert policy.attributes(4) == ["a", "b", "randomize-client-port"]
    assert policy.attributes(1) == ["randomize-client-port"]


# -- SSH ---------------------------------------------------------------------------------------------------------


def ssh_policy(users: list[str], src: str = "autogroup:member", dst: str = "autogroup:self") -> Policy:
    rule = {"action": "accept", "src": [src], "dst": [dst], "users": users, "acceptEnv": ["LC_*"]}
    return parse({"tagOwners": {"tag:web": [], "tag:db": []}, "ssh": [rule]})


@pytest.mark.parametrize(
    ("users", "mapped"),
    [
        (["autogroup:nonroot", "root"], {"*": "=", "root": "root"}),
        (["autogroup:nonroot"], {"*": "=", "root": ""}),
        (["deploy"], {"deploy": "deploy", "root": ""}),
    ],
)
def test_ssh_users_never_make_root_of_a_wildcard(users: list[str], mapped: dict[str, str]) -> None:
    [rule] = CompiledPolicy(ssh_policy(users), EVERYBODY).ssh_rules(1)
    assert rule["sshUsers"] == mapped


def test_ssh_principals_are_addresses_of_the_users_own_devices() -> None:
    policy = CompiledPolicy(ssh_policy(["root"]), EVERYBODY)
    [rule] = policy.ssh_rules(1)
    assert rule["principals"] == [
        {"nodeIP": ip} for ip in ("100.64.0.1", "100.64.0.2", "fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2")
    ]
    assert rule["acceptEnv"] == ["LC_*"]
    assert policy.ssh_rules(4) == []
    [to_web] = CompiledPolicy(ssh_policy(["root"], "bob@example.com", "tag:web"), EVERYBODY).ssh_rules(4)
    assert to_web["principals"] == [{"nodeIP": "100.64.0.3"}, {"nodeIP": "fd7a:115c:a1e0::3"}]

"""Go's reading rules."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tailcfg.kit import raw
from tsnetpy.base.errors import DecodeError
from tsnetpy.base.keys import NodePublic
from tsnetpy.tailcfg import Hostinfo, MapRequest, MapResponse, RegisterRequest, decode, encode
from tsnetpy.tailcfg.times import GO_ZERO, LOGOUT_EXPIRY, from_wall_ns, is_past, is_zero, to_wall_ns

KEY = "nodekey:" + "ab" * 32


def test_what_tailscale_rs_sends() -> None:
    request = decode(
        raw(
            {
                "version": 130,
                "NodeKey": KEY,
                "HostInfo": {"RoutableIps": ["10.0.0.0/8"], "SshHostKeys": ["k"], "NetInfo": {"PreferredDerp": 7}},
            }
        ),
        MapRequest,
    )
    assert request.version == 130
    assert request.node_key == NodePublic.parse(KEY)
    assert request.hostinfo == decode(
        b'{"RoutableIPs":["10.0.0.0/8"],"sshHostKeys":["k"],"NetInfo":{"PreferredDERP":7}}', Hostinfo
    )


def test_null_is_not_set_anywhere() -> None:
    response = decode(
        b'{"Node":{"Addresses":null,"Hostinfo":null,"Name":null,"CapMap":{"a":null,"b":[null,1]}},"Peers":null,'
        b'"PacketFilters":{"base":null},"SSHPolicy":{"rules":null}}',
        MapResponse,
    )
    assert response.peers is None
    assert response.packet_filters == {"base": None}
    assert response.ssh_policy is not None
    assert response.ssh_policy.rules == ()
    assert response.node is not None
    assert response.node.addresses == ()
    assert response.node.cap_map == {"a": None, "b": [None, 1]}


def test_free_names_keep_their_case() -> None:
    # "Name" and "name" as capabilities are no fields, whatever the rest looks like.
    response = decode(b'{"NODE":{"capmap":{"Name":[{"KEY":1}],"name":[]}}}', MapResponse)
    assert response.node is not None
    assert response.node.cap_map == {"Name": [{"KEY": 1}], "name": []}


def test_empty_and_absent_differ_where_the_protocol_says_so() -> None:
    assert decode(b"{}", MapResponse).packet_filter is None
    assert decode(b'{"PacketFilter":[]}', MapResponse).packet_filter == ()
    assert b'"base":[]' in encode(MapResponse(packet_filters={"base": ()}))
    assert encode(MapResponse()) == b"{}"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"Node":7}',
        b'{"Node":{"Key":"nodekey:zz"}}',
        b'{"Node":{"Key":"mkey:' + b"00" * 32 + b'"}}',
        b'{"Node":{"Key":5}}',
        b'{"Peers":{"a":1}}',
        b'{"ControlTime":"yesterday"}',
        b'\xff\xfe{"a":1}',
        b'{"Node":' * 3000 + b"1" + b"}" * 3000,
        b'{"NODE":{"CapMap":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}}",
    ],
)
def test_malformed_text_is_a_decode_error(text: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(text, MapResponse)


@given(st.binary(max_size=200))
def test_noise_never_raises_anything_else(noise: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode(noise, RegisterRequest)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["Node", "Peers", "node", "NAME", "Key", "DERPMap", "Regions", "1", "CapMap"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_decodes_or_is_a_decode_error(value: object) -> None:
    with contextlib.suppress(DecodeError):
        decode(raw(value), MapResponse)


def test_errors_do_not_repeat_secrets() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(raw({"Auth": {"AuthKey": ["tskey-secret"]}}), RegisterRequest)
    assert "secret" not in str(caught.value)
    request = decode(raw({"Auth": {"AuthKey": "tskey-secret"}}), RegisterRequest)
    assert "secret" not in repr(request)
    assert b"tskey-secret" in encode(request)


def test_times() -> None:
    assert is_zero(None)
    assert is_zero(GO_ZERO)
    assert not is_past(GO_ZERO, 10**18)
    assert is_past(LOGOUT_EXPIRY, 10**18)
    assert to_wall_ns(LOGOUT_EXPIRY) == 123 * 10**9
    assert to_wall_ns(from_wall_ns(1_700_000_000_123_456_000)) == 1_700_000_000_123_456_000
    zoned = decode(b'{"Expiry":"2026-11-22T23:25:00.403375933+01:00"}', RegisterRequest).expiry
    assert to_wall_ns(zoned) == 1_795_386_300_403_376_000

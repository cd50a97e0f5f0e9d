"""What nodes are told: the first message, then differences only."""

from tests.coordinator.kit import Box
from tsnetpy.coordinator import netmaps
from tsnetpy.coordinator.compile import Json
from tsnetpy.coordinator.netmaps import View
from tsnetpy.coordinator.policy import parse
from tsnetpy.coordinator.state import NodeRecord
from tsnetpy.tailcfg.hostinfo import Hostinfo
from tsnetpy.tailcfg.mapping import MapRequest


def view(box: Box, node: NodeRecord) -> View:
    return box.tailnet.snapshot(box.now).view(node.id)


def change(box: Box, node: NodeRecord, old: View) -> Json:
    message = netmaps.delta(old, view(box, node), box.now)
    return {} if message is None else {name: value for name, value in message.items() if name != "ControlTime"}


def entries(message: Json, name: str) -> list[Json]:
    found = message[name]
    assert isinstance(found, list)
    return found


def test_the_first_message_has_what_clients_insist_on() -> None:
    box = Box()
    alpha = box.join(1, hostname="alpha")
    message = netmaps.full(view(box, alpha), box.now)
    assert "Peers" not in message
    node = message["Node"]
    assert isinstance(node, dict)
    assert node["Name"] == "alpha.box.test."
    assert node["Addresses"] == node["AllowedIPs"] == ["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]
    assert node["StableID"]
    assert node["MachineAuthorized"] is True
    assert message["SSHPolicy"] == {"rules": []}
    assert message["UserProfiles"] == [{"ID": 1, "LoginName": "me", "DisplayName": "me"}]
    filters = message["PacketFilters"]
    assert isinstance(filters, dict)
    assert len(filters["base"]) == 1


def test_a_peer_appears_when_it_has_polled_with_its_profile() -> None:
    box = Box()
    alpha = box.join(1)
    old = view(box, alpha)
    assert box.answer(2, key=box.key(login="other"))["Error"] == ""
    assert change(box, alpha, old) == {}  # registered, but no peer could reach it yet
    beta = box.join(2)
    message = change(box, alpha, old)
    assert message.keys() == {"PeersChanged", "UserProfiles"}
    [peer] = entries(message, "PeersChanged")
    assert peer["ID"] == beta.id
    assert message["UserProfiles"] == [{"ID": 2, "LoginName": "other", "DisplayName": "other"}]


def test_presence_and_endpoints_travel_as_patches() -> None:
    box = Box()
    alpha, beta = box.join(1), box.join(2)
    old = view(box, alpha)
    box.tailnet.set_online(beta.id, True, box.now)
    box.poll(beta, 2, endpoints=("192.0.2.1:41641", "not an endpoint", "[2001:db8::1]:1"))
    message = change(box, alpha, old)
    assert message == {
        "PeersChangedPatch": [
            {"NodeID": beta.id, "Online": True, "Endpoints": ["192.0.2.1:41641", "[2001:db8::1]:1"]},
        ]
    }
    old = view(box, alpha)
    box.poll(beta, 2)
    assert change(box, alpha, old) == {"PeersChangedPatch": [{"NodeID": beta.id, "Endpoints": []}]}
    old = view(box, alpha)
    box.tailnet.set_online(beta.id, False, box.now)
    [patch] = entries(change(box, alpha, old), "PeersChangedPatch")
    assert patch["Online"] is False
    assert str(patch["LastSeen"]).startswith("2027-01-15T08:00:00")


def test_a_home_derp_of_zero_cannot_be_patched() -> None:
    box = Box()
    alpha, beta = box.join(1), box.join(2)
    beta.home_derp = 900
    box.tailnet.touch()
    old = view(box, alpha)
    beta.home_derp = 901
    box.tailnet.touch()
    assert change(box, alpha, old) == {"PeersChangedPatch": [{"NodeID": beta.id, "DERPRegion": 901}]}
    beta.home_derp = 0
    box.tailnet.touch()
    assert change(box, alpha, old).keys() == {"PeersChanged"}


def test_what_a_node_said_itself_is_not_told_back() -> None:
    box = Box()
    alpha = box.join(1)
    old = view(box, alpha)
    box.poll(alpha, 1, endpoints=("192.0.2.1:1",))
    assert change(box, alpha, old) == {}
    version = box.tailnet.changed.value
    box.poll(alpha, 1, endpoints=("192.0.2.1:1",))
    assert box.tailnet.changed.value == version  # an update without news wakes nobody


def test_peers_do_not_get_the_network_report() -> None:
    box = Box()
    alpha, beta = box.join(1), box.join(2)
    beta.hostinfo = {"OS": "linux", "NetInfo": {"PreferredDERP": 900}, "backendLogID": "x", "Services": [{"Port": 1}]}
    box.tailnet.touch()
    assert view(box, alpha).peers[beta.id]["Hostinfo"] == {"OS": "linux", "Services": [{"Port": 1}]}


def test_a_deleted_or_hidden_peer_is_removed_by_id() -> None:
    box = Box()
    alpha, beta, gamma = box.join(1), box.join(2), box.join(3, tags=("tag:x",))
    old = view(box, alpha)
    box.tailnet.delete_node(beta)
    assert change(box, alpha, old) == {"PeersRemoved": [beta.id]}
    old = view(box, alpha)
    box.tailnet.set_policy(parse({"acls": []}))
    assert change(box, alpha, old) == {"PeersRemoved": [gamma.id], "PacketFilters": {"base": []}}


def test_taking_ssh_rules_away_is_said() -> None:
    box = Box()
    alpha = box.join(1)
    rule = {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}
    box.tailnet.set_policy(parse({"ssh": [rule]}))
    old = view(box, alpha)
    assert len(old.ssh_rules) == 1
    box.tailnet.set_policy(parse({}))
    assert change(box, alpha, old) == {"SSHPolicy": {"rules": []}}


def test_expiry_reaches_the_node_and_its_peers() -> None:
    box = Box()
    alpha, beta = box.join(1), box.join(2)
    old_alpha, old_beta = view(box, alpha), view(box, beta)
    box.tailnet.expire_node(beta, box.now)
    [peer] = entries(change(box, alpha, old_alpha), "PeersChanged")
    assert peer["Expired"] is True
    own = change(box, beta, old_beta)["Node"]
    assert isinstance(own, dict)
    assert own["Expired"] is True


def test_a_stream_without_endpoints_or_netinfo_keeps_what_was_known() -> None:
    box = Box()
    alpha = box.join(1)
    box.poll(alpha, 1, endpoints=("192.0.2.1:1",))
    alpha.hostinfo = {"Hostname": "host", "NetInfo": {"PreferredDERP": 900}}
    alpha.home_derp = 900
    stream = MapRequest(version=117, stream=True, hostinfo=Hostinfo(hostname="host"))
    box.tailnet.update_node(alpha, stream, {"Hostname": "host"}, box.now)
    assert alpha.endpoints == ["192.0.2.1:1"]
    assert alpha.disco_key.startswith("discokey:01")  # a zero disco key in a stream request is not taken over
    assert (alpha.home_derp, alpha.hostinfo["NetInfo"]) == (900, {"PreferredDERP": 900})


def test_what_did_not_change_is_the_same_object_in_the_next_version() -> None:
    box = Box()
    alpha, beta, gamma = box.join(1), box.join(2), box.join(3)
    old = view(box, alpha)
    box.tailnet.set_online(beta.id, True, box.now)
    new = view(box, alpha)
    assert new.peers[gamma.id] is old.peers[gamma.id]
    assert new.peers[beta.id] is not old.peers[beta.id]
    assert old.peers[beta.id]["Online"] is False  # the old view still says what was

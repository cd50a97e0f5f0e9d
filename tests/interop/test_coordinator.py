"""Official clients join our own coordinator: authentication, direct and relayed paths, policy, logout, deletion."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.interop.lab import BIN, ROOT, Lab, Official, Process, Recorder, eventually

# A private address: on a documentation address official clients dial port 443 only after a broken connection.
HUB = "10.77.0.1"
URL = f"http://{HUB}:8090"
POLICY = """{
  // everything, and SSH between the owner's devices
  "tagOwners": {"tag:web": ["owner@"]},
  "ssh": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["autogroup:nonroot"]}],
}"""


class Box:
    """A coordinator process in the hub and its command line."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.state = lab.dir / "box"
        self.policy = lab.dir / "box.hujson"
        self.policy.write_text(POLICY)
        self.process = self.start()

    def start(self) -> Process:
        argv = ["serve", "--listen", f"{HUB}:8090", "--derp-port", "8444", "--stun-port", "3479"]
        argv += ["--policy", str(self.policy), "--state", str(self.state)]
        process = self.lab.start("box", "hub", self.argv(*argv), {"PYTHONPATH": str(ROOT)})
        process.wait_for("join with")
        return process

    def argv(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "tsnetpy", "coordinator", *args]

    def cli(self, *args: str) -> str:
        return self.lab.run("hub", self.argv(*args, "--state", str(self.state)), PYTHONPATH=str(ROOT))

    def key(self, *flags: str) -> str:
        return self.cli("keys", "create", *flags).strip()

    def states(self) -> dict[str, str]:
        nodes = json.loads(self.cli("nodes", "list", "--json"))["nodes"]
        return {n["name"]: "expired" if n["expired"] else "online" if n["online"] else "offline" for n in nodes}


@pytest.fixture(scope="module")
def box(lab: Lab) -> Iterator[Box]:
    places = (("hub", "br0", HUB), ("a", "v0", "10.77.0.10"), ("b", "v0", "10.77.0.11"))
    for name, device, address in places:
        subprocess.run(["ip", "-n", lab.ns(name), "addr", "add", f"{address}/24", "dev", device], check=True)
    made = Box(lab)
    yield made
    made.process.stop()
    for name, device, address in places:
        subprocess.run(["ip", "-n", lab.ns(name), "addr", "del", f"{address}/24", "dev", device], check=True)


def daemon(lab: Lab, ns: str, name: str) -> Official:
    state: pathlib.Path = lab.dir / f"box-{name}"
    state.mkdir()
    # With its state in memory it would ask to be ephemeral, and be gone after a log-out.
    argv = [str(BIN / "tailscaled"), "--tun=userspace-networking", f"--state={state}/state", f"--statedir={state}"]
    argv += [f"--socket={state}/sock", "--socks5-server=127.0.0.1:1044", "--port=0"]
    client = Official(lab, ns, name, lab.start(name, ns, argv), state / "sock", 1044)
    eventually(lambda: (state / "sock").exists())
    return client


@pytest.fixture(scope="module")
def clients(lab: Lab, box: Box) -> Iterator[tuple[Official, Official]]:
    made = daemon(lab, "a", "boxa"), daemon(lab, "b", "boxb")
    key = box.key("--reusable")
    for client in made:
        client.cli("up", f"--login-server={URL}", f"--authkey={key}", f"--hostname={client.name}", timeout=20)
    yield made
    for client in made:
        client.process.stop()


def test_official_clients_join_and_ping_directly(clients: tuple[Official, Official], record_property: Recorder) -> None:
    one, two = clients
    record_property("peer known after s", round(eventually(lambda: one.knows("boxb")), 2))
    for client, peer in ((one, "boxb"), (two, "boxa")):
        assert "via DERP" not in client.cli("ping", "--c", "5", peer).splitlines()[-1]
    whois = json.loads(one.cli("whois", "--json", "100.64.0.2"))
    assert whois["UserProfile"]["LoginName"] == "owner"


def test_without_udp_the_relay_carries_them(lab: Lab, clients: tuple[Official, Official]) -> None:
    one, _ = clients
    lab.drop_udp("a")
    try:
        ping = ["ping", "--c", "1", "--timeout", "2s", "--until-direct=false", "boxb"]
        eventually(lambda: "via DERP(box)" in one.cli(*ping, check=False), timeout=40)
    finally:
        lab.allow_udp("a")


def test_a_policy_hides_and_shows_peers(box: Box, clients: tuple[Official, Official]) -> None:
    one, _ = clients
    closed = box.lab.dir / "closed.hujson"
    closed.write_text('{"acls": []}')
    box.cli("policy", "set", str(closed))
    eventually(lambda: not one.knows("boxb"))
    box.cli("policy", "set", str(box.policy))
    eventually(lambda: one.knows("boxb"))


def test_a_restart_of_the_server_is_survived(box: Box, clients: tuple[Official, Official]) -> None:
    one, _ = clients
    box.process.stop()
    assert "pong" in one.cli("ping", "--c", "1", "boxb")  # peers need no server
    box.process = box.start()
    eventually(lambda: box.states() == {"boxa": "online", "boxb": "online"}, timeout=60)


def test_logout_interactive_login_and_deletion(lab: Lab, box: Box, clients: tuple[Official, Official]) -> None:
    one, two = clients
    two.cli("logout")
    eventually(lambda: box.states().get("boxb") == "expired")
    up = lab.start("up", "b", two.argv("up", f"--login-server={URL}", "--hostname=boxb"))
    shown = up.wait_for("/register/")
    box.cli("nodes", "approve", next(word for word in shown.split() if "/register/" in word))
    up.wait_for("Success")
    assert two.cli("ip", "-4").strip() == "100.64.0.2"  # the same node as before
    eventually(lambda: one.knows("boxb"))
    box.cli("nodes", "delete", "boxb")
    eventually(lambda: not one.knows("boxb"))
    key = box.key("--ephemeral", "--tag", "tag:web")
    two.cli("up", "--force-reauth", f"--login-server={URL}", f"--authkey={key}", "--hostname=boxb", timeout=30)
    assert two.cli("ip", "-4").strip() == "100.64.0.3"  # addresses are never used again
    two.cli("logout")
    eventually(lambda: box.states() == {"boxa": "online"})

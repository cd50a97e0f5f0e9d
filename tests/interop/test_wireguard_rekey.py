"""150 s of data both ways, so that the keys change on the way: once we began the handshakes, once wireguard-go did.

The transfers begin with the first WireGuard test of the session (``wireguard_long.py``) and run beside the others; what
they showed is judged here, at the end.
"""

import pytest

from tests.interop.lab import Recorder
from tests.interop.wireguard_lab import last_line
from tests.interop.wireguard_long import SECONDS, LongRun


@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_data_crosses_a_rekey_without_a_gap(
    transfers: dict[str, LongRun], initiator: str, record_property: Recorder
) -> None:
    run = transfers[initiator]
    for process in (run.node, run.mirror):
        assert process.popen.wait(SECONDS + 60) == 0, process.output()
    ours, theirs = last_line(run.node.output()), last_line(run.mirror.output())
    assert ours["sent"] == theirs["received"]
    assert theirs["sent"] == ours["received"]
    assert int(str(ours["bytes"])) > SECONDS * 100_000

    handshakes = ours["handshakes"]
    assert isinstance(handshakes, list)
    assert len(handshakes) == 2
    assert 119 < handshakes[1] - handshakes[0] < 128
    # Who began them is in the peer's log (which goes on when we are gone, with initiations that nobody answers).
    log = run.tunnel.process("wireguard-go").output()
    begun_by_us, begun_by_it = log.count("Received handshake initiation"), log.count("Received handshake response")
    assert (begun_by_us, begun_by_it) == ((2, 0) if initiator == "ours" else (0, 2))
    drops = ours["drops"]
    assert isinstance(drops, dict)
    assert not any(reason.startswith("wg.") and n > 2 for reason, n in drops.items()), drops
    gap = max(float(str(end["longest_gap"])) for end in (ours, theirs))
    assert gap < 4  # the same two cores carry the other tests; a lost session would cost 15 s
    record_property("rekey after s", round(handshakes[1] - handshakes[0], 1))
    record_property("longest gap s", round(gap, 2))

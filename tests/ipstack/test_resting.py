"""Connections in TIME-WAIT leave the stack's books light."""

from tests.ipstack.kit import A4, B4, Net
from tsnetpy.base.addr import Endpoint
from tsnetpy.base.instant import SECOND
from tsnetpy.ipstack import TcpSocket
from tsnetpy.ipstack.resting import RestingConnections
from tsnetpy.tcp import State, TimeWait
from tsnetpy.tcp.flags import CLOSED


def closed_by_server(net: Net) -> tuple[TcpSocket, TcpSocket]:
    listener = net.b.tcp_listen(80, 0)
    client, server = net.open(Endpoint(B4, 80), listener)
    server.close(net.now)
    net.run(lambda: server.connection.state is State.FIN_WAIT_2)
    client.close(net.now)
    net.run(lambda: server.connection.state is State.TIME_WAIT)
    return client, server


def test_the_socket_goes_and_the_wait_stays() -> None:
    net = Net()
    _, server = closed_by_server(net)
    net.flush()
    assert server.closed
    assert server.connection.owner is None  # no cycle: both go without a garbage collection
    assert len(net.b._tcp._conns) == 0
    assert server.key in net.b._tcp._resting
    # The port pair is still taken, and the wait has its deadline.
    assert net.b.next_deadline() is not None
    net.run_for(11 * SECOND)
    assert server.key not in net.b._tcp._resting
    assert net.b.next_deadline() is None


def test_the_application_hears_of_it() -> None:
    net = Net()
    _, server = closed_by_server(net)
    net.run(lambda: server.closed)
    assert net.ready[server] & CLOSED


def test_an_address_that_goes_takes_its_waits_along() -> None:
    net = Net()
    _, server = closed_by_server(net)
    net.flush()
    net.b.set_addresses([A4])
    assert server.key not in net.b._tcp._resting


def test_table_keeps_the_order_of_departure() -> None:
    def state(until: int) -> TimeWait:
        return TimeWait(1, 1, 1, False, 0, 0, until, 10)

    table = RestingConnections()
    keys = [(bytes([n]) * 8, n) for n in range(3)]
    for n, key in enumerate(keys):
        table.add(key, b"pq"[n % 2 : n % 2 + 1], state(10 * SECOND + n))
    first = table.get(keys[0])
    assert first is not None
    first.until = 20 * SECOND
    table.restart(keys[0])
    assert table.over(10 * SECOND + 1) == [keys[1]]
    # Those of one second end together: one wake-up for all.
    assert table.next_deadline() == 11 * SECOND
    assert table.over(11 * SECOND) == [keys[1], keys[2]]
    assert table.oldest(b"p") == keys[2]
    assert table.oldest(b"nobody") == keys[1]
    assert table.remove(keys[1]) == b"q"
    assert not table.has(b"q")
    assert [len(table), table.has(b"p")] == [2, True]
    assert table.remove(keys[2]) == b"p"
    assert table.next_deadline() == 20 * SECOND  # due then, and not a second later

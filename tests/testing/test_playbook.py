"""The playbook DSL: one stack against hand-made packets."""

import pytest

from tsnetpy.base.instant import SECOND, ms
from tsnetpy.testing.packetdrill import VARIANTS, Variant
from tsnetpy.testing.playbook import Mismatch, Playbook


@pytest.mark.parametrize("variant", VARIANTS[:3] + VARIANTS[4:], ids=lambda v: v.name)
def test_a_whole_connection(variant: Variant) -> None:
    book = Playbook(variant=variant)
    book.handshake("mss 1000,sackOK,nop,nop,nop,wscale 7")
    assert book.send(3000) == 3000
    book.expect("P. 1:3001(3000) ack 1")
    book.inject(". 1:1(0) ack 3001 win 500")
    book.inject("P. 1:2001(2000) ack 3001 win 500")
    book.expect(". 3001:3001(0) ack 2001", within=ms(40))
    assert book.read() == 2000
    book.close()
    book.expect("F. 3001:3001(0) ack 2001")
    book.inject("F. 2001:2001(0) ack 3002 win 500")
    book.expect(". 3002:3002(0) ack 2002", within=ms(40))
    book.expect_nothing(5 * SECOND)


def test_a_lost_segment_is_sent_again() -> None:
    book = Playbook()
    book.handshake()
    book.send(1000)
    book.expect("P. 1:1001(1000) ack 1")
    assert book.expect("P. 1:1001(1000) ack 1", within=2 * SECOND) == book.now


def test_the_active_side() -> None:
    book = Playbook()
    book.connect()
    book.expect("S 0:0(0) <mss 1460,sackOK,TS val 1 ecr 0,nop,wscale 8>")
    book.inject("R. 0:0(0) ack 1 win 0")
    assert book.socket.connection.error == "refused"


def test_what_differs_is_said() -> None:
    book = Playbook()
    book.handshake()
    with pytest.raises(Mismatch, match="nothing was sent"):
        book.expect(". 1:1(0) ack 2")
    book.send(10)
    with pytest.raises(Mismatch, match=r"sent P\. 1:11\(10\) ack 1"):
        book.expect("P. 1:12(11) ack 1")
    book.send(10)
    with pytest.raises(Mismatch, match="expected nothing"):
        book.expect_nothing()
    assert any("> P. 1:11(10)" in line for line in book.trace)

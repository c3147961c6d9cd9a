"""A session without sockets: window, order, redelivery, and the queue's caps."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.broker.limits import Limits
from coordinator.broker.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from coordinator.broker.parser import Parser
from coordinator.broker.session import ENTRY_BYTES, Offer, Session
from coordinator.broker.topics import Message


def message(payload: bytes, qos: int = 1, topic: str = "t") -> Message:
    return Message(topic, topic.encode(), payload, qos)


def session_of(**limits: float) -> Session:
    session = Session("c", Limits(**limits), clean=False)
    session.connected()
    return session


def sent(session: Session) -> list[Publish | Pubrel]:
    """Everything the session wants to write now, parsed."""
    out = []
    while (buffers := session.next_packet()) is not None:
        out += Parser(1 << 20).feed(b"".join(map(bytes, buffers)))
    return out


def test_the_window_bounds_what_is_in_flight() -> None:
    session = session_of(in_flight=3)
    for i in range(10):
        session.offer(message(b"%d" % i), 1)
    first = sent(session)
    assert [m.payload for m in first] == [b"0", b"1", b"2"]
    session.acknowledge(Puback(first[1].packet_id))
    assert [m.payload for m in sent(session)] == [b"3"]


def test_qos_0_passes_a_full_window() -> None:
    session = session_of(in_flight=1)
    for payload, qos in ((b"a", 1), (b"b", 1), (b"c", 0)):
        session.offer(message(payload, qos), 2)
    assert [m.payload for m in sent(session)] == [b"a", b"c"]


def test_messages_of_different_qos_leave_in_the_order_they_came() -> None:
    session = session_of()
    for i in range(9):
        session.offer(message(b"%d" % i, i % 3), 2)
    assert [m.payload for m in sent(session)] == [b"%d" % i for i in range(9)]


@pytest.mark.parametrize(("qos", "offer"), [(0, Offer.DROPPED), (1, Offer.OVERFLOW), (2, Offer.OVERFLOW)])
def test_the_queue_is_full_at_its_cap_and_not_before(qos: int, offer: Offer) -> None:
    session = session_of(queue_bytes=10 * (ENTRY_BYTES + 100))
    assert [session.offer(message(bytes(100), qos), 2) for _ in range(11)] == [Offer.QUEUED] * 10 + [offer]
    session = session_of(queue_messages=10)
    assert [session.offer(message(b"", qos), 2) for _ in range(11)] == [Offer.QUEUED] * 10 + [offer]
    assert session.fill == 1


def test_retained_payloads_are_not_charged_and_their_number_is_still_bounded() -> None:
    session = session_of(queue_bytes=10 * ENTRY_BYTES)
    offers = [session.offer(message(bytes(100_000)), 1, retained=True) for _ in range(11)]
    assert offers == [Offer.QUEUED] * 10 + [Offer.OVERFLOW]


def test_one_payload_buffer_serves_every_session() -> None:
    payload = bytes(100_000)
    sessions = [session_of() for _ in range(3)]
    shared = message(payload)
    for session in sessions:
        session.offer(shared, 1)
        buffers = session.next_packet()
        assert buffers is not None
        assert buffers[1] is payload


def test_identifiers_in_use_are_not_given_out_again() -> None:
    session = session_of(in_flight=2)
    session.offer(message(b"stays"), 1)
    (stays,) = sent(session)
    for i in range(70_000):
        session.offer(message(b"%d" % i), 1)
        (other,) = sent(session)
        assert other.packet_id != stays.packet_id
        session.acknowledge(Puback(other.packet_id))


def test_an_absent_client_keeps_qos_1_and_2_only() -> None:
    session = session_of()
    session.offer(message(b"gone", 0), 2)
    session.disconnected()
    assert (session.queued_bytes, len(session)) == (0, 0)
    assert session.offer(message(b"0", 0), 2) is Offer.DROPPED
    assert session.offer(message(b"1", 1), 2) is Offer.QUEUED
    session.connected()
    assert [m.payload for m in sent(session)] == [b"1"]


class AnyClient(RuleBasedStateMachine):
    """A client that acknowledges when it likes, loses its connection when it likes, and must miss nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.session = session_of(in_flight=3)
        self.offered: dict[int, deque[bytes]] = {0: deque(), 1: deque(), 2: deque()}
        self.first_seen: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
        self.owed: dict[int, Publish | Pubrel] = {}  # by identifier: what the client has not answered
        self.number = 0

    @rule(qos=st.integers(0, 2))
    def offer(self, qos: int) -> None:
        self.number += 1
        offer = self.session.offer(message(b"%d" % self.number, qos), 2)
        assert offer is (Offer.QUEUED if qos or self.session.online else Offer.DROPPED)
        if offer is Offer.QUEUED:
            self.offered[qos].append(b"%d" % self.number)

    @precondition(lambda self: self.session.online)
    @rule()
    def receive(self) -> None:
        for packet in sent(self.session):
            if isinstance(packet, Pubrel) or packet.dup:
                known = self.owed[packet.packet_id]
                assert type(known) is type(packet)
                assert isinstance(packet, Pubrel) or packet.payload == known.payload
                continue
            assert self.offered[packet.qos].popleft() == packet.payload  # in order, none left out, none twice
            if packet.qos:
                assert packet.packet_id not in self.owed
                self.owed[packet.packet_id] = packet

    @precondition(lambda self: self.session.online and self.owed)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        packet_id = data.draw(st.sampled_from(sorted(self.owed)))
        known = self.owed[packet_id]
        if isinstance(known, Publish) and known.qos == 2:
            (answer,) = Parser(100).feed(self.session.acknowledge(Pubrec(packet_id)))
            assert answer == Pubrel(packet_id)
            self.owed[packet_id] = answer
        else:
            kind = Pubcomp if isinstance(known, Pubrel) else Puback
            assert self.session.acknowledge(kind(packet_id)) == b""
            del self.owed[packet_id]

    @rule(packet_id=st.integers(60_000, 65_535))
    def answer_what_was_never_sent(self, packet_id: int) -> None:
        self.session.acknowledge(Puback(packet_id))
        self.session.acknowledge(Pubcomp(packet_id))

    @rule()
    def reconnect(self) -> None:
        self.session.disconnected()
        self.offered[0].clear()
        self.session.connected()

    @rule()
    def leave(self) -> None:
        self.session.disconnected()
        self.offered[0].clear()

    @precondition(lambda self: not self.session.online)
    @rule()
    def come_back(self) -> None:
        self.session.connected()

    @invariant()
    def the_window_and_the_count_of_bytes_hold(self) -> None:
        waiting = [payload for queue in self.offered.values() for payload in queue]
        assert self.session.in_flight == len(self.owed) <= 3
        assert self.session.queued_bytes == sum(ENTRY_BYTES + len(payload) for payload in waiting)
        assert len(self.session) == len(waiting)


TestAnyClient = AnyClient.TestCase

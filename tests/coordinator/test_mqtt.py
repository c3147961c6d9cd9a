"""The client's MQTT packets against those of the embedded broker, which were written and read on their own."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import mqtt
from coordinator.broker import packets as p
from coordinator.broker.parser import Parser
from edge_runtime.link_events import Message

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="+#"), min_size=1)
TOPICS = TEXTS.filter(lambda text: len(text.encode()) < 1000)
IDS = st.integers(1, 0xFFFF)
PAYLOADS = st.binary(max_size=300) | st.integers(100, 70_000).map(bytes)


def parsed(data: bytes) -> p.Packet:
    (packet,) = Parser(1 << 20).feed(data)
    return packet


def read(data: bytes, cuts: list[int], buffer_bytes: int = 16) -> tuple[list[mqtt.Packet], bytes]:
    """What a reader makes of a stream that comes in pieces, and its PUBACKs."""
    reader, packets = mqtt.Reader(buffer_bytes), []
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        piece = data[begin:end]
        while piece:
            with reader.space() as space:
                taken = min(len(space), len(piece))
                space[:taken] = piece[:taken]
            packets += reader.filled(taken)
            piece = piece[taken:]
    return packets, bytes(reader.acks)


@given(TOPICS, PAYLOADS, st.integers(0, 0xFFFF), st.booleans())
def test_the_broker_reads_a_publish_as_it_was_meant(topic: str, payload: bytes, number: int, retain: bool) -> None:  # noqa: FBT001 a drawn value
    data = mqtt.publish_head(topic, len(payload), number, retain=retain) + payload
    assert parsed(data) == p.Publish(topic, payload, 1 if number else 0, retain, dup=False, packet_id=number)


@given(TOPICS, st.none() | st.tuples(TOPICS, st.binary(max_size=300)), st.sampled_from([None, "", "secret"]))
def test_the_broker_reads_a_connect_as_it_was_meant(
    name: str, will: tuple[str, bytes] | None, password: str | None
) -> None:
    login = None if password is None else mqtt.Login("user", password or None)
    meant = p.Connect(
        name,
        clean_session=True,
        keepalive_s=30,
        will=None if will is None else p.Will(*will, qos=1, retain=True),
        username=None if login is None else "user",
        password=b"secret" if password else None,
    )
    assert parsed(mqtt.connect(name, 30, will, login)) == meant


@given(IDS, st.lists(TOPICS, min_size=1, max_size=5), st.integers(0, 1))
def test_the_broker_reads_subscriptions_as_they_were_meant(number: int, topics: list[str], qos: int) -> None:
    asked = tuple(topics)
    assert parsed(mqtt.subscribe(number, asked, qos)) == p.Subscribe(number, tuple((t, qos) for t in asked))
    assert parsed(mqtt.unsubscribe(number, asked)) == p.Unsubscribe(number, asked)
    assert (parsed(mqtt.PINGREQ), parsed(mqtt.DISCONNECT)) == (p.Pingreq(), p.Disconnect())


FROM_BROKER = st.one_of(
    st.builds(p.Publish, TOPICS, PAYLOADS, st.just(0), st.booleans()),
    st.builds(p.Publish, TOPICS, PAYLOADS, st.just(1), st.booleans(), st.booleans(), IDS),
    st.builds(p.Puback, IDS),
    st.builds(p.Suback, IDS, st.lists(st.sampled_from([0, 1, 0x80]), min_size=1, max_size=4).map(tuple)),
    st.builds(p.Unsuback, IDS),
    st.just(p.Pingresp()),
    st.builds(p.Connack, st.booleans(), st.integers(0, 5)),
)


def meant(packet: p.Packet) -> mqtt.Packet:
    match packet:
        case p.Publish():
            return Message(packet.topic, bytes(packet.payload), packet.retain)
        case p.Puback(number):
            return mqtt.Puback(number)
        case p.Suback(number, codes):
            return mqtt.Suback(number, bytes(codes))
        case p.Connack(_, code):
            return mqtt.Connack(code)
        case p.Unsuback():
            return mqtt.Unsuback()
    return mqtt.Pingresp()


@given(st.lists(FROM_BROKER, max_size=6), st.data())
def test_what_a_broker_writes_is_read_whole_however_the_stream_is_cut(
    sent: list[p.Packet], data: st.DataObject
) -> None:
    stream = b"".join(p.encode(packet) for packet in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    packets, acks = read(stream, cuts)
    assert packets == [meant(packet) for packet in sent]
    asked = [packet.packet_id for packet in sent if isinstance(packet, p.Publish) and packet.qos]
    assert list(Parser(100).feed(acks)) == [p.Puback(number) for number in asked]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_bytes_from_anywhere_are_packets_or_a_bad_packet_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    with contextlib.suppress(mqtt.BadPacket):
        packets, _ = read(data, sorted(min(cut, len(data)) for cut in cuts))
        assert all(isinstance(packet, mqtt.Packet) for packet in packets)


def test_a_packet_over_the_cap_is_refused_before_its_room_is_taken() -> None:
    reader = mqtt.Reader(16, max_packet_bytes=1000)
    with reader.space() as space:
        space[:3] = b"\x30\xe6\x07"  # 998 bytes follow: 1,001 in all
    with pytest.raises(mqtt.BadPacket, match="1001 bytes; at most 1000"):
        reader.filled(3)
    assert len(reader.space()) == 16


@pytest.mark.parametrize("qos", [2, 3])
def test_a_publish_of_a_qos_that_nobody_asked_for_is_refused(qos: int) -> None:
    with pytest.raises(mqtt.BadPacket, match=f"QoS {qos}"):
        read(bytes((0x30 | qos << 1, 6, 0, 1, 97, 0, 1, 98)), [])


@given(st.lists(st.binary(max_size=9000), max_size=20), st.data())
def test_what_is_written_in_parts_leaves_in_order_and_whole(payloads: list[bytes], data: st.DataObject) -> None:
    outgoing, left = mqtt.Outgoing(), bytearray()
    for index, payload in enumerate(payloads):
        outgoing.append(b"%d:" % index, payload)
        if data.draw(st.booleans()):
            first = b"".join(outgoing.first())
            count = data.draw(st.integers(0, len(first)))
            left += first[:count]
            outgoing.sent(count)
    while outgoing:
        first = b"".join(outgoing.first())
        left += first
        outgoing.sent(len(first))
    assert bytes(left) == b"".join(b"%d:" % index + payload for index, payload in enumerate(payloads))

"""The codec: what is written is read back, and hostile bytes give a packet or MalformedPacket, nothing else."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.broker import packets as p
from coordinator.broker.packets import MalformedPacket, PacketTooLarge, encode
from coordinator.broker.parser import FIRST_BYTES, GROWTH, Parser

CAP_BYTES = 1 << 20
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40)
TOPIC = TEXT.filter(lambda text: text and not set("+#") & set(text))
FILTER = st.lists(st.one_of(TOPIC.filter(lambda t: "/" not in t), st.just("+"), st.just("")), min_size=1, max_size=6)
FILTER = st.builds(lambda levels, end: "/".join(levels + end), FILTER, st.sampled_from([[], ["#"]])).filter(bool)
ID = st.integers(1, 65_535)
QOS = st.integers(0, 2)
BINARY = st.binary(max_size=300)
WILL = st.builds(p.Will, TOPIC, BINARY, QOS, st.booleans())


@st.composite
def connects(draw: st.DrawFn) -> p.Connect:
    username = draw(st.none() | TEXT)
    password = None if username is None else draw(st.none() | BINARY)
    keepalive_s = draw(st.integers(0, 65_535))
    return p.Connect(draw(TEXT), draw(st.booleans()), keepalive_s, draw(st.none() | WILL), username, password)


@st.composite
def publishes(draw: st.DrawFn) -> p.Publish:
    qos = draw(QOS)
    packet_id = draw(ID) if qos else 0
    return p.Publish(draw(TOPIC), draw(BINARY), qos, draw(st.booleans()), bool(qos and draw(st.booleans())), packet_id)


PACKETS = st.one_of(
    connects(),
    publishes(),
    st.builds(p.Connack, st.booleans(), st.just(0)) | st.builds(p.Connack, st.just(value=False), st.integers(1, 5)),
    *(st.builds(kind, ID) for kind in (p.Puback, p.Pubrec, p.Pubrel, p.Pubcomp, p.Unsuback)),
    st.builds(p.Subscribe, ID, st.lists(st.tuples(FILTER, QOS), min_size=1, max_size=5).map(tuple)),
    st.builds(p.Suback, ID, st.lists(st.sampled_from([0, 1, 2, 128]), min_size=1).map(tuple)),
    st.builds(p.Unsubscribe, ID, st.lists(FILTER, min_size=1, max_size=5).map(tuple)),
    *(st.just(kind()) for kind in (p.Pingreq, p.Pingresp, p.Disconnect)),
)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(stream) + 1) for place in places)
    return [stream[a:b] for a, b in zip([0, *ends], [*ends, len(stream)], strict=True)]


def through_socket_buffers(stream: bytes, pieces: list[bytes]) -> list[p.Packet]:
    """Parse as a connection does: bodies straight into the parser's buffer."""
    parser, out = Parser(1 << 22), []
    for piece in pieces:
        view = memoryview(piece)
        while view:
            space = parser.space()
            if space is None:
                out += parser.feed(view[:1])
                view = view[1:]
                continue
            n_bytes = min(len(space), len(view))
            space[:n_bytes] = view[:n_bytes]
            space.release()
            packet = parser.filled(n_bytes)
            out += [] if packet is None else [packet]
            view = view[n_bytes:]
    assert sum(map(len, pieces)) == len(stream)
    return out


@given(st.lists(PACKETS, max_size=6), st.lists(st.integers(0, 1 << 20), max_size=8))
def test_what_is_written_is_read_back_however_it_is_cut(packets: list[p.Packet], places: list[int]) -> None:
    stream = b"".join(map(encode, packets))
    pieces = cut(stream, places)
    parser = Parser(CAP_BYTES)
    assert [packet for piece in pieces for packet in parser.feed(piece)] == packets
    assert through_socket_buffers(stream, pieces) == packets


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_give_packets_or_malformed_packet(data: bytes) -> None:
    try:
        found = list(Parser(CAP_BYTES).feed(data))
    except MalformedPacket:
        return
    assert all(isinstance(packet, p.Packet) for packet in found)


@settings(max_examples=500)
@given(st.integers(1, 14), st.integers(0, 15), st.binary(max_size=120))
def test_any_body_under_a_good_header_gives_packets_or_malformed_packet(kind: int, flags: int, body: bytes) -> None:
    try:
        found = list(Parser(CAP_BYTES).feed(bytes([kind << 4 | flags, len(body)]) + body))
    except MalformedPacket:
        return
    # What is accepted is canonical: writing it again gives the same bytes.
    assert [encode(packet) for packet in found] == [bytes([kind << 4 | flags, len(body)]) + body]


@settings(max_examples=500)
@given(PACKETS, st.data())
def test_one_changed_byte_gives_packets_or_malformed_packet(packet: p.Packet, data: st.DataObject) -> None:
    stream = bytearray(encode(packet))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        list(Parser(CAP_BYTES).feed(stream))
    except MalformedPacket:
        return


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\x00\x00", "MQTT-2.2.1"),
        (b"\xf0\x00", "MQTT-2.2.1"),
        (b"\x62", None),
        (b"\x60", "MQTT-2.2.2-2"),
        (b"\x80", "MQTT-2.2.2-2"),
        (b"\xa0", "MQTT-2.2.2-2"),
        (b"\xc1", "MQTT-2.2.2-2"),
        (b"\x36", "MQTT-3.3.1-4"),
        (b"\x38", "MQTT-3.3.1-2"),
        (b"\xc0\x80\x80\x80\x80", "MQTT-2.2.3"),
        (b"\xc0\x01x", "MQTT-2.2.3"),
        (b"\x40\x01x", "MQTT-2.2.3"),
        (b"\x40\x03\x00\x01x", "MQTT-2.2.3"),
        (b"\x40\x02\x00\x00", "MQTT-2.3.1-1"),
        (b"\x30\x03\x00\x01\xff", "MQTT-1.5.3-1"),
        (b"\x30\x05\x00\x03\xed\xa0\x80", "MQTT-1.5.3-1"),
        (b"\x30\x04\x00\x02\xc0\x80", "MQTT-1.5.3-1"),  # an overlong form
        (b"\x30\x03\x00\x01\x00", "MQTT-1.5.3-2"),
        (b"\x30\x03\x00\x01#", "MQTT-3.3.2-2"),
        (b"\x30\x02\x00\x00", "MQTT-3.3.2-2"),
        (b"\x30\xca\x01\x00\xc8" + b"/" * 200, "MQTT-3.3.2-2"),
        (b"\x82\x02\x00\x01", "MQTT-3.8.3-3"),
        (b"\x82\x06\x00\x01\x00\x01a\x03", "MQTT-3.8.3-4"),
        (b"\x82\x05\x00\x01\x00\x00\x00", "MQTT-4.7.1"),
        (b"\x82\x07\x00\x01\x00\x02a+\x00", "MQTT-4.7.1"),
        (b"\xa2\x02\x00\x01", "MQTT-3.10.3-2"),
        (b"\x10\x0c\x00\x04MQTX\x04\x02\x00\x3c\x00\x00", "MQTT-3.1.2-1"),
        (b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x3c\x00\x00", "MQTT-3.1.2-2"),
        (b"\x10\x0c\x00\x04MQTT\x04\x03\x00\x3c\x00\x00", "MQTT-3.1.2-3"),
        (b"\x10\x0c\x00\x04MQTT\x04\x20\x00\x3c\x00\x00", "MQTT-3.1.2-13"),
        (b"\x10\x0c\x00\x04MQTT\x04\x1e\x00\x3c\x00\x00", "MQTT-3.1.2-14"),
        (b"\x10\x0c\x00\x04MQTT\x04\x42\x00\x3c\x00\x00", "MQTT-3.1.2-22"),
        (b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x00x", "MQTT-2.2.3"),
        (b"\x20\x02\x01\x05", "MQTT-3.2.2"),
        (b"\x20\x02\x00\x06", "MQTT-3.2.2"),
        (b"\x90\x03\x00\x01\x03", "MQTT-3.9.3-2"),
    ],
)
def test_a_broken_rule_is_named(data: bytes, rule: str | None) -> None:
    parser = Parser(CAP_BYTES)
    if rule is None:
        assert list(parser.feed(data)) == []
        return
    with pytest.raises(MalformedPacket) as caught:
        list(parser.feed(data))
    assert caught.value.rule == rule


def test_the_cap_is_on_the_announced_length_and_exact() -> None:
    at_cap = encode(p.Publish("a", bytes(997)))
    assert len(list(Parser(1000).feed(at_cap))) == 1
    with pytest.raises(PacketTooLarge, match="1001 bytes announced, at most 1000"):
        list(Parser(1000).feed(encode(p.Publish("a", bytes(998)))[:3]))


def test_nothing_is_allocated_for_a_packet_over_the_cap() -> None:
    parser = Parser(1000)
    tracemalloc.start()
    try:
        with pytest.raises(PacketTooLarge):
            list(parser.feed(b"\x30\xff\xff\xff\x7f"))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_only_the_expected_packet_type_is_accepted_before_login() -> None:
    with pytest.raises(MalformedPacket, match="only type 1 is allowed"):
        list(Parser(CAP_BYTES, only=p.CONNECT).feed(b"\xc0"))


def test_packets_before_a_broken_one_are_given_out_first() -> None:
    stream = Parser(CAP_BYTES).feed(encode(p.Pingreq()) + b"\x00")
    assert next(stream) == p.Pingreq()
    with pytest.raises(MalformedPacket):
        next(stream)


@pytest.mark.parametrize("size", [0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_remaining_lengths_on_both_sides_of_each_byte_count(size: int) -> None:
    packet = p.Publish("t", bytes(max(0, size - 3)))
    (found,) = Parser(1 << 22).feed(encode(packet))
    assert found == packet


@pytest.mark.parametrize("size", [FIRST_BYTES, FIRST_BYTES + 1, (1 + GROWTH) * FIRST_BYTES, 1 << 20])
@pytest.mark.parametrize("piece_bytes", [1 << 14, 100_003, 1 << 21])
def test_a_body_that_comes_in_pieces_grows_to_its_length(size: int, piece_bytes: int) -> None:
    packet = p.Publish("t", bytes(i & 255 for i in range(251)) * (size // 251) + bytes(size % 251 - 3))
    stream = encode(packet)
    pieces = [stream[at : at + piece_bytes] for at in range(0, len(stream), piece_bytes)]
    parser = Parser(1 << 22)
    assert [found for piece in pieces for found in parser.feed(piece)] == [packet]
    assert through_socket_buffers(stream, pieces) == [packet]


def test_fields_that_mqtt_cannot_carry_are_refused_when_written() -> None:
    with pytest.raises(ValueError, match="65535"):
        encode(p.Connect("x" * 65_536))
    with pytest.raises(ValueError, match="268435455"):
        p.publish_head(b"t", 1 << 28, 0, 0, retain=False, dup=False)

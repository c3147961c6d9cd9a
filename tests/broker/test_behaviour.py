"""What both brokers promise of MQTT 3.1.1: one test a clause. Client ids and topics are new in every test."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from coordinator.broker.packets import (
    Connack,
    Connect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.raw_client import RawClient

    Clients = Callable[[], RawClient]

QOS = (0, 1, 2)


def logged_in(client: Clients, client_id: str, **fields: object) -> RawClient:
    made = client()
    assert made.log_in(client_id, **fields).code == 0
    return made


def reset(raw: RawClient) -> None:
    """End the connection the hard way: RST, no DISCONNECT."""
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.sock.close()


# Messages


@pytest.mark.parametrize("published", QOS)
@pytest.mark.parametrize("granted", QOS)
def test_a_message_comes_with_the_lower_qos(client: Clients, name: str, published: int, granted: int) -> None:
    subscriber, publisher = logged_in(client, f"{name}s"), logged_in(client, f"{name}p")
    assert subscriber.subscribe((name, granted)) == (granted,)
    publisher.publish(name, b"x", published)
    (message,) = subscriber.messages()
    assert (message.topic, bytes(message.payload), message.qos) == (name, b"x", min(published, granted))
    assert (message.dup, message.retain) == (False, False)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 65_536, 250_000])
def test_payloads_of_every_size_come_unchanged(client: Clients, name: str, size: int) -> None:
    subscriber, publisher = logged_in(client, f"{name}s"), logged_in(client, f"{name}p")
    subscriber.subscribe((name, 1))
    payload = bytes(i * i & 255 for i in range(size))
    publisher.publish(name, payload, 1)
    assert bytes(subscriber.next_message().payload) == payload


@pytest.mark.parametrize("qos", QOS)
def test_messages_of_one_topic_stay_in_order(client: Clients, name: str, qos: int) -> None:
    subscriber, publisher = logged_in(client, f"{name}s"), logged_in(client, f"{name}p")
    subscriber.subscribe((name, qos))
    for number in range(300):
        publisher.publish(name, str(number).encode(), qos)
    assert [int(bytes(subscriber.next_message().payload)) for _ in range(300)] == list(range(300))


def test_a_publisher_that_subscribes_gets_its_own_messages(client: Clients, name: str) -> None:
    one = logged_in(client, name)
    one.subscribe((name, 1))
    one.publish(name, b"echo", 1)
    assert bytes(one.next_message().payload) == b"echo"


def test_a_qos_2_message_sent_again_before_pubrel_is_passed_on_once(client: Clients, name: str) -> None:
    subscriber, publisher = logged_in(client, f"{name}s"), logged_in(client, f"{name}p")
    subscriber.subscribe((name, 2))
    for dup in (False, True):
        publisher.send(Publish(name, b"once", 2, dup=dup, packet_id=7))
        assert publisher.expect(Pubrec).packet_id == 7
    publisher.send(Pubrel(7))
    assert publisher.expect(Pubcomp).packet_id == 7
    assert [bytes(m.payload) for m in subscriber.messages()] == [b"once"]


def test_a_pubrel_for_an_unknown_message_is_answered(client: Clients, name: str) -> None:
    one = logged_in(client, name)
    one.send(Pubrel(99))
    assert one.expect(Pubcomp).packet_id == 99


def test_an_acknowledgement_never_lands_inside_a_large_message(client: Clients, name: str) -> None:
    both, publisher = logged_in(client, f"{name}b"), logged_in(client, f"{name}p")
    both.subscribe((name, 0))
    for number in range(40):
        publisher.send(Publish(name, bytes([number]) * 250_000))
        both.send(Publish(f"{name}/other", b"x", 1, packet_id=number + 1))
    publisher.settle()
    got = [bytes(both.expect(Publish).payload) for _ in range(40)]
    assert got == [bytes([number]) * 250_000 for number in range(40)]
    assert [both.expect(Puback).packet_id for _ in range(40)] == list(range(1, 41))


# Subscriptions


@pytest.mark.parametrize(
    ("wanted", "topic", "matches"),
    [
        ("{}/a", "{}/a", True),
        ("{}/a", "{}/A", False),
        ("{}/a", "{}/a/", False),
        ("{}/+", "{}/a", True),
        ("{}/+", "{}/", True),
        ("{}/+", "{}", False),
        ("{}/+", "{}/a/b", False),
        ("{}/#", "{}", True),
        ("{}/#", "{}/a/b/c", True),
        ("{}/+/b/#", "{}/a/b", True),
        ("{}/+/b/#", "{}/a/c/b", False),
        ("+/{}", "/{}", True),
        ("/{}", "{}", False),
        ("+/+/{}/+", "//{}/", True),
    ],
)
def test_filters_match_as_chapter_4_7_says(
    client: Clients, name: str, wanted: str, topic: str, *, matches: bool
) -> None:
    subscriber, publisher = logged_in(client, f"{name}s"), logged_in(client, f"{name}p")
    subscriber.subscribe((wanted.format(name), 1))
    publisher.publish(topic.format(name), b"x", 1)
    assert len(subscriber.messages()) == matches
    publisher.publish(topic.format(name), b"retained", 1, retain=True)
    late = logged_in(client, f"{name}l")
    late.subscribe((wanted.format(name), 1))
    assert len(late.messages()) == matches
    publisher.publish(topic.format(name), b"", 1, retain=True)


def test_one_subscribe_may_hold_many_filters(client: Clients, name: str) -> None:
    one = logged_in(client, name)
    assert one.subscribe((f"{name}/a", 0), (f"{name}/b", 2), (f"{name}/+/c", 1)) == (0, 2, 1)


def test_subscribing_again_replaces_the_qos(client: Clients, name: str) -> None:
    one = logged_in(client, name)
    one.subscribe((name, 2))
    one.subscribe((name, 0))
    one.publish(name, b"x", 2)
    assert [m.qos for m in one.messages()] == [0]


def test_unsubscribe_ends_the_messages_of_that_filter_only(client: Clients, name: str) -> None:
    one = logged_in(client, name)
    one.subscribe((f"{name}/a", 1), (f"{name}/+/b", 1), (f"{name}/c", 1))
    one.send(Unsubscribe(50, (f"{name}/a", f"{name}/+/b", f"{name}/never")))
    assert one.expect(Unsuback).packet_id == 50
    for topic in ("a", "x/b", "c"):
        one.publish(f"{name}/{topic}", b"x", 1)
    assert [m.topic for m in one.messages()] == [f"{name}/c"]


# Retained messages


def test_retained_messages_come_with_the_flag_to_later_subscribers_only(client: Clients, name: str) -> None:
    early, publisher = logged_in(client, f"{name}e"), logged_in(client, f"{name}p")
    early.subscribe((name, 1))
    publisher.publish(name, b"old", 1, retain=True)
    publisher.publish(name, b"new", 1, retain=True)
    late = logged_in(client, f"{name}l")
    late.subscribe((name, 1))
    assert [(bytes(m.payload), m.retain) for m in early.messages()] == [(b"old", False), (b"new", False)]
    assert [(bytes(m.payload), m.retain) for m in late.messages()] == [(b"new", True)]


def test_retained_messages_come_again_with_every_subscribe(client: Clients, name: str) -> None:
    one = logged_in(client, name)
    one.publish(name, b"kept", 1, retain=True)
    for _ in range(3):
        one.subscribe((name, 1))
        assert [bytes(m.payload) for m in one.messages()] == [b"kept"]


def test_a_client_that_subscribes_to_nothing_gets_no_retained_message(client: Clients, name: str) -> None:
    publisher = logged_in(client, f"{name}p")
    publisher.publish(name, b"secret", 1, retain=True)
    other = logged_in(client, f"{name}o")
    other.subscribe((f"{name}/elsewhere", 1))
    assert other.messages() == []


def test_an_empty_retained_message_clears_the_topic(client: Clients, name: str) -> None:
    one = logged_in(client, name)
    one.publish(name, b"kept", 1, retain=True)
    one.publish(name, b"", 1, retain=True)
    one.subscribe((name, 1))
    assert one.messages() == []


def test_chunks_are_pulled_by_subscribing_to_their_topics(client: Clients, name: str) -> None:
    publisher, device = logged_in(client, f"{name}p"), logged_in(client, f"{name}d")
    for i in range(32):
        publisher.publish(f"{name}/{i}", bytes([i]) * 65_540, 1, retain=True)
    for first in range(0, 32, 4):
        topics = [f"{name}/{i}" for i in range(first, first + 4)]
        device.subscribe(*((topic, 1) for topic in topics))
        got = {m.topic: bytes(m.payload) for m in (device.next_message() for _ in topics)}
        assert got == {f"{name}/{i}": bytes([i]) * 65_540 for i in range(first, first + 4)}
        device.send(Unsubscribe(1000 + first, tuple(topics)))
        device.expect(Unsuback)


# Sessions


def test_a_clean_session_leaves_nothing_behind(client: Clients, name: str) -> None:
    first = logged_in(client, name)
    first.subscribe((name, 1))
    first.disconnect()
    second = client()
    assert second.log_in(name, clean_session=False) == Connack(session_present=False, code=0)
    second.publish(name, b"x", 1)
    assert second.messages() == []


def test_a_clean_login_deletes_the_stored_session(client: Clients, name: str) -> None:
    logged_in(client, name, clean_session=False).disconnect()
    logged_in(client, name, clean_session=True).disconnect()
    assert not client().log_in(name, clean_session=False).session_present


def test_a_stored_session_keeps_subscriptions_and_messages(client: Clients, name: str) -> None:
    first, publisher = client(), logged_in(client, f"{name}p")
    assert not first.log_in(name, clean_session=False).session_present
    first.subscribe((name, 1))
    first.disconnect()
    for number in range(200):
        publisher.publish(name, str(number).encode(), 1)
    again = client()
    assert again.log_in(name, clean_session=False).session_present
    assert [int(bytes(again.next_message().payload)) for _ in range(200)] == list(range(200))


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_not_acknowledged_comes_again_with_dup(client: Clients, name: str, qos: int) -> None:
    first, publisher = logged_in(client, name, clean_session=False), logged_in(client, f"{name}p")
    first.subscribe((name, qos))
    publisher.publish(name, b"x", qos)
    sent = first.expect(Publish)
    assert not sent.dup
    reset(first)
    again = logged_in(client, name, clean_session=False)
    repeated = again.next_message()
    assert repeated.dup
    assert (repeated.packet_id, bytes(repeated.payload), repeated.qos) == (sent.packet_id, b"x", qos)
    assert again.messages() == []


def test_after_pubrec_only_pubrel_comes_again(client: Clients, name: str) -> None:
    first, publisher = logged_in(client, name, clean_session=False), logged_in(client, f"{name}p")
    first.subscribe((name, 2))
    publisher.publish(name, b"x", 2)
    packet_id = first.expect(Publish).packet_id
    first.send(Pubrec(packet_id))
    first.expect(Pubrel)
    reset(first)
    again = logged_in(client, name, clean_session=False)
    assert again.expect(Pubrel).packet_id == packet_id
    again.send(Pubcomp(packet_id))
    assert again.messages() == []


def test_a_qos_2_publish_is_completed_over_a_reconnect(client: Clients, name: str) -> None:
    subscriber, first = logged_in(client, f"{name}s"), logged_in(client, name, clean_session=False)
    subscriber.subscribe((name, 2))
    first.send(Publish(name, b"x", 2, packet_id=5))
    first.expect(Pubrec)
    reset(first)
    again = logged_in(client, name, clean_session=False)
    again.send(Publish(name, b"x", 2, dup=True, packet_id=5))
    again.expect(Pubrec)
    again.send(Pubrel(5))
    again.expect(Pubcomp)
    assert [bytes(m.payload) for m in subscriber.messages()] == [b"x"]


def test_the_second_connection_with_a_client_id_closes_the_first(client: Clients, name: str) -> None:
    first = logged_in(client, name)
    second = logged_in(client, name)
    first.expect_close()
    second.subscribe((name, 1))
    second.publish(name, b"x", 1)
    assert len(second.messages()) == 1


# Wills


@pytest.mark.parametrize("qos", QOS)
def test_a_broken_connection_publishes_the_will(client: Clients, name: str, qos: int) -> None:
    watcher = logged_in(client, f"{name}w")
    watcher.subscribe((f"{name}/will", 2))
    reset(logged_in(client, name, will=Will(f"{name}/will", b"lost", qos)))
    message = watcher.next_message()
    assert (bytes(message.payload), message.qos, message.retain) == (b"lost", qos, False)


def test_a_retained_will_is_kept(client: Clients, name: str) -> None:
    watcher = logged_in(client, f"{name}w")
    watcher.subscribe((f"{name}/will", 1))
    reset(logged_in(client, name, will=Will(f"{name}/will", b"lost", 1, retain=True)))
    watcher.next_message()
    late = logged_in(client, f"{name}l")
    late.subscribe((f"{name}/will", 1))
    assert [(bytes(m.payload), m.retain) for m in late.messages()] == [(b"lost", True)]


def test_a_disconnect_takes_the_will_back(client: Clients, name: str) -> None:
    watcher = logged_in(client, f"{name}w")
    watcher.subscribe((f"{name}/will", 1))
    logged_in(client, name, will=Will(f"{name}/will", b"lost", 1)).disconnect()
    assert watcher.messages() == []


def test_a_taken_over_client_id_publishes_the_will(client: Clients, name: str) -> None:
    watcher = logged_in(client, f"{name}w")
    watcher.subscribe((f"{name}/will", 1))
    first = logged_in(client, name, will=Will(f"{name}/will", b"lost", 1))
    logged_in(client, name)
    first.expect_close()
    assert bytes(watcher.next_message().payload) == b"lost"


def test_a_protocol_error_publishes_the_will(client: Clients, name: str) -> None:
    watcher = logged_in(client, f"{name}w")
    watcher.subscribe((f"{name}/will", 1))
    logged_in(client, name, will=Will(f"{name}/will", b"lost", 1)).send(b"\xf0\x00")
    assert bytes(watcher.next_message().payload) == b"lost"


# Logins and broken rules


def test_an_mqtt_5_or_3_1_0_login_is_answered_or_closed(client: Clients, port: int) -> None:
    assert port
    other = client()
    other.send(b"\x10\x0f\x00\x04MQTT\x09\x02\x00\x3c\x00\x03abc")
    other.expect_close()
    assert other.inbox in ([], [Connack(session_present=False, code=1)])


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x03\x00\x01a",  # PUBLISH first
        b"\xc0\x00",  # PINGREQ first
        b"\x10\x0c\x00\x04HTTP\x04\x02\x00\x3c\x00\x00",  # another protocol
        b"\x11\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00",  # reserved flag of the fixed header
        b"\x10\x0c\x00\x04MQTT\x04\x03\x00\x3c\x00\x00",  # reserved connect flag
        b"\x10\x0c\x00\x04MQTT\x04\x1a\x00\x3c\x00\x00",  # will QoS without a will
        b"\x10\xff\xff\xff\xff\x01",  # a fifth length byte
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_connection_that_does_not_begin_with_a_good_connect_is_closed(client: Clients, data: bytes) -> None:
    stranger = client()
    stranger.send(data)
    stranger.expect_close()
    assert stranger.inbox in ([], [Connack(session_present=False, code=1)])


@pytest.mark.parametrize(
    "data",
    [
        b"\x36\x05\x00\x01a\x00\x01",  # QoS 3
        b"\x30\x04\x00\x02a+",  # a wildcard in a topic name
        b"\x30\x02\x00\x00",  # an empty topic name
        b"\x30\x03\x00\x01\x00",  # U+0000
        b"\x30\x05\x00\x03\xed\xa0\x80",  # a surrogate
        b"\x32\x05\x00\x01a\x00\x00",  # packet identifier 0
        b"\x80\x06\x00\x01\x00\x01a\x00",  # SUBSCRIBE flags
        b"\x82\x02\x00\x01",  # SUBSCRIBE without a filter
        b"\x82\x06\x00\x01\x00\x01a\x03",  # requested QoS 3
        b"\x82\x07\x00\x01\x00\x02a#\x00",  # '#' not alone in its level
        b"\x82\x08\x00\x01\x00\x03#/a\x00",  # '#' not last
        b"\xa2\x02\x00\x01",  # UNSUBSCRIBE without a filter
        b"\xf0\x00",  # packet type 15
        b"\x00\x00",  # packet type 0
        b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a",  # a second CONNECT
    ],
)
def test_a_broken_rule_ends_the_connection(client: Clients, name: str, data: bytes) -> None:
    one = logged_in(client, name)
    one.send(data)
    one.expect_close()
    assert one.inbox == []


def test_packets_before_a_broken_one_still_count(client: Clients, name: str) -> None:
    watcher, one = logged_in(client, f"{name}w"), logged_in(client, name)
    watcher.subscribe((name, 0))
    one.send(b"\x30" + bytes([2 + len(name) + 1]) + len(name).to_bytes(2) + name.encode() + b"x" + b"\xf0\x00")
    one.expect_close()
    assert [bytes(m.payload) for m in watcher.messages()] == [b"x"]


def test_packets_may_arrive_byte_by_byte(client: Clients, name: str) -> None:
    one = client()
    one.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = encode(Connect(name)) + encode(Subscribe(3, ((name, 1),))) + encode(Publish(name, b"abc", 1, packet_id=4))
    for byte in stream:
        one.send(bytes([byte]))
    assert one.expect(Connack).code == 0
    assert one.expect(Suback).packet_id == 3
    assert one.expect(Puback).packet_id == 4
    assert bytes(one.next_message().payload) == b"abc"

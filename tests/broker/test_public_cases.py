"""The cases by which brokers are commonly judged, under their usual names, in our own words.

The names are those of the 3.1.1 client tests of the Eclipse Paho interoperability suite.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from coordinator.broker.packets import Connack, Connect, Pingreq, Pingresp, Publish, Unsuback, Unsubscribe, Will

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.conftest import Embedded
    from broker.raw_client import RawClient

    from coordinator.broker import RunningBroker

    Clients = Callable[[], RawClient]


def logged_in(client: Clients, client_id: str, **fields: object) -> RawClient:
    made = client()
    assert made.log_in(client_id, **fields).code == 0
    return made


def payloads(messages: list[Publish]) -> list[bytes]:
    return [bytes(message.payload) for message in messages]


def test_basic(client: Clients, name: str) -> None:
    logged_in(client, name).disconnect()
    one = logged_in(client, name)
    one.subscribe((name, 2))
    for qos in range(3):
        one.publish(name, f"qos {qos}".encode(), qos)
    assert sorted(payloads(one.messages())) == [b"qos 0", b"qos 1", b"qos 2"]
    one.send(Connect(name))  # a second CONNECT on one connection
    one.expect_close()


def test_retained_messages(client: Clients, name: str) -> None:
    one = logged_in(client, name)
    for qos in range(3):
        one.publish(f"{name}/{qos}", f"qos {qos}".encode(), qos, retain=True)
    one.subscribe((f"{name}/+", 2))
    kept = one.messages()
    assert sorted((bytes(m.payload), m.qos, m.retain) for m in kept) == [
        (b"qos 0", 0, True),
        (b"qos 1", 1, True),
        (b"qos 2", 2, True),
    ]
    for qos in range(3):
        one.publish(f"{name}/{qos}", b"", qos, retain=True)
    one.messages()
    one.subscribe((f"{name}/+", 2))
    assert one.messages() == []


def test_offline_message_queueing(client: Clients, name: str) -> None:
    absent = logged_in(client, name, clean_session=False)
    absent.subscribe((f"{name}/+", 2))
    absent.disconnect()
    publisher = logged_in(client, f"{name}p")
    for qos in range(3):
        publisher.publish(f"{name}/{qos}", f"qos {qos}".encode(), qos)
    again = client()
    assert again.log_in(name, clean_session=False).session_present
    assert payloads(again.messages()) == [b"qos 1", b"qos 2"]  # neither broker keeps QoS 0


def test_will_message(client: Clients, name: str) -> None:
    watcher = logged_in(client, f"{name}w", clean_session=False)
    watcher.subscribe((f"{name}/will", 2))
    one = logged_in(client, name, will=Will(f"{name}/will", b"client not disconnected"), keepalive_s=2)
    one.sock.close()
    assert bytes(watcher.next_message().payload) == b"client not disconnected"
    assert watcher.messages() == []


def test_overlapping_subscriptions(broker: RunningBroker, client: Clients, name: str) -> None:
    one = logged_in(client, name)
    one.subscribe((f"{name}/#", 2), (f"{name}/+", 1))
    one.publish(f"{name}/a", b"overlapping", 2)
    granted = sorted(message.qos for message in one.messages())
    if broker.kind == "embedded":
        assert granted == [2]  # once, with the higher QoS
    else:
        assert granted in ([2], [1, 2], [1])  # the standard's two choices, and what mosquitto 2.0.11 does


def test_keepalive(client: Clients, name: str) -> None:
    watcher = logged_in(client, f"{name}w")
    watcher.subscribe((f"{name}/will", 2))
    silent = logged_in(client, name, keepalive_s=1, will=Will(f"{name}/will", b"keepalive expiry"))
    began_s = time.monotonic()
    assert bytes(watcher.next_message().payload) == b"keepalive expiry"
    assert time.monotonic() - began_s >= 1.0  # at least the interval itself; the grace is half of it
    silent.expect_close()


def test_redelivery_on_reconnect(client: Clients, name: str) -> None:
    one = logged_in(client, name, clean_session=False)
    one.subscribe((f"{name}/#", 2))
    publisher = logged_in(client, f"{name}p")
    publisher.publish(f"{name}/1", b"qos 1", 1)
    publisher.publish(f"{name}/2", b"qos 2", 2)
    assert len([one.expect(Publish), one.expect(Publish)]) == 2  # received, not acknowledged
    one.disconnect()
    again = logged_in(client, name, clean_session=False)
    repeated = again.messages()
    assert [(bytes(m.payload), m.qos, m.dup) for m in repeated] == [(b"qos 1", 1, True), (b"qos 2", 2, True)]


def test_subscribe_failure(embedded: Callable[..., Embedded]) -> None:
    one = embedded("--max-subscriptions", "2").client("one")
    assert one.subscribe(("a", 1), ("b", 1), ("c", 1)) == (1, 1, 0x80)
    assert one.subscribe(("a", 2)) == (2,)  # no further one, so it is not refused


def test_subscribe_failure_where_subscribing_is_denied(embedded: Callable[..., Embedded]) -> None:
    one = embedded("--deny-subscribe", "private/#").client("one")
    refused = ("private", "private/a", "private/#", "+/a", "#", "+/+/b")
    assert one.subscribe(*((name, 2) for name in refused)) == (0x80,) * len(refused)
    assert one.subscribe(("public", 1), ("public/+", 1), ("$SYS/#", 0)) == (1, 1, 0)


def test_zero_length_client_id(client: Clients) -> None:
    kept = client()
    assert kept.log_in("", clean_session=False) == Connack(session_present=False, code=2)
    kept.expect_close()
    clean = [logged_in(client, ""), logged_in(client, "")]  # two at once: each gets an id of its own
    for one in clean:
        one.send(Pingreq())
        assert one.expect(Pingresp) == Pingresp()


def test_unsubscribe(client: Clients, name: str) -> None:
    one = logged_in(client, name)
    topics = [f"{name}/{i}" for i in range(3)]
    for topic in topics:
        one.subscribe((topic, 2))
    one.send(Unsubscribe(77, (topics[0],)))
    assert one.expect(Unsuback).packet_id == 77
    publisher = logged_in(client, f"{name}p")
    for topic in topics:
        publisher.publish(topic, b"x", 1)
    assert [message.topic for message in one.messages()] == topics[1:]


@pytest.mark.parametrize("wide", ["#", "+/{}", "+/#"])
def test_dollar_topics(client: Clients, name: str, wide: str) -> None:
    blind, seeing = logged_in(client, f"{name}b"), logged_in(client, f"{name}s")
    blind.subscribe((wide.format(name), 2))
    seeing.subscribe((f"$edge/{name}", 2))
    seeing.publish(f"$edge/{name}", b"x", 1)
    assert [m for m in blind.messages() if m.topic.startswith("$")] == []
    assert payloads(seeing.messages()) == [b"x"]

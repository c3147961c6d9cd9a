"""The embedded broker under load and abuse: its limits hold, and the others do not notice."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from typing import TYPE_CHECKING

import pytest
from broker.raw_client import ClosedByBrokerError, RawClient

from coordinator.broker.packets import Connack, Publish, Subscribe, Will, encode
from support.process import peak_rss_kb, rss_kb

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.conftest import Embedded

    Start = Callable[..., Embedded]

CHUNK = bytes(64 * 1024)


def send_until_closed(client: RawClient, data: bytes, n_bytes: int) -> int:
    """Send up to so many bytes; return how many went before the broker closed the connection."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < n_bytes:
            sent += client.sock.send(data)
    return sent


def assert_serves(broker: Embedded, name: str) -> None:
    """Two new clients exchange a message."""
    subscriber, publisher = broker.client(f"{name}-s"), broker.client(f"{name}-p")
    subscriber.subscribe((f"check/{name}", 1))
    publisher.publish(f"check/{name}", b"well", 1)
    assert bytes(subscriber.next_message().payload) == b"well"


def test_an_oversized_connect_is_closed_and_costs_no_memory(embedded: Start) -> None:
    broker = embedded()
    before_kb = rss_kb(broker.process.pid)
    for _ in range(20):
        stranger = broker.client()
        stranger.send(b"\x10\x80\x80\x80\x7d\x00\x04MQTT\x04\x02\x00\x3c")  # announces 250 MB
        assert send_until_closed(stranger, bytes(1 << 20), 250 << 20) < 20 << 20
    assert peak_rss_kb(broker.process.pid) - before_kb < 4096
    assert_serves(broker, "after")


def test_a_connect_may_be_as_large_as_its_cap_and_no_larger(embedded: Start) -> None:
    broker = embedded("--max-connect-kb", "1")
    # Variable header 10 bytes, client id 3, will topic 3, will message 2 + n.
    assert broker.client().log_in("a", will=Will("w", bytes(1024 - 18))).code == 0
    over = broker.client()
    with pytest.raises(ClosedByBrokerError):
        over.log_in("b", will=Will("w", bytes(1024 - 17)))


def test_a_publish_that_announces_200_mb_is_closed_and_costs_no_memory(embedded: Start) -> None:
    broker = embedded()
    before_kb = rss_kb(broker.process.pid)
    for number in range(40):
        hostile = broker.client(f"h{number}")
        hostile.send(b"\x30\x80\x80\x80\x64\x00\x01a")
        hostile.expect_close()
    assert peak_rss_kb(broker.process.pid) - before_kb < 4096
    assert "at most 307200 accepted" in broker.log.read_text()


def test_a_publish_may_be_as_large_as_the_cap_and_a_larger_one_is_named_in_a_warning(embedded: Start) -> None:
    broker = embedded("--max-packet-kb", "1")
    subscriber, publisher = broker.client("reader"), broker.client("big-sender")
    subscriber.subscribe(("t", 0))
    publisher.publish("t", bytes(1024 - 3), 0)  # a topic of one letter takes three bytes
    assert len(subscriber.next_message().payload) == 1021
    publisher.send(Publish("t", bytes(1024 - 2), 0))
    publisher.expect_close()
    (warning,) = [line for line in broker.log.read_text().splitlines() if "big-sender" in line]
    assert "1025 bytes announced, at most 1024 accepted here" in warning
    assert "--max-packet-kb" in warning
    assert_serves(broker, "after")


def test_clients_that_announce_the_cap_and_stall_cost_little(embedded: Start) -> None:
    broker = embedded()
    before_kb = rss_kb(broker.process.pid)
    for number in range(100):
        broker.client(f"h{number}").send(b"\x30\xff\xdf\x12\x00\x01a")
    assert_serves(broker, "during")
    assert peak_rss_kb(broker.process.pid) - before_kb < 12_288  # not the 30 MB announced


def test_a_connect_that_drips_is_closed_in_time(embedded: Start) -> None:
    broker = embedded("--connect-timeout-s", "0.4")
    silent, dripping = broker.client(), broker.client()
    until_s = time.monotonic() + 20
    with contextlib.suppress(ConnectionError):
        for byte in b"\x10\xff\x01\x00\x04MQTT\x04\x02\x00\x3c\x00\xf0" + bytes(1000):
            assert time.monotonic() < until_s
            dripping.send(bytes([byte]))
            if select.select([dripping.sock], [], [], 0.05)[0]:
                break
    dripping.expect_close()
    silent.expect_close()
    assert_serves(broker, "after")


def test_connections_over_the_limit_are_closed_and_room_is_reused(embedded: Start) -> None:
    broker = embedded("--max-connections", "3")
    clients = [broker.client(f"c{i}") for i in range(3)]
    broker.client().expect_close()
    assert "connection refused" in broker.log.read_text()
    clients[0].disconnect()
    clients[1].settle()
    broker.client("again").settle()


def test_200_idle_connections_cost_little_and_do_not_slow_the_others(embedded: Start) -> None:
    broker = embedded()
    before_kb = rss_kb(broker.process.pid)
    idle = [broker.client(f"idle{i}") for i in range(200)]
    assert_serves(broker, "busy")
    assert (peak_rss_kb(broker.process.pid) - before_kb) / len(idle) < 16
    idle[-1].settle()


def test_sessions_over_the_limit_are_refused_with_code_3(embedded: Start) -> None:
    broker = embedded("--max-sessions", "2")
    first = broker.client()
    assert first.log_in("a", clean_session=False).code == 0
    first.disconnect()
    broker.client("b")
    assert broker.client().log_in("c") == Connack(session_present=False, code=3)
    assert broker.client().log_in("a", clean_session=False) == Connack(session_present=True, code=0)


def test_an_absent_clients_session_expires(embedded: Start) -> None:
    broker = embedded("--session-expiry-s", "0.2")
    first = broker.client()
    first.log_in("a", clean_session=False)
    first.disconnect()
    until_s = time.monotonic() + 20
    while "the session of client 'a' is forgotten" not in broker.log.read_text():
        assert time.monotonic() < until_s
        select.select([], [], [], 0.05)
    assert not broker.client().log_in("a", clean_session=False).session_present


def stream_of(topic: str, count: int, qos: int = 1) -> list[bytes]:
    return [
        encode(Publish(topic, number.to_bytes(4) + CHUNK[4:], qos, packet_id=number % 60_000 + 1 if qos else 0))
        for number in range(count)
    ]


@pytest.mark.slow
def test_a_stalled_subscriber_is_cut_off_in_bounded_memory_while_others_are_served(embedded: Start) -> None:
    broker = embedded("--stall-s", "1")
    stalled = broker.client("stalled", receive_buffer_bytes=4096)
    stalled.subscribe(("flood", 1))
    publisher = broker.client("publisher")
    before_kb = rss_kb(broker.process.pid)
    acknowledged: list[int] = []

    def flood() -> None:
        for number in range(3000):
            publisher.publish("flood", CHUNK, 1)
            acknowledged.append(number)

    flooding = threading.Thread(target=flood)
    flooding.start()
    subscriber, other = broker.client("subscriber"), broker.client("other")
    subscriber.subscribe(("calm", 1))
    exchanged = 0
    while flooding.is_alive():
        other.publish("calm", str(exchanged).encode(), 1)
        assert bytes(subscriber.next_message().payload) == str(exchanged).encode()
        exchanged += 1
    flooding.join()
    assert len(acknowledged) == 3000
    assert exchanged > 100
    assert (peak_rss_kb(broker.process.pid) - before_kb) / 1024 < 64  # half the queue, and what was on its way
    assert "the session of client 'stalled' is forgotten" in broker.log.read_text()
    stalled.expect_close()


@pytest.mark.parametrize("qos", [0, 1])
def test_a_slow_subscriber_makes_its_publisher_wait_and_misses_nothing(embedded: Start, qos: int) -> None:
    broker = embedded("--queue-mb-per-client", "2")
    slow, publisher = broker.client("slow", receive_buffer_bytes=8192), broker.client("publisher")
    slow.subscribe(("t", qos))
    count = 400  # 25 MB through a queue of 2
    flooding = threading.Thread(target=lambda: [publisher.send(packet) for packet in stream_of("t", count, qos)])
    flooding.start()
    got = [int.from_bytes(slow.next_message().payload[:4]) for _ in range(count)]
    flooding.join()
    assert got == list(range(count))
    publisher.settle()
    assert broker.log.read_text() == ""


def test_two_clients_that_flood_each_other_do_not_wait_for_ever(embedded: Start) -> None:
    broker = embedded("--queue-mb-per-client", "16")
    pair = [broker.client("a", receive_buffer_bytes=4096), broker.client("b", receive_buffer_bytes=4096)]
    pair[0].subscribe(("to-a", 0))
    pair[1].subscribe(("to-b", 0))
    count = 224  # 14 MB each way: more than half a queue and what the kernel holds, less than a queue
    streams = [stream_of("to-b", count, 1), stream_of("to-a", count, 1)]
    floods = [
        threading.Thread(target=lambda client=client, stream=stream: [client.send(packet) for packet in stream])
        for client, stream in zip(pair, streams, strict=True)
    ]
    for flood in floods:
        flood.start()
    while all(flood.is_alive() for flood in floods):  # the one that is not held gets to its end
        floods[0].join(0.05)
    for client in pair:
        got = [int.from_bytes(client.expect(Publish).payload[:4]) for _ in range(count)]
        assert got == list(range(count))
    for flood in floods:
        flood.join()


def test_a_full_queue_of_an_absent_client_ends_its_session_and_says_so(embedded: Start) -> None:
    broker = embedded("--queue-mb-per-client", "1")
    absent, publisher = broker.client(), broker.client("publisher")
    absent.log_in("absent", clean_session=False)
    absent.subscribe(("t", 1))
    absent.disconnect()
    for _ in range(15):  # 15 x 64.25 KB fit into 1 MB
        publisher.publish("t", CHUNK, 1)
    again = broker.client()
    assert again.log_in("absent", clean_session=False).session_present
    assert len(again.messages()) == 15
    again.disconnect()
    for _ in range(16):
        publisher.publish("t", CHUNK, 1)
    assert not broker.client().log_in("absent", clean_session=False).session_present
    assert "the session of client 'absent' is forgotten, with 15 messages" in broker.log.read_text()


def test_a_retained_message_over_the_stores_cap_is_refused_and_nothing_is_lost(embedded: Start) -> None:
    broker = embedded("--retained-mb", "0.25")
    publisher = broker.client("publisher")
    for number in range(3):
        publisher.publish(f"t/{number}", CHUNK, 1, retain=True)
    publisher.publish("t/0", CHUNK, 1, retain=True)  # in place of another: no growth
    publisher.send(Publish("t/3", CHUNK, 1, retain=True, packet_id=9))
    publisher.expect_close()
    assert publisher.inbox == []
    assert "clear retained topics or raise --retained-mb" in broker.log.read_text()
    reader = broker.client("reader")
    reader.subscribe(("t/#", 1))
    assert sorted(message.topic for message in reader.messages()) == ["t/0", "t/1", "t/2"]


def test_a_will_that_the_full_store_cannot_keep_is_still_passed_on(embedded: Start) -> None:
    """Silence ends the client, so there is no packet that the broker could refuse: it must not fall over it."""
    broker = embedded("--retained-mb", "0.25")
    publisher = broker.client("publisher")
    watcher = broker.client("watcher")
    watcher.subscribe(("will/#", 1))
    for number in range(3):
        publisher.publish(f"t/{number}", CHUNK, 1, retain=True)
    publisher.publish("t/3", bytes(60_000), 1, retain=True)
    silent = broker.client()
    silent.log_in("silent", keepalive_s=1, will=Will("will/a", bytes(15_000), 1, retain=True))
    assert watcher.next_message().topic == "will/a"
    assert "passed on but not kept" in broker.log.read_text()
    assert_serves(broker, "after")


def test_a_wide_subscribe_may_ask_for_more_than_the_queue_holds(embedded: Start) -> None:
    broker = embedded("--queue-mb-per-client", "1")
    publisher = broker.client("publisher")
    for number in range(64):  # 4 MB retained
        publisher.publish(f"t/{number}", CHUNK, 1, retain=True)
    reader = broker.client("reader", receive_buffer_bytes=4096)
    reader.send(Subscribe(1, (("t/#", 1),)))
    topics = [reader.next_message().topic for _ in range(64)]
    assert sorted(topics) == sorted(f"t/{number}" for number in range(64))


def test_repeating_a_wide_subscribe_without_reading_is_cut_off(embedded: Start) -> None:
    broker = embedded("--queue-mb-per-client", "0.25")
    publisher = broker.client("publisher")
    for number in range(100):
        publisher.publish(f"t/{number}", bytes(20_000), 1, retain=True)
    greedy = broker.client("greedy", receive_buffer_bytes=4096)
    send_until_closed(greedy, encode(Subscribe(1, (("t/#", 1),))), 1 << 20)
    greedy.expect_close()
    assert "more retained messages than its queue holds" in broker.log.read_text()
    assert_serves(broker, "after")


def test_a_publish_to_sys_is_acknowledged_and_ignored(embedded: Start) -> None:
    one = embedded().client("one")
    one.subscribe(("$SYS/#", 1))
    assert [m.topic for m in one.messages()] == ["$SYS/broker/version"]
    one.publish("$SYS/broker/version", b"fake", 1, retain=True)
    assert one.messages() == []

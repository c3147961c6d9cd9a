"""The link over real sockets and real brokers."""

import contextlib
import gc
import os
import signal
import socket
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.broker import RunningBroker
from coordinator.speaker import GatewaySpeaker
from edge_runtime.broker_url import BadUrl, BrokerUrl, TlsNotSupported, parse_url
from edge_runtime.link import (
    MAX_DELAY_S,
    MIN_DELAY_S,
    Connected,
    Disconnected,
    Link,
    LinkEvent,
    Message,
    Refused,
    Subscribed,
    retry_delay_s,
)
from edge_runtime.link_events import Greeting
from edge_runtime.paho_speaker import PahoSpeaker
from support.boards import connect, poll_until
from support.joined import blob
from support.proxy import Proxy, Shape

MakeLink = Callable[..., Link]


def of(kind: type[LinkEvent]) -> Callable[[LinkEvent], bool]:
    return lambda event: isinstance(event, kind)


def test_messages_arrive_in_order_and_bytes_are_counted(broker: RunningBroker, links: MakeLink) -> None:
    a, b = links(broker.url, "a"), links(broker.url, "b")
    connect(a, b)
    b.subscribe(("t/+",), 1)
    poll_until([b], of(Subscribed))
    payloads = [os.urandom(65_540) for _ in range(100)]
    for index, payload in enumerate(payloads):
        assert a.publish(f"t/{index}", payload, index % 2)
    got: list[LinkEvent] = []
    while len(got) < 100:
        got += [e for e in poll_until([a, b], of(Message)) if isinstance(e, Message)]
    assert [(m.topic, m.payload) for m in got] == [(f"t/{i}", p) for i, p in enumerate(payloads)]
    assert a.bytes_up == b.bytes_down == sum(len(m.topic) + len(m.payload) for m in got)


def test_retained_messages_are_told_from_live_ones(broker: RunningBroker, links: MakeLink) -> None:
    a, b = links(broker.url, "a"), links(broker.url, "b")
    connect(a, b)
    a.publish("kept", b"1", 1, retain=True)
    a.subscribe(("kept",), 1)
    poll_until([a], of(Message))
    b.subscribe(("kept",), 1)
    events = poll_until([b], of(Message))
    a.publish("kept", b"2", 1, retain=True)
    events += poll_until([a, b], lambda e: e == Message("kept", b"2", retain=False))
    assert Message("kept", b"1", retain=True) in events


def test_a_lost_link_leaves_a_will_and_a_closed_one_does_not(broker: RunningBroker, links: MakeLink) -> None:
    watcher, lost, closed = (links(broker.url, name) for name in ("w", "l", "c"))
    lost.set_will(("will/lost", b"gone"))
    closed.set_will(("will/closed", b"gone"))
    connect(watcher, lost, closed)
    watcher.subscribe(("will/+",), 1)
    poll_until([watcher], of(Subscribed))
    closed.publish("will/goodbye", b"", 1)
    closed.close()
    assert lost._socket is not None
    lost._socket.shutdown(socket.SHUT_RDWR)
    events = poll_until([watcher], lambda e: isinstance(e, Message) and e.topic == "will/lost")
    assert [e.topic for e in events if isinstance(e, Message)] == ["will/goodbye", "will/lost"]


def test_a_link_comes_back_after_its_broker_was_killed(broker: RunningBroker, links: MakeLink) -> None:
    link = links(broker.url, "a")
    connect(link)
    broker.kill()
    (lost,) = [e for e in poll_until([link], of(Disconnected)) if isinstance(e, Disconnected)]
    assert MIN_DELAY_S <= lost.retry_s <= MAX_DELAY_S
    assert not link.connected
    assert not link.publish("t", b"", 0)
    assert not link.subscribe(("t",), 0)
    assert not link.unsubscribe(("t",))
    broker.restart()
    connect(link)
    link.subscribe(("t",), 1)
    poll_until([link], of(Subscribed))
    link.publish("t", b"again", 1)
    poll_until([link], lambda e: e == Message("t", b"again", retain=False))


def test_reconnecting_leaves_no_will_and_uses_the_new_one(any_broker: RunningBroker, links: MakeLink) -> None:
    watcher, link = links(any_broker.url, "w"), links(any_broker.url, "l", will=("will", b"old"))
    connect(watcher, link)
    watcher.subscribe(("will",), 1)
    poll_until([watcher], of(Subscribed))
    link.set_will(("will", b"new"))
    link.reconnect()
    connect(link)
    assert link._socket is not None
    link._socket.shutdown(socket.SHUT_RDWR)
    events = poll_until([watcher], of(Message))
    assert [e.payload for e in events if isinstance(e, Message)] == [b"new"]


def test_wake_ends_a_wait_from_another_thread_and_from_a_signal(links: MakeLink) -> None:
    link = links("mqtt://127.0.0.1:1", "a")
    poll_until([link], of(Disconnected))
    link._next_dial = time.monotonic() + 60
    thread = threading.Timer(0.05, link.wake)
    thread.start()
    assert link.poll(30) == []
    thread.join()
    before = signal.signal(signal.SIGALRM, lambda *_: link.wake())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert link.poll(30) == []
    finally:
        signal.signal(signal.SIGALRM, before)
    for _ in range(100_000):
        link.wake()
    assert link.poll(30) == []


def test_nobody_listening_is_said_and_tried_again(links: MakeLink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    link = links(f"mqtt://127.0.0.1:{port}", "a")
    events = [e for e in poll_until([link], of(Disconnected)) if isinstance(e, Disconnected)]
    events += [e for e in poll_until([link], of(Disconnected)) if isinstance(e, Disconnected)]
    assert all("refused" in event.reason and str(port) in event.reason for event in events)


def test_a_host_that_does_not_exist_is_said(links: MakeLink) -> None:
    link = links("mqtt://no-such-host.invalid", "a")
    (event,) = poll_until([link], of(Disconnected))
    assert isinstance(event, Disconnected)
    assert "no-such-host.invalid" in event.reason


def test_a_server_that_never_answers_is_given_up(links: MakeLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.link.CONNECT_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = links(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "a")
        (event,) = poll_until([link], of(Disconnected))
    assert isinstance(event, Disconnected)
    assert "no CONNACK" in event.reason


@pytest.mark.parametrize(
    ("code", "said"), [(4, "bad user name or password"), (5, "not authorised"), (2, "client id"), (3, "available")]
)
def test_a_refusal_is_said_in_words_and_not_hammered(links: MakeLink, code: int, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = links(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "a")
        link.poll(0.1)
        link.poll(0.1)
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1000)
            peer.sendall(bytes([0x20, 2, 0, code]))
            refused, lost = poll_until([link], of(Disconnected))
    assert isinstance(refused, Refused)
    assert isinstance(lost, Disconnected)
    assert refused.code == code
    assert said in refused.reason
    assert said in lost.reason
    assert lost.retry_s >= MAX_DELAY_S / 2 or code == 3


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x20\x00",
        b"\x30\x02\xff\xff",
        b"\x20\x02\x00\x00" + b"\x30\x01a",
        b"\x20\x02\x00\x00" + b"\x30\x05\x00\x01\xff\x00\x00" + b"\xff\xff\xff\xff\xff",
        b"\x20\x02\x00\x00" + b"\x40\x00",
        b"\x20\x02\x00\x00" + b"\x90\x01\x00",
        b"\x20\x02\x00\x00" + b"\xb0\x00",
        b"\xe0\x00",
        b"\x00" * 50,
        blob("garbage", 500),
    ],
)
def test_bytes_that_are_not_mqtt_end_the_connection_and_nothing_else(links: MakeLink, garbage: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = links(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "a")
        link.poll(0.1)
        link.poll(0.1)
        peer, _ = server.accept()
        with peer:
            peer.recv(1000)
            with contextlib.suppress(ConnectionError):
                peer.sendall(garbage)
                peer.shutdown(socket.SHUT_WR)
            poll_until([link], of(Disconnected))
    assert not link.connected


def accepted(server: socket.socket, link: Link) -> socket.socket:
    """The broker's end of a link, which has been told that it is welcome."""
    link.poll(0.1)
    link.poll(0.1)
    peer, _ = server.accept()
    peer.recv(1000)
    peer.sendall(b"\x20\x02\x00\x00")
    poll_until([link], of(Connected))
    return peer


def test_a_connection_that_goes_silent_is_noticed_by_the_keepalive(links: MakeLink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = links(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "a", keepalive_s=1)
        with accepted(server, link):
            (lost,) = poll_until([link], of(Disconnected))
    assert isinstance(lost, Disconnected)
    assert "keepalive" in lost.reason


def test_a_gateway_gives_up_a_broker_that_goes_on_talking_but_hears_nothing() -> None:
    """As one that waits for the rest of a packet whose length came damaged."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = Link(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "a", keepalive_s=1, speak=GatewaySpeaker)
        with accepted(server, link) as peer:
            lost: list[Disconnected] = []
            until_s = time.monotonic() + 20.0
            while not lost and time.monotonic() < until_s:
                with contextlib.suppress(ConnectionError):
                    peer.sendall(b"\x30\x05\x00\x01tok")
                link.publish("t", b"x", 1, retain=False)
                lost = [event for event in link.poll(0.2) if isinstance(event, Disconnected)]
    link.close(0.2)
    assert lost
    assert "keepalive" in lost[0].reason


def test_delays_grow_to_a_cap_and_are_spread() -> None:
    ceilings = [retry_delay_s(failures, 60.0, 1.0) for failures in range(100)]
    assert ceilings[:5] == [1, 2, 4, 8, 16]
    assert max(ceilings) == MAX_DELAY_S
    assert {retry_delay_s(failures, 60.0, 0.0) for failures in range(100)} == {MIN_DELAY_S}
    spread = [retry_delay_s(9, 60.0, i / 99) for i in range(100)]
    assert statistics.pstdev(spread) > MAX_DELAY_S / 4


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("mqtt://h", BrokerUrl("h", 1883, None, None)),
        ("mqtt://h:1/", BrokerUrl("h", 1, None, None)),
        ("mqtt://[::1]:9", BrokerUrl("::1", 9, None, None)),
        ("mqtt://u:p%40ss@h", BrokerUrl("h", 1883, "u", "p@ss")),
    ],
)
def test_a_url_is_taken_apart(url: str, parsed: BrokerUrl) -> None:
    assert parse_url(url) == parsed


@pytest.mark.parametrize(
    "url", ["", "h", "h:1883", "http://h", "mqtt://", "mqtt://h:x", "mqtt://h:99999", "mqtt://h/t", "mqtt://a b"]
)
def test_a_url_that_is_none_is_refused_with_the_form_it_should_have(url: str) -> None:
    with pytest.raises(BadUrl, match="mqtt://"):
        parse_url(url)


@pytest.mark.parametrize("url", ["mqtt://u:secret@h:999999", "mqtt://u:secret@[h", "mqtt://u:secret/2@h:1"])
def test_a_url_that_cannot_be_read_is_shown_without_its_login(url: str) -> None:
    with pytest.raises(BadUrl, match=r"\*\*\*@") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_tls_is_refused_in_words_and_without_the_password() -> None:
    with pytest.raises(TlsNotSupported, match="TLS is not in this version") as caught:
        parse_url("mqtts://user:secret@h")
    assert "secret" not in str(caught.value)


def test_in_a_short_outage_delays_stay_within_half_the_ten_seconds_that_a_round_waits_by_default() -> None:
    assert max(retry_delay_s(failures, 59.0, 1.0) for failures in range(100)) <= 5.0


def test_reconnecting_leaks_no_file_descriptors(broker: RunningBroker, links: MakeLink) -> None:
    link = links(broker.url, "a")
    connect(link)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        link.reconnect()
        connect(link)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_connection_that_is_given_up_leaves_its_will_and_is_not_tried_again_at_once(
    broker: RunningBroker, links: MakeLink
) -> None:
    watcher, link = links(broker.url, "w"), links(broker.url, "a")
    link.set_will(("will/useless", b"lost"))
    connect(watcher, link)
    watcher.subscribe(("will/useless",), 1)
    poll_until([watcher], of(Subscribed))
    link.give_up("of no use")
    (lost,) = link.poll(0.0)
    assert isinstance(lost, Disconnected)
    assert lost.reason.endswith("of no use")
    assert lost.retry_s >= MAX_DELAY_S / 2
    poll_until([watcher], of(Message))


def test_closing_waits_for_all_that_is_queued_as_long_as_it_moves(
    broker: RunningBroker, links: MakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a proxy of a megabyte a second, two megabytes take longer than the time in which nothing may move."""
    with Proxy(broker.url, Shape(rate_bytes_s=1_000_000.0)) as proxy:
        watcher, slow = links(broker.url, "w"), links(proxy.url, "s")
        connect(watcher, slow)
        watcher.subscribe(("t/+",), 0)
        poll_until([watcher], of(Subscribed))
        for index in range(32):
            slow.publish(f"t/{index}", bytes(65_536), 1)
        slow.close(timeout_s=0.8)
        got: list[LinkEvent] = []
        while len(got) < 32:
            got += [e for e in poll_until([watcher], of(Message)) if isinstance(e, Message)]
    with Proxy(broker.url, Shape(rate_bytes_s=1_000.0)) as proxy:
        monkeypatch.setattr("edge_runtime.link.MAX_CLOSE_S", 1.0)
        stuck = links(proxy.url, "stuck")
        connect(stuck)
        for index in range(32):
            stuck.publish(f"t/{index}", bytes(65_536), 1)
        began_s = time.monotonic()
        stuck.close(timeout_s=0.5)
        assert time.monotonic() - began_s < 20.0, "a broker that takes next to nothing does not hold it"


def test_what_a_dropped_connection_had_queued_goes_with_it_and_not_when_cycles_are_looked_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        speaker = PahoSpeaker(ours, Greeting("a", 30, None, None, None))
        theirs.sendall(b"\x20\x02\x00\x00")
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            speaker.read()
            assert isinstance(speaker.happened[-1], Connected)
            for _ in range(4):
                speaker.publish("t", bytes(65_540), 0, retain=False)
            queued_bytes, _ = tracemalloc.get_traced_memory()
            del speaker
            left_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert queued_bytes > 4 * 65_540
    assert left_bytes < 10_000

"""The faults themselves: what the proxy does to packets and connections, and that a schedule can be repeated."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.driver import Driver
from chaos.schedule import ALL, KINDS, Strike, draw
from chaos.surroundings import Disk
from support.fleet import Federation
from support.mqtt_harm import CALM, Frames, Harm, Odds, parse_publish
from support.proxy import Proxy, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONNECT_A = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x1e\x00\x03a-1"
ALWAYS = {name: Odds(**{name: 1.0}) for name in ("duplicate", "late", "drop", "truncate", "corrupt", "garble")}


def publish(topic: str, payload: bytes, qos: int = 1) -> bytes:
    body = struct.pack(">H", len(topic)) + topic.encode() + (b"\x00\x07" if qos else b"") + payload
    length, head = len(body), bytearray([0x30 | qos << 1])
    while True:
        length, digit = length >> 7, length & 0x7F
        head.append(digit | (0x80 if length else 0))
        if not length:
            return bytes(head) + body


PACKETS = st.lists(
    st.builds(publish, st.text("abc/", min_size=1, max_size=8), st.binary(max_size=300), st.integers(0, 1)), max_size=6
)


@given(PACKETS, st.integers(1, 50))
def test_packets_come_out_whole_however_the_stream_is_cut(packets: list[bytes], step: int) -> None:
    stream, frames = b"".join(packets), Frames()
    assert [one for at in range(0, len(stream), step) for one in frames.feed(stream[at : at + step])] == packets


@given(PACKETS, st.integers())
def test_equal_seeds_do_equal_harm(packets: list[bytes], seed: int) -> None:
    odds = Odds(0.15, 0.15, 0.15, 0.15, 0.15, 0.15)
    first, second = (Harm(str(seed), odds) for _ in range(2))
    assert [first.pass_on(one) for one in packets] == [second.pass_on(one) for one in packets]


@given(PACKETS, st.sampled_from(sorted(ALWAYS)), st.integers())
def test_every_fault_does_what_it_is_called_and_loses_no_qos_1_message(
    packets: list[bytes], name: str, seed: int
) -> None:
    harm = Harm(str(seed), ALWAYS[name])
    for packet in packets:
        about = parse_publish(packet)
        assert about is not None
        fault, passed = harm.pass_on(packet)
        whole = [each.data for each in passed]
        if not fault:
            assert whole == [packet]
            continue
        assert (fault, about.qos and not passed) == (name, 0)
        match name:
            case "duplicate":
                assert whole[0] == packet
                assert [whole[1][0] & 0xF7, whole[1][1:]] == [packet[0], packet[1:]]
            case "late":
                assert passed[0].late_s > 0
            case "truncate":
                assert Frames().feed(whole[0]) == whole, "a valid frame"
                assert packet.endswith(packet[about.payload_at :])
                assert len(whole[0]) < len(packet)
            case "corrupt":
                assert whole[0][: about.payload_at] == packet[: about.payload_at]
            case "garble":
                assert whole[0][about.payload_at :] == packet[about.payload_at :]


def test_a_schedule_depends_on_its_seed_alone_and_strikes_nobody_twice_at_a_time() -> None:
    names = ["dev-0", "dev-1", "dev-2", "dev-3"]
    assert draw(5, 600, names) == draw(5, 600, names)
    strikes = draw(5, 600, names)
    assert {strike.kind for strike in strikes} == set(ALL)
    for victim in {strike.victim for strike in strikes}:
        own = [strike for strike in strikes if strike.victim == victim]
        assert all(a.at_s + a.lasts_s < b.at_s for a, b in pairwise(own))
    share = Counter(strike.kind for strike in strikes)["kill"] / len(strikes)
    assert abs(share - KINDS["kill"].weight / sum(kind.weight for kind in KINDS.values())) < 0.1


@pytest.fixture
def echo() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def joined(proxy: Proxy, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A client that has said CONNECT through the proxy, and the broker's end of it."""
    port = int(proxy.url.rsplit(":", 1)[1])
    client = socket.create_connection(("127.0.0.1", port), 5.0)
    client.sendall(CONNECT_A)
    far, _ = server.accept()
    far.settimeout(5.0)
    assert far.recv(len(CONNECT_A), socket.MSG_WAITALL) == CONNECT_A
    return client, far


@pytest.mark.parametrize("reset", [True, False])
def test_a_cut_connection_ends_at_both_ends_by_rst_or_by_fin(echo: socket.socket, *, reset: bool) -> None:
    with Proxy(url_of(echo)) as proxy:
        client, far = joined(proxy, echo)
        with client, far:
            proxy.cut("a", reset=reset)
            for end in (client, far):
                if reset:
                    with pytest.raises(ConnectionResetError):
                        end.recv(1)
                else:
                    assert end.recv(1) == b""
    assert [each.fault for each in proxy.faults] == ["cut"]


def test_a_stalled_peer_gets_everything_after_the_stall_and_a_blackholed_one_nothing(echo: socket.socket) -> None:
    packet = publish("t", b"x" * 100)
    with Proxy(url_of(echo)) as proxy:
        client, far = joined(proxy, echo)
        with client, far:
            proxy.stall("a")
            client.sendall(packet)
            far.settimeout(0.2)
            with pytest.raises(TimeoutError):
                far.recv(1)
            proxy.resume("a")
            far.settimeout(5.0)
            assert far.recv(len(packet), socket.MSG_WAITALL) == packet
            proxy.blackhole("a")
            client.sendall(packet)
            far.settimeout(0.2)
            with pytest.raises(TimeoutError):
                far.recv(1)


def test_what_is_late_is_overtaken_by_other_topics_and_never_by_its_own(echo: socket.socket) -> None:
    sent = [publish("slow", bytes([number])) for number in range(5)]
    with Proxy(url_of(echo)) as proxy:
        proxy.harm("a", ALWAYS["late"])
        client, far = joined(proxy, echo)
        with client, far:
            client.sendall(b"".join(sent))
            came = Frames()
            packets: list[bytes] = []
            while len(packets) < len(sent):
                packets += came.feed(far.recv(1024))
    assert packets == sent


def test_bytes_are_counted_each_way_at_the_socket(echo: socket.socket) -> None:
    packet = publish("t", b"x" * 50_000)
    with Proxy(url_of(echo)) as proxy:
        proxy.harm(None, CALM)
        proxy.shape(None, Shape(delay_s=0.01, jitter_s=0.01))
        client, far = joined(proxy, echo)
        with client, far:
            client.sendall(packet)
            assert far.recv(len(packet), socket.MSG_WAITALL) == packet
            far.sendall(packet[:100] + packet[100:])
            assert client.recv(len(packet), socket.MSG_WAITALL) == packet
    assert proxy.wire_bytes["a", "up"] == len(CONNECT_A) + len(packet)
    assert proxy.wire_bytes["a", "down"] == len(packet)


def url_of(server: socket.socket) -> str:
    return f"mqtt://127.0.0.1:{server.getsockname()[1]}"


class CountingDisk(Disk):
    """Fills nothing, and must not be cleared twice."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.now: list[str] = []

    def fill(self) -> None:
        self.now = ["full"]

    def clear(self) -> None:
        self.now.remove("full")


def test_a_disk_that_is_filled_twice_has_room_when_both_strikes_are_over(tmp_path: Path) -> None:
    disk = CountingDisk(tmp_path)
    driver = Driver(Federation(tmp_path, None, []), None, 1, disks={"dev-0": disk})  # type: ignore[arg-type]  # neither is used
    for number in (1, 2):
        driver._disk_full(Strike(0.0, "disk full", "dev-0", 1.0, number))
    driver._make_room("dev-0")
    assert disk.now
    driver._make_room("dev-0")
    assert not disk.now

"""Messages whose bits flip or whose end is lost on the way, on either side of the broker: found out, and said again."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.wire import Publish, messages, topics
from edge_runtime.wire.events import DeviceStatus, TaskFailed
from edge_runtime.wire.fields import BadChecksum, BadMessage
from edge_runtime.wire.gateway import ROLL_CALL_S
from edge_runtime.wire.tasks import format_task, parse_task
from support.joined import SITE, Delivery, World, blob, make_task

TASK = format_task(make_task("digits.3.dev-1", "dev-1", blob("plan", 4711), blob("weights", 815)))


def flipped(payload: bytes) -> bytes:
    """A digit that stands for another one, where there is a task to damage: still JSON, and still a task."""
    if b'"seed":7' in payload:
        return payload.replace(b'"seed":7', b'"seed":5')
    middle = len(payload) // 2
    return payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :]


def shortened(payload: bytes) -> bytes:
    return payload[: len(payload) // 2]


class DamagingWorld(World):
    """Damages the first `times` messages of a kind, on their way to the broker or from it to one peer."""

    def __init__(self, kind: str, side: str, damage: Callable[[bytes], bytes], times: int = 1) -> None:
        self.kind, self.side, self.damage, self.times = kind, side, damage, times
        super().__init__("a")

    def damaged(self, topic: str, payload: bytes, side: str) -> bytes:
        if side != self.side or not self.times or not payload or kind_of(topic) != self.kind:
            return payload
        self.times -= 1
        return self.damage(payload)

    def publish(self, message: Publish) -> None:
        payload = self.damaged(message.topic, message.payload, "to the broker")
        super().publish(Publish(message.topic, payload, message.qos, message.retain))

    def deliver(self, index: int = 0, *, keep: bool = False) -> None:
        item = self.deliveries[index]
        payload = self.damaged(item.topic, item.payload, "from the broker")
        self.deliveries[index] = Delivery(item.peer, item.topic, payload, item.retain, item.suback)
        super().deliver(index, keep=keep)


def kind_of(topic: str) -> str:
    if not topic:
        return ""
    address = topics.parse_topic(SITE, topic)
    return "update" if address.name and address.kind not in {"begin", "fail", "blob"} else address.kind


@pytest.mark.parametrize("damage", [flipped, shortened])
@pytest.mark.parametrize("side", ["to the broker", "from the broker"])
@pytest.mark.parametrize("kind", ["gateway", "status", "task", "blob", "begin", "update", "down"])
def test_a_message_that_comes_damaged_costs_time_and_nothing_else(
    kind: str, side: str, damage: Callable[[bytes], bytes]
) -> None:
    world = DamagingWorld(kind, side, damage)
    world.connect_all()
    world.run(lambda: any(isinstance(e, DeviceStatus) for e in world.events))
    sent = world.send("a", "job.1.a")

    def failed_or_done() -> bool:
        return bool(world.journal) or any(isinstance(e, TaskFailed) for e in world.events)

    world.run(failed_or_done, 60.0)
    if not world.journal:  # the broker's copy of a chunk was bad; the coordinator asks anew, and has published it again
        assert (kind, side) == ("blob", "to the broker")
        world.send("a", "job.1.a.again")
        world.run(lambda: bool(world.journal))
    assert not world.times, "nothing was damaged"
    assert all(each.task == sent for each in world.boards["a"].running[:1])


def test_births_that_come_damaged_are_asked_for_at_most_every_ten_seconds() -> None:
    world = World("a")
    world.connect_all()
    world.run(lambda: any(isinstance(e, DeviceStatus) for e in world.events))
    begun, calls = world.now, 0
    for tick in range(300):
        now = begun + tick / 10
        world.gateway.received(now, topics.status(SITE, "a"), b"rubbish", retain=False)
        calls += len(world.gateway.tick(now))
    assert calls == 30 / ROLL_CALL_S


@given(st.sets(st.integers(0, 8 * len(TASK) - 1), min_size=1, max_size=8))
def test_a_task_with_up_to_eight_wrong_bits_is_never_taken_for_another(bits: set[int]) -> None:
    data = bytearray(TASK)
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    try:
        task = parse_task(bytes(data))
    except BadMessage:
        return
    # Where only the check sum's own key and digits were hit, the task is what it was.
    assert task == parse_task(TASK)


def test_a_message_without_a_check_sum_is_read() -> None:
    state = messages.GatewayState(3, "b00f", "up")
    written = messages.format_gateway(state)
    assert messages.parse_gateway(written[: written.index(b',"crc"')] + b"}") == state


@pytest.mark.parametrize("at", range(1, 19))
def test_damage_to_the_check_sum_itself_is_damage(at: int) -> None:
    for value in (1, 2, 4, 8, 16, 32, 64, 128, 255):
        data = bytearray(TASK)
        data[-at] ^= value
        with pytest.raises(BadMessage):
            parse_task(bytes(data))


def test_a_changed_message_is_refused_by_its_check_sum() -> None:
    with pytest.raises(BadChecksum, match="damaged"):
        parse_task(TASK.replace(b'"seed":7', b'"seed":5'))


def test_a_task_that_nobody_sees_get_lost_is_sent_again_after_a_minute_and_ever_more_seldom() -> None:
    world = World("a")
    world.connect_all()
    world.run(lambda: any(isinstance(e, DeviceStatus) for e in world.events))
    task = world.send("a", "t")
    world.deliveries.clear()
    begun, sent_at = world.now, []
    for second in range(1000):
        outcomes = world.gateway.tick(begun + second)
        again = Publish(topics.task(SITE, "a"), format_task(task), 1, retain=True)
        sent_at += [second] * outcomes.count(again)
    assert sent_at == pytest.approx([60, 180, 420, 900], abs=10)


def test_a_task_whose_update_was_offered_is_not_sent_again() -> None:
    world = World("a")
    world.connect_all()
    world.send("a", "t")
    world.run(lambda: bool(world.journal))
    assert [each for second in range(200) for each in world.gateway.tick(world.now + second)] == []


def test_every_device_is_asked_for_its_birth_every_ten_minutes() -> None:
    world = World("a")
    world.connect_all()
    world.run(lambda: any(isinstance(e, DeviceStatus) for e in world.events))
    calls = [second for second in range(1900) if world.gateway.tick(world.now + second)]
    assert calls == pytest.approx([600, 1200, 1800], abs=10)


def test_a_device_whose_task_went_to_another_topic_gets_it_in_the_end() -> None:
    world = World("a")
    world.connect_all()
    world.run(lambda: any(isinstance(e, DeviceStatus) for e in world.events))
    world.send("a", "t")
    world.deliveries.clear()
    del world.retained[topics.task(SITE, "a")]
    world.run(lambda: bool(world.journal), 100.0)

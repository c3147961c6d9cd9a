"""Single rules of the sessions, each seen from one end."""

from dataclasses import dataclass, replace

import pytest

from edge_runtime.errors import LocalError
from edge_runtime.file_slice import FileUnreadable
from edge_runtime.wire import AbandonTask, Publish, PublishChunk, Subscribe, Task, Warned, messages, topics
from edge_runtime.wire.chunks import cut_chunk
from edge_runtime.wire.events import DeviceStatus, GatewaySuperseded, Stop, UpdateReceived, UpdateRefused, UpdateSettled
from edge_runtime.wire.fetch import Fetch
from edge_runtime.wire.gateway import BlobUnknown, GatewaySession
from edge_runtime.wire.intake import MAX_ATTEMPTS, NotOffered, Refusal
from edge_runtime.wire.offer import Offer
from edge_runtime.wire.presence import ALIVE
from edge_runtime.wire.tasks import format_task
from edge_runtime.wire.topics import BadId
from support.joined import GATEWAY, SITE, World, blob, make_task, sha256

UPDATE = blob("update", 600_000)
DIGEST = sha256(UPDATE)
UID = DIGEST[:16]
SMALL = blob("small", messages.MAX_WHOLE_BYTES)


def offer() -> Offer:
    return Offer(SITE, "a", "t", DIGEST, UPDATE)


def have(bits: str, window: int = 4) -> messages.Have:
    return messages.Have(UID, bits, window)


def indexes(commands: list[object]) -> list[str]:
    return [c.topic.rsplit("/", 1)[1] for c in commands if isinstance(c, Publish)]


def gateway(**options: object) -> GatewaySession:
    session = GatewaySession(SITE, 3, "boot-b", judge=lambda *_: None, **options)  # type: ignore[arg-type]
    session.connected(0.0)
    return session


def begin(
    session: GatewaySession, device: str = "a", task: str = "t", data: bytes = UPDATE, now: float = 0.0
) -> messages.Down:
    payload = messages.format_begin(messages.Begin(task, sha256(data), len(data)))
    *told, answer = session.received(now, topics.upload(SITE, device, sha256(data)[:16], "begin"), payload)
    assert isinstance(answer, Publish), answer
    assert answer.topic == topics.down(SITE, device)
    down = messages.parse_down(answer.payload)
    refused = isinstance(down, messages.Refuse)
    assert told == ([UpdateRefused(device, down.rule, down.message, down.retry_s)] if refused else [])
    return down


def chunk(session: GatewaySession, index: int, data: bytes = UPDATE, uid: str = UID) -> list[object]:
    return session.received(0.0, topics.upload(SITE, "a", uid, index), cut_chunk(data, index))


# The device's offer.


def small_offer() -> Offer:
    return Offer(SITE, "a", "t", sha256(SMALL), SMALL)


def test_a_small_update_travels_with_its_offer_where_the_gateway_takes_such_and_again_only_when_asked_for() -> None:
    one = small_offer()
    assert indexes(one.start(0.0, messages.MAX_WHOLE_BYTES)) == ["whole"]
    assert indexes(one.tick(2.1)) == ["begin"]
    assert indexes(one.have(2.2, have("00"))) == ["0"]


@pytest.mark.parametrize(("size", "whole_bytes"), [(10, 0), (10, 9), (messages.MAX_WHOLE_BYTES + 1, 1 << 20)])
def test_an_update_that_is_too_large_for_the_gateway_or_the_protocol_is_offered_first(
    size: int, whole_bytes: int
) -> None:
    assert indexes(replace(small_offer(), data=bytes(size)).start(0.0, whole_bytes)) == ["begin"]


def test_a_small_update_that_cannot_be_read_is_offered_all_the_same() -> None:
    one = replace(small_offer(), data=FailingDisk(len(SMALL)))
    assert indexes(one.start(0.0, messages.MAX_WHOLE_BYTES)) == ["begin"]


def whole(session: GatewaySession, device: str, data: bytes = SMALL, chunk: bytes | None = None) -> list[object]:
    offered = messages.Begin("t", sha256(data), len(data))
    payload = messages.format_whole(offered, cut_chunk(data, 0) if chunk is None else chunk)
    return session.received(0.0, topics.upload(SITE, device, sha256(data)[:16], "whole"), payload)


def test_an_update_that_comes_with_its_offer_is_taken_at_once_and_needs_no_room() -> None:
    session = gateway(budget_bytes=len(UPDATE))
    begin(session, "b")
    (received,) = whole(session, "a")
    assert isinstance(received, UpdateReceived)
    assert (received.device, received.task, received.data) == ("a", "t", SMALL)
    assert whole(session, "a") == []  # the same once more, while it is being written
    assert begin(session, "a", data=SMALL) == messages.Have(received.uid, "01", 4)
    (told,) = session.accept("a", received.uid)
    assert messages.parse_down(told.payload) == messages.Done(received.uid, received.sha256)


def test_an_update_that_comes_with_its_offer_is_refused_by_the_same_rules() -> None:
    session = gateway(max_update_bytes=len(SMALL) - 1)
    told, _ = whole(session, "a")
    assert isinstance(told, UpdateRefused)
    assert told.rule == "UpdateTooLarge"


@pytest.mark.parametrize(
    ("chunk", "rules"),
    [
        (cut_chunk(SMALL, 0)[:-1], ["BadChunk"]),
        (cut_chunk(SMALL, 0)[:-1] + b"?", ["BadChunk"]),
        (cut_chunk(SMALL[1:] + b"?", 0), []),  # what has come is not what was announced
    ],
)
def test_a_damaged_update_that_comes_with_its_offer_takes_no_memory_and_can_be_offered_again(
    chunk: bytes, rules: list[str]
) -> None:
    session = gateway()
    warned = whole(session, "a", chunk=chunk)
    assert [each.rule for each in warned if isinstance(each, Warned)] == rules
    assert session.open_bytes == 0
    assert begin(session, "a", data=SMALL) == messages.Have(sha256(SMALL)[:16], "00", 4)
    assert isinstance(whole(session, "a")[0], UpdateReceived)


def test_a_damaged_update_that_comes_with_its_offer_leaves_the_upload_under_way_alone_and_a_right_one_ends_it() -> None:
    session = gateway()
    begin(session, "a")
    whole(session, "a", chunk=cut_chunk(SMALL[1:] + b"?", 0))
    assert session.open_bytes == len(UPDATE)
    whole(session, "a")
    assert session.open_bytes == len(SMALL)


@pytest.mark.parametrize(
    ("payload", "rule"),
    [
        (messages.format_begin(messages.Begin("t", sha256(SMALL), 10)), "BadMessage"),
        (messages.format_whole(messages.Begin("t", DIGEST, len(UPDATE)), cut_chunk(UPDATE, 0)), "BadField"),
    ],
)
def test_an_offer_without_its_chunk_or_of_too_much_is_a_warning(payload: bytes, rule: str) -> None:
    (warning,) = gateway().received(0.0, topics.upload(SITE, "a", UID, "whole"), payload)
    assert isinstance(warning, Warned)
    assert warning.rule == rule


def test_silence_is_answered_after_2_4_8_16_and_then_every_30_seconds() -> None:
    said = [round(now / 10, 1) for one in [offer()] for now in range(1, 1300) if one.tick(now / 10)]
    assert said == [2.0, 6.0, 14.0, 30.0, 60.0, 90.0, 120.0]


def test_the_second_answer_to_one_question_sends_nothing() -> None:
    one = offer()
    one.start(0.0)
    assert indexes(one.have(0.1, have("0000"))) == ["0", "1", "2", "3"]
    assert one.have(0.2, have("0000")) == []
    assert indexes(one.have(0.3, have("0f00"))) == ["4", "5", "6", "7"]


def test_an_answer_after_asking_again_sends_what_was_lost() -> None:
    one = offer()
    one.start(0.0)
    one.have(0.1, have("0000"))
    assert indexes(one.tick(2.2)) == ["begin"]
    assert indexes(one.have(2.3, have("0000"))) == ["0", "1", "2", "3"]


def test_half_a_window_is_answered_and_the_other_half_stays_on_its_way() -> None:
    one = offer()
    one.start(0.0)
    assert indexes(one.have(0.1, have("0000"))) == ["0", "1", "2", "3"]
    assert indexes(one.have(0.2, have("0300"))) == ["4", "5"]
    assert indexes(one.have(0.3, have("0f00"))) == ["6", "7"]
    assert indexes(one.have(0.4, have("ff00"))) == ["8", "9"]
    assert one.have(0.5, have("ff01")) == []


def test_a_chunk_that_a_later_one_overtook_is_lost_and_sent_again() -> None:
    one = offer()
    one.start(0.0)
    one.have(0.1, have("0000"))
    assert indexes(one.have(0.2, have("0500"))) == ["1", "4", "5"]
    assert indexes(one.have(0.3, have("3700"))) == ["3", "6", "7", "8"]


def test_what_is_still_lacking_when_the_gateway_is_asked_again_is_sent_again() -> None:
    one = offer()
    one.start(0.0)
    one.have(0.1, have("0000"))
    one.have(0.2, have("0300"))
    assert indexes(one.tick(2.4)) == ["begin"]
    assert indexes(one.have(2.5, have("0300"))) == ["2", "3", "4", "5"]


@pytest.mark.parametrize(("wanted", "answered"), [(2, 2), (None, 4), (64, 4)])
def test_the_gateway_answers_after_as_many_chunks_as_the_device_wants_but_no_later_than_after_a_window(
    wanted: int | None, answered: int
) -> None:
    session = gateway()
    payload = messages.format_begin(messages.Begin("t", DIGEST, len(UPDATE), wanted))
    session.received(0.0, topics.upload(SITE, "a", UID, "begin"), payload)
    assert [bool(chunk(session, index)) for index in range(answered)] == [*[False] * (answered - 1), True]


def test_patience_stays_on_a_slow_link_and_falls_back_after_a_loss() -> None:
    slow, lossy = offer(), offer()
    for one, bits in ((slow, "0f00"), (lossy, "0d00")):
        one.start(0.0)
        one.have(0.1, have("0000"))
        assert indexes(one.tick(2.2)) == ["begin"]
        one.have(2.3, have(bits))
    assert slow.tick(6.2) == []
    assert indexes(slow.tick(6.4)) == ["begin"]
    assert indexes(lossy.tick(4.4)) == ["begin"]


def test_a_complete_bitmap_is_waited_on() -> None:
    one = offer()
    one.start(0.0)
    assert one.have(0.1, have("ff03")) == []
    assert indexes(one.tick(2.2)) == ["begin"]


# The gateway's intake.


def test_an_answer_comes_after_four_new_chunks_and_repeated_ones_earn_none() -> None:
    session = gateway()
    assert begin(session) == have("0000")
    for index in (0, 1, 2, 0, 1, 2, 2):
        assert chunk(session, index) == []
    (answer,) = chunk(session, 9)
    assert messages.parse_down(answer.payload) == have("0702")


def test_the_last_chunk_gives_the_update_and_no_answer_before_it_is_accepted() -> None:
    session = gateway()
    begin(session)
    outcomes = [outcome for index in range(10) for outcome in chunk(session, index)]
    assert outcomes[-1] == UpdateReceived("a", "t", UID, DIGEST, UPDATE)
    assert chunk(session, 0) == []
    assert begin(session) == have("ff03")
    (accepted,) = session.accept("a", UID)
    assert messages.parse_down(accepted.payload) == messages.Done(UID, DIGEST)
    assert session.open_bytes == 0
    with pytest.raises(NotOffered):
        session.accept("a", UID)


def test_an_update_that_is_done_is_answered_so_at_once_whatever_is_offered() -> None:
    session = gateway(already_done=lambda device, task: "cd" * 32 if (device, task) == ("a", "t") else None)
    assert begin(session) == messages.Done(UID, "cd" * 32)
    assert session.open_bytes == 0
    assert isinstance(begin(session, device="b"), messages.Have)


def test_a_refusal_carries_its_rule_and_when_to_come_again() -> None:
    session = gateway()
    begin(session)
    for index in range(10):
        chunk(session, index)
    (refused,) = session.refuse("a", UID, "DiskFull", "no space", retry_s=9.0)
    assert messages.parse_down(refused.payload) == messages.Refuse(UID, "DiskFull", "no space", 9.0)


def test_a_task_that_is_not_the_present_one_is_the_callers_to_judge() -> None:
    session = GatewaySession(SITE, 1, "boot")
    session.connected(0.0)
    assert begin(session).rule == "UnknownTask"
    late = gateway()
    late._judge = lambda device, task: Refusal("LateUpdate", f"{device} {task}")
    assert begin(late) == messages.Refuse(UID, "LateUpdate", "a t", None)


def test_a_device_has_one_partial_upload() -> None:
    session = gateway()
    begin(session)
    begin(session, data=UPDATE[:-1])
    assert session.open_bytes == len(UPDATE) - 1
    begin(session, device="b")
    assert session.open_bytes == 2 * len(UPDATE) - 1


def test_the_blobs_of_a_task_that_misses_them_are_published_again_once_in_ten_seconds() -> None:
    session = gateway()
    plan, weights = blob("plan", 100), blob("weights", 200_000)
    task = make_task("t", "a", plan, weights)
    session.send_task("a", task, {sha256(plan): plan, sha256(weights): weights})
    fail = messages.format_fail(messages.Fail("t", "BlobMissing", "chunk 0"))

    def published(now: float) -> int:
        outcomes = session.received(now, topics.upload(SITE, "a", "0" * 16, "fail"), fail)
        return sum(isinstance(each, Publish) for each in outcomes)

    assert [published(now) for now in (0.0, 0.0, 9.9, 10.0, 10.1, 30.0)] == [5, 0, 0, 5, 0, 5]


def test_the_budget_counts_all_devices_and_holds_at_its_edge() -> None:
    session = gateway(budget_bytes=2 * len(UPDATE))
    for device in ("a", "b"):
        assert isinstance(begin(session, device=device), messages.Have)
    assert begin(session, device="c") == messages.Refuse(
        UID, "GatewayBusy", "0 bytes of other updates are before this one", 5.0
    )
    assert isinstance(begin(session, device="a", data=UPDATE[:-1]), messages.Have)


def test_chunks_that_do_not_give_the_sha256_are_asked_for_again_and_then_refused() -> None:
    session = gateway()
    other = blob("other", len(UPDATE))
    begin(session)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        (answer,) = [outcome for index in range(10) for outcome in chunk(session, index, other)][-1:]
        down = messages.parse_down(answer.payload)
        assert down == have("0000") if attempt < MAX_ATTEMPTS else down.rule == "ChecksumMismatch"
    assert session.open_bytes == 0


def test_a_chunk_with_a_wrong_sum_is_a_warning_and_not_stored() -> None:
    session = gateway()
    begin(session)
    payload = cut_chunk(UPDATE, 0)[:-1] + b"?"
    (warning,) = session.received(0.0, topics.upload(SITE, "a", UID, 0), payload)
    assert isinstance(warning, Warned)
    assert warning.rule == "BadChunk"
    assert begin(session) == have("0000")


def test_an_upload_id_belongs_to_one_offer() -> None:
    session = gateway()
    begin(session)
    payload = messages.format_begin(messages.Begin("another", DIGEST, len(UPDATE)))
    (warning,) = session.received(0.0, topics.upload(SITE, "a", UID, "begin"), payload)
    assert warning.rule == "BadUid"
    (warning,) = session.received(0.0, topics.upload(SITE, "a", "0" * 16, "begin"), payload)
    assert warning.rule == "BadUid"


# Presence and tasks.


def test_a_late_will_of_the_gateway_is_overwritten() -> None:
    session = gateway()
    lost = messages.format_gateway(messages.GatewayState(2, "boot-z", "lost"))
    for payload in (lost, b""):
        (again,) = session.received(1.0, topics.gateway(SITE), payload, retain=True)
        assert again.retain
        assert messages.parse_gateway(again.payload) == messages.GatewayState(3, "boot-b", "up")
    assert session.received(1.0, topics.gateway(SITE), again.payload) == []


def test_an_older_coordinator_stops_this_one_only_when_it_is_alive() -> None:
    session = gateway()
    older = messages.format_gateway(messages.GatewayState(2, "boot-c", "up"))
    (again,) = session.received(1.0, topics.gateway(SITE), older, retain=True)
    assert isinstance(again, Publish)
    assert session.received(1.0, topics.gateway(SITE), older) == [GatewaySuperseded(2)]


def test_a_newer_coordinator_is_answered_with_our_own_presence() -> None:
    session = gateway()
    newer = messages.format_gateway(messages.GatewayState(4, "boot-a", "up"))
    (again,) = session.received(1.0, topics.gateway(SITE), newer)
    assert isinstance(again, Publish)
    assert messages.parse_gateway(again.payload) == messages.GatewayState(3, "boot-b", "up")


def test_of_two_coordinators_with_one_epoch_the_one_with_the_lower_boot_stays() -> None:
    session = gateway()
    lower, higher = (messages.format_gateway(messages.GatewayState(3, f"boot-{each}", "up")) for each in "ac")
    (again,) = session.received(1.0, topics.gateway(SITE), higher)
    assert isinstance(again, Publish)
    assert session.received(1.0, topics.gateway(SITE), lower) == [GatewaySuperseded(3)]


def status(state: str = "online", boot: str = "b1") -> bytes:
    return messages.format_status(messages.Status(boot, 1, state, 5, {}))


def statuses(session: GatewaySession, *said: tuple[bytes, bool]) -> list[tuple[str, bool]]:
    outcomes = [o for payload, retain in said for o in session.received(0.0, STATUS, payload, retain=retain)]
    return [(outcome.state, outcome.live) for outcome in outcomes if isinstance(outcome, DeviceStatus)]


STATUS = topics.status(SITE, "a")


def test_a_birth_that_the_broker_has_kept_is_told_as_such_until_the_device_speaks() -> None:
    session = gateway()
    kept, spoken = (status(), True), (status(), False)
    assert statuses(session, kept, spoken, spoken, kept) == [("online", False), ("online", True)]


def test_after_a_new_connection_a_device_must_speak_again_and_its_end_is_not_told_twice() -> None:
    session = gateway()
    assert statuses(session, (status(), False)) == [("online", True)]
    session.connected(1.0)
    assert statuses(session, (status(), True), (status(), False)) == [("online", False), ("online", True)]
    assert statuses(session, (status("lost"), False)) == [("lost", True)]
    session.connected(2.0)
    assert statuses(session, (status("lost"), True)) == []


def test_a_live_sign_of_the_coordinator_is_answered_with_the_birth_and_a_kept_one_is_not() -> None:
    world = World("a")
    world.connect_all()
    device = world.boards["a"].session
    world.run(lambda: device.online)
    up = messages.format_gateway(messages.GatewayState(1, "boot", "up"))
    lost = messages.format_gateway(messages.GatewayState(1, "boot", "lost"))
    for _ in range(2):
        (birth,) = device.received(world.now, topics.gateway(SITE), up)
        assert isinstance(birth, Publish)
        assert (birth.topic, birth.retain, messages.parse_status(birth.payload).state) == (STATUS, True, "online")
    assert device.received(world.now, topics.gateway(SITE), up, retain=True) == []
    assert device.received(world.now, topics.gateway(SITE), lost) == []


def test_a_device_listens_to_the_coordinator_before_it_says_that_it_is_there() -> None:
    world = World("a")
    device = world.boards["a"].session
    device.connected(0.0)
    device.subscribed(0.0, (STATUS,))
    commands = device.tick(1.0)
    listens = [i for i, c in enumerate(commands) if isinstance(c, Subscribe) and topics.gateway(SITE) in c.topics]
    speaks = [i for i, c in enumerate(commands) if isinstance(c, Publish) and c.topic == STATUS]
    assert listens < speaks


def test_a_task_needs_its_blobs_and_a_sound_device_id() -> None:
    session = gateway()
    task = make_task("t", "a", b"plan", b"weights")
    with pytest.raises(BlobUnknown, match=r"blob [0-9a-f]{64}"):
        session.send_task("a", task)
    with pytest.raises(BadId):
        session.send_task("a/b", task)
    assert issubclass(BlobUnknown, LocalError)


def test_a_dropped_blob_is_taken_off_the_broker() -> None:
    world = World("a")
    world.connect_all()
    task = world.send("a", "t")
    assert any(task.weights in topic for topic in world.retained)
    world.all_do(GATEWAY, world.gateway.drop_blob(task.weights))
    world.all_do(GATEWAY, world.gateway.drop_blob(task.weights))
    assert not any(task.weights in topic for topic in world.retained)


def running(world: World) -> Task:
    world.connect_all()
    task = world.send("a", "t")
    world.until_running("a")
    return task


def test_a_task_that_comes_again_while_it_runs_does_not_begin_again() -> None:
    world = World("a")
    running(world)
    for _ in range(2):
        world.cut("a")
        world.connect("a")
        for _ in range(10):
            while world.deliveries:
                world.deliver()
            world.tick()
    assert world.boards["a"].runs == 1
    world.run(lambda: bool(world.journal))


def test_a_failed_task_that_comes_again_is_answered_with_the_same_failure() -> None:
    world = World("a")
    running(world)
    session = world.boards["a"].session
    key = world.boards["a"].running[0].key
    (fail,) = session.failed(world.now, key, "NoExamples", "empty")
    payload = world.retained[topics.task(SITE, "a")]
    assert session.received(world.now, topics.task(SITE, "a"), payload) == [fail]


def test_a_task_for_another_device_is_ignored_with_a_warning() -> None:
    world = World("a")
    task = running(world)
    payload = format_task(replace(task, device="b"))
    (warning,) = world.boards["a"].session.received(world.now, topics.task(SITE, "a"), payload)
    assert warning.rule == "NotMyTask"
    assert world.boards["a"].running[0].task == task


def test_the_same_name_with_other_bytes_is_another_task() -> None:
    world = World("a")
    payload = format_task(replace(running(world), seed=8))
    commands = world.boards["a"].session.received(world.now, topics.task(SITE, "a"), payload)
    assert isinstance(commands[0], AbandonTask)
    old = world.boards["a"].running[0].key
    assert world.boards["a"].session.finished(world.now, old, b"late") == []


def test_a_blob_over_the_devices_cap_is_refused_before_it_is_fetched() -> None:
    world = World("a")
    world.boards["a"].session._work._cap_bytes = 99_999
    world.connect_all()
    world.send("a", "t", size=100_000)
    world.run(lambda: any(getattr(event, "rule", "") == "BlobTooLarge" for event in world.events))
    assert world.boards["a"].runs == 0


def test_a_slow_link_is_not_flooded_with_the_same_chunks() -> None:
    """Each chunk takes 5 s, more than the first patience: few are asked for twice, and the blob arrives."""
    data = blob("weights", 12 * 65_536)
    fetch = Fetch(SITE, {sha256(data): len(data)}, frozenset(), 1 << 30)
    queue: list[str] = []
    sent, now = 0, 0.0
    commands = fetch.start(now)
    while not fetch.complete:
        queue += [topic for each in commands if isinstance(each, Subscribe) for topic in each.topics]
        now += 1.0
        commands = fetch.tick(now, gateway_up=True)
        if now % 5 == 0:
            index = int(queue.pop(0).rsplit("/", 1)[1])
            sent += 1
            commands += fetch.chunk(now, sha256(data), index, cut_chunk(data, index))
    assert sent <= 2 * 12


@dataclass
class FailingDisk:
    """An update whose bytes cannot be read any more."""

    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes

    def __getitem__(self, where: slice) -> bytes:
        raise FileUnreadable(f"{where}: Input/output error")


def test_an_update_that_cannot_be_read_back_fails_its_task_by_a_rule_that_passes() -> None:
    world = World("a")
    task = running(world)
    key = world.boards["a"].running[0].key
    session = world.boards["a"].session
    session.finished(world.now, key, UPDATE)
    session.stored(key, FailingDisk(len(UPDATE)))
    uid = UID
    have = messages.format_down(messages.Have(uid, "0000", 4))
    chunks = session.received(world.now, topics.down(SITE, "a"), have)
    assert isinstance(chunks[0], PublishChunk)
    with pytest.raises(FileUnreadable) as raised:
        _ = chunks[0].payload
    warning, fail = session.unreadable(world.now, raised.value)
    assert isinstance(warning, Warned)
    assert warning.rule == "FileUnreadable"
    assert session.unreadable(world.now, raised.value) == []
    assert isinstance(fail, Publish)
    assert messages.parse_fail(fail.payload).rule == "CacheDamaged"
    assert not session.busy
    again = session.received(world.now, topics.task(SITE, "a"), format_task(task))
    assert again == [fail]


def refused(world: World, rule: str) -> tuple[list[object], bytes]:
    """What the device does when its update is refused, and the task that it was of."""
    task = running(world)
    session = world.boards["a"].session
    session.finished(world.now, world.boards["a"].running[0].key, UPDATE)
    answer = messages.format_down(messages.Refuse(UID, rule, "no", None))
    return session.received(world.now, topics.down(SITE, "a"), answer), format_task(task)


@pytest.mark.parametrize("rule", ["UnknownTask", "StaleTask", "StaleUpdate"])
def test_a_task_that_was_not_asked_for_and_then_is_begins_anew(rule: str) -> None:
    world = World("a")
    (settled,), payload = refused(world, rule)
    assert isinstance(settled, UpdateSettled)
    again = world.boards["a"].session.received(world.now, topics.task(SITE, "a"), payload)
    world.all_do("a", again)
    world.run(lambda: world.boards["a"].runs == 2)


def test_an_update_that_was_judged_and_refused_fails_its_task() -> None:
    world = World("a")
    (settled, fail), payload = refused(world, "UpdateTooLarge")
    assert isinstance(settled, UpdateSettled)
    assert isinstance(fail, Publish)
    assert messages.parse_fail(fail.payload) == messages.Fail("t", "UpdateTooLarge", "no")
    assert world.boards["a"].session.received(world.now, topics.task(SITE, "a"), payload) == [fail]


def test_an_older_device_that_never_answers_by_name_but_goes_on_answering_stops_this_one() -> None:
    world = World("a")
    world.connect_all()
    world.run(lambda: world.boards["a"].session.online)
    device = world.boards["a"].session
    status = messages.format_status(messages.Status("boot-0", 0, "online", 10, {}))
    said = [device.received(world.now, topics.status(SITE, "a"), status) for _ in range(ALIVE)]
    assert all(isinstance(answer, Publish) for answers in said[:-1] for answer in answers)
    ((stop,),) = said[-1:]
    assert isinstance(stop, Stop)
    assert stop.rule == "DuplicateDevice"


def test_a_message_whose_topic_came_damaged_may_have_been_a_birth_and_everybody_is_called() -> None:
    session = gateway()
    (warned,) = session.received(1.0, "edge/v1/test/d/a/stat\x7fs", b"x")
    assert warned.rule == "BadTopic"
    called = session.tick(20.0)
    assert [messages.parse_gateway(c.payload).state for c in called if isinstance(c, Publish)] == ["up"]
    assert not session.tick(40.0)

"""Admission: a budget of memory, a line of those who wait, and nobody who starves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.wire import messages
from edge_runtime.wire.chunks import chunk_count, cut_chunk
from edge_runtime.wire.events import UpdateReceived, Warned
from edge_runtime.wire.intake import BUSY_RETRY_S, IDLE_UPLOAD_S, MAX_BUSY_RETRY_S, Answer, Intake, Refusal
from support.joined import World, blob

MAX_BYTES = 300_000
BUDGET = 400_000


def offer(task: str, size: int) -> tuple[messages.Begin, bytes]:
    data = blob(task, size)
    return messages.Begin(task, hashlib.sha256(data).hexdigest(), size), data


@dataclass
class Site:
    """An intake, the devices' updates, and in which order they were let in."""

    intake: Intake = field(default_factory=lambda: Intake(MAX_BYTES, BUDGET))
    now: float = 0.0
    open: dict[str, tuple[messages.Begin, bytes]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def begin(self, device: str, size: int) -> Answer:
        begin, data = offer(f"{device}.{size}", size)
        (answer,) = self.intake.begin(self.now, device, begin.sha256[:16], begin, lambda: None)
        if isinstance(answer, messages.Have):
            self.open[device] = (begin, data)
        return answer

    def admit(self) -> list[str]:
        told = self.intake.admit(lambda _device, _task: None)
        assert all(isinstance(answer, messages.Have) for _, answer in told)
        return [device for device, _ in told]

    def send(self, device: str) -> None:
        """All the chunks of an open upload, and the caller's acceptance."""
        begin, data = self.open.pop(device)
        answers = [
            answer
            for index in range(chunk_count(len(data)))
            for answer in self.intake.chunk(self.now, device, begin.sha256[:16], index, cut_chunk(data, index))
        ]
        assert isinstance(answers[-1], UpdateReceived)
        self.intake.settle(device, begin.sha256[:16])
        self.done.append(device)


def test_who_finds_no_room_is_let_in_as_soon_as_there_is_some_in_the_order_they_came() -> None:
    site = Site()
    assert isinstance(site.begin("a", 300_000), messages.Have)
    for device, size in (("d", 300_000), ("b", 200_000), ("c", 100_000)):
        assert isinstance(site.begin(device, size), messages.Refuse)
    assert site.admit() == []
    site.send("a")
    assert site.admit() == ["d"]  # c would fit beside it, but b was there before
    site.open["d"] = offer("d.300000", 300_000)
    site.send("d")
    assert site.admit() == ["b", "c"]


def test_nobody_passes_the_line_and_asking_often_changes_nothing() -> None:
    site = Site()
    site.begin("a", 300_000)
    site.begin("b", 300_000)
    for _ in range(5):
        assert isinstance(site.begin("c", 50_000), messages.Refuse)  # it would fit; b would wait for ever
    site.send("a")
    assert site.admit() == ["b", "c"]


def test_the_time_to_come_again_grows_with_the_bytes_that_are_before_and_has_a_cap() -> None:
    site = Site()
    site.begin("a", MAX_BYTES)
    waits = [site.begin(f"w{index:03}", MAX_BYTES) for index in range(40)]
    retries = [answer.retry_s for answer in waits if isinstance(answer, messages.Refuse)]
    assert retries == sorted(retries)
    assert (retries[0], retries[-1]) == (BUSY_RETRY_S, MAX_BUSY_RETRY_S)
    assert len(set(retries)) > 5


def test_an_update_larger_than_the_budget_is_taken_alone() -> None:
    site = Site(Intake(2 * BUDGET, BUDGET))
    site.begin("a", 1000)
    assert isinstance(site.begin("b", 2 * BUDGET), messages.Refuse)
    site.send("a")
    assert site.admit() == ["b"]
    assert isinstance(site.begin("c", 1000), messages.Refuse)


def test_a_device_that_is_gone_or_silent_leaves_the_line() -> None:
    site = Site()
    site.begin("a", MAX_BYTES)
    for device in ("gone", "silent", "patient"):
        site.begin(device, MAX_BYTES)
    site.intake.leave("gone")
    site.now = IDLE_UPLOAD_S / 2
    site.begin("patient", MAX_BYTES)
    site.begin("a", MAX_BYTES)
    site.now = IDLE_UPLOAD_S + 1
    site.intake.drop_idle(site.now)
    assert site.intake.waiting == 1
    site.send("a")
    assert site.admit() == ["patient"]


def test_who_waits_is_asked_about_again_before_being_let_in() -> None:
    site = Site()
    site.begin("a", MAX_BYTES)
    site.begin("b", MAX_BYTES)
    site.send("a")
    ((device, answer),) = site.intake.admit(lambda _device, task: Refusal("StaleTask", task))
    assert (device, answer.rule, site.intake.open_bytes) == ("b", "StaleTask", 0)


def test_a_device_may_replace_its_own_partial_upload_whoever_waits() -> None:
    site = Site()
    site.begin("a", MAX_BYTES)
    site.begin("b", MAX_BYTES)
    assert isinstance(site.begin("a", MAX_BYTES - 1), messages.Have)
    assert site.intake.open_bytes == MAX_BYTES - 1


DEVICES = st.sampled_from("abcdefgh")
ACTIONS = st.one_of(
    st.tuples(st.just("begin"), DEVICES, st.integers(1, MAX_BYTES)),
    st.tuples(st.just("send"), DEVICES, st.just(0)),
    st.tuples(st.just("leave"), DEVICES, st.just(0)),
    st.tuples(st.just("wait"), DEVICES, st.sampled_from([1, 60, 200])),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ACTIONS, max_size=40))
def test_whatever_happens_the_count_is_that_of_the_open_uploads_and_within_the_budget(
    actions: list[tuple[str, str, int]],
) -> None:
    site = Site()
    for what, device, number in actions:
        if what == "begin":
            site.begin(device, number)
        elif what == "send" and device in site.open:
            site.send(device)
        elif what == "leave":
            site.intake.leave(device)
        elif what == "wait":
            site.now += number
            site.intake.drop_idle(site.now)
            alive = {upload.begin.sha256 for upload in site.intake._uploads.values()}
            site.open = {name: each for name, each in site.open.items() if each[0].sha256 in alive}
        told = site.admit()
        opened = {upload.device: upload.begin for upload in site.intake._uploads.values()}
        site.open |= {name: offer(opened[name].task, opened[name].size_bytes) for name in told}
        assert site.intake.open_bytes == sum(begin.size_bytes for begin in opened.values())
        assert site.intake.open_bytes <= BUDGET
        # Room is never left unused while somebody waits.
        first = site.intake._waiting.first()
        assert first is None or not site.intake._has_room(first.device, first.begin)


def test_a_storm_of_two_hundred_uploads_is_served_in_order_within_the_budget_and_nobody_starves() -> None:
    names = [f"dev-{index:03}" for index in range(200)]
    budget = 10 * 300_000
    world = World(*names, budget_bytes=budget)
    world.connect_all()
    world.run(lambda: all(world.boards[name].session.online for name in names))
    for name in names:
        world.send(name, f"t.{name}")
    peak, queued = [0], [0]

    def all_done() -> bool:
        peak[0] = max(peak[0], world.gateway.open_bytes)
        queued[0] = max(queued[0], world.gateway._intake.waiting)
        return len(world.taken) == len(names)

    world.run(all_done, seconds=60.0)
    assert peak[0] <= budget
    assert queued[0] > 150
    asked = [w for w in world.warnings if isinstance(w, Warned) and w.rule == "GatewayBusy"]
    assert len(asked) < 2 * len(names), "who waits is called, and need not ask over and over"
    # Uploads run ten at a time beside each other, so one may overtake its neighbours in the line but not more.
    places = [names.index(device) for device, _ in world.taken]
    assert max(abs(place - index) for index, place in enumerate(places)) <= 20
    assert world.gateway.open_bytes == 0

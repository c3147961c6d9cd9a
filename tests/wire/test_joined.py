"""Both sessions over a broker in memory: what must hold in fair weather, then whatever is dropped."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from edge_runtime.wire import topics
from edge_runtime.wire.events import DeviceStatus, Publish, TaskFailed
from support.joined import GATEWAY, SITE, World, blob


def test_a_task_goes_down_and_its_update_comes_up() -> None:
    world = World("a", "b")
    world.connect_all()
    for device in ("a", "b"):
        world.send(device, f"job.1.{device}")
    world.run(lambda: len(world.journal) == 2)
    world.run(lambda: all(board.settled for board in world.boards.values()))
    assert [s.outcome for s in world.boards["a"].settled] == ["done"]
    assert {(e.device, e.state) for e in world.events if isinstance(e, DeviceStatus)} == {
        ("a", "online"),
        ("b", "online"),
    }


def test_an_undisturbed_upload_sends_every_chunk_once() -> None:
    world = World("a", update_of=lambda task: blob(task, 1_000_000))
    world.connect_all()
    world.send("a", "t")
    world.run(lambda: bool(world.boards["a"].settled))
    assert world.chunks_up == 16


def test_a_small_update_takes_one_message_each_way() -> None:
    world = World("a", update_of=lambda task: blob(task, 10_000))
    world.connect_all()
    world.send("a", "t")
    sent: list[str] = []
    publish = world.publish
    world.publish = lambda message: (sent.append(message.topic.rsplit("/", 1)[1]), publish(message))[1]  # type: ignore[method-assign]
    world.run(lambda: bool(world.boards["a"].settled))
    assert world.boards["a"].settled[0].outcome == "done"
    assert sent[sent.index("whole") :] == ["whole", "down"]


def test_a_cut_upload_is_resumed_and_not_sent_again() -> None:
    world = World("a", update_of=lambda task: blob(task, 1_000_000))
    world.connect_all()
    world.send("a", "t")
    world.run(lambda: world.chunks_up >= 8)
    sent, lost = world.chunks_up, sum(d.peer == GATEWAY for d in world.deliveries)
    world.cut("a")
    world.connect("a")
    world.run(lambda: bool(world.journal))
    assert sent < world.chunks_up <= 16 + lost


def test_a_plan_is_fetched_once_and_weights_every_round() -> None:
    world = World("a")
    world.connect_all()
    world.send("a", "t1")
    world.run(lambda: len(world.journal) == 1)
    (plan,) = world.boards["a"].plans
    world.retained = {topic: payload for topic, payload in world.retained.items() if plan not in topic}
    world.send("a", "t2")
    world.run(lambda: len(world.journal) == 2)
    assert len(world.boards["a"].blobs) == 2


def test_a_device_that_dies_after_training_answers_from_its_outbox() -> None:
    world = World("a")
    world.connect_all()
    world.send("a", "t")
    world.run(lambda: world.boards["a"].outbox is not None)
    world.restart_device("a")
    world.connect("a")
    world.run(lambda: bool(world.journal))
    assert world.boards["a"].runs == 1


def test_a_withdrawn_task_is_not_run_to_its_end() -> None:
    world = World("a")
    world.connect_all()
    world.send("a", "t")
    world.until_running("a")
    world.all_do(GATEWAY, world.gateway.clear_task("a"))
    while world.deliveries:
        world.deliver()
    assert not world.boards["a"].session.busy
    world.finish("a")
    assert world.boards["a"].outbox is None


def test_a_missing_blob_fails_the_task_after_half_a_minute() -> None:
    world = World("a")
    world.connect_all()
    task = world.send("a", "t")
    world.retained = {t: p for t, p in world.retained.items() if task.weights not in t}
    world.run(lambda: any(isinstance(e, TaskFailed) for e in world.events))
    failed = next(e for e in world.events if isinstance(e, TaskFailed))
    assert (failed.device, failed.task, failed.rule) == ("a", "t", "BlobMissing")
    assert 30 <= world.now <= 33
    assert task.weights in failed.message


def test_without_a_coordinator_blobs_are_waited_for() -> None:
    world = World("a")
    world.connect_all()
    task = world.send("a", "t")
    world.cut(GATEWAY)
    world.retained = {t: p for t, p in world.retained.items() if task.weights not in t}
    world.tick(1)
    for _ in range(300):
        while world.deliveries:
            world.deliver()
        world.tick(0.5)
    assert world.boards["a"].session.busy
    world.connect(GATEWAY)
    world.run(lambda: bool(world.journal))


def test_a_full_gateway_asks_to_come_back_and_takes_the_update_then() -> None:
    world = World("a", "b", budget_bytes=300_000)
    world.connect_all()
    for device in ("a", "b"):
        world.send(device, device)
    world.run(lambda: len(world.journal) == 2)
    assert any(w.rule == "GatewayBusy" for w in world.warnings)


def test_a_gateway_that_has_forgotten_a_task_and_comes_to_it_again_gets_its_update() -> None:
    world = World("a")
    world.connect_all()
    task = world.send("a", "t")
    world.until_running("a")
    world.all_do(GATEWAY, world.gateway.clear_task("a"))
    world.deliveries.clear()  # the device has not heard of it when it is done
    world.finish("a")
    world.run(lambda: bool(world.boards["a"].settled))
    assert world.boards["a"].settled[0].rule == "UnknownTask"
    world.all_do(GATEWAY, world.gateway.send_task("a", task))
    world.run(lambda: bool(world.journal))


def test_an_update_over_the_cap_is_refused_for_good() -> None:
    world = World("a", max_update_bytes=299_999)
    world.connect_all()
    world.send("a", "t")
    world.run(lambda: bool(world.boards["a"].settled))
    assert world.boards["a"].settled[0].rule == "UpdateTooLarge"
    world.run(lambda: any(isinstance(e, TaskFailed) and e.rule == "UpdateTooLarge" for e in world.events))
    assert world.gateway.open_bytes == 0


def test_an_idle_partial_upload_gives_its_memory_back() -> None:
    world = World("a", update_of=lambda task: blob(task, 1_000_000))
    world.connect_all()
    world.send("a", "t")
    world.run(lambda: world.chunks_up >= 4)
    world.cut("a")
    assert world.gateway.open_bytes == 1_000_000
    world.tick(119)
    assert world.gateway.open_bytes == 1_000_000
    world.tick(2)
    assert world.gateway.open_bytes == 0
    world.connect("a")
    world.run(lambda: bool(world.journal))


def test_a_slow_link_does_not_make_everything_travel_twice() -> None:
    # Every answer takes 5 s, over twice the patience a device starts with.
    world = World("a", update_of=lambda task: blob(task, 4_000_000))
    world.connect_all()
    world.send("a", "t")
    world.run(lambda: world.boards["a"].outbox is not None)
    while not world.journal:
        batch, world.deliveries = world.deliveries, []
        for _ in range(50):
            world.tick(0.1)
        late, world.deliveries = world.deliveries, batch
        while world.deliveries:
            world.deliver()
        world.deliveries += late
        assert world.now < 3000
    assert world.chunks_up <= 62 * 1.3


def test_the_older_of_two_devices_with_one_id_stays() -> None:
    world = World("a")
    world.connect_all()
    world.run(lambda: world.boards["a"].session.online)
    twin = World("a")
    twin.retained, twin.now = world.retained, world.now
    first, second = world.boards["a"], twin.boards["a"]
    second.session = twin._new_device("a", "boot-of-twin", 0)
    second.name = "twin"
    world.boards["twin"] = second
    twin.boards["twin"] = second
    world.connect("twin")
    world.run(lambda: second.stopped is not None)
    assert second.stopped.rule == "DuplicateDevice"
    assert first.stopped is None
    assert second.gen == first.gen + 1


def test_a_restarted_device_is_no_duplicate_of_itself() -> None:
    world = World("a")
    world.connect_all()
    world.run(lambda: world.boards["a"].session.online)
    old_birth = dict(world.retained)
    topic = next(t for t in old_birth if t.endswith("status"))
    will = world.wills["a"][1]
    world.cut("a", late_will=True)
    world.restart_device("a")
    world.connect("a")
    world.run(lambda: world.boards["a"].session.online)
    for stale in (old_birth[topic], will):
        world.retained[topic] = stale
        world.all_do("a", world.boards["a"].session.received(world.now, topic, stale))
    assert world.boards["a"].stopped is None
    assert b'"boot":"boot-2"' in world.retained[topic]
    assert b'"gen":2' in world.retained[topic]


def test_no_number_of_births_of_a_dead_process_stops_its_successor() -> None:
    world = World("a")
    world.connect_all()
    world.run(lambda: world.boards["a"].session.online)
    (topic,) = (t for t in world.retained if t.endswith("status"))
    birth = world.retained[topic]
    world.restart_device("a")
    world.connect("a")
    world.run(lambda: world.boards["a"].session.online)
    for _ in range(3):
        world.publish(Publish(topic, birth, 1, retain=True))
    world.run(lambda: not world.deliveries)
    assert world.boards["a"].stopped is None
    assert b'"boot":"boot-2"' in world.retained[topic]


def test_a_device_with_a_fresh_disk_renews_its_will_with_the_right_generation() -> None:
    world = World("a")
    world.connect_all()
    world.run(lambda: world.boards["a"].session.online)
    world.boards["a"].gen = 0
    world.restart_device("a")
    world.connect("a")
    world.run(lambda: world.boards["a"].session.online)
    assert b'"gen":2' in world.wills["a"][1]


def update(task: str) -> bytes:
    """Every other one so small that it comes with its offer."""
    return blob(task, 10_000 if int(task.split("-")[1]) % 2 else 300_000)


class Faults(RuleBasedStateMachine):
    """Whatever is lost, repeated, overtaken, cut or restarted: every update that is asked for arrives exactly once."""

    @initialize()
    def start(self) -> None:
        self.world = World("a", "b", update_of=update)
        self.world.connect_all()
        self.rounds = 0

    @rule(device=st.sampled_from(["a", "b"]), size=st.sampled_from([1, 65_536, 65_537, 600_000]))
    def ask(self, device: str, size: int) -> None:
        self.rounds += 1
        self.world.send(device, f"task-{self.rounds}-{device}", size=size, round_=self.rounds)

    @rule(count=st.integers(1, 30))
    def deliver_in_order(self, count: int) -> None:
        for _ in range(min(count, len(self.world.deliveries))):
            if self.world.deliveries:
                self.world.deliver()

    @precondition(lambda self: self.world.deliveries)
    @rule(data=st.data())
    def deliver_any(self, data: st.DataObject) -> None:
        self.world.deliver(data.draw(st.integers(0, len(self.world.deliveries) - 1)))

    @precondition(lambda self: self.world.deliveries)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.world.deliveries.pop(data.draw(st.integers(0, len(self.world.deliveries) - 1)))

    @precondition(lambda self: self.world.deliveries)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        self.world.deliver(data.draw(st.integers(0, len(self.world.deliveries) - 1)), keep=True)

    @rule(seconds=st.sampled_from([0.1, 0.4, 2.5, 40.0]))
    def wait(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(device=st.sampled_from(["a", "b"]))
    def train(self, device: str) -> None:
        self.world.finish(device)

    @rule(peer=st.sampled_from([GATEWAY, "a", "b"]), late=st.booleans())
    def cut(self, *, peer: str, late: bool) -> None:
        self.world.cut(peer, late_will=late)

    @rule(peer=st.sampled_from([GATEWAY, "a", "b"]))
    def connect(self, peer: str) -> None:
        self.world.connect(peer)

    @rule(device=st.sampled_from(["a", "b"]))
    def kill_device(self, device: str) -> None:
        self.world.restart_device(device)

    @rule(device=st.sampled_from(["a", "b"]), times=st.integers(1, 3), words=st.data())
    def last_words(self, device: str, times: int, words: st.DataObject) -> None:
        """What an earlier process of the device has said comes late, or once more."""
        said = [payload for boot, payload in self.world.said[device] if boot != self.world.boards[device].boots]
        if said:
            payload = said[words.draw(st.integers(0, len(said) - 1))]
            for _ in range(times):
                self.world.publish(Publish(topics.status(SITE, device), payload, 1, retain=True))

    @rule()
    def clear_done(self) -> None:
        self.world.clear_done()

    @rule()
    def kill_gateway(self) -> None:
        self.world.restart_gateway()

    @rule()
    def kill_broker(self) -> None:
        self.world.restart_broker()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()
            assert sorted(set(self.world.taken)) == sorted(self.world.taken)
            assert not any(board.stopped for board in self.world.boards.values())


TestFaults = Faults.TestCase
TestFaults.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)

"""A whole site in memory: a broker of dictionaries, devices and a coordinator joined without sockets or clocks."""

from __future__ import annotations

import random
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from coordinator.closing import Parts
from coordinator.evaluate import Evaluation, evaluate
from coordinator.event_kinds import problems_of
from coordinator.gateway import RunningJob
from coordinator.jobfile import load_job
from coordinator.program import build_program, definition, judged_model, make_version
from coordinator.results import fold_journalled, keep_model
from coordinator.store import Store, Version, open_store
from edge_runtime.data import load_dataset
from edge_runtime.deltas import apply_delta
from edge_runtime.errors import EdgeError
from edge_runtime.plan import read_plan
from edge_runtime.task import run_task
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.wire import (
    DeviceSession,
    Publish,
    RenewWill,
    RunTask,
    StoreBlob,
    Subscribe,
    Unsubscribe,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from coordinator.gathering import Gathered
    from edge_runtime.data import Dataset
    from edge_runtime.slots import Slots

SITE = "test"
STEP_S = 0.1


@dataclass
class Client:
    """One connection to the broker: what it hears, and what the broker says when it is lost."""

    will: tuple[str, bytes]
    filters: set[str] = field(default_factory=set)
    inbox: deque[tuple[str, bytes, bool]] = field(default_factory=deque)


@dataclass
class MemoryBroker:
    """Retained messages, wills and subscriptions with "+"; delivery in order, to everybody, once."""

    retained: dict[str, bytes] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)
    published: int = 0

    def connect(self, name: str, will: tuple[str, bytes]) -> None:
        self.clients[name] = Client(will)

    def lose(self, name: str) -> None:
        """The connection breaks: its will is published."""
        client = self.clients.pop(name, None)
        if client is not None:
            self.publish(*client.will, retain=True)

    def leave(self, name: str) -> None:
        """A clean disconnect."""
        self.clients.pop(name, None)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        self.published += 1
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for client in self.clients.values():
            if any(matches(each, topic) for each in client.filters):
                client.inbox.append((topic, payload, False))

    def subscribe(self, name: str, filters: Iterable[str]) -> None:
        client = self.clients[name]
        for each in filters:
            client.filters.add(each)
            for topic, payload in list(self.retained.items()):
                if matches(each, topic):
                    client.inbox.append((topic, payload, True))

    def handle(self, name: str, command: Any) -> bool:
        """Whether the command was the broker's business."""
        match command:
            case Publish(topic, payload, _, retain):
                self.publish(topic, payload, retain=retain)
            case Subscribe(topics, _):
                self.subscribe(name, topics)
            case Unsubscribe(topics):
                self.clients[name].filters -= set(topics)
            case _:
                return False
        return True


def matches(pattern: str, topic: str) -> bool:
    """MQTT's rule for "+"."""
    left, right = pattern.split("/"), topic.split("/")
    return len(left) == len(right) and all(a in {"+", b} for a, b in zip(left, right, strict=True))


class MemoryDevice:
    """A device without a process: its session, what its disk holds, and its data."""

    def __init__(self, name: str, dataset: Dataset, broker: MemoryBroker) -> None:
        self.name = name
        self.dataset = dataset
        self.broker = broker
        self.blobs: dict[str, bytes] = {}
        self.boots = 0
        self.trained = 0
        self.tasks: list[Any] = []
        self.settled: list[Any] = []
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.rule: str | None = None
        self.slots: Slots | None = None  # for codecs that carry something over
        self.session: DeviceSession | None = None

    def start(self, now_s: float) -> None:
        self.boots += 1
        self.session = DeviceSession(
            SITE,
            self.name,
            boot=f"{self.name}-{self.boots}",
            stored_gen=self.boots - 1,
            examples=len(self.dataset),
            cached=lambda sha256: sha256 in self.blobs,
        )
        self.connect(now_s)

    def connect(self, now_s: float) -> None:
        assert self.session is not None
        self.broker.connect(self.name, self.session.will())
        self.handle(self.session.connected(now_s), now_s)

    def kill(self) -> None:
        self.session = None
        self.broker.lose(self.name)

    def turn(self, now_s: float) -> None:
        """Take what has arrived, and let time pass."""
        if self.session is None or self.name not in self.broker.clients:
            return
        inbox = self.broker.clients[self.name].inbox
        while inbox and self.session is not None:
            topic, payload, retain = inbox.popleft()
            self.handle(self.session.received(now_s, topic, payload, retain=retain), now_s)
        self.handle(self.session.tick(now_s), now_s)

    def handle(self, commands: Iterable[Any], now_s: float) -> None:
        assert self.session is not None
        for command in commands:
            if self.broker.handle(self.name, command):
                if isinstance(command, Subscribe):
                    self.handle(self.session.subscribed(now_s, command.topics), now_s)
            elif isinstance(command, StoreBlob):
                self.blobs[command.sha256] = command.data
            elif isinstance(command, RunTask):
                self.handle(self.run(command, now_s), now_s)
            elif isinstance(command, RenewWill):
                self.session.disconnected(now_s)
                self.connect(now_s)
            else:
                self.settled.append(command)

    def weights(self, command: RunTask) -> dict[str, Any]:
        """The task's weights, of which deltas must have made every bit."""
        wanted = command.task.weights
        if command.deltas:
            held = decode_tensors(self.blobs[command.deltas[0].base])[0]
            for delta in command.deltas:
                held = apply_delta(held, self.blobs[delta.blob], delta.codec)
            self.blobs[wanted] = encode_tensors(held)
        assert sha256(self.blobs[wanted]).hexdigest() == wanted
        return decode_tensors(self.blobs[wanted])[0]

    def run(self, command: RunTask, now_s: float) -> Any:
        assert self.session is not None
        if self.rule is not None:
            return self.session.failed(now_s, command.key, self.rule, "as the test wants it")
        task = command.task
        self.trained += 1
        self.tasks.append(task)
        plans = {name: read_plan(self.blobs[name]) for phase in task.phases for name in phase.plans}
        try:
            update = run_task(task, plans, self.weights(command), self.dataset, slots=self.slots)
        except EdgeError as error:
            return self.session.failed(now_s, command.key, error.rule, str(error))
        return self.session.finished(now_s, command.key, self.spoil(update.data))


class MemorySite:
    """A broker, a coordinator that can be killed at any time, and devices; the order of turns is drawn from a seed."""

    def __init__(self, job: Path, state: Path, shards: dict[str, Dataset], order: int = 0) -> None:
        self.job_file = job
        self.program = build_program(load_job(job))
        self.held_out = load_dataset(load_job(job).evaluate_data, "test")
        self.state = state
        self.broker = MemoryBroker()
        self.devices = {name: MemoryDevice(name, data, self.broker) for name, data in shards.items()}
        self.order = random.Random(order)  # noqa: S311  an order of turns, not a secret
        self.now_s = 0.0
        self.events: list[dict[str, Any]] = []
        self.job: RunningJob | None = None
        self._stack = ExitStack()

    def start(self, wrap: Callable[[Store], Any] = lambda store: store) -> bool:
        """Start the coordinator with the same command every time; False when its job is done already."""
        store: Store = wrap(self._opened())
        store.begin(definition(self.program), make_version(1, self.program.weights, {}))
        keep_model(self.state, self.program.model)
        if store.done() is not None:
            self._stack.close()
            return False
        parts = Parts(self.program, self._fold, self._judge, store, self.state, self._told)
        store.keep_epoch(epoch := store.epoch() + 1)
        self.job = RunningJob(parts, SITE, epoch, f"boot-{epoch}", self.now_s)
        self.broker.connect("gateway", self.job.session.will())
        self.send(self.job.connected(self.now_s))
        return True

    def _told(self, event: Mapping[str, Any]) -> None:
        assert problems_of(event) == [], "coordinator/event_kinds.py has a row for every event"
        self.events.append(dict(event))

    def _opened(self) -> Store:
        store = self._stack.enter_context(closing(open_store(self.state)))
        store.keep = self.program.job.keep
        return store

    def _fold(self, old: Version, gathered: Gathered | None) -> Future[Version]:
        made: Future[Version] = Future()
        made.set_result(fold_journalled(self.program, self.state, old, gathered))
        return made

    def _judge(self, version: Version) -> Future[Evaluation]:
        judged: Future[Evaluation] = Future()
        judged.set_result(evaluate(judged_model(self.program, version), self.held_out))
        return judged

    def kill(self) -> None:
        """Kill -9: nothing is said, nothing is written; the kernel lets go of the lock."""
        self.job = None
        self._stack.close()
        self.broker.lose("gateway")

    def stop(self) -> int | None:
        """The end of a shell's run: goodbye, and the exit code."""
        assert self.job is not None
        self.send(self.job.stopping())
        code, self.job = self.job.exit_code, None
        self.broker.leave("gateway")
        self._stack.close()
        return code

    def restart_broker(self) -> None:
        """The broker forgets everything and everybody connects again."""
        self.broker.clients.clear()
        self.broker.retained.clear()
        for device in self.devices.values():
            if device.session is not None:
                device.session.disconnected(self.now_s)
                device.connect(self.now_s)
        if self.job is not None:
            self.job.disconnected(self.now_s)
            self.broker.connect("gateway", self.job.session.will())
            self.send(self.job.connected(self.now_s))

    def send(self, commands: Iterable[Any]) -> None:
        for command in commands:
            assert self.broker.handle("gateway", command)

    def turn(self) -> None:
        """Everybody has a turn, in a drawn order, and time passes."""
        turns: list[Callable[[], None]] = [self._coordinator_turn]
        turns += [lambda device=device: device.turn(self.now_s) for device in self.devices.values()]  # type: ignore[misc]
        self.order.shuffle(turns)
        for each in turns:
            each()
        self.now_s += STEP_S

    def _coordinator_turn(self) -> None:
        if self.job is None:
            return
        due = self.job.has_work
        inbox = self.broker.clients["gateway"].inbox
        commands: list[Any] = []
        with self.job.batch():
            while inbox:
                topic, payload, retain = inbox.popleft()
                commands += self.job.received(topic, payload, self.now_s, retain=retain)
            commands += self.job.tick(self.now_s)
        self.send(commands)
        if due:
            self.send(self.job.work(self.now_s))

    def run(self, until: Callable[[], bool] | None = None, turns: int = 5000) -> None:
        """Take turns until a condition holds, by default the end of the job."""
        for _ in range(turns):
            if until() if until else self.job is not None and self.job.exit_code is not None:
                return
            self.turn()
        raise AssertionError(f"not reached in {turns} turns; last events: {self.events[-5:]}")

    def seen(self, kind: str) -> list[dict[str, Any]]:
        """Every event of one kind, over all runs of the coordinator."""
        return [event for event in self.events if event["event"] == kind]


def start_all(site: MemorySite) -> None:
    """Start the coordinator and every device."""
    site.start()
    for device in site.devices.values():
        device.start(site.now_s)


def finished(site: MemorySite) -> str:
    """Run to the end; the hash of the final weights."""
    site.run()
    assert site.stop() == 0
    (done,) = site.seen("job_done")
    return str(done["model_sha256"])

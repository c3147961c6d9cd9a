"""Both ends of the protocol joined in memory: a broker with retained messages, wills, and knobs for every fault."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_runtime.wire import (
    DeviceSession,
    KeepGen,
    Outbox,
    Phase,
    Publish,
    RenewWill,
    RunTask,
    Stop,
    StoreBlob,
    StoreUpdate,
    Subscribe,
    Task,
    Unsubscribe,
    UpdateSettled,
    Upload,
    Warned,
)
from edge_runtime.wire.events import UpdateReceived
from edge_runtime.wire.gateway import GatewaySession

SITE = "lab"
GATEWAY = "(gateway)"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


def make_task(name: str, device: str, plan: bytes, weights: bytes, *, round_: int = 1) -> Task:
    return Task(
        task=name,
        job="job",
        round=round_,
        version=round_,
        device=device,
        phases=(Phase(sha256(plan), 1, {"lr": 0.05}),),
        weights=sha256(weights),
        blobs={sha256(plan): len(plan), sha256(weights): len(weights)},
        classes=10,
        seed=7,
        upload=Upload(),
        deadline_s=60.0,
    )


@dataclass
class Board:
    """A device's shell: what survives a restart (gen, plans, outbox) and what does not."""

    name: str
    session: DeviceSession
    gen: int = 0
    plans: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    outbox: Outbox | None = None
    running: list[RunTask] = field(default_factory=list)
    settled: list[UpdateSettled] = field(default_factory=list)
    stopped: Stop | None = None
    boots: int = 1
    runs: int = 0


@dataclass
class Delivery:
    """One message on its way from the broker to a peer; a confirmation of subscriptions has no payload."""

    peer: str
    topic: str
    payload: bytes
    retain: bool
    suback: tuple[str, ...] = ()


class World:
    """A broker, a gateway with a journal, and boards; the clock is `now`."""

    def __init__(self, *devices: str, update_of: Callable[[str], bytes] | None = None, **limits: int) -> None:
        self.now = 0.0
        self.limits = limits
        self.update_of = update_of or (lambda task: blob(task, 300_000))
        self.retained: dict[str, bytes] = {}
        self.filters: dict[str, set[str]] = {}
        self.wills: dict[str, tuple[str, bytes]] = {}
        self.deliveries: list[Delivery] = []
        self.journal: dict[tuple[str, str], str] = {}
        self.taken: list[tuple[str, str]] = []
        self.tasks: dict[str, tuple[Task, dict[str, bytes]]] = {}
        self.warnings: list[Warned] = []
        self.events: list[object] = []
        self.chunks_up = 0
        self.said = defaultdict[str, list[tuple[int, bytes]]](list)  # statuses of devices, with the boot
        self.epoch = 1
        self.gateway = self._new_gateway()
        self.boards = {name: Board(name, self._new_device(name, "boot-1", 0)) for name in devices}

    def _new_gateway(self) -> GatewaySession:
        return GatewaySession(
            SITE, self.epoch, "boot", already_done=lambda device, task: self.journal.get((device, task)), **self.limits
        )

    def _new_device(self, name: str, boot: str, gen: int, outbox: Outbox | None = None) -> DeviceSession:
        return DeviceSession(
            SITE,
            name,
            boot=boot,
            stored_gen=gen,
            examples=5,
            cached=lambda key: key in self.boards[name].plans or key in self.boards[name].blobs,
            outbox=outbox,
        )

    # The broker.

    def publish(self, message: Publish) -> None:
        if message.retain:
            self.retained[message.topic] = message.payload
            if not message.payload:
                del self.retained[message.topic]
        for peer, filters in self.filters.items():
            if any(matches(one, message.topic) for one in filters):
                self.deliveries.append(Delivery(peer, message.topic, message.payload, retain=False))

    def do(self, peer: str, command: object) -> None:
        online = peer in self.filters
        match command:
            case Publish():
                self.chunks_up += online and "/up/" in command.topic and command.topic[-1].isdigit()
                if online:
                    self.publish(command)
                    if command.topic.endswith("/status"):
                        self.said[peer].append((self.boards[peer].boots, command.payload))
            case Subscribe(topics) if online:
                self.filters[peer] |= set(topics)
                self.deliveries.append(Delivery(peer, "", b"", retain=False, suback=topics))
                for topic, payload in self.retained.items():
                    if any(matches(one, topic) for one in topics):
                        self.deliveries.append(Delivery(peer, topic, payload, retain=True))
            case Unsubscribe(topics) if online:
                self.filters[peer] -= set(topics)
            case Subscribe() | Unsubscribe():
                pass
            case _ if peer == GATEWAY:
                self._gateway_event(command)
            case _:
                self._board_command(self.boards[peer], command)

    def all_do(self, peer: str, commands: Sequence[object]) -> None:
        for command in commands:
            self.do(peer, command)

    def deliver(self, index: int = 0, *, keep: bool = False) -> None:
        item = self.deliveries[index] if keep else self.deliveries.pop(index)
        if item.peer == GATEWAY:
            if not item.suback:
                outcomes = self.gateway.received(self.now, item.topic, item.payload, retain=item.retain)
                self.all_do(GATEWAY, outcomes)
            return
        session = self.boards[item.peer].session
        if item.suback:
            self.all_do(item.peer, session.subscribed(self.now, item.suback))
        else:
            commands = session.received(self.now, item.topic, item.payload, retain=item.retain)
            self.all_do(item.peer, commands)

    def connect(self, peer: str) -> None:
        if peer in self.filters or (peer in self.boards and self.boards[peer].stopped):
            return
        self.filters[peer] = set()
        session = self.gateway if peer == GATEWAY else self.boards[peer].session
        self.wills[peer] = session.will()
        self.all_do(peer, session.connected(self.now))

    def cut(self, peer: str, *, clean: bool = False, late_will: bool = False) -> None:
        if peer not in self.filters:
            return
        self._forget(peer)
        session = self.gateway if peer == GATEWAY else self.boards[peer].session
        self.all_do(peer, session.disconnected(self.now))
        topic, payload = self.wills.pop(peer)
        if not clean and not late_will:
            self.publish(Publish(topic, payload, 1, retain=True))

    def _forget(self, peer: str) -> None:
        del self.filters[peer]
        self.deliveries = [item for item in self.deliveries if item.peer != peer]

    # The shells.

    def _gateway_event(self, event: object) -> None:
        self.events.append(event)
        if isinstance(event, Warned):
            self.warnings.append(event)
        if isinstance(event, UpdateReceived):
            assert event.data == self.update_of(event.task)
            assert sha256(event.data) == event.sha256
            assert (event.device, event.task) not in self.journal, "an update was taken twice"
            self.journal[event.device, event.task] = event.sha256
            self.taken.append((event.device, event.task))
            self.all_do(GATEWAY, self.gateway.accept(event.device, event.uid))

    def _board_command(self, board: Board, command: object) -> None:
        match command:
            case KeepGen(gen):
                board.gen = gen
            case StoreBlob(key, data, is_plan):
                assert sha256(data) == key
                (board.plans if is_plan else board.blobs)[key] = data
            case RunTask(_, task):
                have = board.plans | board.blobs
                assert all(len(have[key]) == size for key, size in task.blobs.items())
                board.running.append(command)
                board.runs += 1
            case StoreUpdate(key, task, data):
                board.outbox = Outbox(key, task, data)
            case UpdateSettled():
                board.settled.append(command)
            case RenewWill():
                self.cut(board.name, clean=True)
                self.connect(board.name)
            case Stop():
                board.stopped = command
                self.cut(board.name, clean=True)
            case Warned():
                self.warnings.append(command)

    def send(self, device: str, name: str, *, size: int = 100_000, round_: int = 1) -> Task:
        plan, weights = blob("plan", 70_000), blob(f"weights-{name}", size)
        blobs = {sha256(plan): plan, sha256(weights): weights}
        task = make_task(name, device, plan, weights, round_=round_)
        self.tasks[device] = (task, blobs)
        self.all_do(GATEWAY, self.gateway.send_task(device, task, blobs))
        return task

    def clear_done(self) -> None:
        """What a coordinator does sooner or later: withdraw the tasks whose updates it has."""
        for device, (task, _) in self.tasks.items():
            if (device, task.task) in self.journal:
                self.all_do(GATEWAY, self.gateway.clear_task(device))

    def until_running(self, device: str) -> None:
        """Deliver all that is said until the device trains."""
        while not self.boards[device].running:
            while self.deliveries:
                self.deliver()
            self.tick()

    def finish(self, device: str) -> None:
        board = self.boards[device]
        if board.running:
            run = board.running.pop(0)
            update = self.update_of(run.task.task)
            self.all_do(device, board.session.finished(self.now, run.key, update))

    def tick(self, seconds: float = 0.1) -> None:
        self.now += seconds
        self.all_do(GATEWAY, self.gateway.tick(self.now))
        for name, board in self.boards.items():
            if not board.stopped:
                self.all_do(name, board.session.tick(self.now))

    # Restarts.

    def restart_device(self, name: str) -> None:
        board = self.boards[name]
        if name in self.filters:
            topic, payload = self.wills.pop(name)
            self._forget(name)
            self.publish(Publish(topic, payload, 1, retain=True))
        board.boots += 1
        board.running.clear()
        board.blobs.clear()
        board.session = self._new_device(name, f"boot-{board.boots}", board.gen, board.outbox)

    def restart_gateway(self) -> None:
        if GATEWAY in self.filters:
            topic, payload = self.wills.pop(GATEWAY)
            self._forget(GATEWAY)
            self.publish(Publish(topic, payload, 1, retain=True))
        self.epoch += 1
        self.gateway = self._new_gateway()
        for device, (task, blobs) in self.tasks.items():
            self.gateway.send_task(device, task, blobs)

    def restart_broker(self) -> None:
        peers = list(self.filters)
        self.retained.clear()
        self.deliveries.clear()
        for peer in peers:
            self.cut(peer, clean=True)

    # Fair weather.

    def run(self, until: Callable[[], bool], seconds: float = 120.0) -> None:
        """Deliver everything in order, finish every task, let time pass, until the condition holds."""
        end = self.now + seconds
        while not until():
            assert self.now < end, f"nothing came of it in {seconds} s; {self.warnings[-3:]}"
            while self.deliveries:
                self.deliver()
                if until():
                    return
            for name in self.boards:
                self.finish(name)
            self.tick()

    def connect_all(self) -> None:
        for peer in (GATEWAY, *self.boards):
            self.connect(peer)

    def settle(self) -> None:
        """Give everyone a new connection and wait until every task that was sent is in the journal."""
        for peer in (GATEWAY, *self.boards):
            self.cut(peer)
        self.connect_all()
        self.run(lambda: all((d, task.task) in self.journal for d, (task, _) in self.tasks.items()))


def matches(one: str, topic: str) -> bool:
    wanted, levels = one.split("/"), topic.split("/")
    return len(wanted) == len(levels) and all(w in ("+", level) for w, level in zip(wanted, levels, strict=True))

"""A device's downloads through the real session and disk: whatever happened before, it starts from the very bits."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from edge_runtime.codecs import find_codec
from edge_runtime.deltas import CHANGED, apply_delta, write_delta
from edge_runtime.received import WeightsUnusable, received_weights
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.weights_cache import WeightsCache
from edge_runtime.wire import Delta, DeviceSession, Outbox, RunTask, StoreBlob, Task
from edge_runtime.wire.events import TaskFailed
from support.joined import GATEWAY, SITE, Board, World, blob, make_task, sha256

SHAPES = {"body": (150, 200), "head": (10, 40), "bias": (10,)}  # 122 KB: two chunks
CODECS = [CHANGED, ("int8",), ("topk 0.1", "fp16", "rice")]
PLAN = blob("plan", 1000)


class Line:
    """The versions of one job: what devices hold of each, and the deltas between them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        first = {name: self.random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        self.views = [encode_tensors(first)]
        self.steps: list[tuple[bytes, tuple[str, ...]]] = []

    def move(self, codec: tuple[str, ...]) -> None:
        held = decode_tensors(self.views[-1])[0]
        change = {name: self.random.normal(0, 0.1, held[name].shape).astype(np.float32) for name in ("head", "bias")}
        if codec == CHANGED:
            data = write_delta({name: held[name] + change[name] for name in change}, [], b"")
        else:
            change["body"] = self.random.normal(0, 0.1, held["body"].shape).astype(np.float32)
            data = write_delta({}, sorted(change), find_codec(codec).encode(change, {}, {}))
        self.steps.append((data, codec))
        self.views.append(encode_tensors(apply_delta(held, data, codec)))

    def task(self, device: str, name: str, version: int) -> tuple[Task, dict[str, bytes]]:
        """The task that starts from a version, and the blobs that are published with it."""
        view, steps = self.views[version], list(enumerate(self.steps))[max(0, version - 4) : version][::-1]
        deltas = tuple(Delta(sha256(self.views[base]), sha256(data), len(data), codec) for base, (data, codec) in steps)
        task = make_task(name, device, PLAN, view)
        blobs = {sha256(data): data for data in (PLAN, view, *(data for _, (data, _) in steps))}
        return Task(**{**vars(task), "deltas": deltas}), blobs


class Site(World):
    """A world whose devices keep weights on a real disk."""

    def __init__(self, root: Path, *devices: str) -> None:
        self.root = root
        self.caches: dict[str, WeightsCache] = {}
        self.views: dict[str, bytes] = {}
        self.started: list[tuple[str, str, int]] = []
        super().__init__(*devices, update_of=lambda task: blob(task, 300))

    def _new_device(self, name: str, boot: str, gen: int, outbox: Outbox | None = None) -> DeviceSession:
        (self.root / name).mkdir(exist_ok=True)
        cache = self.caches[name] = WeightsCache(self.root / name / "weights", lambda _: None)
        return DeviceSession(
            SITE,
            name,
            boot=boot,
            stored_gen=gen,
            examples=5,
            cached=lambda key: key in self.boards[name].plans or key in self.boards[name].blobs or cache.has(key),
            open_sink=cache.open_sink,
            outbox=outbox,
        )

    def _board_command(self, board: Board, command: object) -> None:
        match command:
            case StoreBlob(_, None):
                return
            case RunTask(_, task, deltas):
                names = {delta.base for delta in deltas} | {delta.blob for delta in deltas} | {task.weights}
                self.caches[board.name].retain(names)
                board.running.append(command)
            case _:
                super()._board_command(board, command)

    def finish(self, device: str) -> None:
        board = self.boards[device]
        if not board.running:
            return
        run = board.running.pop(0)
        came, board.blobs = board.blobs, {}
        try:
            weights = received_weights(run.task.weights, run.deltas, came, self.caches[device], lambda _: None)
        except WeightsUnusable as error:
            self.all_do(device, board.session.unusable(self.now, run.key, str(error)))
            return
        assert encode_tensors(weights) == self.views[run.task.weights], "a device trains from other bits"
        self.started.append((device, run.task.task, len(run.deltas)))
        self.all_do(device, board.session.finished(self.now, run.key, self.update_of(run.task.task)))

    def ask(self, device: str, line: Line, name: str, version: int) -> None:
        task, blobs = line.task(device, name, version)
        self.views[task.weights] = line.views[version]
        self.tasks[device] = (task, blobs)
        for key, data in blobs.items():
            self.all_do(GATEWAY, self.gateway.publish_blob(key, data))
        self.all_do(GATEWAY, self.gateway.send_task(device, task))

    def done(self, device: str) -> bool:
        return (device, self.tasks[device][0].task) in self.journal


def make_site(tmp_path: Path) -> tuple[Site, Line]:
    site, line = Site(tmp_path, "a"), Line(1)
    site.connect_all()
    line.move(("int8",))
    line.move(CHANGED)
    line.move(("int8",))
    return site, line


def chunks_of(site: Site, data: bytes) -> list[str]:
    return [topic for topic in site.retained if f"/b/{sha256(data)}/" in topic]


def test_a_device_that_missed_versions_applies_all_their_deltas(tmp_path: Path) -> None:
    site, line = make_site(tmp_path)
    for number, version in enumerate((0, 1, 3)):
        site.ask("a", line, f"t{number}", version)
        site.run(lambda: site.done("a"))
    assert site.started == [("a", "t0", 0), ("a", "t1", 1), ("a", "t2", 2)]
    assert [path.name for path in (tmp_path / "a" / "weights").iterdir()] == [sha256(line.views[3])]


def test_the_same_weights_again_are_not_fetched(tmp_path: Path) -> None:
    site, line = make_site(tmp_path)
    site.ask("a", line, "t0", 2)
    site.run(lambda: site.done("a"))
    site.restart_device("a")
    site.connect("a")
    for topic in chunks_of(site, line.views[2]):
        del site.retained[topic]
    site.ask("a", line, "t1", 2)
    site.run(lambda: site.done("a"))


def test_deltas_that_are_no_fewer_bytes_are_not_taken(tmp_path: Path) -> None:
    site, line = Site(tmp_path, "a"), Line(1)
    site.connect_all()
    for _ in range(5):
        line.move(("fp16",))  # half the weights each
    for number, version in enumerate((0, 3)):
        site.ask("a", line, f"t{number}", version)
        site.run(lambda: site.done("a"))
    assert [deltas for _, _, deltas in site.started] == [0, 0]


def test_a_delta_that_the_broker_has_lost_costs_time_and_not_the_task(tmp_path: Path) -> None:
    site, line = make_site(tmp_path)
    site.ask("a", line, "t0", 0)
    site.run(lambda: site.done("a"))
    lost = line.steps[0][0]
    site.ask("a", line, "t1", 1)
    for topic in chunks_of(site, lost):
        del site.retained[topic]
    site.deliveries = [each for each in site.deliveries if sha256(lost) not in each.topic]
    site.run(lambda: site.done("a"))
    assert site.started[-1] == ("a", "t1", 0)
    assert "BlobMissing" in [warning.rule for warning in site.warnings]


def test_weights_damaged_on_disk_are_noticed_told_of_and_fetched_whole(tmp_path: Path) -> None:
    site, line = make_site(tmp_path)
    site.ask("a", line, "t0", 0)
    site.run(lambda: site.done("a"))
    (path,) = (tmp_path / "a" / "weights").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    site.restart_device("a")
    site.connect("a")
    site.ask("a", line, "t1", 1)
    site.run(lambda: site.done("a"))
    assert site.started[-1] == ("a", "t1", 0)
    assert "DeltaUnusable" in [warning.rule for warning in site.warnings]


def test_deltas_that_give_other_bits_are_noticed_and_the_weights_fetched_whole(tmp_path: Path) -> None:
    """As where a codec's decoder rounds otherwise on this processor."""
    site, line = make_site(tmp_path)
    other = dict(decode_tensors(line.views[1])[0])
    other["bias"] = other["bias"] + np.float32(1e-3)
    line.views[1] = encode_tensors(other)
    for number, version in enumerate((0, 1)):
        site.ask("a", line, f"t{number}", version)
        site.run(lambda: site.done("a"))
    assert site.started[-1] == ("a", "t1", 0)
    assert "DeltaUnusable" in [warning.rule for warning in site.warnings]


def test_weights_that_never_come_right_fail_the_task_once(tmp_path: Path) -> None:
    site, line = make_site(tmp_path)
    site.ask("a", line, "t0", 0)

    def disk_fails(_: str) -> None:
        return None

    site.caches["a"].read = disk_fails  # type: ignore[method-assign, assignment]
    site.run(lambda: any(isinstance(event, TaskFailed) for event in site.events))
    (failed,) = [event for event in site.events if isinstance(event, TaskFailed)]
    assert failed.rule == "BlobCorrupt"
    assert not site.boards["a"].session.busy


class Downloads(RuleBasedStateMachine):
    """Two jobs ask two devices in turn; disks, broker and devices fail in between."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.site = Site(self.root, "a", "b")
        self.lines = [Line(1), Line(2)]
        self.site.connect_all()
        self.count = 0

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    @rule(job=st.integers(0, 1), codec=st.sampled_from(CODECS))
    def version(self, job: int, codec: tuple[str, ...]) -> None:
        self.lines[job].move(codec)

    @rule(device=st.sampled_from("ab"), job=st.integers(0, 1), behind=st.integers(0, 2))
    def ask(self, device: str, job: int, behind: int) -> None:
        line = self.lines[job]
        self.count += 1
        self.site.ask(device, line, f"t{self.count}", max(0, len(line.views) - 1 - behind))

    @rule(device=st.sampled_from("ab"), job=st.integers(0, 1), codec=st.sampled_from(CODECS))
    def round(self, device: str, job: int, codec: tuple[str, ...]) -> None:
        self.version(job, codec)
        self.ask(device, job, 0)
        self.site.run(lambda: self.site.done(device), 600)

    @rule(turns=st.integers(1, 30))
    def go_on(self, turns: int) -> None:
        for _ in range(turns):
            if self.site.deliveries:
                self.site.deliver()
            else:
                self.site.tick()
        for device in "ab":
            self.site.finish(device)

    @rule(device=st.sampled_from("ab"))
    def restart(self, device: str) -> None:
        self.site.restart_device(device)
        self.site.connect(device)

    @rule(device=st.sampled_from("ab"), which=st.integers(0, 5), what=st.sampled_from(["flip", "cut", "remove"]))
    def hurt(self, device: str, which: int, what: str) -> None:
        """Damage done to the disk of a device that is off."""
        files = sorted((self.root / device / "weights").glob("*"))
        self.site.restart_device(device)
        if files:
            path = files[which % len(files)]
            data = bytearray(path.read_bytes())
            if what == "remove":
                path.unlink()
            elif what == "cut":
                path.write_bytes(bytes(data[: len(data) // 2]))
            elif data:
                data[-1 - which % len(data)] ^= 4
                path.write_bytes(bytes(data))
        self.site.connect(device)

    @rule(which=st.integers(0, 9))
    def lose_a_delta(self, which: int) -> None:
        """The broker forgets one, until the gateway's next connection."""
        known = [sha256(data) for line in self.lines for data, _ in line.steps[-4:]]
        if known:
            topics = [topic for topic in self.site.retained if f"/b/{known[which % len(known)]}/" in topic]
            for topic in topics:
                del self.site.retained[topic]

    @rule(peer=st.sampled_from(["a", "b", GATEWAY]))
    def cut(self, peer: str) -> None:
        self.site.cut(peer)
        self.site.connect(peer)

    @rule()
    def everybody_gets_there(self) -> None:
        self.site.settle()


TestDownloads = Downloads.TestCase
TestDownloads.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

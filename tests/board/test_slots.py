"""What is carried from task to task: nothing is lost and nothing counts twice, whatever becomes of an update."""

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from numpy.typing import NDArray

from edge_runtime.codecs import RESIDUAL, Codec, find_codec
from edge_runtime.kept import MOST_ASIDE, Kept, read_kept
from edge_runtime.slots import MemoryLost, Slots, encode_carried, kept_answer, own_tensors, readdressed
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.wire.tasks import Carry, Phase, Task, Upload

STAGES = ("topk 0.2 ef", "int8 8", "rice")
EVERY = [
    STAGES,
    ("topk 0.1 ef", "qsgd 3", "rice", "rans"),
    ("threshold 1.5 ef", "fp16", "rice"),
    ("dgc 0.2 0 warmup 4", "bf16", "rice"),
    ("svd 0.7 ef", "int8", "rans"),
    ("powersgd 1", "fp16"),
    ("ef", "sign 8"),
    ("ef21 0.2", "int8 8", "rice"),
]
EXAMPLES = 7
SHAPES = {"w": (6, 5), "b": (5,)}
RUN = "0123456789abcdef"
Tree = dict[str, NDArray[np.float64]]

PLAN, WEIGHTS = "a" * 64, "b" * 64


def task_of(number: int, counted: str | None, run: str = RUN, attempt: str = "", sha256: str | None = None) -> Task:
    phases = (Phase(PLAN, 1, {}),)
    blobs = {PLAN: 1, WEIGHTS: 1}
    name = f"job.{number}.dev{attempt}"
    upload = Upload("delta", STAGES)
    return Task(
        name, "job", number, number, "dev", phases, WEIGHTS, blobs, 10, 1, upload, 60.0, Carry(run, counted, sha256)
    )


def delta_of(number: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(number)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def metadata_of(task: Task) -> dict[str, str]:
    return {"task": task.task, "round": str(task.round), "examples": str(EXAMPLES)}


@dataclass
class Exchange:
    """A device that trains deltas, and a gateway that may or may not count what it sends; sums in float64."""

    slots: Slots
    codec: Codec = field(default_factory=lambda: find_codec(STAGES))
    trained: dict[str, NDArray[np.float64]] = field(default_factory=lambda: {n: np.zeros(s) for n, s in SHAPES.items()})
    counted: dict[str, NDArray[np.float64]] = field(default_factory=lambda: {n: np.zeros(s) for n, s in SHAPES.items()})
    last: str | None = None
    sha256: str | None = None

    def task(self, number: int, attempt: str = "") -> Task:
        """The next task, by a gateway that says which update counted."""
        return task_of(number, self.last, attempt=attempt, sha256=self.sha256)

    def train(self, task: Task, number: int) -> bytes:
        answer = kept_answer(self.slots, task) or (readdressed(self.slots, task, EXAMPLES) or ("",))[0]
        if answer:
            return answer
        for name, tensor in delta_of(number).items():
            self.trained[name] += tensor
        data, warning = encode_carried(self.slots, self.codec, task, delta_of(number), metadata_of(task))
        assert not warning
        return data

    def count(self, task: Task, data: bytes) -> None:
        for name, tensor in self.codec.decode(data, SHAPES)[0].items():
            self.counted[name] += tensor
        self.last, self.sha256 = task.task, hashlib.sha256(data).hexdigest()

    def kept(self) -> tuple[Kept, Tree]:
        """The slots and what their update says, zeros if that counted."""
        kept = self.slots.kept(RUN)
        assert kept is not None
        sent = self.codec.decode(kept.update, SHAPES)[0]
        return kept, {name: np.float64(kept.task != self.last) * sent[name] for name in SHAPES}

    def check(self) -> None:
        """What is still to come is in the slots; what is remembered of those that counted is what counted."""
        kept, lost = self.kept()
        for name in SHAPES:
            if self.codec.remembers:
                assert np.abs(kept.state["memory"][name] - lost[name] - self.counted[name]).max() <= 1e-4
            else:
                carried = kept.state[RESIDUAL][name] + lost[name]
                assert np.abs(self.counted[name] + carried - self.trained[name]).max() <= 1e-4


class AnyFate(RuleBasedStateMachine):
    """Tasks in any order of fates: accepted, accepted without the device hearing of it, refused, asked again.

    Between them a broker may hand out what it was told long ago; nothing that is trained then counts.
    """

    root: Path
    codec: Codec

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir=self.root)) / "slots"
        self.exchange = Exchange(Slots(self.path), self.codec)
        self.number = 0
        self.asked: list[Task] = []
        self.strays = 0

    @rule(fate=st.sampled_from(["counted", "refused", "restarted", "repeated", "again"]))
    def one_task(self, fate: str) -> None:
        self.number, self.strays = self.number + 1, 0
        task = self.ask()
        data = self.exchange.train(task, self.number)
        if fate == "restarted":
            self.exchange.slots = Slots(self.path)
        if fate == "repeated":  # the process died before anybody heard of the update
            self.exchange.slots = Slots(self.path)
            assert self.exchange.train(task, self.number) == data
        if fate == "again":  # too late; asked once more in the same round, under another name
            task = self.ask(".2")
            data = self.exchange.train(task, self.number + 1000)
        if fate in {"counted", "restarted", "repeated"}:
            self.exchange.count(task, data)
        self.exchange.check()

    def ask(self, attempt: str = "") -> Task:
        self.asked.append(self.exchange.task(self.number, attempt))
        return self.asked[-1]

    @precondition(lambda self: len(self.asked) > 1 and self.strays < MOST_ASIDE and not self.codec.remembers)
    @rule(back=st.integers(1, 5))
    def one_of_long_ago(self, back: int) -> None:
        self.strays += 1
        task = self.asked[max(0, len(self.asked) - 1 - back)]
        if task.carry == self.exchange.task(self.number).carry:  # nothing has counted since: as one that is refused
            self.exchange.train(task, self.number + 2000)
        elif kept_answer(self.exchange.slots, task) is None:
            delta = delta_of(self.number + 2000)
            encode_carried(self.exchange.slots, self.codec, task, delta, metadata_of(task))


@pytest.mark.parametrize("stages", EVERY, ids=" | ".join)
def test_sent_and_carried_are_what_was_trained_whatever_becomes_of_an_update(
    stages: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    AnyFate.root, AnyFate.codec = tmp_path_factory.mktemp("slots"), find_codec(stages)
    machine = AnyFate.TestCase()
    machine.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)
    machine.runTest()


@pytest.mark.parametrize("stages", EVERY, ids=" | ".join)
def test_tasks_of_long_ago_leave_what_is_carried_as_it_was(stages: tuple[str, ...], tmp_path: Path) -> None:
    codec = find_codec(stages)

    def encode(path: Path, number: int, seed: int) -> bytes:
        task = task_of(number, f"job.{number - 1}.dev" if number > 1 else None)
        metadata, personal = {"task": task.task, "round": str(number)}, {"head": np.full(2, seed, np.float32)}
        return encode_carried(Slots(path), codec, task, delta_of(seed), metadata, personal)[0]

    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    for number in range(1, 5):
        last = encode(calm, number, number)
        assert encode(disturbed, number, number) == last
    for number in (2, 1):
        if codec.remembers:
            with pytest.raises(MemoryLost):
                encode(disturbed, number, number)
        else:
            encode(disturbed, number, number)
    assert kept_answer(Slots(disturbed), task_of(4, "job.3.dev")) == last
    following = Carry(RUN, "job.4.dev")
    assert np.array_equal(own_tensors(Slots(disturbed), following)["head"], np.full(2, 4, np.float32))
    assert encode(disturbed, 5, 5) == encode(calm, 5, 5)
    assert disturbed.read_bytes() == calm.read_bytes()


def test_what_was_set_aside_is_gone_when_the_task_that_pushed_it_aside_has_counted(tmp_path: Path) -> None:
    """As after a restored backup, which comes to the rounds of long ago again."""
    path, codec = tmp_path / "slots", find_codec(STAGES)
    asides: list[list[str]] = []
    for number, counted in ((1, None), (2, "job.1.dev"), (3, "job.2.dev"), (2, "job.1.dev"), (3, "job.2.dev")):
        encode_carried(Slots(path), codec, task_of(number, counted), delta_of(number), {})
        kept = read_kept(path)
        assert kept is not None
        asides.append([each.task for each in kept.asides])
    assert asides == [[], [], [], ["job.3.dev"], []]


@pytest.mark.parametrize("lost", [1, 2])
def test_the_last_task_that_counted_done_again_after_updates_that_did_not_changes_nothing(
    lost: int, tmp_path: Path
) -> None:
    calm, disturbed = (Exchange(Slots(tmp_path / name)) for name in ("calm", "disturbed"))
    for each in (calm, disturbed):
        for number in (1, 2):
            task = each.task(number)
            each.count(task, each.train(task, number))
        for number in range(3, 3 + lost):
            each.train(each.task(number), number)
    again = task_of(2, "job.1.dev")
    data, _ = encode_carried(disturbed.slots, disturbed.codec, again, delta_of(2), metadata_of(again))
    assert hashlib.sha256(data).hexdigest() != disturbed.sha256
    for number in (3 + lost, 4 + lost):
        sent = [each.train(each.task(number), number) for each in (calm, disturbed)]
        assert sent[0] == sent[1]
        for each, data in zip((calm, disturbed), sent, strict=True):
            each.count(each.task(number), data)
    assert (tmp_path / "disturbed").read_bytes() == (tmp_path / "calm").read_bytes()


@pytest.mark.parametrize("stages", EVERY, ids=" | ".join)
def test_a_second_attempt_is_answered_with_the_first_ones_update_and_is_as_if_there_had_been_none(
    stages: tuple[str, ...], tmp_path: Path
) -> None:
    codec = find_codec(stages)
    calm, disturbed = (Exchange(Slots(tmp_path / name), codec) for name in ("calm", "disturbed"))
    for number in range(1, 6):
        task = calm.task(number)
        data = calm.train(task, number)
        calm.count(task, data)
        answered = disturbed.train(disturbed.task(number), number)
        if number == 3:
            assert answered == data
            if not codec.remembers:  # a broker that was killed comes between
                encode_carried(disturbed.slots, codec, task_of(1, None), delta_of(1), metadata_of(task_of(1, None)))
            task = disturbed.task(number, ".2")
            disturbed.slots = Slots(tmp_path / "disturbed")
            answered = disturbed.train(task, number + 1000)
            assert decode_tensors(answered)[1]["task"] == task.task
            assert kept_answer(disturbed.slots, task) == answered
        said = [codec.decode(each, SHAPES)[0] for each in (data, answered)]
        assert all(np.array_equal(said[0][name], said[1][name]) for name in SHAPES)
        disturbed.count(task, answered)
    assert (tmp_path / "disturbed").read_bytes() == (tmp_path / "calm").read_bytes()


def test_an_attempt_of_long_ago_is_trained_again_and_loses_nothing_newer(tmp_path: Path) -> None:
    exchange = Exchange(Slots(tmp_path / "slots"))
    for number, attempt in ((1, ""), (1, ".2"), (2, ""), (2, ".2")):  # none of them counts
        exchange.train(exchange.task(number, attempt), number)
    assert readdressed(exchange.slots, exchange.task(1, ".3"), EXAMPLES) is None
    exchange.train(exchange.task(1, ".3"), 3)
    task = exchange.task(4)
    exchange.count(task, exchange.train(task, 4))
    exchange.check()


def test_what_was_trained_on_other_data_answers_no_second_attempt(tmp_path: Path) -> None:
    exchange = Exchange(Slots(tmp_path / "slots"))
    exchange.train(exchange.task(1), 1)
    assert readdressed(exchange.slots, exchange.task(1, ".2"), EXAMPLES + 1) is None
    assert readdressed(exchange.slots, exchange.task(1, ".2"), EXAMPLES) is not None


def test_another_run_begins_with_nothing_carried(tmp_path: Path) -> None:
    first = Exchange(Slots(tmp_path / "slots"))
    data = first.train(task_of(1, None), 1)
    again = Exchange(Slots(tmp_path / "slots"))
    other = task_of(1, None, run="f" * 16)
    assert kept_answer(again.slots, other) is None
    assert again.train(other, 1) == data


def test_the_file_is_not_read_for_a_task_that_it_cannot_answer(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    Exchange(slots).train(task_of(1, None), 1)
    (tmp_path / "slots").unlink()
    assert kept_answer(slots, task_of(2, "job.1.dev")) is None
    assert not slots.may_answer("0" * 64)
    assert Slots(tmp_path / "slots").may_answer("0" * 64)


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    Exchange(Slots(path)).train(task_of(1, None), 1)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:40], b"", whole[:50] + b"\x00" + whole[51:], whole + b"x"):
        path.write_bytes(broken)
        assert Slots(path).kept(RUN) is None


def test_what_the_disk_cannot_take_stays_in_memory_and_is_told(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "absent" / "slots")
    task = task_of(1, None)
    data, warning = encode_carried(slots, find_codec(STAGES), task, delta_of(1), {"task": task.task})
    assert "could not be kept" in warning
    assert kept_answer(slots, task) == data
    with pytest.raises(OSError, match="No such file"):
        slots.write_again()
    assert slots.in_memory


def test_what_stayed_in_memory_is_written_when_there_is_room(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "absent" / "slots")
    task = task_of(1, None)
    data, _ = encode_carried(slots, find_codec(STAGES), task, delta_of(1), {"task": task.task})
    (tmp_path / "absent").mkdir()
    slots.write_again()
    assert not slots.in_memory
    assert kept_answer(Slots(tmp_path / "absent" / "slots"), task) == data


def test_a_tensor_that_was_not_trained_this_time_keeps_what_it_carries(tmp_path: Path) -> None:
    slots, codec = Slots(tmp_path / "slots"), find_codec(STAGES)
    encode_carried(slots, codec, task_of(1, None), delta_of(1), {})
    kept = slots.kept(RUN)
    assert kept is not None
    carried = kept.state[RESIDUAL]["b"].copy()
    encode_carried(slots, codec, task_of(2, "job.1.dev"), {"w": delta_of(2)["w"]}, {})
    later = slots.kept(RUN)
    assert later is not None
    assert np.array_equal(later.state[RESIDUAL]["b"], carried)


def test_a_memory_that_is_not_what_counted_is_refused_and_a_new_run_begins_with_none(tmp_path: Path) -> None:
    codec, path = find_codec(("ef21 0.2",)), tmp_path / "slots"

    def encode(number: int, counted: str | None, run: str = RUN) -> None:
        encode_carried(Slots(path), codec, task_of(number, counted, run), delta_of(number), {})

    encode(1, None)
    encode(2, "job.1.dev")
    encode(3, "job.1.dev")  # the second was lost
    encode(4, "job.3.dev")
    with pytest.raises(MemoryLost, match=r"that of job\.1\.dev, but the slots end with job\.4\.dev"):
        encode(5, "job.1.dev")
    path.unlink()
    with pytest.raises(MemoryLost, match="the slots end with nothing"):
        encode(5, "job.4.dev")
    encode(5, None, run="f" * 16)


def test_slots_that_are_not_what_was_written_are_told_and_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "slots"
    exchange = Exchange(Slots(path))
    exchange.train(task_of(1, None), 1)
    whole = path.read_bytes()
    for damage in (b"", whole[:-1], whole[:40] + b"?" + whole[41:]):
        path.write_bytes(damage)
        slots = Slots(path)
        assert slots.kept(RUN) is None
        assert "what it carried over is lost" in slots.take_trouble()
        assert slots.take_trouble() == ""
        assert (tmp_path / "slots.damaged").read_bytes() == damage
        assert not path.exists()
    assert Slots(path).kept(RUN) is None


def test_slots_of_an_older_version_are_read(tmp_path: Path) -> None:
    """Up to 0.2 a file named the update's tensors without their shapes, which are those of the residual."""
    exchange = Exchange(Slots(tmp_path / "slots"))
    exchange.train(task_of(1, None), 1)
    kept = read_kept(tmp_path / "slots")
    assert kept is not None
    arrays, metadata = decode_tensors((tmp_path / "slots").read_bytes()[32:])
    older = encode_tensors(arrays, {**metadata, "sent": json.dumps(sorted(SHAPES))})
    (tmp_path / "older").write_bytes(hashlib.sha256(older).digest() + older)
    read = read_kept(tmp_path / "older")
    assert read is not None
    assert read.sent == kept.sent == SHAPES

"""Downloads as deltas: what devices hold is the view to the bit, and what is left out comes later."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coordinator.downlink import with_view
from coordinator.fields import download_codec
from coordinator.jobfile import load_job
from coordinator.program import Program, build_program, make_version
from coordinator.store import RoundFigures, open_store
from coordinator.tasks import attempt_turn, make_task
from coordinator.versions import roll_back
from coordinator.views import MAX_STEPS
from edge_runtime.codecs import find_codec
from edge_runtime.deltas import CHANGED, BadDelta, apply_delta, write_delta
from edge_runtime.errors import RemoteError
from edge_runtime.slots import Slots
from edge_runtime.tensors import decode_tensors, encode_tensors
from support.memory import finished, start_all
from support.tiny_job import JOB, make_site

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.store import Version

FIGURES = RoundFigures(devices=2, cohort=2, bytes_up=10, bytes_down=20, seconds=1.5)
LOSSY = ["topk 0.05", "fp16", "rice"]


def make_program(tmp_path: Path, codec: list[str] | None = None, job: str = JOB) -> Program:
    make_site(tmp_path)
    lines = "" if codec is None else f"[download]\ncodec = {codec}\n"
    path = tmp_path / "home" / "job.toml"
    path.write_text(job.replace("[evaluate]", f"{lines}[evaluate]"))
    return build_program(load_job(path))


def moved(program: Program, old: Version, seed: int, names: list[str] | None = None) -> Version:
    """The next version: some tensors, by default all, have moved."""
    rng = np.random.default_rng(seed)
    weights = dict(decode_tensors(old.weights)[0])
    for name in names or sorted(weights):
        weights[name] = weights[name] + rng.normal(0, 0.01, weights[name].shape).astype(np.float32)
    return with_view(program, old, make_version(old.version + 1, weights, {}))


def versions(program: Program, count: int, names: list[str] | None = None) -> list[Version]:
    made = [make_version(1, program.weights, {})]
    for seed in range(count - 1):
        made.append(moved(program, made[-1], seed, names))
    return made


def applied(base: bytes, version: Version, steps: int) -> bytes:
    """What a device has that holds `base` and applies so many steps."""
    held = decode_tensors(base)[0]
    for step in version.sent.steps[:steps][::-1]:
        held = apply_delta(held, step.data, step.codec)
    return encode_tensors(held)


def test_without_a_codec_devices_hold_the_weights_and_are_sent_what_changed(tmp_path: Path) -> None:
    program = make_program(tmp_path)
    made = versions(program, 5, ["fc3.bias", "fc3.weight"])
    exact = {f"exact/{name}": decode_tensors(made[-1].weights)[0][name] for name in ("fc3.bias", "fc3.weight")}
    last = made[-1].sent
    assert (last.sha256, last.data) == (made[-1].sha256, made[-1].weights)
    assert last.steps[0].data == encode_tensors(exact)
    assert last.steps[0].codec == CHANGED
    for count, base in enumerate(reversed(made[:-1]), 1):
        assert last.steps[count - 1].base == base.sha256
        assert applied(base.weights, made[-1], count) == made[-1].weights


def test_where_all_tensors_have_changed_the_weights_are_sent_whole(tmp_path: Path) -> None:
    assert [version.sent.steps for version in versions(make_program(tmp_path), 3)] == [(), (), ()]


@pytest.mark.parametrize("codec", [LOSSY, ["int8"], ["qsgd 7 64"], ["bf16"], ["topk 0.5", "int8"]])
def test_what_a_lossy_step_leaves_out_is_in_the_next_one(tmp_path: Path, codec: list[str]) -> None:
    program = make_program(tmp_path, codec)
    made = versions(program, 4)
    for old, new in pairwise(made):
        held, wanted = decode_tensors(old.sent.data)[0], decode_tensors(new.weights)[0]
        coded = find_codec(codec).encode(
            {name: wanted[name] - held[name] for name in wanted}, {"task": old.sent.sha256}, {}
        )
        said = find_codec(codec).decode(coded, {name: array.shape for name, array in wanted.items()})[0]
        by_hand = encode_tensors({name: held[name] + said[name] for name in wanted})
        assert new.sent.data == by_hand == applied(old.sent.data, new, 1)
        assert new.sent.sha256 == hashlib.sha256(by_hand).hexdigest() != new.sha256
    still = make_version(5, decode_tensors(made[-1].weights)[0], {})
    for number in range(5, 5 + 40):  # weights that stay where they are: the view comes up to them
        still = with_view(program, made[-1], replace(still, version=number))
        made.append(still)
    errors = [
        max(
            float(np.abs(w - v).max())
            for w, v in zip(*(decode_tensors(data)[0].values() for data in pair), strict=True)
        )
        for pair in ((made[4].weights, made[4].sent.data), (still.weights, still.sent.data))
    ]
    assert errors[1] <= errors[0] / 50


def test_a_delta_that_would_be_no_smaller_gives_devices_the_weights(tmp_path: Path) -> None:
    made = versions(make_program(tmp_path, ["topk 1"]), 3)
    assert [version.sent.sha256 for version in made] == [version.sha256 for version in made]
    assert not any(version.sent.steps for version in made)


def test_frozen_tensors_and_running_statistics_are_sent_exactly(tmp_path: Path) -> None:
    stages = 'stages = [{rounds = 1, trainable = ["*"]}, {rounds = 1, trainable = ["fc3.*"]}]\n[round]'
    program = make_program(tmp_path, LOSSY, JOB.replace("[round]", stages))
    program = replace(program, statistics=frozenset({"fc3.bias"}))
    first = make_version(1, program.weights, {})
    second = moved(program, first, 1)  # for round 2, in which the head alone is trained
    held, wanted = (decode_tensors(data)[0] for data in (second.sent.data, second.weights))
    assert {name for name in wanted if not np.array_equal(held[name], wanted[name])} == {"fc3.weight"}


def test_weights_that_have_diverged_are_sent_as_they_are(tmp_path: Path) -> None:
    program = make_program(tmp_path, LOSSY)
    first = make_version(1, program.weights, {})
    weights = {name: array.copy() for name, array in program.weights.items()}
    weights["fc1.weight"].reshape(-1)[3] = np.inf
    assert with_view(program, first, make_version(2, weights, {})).sent.data == encode_tensors(weights)


def test_a_chain_is_capped_in_steps_and_bytes(tmp_path: Path) -> None:
    small = versions(make_program(tmp_path, ["topk 0.01"]), MAX_STEPS + 4)
    assert len(small[-1].sent.steps) == MAX_STEPS
    large = versions(make_program(tmp_path, ["int8"]), 8)[-1].sent
    assert 1 < len(large.steps) < MAX_STEPS
    assert sum(len(step.data) for step in large.steps) < len(large.data)


def test_the_journal_gives_the_same_view_and_steps_back(tmp_path: Path) -> None:
    program = make_program(tmp_path, LOSSY)
    store = open_store(tmp_path / "state")
    made = versions(program, MAX_STEPS + 3)
    store.begin({}, made[0])
    for version in made[1:]:
        store.start_round(version.version - 1, 1, ())
        store.fold_round(version.version - 1, version, FIGURES)
        store.close()
        store = open_store(tmp_path / "state")
        assert store.latest() == version
    kept = store._all("SELECT version FROM downloads WHERE data IS NOT NULL OR delta IS NOT NULL")
    assert len(kept) == MAX_STEPS
    on_broker = dict(store.digests(100))
    assert {sha256: len(data) for sha256, data in made[-1].sent.blobs.items()}.items() <= on_broker.items()
    store.close()


def test_weights_that_have_run_away_are_sent_as_they_are(tmp_path: Path) -> None:
    """A codec would refuse, in the middle of a fold, what factors of them overflow to."""
    program = make_program(tmp_path, ["svd 0.9", "int8"])
    first = make_version(1, program.weights, {})
    away = {name: np.full_like(array, 3.4e38) for name, array in program.weights.items()}
    made = with_view(program, first, make_version(2, away, {}))
    assert made.sent.data == made.weights


def test_after_a_rollback_devices_get_the_older_weights_whole_and_deltas_from_there(tmp_path: Path) -> None:
    program = make_program(tmp_path, LOSSY)
    store = open_store(tmp_path / "state")
    made = versions(program, 3)
    store.begin({}, made[0])
    for version in made[1:]:
        store.start_round(version.version - 1, 1, ())
        store.fold_round(version.version - 1, version, FIGURES)
    with store._writing() as write:
        roll_back(store, write, 2, "a test")
    back = store.latest()
    assert (back.sent.sha256, back.sent.data, back.sent.steps) == (made[1].sha256, made[1].weights, ())
    following = moved(program, back, 9)
    store.start_round(4, 1, ())
    store.fold_round(4, following, FIGURES)
    assert store.latest() == following
    assert [step.base for step in following.sent.steps] == [made[1].sha256]
    assert applied(made[1].weights, following, 1) == following.sent.data
    store.close()


def test_a_task_names_the_view_and_the_steps_to_it(tmp_path: Path) -> None:
    program = make_program(tmp_path, LOSSY)
    last = versions(program, 4)[-1]
    task = make_task(program, last, "dev-a", attempt_turn(1, 1))
    assert (task.weights, task.blobs[task.weights]) == (last.sent.sha256, len(last.sent.data))
    found = [(delta.base, delta.blob, delta.bytes, list(delta.codec)) for delta in task.deltas]
    assert found == [(step.base, step.sha256, len(step.data), LOSSY) for step in last.sent.steps]


@pytest.mark.parametrize("codec", [None, LOSSY, ["int8"]])
def test_a_job_with_deltas_gives_the_same_bits_after_a_crash_between_any_two_turns(
    tmp_path: Path, codec: list[str] | None
) -> None:
    text = JOB.replace("rounds = 2", "rounds = 3")
    text = text if codec is None else text.replace("[evaluate]", f"[download]\ncodec = {codec}\n[evaluate]")
    plain = make_site(tmp_path / "plain", text)
    start_all(plain)
    turns = 0
    while plain.job is not None and plain.job.exit_code is None:
        plain.turn()
        turns += 1
    plain.stop()
    (done,) = plain.seen("job_done")
    for at in range(1, turns, 3):
        site = make_site(tmp_path / f"{at}", text)
        start_all(site)
        for _ in range(at):
            site.turn()
        site.kill()
        site.start()
        assert finished(site) == done["model_sha256"], f"killed after turn {at}"
        assert not [topic for topic in site.broker.retained if "/b/" in topic]


def test_a_device_that_comes_back_with_an_empty_disk_or_an_older_one_trains_from_the_same_bits(tmp_path: Path) -> None:
    text = JOB.replace("rounds = 2", "rounds = 6").replace("min_updates = 2", "min_updates = 1")
    text = text.replace("[evaluate]", f"[download]\ncodec = {LOSSY}\n[evaluate]")
    site = make_site(tmp_path, text)
    start_all(site)
    site.run(lambda: len(site.seen("round_done")) == 1)
    for name in ("dev-a", "dev-b"):
        site.devices[name].kill()
    site.run(lambda: len(site.seen("round_done")) == 4)
    site.devices["dev-a"].blobs.clear()
    for name in ("dev-a", "dev-b"):
        site.devices[name].start(site.now_s)
    finished(site)  # a device checks what it trains from against the task
    assert {task.round for task in site.devices["dev-a"].tasks} >= {1, 6}
    assert {task.round for task in site.devices["dev-b"].tasks} >= {1, 6}
    down = {event["round"]: event["bytes_down"] for event in site.seen("round_done")}
    assert down[3] < down[1] / 3


@pytest.mark.parametrize("schedule", ['name = "fedasync"', 'name = "fedbuff"\nbuffer = 2'])
def test_asynchronous_devices_hold_the_view_of_whatever_version_they_are_asked_from(
    tmp_path: Path, schedule: str
) -> None:
    text = JOB.replace("rounds = 2", "rounds = 9")
    text += f"[schedule]\n{schedule}\n[download]\ncodec = {LOSSY}\n"
    for at in (7, 12, 20):
        site = make_site(tmp_path / f"{at}", text, order=at)
        start_all(site)
        for _ in range(at):
            site.turn()
        site.kill()
        site.devices["dev-b"].blobs.clear()
        site.start()
        site.run(lambda site=site: len(site.seen("version")) >= 4)
        site.restart_broker()
        finished(site)  # a device checks what it trains from against the task
        assert site.seen("round_done")[-1]["accuracy"] > 0.5
        assert not [topic for topic in site.broker.retained if "/b/" in topic]


def test_control_variates_go_down_in_deltas_too(tmp_path: Path) -> None:
    text = JOB.replace("rounds = 2", "rounds = 5").replace('"fedavg"', '"scaffold"').replace("momentum = 0.9\n", "")
    site = make_site(tmp_path, f"{text}[download]\ncodec = {LOSSY}\n")
    for name, device in site.devices.items():
        device.slots = Slots(tmp_path / f"slots-{name}")
    start_all(site)
    finished(site)
    assert site.seen("round_done")[-1]["accuracy"] > 0.5
    assert any(task.deltas for task in site.devices["dev-a"].tasks)
    down = [event["bytes_down"] for event in site.seen("round_done")]
    assert max(down[1:]) < down[0] / 3


@pytest.mark.parametrize(
    ("codec", "why"),
    [
        (["topk 0.01 ef", "fp16", "rice"], "leave ef out"),
        (["dgc 0.01 0.9"], "no dgc"),
        (["dense"], "must not be"),
        (["topk 2"], "cannot be built"),
        ("int8", "list"),
    ],
)
def test_a_download_codec_that_cannot_be_is_refused(codec: Any, why: str) -> None:
    assert why in str(download_codec(codec))


HELD = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    "data",
    [
        encode_tensors({"exact/c": np.ones(1, np.float32)}),
        encode_tensors({"a": np.ones((2, 3), np.float32)}),
        encode_tensors({"exact/a": np.ones((3, 2), np.float32)}),
        encode_tensors({"exact/a": np.ones((2, 3), np.float64)}),
        write_delta({}, ["c"], find_codec(["int8"]).encode({"c": HELD["b"]}, {}, {})),
        encode_tensors({"coded": np.ones(3, np.uint8)}),
        encode_tensors({"coded": np.ones(3, np.uint8)}, {"coded": '"a"'}),
        encode_tensors({"coded": np.ones(3, np.uint8)}, {"coded": '["a"]'}),
        encode_tensors({"coded": np.ones(3, np.uint8)}, {"coded": "[["}),
        write_delta({}, ["a"], find_codec(["int8"]).encode({"a": HELD["b"]}, {}, {})),
    ],
)
def test_a_delta_that_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteError):
        apply_delta(HELD, data, ("int8",))


def test_a_dense_delta_of_another_shape_is_refused() -> None:
    coded = find_codec(["dense"]).encode({"a": np.ones((3, 2), np.float32)}, {}, {})
    with pytest.raises(BadDelta, match="difference of 'a'"):
        apply_delta(HELD, write_delta({}, ["a"], coded), ("dense",))

"""SCAFFOLD: its invariants on real tasks, compiled plans and folds, whatever becomes of updates; and its formulas."""

from __future__ import annotations

import hashlib
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coordinator.aggregators import Contribution, uniform_mean
from coordinator.evaluate import evaluate
from coordinator.jobfile import JobFileError
from coordinator.methods.scaffold import scaffold
from coordinator.program import Program, judged_model, make_version
from coordinator.results import export_version, keep_model
from coordinator.server_steps import CHANGES, MEMBERS
from coordinator.store import open_store
from coordinator.tasks import attempt_turn, make_task
from coordinator.updates import UpdateError, check_update
from coordinator.versions import roll_back
from edge_runtime.codecs import RESIDUAL, find_codec
from edge_runtime.control import changes, corrections, path_length
from edge_runtime.data import Dataset
from edge_runtime.plan import CONTROL, read_plan
from edge_runtime.slots import Slots, own_controls
from edge_runtime.task import SlotsMissing, run_task
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.wire.tasks import Carry, Task
from support.federation import RUN, SHARDS, Federation, program_of
from support.memory import MemorySite, finished, start_all
from support.tiny_job import JOB, made_up, make_site

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def controls(fed: Federation) -> dict[str, NDArray[np.float32]]:
    """C, by the names of the tensors."""
    tensors = decode_tensors(fed.latest.weights)[0]
    return {name.removeprefix(CONTROL): c for name, c in tensors.items() if name.startswith(CONTROL)}


def own(fed: Federation, device: str) -> dict[str, NDArray[np.float32]]:
    """c_i."""
    codec = find_codec(fed.program.upload.codec)
    return own_controls(fed.slots[device], Carry(RUN, fed.counted.get(device)), codec)[0]


def check_mean(fed: Federation, *members: str, atol: float = 1e-6) -> None:
    """The gateway's c is the mean of the c_i of all who have one, so corrections add up to zero."""
    all_own = [own(fed, device) for device in members]
    for name, c in controls(fed).items():
        np.testing.assert_allclose(c, np.mean([each[name] for each in all_own], axis=0), atol=atol)
        np.testing.assert_allclose(sum(c - each[name] for each in all_own), 0, atol=len(all_own) * atol)


def first_task(program: Program) -> Task:
    return make_task(program, make_version(1, program.weights, {}), "dev-a", attempt_turn(1, 1), Carry(RUN, None))


CODECS = [None, ["fp16"], ["int8", "rans"], ["topk 0.2 ef", "fp16", "rice"], ["ef", "sign 8"]]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: " ".join(codec or ["dense"]))
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_c_stays_the_mean_of_all_devices_own_whatever_becomes_of_updates(
    tmp_path: Path, codec: list[str] | None, momentum: float
) -> None:
    fed = Federation(program_of(tmp_path, codec=codec, momentum=momentum), tmp_path)
    fed.round("dev-a", "dev-b")
    check_mean(fed, "dev-a", "dev-b")
    fed.round("dev-b", "dev-c", "dev-a", refused=("dev-a",))
    check_mean(fed, "dev-a", "dev-b", "dev-c")
    fed.train("dev-b", attempt=1)  # was asked, and its answer was lost
    fed.slots = {name: Slots(tmp_path / name) for name in fed.shards}  # everybody restarts
    fed.round("dev-a", "dev-c")
    fed.round()
    check_mean(fed, "dev-a", "dev-b", "dev-c")
    assert decode_tensors(fed.latest.state)[0][f"{MEMBERS}{CONTROL}fc1.weight"] == 3
    assert not fed.warnings


def test_equal_data_and_whole_batches_give_equal_controls(tmp_path: Path) -> None:
    fed = Federation(program_of(tmp_path, batch=24), tmp_path, dict.fromkeys(SHARDS, SHARDS["dev-a"]))
    for _ in range(3):
        fed.round()
        for device in fed.shards:
            for name, c in controls(fed).items():
                np.testing.assert_allclose(own(fed, device)[name], c, atol=1e-6)


def test_one_device_walks_as_it_would_alone(tmp_path: Path) -> None:
    alone = {"dev-a": SHARDS["dev-a"]}
    one = Federation(program_of(tmp_path / "scaffold"), tmp_path / "scaffold", alone)
    avg = Federation(program_of(tmp_path / "fedavg", method="fedavg"), tmp_path / "fedavg", alone)
    for _ in range(4):
        one.round()
        avg.round()
    weights = decode_tensors(one.latest.weights)[0]
    for name, array in decode_tensors(avg.latest.weights)[0].items():
        np.testing.assert_allclose(weights[name], array, atol=2e-6)


def test_the_first_round_is_that_of_fedavg_over_equal_devices(tmp_path: Path) -> None:
    fed = Federation(program_of(tmp_path), tmp_path)
    before = decode_tensors(fed.latest.weights)[0]
    deltas = [decode_tensors(fed.train(device)[1].data)[0] for device in fed.shards]
    fed.round()
    after = decode_tensors(fed.latest.weights)[0]
    for name in before.keys() - {CONTROL + name for name in controls(fed)}:
        np.testing.assert_allclose(after[name] - before[name], np.mean([d[name] for d in deltas], axis=0), atol=1e-6)


def test_a_change_of_control_is_the_mean_gradient_less_the_devices_own(tmp_path: Path) -> None:
    """One step of the whole batch: the gradient can be had from the step itself."""
    fed = Federation(program_of(tmp_path, epochs=1, batch=40), tmp_path, {"dev-c": SHARDS["dev-c"]})
    fed.round()
    before, mine = decode_tensors(fed.latest.weights)[0], own(fed, "dev-c")
    delta = decode_tensors(fed.train("dev-c")[1].data)[0]
    for name, c in controls(fed).items():
        gradient = -delta[name].astype(np.float64) / 0.1 - (c - mine[name])
        np.testing.assert_allclose(delta[CONTROL + name], gradient - mine[name], atol=1e-5)
        assert name in before


def test_what_a_device_keeps_never_leaves_it_and_bytes_follow_the_formula(tmp_path: Path) -> None:
    fed = Federation(program_of(tmp_path), tmp_path)
    for _ in range(2):
        fed.round()
    _, update = fed.train("dev-a")
    sent, metadata = decode_tensors(update.data)
    mine = own(fed, "dev-a")
    trained = set(controls(fed))
    assert sent.keys() == trained | {CONTROL + name for name in trained}
    for array in sent.values():
        assert not any(array.shape == c.shape and np.allclose(array, c) for c in mine.values())
    values = sum(c.size for c in mine.values())
    assert len(update.data) - 8 - int.from_bytes(update.data[:8], "little") == 8 * values
    assert "joined" not in metadata


def test_a_device_that_lost_its_state_joins_again_and_c_is_the_mean_of_all_that_were_begun(tmp_path: Path) -> None:
    fed = Federation(program_of(tmp_path), tmp_path)
    fed.round()
    lost = own(fed, "dev-a")
    (tmp_path / "dev-a").unlink()
    fed.slots["dev-a"] = Slots(tmp_path / "dev-a")
    fed.round()
    assert len(fed.warnings) == 1
    assert "lost" in fed.warnings[0]
    assert decode_tensors(fed.latest.state)[0][f"{MEMBERS}{CONTROL}fc1.weight"] == 4
    # The sum has both of dev-a's: divided by three devices, c would be too long by a third even where all are equal.
    begun = [lost, *(own(fed, device) for device in fed.shards)]
    for name, c in controls(fed).items():
        np.testing.assert_allclose(c, np.mean([each[name] for each in begun], axis=0), atol=1e-6)


def test_a_codec_alone_is_no_place_to_keep_controls(tmp_path: Path) -> None:
    program = program_of(tmp_path)
    task = first_task(program)
    plans = {file.sha256: read_plan(file.data) for file in program.stage(1).files}
    with pytest.raises(SlotsMissing, match="control variates"):
        run_task(task, plans, program.weights, SHARDS["dev-a"])


@pytest.mark.parametrize("joined", ["[", "{}", '["fc1.weight"]', '["control/none"]', "[1]", '[["control/fc1.weight"]]'])
def test_a_false_word_about_controls_is_refused(tmp_path: Path, joined: str) -> None:
    program = program_of(tmp_path)
    task = first_task(program)
    layout = program.stage(1).layout
    metadata = {key: str(getattr(task, key)) for key in ("task", "job", "round", "version", "device")}
    metadata |= {"examples": "5", "steps": "1", "loss": "1.0", "joined": joined}
    data = encode_tensors({name: np.zeros(shape, np.float32) for name, shape in layout.shapes.items()}, metadata)
    with pytest.raises(UpdateError) as caught:
        check_update(data, task, layout, 10)
    assert caught.value.rule == "BadJoined"


def test_a_rollback_begins_controls_anew(tmp_path: Path) -> None:
    fed = Federation(program_of(tmp_path), tmp_path)
    fed.round()
    with closing(open_store(tmp_path / "rolled")) as store:
        store.begin({}, fed.latest)
        with store.transaction() as write:
            roll_back(store, write, 2, "a test")
        weights, state = (decode_tensors(data)[0] for data in (store.latest().weights, store.latest().state))
    before = decode_tensors(fed.latest.weights)[0]
    assert not any(name.startswith((MEMBERS, CHANGES)) for name in state)
    for name, array in weights.items():
        assert not array.any() if name.startswith(CONTROL) else array.tobytes() == before[name].tobytes()


def test_what_is_exported_is_the_model_alone(tmp_path: Path) -> None:
    fed = Federation(program_of(tmp_path), tmp_path)
    fed.round()
    keep_model(tmp_path, fed.program.model)
    export_version(tmp_path, fed.latest, tmp_path / "m.onnx", tmp_path / "w.safetensors")
    assert decode_tensors((tmp_path / "w.safetensors").read_bytes())[0].keys() == set(controls(fed))


@pytest.mark.parametrize("key", ["nesterov", "proximal", "ema"])
def test_what_leaves_no_walk_of_gradients_is_refused(tmp_path: Path, key: str) -> None:
    value: dict[str, Any] = {"nesterov": True, "proximal": 0.1, "ema": 0.9}
    with pytest.raises(JobFileError, match=f"{key} cannot be used with method scaffold"):
        program_of(tmp_path, momentum=0.9, **{key: value[key]})


def test_momentum_on_control_variates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"upload\.codec .* would multiply the method's control variates"):
        program_of(tmp_path, codec=["dgc 0.1 0.5", "fp16"])


def test_a_small_share_and_a_small_rate_learn_as_dense_updates_do(tmp_path: Path) -> None:
    """Changes of c_i are of a gradient's size, at this rate some 17 to 50 times those of the weights."""
    accuracies = []
    for number, stages in enumerate((None, ["topk 0.05 ef", "fp16", "rice"])):
        fed = Federation(program_of(tmp_path, codec=stages, lr=0.01), tmp_path / str(number))
        fed.directory.mkdir()
        for _ in range(36):
            fed.round()
        accuracies.append(evaluate(judged_model(fed.program, fed.latest), made_up(99, 300)).accuracy)
    assert accuracies[1] > accuracies[0] - 0.05


def test_of_control_variates_nothing_is_carried_over(tmp_path: Path) -> None:
    """Each change is made against what was said so far; carried as well, it would be said twice."""
    fed = Federation(program_of(tmp_path, codec=["topk 0.05 ef", "fp16", "rice"]), tmp_path)
    for refused in ((), ("dev-a",), ()):
        fed.round(refused=refused)
        for device in fed.shards:
            kept = fed.slots[device].kept(RUN)
            assert kept is not None
            assert not any(name.startswith(CONTROL) for name in kept.state[RESIDUAL])
            assert kept.state[RESIDUAL].keys() == own(fed, device).keys()


def quadratic_rounds(*, corrected: bool, rounds: int = 400) -> float:
    """Distance to the optimum of sum_i a_i / 2 (x - b_i)^2 after rounds of ten local steps."""
    a, b, lr, steps = np.array([0.2, 1.0, 3.0]), np.array([-5.0, 1.0, 2.0]), 0.1, 10
    optimum = (a * b).sum() / a.sum()
    method, weights, state = scaffold(), {"w": np.zeros(1, np.float32), "control/w": np.zeros(1, np.float32)}, {}
    own = [np.zeros(1, np.float32) for _ in a]
    for number in range(rounds):
        made = []
        for i in range(3):
            (pull,) = corrections(["control/w"], weights, {"w": own[i]}).values()
            w = weights["w"].astype(np.float64)
            for _ in range(steps):
                w = w - lr * (a[i] * (w - b[i]) + (pull if corrected else 0))
            delta = {"w": (w - weights["w"]).astype(np.float32)}
            change = changes(["control/w"], weights, {"w": own[i]}, delta, lr * path_length(steps, 0.0))
            own[i] = own[i] + change["control/w"]
            joined = ["control/w"] if number == 0 else []
            made.append(Contribution(f"d{i}", 1, {**delta, **change}, steps, joined))
        weights, state = method.server_step(weights, uniform_mean(made), state, ())
        np.testing.assert_allclose(
            weights["control/w"], np.mean(own, axis=0), atol=5e-6
        )  # of some 5, however many rounds
    return float(abs(weights["w"][0] - optimum))


def test_unequal_quadratics_meet_at_the_optimum_where_fedavg_does_not() -> None:
    assert quadratic_rounds(corrected=True) < 1e-4
    assert quadratic_rounds(corrected=False) > 0.3


def test_unequal_data_meet_where_the_mean_gradient_vanishes(tmp_path: Path) -> None:
    """Real plans: the mean over devices of c_i is the gradient there; FedAvg's stays away from zero."""
    sorted_shards = {}
    for label, name in enumerate(SHARDS):
        whole = made_up(7, 90)
        kept = (whole.y == label) | (np.arange(90) % 9 == 0)
        sorted_shards[name] = Dataset(whole.x[kept][:32], whole.y[kept][:32])
    settings = {"batch": 32, "epochs": 20, "lr": 0.05, "weight_decay": 0.1}
    norms = {}
    for method in ("scaffold", "fedavg"):
        fed = Federation(program_of(tmp_path / method, method=method, **settings), tmp_path / method, sorted_shards)
        for _ in range(60):
            fed.round()
        norms[method] = gradient_norm(fed, tmp_path / f"probe-{method}", settings)
    assert norms["scaffold"] < 0.2 * norms["fedavg"]


def gradient_norm(fed: Federation, directory: Path, settings: dict[str, Any]) -> float:
    """Of the mean over devices of whole-batch gradients at the present weights, out of one tiny step each."""
    once = program_of(directory, method="fedavg", **{**settings, "epochs": 1, "lr": 1e-3})
    probe = Federation(once, directory, fed.shards)
    probe.latest = make_version(
        1, {name: array for name, array in decode_tensors(fed.latest.weights)[0].items() if name in once.weights}, {}
    )
    deltas = [decode_tensors(probe.train(device)[1].data)[0] for device in fed.shards]
    mean = {name: np.mean([delta[name].astype(np.float64) for delta in deltas], axis=0) / 1e-3 for name in deltas[0]}
    return float(np.sqrt(sum(float((array**2).sum()) for array in mean.values())))


def whole_job(tmp_path: Path, order: int = 0) -> MemorySite:
    site = make_site(tmp_path, JOB.replace('"fedavg"', '"scaffold"').replace("rounds = 2", "rounds = 4"), order)
    for name, device in site.devices.items():
        device.slots = Slots(tmp_path / f"slots-{name}")
    return site


def test_a_job_has_the_same_bits_in_any_order_and_after_a_restart_in_the_middle(tmp_path: Path) -> None:
    undisturbed = whole_job(tmp_path / "one")
    start_all(undisturbed)
    expected = finished(undisturbed)
    disturbed = whole_job(tmp_path / "two", order=3)
    start_all(disturbed)
    disturbed.run(lambda: len(disturbed.seen("round_started")) == 3)
    disturbed.kill()
    for name, device in disturbed.devices.items():
        device.slots = Slots(tmp_path / "two" / f"slots-{name}")
    disturbed.start()
    assert finished(disturbed) == expected
    final = (tmp_path / "two" / "state" / "final.safetensors").read_bytes()
    assert hashlib.sha256(final).hexdigest() == disturbed.seen("job_done")[0]["model_sha256"]
    assert not any(name.startswith(CONTROL) for name in decode_tensors(final)[0])

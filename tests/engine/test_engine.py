"""The engine as Python sees it: whole steps, memory, views, threads, refusals."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from lenet import MODEL, LeNet, lenet_plan
from planwriter import BATCH, CONSTANT, OUTPUT, PlanWriter

from edge_runtime import _core
from edge_runtime.engine import Engine, EngineMemoryError, TensorMismatchError
from edge_runtime.kernels import reference
from edge_runtime.plan import Plan, read_plan
from support.process import rss_kb

BATCH_SIZE = 16  # fills the lanes of the widest vectors
ISAS = _core.info()["available"]


@pytest.fixture(scope="module")
def lenet() -> Plan:
    return read_plan(lenet_plan(BATCH_SIZE))


def inputs_of(plan: Plan, seed: int) -> dict[str, np.ndarray]:
    """Weights, a batch with one row left out, and the learning rate."""
    rng = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {"lr": np.array(0.02, np.float32)}
    for name, shape in MODEL.items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 100.0
        values[name] = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    batch = next(t.shape[0] for t in plan.tensors if t.name == "x")
    values["x"] = rng.random((batch, 1, 28, 28), dtype=np.float32)
    values["y"] = rng.integers(0, 10, batch).astype(np.int32)
    values["y"][-1] = -1
    return values


def engine_with(plan: Plan, *, threads: int = 1, isa: str = "auto", seed: int = 1) -> Engine:
    engine = Engine(plan, threads=threads, isa=isa)
    for name, value in inputs_of(plan, seed).items():
        engine.write(name, value)
    return engine


def trained_after(engine: Engine, steps: int, *, poison: bool = False) -> dict[str, np.ndarray]:
    for _ in range(steps):
        if poison:
            engine._core.poison()
        engine.step()
    names = [*MODEL, *(f"momentum/{name}" for name in MODEL), "loss"]
    return {name: engine.read(name) for name in names}


@pytest.mark.parametrize("isa", ISAS)
def test_lenet_trains_as_the_reference_interpreter_in_float64(lenet: Plan, isa: str) -> None:
    engine = engine_with(lenet, isa=isa)
    description = _core.describe(lenet.data)
    values = inputs_of(lenet, 1)
    numbers = {t["name"]: i for i, t in enumerate(description["tensors"]) if t["name"]}
    wide = {numbers[name]: v if v.dtype == np.int32 else v.astype(np.float64) for name, v in values.items()}
    wide[numbers["one"]] = np.array(1.0)
    for name, shape in MODEL.items():
        wide[numbers[f"momentum/{name}"]] = np.zeros(shape)
    for _ in range(3):
        reference.interpret(description, wide)
    for name, got in trained_after(engine, 3).items():
        want = wide[numbers[name]]
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * max(1.0, np.abs(want).max()), err_msg=name)


def test_a_release_between_steps_gives_memory_back_and_changes_no_bit() -> None:
    plan = read_plan(lenet_plan(256))
    steady, released = (engine_with(plan) for _ in range(2))
    for _ in range(3):
        steady.step()
        released.step()
        before_kb = rss_kb()
        released.release()
        assert before_kb - rss_kb() >= plan.arena_bytes // 2 >> 10
    for tensor in plan.tensors:
        if tensor.name:
            np.testing.assert_array_equal(released.read(tensor.name), steady.read(tensor.name), err_msg=tensor.name)


@pytest.mark.parametrize("isa", ISAS)
def test_threads_and_poisoned_memory_change_no_bit(lenet: Plan, isa: str) -> None:
    once = trained_after(engine_with(lenet, isa=isa), 4)
    for threads, poison in [(1, True), (2, False), (3, True), (5, True)]:
        again = trained_after(engine_with(lenet, threads=threads, isa=isa), 4, poison=poison)
        for name, value in once.items():
            assert np.isfinite(value).all()
            assert value.tobytes() == again[name].tobytes(), name


def test_lenet_needs_less_than_a_mebibyte_of_scratch_whatever_the_batch() -> None:
    needs = {LeNet(batch).workspace_bytes() for batch in (16, 32, 256)}
    assert len(needs) == 1
    assert needs.pop() <= 256 * 1024


def test_the_loss_falls_on_one_batch(lenet: Plan) -> None:
    engine = engine_with(lenet)
    engine.step()
    first = float(engine.read("loss"))
    for _ in range(60):
        engine.step()
    assert float(engine.read("loss")) < 0.1 * first


@pytest.mark.parametrize("label", [10, -2, 2**31 - 1])
def test_a_label_out_of_range_is_named_before_anything_is_written(lenet: Plan, label: int) -> None:
    engine = engine_with(lenet)
    before = trained_after(engine, 1)
    engine.view("y")[3] = label
    with pytest.raises(ValueError, match=rf"LabelOutOfRange: row 3 of 'y' is {label}; labels are classes 0\.\.9"):
        engine.step()
    for name, value in before.items():
        assert value.tobytes() == engine.read(name).tobytes()


def test_a_memory_limit_is_kept_before_anything_is_allocated(lenet: Plan) -> None:
    needed = lenet.memory_bytes(threads=2)
    assert Engine(lenet, threads=2, memory_limit_bytes=needed).memory_bytes == needed
    with pytest.raises(EngineMemoryError, match=rf"needs {needed} bytes.*limit is {needed - 1}"):
        Engine(lenet, threads=2, memory_limit_bytes=needed - 1)


def test_a_plan_of_four_gibibytes_can_be_refused() -> None:
    writer = PlanWriter(workspace_bytes=4 << 30)
    writer.arena_bytes = 4 << 30
    with pytest.raises(EngineMemoryError):
        Engine(read_plan(writer.seal()), memory_limit_bytes=64 << 20)


def test_a_step_allocates_no_python_memory(lenet: Plan) -> None:
    engine = engine_with(lenet)
    engine.step()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        engine.step()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1024


def test_views_keep_the_engine_alive(lenet: Plan) -> None:
    engine = engine_with(lenet)
    view = engine.view("w3")
    copy = view.copy()
    del engine
    gc.collect()
    blocks = [np.ones(1 << 16, np.float32) for _ in range(50)]  # would reuse freed memory
    assert len(blocks) == 50
    np.testing.assert_array_equal(view, copy)


def test_views_are_the_arena(lenet: Plan) -> None:
    engine = Engine(lenet)
    engine.view("w1")[...] = 3.0
    assert (engine.read("w1") == 3.0).all()
    read = engine.read("w1")
    read[...] = 4.0
    assert (engine.view("w1") == 3.0).all()
    assert engine.view("w1").ctypes.data % 64 == 0


def test_constants_cannot_be_written(lenet: Plan) -> None:
    engine = Engine(lenet)
    assert engine.read("one") == 1.0
    with pytest.raises(ValueError, match="read-only"):
        engine.view("one")[...] = 2.0
    with pytest.raises(TensorMismatchError, match="constant"):
        engine.write("one", np.array(2.0, np.float32))


@pytest.mark.parametrize(
    "array", [np.zeros((6, 1, 5, 5)), np.zeros((6, 5, 5), np.float32), np.zeros((6, 1, 5, 5), np.int32)]
)
def test_an_array_that_does_not_fit_is_refused_not_converted(lenet: Plan, array: np.ndarray) -> None:
    engine = Engine(lenet)
    with pytest.raises(TensorMismatchError, match=r"'w1' is float32 \(6, 1, 5, 5\), got"):
        engine.write("w1", array)
    assert not engine.read("w1").any()


def test_an_unknown_name_is_refused_with_the_names_there_are(lenet: Plan) -> None:
    engine = Engine(lenet)
    with pytest.raises(KeyError, match="momentum/w1"):
        engine.write("w9", np.zeros(1, np.float32))
    with pytest.raises(KeyError, match="w9"):
        engine.view("w9")


def test_everything_starts_at_zero_and_state_can_be_reset(lenet: Plan) -> None:
    engine = Engine(lenet)
    assert not any(engine.read(t.name).any() for t in lenet.tensors if t.name and t.role != CONSTANT)
    engine = engine_with(lenet)
    engine.step()
    weights = engine.read("w2")
    assert engine.read("momentum/w2").any()
    engine.reset_state()
    assert not engine.read("momentum/w2").any()
    np.testing.assert_array_equal(engine.read("w2"), weights)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_threads_out_of_range_are_refused(lenet: Plan, threads: int) -> None:
    with pytest.raises(ValueError, match=r"threads must be in 1\.\.256"):
        Engine(lenet, threads=threads)


def test_an_unavailable_instruction_set_is_refused_with_those_there_are(lenet: Plan) -> None:
    with pytest.raises(ValueError, match=f"'mmx' is not available here; available: auto, {', '.join(ISAS)}"):
        Engine(lenet, isa="mmx")


@pytest.mark.parametrize(("wish", "expected"), [(ISAS[0], ISAS[0]), ("", ISAS[-1])])
def test_the_environment_chooses_the_instruction_set(wish: str, expected: str) -> None:
    code = "from edge_runtime import _core; print(_core.info()['isa'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"EDGE_ISA": wish}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


def test_a_wish_of_the_environment_that_cannot_be_met_is_an_error() -> None:
    code = "from edge_runtime import _core; _core.info()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"EDGE_ISA": "sse9"}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "'sse9' (from EDGE_ISA) is not available here" in done.stderr


def heavy_plan(size: int, repeats: int) -> Plan:
    """Repeated products of two square matrices: a step of some tenths of a second."""
    writer = PlanWriter()
    a, b = writer.tensor("a", (size, size), BATCH), writer.tensor("b", (size, size), BATCH)
    c = writer.tensor("c", (size, size), OUTPUT)
    for _ in range(repeats):
        writer.op("gemm", [a, b, None], [c], [0, 0, 0])
    return read_plan(writer.seal())


def test_other_threads_of_python_run_during_a_step() -> None:
    engine = Engine(heavy_plan(512, 60), isa=ISAS[0])
    inside, done = threading.Event(), threading.Event()
    turns = 0

    def work() -> None:
        inside.set()
        engine.step()
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    inside.wait()
    while not done.is_set():
        turns += 1
    worker.join()
    # With the GIL held, this loop would stand still until the step is over.
    assert turns > 1000


def test_two_steps_at_once_are_refused() -> None:
    engine = Engine(heavy_plan(512, 60), isa=ISAS[0])
    refused: list[str] = []  # whichever thread came second

    def work() -> None:
        try:
            engine.step()
        except RuntimeError as error:
            refused.append(str(error))

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive() and not refused:
        work()
    worker.join()
    assert "another thread is inside step()" in refused[0]


def test_the_reference_is_not_imported_with_the_engine() -> None:
    code = "import sys, edge_runtime.engine; print(any('reference' in m for m in sys.modules if m.startswith('edge')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_profile_names_a_time_for_every_operation_and_trains(lenet: Plan) -> None:
    profiled, stepped = engine_with(lenet), engine_with(lenet)
    times_s = profiled.profile(2)
    expected = trained_after(stepped, 2)
    assert times_s.shape == (2, lenet.n_ops)
    assert (times_s > 0.0).all()
    for name, value in expected.items():
        np.testing.assert_array_equal(profiled.read(name), value)
    with pytest.raises(ValueError, match="1 to 100,000 steps, asked for 0"):
        profiled.profile(0)

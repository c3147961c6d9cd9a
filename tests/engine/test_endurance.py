"""What a board relies on over days: a step allocates nothing, nothing leaks, and the same numbers come out again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_runtime.engine import Engine
from edge_runtime.plan import read_plan
from edge_runtime.profile.inputs import fill_inputs
from models.compiler import compile_training, import_onnx
from support.networks import NETWORKS, export
from support.process import rss_kb

BATCH = 2
COUNTER = Path(__file__).parents[1] / "csrc" / "count_allocations.cpp"
COMPILER = shutil.which("c++")
ROUNDING = 1e-4  # relative; what summing in another order changes in a few steps of these networks

# Prints the allocations of ten calls of step() for each plan and number of threads, and of one that is known.
COUNT = """\
import ctypes, json, sys
import numpy as np
from edge_runtime.engine import Engine
from edge_runtime.plan import read_plan
from edge_runtime.profile.inputs import fill_inputs
count = ctypes.CDLL(None).allocation_count
count.restype = ctypes.c_uint64

def ten(step):
    before = count()
    for _ in range(10):
        step()
    return count() - before

found = {}
for path in sys.argv[1:]:
    for threads in (1, 2):
        engine = Engine(read_plan(open(path, "rb").read()), threads=threads)
        fill_inputs(engine, None)
        ten(engine._core.step)  # what the interpreter of this script allocates once
        found[f"{path} {threads}"] = ten(engine._core.step)
print(json.dumps({"known": ten(lambda: np.empty(1 << 20)), "steps": found}))
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every network of the acceptance table as a plan for two examples."""
    folder = tmp_path_factory.mktemp("plans")
    made = {}
    for name, network in NETWORKS.items():
        torch.manual_seed(1)
        compiled = compile_training(import_onnx(export(network.build(), network), batch=BATCH))
        made[name] = folder / f"{name}.plan"
        made[name].write_bytes(compiled.plan)
    return made


def trained(path: Path, threads: int, steps: int, lr: float) -> dict[str, np.ndarray[Any, Any]]:
    engine = Engine(read_plan(path.read_bytes()), threads=threads)
    fill_inputs(engine, None)
    engine.write("lr", np.array(lr, np.float32))
    losses = []
    for _ in range(steps):
        engine.step()
        losses.append(float(engine.read("loss")))
    return {"losses": np.array(losses), **{name: engine.read(name) for name in engine.plan.named(1)}}


@pytest.mark.skipif(COMPILER is None, reason="counting allocations needs a C++ compiler, c++")
def test_a_step_allocates_nothing_in_any_network_with_one_thread_and_two(
    plans: dict[str, Path], tmp_path: Path
) -> None:
    counter = tmp_path / "count_allocations.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", "-std=c++17", "-o", counter, COUNTER], check=True)
    command = [sys.executable, "-c", COUNT, *map(str, plans.values())]
    environment = {"LD_PRELOAD": str(counter), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["known"] >= 10
    assert said["steps"] == dict.fromkeys(said["steps"], 0)
    assert len(said["steps"]) == 2 * len(NETWORKS)


@pytest.mark.slow
def test_ten_thousand_steps_leak_nothing(plans: dict[str, Path]) -> None:
    engine = Engine(read_plan(plans["lenet5"].read_bytes()))
    fill_inputs(engine, None)
    engine.step()
    before_kb = rss_kb()
    for _ in range(10_000):
        engine.step()
    assert rss_kb() - before_kb < 256


def test_engines_that_come_and_go_leak_nothing(plans: dict[str, Path]) -> None:
    plan = read_plan(plans["lenet5"].read_bytes())
    for _ in range(20):
        Engine(plan, threads=2)
    before_kb = rss_kb()
    for _ in range(200):
        Engine(plan, threads=2)
    assert rss_kb() - before_kb < 1024  # 5 KiB an engine; its records alone are larger


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_one_thread_gives_the_same_bits_again_and_two_the_same_numbers(name: str, plans: dict[str, Path]) -> None:
    once, again, two = (trained(plans[name], threads, 4, 1e-3) for threads in (1, 1, 2))
    for tensor, value in once.items():
        assert np.isfinite(value).all()
        assert value.tobytes() == again[tensor].tobytes(), tensor
        scale = np.abs(value).max()
        np.testing.assert_allclose(two[tensor], value, rtol=0, atol=ROUNDING * scale, err_msg=tensor)


def test_another_process_gives_the_same_bits(plans: dict[str, Path], tmp_path: Path) -> None:
    here = trained(plans["resnet8"], 1, 3, 1e-3)
    saved = tmp_path / "there.npz"
    code = (
        "import sys; from pathlib import Path; import numpy as np; import test_endurance as t\n"
        "np.savez(sys.argv[2], **t.trained(Path(sys.argv[1]), 1, 3, 1e-3))"
    )
    path = ":".join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", code, plans["resnet8"], saved]
    subprocess.run(command, env={"PYTHONPATH": path, "PYTHONHASHSEED": "7"}, check=True)
    with np.load(saved) as there:
        assert {name: there[name].tobytes() for name in there} == {name: a.tobytes() for name, a in here.items()}

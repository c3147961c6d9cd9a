"""What a plan promises is what a process that trains with it takes."""

from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from models.compiler import Compiled, compile_training, import_onnx  # noqa: E402 - after the check for torch
from support.networks import NETWORKS, export  # noqa: E402 - as above
from support.peak import peak_of  # noqa: E402 - as above

pytestmark = pytest.mark.torch
CODE_SPREAD_BYTES = 250_000  # pages of code come in by tens, as many as happen to lie in the page cache


@cache
def model(name: str) -> bytes:
    torch.manual_seed(0)
    return export(NETWORKS[name].build(), NETWORKS[name])


def compiled(name: str, **settings: bool) -> Compiled:
    return compile_training(import_onnx(model(name), batch=NETWORKS[name].batch), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["lenet5", "resnet8"])
def test_a_process_takes_what_the_plan_promises(name: str, threads: int, tmp_path: Path) -> None:
    made = compiled(name)
    promised = made.report.process_bytes(threads)
    taken = peak_of(made.plan, tmp_path, threads).training_bytes
    assert 0.95 * promised - (threads - 1) * made.report.workspace_bytes - CODE_SPREAD_BYTES <= taken
    assert taken <= 1.05 * promised + CODE_SPREAD_BYTES


def test_a_plan_of_many_slices_takes_what_is_promised_for_its_records(tmp_path: Path) -> None:
    network = NETWORKS["vit_tiny"]
    made = compile_training(import_onnx(model("vit_tiny"), batch=1), micro_batches=network.batch)
    records = made.report.engine_bytes() - made.report.memory_bytes()
    assert records > 0.1 * made.report.memory_bytes()
    taken = peak_of(made.plan, tmp_path).training_bytes
    assert abs(taken - made.report.process_bytes()) <= 0.05 * made.report.process_bytes()


def test_recomputing_takes_less_of_a_process(tmp_path: Path) -> None:
    whole = peak_of(compiled("resnet8", recompute=False).plan, tmp_path).training_bytes
    assert peak_of(compiled("resnet8").plan, tmp_path).training_bytes < 0.75 * whole


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"text_gru"}))
def test_arena_is_within_five_percent_of_the_most_bytes_alive(name: str) -> None:
    report = compiled(name).report
    assert report.lower_bound_bytes <= report.arena_bytes <= 1.05 * report.lower_bound_bytes

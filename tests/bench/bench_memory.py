"""`edge-runtime bench memory`: what plans promise, what processes take, and what training less of a model saves.

T22     temporaries of a step beside the tensors that torch saves for its backward pass
promise peak of a process above the idle client, beside what the plan promises
stages  the same, layer by layer and for the last block, beside training end to end
budget  half and a quarter of the memory of an end-to-end step: what is chosen, promised and measured

Processes are children that have imported what a client imports, train three steps and say their VmHWM; the peak counts
from right before the engine is made. Layer by layer means a model of so many blocks of which the last is trained with
the head; below it lies a prefix plan of a few rows at a time, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from bench import recording
from models.compiler import compile_training, import_onnx
from models.compiler.budget import Budget, BudgetError, Rate, compile_within, described
from models.compiler.prefix import compile_split
from models.compiler.rules import Sgd
from support.networks import NETWORKS, Network, Vit, export
from support.peak import peak_of

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 1e6
PLAIN = ("lenet5", "fedavg_cnn", "har_cnn")  # without batch normalisation
SAVED_TARGETS = {**dict.fromkeys(PLAIN, 0.27), "resnet8": 0.55, "r2plus1d_10": 0.55, "mobilenet_v2": 0.36}
FREEZE_TARGET = 3.3
MEASURED_WITHIN = 0.05
RESNET_STAGES = (("stem", ("0.*", "1.*")), ("block 1", ("3.*",)), ("block 2", ("4.*",)), ("last block", ("5.*", "8.*")))
ANY_RATE = Rate(1e11, 1e10)  # no row limits a step's time
Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object; a whole run is kept in tests/bench/results/."""
    sections: dict[str, Callable[[Path], list[Row]]] = {
        "T22": lambda _: [saved_row(name) for name in SAVED_TARGETS],
        "promise": lambda folder: [promise_row(name, folder) for name in _measured()],
        "stages": stage_rows,
        "budget": budget_rows,
    }
    parser = argparse.ArgumentParser(prog="edge-runtime bench memory", description=__doc__)
    parser.add_argument("--only", metavar="SECTION", choices=sorted(sections))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        wanted = [make for name, make in sections.items() if options.only in (None, name)]
        rows = [row for make in wanted for row in make(Path(folder))]
    result = {"bench": "memory", "machine": recording.machine(), "rows": rows}
    if options.only is None:
        recording.save(result)
    print(json.dumps(result) if options.json else "\n".join(_line(row) for row in rows))
    return 0


def _measured() -> list[str]:
    return [name for name, network in NETWORKS.items() if not network.tokens]


def _model(network: Network) -> bytes:
    torch.manual_seed(0)
    return export(network.build(), network)


def saved_row(name: str) -> Row:
    """Temporaries of the best exact plan beside torch's saved tensors; networks without batch statistics in slices."""
    network = NETWORKS[name]
    model = _model(network)
    slices = [n for n in range(1, network.batch + 1) if network.batch % n == 0] if name in PLAIN else [1]
    plans = [compile_training(import_onnx(model, batch=network.batch // n), micro_batches=n).report for n in slices]
    plans.append(compile_training(import_onnx(model, batch=network.batch), slice_peak=True).report)
    best = min(plans, key=lambda report: report.temporaries_bytes)
    saved = torch_saved_bytes(network)
    return {
        "id": "T22",
        "work": f"{name}, batch {network.batch}: temporaries of a step",
        "peer": f"saved tensors of torch {torch.__version__}",
        "ours_bytes": best.temporaries_bytes,
        "whole_batch_bytes": plans[0].temporaries_bytes,
        "micro_batches": best.micro_batches,
        "slice_peak": best.slice_peak,
        "slice_peak_bytes": plans[-1].temporaries_bytes,
        "peer_bytes": saved,
        "gap": round(best.gap, 4),
        "ratio": round(best.temporaries_bytes / saved, 3),
        "target": SAVED_TARGETS[name],
        "met": best.temporaries_bytes <= SAVED_TARGETS[name] * saved,
    }


def torch_saved_bytes(network: Network) -> int:
    """Bytes of the distinct tensors, parameters apart, that one forward pass keeps for the backward pass."""
    torch.manual_seed(0)
    model = network.build().train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no storage is given away twice while they are counted

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x, y = torch.randn(network.batch, *network.shape), torch.zeros(network.batch, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        functional.cross_entropy(model(x), y)
    return sum(nbytes for pointer, nbytes in kept.items() if pointer not in own)


def promise_row(name: str, folder: Path) -> Row:
    """A process that trains end to end."""
    network = NETWORKS[name]
    compiled = compile_training(import_onnx(_model(network), batch=network.batch))
    return {"id": "promise", "work": f"{name}, batch {network.batch}", **_judged(compiled, folder)}


def _judged(compiled: Any, folder: Path) -> Row:
    promised, peak = compiled.report.process_bytes(), peak_of(compiled.plan, folder)
    return {
        "promised_bytes": promised,
        "engine_bytes": compiled.report.engine_bytes(),
        "measured_bytes": peak.training_bytes,
        "process_bytes": peak.peak_bytes,
        "ratio": round(peak.training_bytes / promised, 3),
        "operations": compiled.report.operations,
        "met": abs(peak.training_bytes - promised) <= promised * MEASURED_WITHIN,
    }


def stage_rows(folder: Path) -> list[Row]:
    """Every stage of ResNet-8 by blocks, and of ViT-tiny layer by layer."""
    resnet, vit = NETWORKS["resnet8"], NETWORKS["vit_tiny"]
    rows = [_stage_row(f"resnet8: {name}", resnet, resnet, patterns, folder) for name, patterns in RESNET_STAGES]
    for depth in range(1, 7):
        layer = replace(vit, build=lambda depth=depth: Vit(depth=depth))
        patterns = (
            f"blocks.{depth - 1}.*",
            "norm.*",
            "head.*",
            *(("patches.*", "token", "positions") if depth == 1 else ()),
        )
        rows.append(_stage_row(f"vit_tiny: layer {depth}", vit, layer, patterns, folder))
    return rows


def _stage_row(title: str, whole: Network, stage: Network, patterns: tuple[str, ...], folder: Path) -> Row:
    """The larger of a stage's two processes, beside end to end with and without recomputation."""
    ends = [
        peak_of(compile_training(import_onnx(_model(whole), batch=whole.batch), recompute=flag).plan, folder)
        for flag in (True, False)
    ]
    split = compile_split(_model(stage), batch=stage.batch, trainable=patterns, rule=Sgd())
    peaks = [peak_of(plan.plan, folder).training_bytes for plan in (split.training, split.prefix) if plan is not None]
    recomputed, plain = (end.training_bytes / max(peaks) for end in ends)
    return {
        "id": "stages",
        "work": title,
        "training_bytes": peaks[0],
        "prefix_bytes": peaks[1] if len(peaks) > 1 else None,
        "end_to_end_bytes": ends[0].training_bytes,
        "end_to_end_kept_bytes": ends[1].training_bytes,
        "ratio": round(recomputed, 2),
        "ratio_kept": round(plain, 2),
        "target": FREEZE_TARGET,
        "met": recomputed >= FREEZE_TARGET,
    }


def budget_rows(folder: Path) -> list[Row]:
    """A half and a quarter of end to end, which keeps everything."""
    return [_budget_row(name, share, folder) for name in _measured() for share in (2, 4)]


def _budget_row(name: str, share: int, folder: Path) -> Row:
    network = NETWORKS[name]
    model = _model(network)
    whole = compile_training(import_onnx(model, batch=network.batch), recompute=False).report.engine_bytes()
    row = {"id": "budget", "work": f"{name}: 1/{share} of end to end", "budget_bytes": whole // share}
    try:
        chosen = compile_within(model, network.batch, Budget(whole // share), rate=ANY_RATE).chosen
    except BudgetError as refused:
        return {**row, "refused": str(refused), "nearest_bytes": refused.nearest.memory_bytes, "met": False}
    return {**row, "chosen": described(chosen), **_judged(chosen.compiled, folder)}


def _line(row: Row) -> str:
    """One row for people: bytes in MB."""
    facts = [f"{k.removesuffix('_bytes')} {v / MB:.2f} MB" for k, v in row.items() if k.endswith("_bytes") and v]
    rest = [f"{k} {row[k]}" for k in ("ratio", "ratio_kept", "target", "chosen", "refused") if k in row]
    return f"{row['id']:8}{'ok ' if row['met'] else 'no '} {row['work']}: {', '.join(facts + rest)}"


if __name__ == "__main__":
    sys.exit(main())

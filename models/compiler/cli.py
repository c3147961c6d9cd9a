"""`edge-runtime plan`: compile a model into a plan, and look into one."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import _core
from edge_runtime.plan import read_plan
from models.compiler import cli_budget
from models.compiler.budget import Budget, Found, compile_within
from models.compiler.encode import bits_float
from models.compiler.errors import CompileError
from models.compiler.ir import Role
from models.compiler.onnx_import import import_onnx
from models.compiler.rules import Rule, Sgd
from models.compiler.stages_cli import add_stages
from models.compiler.training import Compiled, compile_training

if TYPE_CHECKING:
    from edge_runtime._core import OpInfo, TensorInfo
    from models.compiler.report import Report

EXIT_BAD_INPUT = 2
FLOAT_ATTRIBUTES = {
    "reduce_sum": (1,),
    "sgd": (0, 1),
    "adamw": (0, 1, 2, 3),
    "blend": (0,),
}  # docs/plan-format.md; the others are whole numbers


def main(argv: list[str]) -> int:
    """Run a `plan` command; 0 done, 2 bad input (with a line that says what to do)."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (CompileError, OSError, _core.PlanError) as error:
        sys.stderr.write(f"edge-runtime plan: {error}\n")
        return EXIT_BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-runtime plan", description="Compile models into training plans.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="compile an ONNX classifier into a training plan")
    build.add_argument("model", type=Path, metavar="MODEL.onnx")
    build.add_argument("-o", "--output", type=Path, required=True, metavar="PLAN")
    build.add_argument("--batch", type=int, default=32, help="examples in a step (default 32)")
    build.add_argument("--momentum", type=float, default=0.9, help="0 to 1 (default 0.9)")
    build.add_argument("--weight-decay", type=float, default=0.0, help="default 0")
    build.add_argument("--nesterov", action="store_true", help="Nesterov's look-ahead")
    build.add_argument(
        "--trainable", nargs="+", default=["*"], metavar="PATTERN", help="tensors to train (default all)"
    )
    build.add_argument("--frozen", nargs="+", default=[], metavar="PATTERN", help="tensors to leave as they are")
    cli_budget.add_options(build)
    build.add_argument("--json", action="store_true", help="print the report as one JSON object")
    build.set_defaults(run=_build)
    add_stages(commands)
    show = commands.add_parser("show", help="print the tensors and operations of a plan")
    show.add_argument("plan", type=Path, metavar="PLAN")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(run=_show)
    return parser


def _build(args: argparse.Namespace) -> int:
    budget = cli_budget.budget_of(args)
    found = None if budget is None else _within(args, budget)
    compiled = _as_told(args) if found is None else found.chosen.compiled
    _write(args.output, compiled.plan)
    if args.json:
        sys.stdout.write(_as_json(compiled, found) + "\n")
    else:
        options = "" if found is None else cli_budget.options_table(found) + "\n\n"
        sys.stdout.write(options + report_table(compiled) + "\n")
    return 0


def _rule(args: argparse.Namespace) -> Rule:
    return Sgd(args.momentum, args.weight_decay, args.nesterov)


def _as_told(args: argparse.Namespace) -> Compiled:
    """The plan that the options name."""
    if args.micro_batches < 1 or args.batch % args.micro_batches:
        raise CompileError(f"--batch {args.batch} does not divide into --micro-batches {args.micro_batches}")
    return compile_training(
        import_onnx(args.model.read_bytes(), batch=args.batch // args.micro_batches),
        trainable=args.trainable,
        frozen=args.frozen,
        rule=_rule(args),
        recompute=not args.no_recompute,
        slice_peak=args.slice_peak,
        micro_batches=args.micro_batches,
        statistics_of_slices=args.statistics_of_slices,
    )


def _within(args: argparse.Namespace, budget: Budget) -> Found:
    """The plans that a budget leaves a choice of."""
    return compile_within(
        args.model.read_bytes(),
        args.batch,
        budget,
        trainable=args.trainable,
        frozen=args.frozen,
        rule=_rule(args),
        rate=cli_budget.rate_of(args),
        statistics_of_slices=args.statistics_of_slices,
    )


def _write(path: Path, data: bytes) -> None:
    """Write beside the target and move over it: a reader never meets half a plan."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _as_json(compiled: Compiled, found: Found | None) -> str:
    facts: dict[str, Any] = asdict(compiled.report)
    if found is not None:
        facts["options"] = cli_budget.options_facts(found)
    return json.dumps({"sha256": compiled.sha256, "plan_bytes": len(compiled.plan), **facts}, sort_keys=True)


def report_table(compiled: Compiled) -> str:
    """What a plan costs, as lines for people."""
    r: Report = compiled.report
    rows = [
        ("plan", f"{len(compiled.plan):,} bytes, {r.operations} operations, sha256 {compiled.sha256[:16]}"),
        ("arena", f"{r.arena_bytes:,} bytes ({r.gap:.1%} above the lower bound {r.lower_bound_bytes:,})"),
        ("  tensors, state, batch", f"{r.owned_bytes:,} bytes"),
        ("  activations, gradients", f"{r.temporaries_bytes:,} bytes"),
        ("workspace a thread", f"{r.workspace_bytes:,} bytes"),
        ("constants", f"{r.constants_bytes:,} bytes"),
        ("process", f"about {r.process_bytes():,} bytes above an idle client's, with one thread"),
        ("multiply-adds forward", f"{r.forward_multiply_adds:,}"),
        ("multiply-adds backward", f"{r.backward_multiply_adds:,}"),
        ("kept for backward", "what nothing cheap leads to" if r.recompute else "everything that it reads"),
        *([("largest values", "in slices")] if r.slice_peak else []),
        *([("micro-batches", str(r.micro_batches))] if r.micro_batches > 1 else []),
        ("trained", ", ".join(r.trained)),
        ("frozen", ", ".join(r.frozen) or "none"),
        *(("note", note) for note in r.notes),
    ]
    return "\n".join(f"{name:<26}{text}" for name, text in rows)


def _show(args: argparse.Namespace) -> int:
    data = args.plan.read_bytes()
    plan, facts = read_plan(data), _core.describe(data)
    if args.json:
        sys.stdout.write(json.dumps({"sha256": plan.sha256, **facts}, sort_keys=True) + "\n")
        return 0
    sizes = {
        "plan": len(data),
        "arena": plan.arena_bytes,
        "constants": plan.constants_bytes,
        "workspace": plan.workspace_bytes,
    }
    for name, nbytes in sizes.items():
        sys.stdout.write(f"{name:<12}{nbytes:,} bytes\n")
    for line in [*_tensor_lines(facts["tensors"]), *_operation_lines(facts["ops"])]:
        sys.stdout.write(line + "\n")
    return 0


def _tensor_lines(tensors: "Sequence[TensorInfo]") -> list[str]:
    return [
        f"%{i:<4} {_role(t):<10} {t['dtype']}{list(t['shape'])} at {t['offset']} {t['name']}".rstrip()
        for i, t in enumerate(tensors)
    ]


def _role(tensor: "TensorInfo") -> str:
    return Role(tensor["role"]).name.lower()


def _operation_lines(operations: "Sequence[OpInfo]") -> list[str]:
    return [
        f"{_numbers(op['outputs'])} = {op['op']}({_numbers(op['inputs'])}) {_attributes(op)}".rstrip()
        for op in operations
    ]


def _attributes(op: "OpInfo") -> str:
    floats = FLOAT_ATTRIBUTES.get(op["op"], ())
    return " ".join(f"{bits_float(a):g}" if i in floats else str(a) for i, a in enumerate(op["attrs"]))


def _numbers(tensors: Sequence[int | None]) -> str:
    return ", ".join("-" if i is None else f"%{i}" for i in tensors)

"""The budget options of `edge-runtime plan build`: sizes and times in words, and the table of what was considered."""

import argparse
import re
from typing import Any

from models.compiler.budget import Budget, Found, Option, Rate
from models.compiler.errors import CompileError

SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
TIMES_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def add_options(build: argparse.ArgumentParser) -> None:
    """The options that say what a step may cost, and how it keeps to that."""
    build.add_argument(
        "--memory",
        type=size_bytes,
        metavar="SIZE",
        help="the most that the engine may take: arena, constants, workspaces and records of operations, as 48MB "
        "or 512KiB; what is trained, and in how many micro-batches, is chosen to fit",
    )
    build.add_argument(
        "--step-latency", type=duration_s, metavar="TIME", help="the longest that a step may take, as 150ms (estimate)"
    )
    build.add_argument("--threads", type=int, default=1, help="of the engine, each with a workspace (default 1)")
    build.add_argument(
        "--gflops", type=float, help="10^9 operations a second of the board's convolutions (default: measured here)"
    )
    build.add_argument("--gbps", type=float, help="10^9 bytes a second through the board's memory (with --gflops)")
    build.add_argument("--micro-batches", type=int, default=1, help="slices of the batch, without a budget (default 1)")
    build.add_argument(
        "--slice-peak", action="store_true", help="never hold the largest values whole, without a budget"
    )
    build.add_argument("--no-recompute", action="store_true", help="compute nothing twice, without a budget")
    build.add_argument(
        "--statistics-of-slices", action="store_true", help="let batch normalisation see one micro-batch at a time"
    )


def size_bytes(text: str) -> int:
    """48MB, 512KiB, 1000 -> bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?i?B?)", text, re.IGNORECASE)
    unit = None if found is None else SIZES.get(found[2].upper())
    if found is None or unit is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 48MB, 512KiB or a number of bytes")
    return int(float(found[1]) * unit)


def duration_s(text: str) -> float:
    """150ms, 0.2s, 900us -> seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text)
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 150ms, 0.2s or 900us")
    return float(found[1]) * TIMES_S[found[2]]


def budget_of(args: argparse.Namespace) -> Budget | None:
    """The budget, None where neither memory nor time is limited.

    Raises:
        CompileError: options that exclude each other.
    """
    if args.memory is None and args.step_latency is None:
        return None
    if args.micro_batches != 1 or args.no_recompute or args.slice_peak:
        raise CompileError(
            "--memory and --step-latency choose micro-batches, slices at the peak and recomputation; leave those "
            "options out"
        )
    return Budget(args.memory, args.step_latency, args.threads)


def rate_of(args: argparse.Namespace) -> Rate | None:
    """The board's rate, None where it is to be measured on this machine.

    Raises:
        CompileError: one number without the other, or one that is not above 0.
    """
    given = (args.gflops, args.gbps)
    if given == (None, None):
        return None
    if any(number is None or number <= 0 for number in given):
        raise CompileError(f"--gflops and --gbps belong together and are above 0, got {args.gflops} and {args.gbps}")
    return Rate(args.gflops * 1e9 / 2, args.gbps * 1e9)


def options_table(found: Found) -> str:
    """What was considered, one line each, the chosen one marked."""
    columns = (
        f"{'frozen':>6} {'slices':>6} {'peak cut':>8} {'twice':>5} {'memory':>14} {'multiply-adds':>15} {'step':>9}"
    )
    head = f"  {columns}  trains"
    return "\n".join([head, *(_line(option, chosen=option == found.chosen) for option in found.options)])


def _line(option: Option, *, chosen: bool) -> str:
    choice, report = option.choice, option.compiled.report
    trained = f"{len(report.trained)} tensors from {report.trained[0]} on"
    return (
        f"{'*' if chosen else ' '} {choice.frozen_layers:6} {choice.micro_batches:6} "
        f"{'yes' if choice.slice_peak else 'no':>8} "
        f"{'yes' if choice.recompute else 'no':>5} {option.memory_bytes:14,} {sum(report.multiply_adds):15,} "
        f"{1e3 * option.step_s:6.3g} ms  {trained}"
    )


def options_facts(found: Found) -> list[dict[str, Any]]:
    """What was considered, for tools."""
    return [
        {
            "frozen_layers": option.choice.frozen_layers,
            "micro_batches": option.choice.micro_batches,
            "recompute": option.choice.recompute,
            "slice_peak": option.choice.slice_peak,
            "memory_bytes": option.memory_bytes,
            "arena_bytes": option.compiled.report.arena_bytes,
            "multiply_adds": sum(option.compiled.report.multiply_adds),
            "step_s": option.step_s,
            "trained": option.compiled.report.trained,
            "chosen": option == found.chosen,
        }
        for option in found.options
    ]

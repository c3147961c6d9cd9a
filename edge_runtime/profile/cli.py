"""`edge-runtime profile`: where a plan's time and memory go on this machine."""

import argparse
import json
import shutil
import sys
from pathlib import Path

from edge_runtime import _core
from edge_runtime.engine import Engine
from edge_runtime.errors import EdgeError
from edge_runtime.profile.anatomy import anatomy
from edge_runtime.profile.footprint import measure_footprint
from edge_runtime.profile.inputs import fill_inputs
from edge_runtime.profile.measure import measure
from edge_runtime.profile.peak import measure_peak
from edge_runtime.profile.png import draw_png
from edge_runtime.profile.report import Profile, as_json, as_text
from edge_runtime.profile.source import Source, open_source
from edge_runtime.profile.upload import measure_upload, upload_json, upload_text

__all__ = ["main"]

EXIT_BAD_INPUT = 2


def main(argv: list[str]) -> int:
    """Profile and print; 0 done, 2 bad input (with a line that says what to do)."""
    args, build_flags = _parser().parse_known_args(argv)
    try:
        source = open_source(args.target, args.data, build_flags)
        profile = profile_source(source, threads=args.threads or source.threads, isa=args.isa, steps=args.steps)
        stages = args.codec or source.codec
        upload = None if stages is None else measure_upload(source.plan, stages)
        if args.png is not None:
            args.png.write_bytes(draw_png(profile.anatomy))
    except ModuleNotFoundError as error:
        print(
            f"edge-runtime profile: a model is compiled first, which needs {error.name!r}: pip install "
            "'edge-runtime[gateway]', or profile a plan that was built elsewhere",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    except (EdgeError, _core.PlanError, OSError, ValueError, MemoryError) as error:
        print(f"edge-runtime profile: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    if args.json:
        print(json.dumps(as_json(profile) | ({} if upload is None else {"upload": upload_json(upload)})))
    else:
        blocks = (sys.stdout.encoding or "").lower().startswith("utf")
        print(as_text(profile, top=args.top, width=shutil.get_terminal_size().columns, blocks=blocks))
        if upload is not None:
            print("\n" + upload_text(upload))
    return 0


def profile_source(source: Source, *, threads: int, isa: str, steps: int) -> Profile:
    """Measure the machine, then the plan on it, then a process that runs nothing but the plan.

    Raises:
        ValueError: threads, isa or steps out of range.
        BatchNotData, ShapeMismatch: The data do not fit the plan.
        ChildFailed: The process that measures memory ended early.
    """
    engine = Engine(source.plan, threads=threads, isa=isa)
    if source.plan.n_ops == 0:
        raise ValueError("the plan has no operation to profile")
    fill_inputs(engine, source.dataset)
    parts = anatomy(_core.describe(source.plan.data))
    peak = measure_peak(threads, isa)
    timing = measure(engine, parts, peak, steps)
    fed = "random numbers" if source.dataset is None else "local data"
    used = engine.isa
    del engine  # its arena must not crowd the child's
    footprint = measure_footprint(source.plan, threads, isa)
    return Profile(source.plan, source.origin, fed, used, threads, steps, parts, peak, timing, footprint)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-runtime profile",
        description="Where the time and the memory of training go on this machine.",
        epilog="A model is compiled first; every other flag is one of `edge-runtime plan build`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "target",
        type=Path,
        metavar="PLAN|MODEL.onnx|CLIENT.toml|STATE_DIR",
        help="a plan, a model, a device's configuration, or its state directory: the plan it trained last",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="examples for the batch (default random numbers)")
    parser.add_argument("--steps", type=int, default=20, help="steps to time (default 20)")
    parser.add_argument("--threads", type=int, help="workers of a step (default 1, or the client's)")
    parser.add_argument("--isa", default="auto", help="instruction set of the kernels (default auto)")
    parser.add_argument("--top", type=int, default=15, help="slowest operations to list (default 15)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also write the arena's picture")
    parser.add_argument(
        "--codec",
        nargs="+",
        metavar="STAGE",
        help="also what an update takes through a job's codec, as in 'topk 0.01 ef' fp16 rice (default: the device's)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; its keys are in docs/engine.md")
    return parser

"""`edge-runtime plan stages`: the stages of a model as lines of a job file, with what each takes of a board."""

import argparse
import json
import sys
from pathlib import Path

from models.compiler.prefix import Split, compile_split
from models.compiler.rules import Sgd
from models.compiler.skip import without
from models.compiler.stages import Stage, stages_of


def add_stages(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to `edge-runtime plan`."""
    stages = commands.add_parser("stages", help="print the stages of layer-wise or progressive training")
    stages.add_argument("model", type=Path, metavar="MODEL.onnx")
    stages.add_argument("--progressive", action="store_true", help="train all blocks so far, not the last one alone")
    stages.add_argument("--batch", type=int, default=32, help="examples in a step (default 32)")
    stages.add_argument("--rounds", type=int, default=10, help="rounds of each stage (default 10)")
    stages.set_defaults(run=_stages)


def _stages(args: argparse.Namespace) -> int:
    model = args.model.read_bytes()
    sys.stdout.write("stages = [\n")
    for stage in stages_of(model, progressive=args.progressive):
        split = compile_split(
            without(model, stage.skip), batch=args.batch, trainable=stage.trainable, rule=Sgd(momentum=0.9)
        )
        sys.stdout.write(f"    {_line(stage, args.rounds)}  # {_costs(split)}\n")
    sys.stdout.write("]\n")
    return 0


def _line(stage: Stage, rounds: int) -> str:
    """The stage as an inline table; JSON's strings and lists are TOML's too."""
    skip = f", skip = {json.dumps(stage.skip)}" if stage.skip else ""
    return f"{{rounds = {rounds}, trainable = {json.dumps(stage.trainable)}{skip}}},"


def _costs(split: Split) -> str:
    above = f"arena {split.training.report.arena_bytes:,} bytes"
    if split.prefix is None:
        return above
    kept = sum(split.features.values())
    return f"{above}, prefix {split.prefix.report.arena_bytes:,}, features {kept:,} an example"

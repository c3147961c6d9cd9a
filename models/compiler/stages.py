"""The stages of a model: which tensors each trains and which blocks it leaves out, one line each in a job file.

Layer-wise: block after block, each above the frozen ones (arXiv 2401.11647, section 3; arXiv 2309.05213). Progressive:
all blocks so far. In both the blocks above are not there yet where the model lets them be left out; where it does not,
because a block changes the shape, they are there and frozen. What comes before the first block is trained with it,
what comes after the last one, the head, in every stage.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape

from models.compiler.errors import ModelError
from models.compiler.onnx_import import import_onnx, own_batch
from models.compiler.skip import without


@dataclass(frozen=True)
class Stage:
    """Patterns over tensor names: what is trained, and which blocks are left out."""

    trainable: tuple[str, ...]
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blocks:
    """Patterns over tensor names, in the order of the model: what is before the blocks, each block, the head."""

    stem: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]


def stages_of(model: bytes, *, progressive: bool = False) -> tuple[Stage, ...]:
    """The stages of a model, the first block's first.

    Args:
        model: A serialised ONNX model whose tensors are named after modules, as torch's exporter names them.
        progressive: Train all blocks so far in each stage, not the last one alone.

    Raises:
        ModelError: As import_onnx, or the names show fewer than two blocks.
    """
    parts = blocks_of(model)
    stages = []
    for number, block in enumerate(parts.blocks):
        below = [pattern for each in parts.blocks[:number] for pattern in each] if progressive else []
        stem = parts.stem if progressive or number == 0 else ()
        above = tuple(pattern for each in parts.blocks[number + 1 :] for pattern in each)
        stages.append(Stage((*stem, *below, *block, *parts.head), above if _can_be_left_out(model, above) else ()))
    return tuple(stages)


def _can_be_left_out(model: bytes, patterns: Sequence[str]) -> bool:
    try:
        return bool(without(model, patterns)) and bool(patterns)
    except ModelError:
        return False


def blocks_of(model: bytes) -> Blocks:
    """Find the blocks by the names of tensors: a module's list of modules, "blocks.0.", "blocks.1.", ...

    A module of the list that has vectors alone, as a normalisation, belongs to the one before it. The last module of
    a model that is one list is its head.
    """
    parameters = import_onnx(model, batch=own_batch(model)).parameters
    groups: dict[str, int] = {}
    for p in parameters:
        group = _group(p.name)
        groups[group] = max(groups.get(group, 0), len(p.shape))
    lists = [match[1] for group in groups if (match := re.fullmatch(r"((?:[^.]+\.)*?)\d+", group))]
    listed = max(lists, key=lists.count, default=None)
    inside = [group for group in groups if listed is not None and re.fullmatch(re.escape(listed) + r"\d+", group)]
    order = list(groups)
    if order and order[-1] in inside:
        inside.pop()
    blocks: list[tuple[str, ...]] = []
    for group in inside:
        pattern = (f"{escape(group)}.*",)
        blocks = [*blocks[:-1], blocks[-1] + pattern] if blocks and groups[group] == 1 else [*blocks, pattern]
    if len(blocks) < 2:
        raise ModelError(f"the tensors' names show no list of blocks; there are: {', '.join(order) or 'none'}")
    first, last = order.index(inside[0]), order.index(inside[-1])
    outside = {
        name: f"{escape(name)}.*" if name not in {p.name for p in parameters} else escape(name) for name in order
    }
    stem = tuple(outside[group] for group in order[:first])
    head = tuple(outside[group] for group in order[last + 1 :])
    return Blocks(stem, tuple(blocks), head)


def _group(name: str) -> str:
    """The module a tensor belongs to: up to the first number in its name, or its first part."""
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts[:-1]) if part.isdigit()), 0)
    return ".".join(parts[: numbered + 1])

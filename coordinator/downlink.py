"""Compressed downloads: what devices are sent of a new version, as a change of what they hold.

    d = encode(w_new - v_old),    v_new = v_old + decode(d)    in float32

w are the weights that are judged and exported, v is the view: what every device has after it applied d, to the bit. So
w - v is the error that the next d is made of, and the feedback of errors needs no memory of its own (Tang et al.,
"DoubleSqueeze", 2019, has it as a residual at the server, which is the same number).

Coded are tensors that devices train; others that changed are sent exactly. Running statistics, because a rounded
variance may be negative; frozen ones, because devices keep what they computed of them for as long as their bits stay.
Without a codec everything is exact, and v = w.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.program import Program
from coordinator.store import Version
from coordinator.views import Step, View, worth_sending
from edge_runtime.codecs import LARGEST, find_codec
from edge_runtime.deltas import CHANGED, apply_delta, write_delta
from edge_runtime.tensors import decode_tensors, encode_tensors

Weights = Mapping[str, NDArray[Any]]


def with_view(program: Program, old: Version, made: Version) -> Version:
    """A new version together with its view, which is made of the one that devices hold of the old version."""
    held, wanted = decode_tensors(old.sent.data)[0], decode_tensors(made.weights)[0]
    whole = replace(made, view=View(made.sha256, made.weights))  # devices have the weights themselves
    if _shapes(held) != _shapes(wanted):
        return whole
    changed = {name: array for name, array in wanted.items() if not _same(held[name], array)}
    differences = _differences(program, made.version, held, changed)
    exact = {name: array for name, array in changed.items() if name not in differences}
    if len(exact) == len(wanted):
        return whole
    step = _step(program, old, exact, differences)
    if len(step.data) >= len(made.weights):
        return whole
    data = encode_tensors(apply_delta(held, step.data, step.codec)) if differences else made.weights
    steps = worth_sending((step, *old.sent.steps), len(data))
    return replace(made, view=View(hashlib.sha256(data).hexdigest(), data, steps))


def _step(program: Program, old: Version, exact: Weights, differences: dict[str, NDArray[Any]]) -> Step:
    """From the old version's view: tensors as they shall be, and differences, which are changed, through the codec."""
    names, base, codec = sorted(differences), old.sent.sha256, CHANGED
    coded = b""
    if program.job.download is not None and differences:
        codec = program.job.download
        # The base seeds the formats that draw, so that no two versions draw alike; the round is for rising energies.
        coded = find_codec(codec).encode(differences, {"task": base, "round": str(old.version)}, {})
    data = write_delta(exact, names, coded)
    return Step(base, hashlib.sha256(data).hexdigest(), data, codec)


def _differences(program: Program, number: int, held: Weights, changed: Weights) -> dict[str, NDArray[Any]]:
    """What goes through the codec: of the tensors that are trained in the round that starts from this version."""
    if program.job.download is None:
        return {}
    stage = program.stage(number)
    trained = {name for plans in (stage, *(plans for _, plans in stage.boards)) for name in plans.trained}
    with np.errstate(over="ignore", invalid="ignore"):
        found = {name: changed[name] - held[name] for name in sorted(changed.keys() & trained - program.statistics)}
    # A model that has diverged is sent as it is: codecs take no such numbers, and the evaluation will say it.
    return found if all(bool((np.abs(each) < LARGEST).all()) for each in found.values()) else {}


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays of one shape have equal bits."""
    return bool(np.array_equal(one.reshape(-1).view(np.uint32), other.reshape(-1).view(np.uint32)))


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in weights.items()}

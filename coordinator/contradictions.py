"""What no single key of a job file shows: keys that need or exclude each other, and files that are not there."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coordinator import schedule_keys, training_keys
from coordinator.fields import codec, shown
from coordinator.methods import METHODS
from edge_runtime.codecs import find_codec


def contradictions(document: Mapping[str, Any], home: Path) -> Iterator[tuple[str, str]]:
    """Every one of them, as (where, message).

    Args:
        document: Of which any part may be missing or of another type than it should be; that is told elsewhere.
        home: The job file's directory.
    """
    model, rounds, evaluate = (_table(document, name) for name in ("model", "round", "evaluate"))
    yield from _model_contradictions(model, home)
    training = _table(document, "training")
    yield from training_keys.contradictions(training, _table(document, "job").get("rounds"))
    name = _table(document, "method").get("name")
    if isinstance(name, str) and name in METHODS:
        yield from _method_contradictions(name, training, _table(document, "schedule"))
    yield from _memory_contradictions(document)
    if training.get("personal") and _table(document, "job").get("target_accuracy") is not None:
        yield "job.target_accuracy", "is of the gateway's model, whose personal tensors nobody trains"
    least, devices = rounds.get("min_updates"), rounds.get("devices")
    if type(least) is int and type(devices) is int and least > devices:
        yield "round.min_updates", f"is {least}, more than round.devices = {devices}"
    yield from schedule_keys.contradictions(_table(document, "schedule"), rounds)
    data = evaluate.get("data")
    if isinstance(data, str) and data and not (home / data).is_dir():
        yield "evaluate.data", f"names no directory: {home / data}"


def _method_contradictions(
    name: str, training: Mapping[str, Any], schedule: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    kind = METHODS[name]
    if training.get("optimizer", "sgd") not in kind.optimizers:
        shown_ones = ", ".join(kind.optimizers)
        yield "training.optimizer", f"is {shown(training['optimizer'])}; {name} is told with {shown_ones} alone"
    for key in kind.excludes:
        if training.get(key):
            yield f"training.{key}", f"cannot be used with method {name}"
    if kind.synchronous and schedule.get("name", "sync") != "sync":
        yield "schedule.name", f"is not for the method {name}, whose updates must not be older than a round"


def _memory_contradictions(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A codec that remembers and the method that does go together, and only where every update counts alike."""
    name = _table(document, "method").get("name")
    remembers = name == "ef21"
    stages = _table(document, "upload").get("codec")
    if stages is not None and codec(stages) is None and find_codec(stages).remembers != remembers:
        yield "upload.codec", f"is {shown(stages)}; a stage ef21 and the method ef21 need each other"
    members, waited = _table(document, "method").get("devices"), _table(document, "round").get("devices")
    if remembers and type(members) is int and type(waited) is int and waited > members:
        yield "round.devices", f"is {waited}, more than method.devices = {members}"
    if remembers and _table(document, "schedule").get("name", "sync") != "sync":
        yield "schedule.name", "is not for the method ef21, whose updates must count alike however old they are"
    if name == "scaffold" and stages is not None and codec(stages) is None and "momentum" in find_codec(stages).carries:
        yield "upload.codec", f"is {shown(stages)}; its momentum would multiply the method's control variates"
    if remembers and "boards" in _table(document, "training"):
        yield "training.boards", "are not for the method ef21: every device must train the same tensors"


def _model_contradictions(model: Mapping[str, Any], home: Path) -> Iterator[tuple[str, str]]:
    if ("onnx" in model) == ("zoo" in model):
        yield "model", "needs exactly one of onnx and zoo"
        return
    for key in ("input_shape", "classes"):
        if "zoo" in model and key not in model:
            yield f"model.{key}", "is missing; a zoo model needs it"
        if "onnx" in model and key in model:
            yield f"model.{key}", "belongs to a zoo model; an ONNX file says it itself"
    onnx = model.get("onnx")
    if isinstance(onnx, str) and onnx and not (home / onnx).is_file():
        yield "model.onnx", f"names no file: {home / onnx}"


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document.get(name)
    return table if isinstance(table, dict) else {}

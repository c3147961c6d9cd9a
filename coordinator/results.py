"""What comes out: the version that a round makes, and the files that a job leaves behind."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from coordinator.aggregators import Contribution
from coordinator.journal import write_file
from coordinator.program import Program, make_version
from coordinator.store import JournalUpdate, Store, Version
from coordinator.updates import read_update
from edge_runtime.codecs import find_codec
from edge_runtime.tensors import decode_tensors
from models.compiler import with_weights

MODEL_NAME = "final.onnx"
WEIGHTS_NAME = "final.safetensors"


def fold(program: Program, updates: Iterable[JournalUpdate], old: Version) -> Version:
    """Folds the journalled updates of the round that started from `old` into the next version.

    One at a time, in any order: it does not change the result.
    """
    method, plain = program.method, program.statistics
    mean = method.aggregate(_contributions(program, updates, old.version), plain)
    weights, state = method.server_step(decode_tensors(old.weights)[0], mean, decode_tensors(old.state)[0], plain)
    return make_version(old.version + 1, weights, state)


def _contributions(program: Program, updates: Iterable[JournalUpdate], number: int) -> Iterator[Contribution]:
    codec, stage = find_codec(program.upload.codec), program.stage(number)
    for update in updates:
        coded, metadata = read_update(update.data, codec, stage.for_device(update.device).layout)
        yield Contribution(update.device, update.examples, coded, int(metadata["steps"]))


def export(program: Program, store: Store, directory: Path) -> dict[str, Any]:
    """Writes the newest version as final.onnx and final.safetensors; equal weights give equal bytes.

    Returns:
        The job_done event.
    """
    version = store.latest()
    number, accuracy = store.last_accuracy() or (0, None)
    write_file(directory / WEIGHTS_NAME, version.weights)
    write_file(directory / MODEL_NAME, with_weights(program.model, decode_tensors(version.weights)[0]))
    return {
        "event": "job_done",
        "rounds": number,
        "accuracy": accuracy,
        "model_sha256": version.sha256,
        "model": str(directory / MODEL_NAME),
        "rss_peak_mb": peak_rss_mb(),
    }


def peak_rss_mb() -> float:
    """The largest resident set of this process so far, in MiB.

    Read from /proc, because getrusage's figure may be that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise OSError("/proc/self/status has no VmHWM line")

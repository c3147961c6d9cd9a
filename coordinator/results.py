"""What comes out: the version that a round makes, and the files that a job leaves behind."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from coordinator.aggregators import Contribution, Tensors
from coordinator.journal import write_file
from coordinator.program import Program, make_version
from coordinator.staleness import against_present, update_weight
from coordinator.store import JournalUpdate, Store, Version
from edge_runtime.codecs import find_codec
from edge_runtime.tensors import decode_tensors
from models.compiler import with_weights

MODEL_NAME = "final.onnx"
WEIGHTS_NAME = "final.safetensors"


def fold(
    program: Program, updates: Iterable[JournalUpdate], old: Version, weights_of: Callable[[int], bytes]
) -> Version:
    """Folds the journalled updates of a round into the version after `old`.

    Args:
        program: The job's.
        updates: As the journal gives them: in ascending order of (device, task), whatever order they arrived in, and
            one at a time.
        old: The version that the round has the number of.
        weights_of: The tensor file of a version from which an update's device trained.
    """
    method, plain = program.method, program.statistics
    present = decode_tensors(old.weights)[0]
    mean = method.aggregate(_contributions(program, updates, present, weights_of), plain)
    weights, state = method.server_step(present, mean, decode_tensors(old.state)[0], plain)
    return make_version(old.version + 1, weights, state)


def _contributions(
    program: Program, updates: Iterable[JournalUpdate], present: Tensors, weights_of: Callable[[int], bytes]
) -> Iterator[Contribution]:
    """The updates one at a time, each with what its staleness leaves it; coordinator.staleness has the formulas."""
    codec, rules = find_codec(program.upload.codec), program.job.schedule
    for update in updates:
        trained = program.stage(update.version).for_device(update.device).trained
        decoded, metadata = codec.decode(update.data, trained)
        tensors: Tensors = decoded
        staleness = update.round - update.version
        if staleness > 0:
            base = decode_tensors(weights_of(update.version))[0]
            tensors = against_present(rules, tensors, base, present, program.statistics)
        yield Contribution(
            device=update.device,
            examples=update.examples,
            tensors=tensors,
            steps=int(metadata["steps"]),
            task=update.task,
            scale=update_weight(rules, staleness),
        )


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

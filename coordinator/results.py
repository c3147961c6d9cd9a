"""What comes out: the version that a round makes, and the files that a job leaves behind."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from coordinator.aggregators import Contribution, Fold, FoldedTwice, Tensors
from coordinator.downlink import with_view
from coordinator.gathering import Gathered, contribution_of
from coordinator.journal import write_file
from coordinator.program import Program, make_version
from coordinator.staleness import against_present, as_models
from coordinator.store import JournalUpdate, Store, Version, digests_beside, updates_beside, weights_beside
from coordinator.updates import claims_of, read_update
from edge_runtime.codecs import find_codec
from edge_runtime.plan import CONTROL
from edge_runtime.tensors import decode_tensors, encode_tensors
from models.compiler import with_weights

MODEL_NAME = "final.onnx"
WEIGHTS_NAME = "final.safetensors"
GRAPH_NAME = "model.onnx"  # of the job, with its first weights


class Diverged(Exception):
    """A round cannot be folded, because the weights are beyond what can be added up."""


class ModelMissing(Exception):
    """The state directory has no model to put weights into."""


def fold(
    program: Program,
    updates: Iterable[JournalUpdate],
    old: Version,
    trained_from: Callable[[int], bytes],
    begun: Fold | None = None,
) -> Version:
    """Folds the journalled updates of a round into the version after `old`.

    Args:
        program: The job's.
        updates: One at a time, in any order: it does not change the result.
        old: The version that the round has the number of.
        trained_from: The tensor file that devices had of an older version.
        begun: What was folded of the round as it came; `updates` are the others.
    """
    method, plain = program.method, program.statistics
    present = decode_tensors(old.weights)[0]
    folding = begun or method.aggregate.begin(plain)
    for contribution in _contributions(program, updates, present, trained_from):
        try:
            folding.add(contribution)
        except FoldedTwice:
            raise
        except ValueError as error:
            # Every update was looked through when it came; against weights that have run away its sum may not fit.
            message = f"the update {contribution.task} cannot be folded into version {old.version}: {error}"
            raise Diverged(f"{message}; training has diverged, roll back and lower the learning rate") from error
    weights, state = method.server_step(present, folding.mean(), decode_tensors(old.state)[0], plain)
    return with_view(program, old, make_version(old.version + 1, weights, state))


def _contributions(
    program: Program, updates: Iterable[JournalUpdate], present: Tensors, trained_from: Callable[[int], bytes]
) -> Iterator[Contribution]:
    codec, rules = find_codec(program.upload.codec), program.job.schedule
    for update in updates:
        layout = program.stage(update.version).for_device(update.device).layout
        coded, metadata = read_update(update.data, codec, layout)
        each = contribution_of(program, update, claims_of(metadata, layout), coded)
        stale = update.round > update.version
        if stale and (models := as_models(rules, layout.shapes, program.statistics)):
            base = decode_tensors(trained_from(update.version))[0]
            delta = codec.decode(update.data, layout.shapes)[0]
            each = replace(each, tensors=against_present(delta, models, base, present))
        yield each


def fold_journalled(program: Program, directory: Path, old: Version, gathered: Gathered | None) -> Version:
    """Folds a round of the journal in a state directory, of which a part may have been folded as it came.

    Raises:
        JournalError: The journal cannot be read.
    """
    digests = digests_beside(directory, old.version)
    whole = gathered is not None and gathered.digests.items() <= digests.items()
    begun = gathered if whole else None
    known = begun.digests if begun else {}
    with closing(updates_beside(directory, old.version, [key for key in digests if key not in known])) as updates:
        base = partial(weights_beside, directory)
        return fold(program, updates, old, base, begun.fold if begun else None)


def keep_model(directory: Path, model: bytes) -> None:
    """Writes the job's model beside its journal, so that versions can be exported without the job file."""
    path = directory / GRAPH_NAME
    if not path.is_file() or path.read_bytes() != model:
        write_file(path, model)


def export(store: Store) -> dict[str, Any]:
    """Writes the newest version into the state directory as final.onnx and final.safetensors.

    Equal weights give equal bytes.

    Returns:
        The job_done event.

    Raises:
        ModelMissing: `keep_model` was never called for this state directory.
    """
    home = store.directory
    export_version(home, store.latest(), home / MODEL_NAME, home / WEIGHTS_NAME)
    return job_done(store)


def job_done(store: Store) -> dict[str, Any]:
    """The event that tells of a job's end and of what `export` has written."""
    number, accuracy = store.last_accuracy() or (0, None)
    return {
        "event": "job_done",
        "rounds": number,
        "accuracy": accuracy,
        "model_sha256": hashlib.sha256(weights_file(store.latest())).hexdigest(),
        "model": str(store.directory / MODEL_NAME),
        "rss_peak_mb": peak_rss_mb(),
    }


def export_version(state: Path, version: Version, model: Path, weights: Path) -> None:
    """Writes one version's weights, and the model of the state directory with them.

    Raises:
        ModelMissing: The state directory has no model.
        OSError: A file cannot be written.
    """
    try:
        graph = (state / GRAPH_NAME).read_bytes()
    except FileNotFoundError:
        raise ModelMissing(f"{state} has no {GRAPH_NAME}; start a coordinator on the job once, it writes it") from None
    data = weights_file(version)
    write_file(weights, data)
    write_file(model, with_weights(graph, decode_tensors(data)[0]))


def weights_file(version: Version) -> bytes:
    """The model's weights as a tensor file: a version without its control variates."""
    tensors = decode_tensors(version.weights)[0]
    of_model = {name: array for name, array in tensors.items() if not name.startswith(CONTROL)}
    return version.weights if len(of_model) == len(tensors) else encode_tensors(of_model)


def peak_rss_mb() -> float:
    """The largest resident set of this process so far, in MiB.

    Read from /proc, because getrusage's figure may be that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise OSError("/proc/self/status has no VmHWM line")

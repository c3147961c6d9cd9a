"""From a job to what travels: the compiled plan, the first weights, and the tasks of a round."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.evaluate import classes_of
from coordinator.jobfile import Job, OnnxFile
from coordinator.methods import METHODS, Method
from coordinator.store import Version
from edge_runtime.plan import ROLE_TRAINED, read_plan
from edge_runtime.rng import derive_seed
from edge_runtime.tensors import encode_tensors
from edge_runtime.wire.tasks import Phase, Task, Upload, format_task
from models.compiler import compile_training, import_onnx, weights_of
from models.zoo import MODELS


@dataclass(frozen=True)
class Program:
    """A job, compiled.

    Attributes:
        job: The job file.
        method: Its method.
        model: The ONNX file that weights are put into for evaluation and export.
        plan: The training plan, and its SHA-256 in `plan_sha256`.
        weights: The first weights, float32 by name.
        trained: Shapes of the tensors that a device sends back, by name.
        classes: Labels are 0 .. classes - 1.
    """

    job: Job
    method: Method
    model: bytes
    plan: bytes
    plan_sha256: str
    weights: Mapping[str, NDArray[np.float32]]
    trained: Mapping[str, tuple[int, ...]]
    classes: int


def build_program(job: Job) -> Program:
    """Compiles the job's model for training.

    Raises:
        models.compiler.ModelError: The model cannot be read or trained; names the node.
        coordinator.evaluate.EvaluationError: The model does not say how many classes it has.
        OSError: The model cannot be read.
    """
    model = _model(job)
    training = job.training
    compiled = compile_training(
        import_onnx(model, batch=training.batch),
        trainable=training.trainable,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
    )
    trained = read_plan(compiled.plan, expect_sha256=compiled.sha256).named(ROLE_TRAINED)
    return Program(
        job=job,
        method=METHODS[job.method].build(job.method_options),
        model=model,
        plan=compiled.plan,
        plan_sha256=compiled.sha256,
        weights=weights_of(model),
        trained={name: tensor.shape for name, tensor in trained.items()},
        classes=classes_of(model),
    )


def _model(job: Job) -> bytes:
    if isinstance(job.model, OnnxFile):
        return job.model.path.read_bytes()
    build = MODELS[job.model.name]
    return build(job.model.input_shape, job.model.classes, job.seed)


def definition(program: Program) -> dict[str, str]:
    """Everything that decides the job's result, flat, as the journal keeps it to notice a changed job file.

    Where the held-out data lie is no part of it: they may be moved.
    """
    job = program.job
    numbers = {
        "job.name": job.name,
        "job.seed": job.seed,
        "job.rounds": job.rounds,
        "job.target_accuracy": job.target_accuracy,
        "method.name": job.method,
        **{f"method.{key}": value for key, value in job.method_options.items()},
        **{f"training.{key}": value for key, value in asdict(job.training).items()},
        **{f"round.{key}": value for key, value in asdict(job.round).items()},
        "model": hashlib.sha256(program.model).hexdigest(),
        "plan": program.plan_sha256,
    }
    return {key: json.dumps(value) for key, value in numbers.items()}


def make_version(
    number: int, weights: Mapping[str, NDArray[np.float32]], state: Mapping[str, NDArray[np.float32]]
) -> Version:
    """A version as it is kept and sent: a tensor file without metadata, so equal weights give equal bytes."""
    data = encode_tensors(weights)
    return Version(number, hashlib.sha256(data).hexdigest(), data, encode_tensors(state))


def make_task(program: Program, version: Version, device: str, attempt: int) -> Task:
    """The task of one device in the round that starts from `version`.

    The seed depends on (job seed, round, device) only, so that every attempt trains on the same batches. A later
    attempt has a name of its own: a device repeats its answer, were it a failure, to a task it has answered.
    """
    job, method, number = program.job, program.method, version.version
    again = "" if attempt == 1 else f".{attempt}"
    return Task(
        task=f"{job.name}.{number}.{device}{again}",
        job=job.name,
        round=number,
        version=number,
        device=device,
        phases=tuple(
            Phase(
                plan=program.plan_sha256,
                epochs=job.training.epochs,
                scalars={scalar: float(getattr(job.training, key)) for scalar, key in phase.scalars.items()},
            )
            for phase in method.phases
        ),
        weights=version.sha256,
        blobs={version.sha256: len(version.weights), program.plan_sha256: len(program.plan)},
        classes=program.classes,
        seed=derive_seed("task", job.seed, number, device),
        upload=Upload(method.upload.form, method.upload.codec),
        deadline_s=job.round.deadline_s,
    )


__all__ = ["Program", "build_program", "definition", "format_task", "make_task", "make_version"]

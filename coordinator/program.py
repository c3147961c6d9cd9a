"""From a job to what travels: the compiled plan, the first weights, and the tasks of a round."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.evaluate import classes_of
from coordinator.jobfile import Job, OnnxFile, Training
from coordinator.methods import METHODS, Method
from coordinator.round_records import Rules
from coordinator.store import Version
from edge_runtime.plan import ROLE_TRAINED, read_plan
from edge_runtime.rng import derive_seed
from edge_runtime.tensors import encode_tensors
from edge_runtime.wire.tasks import Phase, Task, Upload
from models.compiler import Compiled, compile_training, import_onnx, weights_of
from models.zoo import MODELS

# What a phase's plan minimises, and the compiler's function for it.
OBJECTIVES: Mapping[str, Callable[..., Compiled]] = {"softmax_cross_entropy": compile_training}


@dataclass(frozen=True)
class PlanFile:
    """A compiled plan and its name on the wire."""

    sha256: str
    data: bytes


@dataclass(frozen=True)
class Program:
    """A job, compiled.

    Attributes:
        job: The job file.
        method: Its method.
        model: The ONNX file that weights are put into for evaluation and export.
        plans: The training plans, by the name the method gives them.
        weights: The first weights, float32 by name.
        trained: Shapes of the tensors that a device sends back, by name.
        classes: Labels are 0 .. classes - 1.
    """

    job: Job
    method: Method
    model: bytes
    plans: Mapping[str, PlanFile]
    weights: Mapping[str, NDArray[np.float32]]
    trained: Mapping[str, tuple[int, ...]]
    classes: int


def build_program(job: Job) -> Program:
    """Compiles the job's model for every phase of its method.

    Raises:
        models.compiler.CompileError: The model cannot be read or trained; names the node.
        models.zoo.ZooError: The zoo's model does not come in this shape.
        coordinator.evaluate.EvaluationError: The model does not say how many classes it has.
        OSError: The model cannot be read.
    """
    model = _model(job)
    method = METHODS[job.method].build(job.method_options)
    plans = {phase.plan: _compile(job.training, phase.objective, model) for phase in method.phases}
    return Program(
        job=job,
        method=method,
        model=model,
        plans=plans,
        weights=weights_of(model),
        trained={name: shape for plan in plans.values() for name, shape in _trained(plan).items()},
        classes=classes_of(model),
    )


def _compile(training: Training, objective: str, model: bytes) -> PlanFile:
    compiled = OBJECTIVES[objective](
        import_onnx(model, batch=training.batch),
        trainable=training.trainable,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
    )
    return PlanFile(compiled.sha256, compiled.plan)


def _trained(plan: PlanFile) -> dict[str, tuple[int, ...]]:
    tensors = read_plan(plan.data, expect_sha256=plan.sha256).named(ROLE_TRAINED)
    return {name: tensor.shape for name, tensor in tensors.items()}


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
        **{f"plan.{name}": plan.sha256 for name, plan in program.plans.items()},
    }
    return {key: json.dumps(value) for key, value in numbers.items()}


def rules_of(job: Job) -> Rules:
    """The numbers of the job file that the round machine needs."""
    return Rules(
        seed=job.seed,
        rounds=job.rounds,
        target_accuracy=job.target_accuracy,
        devices=job.round.devices,
        min_updates=job.round.min_updates,
        deadline_s=job.round.deadline_s,
        grace_s=job.round.grace_s,
        fraction=job.round.fraction,
    )


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
    plans = [program.plans[phase.plan] for phase in method.phases]
    again = "" if attempt == 1 else f".{attempt}"
    return Task(
        task=f"{job.name}.{number}.{device}{again}",
        job=job.name,
        round=number,
        version=number,
        device=device,
        phases=tuple(
            Phase(
                plan=program.plans[phase.plan].sha256,
                epochs=job.training.epochs,
                scalars={scalar: float(getattr(job.training, key)) for scalar, key in phase.scalars.items()},
            )
            for phase in method.phases
        ),
        weights=version.sha256,
        blobs={version.sha256: len(version.weights)} | {plan.sha256: len(plan.data) for plan in plans},
        classes=program.classes,
        seed=derive_seed("task", job.seed, number, device),
        upload=Upload(method.upload.form, method.upload.codec),
        deadline_s=job.round.deadline_s,
    )

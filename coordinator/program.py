"""From a job to what its rounds run: the compiled plans of every stage and board, and the first weights."""

import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.evaluate import classes_of
from coordinator.jobfile import Job, OnnxFile
from coordinator.methods import METHODS, Method
from coordinator.round_records import SYNCHRONOUS, Rules
from coordinator.store import Version
from coordinator.training_keys import Board, Stage, Training
from edge_runtime.codecs import find_codec
from edge_runtime.kernels import Layout
from edge_runtime.plan import AVERAGE, CONTROL, ROLE_FROZEN, ROLE_TRAINED, read_plan
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.wire.tasks import Upload
from models.compiler import CompileError, statistics_of, weights_of, with_weights
from models.compiler.budget import Budget, Found, Rate, compile_within
from models.compiler.prefix import Split, compile_split
from models.compiler.rules import AdamW, Rule, Sgd
from models.compiler.skip import without
from models.zoo import MODELS

# What a phase's plan minimises, and the compiler's function for it.
OBJECTIVES: Mapping[str, Callable[..., Split]] = {"softmax_cross_entropy": compile_split}
OBJECTIVES_WITHIN: Mapping[str, Callable[..., Found]] = {"softmax_cross_entropy": compile_within}
ANY_RATE = Rate(1e9, 1e9)  # a board's time is not limited: plans must not depend on the gateway's speed


@dataclass(frozen=True)
class PlanFile:
    """A compiled plan and its name on the wire."""

    sha256: str
    data: bytes


@dataclass(frozen=True)
class PhasePlans:
    """What one phase runs: its training plan, and that of the frozen layers below it if it has any."""

    training: PlanFile
    prefix: PlanFile | None

    @property
    def files(self) -> tuple[PlanFile, ...]:
        """Both."""
        return (self.training,) if self.prefix is None else (self.training, self.prefix)


@dataclass(frozen=True)
class StagePlans:
    """What the rounds of one stage run.

    Attributes:
        last_round: The stage's; the next one begins after it.
        model: The ONNX model without the blocks that the stage leaves out.
        tensors: The names of its tensors.
        lr: Learning rate.
        phases: The plans of each phase of the method, by the name the method gives them.
        trained: Shapes of the tensors that a device sends back, by name.
        personal: Names of those that it trains and keeps.
        boards: The same for devices with less memory, which train a part of it.
    """

    last_round: int
    model: bytes
    tensors: frozenset[str]
    lr: float
    phases: Mapping[str, PhasePlans]
    trained: Mapping[str, tuple[int, ...]]
    personal: tuple[str, ...] = ()
    boards: "tuple[tuple[Board, StagePlans], ...]" = ()

    @property
    def files(self) -> tuple[PlanFile, ...]:
        """All plans, those of boards too."""
        own = (file for plans in self.phases.values() for file in plans.files)
        return (*own, *(file for _, plans in self.boards for file in plans.files))

    @cached_property
    def layout(self) -> Layout:
        """How those tensors lie in an update."""
        return Layout(self.trained)

    def for_device(self, device: str) -> "StagePlans":
        """What one device runs: the plans of the first board it matches."""
        return next((plans for board, plans in self.boards if _is_of(device, board)), self._of_others)

    @cached_property
    def _of_others(self) -> "StagePlans":
        return replace(self, boards=())

    def named_files(self) -> Iterator[tuple[str, PlanFile]]:
        """Every plan with a name of its own."""
        for phase, plans in self.phases.items():
            yield from zip((phase, f"{phase}.prefix"), plans.files, strict=False)
        for number, (_, of_board) in enumerate(self.boards, 1):
            yield from ((f"board{number}.{name}", file) for name, file in of_board.named_files())


def _is_of(device: str, board: Board) -> bool:
    return any(fnmatchcase(device, pattern) for pattern in board.devices)


@dataclass(frozen=True)
class Program:
    """A job, compiled.

    Attributes:
        job: The job file.
        method: Its method.
        model: The ONNX file that weights are put into for evaluation and export.
        stages: In the order of rounds.
        weights: The first weights, float32 by name, and control variates if the method has them.
        classes: Labels are 0 .. classes - 1.
        statistics: Names of the model's running statistics.
    """

    job: Job
    method: Method
    model: bytes
    stages: tuple[StagePlans, ...]
    weights: Mapping[str, NDArray[np.float32]]
    classes: int
    statistics: frozenset[str]

    @property
    def upload(self) -> Upload:
        """What devices send back: the method's form through the job file's codec, or else the method's."""
        return Upload(self.method.upload.form, self.job.codec or self.method.upload.codec)

    @property
    def trained(self) -> Iterator[Mapping[str, tuple[int, ...]]]:
        """The tensors that come back, with their shapes, of every stage and board."""
        for stage in self.stages:
            yield stage.trained
            yield from (of_board.trained for _, of_board in stage.boards)

    @property
    def carries(self) -> bool:
        """Whether devices keep something from task to task that depends on which updates counted."""
        return self.method.control or bool(self.job.training.personal or find_codec(self.upload.codec).carries)

    @property
    def plans(self) -> dict[str, PlanFile]:
        """Every plan of the job; in a job of several stages their names begin with the stage's number."""
        return {
            (f"{number}." if len(self.stages) > 1 else "") + name: file
            for number, stage in enumerate(self.stages, 1)
            for name, file in stage.named_files()
        }

    def stage(self, number: int) -> StagePlans:
        """The stage of a round; rounds beyond the last stage are its."""
        return next((stage for stage in self.stages if number <= stage.last_round), self.stages[-1])

    def first_round(self, number: int) -> int:
        """The first round of a round's stage."""
        return 1 + max((stage.last_round for stage in self.stages[:-1] if stage.last_round < number), default=0)


def build_program(job: Job) -> Program:
    """Compiles the job's model for every stage and every phase of its method.

    Raises:
        models.compiler.CompileError: The model cannot be read or trained; names the node.
        models.zoo.ZooError: The zoo's model does not come in this shape.
        coordinator.evaluate.EvaluationError: The model does not say how many classes it has.
        OSError: The model cannot be read.
    """
    model = _model(job)
    method = METHODS[job.method].build(job.method_options, job.training)
    ends = accumulate(stage.rounds for stage in job.training.stages)
    stages = tuple(_stage(job, method, model, *each) for each in zip(job.training.stages, ends, strict=True))
    _check_personal(stages, job.training.personal)
    return Program(
        job=job,
        method=method,
        model=model,
        stages=stages,
        weights={**weights_of(model), **_controls(stages)},
        classes=classes_of(model),
        statistics=statistics_of(model),
    )


def _controls(stages: tuple[StagePlans, ...]) -> dict[str, NDArray[np.float32]]:
    """The first control variates of all stages: zeros."""
    trained = {name: shape for stage in stages for name, shape in stage.trained.items()}
    return {name: np.zeros(shape, np.float32) for name, shape in trained.items() if name.startswith(CONTROL)}


def judged_model(program: Program, version: Version) -> bytes:
    """A version as it is judged: without the blocks that the stage which made it leaves out."""
    stage = program.stage(version.version - 1)
    weights = decode_tensors(version.weights)[0]
    return with_weights(stage.model, {name: array for name, array in weights.items() if name in stage.tensors})


def _stage(job: Job, method: Method, whole: bytes, stage: Stage, last_round: int) -> StagePlans:
    model = without(whole, stage.skip)
    tensors = frozenset(weights_of(model))

    rule = replace(rule_of(job.training, method.proximal), control_variates=method.control)

    def plans(board: Board | None) -> StagePlans:
        phases = {
            phase.plan: _compile(job.training.batch, rule, stage, board, phase.objective, model)
            for phase in method.phases
        }
        trained = {name: shape for each in phases.values() for name, shape in _trained(each.training).items()}
        personal, sent = _divided(trained, job.training.personal)
        return StagePlans(last_round, model, tensors, stage.lr, phases, sent, personal)

    return replace(plans(None), boards=tuple((board, plans(board)) for board in job.training.boards))


def _divided(
    trained: Mapping[str, tuple[int, ...]], patterns: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """The names of what stays on a device, and the shapes of what it sends."""
    kept = sorted(name for name in trained if any(fnmatchcase(name, pattern) for pattern in patterns))
    sent = {name: shape for name, shape in trained.items() if name not in kept}
    if patterns and not sent:
        raise CompileError(f"training.personal matches all that is trained ({', '.join(kept)}): nothing would be sent")
    return tuple(kept), sent


def _check_personal(stages: tuple[StagePlans, ...], patterns: tuple[str, ...]) -> None:
    plans = [each for stage in stages for each in (stage, *(of_board for _, of_board in stage.boards))]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for each in plans for name in each.personal):
            trained = sorted({name for each in plans for name in each.trained})
            raise CompileError(
                f"training.personal has {pattern!r}, which matches nothing trained: {', '.join(trained)}"
            )


def _compile(  # noqa: PLR0913, PLR0917 what a plan is made of
    batch: int, rule: Rule, stage: Stage, board: Board | None, objective: str, model: bytes
) -> PhasePlans:
    if board is not None:
        return _compile_within(batch, rule, stage, board, objective, model)
    return _plans(OBJECTIVES[objective](model, batch=batch, trainable=stage.trainable, frozen=stage.frozen, rule=rule))


def _compile_within(  # noqa: PLR0913, PLR0917 what a plan is made of
    batch: int, rule: Rule, stage: Stage, board: Board, objective: str, model: bytes
) -> PhasePlans:
    """What fits a board: the search's plan, or one of the same tensors above a prefix, where both fit at once."""
    limit_bytes = board.memory_mb << 20
    found = OBJECTIVES_WITHIN[objective](
        model,
        batch,
        Budget(memory_bytes=limit_bytes, threads=board.threads),
        trainable=stage.trainable,
        frozen=stage.frozen,
        rule=rule,
        rate=ANY_RATE,
    )
    whole = found.chosen.compiled
    trained = {name for name in whole.report.trained if not name.startswith(AVERAGE)}
    if trained < weights_of(model).keys():
        split = OBJECTIVES[objective](model, batch=batch, trainable=sorted(map(glob.escape, trained)), rule=rule)
        both = [plan for plan in (split.training, split.prefix) if plan is not None]
        if len(both) == 2 and sum(plan.report.engine_bytes(board.threads) for plan in both) <= limit_bytes:
            return _plans(split)
    return PhasePlans(PlanFile(whole.sha256, whole.plan), None)


def _plans(split: Split) -> PhasePlans:
    prefix = None if split.prefix is None else PlanFile(split.prefix.sha256, split.prefix.plan)
    return PhasePlans(PlanFile(split.training.sha256, split.training.plan), prefix)


def rule_of(training: Training, proximal: float = 0.0) -> Rule:
    """The compiler's record of the section's optimiser, with the method's proximal weight on top of the section's."""
    proximal += training.proximal
    if training.optimizer == "adamw":
        beta1, beta2 = training.betas
        return AdamW(
            beta1=beta1,
            beta2=beta2,
            epsilon=training.epsilon,
            weight_decay=training.weight_decay,
            max_norm=training.max_norm,
            proximal=proximal,
            ema=training.ema,
        )
    return Sgd(
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
        max_norm=training.max_norm,
        proximal=proximal,
        ema=training.ema,
    )


def _trained(file: PlanFile) -> dict[str, tuple[int, ...]]:
    """Shapes of what a device sends back; moving averages go under the names of their tensors."""
    plan = read_plan(file.data, expect_sha256=file.sha256)
    trained = {name: tensor for name, tensor in plan.named(ROLE_TRAINED).items() if not name.startswith(AVERAGE)}
    controls = {name: tensor for name, tensor in plan.named(ROLE_FROZEN).items() if name.startswith(CONTROL)}
    return {name: tensor.shape for name, tensor in {**trained, **controls}.items()}


def _model(job: Job) -> bytes:
    if isinstance(job.model, OnnxFile):
        return job.model.path.read_bytes()
    build = MODELS[job.model.name]
    return build(job.model.input_shape, job.model.classes, job.seed)


# Keys of [round] that came later, with what they are without: so that journals from before are taken up.
NEW: Mapping[str, object] = {"over_select": 0.0, "select": "uniform", "scale_work": False}


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
        **{f"training.{key}": value for key, value in asdict(job.training).items() if key != "personal" or value},
        **{f"round.{key}": value for key, value in asdict(job.round).items() if key not in NEW or value != NEW[key]},
        "upload.codec": program.upload.codec,
        "model": hashlib.sha256(program.model).hexdigest(),
        **({"download.codec": job.download} if job.download else {}),
        **{f"plan.{name}": plan.sha256 for name, plan in program.plans.items()},
        # Only where there is one, so that journals from before are taken up.
        **({f"schedule.{key}": value for key, value in asdict(job.schedule).items()} if _has_schedule(job) else {}),
    }
    return {key: json.dumps(value) for key, value in numbers.items()}


def _has_schedule(job: Job) -> bool:
    return job.schedule != SYNCHRONOUS


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
        schedule=job.schedule,
        over_select=job.round.over_select,
        select=job.round.select,
        scale_work=job.round.scale_work,
    )


def make_version(number: int, weights: Mapping[str, NDArray[np.float32]], state: Mapping[str, NDArray[Any]]) -> Version:
    """A version as it is kept and sent: a tensor file without metadata, so equal weights give equal bytes."""
    data = encode_tensors(weights)
    return Version(number, hashlib.sha256(data).hexdigest(), data, encode_tensors(state))

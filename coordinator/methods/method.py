"""What a federated method is: a frozen record of plain functions and numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.aggregators import Aggregate
from coordinator.fields import Field
from coordinator.server_steps import ServerStep
from coordinator.training_keys import Training


@dataclass(frozen=True)
class PhaseSpec:
    """One use of a plan in a task.

    Attributes:
        plan: Which plan, by the name the method gives it ("train").
        objective: What the plan minimises, a row of coordinator.program.OBJECTIVES.
        scalars: Which hyper-parameters of the job's [training] section the task sets, by plan scalar.
    """

    plan: str
    objective: str
    scalars: Mapping[str, str]


@dataclass(frozen=True)
class Upload:
    """What a device sends back: `form` "delta" is trained minus received; `codec` is the pipeline's stages."""

    form: str
    codec: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """A federated method.

    Attributes:
        name: As in the job file.
        phases: What a device runs in one task, in order.
        upload: What it sends back.
        aggregate: The fold from many updates to one.
        server_step: The fold's result applied to the weights.
        members: How many devices may ever take part; None where that does not matter.
        proximal: Weight of the distance from what was received, beside the job file's.
        control: Whether gradients are corrected by control variates (edge_runtime/control.py).
    """

    name: str
    phases: tuple[PhaseSpec, ...]
    upload: Upload
    aggregate: Aggregate
    server_step: ServerStep
    proximal: float = 0.0
    control: bool = False
    members: int | None = None


@dataclass(frozen=True)
class MethodKind:
    """A row of the method table.

    Attributes:
        options: The keys that its [method] section takes.
        build: Makes a Method of them and of the [training] section.
        optimizers: Those of [training] that it can be told with.
        excludes: Keys of [training] that must not be set, but to what turns them off.
        synchronous: Whether it works in rounds alone, `schedule.name = "sync"`.
    """

    options: Mapping[str, Field]
    build: Callable[[Mapping[str, Any], Training], Method]
    optimizers: tuple[str, ...] = ("sgd", "adamw")
    excludes: tuple[str, ...] = ()
    synchronous: bool = False

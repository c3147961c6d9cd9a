"""What the round machine knows, takes and gives: the job's state, events and commands, all frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from coordinator.fleet import Fleet


class Phase(Enum):
    """Where the job is; see the module's table."""

    GATHERING = "gathering"
    COLLECTING = "collecting"
    JUDGING = "judging"
    DONE = "done"
    FAILED = "failed"


class Outcome(Enum):
    """What became of one member's task in the current round."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True)
class Rules:
    """The numbers of a job file that the machine needs, under their names there."""

    seed: int
    rounds: int
    target_accuracy: float | None
    devices: int
    min_updates: int
    deadline_s: float
    grace_s: float
    fraction: float


@dataclass(frozen=True)
class State:
    """Everything the machine knows.

    Attributes:
        rules: Of the job.
        phase: Where the job is.
        round: The round that is gathered for, collected or judged, from 1.
        attempt: How often this round has been started.
        fleet: The devices.
        cohort: The members of this round and what became of their tasks.
        since_s: When the phase began.
        paused: Whether no round is to be started.
    """

    rules: Rules
    phase: Phase
    round: int
    attempt: int
    fleet: Fleet
    cohort: Mapping[str, Outcome]
    since_s: float
    paused: bool = False


@dataclass(frozen=True)
class DeviceOnline:
    """A birth: the device is there, with so many examples."""

    device: str
    examples: int


@dataclass(frozen=True)
class DeviceRemembered:
    """The broker has kept a birth: the device is there and says so itself in a moment, or died with the broker."""

    device: str
    examples: int


@dataclass(frozen=True)
class DeviceLost:
    """A last will."""

    device: str


@dataclass(frozen=True)
class DeviceStopped:
    """A goodbye."""

    device: str


@dataclass(frozen=True)
class FleetUnknown:
    """The link was cut and is back: births will come again from those who are still there."""


@dataclass(frozen=True)
class UpdateJournalled:
    """The device's update for this round is on the disk."""

    device: str
    round: int


@dataclass(frozen=True)
class TaskFailed:
    """The device has not done its task; `unfit` when it never can, so that it takes no further part in the job."""

    device: str
    round: int
    reason: str
    unfit: bool


@dataclass(frozen=True)
class Paused:
    """The operator wants no further work to be handed out, or wants it again."""

    paused: bool


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Evaluated:
    """The version that this round made has been judged."""

    round: int
    accuracy: float


Event = (
    DeviceOnline
    | DeviceRemembered
    | DeviceLost
    | DeviceStopped
    | FleetUnknown
    | UpdateJournalled
    | TaskFailed
    | Tick
    | Paused
    | Evaluated
)


@dataclass(frozen=True)
class StartRound:
    """Write into the journal that the round starts (again), and the tasks of those who are asked now.

    SendTask commands for `asked` follow; the rest of the cohort was asked in an earlier attempt.
    """

    round: int
    attempt: int
    cohort: tuple[str, ...]
    asked: tuple[str, ...]


@dataclass(frozen=True)
class SendTask:
    """Ask the device for its update."""

    device: str
    round: int
    attempt: int


@dataclass(frozen=True)
class CloseRound:
    """Fold the accepted devices' updates into a new version, judge it, answer with Evaluated."""

    round: int
    cohort: tuple[str, ...]
    accepted: tuple[str, ...]


@dataclass(frozen=True)
class FinishJob:
    """The last version is the result."""

    reason: str


@dataclass(frozen=True)
class FailJob:
    """The job cannot go on."""

    reason: str


@dataclass(frozen=True)
class Warn:
    """Tell the operator."""

    message: str


Command = StartRound | SendTask | CloseRound | FinishJob | FailJob | Warn
Move = tuple[State, tuple[Command, ...]]


@dataclass(frozen=True)
class Journalled:
    """What the journal says of an unfinished job.

    Attributes:
        phase: GATHERING before round 1, COLLECTING in a round, JUDGING after its version was written.
        round: As in State.
        attempt: As in State.
        cohort: As in State.
        fleet: Every known device, as last seen.
        accuracy: What the evaluation of this round said, if it was written: the machine is to be told once more.
        paused: Whether an operator wants no further round.
    """

    phase: Phase
    round: int
    attempt: int
    cohort: Mapping[str, Outcome]
    fleet: Fleet
    accuracy: float | None = None
    paused: bool = False

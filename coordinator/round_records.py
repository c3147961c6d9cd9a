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
class ScheduleRules:
    """The [schedule] section of a job file.

    Attributes:
        name: "sync", "tiers", "fedasync" or "fedbuff".
        alpha: FedAsync's mixing weight of an update that is not stale.
        staleness: How the weight of an update falls with its staleness, a row of coordinator.staleness.
        a: Of "polynomial" and "hinge".
        b: Of "hinge": staleness up to it costs nothing.
        buffer: How many updates make a version.
        concurrency: How many devices are asked at one time; None for all.
        max_staleness: An update that is more versions behind is refused.
        evaluate_every: Every so many versions one is judged; the last one always.
        tiers: Into how many groups of like speed devices are put, of which a round asks one; None for no groups.
    """

    name: str = "sync"
    alpha: float = 1.0
    staleness: str = "constant"
    a: float = 0.5
    b: float = 4.0
    buffer: int = 1
    concurrency: int | None = None
    max_staleness: int = 0
    evaluate_every: int = 1
    tiers: int | None = None

    @property
    def asynchronous(self) -> bool:
        """Whether updates may start from older versions than the one they are folded into."""
        return self.name in {"fedasync", "fedbuff"}


SYNCHRONOUS = ScheduleRules()


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
    schedule: ScheduleRules = SYNCHRONOUS
    over_select: float = 0.0
    select: str = "uniform"
    scale_work: bool = False


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
        wanted: With how many updates the round closes early, if it does.
    """

    rules: Rules
    phase: Phase
    round: int
    attempt: int
    fleet: Fleet
    cohort: Mapping[str, Outcome]
    since_s: float
    paused: bool = False
    wanted: int | None = None


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
    """The device's update for a task of this round is on the disk, so many seconds after the task was sent."""

    device: str
    round: int
    seconds: float | None = None


@dataclass(frozen=True)
class TaskFailed:
    """The device has not done its task; `unfit` when it never can, so that it takes no further part in the job."""

    device: str
    round: int
    reason: str
    unfit: bool


@dataclass(frozen=True)
class TaskExpired:
    """The device's update came, too stale to count; its task is failed in the journal."""

    device: str


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


@dataclass(frozen=True)
class VersionMade:
    """The fold of a round that was closed is on the disk; round r makes version r + 1."""

    version: int


Event = (
    DeviceOnline
    | DeviceRemembered
    | DeviceLost
    | DeviceStopped
    | FleetUnknown
    | UpdateJournalled
    | TaskFailed
    | TaskExpired
    | Tick
    | Paused
    | Evaluated
    | VersionMade
)


@dataclass(frozen=True)
class StartRound:
    """Write into the journal that the round starts (again), and the tasks of those who are asked now.

    SendTask commands for `asked` follow; the rest of the cohort was asked in an earlier attempt.

    Attributes:
        round: Number.
        attempt: From 1.
        cohort: Everybody of the round.
        asked: Who is asked now.
        wanted: With how many updates the round closes early, if it does.
        shares: How much of the whole work each of `asked` is to do; empty for all of it.
    """

    round: int
    attempt: int
    cohort: tuple[str, ...]
    asked: tuple[str, ...]
    wanted: int | None = None
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class SendTask:
    """Ask the device for its update."""

    device: str
    round: int
    attempt: int


@dataclass(frozen=True)
class AskDevices:
    """Write tasks that start from this round's version into the journal and publish them.

    Each turn is a device's name and how many tasks it had before, which keeps its tasks' names apart.
    """

    round: int
    turns: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class WithdrawTask:
    """Take the device's task off the broker: an update for it could not count any more."""

    device: str


@dataclass(frozen=True)
class CloseRound:
    """Fold the round's updates into a new version and answer with VersionMade; judge it and answer with Evaluated.

    Attributes:
        round: Whose updates are folded.
        cohort: Whose tasks end with the round.
        accepted: Who of them has delivered.
        judged: Whether the version is judged.
    """

    round: int
    cohort: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    judged: bool = True


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


Command = StartRound | SendTask | AskDevices | WithdrawTask | CloseRound | FinishJob | FailJob | Warn
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
        wanted: With how many updates the round closes early, if it does.
        paused: Whether an operator wants no further round.
    """

    phase: Phase
    round: int
    attempt: int
    cohort: Mapping[str, Outcome]
    fleet: Fleet
    accuracy: float | None = None
    wanted: int | None = None
    paused: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why an update cannot count; the words for the device."""

    rule: str
    message: str


@dataclass(frozen=True)
class Standing:
    """What the journal says of an unfinished job with an asynchronous schedule.

    Attributes:
        newest: The newest version.
        accuracy: What the evaluation of the newest version said, if it was written.
        waiting: How many accepted updates every round has that is not folded yet.
        pending: The round that each open task started from, by device.
        fleet: Every known device, as last seen.
        paused: Whether an operator wants nobody to be asked.
    """

    newest: int
    accuracy: float | None
    waiting: Mapping[int, int]
    pending: Mapping[str, int]
    fleet: Fleet
    paused: bool = False

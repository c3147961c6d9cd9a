"""What the journal's rows are outside of it."""

from dataclasses import dataclass

from coordinator.views import View

# Why a task is failed whose update would come too late to count.
EXPIRED = "StaleUpdate: its version is too far behind"


@dataclass(frozen=True)
class Version:
    """Weights (a tensor file), the server step's state (a tensor file), and the number of the version.

    `view` is what devices hold of it; None for the weights themselves, to which no step leads.
    """

    version: int
    sha256: str
    weights: bytes
    state: bytes
    view: View | None = None

    @property
    def sent(self) -> View:
        """What devices hold of it."""
        return self.view or View(self.sha256, self.weights)


@dataclass(frozen=True)
class JournalTask:
    """What a device was asked: the task's id and its bytes on the wire."""

    device: str
    task: str
    data: bytes


@dataclass(frozen=True)
class JournalUpdate:
    """An accepted update as it came, and what its metadata said.

    Attributes:
        round: In which it counts.
        device: Whose it is; with `task` the update's key.
        task: What it answers.
        version: The version that its device trained from; that of the round but for asynchronous schedules.
        uid: Of the upload.
        sha256: Of the bytes.
        examples: As the device says.
        loss: As the device says.
        data: None once its round is folded.
    """

    round: int
    device: str
    task: str
    version: int
    uid: str
    sha256: str
    examples: int
    loss: float
    data: bytes


@dataclass(frozen=True)
class RoundFigures:
    """What is known of a round when it is folded; bytes and seconds as in coordinator.events."""

    devices: int
    cohort: int
    bytes_up: int
    bytes_down: int
    seconds: float

"""A job's figures as TensorBoard scalars, out of its journal."""

from contextlib import closing
from pathlib import Path

from tensorboardX import SummaryWriter

from coordinator.standing import rounds_after
from coordinator.store import Store

# Tag -> column of the view rounds_v1.
SCALARS = {
    "held_out/accuracy": "accuracy",
    "held_out/loss": "loss",
    "round/devices": "devices_accepted",
    "round/seconds": "seconds",
    "round/attempts": "attempts",
    "traffic/bytes_up": "bytes_up",
    "traffic/bytes_down": "bytes_down",
}
TRAINING_LOSS = "training/loss"


def write_scalars(store: Store, directory: Path) -> int:
    """Writes one event file with every evaluated round; the step is the round.

    The wall time of a point is the sum of the rounds' seconds so far: the journal keeps no clock, and TensorBoard's
    "relative" axis then shows what the job took without its pauses. The training loss is the mean over the accepted
    updates, weighted by examples.

    Args:
        store: An open journal.
        directory: Made if it is not there; TensorBoard shows all event files of a directory as one run.

    Returns:
        The number of rounds written.
    """
    query = "SELECT round, sum(loss * examples) / sum(examples) FROM updates GROUP BY round"
    training = dict(store.rows(query))
    rounds, elapsed_s = 0, 0.0
    with closing(SummaryWriter(str(directory))) as writer:
        for each in rounds_after(store, 0):
            rounds, elapsed_s = rounds + 1, elapsed_s + (each["seconds"] or 0.0)
            values = {tag: each[column] for tag, column in SCALARS.items()}
            values[TRAINING_LOSS] = training.get(each["round"])
            for tag, value in values.items():
                if value is not None:
                    writer.add_scalar(tag, value, each["round"], walltime=elapsed_s)
    return rounds

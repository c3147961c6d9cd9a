"""EF21: error feedback in which both ends remember what was said, and only differences travel.

P. Richtarik, I. Sokolov, I. Fatkhullin: EF21: A New, Simpler, Theoretically Better, and Practically Faster Error
Feedback, NeurIPS 2021; with partial participation as in I. Fatkhullin et al.: EF21 with Bells & Whistles, 2021 (arXiv
2110.03294). Device i sends `c_i = C(x_i - g_i)` and sets `g_i <- g_i + c_i`, where x_i is its update; the gateway sets
`g <- g + sum_i c_i / n` over those that sent one and `w <- w + server_lr g`. So g is the mean of all g_i without one of
them being on the gateway.

| tensor | down | up | stays on the device |
| --- | --- | --- | --- |
| trained | float32, all | the SHARE of trained - received - g_i that is largest | g_i, 4 bytes a value |
| g | nothing | nothing | nothing: the gateway keeps it, 4 bytes a value |
| running statistics | float32, all | trained - received, float32, all; averaged as in FedAvg | nothing |

That holds exactly, up to float32 rounding of g, while

- n is the number of all devices that ever take part: `devices` is fixed, and one more is refused (FleetFull);
- g_i has all that counted and nothing else: an update that did not count comes out again, and a device that has lost
  its memory fails its task (MemoryLost, edge_runtime/slots.py);
- g is never put back: a rollback is refused, and so is a schedule in which updates count less the older they are.

Devices weigh alike, whatever they have of examples, and one that stays away goes on pulling to where it was last.

Deviations from the paper: x_i is a round's update instead of a gradient; g_i begins at zero, so the first update is the
paper's g^0.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coordinator.aggregators import share_of
from coordinator.fields import Field, integer
from coordinator.methods.fedavg import SERVER_LR, fedavg
from coordinator.methods.method import Method, MethodKind, Upload
from coordinator.server_steps import add_remembered
from coordinator.training_keys import Training

CODEC = ("ef21 0.05", "fp16", "rice")


def ef21(devices: int, server_lr: float = 1.0) -> Method:
    """EF21 of a fleet of so many devices."""
    return replace(
        fedavg(),
        name="ef21",
        upload=Upload(form="delta", codec=CODEC),
        aggregate=share_of(devices),
        server_step=add_remembered(server_lr),
        members=devices,
    )


def _from_options(options: Mapping[str, Any], _training: Training) -> Method:
    return ef21(options["devices"], float(options["server_lr"]))


EF21 = MethodKind(options={"devices": Field(integer(1, 100_000)), "server_lr": SERVER_LR}, build=_from_options)

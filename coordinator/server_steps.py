"""What the gateway does with a folded update: `(weights, mean, state) -> (weights, state)`.

State is a mapping of tensors that the journal keeps beside the weights of each version; a step without memory has an
empty one.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregators import Mean, Tensors

State = Mapping[str, NDArray[np.float32]]
ServerStep = Callable[[Tensors, Mean, State], tuple[dict[str, NDArray[np.float32]], State]]


def add_mean(server_lr: float) -> ServerStep:
    """The step of FedAvg, `w <- w + server_lr * mean`, computed in float64 and rounded once to float32.

    A tensor that the mean does not hold stays as it is.

    Args:
        server_lr: Finite and above 0; 1 puts the weights at the average of the devices' weights.
    """

    def step(weights: Tensors, mean: Mean, state: State) -> tuple[dict[str, NDArray[np.float32]], State]:
        _check_fit(weights, mean)
        return {name: _moved(tensor, mean.get(name), server_lr) for name, tensor in weights.items()}, state

    return step


def _moved(tensor: NDArray[np.float32], mean: NDArray[np.float64] | None, server_lr: float) -> NDArray[np.float32]:
    if mean is None:
        return tensor
    return (tensor.astype(np.float64) + server_lr * mean).astype(np.float32)


def _check_fit(weights: Tensors, mean: Mean) -> None:
    for name, tensor in mean.items():
        if name not in weights:
            raise ValueError(f"the folded update holds {name!r}, which is no tensor of the model")
        if weights[name].shape != tensor.shape:
            raise ValueError(f"tensor {name!r} has shape {weights[name].shape}, its update {tensor.shape}")

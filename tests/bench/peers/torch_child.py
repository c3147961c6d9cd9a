"""torch, eager or compiled, one thread: `torch_child.py FOLDER NETWORK nchw|nhwc|compile LR MOMENTUM`."""

import sys
from pathlib import Path

import numpy as np
import torch
from channel import Channel
from torch.nn import functional

from support.networks import NETWORKS


def main() -> None:
    channel = Channel()
    folder, name, mode, lr, momentum = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = NETWORKS[name].build().train()
    with np.load(Path(folder) / "batch.npz") as arrays:
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"].astype(np.int64))
    if mode == "nhwc":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=float(lr), momentum=float(momentum))
    objective = torch.compile(lambda x, y: functional.cross_entropy(model(x), y)) if mode == "compile" else None
    last = [torch.zeros(())]

    def step() -> None:
        optimiser.zero_grad()
        last[0] = functional.cross_entropy(model(x), y) if objective is None else objective(x, y)
        last[0].backward()
        optimiser.step()

    step()  # what a compiled model costs to compile is no step
    channel.serve(torch.__version__, step, lambda: float(last[0].detach()))


if __name__ == "__main__":
    main()

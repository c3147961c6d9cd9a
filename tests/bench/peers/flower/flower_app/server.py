"""Federated averaging over all clients, and after every round the accuracy on held-out digits."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_app.net import Net

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds; a line of the log for each says when it ended and how good the model is."""
    clients = int(context.run_config["clients"])
    test = np.load(str(context.run_config["test"]))
    x, y = torch.from_numpy(test["x"]), torch.from_numpy(test["y"]).long()

    def judge(number: int, arrays: ArrayRecord) -> MetricRecord:
        net = Net()
        net.load_state_dict(arrays.to_torch_state_dict())
        with torch.no_grad():
            accuracy = float((net(x).argmax(1) == y).float().mean())
        with Path(str(context.run_config["log"])).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"round": number, "at_s": time.monotonic(), "accuracy": accuracy}) + "\n")
        return MetricRecord({"accuracy": accuracy})

    torch.manual_seed(1)
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    rounds = int(context.run_config["rounds"])
    strategy.start(grid=grid, initial_arrays=ArrayRecord(Net().state_dict()), num_rounds=rounds, evaluate_fn=judge)

"""One epoch of SGD over a client's own digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_app.net import Net

if TYPE_CHECKING:
    from flwr.app import Context

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that came, on the file of this node."""
    torch.set_num_threads(1)
    data = np.load(str(context.node_config["data"]))
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"]).long()
    batch = int(context.run_config["batch"])
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(
        net.parameters(), lr=float(context.run_config["lr"]), momentum=float(context.run_config["momentum"])
    )
    order = torch.randperm(len(y))
    for rows in order.split(batch):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    metrics = MetricRecord({"num-examples": len(y)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)

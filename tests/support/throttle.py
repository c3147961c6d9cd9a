"""A client whose tasks take a given time: `python -m support.throttle SECONDS client --config ...`.

Everything is the real client's; a task that is done sooner is kept back until its time is over. So a machine of two
processors has devices of exact speeds, as long as training itself takes less.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from coordinator.demo import fleet
from edge_runtime import trainer
from edge_runtime.cli import main
from support.data import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path


def start_throttled(name: str, root: Path, broker_url: str, site: str, seconds: float) -> fleet.Device:
    """As coordinator.demo.fleet.start_device; every task takes so many seconds."""
    folder = fleet.write_config(name, root, broker_url, site).parent
    arguments = [str(seconds), "client", "--config", str(folder / "client.toml")]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    with (folder / "client.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "support.throttle", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path},
        )
    return fleet.Device(name, folder, process)


def _throttle(seconds: float) -> None:
    """Makes the trainer's tasks take so long."""
    run_task = trainer.run_task

    def throttled(*args: Any, **options: Any) -> Any:
        until_s = time.monotonic() + seconds
        update = run_task(*args, **options)
        if time.monotonic() > until_s:
            sys.stderr.write(f"throttle: training took {time.monotonic() - until_s:.3f} s longer than {seconds} s\n")
        time.sleep(max(0.0, until_s - time.monotonic()))
        return update

    trainer.run_task = throttled


if __name__ == "__main__":
    _throttle(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))

"""The peer of row T30: a Flower deployment on this machine, a SuperLink and a SuperNode for every client.

python -m bench.peers.flower_run ROOT SHARD...   prints {"cpu_s", "wall_s", "round_s", "first_s", "accuracy"}

This process is the reaper of all that Flower starts, so that their processor time is counted when they have ended.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from coordinator.broker.mosquitto import free_port
from support.data import REPOSITORY

ENVIRONMENT = REPOSITORY / "build" / "peers" / "flower"
INSTALL = "make bench-peers"
HOST = "127.0.0.1"
START_S, JOB_S = 60.0, 900.0
PR_SET_CHILD_SUBREAPER = 36


def flower_job(root: Path, shards: list[Path], test: Path) -> dict[str, Any]:
    """Run it in a process of its own; {"cpu_s": None, "install": COMMAND} where Flower is not installed."""
    if not (ENVIRONMENT / "done").exists():
        return {"cpu_s": None, "install": INSTALL}
    root.mkdir(parents=True)
    command = [sys.executable, "-m", "bench.peers.flower_run", root, test, *shards]
    done = subprocess.run(command, cwd=REPOSITORY / "tests", check=True, stdout=subprocess.PIPE, timeout=JOB_S)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _run(root: Path, test: Path, shards: list[Path]) -> dict[str, Any]:
    port, log, began_s = free_port(HOST), root / "rounds.jsonl", time.monotonic()
    environment = {**os.environ, "FLWR_HOME": str(root), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{ENVIRONMENT / 'bin'}:{environment['PATH']}"
    (root / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{HOST}:{port}"\ninsecure = true\n'
    )
    link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(port)]
    running = [_start(link, root, environment)]
    _wait_for("Uvicorn running", root / "0.log")
    for number, shard in enumerate(shards, 1):
        node = ["flower-supernode", "--insecure", "--superlink", f"{HOST}:{port}", "--port", str(free_port(HOST))]
        running.append(_start([*node, "--node-config", f'data="{shard}"'], root, environment, number))
    config = f'clients={len(shards)} test="{test}" log="{log}"'
    run = ["flwr", "run", str(Path(__file__).with_name("flower")), "bench", "--stream", "--run-config", config]
    with (root / "run.log").open("wb") as out:
        subprocess.run(run, env=environment, stdout=out, stderr=out, check=True, timeout=JOB_S)
    ended_s = time.monotonic()
    for process in running:
        process.send_signal(signal.SIGTERM)
    _reap()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    rounds = [json.loads(line) for line in log.read_text().splitlines()]
    lengths = [after["at_s"] - before["at_s"] for before, after in itertools.pairwise(rounds)]
    return {
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "wall_s": round(ended_s - began_s, 2),
        "round_s": round(statistics.median(lengths), 3),
        "accuracy": rounds[-1]["accuracy"],
    }


def _start(command: list[str], root: Path, environment: dict[str, str], number: int = 0) -> subprocess.Popen[bytes]:
    with (root / f"{number}.log").open("wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out)


def _wait_for(text: str, log: Path) -> None:
    until_s = time.monotonic() + START_S
    while text not in log.read_text():
        if time.monotonic() > until_s:
            raise RuntimeError(f"no {text!r} in {log} after {START_S:g} s:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)  # another program's start, of which its log alone tells


def _reap() -> None:
    """Wait for every process that is left, of whatever generation."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    folder, held_out, *files = map(Path, sys.argv[1:])
    json.dump(_run(folder, held_out, files), sys.stdout)

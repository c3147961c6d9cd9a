"""The commands of docs/coordinator.md run, in their order, against a coordinator whose devices train."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from coordinator import command_lines, jobs_cli, requests
from coordinator.demo import fleet
from support.data import REPOSITORY
from support.fleet import SITE, Federation, digits_federation, write_job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = (REPOSITORY / "docs" / "coordinator.md").read_text(encoding="utf-8")
COMMANDS: list[str] = re.findall(r"^\$ (edge-runtime (?:job|device) .*)$", PAGE, re.MULTILINE)
FIRST_WITH_COORDINATOR = next(line for line in COMMANDS if " pause " in line)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    running = digits_federation(tmp_path, kind="mosquitto")
    yield running
    running.stop()


def run(line: str, federation: Federation) -> None:
    places = {"/var/lib/edge-runtime": "home", "/var/backups": "backups"}
    for path, here in places.items():
        line = line.replace(path, str(federation.root / here))
    words = [sys.executable, "-m", "edge_runtime", *shlex.split(line)[1:]]
    done = subprocess.run(words, cwd=federation.root, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def start_home(federation: Federation) -> None:
    (line,) = re.findall(r"^ExecStart=\S+/edge-runtime (coordinator .*)$", PAGE, re.MULTILINE)
    line = line.replace("/var/lib/edge-runtime", str(federation.root / "home")).replace(
        "mqtt://localhost:1883", federation.broker.url
    )
    words = [
        sys.executable,
        "-m",
        "edge_runtime",
        *line.replace("--metrics 9100", "--metrics 0").split(),
        "--site",
        SITE,
    ]
    federation.coordinator = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    federation.reader = fleet.EventReader(federation.coordinator)
    for name in federation.names:
        federation.start_device(name)


def test_the_pages_commands_run_in_their_order(federation: Federation) -> None:
    write_job(federation.root, name="digits", devices=4, rounds=100_000, epochs=10)
    with (federation.root / "job.toml").open("a") as file:
        file.write("[keep]\nversions = 1000\n")
    assert len(COMMANDS) == 15
    for line in COMMANDS:
        if line == FIRST_WITH_COORDINATOR:
            start_home(federation)
            federation.until(lambda e: e["event"] == "round_done" and e["round"] == 4, "some versions")
        run(line, federation)
    assert (federation.root / "exported" / "digits-3.onnx").is_file()
    assert (federation.root / "backups" / "digits" / "journal.sqlite").is_file()
    federation.until(lambda e: e["event"] == "listening" and e["job"] == "finer", "the clone's turn")


def test_every_verb_and_exit_code_is_on_the_page() -> None:
    rows = re.findall(r"^\| `(\w+)", PAGE, re.MULTILINE)
    assert requests.VERBS.keys() - {"rollback", "evict", "readmit"} <= set(rows)
    assert {"rollback", "evict", "readmit", "export", "clone", "backup"} <= set(rows)
    assert set(jobs_cli.VERBS) <= set(re.findall(r"edge-runtime job (\w+)", PAGE))
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert codes == {int(code) for code in re.findall(r"^  (\d+) ", command_lines.EXIT_CODES, re.MULTILINE)}


def test_the_unit_file_is_one() -> None:
    (text,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  keys keep their letters
    unit.read_string(text)
    assert unit["Service"]["ExecStart"].startswith("/opt/edge-runtime/bin/edge-runtime coordinator --home")
    assert unit["Service"]["RestartPreventExitStatus"] == str(command_lines.EXIT_BAD_INPUT)

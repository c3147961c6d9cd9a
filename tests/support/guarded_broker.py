"""Brokers with logins and the access list of docs/broker.md: every device under its own name, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coordinator.broker import find_mosquitto
from coordinator.broker.mosquitto import free_port, write_config
from coordinator.broker.passwords import hash_password
from coordinator.broker.probe import ProbeError, parse_url, probe
from support.data import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST = "127.0.0.1"
COORDINATOR = "coordinator"
START_S = 20.0


def documented_access_list() -> str:
    """The block of docs/broker.md that a reader copies."""
    blocks = (REPOSITORY / "docs" / "broker.md").read_text().split("```")
    (found,) = [block for block in blocks if "pattern read" in block]
    return found.strip() + "\n"


@contextmanager
def guarded_broker(directory: Path, users: list[str], kind: str = "mosquitto") -> Iterator[Callable[[str], str]]:
    """Run a broker of this kind ("mosquitto", "embedded"); yields a user's URL."""
    directory.mkdir(parents=True)
    port = free_port(HOST)
    command = _COMMANDS[kind](directory, [COORDINATOR, *users], port)
    with (directory / "broker.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait(f"mqtt://{COORDINATOR}:pw-{COORDINATOR}@{HOST}:{port}")
        yield lambda user: f"mqtt://{user}:pw-{user}@{HOST}:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _mosquitto(directory: Path, users: list[str], port: int) -> list[str]:
    passwords, access = directory / "passwords", directory / "access"
    passwords.touch(mode=0o600)
    for user in users:
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, f"pw-{user}"], check=True)  # noqa: S607
    access.write_text(documented_access_list())
    access.chmod(0o600)
    config = write_config(directory, HOST, port)
    text = config.read_text().replace("allow_anonymous true", "allow_anonymous false")
    config.write_text(f"{text}password_file {passwords}\nacl_file {access}\n")
    return [str(find_mosquitto()), "-c", str(config)]


def _embedded(directory: Path, users: list[str], port: int) -> list[str]:
    passwords, access = directory / "passwords", directory / "access"
    passwords.write_text("".join(hash_password(user, f"pw-{user}") + "\n" for user in users))
    access.write_text(documented_access_list())
    command = [sys.executable, "-m", "coordinator.broker.cli", "--bind", HOST, "--port", str(port)]
    return [*command, "--password-file", str(passwords), "--access-list", str(access)]


_COMMANDS = {"mosquitto": _mosquitto, "embedded": _embedded}


def _wait(url: str) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            probe(parse_url(url), START_S)
        except ProbeError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
        else:
            return

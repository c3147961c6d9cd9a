"""Choose a broker and run it as a child process: a URL, else mosquitto where installed, else the embedded one."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Literal, Self

from coordinator.broker import mosquitto
from coordinator.broker.probe import Address, ProbeError, parse_url, probe, reported_version, without_password

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["BrokerError", "RunningBroker", "start_broker"]

HOST = "127.0.0.1"
START_DEADLINE_S = 20.0  # a loaded board needs seconds to start an interpreter
STOP_DEADLINE_S = 10.0
URL_DEADLINE_S = 5.0
LOG_TAIL_CHARS = 2000

Kind = Literal["auto", "mosquitto", "embedded"]


class BrokerError(RuntimeError):
    """No broker can be had; the message says why and what to do."""


class RunningBroker:
    """A broker that answers MQTT, and the process it runs in where that process is ours.

    Attributes:
        url: ``mqtt://HOST:PORT``.
        kind: "external", "mosquitto" or "embedded".
        version: For people, such as "mosquitto 2.0.11".
        process: None when the broker is external.
        log: The file with the process's output, or None.
    """

    def __init__(
        self,
        url: str,
        kind: str,
        version: str,
        start: Callable[[int], tuple[subprocess.Popen[bytes], int]] | None = None,
        log: Path | None = None,
    ) -> None:
        self.url = url
        self.kind = kind
        self.version = version
        self.process: subprocess.Popen[bytes] | None = None
        self.log = log
        self._start = start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the process cleanly; an external broker is left alone."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        _close_pipes(self.process)

    def kill(self) -> None:
        """End the process with SIGKILL, as a power cut would.

        Raises:
            BrokerError: The broker is external.
        """
        process = self._ours("kill")
        process.kill()
        process.wait()
        _close_pipes(process)

    def restart(self) -> None:
        """Start the broker again on the same port with the same settings; one that still runs is stopped first.

        Raises:
            BrokerError: The broker is external, or does not come up.
        """
        if self._ours("restart").poll() is None:
            self.stop()
        assert self._start is not None, "a broker of ours was started by us"
        self.process, _ = self._start(parse_url(self.url).port)

    def _ours(self, verb: str) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise BrokerError(f"cannot {verb} the broker at {self.url}: it was not started here")
        return self.process


def start_broker(url: str | None, directory: Path, *, kind: Kind = "auto") -> RunningBroker:
    """Find or start a broker.

    Args:
        url: A broker that runs already; it is only checked. None starts one on a free loopback port.
        directory: For the configuration, state and log of a broker started here; made when missing.
        kind: "auto" takes mosquitto where it is installed and the embedded broker elsewhere.

    Returns:
        A broker that has answered an MQTT CONNECT.

    Raises:
        BrokerError: Nothing answers at the URL, mosquitto was asked for and is not installed, or the process fails.
        ValueError: The URL is not one of a broker.
    """
    if url is not None:
        return _external(url)
    directory.mkdir(parents=True, exist_ok=True)
    binary = None if kind == "embedded" else mosquitto.find_mosquitto()
    if kind == "mosquitto" and binary is None:
        raise BrokerError(
            "mosquitto is not installed (looked on PATH, in /usr/sbin and /usr/local/sbin); "
            "install it with 'apt install mosquitto', or use the embedded broker"
        )
    log = directory / "broker.log"
    if binary is None:
        return _started("embedded", "embedded 3.1.1", log, lambda port: _start_embedded(port, log))
    version = f"mosquitto {mosquitto.version(binary)}"
    return _started("mosquitto", version, log, lambda port: _start_mosquitto(binary, port, directory, log))


def _external(url: str) -> RunningBroker:
    address = parse_url(url)
    try:
        version = reported_version(address, URL_DEADLINE_S)
    except ProbeError as error:
        raise BrokerError(f"broker {without_password(url)}: {error}") from None
    return RunningBroker(url, "external", version or "unknown version")


def _started(
    kind: str, version: str, log: Path, start: Callable[[int], tuple[subprocess.Popen[bytes], int]]
) -> RunningBroker:
    process, port = start(0)
    broker = RunningBroker(f"mqtt://{HOST}:{port}", kind, version, start, log)
    broker.process = process
    return broker


def _start_embedded(port: int, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    command = [sys.executable, "-m", "coordinator.broker.cli", "--bind", HOST, "--port", str(port), "--stop-on-eof"]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out)
    assert process.stdout is not None, "asked for above"
    ready, _, _ = select.select([process.stdout], [], [], START_DEADLINE_S)
    line = process.stdout.readline().decode(errors="replace").strip() if ready else ""
    if not line.startswith("listening "):
        raise _failed(process, "the embedded broker", log)
    return process, parse_url(line.removeprefix("listening ")).port


def _start_mosquitto(binary: Path, port: int, directory: Path, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start mosquitto; it cannot pick a free port itself, so another process may take the one found before it."""
    for attempts_left in (2, 1, 0):
        chosen = port or mosquitto.free_port(HOST)
        command = [str(binary), "-c", str(mosquitto.write_config(directory, HOST, chosen))]
        with log.open("ab") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        if _answers(process, Address(HOST, chosen, None, None)):
            return process, chosen
        if process.poll() is None or port or not attempts_left:
            raise _failed(process, str(binary), log)
    raise AssertionError("unreachable")


def _answers(process: subprocess.Popen[bytes], address: Address) -> bool:
    """Wait until the process takes MQTT connections; False when it ends or the deadline passes first."""
    until_s = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < until_s:
        try:
            probe(address, 1.0)
        except ProbeError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
                return False
        else:
            return process.poll() is None  # else it was another broker on this port that answered
    return False


def _failed(process: subprocess.Popen[bytes], name: str, log: Path) -> BrokerError:
    # A process that is going down closes its output a moment before it can be waited for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    ended = process.poll()
    state = f"does not answer after {START_DEADLINE_S:g} s" if ended is None else f"ended with status {ended}"
    process.kill()
    process.wait()
    _close_pipes(process)
    tail = log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARS:].strip()
    return BrokerError(f"{name} {state}; its log ({log}) ends with:\n{tail or '(empty)'}")


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()

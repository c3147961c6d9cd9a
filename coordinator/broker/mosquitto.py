"""Find mosquitto and write its configuration."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from importlib import resources
from pathlib import Path

__all__ = ["find_mosquitto", "free_port", "shipped_config", "version", "write_config"]

# Debian puts it where an ordinary user's PATH does not look.
EXTRA_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin")


def find_mosquitto() -> Path | None:
    """Find the mosquitto binary on PATH, in /usr/sbin or /usr/local/sbin."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *EXTRA_DIRECTORIES))
    found = shutil.which("mosquitto", path=path)
    return None if found is None else Path(found)


def version(binary: Path) -> str:
    """Ask a mosquitto for its version, such as "2.0.11"; "(unknown version)" when it does not say."""
    # It prints its help and ends with a status other than 0.
    shown = subprocess.run([binary, "-h"], capture_output=True, text=True, timeout=10, check=False)
    found = re.search(r"mosquitto version (\S+)", shown.stdout + shown.stderr)
    return found[1] if found else "(unknown version)"


def shipped_config() -> str:
    """The settings for a production mosquitto: all but its listeners, which stand in it as comments."""
    return resources.files("coordinator.broker").joinpath("mosquitto.conf").read_text(encoding="utf-8")


def write_config(directory: Path, host: str, port: int) -> Path:
    """Write the shipped configuration with a loopback listener, no login, state and log where we want them.

    Returns:
        Path of the written file.
    """
    # Started as root, mosquitto becomes the user "mosquitto", who may not write here.
    user = "user root\n" if os.geteuid() == 0 else ""
    local = (
        f"listener {port} {host}\nallow_anonymous true\n{user}persistence_location {directory.resolve()}/\n"
        "log_dest stderr\nlog_type error\nlog_type warning\nlog_type notice\n"
    )
    path = directory / "mosquitto.conf"
    path.write_text(shipped_config() + "\n" + local, encoding="utf-8")
    return path


def free_port(host: str) -> int:
    """Find a TCP port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port

"""Find mosquitto and write its configuration."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from importlib import resources
from pathlib import Path
from string import Template

__all__ = ["find_mosquitto", "free_port", "version", "write_config"]

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


def write_config(directory: Path, host: str, port: int) -> Path:
    """Write a configuration from the one we ship: loopback, no login, state in ``directory``.

    Returns:
        Path of the written file.
    """
    template = resources.files("coordinator.broker").joinpath("mosquitto.conf").read_text(encoding="utf-8")
    text = Template(template).substitute(
        bind=host,
        port=port,
        directory=directory.resolve(),
        # Started as root, mosquitto becomes the user "mosquitto", who may not write here.
        user="user root" if os.geteuid() == 0 else "# user mosquitto",
    )
    path = directory / "mosquitto.conf"
    path.write_text(text, encoding="utf-8")
    return path


def free_port(host: str) -> int:
    """Find a TCP port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port

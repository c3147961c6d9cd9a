"""A virtual environment with the built wheel and the base dependencies only: what a board has."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.data import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class CleanEnvironment:
    """The interpreter of the environment, its folder and the wheel that was installed into it."""

    python: Path
    folder: Path
    wheel: Path

    @property
    def installed_mb(self) -> float:
        """Size of site-packages without pip and setuptools, which no board needs."""
        site = next((self.folder / "lib").glob("python*/site-packages"))
        kept = (
            p for p in site.iterdir() if not p.name.startswith(("pip", "setuptools", "_distutils", "pkg_resources"))
        )
        files = (f for top in kept for f in ([top] if top.is_file() else top.rglob("*")))
        return sum(f.stat().st_size for f in files if f.is_file()) / 1e6


def build_wheel(folder: Path) -> Path:
    """Build the distribution's wheel into `folder` with the build tools of this environment."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return next(folder.glob("edge_runtime-*.whl"))


def make(folder: Path) -> CleanEnvironment:
    """Build the wheel and install it, with numpy and paho-mqtt, into a new environment under `folder`.

    An environment made before from the same wheel is used again; older ones are removed.
    """
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(wheels)
    venv = folder / f"venv-{hashlib.sha256(wheel.read_bytes()).hexdigest()[:12]}"
    python = venv / "bin" / "python"
    if not (venv / "complete").exists():
        for old in folder.glob("venv-*"):
            shutil.rmtree(old)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", str(wheel)], check=True)
        (venv / "complete").touch()
    return CleanEnvironment(python, venv, wheel)

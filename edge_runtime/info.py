"""`edge-runtime info`: the machine, the versions, and the instruction sets the kernels can use here."""

import argparse
import importlib.metadata
import json
import platform
import sys
from typing import Any

from edge_runtime import _core
from edge_runtime.board import describe_board

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Print what is known of this machine; returns the exit code."""
    parser = argparse.ArgumentParser("edge-runtime info", description="Show this machine and what runs on it.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    as_json = parser.parse_args(argv).json
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "paho-mqtt")}
    core = _core.info()
    facts = {
        **describe_board(),
        "isa_available": core["available"],
        "compiler": core["compiler"],
        "python": platform.python_version(),
        **versions,
    }
    sys.stdout.write((json.dumps(facts) if as_json else _table(facts)) + "\n")
    return 0


def _table(facts: dict[str, Any]) -> str:
    rows = {name: ", ".join(value) if isinstance(value, list) else value for name, value in facts.items()}
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())

"""`edge-runtime bench NAME`: benches live beside the tests of a source tree, not in the installed package."""

import importlib
import sys
from pathlib import Path

__all__ = ["main"]

EXIT_BAD_INPUT = 2


def main(argv: list[str] | None = None) -> int:
    """Run one bench of the source tree this is called in, or is installed from.

    Args:
        argv: The bench's name and its arguments.

    Returns:
        The bench's exit code; 2 where there is no such bench.
    """
    words = sys.argv[1:] if argv is None else argv
    roots = [Path.cwd(), Path(__file__).resolve().parents[1]]
    tests = next((root / "tests" for root in roots if (root / "tests" / "bench").is_dir()), None)
    if tests is None:
        sys.stderr.write("edge-runtime bench runs in a source tree; clone the project and call it there\n")
        return EXIT_BAD_INPUT
    known = sorted(path.stem.removeprefix("bench_") for path in (tests / "bench").glob("bench_*.py"))
    if not words or words[0] not in known:
        asked = words[:1] in (["-h"], ["--help"])
        (sys.stdout if asked else sys.stderr).write(f"usage: edge-runtime bench {{{','.join(known)}}} ...\n")
        return 0 if asked else EXIT_BAD_INPUT
    for path in (str(tests.parent), str(tests)):
        if path not in sys.path:
            sys.path.insert(0, path)
    return int(importlib.import_module(f"bench.bench_{words[0]}").main(words[1:]))

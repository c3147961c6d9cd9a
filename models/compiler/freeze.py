"""Which parameters a step trains, by name patterns."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from models.compiler.errors import CompileError


def select(names: Sequence[str], trainable: Iterable[str], frozen: Iterable[str]) -> tuple[str, ...]:
    """The names to train, in their order: those a `trainable` pattern matches and no `frozen` pattern does.

    Patterns are shell patterns over whole names, upper and lower case distinct: `conv1.*`, `*.bias`.

    Raises:
        CompileError: a pattern matches no name, or no name is left.
    """
    wanted, held = _matched(names, "trainable", trainable), _matched(names, "frozen", frozen)
    chosen = tuple(n for n in names if n in wanted - held)
    if not chosen:
        raise CompileError(f"nothing is left to train; the model's tensors are: {', '.join(names) or 'none'}")
    return chosen


def _matched(names: Sequence[str], kind: str, patterns: Iterable[str]) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        hits = {n for n in names if fnmatchcase(n, pattern)}
        if not hits:
            raise CompileError(f"{kind} pattern {pattern!r} matches no tensor; there are: {', '.join(names) or 'none'}")
        matched |= hits
    return matched

"""What a key of the job file may hold: small checks that name the value, the rule and the bound."""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_runtime.codecs import DENSE, BadCodec, find_codec

Check = Callable[[Any], str | None]


@dataclass(frozen=True)
class Field:
    """One key: how it is judged, and what it is when it is left out.

    Attributes:
        check: Returns what is wrong with a value in words, or None.
        required: Whether leaving it out is a problem.
        default: The value of an optional key that is left out.
    """

    check: Check
    required: bool = True
    default: Any = None


def integer(low: int, high: int) -> Check:
    """A whole number in [low, high]; true and false are not numbers."""

    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return f"must be a whole number, not {shown(value)}"
        return None if low <= value <= high else f"must be between {low} and {high}, not {value}"

    return check


def number(low: float, high: float, *, above_low: bool = False, below_high: bool = False) -> Check:
    """A finite number between the bounds; `above_low` and `below_high` leave a bound itself out."""

    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"must be a number, not {shown(value)}"
        inside = (value > low if above_low else value >= low) and (value < high if below_high else value <= high)
        if math.isfinite(value) and inside:
            return None
        least = f"greater than {low:g}" if above_low else f"at least {low:g}"
        most = f"less than {high:g}" if below_high else f"at most {high:g}"
        return f"must be {least} and {most}, not {value}"

    return check


def boolean(value: Any) -> str | None:
    """`true` or `false`."""
    return None if isinstance(value, bool) else f"must be true or false, not {shown(value)}"


def text(pattern: str, meaning: str) -> Check:
    """A string that matches a pattern wholly; `meaning` says the pattern in words."""
    compiled = re.compile(pattern)

    def check(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"must be text, not {shown(value)}"
        return None if compiled.fullmatch(value) else f"must be {meaning}, not {shown(value)}"

    return check


def one_of(names: Iterable[str]) -> Check:
    """One of a few names; a near miss is answered with the name that was probably meant."""
    known = sorted(names)

    def check(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"must be text, not {shown(value)}"
        if value in known:
            return None
        return f"is {shown(value)}; known: {', '.join(known)}{did_you_mean(value, known)}"

    return check


def texts(value: Any) -> str | None:
    """A list of at least one non-empty string."""
    good = isinstance(value, list) and value and all(isinstance(part, str) and part for part in value)
    return None if good else f"must be a list of non-empty texts, not {shown(value)}"


def codec(value: Any) -> str | None:
    """The stages of a codec."""
    fault = texts(value)
    if fault is not None:
        return fault
    try:
        find_codec(value)
    except BadCodec as error:
        return f"cannot be built: {error}"
    return None


def download_codec(value: Any) -> str | None:
    """The stages of a codec that carries nothing over: what a download leaves out is in the next one anyway."""
    fault = codec(value)
    if fault is not None:
        return fault
    carried = find_codec(value).carries
    if carried:
        said = "a download does that by itself, so leave ef out, and use no dgc, powersgd or ef21"
        return f"carries {', '.join(carried)} over; {said}"
    return None if tuple(value) != DENSE.stages else 'must not be ["dense"]; without [download] all is sent as it is'


def numbers(count: int, each: Check) -> Check:
    """A list of exactly `count` numbers that pass a check."""

    def check(value: Any) -> str | None:
        if not isinstance(value, list) or len(value) != count:
            return f"must be a list of {count} numbers, not {shown(value)}"
        return next((f"[{i}] {fault}" for i, part in enumerate(value) if (fault := each(part)) is not None), None)

    return check


def tables(fields: Mapping[str, Field], most: int) -> Check:
    """A list of 1 to `most` tables, each with these keys; the first thing wrong is told."""

    def check(value: Any) -> str | None:
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            return f"must be a list of 1 to {most} tables, not {shown(value)}"
        return next(
            (f"[{i}] {fault}" for i, table in enumerate(value) if (fault := _table_fault(table)) is not None), None
        )

    def _table_fault(table: Any) -> str | None:
        if not isinstance(table, dict):
            return f"must be a table, not {shown(table)}"
        for key in table.keys() - fields.keys():
            return f"has a key {key} that is not one of {', '.join(fields)}{did_you_mean(key, fields)}"
        for key, field in fields.items():
            if key not in table and field.required:
                return f"lacks {key}"
            if key in table and (fault := field.check(table[key])) is not None:
                return f"{key} {fault}"
        return None

    return check


def shape(value: Any) -> str | None:
    """One to three axis lengths, each between 1 and 65536."""
    axis = integer(1, 65_536)
    good = isinstance(value, list) and 1 <= len(value) <= 3 and all(axis(part) is None for part in value)
    return None if good else f"must be a list of 1 to 3 whole numbers between 1 and 65536, not {shown(value)}"


def shown(value: Any) -> str:
    """A value as an error message prints it: its repr, cut at 60 characters."""
    whole = repr(value)
    return whole if len(whole) <= 60 else whole[:57] + "..."


def or_known(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` when a known name is near, else all that are known."""
    names = sorted(known)
    return did_you_mean(name, names) or f"; known: {', '.join(names)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` when a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def with_defaults(fields: Mapping[str, Field], table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with every optional key that it leaves out."""
    return {name: table.get(name, field.default) for name, field in fields.items()}

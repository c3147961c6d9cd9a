"""JSON from strangers: one object, no repeated keys, no NaN, no surprise exceptions."""

import json
from typing import Any, NoReturn

__all__ = ["dump_object", "load_object"]


def load_object(text: bytes) -> dict[str, Any]:
    """Parse UTF-8 bytes that must be one JSON object.

    Args:
        text: At most as many bytes as the caller's cap allows; this function has none of its own.

    Returns:
        The object. Its values are whatever JSON allows except NaN and infinities.

    Raises:
        ValueError: Not UTF-8, not JSON, not an object, a repeated key, a NaN or infinity, half of a surrogate pair, or
            nested too deep.
    """
    try:
        value = _DECODER.decode(text.decode("utf-8"))
        if b"\\ud" in text.lower():
            # A lone surrogate is legal JSON, but no file, log or data base can hold it: its encoding fails here.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__} where an object was expected")  # noqa: TRY004 one error type is the contract
    return value


def dump_object(value: dict[str, Any]) -> bytes:
    """Write an object so that equal objects give equal bytes: sorted keys, no spaces, ASCII, no NaN."""
    return _ENCODER.encode(value).encode("ascii")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Made once: json.loads and json.dumps make new ones for every call with options.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)

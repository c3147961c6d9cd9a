"""Fields of control messages: each getter checks one kind of value and names the field it refuses."""

import re
import zlib
from typing import Any

from edge_runtime.errors import RemoteError
from edge_runtime.strict_json import dump_object, load_object

__all__ = [
    "MAX_MESSAGE_BYTES",
    "VERSION",
    "BadChecksum",
    "BadField",
    "BadMessage",
    "FutureVersion",
    "MessageTooLarge",
    "MissingField",
    "digest",
    "identifier",
    "integer",
    "mapping",
    "number",
    "parse_object",
    "sequence",
    "text",
    "write_object",
]

VERSION = 1
MAX_MESSAGE_BYTES = 65_536

_DIGEST = re.compile(r"[0-9a-f]{64}")
# What a message ends with. One that has only the key or only the digits of a check sum was damaged just there.
_SEAL = re.compile(rb',"(?:crc":".{8}|...":"[0-9a-f]{8})"\}', re.DOTALL)
_SEAL_BYTES = len(b',"crc":"01234567"}')
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class MessageTooLarge(RemoteError):
    """A control message is longer than MAX_MESSAGE_BYTES."""


class BadMessage(RemoteError):
    """A control message is not the JSON object it must be."""


class BadChecksum(BadMessage):
    """A control message does not have the CRC-32 it ends with: it was damaged on its way."""


class MissingField(RemoteError):
    """A control message lacks a field."""


class BadField(RemoteError):
    """A field of a control message has the wrong type or a value out of range."""


class FutureVersion(RemoteError):
    """A control message of a later version of the protocol: to be ignored, not to be guessed at."""


def parse_object(payload: bytes) -> dict[str, Any]:
    """Parse a control message and check its version; unknown fields stay in, for the caller to ignore.

    A message without a check sum, of an older end or written by hand, is taken as it is.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"a control message of {len(payload)} bytes; the cap is {MAX_MESSAGE_BYTES}")
    _check_seal(payload)
    try:
        message = load_object(payload)
    except ValueError as error:
        raise BadMessage(f"a control message must be one JSON object: {error}") from None
    version = integer(message, "v", low=1)
    if version > VERSION:
        raise FutureVersion(f"a message of version {version}; this software knows version {VERSION}")
    return message


def write_object(fields: dict[str, Any]) -> bytes:
    """Write a control message of this version, without the fields that are None; equal messages give equal bytes."""
    present = {key: value for key, value in fields.items() if value is not None}
    payload = _sealed(dump_object({"v": VERSION, **present}))
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"a control message of {len(payload)} bytes; the cap is {MAX_MESSAGE_BYTES}")
    return payload


def _sealed(payload: bytes) -> bytes:
    """Put the field crc, the CRC-32 of all that stands before it, at the end."""
    return payload[:-1] + _seal(payload[:-1])


def _seal(payload: bytes) -> bytes:
    return b',"crc":"%08x"}' % zlib.crc32(payload)


def _check_seal(payload: bytes) -> None:
    seal = payload[-_SEAL_BYTES:]
    if _SEAL.fullmatch(seal) is None:
        return
    wanted = _seal(payload[:-_SEAL_BYTES])
    if seal != wanted:
        raise BadChecksum(f"a control message ends with {seal!a} instead of {wanted!a}: it was damaged")


def integer(message: dict[str, Any], key: str, *, low: int, high: int = (1 << 64) - 1) -> int:
    """Get an integer in low..high."""
    value = _get(message, key)
    if type(value) is not int or not low <= value <= high:
        raise BadField(f"{key} is {_shown(value)}; it must be an integer in {low} .. {high}")
    return value


def number(message: dict[str, Any], key: str, *, low: float, high: float) -> float:
    """Get a number in low..high, as a float; NaN is in no range."""
    value = _get(message, key)
    if not isinstance(value, int | float) or type(value) is bool or not low <= value <= high:
        raise BadField(f"{key} is {_shown(value)}; it must be a number in {low} .. {high}")
    return float(value)


def text(message: dict[str, Any], key: str, *, cap: int) -> str:
    """Get a string of 1..cap characters, all of them printable and in UTF-8."""
    value = _get(message, key)
    if type(value) is not str or not 1 <= len(value) <= cap or not value.isprintable():
        raise BadField(f"{key} is {_shown(value)}; it must be 1 to {cap} printable characters")
    return value


def digest(message: dict[str, Any], key: str) -> str:
    """Get a SHA-256 in hexadecimal."""
    value = _get(message, key)
    if type(value) is not str or _DIGEST.fullmatch(value) is None:
        raise BadField(f"{key} is {_shown(value)}; it must be the 64 hexadecimal digits of a SHA-256")
    return value


def identifier(message: dict[str, Any], key: str) -> str:
    """Get a device or site id."""
    value = _get(message, key)
    if type(value) is not str or _IDENTIFIER.fullmatch(value) is None:
        raise BadField(f"{key} is {_shown(value)}; an id matches [a-z0-9][a-z0-9-]{{0,63}}")
    return value


def mapping(message: dict[str, Any], key: str, *, cap: int) -> dict[str, Any]:
    """Get an object of at most cap fields."""
    value = _get(message, key)
    if not isinstance(value, dict) or len(value) > cap:
        raise BadField(f"{key} is {_shown(value)}; it must be an object of at most {cap} fields")
    return value


def sequence(message: dict[str, Any], key: str, *, cap: int) -> list[Any]:
    """Get a list of 1..cap items."""
    value = _get(message, key)
    if not isinstance(value, list) or not 1 <= len(value) <= cap:
        raise BadField(f"{key} is {_shown(value)}; it must be a list of 1 to {cap} items")
    return value


def _get(message: dict[str, Any], key: str) -> object:
    if key not in message:
        raise MissingField(f"the field {key} is missing")
    return message[key]


def _shown(value: object) -> str:
    # ascii(), because a refused string may hold lone surrogates, which no log or JSON text can carry.
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."

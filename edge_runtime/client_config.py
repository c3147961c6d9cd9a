"""The client's configuration: a TOML file, flags that override it, and every problem listed at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.broker_url import parse_url
from edge_runtime.errors import EdgeError, LocalError
from edge_runtime.wire.topics import check_id

__all__ = ["ClientConfig", "ConfigError", "read_config"]


class ConfigError(LocalError):
    """The configuration cannot be used; the message lists everything that is wrong with it."""


@dataclass(frozen=True)
class ClientConfig:
    """What one client needs to know.

    Attributes:
        broker: mqtt://[user:password@]host[:port].
        device: This device's id, its own on the site.
        data: Directory of the local examples.
        state: Directory for what must outlive the process; one client each.
        site: The site's id.
        threads: Threads of the engine.
        memory_limit_mb: Plans that need more are refused; None for no limit.
        cache_mb: Cap on the plans kept on disk.
        feature_cache_mb: Cap on the features of frozen layers that a job lets this device keep, on disk or in memory.
        keepalive_s: MQTT keepalive.
        log_json: One JSON object a line instead of readable text.
    """

    broker: str
    device: str
    data: Path
    state: Path
    site: str = "default"
    threads: int = 1
    memory_limit_mb: int | None = None
    cache_mb: int = 64
    feature_cache_mb: int = 256
    keepalive_s: int = 30
    log_json: bool = False


# Name -> (type, what it must be, lowest, highest); the limits are of numbers only.
_KEYS: dict[str, tuple[type, str, int, int]] = {
    "broker": (str, "a URL, mqtt://HOST[:PORT]", 0, 0),
    "device": (str, "an id of a-z, 0-9 and '-'", 0, 0),
    "data": (str, "a directory", 0, 0),
    "state": (str, "a directory", 0, 0),
    "site": (str, "an id of a-z, 0-9 and '-'", 0, 0),
    "threads": (int, "an integer in 1 .. 256", 1, 256),
    "memory_limit_mb": (int, "an integer in 1 .. 1048576", 1, 1 << 20),
    "cache_mb": (int, "an integer in 1 .. 1048576", 1, 1 << 20),
    "feature_cache_mb": (int, "an integer in 0 .. 1048576", 0, 1 << 20),
    "keepalive_s": (int, "an integer in 5 .. 3600", 5, 3600),
    "log_json": (bool, "true or false", 0, 0),
}
_REQUIRED = ("broker", "device", "data", "state")


def read_config(path: Path | None, flags: Mapping[str, Any]) -> ClientConfig:
    """Read the file, if any, and lay the flags over it.

    Args:
        path: A TOML file, or None; relative directories in it are relative to the file.
        flags: Values by key; None where a flag was not given.

    Returns:
        The configuration.

    Raises:
        ConfigError: Lists every problem: unknown keys with the nearest known one, wrong types and values, and what is
            missing.
    """
    values = {} if path is None else _read_file(path)
    given = {key: value for key, value in flags.items() if value is not None}
    merged = {**values, **given}
    problems = [problem for key, value in merged.items() for problem in _problems(key, value)]
    problems += [f"{key} is missing: {_KEYS[key][1]}" for key in _REQUIRED if key not in merged]
    if problems:
        source = "the command line" if path is None else str(path)
        raise ConfigError("\n  ".join([f"{len(problems)} problem(s) in {source}:", *problems]))
    for key in ("data", "state"):
        base = Path() if path is None or key in given else path.parent
        merged[key] = base / merged[key]
    return ClientConfig(**merged)


def _read_file(path: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 flags alone are enough

    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give --config FILE or the flags") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _problems(key: str, value: Any) -> list[str]:
    if key not in _KEYS:
        import difflib  # noqa: PLC0415 a board that is set up right never needs it

        near = difflib.get_close_matches(key, _KEYS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
        return [f"{key} is not a key; {hint}"]
    kind, wanted, low, high = _KEYS[key]
    if type(value) is not kind or value == "" or (type(value) is int and not low <= value <= high):
        return [f"{key} is {value!r}; it must be {wanted}"]
    return _text_problems(key, value) if isinstance(value, str) else []


def _text_problems(key: str, value: str) -> list[str]:
    try:
        if key in {"device", "site"}:
            check_id(value, key)
        if key == "broker":
            parse_url(value)
    except EdgeError as error:
        return [f"{key}: {error}"]
    return []

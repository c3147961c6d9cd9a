"""A job file's document as TOML: the other direction of `tomllib`, for what a job file can hold."""

import json
from collections.abc import Mapping
from typing import Any


def toml_text(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of keys as text; reading it gives an equal document.

    Args:
        document: {section: {key: value}}; keys are bare, values are text, numbers, truth values, lists and tables.
    """
    return "\n".join(_section(name, table) for name, table in document.items())


def _section(name: str, table: Mapping[str, Any]) -> str:
    return "".join([f"[{name}]\n", *(f"{key} = {_value(value)}\n" for key, value in table.items())])


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)} = {_value(item)}" for key, item in value.items()) + "}"
    return _text(value) if isinstance(value, str) else json.dumps(value, allow_nan=False)


def _text(value: str) -> str:
    # JSON's escapes are TOML's, but TOML wants this one escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

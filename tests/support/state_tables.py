"""State tables as Markdown, read from the machines' own tables and from what their handlers assign."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from enum import Enum
    from types import ModuleType


def state_table(machine: type, state: type[Enum], ends: Mapping[str, str] | None = None) -> str:
    """The `_table` of a class, {(state, input): handler}: a row for each state.

    A cell says what is done at each input, and to which states that may lead: those that the handler, or a method it
    calls, assigns, or that the call of a method in `ends`, {method: state}, stands for.
    """
    targets = _Targets(inspect.getmodule(machine), state, ends or {})
    rows: dict[str, list[str]] = {each.name: [] for each in state}
    table: Mapping[tuple[Enum, Enum], Callable[..., Any]] = machine._table  # type: ignore[attr-defined]
    for (at, happened), handler in table.items():
        rows[at.name].append(f"{happened.name}: {_does(handler, targets, at.name)}")
    lines = [f"| {at} | {'; '.join(each) or 'nothing'} |" for at, each in rows.items()]
    return "\n".join(["| state | input: what is done → where it may lead |", "| --- | --- |", *lines])


def phase_table(module: ModuleType, phase: type[Enum]) -> str:
    """The tables of a machine of functions: `_TAKE`, {event: handler}, and `_ADVANCE`, {phase: what it does itself}."""
    targets = _Targets(module, phase, {})
    acting = {at.name: each for at, each in module._ADVANCE.items() if targets.of(each.__name__)}
    lines = [f"| {at} | {_does(handler, targets, at)} |" for at, handler in acting.items()]
    events = [
        f"{event.__name__}: {_does(handler, targets, '')}"
        for event, handler in module._TAKE.items()
        if targets.of(handler.__name__)
    ]
    waiting = [at.name for at in module._ADVANCE if at.name not in acting]
    lines.append(f"| {', '.join(waiting)} | by an event only: {'; '.join(events)} |")
    return "\n".join(["| phase | what is done → where it may lead |", "| --- | --- |", *lines])


def _does(handler: Callable[..., Any], targets: _Targets, at: str) -> str:
    leads = [each for each in targets.of(handler.__name__) if each != at]
    return handler.__name__.strip("_").replace("_", " ") + (f" → {', '.join(leads)}" if leads else "")


class _Targets:
    """Which states the functions of a module assign, those they call included."""

    def __init__(self, module: ModuleType | None, states: type[Enum], ends: Mapping[str, str]) -> None:
        assert module is not None
        tree = ast.parse(inspect.getsource(module))
        self._states, self._ends = states, ends
        self._functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

    def of(self, name: str) -> list[str]:
        """Names of states, in the order of their enumeration."""
        reached = self._reached(name, set())
        return [each.name for each in self._states if each.name in reached]

    def _reached(self, name: str, seen: set[str]) -> set[str]:
        if name in seen or name not in self._functions:
            return set()
        seen.add(name)
        tested = {id(part) for node in self._nodes(name, ast.Compare) for part in ast.walk(node)}
        states = {
            node.attr
            for node in self._nodes(name, ast.Attribute)
            if isinstance(node.value, ast.Name) and node.value.id == self._states.__name__ and id(node) not in tested
        }
        for called in (node.func for node in self._nodes(name, ast.Call)):
            if isinstance(called, ast.Attribute) and getattr(called.value, "id", "") == "self":
                states |= self._reached(called.attr, seen)
                states |= {self._ends[called.attr]} if called.attr in self._ends else set()
            elif isinstance(called, ast.Name):
                states |= self._reached(called.id, seen)
        return states

    def _nodes(self, name: str, kind: type[Any]) -> list[Any]:
        return [node for node in ast.walk(self._functions[name]) if isinstance(node, kind)]

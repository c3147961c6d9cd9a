"""State tables as Markdown, read from the machines' own tables and from what their handlers assign."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
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


def event_table(module: ModuleType, phase: type[Enum], commands: Collection[type]) -> str:
    """The same machine event by event, then phase by phase: when nothing happens, what is done else, and commands.

    Events that one handler takes share a row, and those that change nothing by themselves are left out. Conditions are
    those under which a handler, or a function that it calls, gives the state back as it was.
    """
    targets = _Targets(module, phase, {})
    names = {each.__name__ for each in commands}
    rows: dict[Callable[..., Any], list[str]] = {}
    for happened, handler in (*module._TAKE.items(), *module._ADVANCE.items()):
        rows.setdefault(handler, []).append(getattr(happened, "name", None) or happened.__name__)
    lines = []
    for handler, triggers in rows.items():
        if targets.only_returns(handler.__name__):
            continue
        unless = "; ".join(targets.conditions_of(handler.__name__))
        told = ", ".join(sorted(targets.calls_of(handler.__name__) & names))
        lines.append(f"| {', '.join(triggers)} | {unless} | {_does(handler, targets, '')} | {told} |")
    head = "| event, or phase by itself | nothing where | else: what is done → where it may lead | commands |"
    return "\n".join([head, "| --- | --- | --- | --- |", *lines])


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

    def only_returns(self, name: str) -> bool:
        """Whether a function does nothing but give its state back."""
        body = [each for each in self._functions[name].body if not _is_text(each)]
        return len(body) == 1 and _is_unchanged(body[0])

    def conditions_of(self, name: str) -> list[str]:
        """When a function, or one it calls, gives its state back before it has done anything, as code."""
        return [
            ("" if function.name == name else f"{function.name.strip('_')}: ") + f"`{ast.unparse(each.test)}`"
            for function in self._called(name)
            for each in function.body
            if isinstance(each, ast.If) and _is_unchanged(each.body[0])
        ]

    def calls_of(self, name: str) -> set[str]:
        """What a function calls by name, and what those of this module that it calls do."""
        nodes = (node for function in self._called(name) for node in ast.walk(function))
        return {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}

    def _called(self, name: str) -> list[ast.FunctionDef]:
        """A function of this module and those of it that it calls, in the order of their calls."""
        found, left = dict[str, ast.FunctionDef](), [name]
        while left:
            at = left.pop(0)
            if at in self._functions and at not in found:
                found[at] = self._functions[at]
                calls = [node.func for node in ast.walk(found[at]) if isinstance(node, ast.Call)]
                left += [func.id for func in calls if isinstance(func, ast.Name)]
        return list(found.values())

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


def _is_unchanged(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Return) and ast.unparse(statement) == "return (state, ())"


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)

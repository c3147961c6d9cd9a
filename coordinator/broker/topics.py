"""Topic names and filters (MQTT 3.1.1 chapter 4.7): rules, who subscribes to what, and retained messages. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "MAX_LEVELS",
    "Message",
    "Retained",
    "Subscriptions",
    "check_filter",
    "check_topic",
    "matches",
    "overlap",
    "retained_charge",
]

# Bounds the depth of the trees below. The standard leaves it open; mosquitto has the same number.
MAX_LEVELS = 200
NODE_BYTES = 400  # of one level in a tree: node, dictionary, key; an upper estimate for CPython


class Message(NamedTuple):
    """An application message as the broker keeps it; one payload buffer is shared by all who receive it."""

    topic: str
    topic_utf8: bytes
    payload: bytes | memoryview
    qos: int


def retained_charge(message: Message) -> int:
    """Bytes that a retained message is counted as: its payload, its name, and a tree node a level."""
    return len(message.payload) + len(message.topic_utf8) + NODE_BYTES * (message.topic.count("/") + 1)


def check_topic(topic: str) -> None:
    """Check a topic name, as in PUBLISH.

    Raises:
        ValueError: It is empty, holds a wildcard, or has more than 200 levels.
    """
    if not topic or "+" in topic or "#" in topic:
        raise ValueError(f"{_short(topic)} is not a topic name: it must not be empty, nor hold '+' or '#'")
    _check_levels(topic)


def check_filter(name: str) -> None:
    """Check a topic filter, as in SUBSCRIBE.

    Raises:
        ValueError: It is empty, a wildcard shares its level with other characters, '#' is not last, or it has
            more than 200 levels.
    """
    if not name:
        raise ValueError("a topic filter must not be empty")
    _check_levels(name)
    if "+" not in name and "#" not in name:
        return
    levels = name.split("/")
    if any(len(level) > 1 and ("+" in level or "#" in level) for level in levels) or "#" in levels[:-1]:
        raise ValueError(f"{_short(name)}: '+' and '#' stand alone in their level, and '#' is the last one")


def matches(name: str, topic: str) -> bool:
    """Say whether a filter matches a topic name: the slow twin of the two trees below."""
    if topic.startswith("$") and name[0] in "+#":
        return False
    want, have = name.split("/"), topic.split("/")
    for i, level in enumerate(want):
        if level == "#":
            return True
        if i == len(have) or level not in {"+", have[i]}:
            return False
    return len(want) == len(have)


def overlap(one: str, other: str) -> bool:
    """Say whether a topic name can exist that both filters match."""
    if one.startswith("$") != other.startswith("$"):
        return False
    ours, theirs = one.split("/"), other.split("/")
    for a, b in zip(ours, theirs, strict=False):
        if "#" in {a, b}:
            return True
        if a != b and "+" not in {a, b}:
            return False
    longer = ours[len(theirs) :] or theirs[len(ours) :]
    return longer in ([], ["#"])


def _check_levels(text: str) -> None:
    if text.count("/") >= MAX_LEVELS:
        raise ValueError(f"{_short(text)} has {text.count('/') + 1} levels, at most {MAX_LEVELS} are accepted")


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")


@dataclass(slots=True, eq=False)
class _Node:
    """A level of the tree of wildcard filters; ``clients`` are those whose filter ends here, with their QoS."""

    children: dict[str, _Node] = field(default_factory=dict)
    clients: dict[str, int] = field(default_factory=dict)


class Subscriptions:
    """Who subscribes to what: a dictionary for exact filters, a tree for those with wildcards."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, int]] = {}
        self._root = _Node()

    def add(self, name: str, client_id: str, qos: int) -> None:
        """Add a subscription, or replace its QoS. ``name`` is a checked filter."""
        if "+" in name or "#" in name:
            node = self._root
            for level in name.split("/"):
                node = node.children.setdefault(level, _Node())
            node.clients[client_id] = qos
        else:
            self._exact.setdefault(name, {})[client_id] = qos

    def remove(self, name: str, client_id: str) -> None:
        """Remove a subscription; one that is not there is nothing to remove."""
        if "+" in name or "#" in name:
            self._remove_wild(name.split("/"), client_id)
            return
        clients = self._exact.get(name)
        if clients is not None:
            clients.pop(client_id, None)
            if not clients:
                del self._exact[name]

    def match(self, topic: str) -> Mapping[str, int]:
        """Find the subscribers of a topic name.

        Returns:
            Client id -> highest QoS among its matching filters, so that each gets the message once. A view: valid
            until the next change.
        """
        exact = self._exact.get(topic, {})
        if not self._root.children:
            return exact
        found = dict(exact)
        for node in self._matching(topic.split("/"), hidden=topic.startswith("$")):
            for client_id, qos in node.clients.items():
                found[client_id] = max(qos, found.get(client_id, 0))
        return found

    def _matching(self, levels: list[str], *, hidden: bool) -> Iterator[_Node]:
        """Walk the tree level by level; a leading wildcard does not match a '$' topic (MQTT-4.7.2-1)."""
        here = [self._root]
        for depth, level in enumerate(levels):
            names = (level,) if hidden and depth == 0 else (level, "+")
            if len(names) == 2:
                yield from (node.children["#"] for node in here if "#" in node.children)
            here = [node.children[name] for node in here for name in names if name in node.children]
        yield from here
        yield from (node.children["#"] for node in here if "#" in node.children)  # "a/#" matches "a"

    def _remove_wild(self, levels: list[str], client_id: str) -> None:
        path = [self._root]
        for level in levels:
            node = path[-1].children.get(level)
            if node is None:
                return
            path.append(node)
        path[-1].clients.pop(client_id, None)
        while levels and not path[-1].clients and not path[-1].children:
            path.pop()
            del path[-1].children[levels.pop()]


@dataclass(slots=True, eq=False)
class _Leaf:
    """A level of the tree of retained topics."""

    children: dict[str, _Leaf] = field(default_factory=dict)
    message: Message | None = None


class Retained:
    """Retained messages: a dictionary for exact look-up, a tree for filters with wildcards."""

    def __init__(self) -> None:
        self._by_topic: dict[str, Message] = {}
        self._root = _Leaf()
        self.charged_bytes = 0  # payloads, and what their places in the tree cost

    def __len__(self) -> int:
        return len(self._by_topic)

    def get(self, topic: str) -> Message | None:
        """The retained message of a topic."""
        return self._by_topic.get(topic)

    def set(self, message: Message) -> None:
        """Keep a message in place of the topic's last one; an empty payload clears the topic (MQTT-3.3.1-10)."""
        self._clear(message.topic)
        if not message.payload:
            return
        node = self._root
        for level in message.topic.split("/"):
            node = node.children.setdefault(level, _Leaf())
        node.message = self._by_topic[message.topic] = message
        self.charged_bytes += retained_charge(message)

    def match(self, name: str) -> list[Message]:
        """Find the retained messages that a checked filter matches."""
        if "+" not in name and "#" not in name:
            message = self._by_topic.get(name)
            return [] if message is None else [message]
        here = [self._root]
        for depth, level in enumerate(name.split("/")):
            if level == "#":
                return [leaf.message for leaf in _below(here, top=depth == 0) if leaf.message is not None]
            if level == "+":
                here = [leaf for node in here for leaf in _visible(node, top=depth == 0)]
            else:
                here = [node.children[level] for node in here if level in node.children]
        return [leaf.message for leaf in here if leaf.message is not None]

    def _clear(self, topic: str) -> None:
        old = self._by_topic.pop(topic, None)
        if old is None:
            return
        self.charged_bytes -= retained_charge(old)
        levels = topic.split("/")
        path = [self._root]
        for level in levels:
            path.append(path[-1].children[level])
        path[-1].message = None
        while levels and path[-1].message is None and not path[-1].children:
            path.pop()
            del path[-1].children[levels.pop()]


def _visible(node: _Leaf, *, top: bool) -> Iterator[_Leaf]:
    """Children that a wildcard sees: at the top not those that begin with '$'."""
    return (leaf for level, leaf in node.children.items() if not (top and level.startswith("$")))


def _below(nodes: list[_Leaf], *, top: bool) -> Iterator[_Leaf]:
    """The nodes ('a/#' matches 'a') and everything under them; iterative, since topics are up to 200 deep."""
    stack = [leaf for node in nodes for leaf in _visible(node, top=True)] if top else list(nodes)
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())

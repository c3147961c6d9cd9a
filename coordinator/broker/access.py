"""Who may publish and subscribe to what: an access list in mosquitto's format, of which it knows the part below.

    pattern [read|write|readwrite] FILTER    for every user; %u in it stands for the user's name
    user NAME                                the lines after it are this user's
    topic [read|write|readwrite] FILTER      (readwrite where nothing is said)

Empty lines and those that begin with # are skipped. What no line allows is forbidden. No I/O but the file's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from coordinator.broker.topics import check_filter, matches

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Access", "AccessList", "overreach", "read_access_list"]

KINDS = ("read", "write", "readwrite")


class _Line(NamedTuple):
    """One line: the user it is of (None: everybody), what it allows, and the filter as it is written."""

    user: str | None
    kind: str
    name: str


@dataclass(frozen=True)
class Access:
    """What one user may do.

    Attributes:
        user: The name that was logged in with, None without one.
        reads, writes: Filters.
    """

    user: str | None
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def may_publish(self, topic: str) -> bool:
        """Whether the user may publish to a topic."""
        return any(matches(name, topic) for name in self.writes)

    def may_subscribe(self, name: str) -> bool:
        """Whether the user may read every topic that a filter matches."""
        return any(_covers(allowed, name) for allowed in self.reads)


@dataclass(frozen=True)
class AccessList:
    """The lines of a file, in order."""

    lines: tuple[_Line, ...]

    def of(self, user: str | None) -> Access:
        """What a user may do. A name that would be more than one level of a topic has no part in patterns."""
        own = None if user is None or any(letter in user for letter in "/+#") else user
        found = [
            (line.kind, line.name if own is None else line.name.replace("%u", own))
            for line in self.lines
            if line.user == user or (line.user is None and (own is not None or "%u" not in line.name))
        ]
        reads, writes = (tuple(name for kind, name in found if kind in {one, "readwrite"}) for one in ("read", "write"))
        return Access(user, reads, writes)


def read_access_list(path: Path) -> AccessList:
    """Read an access list.

    Raises:
        ValueError: Names the file and the first line that is none of an access list.
        OSError: The file cannot be read.
    """
    lines: list[_Line] = []
    user: str | None = None
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        verb, _, rest = text.strip().partition(" ")
        if not verb or verb.startswith("#"):
            continue
        if verb == "user" and rest.strip():
            user = rest.strip()
            continue
        try:
            lines.append(_line(verb, rest.split(), user))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return AccessList(tuple(lines))


def overreach(access: Access | None, known: Access | None, will_topic: str | None) -> str | None:
    """Why a login is not its user's to make, if so.

    Args:
        access: Of the user who logs in; None where no access list holds, and all may be.
        known: Of the user whose session has the client id now, if there is one.
        will_topic: Of the will that comes with the login, if one does.
    """
    if access is None:
        return None
    if known is not None and known.user != access.user:
        return f"its id is in use by another user than {access.user!r}"
    if will_topic is not None and not access.may_publish(will_topic):
        return f"user {access.user!r} may not publish a will to {will_topic!r}"
    return None


def _line(verb: str, words: list[str], user: str | None) -> _Line:
    kind = words.pop(0) if len(words) == 2 and words[0] in KINDS else "readwrite"
    if verb not in {"topic", "pattern"} or len(words) != 1:
        raise ValueError(f"{verb!r} is not 'user NAME', or 'topic' or 'pattern' with [{'|'.join(KINDS)}] and a filter")
    if verb == "topic" and user is None:
        raise ValueError("a topic belongs to a user: write 'user NAME' in a line before it")
    if "%c" in words[0]:
        raise ValueError("%c, a client's own choice of its id, binds it to nothing; use %u")
    check_filter(words[0])
    return _Line(user if verb == "topic" else None, kind, words[0])


def _covers(wide: str, narrow: str) -> bool:
    """Whether every topic that the second filter matches is matched by the first."""
    if narrow.startswith("$") and wide[0] in "+#":
        return False
    # Every topic has a level, so "#" alone is "+/#"; further down "#" may also stand for no level at all.
    outer, inner = wide.split("/"), ["+", "#"] if narrow == "#" else narrow.split("/")
    for i, level in enumerate(outer):
        if level == "#":
            return True
        if i == len(inner) or inner[i] == "#" or level not in {"+", inner[i]}:
            return False
    return len(outer) == len(inner)

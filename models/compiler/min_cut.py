"""The cheapest set of vertices that separates sources from sinks (Ford and Fulkerson, 1956; flow by Dinic, 1970)."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from models.compiler.ir import Value

UNLIMITED = 1 << 62


class _Network:
    """Arcs of a flow network with what is left of their capacities; arc i and i ^ 1 are each other's reverse."""

    def __init__(self, vertices: int) -> None:
        self.leaving: list[list[int]] = [[] for _ in range(vertices)]
        self.head: list[int] = []
        self.left: list[int] = []

    def connect(self, tail: int, head: int, capacity: int) -> None:
        for start, end, room in ((tail, head, capacity), (head, tail, 0)):
            self.leaving[start].append(len(self.head))
            self.head.append(end)
            self.left.append(room)

    def saturate(self, source: int, sink: int) -> None:
        """Push as much as possible from source to sink."""
        while (levels := self._levels(source))[sink] >= 0:
            untried = [0] * len(levels)
            while path := self._path(source, sink, levels, untried):
                room = min(self.left[arc] for arc in path)
                for arc in path:
                    self.left[arc] -= room
                    self.left[arc ^ 1] += room

    def _levels(self, source: int) -> list[int]:
        """Distance of each vertex from the source over arcs with room, -1 where there is no way."""
        levels = [-1] * len(self.leaving)
        levels[source] = 0
        queue = deque([source])
        while queue:
            at = queue.popleft()
            for arc in self.leaving[at]:
                if self.left[arc] and levels[self.head[arc]] < 0:
                    levels[self.head[arc]] = levels[at] + 1
                    queue.append(self.head[arc])
        return levels

    def _path(self, source: int, sink: int, levels: Sequence[int], untried: list[int]) -> list[int]:
        """A shortest way with room, as arcs; empty when there is none left. Dead ends are never tried twice."""
        path: list[int] = []
        at = source
        while at != sink:
            arcs = self.leaving[at]
            while untried[at] < len(arcs):
                arc = arcs[untried[at]]
                if self.left[arc] and levels[self.head[arc]] == levels[at] + 1:
                    break
                untried[at] += 1
            else:
                if not path:
                    return []
                at = self.head[path.pop() ^ 1]
                untried[at] += 1
                continue
            path.append(arc)
            at = self.head[arc]
        return path

    def reaching(self, sink: int) -> set[int]:
        """The vertices from which the sink can be reached over arcs with room."""
        found, stack = {sink}, [sink]
        while stack:
            for arc in self.leaving[stack.pop()]:
                if self.left[arc ^ 1] and self.head[arc] not in found:
                    found.add(self.head[arc])
                    stack.append(self.head[arc])
        return found


def cheapest_cut(
    costs: Mapping[Value, int], arcs: Iterable[tuple[Value, Value]], sources: Iterable[Value], sinks: Iterable[Value]
) -> set[Value]:
    """The vertices of least total cost such that every way from a source to a sink passes one of them.

    Of several such sets the one nearest to the sinks. Sources and sinks may be in it themselves.

    Args:
        costs: of every vertex, not negative.
        arcs: from vertex to vertex.
        sources: where ways begin.
        sinks: where ways end.
    """
    entry = {v: 2 * i for i, v in enumerate(costs)}  # a vertex is an arc from its entry to its exit, entry + 1
    source, sink = 2 * len(entry), 2 * len(entry) + 1
    network = _Network(sink + 1)
    for v, cost in costs.items():
        network.connect(entry[v], entry[v] + 1, cost)
    for a, b in arcs:
        network.connect(entry[a] + 1, entry[b], UNLIMITED)
    for v in sources:
        network.connect(source, entry[v], UNLIMITED)
    for v in sinks:
        network.connect(entry[v] + 1, sink, UNLIMITED)
    network.saturate(source, sink)
    behind = network.reaching(sink)
    return {v for v, i in entry.items() if i + 1 in behind and i not in behind}

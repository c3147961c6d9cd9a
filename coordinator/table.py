"""A mapping that is never changed, of which a copy with one entry more costs little however large it is.

The machines' states are values; `{**fleet, name: device}` makes one in time proportional to the fleet, so that a
thousand births cost a million steps and ten thousand a hundred million. A table is cut into buckets by the hash of the
key: a copy shares all buckets but one.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

V = TypeVar("V")

BUCKETS = 256


class Table(Mapping[str, V]):
    """Keys are strings; the order of iteration is none."""

    __slots__ = ("_buckets", "_size")

    def __init__(self, entries: Mapping[str, V]) -> None:
        buckets: list[dict[str, V]] = [{} for _ in range(BUCKETS)]
        for key, value in entries.items():
            buckets[hash(key) % BUCKETS][key] = value
        self._buckets = buckets
        self._size = len(entries)

    def __getitem__(self, key: str) -> V:
        return self._buckets[hash(key) % BUCKETS][key]

    def __iter__(self) -> Iterator[str]:
        for bucket in self._buckets:
            yield from bucket

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"Table({dict(self)!r})"

    def put(self, key: str, value: V) -> "Table[V]":
        """A table with this value at the key."""
        number = hash(key) % BUCKETS
        bucket = {**self._buckets[number], key: value}
        return self._with(number, bucket)

    def without(self, key: str) -> "Table[V]":
        """A table without the key, which must be there."""
        number = hash(key) % BUCKETS
        bucket = self._buckets[number].copy()
        del bucket[key]
        return self._with(number, bucket)

    def _with(self, number: int, bucket: dict[str, V]) -> "Table[V]":
        made: Table[V] = Table.__new__(Table)
        made._buckets = self._buckets.copy()
        made._size = self._size + len(bucket) - len(self._buckets[number])
        made._buckets[number] = bucket
        return made


def put(entries: Mapping[str, V], key: str, value: V) -> Table[V]:
    """What `entries` holds, with this value at the key; they are not changed."""
    table = entries if isinstance(entries, Table) else Table(entries)
    return table.put(key, value)


def without(entries: Mapping[str, V], key: str) -> Table[V]:
    """What `entries` holds but for the key, which must be there; they are not changed."""
    table = entries if isinstance(entries, Table) else Table(entries)
    return table.without(key)

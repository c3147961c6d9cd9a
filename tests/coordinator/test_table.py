"""A table is a mapping of which copies are cheap and nothing is ever changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.table import Table, put, without

KEYS = st.text("abc", max_size=3)


@given(st.dictionaries(KEYS, st.integers()), st.lists(st.tuples(KEYS, st.none() | st.integers())))
def test_a_table_does_what_a_dictionary_does_and_its_copies_change_nothing(
    entries: dict[str, int], changes: list[tuple[str, int | None]]
) -> None:
    table: Table[int] = Table(entries)
    for key, value in changes:
        before, kept = table, dict(entries)
        if value is not None:
            table, entries = put(table, key, value), {**entries, key: value}
        elif key in entries:
            table, entries = without(table, key), {k: v for k, v in entries.items() if k != key}
        assert before == kept
        assert table == entries
        assert dict(table) == entries
        assert len(table) == len(entries)
        assert all(table[each] == entries[each] and each in table for each in entries)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(KeyError):
        Table({"a": 1})["b"]
    with pytest.raises(KeyError):
        without({"a": 1}, "b")
    assert put({}, "a", 1).get("b") is None


def test_a_copy_shares_all_but_one_bucket() -> None:
    table = Table({f"dev-{i}": i for i in range(10_000)})
    after = table.put("dev-0", -1)
    shared = sum(a is b for a, b in zip(table._buckets, after._buckets, strict=True))
    assert shared == len(table._buckets) - 1

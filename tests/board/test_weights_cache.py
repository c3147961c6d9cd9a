"""Weights on disk: chunks find their places across restarts, damage is noticed, and a disk that fails costs no task."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime import blob_file
from edge_runtime.tensors import encode_tensors
from edge_runtime.weights_cache import WeightsCache
from edge_runtime.wire.chunks import CHUNK_BYTES, Assembler, chunk_count, cut_chunk

CAP = 1 << 30


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def some_bytes(size: int, seed: str = "") -> bytes:
    return hashlib.shake_128(f"{seed}{size}".encode()).digest(size)


def make_cache(tmp_path: Path, told: list[str] | None = None) -> WeightsCache:
    return WeightsCache(tmp_path / "weights", (told if told is not None else []).append)


def assembler(cache: WeightsCache, data: bytes) -> Assembler:
    return Assembler(sha256(data), len(data), CAP, cache.open_sink(sha256(data), len(data)))


def fill(into: Assembler, data: bytes, indexes: range | list[int]) -> None:
    for index in indexes:
        into.add(index, cut_chunk(data, index))


@pytest.mark.parametrize("size", [CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 9 * CHUNK_BYTES - 5])
def test_a_blob_in_chunks_of_any_order_is_mapped_as_it_was_sent(tmp_path: Path, size: int) -> None:
    data, cache = some_bytes(size), make_cache(tmp_path)
    gathered = assembler(cache, data)
    indexes = list(range(chunk_count(size)))
    random.Random(size).shuffle(indexes)  # noqa: S311 an order, not a secret
    fill(gathered, data, indexes)
    assert gathered.complete
    assert gathered.take() is None
    assert cache.read(sha256(data)) == data
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [sha256(data)]


def test_what_fits_one_chunk_is_not_put_on_disk(tmp_path: Path) -> None:
    assert make_cache(tmp_path).open_sink("0" * 64, CHUNK_BYTES) is None
    assert not (tmp_path / "weights").exists()


def test_a_restart_asks_for_the_chunks_that_are_not_there(tmp_path: Path) -> None:
    data = some_bytes(40 * CHUNK_BYTES + 7)
    fill(assembler(make_cache(tmp_path), data), data, [0, 3, 17, 40])
    again = assembler(make_cache(tmp_path), data)
    assert again.missing(100) == [i for i in range(41) if i not in {0, 3, 17, 40}]
    fill(again, data, again.missing(100))
    assert again.take() is None
    assert make_cache(tmp_path).read(sha256(data)) == data


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_a_power_cut_leaves_the_chunks_taken_up_are_right(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.mktemp("cut")
    data = some_bytes(draw.draw(st.integers(CHUNK_BYTES + 1, 6 * CHUNK_BYTES)))
    chunks = chunk_count(len(data))
    there = draw.draw(st.sets(st.integers(0, chunks - 1)))
    fill(assembler(make_cache(tmp_path), data), data, sorted(there))
    (path,) = (tmp_path / "weights").iterdir()
    torn = bytearray(path.read_bytes())
    for at in draw.draw(st.lists(st.integers(0, len(torn) - 1), max_size=3)):
        torn[at] ^= 1 << draw.draw(st.integers(0, 7))
    path.write_bytes(bytes(torn)[: draw.draw(st.sampled_from([len(torn), len(torn) // 2]))])
    again = assembler(make_cache(tmp_path), data)
    missing = again.missing(chunks)
    for index in set(range(chunks)) - set(missing):
        piece = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        held = path.read_bytes()[index * CHUNK_BYTES :][: len(piece)]
        assert held == piece
    fill(again, data, missing)
    if not again.whole():
        fill(again, data, range(chunks))
        assert again.whole()
    assert again.release() is None
    assert make_cache(tmp_path).read(sha256(data)) == data


def test_chunks_that_give_other_bytes_are_all_asked_for_again(tmp_path: Path) -> None:
    data, other = some_bytes(3 * CHUNK_BYTES), some_bytes(3 * CHUNK_BYTES, "other")
    gathered = assembler(make_cache(tmp_path), data)
    fill(gathered, other, range(3))
    assert not gathered.whole()
    assert assembler(make_cache(tmp_path), data).missing(9) == [0, 1, 2]
    assert gathered.missing(9) == [0, 1, 2]


def test_what_is_left_of_another_blob_makes_way(tmp_path: Path) -> None:
    first, second = some_bytes(2 * CHUNK_BYTES, "a"), some_bytes(2 * CHUNK_BYTES, "b")
    cache = make_cache(tmp_path)
    fill(assembler(cache, first), first, [0])
    assembler(cache, second)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [sha256(second) + ".part"]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_sinks_that_are_given_up_leave_no_open_files(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    before = open_files()
    for seed in "abcdef":
        assembler(cache, some_bytes(2 * CHUNK_BYTES, seed))
    assert open_files() <= before + 1


@pytest.mark.parametrize("call", ["pwrite", "pread", "posix_fallocate", "ftruncate", "fsync"])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_disk_that_fails_is_told_of_and_memory_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    told: list[str] = []
    data, cache, calls = some_bytes(5 * CHUNK_BYTES - 1), make_cache(tmp_path, told), 0
    real = getattr(os, call)

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(blob_file.os, call, failing)
    for _ in range(2):  # what cannot be finished is asked for once more
        gathered = assembler(cache, data)
        while not gathered.complete or not gathered.whole():
            fill(gathered, data, gathered.missing(9))
        found = gathered.release()
        found = found if found is not None else cache.read(sha256(data))
        if found is not None:
            break
    monkeypatch.undo()
    assert found == data
    assert bool(told) == (calls > after)
    assert all("No space left" in message for message in told)


def test_a_state_directory_that_cannot_be_written_means_memory(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "weights").write_text("a file in the directory's place")
    cache = make_cache(tmp_path, told)
    data = some_bytes(2 * CHUNK_BYTES)
    gathered = assembler(cache, data)
    fill(gathered, data, range(2))
    assert gathered.take() == data
    assert len(told) == 1


def test_a_damaged_file_counts_as_absent_and_is_removed(tmp_path: Path) -> None:
    data = encode_tensors({"a": np.arange(5, dtype=np.float32)})
    make_cache(tmp_path).keep(sha256(data), [data])
    path = tmp_path / "weights" / sha256(data)
    path.write_bytes(data[:-1] + b"?")
    cache = make_cache(tmp_path)
    assert cache.has(sha256(data))
    assert cache.read(sha256(data)) is None
    assert not cache.has(sha256(data))
    path.write_bytes(b"")
    assert make_cache(tmp_path).read(sha256(data)) is None


def test_a_damaged_file_that_cannot_be_removed_is_never_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that the kernel has made read-only: the weights come whole into memory, task after task."""
    data = some_bytes(2 * CHUNK_BYTES)
    make_cache(tmp_path).keep(sha256(data), [data])
    (tmp_path / "weights" / sha256(data)).write_bytes(data[:-1] + b"?")
    cache = make_cache(tmp_path)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    monkeypatch.setattr(blob_file.os, "ftruncate", read_only)
    for _ in range(2):
        assert cache.read(sha256(data)) is None
        gathered = assembler(cache, data)
        fill(gathered, data, range(2))
        assert gathered.take() == data


def test_only_the_names_that_are_needed_stay(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    for data in (b"one", b"two", b"three"):
        cache.keep(sha256(data), [data])
    assembler(cache, some_bytes(2 * CHUNK_BYTES))
    cache.retain({sha256(b"two")})
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [sha256(b"two")]
    make_cache(tmp_path / "nowhere").retain(set())


def test_gathering_takes_no_memory_for_the_blob(tmp_path: Path) -> None:
    chunks = 200
    pieces = {index: some_bytes(CHUNK_BYTES, f"{index}") for index in range(4)}
    digest = hashlib.sha256()
    for index in range(chunks):
        digest.update(pieces[index % 4])
    cache = make_cache(tmp_path)
    payloads = {index: zlib.crc32(piece).to_bytes(4, "little") + piece for index, piece in pieces.items()}
    tracemalloc.start()
    try:
        name = digest.hexdigest()
        size = chunks * CHUNK_BYTES
        gathered = Assembler(name, size, CAP, cache.open_sink(name, size))
        for index in range(chunks):
            gathered.add(index, payloads[index % 4])
        assert gathered.take() is None
        assert tracemalloc.get_traced_memory()[1] <= 2 * CHUNK_BYTES
    finally:
        tracemalloc.stop()
    assert (tmp_path / "weights" / name).stat().st_size == size

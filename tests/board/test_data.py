"""Local data: what is read, what is refused in which words, and the order of examples."""

import contextlib
import gzip
import hashlib
import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.data import (
    DataError,
    Dataset,
    NoExamples,
    ShapeMismatch,
    batch_indices,
    fill_batch,
    load_dataset,
    read_labelled,
)
from edge_runtime.rng import derive_seed, hash64
from support.data import require

MASK = (1 << 64) - 1


def mixed(word: int) -> int:
    """SplitMix64's finaliser in Python's own integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def slow_hash(seed: int, *counters: int) -> int:
    golden = 0x9E3779B97F4A7C15
    word = mixed((seed + golden) & MASK)
    for counter in counters:
        word = mixed(((word ^ counter) + golden) & MASK)
    return word


@given(st.integers(0, MASK), st.lists(st.integers(0, MASK), max_size=3))
def test_the_hash_is_the_one_written_down(seed: int, counters: list[int]) -> None:
    assert int(hash64(seed, *counters)) == slow_hash(seed, *counters)


def test_the_hash_starts_like_splitmix64_published_stream() -> None:
    # The first output of the reference generator seeded with 0 (Vigna's splitmix64.c).
    assert int(hash64(0)) == 0xE220A8397B1DCDAF


def test_the_hash_of_many_counters_is_that_of_each() -> None:
    many = hash64(5, 2, np.arange(1000, dtype=np.uint64))
    assert many.shape == (1000,)
    assert [int(one) for one in many[:50]] == [slow_hash(5, 2, i) for i in range(50)]
    assert len(np.unique(many)) == 1000


def test_a_seed_out_of_range_is_refused() -> None:
    for seed in (-1, 1 << 64):
        with pytest.raises(ValueError, match="2\\*\\*64"):
            hash64(seed)


def test_named_streams_differ_and_stay() -> None:
    digest = hashlib.sha256((3).to_bytes(8, "little") + b"job" + (1).to_bytes(8, "little") + b"1").digest()
    assert derive_seed("job", 1) == int.from_bytes(digest[:8], "big") >> 1
    assert len({derive_seed("a", "bc"), derive_seed("ab", "c"), derive_seed("abc"), derive_seed("a", "b", "c")}) == 4


@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, MASK), st.integers(0, 9))
def test_an_epoch_visits_every_example_once(n: int, batch: int, seed: int, epoch: int) -> None:
    batches = batch_indices(n, batch, seed, epoch)
    assert [len(rows) for rows in batches[:-1]] == [batch] * (len(batches) - 1)
    assert sorted(row for rows in batches for row in rows) == list(range(n))
    ranks = [slow_hash(seed, epoch, int(row)) for rows in batches for row in rows]
    assert ranks == sorted(ranks)


def test_epochs_and_seeds_give_other_orders() -> None:
    orders = [np.concatenate(batch_indices(50, 7, seed, epoch)).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_batch_holds_its_rows_and_then_padding(dtype: type) -> None:
    x = np.arange(5 * 4).reshape(5, 2, 2).astype(dtype)
    dataset = Dataset(x, np.arange(5, dtype=np.int32))
    x_view, y_view = np.full((4, 1, 2, 2), 7, np.float32), np.full(4, 7, np.int32)
    fill_batch(dataset, np.array([3, 0]), x_view, y_view)
    scale = np.float32(255) if dtype is np.uint8 else np.float32(1)
    assert np.array_equal(x_view[:2, 0], x[[3, 0]].astype(np.float32) / scale)
    assert not x_view[2:].any()
    assert y_view.tolist() == [3, 0, -1, -1]


@pytest.mark.parametrize(("row", "want", "fits"), [
    ((28, 28), (1, 28, 28), True),
    ((1, 28, 28), (28, 28), True),
    ((784,), (1, 28, 28), True),
    ((28, 28), (784,), True),
    ((9, 128), (9, 1, 128), True),
    ((32, 32, 3), (3, 32, 32), False),
    ((28, 28), (1, 14, 56), False),
    ((783,), (784,), False),
    ((), (1,), True),
])  # fmt: skip
def test_rows_fit_when_nothing_would_be_scrambled(row: tuple[int, ...], want: tuple[int, ...], *, fits: bool) -> None:
    dataset = Dataset(np.zeros((2, *row), np.uint8), np.zeros(2, np.int32))
    x_view, y_view = np.zeros((2, *want), np.float32), np.zeros(2, np.int32)
    if fits:
        fill_batch(dataset, np.array([0, 1]), x_view, y_view)
    else:
        with pytest.raises(ShapeMismatch, match="channels first"):
            fill_batch(dataset, np.array([0, 1]), x_view, y_view)


def save(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "train.npz", **arrays)  # type: ignore[arg-type]
    return folder


X, Y = np.zeros((3, 2), np.float32), np.arange(3)


@pytest.mark.parametrize(
    ("arrays", "rule", "said"),
    [
        ({"x": X}, DataError, "no array named y"),
        ({"x": X.astype(np.float64), "y": Y}, DataError, "astype"),
        ({"x": X, "y": Y.astype(np.float32)}, DataError, "integers"),
        ({"x": X, "y": Y[:, None]}, DataError, "shape"),
        ({"x": X[:2], "y": Y}, DataError, "3 labels"),
        ({"x": X, "y": Y - 1}, DataError, "-1"),
        ({"x": X, "y": Y + (1 << 31)}, DataError, "2147483650"),
        ({"x": X + np.array([[0, 0], [0, np.nan], [0, 0]], np.float32), "y": Y}, DataError, "row 1"),
        ({"x": X[:0], "y": Y[:0]}, NoExamples, "no examples"),
        ({"x": X, "y": Y, "client": Y[:2]}, DataError, "client"),
        ({"x": np.array([None, 1, 2]), "y": Y}, DataError, "Python objects"),
    ],
)
def test_data_that_cannot_be_used_say_what_to_change(
    tmp_path: Path, arrays: dict[str, object], rule: type[DataError], said: str
) -> None:
    with pytest.raises(rule, match=said):
        load_dataset(save(tmp_path, **arrays))


def test_a_directory_that_is_missing_empty_or_damaged_says_what_belongs_there(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match=r"train\.npz"):
            load_dataset(folder)
    with pytest.raises(DataError, match=r"holds test\.npz .* idx files t10k-images"):
        load_dataset(tmp_path, "test")
    (tmp_path / "train.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path)


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 28, 28), }"


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def npz(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_unpacked_size(archive: bytes, size_bytes: int) -> bytes:
    """The first member's unpacked size in the zip's directory replaced."""
    at = archive.index(b"PK\x01\x02") + 24
    return archive[:at] + struct.pack("<I", size_bytes) + archive[at + 4 :]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (saved(X), "no archive"),
        (b"hello" * 100, "no archive"),
        (npz(("x.npy", npy(HEADER)), ("y.npy", saved(Y))), "3136000000000086 bytes"),
        (with_unpacked_size(npz(("x.npy", npy(HEADER)), ("y.npy", saved(Y))), 0xFFFFFF00), "unpack to 4294967040"),
        (npz(("x.npy", npy("((((((((")), ("y.npy", saved(Y))), "x is not an array"),
        (npz(("x.npy", npy("{'descr': 'f4'}")), ("y.npy", saved(Y))), "x is not an array"),
        (npz(("x.npy", b""), ("y.npy", b"")), "x is not an array"),
        (npz(("x", saved(X)), ("y.npy", saved(Y))), "no array named x"),
        (npz(("x.npy", saved(X)), ("y.npy", saved(Y)[:-1])), "y says int64"),
    ],
)
def test_a_damaged_archive_is_refused_in_our_words_and_before_anything_is_allocated(
    tmp_path: Path, data: bytes, said: str
) -> None:
    (tmp_path / "train.npz").write_bytes(data)
    with pytest.raises(DataError, match=said) as refused:
        load_dataset(tmp_path)
    assert "pickle" not in str(refused.value)
    assert "train.npz" in str(refused.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_byte_of_an_archive_is_changed_it_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    archive = bytearray(npz(("x.npy", saved(X)), ("y.npy", saved(Y))))
    for _ in range(data.draw(st.integers(1, 3))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "train.npz").write_bytes(archive)
    with contextlib.suppress(DataError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of headers that look like those of Python 2
        assert len(load_dataset(tmp_path)) == 3


def test_uint8_stays_uint8_and_owners_come_along(tmp_path: Path) -> None:
    save(tmp_path, x=np.ones((3, 2), np.uint8), y=Y.astype(np.uint8), client=np.array(["a", "b", "a"]))
    labelled = read_labelled(tmp_path, "train")
    assert labelled.x.dtype == np.uint8
    assert labelled.y.dtype == np.int32
    assert labelled.client is not None
    assert labelled.client.tolist() == ["a", "b", "a"]
    assert len(load_dataset(tmp_path)) == 3


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_plain_and_packed(tmp_path: Path, suffix: str) -> None:
    x = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2)
    for name, array in (("images-idx3", x), ("labels-idx1", np.array([1, 0, 2], np.uint8))):
        for stem in ("train", "t10k"):
            data = idx(array)
            (tmp_path / f"{stem}-{name}-ubyte{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    for split in ("train", "test"):
        dataset = load_dataset(tmp_path, split)
        assert np.array_equal(dataset.x, x)
        assert dataset.y.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01" + b"\0" * 8,
        b"\0\0\x08\x09" + b"\0" * 40,
        b"\0\0\x08\x01\xff\xff\xff\xff",
        b"\0\0\x08\x01\0\0\0\x01",
        b"\x1f\x8b broken",
    ],
)
def test_a_broken_idx_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(data)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(data)
    with pytest.raises(DataError):
        load_dataset(tmp_path)


def test_fashion_mnist_is_read_as_it_ships() -> None:
    test = load_dataset(require("fashion-mnist"), "test")
    assert test.x.shape == (10_000, 28, 28)
    assert np.bincount(test.y).tolist() == [1000] * 10

"""Local data sets: a directory of examples -> batches in an order that every machine computes alike."""

import math
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import LocalError
from edge_runtime.rng import hash64

__all__ = [
    "DataError",
    "Dataset",
    "Labelled",
    "NoExamples",
    "ShapeMismatch",
    "batch_indices",
    "check_row_shape",
    "fill_batch",
    "fill_examples",
    "fill_labels",
    "load_dataset",
    "read_labelled",
]

_IDX_STEMS = {"train": ("train",), "test": ("t10k", "test")}
_IDX_UBYTE = 0x08
_MAX_IDX_DIMENSIONS = 8
# Deflate makes one byte into at most 1032; a member that claims more does not hold what it claims.
_MAX_DEFLATE = 1032
_WHAT_TO_DO = (
    "a data directory holds {0}.npz with arrays x (N, ...) uint8, float32 or int32 and y (N,) integers, or the "
    "idx files {1}-images-idx3-ubyte and {1}-labels-idx1-ubyte (also .gz)"
)
# What reading damaged files raises: zipfile says RuntimeError for encrypted ones, LookupError and ArithmeticError for
# broken records; the parser of array headers says TypeError, SyntaxError, TokenError or MemoryError.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class DataError(LocalError):
    """The local data cannot be used; the message says what to change."""


class NoExamples(DataError):
    """The data set is empty."""


class ShapeMismatch(DataError):
    """The examples do not have the shape the plan was compiled for."""


@dataclass(frozen=True)
class Dataset:
    """Labelled examples in memory, as they were stored.

    x is (N, ...) float32, used as it is, or uint8, used as x / 255, or int32 (tokens), for plans that take integers; to
    them uint8 are numbers too. y is (N,) int32. Keeping uint8 keeps an image set at a quarter of its float32 size; only
    the rows of one batch are ever converted.
    """

    x: NDArray[Any]
    y: NDArray[np.int32]

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.y)


@dataclass(frozen=True)
class Labelled:
    """A directory's arrays, checked: x and y as in Dataset, and client (N,), the owners, where the data name them."""

    x: NDArray[Any]
    y: NDArray[np.int32]
    client: NDArray[Any] | None


def load_dataset(directory: Path, split: str = "train") -> Dataset:
    """Read DIRECTORY/SPLIT.npz, or idx files as MNIST ships them.

    Args:
        directory: Where the files are.
        split: "train", or "test" (idx: t10k-...).

    Returns:
        The data set; x keeps its dtype.

    Raises:
        NoExamples: There are files, but no examples in them.
        DataError: Nothing there, unreadable, or not of the shapes and dtypes above.
    """
    labelled = read_labelled(directory, split)
    return Dataset(labelled.x, labelled.y)


def read_labelled(directory: Path, split: str) -> Labelled:
    """Read the same files with the owner of every example, for those who deal them out.

    Args:
        directory: Where the files are.
        split: "train" or "test".

    Raises:
        NoExamples, DataError: As load_dataset.
    """
    try:
        x, y, client = _read_arrays(directory, split)
    except MemoryError:
        raise DataError(f"{directory} does not fit into memory; give this device fewer examples") from None
    except _UNREADABLE as error:
        what_to_do = _WHAT_TO_DO.format(split, _IDX_STEMS[split][0])
        raise DataError(f"{directory} cannot be read: {error}; {what_to_do}") from None
    _check_labels(x, y, directory)
    _check_examples(x, directory)
    if client is not None and client.shape != y.shape:
        raise DataError(f"{directory}: client has shape {client.shape}; one owner an example, {y.shape}")
    return Labelled(np.ascontiguousarray(x), y.astype(np.int32), client)


def batch_indices(n: int, batch: int, seed: int, epoch: int) -> list[NDArray[np.intp]]:
    """Give the rows of every batch of one epoch.

    Position i is ranked by hash64(seed, epoch, i), a bijection of i, so there are no ties and the order is the same on
    every machine.

    Args:
        n: Examples, n >= 0.
        batch: Rows a batch, batch >= 1.
        seed: The task's seed, 0 <= seed < 2**64.
        epoch: Epochs are counted from 0 over the whole task.

    Returns:
        ceil(n / batch) arrays of row numbers; the last one may be short.

    Raises:
        ValueError: batch < 1.
    """
    if batch < 1:
        raise ValueError(f"a batch of {batch} rows")
    order = np.argsort(hash64(seed, epoch, np.arange(n, dtype=np.uint64)), kind="stable")
    return [order[first : first + batch] for first in range(0, n, batch)]


def fill_batch(dataset: Dataset, indices: NDArray[np.intp], x_view: NDArray[Any], y_view: NDArray[np.int32]) -> None:
    """Write rows and labels into an engine's batch tensors; the rest becomes zeros with label -1.

    Args:
        dataset: Where the rows come from.
        indices: At most B row numbers.
        x_view: (B, ...) float32 or int32, written.
        y_view: (B,) int32, written.

    Raises:
        ShapeMismatch: One example does not fit one row of x_view; see check_row_shape and check_row_dtype.
    """
    fill_examples(dataset, indices, x_view)
    fill_labels(dataset, indices, y_view)


def fill_examples(dataset: Dataset, indices: NDArray[np.intp], x_view: NDArray[Any]) -> None:
    """Write rows alone, as fill_batch."""
    check_row_shape(dataset, x_view.shape)
    check_row_dtype(dataset, str(x_view.dtype))
    k = len(indices)
    rows = dataset.x[indices].reshape((k, *x_view.shape[1:]))
    if dataset.x.dtype == np.uint8 and x_view.dtype == np.float32:
        np.divide(rows, np.float32(255), out=x_view[:k], dtype=np.float32)
    else:
        x_view[:k] = rows
    x_view[k:] = 0


def fill_labels(dataset: Dataset, indices: NDArray[np.intp], y_view: NDArray[np.int32]) -> None:
    """Write labels alone, as fill_batch."""
    y_view[: len(indices)] = dataset.y[indices]
    y_view[len(indices) :] = -1


def check_row_dtype(dataset: Dataset, dtype: str) -> None:
    """Refuse numbers for a plan of integers, and the other way round.

    Raises:
        ShapeMismatch: Names both types.
    """
    fitting = {"float32": ("float32", "uint8"), "int32": ("int32", "uint8")}.get(dtype, ())
    if str(dataset.x.dtype) not in fitting:
        raise ShapeMismatch(f"the examples are {dataset.x.dtype}, the plan takes {dtype}; save x as {dtype}")


def check_row_shape(dataset: Dataset, batch_shape: tuple[int, ...]) -> None:
    """Refuse examples that do not fit a batch tensor.

    They fit when the shapes are equal but for sizes of 1, as (28, 28) and (1, 28, 28), or when one of them is flat and
    the numbers of elements are equal. (H, W, C) data for a (C, H, W) plan are refused: reshaping would scramble them.

    Raises:
        ShapeMismatch: Names both shapes.
    """
    have = tuple(size for size in dataset.x.shape[1:] if size != 1)
    want = tuple(size for size in batch_shape[1:] if size != 1)
    flat = len(have) <= 1 or len(want) <= 1
    if have != want and not (flat and np.prod(have, dtype=np.int64) == np.prod(want, dtype=np.int64)):
        raise ShapeMismatch(
            f"an example has shape {dataset.x.shape[1:]}, the plan wants {batch_shape[1:]}; "
            "prepare the data in the model's own layout (channels first)"
        )


def _read_arrays(directory: Path, split: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    if not directory.is_dir():
        raise NotADirectoryError("no such directory")
    archive = directory / f"{split}.npz"
    if archive.exists():
        return _read_npz(archive)
    for stem in _IDX_STEMS[split]:
        images = _find_idx(directory, stem, "images")
        labels = _find_idx(directory, stem, "labels")
        if images is not None and labels is not None:
            return _read_idx(images), _read_idx(labels), None
    raise ValueError(f"neither {archive.name} nor idx files are there")


def _read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path.name} is no archive, or only the beginning of one; write it with numpy.savez")
        with zipfile.ZipFile(file) as archive:
            missing = [name for name in ("x", "y") if f"{name}.npy" not in archive.namelist()]
            if missing:
                raise ValueError(f"{path.name} has no array named {' or '.join(missing)}")
            owned = "client.npy" in archive.namelist()
            x, y = (_read_member(archive, name) for name in ("x", "y"))
            return x, y, _read_member(archive, "client") if owned else None


def _read_member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read one array, after a look at its header: numpy allocates whatever that claims, and may ask to be trusted."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        shape, dtype = _read_header(member, name)
        claimed_bytes = member.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never loaded; save an array of numbers")
    if claimed_bytes != info.file_size or info.file_size > _MAX_DEFLATE * info.compress_size:
        raise ValueError(
            f"{name} says {dtype} of shape {shape}, {claimed_bytes} bytes, but its {info.compress_size} bytes in the "
            f"archive unpack to {info.file_size} at the most; write the file again"
        )
    with archive.open(info) as member:
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))


def _read_header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(member)
        # Version 3 differs from 2 in the alphabet of field names, which no array of ours has.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    except (zipfile.BadZipFile, zlib.error, OSError):
        raise
    except _UNREADABLE:
        raise ValueError(f"{name} is not an array that numpy has saved; write the file again") from None
    return shape, dtype


def _find_idx(directory: Path, stem: str, what: str) -> Path | None:
    found = sorted(directory.glob(f"{stem}-{what}[-.]idx[1-8]-ubyte*"))
    plain = [path for path in found if path.suffix != ".gz"]
    return next(iter(plain or found), None)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        import gzip  # noqa: PLC0415 most data sets need it not

        data = gzip.decompress(data)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _IDX_UBYTE or not 1 <= data[3] <= _MAX_IDX_DIMENSIONS:
        raise ValueError(f"{path.name} does not begin like an idx file of unsigned bytes")
    begin = 4 + 4 * data[3]
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, begin, 4)]
    count = 1
    for size in shape:
        count *= size
    if len(data) != begin + count:
        raise ValueError(f"{path.name} says {shape} but holds {len(data) - begin} bytes of data instead of {count}")
    return np.frombuffer(data, np.uint8, count, begin).reshape(shape)


def _check_labels(x: NDArray[Any], y: NDArray[Any], directory: Path) -> None:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(f"{directory}: y is {y.dtype} of shape {y.shape}; it must be (N,) integers")
    if x.ndim < 1 or len(x) != len(y):
        raise DataError(f"{directory}: x has shape {x.shape} but there are {len(y)} labels; one label an example")
    if len(y) == 0 or x.size == 0:
        raise NoExamples(f"{directory} holds no examples (x {x.shape}); put at least one there")
    if int(y.min()) < 0 or int(y.max()) > np.iinfo(np.int32).max:
        raise DataError(f"{directory}: labels run from {y.min()} to {y.max()}; they must be 0, 1, 2, ...")


def _check_examples(x: NDArray[Any], directory: Path) -> None:
    if x.dtype not in (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.int32)):
        raise DataError(
            f"{directory}: x is {x.dtype}; save it as uint8, with x.astype('float32'), or tokens with x.astype('int32')"
        )
    if x.dtype == np.float32 and not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).reshape(len(x), -1).all(axis=1)))
        raise DataError(f"{directory}: row {row} of x holds NaN or infinity; clean it or leave it out")

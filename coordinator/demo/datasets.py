"""Labelled data for the demo: scikit-learn's digits, a user's own folder, or a few published layouts.

A folder is read in one of three forms, tried in this order:

- ``train.npz`` and ``test.npz`` with ``x`` (N, ...) uint8 or float32, ``y`` (N,) integers and, if the data have natural
  owners, ``client`` (N,);
- idx files as MNIST ships them (``train-images-idx3-ubyte[.gz]``, ``t10k-labels-idx1-ubyte[.gz]``, ...);
- ``har.npz``, the raw smartphone recordings of UCI HAPT cut into windows of 128 readings; the owners are its people,
  and the people of the official test split are held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.data import DataError, read_labelled

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DIGITS_TEST_SHARE = 0.2
HAR_WINDOW = 128
COLOUR_CHANNELS = (1, 3, 4)
MAX_CLASSES = 65_536  # as in a job file


@dataclass(frozen=True)
class Split:
    """Training and held-out examples.

    ``x`` (N, ...) uint8 or float32, ``y`` (N,) int32 in [0, classes), ``owner`` (N_train,) names the natural client of
    each training example, or is None where the data have none.
    """

    name: str
    x_train: NDArray[Any]
    y_train: NDArray[np.int32]
    x_test: NDArray[Any]
    y_test: NDArray[np.int32]
    owner: NDArray[np.str_] | None

    @property
    def classes(self) -> int:
        """One more than the greatest label of either part."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(int(n) for n in self.x_train.shape[1:])


def load_split(name: str, data_dir: Path | None, seed: int) -> Split:
    """Load a data set by name: ``digits`` needs no files, any other name is a folder under `data_dir`.

    Raises:
        DataError: The folder is missing or unreadable, or its parts do not fit each other.
    """
    if name == "digits":
        return _digits(seed)
    if data_dir is None:
        raise DataError(
            f"data set {name!r}: no data directory; give --data-dir DIR (or set EDGE_DATA_DIR), "
            f"where DIR/{name} holds train.npz and test.npz"
        )
    folder = data_dir / name
    if not folder.is_dir():
        raise DataError(f"data set {name!r}: {folder} is not a directory; see --data-dir")
    split = _har(name, folder / "har.npz") if (folder / "har.npz").is_file() else _folder(name, folder)
    if not 2 <= split.classes <= MAX_CLASSES:
        raise DataError(
            f"{folder}: the greatest label is {split.classes - 1}; it must be in 1 .. {MAX_CLASSES - 1}, "
            "number the classes 0, 1, 2, ..."
        )
    return split


def _folder(name: str, folder: Path) -> Split:
    train, test = read_labelled(folder, "train"), read_labelled(folder, "test")
    if train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(
            f"{folder}: training examples have shape {train.x.shape[1:]} but test examples {test.x.shape[1:]}"
        )
    owner = None if train.client is None else train.client.astype(np.str_)
    return Split(name, _channels_first(train.x), train.y, _channels_first(test.x), test.y, owner)


def _channels_first(x: NDArray[Any]) -> NDArray[Any]:
    """Colour images as cameras store them, (N, H, W, 3 or 4), become (N, C, H, W); everything else stays."""
    if x.ndim == 4 and x.shape[3] in COLOUR_CHANNELS and x.shape[1] not in COLOUR_CHANNELS:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x


def _digits(seed: int) -> Split:
    """1,797 real 8x8 scans of digits (UCI, shipped inside scikit-learn), grey levels 0..16 scaled to 0..1."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (a second to import, and only this set needs it)

    from edge_runtime.rng import hash64  # noqa: PLC0415

    bunch = load_digits()
    x = (bunch.images / 16.0).astype(np.float32)[:, None, :, :]
    y = bunch.target.astype(np.int32)
    order = np.argsort(hash64(seed, 0, np.arange(len(y), dtype=np.uint64)), kind="stable")
    n_test = round(DIGITS_TEST_SHARE * len(y))
    test, train = order[:n_test], order[n_test:]
    return Split("digits", x[train], y[train], x[test], y[test], None)


def _har(name: str, path: Path) -> Split:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            signal, windows = arrays["signal"], arrays["windows"]
            scale, test_users = arrays["scale"], arrays["test_users"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not the smartphone recordings this reader knows: {error}") from error
    rows = windows[:, 0, None] + np.arange(HAR_WINDOW)
    held_out = np.isin(windows[:, 2], test_users)
    # (N, 128, 6) sensor counts -> (N, 6, 128) in g and rad/s, then each channel by the training people's mean and
    # spread: twelve numbers that a fleet would ship with its boards' settings.
    physical = (signal[rows] * scale.astype(np.float32)).transpose(0, 2, 1)
    mean = physical[~held_out].mean(axis=(0, 2), keepdims=True)
    spread = physical[~held_out].std(axis=(0, 2), keepdims=True)
    x = np.ascontiguousarray((physical - mean) / spread, dtype=np.float32)
    y = (windows[:, 1] - 1).astype(np.int32)
    owner = np.char.add("subject-", windows[~held_out, 2].astype(np.str_))
    return Split(name, x[~held_out], y[~held_out], x[held_out], y[held_out], owner)

"""Tensor files: named arrays in one block of bytes, in the safetensors layout (docs/tasks.md, "Tensor files").

The writer is canonical: sorted names, no holes, so equal tensors give equal bytes and therefore one SHA-256. The
reader is strict and copies nothing: it returns views into the bytes it was given. It is stricter than the format's
reference reader in one point, repeated keys, and has a shorter list of dtypes.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import RemoteError
from edge_runtime.strict_json import dump_object, load_object

__all__ = [
    "MAX_DIMENSIONS",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "BadHeader",
    "BadMetadata",
    "BadOffsets",
    "BadShape",
    "HeaderTooLarge",
    "SizeMismatch",
    "TensorFileError",
    "TooManyTensors",
    "Truncated",
    "UnknownDtype",
    "decode_tensors",
    "encode_tensors",
    "flat_values",
    "tensor_file_parts",
]

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 65_536
MAX_DIMENSIONS = 8

_LENGTH_BYTES = 8
_DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),  # NumPy has no bfloat16: its bits, the upper half of a float32's
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}

_FLOAT32 = _DTYPES["F32"]
_METADATA, _AFTER_METADATA = b'{"__metadata__":', b'},"'
_MAX_REMEMBERED_BYTES = 16_384
# Name, dtype, shape, first byte, and the one behind the last.
_Entry = tuple[str, np.dtype[Any], tuple[int, ...], int, int]


class TensorFileError(RemoteError):
    """A tensor file breaks a rule; the subclass says which."""


class Truncated(TensorFileError):
    """The bytes end before the header does."""


class HeaderTooLarge(TensorFileError):
    """The header is longer than MAX_HEADER_BYTES."""


class BadHeader(TensorFileError):
    """The header is not the JSON object it must be."""


class BadMetadata(TensorFileError):
    """`__metadata__` is not an object of strings."""


class TooManyTensors(TensorFileError):
    """More than MAX_TENSORS tensors."""


class UnknownDtype(TensorFileError):
    """A dtype that is not in the list."""


class BadShape(TensorFileError):
    """A shape that is not a list of at most MAX_DIMENSIONS sizes."""


class BadOffsets(TensorFileError):
    """Offsets that leave a hole, overlap, or do not fill the file."""


class SizeMismatch(TensorFileError):
    """A tensor's bytes are not its shape times the size of its dtype."""


def encode_tensors(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write named arrays as one tensor file.

    Args:
        tensors: {name: (...) of a dtype in the list}, at most 8 dimensions; not modified.
        metadata: Text that travels with them, or None.

    Returns:
        The file. Equal tensors and metadata give equal bytes, in whatever order they are handed over.

    Raises:
        UnknownDtype: An array's dtype is not in the list.
        BadShape: An array has more than 8 dimensions.
        TooManyTensors, HeaderTooLarge: The file would break the reader's caps.
    """
    return b"".join(tensor_file_parts(tensors, metadata))


def tensor_file_parts(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """The same file in pieces that one behind the other are it; those of contiguous arrays are views of them.

    Args, Raises: as of `encode_tensors`.
    """
    if len(tensors) > MAX_TENSORS:
        raise TooManyTensors(f"{len(tensors)} tensors; a file holds at most {MAX_TENSORS}")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts: list[memoryview] = []
    end = 0
    for name in sorted(tensors):
        entry, part = _encode_one(name, tensors[name], end)
        end += len(part)
        header[name] = entry
        parts.append(part)
    text = dump_object(header)
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise HeaderTooLarge(f"the header takes {len(text)} bytes; the cap is {MAX_HEADER_BYTES}")
    return [len(text).to_bytes(_LENGTH_BYTES, "little"), text, *parts]


def decode_tensors(
    data: bytes | bytearray | memoryview, *, max_tensors: int = MAX_TENSORS, max_header_bytes: int = MAX_HEADER_BYTES
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read a tensor file without copying.

    Args:
        data: The whole file.
        max_tensors: Cap on the number of tensors.
        max_header_bytes: Cap on the header.

    Returns:
        {name: read-only view into data} in file order, and the metadata ({} where there is none).

    Raises:
        TensorFileError: One subclass for each rule.
    """
    text = _header_text(data, max_header_bytes)
    begin = _LENGTH_BYTES + len(text)
    metadata, entries = _read_header(text)
    if len(entries) > max_tensors:
        raise TooManyTensors(f"{len(entries)} tensors; the cap is {max_tensors}")
    tensors: dict[str, NDArray[Any]] = {}
    end = 0
    for name, dtype, shape, first, last in entries:
        if first != end:
            raise BadOffsets(f"tensor {name!r} begins at byte {first}, but the one before it ends at {end}")
        end = last
        if end > len(data) - begin:
            raise BadOffsets(f"tensor {name!r} ends at byte {last} of {len(data) - begin}")
        count = (last - first) // dtype.itemsize
        tensors[name] = np.frombuffer(data, dtype, count, begin + first).reshape(shape)
    if end != len(data) - begin:
        raise BadOffsets(f"the tensors fill {end} bytes, but {len(data) - begin} follow the header")
    for tensor in tensors.values():
        tensor.flags.writeable = False
    return tensors, metadata


def flat_values(
    data: bytes, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[NDArray[np.float32], dict[str, str]] | None:
    """The values of a file that holds just these tensors, one behind the other in this order, without a copy.

    Args:
        data: The whole file.
        shapes: By name, all of float32.

    Returns:
        (values,) read-only, and the metadata; None for a file of other tensors, or of these in another order.

    Raises:
        TensorFileError: The header is none, as of `decode_tensors`.
    """
    text = _header_text(data, MAX_HEADER_BYTES)
    metadata, entries = _read_header(text)
    end = 0
    for (name, dtype, shape, first, last), wanted in zip(entries, shapes.items(), strict=False):
        if (name, shape) != wanted or dtype is not _FLOAT32 or first != end:
            return None
        end = last
    begin = _LENGTH_BYTES + len(text)
    if len(entries) != len(shapes) or end != len(data) - begin:
        return None
    return np.frombuffer(data, _FLOAT32, end // 4, begin), metadata


def _encode_one(name: str, tensor: NDArray[Any], begin: int) -> tuple[dict[str, Any], memoryview]:
    dtype = tensor.dtype.newbyteorder("<")
    if dtype not in _CODES:
        raise UnknownDtype(f"tensor {name!r} is {tensor.dtype}; a tensor file holds {', '.join(_DTYPES)}")
    if tensor.ndim > MAX_DIMENSIONS:
        raise BadShape(f"tensor {name!r} has {tensor.ndim} dimensions; the cap is {MAX_DIMENSIONS}")
    part = np.ascontiguousarray(tensor, dtype).reshape(-1).view(np.uint8).data
    shape = [int(size) for size in tensor.shape]
    return {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [begin, begin + len(part)]}, part


def _header_text(data: bytes | bytearray | memoryview, cap: int) -> bytes:
    if len(data) < _LENGTH_BYTES:
        raise Truncated(f"{len(data)} bytes; the length of the header alone takes {_LENGTH_BYTES}")
    header_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if header_bytes > cap:
        raise HeaderTooLarge(f"a header of {header_bytes} bytes; the cap is {cap}")
    begin = _LENGTH_BYTES + header_bytes
    if begin > len(data):
        raise Truncated(f"a header of {header_bytes} bytes in a file of {len(data)}")
    text = bytes(data[_LENGTH_BYTES:begin])
    if not text.startswith(b"{"):
        raise BadHeader("the header does not begin with '{'")
    return text


def _read_header(text: bytes) -> tuple[dict[str, str], tuple[_Entry, ...]]:
    """The metadata, and what is said of the tensors in the order of their bytes.

    Files of one layout differ in nothing but their metadata, which canonical ones have first: what is behind them is
    looked at once.
    """
    at = text.find(_AFTER_METADATA) + 1
    if at and text.startswith(_METADATA) and len(text) - at <= _MAX_REMEMBERED_BYTES:
        with suppress(ValueError, TensorFileError):  # read as a whole, it is right all the same, or its error is named
            return _check_metadata(load_object(text[len(_METADATA) : at])), _remembered(text[at:])
    try:
        header = load_object(text)
    except ValueError as error:
        raise BadHeader(f"the header is not one JSON object: {error}") from None
    metadata = _check_metadata(header.pop("__metadata__", {}))
    return metadata, _entries(header)


@lru_cache(maxsize=64)
def _remembered(rest: bytes) -> tuple[_Entry, ...]:
    """What is said of the tensors in a header from the comma behind its metadata on."""
    header = load_object(b"{" + rest[1:])
    if "__metadata__" in header:
        raise ValueError("the metadata stand twice")
    return _entries(header)


def _entries(header: dict[str, Any]) -> tuple[_Entry, ...]:
    return tuple(sorted((_check_entry(name, entry) for name, entry in header.items()), key=lambda item: item[3:]))


def _check_metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(type(item) is str for item in value.values()):
        raise BadMetadata("__metadata__ must be an object whose values are strings")
    return value


def _check_entry(name: str, entry: object) -> _Entry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadHeader(f"tensor {name!r} must have exactly dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(code) is not str or code not in _DTYPES:
        raise UnknownDtype(f"tensor {name!r} has dtype {code!r}; known are {', '.join(_DTYPES)}")
    if not _is_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise BadShape(f"tensor {name!r} has shape {shape!r}; at most {MAX_DIMENSIONS} sizes of 0 or more")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadOffsets(f"tensor {name!r} has data_offsets {offsets!r}; [begin, end] with begin <= end")
    # Python integers do not overflow, so the products are exact. NumPy multiplies the sizes that are not zero even
    # when another one is, in 64 bits: that product has a cap of its own.
    wanted = span = _DTYPES[code].itemsize
    for size in shape:
        wanted *= size
        span *= max(size, 1)
    if span >= 1 << 63:
        raise BadShape(f"tensor {name!r} has shape {shape}, which no 64-bit machine can address")
    if wanted != offsets[1] - offsets[0]:
        raise SizeMismatch(f"tensor {name!r} of shape {shape} needs {wanted} bytes, not {offsets[1] - offsets[0]}")
    return name, _DTYPES[code], tuple(shape), offsets[0], offsets[1]


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)

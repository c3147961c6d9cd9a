"""Rows K1 to K3: index streams, quantisers and rANS beside NumPy, zlib, torch and constriction.

K1 takes the indices of updates of ten million parameters, drawn at random and in clusters (rows of 512 places, a tenth
of them used), and a whole 1 % update: indices and float16 values, there and back. Each case tells its bits an index
above the entropy. K2 takes vectors of a million values. K3 takes a million rounded normal numbers under their own
distribution.
"""

from __future__ import annotations

import math
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.kernel_rows import rows_of
from edge_runtime import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bench.kernel_rows import Machine

    Steps = dict[str, Callable[[], object]]

PARAMETERS = 10_000_000
DENSITIES = (0.1, 0.01, 0.001, 0.0001)
ROW = 512  # places of a cluster
VALUES = 1_000_000
BLOCK = 256
DEVIATION = 8.0
CONSTRICTION = "constriction, Categorical"


def measure_indices(machine: Machine) -> list[dict[str, Any]]:
    """Row K1."""
    cases = []
    for density in DENSITIES:
        cases += _index_cases(machine, f"{100 * density:g} %", *_drawn(density))
    cases += _index_cases(machine, "1 % in clusters", *_clustered(0.01))
    cases += _update_case(machine, 0.01)
    return rows_of("K1", "ascending indices as gaps, both ways", cases)


def measure_quantizers(machine: Machine) -> list[dict[str, Any]]:
    """Row K2."""
    workspace = kernels.Workspace(threads=machine.threads)
    x = np.random.default_rng(5).standard_normal(VALUES).astype(np.float32)
    cases = []
    for name, (steps, nbytes) in (_halves(x, workspace) | _blocks(x, workspace)).items():
        targets: dict[str, float | None] = dict.fromkeys(steps)
        cases += machine.measured(name, steps, targets, machine.peak.seconds(0, nbytes))
    return rows_of("K2", "a million values in fewer bits", cases)


def measure_rans(machine: Machine) -> list[dict[str, Any]]:
    """Row K3."""
    side = int(4 * DEVIATION)
    p = np.exp(-0.5 * (np.arange(-side, side + 1) / DEVIATION) ** 2)
    cdf = kernels.quantized_cdf(np.append(p / p.sum() * 0.9999, 0.0001))
    tables = kernels.RansTables(cdf[None], np.array([len(cdf)], np.int32), np.array([0], np.int32))
    rng, indexes = np.random.default_rng(6), np.zeros(VALUES, np.int32)
    symbols = np.clip(np.rint(rng.standard_normal(VALUES) * DEVIATION) + side, 0, 2 * side).astype(np.int32)
    ideal_bits = -np.log2(np.diff(cdf)[symbols] / 65536).sum()
    cases = []
    for ways in (1, 4):
        for bits in (32, 64):
            stream = kernels.rans_encode(symbols, tables, indexes, state_bits=bits, ways=ways)
            above = {"% above the model": 100 * (8 * len(stream) / ideal_bits - 1)}
            floor_s = machine.peak.seconds(0, 8 * VALUES + len(stream))
            encode, decode = _rans_peers(symbols, np.diff(cdf)[:-1] / 65536)
            encode["ours"] = lambda b=bits, w=ways: kernels.rans_encode(symbols, tables, indexes, state_bits=b, ways=w)
            decode["ours"] = lambda b=bits, w=ways, s=stream: kernels.rans_decode(
                s, tables, indexes, state_bits=b, ways=w
            )
            for way, steps in (("write", encode), ("read", decode)):
                records = machine.measured(f"{way}, {bits} bits, {ways} ways", steps, dict.fromkeys(steps), floor_s)
                cases += [{**record, "errors": above} for record in records]
    return rows_of("K3", "a million integers under a model", cases)


def _drawn(density: float) -> tuple[NDArray[np.int32], float]:
    """Indices, and the entropy of that many gaps in bits."""
    rng = np.random.default_rng(1)
    indices = np.flatnonzero(rng.random(PARAMETERS) < density).astype(np.int32)
    return indices, len(indices) * _entropy_bits(density) / density


def _clustered(density: float) -> tuple[NDArray[np.int32], float]:
    """The same where a tenth of the rows holds all indices; entropy of the rows and of the places in them."""
    rng, rows = np.random.default_rng(2), PARAMETERS // ROW
    used = rng.random(rows) < 0.1
    places = (rng.random((rows, ROW)) < 10 * density) & used[:, None]
    return np.flatnonzero(places).astype(np.int32), rows * (
        _entropy_bits(0.1) + 0.1 * ROW * _entropy_bits(10 * density)
    )


def _entropy_bits(p: float) -> float:
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def _index_cases(machine: Machine, name: str, indices: NDArray[np.int32], ideal_bits: float) -> list[dict[str, Any]]:
    stream = kernels.encode_indices(indices, PARAMETERS)
    packed, deflated = _pack(indices), _deflate(indices)
    write: Steps = {
        "ours": lambda: kernels.encode_indices(indices, PARAMETERS),
        "numpy packbits": lambda: _pack(indices),
        "zlib of gaps": lambda: _deflate(indices),
    }
    read: Steps = {
        "ours": lambda: kernels.decode_indices(stream, PARAMETERS, len(indices)),
        "numpy packbits": lambda: np.flatnonzero(np.unpackbits(packed, bitorder="little")),
        "zlib of gaps": lambda: _inflate(deflated),
    }
    floor_s = machine.peak.seconds(0, 4 * len(indices) + len(stream))
    sizes = {"ours": len(stream), "numpy packbits": packed.nbytes, "zlib of gaps": len(deflated)}
    cases = []
    for way, steps in (("write", write), ("read", read)):
        for record in machine.measured(f"{name}, {way}", steps, dict.fromkeys(steps), floor_s):
            errors = {
                "bits an index": 8 * sizes["ours"] / len(indices),
                "% above entropy": 100 * (8 * sizes["ours"] / ideal_bits - 1),
                "peer's bits": 8 * sizes[record["peer"]] / len(indices),
            }
            cases.append({**record, "errors": errors})
    return cases


def _update_case(machine: Machine, density: float) -> list[dict[str, Any]]:
    """Indices and float16 values of one update, there and back; top-k itself is not in it."""
    indices, _ = _drawn(density)
    values = np.random.default_rng(4).standard_normal(len(indices)).astype(np.float32)
    workspace = kernels.Workspace(threads=machine.threads)

    def ours() -> object:
        stream = kernels.encode_indices(indices, PARAMETERS)
        half = kernels.to_float16(values, workspace=workspace)
        places = kernels.decode_indices(stream, PARAMETERS, len(indices))
        return places, kernels.from_float16(half, workspace=workspace)

    def peer() -> object:
        return _inflate(_deflate(indices)), values.astype(np.float16).astype(np.float32)

    steps: Steps = {"ours": ours, "zlib of gaps": peer}
    records = machine.measured(
        "1 % update, both ways", steps, dict.fromkeys(steps), machine.peak.seconds(0, 24 * len(indices))
    )
    return [{**record, "errors": {"GB/s of dense input": 4e-9 * PARAMETERS / record["ours_s"]}} for record in records]


def _pack(indices: NDArray[np.int32]) -> NDArray[np.uint8]:
    mask = np.zeros(PARAMETERS, np.uint8)
    mask[indices] = 1
    return np.packbits(mask, bitorder="little")


def _deflate(indices: NDArray[np.int32]) -> bytes:
    return zlib.compress(np.diff(indices, prepend=np.int32(-1)).tobytes(), 1)


def _inflate(data: bytes) -> NDArray[np.int32]:
    return np.cumsum(np.frombuffer(zlib.decompress(data), np.int32), dtype=np.int32) - 1


def _halves(x: NDArray[np.float32], workspace: kernels.Workspace) -> dict[str, tuple[Steps, int]]:
    tensor = torch.from_numpy(x)
    half, brain = kernels.to_float16(x), kernels.to_bfloat16(x)
    torch_half, torch_brain = tensor.half(), tensor.bfloat16()
    pairs: dict[str, Steps] = {
        "to float16": {"ours": lambda: kernels.to_float16(x, workspace=workspace), "torch": tensor.half},
        "from float16": {"ours": lambda: kernels.from_float16(half, workspace=workspace), "torch": torch_half.float},
        "to bfloat16": {"ours": lambda: kernels.to_bfloat16(x, workspace=workspace), "torch": tensor.bfloat16},
        "from bfloat16": {
            "ours": lambda: kernels.from_bfloat16(brain, workspace=workspace),
            "torch": torch_brain.float,
        },
    }
    return {name: (steps, 6 * VALUES) for name, steps in pairs.items()}


def _blocks(x: NDArray[np.float32], workspace: kernels.Workspace) -> dict[str, tuple[Steps, int]]:
    tensor = torch.from_numpy(x[: VALUES // BLOCK * BLOCK]).view(-1, BLOCK)
    q, scales = kernels.quantize_int8(x, BLOCK)
    torch_q = _torch_int8(tensor)
    return {
        "int8": (
            {
                "ours": lambda: kernels.quantize_int8(x, BLOCK, workspace=workspace),
                "torch": lambda: _torch_int8(tensor),
            },
            5 * VALUES,
        ),
        "from int8": (
            {
                "ours": lambda: kernels.dequantize_int8(q, scales, BLOCK, workspace=workspace),
                "torch": torch_q.dequantize,
            },
            5 * VALUES,
        ),
        "15 levels at random": (
            {
                "ours": lambda: kernels.quantize_qsgd(x, 15, 1, BLOCK, workspace=workspace),
                "torch": lambda: _torch_qsgd(tensor),
            },
            5 * VALUES,
        ),
        "signs": (
            {
                "ours": lambda: kernels.quantize_sign(x, BLOCK, workspace=workspace),
                "torch": lambda: (tensor.abs().mean(1), np.packbits(torch.signbit(tensor).numpy())),
            },
            4 * VALUES + VALUES // 8,
        ),
    }


def _torch_int8(x: torch.Tensor) -> torch.Tensor:
    scales = (x.abs().amax(1) / 127).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates its quantised tensors
        return torch.quantize_per_channel(x, scales, torch.zeros(len(x), dtype=torch.long), 0, torch.qint8)


def _torch_qsgd(x: torch.Tensor) -> torch.Tensor:
    scale = x.norm(dim=1, keepdim=True) / 15
    return (torch.floor(x.abs() / scale + torch.rand_like(x)) * x.sign()).to(torch.int8)


def _rans_peers(symbols: NDArray[np.int32], p: NDArray[np.float64]) -> tuple[Steps, Steps]:
    """What writes and what reads the same symbols; zlib sees them as bytes."""
    data = symbols.astype(np.uint8).tobytes()
    deflated = zlib.compress(data, 1)
    encode: Steps = {"zlib of bytes": lambda: zlib.compress(data, 1)}
    decode: Steps = {"zlib of bytes": lambda: zlib.decompress(deflated)}
    try:
        import constriction  # noqa: PLC0415 - a peer that may not be installed
    except ImportError:
        return encode, decode
    model = constriction.stream.model.Categorical(p.astype(np.float32), perfect=False)

    def write() -> NDArray[np.uint32]:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        words: NDArray[np.uint32] = coder.get_compressed()
        return words

    words = write()
    encode[CONSTRICTION] = write
    decode[CONSTRICTION] = lambda: constriction.stream.stack.AnsCoder(words).decode(model, VALUES)
    return encode, decode


MEASURES = {"K1": measure_indices, "K2": measure_quantizers, "K3": measure_rans}

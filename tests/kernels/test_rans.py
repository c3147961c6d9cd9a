"""rANS: a published stream, the twin, constriction, length against the model, and broken streams."""

import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.kernels import RansTables, StreamError, quantized_cdf, rans_decode, rans_encode
from edge_runtime.kernels import reference_coders as reference

FORMS = [(bits, ways) for bits in (32, 64) for ways in (1, 2, 4)]
MOST = 2**31 - 1


def tables_of(rows: list[reference.Row]) -> RansTables:
    cdfs = np.zeros((len(rows), max(len(row.cdf) for row in rows)), np.int32)
    for r, row in enumerate(rows):
        cdfs[r, : len(row.cdf)] = row.cdf
    lengths = np.array([len(row.cdf) for row in rows], np.int32)
    return RansTables(cdfs, lengths, np.array([row.offset for row in rows], np.int32))


def gaussian_row(sd: float, reach: float = 4.0) -> reference.Row:
    """Rounded normal numbers up to `reach` deviations; the escape has what is left."""
    side = int(reach * sd) + 1
    p = np.exp(-0.5 * (np.arange(-side, side + 1) / sd) ** 2)
    return reference.Row(quantized_cdf(np.append(p / p.sum() * 0.9999, 0.0001)).tolist(), -side)


def ideal_bits(symbols: NDArray[np.int32], rows: list[reference.Row], indexes: NDArray[np.int32]) -> float:
    """Cross-entropy under the quantised model; escapes with 4 bits for their count and 4 a group."""
    total = 0.0
    for symbol, index in zip(symbols.tolist(), indexes.tolist(), strict=True):
        row = rows[index]
        value, escape = symbol - row.offset, len(row.cdf) - 2
        if not 0 <= value < escape:
            code = -2 * value - 1 if value < 0 else 2 * (value - escape)
            total += 4 + 4 * -(-code.bit_length() // 4)
            value = escape
        total -= np.log2((row.cdf[value + 1] - row.cdf[value]) / 65536)
    return total


VECTOR = reference.Row([0, 4096, 20480, 45056, 61440, 65280, 65536], -2)
VECTOR_SYMBOLS = np.array([0, -1, 1, 0, 2, -2, 0, 5, 0, -7, 1, 100], np.int32)
SKEWED = reference.Row([0, 65534, 65535, 65536], 7)
FLAT = reference.Row(list(range(65537)), -30_000)
ROWS = [VECTOR, SKEWED, gaussian_row(0.3), gaussian_row(20.0), gaussian_row(300.0)]


def drawn(m: int, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Symbols as the rows of ROWS expect them, with a hundredth far outside."""
    rng = np.random.default_rng(seed)
    indexes = rng.integers(0, len(ROWS), m).astype(np.int32)
    sds = np.array([1.0, 0.01, 0.3, 20.0, 300.0])[indexes]
    symbols = np.rint(rng.standard_normal(m) * sds) + np.where(indexes == 1, 7, 0)
    far = rng.random(m) < 0.01
    symbols[far] = rng.integers(-(2**31), 2**31, far.sum())
    return symbols.astype(np.int32), indexes


def test_a_published_stream_comes_out() -> None:
    tables, indexes = tables_of([VECTOR]), np.zeros(12, np.int32)
    stream = rans_encode(VECTOR_SYMBOLS, tables, indexes, ways=1)
    assert stream.hex() == "f27ce8e06b000000410f28809122ef33"
    np.testing.assert_array_equal(rans_decode(stream, tables, indexes, ways=1), VECTOR_SYMBOLS)


@pytest.mark.parametrize(("bits", "ways"), FORMS)
@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 5, 255, 256, 257, 1023])
def test_streams_are_those_of_the_slow_twin(m: int, bits: Any, ways: Any) -> None:
    tables = tables_of(ROWS)
    symbols, indexes = drawn(m, m)
    stream = rans_encode(symbols, tables, indexes, state_bits=bits, ways=ways)
    assert stream == reference.rans_encode(symbols.tolist(), ROWS, indexes.tolist(), bits, ways)
    back = rans_decode(memoryview(stream), tables, indexes, state_bits=bits, ways=ways)
    np.testing.assert_array_equal(back, symbols)
    assert reference.rans_decode(stream, ROWS, indexes.tolist(), bits, ways) == symbols.tolist()


@given(st.lists(st.integers(-(2**31), MOST), max_size=60), st.sampled_from(FORMS), st.integers(0, 4))
def test_any_integer_comes_back(symbols: list[int], form: tuple[Any, Any], first: int) -> None:
    tables = tables_of(ROWS)
    indexes = (np.arange(len(symbols), dtype=np.int32) + first) % np.int32(len(ROWS))
    stream = rans_encode(np.array(symbols, np.int32), tables, indexes, state_bits=form[0], ways=form[1])
    assert stream == reference.rans_encode(symbols, ROWS, indexes.tolist(), *form)
    assert rans_decode(stream, tables, indexes, state_bits=form[0], ways=form[1]).tolist() == symbols


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40).filter(lambda p: max(p) > 1e-3), st.data())
def test_any_distribution_codes_all_of_its_symbols(p: list[float], data: st.DataObject) -> None:
    row = reference.Row(quantized_cdf(np.array(p) / max(sum(p), 1)).tolist(), -3)
    symbols = data.draw(st.lists(st.integers(-5, len(p)), max_size=30))
    indexes = np.zeros(len(symbols), np.int32)
    stream = rans_encode(np.array(symbols, np.int32), tables_of([row]), indexes)
    assert stream == reference.rans_encode(symbols, [row], indexes.tolist(), 64, 4)
    assert rans_decode(stream, tables_of([row]), indexes).tolist() == symbols


@pytest.mark.parametrize(("bits", "ways"), FORMS)
@pytest.mark.parametrize("row", [VECTOR, SKEWED, FLAT, gaussian_row(0.3), gaussian_row(20.0)])
def test_length_is_within_a_thousandth_of_the_model(row: reference.Row, bits: Any, ways: Any) -> None:
    rng = np.random.default_rng(3)
    p = np.diff(row.cdf) / 65536
    symbols = (rng.choice(len(p), 100_000, p=p) + row.offset).astype(np.int32)
    indexes = np.zeros(len(symbols), np.int32)
    stream = rans_encode(symbols, tables_of([row]), indexes, state_bits=bits, ways=ways)
    assert 8 * len(stream) <= 1.001 * ideal_bits(symbols, [row], indexes) + bits * ways + 32
    np.testing.assert_array_equal(rans_decode(stream, tables_of([row]), indexes, state_bits=bits, ways=ways), symbols)


def test_many_tables_and_escapes_too_are_within_a_thousandth() -> None:
    symbols, indexes = drawn(100_000)
    assert 8 * len(rans_encode(symbols, tables_of(ROWS), indexes)) <= 1.001 * ideal_bits(symbols, ROWS, indexes) + 288


def test_as_short_as_constriction() -> None:
    constriction = pytest.importorskip("constriction", reason="it has no wheel for every machine")
    p = np.diff(gaussian_row(20.0).cdf) / 65536
    # Not the escape: a bin of its own there, and four bits more here.
    symbols = np.random.default_rng(4).choice(len(p) - 1, 200_000, p=p[:-1] / p[:-1].sum()).astype(np.int32)
    model = constriction.stream.model.Categorical(p.astype(np.float32), perfect=True)
    peer = constriction.stream.stack.AnsCoder()
    peer.encode_reverse(symbols, model)
    np.testing.assert_array_equal(peer.decode(model, len(symbols)), symbols)
    peer.encode_reverse(symbols, model)
    row = reference.Row(gaussian_row(20.0).cdf, 0)
    ours = rans_encode(symbols, tables_of([row]), np.zeros(len(symbols), np.int32))
    assert len(ours) <= 1.001 * 4 * len(peer.get_compressed()) + 32


def test_a_million_symbols_come_back_through_every_form() -> None:
    symbols, indexes = drawn(1_000_000)
    tables = tables_of(ROWS)
    for bits, ways in FORMS:
        stream = rans_encode(symbols, tables, indexes, state_bits=bits, ways=ways)  # type: ignore[arg-type]  # a loop over literals
        back = rans_decode(stream, tables, indexes, state_bits=bits, ways=ways)  # type: ignore[arg-type]  # the same
        np.testing.assert_array_equal(back, symbols)


def broken(stream: bytes, m: int = 12, ways: Any = 1) -> str:
    with pytest.raises(StreamError) as refused:
        rans_decode(stream, tables_of([VECTOR]), np.zeros(m, np.int32), ways=ways)
    assert len(refused.value.args[1]) > 20
    return str(refused.value.args[0])


def test_a_broken_stream_is_refused_by_its_rule() -> None:
    good = bytes.fromhex("f27ce8e06b000000410f28809122ef33")
    assert broken(b"") == "Truncated"
    assert broken(good[:7]) == "Truncated"
    assert broken(good[:12]) == "Truncated"
    assert broken(good + bytes(4)) == "TrailingBytes"
    assert broken(good, ways=2) == "Truncated"
    assert broken(good, 11) == "BadState"
    assert broken(good[:-1] + b"\0") in {"BadState", "BadEscape"}
    assert broken(bytes(8)) == "BadState"
    assert broken(b"\xff" * 8, 1) == "BadState"
    # The twin writes numbers of any length.
    for symbol, message in ((2**33, "does not fit 32 bits"), (2**40, "at most 9 groups of bits, this one has 11")):
        with pytest.raises(StreamError, match=message):
            rans_decode(
                reference.rans_encode([symbol], [VECTOR], [0], 64, 1),
                tables_of([VECTOR]),
                np.zeros(1, np.int32),
                ways=1,
            )


@given(st.binary(max_size=120), st.sampled_from(FORMS), st.integers(0, 700))
def test_bytes_from_anywhere_are_symbols_or_an_error(data: bytes, form: tuple[Any, Any], m: int) -> None:
    indexes = np.arange(m, dtype=np.int32) % np.int32(len(ROWS))
    tables = tables_of(ROWS)
    try:
        symbols = rans_decode(data, tables, indexes, state_bits=form[0], ways=form[1])
    except StreamError:
        return
    again = rans_encode(symbols, tables, indexes, state_bits=form[0], ways=form[1])
    np.testing.assert_array_equal(rans_decode(again, tables, indexes, state_bits=form[0], ways=form[1]), symbols)


def test_a_changed_byte_is_noticed_where_nothing_is_escaped() -> None:
    symbols, indexes = drawn(4000)
    inside = np.abs(symbols) < 2
    symbols, indexes = symbols[inside], indexes[inside]
    tables = tables_of(ROWS)
    stream = rans_encode(symbols, tables, indexes, ways=2)
    for place in range(len(stream)):
        changed = bytearray(stream)
        changed[place] ^= 0x10
        with pytest.raises(StreamError):
            rans_decode(changed, tables, indexes, ways=2)


def test_reading_takes_the_symbols_alone() -> None:
    tables, indexes = tables_of([VECTOR]), np.zeros(1_000_000, np.int32)
    stream = rans_encode(np.zeros(1_000_000, np.int32), tables, indexes)
    tracemalloc.start()
    with pytest.raises(StreamError, match="ends before its last symbol"):
        rans_decode(stream[: len(stream) // 2], tables, indexes)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes <= 4 * 1_000_000 + len(stream) + 4096


WRITER = """
import sys
import numpy as np
from edge_runtime.kernels import RansTables, rans_encode
cdf, row = np.array([[0, 65534, 65535, 65536]], np.int32), np.zeros(1, np.int32)
tables, indexes = RansTables(cdf, row + 4, row), np.zeros(4_000_000, np.int32)
symbols = np.full(len(indexes), int(sys.argv[1]), np.int32)
rans_encode(symbols[:9], tables, indexes[:9])
def status(name):
    return int(open("/proc/self/status").read().partition(name + ":")[2].split()[0]) << 10
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
print(len(rans_encode(symbols, tables, indexes)), status("VmHWM") - before)
"""


@pytest.mark.parametrize("symbol", [0, -(2**31)])
def test_writing_takes_no_more_memory_than_its_contract_says(symbol: int) -> None:
    """A symbol of next to no bits, and one that is longer than the first buffer is made for."""
    run = subprocess.run([sys.executable, "-c", WRITER, str(symbol)], capture_output=True, text=True, check=True)
    stream_bytes, extra_bytes = map(int, run.stdout.split())
    assert extra_bytes <= stream_bytes + max(2_000_000, 3 * stream_bytes) + 1_000_000  # the last for the interpreter


@pytest.mark.parametrize(
    ("cdf", "offset", "message"),
    [
        ([0, 65536], 0, "a length is 3"),
        ([1, 2, 65536], 0, "counts go from 0 to 65536, got 1 to 65536"),
        ([0, 2, 65535], 0, "counts go from 0 to 65536, got 0 to 65535"),
        ([0, 7, 7, 65536], 0, "entry 2 is 7 after 7"),
        ([0, 7, 70_000, 65536], 0, "entry 3 is 65536 after 70000"),
        ([0, 7, 65536], MOST, "offset 2147483647 leaves symbols that do not fit 32 bits"),
    ],
)
def test_tables_that_cannot_be_are_refused(cdf: list[int], offset: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"cdf row 1: .*{message}"):
        tables_of([VECTOR, reference.Row(cdf, offset)])


def test_arguments_that_cannot_be_are_refused() -> None:
    tables, one, none = tables_of([VECTOR]), np.array([1], np.int32), np.array([], np.int32)
    with pytest.raises(ValueError, match=r"indexes\[0\] is 1, but the tables have 1 rows"):
        rans_encode(one, tables, one)
    with pytest.raises(ValueError, match=r"indexes\[0\] is -1"):
        rans_decode(bytes(32), tables, -one)
    with pytest.raises(ValueError, match="got 1 symbols and 0 indexes"):
        rans_encode(one, tables, none)
    with pytest.raises(ValueError, match="ways must be 1, 2 or 4, got 3"):
        rans_encode(none, tables, none, ways=3)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="state_bits must be 32 or 64, got 16"):
        rans_decode(b"", tables, none, state_bits=16)  # type: ignore[arg-type]  # what is tested
    for shape in ((1, 3), (0, 2**40)):
        with pytest.raises(ValueError, match="1 lengths and 0 offsets"):
            RansTables(np.zeros(shape, np.int32), one, none)
    with pytest.raises(ValueError, match="got 0 counts in rows of 1099511627776, 1 lengths"):
        RansTables(np.zeros((0, 2**40), np.int32), one, one)


def test_counts_worked_out_by_hand() -> None:
    # 0.5 and 0.25 are exact; 1e-9 rounds to nothing and takes a count from the smallest other, the escape.
    assert quantized_cdf(np.array([0.5, 1e-9, 0.25, 0.25])).tolist() == [0, 32768, 32769, 49152, 65536]
    assert quantized_cdf(np.array([0.25, 0.0, 0.0])).tolist() == [0, 65534, 65535, 65536]
    with pytest.raises(ValueError, match="pmf must be 2 to 65536 finite"):
        quantized_cdf(np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="pmf has no probability"):
        quantized_cdf(np.array([1e-9, 1e-9]))
